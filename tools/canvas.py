"""Drawing by curves, opacity and light on a canvas: what tools.portrait and tools.camera paint with.

A canvas holds colour, (rows, columns, 3) float32 BGR in 0..1, and slope, [x, y] of (rows, columns) float32. Curves are
(n, 2) in units; an opacity is (rows, columns) float32 in 0..1.
"""

from types import SimpleNamespace

import cv2
import numpy as np

WIDTH, HEIGHT = 384, 512  # of a photo, pixels
SHAPE = 560, 416  # of the canvas (rows, columns): larger, so that a shifted photo still has surroundings
UNIT = 38.0  # pixels in half the distance between the eyes: the unit of every length
MIDDLE = 208.0, 250.0  # pixel midway between the eyes: the origin; x to the right, y down
X = (np.arange(SHAPE[1], dtype=np.float32)[None] - MIDDLE[0]) / UNIT  # (1, columns), to be broadcast
Y = (np.arange(SHAPE[0], dtype=np.float32)[:, None] - MIDDLE[1]) / UNIT  # (rows, 1)


def smooth(*points, count: int = 40) -> np.ndarray:
    """An open curve along points with rounded corners: (count, 2)."""
    points = np.asarray(points, dtype=float)
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at, width = np.linspace(0, along[-1], count), count // 10
    curve = np.stack([np.interp(at, along, points[:, axis]) for axis in (0, 1)], 1)
    curve = np.concatenate([2 * curve[:1] - curve[width:0:-1], curve, 2 * curve[-1:] - curve[-2 : -width - 2 : -1]])
    evenly = np.full(2 * width + 1, 1 / (2 * width + 1))
    return np.stack([np.convolve(curve[:, axis], evenly, "valid") for axis in (0, 1)], 1)


def both(*points) -> list[np.ndarray]:
    """A rounded curve on the right half of the face, and its mirror image."""
    curve = smooth(*points, count=24)
    return [curve, curve * (-1, 1)]


def disc(x: float, y: float, wide: float, high: float) -> np.ndarray:
    """An ellipse around (x, y) with half axes `wide` and `high`: (40, 2)."""
    turn = np.linspace(0, 2 * np.pi, 40)
    return np.stack([x + wide * np.cos(turn), y + high * np.sin(turn)], 1)


def ink(*curves, soft: float = 0.0, width: int = 0) -> np.ndarray:
    """The opacity of curves: filled, or as lines `width` pixels wide. soft: blur of the edge in pixels."""
    # fixed point: with shift=4 OpenCV takes sixteenths of a pixel
    curves = [np.round((np.asarray(curve) * UNIT + MIDDLE) * 16).astype(np.int32) for curve in curves]
    mask = np.zeros(SHAPE, np.uint8)
    if width:
        cv2.polylines(mask, curves, False, 255, width, cv2.LINE_AA, 4)
    else:
        cv2.fillPoly(mask, curves, 255, cv2.LINE_AA, 4)
    if soft:  # only around the curves, which saves most of the time
        (x, y, wide, high), more = cv2.boundingRect(mask), int(3 * soft) + 1
        around = slice(max(y - more, 0), y + high + more), slice(max(x - more, 0), x + wide + more)
        mask[around] = cv2.GaussianBlur(mask[around], (0, 0), soft)
    return mask * np.float32(1 / 255)


def bell(x: float, y: float, wide: float, high: float) -> np.ndarray:
    """A Gaussian hill of height 1 at (x, y), and its mirror image unless x is 0: (rows, columns) float32."""
    across = np.exp(-(((X - x) / wide) ** 2)) + (np.exp(-(((X + x) / wide) ** 2)) if x else 0)
    return across * np.exp(-(((Y - y) / high) ** 2))


def clouds(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Soft noise with mean 0 and a deviation of about 1, `cells` patches high and wide: (rows, columns) float32."""
    return cv2.resize(rng.standard_normal((cells, cells), np.float32), SHAPE[::-1], interpolation=cv2.INTER_CUBIC)


def window(opacity: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns outside of which an opacity is nearly 0, so that nothing is painted there."""
    seen = opacity > 0.004
    places = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return tuple(slice(at[0], at[-1] + 1) if len(at) else slice(1) for at in places)


def shaded(colour, light: np.ndarray) -> np.ndarray:
    """A colour under uneven light, (rows, columns): (rows, columns, 3). cv2.merge is faster than broadcasting."""
    return cv2.merge([light * np.float32(part) for part in colour])


def paint(canvas: SimpleNamespace, opacity: np.ndarray, colour, slope=None) -> None:
    """Lay a colour over the canvas, and, if given, a relief: its slope in x and y."""
    at = window(opacity)
    colour = np.broadcast_to(np.asarray(colour, np.float32), (*SHAPE, 3))[at]
    canvas.colour[at] += (colour - canvas.colour[at]) * shaded((1, 1, 1), opacity[at])
    for old, new in zip(canvas.slope, slope or (), strict=False):
        old[at] += (np.broadcast_to(np.asarray(new, np.float32), SHAPE)[at] - old[at]) * opacity[at]


def darken(canvas: SimpleNamespace, opacity: np.ndarray, tint=(1, 1, 1)) -> None:
    """Take away light. tint: the share taken from blue, green and red, 0..1."""
    at = window(opacity)
    canvas.colour[at] *= 1 - shaded(tint, opacity[at])
