"""Which models can be explained, and by what.

Where attention can't be, it is refused with the reason, because a map of something other than
attention over patches would look as convincing as a true one. Any classifier of timm has methods
that need none.
"""

from timm.layers import AttentionPoolLatent, DiffAttention
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import DiffParallelScalingBlock, VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from vitexplain.attention.readout import has_categories, is_timms_own
from vitexplain.attention.wrappers import Counts, Unclear, model_within
from vitexplain.errors import RequestError

# every token attends to every other token, from the first block to the last
GLOBAL = (VisionTransformer, Eva, Beit, VisionTransformerRelPos)
# attention in windows, on ever fewer tokens
WINDOWED = (SwinTransformer, SwinTransformerV2)

SHRINKS = "its grid shrinks from block to block, which only both rollouts follow"
# why a family is refused, by the name of its class; UNKNOWN for all others
REASONS = {
    "Cait": "its talking heads are mixed after the softmax",
    "ConVit": "its gated attention mixes content with position after the softmax",
    "Xcit": "its attention is between channels, not between patches",
    "EdgeNeXt": "its attention is between channels, not between patches",
    "DaVit": "half of its attention is between channels, not between patches",
    "NaFlexVit": "its patches come as a list without a grid",
    **dict.fromkeys(
        ("PoolingVisionTransformer", "Levit", "LevitDistilled", "Hiera", "Twins"), SHRINKS
    ),
    "MaxxVit": "convolutions between its windows and grids mix patches outside of attention",
    "MultiScaleVit": "convolutions of queries, keys and values mix patches outside of attention",
    "PyramidVisionTransformerV2": "convolutions in its MLPs mix patches outside of attention",
    "CrossVit": "two grids of patches attend to each other",
    "VisionTransformerSAM": "its attention is in windows, with heads and images in one dimension",
}

WORK = ("deit_tiny_patch16_224", "vit_base_patch16_224", "swin_tiny_patch4_window7_224")

UNKNOWN = "its layers are not blocks of attention over one grid of patches"
ENCODERS = ("DeepseekVitEncoder", "Gemma4VitEncoder", "MobileNetV5Encoder", "Qwen3VitEncoder")
ENCODER = "it has features of patches only: no categories, and no embedding of an image"
NO_CATEGORIES = (
    "it has no categories: its embedding can be explained by --similar_to, or by the categories of "
    "--class_embeddings"
)
FOREIGN = (
    "its class is not timm's: vitexplain.load_model(model) converts ViTs of transformers and "
    "torchvision, load_model(name, checkpoint=file) loads a saved state_dict() into timm's model"
)


class UnsupportedModel(RequestError):
    """The model's attention can't be captured, or doesn't mean what rollout needs it to mean.

    Args:
        instead: a method that explains this model by something else than its attention; "" where
            there is none: then models that work are named. None to name nothing.
    """

    def __init__(self, model: nn.Module, reason: str, *, instead: str | None = None):
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
        kind = type(model).__name__
        self.reason, hint = reason, ""
        if instead == "":
            hint = f". Models that work: {', '.join(w for w in WORK if w != name)}"
        elif instead is not None:
            command = f"vit_explain.py --model {name} --method {instead}" if name else instead
            hint = f"; what explains it: {command}"
        super().__init__(
            f"{f'{name} ({kind})' if name else kind} can't be explained"
            f"{' by attention' if instead else ''}: {reason}{hint}"
        )


def check_supported(model: nn.Module) -> nn.Module:
    """The ViT that `model` is, or holds: see vitexplain.attention.wrappers.

    Raises:
        UnsupportedModel: unless its attention can be explained.
    """
    vit = _within(model, _is_vit, "ViT")
    if vit is None:
        classifier = _within(model, _is_timms, "model")
        if classifier is None:
            raise UnsupportedModel(model, FOREIGN, instead="")
        reason = REASONS.get(type(classifier).__name__, UNKNOWN)
        instead = "gradcam" if has_categories(classifier) else ""
        instead = "grad_rollout" if reason == SHRINKS and instead else instead
        raise UnsupportedModel(classifier, reason, instead=instead)
    _check_attention(vit)
    if is_timms_own(vit):
        _check_pooling(vit)  # else what its head reads is found out, see token_layout
    return vit


def check_classifier(model: nn.Module) -> nn.Module:
    """timm's model that `model` is, or holds, whether or not its attention can be explained.

    Raises:
        UnsupportedModel: if it has no categories, or is not timm's.
    """
    found = timms_model(model)
    if type(found).__name__ in ENCODERS:
        raise UnsupportedModel(found, ENCODER, instead="")
    if not has_categories(found):
        raise UnsupportedModel(found, NO_CATEGORIES)
    return found


def timms_model(model: nn.Module) -> nn.Module:
    """timm's model that `model` is, or holds.

    Raises:
        UnsupportedModel: if there is none.
    """
    found = _within(model, lambda module: _is_vit(module) or _is_timms(module), "model")
    if found is None:
        raise UnsupportedModel(model, FOREIGN, instead="")
    return found


def _within(model: nn.Module, counts: Counts, kind: str) -> nn.Module | None:
    try:
        return model_within(model, counts, kind)
    except Unclear as error:
        raise UnsupportedModel(model, str(error)) from error


def _is_vit(module: nn.Module) -> bool:
    return isinstance(module, GLOBAL + WINDOWED)


def _is_timms(module: nn.Module) -> bool:
    """Whether it is a whole model of timm, also of a subclass."""
    return hasattr(module, "pretrained_cfg") and any(
        kind.__module__.startswith("timm.models.") for kind in type(module).__mro__
    )


def _check_attention(model: nn.Module) -> None:
    kinds = set(map(type, model.modules()))
    if any(".nn.quantized" in kind.__module__ for kind in kinds):
        raise UnsupportedModel(
            model,
            "its layers are quantised: no gradient passes them, and they round each batch in its "
            "own way; explain it as it was before",
            instead="occlusion",
        )
    if any(issubclass(kind, DiffAttention | DiffParallelScalingBlock) for kind in kinds):
        raise UnsupportedModel(
            model,
            "differential attention subtracts two maps, so its weights are signed",
            instead="gradcam",
        )


def _check_pooling(model: nn.Module) -> None:
    attention_pool = getattr(model, "attn_pool", None)
    if attention_pool is not None and not (
        isinstance(attention_pool, AttentionPoolLatent) and attention_pool.latent_len == 1
    ):
        raise UnsupportedModel(
            model,
            f"its pooling ({type(attention_pool).__name__}) has no single query",
            instead="gradcam",
        )
    pooling = pooling_of(model)
    if attention_pool is None and "max" in pooling:
        raise UnsupportedModel(
            model, "max pooling reads a different token for every channel", instead="gradcam"
        )
    if isinstance(model, WINDOWED) and pooling != "avg":
        raise UnsupportedModel(
            model, f"its pooling ({pooling or 'none'}) reads no token", instead="gradcam"
        )


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks with attention, the first one first."""
    if isinstance(model, WINDOWED):
        return [block for stage in model.layers for block in stage.blocks]
    return list(model.blocks)


def pooling_of(model: nn.Module) -> str:
    """How the head pools the tokens: "token", "avg", ...; "" if it doesn't."""
    return str(getattr(model, "global_pool", None) or "")
