"""foldface/data/drawn_masks.py: other masks over the masks of training photos; bare faces stay bare."""

import cv2
import numpy as np
import pandas as pd
import pytest

from foldface import cli
from foldface.data import drawn_masks, loader

CROPS = {"margin": 0.25, "align": False}
FACE = drawn_masks.Face.of_crop(**CROPS)
GREY = np.full((96, 96, 3), 128, np.uint8)
ROWS = pd.DataFrame({"label": [0, 7, 14], "target": -1})  # wear, incorrect, normal: as pseudo labels, say


def config(*words):
    return cli.read("", argv=["--data.draw_masks", "1", *map(str, words)])


def changed(image):
    """Rows of pixels of which a mask covers the middle."""
    return np.flatnonzero((image[:, 40:56].astype(int) != GREY[:, 40:56]).any(2).mean(1) > 0.9)


def test_a_mask_worn_right_covers_the_nose_and_one_worn_wrong_leaves_it_bare():
    nose = round((FACE.eyes + 0.5 * (FACE.mouth - FACE.eyes)) * 96)
    mouth = round(FACE.mouth * 96)
    bridge, nose, mouth = (round((FACE.eyes + share * (FACE.mouth - FACE.eyes)) * 96) for share in (0.3, 0.55, 1))
    for seed in range(60):
        right, wrong = (drawn_masks.draw(GREY, worn, FACE, np.random.default_rng(seed)) for worn in (True, False))
        assert right.dtype == np.uint8 and right.shape == GREY.shape and (GREY == 128).all()
        covered = changed(right)
        assert nose in covered and mouth in covered and covered.min() > FACE.eyes * 96 - 4
        covered = changed(wrong)
        assert mouth + 1 in covered and bridge not in covered


def test_bare_faces_stay_and_the_seed_of_a_photo_alone_decides():
    one, other = (drawn_masks.drawer(config(), ROWS, CROPS) for _ in range(2))
    for seed in range(20):
        assert one(GREY, 2, seed) is GREY
        assert np.array_equal(one(GREY, 0, seed), other(GREY, 0, seed)) and (one(GREY, 1, seed) != GREY).any()
        assert changed(one(GREY, 0, seed)).min() < 54 and changed(one(GREY, 1, seed)).min() > 48  # 54: half of the nose
    assert len({one(GREY, 0, seed).tobytes() for seed in range(20)}) == 20
    half = drawn_masks.drawer(config("--data.draw_masks", 0.5), ROWS, CROPS)
    assert 70 < sum(half(GREY, 0, seed) is not GREY for seed in range(200)) < 130
    assert drawn_masks.drawer(config("--data.draw_masks", 0), ROWS, CROPS) is None


@pytest.mark.parametrize("align", [False, True, "dlib", "arcface"])
def test_masks_lie_where_faces_lie_in_such_crops(align):
    """The middle of the eyes and mouth of the templates that crops are aligned to, with a margin of their half."""
    from foldface.faces.crops import TEMPLATES

    face = drawn_masks.Face.of_crop(0.5, align)
    points = (np.array(TEMPLATES[align]) + 0.5) / 2 if align in TEMPLATES else np.array([(0.42, 0.45), (0.58, 0.45)])
    assert face.eyes == pytest.approx(points[:2, 1].mean(), abs=0.01)
    assert face.distance == pytest.approx(points[1, 0] - points[0, 0], abs=0.01)
    if len(points) == 5:
        assert face.mouth == pytest.approx(points[3:, 1].mean(), abs=0.01)


def test_only_training_photos_get_other_masks(tmp_path):

    cv2.imwrite(str(tmp_path / "a.png"), np.full((32, 32, 3), 128, np.uint8))
    rows = pd.DataFrame({"file": [str(tmp_path / "a.png")]})
    draw = drawn_masks.drawer(config(), ROWS, CROPS)
    trained, seen = (
        loader.PhotoDataset(rows, "none", 32, training, draw_mask=draw)[0, 5][1] for training in (True, False)
    )
    assert (trained != 128).any() and (seen == 128).all()


@pytest.mark.parametrize(
    "words, crops, why",
    [
        (["--task.heads", '[{"name": "kind", "classes": ["a", "b"]}]'], CROPS, "no head mask with classes wear and"),
        ([], {}, "whole photos don't say where a face is"),
    ],
)
def test_no_masks_are_drawn_where_there_are_none_or_no_faces_are_known_and_that_is_said(words, crops, why, capsys):
    assert drawn_masks.drawer(config(*words), ROWS, crops) is None
    error = capsys.readouterr().err
    assert error.startswith("warning: data.draw_masks 1: ") and why in error and "no masks are drawn" in error
