"""What a model's outputs say about an image: categories, each with a probability or a value.

Outputs exclude each other ("exclusive": a softmax over all of them), or each says yes or no by
itself ("independent": a sigmoid of each), or they are values, as of a regression ("none"). A single
output y has two answers, of index 0 and 1: against (-y) and for (y). Their probabilities are
sigmoid(-y) and sigmoid(y). The cosine of two embeddings ("cosine") is a value, too, but one of a
known range: what is measured by a probability elsewhere is measured by it.
"""

import torch
from torch import Tensor

from vitexplain.errors import RequestError

COSINE = "cosine"


def are_values(labels: str) -> bool:
    """Whether outputs of this kind are told as they are, not as probabilities."""
    return labels in ("none", COSINE)


def both_sides(logits: Tensor) -> Tensor:
    """(B, K) -> (B, K); of a single output y, (B, 1) -> (B, 2): -y and y."""
    return torch.cat([-logits, logits], dim=1) if logits.shape[1] == 1 else logits


def probabilities(logits: Tensor, labels: str = "exclusive") -> Tensor:
    """(B, K) -> (B, categories), 0 to 1; of a cosine, -1 to 1.

    Args:
        labels: "exclusive", "independent" or "cosine".

    Raises:
        RequestError: for "none", whose outputs are no probabilities.
    """
    if labels == "none":
        raise RequestError("outputs of --labels none are values: they have no probabilities")
    if labels == COSINE:
        return both_sides(logits)
    if labels == "independent" or logits.shape[1] == 1:
        return both_sides(logits).sigmoid()
    return logits.softmax(dim=1)


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs (B, K) are no logits, but what a softmax has made of them."""
    if outputs.shape[1] < 2 or not bool((outputs >= 0).all()):
        return False
    return bool(((outputs.sum(dim=1) - 1).abs() < 1e-3).all())
