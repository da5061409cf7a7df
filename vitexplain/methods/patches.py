"""Pixels and the patches that they belong to."""

import torch
from torch import Tensor


def rows_and_columns(
    grid: tuple[int, int], size: tuple[int, int], patch: tuple[int, int] | None = None
) -> list[Tensor]:
    """[(H,), (W,)]: which row of the grid h x w each row of pixels is in, and each column.

    Args:
        size: (H, W) of an image.
        patch: pixels of a patch, (down, across): the last patches may have fewer, where the model
            pads an image. Without, or where such patches don't reach its end, the image is split as
            evenly as whole pixels allow.
    """
    return [
        torch.arange(pixels) // side
        if side * count >= pixels
        else torch.arange(pixels) * count // pixels
        for pixels, count, side in zip(size, grid, patch or (0, 0), strict=True)
    ]


def patches_of_pixels(
    grid: tuple[int, int], size: tuple[int, int], patch: tuple[int, int] | None = None
) -> Tensor:
    """(H, W): which of the h*w patches, row by row, each pixel belongs to."""
    rows, columns = rows_and_columns(grid, size, patch)
    return rows[:, None] * grid[1] + columns


def patch_sums(
    pixels: Tensor, grid: tuple[int, int], patch: tuple[int, int] | None = None
) -> Tensor:
    """(B, H, W) -> (B, h*w): the sum over each patch, see rows_and_columns."""
    places = rows_and_columns(grid, tuple(pixels.shape[1:]), patch)
    down, across = (
        (torch.arange(count)[:, None] == of_pixels).to(pixels)  # (h, H) and (w, W)
        for count, of_pixels in zip(grid, places, strict=True)
    )
    return (down @ pixels @ across.T).flatten(1)
