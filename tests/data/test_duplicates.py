"""Sifting: copies are found however they were saved, other photos are not, and nobody goes without a reason."""

import subprocess
import sys

import imagehash
import numpy as np
import pandas as pd
import pytest
from helpers import ROOT
from PIL import Image

from foldface.data import duplicates
from foldface.data.photos import cv2


def scene(seed, height=240, width=320):
    """A photo-like picture: large soft shapes in colour, finer ones on them; another for each seed."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.normal(0, spread, (cells, cells, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
              for cells, spread in ((6, 45), (20, 15))]  # fmt: skip
    return np.clip(128 + sum(layers), 0, 255).astype(np.uint8)


def save(path, picture, **options):
    Image.fromarray(picture).save(path, **options)
    return str(path)


def brightened(picture):
    return cv2.convertScaleAbs(picture, alpha=1.05, beta=12)


def half(picture):
    return cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def found(files, **options):
    """The pairs among these files, as a set."""
    return set(map(tuple, duplicates.near_duplicates(duplicates.fingerprint(files), **options)[0].tolist()))


def table(hashes, greys, colour=100):
    """What `look` would give for photos with these hashes and (n, 1024) thumbnails."""
    return pd.DataFrame({"hash": np.asarray(hashes, np.uint64), "grey": [grey.tobytes() for grey in greys],
                         "colour": bytes([colour]) * 192, "reason": ""})  # fmt: skip


# ------------------------------------------------------------------------------------------------ looking


def test_a_photo_is_described_upright_and_with_imagehashs_own_hash(tmp_path):
    picture = scene(0)
    lying = Image.Exif()
    lying[0x0112] = 6  # the camera was held upright: turn by 90 degrees to see it so
    small = scene(1, 32, 32)[..., 0]
    files = [
        save(tmp_path / "plain.png", picture),
        save(tmp_path / "lying.jpg", np.ascontiguousarray(np.rot90(picture)), quality=95, exif=lying),
        save(tmp_path / "small.png", small),
    ]
    seen = duplicates.fingerprint(files)
    assert seen["width"].tolist() == [320, 320, 32] and seen["height"].tolist() == [240, 240, 32]
    assert seen["hash"].dtype == np.uint64 and (seen["reason"] == "").all()
    assert seen["hash"][2] == int(str(imagehash.phash(Image.fromarray(small))), 16)
    assert int(seen["hash"][0] ^ int(str(imagehash.phash(Image.fromarray(picture))), 16)).bit_count() <= 2
    assert duplicates.near_duplicates(seen)[0].tolist() == [[0, 1]]


def test_what_cannot_be_read_has_a_reason_and_matches_nobody(tmp_path):
    good = save(tmp_path / "good.jpg", scene(0))
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:2000])
    bad = [tmp_path / "missing.jpg", tmp_path / "empty.jpg", tmp_path / "half.jpg", "", tmp_path / "missing.jpg"]
    seen = duplicates.fingerprint([*map(str, bad), good, save(tmp_path / "copy.jpg", scene(0), quality=60)])
    assert seen["reason"].tolist() == [
        "No such file or directory", "empty file", "truncated", "nothing to read", "No such file or directory", "", "",
    ]  # fmt: skip
    assert (seen.loc[:4, ["hash", "width", "height"]] == 0).all(axis=None)
    pairs, _ = duplicates.near_duplicates(seen, distance=64)
    assert pairs.tolist() == [[5, 6]]  # positions count what can't be read too
    assert duplicates.components(pairs, len(seen)).tolist() == [0, 1, 2, 3, 4, 5, 5]


def test_nothing_to_look_at_is_no_error():
    for files in ([], [""]):
        seen = duplicates.fingerprint(files)
        pairs, bits = duplicates.near_duplicates(seen)
        assert len(seen) == len(files) and pairs.shape == (0, 2) and pairs.dtype == np.int64 and bits.shape == (0,)
        assert duplicates.components(pairs, len(files)).tolist() == list(range(len(files)))


@pytest.mark.slow
def test_sifting_never_imports_torch(tmp_path):
    file = save(tmp_path / "one.png", scene(0))
    code = (
        f"import sys; from foldface.data import duplicates; seen = duplicates.fingerprint(['{file}'] * 2); "
        "duplicates.components(duplicates.near_duplicates(seen)[0], 2); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


# ------------------------------------------------------------------------------------------------ what is the same


def test_copies_are_found_and_other_photos_are_not(tmp_path):
    picture = scene(0)
    files = [
        save(tmp_path / "original.png", picture),
        save(tmp_path / "recompressed.jpg", picture, quality=35),
        save(tmp_path / "smaller.png", half(picture)),
        save(tmp_path / "squashed.png", cv2.resize(picture, (224, 224), interpolation=cv2.INTER_AREA)),
        save(tmp_path / "brighter.png", brightened(picture)),
        save(tmp_path / "all_of_it.jpg", half(brightened(picture)), quality=60),
    ]
    copies = len(files)
    files += [save(tmp_path / f"other{seed}.jpg", scene(seed)) for seed in range(1, 20)]
    files += [save(tmp_path / "mirrored.png", picture[:, ::-1]), save(tmp_path / "turned.png", np.rot90(picture))]
    assert found(files) == {(i, j) for j in range(copies) for i in range(j)}


def test_brightness_and_contrast_alone_make_no_other_photo(tmp_path):
    picture = scene(0)
    ways = ((0.5, 20), (0.5, 100), (0.3, 60))
    files = [save(tmp_path / f"{n}.png", cv2.convertScaleAbs(picture, alpha=alpha, beta=beta))
             for n, (alpha, beta) in enumerate(ways)]  # fmt: skip
    assert found(files) == {(0, 1), (0, 2), (1, 2)}


def with_thing(picture, radius=11):
    return cv2.circle(picture.copy(), (165, 150), radius, (60, 60, 60), -1)


def with_grain(picture):
    grain = np.random.default_rng(0).normal(0, 12, (32, 32, 1))
    return np.clip(picture + cv2.resize(grain, (320, 240), interpolation=cv2.INTER_NEAREST)[..., None], 0, 255)


def with_colour(picture, red=200, blue=40):
    green = round((128 - 0.299 * red - 0.114 * blue) / 0.587)  # to a grey thumbnail, all such colours are one
    return cv2.circle(picture.copy(), (160, 120), 40, (red, green, blue), -1)


@pytest.mark.parametrize(
    ("guard", "one", "other"),
    [
        ("SPOT", np.copy, with_thing),
        ("ALIKE", np.copy, with_grain),
        ("TINT", with_colour, lambda picture: with_colour(picture, red=40, blue=200)),
    ],
)
def test_another_thing_grain_or_colour_on_the_same_ground_is_another_photo(tmp_path, monkeypatch, guard, one, other):
    ground = scene(0)
    files = [save(tmp_path / f"{n}.png", way(ground).astype(np.uint8)) for n, way in enumerate((one, other))]
    assert found(files, distance=64) == set()
    monkeypatch.setattr(duplicates, guard, -1 if guard == "ALIKE" else 1e9)
    assert found(files, distance=64) == {(0, 1)}  # it is this guard that tells them apart


def test_each_pair_is_judged_by_itself_and_a_small_thing_needs_a_twentieth_of_the_width(tmp_path):
    ground = scene(0)
    pictures = [ground, ground, with_thing(ground, 8), with_thing(ground, 9)]  # the last is 18 of 320 pixels wide
    files = [save(tmp_path / f"{n}.png", picture) for n, picture in enumerate(pictures)]
    assert found(files, distance=64) == {(0, 1), (0, 2), (1, 2), (2, 3)}  # two things nearly alike are one


def test_flat_photos_match_those_of_their_own_shade_alone(tmp_path):
    def plain(*colour):
        return np.full((100, 100, 3), colour, np.uint8)

    grainy = np.clip(plain(255, 255, 255) - np.random.default_rng(0).integers(0, 4, (100, 100, 1)), 0, 255)
    pictures = [plain(255, 255, 255), plain(0, 0, 0), plain(128, 128, 128), plain(200, 40, 40), plain(40, 108, 90),
                grainy.astype(np.uint8), scene(0)]  # fmt: skip
    files = [save(tmp_path / f"{n}.png", picture) for n, picture in enumerate(pictures)]
    files.append(save(tmp_path / "grey_again.jpg", pictures[2], quality=50))
    for distance in (0, 64):
        assert found(files, distance=distance) == {(0, 5), (2, 7)}
    assert (duplicates.fingerprint(files)["hash"] == 0).tolist() == [True] * 6 + [False, True]


@pytest.mark.parametrize("distance", [0, 1, 4, 10])
def test_every_pair_within_the_distance_is_found_and_no_other(distance):
    rng = np.random.default_rng(0)
    pictures, hashes = rng.integers(0, 256, (4, 1024), dtype=np.uint8), rng.integers(2**63, size=4, dtype=np.uint64)
    of = rng.integers(4, size=100)
    flips = np.array([sum(1 << int(bit) for bit in rng.choice(64, rng.integers(6), replace=False)) for _ in of])
    hashes = hashes[of] ^ flips.astype(np.uint64)
    hashes[50:] = hashes[:50]  # the same hash, but perhaps another picture: no pair
    pairs, bits = duplicates.near_duplicates(table(hashes, pictures[of]), distance, block=16, part=7)
    expected = [
        (i, j, apart)
        for i in range(100)
        for j in range(i + 1, 100)
        if (apart := int(hashes[i] ^ hashes[j]).bit_count()) <= distance and of[i] == of[j]
    ]
    assert [(*pair, apart) for pair, apart in zip(pairs.tolist(), bits.tolist(), strict=True)] == expected
    assert expected and pairs.dtype == np.int64


def test_crowds_of_copies_are_grouped_without_all_their_pairs():
    rng = np.random.default_rng(0)
    pictures, hashes = rng.integers(0, 256, (40, 1024), dtype=np.uint8), rng.integers(2**63, size=40, dtype=np.uint64)
    of = rng.permutation(np.concatenate([np.repeat([0, 1], 400), np.arange(2, 40), [39]]))
    pairs, _ = duplicates.near_duplicates(table(hashes[of], pictures[of]), block=64, part=128, most=500)
    component = duplicates.components(pairs, len(of))
    assert len(pairs) < 2_000  # of 159,601
    assert (of[pairs[:, 0]] == of[pairs[:, 1]]).all()
    assert len(set(zip(of, component, strict=True))) == component.max() + 1 == 40


@pytest.mark.slow
def test_twenty_thousand_photos_take_seconds():
    import time

    rng = np.random.default_rng(0)
    hashes, greys = rng.integers(2**63, size=20_000, dtype=np.uint64), rng.integers(0, 256, (20_000, 1024), np.uint8)
    hashes[[7, 19_999]], greys[[7, 19_999]] = [15, 0], greys[0]
    seen, start = table(hashes, greys), time.process_time()
    pairs, bits = duplicates.near_duplicates(seen)
    assert pairs.tolist() == [[7, 19_999]] and bits.tolist() == [4]
    assert time.process_time() - start < 60


def test_photos_are_grouped_by_way_of_others():
    component = duplicates.components(np.array([[0, 3], [3, 5], [1, 2]]), 7)
    assert component.tolist() == [0, 1, 1, 0, 2, 0, 3] and component.dtype == np.int64


# ------------------------------------------------------------------------------------------------ what is to go


def rows(*cells):
    return pd.DataFrame(cells, columns=["photo", "source", "label"])


def test_of_copies_with_one_label_the_first_stays():
    reasons = duplicates.drop_duplicates(
        rows(("a", "train", 1), ("b", "train", 2), ("c", "extra", 1), ("d", "train", 2), ("e", "train", 1)),
        np.array([0, 1, 0, 2, 0]),
    )
    assert reasons.tolist() == ["", "", "nearly the same photo as a", "", "nearly the same photo as a"]
    assert reasons.dtype == object


def test_of_copies_with_several_labels_none_stays_and_each_names_a_rival():
    reasons = duplicates.drop_duplicates(
        rows(("a", "train", 1), ("b", "train", 1), ("c", "extra", 2), ("d", "train", 3), ("e", "train", 3)),
        np.array([4, 4, 4, 4, 0]),
    )
    named = ["c", "c", "a", "a"]
    assert reasons.tolist() == [*(f"nearly the same photo as {n}, which has another label" for n in named), ""]


def test_photos_to_answer_for_neither_go_nor_make_others_go():
    reasons = duplicates.drop_duplicates(
        rows(("a", "eval", -1), ("b", "train", 1), ("c", "eval", -1), ("d", "pseudo", 5), ("e", "train", 1)),
        np.array([0, 0, 0, 0, 0]),
    )
    assert reasons.tolist() == ["", "", "", "", "nearly the same photo as b"]


def test_rows_are_told_by_place_not_by_index():
    frame = rows(("a", "train", 1), ("b", "train", 1), ("c", "train", 1)).set_index(np.array([5, 5, 0]))
    reasons = duplicates.drop_duplicates(frame, np.array([0, 1, 1]))
    assert reasons.tolist() == ["", "", "nearly the same photo as b"]


def test_no_class_keeps_more_than_the_most_and_the_seed_chooses():
    label = np.random.default_rng(0).permutation(np.repeat([0, 1, 7], [100, 10, 3]))
    kept = duplicates.cap(label, 10, seed=0)
    assert kept.dtype == bool and np.bincount(label[kept]).tolist() == [10, 10, 0, 0, 0, 0, 0, 3]
    assert (kept == duplicates.cap(label, 10, seed=0)).all() and (kept != duplicates.cap(label, 10, seed=1)).any()
    assert duplicates.cap(label, 0, seed=0).all() and duplicates.cap(np.array([], int), 5, seed=0).shape == (0,)
    assert (duplicates.cap(pd.Series(label, index=label[::-1]), 10, seed=0) == kept).all()
