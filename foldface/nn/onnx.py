"""Export a fold's weights as an ONNX file, and compute answers from it with onnxruntime.

    python inference.py --run runs/mine --inference.backend onnx

Each fold is exported at each start, to runs/NAME/fold{k}/best-{digest of its weights}.onnx, or below --output. An
existing file is never used: its name does not prove what it holds.
"""

import hashlib
import warnings
from pathlib import Path

import onnxruntime
import torch

from foldface.files import atomic_write
from foldface.predictions import fold_name
from foldface.ranks import ALONE, Ranks


class OnnxNet(torch.nn.Module):
    """A module that runs an ONNX file of `export`: (n, 3, s, s) float32 -> (n, outputs) float32.

    It computes on the CPU or, with the package onnxruntime-gpu, on a GPU.
    """

    def __init__(self, path: Path):
        super().__init__()
        there = onnxruntime.get_available_providers()
        wanted = []
        if "CUDAExecutionProvider" in there and torch.cuda.is_available():
            wanted = [("CUDAExecutionProvider", {"device_id": torch.cuda.current_device()})]  # this process's own GPU
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # OMP_NUM_THREADS: several processes share the cores
        self.session = onnxruntime.InferenceSession(str(path), options, providers=[*wanted, "CPUExecutionProvider"])

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(None, {"photos": photos.cpu().contiguous().numpy()})[0])


def export(net: torch.nn.Module, side: int, path: Path) -> None:
    """Write a model in eval mode as an ONNX file for batches of any size of photos of `side` pixels, atomically."""
    with atomic_write(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no onnxscript warns that it is the old one
        torch.onnx.export(
            net.cpu().to(memory_format=torch.contiguous_format),
            (torch.zeros(2, 3, side, side),),
            str(partial),
            input_names=["photos"],
            output_names=["outputs"],
            dynamic_axes={"photos": {0: "n"}, "outputs": {0: "n"}},
            dynamo=False,
        )


def export_folds(
    nets: dict[int, torch.nn.Module],
    abouts: dict[int, dict],
    paths: dict[int, Path],
    output: Path,
    ranks: Ranks = ALONE,
) -> dict[int, OnnxNet]:
    """Export each fold's model to output/fold{k} and return {fold: OnnxNet}. Files of other weights are deleted.

    ranks: the processes that call this; rank 0 exports, and all of them load its files.
    """
    files = {}
    for fold, net in nets.items():
        digest = hashlib.sha1(paths[fold].read_bytes()).hexdigest()[:12]
        files[fold] = output / fold_name(fold) / f"best-{digest}.onnx"
        if ranks.index == 0:
            for old in files[fold].parent.glob("best-*.onnx"):
                if old != files[fold]:
                    old.unlink()
            export(net, abouts[fold]["image_size"], files[fold])
    ranks.wait()
    return {fold: OnnxNet(path) for fold, path in files.items()}
