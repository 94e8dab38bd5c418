"""What cameras, phones, downloads and strangers make of a photo: one of each kind, from one good photo."""

import os
import struct
import zlib

import numpy as np
from PIL import Image

from foldface.data.photos import cv2

BY_KIND = {  # file name: (what it is, does the photo still show the good photo's scene?)
    "plain.jpg": ("as it should be", True),
    "grey.jpg": ("grey, one channel", True),
    "sixteen.png": ("16 bits a channel", True),
    "palette.png": ("256 colours", True),
    "cmyk.jpg": ("CMYK, as printers want it", True),
    "alpha.png": ("with transparency", True),
    "rotated.jpg": ("lies on its side, EXIF says so", True),
    "really_png.jpg": ("a PNG named .jpg", True),
    "UPPER.JPG": ("upper-case ending", True),
    "한글 사진.jpg": ("a Korean name with a space", True),
    "progressive.jpg": ("progressive JPEG", True),
    "trailing.jpg": ("bytes after the end", True),
    "motion.jpg": ("a film behind its end", True),
    "padded.jpg": ("zeros before its end", True),
    "no_end.jpg": ("without an end marker", True),
    "photo.jfif": ("ending .jfif", True),
    "photo.tif": ("TIFF", True),
    "photo.gif": ("GIF", True),
    "moving.gif": ("a moving GIF", True),
    "photo.avif": ("AVIF", True),
    "photo.jp2": ("JPEG 2000", True),
    "photo.ppm": ("PPM", True),
    "photo": ("no ending at all", True),
    "photo.bin": ("an ending that says nothing", True),
    "twelve.png": ("12 bits in a PNG of 16", True),
    "palette_alpha.png": ("256 colours, one transparent", True),
    "huge.jpg": ("12,000 x 9,000", True),
    "one.png": ("1 x 1", False),
    "strip.png": ("900 x 2", False),
    "empty.jpg": ("0 bytes", False),
    "truncated.jpg": ("half a JPEG", False),
    "truncated.png": ("half a PNG", False),
    "hole.jpg": ("a hole in its middle, its end in place", False),
    "pipe.jpg": ("a FIFO", False),
    "text.jpg": ("a text", False),
    "page.jpg": ("an HTML error page", False),
    "zeros.jpg": ("4,096 zero bytes", False),
    "header.jpg": ("a JPEG's first bytes alone", False),
    "bomb.png": ("a small PNG of 60,000 x 60,000", False),
    "folder.jpg": ("a folder", False),
    "missing.jpg": ("not there", False),
}

UNREADABLE = {  # why read_photo refuses what is no photo; all else it reads
    "empty.jpg": "empty file",
    "truncated.jpg": "truncated",
    "truncated.png": "truncated",
    "hole.jpg": "damaged (premature end of data segment)",
    "pipe.jpg": "not a regular file",
    "text.jpg": "not readable as an image",
    "page.jpg": "not readable as an image",
    "zeros.jpg": "not readable as an image",
    "header.jpg": "truncated",
    "bomb.png": "too many pixels",
    "folder.jpg": "Is a directory",
    "missing.jpg": "No such file or directory",
}

NO_FILES = ("folder.jpg", "missing.jpg", "pipe.jpg")  # what can't be sent


def write(folder, photo, kinds=tuple(BY_KIND)):
    """Write these kinds of photo into `folder`; photo: (h, w, 3) uint8 RGB. Returns the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(photo)
    jpeg = cv2.imencode(".jpg", photo[..., ::-1])[1].tobytes()
    png = cv2.imencode(".png", photo[..., ::-1])[1].tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    ways = {
        "grey.jpg": lambda path: image.convert("L").save(path),
        "sixteen.png": lambda path: cv2.imencode(".png", photo[..., ::-1].astype(np.uint16) * 257)[1].tofile(path),
        "palette.png": lambda path: image.quantize(256).save(path),
        "cmyk.jpg": lambda path: image.convert("CMYK").save(path),
        "alpha.png": lambda path: image.convert("RGBA").save(path),
        "rotated.jpg": lambda path: image.rotate(90, expand=True).save(path, exif=exif),
        "progressive.jpg": lambda path: image.save(path, progressive=True),
        "huge.jpg": lambda path: huge(photo).tofile(path),
        "really_png.jpg": lambda path: path.write_bytes(png),
        "trailing.jpg": lambda path: path.write_bytes(jpeg + b"\0" * 100),
        "motion.jpg": lambda path: path.write_bytes(jpeg + b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40),
        "padded.jpg": lambda path: path.write_bytes(jpeg[:-2] + bytes(100) + jpeg[-2:]),
        "no_end.jpg": lambda path: path.write_bytes(jpeg[:-2]),
        "photo.tif": lambda path: image.save(path),
        "photo.gif": lambda path: image.save(path),
        "moving.gif": lambda path: image.save(path, save_all=True, append_images=[Image.new("RGB", image.size)] * 2),
        "photo.avif": lambda path: image.save(path, quality=95),
        "photo.jp2": lambda path: image.save(path),
        "photo.ppm": lambda path: image.save(path),
        "twelve.png": lambda path: cv2.imencode(".png", photo[..., ::-1].astype(np.uint16) * 16)[1].tofile(path),
        "palette_alpha.png": lambda path: image.quantize(256).save(path, transparency=0),
        "hole.jpg": lambda path: path.write_bytes(jpeg[: len(jpeg) // 3] + jpeg[-20:]),
        "pipe.jpg": os.mkfifo,
        "one.png": lambda path: image.resize((1, 1)).save(path),
        "strip.png": lambda path: image.resize((900, 2)).save(path),
        "empty.jpg": lambda path: path.write_bytes(b""),
        "truncated.jpg": lambda path: path.write_bytes(jpeg[: len(jpeg) // 2]),
        "truncated.png": lambda path: path.write_bytes(png[: len(png) // 2]),
        "text.jpg": lambda path: path.write_text("not a photo"),
        "page.jpg": lambda path: path.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>"),
        "zeros.jpg": lambda path: path.write_bytes(bytes(4096)),
        "header.jpg": lambda path: path.write_bytes(jpeg[:4]),
        "bomb.png": lambda path: path.write_bytes(bomb(60_000, 60_000)),
        "folder.jpg": lambda path: path.mkdir(),
        "missing.jpg": lambda path: None,
    }
    for name in kinds:
        ways.get(name, lambda path: path.write_bytes(jpeg))(folder / name)
    return list(kinds)


def huge(photo):
    """The photo in the middle of 12,000 x 9,000 pixels, as JPEG bytes."""
    scene = np.full((9000, 12000, 3), 128, np.uint8)
    side = 8400 * photo.shape[1] // photo.shape[0]
    scene[300:8700, 6000 - side // 2 : 6000 - side // 2 + side] = cv2.resize(photo[..., ::-1], (side, 8400))
    return cv2.imencode(".jpg", scene, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]


def bomb(width, height):
    """A PNG that claims a size and holds nothing of it."""

    def part(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(bytes(1000))) + part(b"IEND", b"")
