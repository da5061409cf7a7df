"""The methods that there are, by name: each says which patches count, in its own sense.

A method is made of a model, and then explains batches: `METHODS[name].make(model).explain(images,
categories)` gives an Explanation with masks (B, h, w). Only what is asked for is imported.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line asks for names before torch is loaded
    from torch import nn


@dataclass(frozen=True)
class Method:
    """How a method is called, made and cited.

    Attributes:
        name: for --method and names of files.
        title: in words.
        paper: authors, year.
        of_category: whether it has a map for each category; the others' `explain` takes none.
        place: module and class.
        options: which of head_fusion, discard_ratio, start_block, block, head it takes.
        defaults: those that the command sets otherwise than the class.
    """

    name: str
    title: str
    paper: str
    of_category: bool
    place: tuple[str, str]
    options: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def make(self, model: "nn.Module", **options: Any) -> Any:
        """The method on a model; it has `explain`, and `explain_several` if `of_category`.

        Raises:
            UnsupportedModel: if it can't explain this model.
            RequestError: if an option is out of range.
        """
        module, name = self.place
        make: Callable[..., Any] = getattr(import_module(module), name)
        return make(model, **{**self.defaults, **options})


_ALL = (
    Method(
        "attention_rollout",
        "attention rollout",
        "Abnar & Zuidema 2020",
        False,
        ("vit_rollout", "VITAttentionRollout"),
        ("head_fusion", "discard_ratio", "start_block", "as_published"),
        {"head_fusion": "max"},  # as the older script's published images
    ),
    Method(
        "value_rollout",
        "rollout with value norms",
        "Kobayashi et al. 2020, Modarressi et al. 2022",
        False,
        ("vitexplain.methods.value_rollout", "ValueRollout"),
        ("start_block",),
    ),
    Method(
        "attention",
        "attention of one block",
        "Vaswani et al. 2017",
        False,
        ("vitexplain.methods.block_attention", "BlockAttention"),
        ("head_fusion", "block", "head"),
    ),
    Method(
        "grad_rollout",
        "gradient attention rollout",
        "after Abnar & Zuidema 2020 and Chefer et al. 2021",
        True,
        ("vit_grad_rollout", "VITAttentionGradRollout"),
        ("head_fusion", "discard_ratio", "start_block", "as_published"),
    ),
    Method(
        "relevance",
        "relevance",
        "Chefer, Gur & Wolf 2021",
        True,
        ("vitexplain.methods.relevance", "Relevance"),
        ("start_block",),
    ),
    Method(
        "legrad",
        "LeGrad",
        "Bousselham et al. 2024",
        True,
        ("vitexplain.methods.legrad", "LeGrad"),
        ("start_block",),
    ),
    Method(
        "gradcam",
        "Grad-CAM",
        "Selvaraju et al. 2017",
        True,
        ("vitexplain.methods.gradcam", "GradCam"),
    ),
    Method(
        "attnlrp",
        "AttnLRP",
        "Achtibat et al. 2024",
        True,
        ("vitexplain.methods.attnlrp", "AttnLRP"),
    ),
    Method(
        "integrated_gradients",
        "integrated gradients",
        "Sundararajan, Taly & Yan 2017",
        True,
        ("vitexplain.methods.integrated_gradients", "IntegratedGradients"),
    ),
)  # fmt: skip

METHODS = {method.name: method for method in _ALL}


def methods_of(chosen: Sequence[str], *, every: bool, of_category: bool) -> tuple[str, ...]:
    """The names of the methods that a request means.

    Args:
        chosen: names, as they were given; where there are none, the others decide.
        every: all methods are wanted.
        of_category: a category is asked for, so that one of the classic two is meant.
    """
    if chosen:
        return tuple(chosen)
    if every:
        return tuple(METHODS)
    return ("grad_rollout" if of_category else "attention_rollout",)
