"""Decode photos of all formats, orientations and defects to uint8 RGB.

Photos stay uint8 until they are on the device: a quarter of float32's bytes between processes.
"""

import contextlib
import io
import math
import os
import re
import struct
from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image
import simplejpeg  # gives OpenCV's pixels, and reports damage that OpenCV ignores
from PIL import Image

from foldface.cli import LIMITS
from foldface.data.shards import SHARDS, parsed
from foldface.files import refuse_special

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".jp2")
SUFFIXES += (".ppm", ".pgm")
# the first bytes of image files (HEIC too: OpenCV can't decode it, but it must give an error, not be ignored)
BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*|P[1-6]\s[\s\d#]"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|....ftyp(?:avi[fs]|hei[cfmsx]|hev[cmsx]|mif1|msf1)",
    re.DOTALL,
)
HEIC = re.compile(rb"....ftyp(?:hei|hev|mif1|msf1)", re.DOTALL)
# libjpeg's warnings about missing or wrong pixels; its other warnings (about ICC profiles, or scan numbers that phones
# write) come with complete photos
DAMAGE = re.compile(r"Premature end|Corrupt JPEG data(?!: bad ICC)|Inconsistent progression")
PADDING = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
MAX_PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])
MAX_BYTES = 2**30  # of a photo's file


class PhotoError(Exception):
    """A photo that can't be read, and why."""


def read_photo(path: str | os.PathLike, side: int = 0) -> np.ndarray:
    """Read a photo as (height, width, 3) uint8 RGB, turned upright by its EXIF tag. path: a file, or a photo in a shard
    (shards.member); side: see `decode`.

    Raises PhotoError (missing, empty, no regular file, and what `decode` refuses); MemoryError or OSError if memory or
    open files run out, which is not the photo's fault.
    """
    try:
        packed = parsed(path)
        if packed and packed[2] <= MAX_BYTES:
            data = SHARDS.read(*packed)
        elif packed or refuse_special(path).st_size > MAX_BYTES:
            raise PhotoError(f"a file of more than {MAX_BYTES >> 30} GB")
        else:
            data = np.fromfile(path, np.uint8)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if getattr(error, "errno", None) in LIMITS:
            raise
        raise PhotoError(getattr(error, "strerror", None) or str(error)) from None
    return decode(data, side)


def decode(data: np.ndarray, side: int = 0) -> np.ndarray:
    """Decode a photo's bytes, (n,) uint8, as (height, width, 3) uint8 RGB, upright by its EXIF tag.

    Grey, 16-bit, CMYK and alpha images become 8-bit RGB; of animations, the first frame is taken. 16-bit images with
    12-bit values (all below 4096) are scaled up, or only 16 grey levels would be left. With `side`, a JPEG may be
    decoded at a half, a quarter or an eighth of its size, which is faster; its shorter side is then at least `side`
    pixels. A JPEG is complete if the decoder finds all its pixels, whatever follows its end marker.
    Raises PhotoError (empty, truncated, damaged, no image, too many pixels); never returns a part of a photo.
    """
    if not data.size:
        raise PhotoError("empty file")
    head = data[:16].tobytes()
    if head[:2] == b"\xff\xd8":
        return decode_jpeg(data, side)
    if head[:4] == b"\x89PNG" and b"IEND" not in data.tobytes():  # OpenCV 4 fills the missing part without an error
        raise PhotoError("truncated")
    return opencv(data, cv2.IMREAD_ANYDEPTH)


def opencv(data: np.ndarray, flag: int) -> np.ndarray:
    """Decode with OpenCV: (n,) uint8 -> (h, w, 3) uint8 RGB. Raises PhotoError."""
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | flag)
        if image is not None and image.dtype == np.uint16:
            image = (image >> (4 if image.max() < 4096 else 8)).astype(np.uint8)
        elif image is not None and image.dtype != np.uint8:  # floating point: OpenCV converts it to 8 bits
            image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise PhotoError("too many pixels" if "PIXELS" in str(error) else "not readable as an image") from None
    if image is None:
        refuse_without_memory(data)
        heic = HEIC.match(data[:16].tobytes())
        raise PhotoError("HEIC, which can't be decoded here: save it as JPEG" if heic else "not readable as an image")
    return image


def refuse_without_memory(data: np.ndarray) -> None:
    """Raise MemoryError if there is too little memory to decode these bytes: OpenCV returns None for that too."""
    try:
        with PIL.Image.open(io.BytesIO(data)) as photo:  # only its header
            width, height = photo.size
    except MemoryError:
        raise
    except Exception:  # not even a header
        return
    np.empty((4, height, width, 3), np.uint8)  # what decoding needs, and some more


REDUCED = {1: 0, 2: 16, 4: 32, 8: 64}  # the bits of cv2.IMREAD_REDUCED_COLOR_2, _4 and _8


def decode_jpeg(data: np.ndarray, side: int) -> np.ndarray:
    """`decode` for JPEGs: simplejpeg, or OpenCV for CMYK and for what simplejpeg can't decode."""
    truncated = b"\xff\xd9" not in data[-4096:].tobytes()
    if data[-2:].tobytes() != b"\xff\xd9":  # add an end marker; decoders stop at the first one
        data = np.append(data, np.array([0xFF, 0xD9], np.uint8))
    width, height, colours, turn = jpeg_header(data)
    if width * height > MAX_PIXELS:
        raise PhotoError("too many pixels")
    times = 1  # how many times smaller it is decoded
    if side:
        times = next((times for times in (8, 4, 2) if min(width, height) >= times * side), 1)
    how = {"colorspace": "CMYK" if colours == 4 else "RGB"}
    how |= {"min_height": math.ceil(height / times), "min_width": math.ceil(width / times)}
    try:
        image = simplejpeg.decode_jpeg(data, **how)
    except ValueError as error:
        if DAMAGE.search(str(error)) and not only_padded(data, str(error)):
            what = str(error).removeprefix("Corrupt JPEG data: ")
            raise PhotoError("truncated" if truncated else f"damaged ({what})") from None
        image = None
    if image is not None and colours != 4:
        return upright(image, turn)
    with contextlib.suppress(ValueError):  # complete despite a warning
        if colours != 4:
            return upright(simplejpeg.decode_jpeg(data, **how, strict=False), turn)
    try:  # CMYK, and JPEGs that simplejpeg can't decode
        return opencv(data, REDUCED[times])
    except PhotoError as error:
        raise PhotoError("truncated" if truncated else str(error)) from None


def only_padded(data: np.ndarray, warning: str) -> bool:
    """True if the extra bytes before a JPEG's end marker all have one value: then no pixel is missing.

    warning: of libjpeg, which says how many extra bytes there are.
    """
    found = PADDING.search(warning)
    count = int(found[1]) if found else 0
    return 0 < count < 2**16 and re.search(rb"(.)\1{%d}\xff\xd9" % (count - 1), data.tobytes(), re.DOTALL) is not None


def jpeg_header(data: np.ndarray) -> tuple[int, int, int, int]:
    """A JPEG's header (ITU T.81, B.1 and B.2): (width, height, number of colours, EXIF orientation 1 to 8); width and
    height in pixels, as stored, 0 if they are missing."""
    at = 2  # bytes
    turn = 1
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind = int(data[at + 1])
        if kind == 0xFF:  # a fill byte
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


def exif_orientation(tiff: bytes) -> int:
    """The Orientation tag, 1 to 8, in the bytes of an EXIF block; 1 if there is none."""
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


def upright(image: np.ndarray, turn: int) -> np.ndarray:
    """Turn a photo (h, w, 3) upright. turn: its EXIF orientation, 1 to 8."""
    if turn >= 5:
        image = cv2.transpose(image)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(turn)
    return image if flip is None else cv2.flip(image, flip)


def turned_by(path: str | os.PathLike) -> tuple[int, int, int]:
    """(EXIF orientation 1 to 8, width, height as stored) of a photo's file; (1, 0, 0) if it can't be read."""
    try:
        refuse_special(path)
        with Image.open(path) as image:
            return image.getexif().get(0x0112, 1), *image.size
    except Exception:  # a damaged file fails in many ways; it is refused when it is decoded
        return 1, 0, 0


def turned_box(box: list[float], turn: int, width: int, height: int) -> list[float]:
    """A box x1, y1, x2, y2 in pixels of the photo as stored (width x height) -> the same box in the upright photo.

    turn: the EXIF orientation, 1 to 8.
    """
    x1, y1, x2, y2 = box
    if turn >= 5:
        x1, y1, x2, y2, width, height = y1, x1, y2, x2, height, width
    if turn in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if turn in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return [x1, y1, x2, y2]


def cut_box(image: np.ndarray, box: Sequence[float] | None) -> np.ndarray:
    """The part of a photo (h, w, 3) in a box x1, y1, x2, y2 in pixels; the whole photo if the box is None or NaN.

    Raises PhotoError if the box is outside of the photo.
    """
    if box is None or np.isnan(box[0]):
        return image
    height, width = image.shape[:2]
    x1, y1, x2, y2 = np.clip(np.round(box), 0, [width, height] * 2).astype(int)
    if x2 <= x1 or y2 <= y1:
        raise PhotoError("its box lies outside of it")
    return image[y1:y2, x1:x2]


def is_photo(path: str | os.PathLike) -> bool:
    """True for an image file, by its name or else by its first bytes."""
    if os.fspath(path).lower().endswith(SUFFIXES):
        return True
    try:
        refuse_special(path)
        with open(path, "rb") as file:
            return BEGINNINGS.match(file.read(16)) is not None
    except OSError:
        return False
