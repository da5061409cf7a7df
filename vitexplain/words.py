"""What is said in several places, in words. Imports nothing heavy."""

from collections.abc import Mapping


def share_of(category: Mapping) -> str:
    """A category's probability in words, "97.3%", or its value, "output 3.21".

    Args:
        category: as reports have it, with "probability" and, where that is None, "output".
    """
    probability = category["probability"]
    return f"output {category['output']:.4g}" if probability is None else f"{probability:.1%}"
