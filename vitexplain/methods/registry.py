"""All methods by name. Each gives a map of the patches that count, in its own sense.

A method is made for a model, and then explains batches: `METHODS[name].make(model)` is an
ImageMethod, with `.explain(images)`, or a CategoryMethod, with `.explain(images, categories)`; both
return an Explanation with maps (B, h, w). Only the methods that are made are imported.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitexplain.errors import RequestError
from vitexplain.words import CHANGES, OBJECT, TAKEN_IN

if TYPE_CHECKING:  # the command line asks for names before torch is loaded
    from torch import nn

    from vitexplain.methods.base import CategoryMethod, ImageMethod


@dataclass(frozen=True)
class Method:
    """A method's name, constructor and citation.

    Attributes:
        name: for --method and names of files.
        title: in words.
        paper: authors, year.
        of_category: it is a CategoryMethod, with a map for each category; else an ImageMethod.
        place: module and class.
        options: which of head_fusion, discard_ratio, start_block, as_published, block, head it
            takes.
        slow: it takes many passes for each map.
        answers: the questions that its map answers, by measurement, see methods.questions.
        defaults: of options, where they are not those of the class. `make`, the command, `explain`
            and `anatomy` all take them from here.
    """

    name: str
    title: str
    paper: str
    of_category: bool
    place: tuple[str, str]
    options: tuple[str, ...] = ()
    slow: bool = False
    answers: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def make(self, model: "nn.Module", **options: Any) -> "ImageMethod | CategoryMethod":
        """The method for a model, with these options.

        Raises:
            UnsupportedModel: if it can't explain this model.
            RequestError: if an option is out of range.
        """
        module, name = self.place
        method: Callable[..., Any] = getattr(import_module(module), name)
        return method(model, **{**self.defaults, **options})


_ALL = (
    Method(
        "attention_rollout",
        "attention rollout",
        "Abnar & Zuidema 2020",
        False,
        ("vit_rollout", "VITAttentionRollout"),
        ("head_fusion", "discard_ratio", "start_block", "as_published"),
        # in the paper and the class "mean"; "max" as in the older script's published images
        defaults={"head_fusion": "max"},
        answers=(TAKEN_IN,),
    ),
    Method(
        "value_rollout",
        "rollout with value norms",
        "Kobayashi et al. 2020, Modarressi et al. 2022",
        False,
        ("vitexplain.methods.value_rollout", "ValueRollout"),
        ("start_block",),
        answers=(TAKEN_IN,),
    ),
    Method(
        "attention",
        "attention of one block",
        "Vaswani et al. 2017",
        False,
        ("vitexplain.methods.block_attention", "BlockAttention"),
        ("head_fusion", "block", "head"),
        defaults={"head_fusion": "mean"},
        answers=(TAKEN_IN,),
    ),
    Method(
        "grad_rollout",
        "gradient attention rollout",
        "after Abnar & Zuidema 2020 and Chefer et al. 2021",
        True,
        ("vit_grad_rollout", "VITAttentionGradRollout"),
        ("head_fusion", "discard_ratio", "start_block", "as_published"),
        defaults={"head_fusion": "mean"},
        answers=(CHANGES, OBJECT),
    ),
    Method(
        "relevance",
        "relevance",
        "Chefer, Gur & Wolf 2021",
        True,
        ("vitexplain.methods.relevance", "Relevance"),
        ("start_block",),
        answers=(OBJECT,),
    ),
    Method(
        "legrad",
        "LeGrad",
        "Bousselham et al. 2024",
        True,
        ("vitexplain.methods.legrad", "LeGrad"),
        ("start_block",),
        answers=(CHANGES,),
    ),
    Method(
        "gradcam",
        "Grad-CAM",
        "Selvaraju et al. 2017",
        True,
        ("vitexplain.methods.gradcam", "GradCam"),
        answers=(OBJECT,),
    ),
    Method(
        "attnlrp",
        "AttnLRP",
        "Achtibat et al. 2024",
        True,
        ("vitexplain.methods.attnlrp", "AttnLRP"),
        answers=(CHANGES,),
    ),
    Method(
        "consensus",
        "consensus of four methods",
        "after Rieger & Hansen 2019",
        True,
        ("vitexplain.methods.consensus", "Consensus"),
        answers=(CHANGES,),
    ),
    Method(
        "integrated_gradients",
        "integrated gradients",
        "Sundararajan, Taly & Yan 2017",
        True,
        ("vitexplain.methods.integrated_gradients", "IntegratedGradients"),
        slow=True,
        answers=(CHANGES,),
    ),
    Method(
        "occlusion",
        "occlusion",
        "Zeiler & Fergus 2014",
        True,
        ("vitexplain.methods.occlusion", "Occlusion"),
        slow=True,
        answers=(CHANGES,),
    ),
)

METHODS = {method.name: method for method in _ALL}


def method_named(name: str) -> Method:
    """The method of a name; "rollout" is short for attention rollout.

    Raises:
        RequestError: if there is none.
    """
    full = "attention_rollout" if name == "rollout" else name
    if full not in METHODS:
        raise RequestError(f"unknown method {name!r}; choose from {', '.join(METHODS)}")
    return METHODS[full]


def methods_of(
    chosen: Sequence[str], *, every: bool, of_category: bool, quick: bool = False
) -> tuple[str, ...]:
    """The names of the methods that a request means.

    Args:
        chosen: the names that were given, if any.
        every: without names, all methods are meant.
        of_category: else gradient rollout is meant; attention rollout where it is False.
        quick: of all methods, those that take few passes.
    """
    if chosen:
        return tuple(chosen)
    if every:
        return tuple(name for name, method in METHODS.items() if not (quick and method.slow))
    return ("grad_rollout" if of_category else "attention_rollout",)
