"""Find the weights within what a file holds: under which entry, behind which prefix."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from vitexplain.checkpoints.reading import SAVE, CheckpointError

State = dict[str, Tensor]

# entries that training scripts keep weights under; of several, the first one here is taken
ENTRIES = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "params_ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "network",
    "net",
    "weights",
    "params",
    "teacher",
    "target_encoder",
    "encoder",
    "student",
)
DEEPEST = 4
# a key that each layout has once, behind whatever prefix
MARKS = (
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embedding.weight",
    "visual.trunk.patch_embed.proj.weight",
    "visual.patch_embed.proj.weight",
    "visual.class_embedding",
    "visual.conv1.weight",
    "patch_embed.proj.weight",
    "patch_embed.backbone.stem.conv.weight",
    "conv_proj.weight",
    "class_embedding",
    "cls_token",
)
ADAPTERS = ("lora_A", "lora_B", "lora_down", "lora_up", "adapter_")


@dataclass
class Found:
    """The weights of a file.

    Attributes:
        trunk: the ViT's, their prefix taken away.
        beside: all others of the same entry, by their whole names.
        entry: where they were, such as "teacher"; "" for the file itself.
        prefix: what stood before the trunk's names.
        passed: other entries that hold tensors, and how many.
        extras: what is no tensor, such as settings and class names.
    """

    trunk: State
    beside: State
    entry: str = ""
    prefix: str = ""
    passed: dict[str, int] = field(default_factory=dict)
    extras: dict = field(default_factory=dict)

    @property
    def state(self) -> State:
        """All tensors of the entry, the trunk's without their prefix."""
        return {**self.beside, **self.trunk}


def find_weights(data: Mapping, path: object) -> Found:
    """The trunk's weights within what a file holds.

    Raises:
        CheckpointError: if there are none, or adapters alone.
    """
    levels = dict(_levels(data))
    if not levels:
        raise CheckpointError(f"checkpoint {path} holds no tensors by name: {SAVE}")
    entry = min(levels, key=lambda name: (_rank(name), -len(levels[name])))
    state = {_plain(key): value for key, value in levels[entry].items()}
    if not any(_prefix_of(key) is not None for key in state):
        adapters = sum(any(part in key for part in ADAPTERS) for key in state)
        if adapters:
            raise CheckpointError(
                f"checkpoint {path} holds adapters alone, {adapters} tensors of them: merge them "
                "into their model with model.merge_and_unload(), then save its state_dict()"
            )
    prefix = _common_prefix(state)
    trunk, beside = {}, {}
    for key, value in state.items():
        inside = key.startswith(prefix)
        (trunk if inside else beside)[key[len(prefix) :] if inside else key] = value
    passed = {name: len(level) for name, level in levels.items() if name != entry}
    extras = {name: value for name, value in data.items() if not isinstance(value, Tensor)}
    return Found(trunk, beside, entry, prefix, passed, extras)


def _levels(data: Mapping, name: str = "", depth: int = 0):
    """(name, tensors by key) of each entry that holds tensors."""
    tensors = {key: v for key, v in data.items() if isinstance(key, str) and isinstance(v, Tensor)}
    if len(tensors) > 1 or (tensors and not depth):
        yield name, tensors
    if depth < DEEPEST:
        for key, value in data.items():
            if isinstance(value, Mapping) and isinstance(key, str):
                yield from _levels(value, f"{name}.{key}" if name else key, depth + 1)


def _rank(name: str) -> tuple[int, int]:
    """How an entry compares: well-known names first, optimisers and the like last."""
    if any(part in name for part in ("optim", "scheduler", "scaler", "loss", "callbacks")):
        return len(ENTRIES) + 2, name.count(".")
    first = name.partition(".")[0]
    return (ENTRIES.index(first) if first in ENTRIES else len(ENTRIES)), name.count(".")


def _plain(key: str) -> str:
    """A key without what parallel and compiled models put into it."""
    key = re.sub(r"(^|\.)(module|_orig_mod|_fsdp_wrapped_module)\.", r"\1", key)
    while key.startswith(("module.", "_orig_mod.")):
        key = key.partition(".")[2]
    return key


def _prefix_of(key: str) -> str | None:
    for mark in MARKS:
        if key == mark or key.endswith("." + mark):
            return key[: len(key) - len(mark)]
    return None


def _common_prefix(state: State) -> str:
    """The prefix of the ViT's names: of several ViTs, the one with most tensors."""
    prefixes = {prefix for key in state if (prefix := _prefix_of(key)) is not None}
    if not prefixes or "" in prefixes:
        return ""
    counts = Counter({p: sum(key.startswith(p) for key in state) for p in prefixes})
    return max(sorted(prefixes, key=len), key=counts.__getitem__)
