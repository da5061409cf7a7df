"""What `--sweep` asks for: one or two parameters, and the values that each takes.

Imports nothing heavy: the command line checks its options before it loads a model.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from vitexplain.choices import HEAD_FUSIONS
from vitexplain.errors import RequestError
from vitexplain.settings import Sweep, Value

MOST_MAPS = 100


def parse_sweep(texts: Sequence[str]) -> Sweep:
    """["discard_ratio=0,0.9", "head_fusion=mean,max"] -> each parameter's values, in order.

    Commas separate values, so a category is named by one of its synonyms, as it stands (or by its
    index, or "top" for the most likely).

    Raises:
        RequestError: in one sentence, if a parameter or value is unknown, missing, out of range or
            given twice, or if there are more than two parameters or MOST_MAPS maps.
    """
    sweep: dict[str, tuple[Value, ...]] = {}
    for text in texts:
        name, _, values = (part.strip() for part in text.partition("="))
        if name not in PARAMETERS:
            raise RequestError(
                f"--sweep takes PARAMETER=VALUE,VALUE with one of {', '.join(PARAMETERS)}, "
                f"not {text!r}"
            )
        if name in sweep:
            raise RequestError(f"--sweep has {name} twice: give all its values in one list")
        sweep[name] = _values(name, values)
    if not 1 <= len(sweep) <= 2:
        raise RequestError(f"--sweep takes one or two parameters, not {len(sweep)}")
    maps = math.prod(map(len, sweep.values()))
    if maps > MOST_MAPS:
        raise RequestError(
            f"--sweep would draw {maps} maps: at most {MOST_MAPS}, give fewer values"
        )
    return sweep


def _values(name: str, listed: str) -> tuple[Value, ...]:
    texts = [text.strip() for text in listed.split(",")]
    if not all(texts):
        raise RequestError(
            f"--sweep {name}={listed} lacks a value: separate values by single commas"
        )
    values = tuple(PARAMETERS[name](text) for text in texts)
    for number, value in enumerate(values):
        if value in values[:number]:
            raise RequestError(f"--sweep {name} has the value {texts[number]} twice")
    return values


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if not 0 <= ratio < 1:  # so NaN is refused as well
        raise RequestError(f"--sweep discard_ratio must be at least 0 and below 1, not {text!r}")
    return abs(ratio)  # -0.0 would be written so


def _fusion(text: str) -> str:
    if text not in HEAD_FUSIONS:
        allowed = ", ".join(HEAD_FUSIONS)
        raise RequestError(f"--sweep head_fusion must be one of {allowed}, not {text!r}")
    return text


def _block(text: str) -> int:
    """How many blocks there are is the model's to say."""
    if not (text.isascii() and text.isdecimal()):
        raise RequestError(f"--sweep start_block must be 0 or a whole number above, not {text!r}")
    return int(text)


def _category(text: str) -> str:
    """As --category takes it, which finds indices too; only the model knows its categories."""
    return text


PARAMETERS: Mapping[str, Callable[[str], Value]] = {
    "discard_ratio": _ratio,
    "head_fusion": _fusion,
    "start_block": _block,
    "category": _category,
}
