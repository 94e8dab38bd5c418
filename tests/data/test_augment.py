"""foldface/data/augment.py: the papers' augmentations, seeded by the photo."""

import random

import numpy as np
import pytest

from foldface.data import augment

PHOTO = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)


def seen(steps, seed):
    """A photo as its seed varies it."""
    steps.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return steps(image=PHOTO.copy())["image"]


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment", "resized_crop"])
def test_the_seed_of_a_photo_alone_decides_how_it_is_varied(name):
    one, other = augment.variation(name), augment.variation(name)
    for seed in range(30):
        first = seen(one, seed)
        assert first.shape == PHOTO.shape and first.dtype == np.uint8
        assert np.array_equal(first, seen(other, seed))
    assert len({seen(one, seed).tobytes() for seed in range(30)}) > 20


def test_a_resized_crop_keeps_at_least_its_share_of_the_photo():
    """A ramp from left to right shows how much of the width is left, one from the top how much of the height."""
    ramps = np.zeros((100, 100, 3), np.uint8)
    ramps[..., 0], ramps[..., 1] = np.arange(100)[None], np.arange(100)[:, None]
    for seed in range(40):
        step = augment.ResizedCrop((0.5, 1.0))
        step.set_random_state(np.random.default_rng(seed), random.Random(seed))
        found = step(image=ramps)["image"].astype(int)
        wide, high = (np.ptp(found[..., k]) + 1 for k in (0, 1))
        assert 0.45 < wide * high / 1e4 <= 1 and 0.7 < wide / high < 1.42


def test_trivialaugment_is_one_operation_and_randaugment_two():
    one, two = augment.trivialaugment()[1], augment.randaugment()[1]
    assert len(one.transforms) == len(two.transforms) == 14 and two.n == 2 and two.replace
