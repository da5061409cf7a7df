"""The values that options take, and nothing else: whoever checks one imports no more than this."""

DEFAULT_IMAGE = "examples/both.png"
HEAD_FUSIONS = ("mean", "max", "min")
CROPS = ("none", "center", "pad")
ENGINES = ("local", "ray")
