"""What to explain and how, in four parts. Imports nothing heavy: the command must start at once.

The options of the command of the same names say more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from vitexplain.choices import DEFAULT_IMAGE

Value = float | int | str
Sweep = Mapping[str, tuple[Value, ...]]  # parameter -> its values


@dataclass(frozen=True)
class ModelOptions:
    """Which model, where it runs, and how images are prepared for it.

    Attributes:
        model: "auto", "bundled" or any timm name.
        precision: one of choices.PRECISIONS.
        crop: one of choices.CROPS.
        model_args: arguments of timm's model, by name.
        mean, std: of each channel, for values from 0 to 1; None for the model's own.
        stretch: open images with their darkest values black, their brightest white.
        labels: one of choices.LABELS; None for what the model says of itself.
        img_size: (H, W) of the input in pixels; None for the model's own.
        class_embeddings: a file with one embedding for each category.
        logit_scale: of their cosines with the image's.
        text: categories in words, see models.texts.
        similar_to: an image, or a folder of images: the cosine with their embedding is explained.
    """

    model: str = "auto"
    checkpoint: str | None = None
    class_names: str | None = None
    device: str = "auto"
    use_cuda: bool = False
    precision: str = "auto"
    crop: str = "none"
    stretch: bool = False
    labels: str | None = None
    model_args: Mapping[str, object] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    img_size: tuple[int, int] | None = None
    class_embeddings: str | None = None
    logit_scale: float = 100.0
    text: tuple[str, ...] = ()
    similar_to: str | None = None


@dataclass(frozen=True)
class MapOptions:
    """Which maps, by which methods. Everything here changes the maps.

    Attributes:
        method: names of methods; empty for attention rollout or, where there is a category,
            gradient rollout.
        category: index, name, "top" (the most likely) or None (the most likely too, but attention
            rollout where no method is named).
        top_k: maps of the K most likely categories instead.
        against: categories that each is set against, ("auto",) for those nearest to it; empty for
            none.
        head_fusion: None for the method's own default, see methods.registry.
        block, head: of the method "attention"; the last block and all heads if None.
        compare: all methods, or those named, each with its faithfulness.
        quick: of all methods, only those that take few passes.
    """

    method: tuple[str, ...] = ()
    category: int | str | None = None
    top_k: int | None = None
    against: tuple[int | str, ...] = ()
    head_fusion: str | None = None
    discard_ratio: float = 0.9
    start_block: int = 0
    block: int | None = None
    head: int | None = None
    as_published: bool = False
    compare: bool = False
    quick: bool = False


@dataclass(frozen=True)
class Style:
    """How maps are drawn and saved.

    Attributes:
        alpha: weight of the heatmap, 0 (image only) to 1 (heatmap only).
        colormap: name of an OpenCV colour map.
        size: "image", "model", or pixels of the longer side, never enlarged beyond the image; None
            for the image's own size unless the maps are `as_published`.
        format: one of choices.FORMATS: what overlays are written as.
    """

    alpha: float = 0.5
    colormap: str = "turbo"
    size: int | str | None = None
    format: str = "auto"
    save_mask: bool = False


@dataclass(frozen=True)
class RunOptions:
    """Which images, where results go, and how the work is done. Nothing here changes a map.

    Attributes:
        image_path: images, folders, globs, "@list.txt"; empty where only `masks` are wanted.
        recursive: also folders in folders.
        evaluate: a table of how faithful methods are.
        masks: a folder or zip of images with masks, to evaluate on, see training.masks.
        sweep: values of one or two parameters, to draw one image with all of them.
        query: tokens of one image, as "X,Y", "class" or "register:1": what each looks at.
        anatomy: one figure of what the model does with one image.
        explore: one interactive page of one image.
        features: the principal components of the final features, as colours.
        save_features: the features themselves, too, as .npz.
        contact_sheet: "png", "pdf" or None.
        batch_size, workers: None for what suits the device and the processor.
        truth: "folders", or a CSV file: the images' true categories.
        engine: one of choices.ENGINES.
        gpus_per_worker: of the ray engine's actors, each; None for one where there are GPUs.
        lines: progress goes to standard error in lines where that is no terminal.
        command: the command line, for the metadata of what is written.
    """

    image_path: tuple[str, ...] = (DEFAULT_IMAGE,)
    recursive: bool = False
    output_dir: str = "output"
    evaluate: bool = False
    masks: str | None = None
    sweep: Sweep | None = None
    anatomy: bool = False
    explore: bool = False
    query: tuple[str, ...] = ()
    features: bool = False
    save_features: bool = False
    report: bool = False
    contact_sheet: str | None = None
    truth: str | None = None
    batch_size: int | None = None
    workers: int | None = None
    engine: str = "local"
    gpus_per_worker: float | None = None
    quiet: bool = False
    lines: bool = False
    command: str = ""


@dataclass(frozen=True)
class Settings:
    """One request: the four parts together, whose fields all have names of their own."""

    model: ModelOptions = field(default_factory=ModelOptions)
    maps: MapOptions = field(default_factory=MapOptions)
    style: Style = field(default_factory=Style)
    run: RunOptions = field(default_factory=RunOptions)

    @classmethod
    def of(cls, **options: object) -> "Settings":
        """From options by their own names: Settings.of(model="bundled", alpha=0.7)."""
        parts = {}
        for part in fields(cls):
            kind = part.default_factory
            names = {each.name for each in fields(kind)} & options.keys()
            parts[part.name] = kind(**{name: options.pop(name) for name in names})
        if options:
            raise TypeError(f"unknown options: {', '.join(options)}")
        return cls(**parts)

    @classmethod
    def defaults(cls) -> dict[str, object]:
        """Each option by its own name, with its default."""
        return {
            each.name: each.default for part in fields(cls) for each in fields(part.default_factory)
        }
