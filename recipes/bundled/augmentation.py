"""Images for distillation: two zip files, a split by category, augmentation and mosaics."""

import io
import math
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps

from vitexplain.images.reading import to_rgb

SIDE = 224


def read_zip(path: str | Path) -> list[tuple[int, Image.Image]]:
    """(category index, RGB image) for every image INDEX/name of a zip file, in name order."""
    images = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            category, _, file = name.partition("/")
            if file and category.isdigit():
                with Image.open(io.BytesIO(archive.read(name))) as image:
                    images.append((int(category), to_rgb(image)))
    return images


class ImageMaker:
    """Endless augmented images, SIDE x SIDE, made of photographs and thumbnails.

    Crops of one image, the whole image squashed as the command does, and mosaics of two or
    four images: these teach that several things can be in one image.

    Args:
        photographs, thumbnails: to draw from; a thumbnail stands in for a photograph in
            `thumbnail_share` of the draws.
    """

    def __init__(
        self,
        photographs: Sequence[Image.Image],
        thumbnails: Sequence[Image.Image],
        thumbnail_share: float = 0.4,
    ):
        self.photographs, self.thumbnails = photographs, thumbnails
        self.thumbnail_share = thumbnail_share if thumbnails else 0.0

    def make(self, rng: random.Random) -> Image.Image:
        """One image; what it is made of depends on `rng` alone.

        The teacher can label whatever it is shown, so that images may be stranger than any
        photograph: half of them are blends of two (Beyer et al. 2022, "Knowledge distillation: A
        good teacher is patient and consistent"). Without that the student learns the few
        photographs by heart.
        """
        image = self._composed(rng)
        if rng.random() < 0.5:
            image = Image.blend(image, self._composed(rng), rng.uniform(0.1, 0.5))
        return _other_light(image, rng)

    def _composed(self, rng: random.Random) -> Image.Image:
        kind = rng.random()
        if kind < 0.6:
            return self._single(rng)
        return self._pair(rng) if kind < 0.8 else self._four(rng)

    def _draw(self, rng: random.Random) -> Image.Image:
        source = self.thumbnails if rng.random() < self.thumbnail_share else self.photographs
        image = source[rng.randrange(len(source))]
        return ImageOps.mirror(image) if rng.random() < 0.5 else image

    def _single(self, rng: random.Random) -> Image.Image:
        image = self._draw(rng)
        if rng.random() < 0.3:
            return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        return self._cut(image, SIDE, SIDE, rng, smallest=0.08)

    def _pair(self, rng: random.Random) -> Image.Image:
        first = rng.randint(SIDE * 2 // 5, SIDE * 3 // 5)
        canvas = Image.new("RGB", (SIDE, SIDE))
        canvas.paste(self._cut(self._draw(rng), first, SIDE, rng))
        canvas.paste(self._cut(self._draw(rng), SIDE - first, SIDE, rng), (first, 0))
        return canvas

    def _four(self, rng: random.Random) -> Image.Image:
        x, y = (rng.randint(SIDE * 2 // 5, SIDE * 3 // 5) for _ in range(2))
        canvas = Image.new("RGB", (SIDE, SIDE))
        for left, width in ((0, x), (x, SIDE - x)):
            for top, height in ((0, y), (y, SIDE - y)):
                canvas.paste(self._cut(self._draw(rng), width, height, rng), (left, top))
        return canvas

    def _cut(
        self,
        image: Image.Image,
        width: int,
        height: int,
        rng: random.Random,
        smallest: float = 0.4,
    ) -> Image.Image:
        """A random part of the image, at least `smallest` of its area, as width x height."""
        area = image.width * image.height * rng.uniform(smallest, 1.0)
        ratio = width / height * math.exp(rng.uniform(-0.5, 0.5))
        across = min(image.width, math.sqrt(area * ratio))
        down = min(image.height, math.sqrt(area / ratio))
        left = rng.uniform(0, image.width - across)
        top = rng.uniform(0, image.height - down)
        box = (left, top, left + across, top + down)
        return image.resize((width, height), Image.Resampling.BICUBIC, box)


def _other_light(image: Image.Image, rng: random.Random) -> Image.Image:
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(rng.uniform(0.6, 1.4))
    if rng.random() < 0.2:  # other colours altogether
        channels = list(image.split())
        rng.shuffle(channels)
        image = Image.merge("RGB", channels)
    return image
