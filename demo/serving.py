"""A run that answers for single photos in memory: loaded once, warm, without a trace of what it was shown."""

import base64
import io
import threading

import numpy as np

import model
from foldface.data.loader import side_of
from foldface.data.photos import PhotoError, cv2, decode, read_photo
from foldface.files import InputError
from foldface.nn import predicting

MOST_PIXELS = 40_000_000  # of a visitor's photo; decoded it takes three bytes each
LEAST_SIDE = 8  # pixels
KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # of files that are opened at all
SHOWN = 480  # pixels of the longer side of a photo that is shown again


class Predictor:
    """Folds of a run, the face detectors that its crops were made with, and what they say of a photo."""

    def __init__(self, config, folds=()):
        """settings: of the run and the device; folds: numbers of those to ask, () = all. Raises InputError where there
        are none."""
        self.config, run = config, config.run
        paths = model.checkpoints(run)
        missing = [k for k in folds if k not in paths]
        if missing:
            raise InputError(f"--folds {missing[0]}: {run} has the folds {', '.join(map(str, paths))}")
        self.nets, abouts, self.heads = model.load_folds({k: p for k, p in paths.items() if k in (folds or paths)})
        self.abouts, self.about, self.task = abouts, next(iter(abouts.values())), self.heads.task
        self.crops, self.lock = self.about["crops"], threading.Lock()
        self.answer(np.full((64, 64, 3), 128, np.uint8))  # warm: detectors are loaded, kernels are chosen
        predicting.answer_photos(self.nets, abouts, self.heads, [np.zeros((64, 64, 3), np.uint8)], config)

    @property
    def wants_faces(self):
        return bool(self.crops)

    @property
    def side(self):
        """The `side` that the model's photos are decoded at, in training and here; 0 = whole."""
        return side_of(self.about["augment"], self.about["image_size"])

    def find_face(self, photo):
        """(crop (s, s, 3) uint8 as it is read from its file, box (x1, y1, x2, y2), faces seen), or (None, None, 0)."""
        from foldface.faces import crops, detect

        known = [name for name in self.crops["detectors"] if name in detect.DETECTORS]
        _, face, count = detect.find_faces([photo], known)[0]
        if face is None:
            return None, None, 0
        crop = crops.crop_square(photo, face, self.crops["size"], self.crops["margin"], self.crops["align"])
        return decode(crops.encoded(crop), self.side), face[:4], count

    def answer(self, photo, heat=False, reduced=None):
        """What the run makes of a photo (h, w, 3) uint8 RGB; reduced: the same, decoded at `side`, as training and
        inference.py do. A dict of

        said (a sentence), label ("" where there is no answer), probability (None for a number), heads ({name: {class:
        probability}}), number (None, or the answer), shown (the photo, its face boxed, small), heat (the map, or None).
        """
        with self.lock:  # cameras ask beside the queue
            return self.answer_alone(photo, heat, photo if reduced is None else reduced)

    def answer_alone(self, photo, heat, seen):
        """What `answer` gives."""
        box, count = None, 1
        if self.wants_faces:
            seen, box, count = self.find_face(photo)
        found = {"label": "", "probability": None, "heads": {}, "number": None, "heat": None}
        found["shown"] = boxed(photo, box)
        if seen is None:
            return found | {"said": "No face was found in this photo: nothing is answered."}
        told = predicting.answer_photos(self.nets, self.abouts, self.heads, [seen], self.config)[0]
        if self.task.numeric:
            head = self.task.answered[0]
            number = head.said(told[0])
            found |= {"number": float(told[0]), "label": number, "said": f"{number} {head.unit}".strip()}
            best = 0
        else:
            best = int(told[: self.task.size].argmax())
            share = float(told[best])
            found["heads"] = {
                name: dict(zip(self.task.head(name).classes, map(float, values[0]), strict=True))
                for name, values in self.task.by_head(told[None, : self.task.size]).items()
            }
            label = self.task.classes[best]
            found |= {"label": label, "probability": share, "said": f"{label}, {share:.0%} sure"}
        if count > 1:
            found["said"] += f". {count} faces were found: this is the one in the box, the largest near the middle"
        if heat:
            found["heat"] = self.look_at(seen, best)
        return found | {"said": found["said"] + "."}

    def look_at(self, seen, best):
        """Grad-CAM of the first fold laid over what it saw: (h, w, 3) uint8."""
        from foldface.data import augment
        from foldface.nn import gradcam

        net, about = next(iter(self.nets.values())), self.about
        photo = augment.shape(about["augment"], about["image_size"], about["fit"])(image=seen)["image"]
        known = gradcam.spatial_layers(net, about["image_size"])
        layer = known[gradcam.default_layer(net, known)]
        heat = gradcam.maps(net, self.heads, [layer], photo[None], about, None, [best])
        return gradcam.overlay(photo, heat[0, 0])


def read_visitor_photo(path, most_bytes, side=0):
    """read_photo with limits for strangers: PhotoError where the file or its pixels are too many."""
    try:
        size = path.stat().st_size
    except OSError:
        raise PhotoError("it did not arrive whole; send it again") from None
    if size > most_bytes:
        raise PhotoError(f"{size / 1e6:.0f} MB are more than the {most_bytes / 1e6:.0f} MB that are taken")
    if not size:
        raise PhotoError("empty file")
    refuse_size(*claimed_size(path))
    return read_photo(path, side)


def claimed_size(file):
    """(width, height) that a file (path, or bytes in memory) says it has, before anything is decoded.

    PhotoError where it doesn't say, or is of another kind than those that cameras and browsers make.
    """
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=KINDS) as image:
                return image.size
    except Image.DecompressionBombError:
        raise PhotoError("too many pixels") from None
    except Exception:  # a damaged file fails in many ways
        raise PhotoError("not readable as an image") from None


def refuse_size(width, height):
    """Raise PhotoError for a strip or a speck, and for more pixels than are taken from strangers."""
    if width * height > MOST_PIXELS:
        raise PhotoError(f"{width} x {height} pixels are more than the {MOST_PIXELS // 1_000_000} million taken")
    if min(width, height) < LEAST_SIDE or max(width, height) > 50 * min(width, height):
        raise PhotoError(f"{width} x {height} pixels show nothing")


def read_frame(url, most_bytes, side=0):
    """A camera's frame, as the data: address that a browser sends -> (h, w, 3) uint8, with the limits of a file.
    side: as in images.decode."""
    kind, _, content = url.partition(",")
    if not kind.startswith("data:image/") or not kind.endswith(";base64"):
        raise PhotoError("a frame comes inside its address")
    if len(content) > most_bytes * 4 / 3 + 4:
        raise PhotoError(f"more than {most_bytes / 1e6:.0f} MB")
    try:
        data = base64.b64decode(content, validate=True)
    except ValueError:
        raise PhotoError("not readable as an image") from None
    refuse_size(*claimed_size(io.BytesIO(data)))
    return decode(np.frombuffer(data, np.uint8), side)


def boxed(photo, box):
    """A small copy of a photo with a box (x1, y1, x2, y2) drawn into it, if there is one."""
    from foldface.report.html import shrink

    small = shrink(photo, SHOWN).copy()
    scale = small.shape[1] / photo.shape[1]
    if box is not None:
        x1, y1, x2, y2 = (round(float(value) * scale) for value in box)
        cv2.rectangle(small, (x1, y1), (x2, y2), (255, 200, 0), 2)
    return small
