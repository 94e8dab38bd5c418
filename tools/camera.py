"""Take the seven photos of an invented person: put on a mask, light the portrait, shoot it."""

from collections.abc import Iterator
from types import SimpleNamespace

import cv2
import numpy as np

from tools.canvas import HEIGHT, MIDDLE, UNIT, WIDTH, X, Y, bell, both, clouds, darken, ink, paint, shaded, smooth
from tools.portrait import portrait

STEMS = ("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal")
# BGR in 0..1
MASKS = np.float32(
    [
        [0.95, 0.95, 0.94],
        [0.95, 0.95, 0.94],
        [0.95, 0.94, 0.92],
        [0.92, 0.80, 0.58],
        [0.92, 0.82, 0.66],
        [0.90, 0.78, 0.6],
        [0.80, 0.88, 0.62],
        [0.20, 0.19, 0.18],
        [0.62, 0.36, 0.18],
        [0.92, 0.78, 0.90],
    ]
)


def put_on_mask(canvas: SimpleNamespace, p: SimpleNamespace, rng: np.random.Generator, how: str) -> SimpleNamespace:
    """A copy of the canvas with a mask: over nose, mouth and chin ("wear"), below the "nose", or below the mouth
    ("chin")."""
    new = SimpleNamespace(colour=canvas.colour.copy(), slope=[slope.copy() for slope in canvas.slope])
    top, side, bottom = {
        "wear": ((0.52, 0.80), (0.75, 1.05), (0.08, 0.30)),
        "nose": ((1.85, 2.02), (1.6, 1.9), (0.08, 0.30)),
        "chin": ((2.75, 3.0), (2.1, 2.5), (0.35, 0.6)),
    }[how]
    top, side, bottom = rng.uniform(*top), rng.uniform(*side), p.chin + rng.uniform(*bottom)
    wide, low, below = 2.02 * p.wide, 1.72 + p.jaw, max(2.45, side + 0.7)
    half = np.array(
        [
            (0, top),
            (0.5, top + 0.12),
            (wide, side),
            (wide * 0.97, side + 0.55),
            (low, below),
            (0.95, bottom - 0.16),
            (0, bottom),
        ]
    )
    edge = smooth(*half, *half[-2::-1] * (-1, 1), count=100)
    tint = colour = MASKS[rng.integers(len(MASKS))] * np.float32(rng.uniform(0.92, 1.03))
    if p.length == "short":  # longer hair covers the loops
        loops = both((wide - 0.02, side + 0.06), (2.26 * p.wide, 0.25)) + both((low, below - 0.1), (2.3 * p.wide, 0.85))
        paint(new, ink(*loops, soft=0.6, width=2) * 0.85, np.clip(tint * 0.9 + 0.08, 0, 1))
    darken(new, ink(edge, soft=5) * 0.3)
    creases, style = clouds(rng, 24) * 0.05, rng.integers(4)
    slope = [X * -0.42 + creases, (Y - 2) * -0.30 + creases]
    if how == "wear":  # the nose shows through
        slope[0] -= bell(0, 1.1, 0.34, 0.6) * X * 4
    if style < 2:  # pleats of a surgical mask
        for share in (0.3, 0.5, 0.7):
            slope[1] += np.exp(-(((Y - top - (bottom - top) * share) / 0.05) ** 2)) * 0.7
    elif style == 2:  # the seam of a cup
        slope[0] -= np.exp(-((X / 0.05) ** 2)) * np.sign(X) * 0.5
    elif rng.random() < 0.6:  # printed cloth: dots, or stripes, level or slanting
        waves = (np.sin(X * 7) * np.sin(Y * 7) - 0.15, np.sin(Y * 8 + 0 * X), np.sin((X + Y) * 8))[rng.integers(3)]
        colour = np.where(waves[..., None] > 0.2, MASKS[rng.integers(len(MASKS))], tint)
    paint(new, ink(edge, soft=0.8), colour, slope)
    darken(new, ink(edge, soft=0.7, width=2) * 0.22)
    return new


def light_up(canvas: SimpleNamespace, rng: np.random.Generator) -> np.ndarray:
    """The canvas under a lamp in front and the light of the room: (rows, columns, 3) uint8 BGR."""
    side, above = rng.uniform(-0.45, 0.45), rng.uniform(-0.6, -0.25)
    room, warmth = rng.uniform(0.40, 0.56), rng.normal(0.015, 0.02)
    across, down = canvas.slope
    facing = np.maximum((1 - across * side - down * above) / np.sqrt(1 + across * across + down * down), 0)
    gloss = np.square(facing) * (1 / (1 + side * side + above * above))
    gloss = np.square(np.square(np.square(gloss))) * rng.uniform(5, 16)
    shade = (room + (1.05 - room) * facing) * 255
    lit = cv2.multiply(canvas.colour, shaded((1 - warmth, 1, 1 + warmth), shade), dtype=cv2.CV_8U)
    lit = cv2.add(lit, cv2.cvtColor(gloss.astype(np.uint8), cv2.COLOR_GRAY2BGR))
    levels = (np.arange(256) / 255) ** rng.uniform(0.85, 1.15) * 255 * rng.uniform(0.88, 1.06)
    return cv2.LUT(lit, np.clip(levels, 0, 255).astype(np.uint8))


def shoot(canvas: SimpleNamespace, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A photo of a portrait, (512, 384, 3) uint8 BGR, and the pixels of its eyes and mouth, (3, 2), left eye first.

    The turn of the head, the mouth, scale, shift, tilt and focus are random; half of the photos are blurred, 3 of 10
    are mirrored.
    """
    turn, nod = rng.uniform(-0.22, 0.22), rng.uniform(-0.14, 0.14)
    smile, squint = rng.uniform(-0.05, 0.30), rng.uniform(-0.1, 0.35)
    image, face = light_up(canvas, rng), (slice(148, 430), slice(104, 312))  # rows and columns: no other pixel moves
    x, y = X[:, face[1]], Y[face[0]]
    near = np.exp(-((x / 1.5) ** 4)) * np.exp(-(((y - 0.9) / 2.2) ** 4))
    corners = np.exp(-((x / 1.1) ** 4)) * (np.abs(x) ** 1.5 * 1.3 - 0.35) * np.exp(-(((y - 2.3) / 0.5) ** 2))
    x, y = x + near * turn, y + near * nod + corners * smile + bell(1, 0, 0.55, 0.30)[face] * y * squint
    x, y = (x * UNIT + MIDDLE[0]).astype(np.float32), (y * UNIT + MIDDLE[1]).astype(np.float32)
    image[face] = cv2.remap(image, x, y, cv2.INTER_LINEAR)
    matrix = cv2.getRotationMatrix2D(MIDDLE, rng.uniform(-7, 7), rng.uniform(0.94, 1.22))
    matrix[:, 2] += [WIDTH / 2 - MIDDLE[0] + rng.uniform(-24, 24), 232 - MIDDLE[1] + rng.uniform(-26, 26)]
    photo = cv2.warpAffine(image, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    if rng.random() < 0.5:
        photo = cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.5, 1.2))
    spots = ((np.array([(-1, 0), (1, 0), (0, 2.3)]) - (turn, nod)) * UNIT + MIDDLE) @ matrix[:, :2].T + matrix[:, 2]
    if rng.random() < 0.3:
        photo, spots = cv2.flip(photo, 1), spots[[1, 0, 2]] * (-1, 1) + (WIDTH - 1, 0)
    grain = rng.integers(-9, 10, (HEIGHT // 2, WIDTH // 2), np.int8) * np.float32(rng.uniform(0.2, 0.8))
    grain = cv2.resize(grain, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    return cv2.add(photo, shaded((1, 1, 1), grain), dtype=cv2.CV_8U), spots


def take_photos(p: SimpleNamespace, seed: tuple[int, ...]) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """The seven photos of a person: (stem, mask class, photo, eyes and mouth) of each. seed: of the person."""
    canvas = portrait(p)
    for number, stem in enumerate(STEMS):
        rng = np.random.default_rng([*seed, number])
        mask = {"normal": 2, "incorrect_mask": 1}.get(stem, 0)  # class index of task.MASK_TASK
        how = ("wear", ("nose", "chin")[rng.integers(2)])[mask % 2]
        yield stem, mask, *shoot(canvas if mask == 2 else put_on_mask(canvas, p, rng, how), rng)
