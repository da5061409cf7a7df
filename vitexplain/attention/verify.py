"""Whether what was explained is what the model does: the explained pass against a plain one."""

import torch
from torch import Tensor, nn

from vitexplain.attention.capture import forward
from vitexplain.attention.readout import has_own_code
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.tokens import UnsupportedModel

# of the largest logit: what another order of summation may change
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
ROUGH = 5e-2  # in half precision


def check_pass(model: nn.Module, images: Tensor, logits: Tensor | None) -> None:
    """Compare an explained pass with a plain one, where not all code is timm's.

    Args:
        images: (B, C, H, W); the first one is passed again.
        logits: of the explained pass, on the CPU; None if it made none.

    Raises:
        UnsupportedModel: if the logits differ, or are not finite.
    """
    if logits is None:
        return
    if not bool(logits.isfinite().all()):
        raise UnsupportedModel(model, "its outputs are not finite: are there NaNs in its weights?")
    if not has_own_code(model):
        return
    with torch.inference_mode():
        plain = forward(shadow_of(model), images[:1]).cpu()
    tolerance = TOLERANCE.get(plain.dtype, ROUGH) * (1 + float(plain.abs().max()))
    if plain.shape[1:] != logits.shape[1:] or not bool(
        ((plain - logits[:1]).abs() <= tolerance).all()
    ):
        raise UnsupportedModel(
            model,
            "its outputs in the pass that is explained are not those of a plain pass: its forward "
            "is random, or notices that it is looked at",
        )
