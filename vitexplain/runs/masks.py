"""`--evaluate --masks`: the methods' maps against the masks of objects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vitexplain.attention.tokens import UnsupportedModel
from vitexplain.errors import RequestError
from vitexplain.faithfulness.baselines import BASELINES
from vitexplain.faithfulness.segmentation import SEGMENTED, totals
from vitexplain.methods.registry import METHODS, Method
from vitexplain.models.loading import LoadedModel
from vitexplain.progress import watch_of
from vitexplain.runs.session import Session
from vitexplain.training.localisation import MapFunction, map_functions
from vitexplain.training.masks import MaskedImages, baselines_like, on_masks

AS_PUBLISHED = (
    "As published figures are made (Chefer, Gur & Wolf, CVPR 2021), of all pixels of all images "
    "together, with an AP of object and background at once:"
)


@dataclass(frozen=True)
class Masked:
    """What was measured on images with masks.

    Attributes:
        values: method -> key of SEGMENTED -> its value for each image.
        totals: method -> key of SEGMENTED -> its value as published, see segmentation.totals.
        names: of the images.
        failed: how many could not be measured.
        left_out: method -> why it can't explain this model.
    """

    values: dict[str, dict[str, np.ndarray]]
    totals: dict[str, dict[str, float]]
    names: list[str]
    failed: int
    left_out: dict[str, str]


def measure_masks(
    session: Session,
    methods: Mapping[str, Method],
    data: MaskedImages,
    names: Sequence[str],
    tell: Callable[[str], None],
) -> Masked:
    """Measure methods and both baselines on the images with these names.

    Args:
        methods: by name; where the request names none, those that take many passes are left out.
        tell: receives a sentence for each image that can't be measured.

    Raises:
        RequestError: if no image can be measured, none of the methods explains the model, or it
            has not the categories of the data.
    """
    options = session.settings
    slow = [] if options.maps.method else [name for name in methods if METHODS[name].slow]
    if slow:
        titles = " and ".join(METHODS[name].title for name in slow)
        tell(
            f"--masks: without {titles}, which take a hundred passes and more for each map; name "
            "them with --method to measure them"
        )
    loaded = replace(session.loaded, transform=session.overlay.transform)
    quick = {name: method for name, method in methods.items() if name not in slow}
    maps, left_out = _maps(quick, loaded)
    if not maps:
        raise RequestError(f"no method explains this model: {next(iter(left_out.values()))}")
    maps |= baselines_like(next(iter(maps.values())))
    reasons: list[str] = []
    measured = dict(on_masks(maps, loaded, data, names, watch_of(options.run), reasons.append))
    if not measured:
        raise RequestError(f"no image of {data.path} can be measured: {reasons[0]}")
    for reason in reasons:
        tell(reason)
    columns = {name: _columns([found[name] for found in measured.values()]) for name in maps}
    return Masked(
        {name: {m.key: found[m.key] for m in SEGMENTED} for name, found in columns.items()},
        {name: totals(found) for name, found in columns.items()},
        list(measured),
        len(reasons),
        left_out,
    )


def totals_as_markdown(masked: Masked) -> str:
    """The totals of all methods, with a sentence on what they are; without pairs, none is best."""
    heads = " | ".join(measure.title for measure in SEGMENTED)
    lines = [f"| method, as published | {heads} |", "|---" * (len(SEGMENTED) + 1) + "|"]
    for name, found in masked.totals.items():
        title = f"*{BASELINES[name].title}*" if name in BASELINES else METHODS[name].title
        cells = " | ".join(f"{found[measure.key]:.3f}" for measure in SEGMENTED)
        lines.append(f"| {title} | {cells} |")
    return f"{AS_PUBLISHED}\n\n" + "\n".join(lines)


def _maps(
    methods: Mapping[str, Method], loaded: LoadedModel
) -> tuple[dict[str, MapFunction], dict[str, str]]:
    """Each method that explains the model, as a function, and why the others don't.

    Some only say so when they see an image: noise, here.
    """
    noise = torch.rand(
        1,
        len(loaded.transform.mean),
        *loaded.transform.size,
        generator=torch.Generator().manual_seed(0),
    )
    maps, left_out = {}, {}
    for name, method in methods.items():
        try:
            explain = map_functions({name: method}, loaded.model)[name]
            explain(noise, [0])
            maps[name] = explain
        except UnsupportedModel as error:
            left_out[name] = error.reason
    return maps, left_out


def _columns(found: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Of one method, each of its values for all images."""
    return {key: np.array([each[key] for each in found]) for key in found[0]}
