"""manifest.csv while a crop folder is being filled, by one process or several.

Rank 0 writes manifest.csv. Process K of several writes manifest-K.csv, the rows of its own photos; when all are done,
or at the next start, those go into manifest.csv.
"""

import time
from pathlib import Path

import pandas as pd

from foldface.faces.manifest import MANIFEST_COLUMNS, STAMP
from foldface.files import InputError, read_csv, write_csv
from foldface.ranks import LATE, Ranks

SAVE_SECONDS = 10  # of work that a kill may lose


def merged(folder: Path | str) -> pd.DataFrame:
    """The rows of all files of an earlier start, one a photo, the latest: MANIFEST_COLUMNS and STAMP, text."""
    files = [path for path in (Path(folder) / "manifest.csv", *parts_of(folder)) if path.is_file()]
    frames = [read_csv(path, MANIFEST_COLUMNS) for path in files]
    found = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=MANIFEST_COLUMNS)
    found = found.astype(object).reindex(columns=[*MANIFEST_COLUMNS, *STAMP], fill_value="").fillna("")
    return found.drop_duplicates("photo", keep="last", ignore_index=True)


def parts_of(folder: Path | str) -> list[Path]:
    """The files of the other processes than rank 0."""
    return sorted(Path(folder).glob("manifest-*.csv"))


class ManifestLog:
    """Rows of the manifest that are done, in memory and in this process's file."""

    def __init__(self, folder: Path | str, todo: pd.DataFrame, rows: dict, others: list[dict], ranks: Ranks) -> None:
        """todo: the plan, with size and mtime; rows: {photo: row} that are done; others: rows of photos that are not in
        the plan."""
        self.folder, self.todo, self.rows, self.others, self.ranks = Path(folder), todo, rows, others, ranks
        self.stamps = todo.set_index("photo")[STAMP].to_dict("index")
        self.own = set(rows) if ranks.index == 0 else set()  # photos of this process's file
        self.saved = time.monotonic()

    def path(self, index: int) -> Path:
        """The file of process `index`."""
        return self.folder / (f"manifest-{index}.csv" if index else "manifest.csv")

    def begin(self) -> None:
        """Put what earlier starts left into manifest.csv. All processes call it, after they have read the files."""
        self.ranks.wait()
        if self.ranks.index == 0:
            self.save()
            self.forget(self.folder)
        self.ranks.wait()

    def take(self, done: list[dict]) -> None:
        """These rows are done; keep them every few seconds."""
        self.rows.update({row["photo"]: row for row in done})
        self.own.update(row["photo"] for row in done)
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write this process's file, its rows in the order of the plan."""
        kept = [self.rows[photo] | self.stamps[photo] for photo in self.todo["photo"] if photo in self.own]
        kept += self.others if self.ranks.index == 0 else []
        frame = pd.DataFrame(kept, columns=[*MANIFEST_COLUMNS, *STAMP])
        write_csv(self.path(self.ranks.index), frame, every_rank=True)
        self.saved = time.monotonic()

    def collect(self) -> None:
        """Bring the rows of all processes to rank 0. All processes call it."""
        if self.ranks.count == 1:
            return
        self.save()
        counts = self.ranks.gather([len(self.own)])  # once all have saved
        if self.ranks.index:
            return
        for index in range(1, self.ranks.count):
            for row in self.rows_of(index, counts[index]):
                self.rows[row["photo"]] = row
                self.own.add(row["photo"])

    def rows_of(self, index, count):
        """The rows of process `index`, as soon as its file holds `count`: a network disk may show it late."""
        until, found = time.monotonic() + LATE, []
        while len(found) != count:
            if time.monotonic() > until:
                raise InputError(
                    f"{self.path(index)}: holds {len(found)} photos, but process {index} has cropped {count}: all "
                    "machines need one shared --data.crops"
                )
            if self.path(index).is_file():
                found = read_csv(self.path(index), MANIFEST_COLUMNS).to_dict("records")
            if len(found) != count:
                time.sleep(0.5)
        return found

    def end(self) -> None:
        """Put all rows into manifest.csv, on rank 0. All processes call it."""
        self.collect()
        if self.ranks.index == 0:
            self.save()
            self.forget(self.folder)

    @staticmethod
    def forget(folder: Path | str) -> None:
        """Remove the files of the other processes."""
        for path in parts_of(folder):
            path.unlink(missing_ok=True)
