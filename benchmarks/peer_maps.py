"""The same maps by several tools, each called as its own documentation shows.

What they give has forms of their own: `Tool.own` and `Tool.other` bring it to one that can be
compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.older_script import OlderGradRollout, OlderRollout
from benchmarks.peer_folders import SIDE, patches_as_image
from vitexplain.methods.patches import patch_sums
from vitexplain.methods.registry import METHODS

PATCH = 16  # pixels of its side
GRID = (SIDE // PATCH, SIDE // PATCH)
STEPS = 50  # of integrated gradients, captum's default; ours has its own points
OURS, OLDER = "vit-explain", "the older script"

Run = Callable[[Tensor, list[int]], np.ndarray]


def as_it_is(maps: np.ndarray) -> np.ndarray:
    return maps


@dataclass(frozen=True)
class Tool:
    """One way to make a map.

    Attributes:
        by: who makes it: the name of a package, OURS or OLDER.
        make: model -> (images (B, 3, H, W), categories) -> what it gives for them.
        how: what it is called with, in words.
        module: what must be installed.
        own: what it gives -> maps that can be compared.
        other: what the other tools give -> maps as these are.
    """

    by: str
    make: Callable[[nn.Module], Run]
    how: str = ""
    module: str = "vitexplain"
    own: Callable[[np.ndarray], np.ndarray] = as_it_is
    other: Callable[[np.ndarray], np.ndarray] = as_it_is

    @property
    def title(self) -> str:
        name = self.by if self.by in (OURS, OLDER) else f"{self.by} {version(self.by)}"
        return f"{name}, {self.how}" if self.how else name


@dataclass(frozen=True)
class Work:
    """The same map by several tools.

    Attributes:
        tools: by a name of this benchmark; maps are compared with those of the first.
        batch: whether a batch is timed, too.
        loops: those of benchmarks.peer_folders that run over folders.
        options: the command's options for the same.
    """

    title: str
    tools: Mapping[str, Tool]
    batch: bool = True
    loops: Sequence[str] = ()
    options: Sequence[str] = ()


def ours(name: str, **options: object) -> Callable[[nn.Module], Run]:
    """Our method of that name: its scores, before they are scaled."""

    def make(model: nn.Module) -> Run:
        method = METHODS[name].make(model, **options)
        if METHODS[name].of_category:
            return lambda images, categories: method.explain(images, categories).scores
        return lambda images, _categories: method.batch(images)

    return make


def one_by_one(name: str) -> Callable[[nn.Module], Run]:
    """The methods `as_published`, which take one image at a time."""

    def make(model: nn.Module) -> Run:
        run = ours(name, as_published=True)(model)
        return lambda images, categories: np.concatenate(
            [run(image[None], [c]) for image, c in zip(images, categories, strict=True)]
        )

    return make


def older_rollout(model: nn.Module) -> Run:
    explain = OlderRollout(model, "max")
    return lambda images, _categories: np.stack([explain(image[None]) for image in images])


def older_grad_rollout(model: nn.Module) -> Run:
    explain = OlderGradRollout(model)
    return lambda images, categories: np.stack(
        [explain(image[None], c) for image, c in zip(images, categories, strict=True)]
    )


def grad_cam(model: nn.Module) -> Run:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = GradCAM(model, [model.blocks[-1].norm1], reshape_transform=patches_as_image)
    return lambda images, categories: cam(images, [ClassifierOutputTarget(c) for c in categories])


def as_grad_cam(maps: np.ndarray) -> np.ndarray:
    """Maps on the grid -> enlarged and scaled as pytorch-grad-cam does in the end."""
    from pytorch_grad_cam.utils.image import scale_cam_image

    size = (GRID[1] * PATCH, GRID[0] * PATCH)
    return scale_cam_image(scale_cam_image(maps.clip(min=0), size))


def torchcam(model: nn.Module) -> Run:
    from torchcam.methods import GradCAM

    cam = GradCAM(model, model.blocks[-1].norm1, reshape_transform=patches_as_image)
    return lambda images, categories: cam(categories, model(images), normalized=False)[0].numpy()


def positive(maps: np.ndarray) -> np.ndarray:
    return maps.clip(min=0)


def captum_gradients(**given: object) -> Callable[[nn.Module], Run]:
    def make(model: nn.Module) -> Run:
        from captum.attr import IntegratedGradients

        explain = IntegratedGradients(model)
        return lambda images, categories: explain.attribute(
            images, target=torch.tensor(categories), n_steps=STEPS, **given
        ).numpy(force=True)

    return make


def captum_occlusion(**given: object) -> Callable[[nn.Module], Run]:
    def make(model: nn.Module) -> Run:
        from captum.attr import Occlusion

        explain, patch = Occlusion(model), (3, PATCH, PATCH)
        return lambda images, categories: explain.attribute(
            images, patch, strides=patch, target=torch.tensor(categories), **given
        ).numpy(force=True)

    return make


def captum_ablation(model: nn.Module) -> Run:
    from captum.attr import FeatureAblation

    patches = torch.arange(GRID[0] * GRID[1]).reshape(1, 1, *GRID)
    patches = patches.repeat_interleave(PATCH, dim=2).repeat_interleave(PATCH, dim=3)
    explain = FeatureAblation(model)
    return lambda images, categories: explain.attribute(
        images, target=torch.tensor(categories), feature_mask=patches
    ).numpy(force=True)


def of_patches(pixels: np.ndarray) -> np.ndarray:
    """Attributions of pixels (B, 3, H, W) -> their sums over each patch (B, h, w)."""
    sums = patch_sums(torch.from_numpy(pixels).sum(dim=1), GRID)
    return sums.numpy().reshape(-1, *GRID)


def in_patches(pixels: np.ndarray) -> np.ndarray:
    """(B, 3, H, W), the same in all pixels of a patch -> that (B, h, w)."""
    return pixels[:, 0, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH]


WORKS = (
    Work(
        "attention rollout",
        {
            "older_rollout": Tool(OLDER, older_rollout),
            "published_rollout": Tool(OURS, one_by_one("attention_rollout"), "`--as_published`"),
            "rollout": Tool(OURS, ours("attention_rollout")),
        },
        loops=("older_rollout",),
    ),
    Work(
        "gradient rollout",
        {
            "older_grad_rollout": Tool(OLDER, older_grad_rollout),
            "published_grad_rollout": Tool(OURS, one_by_one("grad_rollout"), "`--as_published`"),
            "grad_rollout": Tool(OURS, ours("grad_rollout")),
        },
        loops=("older_grad_rollout",),
        options=("--category", "top"),
    ),
    Work(
        "Grad-CAM",
        {
            "grad_cam": Tool("grad-cam", grad_cam, "", "pytorch_grad_cam", other=as_grad_cam),
            "torchcam": Tool("torchcam", torchcam, "", "torchcam", other=positive),
            "gradcam": Tool(OURS, ours("gradcam")),
        },
        loops=("grad_cam", "torchcam"),
        options=("--method", "gradcam", "--category", "top"),
    ),
    Work(
        "integrated gradients",
        {
            "captum_ig": Tool("captum", captum_gradients(), "", "captum", of_patches),
            "captum_ig_1": Tool(
                "captum",
                captum_gradients(internal_batch_size=1),
                "`internal_batch_size=1`",
                "captum",
                of_patches,
            ),
            "integrated_gradients": Tool(OURS, ours("integrated_gradients")),
        },
        batch=False,
    ),
    Work(
        "occlusion of patches",
        {
            "captum_occlusion": Tool("captum", captum_occlusion(), "", "captum", in_patches),
            "captum_occlusion_16": Tool(
                "captum",
                captum_occlusion(perturbations_per_eval=16),
                "`perturbations_per_eval=16`",
                "captum",
                in_patches,
            ),
            "captum_ablation": Tool(
                "captum", captum_ablation, "`FeatureAblation`", "captum", in_patches
            ),
            "occlusion": Tool(OURS, ours("occlusion")),
        },
        batch=False,
    ),
)
