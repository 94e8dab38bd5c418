"""The colours around a face: clothes, hair and background, as numbers that are alike for photos taken in one place."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from foldface.data.photos import PhotoError, read_photo
from foldface.faces.manifest import CORNERS
from foldface.runtime import cores

CELLS = 8  # of the grid around the face, a side
PIXELS = 6  # a side of a cell
REACH = 3.0  # side of the grid, in sides of the face
BELOW = 0.3  # sides of the face by which the grid's centre is below the face's: clothes are there
BINS = 8  # of each colour in the histograms


def around_faces(photos: list[str], boxes: np.ndarray) -> np.ndarray:
    """`around_face` of photos, (n, d) float; a row of NaN for a photo that can't be read. boxes: (n, 4) pixels, NaN
    where no face is known."""
    with ThreadPoolExecutor(cores()) as pool:  # OpenCV decodes outside Python's lock
        work = pool.map(one_photo, photos, boxes)
        found = list(tqdm(work, "background", len(photos), unit="photo", disable=None))
    lost = np.full(len(around_face(np.zeros((8, 8, 3), np.uint8), np.full(4, np.nan))), np.nan)
    return np.stack([lost if one is None else one for one in found])


def one_photo(photo, box):
    try:
        return around_face(read_photo(photo), box)
    except PhotoError:
        return None


def around_face(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Colours of a photo (h, w, 3) uint8 RGB outside of a box (4,) of the face, NaN = the middle of the photo: (d,).

    A grid of colours that lies on the face, less their mean, and histograms. A mirrored photo has the same numbers;
    a brighter one nearly the same.
    """
    height, width = image.shape[:2]
    box = np.clip(box, 0, [width, height] * 2)
    if not (np.isfinite(box).all() and (box[2:] - box[:2] >= 1).all()):
        box = np.array([0.3, 0.25, 0.7, 0.65]) * ([width, height] * 2)
    side = max(np.sqrt(np.prod(box[2:] - box[:2])), 2.0)
    centre = (box[:2] + box[2:]) / 2
    size = CELLS * PIXELS
    scale = size / (REACH * side)
    shrink = min(1.0, 2 * scale)  # averaging first: warpAffine reads four pixels
    shape = [max(1, round(length * shrink)) for length in (width, height)]
    small = cv2.resize(image, shape, interpolation=cv2.INTER_AREA) if shrink < 1 else image
    by = scale * width / small.shape[1], scale * height / small.shape[0]
    shift = size / 2 - scale * (centre + [0, BELOW * side])
    matrix = np.array([[by[0], 0, shift[0]], [0, by[1], shift[1]]])
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    grid = cv2.warpAffine(lab, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    ends = scale * box.reshape(2, 2) + shift
    ends = np.clip([np.floor(ends[0]) - 1, np.ceil(ends[1]) + 1], 0, size).astype(int)  # one more: pixels are mixed
    outside = np.ones((size, size), np.float32)
    outside[ends[0, 1] : ends[1, 1], ends[0, 0] : ends[1, 0]] = 0
    if not outside.any():
        outside[:] = 1
    colours = grid[outside > 0]
    mean = colours.mean(0)
    cells = by_cell((grid - mean) * outside[..., None]).mean((1, 3))
    other = cells[:, ::-1]
    even, odd = (cells + other)[:, : CELLS // 2] / 2, np.abs(cells - other)[:, : CELLS // 2] / 2
    return np.concatenate([even.ravel(), odd.ravel(), histograms(colours, mean)])


def by_cell(grid):
    return grid.reshape(CELLS, PIXELS, CELLS, PIXELS, 3)


def histograms(colours, mean):
    """Square roots of the shares of colours (n, 3) Lab in bins: of lightness less its mean, and of a and b together."""
    light = np.histogram(np.clip(colours[:, 0] - mean[0], -49, 49), BINS, (-50, 50))[0]
    hue = np.histogram2d(*np.clip(colours[:, 1:], -39, 39).T, BINS, ((-40, 40),) * 2)[0]
    return 10 * np.sqrt(np.concatenate([light, hue.ravel()]) / len(colours))


def boxes_of(manifest: pd.DataFrame, at: np.ndarray) -> np.ndarray:
    """The faces' boxes of photos, (n, 4) pixels, NaN where none was found. at: (n,) their rows in a manifest, -1 =
    none."""
    corners = manifest[CORNERS].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    corners = np.concatenate([corners, np.full((1, 4), np.nan)])
    return corners[at]
