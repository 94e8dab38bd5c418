"""docs/extending.md: every file of it, as it stands there, is written down and run by the scripts that it names."""

import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, Competition

PAGE = (ROOT / "docs/extending.md").read_text()
SECTIONS = PAGE.split("\n## ")[1:]
FILES = {
    part.splitlines()[0].partition(": ")[2]: re.search(r"```python\n(.*?)```", part, re.DOTALL)[1] for part in SECTIONS
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny competition, its settings, and the files of the page."""
    home = tmp_path_factory.mktemp("extending")
    Competition(home, people=8)
    for name, text in FILES.items():
        (home / name).write_text(text)
    config = {
        "run": "run", "device": "cpu", "submission": "submission.csv",
        "data": {"train": "train", "eval": "eval", "crops": "", "image_size": 32, "workers": 2, "augment": "none"},
        "crop": {"size": 64, "workers": 2},
        "model": {"backbone": "test_resnet", "pretrained": False},
        "train": {"epochs": 1, "batch_size": 8, "folds": 2},
    }  # fmt: skip
    (home / "args.json").write_text(json.dumps(config))
    return home


@pytest.fixture
def run(folder):
    def call(script, *words, fails=False):
        command = [sys.executable, str(ROOT / script), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.returncode == (2 if fails else 0), done.stderr
        return done.stderr if fails else done.stdout

    return call


def test_the_page_has_five_files_of_at_most_twenty_lines_and_a_layout():
    assert list(FILES) == ["poly.py", "snow.py", "bright.py", "balanced.py", "tiny.py", "faces.py"]
    assert all(len(text.splitlines()) <= 20 for text in FILES.values())


@pytest.mark.chain
def test_a_loss_an_augmentation_a_score_and_a_backbone_of_the_users_train_and_answer_together(run, folder):
    files = "[poly.py,snow.py,balanced.py,tiny.py]"
    chosen = ["--loss.name", "poly", "--data.augment", "snow", "--task.score", "balanced", "--model.backbone", "tiny"]
    out = run("train_kfold.py", "--plugins", files, *chosen)
    assert "balanced 0." in out
    saved = json.loads((folder / "run/metrics.json").read_text())
    oof = pd.read_csv(folder / "run/oof.csv")
    true = [(oof["ans"] == k)[oof["target"] == k].mean() for k in oof["target"].unique()]
    assert saved["balanced"] == pytest.approx(np.mean(true)) and saved["balanced_low"] <= saved["balanced"]
    assert list(pd.read_csv(folder / "run/fold0/log.csv"))[4:6] == ["balanced", "f1"]
    for script in ("inference.py", "ensemble.py"):  # a run is no place to take programs from
        said = run(script, fails=True)
        assert '--plugins ["poly.py"' in said and "not taken from a run" in said
        assert "there is no such" in said.splitlines()[-1] and "--plugins FILE.py" in said.splitlines()[-1]
        run(script, "--plugins", files)
    assert len(pd.read_csv(folder / "submission.csv")) == len(pd.read_csv(folder / "eval/info.csv"))


@pytest.mark.chain
def test_a_detector_of_the_users_crops_in_the_processes_that_are_spawned(run, folder):
    words = ["--data.crops", "crops", "--crop.detectors", "[bright,centre]"]
    assert "there is no such detector" in run("face_crop.py", *words, fails=True)
    run("face_crop.py", "--plugins", "bright.py", *words)
    manifest = pd.read_csv(folder / "crops/manifest.csv")
    assert set(manifest["detector"]) == {"bright"} and (manifest["status"] == "found").all()


@pytest.mark.chain
def test_a_layout_and_a_splitter_of_the_users_make_the_folds(run, folder):
    (folder / "faces").mkdir()
    for person in range(6):
        for mask in ("wear", "normal"):
            name = f"p{person}_{('male', 'female')[person % 2]}_{25 + 7 * person}_{mask}.png"
            cv2.imwrite(str(folder / "faces" / name), np.full((40, 40, 3), 20 * person, np.uint8))
    words = ["--plugins", "faces.py", "--data.layout", "faces", "--data.train", "faces", "--data.splitter", "in_turn"]
    run("train_kfold.py", *words, "--run", "in_turn", "--train.only_folds", "[]")
    dealt = pd.read_csv(folder / "in_turn/folds.csv")
    assert sorted(dealt["id"]) == [f"p{k}" for k in range(6)] and dealt["fold"].value_counts().to_dict() == {0: 3, 1: 3}


@pytest.mark.chain
def test_an_augmentation_of_the_users_is_found_where_loaders_spawn_their_processes(folder):
    (folder / "spawned.py").write_text(
        "import multiprocessing, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    import train\n"
        "    from foldface.cli import run_main\n"
        "    run_main(train.main)\n"
    )
    (folder / "dots.py").write_text(
        "import albumentations as A\n"
        "from foldface.registry import register\n\n"
        "class Dots(A.ImageOnlyTransform):\n"
        "    def apply(self, img, **_):\n"
        "        return img | 1\n\n"
        "register('augment', 'dots')(lambda: [Dots(p=1)])\n"
    )
    words = ["--plugins", "dots.py", "--data.augment", "dots", "--run", "spawned", "--data.workers", "1"]
    done = subprocess.run([sys.executable, "spawned.py", *words], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
