"""Photos -> pixels: reading whatever a camera or a stranger made of a photo, and batches of them.

Photos stay uint8 up to the device they are computed on: a quarter of float32's bytes between processes.
"""

import contextlib
import io
import math
import mmap
import multiprocessing
import os
import random
import re
import signal
import struct
import sys
import threading

import numpy as np

import devices

# OpenCV reads this at import: a photo with more pixels than 12,000 x 11,000 is refused before memory is taken
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(132_000_000))
os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")  # what can't be read is said by us, with its name
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2
import simplejpeg  # like OpenCV's decoder to the pixel, and it says what OpenCV passes over in silence

from files import LIMITS, InputError, cores, refuse_special

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".jp2")
SUFFIXES += (".ppm", ".pgm")
# how files of photos begin (and HEIC, which OpenCV can't decode: it is said, not passed over)
BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*|P[1-6]\s[\s\d#]"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|....ftyp(?:avi[fs]|hei[cfmsx]|hev[cmsx]|mif1|msf1)",
    re.DOTALL,
)
HEIC = re.compile(rb"....ftyp(?:hei|hev|mif1|msf1)", re.DOTALL)
# libjpeg's warnings that mean that pixels are missing or wrong; all others (of ICC profiles, of phones that number
# their scans oddly) are of photos that are whole
DAMAGE = re.compile(r"Premature end|Corrupt JPEG data(?!: bad ICC)|Inconsistent progression")
PADDING = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
MOST_PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])
MOST_BYTES = 2**30  # of a photo's file
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PhotoError(Exception):
    """A photo that can't be read, and why."""


def read_photo(path: str | os.PathLike, side: int = 0) -> np.ndarray:
    """Read a photo as (height, width, 3) uint8 RGB, upright by its EXIF tag: `decode` of a file's bytes.

    Raises PhotoError (missing, empty, no regular file, and whatever `decode` refuses). Where memory or open files are
    used up the photo is not to blame: MemoryError or OSError.
    """
    try:
        if refuse_special(path).st_size > MOST_BYTES:
            raise PhotoError(f"a file of more than {MOST_BYTES >> 30} GB")
        data = np.fromfile(path, np.uint8)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if getattr(error, "errno", None) in LIMITS:
            raise
        raise PhotoError(getattr(error, "strerror", None) or str(error)) from None
    return decode(data, side)


def decode(data: np.ndarray, side: int = 0) -> np.ndarray:
    """Decode a photo's bytes, (n,) uint8, as (height, width, 3) uint8 RGB, upright by its EXIF tag.

    Grey, 16-bit, CMYK and alpha come out as 8-bit RGB, of moving pictures the first. 16 bits that hold 12 (no value
    reaches 4096, as cameras and scanners of 12 bits leave them) are stretched: else 16 grey levels would be left. With
    `side`, a JPEG may come out at a half, a quarter or an eighth of its size, its shorter side not below `side`
    pixels: the decoder then computes no others. A JPEG is whole if its decoder finds all of its pixels, whatever
    follows its end marker and even without one.
    Raises PhotoError (empty, truncated, damaged, no image, too many pixels); never returns half a photo.
    """
    if not data.size:
        raise PhotoError("empty file")
    head = data[:16].tobytes()
    if head[:2] == b"\xff\xd8":
        return decode_jpeg(data, side)
    if head[:4] == b"\x89PNG" and b"IEND" not in data.tobytes():  # OpenCV 4 fills the missing part and says nothing
        raise PhotoError("truncated")
    return opencv(data, cv2.IMREAD_ANYDEPTH)


def opencv(data, flag):
    """Decode with OpenCV: (n,) uint8 -> (h, w, 3) uint8 RGB. Raises PhotoError."""
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | flag)
        if image is not None and image.dtype == np.uint16:
            image = (image >> (4 if image.max() < 4096 else 8)).astype(np.uint8)
        elif image is not None and image.dtype != np.uint8:  # floating point: OpenCV's own way to 8 bits
            image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise PhotoError("too many pixels" if "PIXELS" in str(error) else "not readable as an image") from None
    if image is None:
        refuse_without_memory(data)
        heic = HEIC.match(data[:16].tobytes())
        raise PhotoError("HEIC, which can't be decoded here: save it as JPEG" if heic else "not readable as an image")
    return image


def refuse_without_memory(data):
    """Raise MemoryError if memory is too short for a photo of these bytes: OpenCV only says that it can't be read."""
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(data)) as photo:  # its header alone
            width, height = photo.size
    except MemoryError:
        raise
    except Exception:  # not even a header
        return
    np.empty((4, height, width, 3), np.uint8)  # what decoding takes, with some to spare


REDUCED = {1: 0, 2: 16, 4: 32, 8: 64}  # the bits of cv2.IMREAD_REDUCED_COLOR_2, _4 and _8 that say how far


def decode_jpeg(data, side):
    """A JPEG's part of `decode`."""
    truncated = b"\xff\xd9" not in data[-4096:].tobytes()
    if data[-2:].tobytes() != b"\xff\xd9":  # an end for those that have none; decoders stop at the first
        data = np.append(data, np.array([0xFF, 0xD9], np.uint8))
    width, height, colours, turn = jpeg_header(data)
    if width * height > MOST_PIXELS:
        raise PhotoError("too many pixels")
    times = next((times for times in (8, 4, 2) if min(width, height) >= times * side), 1) if side else 1
    how = {"colorspace": "CMYK" if colours == 4 else "RGB"}
    how |= {"min_height": -(-height // times), "min_width": -(-width // times)}
    try:
        image = simplejpeg.decode_jpeg(data, **how)
    except ValueError as error:
        if DAMAGE.search(str(error)) and not only_padded(data, str(error)):
            what = str(error).removeprefix("Corrupt JPEG data: ")
            raise PhotoError("truncated" if truncated else f"damaged ({what})") from None
        image = None
    if image is not None and colours != 4:
        return upright(image, turn)
    with contextlib.suppress(ValueError):  # whole but for a warning
        if colours != 4:
            return upright(simplejpeg.decode_jpeg(data, **how, strict=False), turn)
    try:  # CMYK, and kinds of JPEG that simplejpeg doesn't take
        return opencv(data, REDUCED[times])
    except PhotoError as error:
        raise PhotoError("truncated" if truncated else str(error)) from None


def only_padded(data, warning):
    """Do the bytes that were left over before a JPEG's end marker all have one value? Then no pixel is missing."""
    found = PADDING.search(warning)
    count = int(found[1]) if found else 0
    return 0 < count < 2**16 and re.search(rb"(.)\1{%d}\xff\xd9" % (count - 1), data.tobytes(), re.DOTALL) is not None


def jpeg_header(data):
    """What a JPEG's segments say before its pixels begin (ITU T.81, B.1 and B.2): (width, height, number of colours,
    EXIF's orientation), width and height 0 where they don't say."""
    at, turn = 2, 1
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind = int(data[at + 1])
        if kind == 0xFF:  # a filling byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4].tobytes(), "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[at + place : at + place + 2].tobytes(), "big") for place in (5, 7))
            return width, height, int(data[at + 9]) if at + 9 < len(data) else 0, turn
        if kind == 0xE1 and turn == 1 and data[at + 4 : at + 10].tobytes() == b"Exif\0\0":
            turn = exif_orientation(data[at + 10 : at + 2 + length].tobytes())
        at += 2 + length
    return 0, 0, 0, turn


def exif_orientation(tiff):
    """The tag Orientation, 1 to 8, of an EXIF block's bytes; 1 where there is none."""
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for k in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * k)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # cut off, or no EXIF
        pass
    return 1


def upright(image, turn):
    """A photo as it is stored -> as it is to be seen, by EXIF's orientation (1 to 8)."""
    if turn >= 5:
        image = cv2.transpose(image)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(turn)
    return image if flip is None else cv2.flip(image, flip)


def turned_by(path: str | os.PathLike) -> tuple[int, int, int]:
    """(EXIF's orientation 1 to 8, width, height as stored) of a photo's file, (1, 0, 0) where it doesn't say."""
    from PIL import Image

    try:
        refuse_special(path)
        with Image.open(path) as image:
            return image.getexif().get(0x0112, 1), *image.size
    except Exception:  # a damaged file fails in many ways; it is refused where it is read
        return 1, 0, 0


def turned_box(box: list[float], turn: int, width: int, height: int) -> list[float]:
    """A box x1, y1, x2, y2 in the pixels of a photo as it is stored, width x height -> in those of `upright`."""
    x1, y1, x2, y2 = box
    if turn >= 5:
        x1, y1, x2, y2, width, height = y1, x1, y2, x2, height, width
    if turn in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if turn in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return [x1, y1, x2, y2]


def cut_box(image, box):
    """The part of a photo (h, w, 3) within a box x1, y1, x2, y2 in pixels; all of it if the box is None or NaN.

    Raises PhotoError if nothing of the box lies in the photo.
    """
    if box is None or np.isnan(box[0]):
        return image
    height, width = image.shape[:2]
    x1, y1, x2, y2 = np.clip(np.round(box), 0, [width, height] * 2).astype(int)
    if x2 <= x1 or y2 <= y1:
        raise PhotoError("its box lies outside of it")
    return image[y1:y2, x1:x2]


def is_photo(path: str | os.PathLike) -> bool:
    """Is this a photo's file, by its name or, whatever its name, by its first bytes?"""
    if os.fspath(path).lower().endswith(SUFFIXES):
        return True
    try:
        refuse_special(path)
        with open(path, "rb") as file:
            return BEGINNINGS.match(file.read(16)) is not None
    except OSError:
        return False


def normalize(images, mean, std):
    """(n, h, w, 3) uint8 tensor -> (n, 3, h, w) float32 in channels_last order, as Normalize(mean, std) would."""

    mean, std = (devices.constant(tuple(values), images.device) * 255 for values in (mean, std))
    return images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)


# --------------------------------------------------------------------------------------------------- batches


def side_of(augment: str, size: int) -> int:
    """The `side` that a model's photos are decoded at: 0 where data.augment cuts out of them."""
    return 0 if augment == "diary" else size


class Photos:
    """A torch map-style dataset of photo files.

    An item's key is (index, seed): the seed alone decides its augmentation, so that neither the number of workers
    nor the place where a run was interrupted changes what is drawn.
    """

    def __init__(self, rows, augment, size, training, erasing=0.0, fit="stretch", memory_gb=0.0, flip=None):
        """rows: DataFrame with file (a path, "" = nothing to read) and, of boxes, x1, y1, x2, y2 in pixels (NaN = the
        whole photo); memory_gb: for photos as augment.shape leaves them, so that they are decoded once, not every
        epoch; the rest as in augment.shape and augment.variation."""
        import augment as presets

        self.files = rows["file"].to_numpy(str)
        self.boxes = rows[["x1", "y1", "x2", "y2"]].to_numpy(float) if "x1" in rows else None
        self.size = size
        self.side = 0 if self.boxes is not None else side_of(augment, size)  # what is cut out wants all pixels
        self.shape = presets.shape(augment, size, fit)
        self.vary = presets.variation(augment, erasing, flip) if training else None
        self.kept = self.there = np.zeros(0, np.uint8)
        count = min(len(rows), int(memory_gb * 1e9 / (3 * size * size))) if shared_by_fork() else 0
        try:
            if count:  # pages that all workers share; they are taken as they are written to
                kept = np.frombuffer(mmap.mmap(-1, count * 3 * size * size), np.uint8).reshape(count, size, size, 3)
                self.kept, self.there = kept, np.frombuffer(mmap.mmap(-1, count), np.uint8)
        except OSError as error:
            said = f"data.memory_gb: {count} photos don't fit into memory ({error.strerror})"
            print(f"warning: {said}: they are decoded in each epoch", file=sys.stderr)

    def read(self, index):
        """A photo as augment.shape leaves it, (size, size, 3) uint8, decoded or remembered. Raises PhotoError."""
        if index < len(self.there) and self.there[index]:
            return self.kept[index]
        photo = read_photo(self.files[index], self.side)
        found = self.shape(image=cut_box(photo, None if self.boxes is None else self.boxes[index]))["image"]
        if index < len(self.there):
            self.kept[index] = found
            self.there[index] = 1  # after the pixels: another worker may look
        return found

    def __getitem__(self, key):
        """(index, (size, size, 3) uint8, "" or why the photo could not be read, its pixels then being zeros)."""
        index, seed = key
        try:
            image = self.read(index)
        except PhotoError as error:
            return index, np.zeros((self.size, self.size, 3), np.uint8), str(error)
        if self.vary is not None:
            # one source for all steps: set_random_seed gives each its own of the same seed, so that they draw alike
            self.vary.set_random_state(np.random.default_rng(seed), random.Random(seed))
            image = self.vary(image=image.copy())["image"]
        return index, image, ""


def shared_by_fork():
    """Do a loader's workers inherit this process's memory? (Not on Windows and macOS.)"""
    return multiprocessing.get_start_method() == "fork"


class Batches:
    """Batches of (index, seed) keys for one epoch: shuffled by (seed, epoch) in training, else in order.

    With `chance` (count,), an epoch is as many draws with replacement, each photo with its chance. Of `share` (k, n),
    process k of n is given every n-th photo of each batch, from its k-th on.
    """

    def __init__(self, count, batch_size, shuffle=False, seed=0, share=(0, 1), chance=None):
        self.count, self.shuffle, self.seed, self.share, self.chance = count, shuffle, seed, share, chance
        self.epoch, self.start = 0, 0  # start: batches of this epoch that a resumed run has already done
        ends = [*range(batch_size, count, batch_size), count]
        if shuffle and len(ends) > 1 and ends[-1] - ends[-2] < 2 * share[1]:
            del ends[-2]  # of a single photo batch norm can learn nothing: so few join the batch before
        self.spans = list(zip([0, *ends], ends, strict=False))

    def __len__(self):
        return len(self.spans)

    @property
    def most(self):
        """Photos in the largest share of a batch."""
        return max((len(range(start + self.share[0], end, self.share[1])) for start, end in self.spans), default=0)

    def size(self, step):
        """Photos in a batch of the epoch, all processes together."""
        start, end = self.spans[step]
        return end - start

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.count) if self.shuffle else np.arange(self.count)
        if self.chance is not None:
            order = rng.choice(self.count, self.count, p=self.chance)
        seeds, (first, every) = rng.integers(2**31, size=self.count), self.share
        for start, end in self.spans[self.start :]:
            part = slice(start + first, end, every)
            keys = list(zip(order[part].tolist(), seeds[part].tolist(), strict=True))
            if keys:
                yield keys


def loader(photos, batches, workers):
    """A Feed of photos (a dataset of Photos) in such Batches; workers None: one a core, eight at most. Without what
    processes need to talk to each other there are none, and that is said."""
    workers = cores(most=8) if workers is None else workers
    why = no_processes() if workers else ""
    if why:
        print(f"warning: {why}: photos are read by one process, which is slower", file=sys.stderr)
    return Feed(photos, batches, 0 if why else workers)


def no_processes():
    """Why processes can't share locks here, "" if they can: a container's /dev/shm may be full or read-only."""
    try:
        multiprocessing.get_context().Lock()
    except OSError as error:
        return f"/dev/shm can't be written to ({error.strerror})"
    return ""


class WorkerLost(InputError):
    """A process that reads photos was killed."""


class Feed:
    """What a DataLoader gives of Photos: (indices (b,) int64, images (b, h, w, 3) uint8, errors [b]); its workers start
    once."""

    def __init__(self, photos, batches, workers):
        import torch

        self.dataset, self.batch_sampler, self.num_workers = photos, batches, workers
        self.ring = Ring(workers, batches.most, photos.size)
        self.pin = torch.cuda.is_available()
        self.source = torch.utils.data.DataLoader(
            photos,
            batch_sampler=batches,
            collate_fn=self.ring.put,
            num_workers=workers,
            prefetch_factor=Ring.AHEAD if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=quiet_worker,
            generator=torch.Generator(),  # its own: else each start draws from dropout's, and a resumed run differs
        )

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        """Raises WorkerLost, between two batches, if a worker was killed."""
        import torch

        try:
            batches = iter(self.source)
            # torch's own handler would raise in the middle of whatever is done when a worker is killed
            if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for indices, place, errors in batches:
                images = self.ring.take(place)
                yield torch.as_tensor(indices), images.pin_memory() if self.pin else images, errors
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
                raise
            raise WorkerLost(
                "a process that reads photos was killed, as the system does when memory runs out: the same command "
                f"goes on; --data.workers {self.num_workers // 2} takes less memory"
            ) from None


class Ring:
    """Where processes are forked: memory that a loader's workers and their owner share, in which each worker lays its
    batches in turn. A DataLoader's own way, a new file in /dev/shm for each tensor, takes as long as a small batch
    itself, and a container's 64 MB are soon full; it remains the way where processes are not forked.

    A worker has at most AHEAD batches waiting or in work; one more is being copied.
    """

    AHEAD = 2  # as in torch

    def __init__(self, workers, most, size):
        """most: photos in the largest batch."""
        self.turn, self.places = 0, None
        if workers and most and shared_by_fork():
            shape = workers, self.AHEAD + 1, most, size, size, 3
            self.places = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)

    def put(self, items):
        """List of Photos' items -> one batch (a collate_fn): indices, images or where they lie, errors."""
        import torch

        indices, images, errors = zip(*items, strict=True)
        worker = torch.utils.data.get_worker_info()
        if worker is None or self.places is None:
            return torch.tensor(indices), torch.from_numpy(np.stack(images)), list(errors)
        place = worker.id, self.turn % (self.AHEAD + 1), slice(len(images))
        np.stack(images, out=self.places[place])
        self.turn += 1
        return np.array(indices), place, list(errors)

    def take(self, place):
        """What `put` gave for images -> the images themselves; those of a place are copied: it is used again."""
        import torch

        return torch.from_numpy(self.places[place].copy()) if isinstance(place, tuple) else place


def quiet_worker(_):
    """One thread a worker: the workers themselves are the parallelism. Ctrl-C is the parent's to answer."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
