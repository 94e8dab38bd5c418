"""Predictions so far, kept in files, so that a stopped prediction goes on, with as many processes or others."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from foldface.files import InputError, atomic_write
from foldface.nn import resume
from foldface.ranks import ALONE, LATE, Ranks


class Progress:
    """Predictions of the photos that are `done`, in memory and in files: inference.npz of rank 0, with what an earlier
    start left, and inference-K.npz of process K, with its own photos alone.

    found: {fold: (n, width) float32}; reasons: (n,) str, why a photo can't be read, "" = it can; done: (n,) bool.
    """

    def __init__(
        self,
        path: Path | None,
        key: str,
        folds: Iterable[int],
        count: int,
        width: int,
        minutes: float,
        ranks: Ranks = ALONE,
    ) -> None:
        """path: inference.npz, or None to keep nothing; key: see `predicting.key_of`; minutes: between two writes."""
        self.path, self.key, self.seconds, self.ranks = path, key, 60 * minutes, ranks
        self.found = {fold: np.empty((count, width), np.float32) for fold in folds}
        self.reasons = np.full(count, "", dtype=object)
        self.done = np.zeros(count, bool)
        self.resume()
        self.kept = self.done.copy() if ranks.index == 0 else np.zeros(count, bool)  # what this process's file holds
        self.saved = time.monotonic()

    def resume(self) -> None:
        """Take over all files of an earlier start, however many processes it had; then they are one."""
        if self.path is None:
            return
        files = files_of(self.path)
        for file in files:
            self.take(file)
        self.ranks.wait()  # all have read them
        if self.ranks.index == 0 and len(files) > 1:
            self.kept = self.done
            self.save(now=True)
        if self.ranks.index == 0:
            for file in files:
                if file != self.path:
                    file.unlink(missing_ok=True)
        self.ranks.wait()  # nobody writes before that
        if self.done.any():
            print(f"{int(self.done.sum())} of {len(self.done)} photos were predicted before: going on")

    def take(self, path: Path) -> None:
        """Take over the content of one file if its key is the same."""
        try:
            resume.refuse_compressed(path)
            with np.load(path, allow_pickle=False) as file:
                if str(file["key"]) != self.key:
                    return
                photos, reasons = file["photos"], file["reasons"]
                parts = {fold: file[f"fold{fold}"] for fold in self.found}
            if photos.dtype != np.int64 or any(part.shape != (len(photos), *self.shape) for part in parts.values()):
                raise ValueError("it has other parts")
            self.reasons[photos] = reasons
            for fold, part in parts.items():
                self.found[fold][photos] = part
            self.done[photos] = True
        except Exception:  # a damaged file fails in many ways; only time is lost
            print(f"{path}: is damaged; its photos are predicted again", file=sys.stderr)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a photo's answers: (width,)."""
        return next(iter(self.found.values())).shape[1:]

    def add(self, photos: np.ndarray) -> None:
        """These photos (indices) are done; keep them every few minutes."""
        self.done[photos] = self.kept[photos] = True
        self.save()

    def save(self, now: bool = False) -> None:
        """Write this process's file every few minutes, or now."""
        if self.path is None or (not now and time.monotonic() - self.saved < self.seconds):
            return
        photos = np.flatnonzero(self.kept)
        parts = {f"fold{fold}": found[photos] for fold, found in self.found.items()}
        path = of_rank(self.path, self.ranks.index)
        with atomic_write(path, every_rank=True) as partial, open(partial, "wb") as file:
            np.savez(file, key=self.key, photos=photos, reasons=self.reasons[photos].astype(str), **parts)
        self.saved = time.monotonic()

    def collect(self) -> None:
        """Where several processes share the work: bring the photos of all of them to rank 0. All processes call it."""
        if self.ranks.count == 1:
            return
        self.save(now=True)
        self.ranks.wait()
        until = time.monotonic() + LATE
        while self.ranks.index == 0 and not self.done.all():
            for file in files_of(self.path):
                if file != self.path:
                    self.take(file)
            if self.done.all():
                return
            if time.monotonic() > until:
                raise InputError(
                    f"{self.path.parent}: holds no answers of {int((~self.done).sum())} photos that other processes "
                    "have answered: all machines need one shared folder, with the same clock and disk"
                )
            time.sleep(0.5)


def of_rank(path: Path, index: int) -> Path:
    """The file of process `index`: inference.npz of rank 0, else inference-K.npz."""
    return path.with_name(f"{path.stem}-{index}{path.suffix}") if index else path


def files_of(path: Path) -> list[Path]:
    """The files of all processes of this or an earlier start, that of rank 0 first."""
    others = path.parent.glob(f"{path.stem}-*{path.suffix}")
    return [file for file in (path, *sorted(others)) if file.is_file()]


def forget(path: Path) -> None:
    """Remove the files of all processes."""
    for file in files_of(path):
        file.unlink(missing_ok=True)
