"""The names of Hugging Face transformers for a ViT's weights, as timm's.

Two layouts are about, of versions 4 and 5 of transformers. `save_pretrained` of version 5 still
writes the former by default; a state dict saved by torch has the latter.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

# prefixes that the classes put before their trunk's names
TRUNKS = ("vit.", "deit.", "beit.", "swin.", "swinv2.", "dinov2.", "dinov2_with_registers.",
          "dinov3_vit.", "vision_model.", "model.vision_model.")  # fmt: skip
MARKS = ("embeddings.patch_embeddings.projection.weight", "embeddings.patch_embeddings.weight",
         "embeddings.patch_embedding.weight")  # fmt: skip

RENAMED = (
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_", "attn_pool.in_proj."),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layers\.(\d+)\.(blocks|downsample)\.", r"layers.\1.\2."),  # Swin's stages
    (r"^(encoder\.|model\.)?layers?\.(\d+)\.(?!blocks|downsample)", r"blocks.\2."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.attention\.(attention|self)\.relative_position_bias\.", ".attn."),
    (r"\.attention\.(attention|self)\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.(attention|self_attn)\.", ".attn."),
    (r"\.attn\.relative_position_bias\.", ".attn."),
    (r"\.(\d+)\.relative_position_bias\.", r".\1.attn."),
    (r"^(encoder\.relative|shared)_position_bias\.", "rel_pos_bias."),
    (r"\.attn\.continuous_position_bias_mlp\.", ".attn.cpb_mlp."),
    (r"\.attn\.(o_proj|out_proj)\.", ".attn.proj."),
    (r"\.attn\.(query|q_proj)\.", ".attn.q."),
    (r"\.attn\.(key|k_proj)\.", ".attn.k."),
    (r"\.attn\.(value|v_proj)\.", ".attn.v."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(?<!attn)\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.(weights_in)\.", ".mlp.fc1."),
    (r"\.mlp\.(weights_out)\.", ".mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.lambda_(\d)$", r".gamma_\1"),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^pooler\.layernorm\.", "fc_norm."),
)


def is_transformers(state: Mapping[str, Tensor]) -> bool:
    """Whether weights have names of transformers'."""
    return any(key.endswith(mark) for key in state for mark in MARKS)


def trunk_of(state: Mapping[str, Tensor]) -> tuple[State, State]:
    """(the trunk's weights without prefix, all others), by transformers' names."""
    mark = next(key for key in state for mark in MARKS if key.endswith(mark))
    prefix = mark[: mark.index("embeddings.patch_embedding")]
    trunk = {key[len(prefix) :]: v for key, v in state.items() if key.startswith(prefix)}
    heads = ("classifier", "cls_classifier", "distillation_classifier", "visual_projection")
    others = {key: v for key, v in state.items() if not key.startswith(prefix) or not prefix}
    others = {key: v for key, v in others.items() if key.startswith(heads) or prefix}
    trunk = {key: v for key, v in trunk.items() if not key.startswith(heads)}
    return trunk, others


def renamed(trunk: Mapping[str, Tensor]) -> State:
    """The trunk's weights by timm's names, queries, keys and values joined."""
    new = {}
    for key, value in trunk.items():
        if key.endswith(("relative_position_index", "mask_token")):
            continue
        for pattern, name in RENAMED:
            key = re.sub(pattern, name, key)
        new[key] = value
    if "cls_token" in new:
        new["cls_token"] = new["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in new and new["pos_embed"].ndim == 2:
        new["pos_embed"] = new["pos_embed"][None]
    # merging stands at the end of a stage there, at the start of the next one here
    new = {re.sub(r"^layers\.(\d+)\.downsample",
                  lambda m: f"layers.{int(m[1]) + 1}.downsample", k): v
           for k, v in new.items()}  # fmt: skip
    return _gates_joined(_pool_split(_qkv_joined(new)))


def _qkv_joined(state: State) -> State:
    joined = {}
    for key, value in state.items():
        found = re.fullmatch(r"(.*\.attn)\.([qkv])\.(weight|bias)", key)
        if not found:
            joined[key] = value
            continue
        attention, which, kind = found.groups()
        parts = [state.get(f"{attention}.{each}.{kind}") for each in "qkv"]
        if which != "q":
            continue
        if all(part is not None for part in parts):
            joined[f"{attention}.qkv.{kind}"] = torch.cat(parts)
        else:  # keys have no bias: timm keeps the others' apart
            joined[f"{attention}.q_bias"], joined[f"{attention}.v_bias"] = parts[0], parts[2]
    return joined


def _gates_joined(state: State) -> State:
    """Gated MLPs: gate and input in one layer."""
    new = {}
    for key, value in state.items():
        if ".mlp.gate_proj." in key:
            up = state[key.replace("gate_proj", "up_proj")]
            new[key.replace("gate_proj", "fc1")] = torch.cat([value, up])
        elif ".mlp.up_proj." in key:
            if key.replace("up_proj", "gate_proj") not in state:
                new[key.replace("up_proj", "fc1")] = value
        else:
            new[key.replace(".mlp.down_proj.", ".mlp.fc2.")] = value
    return new


def _pool_split(state: State) -> State:
    """An attention pool's query apart from its keys and values."""
    new = {}
    for key, value in state.items():
        if key.startswith("attn_pool.in_proj."):
            kind = key.rpartition(".")[2]
            size = len(value) // 3
            new[f"attn_pool.q.{kind}"], new[f"attn_pool.kv.{kind}"] = value[:size], value[size:]
        else:
            new[key] = value
    return new
