"""Draw Grad-CAM maps (Selvaraju et al. 2017) of chosen photos, or of the most confident mistakes.

    python -m tools.explain --run runs/first                                     the worst mistakes, at the last layer
    python -m tools.explain --run runs/first --photos a.jpg b.jpg --layers blocks.1 blocks.3 conv_head
    python -m tools.explain --run runs/first --head gender --of female       evidence for female, in every photo
    python -m tools.explain --run runs/first --check 300                     share of heat in the face's box
    torchrun --nproc_per_node 2 -m -- tools.explain --run runs/first --check 300     the same, two processes share it

A training photo is explained by the fold that was not trained on its person. Writes explain.png and explain.html into
the run's folder (or --output), with thumbnails of the photos: keep them where the photos may be.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import dataset
from foldface import predictions, runs
from foldface.cli import run_main
from foldface.data.photos import cv2
from foldface.data.remote import crop_folder
from foldface.faces.manifest import MANIFEST_COLUMNS, placed, with_files
from foldface.files import InputError, atomic_write, quoted, read_csv, read_json
from foldface.report import html
from foldface.runtime import is_main_process

N_PHOTOS = 12  # unless photos are named
TILE = 224  # pixels of a picture in explain.png


# --------------------------------------------------------------------------------------------------------- photos


def select_photos(config, task, named: list[str]) -> pd.DataFrame:
    """The photos to explain: DataFrame of ImageID, file, fold, and for out-of-fold photos target, ans.

    named: paths, or ImageIDs of the run; [] = the most confident mistakes. Raises InputError for an unknown photo.
    """
    oof = predictions.read_oof(task, Path(config.run) / "oof.csv")
    rows, _ = dataset.training_rows(config.without_pseudo())
    rows = rows[rows["source"] == "train"].drop_duplicates("ImageID")
    known = oof.merge(rows[["source", "ImageID", "photo"]], on="ImageID")
    if not named:
        wrong = known[known["ans"] != known["target"]]
        if task.multilabel:
            off = abs(wrong[task.probabilities] - task.sets(wrong["target"])).max(axis=1)
            wrong = wrong.assign(off=off).sort_values("off", ascending=False)
        elif not task.numeric:
            wrong = wrong.assign(sure=wrong[task.probabilities].max(axis=1)).sort_values("sure", ascending=False)
        else:
            wrong = wrong.assign(off=abs(wrong["ans"] - wrong["target"])).sort_values("off", ascending=False)
        return with_files(wrong[:N_PHOTOS].reset_index(drop=True), config.data.crops)
    parts, crops = [], config.data.crops
    for name in named:
        mine = known[(known["ImageID"] == name) | (known["photo"] == name)]
        if len(mine):
            parts.append(with_files(mine[:1], config.data.crops))
        elif Path(name).is_file():
            if crops:
                print(f"{name}: is used whole, though the run was trained on face crops: name a crop instead")
            parts.append(pd.DataFrame({"ImageID": [name], "photo": [name], "file": [name], "fold": [-1]}))
        else:
            raise InputError(f"--photos {name}: is neither a photo of {config.run}/oof.csv nor a file")
    return pd.concat(parts, ignore_index=True)


def face_box(row: dict, crop: dict) -> tuple[float, float, float, float] | None:
    """The face's box in a crop, (x1, y1, x2, y2) as shares of its side; None where no face was found.

    row: the photo's row of manifest.csv; crop: content of crop.json. The crop is a square around the centre of the box,
    wider by the margin on each side (crops.crop_square).
    """
    if row["status"] != "found":
        return None
    x1, y1, x2, y2 = (float(row[key]) for key in ("x1", "y1", "x2", "y2"))
    side = max(x2 - x1, y2 - y1) * (1 + 2 * crop["margin"])
    wide, high = (x2 - x1) / side / 2, (y2 - y1) / side / 2
    return 0.5 - wide, 0.5 - high, 0.5 + wide, 0.5 + high


def heat_inside(heat: np.ndarray, box: tuple) -> float:
    """The share of a map's heat, (size, size), inside a box of shares; NaN where there is no heat."""
    size = heat.shape[0]
    x1, y1, x2, y2 = (round(size * min(max(value, 0.0), 1.0)) for value in box)
    total = heat.sum()
    return float(heat[y1:y2, x1:x2].sum() / total) if total > 0 else float("nan")


def write_png(seen: np.ndarray, overlays: list, path: Path) -> None:
    """Write all photos (n, size, size, 3) uint8, each beside its `overlays` (a list of such pictures), as one PNG."""
    lines = []
    for image, drawn in zip(seen, overlays, strict=True):
        tiles = [image, *drawn]
        lines.append(np.concatenate([cv2.resize(tile, (TILE, TILE)) for tile in tiles], 1))
    _, data = cv2.imencode(".png", np.concatenate(lines)[..., ::-1])
    with atomic_write(path) as partial:
        partial.write_bytes(data.tobytes())


def check(config, explainer, count):
    """Print the share of heat inside the face's box, over right answers, beside the box's share of the photo, which is
    the share of a uniform map. Several processes share the photos."""
    task = explainer.task
    if not config.data.crops:
        raise InputError("--check needs face crops, whose manifest.csv has the face's box: data.crops is empty")
    known = select_right(config, task, count)
    manifest = read_csv(crop_folder(config.data.crops) / "manifest.csv", MANIFEST_COLUMNS)
    found = manifest.iloc[placed(manifest, known)].to_dict("records")
    crop = read_json(crop_folder(config.data.crops) / "crop.json", "run face_crop.py")
    boxes = [face_box(row, crop) for row in found]
    shown = [k for k, box in enumerate(boxes) if box is not None]
    shares = []
    for k in tqdm(explainer.ranks.share(shown), "explaining", unit="photo", disable=None):
        _, heat, _ = explainer.explain(known.iloc[[k]].drop(columns="target").reset_index(drop=True))
        x1, y1, x2, y2 = boxes[k]
        shares.append([(x2 - x1) * (y2 - y1), *(heat_inside(one, boxes[k]) for one in heat[0])])
    shares = explainer.ranks.gather(shares)
    if not shares:
        raise InputError("--check: no detector found a face in any of the photos")
    shares = np.array(shares)
    for name, values in zip(explainer.layers, shares.T[1:], strict=True):
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [0.25, 0.75])
        print(
            f"{name}: {values.mean():.3f} of the heat is inside the face's box (half of the photos {low:.3f} to "
            f"{high:.3f}), {len(values)} photos answered rightly; a uniform map {shares[:, 0].mean():.3f}"
        )


def select_right(config, task, count):
    """`count` random photos that were answered rightly out of fold."""
    oof = predictions.read_oof(task, Path(config.run) / "oof.csv")
    rows, _ = dataset.training_rows(config.without_pseudo())
    rows = rows[rows["source"] == "train"].drop_duplicates("ImageID")
    right = oof[oof["ans"] == oof["target"]].merge(rows[["source", "ImageID", "photo"]], on="ImageID")
    right = right.sample(min(count, len(right)), random_state=config.seed).reset_index(drop=True)
    return with_files(right, config.data.crops)


COARSE = 4  # places a side: a map of so few or fewer has no shapes


def write_page(config, explainer, rows, seen, overlays, classes, path):
    """Write explain.html: each photo beside its maps, with its label and the answer.

    seen (n, size, size, 3), classes (n,): as `Explainer.explain` gives them; overlays: a list of pictures a photo.
    """
    task, shown = explainer.task, []
    for k, row in enumerate(rows.to_dict("records")):
        lines = []
        if row.get("target", np.nan) == row.get("target", np.nan):  # not of a file that isn't the run's
            truth, answer = (task.words_of(row[name]) for name in ("target", "ans"))
            lines += [f"is {truth}", f"answered {answer}"]
        lines += [f"map for {explainer.class_name(classes[k])} at {', '.join(explainer.layers)}"]
        shown.append(([seen[k], *overlays[k]], [*lines, html.Name(row["ImageID"])]))
    coarse = explainer.coarse_layers(COARSE)
    words = ["Red is the strongest evidence for the named class, blue is none. Is it where it should be?"]
    for name, (high, wide) in coarse.items():
        words.append(
            f"{name} has {high} x {wide} places for a photo of {explainer.about['image_size']} pixels: its map can "
            "only be bands and corners, no shapes. A larger data.image_size or an earlier layer (--layers) shows more."
        )
    first = html.lead(
        [
            ("What is shown?", [html.big(str(len(rows)), "photos, each beside its map"), *map(html.text, words)]),
            (
                "What next?",
                [
                    html.command(
                        f"python -m tools.explain --run {quoted(config.run)} --layers {' '.join(explainer.earlier())}",
                        "the same photos at earlier layers, which have more places",
                    ),
                    html.command(
                        f"python -m tools.label_errors --run {quoted(config.run)}", "labels that are likely wrong"
                    ),
                ],
            ),
        ]
    )
    intro = "Each photo by the fold that was not trained on its person. Keep this page where the photos may be."
    html.write(path, f"{config.run}: Grad-CAM", intro, [("Photos and maps", [html.gallery(shown)])], first)


USED = ("task", "data", "inference")  # --help shows these groups of settings
FLAGS = {
    "--photos": {"nargs": "+", "default": [], "help": "paths, or ImageIDs (default: the most confident mistakes)"},
    "--layers": {"nargs": "+", "default": [], "help": "names of layers, side by side (default: the last)"},
    "--head": {"default": "", "help": "head to explain (default: the answer)"},
    "--of": {
        "default": "",
        "help": "class whose evidence is shown (default: the predicted one; of several labels the worst)",
    },
    "--check": {
        "type": int,
        "default": 0,
        "metavar": "N",
        "help": "print the share of heat in the face's box over N photos",
    },
}


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, FLAGS, argv, USED)
    import model
    from foldface.nn import gradcam

    home = runs.output_folder(config)
    folds = model.load_folds(model.checkpoints(config.run))
    explainer = gradcam.Explainer(config, folds, config.layers, config.head, config.of)
    if config.check:
        check(config, explainer, config.check)
        return
    if not is_main_process():
        return  # a few photos are no work to share
    rows = select_photos(config, explainer.task, config.photos)
    if not len(rows):
        raise InputError(f"{config.run}/oof.csv: has no mistake; name photos with --photos")
    seen, heat, classes = explainer.explain(rows)
    overlays = [[gradcam.overlay(seen[k], one) for one in heat[k]] for k in range(len(seen))]
    write_png(seen, overlays, home / "explain.png")
    write_page(config, explainer, rows, seen, overlays, classes, home / "explain.html")
    print(f"{home}/explain.png, {home}/explain.html: {len(rows)} photos at {', '.join(explainer.layers)}")


if __name__ == "__main__":
    run_main(main)
