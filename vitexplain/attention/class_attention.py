"""Class attention: where a class token reads the patches in blocks of its own, at a network's end.

In CaiT (Touvron et al. 2021, "Going deeper with Image Transformers", section 3), XCiT (El-Nouby et
al. 2021) and VOLO (Yuan et al. 2021), what happens between the patches is no plain attention, but
a class token then attends to them: softmaxed rows (B, H, 1, 1 + h*w), itself first.
"""

from contextlib import ExitStack

from torch import Tensor, nn

from vitexplain.attention.capture import (
    ATTENTION_LAYER,
    check_sound,
    forward,
    inference_state,
    sums_to_1,
)
from vitexplain.attention.families import UnsupportedModel, check_classifier
from vitexplain.attention.last_grid import last_grid
from vitexplain.attention.tokens import TokenLayout

BLOCKS = {"Cait": "blocks_token_only", "Xcit": "cls_attn_blocks", "VOLO": "post_network"}


def with_class_attention(model: nn.Module) -> nn.Module | None:
    """The model with class attention that `model` is, or holds; None if there is none."""
    try:
        found = check_classifier(model)
    except UnsupportedModel:
        return None
    return found if class_blocks(found) else None


def class_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks with class attention, the first one first; none in models of other families."""
    names = [BLOCKS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in BLOCKS]
    return list(getattr(model, names[0], None) or ()) if names else []


def class_layout(model: nn.Module, height: int, width: int) -> TokenLayout:
    """The tokens that the class attention reads, of height x width images.

    Raises:
        UnsupportedModel: if they are not a class token and the patches.
    """
    grid = last_grid(model, height, width)
    if grid is None or grid.prefix_tokens != 1:
        raise UnsupportedModel(model, "its class attention does not read a grid of patches")
    return TokenLayout(1, grid.shape, (0,), "class token")


def class_attention(
    model: nn.Module, images: Tensor, layout: TokenLayout, block: int
) -> tuple[Tensor, Tensor]:
    """The attention (B, H, 1, 1 + h*w) of one block, and the logits.

    Raises:
        UnsupportedModel: if what passes there is no such attention.
    """
    seen: list[Tensor] = []
    layer = getattr(class_blocks(model)[block].attn, ATTENTION_LAYER)
    with ExitStack() as undo:
        undo.enter_context(inference_state(model, freeze=False))
        hook = layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
        undo.callback(hook.remove)
        logits = forward(model, images)
    if len(seen) != 1:
        raise UnsupportedModel(model, "its class attention was not seen")
    check_sound(model, sums_to_1(model, seen[0], (1, layout.tokens)))
    return seen[0], logits
