"""Find near-duplicates, conflicting labels and classes with too many photos.

    seen = fingerprint(files)                     hash and thumbnails of each photo, or why it can't be read
    pairs, bits = near_duplicates(seen)           pairs of photos that are nearly the same
    component = components(pairs, len(seen))      groups of photos that are connected by pairs
    reasons = drop_duplicates(rows, component)    the rows to leave out, and why
    kept = cap(label, most, seed)                 the rows to keep where a class has more than `most`

Nothing here writes, moves or deletes a file, and nothing imports torch.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import uniform_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from foldface.data.photos import PhotoError, cv2, read_photo
from foldface.runtime import cores

SIDE = 32  # pixels of the grey thumbnail, as phash uses
CELLS = 8  # of the colour thumbnail

# The thumbnails decide; the distance of the hashes only selects pairs to compare. How these were chosen: docs/log.md.
DISTANCE = 6  # bits of the hashes
ALIKE = 0.98  # correlation of the grey thumbnails
SPOT = 0.75  # largest local difference, in standard deviations: a small object on the same background differs more
TINT = 32  # largest local difference in colour, in levels: a red and a blue object differ more
FLAT = 2.0  # standard deviation, in levels, below which a thumbnail shows nothing
SHADE = 4  # largest difference of two flat photos, in levels

BLOCK = 128  # photos that are compared with all others at once: 20 MB for 20,000 photos
PART = 8_192  # pairs whose thumbnails are compared at once: 70 MB
MAX_PAIRS = 65_536  # after so many, pairs within a group are left out


# ------------------------------------------------------------------------------------------------ what is there


def fingerprint(files: Sequence[str]) -> pd.DataFrame:
    """Hashes and thumbnails of photos: a DataFrame, one row a photo, in their order.

    files: paths; "" = no file. Columns:

        hash             uint64, the perceptual hash (pHash: DCT of 32 x 32 grey pixels; ImageHash); 0 if flat
        width, height    in pixels, upright; 0 if not readable
        grey, colour     bytes of a (32, 32) and an (8, 8, 3) uint8 thumbnail; empty if not readable
        reason           why it can't be read, or ""

    A mirrored or rotated photo has another fingerprint.
    """
    with ThreadPoolExecutor(cores()) as pool:  # OpenCV decodes outside Python's lock
        seen = list(tqdm(pool.map(fingerprint_one, files), "fingerprints", len(files), unit="photo", disable=None))
    frame = pd.DataFrame(seen, columns=["hash", "width", "height", "grey", "colour", "reason"])
    return frame.astype({"hash": np.uint64, "width": np.int64, "height": np.int64})


def fingerprint_one(file: str) -> tuple:
    """One photo's row of `fingerprint`."""
    try:
        if not file:
            raise PhotoError("nothing to read")
        image = read_photo(file)
    except PhotoError as error:
        return 0, 0, 0, b"", b"", str(error)
    height, width = image.shape[:2]
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    colour = cv2.resize(small, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    bits = 0  # a flat photo's bits would be noise
    if grey.std() >= FLAT:
        found = imagehash.phash(Image.fromarray(grey), hash_size=8).hash  # phash would resize to 32 x 32 itself
        bits = int.from_bytes(np.packbits(found).tobytes(), "big")
    return bits, width, height, grey.tobytes(), colour.tobytes(), ""


# ------------------------------------------------------------------------------------------------ what is the same


def near_duplicates(
    table: pd.DataFrame, distance: int = DISTANCE, block: int = BLOCK, part: int = PART, most: int = MAX_PAIRS
) -> tuple[np.ndarray, np.ndarray]:
    """Find photos that are nearly the same: (pairs (k, 2) int64 with i < j, in order of i, bits (k,) int64).

    table: from `fingerprint`. Pairs are positions in it whose hashes differ in at most `distance` bits (`bits`) and
    whose thumbnails agree. A photo that can't be read has no pair; flat photos pair with flat ones of the same shade.
    Objects below about a tenth of the photo's side are not noticed. Copies that lost more than 1 % at each edge, and
    black-and-white copies of colourful photos, are not found.

    block, part: photos and pairs that are compared at once. After `most` pairs, photos that are already connected are
    not paired again: a thousand copies of one photo would be half a million pairs. `components` gives the same groups.
    """
    readable = np.flatnonzero(table["reason"] == "")
    hashes, thumbnails = table["hash"].to_numpy(np.uint64)[readable], Thumbnails(table.iloc[readable])
    found, total, counted, group = [np.empty((0, 3), np.int64)], 0, 0, np.arange(len(hashes))
    for start in range(0, len(hashes), block):
        rows = slice(start, start + block)
        bits = np.bitwise_count(hashes[rows, None] ^ hashes[None, start:])
        close = bits <= distance
        close[:, :block] = np.triu(close[:, :block], 1)  # each pair once, and no photo with itself
        if counted:
            close &= group[rows, None] != group[None, start:]
        first, second = np.nonzero(close)
        left = np.stack([first + start, second + start, bits[first, second]], axis=1)
        while len(left):
            some, left = left[:part], left[part:]
            found.append(some[thumbnails.agree(some[:, 0], some[:, 1])])
            total += len(found[-1])
            if total - counted > most:
                group, counted = components(np.concatenate(found)[:, :2], len(hashes)), total
                left = left[group[left[:, 0]] != group[left[:, 1]]]
    found = np.concatenate(found)
    return readable[found[:, :2]], found[:, 2]


class Thumbnails:
    """The normalised thumbnails of readable photos."""

    def __init__(self, table):
        """table: rows of `fingerprint`."""
        greys, self.colours = (
            np.frombuffer(b"".join(table[name]), np.uint8).reshape(len(table), size)
            for name, size in (("grey", SIDE * SIDE), ("colour", CELLS * CELLS * 3))
        )
        self.patterns = greys.astype(np.float32)
        self.patterns -= self.patterns.mean(axis=1, keepdims=True)
        spread = self.patterns.std(axis=1)
        self.patterns /= np.maximum(spread, FLAT)[:, None]
        self.flat = spread < FLAT

    def agree(self, first, second):
        """True for pairs that show the same. first, second: (k,) positions; returns (k,) bool.

        Another brightness or contrast is the same; another object or colour in one place is not. Flat photos have no
        pattern to correlate: they are the same if they have the same shade.
        """
        ok = self.flat[first] & self.flat[second]
        flat = np.flatnonzero(ok)
        shade = self.colours[first[flat]].astype(np.int16) - self.colours[second[flat]]
        ok[flat] = abs(shade).max(axis=1) <= SHADE

        rest = np.flatnonzero(~self.flat[first] & ~self.flat[second])
        one, two = self.patterns[first[rest]], self.patterns[second[rest]]
        alike = np.einsum("ij,ij->i", one, two) >= ALIKE * SIDE * SIDE
        rest, one, two = rest[alike], one[alike], two[alike]  # few, as a rule
        spot = uniform_filter((one - two).reshape(-1, SIDE, SIDE), size=(1, 3, 3))
        tint = self.colours[first[rest]].astype(np.float32) - self.colours[second[rest]]
        tint = tint.reshape(-1, CELLS * CELLS, 3)
        tint -= tint.mean(axis=2, keepdims=True)  # another brightness differs equally in red, green and blue
        ok[rest] = (abs(spot).max(axis=(1, 2)) <= SPOT) & (abs(tint).max(axis=(1, 2)) <= TINT)
        return ok


def components(pairs: np.ndarray, count: int) -> np.ndarray:
    """The group of each photo, (count,) int64 from 0: photos that are connected by pairs have the same group."""
    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1].astype(np.int64)


# ------------------------------------------------------------------------------------------------ what is to go


def drop_duplicates(rows: pd.DataFrame, component: pd.Series) -> np.ndarray:
    """Why rows are left out as near-duplicates: (n,) object, "" = they stay.

    rows: DataFrame with photo, source, label (int); component: (n,) of `components`. Of nearly identical photos of one
    class the first stays; of several classes none stays, since the right label is unknown. Rows with source eval or
    pseudo neither are left out nor cause others to be.
    """
    reasons = np.full(len(rows), "", dtype=object)
    known = np.flatnonzero(~rows["source"].isin(["eval", "pseudo"]))
    photos, labels = rows["photo"].to_numpy(), rows["label"].to_numpy()
    group = pd.Series(np.asarray(component)[known], index=known)
    group = group[group.duplicated(keep=False)]
    for same in group.groupby(group).groups.values():
        members = same.to_numpy()
        first = members[0]
        other = members[labels[members] != labels[first]][:1]
        if len(other):
            for row in members:
                rival = other[0] if labels[row] == labels[first] else first
                reasons[row] = f"nearly the same photo as {photos[rival]}, which has another label"
        else:
            reasons[members[1:]] = f"nearly the same photo as {photos[first]}"
    return reasons


def cap(label: pd.Series, most: int, seed: int) -> np.ndarray:
    """Keep at most `most` random rows of each class; 0 keeps all. label: (n,) int; returns (n,) bool."""
    if not most:
        return np.ones(len(label), bool)
    order = np.random.default_rng(seed).permutation(len(label))
    place = pd.Series(np.asarray(label)[order]).groupby(np.asarray(label)[order]).cumcount().to_numpy()
    kept = np.empty(len(label), bool)
    kept[order] = place < most
    return kept
