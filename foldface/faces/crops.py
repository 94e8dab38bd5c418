"""Cut face crops: their geometry, and what a worker process does with a photo."""

import math
from pathlib import Path

import cv2
import numpy as np

from foldface.data.photos import PhotoError, read_photo
from foldface.faces import detect
from foldface.faces.manifest import CORNERS, MANIFEST_COLUMNS
from foldface.files import atomic_write
from foldface.settings import CropConfig

MAX_PIXELS = 50_000_000  # of the photos that a process holds at the same time
MAX_SIDE = 32_000  # pixels of a photo that OpenCV can warp


# ------------------------------------------------------------------------------------------------------ cropping


# Where a network's chips have the points of a face, in squares of side 1: the eyes, the nose's tip, the corners of the
# mouth, left ones first.
TEMPLATES = {
    # the eyes of dlib's mean face (get_face_chip_details, the middle of its corners); its nose point lies elsewhere
    "dlib": [(0.2273, 0.2214), (0.7529, 0.2212)],
    # ArcFace's 112 x 112 (Deng et al. 2019)
    "arcface": [(0.3419, 0.4616), (0.6565, 0.4598), (0.5002, 0.6405), (0.3710, 0.8247), (0.6315, 0.8232)],
}


def face_square(face, margin, align) -> tuple[tuple[float, float], float, float]:
    """The square of a crop in the photo: its centre (x, y), its side in pixels, and by how many degrees it is turned.

    align: False = the face's box; True = turned so that the eyes are level; a name of TEMPLATES: turned, moved and
    scaled so that the points come as near to the template's as they can (least squares; Umeyama 1991). Without points
    the box is taken.
    """
    x1, y1, x2, y2 = face[:4]
    found = np.asarray(face[5:]).reshape(-1, 2)
    found = found[~np.isnan(found).any(1)]
    if align in TEMPLATES and len(found) >= 2:
        wanted = np.array(TEMPLATES[align])[: len(found)]
        there, here = (points[:, 0] + 1j * points[:, 1] for points in (wanted, found[: len(wanted)]))
        away = there - there.mean()
        factor = (np.conj(away) * here).sum() / (abs(away) ** 2).sum()  # pixels a side of the template, and its turn
        if abs(factor) >= 2:
            centre = here.mean() + factor * (0.5 + 0.5j - there.mean())
            return (centre.real, centre.imag), abs(factor) * (1 + 2 * margin), math.degrees(np.angle(factor))
    side, centre = max(x2 - x1, y2 - y1, 2.0) * (1 + 2 * margin), ((x1 + x2) / 2, (y1 + y2) / 2)
    angle = math.degrees(math.atan2(face[8] - face[6], face[7] - face[5])) if align and len(found) >= 2 else 0.0
    return centre, side, angle


def crop_square(image: np.ndarray, face: np.ndarray, size: int, margin: float, align: bool | str) -> np.ndarray:
    """The square around a face, (size, size, 3) uint8; beyond the photo's border it is mirrored.

    image: (h, w, 3) uint8; face: as detect has it, in pixels; margin: share of the box, or of the template, on each
    side; align: see face_square.
    """
    centre, side, angle = face_square(face, margin, align)
    # shrink by averaging first, since warpAffine reads only four pixels and takes no side of 32,767 or more; then one
    # warp rotates, cuts and mirrors
    most = MAX_SIDE / max(image.shape[:2])
    shrink = min(1.0, size / side, most)
    if shrink < 0.8 or most < 1:
        narrow = min(image.shape[:2]) * shrink < 1  # OpenCV would round it to no pixel
        shape = [max(1, round(length * shrink)) for length in image.shape[1::-1]] if narrow else None
        small = cv2.resize(image, shape, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        sx, sy = small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]
        image, centre, side = small, (centre[0] * sx, centre[1] * sy), side * (sx + sy) / 2
    matrix = cv2.getRotationMatrix2D(centre, angle, size / side)
    matrix[:, 2] += size / 2 - np.array(centre)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def encoded(crop: np.ndarray) -> np.ndarray:
    """A crop (s, s, 3) uint8 RGB as JPEG (quality 95): (n,) uint8, the same bytes for the same pixels."""
    ok, data = cv2.imencode(".jpg", crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert ok
    return data


def write_crop(path, crop):
    """Write a crop as JPEG, atomically, in any process: each has its own photos."""
    with atomic_write(path, sync=False, every_rank=True) as partial:
        partial.write_bytes(encoded(crop).tobytes())


def crop_chunk(chunk: tuple[str, CropConfig, list[tuple[str, str, str]]]) -> list[dict]:
    """Crop a chunk of photos in a worker process; returns their manifest rows.

    chunk: (folder, crop settings, [(photo, crop, sha1)]). A chunk is done as a whole, so that a detector's batches, and
    the last bits of its boxes, don't depend on where a run was stopped.
    """
    folder, crop_settings, photos = chunk
    rows, waiting, pixels = [], [], 0
    for photo, crop, sha1 in photos:
        row = dict.fromkeys(MANIFEST_COLUMNS, "") | {"photo": photo, "sha1": sha1, "faces": "0"}
        rows.append(row)
        try:
            image = read_photo(photo)
        except PhotoError as error:
            row["status"] = f"unreadable: {error}"
            continue
        waiting.append((row, crop, image))
        pixels += image.shape[0] * image.shape[1]
        if pixels > MAX_PIXELS:
            crop_photos(waiting, folder, crop_settings)
            waiting, pixels = [], 0
    crop_photos(waiting, folder, crop_settings)
    return rows


def crop_photos(waiting, folder, crop):
    """Find the faces of [(manifest row, crop's path, photo)], write the crops, and complete the rows in place."""
    found = detect.find_faces([image for *_, image in waiting], crop.detectors)
    for (row, path, image), (name, face, count) in zip(waiting, found, strict=True):
        if face is None:
            row["status"] = "missed"
            continue
        write_crop(Path(folder) / path, crop_square(image, face, crop.size, crop.margin, crop.align))
        row |= zip(CORNERS, (f"{value:.1f}" for value in face[:4]), strict=True)
        row |= {"crop": path, "status": "found", "detector": name, "score": f"{face[4]:.4f}", "faces": str(count)}


def guess(job: tuple) -> list[dict]:
    """Crop a photo without a detected face: where the person's other photos have it, else the centre. -> [its row].

    job: (folder, crop settings, manifest row, crop's path, manifest rows of the person's photos with a face).
    """
    folder, crop, row, path, others = job
    try:
        image = read_photo(row["photo"])
        relative = [relative_box(other) for other in others] if "person" in crop.detectors else []
    except PhotoError as error:  # it, or another photo of the person, has changed since
        return [row | {"status": f"unreadable: {error}"}]
    height, width = image.shape[:2]
    for name in crop.detectors:
        if name == "person" and others:
            box = np.median(relative, 0) * [width, height, width, height]
        elif name == "centre":
            half = 0.25 * min(width, height)
            box = np.array([width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half])
        else:
            continue
        face = np.concatenate([box, np.full(5, np.nan)])
        write_crop(Path(folder) / path, crop_square(image, face, crop.size, crop.margin, False))
        corners = dict(zip(CORNERS, (f"{value:.1f}" for value in box), strict=True))
        return [row | corners | {"crop": path, "status": "guessed", "detector": name}]
    return [row]


def relative_box(row):
    """A manifest row's box as shares of its photo's width and height, (4,)."""
    height, width = read_photo(row["photo"]).shape[:2]
    return np.array([float(row[key]) for key in CORNERS]) / [width, height, width, height]
