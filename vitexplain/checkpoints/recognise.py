"""Which of timm's architectures weights are of, as far as names and shapes tell."""

import re
from collections.abc import Mapping

from torch import Tensor

from vitexplain.checkpoints.reading import CheckpointError

SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
DEPTHS = {192: 12, 384: 12, 768: 12, 1024: 24, 1280: 32}
# (width of the first stage, blocks of each): Swin's name
SWIN = {
    (96, (2, 2, 6, 2)): "tiny",
    (96, (2, 2, 18, 2)): "small",
    (128, (2, 2, 18, 2)): "base",
    (192, (2, 2, 18, 2)): "large",
}
NAME_IT = "name its architecture with --model"


def recognise(state: Mapping[str, Tensor], path: object) -> str:
    """The name of timm's architecture.

    Args:
        state: the trunk's weights, by the names that timm or its filters know.

    Raises:
        CheckpointError: if it can't be told; candidates are listed.
    """
    if any(key.startswith("layers.0.blocks.0.attn") for key in state):
        return _swin(state, path)
    embedding = _first(state, "patch_embed.proj.weight", "visual.conv1.weight")
    if embedding is None or embedding.ndim != 4:
        raise CheckpointError(f"checkpoint {path}: its layers are not those of a ViT; {NAME_IT}")
    width, _, _, patch = embedding.shape
    size, depth = SIZES.get(width), count_blocks(state)
    if size is None or depth != DEPTHS[width]:
        raise CheckpointError(
            f"checkpoint {path}: {depth} blocks of {width} channels are none of the usual sizes; "
            f"{NAME_IT}"
        )
    return _vit(state, size, patch, path)


def count_blocks(state: Mapping[str, Tensor]) -> int:
    """How many blocks weights are of."""
    numbers = (
        re.match(r"(?:visual\.)?(?:blocks|transformer\.resblocks)\.(\d+)\.", k) for k in state
    )
    return 1 + max((int(found[1]) for found in numbers if found), default=-1)


def _vit(state: Mapping[str, Tensor], size: str, patch: int, path: object) -> str:
    def has(*names: str) -> bool:
        return any(name in state for name in names)

    if has("visual.class_embedding"):
        _say_candidates(path, [
            f"vit_{size}_patch{patch}_clip_quickgelu_224 (OpenAI)",
            f"vit_{size}_patch{patch}_clip_224 (others)",
        ])  # fmt: skip
    if has("blocks.0.mlp.w12.weight", "blocks.0.mlp.fc1_g.weight", "blocks.0.attn.q_proj.weight"):
        raise CheckpointError(
            f"checkpoint {path}: its blocks are not those of a plain ViT; {NAME_IT}"
        )
    if has(
        "blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"
    ):
        return f"beit_{size}_patch{patch}_224"
    if has("storage_tokens"):
        return f"vit_{size}_patch{patch}_dinov3"
    if has("dist_token"):
        return f"deit_{size}_distilled_patch{patch}_224"
    if patch == 14 and has("blocks.0.ls1.gamma", "mask_token"):
        reg = "_reg4" if has("register_tokens", "reg_token") else ""
        return f"vit_{size}_patch14{reg}_dinov2"
    if patch == 16 and size in ("tiny", "small", "base"):
        return f"deit_{size}_patch16_224"
    return f"vit_{size}_patch{patch}_224"


def _swin(state: Mapping[str, Tensor], path: object) -> str:
    blocks: dict[int, int] = {}
    for key in state:
        found = re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key)
        if found:
            stage, block = map(int, found.groups())
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    width = state["patch_embed.proj.weight"].shape[0]
    size = SWIN.get((width, tuple(blocks[stage] for stage in sorted(blocks))))
    if size is None:
        raise CheckpointError(f"checkpoint {path} is of a Swin of no usual size; {NAME_IT}")
    if any("cpb_mlp" in key for key in state):
        _say_candidates(path, [f"swinv2_{size}_window{w}_256" for w in (8, 16)])
    return f"swin_{size}_patch4_window7_224"


def _say_candidates(path: object, names: list[str]) -> None:
    raise CheckpointError(
        f"checkpoint {path} fits several architectures, name yours with --model: {', '.join(names)}"
    )


def _first(state: Mapping[str, Tensor], *names: str) -> Tensor | None:
    return next((state[name] for name in names if name in state), None)
