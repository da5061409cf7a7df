"""What to explain and how. Imports nothing heavy: the command line must start at once."""

from collections.abc import Mapping
from dataclasses import dataclass

from vitexplain.choices import DEFAULT_IMAGE

Value = float | int | str
Sweep = Mapping[str, tuple[Value, ...]]  # parameter -> its values


@dataclass(frozen=True)
class Settings:
    """What to explain and how; the command's options of the same names say more.

    Attributes:
        image_path: images, folders, globs, "@list.txt".
        recursive: also folders in folders.
        category: index, name, "top" (the most likely) or None (the most likely too, but attention
            rollout where no method is named).
        method: names of methods; empty for the classic two, gradient rollout where
            there is a category.
        block, head: of the method "attention": the last block and all heads if None.
        compare: all methods beside each other, or those named, each with how faithful it is.
        evaluate: a table of how faithful methods are.
        sweep: values of one or two parameters, to draw one image with all of them.
        anatomy: one figure of what the model does with one image.
        top_k: maps of so many of the most likely categories instead.
        img_size: (H, W) of the model's input in pixels; None for the model's own.
        head_fusion: None for the method's own default, max for rollout and mean with a category.
        size: "image", "model", or None: the image's own size unless `as_published`.
        contact_sheet: "png", "pdf" or None.
        engine: "local" or "ray", which needs requirements-ray.txt.
        batch_size, workers: None for what suits the device and the processor.
    """

    image_path: tuple[str, ...] = (DEFAULT_IMAGE,)
    recursive: bool = False
    category: int | str | None = None
    top_k: int | None = None
    method: tuple[str, ...] = ()
    block: int | None = None
    head: int | None = None
    compare: bool = False
    evaluate: bool = False
    sweep: Mapping[str, tuple] | None = None
    anatomy: bool = False
    head_fusion: str | None = None
    discard_ratio: float = 0.9
    start_block: int = 0
    as_published: bool = False
    model: str = "auto"
    checkpoint: str | None = None
    class_names: str | None = None
    device: str = "auto"
    use_cuda: bool = False
    crop: str = "none"
    img_size: tuple[int, int] | None = None
    output_dir: str = "output"
    alpha: float = 0.5
    colormap: str = "turbo"
    size: str | None = None
    save_mask: bool = False
    report: bool = False
    contact_sheet: str | None = None
    batch_size: int | None = None
    workers: int | None = None
    engine: str = "local"
    quiet: bool = False
    command: str = ""
