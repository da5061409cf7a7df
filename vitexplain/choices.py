"""The values that options take, and nothing else: whoever checks one imports no more than this."""

DEFAULT_IMAGE = "examples/both.png"
HEAD_FUSIONS = ("mean", "max", "min")
CROPS = ("none", "center", "pad")
FORMATS = ("auto", "png", "jpg", "webp")  # of overlays
LONGEST_SIDE = 65500  # pixels of an overlay that is asked for by its size: a JPEG's limit
ENGINES = ("local", "ray")
PRECISIONS = ("auto", "fp32", "tf32", "fp16")
# how a model's outputs become probabilities: a softmax over all, a sigmoid of each, or not at all
LABELS = ("exclusive", "independent", "none")
