"""Does a map depend on what the model has learnt? The randomisation test.

Adebayo et al. 2018, "Sanity Checks for Saliency Maps" (section 3, cascading randomisation): the
weights are randomised from the head down to the embedding, step by step, and the map is compared
with that of the whole model, by rank correlation. A map that stays the same shows the image, or
the architecture, but nothing that the model has learnt: the correlation should go to 0.

Each weight tensor is shuffled, which keeps its size and spread: newly drawn weights would be so
small that attention is uniform, and any map would change for that reason alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vitexplain.attention.families import GLOBAL
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.tokens import WINDOWED, blocks_of
from vitexplain.attention.wrappers import WRAPPER
from vitexplain.faithfulness.passes import BATCH, check_categories, scores_of
from vitexplain.faithfulness.ranks import rank_correlation
from vitexplain.methods.registry import Method
from vitexplain.progress import Watch, silent

SHUFFLES = 5

# the layers after the last block, by the first part of their names; where tokens are averaged, the
# norm follows that and is named fc_norm
AFTER_BLOCKS = {
    "head": "head",
    "head_dist": "head",
    "attn_pool": "head",
    WRAPPER: "head",
    "norm": "norm",
    "fc_norm": "norm",
}


def stages_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The weights in the order in which they are randomised.

    Head, last norm, blocks from the last to the first, and all the rest as "embedding" (in Swin
    including the layers that merge patches). A model that is no ViT has its children as stages, the
    last one first. Every parameter is in exactly one stage.
    """
    if not isinstance(model, GLOBAL + WINDOWED):
        return _children_of(model)
    blocks = blocks_of(model)
    in_block = {
        parameter: f"block {number}"
        for number, block in enumerate(blocks, start=1)
        for parameter in block.parameters()
    }
    names = ["head", "norm", *(f"block {n}" for n in range(len(blocks), 0, -1)), "embedding"]
    stages: dict[str, list[nn.Parameter]] = {name: [] for name in names}
    for name, parameter in model.named_parameters():
        stage = AFTER_BLOCKS.get(name.partition(".")[0], "embedding")
        stages[in_block.get(parameter, stage)].append(parameter)
    return {name: parameters for name, parameters in stages.items() if parameters}


def _children_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    stages: dict[str, list[nn.Parameter]] = {}
    for name, parameter in reversed(list(model.named_parameters())):
        stages.setdefault(name.partition(".")[0], []).append(parameter)
    return stages


def shuffle_(parameters: Sequence[nn.Parameter], generator: torch.Generator) -> None:
    """Put the values of each tensor in a random order, in place."""
    with torch.no_grad():
        for parameter in parameters:
            order = torch.randperm(parameter.numel(), generator=generator)
            values = parameter.flatten()[order.to(parameter.device)]
            parameter.copy_(values.reshape(parameter.shape))


def by_shuffles(
    model: nn.Module,
    images: Tensor,
    categories: Sequence[int],
    methods: Mapping[str, Method],
    scores: Mapping[str, np.ndarray],
    *,
    batch_size: int = BATCH,
    seed: int = 0,
    watch: Watch = silent,
) -> dict[str, np.ndarray]:
    """(SHUFFLES,) of each method: |rank correlation| with the map of a wholly shuffled model.

    One shuffle's chance correlation is that of all its maps, and those of several cancel: each is
    taken without its sign, and each shuffle explains another image, as long as there are some.

    Args:
        model: left as it was found.
        images: (B, 3, H, W).
        categories: B of them, explained whatever a random model predicts.
        methods: by name.
        scores: (B, h, w) of each method, of the whole model.
        seed: of the shuffles.
        watch: shows how far the work has come, see vitexplain.progress.

    Raises:
        UnsupportedModel: if a method can't explain the model.
    """
    check_categories(model, images, categories)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[float]] = {name: [] for name in methods}
    for number in watch(range(SHUFFLES), "randomisation"):
        place = number % len(images)
        which = slice(place, place + 1)
        changed = shadow_of(model, own_weights=True)
        for parameters in stages_of(changed).values():
            shuffle_(parameters, generator)
        for name, method in methods.items():
            other = scores_of(method, changed, images[which], categories[which], batch_size)
            found[name].append(abs(float(rank_correlation(scores[name][which], other)[0])))
    return {name: np.array(values) for name, values in found.items()}


def randomisation(
    model: nn.Module,
    images: Tensor,
    categories: Sequence[int],
    methods: Mapping[str, Method],
    *,
    batch_size: int = BATCH,
    seed: int = 0,
    watch: Watch = silent,
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Rank correlation of the whole model's maps with those of ever more random models.

    Args:
        model: a timm ViT; left as it was found.
        images: (B, 3, H, W).
        categories: B of them, explained at every stage, whatever a random model predicts.
        methods: by name.
        seed: of the shuffles.
        watch: shows how far the work has come, see vitexplain.progress.

    Returns:
        The names of the S stages, and for each method (B, S), the correlations.

    Raises:
        UnsupportedModel: if a method can't explain the model.
    """
    check_categories(model, images, categories)
    changed = shadow_of(model, own_weights=True)
    stages = stages_of(changed)
    generator = torch.Generator().manual_seed(seed)
    correlations: dict[str, list[np.ndarray]] = {name: [] for name in methods}

    def masks(name: str, of: nn.Module) -> np.ndarray:
        # the method is made anew each time, as it may have read the weights
        return scores_of(methods[name], of, images, categories, batch_size)

    whole = {name: masks(name, model) for name in methods}
    for parameters in stages.values():
        shuffle_(parameters, generator)
        for name in watch(methods, "randomisation"):
            correlations[name].append(rank_correlation(whole[name], masks(name, changed)))
    return list(stages), {name: np.stack(values, axis=1) for name, values in correlations.items()}
