"""A fold's weights as an ONNX file, in 32 or in 8 bits, and a module that answers by it on onnxruntime.

    python inference.py --run runs/mine --inference.backend onnx
    python inference.py --run runs/mine --inference.backend int8

Each fold is exported each time, to runs/NAME/fold{k}/best-{digest of its weights}.onnx, or below --output, which
takes a second or two: a file that is there already is not taken for what its name says. One in 8 bits, which takes
longer, is taken if its name has the digests of these weights and photos, and if it answers as the 32 bits do.
"""

import contextlib
import hashlib
import io
import logging
import tempfile
import warnings

import numpy as np
import onnxruntime
import torch

from foldface.files import atomic_write

CALIBRATED = 128  # photos that the ranges of 8-bit activations are taken from; as many others compare
STRIDE = 8  # of those, at a time
ALIKE = 0.98  # share of those others that 8 bits must answer as 32 do


class OnnxNet(torch.nn.Module):
    """What an ONNX file of `export` computes: (n, 3, s, s) float32 -> (n, outputs) float32, on the CPU or, with the
    package onnxruntime-gpu, on a GPU."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        there = onnxruntime.get_available_providers()
        wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
        self.session = onnxruntime.InferenceSession(str(path), providers=wanted)

    def forward(self, photos):
        return torch.from_numpy(self.session.run(None, {"photos": photos.cpu().contiguous().numpy()})[0])


def export(net, side, path):
    """Write a model in eval mode, batch norm folded or not, as an ONNX file for any number of photos of `side` pixels,
    atomically."""
    with atomic_write(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript is the old one, and says so
        torch.onnx.export(
            net.cpu().to(memory_format=torch.contiguous_format),
            (torch.zeros(2, 3, side, side),),
            str(partial),
            input_names=["photos"],
            output_names=["outputs"],
            dynamic_axes={"photos": {0: "n"}, "outputs": {0: "n"}},
            dynamo=False,
        )


def exported(nets, abouts, paths, output):
    """{fold: OnnxNet} of {fold: model}, exported to output/fold{k} now: a file that lies there may be
    anybody's, whatever its name."""
    found = {}
    for fold, net in nets.items():
        digest = hashlib.sha1(paths[fold].read_bytes()).hexdigest()[:12]
        path = output / f"fold{fold}" / f"best-{digest}.onnx"
        for old in path.parent.glob("best-*.onnx"):
            if not old.name.startswith(path.stem):  # of other weights
                old.unlink()
        export(net, abouts[fold]["image_size"], path)
        found[fold] = OnnxNet(path)
    return found


def small_path(path, inputs):
    """Where the 8-bit file of an ONNX file lies: path-int8-{digest of the inputs}.onnx."""
    return path.with_name(f"{path.stem}-int8-{hashlib.sha1(inputs.tobytes()).hexdigest()[:12]}.onnx")


def quantize(path, inputs):
    """Write the ONNX file `path` with 8-bit weights (a range a channel) and activations (a range that 99.999 % of the
    inputs' stay within), atomically, to small_path(path, inputs), which is returned.

    inputs: (n, 3, s, s) float32 array; all activations of STRIDE of them are held in memory at a time.
    """
    small = small_path(path, inputs)
    for old in path.parent.glob(f"{path.stem}-int8-*.onnx"):
        old.unlink()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        """The photos as quantize_static asks for them: STRIDE at a time."""

        def __len__(self):
            return len(inputs) // STRIDE * STRIDE

        def set_range(self, start_index, end_index):
            self.batches = iter([inputs[start_index:end_index]])

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"photos": batch}

    quiet = contextlib.redirect_stdout(io.StringIO())  # it says how far it is in words of its own
    with atomic_write(small) as partial, tempfile.TemporaryDirectory() as place, quiet:
        ready = f"{place}/ready.onnx"
        quant_pre_process(str(path), ready)
        quantize_static(
            ready,
            str(partial),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibStridedMinMax": STRIDE},
        )
    return small


def quantized(nets, inputs, heads):
    """{fold: OnnxNet} of `exported` -> those in 8 bits. A fold that then answers more than 2 % of photos otherwise
    stays in 32 bits. Both is printed.

    inputs: (n, 3, s, s) float32 array of photos to answer for: the even ones calibrate, the odd ones compare.
    """
    found, others, ranges = {}, torch.from_numpy(np.ascontiguousarray(inputs[1::2])), np.ascontiguousarray(inputs[::2])

    def share_alike(path, net):
        small = OnnxNet(path)
        return small, float(alike(heads, *(heads.answers(one(others)) for one in (small, net))).float().mean())

    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime advises what is done already
    for fold, net in nets.items():
        small, share, path = None, 0.0, small_path(net.path, ranges)
        if path.is_file():
            with contextlib.suppress(Exception):  # a damaged file fails in many ways; it is made again
                small, share = share_alike(path, net)
        if small is None or share < ALIKE:
            small, share = share_alike(quantize(net.path, ranges), net)
        kept = share >= ALIKE
        print(f"fold {fold}: int8 answers {share:.1%} of {len(others)} photos as float32 does"
              + ("" if kept else ": too few, it stays in float32"))  # fmt: skip
        found[fold] = small if kept else net
    return found


def alike(heads, one, other):
    """Are answers (n, width) the same class, or numbers within 1 % of their range? (n,) bool."""
    task = heads.task
    if task.numeric:
        return (one[:, 0] - other[:, 0]).abs() <= 0.01 * (task.number.high - task.number.low)
    return one[:, : task.size].argmax(1) == other[:, : task.size].argmax(1)
