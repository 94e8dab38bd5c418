"""Pack a finished crop folder into shards: tar files dealt by fold and person, and index.csv.

    CROPS/shards/fold0-000000.tar ...    the photos of people who are in fold 0; no person is in two shards
    CROPS/shards/eval-000000.tar ...     the photos to answer for, in their order
    CROPS/shards/index.csv               crop, shard, offset, bytes
    CROPS/shards/manifest.csv, crop.json as in CROPS: the folder can be copied and named as data.crops

The tar files are plain ones (USTAR), which webdataset reads.
"""

import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from foldface.data.shard_index import INDEX, INDEX_COLUMNS, tar_size
from foldface.files import InputError, atomic_write, read_json, write_csv, write_json
from foldface.ranks import ALONE, Ranks

BLOCK = tarfile.BLOCKSIZE  # 512 bytes
PLAN = "plan.json"


def deal(rows: pd.DataFrame, size: int, seed: int) -> pd.DataFrame:
    """Give each photo its shard: rows with the column `shard`, in the order in which they are packed.

    rows: crop, group (fold0, ..., extra, test, eval) and person. A shard holds `size` photos and what is left of its
    last person. People come in an order drawn by the seed, so that a shard is no stretch of the table; those to answer
    for stay in their order.
    """
    parts = []
    for group, own in rows.groupby("group", sort=True):
        if group != "eval":
            people = np.random.default_rng(seed).permutation(own["person"].unique())
            place = own["person"].map({person: k for k, person in enumerate(people)})
            own = own.iloc[np.argsort(place.to_numpy(), kind="stable")]
        first = ~own["person"].duplicated() if group != "eval" else pd.Series(True, index=own.index)
        number, held, numbers = 0, 0, []
        for begins in first:
            if begins and held >= size:
                number, held = number + 1, 0
            numbers.append(number)
            held += 1
        parts.append(own.assign(shard=[f"{group}-{k:06d}.tar" for k in numbers]))
    return pd.concat(parts, ignore_index=True)


def with_places(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Add `bytes`, and `offset` of the photo in its shard; rows: of `deal`."""
    sizes = np.array([os.path.getsize(folder / crop) for crop in rows["crop"]], np.int64)
    taken = BLOCK + -(-sizes // BLOCK) * BLOCK  # a header, and the photo filled up to whole blocks
    before = pd.Series(taken).groupby(rows["shard"].to_numpy()).cumsum().to_numpy() - taken
    return rows.assign(offset=before + BLOCK, bytes=sizes)


def header(crop: str, number: int, size: int) -> bytes:
    """A member's header, one block: no times or owners, so that the same photos make the same bytes."""
    info = tarfile.TarInfo(crop)
    info.size = size
    try:
        return info.tobuf(tarfile.USTAR_FORMAT)
    except ValueError:  # a name that is too long for it
        info.name = f"{number:09d}.jpg"
        return info.tobuf(tarfile.USTAR_FORMAT)


def write_shard(path: Path, rows: pd.DataFrame, folder: Path) -> None:
    """Write a tar file of the crops in `rows`, in their order, atomically."""
    with atomic_write(path, every_rank=True) as partial, open(partial, "wb") as file:
        for number, crop, size in zip(rows.index, rows["crop"], rows["bytes"], strict=True):
            data = (folder / crop).read_bytes()
            if len(data) != size:
                raise InputError(f"{folder / crop}: changed while it was packed: run the same command again")
            file.write(header(crop, number, size) + data + bytes(-size % BLOCK))
        file.write(bytes(tar_size(file.tell()) - file.tell()))


def pack(folder: Path | str, rows: pd.DataFrame, size: int, seed: int, ranks: Ranks = ALONE) -> Path:
    """Pack the crops of a folder into folder/shards, `size` a shard; -> that folder.

    rows: crop, group, person, as of `deal`. Shards that an earlier start has written stay. ranks: the processes that
    share the shards. The index comes last: its presence means finished.
    """
    folder = Path(folder)
    output = folder / "shards"
    rows = with_places(deal(rows, size, seed), folder)
    text = io.StringIO()
    rows[INDEX_COLUMNS].to_csv(text, index=False)
    text.write((folder / "manifest.csv").read_text(encoding="utf-8", errors="surrogateescape"))  # sha1 of the photos
    plan = {"digest": hashlib.sha1(text.getvalue().encode(errors="surrogateescape")).hexdigest()}
    if ranks.index == 0:
        begin(output, plan)
    ranks.wait()
    shards = list(rows.groupby("shard", sort=True))
    for name, own in tqdm(ranks.share(shards), "packing", unit="shard", disable=None):
        if not (output / name).is_file():
            write_shard(output / name, own, folder)
    ranks.wait()
    if ranks.index == 0:
        for name in ("manifest.csv", "crop.json"):
            with atomic_write(output / name) as partial:
                shutil.copyfile(folder / name, partial)
        write_csv(output / INDEX, rows[INDEX_COLUMNS])
    return output


def begin(output, plan):
    """Remove shards of another plan."""
    path = output / PLAN
    if not path.is_file() or read_json(path, "remove it") != plan:
        for old in (output / INDEX, *output.glob("*-[0-9][0-9][0-9][0-9][0-9][0-9].tar")):
            old.unlink(missing_ok=True)
        write_json(path, plan)
