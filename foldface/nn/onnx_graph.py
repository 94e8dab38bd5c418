"""The graph of an ONNX network: cut before its classifier, without its weights as text, its sizes, its layers.

A graph may be a stranger's: only feed-forward operators are taken, no file is opened, and all sizes must be known
before anything is computed.
"""

import base64
import math
import re
import zlib

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

OPERATORS = """
Abs Add AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose Div
Dropout Elu Equal Erf Exp Expand Flatten Gather Gelu Gemm GlobalAveragePool GlobalMaxPool HardSigmoid
HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LRN
MatMul Max MaxPool Min Mish Mul Neg PRelu Pad Pow Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum
Relu Reshape Resize Selu Shape Sigmoid Slice Softmax Softplus Softsign Split Sqrt Squeeze Sub Sum Tanh
Transpose Unsqueeze Where
"""  # plain functions of a photo
SHAPING = ("Resize", "Pad", "Clip", "Reshape", "Slice", "Expand", "Split")  # their other inputs are settings
MAX_VALUES = 2**27  # of one photo's activations, each
MAX_GRAPH_BYTES = 4 * 2**20  # of a graph without its weights


class Refused(ValueError):
    """A graph that is not supported, and why."""


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def opened(whole: onnx.ModelProto, cut: str = "") -> onnx.ModelProto:
    """The part of a graph from its photos to its features, with plain names: the input photos, the output features.

    cut: name of the value that the features are; "" = what goes into the classifier (`before_classifier`).
    Raises Refused.
    """
    graph = whole.graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise Refused("has not one input (n, 3, height, width)")
    made = {name: node for node in graph.node for name in node.output}
    cut = cut or before_classifier(graph, made, stored)
    if cut not in made:
        names = [node.output[0] for node in graph.node[-6:]]
        raise Refused(f"has no value {cut}; the last ones are {', '.join(names)}")
    needed, waiting = set(), [cut]
    while waiting:
        node = made.get(waiting.pop())
        if node is not None and id(node) not in needed:
            needed.add(id(node))
            waiting += node.input
    nodes = [node for node in graph.node if id(node) in needed]
    if not any(inputs[0].name in node.input for node in nodes):
        raise Refused(f"its value {cut} does not depend on the photos")
    return renamed(whole, nodes, inputs[0].name, cut)


def before_classifier(graph, made, stored) -> str:
    """The name of the value that the last layer with weights of its own multiplies, on the way to the first output."""
    constants = stored | {node.output[0] for node in graph.node if node.op_type == "Constant"}
    name, seen = graph.output[0].name, set()
    while name in made and name not in seen:
        seen.add(name)
        node = made[name]
        weighted = len(node.input) > 1 and node.input[1] in constants
        if node.op_type in ("Gemm", "MatMul", "Conv") and weighted:
            return node.input[0]
        inputs = [value for value in node.input if value and value not in constants]
        if len(inputs) != 1:
            break
        name = inputs[0]
    raise Refused(
        "its classifier was not found: name the value that goes into it, onnx:FILE#NAME; the last ones are "
        + ", ".join(node.output[0] for node in graph.node[-6:])
    )


def renamed(whole, nodes, photos, features) -> onnx.ModelProto:
    """A model of these nodes alone. Values are called n0, n1, ..., stored tensors w0, w1, ...: names are the modules'
    and may hold anything in a file. Constant nodes become stored tensors."""
    tensors = {tensor.name: tensor for tensor in whole.graph.initializer}
    nodes = folded(nodes, tensors, whole.opset_import)
    names, kept = {photos: "photos", features: "features", "": ""}, []
    for node in nodes:
        for name in node.input:
            if name in tensors and name not in names:
                names[name] = f"w{len(kept)}"
                copy = onnx.TensorProto()
                copy.CopyFrom(tensors[name])
                copy.MergeFrom(onnx.TensorProto(name=names[name]))
                kept.append(copy)
        for name in node.output:
            names.setdefault(name, f"n{len(names)}" if name else "")
    found = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.ClearField("name")
        copy.ClearField("doc_string")
        del copy.input[:], copy.output[:]
        try:
            copy.input.extend(names[name] for name in node.input)
        except KeyError as error:
            raise Refused(f"its value {error} comes from nowhere") from None
        copy.output.extend(names[name] for name in node.output)
        found.append(copy)
    values = [
        onnx.helper.make_tensor_value_info("photos", TensorProto.FLOAT, ["n", 3, "h", "w"]),
        onnx.helper.make_tensor_value_info("features", TensorProto.FLOAT, None),
    ]
    graph = onnx.helper.make_graph(found, "backbone", values[:1], values[1:], kept)
    opsets = [one for one in whole.opset_import if one.domain in ("", "ai.onnx")]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=min(whole.ir_version, 10))


def folded(nodes, tensors, opsets) -> list:
    """The nodes that depend on the photos; what the others give joins the stored tensors. PyTorch's exporter writes
    weights that several layers share as Identity nodes, which layers could not take."""
    left = []
    for node in nodes:
        if all(name in tensors for name in node.input) and len(node.output) == 1 and node.op_type in OPERATORS.split():
            alone = onnx.helper.make_graph([node], "alone", [], [onnx.ValueInfoProto(name=node.output[0])])
            alone.initializer.extend(tensors[name] for name in dict.fromkeys(node.input))
            model = onnx.helper.make_model(alone, opset_imports=opsets)
            value = ReferenceEvaluator(model).run(None, {})[0]
            tensors[node.output[0]] = numpy_helper.from_array(np.asarray(value), node.output[0])
        else:
            left.append(node)
    return left


def check(graph: onnx.ModelProto) -> None:
    """Raise Refused for operators that are not known to be plain functions of a photo, and for tensors outside."""
    for node in graph.graph.node:
        if node.op_type not in OPERATORS.split() or node.domain not in ("", "ai.onnx"):
            raise Refused(f"its operator {node.op_type} is not supported")
        if any(part.HasField("g") or part.graphs for part in node.attribute):
            raise Refused(f"its operator {node.op_type} holds a graph of its own")
        for name in (*node.input, *node.output):
            if not re.fullmatch(r"(photos|features|[nw]\d+)?", name):
                raise Refused(f"a value of it is called {name!r}")
    if len(graph.graph.input) != 1 or [value.name for value in graph.graph.output] != ["features"]:
        raise Refused("does not lead from photos to features")
    for tensor in graph.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise Refused("its tensors are in another file")
        if tensor.data_type == TensorProto.STRING:
            raise Refused("holds text")


def sizes(graph: onnx.ModelProto, side: int, photos: int = 2) -> list[int]:
    """The features' shape for so many photos of `side` pixels; nothing is computed.

    Raises Refused where a size can't be told, is too large, or where layers don't fit together at this side.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(graph)
    dims = fixed.graph.input[0].type.tensor_type.shape.dim
    for dim, value in zip(dims, (photos, 3, side, side), strict=True):
        dim.Clear()
        dim.dim_value = value
    try:
        found = shape_inference.infer_shapes(fixed, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # the checker's own types
        raise Refused(f"does not take {side} x {side} pixels ({first_line(error)[:120]})") from None
    shapes = {}
    for value in (*found.graph.value_info, *found.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = [dim.dim_value for dim in dims]
    for node in graph.graph.node:
        unknown = [name for name in node.output if name and name not in shapes]
        if unknown and unknown[0] == node.output[0]:
            raise Refused(f"the size of what its operator {node.op_type} gives can't be told beforehand")
    if any(math.prod(shape) > MAX_VALUES * photos or min(shape, default=1) < 1 for shape in shapes.values()):
        raise Refused(f"layers come out too large, or empty, at {side} x {side} pixels")
    if len(shapes["features"]) not in (2, 4) or shapes["features"][0] != photos:
        raise Refused(
            f"its features are {shapes['features']} for {photos} photos, not (n, d) or (n, d, h, w): export it with a "
            "batch of any size, or cut it elsewhere with onnx:FILE#NAME"
        )
    return shapes["features"]


def learnable(graph: onnx.ModelProto) -> set[str]:
    """The names of stored tensors that learn: numbers with a fraction, more than one, that no operator takes as a
    setting."""
    settings = {name for node in graph.graph.node for k, name in enumerate(node.input) if k and node.op_type in SHAPING}
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    return {
        tensor.name
        for tensor in graph.graph.initializer
        if tensor.data_type in floats and math.prod(tensor.dims) > 1 and tensor.name not in settings
    }


def without_weights(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the shapes of its learnable tensors alone."""
    bare, learned = onnx.ModelProto(), learnable(graph)
    bare.CopyFrom(graph)
    for tensor in bare.graph.initializer:
        if tensor.name in learned:
            shape = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=TensorProto.FLOAT)
            tensor.CopyFrom(shape)
    return bare


def packed(graph: onnx.ModelProto) -> str:
    return base64.b85encode(zlib.compress(graph.SerializeToString(deterministic=True), 9)).decode()


def unpacked(text: str, most: int) -> onnx.ModelProto:
    """The graph that `packed` made text of, its learnable tensors filled with zeros.

    most: bytes of the weights file that it came with; its tensors can't hold more. Raises ValueError.
    """
    reader = zlib.decompressobj()
    data = reader.decompress(base64.b85decode(text), MAX_GRAPH_BYTES)
    if reader.unconsumed_tail:
        raise ValueError("its graph is too large")
    graph = onnx.ModelProto.FromString(data)
    check(graph)
    empty = [tensor for tensor in graph.graph.initializer if tensor.name in learnable(graph)]
    if any(dim < 0 for tensor in empty for dim in tensor.dims) or sum(math.prod(t.dims) for t in empty) > most:
        raise ValueError("its graph names larger tensors than it holds")
    for tensor in empty:
        tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    return graph


def layers_of(graph: onnx.GraphProto) -> dict[str, int]:
    """{value or stored tensor: number of its layer}, from the photos on: a layer ends where a single value is all that
    later nodes need, so a residual block is one; what has no weight matrix belongs to the layer before."""
    last, number, found, matrix = {}, 0, {}, False
    for k, node in enumerate(graph.node):
        last |= dict.fromkeys(node.input, k)
    stored = {tensor.name for tensor in graph.initializer}
    alive, mine = {"photos"}, []
    for k, node in enumerate(graph.node):
        mine.append(node)
        matrix |= node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        alive = {name for name in alive | set(node.output) - {""} if last.get(name, -1) > k or name == "features"}
        if len(alive - stored) <= 1:
            number += matrix
            for one in mine:
                found |= dict.fromkeys(
                    [*one.output, *(name for name in one.input if name in stored)], max(number - 1, 0)
                )
            mine, matrix = [], False
    return found
