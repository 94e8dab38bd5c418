"""The real scripts on drawn people, one after the other, as the README has them."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from helpers import MASK, ROOT

from foldface import metrics

pytestmark = pytest.mark.chain


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def run(folder):
    """Run a script with settings that make the chain small; returns what it printed."""
    config = {
        "run": "runs/a", "submission": "submission.csv", "device": "cpu",
        "sample": {"folder": "data", "people": 12, "eval_people": 3},
        "data": {"train": "data/train", "eval": "data/eval", "crops": "data/crops", "image_size": 32, "workers": 1},
        "crop": {"detectors": ["retinaface", "person", "centre"], "size": 64},
        "model": {"backbone": "test_resnet", "pretrained": False, "freeze_bn": False},
        "train": {"folds": 2, "epochs": 1}, "pseudo": {"threshold": 0.0},
    }  # fmt: skip
    (folder / "args.json").write_text(json.dumps(config))

    def call(script, *words):
        start = [ROOT / script] if script.endswith(".py") else ["-m", script]
        command, paths = [sys.executable, *start, *map(str, words)], os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=paths)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        assert "it/s" not in done.stderr and "photo/s" not in done.stderr  # no bars in a pipe
        return done.stdout

    return call


@pytest.mark.slow
def test_the_chain_ends_in_a_whole_submission(run, folder):
    run("tools.sample_data")
    run("face_crop.py")
    run("train_kfold.py", "--config", "args.json")
    run("inference.py")
    run("pseudo_label.py")
    run("train_kfold.py", "--data.pseudo", "runs/a/pseudo.csv", "--run", "runs/b")
    run("inference.py", "--run", "runs/b")
    told = run("ensemble.py", "--soft", "--runs", "runs/a", "runs/b")
    assert "normal female >=60" in told and "mean of 4 members from 2 runs" in told

    info, submission = pd.read_csv(folder / "data/eval/info.csv"), pd.read_csv(folder / "submission.csv")
    assert submission["ImageID"].tolist() == info["ImageID"].tolist() and submission["ans"].between(0, 17).all()
    assert json.loads((folder / "runs/a/args.json").read_text())["train"]["folds"] == 2
    oof = pd.read_csv(folder / "runs/b/oof.csv")
    assert len(oof) == 12 * 7 and not oof["ImageID"].duplicated().any()  # pseudo rows are nowhere in it
    answers = pd.read_csv(folder / "data/answers.csv")
    metrics.scores(MASK, answers.set_index("ImageID")["ans"][submission["ImageID"]], submission["ans"])
    run("ensemble.py", "--hard")
    assert "dealt: " in run("train_kfold.py", "--train.only_folds", "[]")
    assert "fold 0 is finished" in run("train.py")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["people_small", "people_faces"])
def test_a_recipe_goes_through_its_second_round(run, folder, recipe):
    """With all that the recipe sets but its size: masks are drawn, rare people come more often, chips lie elsewhere."""
    run("tools.sample_data", "--config", "args.json")
    words = ["--config", ROOT / "recipes" / f"{recipe}.json", "--data.crops", f"data/crops-{recipe}", "--crop.size", 64]
    words += ["--model.backbone", "test_resnet", "--model.pretrained", "false", "--data.image_size", 32]
    words += ["--train.epochs", 1, "--train.freeze_layers", 0, "--pseudo.threshold", 0, "--run", f"runs/{recipe}"]
    run("face_crop.py", *words)
    run("train_kfold.py", *words)
    run("inference.py", "--run", f"runs/{recipe}")
    run("pseudo_label.py", "--run", f"runs/{recipe}")
    second = ["--data.pseudo", f"runs/{recipe}/pseudo.csv", "--run", f"runs/{recipe}-2"]
    assert "pseudo: 42 rows, trained on each in its fold" in run("train.py", *words, *second)
    run("inference.py", "--run", f"runs/{recipe}-2")
    run("ensemble.py", "--soft", "--runs", f"runs/{recipe}", f"runs/{recipe}-2", "--run", f"runs/{recipe}-2")
    assert len(pd.read_csv(folder / "submission.csv")) == 21


@pytest.mark.slow
def test_the_second_places_recipe_goes_through_its_second_round_to_one_folds_answers(run, folder):
    run("tools.sample_data", "--config", "args.json")
    small = json.loads((folder / "args.json").read_text())
    small |= {"run": "runs/report", "model": {"backbone": "test_resnet", "pretrained": False}, "crop": {"size": 64}}
    small |= {"data": small["data"] | {"crops": "data/crops-report"}, "pseudo": {"threshold": 0.0}}
    (folder / "small.json").write_text(json.dumps(small))
    files = ["--config", ROOT / "recipes/report.json", "--config", "small.json"]
    run("face_crop.py", *files)
    run("train_kfold.py", *files)
    run("inference.py", *files)
    run("pseudo_label.py", *files)
    run("train_kfold.py", *files, "--data.pseudo", "runs/report/pseudo.csv", "--run", "runs/report-2")
    run("inference.py", *files, "--run", "runs/report-2")
    assert "mean of 1 members" in run("ensemble.py", *files, "--run", "runs/report-2", "--folds", 0)

    used = json.loads((folder / "runs/report-2/args.json").read_text())
    assert used["loss"] | {"name": "neighbour", "smoothing": 0.1} == used["loss"] and used["model"]["heads"] == "joint"
    assert used["crop"]["detectors"][:2] == ["facenet", "retinaface"] and used["data"]["augment"] == "none"
    assert len(pd.read_csv(folder / "runs/report/pseudo.csv")) > 0
    submission, fold = pd.read_csv(folder / "submission.csv"), pd.read_csv(folder / "runs/report-2/fold0.csv")
    assert submission["ImageID"].tolist() == pd.read_csv(folder / "data/eval/info.csv")["ImageID"].tolist()
    assert submission["ans"].tolist() == fold["ans"].tolist()


@pytest.mark.slow
def test_bf16_trains_on_a_cpu(run):
    assert "F1" in run("train.py", "--run", "runs/bf16", "--train.amp", "bf16")


@pytest.mark.slow
def test_drawing_twice_gives_the_same_bytes(run, folder):
    words = ["--sample.people", 4, "--sample.eval_people", 1, "--sample.folder"]
    for name in ("one", "two"):
        run("tools.sample_data", *words, name)
    files = sorted(path.relative_to(folder / "one") for path in (folder / "one").rglob("*") if path.is_file())
    assert len(files) > 35
    assert all((folder / "one" / path).read_bytes() == (folder / "two" / path).read_bytes() for path in files)
    run("tools.sample_data", *words, "three", "--seed", 1)
    assert (folder / "one/answers.csv").read_bytes() != (folder / "three/answers.csv").read_bytes()
