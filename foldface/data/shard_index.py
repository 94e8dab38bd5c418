"""index.csv of a folder of shards: where in which tar file each crop lies. It may come from anywhere."""

import re
import tarfile
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
