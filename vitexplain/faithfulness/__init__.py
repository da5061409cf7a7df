"""Which map is faithful to its model: the measures, and baselines that a method has to beat.

What a map says is held against what the model does when patches are removed (`removal`), when its
weights are randomised (`sanity`), and when the image changes a little (`stability`). None of it
needs labels; see `evaluate`.
"""
