"""Which models can be explained.

All others are refused with the reason, because a map of something other than attention over
patches would look as convincing as a true one.
"""

from timm.layers import AttentionPoolLatent, DiffAttention
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import DiffParallelScalingBlock, VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from vitexplain.attention.readout import is_timms_own
from vitexplain.attention.wrappers import Unclear, vit_within
from vitexplain.errors import RequestError

# every token attends to every other token, from the first block to the last
GLOBAL = (VisionTransformer, Eva, Beit, VisionTransformerRelPos)
# attention in windows, on ever fewer tokens
WINDOWED = (SwinTransformer, SwinTransformerV2)

# why a family is refused, by the name of its class; UNKNOWN for all others
REASONS = {
    "Cait": "its talking heads are mixed after the softmax",
    "ConVit": "its gated attention mixes content with position after the softmax",
    "Xcit": "its attention is between channels, not between patches",
    "EdgeNeXt": "its attention is between channels, not between patches",
    "DaVit": "half of its attention is between channels, not between patches",
    "NaFlexVit": "its patches come as a list without a grid",
    "Levit": "its grid shrinks within attention, which passes no hook",
    "LevitDistilled": "its grid shrinks within attention, which passes no hook",
    "MaxxVit": "it attends in windows and grids in turn, between convolutions",
    "CrossVit": "two grids of patches attend to each other",
    "VisionTransformerSAM": "its attention is in windows, with heads and images in one dimension",
}

WORK = ("deit_tiny_patch16_224", "vit_base_patch16_224", "swin_tiny_patch4_window7_224")

UNKNOWN = "its layers are not blocks of attention over one grid of patches"
FOREIGN = (
    "its class is not timm's: vitexplain.load_model(model) converts ViTs of transformers and "
    "torchvision, load_model(name, checkpoint=file) loads a saved state_dict() into timm's model"
)


class UnsupportedModel(RequestError):
    """The model's attention can't be captured, or doesn't mean what rollout needs it to mean.

    Args:
        others: whether to name models that work.
    """

    def __init__(self, model: nn.Module, reason: str, *, others: bool = False):
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
        kind = type(model).__name__
        self.reason = reason
        hint = f". Models that work: {', '.join(w for w in WORK if w != name)}" if others else ""
        super().__init__(
            f"{f'{name} ({kind})' if name else kind} can't be explained: {reason}{hint}"
        )


def check_supported(model: nn.Module) -> nn.Module:
    """The ViT that `model` is, or holds: see vitexplain.attention.wrappers.

    Raises:
        UnsupportedModel: unless it can be explained.
    """
    try:
        vit = vit_within(model, GLOBAL + WINDOWED)
    except Unclear as error:
        raise UnsupportedModel(model, str(error)) from error
    if vit is None:
        other = UNKNOWN if type(model).__module__.startswith("timm.") else FOREIGN
        raise UnsupportedModel(model, REASONS.get(type(model).__name__, other), others=True)
    _check_attention(vit)
    if is_timms_own(vit):
        _check_pooling(vit)  # else what its head reads is found out, see token_layout
    return vit


def _check_attention(model: nn.Module) -> None:
    if any(".nn.quantized" in type(module).__module__ for module in model.modules()):
        raise UnsupportedModel(
            model,
            "its layers are quantised: no gradient passes them, and they round each batch in its "
            "own way; explain it as it was before",
        )
    if any(isinstance(m, DiffAttention | DiffParallelScalingBlock) for m in model.modules()):
        raise UnsupportedModel(
            model,
            "differential attention subtracts two maps, so its weights are signed",
            others=True,
        )


def _check_pooling(model: nn.Module) -> None:
    attention_pool = getattr(model, "attn_pool", None)
    if attention_pool is not None and not (
        isinstance(attention_pool, AttentionPoolLatent) and attention_pool.latent_len == 1
    ):
        raise UnsupportedModel(
            model, f"its pooling ({type(attention_pool).__name__}) has no single query"
        )
    pooling = pooling_of(model)
    if attention_pool is None and "max" in pooling:
        raise UnsupportedModel(model, "max pooling reads a different token for every channel")
    if isinstance(model, WINDOWED) and pooling != "avg":
        raise UnsupportedModel(model, f"its pooling ({pooling or 'none'}) reads no token")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks with attention, the first one first."""
    if isinstance(model, WINDOWED):
        return [block for stage in model.layers for block in stage.blocks]
    return list(model.blocks)


def pooling_of(model: nn.Module) -> str:
    """How the head pools the tokens: "token", "avg", ...; "" if it doesn't."""
    return str(getattr(model, "global_pool", None) or "")
