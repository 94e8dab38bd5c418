"""Embeddings: folds that see the same are brought to the same numbers, and each photo has those of the right fold."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import MASK, Competition, guesses

import dataset
import ensemble
import model
from foldface import predictions, task
from foldface.files import InputError
from foldface.settings import as_dict
from tools import embed

pytestmark = pytest.mark.slow


def permuted(net, order):
    """Put the last layer's channels of a test_resnet into another order: another network that sees the same."""
    block = net.layer4[-1]
    last = [block.conv2, block.bn2] if not hasattr(block, "conv3") else [block.conv3, block.bn3]
    layers = [*last, *(block.downsample or [])]
    for layer in layers:
        for values in layer.state_dict().values():
            if values.ndim and len(values) == len(order):
                values.copy_(values[order].clone())


def write(competition, fold, turned):
    torch.manual_seed(0)
    net = model.build("test_resnet", 8, False, 32)
    generator = torch.Generator().manual_seed(fold)
    if turned:
        order = torch.randperm(net.get_classifier().in_features, generator=generator)
        permuted(net, order)
    about = {"backbone": "test_resnet", "heads": "multi", "image_size": 32, "augment": "light", "mean": [0.5] * 3}
    about |= {"std": [0.5] * 3, "crops": {}, "fold": fold, "task": task.MASK_TASK, "fit": "stretch"}
    model.save(competition.root / f"run/fold{fold}/best.safetensors", net, about | {"prior": [1 / 18] * 18})


def begin(home, turned):
    """A competition with a run of two folds, whose second sees the same as the first, by other channels if `turned`."""
    competition = Competition(home, people=6, answer_for=40)
    for fold in (0, 1):
        write(competition, fold, turned and fold == 1)
    config = competition.config()
    (home / "run/args.json").write_text(json.dumps(as_dict(config)))
    rows, _ = dataset.training_rows(config)
    fold = (rows["id"].astype(int) % 2).to_numpy()
    frame = rows[["ImageID", "id"]].assign(fold=fold, target=rows["target"])
    predictions.with_answers(MASK, frame, guesses(rows["target"], 1.0, 0)).to_csv(home / "run/oof.csv", index=False)
    for k in (0, 1):
        frame = pd.DataFrame({"ImageID": competition.images})
        predictions.with_answers(MASK, frame, guesses(np.zeros(40, int), 0, k)).to_csv(
            home / f"run/fold{k}.csv", index=False
        )
    return competition


def test_folds_that_see_the_same_by_other_channels_have_the_same_embeddings(tmp_path, capsys):
    found = []
    for turned in (False, True):
        competition = begin(tmp_path / str(turned), turned)
        embed.main(["--run", str(tmp_path / str(turned) / "run"), "--data.workers", "0", "--dims", "8"])
        assert "fold 1: explains 100% of fold 0's embeddings" in capsys.readouterr().out
        run = tmp_path / str(turned) / "run"
        found.append([pd.read_csv(run / name).drop(columns="ImageID").to_numpy() for name in embed.EMBEDDINGS])
    for one, other in zip(*found, strict=True):
        assert one.shape[1] == 8 and one.std(0).min() > 0
        assert np.allclose(one, other, atol=1e-4)
    names = pd.read_csv(run / embed.EMBEDDINGS[0])["ImageID"]
    assert names.tolist() == pd.read_csv(run / "oof.csv")["ImageID"].tolist()
    capsys.readouterr()
    words = ["--submission", str(tmp_path / "submission.csv")]
    ensemble.main(["--stack", "linear", "--embeddings", "--run", str(run), *words])
    assert "stacked on 16 inputs" in capsys.readouterr().out and competition.images


def test_another_basis_of_the_same_space_changes_nothing():
    rng = np.random.default_rng(0)
    seen, own = rng.normal(size=(60, 16)) * np.linspace(1, 3, 16), rng.normal(size=(20, 16))
    turn = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    asked, others, explained = embed.aligned({0: seen, 3: seen @ turn + 5}, {0: own, 3: own @ turn + 5}, 8)
    assert np.allclose(asked[0], asked[3]) and np.allclose(others[0], others[3]) and explained[3] > 0.999
    *_, explained = embed.aligned({0: seen, 1: rng.normal(size=(60, 16))}, {0: own, 1: own}, 8)
    assert explained[1] < 0.8


def test_a_photo_has_the_embedding_of_the_fold_that_did_not_see_it(tmp_path):
    """Fold 1 is made blind: its photos all look alike, and those of fold 0 don't."""
    begin(tmp_path, False)
    path = tmp_path / "run/fold1/best.safetensors"
    net, _, about = model.load(path)
    with torch.no_grad():
        net.conv1[0].weight.zero_() if isinstance(net.conv1, torch.nn.Sequential) else net.conv1.weight.zero_()
    model.save(path, net, about)
    embed.main(["--run", str(tmp_path / "run"), "--data.workers", "0"])
    fold = pd.read_csv(tmp_path / "run/oof.csv")["fold"].to_numpy()
    told = pd.read_csv(tmp_path / "run/oof_embedding.csv").drop(columns="ImageID").to_numpy()
    assert told[fold == 1].std(0).max() < 1e-4 < told[fold == 0].std(0).max()


def test_what_can_not_be_embedded_is_one_line(tmp_path):
    begin(tmp_path, False)
    (tmp_path / "run/fold1/best.safetensors").unlink()
    with pytest.raises(InputError, match=r"oof.csv has fold 1, of which there are no weights: train that fold again"):
        embed.main(["--run", str(tmp_path / "run")])
    with pytest.raises(InputError, match="--dims 0: at least 1"):
        embed.main(["--run", str(tmp_path / "run"), "--dims", "0"])
