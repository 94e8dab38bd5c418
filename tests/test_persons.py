"""Who is who among photos without ids: found where features tell it, nobody where they don't."""

import numpy as np
import pytest

from foldface import persons
from foldface.files import InputError

PEOPLE = 60


def drawn(spread, people=PEOPLE, photos=7, seed=0, size=12):
    """(features (n, size) that lie `spread` around a place of each person, ids (n,), parts (n,) of whole people)."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), photos)
    features = rng.normal(size=(people, size))[person] + spread * rng.normal(size=(len(person), size))
    return features, np.array([f"p{k}" for k in person]), person % 3


def same_groups(found, people):
    """Do two namings (n,) mean the same groups of photos?"""
    return len(set(zip(found, people, strict=True))) == len(set(found)) == len(set(people))


def test_people_whose_features_tell_them_apart_are_found_exactly():
    features, people, part = drawn(0.05)
    found, _ = persons.out_of_fold([features], people, part, 0.9)
    assert same_groups(found, people)
    finder = persons.learn([features], people, part, 0.9)
    others, names, _ = drawn(0.05, people=40, photos=5, seed=1)
    assert same_groups(finder.find([others]), names)
    counts = persons.pair_counts(found, people, part)
    assert persons.precision_and_recall(counts) == {"precision": (1, 1, 1), "recall": (1, 1, 1)}


def test_of_noise_hardly_anyone_is_found():
    noise, people, part = drawn(0.05)
    noise = np.random.default_rng(3).normal(size=noise.shape)
    found, _ = persons.out_of_fold([noise], people, part, 0.9)
    assert len(set(found)) == len(found)  # each photo is a person of its own


def test_what_is_found_in_a_fold_does_not_hang_on_its_ids():
    """Spaces, regression, threshold and size come from the other folds: other ids of a fold change nothing in it."""
    features, people, part = drawn(0.5)
    found, thresholds = persons.out_of_fold([features], people, part, 0.9)
    wrong = people.copy()
    wrong[part == 1] = [f"x{k % 5}" for k in range((part == 1).sum())]
    others, changed = persons.out_of_fold([features], wrong, part, 0.9)
    assert same_groups(found[part == 1], others[part == 1]) and changed[1] == thresholds[1]
    assert changed[0] != thresholds[0]  # where they count, they do


def test_some_pairs_that_are_right_by_chance_are_no_reason_to_join():
    def threshold(pairs):
        return persons.choose_threshold(np.linspace(0.9, 0.5, len(pairs)), np.array(pairs), 0.9)

    assert threshold([(1, 1)] * 8) == np.inf and threshold([(0, 1)] * 50) == np.inf
    assert threshold([(1, 1)] * 30 + [(0, 1)] * 30) == pytest.approx(0.9 - 0.4 * 29.5 / 59)  # between the two
    assert persons.choose_threshold(np.zeros(0), np.zeros((0, 2)), 0.9) == np.inf


def test_among_more_photos_a_pair_as_near_is_less_likely_one_person():
    features, people, part = drawn(0.3)
    finder = persons.learn([features], people, part, 0.9)
    inputs = np.linspace(0, 20, 50)[:, None]
    once, twice = (persons.probabilities(finder.model, inputs, rarer) for rarer in (1.0, 0.5))
    assert np.allclose(twice / (1 - twice), once / (1 - once) / 2) and (np.diff(once) <= 0).all()
    assert len(set(finder._replace(among=1e-12).find([features]))) == len(features)  # as if among very many


def test_a_photo_without_features_is_a_person_of_its_own():
    features, people, part = drawn(0.05)
    finder = persons.learn([features], people, part, 0.9)
    lost = features.copy()
    lost[[0, 8]] = np.nan
    found = finder.find([lost])
    assert (np.bincount(found)[found[[0, 8]]] == 1).all() and len(set(found[1:7])) == 1


def test_nobody_has_more_photos_than_people_use_to_have():
    features, people, part = drawn(0.05, photos=4)
    finder = persons.learn([features], people, part, 0.9)
    assert finder.largest == 4
    alike = np.concatenate([features, features + 1e-9])
    assert np.bincount(finder.find([alike])).max() == 4


def test_links_fall_and_the_mean_over_all_pairs_counts():
    """Of a chain a - b - c, each link strong, the ends are not alike: average linkage joins one side alone."""
    merges = persons.agglomerate(np.array([[0, 1], [1, 2]]), np.array([0.9, 0.8]), 4, 7)
    assert merges.pairs.tolist() == [[0, 1], [0, 2]] and merges.links == pytest.approx([0.9, 0.4])
    assert persons.clusters(merges, 0.5, 4).tolist() == [0, 0, 1, 2]
    assert persons.right_and_found(merges, np.array([5, 5, 6, 7])).tolist() == [[1, 1], [1, 3]]
    rng = np.random.default_rng(0)
    pairs = np.array([(a, b) for a in range(30) for b in range(a + 1, 30)])
    links = persons.agglomerate(pairs, rng.random(len(pairs)), 30, 7).links
    assert len(links) > 20 and (np.diff(links) <= 1e-12).all()


def test_half_of_a_wrong_pair_is_each_persons():
    counts = persons.pair_counts(np.array([0, 0, 1, 1]), np.array(["a", "a", "a", "b"]), np.zeros(4))
    assert counts.right.tolist() == [1, 0] and counts.found.tolist() == [1.5, 0.5] and counts.true.tolist() == [3, 0]


def test_people_with_one_photo_each_teach_nothing():
    features, _, part = drawn(0.05, photos=1)
    with pytest.raises(InputError, match=r"^0 people with two photos or more to learn from, 10 are needed"):
        persons.learn([features], np.arange(len(features)).astype(str), part, 0.9)
