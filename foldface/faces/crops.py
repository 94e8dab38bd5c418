"""Cut face crops: geometry, worker processes, and resuming."""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from foldface import registry
from foldface.data.photos import PhotoError, read_photo
from foldface.faces import detect
from foldface.faces.manifest import CORNERS, MANIFEST_COLUMNS, STAMP, digests, placed
from foldface.faces.review import remove_review, review
from foldface.files import InputError, atomic_write, read_csv, read_json, write_csv, write_json
from foldface.runtime import cores, end_with_parent, no_processes
from foldface.settings import CropConfig

CHUNK = 8  # photos of a job
MAX_PIXELS = 50_000_000  # of the photos that a process holds at the same time
MAX_SIDE = 32_000  # pixels of a photo that OpenCV can warp
SAVE_SECONDS = 10  # of work that a kill may lose


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
    """Write a crop as JPEG, atomically."""
    with atomic_write(path, sync=False) as partial:
        partial.write_bytes(encoded(crop).tobytes())


def crop_chunk(chunk):
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


def guess(job):
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


def distinct_paths(todo):
    """The crops' paths (n,) of a plan with sha1; photos with the same path get their sha1 in it."""
    double = todo["crop"].duplicated(keep=False)
    return todo["crop"].where(~double, todo["crop"].str.removesuffix(".jpg") + "-" + todo["sha1"].str[:12] + ".jpg")


def begin(folder, crop, retry=False):
    """Write crop.json, the settings and detectors of a crop folder. Raises InputError if it was made with others.

    With `retry` detectors may be added at the end: photos with a face stay as they are.
    """
    about = {key: getattr(crop, key) for key in ("size", "margin", "align", "detectors")}
    about["versions"] = detect.versions(crop.detectors)
    path = Path(folder) / "crop.json"
    if path.is_file():
        before = read_json(path, "remove the crop folder")
        changed = [key for key in about if before.get(key) != about[key]]
        if retry and longer(before, about):
            keep_found(folder)
        elif changed:
            what = "; ".join(f"{key} was {before.get(key)}, is {about[key]}" for key in changed)
            raise InputError(f"{folder} was filled with other settings ({what}): name another --data.crops")
    write_json(path, about)


def longer(before, about):
    """True if only detectors were added at the end."""
    old, new = (detect.of_detectors(one.get("detectors", [])) for one in (before, about))
    same = all(before.get(key) == about[key] for key in ("size", "margin", "align"))
    return same and new[: len(old)] == old and before.get("versions", {}).items() <= about["versions"].items()


def keep_found(folder):
    """Remove the rows of photos without a detected face, so that they are searched again."""
    path = Path(folder) / "manifest.csv"
    if path.is_file():
        manifest = read_csv(path, MANIFEST_COLUMNS)
        write_csv(path, manifest[manifest["status"] == "found"])


def finished(folder, todo):
    """Valid manifest rows of an earlier start: ({photo: row} of photos in todo, [rows of other photos]).

    A row is valid while its photo has the same bytes and its crop exists; a guess also while the person's other photos
    have not changed.
    """
    path = Path(folder) / "manifest.csv"
    if not path.is_file():
        return {}, []
    there, taken = set(), set(todo["crop"])
    for home, _, names in os.walk(folder):
        paths = [os.path.join(home, name) for name in names]
        there.update(os.path.relpath(path, folder) for path in paths if os.path.getsize(path))  # 0 after a power cut
    manifest = read_csv(path, MANIFEST_COLUMNS)
    at, known, rows = placed(manifest, todo), manifest.to_dict("records"), {}
    for photo, crop, sha1, k in zip(todo["photo"], todo["crop"], todo["sha1"], at, strict=True):
        row = known[k] if k >= 0 else {"sha1": None}
        if row["sha1"] == sha1 and row["crop"] in ("", crop) and (not row["crop"] or crop in there):
            rows[photo] = row | {"photo": photo}
    mine = set(at)
    others = [row for k, row in enumerate(known) if k not in mine]
    others = [row for row in others if row["crop"] not in taken and os.path.exists(row["photo"])]
    person = dict(zip(todo["photo"], todo["id"], strict=True))
    changing = {person[photo] for photo in todo["photo"] if photo not in rows}
    return {p: row for p, row in rows.items() if row["status"] == "found" or person[p] not in changing}, others


def crop_plan(todo: pd.DataFrame, folder: Path, crop: CropConfig, retry: bool = False) -> pd.DataFrame:
    """Crop the photos of a plan that are not done yet; returns the manifest as a DataFrame."""
    begin(folder, crop, retry)
    manifest, saved = Path(folder) / "manifest.csv", time.monotonic()
    before = read_csv(manifest, MANIFEST_COLUMNS) if manifest.is_file() else pd.DataFrame(columns=MANIFEST_COLUMNS)
    before = before.drop_duplicates("photo").set_index("photo")
    before = before.reindex(index=todo["photo"], columns=["sha1", *STAMP], fill_value="").to_numpy(str)
    todo = pd.concat([todo, digests(todo["photo"].tolist(), before)], axis=1)
    stamps = todo.set_index("photo")[STAMP].to_dict("index")
    todo["crop"] = distinct_paths(todo)
    rows, others = finished(folder, todo)
    parts = [todo.iloc[at : at + CHUNK] for at in range(0, len(todo), CHUNK)]
    parts = [part for part in parts if not all(photo in rows for photo in part["photo"])]
    if rows:
        print(f"{len(rows)} of {len(todo)} photos are done already")

    def save():
        kept = [rows[photo] | stamps[photo] for photo in todo["photo"] if photo in rows] + others
        write_csv(manifest, pd.DataFrame(kept, columns=[*MANIFEST_COLUMNS, *STAMP]))

    save()  # with today's paths, so that after a kill no row names a crop that another photo has overwritten
    guessing = any(name in detect.GUESSES for name in crop.detectors)
    if parts or (guessing and any(row["status"] == "missed" for row in rows.values())):
        remove_review(folder)
        chunks = [(folder, crop, list(zip(p["photo"], p["crop"], p["sha1"], strict=True))) for p in parts]
        workers = min(crop.workers or cores(), len(chunks) or 1)
        bar = tqdm(total=sum(map(len, parts)), desc="cropping", unit="photo", disable=None)

        def take(done):
            nonlocal saved
            rows.update({row["photo"]: row for row in done})
            bar.update(len(done))
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()

        try:
            with processes(workers) as pool:
                share_out(pool, crop_chunk, chunks, take)
                bar.close()
                jobs = guesses(todo, rows, folder, crop)
                bar = tqdm(total=len(jobs), desc="guessing", unit="photo", disable=None)
                share_out(pool, guess, jobs, take)
        finally:
            bar.close()
            save()
    result = read_csv(manifest, MANIFEST_COLUMNS)
    if not (Path(folder) / "review.png").is_file():
        review(folder, result, crop.detectors)
    return result


def begin_worker(plugins):
    """What a process of the pool does first: it ends with its parent, and knows the user's detectors."""
    end_with_parent()
    registry.load(plugins)


@contextlib.contextmanager
def processes(count):
    """A pool of `count` processes that end when this one ends, even by a kill.

    None, with a warning, where processes can't be started.
    """
    why = no_processes()
    if why:
        print(f"warning: {why}: photos are cropped by one process, which is slower", file=sys.stderr)
        yield None
        return
    context, files = multiprocessing.get_context("spawn"), (list(registry.PLUGINS.values()),)
    with ProcessPoolExecutor(count, mp_context=context, initializer=begin_worker, initargs=files) as pool:
        yield pool


def share_out(pool, function, jobs, take):
    """Call take(function(job)) for all jobs, in the order in which they finish. pool: None = in this process.

    Raises InputError if a process was killed. Jobs that finished before that, or before a stop, are taken too.
    """
    if pool is None:
        for job in jobs:
            take(function(job))
        return
    with interrupts_held_back():
        left = {pool.submit(function, job) for job in jobs}
    try:
        for future in as_completed(set(left)):
            left.discard(future)
            take(future.result())
    except BaseException as error:
        pool.shutdown(cancel_futures=True)  # jobs that run are finished
        for future in left:
            if future.done() and not future.cancelled() and not future.exception():
                take(future.result())
        if isinstance(error, BrokenProcessPool):
            raise InputError(
                "a process that crops photos was killed, as the system does when memory runs out: the same command "
                "goes on; fewer --crop.workers take less memory"
            ) from None
        raise


@contextlib.contextmanager
def interrupts_held_back():
    """Block Ctrl-C while the block runs; processes that are started in it never receive it, only the parent does."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def guesses(todo, rows, folder, crop):
    """Jobs of `guess`: photos without a detected face, with the rows of the person's photos that have one."""
    found, jobs = {}, []
    for photo, person in zip(todo["photo"], todo["id"], strict=True):
        if rows[photo]["status"] == "found":
            found.setdefault(person, []).append(rows[photo])
    for photo, person, path in zip(todo["photo"], todo["id"], todo["crop"], strict=True):
        if rows[photo]["status"] == "missed":
            jobs.append((folder, crop, rows[photo], path, found.get(person, [])))
    return jobs
