"""How fast, beside how it is usually done: each stage and its peer in one run, in turn, several times.

    python bench.py                                               on the sample data
    python bench.py --data.train DIR --data.eval DIR --rounds 5 --json bench.json

Prints a Markdown table of medians and spreads. A ratio is ours / peer within one round: machines drift, rounds don't.
"""

import statistics
import tempfile
import time
from pathlib import Path

import args
from files import guarded, write_json


def crop_ours(settings):
    """face_crop.py's whole job, start-up of its processes, hashes and contact sheet included -> photos/s."""
    import face_crop

    with tempfile.TemporaryDirectory() as folder:
        settings.data.crops = f"{folder}/crops"
        start = time.perf_counter()
        count = len(face_crop.crop_all(settings))
        return count / (time.perf_counter() - start)


def crop_peer(settings):
    """facenet-pytorch as its README has it: MTCNN(keep_all=True).detect(photo), photo by photo -> photos/s."""
    from facenet_pytorch import MTCNN
    from PIL import Image

    import face_crop

    photos = face_crop.plan(settings)["photo"].sample(150, random_state=settings.seed, replace=True)
    detector = MTCNN(keep_all=True)
    start = time.perf_counter()
    for photo in photos:
        with Image.open(photo) as image:
            detector.detect(image.convert("RGB"))
    return len(photos) / (time.perf_counter() - start)


STAGES = {"crop": ("photos/s of face_crop.py beside MTCNN(keep_all=True).detect", crop_ours, crop_peer)}


def table(found):
    """{stage: [(ours, peer)]} -> Markdown."""

    def spread(values, digits):
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"

    lines = ["| stage | ours | peer | ratio |", "|---|---|---|---|"]
    for name, pairs in found.items():
        ours, peers = zip(*pairs, strict=True)
        ratios = [one / other for one, other in pairs]
        lines.append(f"| {STAGES[name][0]} | {spread(ours, 1)} | {spread(peers, 1)} | {spread(ratios, 2)} |")
    return "\n".join(lines)


def main():
    settings = args.read(
        __doc__,
        {
            "--rounds": {"type": int, "default": 3, "help": "pairs of ours and peer"},
            "--json": {"type": str, "default": "", "help": "also write the median ratios to this file"},
        },
    )
    found = {name: [] for name in STAGES}
    for round_ in range(settings.rounds):
        for name, (_, ours, peer) in STAGES.items():
            first, second = (ours, peer) if round_ % 2 == 0 else (peer, ours)  # neither always runs first
            one, other = first(settings), second(settings)
            found[name].append((one, other) if round_ % 2 == 0 else (other, one))
    print(table(found))
    if settings.json:
        write_json(
            Path(settings.json),
            {name: round(statistics.median(a / b for a, b in pairs), 3) for name, pairs in found.items()},
        )


if __name__ == "__main__":
    guarded(main)
