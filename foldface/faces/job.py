"""Fill a crop folder: what is left to do, worker processes, several processes of one command, and resuming."""

import contextlib
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from foldface import registry
from foldface.faces import detect
from foldface.faces.crops import crop_chunk, guess
from foldface.faces.manifest import MANIFEST_COLUMNS, STAMP, digests, placed, stamp_of
from foldface.faces.manifest_log import ManifestLog, merged
from foldface.faces.review import remove_review, review
from foldface.files import InputError, read_csv, read_json, write_csv, write_json
from foldface.ranks import ALONE, Ranks
from foldface.runtime import cores, end_with_parent, no_processes
from foldface.settings import CropConfig

CHUNK = 8  # photos of a job


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
    manifest = merged(folder)
    if len(manifest):
        write_csv(Path(folder) / "manifest.csv", manifest[manifest["status"] == "found"])
        ManifestLog.forget(folder)


def with_digests(todo, manifest, ranks):
    """The plan with sha1, size and mtime of each photo now; the processes share those that must be read."""
    before = manifest.set_index("photo").reindex(index=todo["photo"], columns=["sha1", *STAMP], fill_value="")
    before, photos = ranks.share(before.to_numpy(str)), ranks.share(todo["photo"].tolist())
    found = digests(photos, before)
    columns = found.columns
    return pd.concat([todo, pd.DataFrame(ranks.gather(found.to_numpy().tolist()), columns=columns)], axis=1)


def finished(folder, todo, manifest, ranks=ALONE):
    """Valid rows of an earlier start's manifest: ({photo: row} of photos in todo, [rows of other photos]).

    A row is valid while its photo has the same bytes and its crop exists; a guess also while the person's other photos
    have not changed.
    """
    at, known, rows = placed(manifest, todo), manifest.to_dict("records"), {}
    crops = [known[k]["crop"] if k >= 0 else "" for k in at]
    with ThreadPoolExecutor(cores(most=8)) as pool:
        own = pool.map(lambda crop: stamp_of(Path(folder) / crop)[0] if crop else "", ranks.share(crops))
        sizes = ranks.gather(list(own))  # 0 after a power cut
    for photo, crop, sha1, k, size in zip(todo["photo"], todo["crop"], todo["sha1"], at, sizes, strict=True):
        row = known[k] if k >= 0 else {"sha1": None}
        if row["sha1"] == sha1 and row["crop"] in ("", crop) and (not row["crop"] or size not in ("", "0")):
            rows[photo] = row | {"photo": photo}
    mine, taken = set(at), set(todo["crop"])
    others = [row for k, row in enumerate(known) if k not in mine]
    others = [row for row in others if row["crop"] not in taken and os.path.exists(row["photo"])]
    person = dict(zip(todo["photo"], todo["id"], strict=True))
    changing = {person[photo] for photo in todo["photo"] if photo not in rows}
    return {p: row for p, row in rows.items() if row["status"] == "found" or person[p] not in changing}, others


def crop_plan(
    todo: pd.DataFrame, folder: Path, crop: CropConfig, retry: bool = False, ranks: Ranks = ALONE
) -> pd.DataFrame:
    """Crop the photos of a plan that are not done yet; returns the manifest as a DataFrame.

    ranks: the processes that share the chunks of photos, on any machines that share the folder. All of them read the
    same plan and the same files of an earlier start; rank 0 puts the rows together and returns them, the others none.
    """
    if ranks.index == 0:
        begin(folder, crop, retry)
    ranks.wait()
    manifest = merged(folder)
    todo = with_digests(todo, manifest, ranks)
    todo["crop"] = distinct_paths(todo)
    rows, others = finished(folder, todo, manifest, ranks)
    parts = [todo.iloc[at : at + CHUNK] for at in range(0, len(todo), CHUNK)]
    parts = [part for part in parts if not all(photo in rows for photo in part["photo"])]
    if rows:
        print(f"{len(rows)} of {len(todo)} photos are done already")
    guessing = any(name in detect.GUESSES for name in crop.detectors)
    to_guess = guessing and any(row["status"] == "missed" for row in rows.values())
    log = ManifestLog(folder, todo, rows, others, ranks)
    log.begin()  # with today's paths, so that after a kill no row names a crop that another photo has overwritten
    if parts or to_guess:
        if ranks.index == 0:
            remove_review(folder)
        crop_parts(ranks.share(parts), folder, crop, log, ranks)
    log.end()
    if ranks.index:
        return pd.DataFrame(columns=MANIFEST_COLUMNS)
    result = read_csv(Path(folder) / "manifest.csv", MANIFEST_COLUMNS)
    if not (Path(folder) / "review.png").is_file():
        review(folder, result, crop.detectors)
    return result


def crop_parts(parts, folder, crop, log, ranks):
    """Crop this process's parts of the plan, then its share of the photos whose face has to be guessed."""
    chunks = [(folder, crop, list(zip(p["photo"], p["crop"], p["sha1"], strict=True))) for p in parts]
    workers = min(crop.workers or cores(), len(chunks) or 1)
    bar = tqdm(total=sum(map(len, parts)), desc="cropping", unit="photo", disable=None)

    def take(done):
        bar.update(len(done))
        log.take(done)

    try:
        with processes(workers) as pool:
            share_out(pool, crop_chunk, chunks, take)
            bar.close()
            log.collect()  # a guess needs the person's other photos, whoever has cropped them
            jobs = guesses(log.todo, log.rows, folder, crop) if ranks.index == 0 else None
            jobs = ranks.share(ranks.broadcast(jobs))
            bar = tqdm(total=len(jobs), desc="guessing", unit="photo", disable=None)
            share_out(pool, guess, jobs, take)
    finally:
        bar.close()
        log.save()


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
