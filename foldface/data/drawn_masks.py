"""Draw masks of other shapes, colours and patterns over the masks of training photos (data.draw_masks).

The photos of a competition show few kinds of masks, and a network learns these: others it takes for bare faces. A mask
that is drawn over the photo's own leaves the class as it is: over one that is worn right from the bridge of the nose to
the chin, over one that is worn wrong from below the nose. Measured: docs/log.md, "Masks of another kind".
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from foldface.runtime import is_main_process
from foldface.settings import Config

HEAD, WORN, WRONG = "mask", "wear", "incorrect"  # the head and its classes that have a mask
SKIN = ((224, 172, 140), (198, 134, 98), (240, 200, 175), (150, 100, 75))  # RGB


@dataclass(frozen=True)
class Face:
    """Where a face lies in a crop, as shares of the crop's side: the height of the eyes and of the mouth, and the
    distance between the eyes."""

    eyes: float
    mouth: float
    distance: float

    @classmethod
    def of_crop(cls, margin: float, align: bool | str) -> "Face":
        """crop.margin and crop.align -> where faces lie in such crops."""
        eyes, mouth, distance = {"dlib": (0.22, 0.8, 0.53), "arcface": (0.46, 0.82, 0.315)}.get(
            align, (0.395, 0.758, 0.33)
        )
        whole = 1 + 2 * margin
        return cls((eyes + margin) / whole, (mouth + margin) / whole, distance / whole)


class MaskDrawer:
    """Draws masks over the masks of some rows: `kind` (n,) str is each row's class of the head mask."""

    def __init__(self, kind: np.ndarray, probability: float, face: Face) -> None:
        self.kind, self.probability, self.face = kind, probability, face

    def __call__(self, image: np.ndarray, index: int, seed: int) -> np.ndarray:
        """The photo of a row, (s, s, 3) uint8 RGB, with another mask or as it is. The seed alone decides."""
        rng = np.random.default_rng((seed, 1))
        if self.kind[index] not in (WORN, WRONG) or rng.random() >= self.probability:
            return image
        return draw(image, self.kind[index] == WORN, self.face, rng)


def drawer(config: Config, rows: pd.DataFrame, crops: dict) -> MaskDrawer | None:
    """The MaskDrawer of training rows (label), None where data.draw_masks is 0. crops: crop.json's content, {} = none.

    None, too, with a warning, for a task without masks, and for whole photos.
    """
    probability, task = config.data.draw_masks, config.predicted
    if not probability:
        return None
    heads = () if task.numeric or task.multilabel else task.answered
    classes = {head.name: head.classes for head in heads}.get(HEAD, ())
    why = "" if crops else "whole photos don't say where a face is"
    if not {WORN, WRONG} <= set(classes):
        why = f"the task has no head {HEAD} with classes {WORN} and {WRONG}"
    if why:
        if is_main_process():
            print(f"warning: data.draw_masks {probability:g}: {why}: no masks are drawn", file=sys.stderr)
        return None
    kind = np.array(classes)[task.decode(rows["label"].to_numpy(int))[HEAD]]  # pseudo rows have no other
    return MaskDrawer(kind, probability, Face.of_crop(crops["margin"], crops["align"]))


def draw(image: np.ndarray, worn: bool, face: Face, rng: np.random.Generator) -> np.ndarray:
    """A face crop, (s, s, 3) uint8 RGB, with a mask drawn on it -> a new (s, s, 3) uint8."""
    mask = Mask(image.shape[0], worn, face, rng)
    light = np.float32(np.clip(image.mean() / 130, 0.5, 1.15) * rng.uniform(0.8, 1.1))
    base, found = colour(rng), image.copy()
    paint = mask.shaded(mask.painted(base, rng), rng)
    if rng.random() < 0.15:
        paint = mask.with_valve(paint, rng)
    inside = mask.filled()
    shadow = blurred(inside, 4 * mask.pixel)
    alpha = blurred(inside, rng.uniform(0.3, 1.2) * mask.pixel)
    under = image[mask.window] * (1 - np.float32(rng.uniform(0, 0.35)) * shadow)
    found[mask.window] = np.clip(under + (paint * light - under) * alpha, 0, 255)
    if rng.random() < 0.6:
        mask.draw_straps(found, np.clip((colour(rng) if rng.random() < 0.3 else base) * light, 0, 255), rng)
    return found


class Mask:
    """A mask's place on a face crop of `side` pixels. Its own coordinates are the face's: x in distances between the
    eyes, from the middle of the face; y from the eyes (0) to the mouth (1)."""

    def __init__(self, side, worn, face, rng):
        self.side, self.worn, self.pixel = side, worn, side / 224
        self.width, self.height = face.distance * rng.normal(1, 0.06), (face.mouth - face.eyes) * rng.normal(1, 0.05)
        self.centre = np.array([0.5, face.eyes]) + rng.normal(0, 0.015, 2)
        self.tilt, self.turn = rng.normal(0, 0.06), rng.normal(0, 0.15)  # radians; how far the head is turned
        draw = rng.uniform
        if worn:
            self.half, self.ear, self.top, self.chin = (
                draw(0.95, 1.2),
                draw(0.35, 0.75),
                draw(0.2, 0.45),
                draw(1.6, 1.95),
            )
        else:
            self.half, self.ear, self.top, self.chin = (
                draw(0.9, 1.15),
                draw(0.7, 1.0),
                draw(0.72, 0.92),
                draw(1.7, 2.05),
            )
        jaw, cheek = (self.half * draw(0.55, 0.9), self.chin * draw(0.72, 0.95)), self.half * draw(0.3, 0.6)
        right = [
            (cheek, self.ear + (self.top - self.ear) * draw(0.35, 0.9)),
            (self.half, self.ear),
            (self.half * draw(0.93, 1.0), (self.ear + jaw[1]) / 2),
            jaw,
            (jaw[0] / 2, self.chin * draw(0.95, 1.0)),
        ]
        left = [(-x, y) for x, y in reversed(right)]
        self.outline = self.place(smooth([(0, self.top), *right, (0, self.chin), *left]))
        reach = 12 * self.pixel + 1  # of the shadow
        begin = np.clip(np.floor(self.outline.min(0) - reach), 0, side - 1).astype(int)
        end = np.clip(np.ceil(self.outline.max(0) + reach), begin + 1, side).astype(int)
        self.begin, self.shape = begin, (end - begin)[::-1]
        self.window = slice(begin[1], end[1]), slice(begin[0], end[0])  # of the photo: all but the straps lies in it

    def filled(self) -> np.ndarray:
        """(h, w) uint8 of the window, 255 inside of the outline."""
        empty = np.zeros(self.shape, np.uint8)
        return cv2.fillPoly(empty, [fixed(self.outline - self.begin)], 255, cv2.LINE_AA, 4)

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """x (1, w) and y (h, 1) of the window's pixels, float32, as shares of the photo's side."""
        x, y = (np.arange(n, dtype=np.float32) + first for n, first in zip(self.shape[::-1], self.begin, strict=True))
        return x[None] / self.side, y[:, None] / self.side

    def painted(self, base, rng) -> np.ndarray:
        """(h, w, 3) float32 of one colour or, for two in five masks, with a pattern of a second one."""
        if rng.random() >= 0.4:
            return base[None, None]
        share = self.pattern(rng)[..., None] * np.float32(rng.uniform(0.3, 1))
        return base + (colour(rng) - base) * share

    def pattern(self, rng) -> np.ndarray:
        """(h, w) bool: stripes, checks, dots or, in half of the cases, blots."""
        x, y = self.grid()
        angle, waves = rng.uniform(0, math.pi), 2 * math.pi * rng.uniform(8, 40)
        sin, cos = waves * math.sin(angle), waves * math.cos(angle)
        kind = rng.integers(6)
        if kind > 2:
            blots = int(rng.integers(3, 16))
            return enlarged(rng.random((blots, blots)), self.shape) > rng.uniform(0.4, 0.7)
        along = np.sin(x * cos + y * sin)
        if kind == 0:
            return along > rng.uniform(-0.5, 0.7)
        across = np.sin(y * cos - x * sin)
        return (along > 0.2) ^ (across > 0.2) if kind == 1 else along * across > 0.5

    def place(self, points: Sequence) -> np.ndarray:
        """The mask's coordinates (n, 2) -> pixels (n, 2): the side that is turned away is narrower."""
        x, y = np.asarray(points, float).T
        away = np.where(np.sign(x) == np.sign(self.turn), 1 - abs(self.turn), 1 + abs(self.turn) * 0.3)
        nearer = 1 - np.abs(x / self.half).clip(0, 1)
        x = (x * away + self.turn * 0.25 * nearer) * self.width
        y = y * self.height
        sin, cos = math.sin(self.tilt), math.cos(self.tilt)
        return (self.centre + np.column_stack([x * cos - y * sin, x * sin + y * cos])) * self.side

    def shaded(self, paint, rng) -> np.ndarray:
        """The mask's colours, (h, w, 3) float32, with folds, seams, a border, and light from one side."""
        x, y = self.grid()
        x, y = (x - np.float32(self.centre[0])) / self.width, (y - np.float32(self.centre[1])) / self.height
        x, y = x.astype(np.float32), y.astype(np.float32)
        round_off = np.clip(np.abs(x - self.turn * 0.3) / self.half, 0, 1.2) ** 2
        shade = 1 - rng.uniform(0, 0.35) * round_off + rng.normal(0, 0.1) * x
        kind = rng.integers(4)
        if kind == 0:  # pleats
            shade = shade + rng.uniform(0.03, 0.12) * np.sin(
                y * (2 * math.pi * rng.uniform(1.5, 4)) + rng.uniform(0, 6)
            )
        elif kind == 1:  # a seam down the middle
            middle = x - self.turn * 0.25
            shade += rng.uniform(-0.15, 0.15) * np.sign(middle) - rng.uniform(0, 0.25) * np.exp(-((middle / 0.03) ** 2))
        elif kind == 2:  # a cup with a border
            out = (x / self.half) ** 2 + ((y - (self.top + self.chin) / 2) / ((self.chin - self.top) / 2)) ** 2
            shade = shade + rng.uniform(-0.15, 0.15) * (out < rng.uniform(0.6, 0.85) ** 2)
        shade = shade + enlarged(rng.normal(0, 0.06, (4, 4)), self.shape)
        grain = rng.standard_normal(tuple(self.shape), np.float32) * np.float32(rng.uniform(0, 6))
        return paint * shade[..., None].astype(np.float32) + grain[..., None]

    def with_valve(self, paint, rng):
        place = self.place([(rng.choice([-0.4, 0, 0.4]), 1.05 if self.worn else 1.3)])[0] - self.begin
        radius = self.width * self.side * rng.uniform(0.15, 0.28)
        spot = np.zeros(self.shape, np.uint8)
        cv2.circle(spot, fixed(place).tolist(), int(radius * 16), 255, -1, cv2.LINE_AA, 4)
        return paint + (colour(rng) - paint) * (spot[..., None] * np.float32(0.9 / 255))

    def draw_straps(self, image, shade, rng):
        """Lines from the mask's sides towards the ears, drawn into the image."""
        for sign in (-1, 1):
            for begin, end in ((0, rng.uniform(-0.5, 0.1)), (0.5, rng.uniform(-0.3, 0.3))):
                if rng.random() < 0.8:
                    out = self.half + rng.uniform(0.15, 0.5)
                    points = [(sign * self.half * 0.97, self.ear + begin), (sign * out, self.ear + end)]
                    one, other = fixed(self.place(points)).tolist()
                    wide = max(1, round(self.side / 224 * rng.uniform(1, 4)))
                    cv2.line(image, one, other, shade.tolist(), wide, cv2.LINE_AA, 4)


def fixed(points) -> np.ndarray:
    """Pixels as OpenCV draws them between pixels: in sixteenths, int32."""
    return np.round(np.asarray(points) * 16).astype(np.int32)


def enlarged(values, shape) -> np.ndarray:
    return cv2.resize(values.astype(np.float32), tuple(map(int, shape[::-1])), interpolation=cv2.INTER_CUBIC)


def blurred(inside, deviation) -> np.ndarray:
    """(h, w) uint8 -> (h, w, 1) float32 from 0 to 1, softened by a normal distribution of that deviation in pixels."""
    return cv2.GaussianBlur(inside, (0, 0), deviation)[..., None] * np.float32(1 / 255)


def smooth(points, steps: int = 8) -> np.ndarray:
    """A closed curve through points: (n, 2) -> (n * steps, 2) (Catmull & Rom 1974)."""
    b = np.asarray(points, float)
    a, c, d = np.roll(b, 1, 0), np.roll(b, -1, 0), np.roll(b, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    curve = 2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    return (0.5 * curve).transpose(1, 0, 2).reshape(-1, 2)


def colour(rng) -> np.ndarray:
    """A mask's colour, RGB (3,) float32: often white or black, sometimes grey or a skin's, else any."""
    kind = rng.random()
    if kind < 0.55:
        least, most = (200, 255) if kind < 0.3 else (15, 70) if kind < 0.45 else (70, 200)
        found = rng.uniform(least, most) + rng.normal(0, 6, 3)
    elif kind < 0.65:
        found = np.array(SKIN[rng.integers(len(SKIN))]) * rng.uniform(0.7, 1.1)
    else:
        hsv = np.uint8([[[rng.integers(180), rng.integers(20, 221), rng.integers(60, 256)]]])
        found = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]
    return found.astype(np.float32)
