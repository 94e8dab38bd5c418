"""The picture of the README: photos, crops, answers and matrices of a run, small enough for a repository."""

import numpy as np
import pytest
from helpers import MASK, ROOT, guesses
from PIL import Image

import dataset
from foldface import predictions
from foldface.files import InputError, write_csv
from tools import readme_picture


def with_answers(competition, strength=6.0):
    rows, _ = dataset.training_rows(competition.config())
    frame = rows[["ImageID", "id", "target"]].assign(fold=0)
    answers = guesses(rows["target"].to_numpy(), strength, 0)
    write_csv(competition.root / "run" / "oof.csv", predictions.with_answers(MASK, frame, answers))
    return rows


def test_the_picture_shows_people_of_several_classes_and_one_mistake(competition):
    rows = with_answers(competition, 3.0)
    oof = predictions.read_oof(MASK, competition.root / "run" / "oof.csv")
    shown = readme_picture.choose_rows(MASK, oof, rows.assign(file=rows["photo"]))
    assert len(shown) == readme_picture.PEOPLE and shown["id"][:-1].is_unique
    assert (shown["ans"] == shown["target"]).tolist() == [True] * (len(shown) - 1) + [False]
    assert len(np.unique(MASK.decode(shown["target"])["mask"])) > 1


@pytest.mark.slow
def test_the_picture_is_drawn_from_a_run_and_small(competition):
    with_answers(competition)
    competition.run(readme_picture, "--to", competition.root / "a.png")
    with Image.open(competition.root / "a.png") as image:
        assert image.size == (900, 400)
    age = ["--task.heads", '[{"name": "age", "range": [0, 100], "learn": "distribution"}]', "--task.score", "mae"]
    frame = predictions.read_oof(MASK, competition.root / "run" / "oof.csv")[["ImageID", "id", "fold", "target", "ans"]]
    write_csv(competition.root / "run" / "oof.csv", frame.assign(confidence=0.5))
    with pytest.raises(InputError, match="draws classes"):
        competition.run(readme_picture, *age)


def test_the_readmes_show_it_and_it_is_small():
    assert (ROOT / "docs/images/foldface.png").stat().st_size < 100_000
    for page in ROOT.glob("README*.md"):
        assert "](docs/images/foldface.png)" in page.read_text()
