"""What a model answers to images of which some patches are hidden; no such state passes twice.

A map is measured by some forty states of its image: the patches that it ranks first hidden, or only
these shown, at every step of a curve and with every fill. Curves of all maps begin and end at the
whole image and at the empty one, and maps that rank alike share more: what several of them need is
asked once, and all of it in the same batches.

The fill, which takes the place of a hidden patch, is the mean colour ("mean"), or the blurred image
("blur"), which leaves no edges that a model could recognise as something. Nothing takes its place
where its token is left out ("drop"), see vitexplain.faithfulness.dropping.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from vitexplain.attention.batches import batch_for, notify
from vitexplain.attention.capture import forward
from vitexplain.attention.checks import images_for
from vitexplain.attention.shadow import shadow_of
from vitexplain.attention.tokens import token_layout
from vitexplain.device import in_batches
from vitexplain.errors import RequestError
from vitexplain.faithfulness.dropping import DROP, check_drops_tokens, drops_tokens, only_tokens
from vitexplain.methods.patches import patches_of_pixels
from vitexplain.outputs import both_sides, probabilities
from vitexplain.progress import Watch, silent
from vitexplain.targets import Chosen, Target, indices_of

FILLS = ("mean", "blur")
HIDDEN_BY = (*FILLS, DROP)
# standard deviation of the blur, as a share of the shorter side: a patch keeps nothing of its own
BLUR = 1 / 14
GPU_BATCH = 64  # states per forward pass on a GPU
ALL_OF_IT = (1, 1)  # the grid of an image that is shown, or hidden, as a whole


class State(NamedTuple):
    """One image with some of its patches hidden.

    Attributes:
        image: its number.
        fill: what stands where patches are hidden, one of HIDDEN_BY.
        grid: (h, w) of the patches.
        shown: which of them are shown, a byte for each, row by row.
    """

    image: int
    fill: str
    grid: tuple[int, int]
    shown: bytes


class Answer(NamedTuple):
    """A model's answer to a state, as to one target.

    Attributes:
        probability: the category's; of a category with rivals, its share p_a / (p_a + p_b).
        first: it is the most likely category, or the most likely of these.
    """

    probability: float
    first: bool


def check_fills(fills: Sequence[str]) -> None:
    """Each is one of HIDDEN_BY, or RequestError."""
    for fill in fills:
        if fill not in HIDDEN_BY:
            raise RequestError(f"fill must be one of {', '.join(HIDDEN_BY)}, not {fill!r}")


def state_of(image: int, fill: str, grid: tuple[int, int], shown: np.ndarray) -> State:
    """The state in which (h*w,) bool are shown; the same one for whatever looks the same."""
    if shown.all():
        return State(image, FILLS[0], ALL_OF_IT, b"\1")
    if not shown.any():
        return State(image, fill, ALL_OF_IT, b"\0")
    return State(image, fill, grid, shown.tobytes())


def tokens_left(state: State) -> int | None:
    """How many patches' tokens enter the blocks; None where all do."""
    return state.shown.count(b"\1") if state.fill == DROP else None


class Answers:
    """The model's answers to states of B images, each asked once.

    Args:
        model: gives logits (B, categories); used in evaluation mode, left as it was found.
        images: (B, 3, H, W), normalised: 0 is the mean colour.
        labels: how the outputs become probabilities, "exclusive" or "independent".
        batch_size: states per forward pass, by default as many as suit the device; halved where
            memory does not suffice.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, labels: str, batch_size: int | None = None
    ):
        self.model, self.labels = shadow_of(model), labels
        self.images = images_for(model, images)
        self.batch_size = batch_size or batch_for(model, *self.images.shape[2:], GPU_BATCH)
        self._known: dict[tuple[State, Chosen], Answer] = {}
        self._empty: dict[str, Tensor] = {}
        self._patches: dict[tuple[int, int], Tensor] = {}

    def __getitem__(self, asked: tuple[State, Chosen]) -> Answer:
        """The answer to a state, as to a target; both must have been asked before."""
        return self._known[asked]

    def can_hide(self, fill: str, grid: tuple[int, int]) -> bool:
        """Whether patches of this grid can be hidden so.

        Tokens can be left out of some models alone, and where they are the patches of the grid.
        """
        return fill != DROP or (self._drops and tuple(grid) == self._token_grid)

    def ask(self, wanted: Iterable[tuple[State, Chosen]], watch: Watch = silent) -> None:
        """Have answers to all these, from as few passes as there are different states among them.

        Args:
            watch: shows how many states have passed, see vitexplain.progress.

        Raises:
            RequestError: if tokens are to be left out of a model, or by a grid, that does not allow
                it, see can_hide.
        """
        targets: dict[State, dict[Chosen, None]] = {}
        for state, target in wanted:
            if (state, target) not in self._known:
                targets.setdefault(state, {})[target] = None
        groups: dict[int | None, list[State]] = {}  # the images of a pass have as many tokens
        for state in targets:
            groups.setdefault(tokens_left(state), []).append(state)
        states = [state for group in groups.values() for state in group]
        run = partial(self._pass, targets)
        for state, answers in zip(
            watch(states, "patches removed"), self._each(run, groups.values()), strict=True
        ):
            for target, answer in zip(targets[state], answers, strict=True):
                self._known[state, target] = answer

    def _each(
        self,
        run: Callable[[Sequence[State]], list[list[Answer]]],
        groups: Iterable[Sequence[State]],
    ) -> Iterator[list[Answer]]:
        smaller = partial(setattr, self, "batch_size")  # lest each group try anew what didn't fit
        for group in groups:
            for answers in in_batches(run, group, self.batch_size, notify, smaller):
                yield from answers

    @torch.inference_mode()
    def _pass(
        self, targets: Mapping[State, Iterable[Chosen]], states: Sequence[State]
    ) -> list[list[Answer]]:
        logits = self._logits(states).float()
        shares = probabilities(logits, self.labels).cpu()
        ranked = both_sides(logits).cpu()
        return [
            [_answer(target, *rows) for target in targets[state]]
            for state, *rows in zip(states, shares, ranked, strict=True)
        ]

    def _logits(self, states: Sequence[State]) -> Tensor:
        """(b, K), of states that leave as many tokens."""
        if tokens_left(states[0]) is None:
            return forward(self.model, self._shown(states))
        images = torch.stack([self.images[state.image] for state in states])
        with only_tokens(self.model, self._kept(states).to(images.device)):
            return forward(self.model, images)

    def _kept(self, states: Sequence[State]) -> Tensor:
        """(b, k): the patches whose tokens are left."""
        if not self._drops:
            check_drops_tokens(self.model)  # says why
        for grid in {state.grid for state in states} - {ALL_OF_IT, self._token_grid}:
            raise RequestError(
                "tokens are left out by maps of {}x{} patches, the model's own, not of {}x{}: hide "
                "patches by a fill, mean or blur".format(*self._token_grid, *grid)
            )
        shown = [np.frombuffer(state.shown, dtype=bool) for state in states]
        return torch.from_numpy(np.stack([np.flatnonzero(each) for each in shown]))

    @cached_property
    def _drops(self) -> bool:
        return drops_tokens(self.model)

    @cached_property
    def _token_grid(self) -> tuple[int, int]:
        return token_layout(self.model, *self.images.shape[2:]).grid

    def _shown(self, states: Sequence[State]) -> Tensor:
        """(b, 3, H, W): the images in these states."""
        images = torch.stack([self.images[state.image] for state in states])
        empty = torch.stack([self._emptied(state.fill)[state.image] for state in states])
        visible = torch.empty(
            (len(states), 1, *images.shape[2:]), dtype=torch.bool, device=images.device
        )
        for grid in {state.grid for state in states}:
            of_grid = [place for place, state in enumerate(states) if state.grid == grid]
            bits = np.frombuffer(b"".join(states[place].shown for place in of_grid), dtype=bool)
            bits = torch.from_numpy(bits.reshape(len(of_grid), -1).copy()).to(images.device)
            visible[of_grid, 0] = bits[:, self._patches_of(grid)]
        return torch.where(visible, images, empty)

    def _emptied(self, fill: str) -> Tensor:
        """(B, 3, H, W): the images with every patch hidden."""
        if fill not in self._empty:
            make = torch.zeros_like if fill == "mean" else blurred
            self._empty[fill] = make(self.images)
        return self._empty[fill]

    def _patches_of(self, grid: tuple[int, int]) -> Tensor:
        if grid not in self._patches:
            found = patches_of_pixels(grid, tuple(self.images.shape[2:]))
            self._patches[grid] = found.to(self.images.device)
        return self._patches[grid]


def _answer(target: Chosen, shares: Tensor, ranked: Tensor) -> Answer:
    """A target's answer, from the probabilities (K,) of one state and what they are ranked by."""
    own, *_ = among = indices_of(target)
    probability = shares[own]
    if isinstance(target, Target):
        probability = probability / shares[list(among)].sum()
        rivals = ranked.new_full(ranked.shape, -torch.inf)
        rivals[list(among)] = ranked[list(among)]
        ranked = rivals
    return Answer(float(probability), int(ranked.argmax()) == own)


def blurred(images: Tensor) -> Tensor:
    """(B, C, H, W) under a Gaussian of BLUR times the shorter side; edges are mirrored."""
    shorter = min(images.shape[2:])
    sigma = BLUR * shorter
    side = 2 * min(math.ceil(3 * sigma), shorter - 1) + 1  # of the kernel
    # down, then across: torchvision would convolve with a square, at over 20 times the cost
    down = gaussian_blur(images, [1, side], [sigma, sigma])
    return gaussian_blur(down, [side, 1], [sigma, sigma])
