"""All candidates by name: maps that might be better than the product's, and what they have to beat.

benchmarks.candidates measures them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import candidate_mixtures as mixtures
from vitexplain.methods.registry import METHODS, Method

FOUR = ("grad_rollout", "legrad", "attnlrp", "gradcam")  # of the consensus
FIVE = (*FOUR, "relevance")
BOTH = ("relevance", "consensus")


@dataclass(frozen=True)
class Candidate:
    """A method, and those that it has to beat.

    Attributes:
        others: names of METHODS or CANDIDATES.
    """

    method: Method
    others: tuple[str, ...]


def _method(title: str, place: str, paper: str = "", **options: Any) -> Method:
    module, _, attribute = place.partition(".")
    return Method(title, title, paper, True, (f"benchmarks.{module}", attribute), defaults=options)


def _mixed(title: str, mix: mixtures.Mix, parts: Sequence[str | Method]) -> Method:
    found = [part if isinstance(part, Method) else METHODS[part] for part in parts]
    parts = {part.name: part for part in found}
    return _method(title, "candidate_mixtures.Mixture", mix=mix, parts=parts)


def _of(method: Method, title: str, place: str) -> Method:
    return _method(title, f"candidate_mixtures.{place}", method.paper, method=method)


_ROLLOUT, _CONSENSUS = METHODS["grad_rollout"], METHODS["consensus"]
_LIBRAGRAD = _method(
    "LibraGrad, tokens times gradients of the later blocks",
    "candidate_maps.LibraGrad",
    "Mehri et al. 2025",
)
_SHIFTED = "mean of 4 shifts by half a patch"

CANDIDATES = {
    name: Candidate(method, others)
    for name, method, others in (
        ("consensus", _CONSENSUS, FIVE),
        (
            "consensus_of_five",
            _mixed("consensus of the four and relevance", mixtures.all_agree, FIVE),
            BOTH,
        ),
        (
            "consensus_times_relevance",
            _mixed("consensus times relevance", mixtures.multiplied, BOTH),
            BOTH,
        ),
        (
            "consensus_with_libragrad",
            _mixed(
                "consensus with LibraGrad in AttnLRP's place",
                mixtures.all_agree,
                ("grad_rollout", "legrad", _LIBRAGRAD, "gradcam"),
            ),
            ("consensus", "libragrad"),
        ),
        (
            "relevance_by_consensus",
            _mixed(
                "relevance, its values in the order of the consensus",
                mixtures.relevance_in_order,
                BOTH,
            ),
            BOTH,
        ),
        (
            "relevance_by_both",
            _mixed(
                "relevance, its values in the order of its and the consensus' mean ranks",
                mixtures.relevance_half_in_order,
                BOTH,
            ),
            BOTH,
        ),
        (
            "geometric_mean",
            _mixed(
                "geometric mean of relevance, gradient rollout and the positive part of Grad-CAM",
                mixtures.geometric,
                ("relevance", "grad_rollout", "gradcam"),
            ),
            BOTH,
        ),
        (
            "grad_rollout_against",
            _of(_ROLLOUT, "gradient rollout of `--against auto`", "AgainstRivals"),
            ("grad_rollout",),
        ),
        (
            "consensus_against",
            _of(_CONSENSUS, "consensus of `--against auto`", "AgainstRivals"),
            ("consensus",),
        ),
        (
            "legrad_later",
            _of(METHODS["legrad"], "LeGrad of the later blocks", "of_later_blocks"),
            ("legrad",),
        ),
        (
            "relevance_later",
            _of(METHODS["relevance"], "relevance of the later blocks", "of_later_blocks"),
            ("relevance",),
        ),
        (
            "attnlrp_gamma",
            replace(METHODS["attnlrp"], title="AttnLRP with gamma 0.05", defaults={"gamma": 0.05}),
            ("attnlrp",),
        ),
        (
            "cdam",
            _method("CDAM", "candidate_maps.Cdam", "Brocki, Binda & Chung 2024"),
            ("gradcam",),
        ),
        (
            "grad_eclip",
            _method("Grad-ECLIP", "candidate_maps.GradEclip", "Zhao et al. 2024"),
            ("gradcam",),
        ),
        (
            "grad_eclip_later",
            _method(
                "Grad-ECLIP, sum of the later blocks",
                "candidate_maps.GradEclip",
                "Zhao et al. 2024",
                later=True,
            ),
            ("gradcam", "legrad"),
        ),
        ("libragrad", _LIBRAGRAD, ("attnlrp",)),
        (
            "libragrad_rollout",
            _method(
                "gradient rollout of the later blocks with LibraGrad",
                "candidate_maps.LibraRollout",
                "Mehri et al. 2025",
            ),
            ("grad_rollout",),
        ),
        (
            "grad_rollout_shifted",
            _of(_ROLLOUT, f"gradient rollout, {_SHIFTED}", "Shifted"),
            ("grad_rollout",),
        ),
        (
            "libragrad_shifted",
            _of(_LIBRAGRAD, f"LibraGrad, {_SHIFTED}", "Shifted"),
            ("libragrad",),
        ),
    )
}
