"""What is said in several places, in words. Imports nothing heavy."""

import json
import math
from collections.abc import Mapping

# where a measured map leads neither of the baselines by more than noise
UNBEATEN = "No map beats the random map and the centre Gaussian on this image"

# the questions that maps answer, see vitexplain.methods.questions
CHANGES = "which patches change the answer"
OBJECT = "where the object is"
TAKEN_IN = "what was taken in, whatever the answer"


def short_name(name: str) -> str:
    """The first synonym: "tiger cat" of "tiger cat, Felis silvestris"."""
    return name.split(",")[0]


def share_of(category: Mapping) -> str:
    """A category's probability in words, "97.3%", or its value, "output 3.21".

    Args:
        category: as reports have it, with "probability" and, where that is None, "output".
    """
    probability = category["probability"]
    return f"output {category['output']:.4g}" if probability is None else f"{probability:.1%}"


def to_json(value: object, **options: object) -> str:
    """JSON that every reader takes: what is no finite number becomes null, never NaN."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
