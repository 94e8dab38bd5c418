"""Tables of photos as they come: their encoding and delimiter, the column that names the photo, where the photos are.

A competition's table says `image_id` and 000af, and the photo is train_images/000af.png. The column, the folders and
the endings are found by looking which files exist; data.photo_column, data.photo_folder, data.photo_suffix set them.
"""

import codecs
import collections
import csv
import functools
import itertools
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from foldface.data.paths import Fence, located, photo_root
from foldface.data.photos import SUFFIXES
from foldface.files import InputError, read_csv, refuse_special
from foldface.names import Finder, one_of
from foldface.runtime import is_main_process
from foldface.settings import DataConfig

PHOTO_COLUMNS = ("photo", "file", "image", "path", "filename", "ImageID")  # the usual names, the first that there is
TABLES = (".csv", ".tsv")  # endings of the tables that data.eval may name
DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons"}
GROUP_WORDS = {"person", "people", "patient", "subject", "identity", "individual", "animal", "user", "group", "case",
               "study", "exam", "session", "video", "scene", "site", "location", "lesion", "specimen"}  # fmt: skip
SAMPLE = 100  # rows of a table by which its photos are looked for
MOST_FOLDERS = 2000  # that are looked into below a table's own folder, none deeper than DEPTH
DEPTH = 4
SIDES = {"train": "train", "test": "test", "valid": "train", "val": "train", "submission": "test", "eval": "test"}


@functools.lru_cache(None)
def say_once(line):
    """Print a line, once a process: a table is read several times."""
    if is_main_process():
        print(line)


# ----------------------------------------------------------------------------------------------------- the text


class Form(NamedTuple):
    """How a table is written."""

    encoding: str = "utf-8-sig"
    delimiter: str = ","


def form_of(path: Path | str) -> Form:
    """The encoding (UTF-8, UTF-16, cp949) and delimiter (comma, tab, semicolon) of a table, by its content.

    What is none of these has the usual form, and `read_csv` says what is wrong.
    """
    try:
        refuse_special(path)
        data = Path(path).read_bytes()
    except (OSError, ValueError):
        return Form()
    encoding = encoding_of(data)
    lines = [line for line in data[: 1 << 16].decode(encoding, "replace").splitlines()[:6] if line.strip()]

    def width(delimiter):
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)]
        return len(set(widths)) == 1, widths[0] if widths else 0

    try:
        delimiter = max(DELIMITERS, key=width)  # of equals the first, the comma
    except csv.Error:
        delimiter = ","
    if not any(width(other)[1] > 1 for other in DELIMITERS):
        delimiter = ","
    return Form(encoding, delimiter)


def encoding_of(data: bytes) -> str:
    """The encoding of a table's bytes: UTF-16 by its mark or its NULs, UTF-8, or cp949 where that makes it Korean."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16" if len(data) % 2 == 0 and len(data) > 2 else "utf-8-sig"
    start = data[:200]
    if len(start) > 3 and start[1::2].count(0) > 0.4 * len(start):
        return "utf-16-le"
    if len(start) > 3 and start[::2].count(0) > 0.4 * len(start):
        return "utf-16-be"
    try:
        data.decode("utf-8")
        return "utf-8-sig"
    except UnicodeDecodeError:
        pass
    try:
        strange = [sign for sign in data.decode("cp949") if not sign.isascii()]
    except UnicodeDecodeError:
        return "utf-8-sig"
    return "cp949" if sum("가" <= sign <= "힣" for sign in strange) > 0.5 * len(strange) else "utf-8-sig"


def read_table(path: Path | str, columns: Sequence[str], remedy: str = "") -> pd.DataFrame:
    """`files.read_csv` of a table in any Form, which is said in a line where it is not UTF-8 with commas."""
    form = form_of(path)
    frame = read_csv(path, columns, remedy, encoding=form.encoding, delimiter=form.delimiter)
    if form.encoding != "utf-8-sig" or form.delimiter != ",":
        name = form.encoding.removesuffix("-sig").upper().replace("CP949", "cp949")
        say_once(f"{path}: is read as {name}, cells parted by {DELIMITERS[form.delimiter]}")
    return frame


# --------------------------------------------------------------------------------------------------- the photos


class Place(NamedTuple):
    """Where a table's photos lie, and what is added to a cell."""

    folder: Path
    suffix: str

    def path(self, cell: str) -> str:
        return os.path.join(self.folder, cell + self.suffix)


class Listed:
    """The photos that a table's column names below one folder."""

    def __init__(self, folder: Path, column: str, roots: Sequence[str]) -> None:
        self.folder, self.column, self.fence, self.finder = folder, column, Fence(folder, roots), Finder(folder)

    def locate(self, name: str) -> tuple[str, str]:
        """The photo that a cell means, though it may not exist: (its path, ""), or (path, why it is refused)."""
        real, reason = located(self.finder, self.fence, self.column, name)
        return os.path.join(self.folder, real), reason

    def report(self, table: Path | str) -> None:
        """Say which names of the table the disk spells otherwise."""
        self.finder.report(table)


class Photos:
    """The photos of a table: `column` names them, `places` are where they lie, found by looking.

    Raises InputError where no column names photos, and where a setting names what isn't there.
    """

    def __init__(self, table: Path | str, frame: pd.DataFrame, data: DataConfig, labels: Collection[str] = ()) -> None:
        """table: its path; frame: its content; data: config.data; labels: columns that hold what is predicted."""
        self.table, self.data, self.home = Path(table), data, Path(table).parent
        named = [name for name in PHOTO_COLUMNS if name in frame.columns]
        if data.photo_column and data.photo_column not in frame.columns:
            raise InputError(
                f"{table}: has no column {data.photo_column} (data.photo_column); it has {', '.join(frame.columns)}"
            )
        self.column = data.photo_column or (named[0] if named else "")
        plain = not (data.photo_folder or data.photo_suffix)
        root = photo_root(self.home, frame[self.column]) if self.column and plain else self.home
        self.places, self.others, self.own = [Place(root, "")], None, None
        usual = plain and self.column and all(map(is_file, self.sampled(frame, self.column, self.places[0])))
        if not usual:
            self.look(frame, labels)
        self.fences = {place: Fence(place.folder, data.roots) for place in self.places}
        self.finders = {place: Finder(place.folder) for place in self.places}

    def sampled(self, frame, column, place=None):
        """Some cells of a column, from all over the table; where a place is given, the paths that they mean there."""
        rows = np.unique(np.linspace(0, max(len(frame) - 1, 0), SAMPLE).astype(int)) if len(frame) else []
        cells = [cell for cell in dict.fromkeys(frame[column].iloc[rows]) if cell and "\0" not in cell]
        return [place.path(cell) for cell in cells] if place else cells

    def look(self, frame: pd.DataFrame, labels: Collection[str]) -> None:
        """Find the column, the folders and the endings by which most photos exist."""
        data = self.data
        columns = [data.photo_column] if data.photo_column else [self.column] * bool(self.column)
        if not data.photo_column:
            columns += [name for name in frame.columns if name not in {*labels, *columns}]
        best, count = None, 0
        for tier in self.tiers():
            for column in columns:
                cells = self.sampled(frame, column)
                found = {place: {cell for cell in cells if is_file(place.path(cell))} for place in tier}
                together = len(set().union(*found.values()))
                if together > count:
                    best, count, whole = (column, found), together, together == len(cells)
            if best and (whole or tier is not self.own):
                break
        if best and best[0] == self.column and len(best[1].get(self.places[0], ())) == count:
            self.others = list(best[1])  # where the usual place holds as much it stays
        elif best:
            self.column, found = best
            self.others, self.places = list(found), self.fewest(found)
            self.describe()
        elif not self.column:
            raise InputError(
                f"{self.table}: has no column photo; it has {', '.join(frame.columns)}, none of which names photos "
                f"below {self.home}: name it with --data.photo_column, and --data.photo_folder and --data.photo_suffix"
            )
        elif data.photo_folder or data.photo_suffix:
            self.places = self.tiers()[0][:1]  # each row says which photo is not there

    def fewest(self, found):
        """The places that hold the cells of `found`, {place: cells}, the fullest first. Raises InputError where two
        hold the same ones: a name would mean two photos."""
        places, missing = [], set().union(*found.values())
        while missing:
            place = max(found, key=lambda one: len(found[one] & missing))
            twin = next((one for one in found if one != place and found[one] & found[place] & missing), None)
            if twin and found[twin] >= found[place] & missing:
                cell = min(found[twin] & found[place])
                raise InputError(
                    f"{self.table}: {self.column} '{cell}' may be {self.shown(place, cell)} or "
                    f"{self.shown(twin, cell)}: name one folder with --data.photo_folder"
                    + (", or one ending with --data.photo_suffix" if place.folder == twin.folder else "")
                )
            places.append(place)
            missing -= found[place]
        return places

    def shown(self, place, cell):
        """A photo's path below the table's folder, as it is said."""
        return os.path.relpath(place.path(cell), self.home) if is_below(place.folder, self.home) else place.path(cell)

    def describe(self) -> None:
        """Say once where the photos lie."""
        some = [self.shown(place, f"<{self.column}>") for place in self.places]
        more = f" and {len(some) - 3} places more" if len(some) > 3 else ""
        say_once(f"{self.table}: the photos are {', '.join(some[:3])}{more}")

    def tiers(self):
        """Lists of places, the likelier first: where data.photo_folder says; else beside the table, in images/, and in
        all folders with photos below the table's own, those of the other side (test/ of train.csv) last."""
        data = self.data
        if data.photo_folder:
            given = [data.photo_folder] if isinstance(data.photo_folder, str) else data.photo_folder
            folders = [self.home / folder for folder in given]
            lost = [folder for folder in folders if not folder.is_dir()]
            if len(lost) == len(folders):
                raise InputError(f"data.photo_folder: there is no folder {lost[0]}")
            folders = [folder for folder in folders if folder.is_dir()]
            endings = endings_in(folders)
        else:
            counts = self.folders_below()
            folders, endings = list(counts), sum(counts.values(), collections.Counter())
        suffixes = [data.photo_suffix] if data.photo_suffix else ["", *(name for name, _ in endings.most_common())]
        side = side_of(self.table.stem)
        other = [folder for folder in folders if side and side_of(self.relative(folder)) not in ("", side)]
        own = [folder for folder in folders if side and side_of(self.relative(folder)) == side]
        rest = [folder for folder in folders if folder not in other and folder not in own]
        first = [] if data.photo_folder else [self.home, self.home / "images"]
        tiers = [
            [Place(folder, suffix) for folder in dict.fromkeys(tier) for suffix in suffixes]
            for tier in ([*first, *own], [*first, *own, *rest], other)
        ]
        self.own = tiers[0]
        return [tier for tier in tiers if tier]

    def relative(self, folder):
        return os.path.relpath(folder, self.home) if is_below(folder, self.home) else str(folder)

    def folders_below(self):
        """{folder: Counter of the endings in it} of the folders with photos below the table's own, sorted."""
        fence, found, number = Fence(self.home, self.data.roots), {}, 0
        met = set()
        for home, folders, names in os.walk(self.home, followlinks=True):
            below = os.path.relpath(home, self.home)
            number += 1
            real = os.path.realpath(home)
            deep = below.count(os.sep) + (below != ".") >= DEPTH
            if real in met or deep or number > MOST_FOLDERS:
                folders.clear()
            if real in met:
                continue
            met.add(real)
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and not fence.refuses(os.path.normpath(os.path.join(below, name)))
            )
            endings = endings_of(itertools.islice(names, 1000))
            if endings:
                found[Path(home)] = endings
        return found

    def locate(self, cell: str) -> tuple[str, str]:
        """The photo that a cell means, though it may not exist: (its path, ""), or (path, why it is refused)."""
        there = [place for place in self.places if is_file(place.path(cell))]
        if not there and self.others and not self.fences[self.places[0]].refuses(cell):  # as no row of the sample does
            for place in [place for place in self.others if is_file(place.path(cell))]:
                self.add(place)
                there.append(place)
        if len({os.path.realpath(place.path(cell)) for place in there}) > 1:
            two = one_of([self.shown(place, cell) for place in there])
            return "", f"{self.column} '{cell}' may be {two}: name its folder with --data.photo_folder"
        reason = ""
        for place in there[:1] or self.places:
            real, reason = located(self.finders[place], self.fences[place], self.column, cell + place.suffix)
            if there or (not reason and is_file(os.path.join(place.folder, real))):
                return os.path.join(place.folder, real), reason
        return self.places[0].path(cell), reason

    def add(self, place: Place) -> None:
        """Photos lie there too."""
        if place not in self.fences:
            self.places.append(place)
            self.fences[place], self.finders[place] = Fence(place.folder, self.data.roots), Finder(place.folder)

    def report(self, table: Path | str | None = None) -> None:
        """Say which names of the table the disk spells otherwise."""
        for finder in self.finders.values():
            finder.report(table or self.table)


def is_file(path):
    """os.path.isfile; a name that can't be one is none."""
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):
        return False


def is_below(folder, home):
    return Path(os.path.abspath(folder)).is_relative_to(os.path.abspath(home))


def endings_of(names):
    """Counter of the endings of photos among names."""
    endings = (os.path.splitext(name)[1] for name in names if not name.startswith("."))
    return collections.Counter(ending for ending in endings if ending.lower() in SUFFIXES)


def endings_in(folders):
    """Counter of the endings of photos in folders."""
    return sum((endings_of(os.listdir(folder)[:1000]) for folder in folders), collections.Counter())


def side_of(name):
    """The side of a split that a name of a table or folder speaks of: train, test or ""."""
    return next((SIDES[word] for word in words_of(name) if word in SIDES), "")


def words_of(name):
    """The words of a name in lower case: PatientID and patient_id are patient, id."""
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())


def repeated_column(frame: pd.DataFrame, known: Collection[str]) -> str:
    """The column that may say which rows belong together, of one person or place, "" if there is none; known: columns
    that hold something else. Its values repeat, two to fifty times on average, and its name says so (patient_id), or
    they are words and there are ten or more; of several it is the one with the most values."""
    best, most = "", 0
    for name in frame.columns:
        values = frame[name][frame[name] != ""]
        count = values.nunique()
        if name in known or not count or not 2 <= len(values) / count <= 50 or len(values) < len(frame) / 2:
            continue
        called = any(word in GROUP_WORDS for word in words_of(name))
        wordy = count >= 10 and pd.to_numeric(values, errors="coerce").isna().mean() > 0.5
        if (called or wordy) and count > most:
            best, most = name, count
    return best


def id_column_of(frame: pd.DataFrame, data: DataConfig) -> str:
    """The column of a table that the submission names: data.id_column, or what the first column of
    data.sample_submission is called, "" where the table has none such."""
    if data.id_column or not data.sample_submission:
        return data.id_column
    first = read_table(data.sample_submission, [], "data.sample_submission is the competition's own").columns[0]
    return first if first in frame else ""


def ids_of(frame: pd.DataFrame, data: DataConfig, photo_column: str) -> pd.Series:
    """The ImageID of each row: the cell that the submission names where each row has its own, else the photo's."""
    column = id_column_of(frame, data)
    if column in frame and frame[column].is_unique and (frame[column] != "").all():
        return frame[column]
    return frame[photo_column]
