"""Which map is faithful to its model: the measures, and the baselines that a method must beat.

A map is compared with what the model does when patches are removed (`removal`), and with the map
after the model's weights are randomised (`sanity`) or the image is slightly changed (`stability`).
None of this needs labels; `measures` does it all. What no map has to reach says how much is left to
gain (`ceiling`).
"""
