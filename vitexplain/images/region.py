"""A part of an image."""

from typing import NamedTuple


class Region(NamedTuple):
    """A rectangle in pixels, which may go beyond the image, as padding does."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def scaled(self, across: float, down: float) -> "Region":
        """The same part of an image that is `across` times as wide and `down` times as high."""
        return Region(self.left * across, self.top * down, self.right * across, self.bottom * down)
