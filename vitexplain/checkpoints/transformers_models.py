"""timm's networks for the classes of Hugging Face transformers, after their config.json.

What they read, which is not always what timm's model of the same weights reads:

    ViT, DeiT       the class token (DeiT with a teacher: the mean of two heads)
    BEiT            the norm of the mean of patches
    DINOv2          the class token beside the mean of patches, as one vector of twice the width
    SigLIP          the mean of patches, not its attention pool
    CLIP            the mean of patches before the last norm
    Swin            the mean of the last patches
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from timm.layers import SwiGLUPacked, get_act_layer
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vitexplain.checkpoints.reading import CheckpointError

State = dict[str, Tensor]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class ClassAndPatches(VisionTransformer):
    """The classifier reads the class token and the mean of the patches, one after the other."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        patches = x[:, self.num_prefix_tokens :].mean(dim=1)
        pooled = torch.cat([x[:, 0], patches], dim=1)
        return pooled if pre_logits else self.head(pooled)


def network(config: Mapping, state: State, categories: int, size: tuple[int, int]) -> nn.Module:
    """The network that a config.json describes, without its weights.

    Args:
        config: of the vision part.
        state: its weights, by timm's names.
        categories: outputs of its classifier, 0 without.
        size: (H, W) of its images.

    Raises:
        CheckpointError: for a kind of model that timm has no network for.
    """
    kind = config.get("model_type") or "none"
    make = KINDS.get(kind)
    if make is None:
        raise CheckpointError(
            f"models of type {kind} are none of those that are read from transformers' "
            f"folders: {', '.join(KINDS)}, timm_wrapper"
        )
    return make(config, state, categories, size)


def adapted(config: Mapping, state: State, size: tuple[int, int]) -> State:
    """The weights as the network of that class has them, with positions of that size."""
    kind = str(config.get("model_type"))
    if kind == "deit" and "head_dist.weight" not in state:
        return {("reg_token" if key == "dist_token" else key): v for key, v in state.items()}
    if kind == "dinov3_vit":
        return {key.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): value
                for key, value in state.items()}  # fmt: skip
    if not kind.startswith("dinov2"):
        return state
    positions = state["pos_embed"]
    patch = _pair(config["patch_size"])
    grid = size[0] // patch[0], size[1] // patch[1]
    before, patches = positions[:, :1], positions[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    if (side, side) != grid:  # as there, where one of the two classes smooths
        square = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
        smooth = kind == "dinov2_with_registers"
        square = F.interpolate(square, grid, mode="bicubic", align_corners=False, antialias=smooth)
        patches = square.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    if "reg_token" not in state:
        return state | {"pos_embed": torch.cat([before, patches], dim=1)}
    # registers have no position, so that the class token takes its own along
    return state | {"pos_embed": patches, "cls_token": state["cls_token"] + before}


def _vit(config: Mapping, state: State, categories: int, size: tuple[int, int]) -> nn.Module:
    return VisionTransformer(**_common(config, size, categories), final_norm="norm.weight" in state)


def _deit(config: Mapping, state: State, categories: int, size: tuple[int, int]) -> nn.Module:
    common = _common(config, size, categories)
    if "head_dist.weight" in state:
        return VisionTransformerDistilled(**common)
    # its head ignores the distillation token, which stands where timm has a register
    return VisionTransformer(**common, reg_tokens=1)


def _dinov2(config: Mapping, state: State, categories: int, size: tuple[int, int]) -> nn.Module:
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    options = _common(config, size, 0) | {
        "init_values": 1.0,
        "reg_tokens": registers,
        "no_embed_class": bool(registers),
        "mlp_ratio": config.get("mlp_ratio", 4),
    }
    if config.get("use_swiglu_ffn"):
        width = state["blocks.0.mlp.fc1.weight"].shape[0]
        options |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU,
                    "mlp_ratio": width / config["hidden_size"]}  # fmt: skip
    if not categories:
        return VisionTransformer(**options)
    model = ClassAndPatches(**options)
    model.head = nn.Linear(2 * config["hidden_size"], categories)
    model.num_classes = categories
    return model


def _dinov3(config: Mapping, state: State, categories: int, size: tuple[int, int]) -> nn.Module:
    options = {}
    if config.get("use_gated_mlp"):
        raise CheckpointError("DINOv3 with gated MLPs is not read from transformers' folders")
    if config.get("pos_embed_rescale") is None and categories:
        raise CheckpointError("DINOv3 classifiers are not read from transformers' folders")
    return Eva(
        **_geometry(config, size, categories),
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_ratio=config["intermediate_size"] / config["hidden_size"],
        qkv_bias="blocks.0.attn.q_bias" in state,
        init_values=1.0,
        rope_type="dinov3",
        rope_temperature=config.get("rope_theta", 100.0),
        rope_rotate_half=True,
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        num_reg_tokens=state["reg_token"].shape[1] if "reg_token" in state else 0,
        use_fc_norm=False,
        global_pool="token",
        norm_layer=partial(nn.LayerNorm, eps=config.get("layer_norm_eps", 1e-5)),
        dynamic_img_size=True,
        **options,
    )


def _beit(config: Mapping, state: State, categories: int, size: tuple[int, int]) -> nn.Module:
    mean = config.get("use_mean_pooling", True)
    return Beit(
        **_geometry(config, size, categories),
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_ratio=config["intermediate_size"] / config["hidden_size"],
        qkv_bias=True,
        init_values=config.get("layer_scale_init_value", 0.1) or None,
        use_abs_pos_emb="pos_embed" in state,
        use_rel_pos_bias="blocks.0.attn.relative_position_bias_table" in state,
        use_shared_rel_pos_bias="rel_pos_bias.relative_position_bias_table" in state,
        global_pool="avg" if mean else "token",
        norm_layer=_norm(config),
    )


def _siglip(config: Mapping, state: State, categories: int, size: tuple[int, int]) -> nn.Module:
    pool = not categories and "attn_pool.latent" in state
    return VisionTransformer(
        **_common(config, size, categories),
        class_token=False,
        global_pool="map" if pool else "avg",
        fc_norm=False,
    )


def _clip(config: Mapping, state: State, categories: int, size: tuple[int, int]) -> nn.Module:
    classifies = "head.bias" in state  # else what there is projects the class token
    return VisionTransformer(
        **_common(config, size, categories),
        pre_norm=True,
        final_norm=not classifies,
        global_pool="avg" if classifies else "token",
        fc_norm=False,
    )


def _swin(config: Mapping, _state: State, categories: int, size: tuple[int, int]) -> nn.Module:
    return SwinTransformer(**_windows(config, size, categories), norm_layer=_norm(config))


def _swinv2(config: Mapping, _state: State, categories: int, size: tuple[int, int]) -> nn.Module:
    pretrained = tuple(config.get("pretrained_window_sizes") or (0, 0, 0, 0))
    return SwinTransformerV2(
        **_windows(config, size, categories),
        pretrained_window_sizes=pretrained,
        norm_layer=_norm(config),
    )


KINDS: dict[str, Callable[..., nn.Module]] = {
    "vit": _vit,
    "deit": _deit,
    "beit": _beit,
    "data2vec-vision": _beit,
    "swin": _swin,
    "swinv2": _swinv2,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "dinov3_vit": _dinov3,
    "siglip_vision_model": _siglip,
    "clip_vision_model": _clip,
}


def _geometry(config: Mapping, size: tuple[int, int], categories: int) -> dict:
    return {
        "img_size": size,
        "patch_size": _pair(config["patch_size"]),
        "in_chans": config.get("num_channels", 3),
        "num_classes": categories,
        "embed_dim": config["hidden_size"],
    }


def _common(config: Mapping, size: tuple[int, int], categories: int) -> dict:
    return _geometry(config, size, categories) | {
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": config.get("intermediate_size", 0) / config["hidden_size"],
        "qkv_bias": config.get("qkv_bias", True),
        "norm_layer": _norm(config),
        "act_layer": _activation(config),
    }


def _windows(config: Mapping, size: tuple[int, int], categories: int) -> dict:
    if config.get("use_absolute_embeddings"):
        raise CheckpointError("a Swin with absolute positions is none that timm has a network for")
    return {
        "img_size": size,
        "patch_size": config["patch_size"],
        "in_chans": config.get("num_channels", 3),
        "num_classes": categories,
        "embed_dim": config["embed_dim"],
        "depths": tuple(config["depths"]),
        "num_heads": tuple(config["num_heads"]),
        "window_size": config["window_size"],
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "qkv_bias": config.get("qkv_bias", True),
    }


def _norm(config: Mapping) -> Callable[..., nn.Module]:
    return partial(nn.LayerNorm, eps=config.get("layer_norm_eps", 1e-6))


def _activation(config: Mapping) -> type[nn.Module]:
    name = config.get("hidden_act", "gelu")
    if name not in ACTIVATIONS:
        raise CheckpointError(f"the activation {name} is none of {', '.join(ACTIVATIONS)}")
    return get_act_layer(ACTIVATIONS[name])


def _pair(value: int | list) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
