"""A part of an image."""

from typing import NamedTuple


class Region(NamedTuple):
    """A rectangle in pixels; it may extend beyond the image, as padding does."""

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
        """The same part of the image scaled by `across` horizontally and `down` vertically."""
        return Region(self.left * across, self.top * down, self.right * across, self.bottom * down)
