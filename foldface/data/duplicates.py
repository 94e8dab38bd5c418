"""Photos -> what a set should be cleaned of before training: near-duplicates, conflicting labels, crowded classes.

    seen = look(files)                            what each photo looks like, or why it can't be read
    pairs, bits = near(seen)                      which photos are nearly the same
    component = components(pairs, len(seen))      ... directly or by way of others
    reasons = drop_duplicates(rows, component)    which rows are to go, and why
    kept = cap(label, most, seed)                 which rows stay where a class may have no more than `most`

Nothing here writes, moves or deletes a file, and nothing imports torch.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from foldface.data.photos import PhotoError, cv2, read_photo
from foldface.runtime import cores

SIDE = 32  # of the grey thumbnail: what phash looks at, and enough to tell hits from misses
CELLS = 8  # of the colour thumbnail

# Chosen by looking at the pairs among 2,034 photos of trash, 1,437 of steel surfaces, 5,099 of faces and 2,100 of
# faces with masks drawn on. All 53 that these let through were the same scene; of the pairs that the hashes alone
# call the same, seven in ten were not. So the thumbnails decide, and the distance only has to let the real pairs
# through to them: of copies saved at another size or at JPEG's quality 30, 99 % come within 6 bits.
DISTANCE = 6  # bits; nearly always an even number, as half of a hash's bits are ones
ALIKE = 0.98  # correlation of the grey thumbnails; other faces in the same pose reach 0.94
SPOT = 0.75  # largest local difference, in standard deviations: else a small thing on the same ground is overlooked
TINT = 32  # largest local difference in colour, in levels: else a red and a blue one would be the same photo
FLAT = 2.0  # a thumbnail with a smaller standard deviation, in levels, shows nothing
SHADE = 4  # flat photos are the same if they differ nowhere by more levels

BLOCK = 128  # photos compared with all others at once: 20 MB for 20,000 photos
PART = 8_192  # pairs whose thumbnails are compared at once: 70 MB
CROWD = 65_536  # pairs after which those that change no group are left out


# ------------------------------------------------------------------------------------------------ what is there


def fingerprint(files):
    """Read photos as small as they can be compared: a DataFrame, one row a photo, in their order.

    files: paths; "" stands for nothing to read. Columns:

        hash             uint64, the perceptual hash (pHash: DCT of 32 x 32 grey pixels; ImageHash); 0 if flat
        width, height    in pixels, upright; 0 if not readable
        grey, colour     bytes of a (32, 32) and an (8, 8, 3) uint8 thumbnail; empty if not readable
        reason           why it can't be read, or ""

    A mirrored or turned photo looks different, as it does to a model that is to learn from it.
    """
    from tqdm import tqdm

    with ThreadPoolExecutor(cores()) as pool:  # OpenCV decodes outside Python's lock
        seen = list(tqdm(pool.map(glance, files), "looking at photos", len(files), unit="photo", disable=None))
    frame = pd.DataFrame(seen, columns=["hash", "width", "height", "grey", "colour", "reason"])
    return frame.astype({"hash": np.uint64, "width": np.int64, "height": np.int64})


def glance(file):
    """One photo's row of `look`, as a tuple."""
    import imagehash
    from PIL import Image

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
    bits = 0  # the bits of a flat photo would be those of its noise; no other has so few ones
    if grey.std() >= FLAT:
        found = imagehash.phash(Image.fromarray(grey), hash_size=8).hash  # 32 x 32 is what it would resize to
        bits = int.from_bytes(np.packbits(found).tobytes(), "big")
    return bits, width, height, grey.tobytes(), colour.tobytes(), ""


# ------------------------------------------------------------------------------------------------ what is the same


def near_duplicates(table, distance=DISTANCE):
    """Find photos that are nearly the same: (pairs (k, 2) int64 with i < j, in order of i, bits (k,) int64).

    table: what `look` gave. Pairs are positions in it whose hashes differ in `distance` bits or fewer, and whose
    thumbnails agree; bits says in how many. A photo that can't be read pairs with nobody, flat ones with those of
    their own shade. Too small to be told apart by is what takes up less than about a tenth of a photo's side. Not
    found are copies that lost more than 1 % at each edge, and black-and-white copies of colourful photos.

    Once CROWD pairs are found, photos that those connect already are not paired again: a thousand copies of one
    photo would be half a million pairs. `components` says the same with or without them.
    """
    readable = np.flatnonzero(table["reason"] == "")
    hashes, thumbnails = table["hash"].to_numpy(np.uint64)[readable], Thumbnails(table.iloc[readable])
    found, total, counted, group = [np.empty((0, 3), np.int64)], 0, 0, np.arange(len(hashes))
    for start in range(0, len(hashes), BLOCK):
        rows = slice(start, start + BLOCK)
        bits = np.bitwise_count(hashes[rows, None] ^ hashes[None, start:])
        close = bits <= distance
        close[:, :BLOCK] = np.triu(close[:, :BLOCK], 1)  # each pair once, and nobody with himself
        if counted:
            close &= group[rows, None] != group[None, start:]
        first, second = np.nonzero(close)
        left = np.stack([first + start, second + start, bits[first, second]], axis=1)
        while len(left):
            part, left = left[:PART], left[PART:]
            found.append(part[thumbnails.agree(part[:, 0], part[:, 1])])
            total += len(found[-1])
            if total - counted > CROWD:
                group, counted = components(np.concatenate(found)[:, :2], len(hashes)), total
                left = left[group[left[:, 0]] != group[left[:, 1]]]
    found = np.concatenate(found)
    return readable[found[:, :2]], found[:, 2]


class Thumbnails:
    """The thumbnails of readable photos, made ready to be compared."""

    def __init__(self, table):
        """table: rows of what `look` gave."""
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
        """Do photos show the same? first, second: (k,) positions; gives (k,) bool.

        Brighter or of more contrast is still the same; another thing in one place, or in another colour, is not.
        Flat photos have no pattern that could correlate: they are the same if they are of one shade.
        """
        from scipy.ndimage import uniform_filter

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
        tint -= tint.mean(axis=2, keepdims=True)  # what is merely brighter differs alike in red, green and blue
        ok[rest] = (abs(spot).max(axis=(1, 2)) <= SPOT) & (abs(tint).max(axis=(1, 2)) <= TINT)
        return ok


def components(pairs, count):
    """Number photos so that those paired, directly or by way of others, share a number: (count,) int64, from 0 up."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1].astype(np.int64)


# ------------------------------------------------------------------------------------------------ what is to go


def drop_duplicates(rows, component):
    """Why rows should be left out for being near-duplicates: (n,) object, "" where they may stay.

    rows: DataFrame with photo, source, label (int); component: (n,) what `components` gave. Of photos that are nearly
    the same and of one class the first stays; of several classes none does, for nobody knows which label is right.
    Rows to answer for (source eval), and those that a model labelled (source pseudo), neither go nor make others go.
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


def cap(label, most, seed):
    """Keep at most `most` rows of each class, chosen by `seed`; 0 keeps all. label: (n,) int; gives (n,) bool."""
    if not most:
        return np.ones(len(label), bool)
    order = np.random.default_rng(seed).permutation(len(label))
    place = pd.Series(np.asarray(label)[order]).groupby(np.asarray(label)[order]).cumcount().to_numpy()
    kept = np.empty(len(label), bool)
    kept[order] = place < most
    return kept
