"""Hide patches by leaving their tokens out: they never enter the blocks of a ViT.

Whatever fills a hidden patch says something to the model. A token that is left out says nothing:
the others attend to one another alone, as if every hidden token's key had been masked in every
block. Each keeps the position embedding of its own place. Prefix tokens (class, distillation,
registers) stay, so that an empty image is they alone.

This means the same as before only where nothing else depends on which tokens there are. The models
are timm's VisionTransformer and DeiT's distilled one

- with tokens of disjoint patches of pixels, whose position is added before the blocks (of a stem
  of convolutions, as the bundled model's, tokens also show what is around their patches);
- with timm's own blocks, in which a token's place plays no further part;
- whose head reads a prefix token, which an empty image has, too. Where it reads the mean over all
  tokens, prefix included, it reads the mean over the shown ones and the prefix.

Not so Eva's and BEiT's, whose attention knows where its tokens lie, nor any with windows or a
pyramid of grids; nor heads that read patches alone, or by attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.layers import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitexplain.attention.order import is_ordered
from vitexplain.attention.readout import is_timms_own
from vitexplain.attention.tokens import UnsupportedModel, token_layout
from vitexplain.attention.wrappers import input_size
from vitexplain.errors import RequestError

DROP = "drop"  # the name of this way to hide patches, beside the fills
PLAIN = (VisionTransformer, VisionTransformerDistilled)
KNOWN_CODE = ("timm.layers.", "torch.nn.modules.")


def drops_tokens(model: nn.Module) -> bool:
    """Whether the tokens of hidden patches can be left out of this model's blocks."""
    return not _why_not(model)


def check_drops_tokens(model: nn.Module) -> None:
    """Raise RequestError, with the reason, unless `drops_tokens`."""
    reason = _why_not(model)
    if reason:
        raise RequestError(
            f"tokens can't be left out of this {type(model).__name__}: {reason}; hide its patches "
            "by a fill, mean or blur"
        )


@contextmanager
def only_tokens(model: nn.Module, kept: Tensor) -> Iterator[None]:
    """In it, of each image only some patches' tokens enter the blocks.

    Args:
        model: one that `drops_tokens`, or its shadow; it has a hook meanwhile.
        kept: (B, K) int, the patches' numbers, row by row of the grid; for each image of the
            batches that pass.
    """
    prefix = torch.arange(model.num_prefix_tokens, device=kept.device).expand(len(kept), -1)
    places = torch.cat([prefix, kept + model.num_prefix_tokens], dim=1)[:, :, None]

    def select(_layer: nn.Module, _inputs: tuple, tokens: Tensor) -> Tensor:
        return tokens.gather(1, places.expand(-1, -1, tokens.shape[2]))

    # the last layer before the blocks, which treats each token by itself
    hook = model.norm_pre.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()


def _why_not(model: nn.Module) -> str:
    """The reason; "" for a model that drops tokens."""
    if type(model) not in PLAIN:
        return "its class is not timm's VisionTransformer"
    if not (is_timms_own(model) and is_ordered(model)):
        return "its forward pass is not timm's own"
    conv = getattr(model.patch_embed, "proj", None)
    if (
        type(model.patch_embed) is not PatchEmbed
        or not isinstance(conv, nn.Conv2d)
        or conv.stride != conv.kernel_size
        or any(conv.padding)
    ):
        return "its tokens also see pixels beyond their own patches"
    between = (model.patch_embed, model.patch_drop, model.norm_pre, model.blocks)
    if not all(map(_is_known, (layer for part in between for layer in part.modules()))):
        return "its layers have code of their own, which may depend on where a token lies"
    try:
        layout = token_layout(model, *input_size(model)[1:])
    except UnsupportedModel as error:
        return error.reason
    if layout.pooled_tokens:
        return "its head reads tokens by attention"
    if min(layout.readout_rows) >= layout.prefix_tokens:
        return "its head reads patches alone, and an empty image has none"
    return ""


def _is_known(layer: nn.Module) -> bool:
    where = type(layer).__module__
    known = where == VisionTransformer.__module__ or where.startswith(KNOWN_CODE)
    return known and "forward" not in vars(layer)
