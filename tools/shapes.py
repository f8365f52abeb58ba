"""The world that the embedded model knows: one flat shape on a flat background.

Every prompt reads "a {size} {colour} {shape} on a {background} background". The same three
functions draw the training pictures, the intended masks and the colours that a generated picture
is judged by, so that training, evaluation and tests can never disagree about what is right.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt

SIDE = 128
"""Side of a picture in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (244, 140, 30),
    "yellow": (250, 220, 60),
    "green": (50, 160, 70),
    "blue": (40, 80, 200),
    "purple": (130, 50, 160),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 22.0, "large": 42.0}
"""Radius of the circle, in pixels; the other shapes are scaled to about the same area."""

HELD_OUT = frozenset(
    {
        ("red", "blue"),
        ("yellow", "purple"),
        ("white", "green"),
        ("black", "orange"),
        ("green", "white"),
        ("blue", "yellow"),
    }
)
"""Pairs (shape colour, background colour) that training never sees: a tenth of the 56."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """What one prompt asks for."""

    size: str
    colour: str
    shape: str
    background: str

    @property
    def prompt(self) -> str:
        """The sentence that the model is trained on."""
        return f"a {self.size} {self.colour} {self.shape} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether training leaves out this pair of colours."""
        return (self.colour, self.background) in HELD_OUT


SCENES = tuple(
    Scene(size, colour, shape, background)
    for size, colour, shape, background in itertools.product(SIZES, COLOURS, SHAPES, COLOURS)
    if colour != background
)


def coverage(
    shape: str, radius: float, centre: tuple[float, float] = (0.0, 0.0), side: int = SIDE
) -> npt.NDArray[np.float32]:
    """How much of each pixel the shape covers, from 0 to 1, as ``(side, side)`` float32.

    The edge is antialiased over one pixel of the signed distance. ``centre`` is the offset
    ``(x, y)`` in pixels from the middle of the picture.
    """
    axis = np.arange(side, dtype=np.float32) + 0.5 - side / 2
    x, y = axis[None, :] - centre[0], axis[:, None] - centre[1]
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.89 * radius
    elif shape == "triangle":
        inradius = 0.72 * radius  # equilateral, point up; its bounding box is centred
        y = y - 0.5 * inradius
        slope = np.abs(x) * np.float32(np.sqrt(3) / 2) - y * np.float32(0.5)
        distance = np.maximum(slope, y) - inradius
    else:
        raise ValueError(f"unknown shape {shape!r}; the shapes are {', '.join(SHAPES)}")
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)


def paint(
    mask: npt.NDArray[np.float32], colour: npt.ArrayLike, background: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Blend two RGB colours (0 to 255) by a mask into a ``(side, side, 3)`` float32 picture."""
    fore = np.asarray(colour, np.float32)
    back = np.asarray(background, np.float32)
    return mask[..., None] * fore + (1 - mask[..., None]) * back


def intended_mask(scene: Scene) -> npt.NDArray[np.bool_]:
    """The pixels, ``(SIDE, SIDE)``, that the shape of ``scene`` should cover."""
    return coverage(scene.shape, SIZES[scene.size]) > 0.5


def draw(scene: Scene, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A training picture, ``(SIDE, SIDE, 3)`` from 0 to 255: moved by up to 2 px, tinted by 6."""
    mask = coverage(scene.shape, SIZES[scene.size], tuple(rng.uniform(-2, 2, 2)))
    tints = rng.uniform(-6, 6, (2, 3))
    return np.clip(
        paint(
            mask,
            np.asarray(COLOURS[scene.colour]) + tints[0],
            np.asarray(COLOURS[scene.background]) + tints[1],
        ),
        0,
        255,
    )


def nearest_colour(rgb: npt.ArrayLike) -> str:
    """The name of the palette's colour that is nearest to ``rgb`` (0 to 255, Euclidean)."""
    value = np.asarray(rgb, np.float32)
    return min(COLOURS, key=lambda name: float(np.sum((value - COLOURS[name]) ** 2)))


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """How well one picture shows its scene."""

    iou: float
    colour: str
    background: str

    def right(self, scene: Scene, *, iou: float = 0.8) -> bool:
        """Whether both colours are the named ones and the shape overlaps its mask enough."""
        return self.iou >= iou and (self.colour, self.background) == (
            scene.colour,
            scene.background,
        )


def judge(picture: npt.NDArray[np.uint8], scene: Scene) -> Verdict:
    """Measure a ``(SIDE, SIDE, 3)`` uint8 picture against what ``scene`` asks for.

    A pixel belongs to the drawn shape if it is nearer to the named shape colour than to the named
    background; the colours are the means inside and outside the intended mask.
    """
    rgb = picture.astype(np.float32)
    to_shape = np.sum((rgb - COLOURS[scene.colour]) ** 2, axis=-1)
    to_background = np.sum((rgb - COLOURS[scene.background]) ** 2, axis=-1)
    drawn, wanted = to_shape < to_background, intended_mask(scene)
    return Verdict(
        iou=float(np.sum(drawn & wanted) / np.sum(drawn | wanted)),
        colour=nearest_colour(rgb[wanted].mean(axis=0)),
        background=nearest_colour(rgb[~wanted].mean(axis=0)),
    )
