"""Show what a Vision Transformer looked at: explain("cat.jpg", category="tabby").show()"""

import importlib
import importlib.abc
import importlib.util
import sys

__version__ = "0.2.0"

# name -> the module that has it; torch is loaded only for what is asked for
_PLACES = {
    "Explanation": "api",
    "METHODS": "methods.registry",
    "RequestError": "errors",
    "explain": "api",
    "features": "api",
    "load_model": "models.loading",
    "query": "api",
}
__all__ = [*_PLACES, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Prepares torch before timm and torchvision are first imported, by anybody; see there."""

    def find_spec(self, name, path=None, target=None):  # noqa: ARG002
        if name not in ("timm", "torchvision"):
            return None
        sys.meta_path.remove(self)
        try:
            from vitexplain._torchvision import lighter, repair

            if name == "torchvision":
                repair()
            return lighter(importlib.util.find_spec(name))
        finally:
            if name == "timm":
                sys.meta_path.insert(0, self)


if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, _BeforeTorchvision())
