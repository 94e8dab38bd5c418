"""Photos as they come, augmentation as promised, and nothing that hangs on the number of workers."""

import os
import pickle
import time
import warnings

import albumentations as A
import bad_photos
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from foldface.data import duplicates, loader
from foldface.data.augment import RandomAffine, shape, variation
from foldface.data.photos import PhotoError, decode, is_photo, read_photo, turned_box, upright
from foldface.report import html
from tools import eda


@pytest.fixture
def picture():
    """A smooth colour picture, 48 x 64, that JPEG hardly changes."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 3, y * 4, 255 - x * 2], -1).astype(np.uint8)


def save(path, picture, **options):
    Image.fromarray(picture).save(path, **options)
    return path


def test_any_kind_of_photo_becomes_8_bit_rgb(tmp_path, picture):
    image = Image.fromarray(picture)
    image.save(tmp_path / "rgb.png")
    image.save(tmp_path / "jpeg.jpg", quality=95)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    image.copy().convert("RGBA").save(tmp_path / "alpha.png")
    image.save(tmp_path / "한국어 이름.jpg", quality=95)
    image.save(tmp_path / "really_a.png.jpg", format="PNG")
    cv2.imwrite(str(tmp_path / "sixteen.png"), picture[..., ::-1].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees to see it so
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    for path in tmp_path.iterdir():
        found = read_photo(path)
        assert found.shape == (48, 64, 3) and found.dtype == np.uint8, path.name
        assert abs(found.astype(int) - picture).mean() < 4, path.name
    image.convert("L").save(tmp_path / "grey.png")
    assert (np.ptp(read_photo(tmp_path / "grey.png"), axis=2) == 0).all()


@pytest.mark.slow
def test_what_is_no_photo_is_said_to_be_none(tmp_path, picture):
    whole = save(tmp_path / "whole.jpg", picture, quality=95).read_bytes()
    png = save(tmp_path / "whole.png", picture).read_bytes()
    bad = {"missing.jpg": None, "empty.jpg": b"", "text.jpg": b"hello", "half.jpg": whole[: len(whole) // 2],
           "half.png": png[: len(png) // 2]}  # fmt: skip
    for name, content in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(PhotoError):
            read_photo(tmp_path / name)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(PhotoError, match="too many pixels"):
        read_photo(tmp_path / "bomb.png")


def test_a_jpeg_is_whole_if_its_decoder_finds_all_its_pixels(picture):
    rng = np.random.default_rng(0)
    large = cv2.resize(picture, (400, 300)) // 2 + rng.integers(0, 20, (300, 400, 3), dtype=np.uint8)
    data = cv2.imencode(".jpg", large)[1]
    whole, end = decode(data), data[-2:]
    film = rng.integers(0, 255, 20_000, dtype=np.uint8)  # longer than what is read at the end of a file
    for name, other in {
        "a film behind its end": [data, film],
        "zeros behind its end": [data, np.zeros(9000, np.uint8)],
        "zeros before its end": [data[:-2], np.zeros(64, np.uint8), end],
        "no end": [data[:-2]],
        "half of an end": [data[:-1]],
    }.items():
        assert np.array_equal(decode(np.concatenate(other)), whole), name
    for at in range(2000, len(data) - 2000, len(data) // 10):
        for parts in ([data[:at], data[at + 900 :]], [data[:at], end], [data[:at], film]):
            for side in (0, 64):  # a smaller photo is decoded otherwise, and has the same holes
                with pytest.raises(PhotoError, match=r"damaged|truncated"):
                    decode(np.concatenate(parts), side)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_come_out_as_opencv_would_decode_them(tmp_path, picture, turn, mode):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(cv2.resize(picture, (200, 120))).convert(mode).save(tmp_path / "a.jpg", exif=exif)
    for side, flag in ((0, 0), (60, 16), (30, 32), (15, 64)):
        expected = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_COLOR_RGB | flag)
        assert np.array_equal(read_photo(tmp_path / "a.jpg", side), expected)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_box_turns_with_its_photo(turn):
    photo, box = np.zeros((30, 50, 3), np.uint8), [10, 5, 30, 12]
    photo[5:12, 10:30] = 255
    x1, y1, x2, y2 = turned_box(box, turn, 50, 30)
    seen = upright(photo, turn)
    assert (seen[y1:y2, x1:x2] == 255).all() and (y2 - y1) * (x2 - x1) == 7 * 20 == (seen > 0).sum() / 3


def test_twelve_bits_keep_their_grey_levels_and_sixteen_stay_as_they_are(tmp_path):
    ramp = np.tile(np.arange(256, dtype=np.uint16), (8, 1))
    for name, scale in (("twelve.png", 16), ("sixteen.png", 257)):
        cv2.imwrite(str(tmp_path / name), ramp * scale)
        assert np.array_equal(read_photo(tmp_path / name)[..., 0], ramp), name
    cv2.imwrite(str(tmp_path / "dark.tif"), ramp[:, :17] * 256)  # 4096 and more: of 16 bits, and dark
    assert read_photo(tmp_path / "dark.tif").max() == 16


def test_what_is_a_photo_by_its_first_bytes_is_one(tmp_path):
    names = [name for name, (_, whole) in bad_photos.BY_KIND.items() if whole and name != "huge.jpg"]
    bad_photos.write(tmp_path, np.zeros((20, 20, 3), np.uint8), names)
    for number, name in enumerate(names):
        (tmp_path / name).rename(tmp_path / f"{number}.dat")
        assert is_photo(tmp_path / f"{number}.dat"), name
    texts = {"bmi.csv": "BMI,age", "list.txt": "P1 is first", "notes": "", "rows.csv": "photo,kind", "two.md": "II*"}
    for name, words in texts.items():
        (tmp_path / name).write_text(words)
        assert not is_photo(tmp_path / name), name
    (tmp_path / "phone").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    assert is_photo(tmp_path / "phone")
    with pytest.raises(PhotoError, match="HEIC, which can't be decoded here: save it as JPEG"):
        read_photo(tmp_path / "phone")
    os.mkfifo(tmp_path / "pipe")
    assert not is_photo(tmp_path / "pipe") and not is_photo(tmp_path)


SIZES = [(60, 800), (9, 9), (1, 1), (5000, 1), (1, 5000), (300, 40_000)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_a_photo_of_any_shape_becomes_a_square(size, fit):
    photo = np.full((*size, 3), 90, np.uint8)
    for preset, side in (("strong", 64), ("diary", 224)):
        square = shape(preset, side, fit)(image=photo)["image"]
        assert square.shape == (side, side, 3) and square.dtype == np.uint8
        assert variation(preset, 1.0)(image=square)["image"].shape == square.shape


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_photo_of_any_shape_can_be_compared_and_shown(tmp_path, size):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((*size, 3), 90, np.uint8))
    seen = duplicates.fingerprint([str(tmp_path / "a.png")])
    assert (seen["height"][0], seen["width"][0], seen["reason"][0]) == (*size, "")
    assert eda.measure(seen)["brightness"][0] == 90
    assert 'width="' in html.gallery([(str(tmp_path / "a.png"), ["a"])])


def test_the_diary_preset_is_the_diarys_list():
    shown = shape("diary", 224).transforms
    steps = [*shown, *variation("diary").transforms]
    assert [type(step).__name__ for step in steps] == ["CenterCrop", "Resize", "RandomBrightnessContrast",
                                                       "HorizontalFlip", "InvertImg", "CoarseDropout"]  # fmt: skip
    assert (steps[0].height, steps[0].width, steps[1].height, steps[1].width) == (400, 256, 224, 224)
    holes = steps[-1]
    assert holes.num_holes_range == (4, 4) and holes.hole_height_range == (50, 50) == holes.hole_width_range
    assert [type(step).__name__ for step in shown] == ["CenterCrop", "Resize"]


def test_the_trash_preset_is_the_trash_teams_list():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of albumentations' own talk is passed on
        steps = variation("trash").transforms
    found = [
        [type(one).__name__ for one in step.transforms] if isinstance(step, A.OneOf) else type(step).__name__
        for step in steps
    ]
    assert found == [
        ["ShiftScaleRotate", "RandomRotate90"],
        ["Spatter", "Spatter"],
        ["RandomBrightnessContrast", "RandomToneCurve"],
        ["GaussianBlur", "GaussNoise"],
        *("RandomShadow", "HorizontalFlip", "VerticalFlip"),
    ]
    assert [one.mode for one in steps[1].transforms] == ["rain", "mud"]
    assert all(step.p == 0.5 for step in steps)
    choices = [one for step in steps if isinstance(step, A.OneOf) for one in step.transforms]
    assert {one.p for one in choices} == {1}


def test_normalising_on_the_device_equals_albumentations_normalize(picture):
    mean, std = loader.IMAGENET
    expected = A.Normalize(mean, std)(image=picture)["image"].transpose(2, 0, 1)
    found = loader.normalize(torch.from_numpy(picture[None]), mean, std)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(found[0].numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("preset", ["none", "light", "strong", "shapes", "trash"])
def test_every_preset_gives_squares_and_only_training_varies(tmp_path, picture, preset):
    path = save(tmp_path / "a.png", picture)
    for training in (False, True):
        photos = loader.PhotoDataset(pd.DataFrame({"file": [path]}), preset, 32, training)
        found = [photos[0, seed][1] for seed in range(20)]
        assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in found)
        assert any((image != found[0]).any() for image in found) == (training and preset != "none")


@pytest.mark.parametrize("preset", ["none", "light", "diary", "strong", "shapes", "trash"])
def test_data_flip_is_the_probability_of_the_mirror_image_in_every_preset(preset):
    def mirrors(steps):
        inner = [part for step in steps for part in (step.transforms if isinstance(step, A.OneOf) else [step])]
        return [part.p for part in inner if isinstance(part, A.HorizontalFlip)]

    def others(steps):
        flat = [(step, step.transforms) if isinstance(step, A.OneOf) else (step, [step]) for step in steps]
        chances = [(type(p).__name__, s.p / len(parts) if s is not p else p.p) for s, parts in flat for p in parts]
        return [(name, pytest.approx(p)) for name, p in chances if name != "HorizontalFlip"]

    own, changed = (variation(preset, flip=flip).transforms for flip in (None, 0.6))
    assert mirrors(changed) == [0.6] and len(mirrors(own)) == (preset != "none")
    assert [name for name, _ in others(own)] == [name for name, _ in others(changed)]
    assert all(one == other.expected for (_, one), (_, other) in zip(others(own), others(changed), strict=True))
    photo = np.zeros((224, 224, 3), np.uint8)
    photo[:, 112:] = 255
    flipped = variation("none", flip=1.0)(image=photo)["image"]
    assert (flipped == photo[:, ::-1]).all()
    assert (variation("none", flip=0.0)(image=photo)["image"] == photo).all()


def test_an_affine_step_turns_scales_and_shifts_about_the_middle_and_mirrors_beyond():
    photo = np.full((40, 60, 3), 50, np.uint8)
    photo[18:22, 28:32] = 250
    step = RandomAffine(20, 0.2, 0.1, p=1)
    step = pickle.loads(pickle.dumps(step))  # as it reaches the workers where processes are spawned
    places, sizes = [], []
    for seed in range(400):
        step.set_random_seed(seed)
        image = step(image=photo)["image"]
        assert image.shape == photo.shape and image.min() >= 49  # no black corner
        y, x = np.nonzero(image[..., 0] > 150)
        places.append((x.mean() - 29.5, y.mean() - 19.5))
        sizes.append(len(x) / 16)
    places = np.abs(places)
    assert places.max(0) == pytest.approx([6, 4], abs=0.7) and places.mean(0) == pytest.approx([3, 2], abs=0.4)
    assert np.mean(sizes) == pytest.approx(1, abs=0.1) and 1.2 < max(sizes) < 1.6 and 0.4 < min(sizes) < 0.85
    still = RandomAffine(0, 0.0, 0.0, p=1)
    assert (still(image=photo)["image"] == photo).all()


def test_the_changes_of_a_photo_are_drawn_apart(tmp_path):
    photo = np.full((64, 64, 3), 100, np.uint8)
    photo[:, :32] = 140
    photos = loader.PhotoDataset(pd.DataFrame({"file": [save(tmp_path / "a.png", photo)]}), "light", 64, True)
    found = [photos[0, seed][1].astype(float) for seed in range(300)]
    mirrored = np.array([image[:, :20].mean() < image[:, -20:].mean() for image in found])
    changed = np.array([abs(image.max() - 140) > 3 for image in found])
    assert abs(np.corrcoef(mirrored, changed)[0, 1]) < 0.2  # seeded step by step it was 1: brightness told the mirrored


def test_a_jpeg_is_decoded_no_larger_than_it_is_needed(tmp_path, picture):
    large = cv2.resize(picture, (400, 300))
    path = save(tmp_path / "a.jpg", large)
    sizes = {side: read_photo(path, side).shape[:2] for side in (0, 301, 151, 150, 80, 75, 37, 1)}
    assert sizes == {0: (300, 400), 301: (300, 400), 151: (300, 400), 150: (150, 200), 80: (150, 200),
                     75: (75, 100), 37: (38, 50), 1: (38, 50)}  # fmt: skip
    assert read_photo(save(tmp_path / "a.png", large), 10).shape[:2] == (300, 400)
    whole, small = (loader.PhotoDataset(pd.DataFrame({"file": [path]}), "none", 64, False) for _ in range(2))
    whole.side = 0
    assert np.abs(whole[0, 0][1].astype(int) - small[0, 0][1]).mean() < 3


@pytest.mark.slow
def test_photos_are_decoded_once_and_stay_the_same(tmp_path, picture, monkeypatch):
    rows = pd.DataFrame({"file": [save(tmp_path / f"{n}.png", np.roll(picture, n, 1)) for n in range(6)]})
    room = 4 * 24 * 24 * 3 / 1e9  # for four of the six
    reads, fromfile = [], np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda path, *words: reads.append(path) or fromfile(path, *words))
    plain, keeping = (loader.PhotoDataset(rows, "strong", 24, True, memory_gb=gb) for gb in (0, room))
    for epoch in range(3):
        for index in range(6):
            assert (plain[index, epoch][1] == keeping[index, epoch][1]).all()
    assert len(reads) == 3 * 6 + 4 + 3 * 2
    keeping.there[:] = 0
    feed = loader.make(keeping, loader.SeededBatchSampler(6, 2), 2)
    list(feed)
    assert keeping.there.all(), "the workers' photos are everybody's"


@pytest.mark.parametrize("augment", ["light", "strong"])
def test_photos_are_the_same_whatever_the_number_of_workers(tmp_path, picture, augment):
    rows = pd.DataFrame({"file": [save(tmp_path / f"{n}.png", np.roll(picture, n, 1)) for n in range(10)]})

    def epoch(workers, number):
        batches = loader.SeededBatchSampler(10, 4, shuffle=True, seed=3)
        batches.go_to(number)
        return [(indices.tolist(), photos) for indices, photos, _ in
                loader.make(loader.PhotoDataset(rows, augment, 24, True), batches, workers)]  # fmt: skip

    alone, two = epoch(0, 0), epoch(2, 0)
    assert [a for a, _ in alone] == [b for b, _ in two]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(alone, two, strict=True))
    assert [a for a, _ in epoch(0, 1)] != [a for a, _ in alone]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_batches_stay_what_they_were_as_others_come(tmp_path, picture, monkeypatch, shared):
    """Workers write into the same memory again and again, also after an epoch that was left halfway."""
    monkeypatch.setattr(loader, "shared_by_fork", lambda: shared)
    rows = pd.DataFrame({"file": [save(tmp_path / f"{n}.png", np.roll(picture, n, 1)) for n in range(20)]})
    rows = pd.concat([rows, rows, pd.DataFrame({"file": [tmp_path / "gone.png"]})], ignore_index=True)
    photos = loader.PhotoDataset(rows, "light", 24, True)
    alone = list(loader.make(photos, loader.SeededBatchSampler(41, 3), 0))
    feed = loader.make(photos, loader.SeededBatchSampler(41, 3), 3)
    assert len(feed) == len(alone) == 14 and (feed.ring.places is not None) == shared
    honest = feed.ring.take
    feed.ring.take = lambda place: (time.sleep(0.02), honest(place))[1]  # workers are ahead as far as they may be
    for _, _ in zip(feed, range(5), strict=False):
        pass
    for found in (list(feed), list(feed)):
        for one, other in zip(alone, found, strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and one[2] == other[2]
    assert "No such file" in alone[-1][2][-1]
    assert list(loader.make(photos, loader.SeededBatchSampler(1, 2, rank_slice=(1, 2)), 1)) == [], (
        "no photo for this process"
    )


def test_a_resumed_epoch_goes_on_with_the_same_batches():
    batches = loader.SeededBatchSampler(50, 8, shuffle=True, seed=1)
    whole = list(batches)
    batches.go_to(0, 3)
    assert list(batches) == whole[3:] and len(whole) == len(batches) == 7
    assert sorted(index for batch in whole for index, _ in batch) == list(range(50))


@pytest.mark.parametrize(("count", "sizes"), [(9, [4, 5]), (8, [4, 4]), (10, [4, 4, 2]), (1, [1]), (5, [5])])
def test_no_training_batch_holds_a_single_photo(count, sizes):
    batches = loader.SeededBatchSampler(count, 4, shuffle=True)
    assert [len(batch) for batch in batches] == sizes and len(batches) == len(sizes)
    assert sum(len(batch) for batch in loader.SeededBatchSampler(count, 4)) == count


def test_an_unreadable_photo_is_marked_not_skipped(tmp_path, picture):
    rows = pd.DataFrame({"file": [save(tmp_path / "good.png", picture), tmp_path / "gone.png"]})
    feed = loader.make(loader.PhotoDataset(rows, "none", 16, False), loader.SeededBatchSampler(2, 2), 0)
    (indices, photos, errors) = next(iter(feed))
    assert indices.tolist() == [0, 1] and errors[0] == "" and "No such file" in errors[1] and not photos[1].any()


@pytest.mark.parametrize("count", [1, 16, 17, 31, 33, 35, 48])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_each_batch_and_no_photo_is_left_or_doubled(count, processes):
    if count < 2 * processes > 2:
        return  # refused before it comes to this
    whole = list(loader.SeededBatchSampler(count, 16, True, 5))
    shares = [list(loader.SeededBatchSampler(count, 16, True, 5, (k, processes))) for k in range(processes)]
    steps = len(loader.SeededBatchSampler(count, 16, True, 5, (0, processes)))
    assert all(len(share) == steps for share in shares)  # else one would wait for the others forever
    together = sorted(key for share in shares for batch in share for key in batch)
    assert together == sorted(key for keys in whole for key in keys)
    assert {index for index, _ in together} == set(range(count))
