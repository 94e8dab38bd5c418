"""Predict for single photos in memory: the run is loaded once and nothing of a photo is kept."""

import base64
import io
import threading
import warnings

import numpy as np
from PIL import Image

import model
from demo import words
from foldface.data import augment
from foldface.data.loader import side_of
from foldface.data.photos import PhotoError, cv2, decode, read_photo
from foldface.faces import crops, detect
from foldface.files import InputError
from foldface.nn import gradcam, predicting
from foldface.report.html import shrink

MAX_PIXELS = 40_000_000  # of a visitor's photo; decoded, each takes three bytes
MIN_SIDE = 8  # pixels
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # other files are not opened
SHOWN_SIDE = 480  # pixels of the longer side of a photo in an answer


class Predictor:
    """The folds of a run and the face detectors that made its crops. Call `answer` with a photo."""

    def __init__(self, config, folds=()):
        """folds: numbers of the folds to average, () = all. Raises InputError where one of them is not trained."""
        self.config, run = config, config.run
        paths = model.checkpoints(run)
        missing = [k for k in folds if k not in paths]
        if missing:
            raise InputError(f"--folds {missing[0]}: {run} has the folds {', '.join(map(str, paths))}")
        self.nets, abouts, self.heads = model.load_folds({k: p for k, p in paths.items() if k in (folds or paths)})
        self.abouts, self.about, self.task = abouts, next(iter(abouts.values())), self.heads.task
        self.crops, self.lock = self.about["crops"], threading.Lock()
        self.answer(np.full((64, 64, 3), 128, np.uint8))  # warm up: load the detectors, choose the kernels
        predicting.answer_photos(self.nets, abouts, self.heads, [np.zeros((64, 64, 3), np.uint8)], config)

    @property
    def needs_faces(self) -> bool:
        """True if the run was trained on face crops."""
        return bool(self.crops)

    @property
    def side(self) -> int:
        """The `side` of photos.decode at which the model's photos are decoded, as in training; 0 = full size."""
        return side_of(self.about["augment"], self.about["image_size"])

    def find_face(self, photo: np.ndarray):
        """The main face of a photo (h, w, 3): (crop (s, s, 3) uint8 as decoded from its JPEG, box (x1, y1, x2, y2),
        number of faces), or (None, None, 0)."""
        _, face, count = detect.find_faces([photo], self.crops["detectors"])[0]
        if face is None:
            return None, None, 0
        crop = crops.crop_square(photo, face, self.crops["size"], self.crops["margin"], self.crops["align"])
        return decode(crops.encoded(crop), self.side), face[:4], count

    def answer(self, photo: np.ndarray, heat: bool = False, reduced: np.ndarray | None = None) -> dict:
        """The run's answer for a photo (h, w, 3) uint8 RGB.

        heat: compute a Grad-CAM map too; reduced: the photo decoded at `side`, as in training and inference.py. Keys:
        said (a sentence), label ("" where there is no answer), probability (None for a number), heads ({name: {class:
        probability}}), number (None for classes), shown (a small copy with the face boxed), heat (the map, or None);
        for words.of_answer also parts ({head: class}), labels (see `of_labels`), faces (how many), ordered (heads whose
        classes have an order), and no_face where there is none.
        """
        with self.lock:  # live cameras don't wait in Gradio's queue
            return self.answer_unlocked(photo, heat, photo if reduced is None else reduced)

    def answer_unlocked(self, photo, heat, seen):
        """See `answer`."""
        box, count = None, 1
        if self.needs_faces:
            seen, box, count = self.find_face(photo)
        found = {"label": "", "probability": None, "heads": {}, "number": None, "heat": None}
        found["shown"] = draw_box(photo, box)
        if seen is None:
            return found | {"said": words.say("en", "no_face"), "no_face": True}
        ordered = [head.name for head in self.task.answered if head.kind == "cut"]
        found |= {"parts": {}, "faces": count, "ordered": ordered}
        answers = predicting.answer_photos(self.nets, self.abouts, self.heads, [seen], self.config)[0]
        if self.task.numeric:
            head = self.task.answered[0]
            number = head.describe(answers[0])
            found |= {"number": float(answers[0]), "label": number, "said": f"{number} {head.unit}".strip()}
            best = 0
        elif self.task.multilabel:
            found |= self.of_labels(answers[: self.task.size])
            best = int(answers[: self.task.size].argmax())
        else:
            best = int(answers[: self.task.size].argmax())
            share = float(answers[best])
            found["heads"] = {
                name: dict(zip(self.task.head(name).classes, map(float, values[0]), strict=True))
                for name, values in self.task.by_head(answers[None, : self.task.size]).items()
            }
            own = zip(self.task.answered, self.task.decode(best).values(), strict=True)
            found["parts"] = {head.name: head.classes[int(k)] for head, k in own}
            label = self.task.classes[best]
            found |= {"label": label, "probability": share, "said": f"{label}, {share:.0%} sure"}
        if count > 1:
            found["said"] += f". {count} faces were found: this is the one in the box, the main one by size and place"
        if heat:
            found["heat"] = self.heat_map(seen, best)
        return found | {"said": found["said"] + "."}

    def of_labels(self, probabilities: np.ndarray) -> dict:
        """What `answer` says of several labels, whose probabilities (n,) are given. probability: that of the least sure
        label, yes or no; labels: {label: its probability} of those that are answered."""
        shares = dict(zip(self.task.classes, map(float, probabilities), strict=True))
        labels = {name: share for name, share in shares.items() if share >= 0.5}
        found = {"labels": labels, "label": ", ".join(labels) or "none", "heads": {self.task.answered[0].name: shares}}
        said = words.of_labels("en", labels, shares).removesuffix(".")
        return found | {"probability": float(np.maximum(probabilities, 1 - probabilities).min()), "said": said}

    def heat_map(self, seen: np.ndarray, best: int) -> np.ndarray:
        """Grad-CAM of the first fold for class `best`, laid over its input: (h, w, 3) uint8."""
        net, about = next(iter(self.nets.values())), self.about
        photo = augment.shape(about["augment"], about["image_size"], about["fit"])(image=seen)["image"]
        known = gradcam.spatial_layers(net, about["image_size"])
        layer = known[gradcam.default_layer(net, known)]
        heat = gradcam.maps(net, self.heads, [layer], photo[None], about, None, [best])
        return gradcam.overlay(photo, heat[0, 0])


def read_visitor_photo(path, max_bytes: int, side: int = 0) -> np.ndarray:
    """photos.read_photo with limits: raises PhotoError where the file or the image is too large."""
    try:
        size = path.stat().st_size
    except OSError:
        raise PhotoError("it did not arrive completely; send it again") from None
    if size > max_bytes:
        raise PhotoError(f"{size / 1e6:.0f} MB are more than the {max_bytes / 1e6:.0f} MB that are allowed")
    if not size:
        raise PhotoError("empty file")
    refuse_size(*claimed_size(path))
    return read_photo(path, side)


def claimed_size(file) -> tuple[int, int]:
    """(width, height) in the header of a file (path or file object), before anything is decoded.

    Raises PhotoError where the header can't be read or the format is not one that cameras and browsers make.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                return image.size
    except Image.DecompressionBombError:
        raise PhotoError("too many pixels") from None
    except Exception:  # a damaged file fails in many ways
        raise PhotoError("not readable as an image") from None


def refuse_size(width: int, height: int) -> None:
    """Raise PhotoError for an image that is too narrow, too small, or has more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise PhotoError(f"{width} x {height} pixels are more than the {MAX_PIXELS // 1_000_000} million allowed")
    if min(width, height) < MIN_SIDE or max(width, height) > 50 * min(width, height):
        raise PhotoError(f"{width} x {height} pixels are too small or too narrow")


def read_frame(url: str, max_bytes: int, side: int = 0) -> np.ndarray:
    """A camera's frame, sent as a data: URL, -> (h, w, 3) uint8. Raises PhotoError, with the limits of a file.

    side: as in photos.decode.
    """
    kind, _, content = url.partition(",")
    if not kind.startswith("data:image/") or not kind.endswith(";base64"):
        raise PhotoError("a frame must be a data: URL")
    if len(content) > max_bytes * 4 / 3 + 4:
        raise PhotoError(f"more than {max_bytes / 1e6:.0f} MB")
    try:
        data = base64.b64decode(content, validate=True)
    except ValueError:
        raise PhotoError("not readable as an image") from None
    refuse_size(*claimed_size(io.BytesIO(data)))
    return decode(np.frombuffer(data, np.uint8), side)


def draw_box(photo: np.ndarray, box) -> np.ndarray:
    """A small copy of a photo with a box (x1, y1, x2, y2), if not None, drawn into it."""
    small = shrink(photo, SHOWN_SIDE).copy()
    scale = small.shape[1] / photo.shape[1]
    if box is not None:
        x1, y1, x2, y2 = (round(float(value) * scale) for value in box)
        cv2.rectangle(small, (x1, y1), (x2, y2), (255, 200, 0), 2)
    return small
