"""The final fit (train.final): one more model, of all photos, that is never taken for one that left someone out."""

import json
import re
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Competition, at_step
from safetensors import safe_open
from safetensors.torch import load_file

import dataset
import ensemble
import inference
import pseudo_label
import train
import train_kfold
from foldface import predictions, runs
from foldface.data import pseudo
from foldface.files import InputError

pytestmark = pytest.mark.usefixtures("one_accelerator")

FINAL = ("--train.final", "--train.epochs", 3)


def about(path):
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["about"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A competition whose run has two folds, a test set, a final fit, and the answers of all. Tests read it."""
    made = Competition(tmp_path_factory.mktemp("final"))
    made.run(train_kfold, *FINAL, "--data.test_size", 0.2)
    made.run(inference)
    return made


@pytest.mark.slow
def test_after_the_folds_one_fit_on_all_photos_takes_as_many_epochs_as_their_checkpoints(finished):
    run = finished.root / "run"
    kept = [about(run / f"fold{k}" / "best.safetensors")["epoch"] for k in (0, 1)]
    taken = int(np.ceil(np.median(kept)))
    log = pd.read_csv(run / "final" / "log.csv")
    assert log["epoch"].tolist() == list(range(1, taken + 1)) and log["val_loss"].isna().all()
    found = about(run / "final" / "best.safetensors")
    assert found["epoch"] == taken and found["fold"] == predictions.FINAL
    assert len(pd.read_csv(run / "final" / "speed.csv")) == taken
    assert not (run / "final" / "state.pt").exists() and not (run / "final" / "oof.csv").exists()


@pytest.mark.slow
def test_it_trains_everyone_but_the_test_set(finished):
    config = finished.config("--data.test_size", 0.2, "--train.epochs", 3)
    rows = dataset.prepare(config)
    own = dataset.final_rows(rows, config.predicted)
    tested = set(rows["id"][rows["source"] == "test"])
    assert set(own["id"]) == {person for person, *_ in finished.people} - tested and len(tested) >= 2
    saved = json.loads((finished.root / "run" / "metrics.json").read_text())["test"]
    assert saved["final"]["f1_low"] <= saved["final"]["f1"] <= saved["final"]["f1_high"]


def test_a_pseudo_labelled_photo_trains_it_once_by_the_answer_of_most_folds(finished):
    task = finished.config().predicted
    rows = pd.DataFrame({"ImageID": list("aaabbc"), "label": [4, 7, 7, 2, 1, 3], "fold": [0, 1, 2, 1, 0, 2]})
    once = pseudo.once(rows, task)
    assert dict(zip(once["ImageID"], once["label"], strict=True)) == {"a": 7, "b": 1, "c": 3}


@pytest.mark.slow
def test_it_votes_as_one_more_fold_or_alone_or_not_at_all_and_the_scores_are_those_of_the_folds(finished, capsys):
    run, task = finished.root / "run", finished.config().predicted
    of = {name: predictions.read_fold(task, run / f"{name}.csv") for name in ("fold0", "fold1", "final")}
    votes = {"with": ["fold0", "fold1", "final"], "without": ["fold0", "fold1"], "alone": ["final"]}
    scores = set()
    for how, names in votes.items():
        finished.run(ensemble, "--final", how)
        said = capsys.readouterr().out
        mean = np.mean([of[name][task.probabilities] for name in names], axis=0)
        answers = pd.read_csv(finished.root / "submission.csv")["ans"].to_numpy()
        assert (answers == mean.argmax(1)).all(), how
        assert ("it has no out-of-fold answers" in said) == (how != "without")
        scores.add(re.search(r"out-of-fold macro F1 \S+ \S+", said)[0])
    assert len(scores) == 1
    finished.run(ensemble, "--folds", 0)
    assert "final.csv" not in capsys.readouterr().out
    with pytest.raises(InputError, match="--folds and --final alone"):
        finished.run(ensemble, "--folds", 0, "--final", "alone")


@pytest.mark.slow
def test_it_is_never_taken_for_a_model_that_has_not_seen_someone(finished):
    """No pseudo label comes from it, no score of the folds hangs on it, no fold may start from its weights."""
    run = finished.root / "run"
    assert 0 not in {*pd.read_csv(run / "oof.csv")["fold"]} - {0, 1} and list(predictions.fold_files(run)) == [0, 1]
    finished.run(pseudo_label, "--pseudo.threshold", 0.0)
    assert set(pd.read_csv(run / "pseudo.csv")["fold"]) == {0, 1}
    with pytest.raises(InputError, match=r"leak: the final fit would start from \S+final, .* of the test set"):
        starts = ("--model.init_from_run", run, "--train.final", "--train.only_folds", "[]", "--data.test_size", 0.4)
        finished.run(train_kfold, "--run", finished.root / "after", *starts)
    with pytest.raises(InputError, match=r"leak: fold 0 would start from \S+final, which was trained on person"):
        finished.run(
            train_kfold, "--run", finished.root / "next", "--model.pretrained", run / "final" / "best.safetensors"
        )


@pytest.mark.slow
def test_it_comes_after_folds_that_were_finished_before_and_is_not_done_twice(competition, capsys):
    competition.run(train_kfold, "--train.only_folds", "[0]", "--train.final")
    assert "the final fit waits for the folds 1" in capsys.readouterr().out
    competition.run(train_kfold, "--train.final")
    weights = competition.root / "run" / "final" / "best.safetensors"
    before = weights.read_bytes()
    competition.run(train_kfold, "--train.final")
    assert "the final fit is finished" in capsys.readouterr().out and weights.read_bytes() == before
    competition.run(train_kfold, "--overwrite")
    assert not (competition.root / "run" / "final").exists()
    with pytest.raises(InputError, match=r"--final alone: \S+ has no final.csv"):
        competition.run(inference)
        competition.run(ensemble, "--final", "alone")


@pytest.mark.slow
def test_stopped_it_goes_on_to_the_same_weights(competition):
    """A kill after each epoch: its state goes on, as a fold's does."""
    competition.run(train_kfold, *FINAL, "--train.checkpoint", "last")
    final, whole = competition.root / "run" / "final", competition.root / "whole"
    shutil.copytree(final, whole)
    shutil.rmtree(final)
    words = (*FINAL, "--train.checkpoint", "last", "--save_minutes", 0)

    class Stop(Exception):
        pass

    def stop():
        raise Stop

    with at_step(5, stop), pytest.raises(Stop):
        competition.run(train_kfold, *words)
    assert (final / "state.pt").is_file() and not (final / "best.safetensors").exists()
    assert runs.final_checkpoint(competition.root / "run") == {}
    competition.run(train_kfold, *words)
    one, other = (load_file(folder / "best.safetensors") for folder in (whole, final))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_within_minutes_it_has_a_share_of_the_time_like_a_fold(competition, capsys, monkeypatch):
    config = competition.config("--train.final", "--train.minutes", 0.6)
    train.train_folds(config, range(config.train.folds), started=time.monotonic())
    said = capsys.readouterr().out
    assert re.search(r"final fit: all 84 photos, 0\.\d minutes, as each fold took; nothing is validated", said)
    assert (competition.root / "run" / "final" / "best.safetensors").is_file()
