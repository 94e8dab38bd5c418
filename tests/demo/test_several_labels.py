"""The demo of a run with several labels a photo."""

import csv
import io
import json

import numpy as np
import pytest
from test_tasks import SMALL, paint

import dataset
import model
from demo import cards, gan_training, serving, words
from foldface import cli, runs
from foldface.files import InputError
from foldface.nn.heads import Heads

pytest.importorskip("gradio")
NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def config(tmp_path):
    """The settings of a run with random weights that answers which of three labels a photo has."""
    for n in range(3):
        paint(tmp_path / f"images/{n}.png", (200, 40 * n, 40), n)
    (tmp_path / "train.csv").write_text("photo,labels\nimages/0.png,cat owl\nimages/1.png,\nimages/2.png,dog\n")
    heads = json.dumps([{"name": "labels", "kind": "multilabel", "classes": NAMES}])
    found = cli.read("", argv=[*map(str, SMALL), "--data.train", str(tmp_path), "--task.heads", heads])
    found.run = str(tmp_path / "run")
    told = Heads(found.predicted, "multi")
    net = model.build("test_resnet", told.size, False, 32)
    rows, _ = dataset.training_rows(found)
    runs.save(found)
    model.save(tmp_path / "run/fold0/best.safetensors", net, model.describe(found, told, net, "no", 0, rows))
    return found


def test_all_labels_of_a_photo_are_answered_with_how_likely_each_is(config):
    predictor = serving.Predictor(config)
    found = predictor.answer(np.full((40, 40, 3), 99, np.uint8), heat=True)
    shares = found["heads"]["labels"]
    assert list(shares) == NAMES and found["heat"].shape == (32, 32, 3)
    assert found["labels"] == {name: share for name, share in shares.items() if share >= 0.5}
    assert found["label"] == (", ".join(found["labels"]) or "none")
    assert found["probability"] == pytest.approx(min(max(share, 1 - share) for share in shares.values()))
    assert found["said"] == words.of_answer("en", found)


ANSWER = {"heads": {"labels": {"cat": 0.93, "dog": 0.2, "owl": 0.71}}, "parts": {}, "faces": 1, "probability": 0.71}


def test_labels_and_none_are_said_in_both_languages_and_each_has_its_advice(config):
    found = ANSWER | {"labels": {"owl": 0.71, "cat": 0.93}, "label": "cat, owl", "said": "."}
    none = ANSWER | {"labels": {}, "heads": {"labels": {"cat": 0.1, "dog": 0.2, "owl": 0.3}}, "label": "none"}
    assert words.of_answer("en", found) == words.of_answer("ko", found) == "cat (93%), owl (71%)."
    assert words.of_answer("en", none) == "None of the labels; the likeliest is owl (30%)."
    assert "owl (30%)" in words.of_answer("ko", none) and "없습니다" in words.of_answer("ko", none)
    shown = cards.card("a.jpg", found, {"cat": "<p>feed</p>", "dog": "<p>walk</p>", "owl": "<p>hush</p>"})
    assert "feed" in shown and "hush" in shown and "walk" not in shown and shown.count('class="bar"') == 3
    content = cards.as_csv(config.predicted, [("a.jpg", found), ("b.jpg", {"said": "bad"})]).decode("utf-8-sig")
    first, second = csv.DictReader(io.StringIO(content))
    assert (first["answer"], first["p cat"], first["p dog"]) == ("cat, owl", "0.9300", "0.2000")
    assert second["p cat"] == "" and second["said"] == "bad"


@pytest.mark.slow
def test_its_page_has_no_generator(config):
    from demo import page, uploads

    config.folds, config.share, config.examples = [], False, []
    desk = uploads.UploadDir(10**6)
    try:
        shown = page.build(config, serving.Predictor(config), desk, lambda key: key)
        labels = [str(block.label) for block in shown.blocks.values() if hasattr(block, "label")]
        assert "upload" in labels and "make" not in labels
    finally:
        desk.close()
    with pytest.raises(InputError, match=r"demo\.gan is for one class a photo"):
        gan_training.train(config)
