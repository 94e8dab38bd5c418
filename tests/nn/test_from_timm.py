"""Backbones by timm's own names: local-dir:FOLDER and hf-hub:OWNER/NAME."""

import json
import re
import shutil

import pandas as pd
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import ensemble
import inference
import model
import train
from foldface.files import InputError

OWN_PIXELS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


def save(folder, name="test_resnet", pixels=OWN_PIXELS, **args):
    """A network with random weights, in a folder as timm saves it; the network."""
    torch.manual_seed(1)
    net = timm.create_model(name, num_classes=5, **args)
    timm.models.save_for_hf(net, folder, safe_serialization=True)
    about = json.loads((folder / "config.json").read_text())
    about["pretrained_cfg"] |= pixels
    (folder / "config.json").write_text(json.dumps(about))
    return net


def spoil(folder, **changes):
    """Change what config.json says; None takes a name out."""
    about = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in about.items() if value is not None}))


def test_a_folder_gives_the_network_its_weights_and_its_pixels(tmp_path):
    theirs = save(tmp_path / "mine").state_dict()
    ours = model.build(f"local-dir:{tmp_path}/mine", 18, True, 48)
    body = {name: value for name, value in ours.state_dict().items() if not name.startswith("fc.")}
    assert len(body) > 20 and all(torch.equal(value, theirs[name]) for name, value in body.items())
    assert ours.get_classifier().out_features == 18
    assert list(model.pixel_scale(ours)) == [tuple(OWN_PIXELS["mean"]), tuple(OWN_PIXELS["std"])]
    assert "state_dict" not in ours.pretrained_cfg  # it would be copied with the model
    random = model.build(f"local-dir:{tmp_path}/mine", 18, False, 48).state_dict()
    assert not torch.equal(random["conv1.0.weight"], theirs["conv1.0.weight"])


def test_arguments_of_the_architecture_are_followed(tmp_path):
    save(tmp_path / "wide", "resnet10t", block_args={"attn_layer": "eca"}, stem_width=16)
    net = model.build(f"local-dir:{tmp_path}/wide", 3, True, 32)
    assert any("attn" in name or ".se." in name for name in net.state_dict())
    assert net.about["backbone"] == "resnet10t"
    assert {"block_args": {"attn_layer": "eca"}, "stem_width": 16}.items() <= net.about["model_args"].items()


@pytest.mark.slow
def test_the_whole_chain_goes_on_without_the_folder(tmp_path, competition, one_accelerator):
    """A transformer made for one size, trained at another: its weights alone answer, by torch and by ONNX."""
    save(tmp_path / "mine", "test_vit", img_size=64, class_token=False, global_pool="avg")
    words = ["--model.backbone", f"local-dir:{tmp_path}/mine", "--model.pretrained", "true"]
    competition.run(train, *words, "--train.epochs", 1)
    about = model.load(competition.root / "run/fold0/best.safetensors")[2]
    assert about["backbone"] == "test_vit" and about["mean"] == OWN_PIXELS["mean"]
    assert {"class_token": False, "global_pool": "avg", "img_size": 32}.items() <= about["model_args"].items()
    shutil.rmtree(tmp_path / "mine")
    answers = []
    for backend in ("torch", "onnx"):
        inference.main(["--run", f"{competition.root}/run", "--device", "cpu", "--inference.backend", backend])
        answers.append(pd.read_csv(competition.root / "run/fold0.csv"))
    numbers = answers[0].select_dtypes("number").columns.drop("ans")
    assert abs(answers[0][numbers] - answers[1][numbers]).max().max() < 1e-4
    ensemble.main(["--run", f"{competition.root}/run", "--submission", f"{tmp_path}/submission.csv"])


@pytest.mark.slow
def test_training_goes_on_and_stands_beside_another(tmp_path, competition, one_accelerator, capsys):
    save(tmp_path / "mine")
    words = ["--model.backbone", f"local-dir:{tmp_path}/mine", "--model.pretrained", "true"]
    words += ["--model.beside", json.dumps([{"backbone": f"local-dir:{tmp_path}/mine", "pretrained": True}])]
    competition.run(train, *words, "--train.epochs", 1, "--save_minutes", 0)
    competition.run(train, *words, "--train.epochs", 1)
    assert "local-dir" in capsys.readouterr().out
    about = model.load(competition.root / "run/fold0/best.safetensors")[2]
    assert [about["backbone"], about["beside"][0]["backbone"]] == ["test_resnet"] * 2
    assert str(tmp_path / "mine") not in json.dumps(about)


def test_a_strangers_run_reads_no_folder_that_it_names(trained, tmp_path):
    """Weights hold all that is needed; what the run's args.json says of its backbone is not followed."""
    said = {"model": {"backbone": f"local-dir:{tmp_path}/nowhere", "pretrained": True}}
    (trained.root / "run/args.json").write_text(json.dumps(said))
    words = [*trained.words()]
    words = words[: words.index("--model.backbone")] + ["--device", "cpu", "--data.workers", "0"]
    inference.main(words)
    assert (trained.root / "run/fold0.csv").is_file()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": None}, "has no 'architecture'"),
        ({"architecture": "resnet18x"}, "its config.json names resnet18x, which timm doesn't have"),
        ({"architecture": ["resnet18"]}, "architecture is ['resnet18']"),
        ({"model_args": {"checkpoint_path": "x"}}, "model_args may not name checkpoint_path"),
        ({"model_args": {"in_chans": 1}}, "it sees 1 channels"),
        ({"model_args": {"stem_width": 10**9}}, "numbers up to 4096"),
        ({"model_args": {"wings": 2}}, "test_resnet can't be built"),
        ({"model_args": [1]}, "model_args is no object"),
        ({"pretrained_cfg": {"std": [0, 1, 1]}}, "std is [0, 1, 1]"),
        ({"pretrained_cfg": 3}, "is not as timm writes it"),
    ],
    ids=str,
)
def test_a_folder_that_is_not_as_timm_writes_it_is_one_line(tmp_path, changes, reason):
    save(tmp_path / "mine")
    spoil(tmp_path / "mine", **changes)
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        model.build(f"local-dir:{tmp_path}/mine", 18, True, 32)
    assert "\n" not in str(caught.value) and "local-dir" in str(caught.value)


def test_weights_that_do_not_fit_or_are_not_there_are_one_line(tmp_path):
    place, name = tmp_path / "mine", f"local-dir:{tmp_path}/mine"
    with pytest.raises(InputError, match=r"mine: there is no config\.json, as timm's save_for_hf"):
        model.build(name, 18, True, 32)
    save(place)
    tensors = load_file(place / "model.safetensors")
    short = {key: value for key, value in tensors.items() if key != "layer4.0.bn1.weight"}
    save_file(short, place / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: has no layer4\.0\.bn1\.weight, which test_resnet has"):
        model.build(name, 18, True, 32)
    save_file(tensors | {"layer4.0.bn1.weight": torch.zeros(3)}, place / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: doesn't fit test_resnet"):
        model.build(name, 18, True, 32)
    (place / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors and no pytorch_model\.bin: name the file"):
        model.build(name, 18, True, 32)
    torch.save({"state_dict": tensors, "more": InputError}, place / "pytorch_model.bin")
    with pytest.raises(InputError, match="refused, it is damaged or holds more than tensors"):
        model.build(name, 18, True, 32)
    torch.save(tensors, place / "pytorch_model.bin")
    found = model.build(name, 18, True, 32).state_dict()
    assert torch.equal(found["conv1.0.weight"], tensors["conv1.0.weight"])


def test_a_repository_comes_from_the_cache_or_says_how_to_copy_it(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # a port at which nobody answers
    with pytest.raises(InputError, match=r"config\.json is not in the cache .*hf download ann/net --local-dir FOLDER"):
        model.build("hf-hub:ann/net", 18, True, 32)
    home = tmp_path / "models--ann--net"
    theirs = save_in_cache(home)
    ours = model.build("hf-hub:ann/net", 18, True, 32)
    assert torch.equal(ours.state_dict()["conv1.0.weight"], theirs["conv1.0.weight"])
    assert ours.about["backbone"] == "test_resnet"
    (home / "snapshots/abc/model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is not in the cache"):
        model.build("hf-hub:ann/net", 18, True, 32)
    for wrong in ("hf-hub:ann", "hf-hub:ann/net/more", "hf_hub:"):
        with pytest.raises(InputError, match="should be hf-hub:OWNER/NAME"):
            model.build(wrong, 18, True, 32)


def save_in_cache(home):
    """A network in the hub's cache, as a download leaves it; its tensors."""
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text("abc")
    (home / "snapshots/abc").mkdir(parents=True)
    return save(home / "snapshots/abc").state_dict()
