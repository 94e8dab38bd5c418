"""index.csv of a folder of shards: where in which tar file each crop lies. It may come from anywhere."""

import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from foldface.files import InputError, read_csv

INDEX = "index.csv"
INDEX_COLUMNS = ["crop", "shard", "offset", "bytes"]
SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.tar")  # no path
NUMBER = r"[0-9]{1,15}"


def read_index(folder: Path | str) -> pd.DataFrame:
    """The index of a folder: crop, shard (str), offset, bytes (int64). Raises InputError for a row that face_crop.py
    would not write, such as one whose shard lies in another folder."""
    path = Path(folder) / INDEX
    index = read_csv(path, INDEX_COLUMNS, "run face_crop.py --crop.shards again")[INDEX_COLUMNS]
    names = [name for name in index["shard"].unique() if SHARD.fullmatch(name)]
    good = index["shard"].isin(names)
    for column in ("offset", "bytes"):
        good &= index[column].str.fullmatch(NUMBER)
    if not good.all():
        row = int((~good).to_numpy().argmax()) + 2
        raise InputError(f"{path}, row {row}: is not as face_crop.py writes it: run it with --crop.shards again")
    return index.astype({"offset": "int64", "bytes": "int64"})


def tar_size(end: int) -> int:
    """Bytes of a tar file whose last photo ends at byte `end`: whole blocks, two empty ones, filled up to a record."""
    blocks = -(-end // tarfile.BLOCKSIZE) + 2
    return -(-blocks * tarfile.BLOCKSIZE // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def sizes_of(index: pd.DataFrame) -> dict[str, int]:
    """{shard: bytes of its file} by what `read_index` gives."""
    ends = (index["offset"] + index["bytes"]).groupby(index["shard"]).max()
    return {name: tar_size(end) for name, end in zip(ends.index, ends.tolist(), strict=True)}


def members_of(index: pd.DataFrame) -> dict[str, list[tuple[int, int, int, str]]]:
    """{shard: [(offset, bytes, row in the index from 0, crop) of each photo]} by what `read_index` gives."""
    found = {}
    rows = zip(index["shard"], index["offset"].tolist(), index["bytes"].tolist(), index["crop"], strict=True)
    for row, (shard, offset, size, crop) in enumerate(rows):
        found.setdefault(shard, []).append((offset, size, row, crop))
    return found


def misplaced(path: Path | str, members: Sequence[Sequence]) -> str | None:
    """The first crop of a shard's `members_of` that isn't where the index has it, None where all are: the header before
    each must hold its name (its row where the name is too long for a header) and its size. The photo is not read."""
    with open(path, "rb") as file:
        for offset, size, row, crop in members:
            file.seek(max(offset - tarfile.BLOCKSIZE, 0))
            try:
                found = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                return crop
            name = found.name.encode("utf-8", "backslashreplace").decode().strip()  # as read_csv gives the index's
            if found.size != size or name not in (crop, f"{row:09d}.jpg"):
                return crop
    return None
