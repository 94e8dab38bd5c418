"""A fold's weights as an ONNX file, and a module that answers by it on onnxruntime.

    python inference.py --run runs/mine --inference.backend onnx

Each fold is exported once, to runs/NAME/fold{k}/best-{digest of its weights}.onnx.
"""

import hashlib
import warnings

import onnxruntime
import torch

from files import replacing


class OnnxNet(torch.nn.Module):
    """What an ONNX file of `export` computes: (n, 3, s, s) float32 -> (n, outputs) float32, on the CPU or, with the
    package onnxruntime-gpu, on a GPU."""

    def __init__(self, path):
        super().__init__()
        there = onnxruntime.get_available_providers()
        wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
        self.session = onnxruntime.InferenceSession(str(path), providers=wanted)

    def forward(self, photos):
        return torch.from_numpy(self.session.run(None, {"photos": photos.cpu().contiguous().numpy()})[0])


def export(net, side, path):
    """Write a model in eval mode, batch norm folded or not, as an ONNX file for any number of photos of `side` pixels,
    atomically."""
    with replacing(path) as partial, warnings.catch_warnings():
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


def exported(nets, abouts, paths):
    """{fold: OnnxNet} of {fold: model}: those that are not there yet, or whose weights changed, are exported first."""
    found = {}
    for fold, net in nets.items():
        digest = hashlib.sha1(paths[fold].read_bytes()).hexdigest()[:12]
        path = paths[fold].with_name(f"best-{digest}.onnx")
        if not path.is_file():
            for old in path.parent.glob("best-*.onnx"):
                old.unlink()
            export(net, abouts[fold]["image_size"], path)
        found[fold] = OnnxNet(path)
    return found
