"""The one call: `explain("cat.jpg", category="tabby").show()`."""

import base64
import html
import io
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitexplain.attention.families import timms_model
from vitexplain.attention.tokens import token_layout
from vitexplain.components import Features, FinalFeatures
from vitexplain.device import choose_device, in_batches
from vitexplain.drawing.explore.explore import Page, explore_page
from vitexplain.drawing.heatmap import check_style, color_bar
from vitexplain.drawing.overlay import Overlay, check_output, texts_for
from vitexplain.errors import RequestError
from vitexplain.explainer import (
    TOP,
    Block,
    Category,
    Explainer,
    Map,
    blocks_of_image,
    check_of,
    options_of,
)
from vitexplain.exploration import check_explorable
from vitexplain.exploration import explore as attention_of
from vitexplain.faithfulness.score import faithfulness
from vitexplain.images.encoding import KINDS, check_fits
from vitexplain.images.reading import open_image, to_rgb, upright
from vitexplain.images.region import Region
from vitexplain.images.writing import write_array
from vitexplain.methods.registry import METHODS, method_named, methods_of
from vitexplain.models.loading import LoadedModel, any_model, load_model, wrap_model
from vitexplain.models.transform import InputTransform
from vitexplain.outputs import are_values
from vitexplain.precision import remark_on
from vitexplain.progress import Watch, silent
from vitexplain.queries import TokenMaps, token_maps, token_named
from vitexplain.settings import MapOptions, Style

SHOWN = 480  # pixels of the longer side of what a notebook displays
SUFFIXES = (*KINDS, ".npy")

CHANNELS = (1, 3, 4)

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class OpenImage:
    """One image, and the part of it that the model sees.

    Attributes:
        image, seen: RGB, as it is and as the model sees it.
        region: the part that is seen, in the image's pixels.
        tensor: (3, H, W), the model's input.
    """

    image: Image.Image
    seen: Image.Image
    region: Region
    tensor: Tensor

    @classmethod
    def of(cls, image: Image.Image, transform: InputTransform) -> "OpenImage":
        seen = transform.seen(image)
        return cls(image, seen, transform.region(*image.size), transform.tensor(seen))


@dataclass(frozen=True)
class Explanation:
    """One map of one image, by one method; a notebook displays it by itself.

    Attributes:
        result: the map with its category and method, as the runs and the drawing take it.
        top: the five most likely categories, as (index, name, probability).
        model: the model, with its transform and the names of its categories.
        opened: the image with the part of it that the model sees.
        drawn_by: how overlays of it are drawn by default.
        truth: the true category, if `explain` was told.
        mistake: of an image that is classified wrongly, the explanations of what is true, and of
            that against what was predicted.
    """

    result: Map
    top: tuple[Category, ...]
    model: LoadedModel
    opened: OpenImage
    drawn_by: Overlay
    truth: Category | None = None
    mistake: tuple["Explanation", ...] = ()

    @property
    def correct(self) -> bool | None:
        """Whether the most likely category is the true one; None where that is not known."""
        return None if self.truth is None else self.top[0].index == self.truth.index

    @property
    def image(self) -> Image.Image:
        """The image, RGB."""
        return self.opened.image

    @property
    def map(self) -> np.ndarray:
        """(h, w) float32 on the patch grid, the largest value 1.

        Set against others it is signed, the largest absolute value 1: what is positive speaks for
        the category, what is negative for the others.
        """
        return self.result.mask

    @property
    def scores(self) -> np.ndarray:
        """(h, w) float32, the method's own numbers before they are scaled.

        They are signed where the method distinguishes evidence for the category from evidence
        against it.
        """
        return self.result.scores

    @property
    def category(self) -> Category | None:
        """The category explained; None for a method whose map is the same for all of them."""
        return self.result.category

    @property
    def rivals(self) -> tuple[Category, ...]:
        """What the category was set against."""
        return self.result.rivals

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """What the model would answer after each of its blocks, see vitexplain.lens.

        Raises:
            UnsupportedModel: if the model is no ViT whose blocks can be followed.
            RequestError: if it has no categories.
        """
        return blocks_of_image(self.model, self.opened.tensor)

    @property
    def method(self) -> dict:
        """The method's name and options."""
        return dict(self.result.method)

    def overlay(
        self,
        alpha: float | None = None,
        colormap: str | None = None,
        size: int | str | None = None,
    ) -> Image.Image:
        """The map as a heatmap over the image, RGB.

        Args:
            alpha: weight of the heatmap, 0 (image only) to 1 (heatmap only); by default 0.5.
            colormap: name of an OpenCV colour map; by default "turbo".
            size: "image", "model" for the size of the model's input, or pixels of the longer side,
                never more than the image has; by default the image's own size.

        Raises:
            RequestError: if alpha, the colour map or the size is not allowed.
        """
        drawn_by = self._styled(alpha, colormap, size)
        return drawn_by.drawn(*drawn_by.canvas(self.image, self.opened.seen), self.result)

    def save(
        self,
        path: str | Path,
        *,
        alpha: float | None = None,
        colormap: str | None = None,
        size: int | str | None = None,
    ) -> Path:
        """Write the overlay (.png, .jpg, .webp), or the map itself (.npy); the path is returned.

        An overlay carries model, method, category and versions: a PNG as text chunks, JPEG and
        WebP as XMP and EXIF.

        Args:
            alpha, colormap, size: see `overlay`.

        Raises:
            RequestError: if the path has another suffix, or a file of its kind can't hold an image
                as large.
            OSError: if it can't be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise RequestError(f"{path} must end in one of {', '.join(SUFFIXES)}")
        if suffix == ".npy":
            write_array(path, self.map)
            return path
        drawn_by = self._styled(alpha, colormap, size)
        check_fits(suffix, *drawn_by.size_of(*self.image.size))
        drawn_by.save(path, *drawn_by.canvas(self.image, self.opened.seen), self.result)
        return path

    def explore(self, path: str | Path) -> Page:
        """Write an interactive page of the image; a notebook shows what is returned in place.

        It holds the attention of all blocks and heads, from which rollout is recalculated in the
        page, and the maps of all methods that take few passes for the five most likely categories,
        each with its faithfulness (up to forty forward passes for each).

        Raises:
            UnsupportedModel: if the model's attention isn't over one grid of patches.
            OSError: if it can't be written.
        """
        explainer = Explainer(explored_maps(MapOptions(), self.model), self.model)
        style = self.drawn_by.style
        page = exploration_page(explainer, self.opened, "image", colormap=style.colormap)
        return page.write(path)

    def show(self) -> None:
        """Display it: in a notebook below the cell, elsewhere in a window until that is closed.

        Where no window can be opened, a warning says so.
        """
        if _in_notebook():
            from IPython.display import display

            display(self)
            return
        from vitexplain.drawing.window import show

        with tempfile.TemporaryDirectory() as folder:
            reason = show(str(self.save(Path(folder) / "explanation.png")))
        if reason:
            warnings.warn(f"no window can be opened here ({reason}): use .save(path)", stacklevel=2)

    def faithfulness(self) -> float:
        """How faithful the map is to the model, -1 to 1; about forty forward passes.

        Area under insertion minus area under deletion, of the category explained, or else of the
        most likely one (see vitexplain.faithfulness.score); of a category that was set against
        others, of its share p_a / (p_a + p_b) of their probabilities.

        Raises:
            RequestError: if the model has no categories.
        """
        if not self.top:
            raise RequestError("faithfulness is measured by a category: the model has none")
        category = self.category or self.top[0]
        return faithfulness(
            self.model.model,
            self.opened.tensor,
            self.result.ranked,
            category.index,
            self.model.labels,
            [each.index for each in self.rivals],
        )

    def _styled(self, alpha: float | None, colormap: str | None, size: int | str | None) -> Overlay:
        given = {"alpha": alpha, "colormap": colormap, "size": size}
        style = replace(
            self.drawn_by.style, **{name: v for name, v in given.items() if v is not None}
        )
        check_style(style.alpha, style.colormap)
        check_output(style)
        return replace(self.drawn_by, style=style)

    def __repr__(self) -> str:
        grid = "x".join(map(str, self.map.shape))
        about = "all categories" if self.category is None else self.category.short_name
        return f"<Explanation of {about} by {self.method['name']}, {self.model.name}, {grid}>"

    def _repr_png_(self) -> bytes:
        return _png(_thumbnail(self.overlay()))

    def _repr_html_(self) -> str:
        """The overlay with a colour bar, and the most likely categories. Names are escaped."""
        title = METHODS[self.method["name"]].title
        about = "the same for every category" if self.category is None else self.category.name
        bar = color_bar(256, 12, self.drawn_by.style.colormap)
        rows = "".join(
            f"<tr><td style='text-align:right'>{each.share}</td>"
            f"<td style='text-align:left'>{html.escape(each.name)}</td></tr>"
            for each in self.top
        )
        return (
            "<figure style='display:inline-block;margin:0;vertical-align:top'>"
            f"{_img(_thumbnail(self.overlay()), f'{title}: {about}')}"
            "<div style='display:flex;gap:.5em;align-items:center;font-size:small'>"
            f"<span>least</span>{_img(bar, 'colour bar')}<span>most</span></div>"
            f"<figcaption>{html.escape(title)}: {html.escape(about)}</figcaption></figure>"
            f"<table style='display:inline-table;margin-left:1em;vertical-align:top'>{rows}</table>"
        )


def explain(
    image: ImageLike | Sequence[ImageLike],
    category: int | str | None = None,
    *,
    model: str | LoadedModel | nn.Module = "auto",
    method: str | None = None,
    device: str = "auto",
    labels: str | None = None,
    class_names: str | Path | Sequence[str] | None = None,
    stretch: bool | None = None,
    against: int | str | Sequence[int | str] | None = None,
    truth: int | str | Sequence[int | str | None] | None = None,
    **options: object,
) -> Explanation | list[Explanation]:
    """Show what a Vision Transformer looked at in an image.

    Args:
        image: a path, a PIL image, an array (H, W, 3) of uint8 or of floats from 0 to 1, or a
            tensor (3, H, W) likewise, also grey or with alpha, also uint16. A list of them, or a
            batch (B, ...), gives a list.
        category: index or name of the category to explain, "top" for the most likely one; None
            for what the model looked at altogether.
        model: "auto", "bundled" or a timm name, which is loaded anew by each call; or what
            load_model returned; or a timm model of your own.
        method: a name of METHODS; by default attention rollout, with a category gradient rollout.
        device: where a model that is named runs: "auto", "cpu", "cuda", "cuda:N" or "mps".
        labels, class_names: see load_model.
        stretch: make the darkest values of the image black, the brightest white; None for what
            load_model was told.
        against: index or name of another category, or several: why `category` and not these. "auto"
            takes the nearest, by their logits (Zhang et al. 2025, see vitexplain.targets).
        truth: index or name of the true category, or one (or None) for each image of a list. What
            was predicted is explained then; see Explanation.correct and .mistake.
        **options: of the method, such as head_fusion, discard_ratio, start_block.

    Returns:
        An Explanation, or one for each image of a list, in its order.

    Raises:
        RequestError: if something can't be done as asked, in one sentence that says why.

    Example:
        >>> found = explain("examples/both.png", category="tiger cat", model="bundled")
        >>> found.map.shape
        (14, 14)
    """
    if truth is not None:
        if category not in (None, "top") or against is not None:
            raise RequestError("truth explains what was predicted: leave category and against out")
        category = "top"
    asked = _map_options(category, method, against, options)
    loaded = _loaded(model, device, class_names, labels, asked)
    several, images = _as_list(image)
    if remark := remark_on(loaded.model):
        warnings.warn(remark, stacklevel=2)
    explainer = Explainer(asked, loaded)
    truths = _truths(truth, len(images), loaded)
    stretch = loaded.transform.stretch if stretch is None else stretch
    given = {"category": category, "method": method, "stretch": stretch or None} | options
    given["against"] = against
    said = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    texts = texts_for(loaded, f"explain({', '.join(['image', *said])})")
    overlay = Overlay(Style(), loaded.transform, texts)

    def run(places: range) -> list[Explanation]:
        part = slice(places.start, places.stop)
        batch = [as_image(each, stretch=stretch) for each in images[part]]
        for image in batch:
            if image.info.get("notice"):
                warnings.warn(image.info["notice"], stacklevel=3)
        opened = [OpenImage.of(image, loaded.transform) for image in batch]
        found = explain_opened(explainer, overlay, opened, truths[part])
        return [replace(first, mistake=tuple(others)) for first, *others in found]

    batches = in_batches(run, range(len(images)), explainer.batch_size(), warnings.warn)
    found = [each for batch in batches for each in batch]
    return found if several else found[0]


def query(
    image: ImageLike,
    *tokens: str | tuple[float, float],
    model: str | LoadedModel | nn.Module = "auto",
    device: str = "auto",
    **options: object,
) -> list[TokenMaps]:
    """What single tokens of a ViT look at.

    Args:
        image: as for `explain`.
        tokens: (x, y), a pixel of the image; or "class", or "register:1".
        model, device: as for `explain`.
        **options: block, head, head_fusion, discard_ratio, start_block, as for
            vitexplain.queries.token_maps.

    Returns:
        The maps of each token: its attention in one block and in each, its rollout, and the cosine
        of its final features with every patch's.

    Raises:
        RequestError: if something can't be done as asked.

    Example:
        >>> (found,) = query("examples/both.png", (650, 250), model="bundled")
        >>> found.patch
        (7, 10)
    """
    loaded = _loaded(model, device, None, None, MapOptions())
    opened = as_image(image, stretch=loaded.transform.stretch)
    opened = OpenImage.of(opened, loaded.transform)
    layout = token_layout(loaded.model, *loaded.transform.size)
    names = [name if isinstance(name, str) else ",".join(map(str, name)) for name in tokens]
    numbers = [token_named(name, loaded.model, layout, opened.region)[0] for name in names]
    return token_maps(loaded.model, opened.tensor[None], numbers, **options)


def features(
    images: ImageLike | Sequence[ImageLike],
    *,
    model: str | LoadedModel | nn.Module = "auto",
    device: str = "auto",
) -> Features:
    """What a model's final features tell apart in images, by models without a classifier too.

    Args:
        images: as for `explain`; one fit for all of them.
        model, device: as for `explain`; any model of timm.

    Returns:
        Features, with `colours` (h, w, 3) and `foreground` (h, w) of each image.

    Raises:
        RequestError: if something can't be done as asked.

    Example:
        >>> found = features("examples/both.png", model="bundled")
        >>> found.colours[0].shape
        (14, 14, 3)
    """
    if isinstance(model, nn.Module):
        loaded = wrap_model(model, check=timms_model)
    elif isinstance(model, LoadedModel):
        loaded = model
    else:
        loaded = load_model(model, device=choose_device(device)[0], check=any_model)
    _, given = _as_list(images)
    tensors = (loaded.transform(as_image(each, stretch=loaded.transform.stretch)) for each in given)
    of = FinalFeatures(loaded.model)
    return Features([of(each[None])[0].numpy() for each in tensors])


def explored_maps(maps: MapOptions, loaded: LoadedModel) -> MapOptions:
    """Which maps an interactive page has, of those requested: without a request, many.

    Raises:
        UnsupportedModel: if no page can show this model's attention.
    """
    check_explorable(loaded.model)
    if not loaded.categories:
        return maps
    if are_values(loaded.labels):
        return replace(maps, quick=True)
    top_k = maps.top_k
    of_category = not maps.method or any(METHODS[name].of_category for name in maps.method)
    if of_category and maps.category in (None, "top"):
        top_k = top_k or min(TOP, len(loaded.categories))
    return replace(maps, compare=True, quick=True, top_k=top_k)


def exploration_page(
    explainer: Explainer,
    opened: OpenImage,
    name: str,
    *,
    colormap: str,
    watch: Watch = silent,
) -> Page:
    """The interactive page of one image, with the explainer's maps and its options of rollout."""
    loaded = explainer.loaded
    images = opened.tensor[None]
    (found,) = explainer(images, watch)
    answers = bool(loaded.categories) and not are_values(loaded.labels)
    return explore_page(
        attention_of(loaded.model, images),
        found.maps,
        blocks_of_image(loaded, opened.tensor) if answers else (),
        image=opened.image,
        region=opened.region,
        name=name,
        model=loaded.name,
        top=found.top,
        rollout=options_of(METHODS["attention_rollout"], explainer.options),
        colormap=colormap,
    )


def explain_opened(
    explainer: Explainer,
    overlay: Overlay,
    opened: Sequence[OpenImage],
    truths: Sequence[int | None] | None = None,
) -> list[list[Explanation]]:
    """One batch: of each image its maps by all methods of the explainer."""
    truths = [None] * len(opened) if truths is None else truths
    explained = explainer(torch.stack([each.tensor for each in opened]), truths=truths)
    loaded = explainer.loaded
    return [
        [Explanation(found, tuple(of.top), loaded, image, overlay, of.truth) for found in of.maps]
        for image, of in zip(opened, explained, strict=True)
    ]


def _truths(
    truth: int | str | Sequence[int | str | None] | None, count: int, loaded: LoadedModel
) -> list[int | None]:
    """The index of the true category of each image, or None."""
    if truth is None:
        return [None] * count
    each = [truth] if isinstance(truth, int | str) else list(truth)
    if len(each) != count:
        raise RequestError(f"truth must name one category for each of {count} images")
    return [None if name is None else loaded.category_index(name) for name in each]


def as_image(image: ImageLike, *, stretch: bool = False) -> Image.Image:
    """An image in any accepted form as upright RGB.

    Raises:
        RequestError: if it is no image; PictureError where a file can't be read.
    """
    if isinstance(image, str | Path):
        return open_image(image, stretch=stretch)
    if isinstance(image, Image.Image):
        return to_rgb(upright(image.copy()), stretch=stretch)
    if isinstance(image, Tensor):
        array = image.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    elif isinstance(image, np.ndarray):
        array = image
    else:
        kind = type(image).__name__
        raise RequestError(f"an image is a path, a PIL image, an array or a tensor, not {kind}")
    return to_rgb(_of_array(array, tensor=isinstance(image, Tensor)), stretch=stretch)


def _of_array(array: np.ndarray, *, tensor: bool) -> Image.Image:
    """An image of (H, W), (H, W, C) or (C, H, W) values, C being 1, 3 or 4."""
    expected = "(3, H, W)" if tensor else "(H, W, 3)"
    given = array.shape
    if array.ndim == 3:
        last, first = given[2] in CHANNELS, given[0] in CHANNELS
        first = first and not (tensor and given[0] == 4 and last)  # then it can't be told
        if first and (tensor or not last):
            array = np.moveaxis(array, 0, 2)
        elif not last or (tensor and not first):
            raise RequestError(f"an image must be {expected}, not of {given} values")
        array = array[:, :, 0] if array.shape[2] == 1 else array
    if array.ndim not in (2, 3) or not array.size:
        raise RequestError(f"an image must be {expected}, not of {given} values")
    if array.dtype == np.bool_:
        array = np.uint8(255) * array
    elif array.dtype == np.uint16:
        if array.ndim == 2:
            return Image.fromarray(np.ascontiguousarray(array))
        array = np.uint8(np.round(array / 257))
    elif np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # NaN fails, too
            raise RequestError(
                "an image of floats must be from 0 to 1; inputs that are normalised already go "
                "to a method itself: METHODS[name].make(model).explain(inputs)"
            )
        array = np.uint8(np.round(255 * array))
    elif array.dtype != np.uint8:
        raise RequestError(
            f"an image holds uint8 or floats from 0 to 1, not {array.dtype}; uint16 works, too: "
            "convert it, as in array.astype('uint8')"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _as_list(image: ImageLike | Sequence[ImageLike]) -> tuple[bool, list[ImageLike]]:
    """(whether it is several images, they)."""
    if isinstance(image, np.ndarray | Tensor) and image.ndim == 4:
        return True, list(image)
    if isinstance(image, str | Path | Image.Image | np.ndarray | Tensor):
        return False, [image]
    try:
        return True, list(image)
    except TypeError:
        return False, [image]


def _map_options(
    category: int | str | None,
    method: str | None,
    against: int | str | Sequence[int | str] | None,
    options: dict,
) -> MapOptions:
    chosen = () if method is None else (method_named(method).name,)
    of_category = category is not None or against is not None
    (name,) = methods_of(chosen, every=False, of_category=of_category)
    for option in options:
        if option not in METHODS[name].options:
            allowed = ", ".join(METHODS[name].options) or "none"
            raise RequestError(f"{name} has no option {option!r}; its options: {allowed}")
    if against is None:
        against = ()
    elif isinstance(against, int | str):
        against = (against,)
    return MapOptions(method=chosen, category=category, against=tuple(against), **options)


def _loaded(
    model: str | LoadedModel | nn.Module,
    device: str,
    class_names: str | Path | Sequence[str] | None,
    labels: str | None,
    asked: MapOptions,
) -> LoadedModel:
    if isinstance(model, LoadedModel | nn.Module) and device != "auto":
        raise RequestError("device is for a model that is named; this one is where it was put")
    if isinstance(model, LoadedModel):
        if class_names is not None or labels is not None:
            raise RequestError("class_names and labels are for load_model: this model has its own")
        return model
    if isinstance(model, nn.Module):
        return wrap_model(model, class_names, labels, check=check_of(asked))
    device, _ = choose_device(device)
    check = check_of(asked)
    return load_model(model, class_names=class_names, device=device, labels=labels, check=check)


def _in_notebook() -> bool:
    try:
        shell = get_ipython()  # what IPython defines in each of its sessions
    except NameError:
        return False
    return shell.__class__.__name__ != "TerminalInteractiveShell"


def _thumbnail(image: Image.Image) -> Image.Image:
    if max(image.size) > SHOWN:
        image.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    return image


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _img(image: Image.Image, alternative: str) -> str:
    data = base64.b64encode(_png(image)).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{data}">'
