"""Check that pretrained weights are available, without long network time-outs.

Without a network, the hub client by itself retries for most of a minute. So look in the local
cache first, then ask the hub once, with a timeout.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from vitexplain.checkpoints.transformers_folders import is_transformers_folder
from vitexplain.errors import RequestError

_WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
# of a model of transformers, besides
TRANSFORMERS_FILES = (
    *("config.json", "preprocessor_config.json", "*.index.json"),
    *("model-*.safetensors", "pytorch_model-*.bin"),
)
TIMEOUT_SECONDS = 3.0


class WeightsUnavailable(RequestError):
    """Pretrained weights are neither in the local cache nor reachable."""


@contextmanager
def weights_at_hand(repository: str | None, url: str | None) -> Iterator[None]:
    """Inside, timm can load these weights, from the cache without network access if possible.

    Args:
        repository: hub repository, "owner/name" or "owner/name@revision".
        url: where the weights are if they are in no repository.

    Raises:
        WeightsUnavailable: with the end of a sentence: "the weights of ... are not in ...".
    """
    if repository:
        repository, _, revision = repository.partition("@")
        cached = _in_hub_cache(repository, revision or None)
        if not cached:
            _ask(lambda: _ask_hub(repository, revision or None))
    elif url:
        cached = (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file()
        if not cached:
            request = torch.hub.Request(url, method="HEAD")
            _ask(lambda: torch.hub.urlopen(request, timeout=TIMEOUT_SECONDS).close())
    else:
        raise WeightsUnavailable("were never published")
    was_offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = was_offline or cached
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def transformers_snapshot(repository: str) -> Path | None:
    """The folder of a model of transformers in the hub's cache; None if it is none of these.

    Args:
        repository: "owner/name" or "owner/name@revision", whose weights are at hand.
    """
    repository, _, revision = repository.partition("@")
    revision = revision or None
    try:
        config = huggingface_hub.hf_hub_download(repository, "config.json", revision=revision)
    except EntryNotFoundError:
        return None
    if not is_transformers_folder(Path(config).parent):
        return None
    return Path(
        huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=[*_WEIGHT_FILES, *TRANSFORMERS_FILES]
        )
    )


def _in_hub_cache(repository: str, revision: str | None) -> bool:
    return any(
        isinstance(huggingface_hub.try_to_load_from_cache(repository, name, revision=revision), str)
        for name in _WEIGHT_FILES
    )


def _ask_hub(repository: str, revision: str | None) -> None:
    if huggingface_hub.is_offline_mode():
        raise WeightsUnavailable("are not in the local cache, and HF_HUB_OFFLINE is set")
    address = huggingface_hub.hf_hub_url(repository, "config.json", revision=revision)
    try:
        huggingface_hub.get_hf_file_metadata(address, timeout=TIMEOUT_SECONDS)
    except RepositoryNotFoundError:
        raise WeightsUnavailable(f"are in no public repository of the hub ({repository})") from None
    except EntryNotFoundError:
        pass  # no config.json, but the hub answers


def _ask(question: Callable[[], None]) -> None:
    """Ask in a thread, as resolving a host name ignores timeouts."""
    outcome: list[Exception | None] = []

    def ask():
        try:
            question()
            outcome.append(None)
        except Exception as error:  # any failure means that there is no answer
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS + 0.5)
    if outcome == [None]:
        return
    if outcome and isinstance(outcome[0], WeightsUnavailable):
        raise outcome[0]
    raise WeightsUnavailable("are not in the local cache, and the hub does not answer")
