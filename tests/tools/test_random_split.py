"""What a random split of the photos says of people that it has seen, beside what unseen people say."""

import re

import numpy as np
import pytest

from foldface.files import InputError
from tools import random_split


def test_the_same_people_are_put_aside_and_only_the_random_split_has_people_on_both_sides():
    people = np.repeat([f"{n:03d}" for n in range(40)], 7)
    random, honest = (random_split.split_photos(people, by_person, 3) for by_person in (False, True))
    assert set(people[random.unseen]) == set(people[honest.unseen]) and len(set(people[random.unseen])) == 12
    for split in (random, honest):
        assert sorted(np.concatenate(split)) == list(range(280))
        assert not set(people[split.unseen]) & set(people[np.concatenate(split[:2])])
    assert len(set(people[random.train]) & set(people[random.valid])) > 20
    assert not set(people[honest.train]) & set(people[honest.valid])
    with pytest.raises(InputError, match="9 people or groups are too few"):
        random_split.split_photos(people[: 9 * 7], True, 0)


@pytest.mark.slow
def test_it_prints_what_it_measures_on_both_splits(competition, capsys):
    competition.run(random_split)
    out = capsys.readouterr().out
    assert len(re.findall(r"(?m)^  epoch \d/2  loss ", out)) == 4
    rows = re.findall(r"(?m)^split (photos at random|by person): (validation|unseen people) +(\d+) .*\d\.\d{3} \(", out)
    assert [row[:2] for row in rows] == [
        (split, scored) for split in ("photos at random", "by person") for scored in ("validation", "unseen people")
    ]
    assert rows[1][2] == rows[3][2] == "28"  # 4 of 12 people
