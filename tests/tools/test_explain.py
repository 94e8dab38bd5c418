"""Where a model looks: the map lies where the evidence is, for convolutions and for tokens."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import MASK, crops_that_are_photos

import model
import train
from foldface import predictions
from foldface.files import InputError, write_csv
from foldface.nn import gradcam, heads
from tools import explain


class Corner(torch.nn.Module):
    """A model that speaks for the first class as far as the upper left quarter of a photo is bright."""

    def __init__(self, outputs):
        super().__init__()
        self.see = torch.nn.AvgPool2d(8)
        self.outputs = outputs
        self.scale = torch.nn.Parameter(torch.ones(1))  # a model without parameters has no device

    def forward(self, x):
        seen = self.see(x)
        corner = seen[:, :, : seen.shape[2] // 2, : seen.shape[3] // 2].mean((1, 2, 3)) * self.scale
        return torch.stack([corner] + [corner * 0] * (self.outputs - 1), 1)


def test_heat_lies_where_the_evidence_is():
    told = heads.Heads(MASK, "joint")
    net = Corner(told.size)
    photos = np.zeros((1, 64, 64, 3), np.uint8)
    photos[:, :32, :32] = 250
    about = {"mean": [0.5] * 3, "std": [0.5] * 3}
    heat = gradcam.maps(net, told, [net.see], photos, about, None, [0])
    assert heat.shape == (1, 1, 64, 64)
    assert explain.heat_inside(heat[0, 0], (0, 0, 0.5, 0.5)) > 0.9
    assert explain.heat_inside(heat[0, 0], (0.5, 0.5, 1, 1)) < 0.01


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_layers_that_have_a_map_are_found_and_asked(name):
    import timm

    torch.manual_seed(0)
    told = heads.Heads(MASK, "multi")
    net = timm.create_model(name, num_classes=told.size).eval()
    side = net.default_cfg["input_size"][-1]
    known = gradcam.spatial_layers(net, side)
    layer = gradcam.default_layer(net, known)
    photos = np.random.default_rng(0).integers(0, 255, (1, side, side, 3), dtype=np.uint8)
    about = {"mean": [0.5] * 3, "std": [0.5] * 3}
    heat = np.stack([gradcam.maps(net, told, [known[layer]], photos, about, 0, [k])[0, 0] for k in (0, 1)])
    assert heat.shape == (2, side, side) and heat.min() >= 0 and heat.max() <= 1 and heat.any()
    assert abs(heat[0] - heat[1]).max() > 0.1  # what speaks for one class is not what speaks for another


def test_layouts_of_outputs_become_channels_first():
    assert gradcam.as_map(None, torch.zeros(1, 7, 7, 96)).shape == (1, 96, 7, 7)
    assert gradcam.as_map(None, torch.zeros(1, 96, 7, 7)).shape == (1, 96, 7, 7)
    assert gradcam.as_map(None, torch.zeros(1, 7, 7, 7)).shape == (1, 7, 7, 7)

    class Vit:
        num_prefix_tokens = 1

    assert gradcam.as_map(Vit(), torch.zeros(1, 1 + 49, 192)).shape == (1, 192, 7, 7)


def test_the_faces_box_in_a_crop_follows_from_the_margin():
    row = {"status": "found", "x1": "10", "y1": "20", "x2": "50", "y2": "100"}
    box = explain.face_box(row, {"margin": 0.25})
    assert box == pytest.approx((0.5 - 1 / 6, 0.5 - 1 / 3, 0.5 + 1 / 6, 0.5 + 1 / 3))
    assert explain.face_box(row | {"status": "fallback"}, {"margin": 0.25}) is None
    assert explain.heat_inside(np.ones((100, 100)), (0.25, 0.25, 0.75, 0.75)) == pytest.approx(0.25)
    assert np.isnan(explain.heat_inside(np.zeros((10, 10)), (0, 0, 1, 1)))


def test_each_photo_is_shown_to_the_fold_that_was_not_trained_on_it(trained):
    competition, config = trained, trained.config()
    for fold, said in ((0, [0, 3, 5]), (1, [1, 4, 6])):  # each always answers the same: outputs of mask, gender and age
        path = competition.root / "run" / f"fold{fold}" / "best.safetensors"
        net, _, about = model.load(path)
        torch.nn.init.zeros_(net.get_classifier().weight)
        net.get_classifier().bias.data = torch.isin(torch.arange(8), torch.tensor(said)).float()
        model.save(path, net, about)
    files = [str(competition.eval / "images" / name) for name in competition.images[:4]]
    explainer = gradcam.Explainer(config, model.load_folds(model.checkpoints(config.run)), [], "", "")
    _, _, told = explainer.explain(pd.DataFrame({"file": files, "fold": [1, 0, 0, 1]}))
    assert [explainer.class_name(k) for k in told[:2]] == ["incorrect female 30-59", "wear male <30"]
    assert told.tolist() == [told[0], told[1], told[1], told[0]]


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_a_run_is_explained_by_head_and_what_has_no_map_is_refused(competition):
    config = competition.config("--model.heads", "multi")
    train.train_folds(config, [0, 1])
    names = [competition.people[0][3] + "/mask1.jpg", str(competition.eval / "images" / competition.images[0])]
    what = ["--photos", *names, "--layers", "layer2", "layer3", "--head", "gender", "--of", "female"]
    competition.run(explain, "--model.heads", "multi", *what)
    page = (competition.root / "run" / "explain.html").read_text()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert page.count('<figure class="row">') == 2 and page.count("<img") == 2 * 3
    assert re.match(r"is \w+ \w+ \S+<br>answered \w+ \w+ \S+<br>map for female at layer2, layer3<br>", captions[0])
    assert captions[1].startswith("map for female at layer2, layer3<br>")  # a file: nobody knows what it is
    assert "layer2 has 4 x 4 places for a photo of 32 pixels" in page and "can only be bands and corners" in page
    for wrong, word in (
        (["--layers", "fc"], "has no map"),
        (["--head", "hat"], "no such head"),
        (["--head", "gender", "--of", "cat"], "is no class"),
        (["--photos", "nowhere.jpg"], "neither a photo"),
        (["--check", 5], "needs face crops"),
    ):
        with pytest.raises(InputError, match=word):
            competition.run(explain, "--model.heads", "multi", *wrong)


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_the_check_says_what_share_of_the_heat_lies_on_the_face(competition, capsys):
    config = competition.config()
    train.train_folds(config, [0, 1])
    oof = predictions.read_oof(MASK, competition.root / "run" / "oof.csv")
    write_csv(competition.root / "run" / "oof.csv", oof.assign(ans=oof["target"]))  # all were right
    crops = crops_that_are_photos(competition)
    competition.run(explain, "--data.crops", crops, "--check", 6)
    said = capsys.readouterr().out
    assert "6 photos answered rightly; a uniform map 0.250" in said
