"""Crops in tar files: the same photos as in files, no person in two shards, each photo once an epoch, stops or not."""

import json
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import MASK, ROOT, at_step, torchrun
from safetensors.torch import load_file

import face_crop
import inference
import train
import train_kfold
from foldface.data import loader, shards
from foldface.data.photos import PhotoError, read_photo
from foldface.faces import pack
from foldface.files import InputError, warn_once
from foldface.settings import as_dict

CROPS = ["--crop.detectors", "[centre]", "--crop.workers", 1, "--crop.size", 48]


@pytest.fixture
def packed(competition, capsys):
    """A competition whose crops lie in files and, 20 a tar file, in shards: (competition, crops, shards)."""
    crops = competition.root / "crops"
    competition.run(face_crop, *CROPS, "--data.crops", crops, "--crop.shards", 20)
    assert f"train from them with --data.crops {crops}/shards" in capsys.readouterr().out
    return competition, crops, crops / "shards"


def index_of(folder):
    return pd.read_csv(folder / "index.csv")


@pytest.mark.slow
def test_every_crop_is_in_one_shard_with_its_bytes_and_webdataset_reads_them(packed):
    _, crops, folder = packed
    manifest = pd.read_csv(crops / "manifest.csv", dtype=str)
    index = index_of(folder)
    assert sorted(index["crop"]) == sorted(manifest["crop"]) and len(index) == 12 * 7 + 5
    for row in index.itertuples():
        name = shards.member(folder / row.shard, row.offset, row.bytes)
        assert shards.SHARDS.read(*shards.parsed(name)).tobytes() == (crops / row.crop).read_bytes()
        assert (read_photo(name) == read_photo(crops / row.crop)).all()
    with tarfile.open(folder / "fold0-000000.tar") as file:
        assert file.getnames() == index["crop"][index["shard"] == "fold0-000000.tar"].tolist()
    webdataset = pytest.importorskip("webdataset")
    for name, own in index.groupby("shard"):
        seen = list(webdataset.WebDataset(str(folder / name), shardshuffle=False))
        assert [one["jpg"] for one in seen] == [(crops / crop).read_bytes() for crop in own["crop"]]


@pytest.mark.slow
def test_a_fold_is_its_shards_and_no_person_is_in_two_of_them(packed):
    competition, _, folder = packed
    index = index_of(folder)
    train_kfold.main(competition.words("--data.crops", folder, *CROPS, "--train.only_folds", "[]"))
    fold = pd.read_csv(competition.root / "run" / "folds.csv", dtype={"id": str}).set_index("id")["fold"]
    own = index[index["crop"].str.startswith("train/")]
    person = own["crop"].str.extract(r"train/(\d+)_person")[0]
    assert (own["shard"].str.extract(r"fold(\d+)-")[0].astype(int) == person.map(fold).to_numpy()).all()
    assert (own.groupby(person)["shard"].nunique() == 1).all() and own.groupby("shard").size().min() >= 20
    assert (index["shard"] == "eval-000000.tar").sum() == 5


@pytest.mark.slow
def test_packing_goes_on_and_leaves_what_is_there(packed):
    competition, crops, folder = packed
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    first, second, *_ = sorted(folder.glob("*.tar"))
    untouched = first.stat().st_mtime_ns
    second.unlink()
    (folder / "index.csv").unlink()
    words = [*CROPS, "--data.crops", crops, "--crop.shards", 20]
    config = competition.root / "config.json"
    config.write_text(json.dumps(as_dict(competition.config(*words))))
    done = torchrun(2, "--", ROOT / "face_crop.py", "--config", config)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert first.stat().st_mtime_ns == untouched
    competition.run(face_crop, *words[:-1], 10)  # others: the old ones go
    assert len(list(folder.glob("*.tar"))) > len([name for name in before if name.endswith(".tar")])
    with pytest.raises(InputError, match="is a folder of shards: name the folder of the crops"):
        competition.run(face_crop, *CROPS, "--data.crops", folder)


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_answers_from_shards_are_those_from_files(packed):
    competition, crops, folder = packed
    competition.run(train, "--data.crops", folder, *CROPS, "--train.epochs", 1)
    found = []
    for place in (folder, crops):
        competition.run(inference, "--data.crops", place, *CROPS)
        found.append((competition.root / "run" / "fold0.csv").read_bytes())
    assert found[0] == found[1]
    (folder / "eval-000000.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"eval-000000\.tar.*: is missing or empty"):
        competition.run(inference, "--data.crops", folder, *CROPS)


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_a_training_from_shards_stopped_in_mid_epoch_goes_on_to_the_same_weights(packed, tmp_path):
    competition, crops, folder = packed
    words = ["--data.crops", folder, *CROPS, "--data.augment", "light", "--model.dropout", 0.3]
    train.train_folds(competition.config(*words), [0])
    resumed = competition.config(*words, "--run", tmp_path / "resumed")
    with at_step(5), pytest.raises(KeyboardInterrupt):
        train.train_folds(resumed, [0])
    with pytest.raises(InputError, match="its photos lay in other shards, or in files"):  # another order of photos
        train.train_folds(competition.config(*words, "--run", tmp_path / "resumed", "--data.crops", crops), [0])
    train.train_folds(resumed, [0])
    one, other = (
        load_file(run / "fold0" / "best.safetensors") for run in (competition.root / "run", tmp_path / "resumed")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_processes_train_from_shards_as_one_does(packed, tmp_path):
    competition, _, folder = packed
    words = ["--data.crops", folder, *CROPS, "--train.optimizer", "sgd", "--train.batch_size", 11, "--train.epochs", 1]
    found = []
    for count in (1, 2):
        config = competition.config(*words, "--run", tmp_path / str(count), "--train.only_folds", "[0]")
        path = tmp_path / "config.json"
        path.write_text(json.dumps(as_dict(config)))
        done = torchrun(count, "--", ROOT / "train_kfold.py", "--config", path)
        assert done.returncode == 0, done.stderr
        found.append(pd.read_csv(tmp_path / str(count) / "fold0" / "oof.csv"))
    assert found[0]["ImageID"].equals(found[1]["ImageID"])
    assert np.allclose(found[0][MASK.probabilities], found[1][MASK.probabilities], atol=1e-3)


def test_an_epoch_takes_each_photo_once_over_all_processes_and_few_shards_at_a_time():
    shard = np.random.default_rng(0).integers(30, size=2000)
    places = shard, np.argsort(np.argsort(shard, kind="stable"))
    epochs = []
    for epoch in (0, 1):
        taken = [[], []]
        for rank in (0, 1):
            sampler = loader.SeededBatchSampler(2000, 64, shuffle=True, seed=3, rank_slice=(rank, 2), places=places)
            sampler.go_to(epoch)
            taken[rank] = [[index for index, _ in batch] for batch in sampler]
            sampler.go_to(epoch, 7)
            assert [[index for index, _ in batch] for batch in sampler] == taken[rank][7:]  # as after a stop
        order = [index for both in zip(*taken, strict=True) for part in both for index in part]
        assert sorted(order) == list(range(2000))
        last = {number: k for k, number in enumerate(shard[order])}
        first = {number: 2000 - k for k, number in enumerate(shard[order][::-1], start=1)}
        open_at = [sum(first[n] <= k <= last[n] for n in first) for k in range(0, 2000, 10)]
        assert max(open_at) <= 2 * shards.WINDOW  # a batch may begin in one window and end in the next
        epochs.append(order)
    assert epochs[0] != epochs[1]


def test_people_are_dealt_whole_and_those_to_answer_for_stay_in_their_order():
    rows = pd.DataFrame({"crop": [f"{k}.jpg" for k in range(100)], "group": ["fold0"] * 70 + ["eval"] * 30})
    rows["person"] = [str(k // 7) for k in range(70)] + [f"e{k}" for k in range(30)]
    dealt = pack.deal(rows, 10, 0)
    own = dealt[dealt["group"] == "fold0"]
    assert (own.groupby("person")["shard"].nunique() == 1).all() and set(own.groupby("shard").size()) == {14}
    assert own["person"].drop_duplicates().tolist() != [str(k) for k in range(10)]
    asked = dealt[dealt["group"] == "eval"]
    assert asked["crop"].tolist() == [f"{k}.jpg" for k in range(70, 100)]
    assert asked["shard"].nunique() == 3


def test_a_process_holds_few_shards_open_and_a_short_one_is_a_damaged_photo(tmp_path):
    for k in range(shards.OPEN + 20):
        (tmp_path / f"a-{k:06d}.tar").write_bytes(b"x" * 600)
        assert len(shards.SHARDS.read(str(tmp_path / f"a-{k:06d}.tar"), 512, 88)) == 88
    assert len(shards.SHARDS.files) <= shards.OPEN
    with pytest.raises(PhotoError):
        read_photo(shards.member(tmp_path / "a-000000.tar", 512, 300))
    with pytest.raises(PhotoError, match="No such file"):
        read_photo(shards.member(tmp_path / "gone.tar", 512, 300))


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_balanced_sampling_says_what_it_cannot_do_with_shards(packed, capsys):
    competition, _, folder = packed
    warn_once.cache_clear()
    words = ["--data.crops", folder, *CROPS, "--train.epochs", 1]
    competition.run(train, *words, "--run", competition.root / "all")
    assert "draws from all shards" not in capsys.readouterr().err
    competition.run(train, *words, "--train.sampler", "balanced")
    assert "train.sampler balanced draws from all shards at once" in capsys.readouterr().err
