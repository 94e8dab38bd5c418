"""Explore the data before training: writes runs/NAME/eda.html, one page that needs no network.

    python -m tools.eda --data.train DIR --data.eval DIR --data.crops DIR
    python -m tools.eda --config recipes/tasks/trash.json --data.train FOLDER --run runs/trash

It shows photos and people by class, ages, sizes, brightness and sharpness, unreadable photos, duplicates, who found the
faces, the content of each fold, and how the photos to predict differ from those to train on. The page holds thumbnails
of your photos: keep it where the photos may be.
"""

import copy
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import dataset
from foldface import cli, runs
from foldface.cli import run_main
from foldface.data import cleaning, duplicates, folds
from foldface.data.photos import cv2, read_photo
from foldface.data.remote import crop_folder
from foldface.faces.manifest import MANIFEST_COLUMNS
from foldface.files import InputError, quoted, read_csv
from foldface.report import charts, html
from foldface.runtime import is_main_process
from foldface.settings import put

SAMPLE = 1500  # photos of each side that are compared; whole people of those to train on
MIN_COUNT = 5  # people to train on, and photos to predict, for a comparison
PAIRS, TYPICAL, TILES = 24, 16, 12  # in the galleries
MEASURES = ["width", "height", "brightness", "contrast", "sharpness"]


# ------------------------------------------------------------------------------------------------ what is measured


def measure(seen):
    """Add brightness and contrast (0..255) and sharpness (standard deviation of the Laplacian) of the thumbnails."""
    rows = []
    for grey in seen["grey"]:
        image = np.frombuffer(grey, np.uint8).reshape(duplicates.SIDE, duplicates.SIDE) if grey else None
        rows.append(
            (np.nan,) * 3 if image is None else (image.mean(), image.std(), cv2.Laplacian(image, cv2.CV_64F).std())
        )
    return seen.assign(**dict(zip(MEASURES[2:], np.array(rows, float).reshape(-1, 3).T, strict=True)))


# ----------------------------------------------------------------------------------------------------- the sections


def classes(task, rows):
    """Section: photos and people by class, and a histogram of numbers with the bounds between classes."""
    pieces = []
    own = rows[rows["source"] == "train"]
    if not task.numeric:
        has = {k: own[task.has(own["target"], k)] for k in range(task.size)}
        count = pd.DataFrame({"photos": {k: len(v) for k, v in has.items() if len(v)}})
        count["people"] = [has[k]["id"].nunique() for k in count.index]
        share = count["photos"] / len(own)
        table = [
            [task.classes[k], int(n), int(p), f"{share[k]:.1%}"]
            for k, n, p in zip(count.index, count["photos"], count["people"], strict=True)
        ]

        def draw(ax):
            ax.barh([row[0] for row in table], [row[1] for row in table], color="tab:blue")
            ax.invert_yaxis()
            ax.tick_params(axis="y", labelsize=7)
            ax.set(title="photos")

        pieces += [
            html.side_by_side(
                charts.svg(draw, charts.PAGE_WIDTH, 0.8 + 0.22 * len(table)),
                html.table(["class", "photos", "people or groups", "share"], table),
            )
        ]
    if task.number is not None:
        head, people = task.number, own.drop_duplicates("id")

        def ages(ax):
            values = people[head.key].dropna()
            ax.hist(values, bins=np.arange(values.min(), values.max() + 2) if np.ptp(values) < 150 else 60, color="0.7")
            for bound in head.bounds:
                ax.axvline(bound, color="tab:red", lw=1)
            for bound in set(head.trained) - set(head.bounds):
                ax.axvline(bound, color="tab:orange", lw=1, ls="--")
            ax.set(title="people by " + head.name, xlabel=head.unit)

        pieces.append(html.side_by_side(charts.svg(ages)))
        if head.bounds:
            pieces.append(html.text("Red: where a class begins. Orange, dashed: where it begins in training."))
    others = rows["source"].value_counts().drop("train", errors="ignore")
    if len(others):
        pieces.append(html.text(", ".join(f"{n} {name} rows" for name, n in others.items()), note=True))
    return pieces


def unusable(problems, seen, photos):
    """Section: rows and photos that can't be used, with the reasons."""
    rows = [[html.Name(p["file"]), p["row"] or "", p["reason"]] for p in problems.rows]
    broken = np.flatnonzero((seen["reason"] != "").to_numpy())
    rows += [[html.Name(photos[k]), "", seen["reason"][k]] for k in broken]
    if not rows:
        return [html.text("Every row and photo can be used.")]
    more = f" The first 200 of {len(rows)}." if len(rows) > 200 else ""
    return [html.text(f"{len(rows)} rows or photos.{more}"), html.table(["file", "row", "reason"], rows[:200])]


def shapes(seen, source):
    """Section: sizes, brightness, contrast and sharpness of photos to train on and to predict."""
    good = seen[seen["reason"] == ""].assign(source=source[(seen["reason"] == "").to_numpy()])
    sides = {name: good[good["source"] == name] for name in ("train", "eval") if (good["source"] == name).any()}

    def histogram(column):
        def draw(ax):
            low, high = good[column].quantile([0.001, 0.999])
            bins = np.linspace(low, max(high, low + 1e-6), 40)
            for (name, part), colour in zip(sides.items(), ("tab:blue", "tab:orange"), strict=False):
                ax.hist(part[column], bins, density=True, histtype="step", color=colour, label=name)
            ax.set(title=column, yticks=[])
            ax.legend(frameon=False, fontsize=7)

        return charts.svg(draw, 2.9, 2.2)

    rows = []
    for column in MEASURES:
        cells = [f"{part[column].median():.0f} ({part[column].min():.0f} to {part[column].max():.0f})"
                 for part in sides.values()]  # fmt: skip
        rows.append([column, *cells])
    sizes = good.groupby(["width", "height"]).size().sort_values(ascending=False)
    common = ", ".join(f"{count} of {width} x {height}" for (width, height), count in sizes[:5].items())
    return [
        html.text(f"{len(sizes)} sizes: {common}" + (", ..." if len(sizes) > 5 else "")),
        html.side_by_side(*(histogram(column) for column in MEASURES if good[column].nunique() > 1)),
        html.table(["median (min to max)", *sides], rows),
    ]


def duplicate_pairs(task, rows, photos, source, seen):
    """Section: identical and nearly identical photos, within and across people, classes, and train and eval."""
    pairs, _ = duplicates.near_duplicates(seen)
    twin = folds.twins(pd.DataFrame({"photo": photos}))
    first = rows.drop_duplicates("photo").set_index("photo")
    person = [first["id"].get(photo, "") for photo in photos]
    label = [first["target"].get(photo, -1) for photo in photos]
    kinds = {"byte for byte": 0, "nearly": 0}
    across = {"of different people or groups": 0, "with different labels": 0, "between train and eval": 0}
    shown = []
    for one, other in pairs:
        known = person[one] and person[other]
        differs = {
            "of different people or groups": known and person[one] != person[other],
            "with different labels": known and label[one] != label[other],
            "between train and eval": source[one] != source[other],
        }
        kinds["byte for byte" if twin[one] == twin[other] else "nearly"] += 1
        for name, found in differs.items():
            across[name] += bool(found)
        if len(shown) < 2 * PAIRS and any(differs.values()):
            why = ", ".join(name for name, found in differs.items() if found)
            shown += [(photos[one], [why, html.Name(photos[one])])]
            shown += [(photos[other], ["the other of the pair", html.Name(photos[other])])]
    table = html.table(["pairs", ""], [[name, count] for name, count in (kinds | across).items()])
    words = "Pairs of photos that look nearly the same. data.duplicates keeps them in one fold, or drops them."
    return [html.text(words), table, html.gallery(shown) if shown else ""]


def crops(config):
    """Section: photos by detector, and the sheet of doubtful faces."""
    folder = crop_folder(config.data.crops) if config.data.crops else None
    if folder is None or not (folder / "manifest.csv").is_file():
        return []
    manifest = read_csv(folder / "manifest.csv", MANIFEST_COLUMNS)
    counts = manifest.groupby(["status", "detector"]).size()
    rows = [[status or "-", detector or "-", int(count)] for (status, detector), count in counts.items()]
    several = int((pd.to_numeric(manifest["faces"], errors="coerce") > 1).sum())
    pieces = [html.table(["status", "detector", "photos"], rows), html.text(f"{several} photos have several faces.")]
    if (folder / "review.png").is_file():
        pieces += [
            html.text("Doubtful faces (review.png):"),
            html.thumbnail(read_photo(folder / "review.png"), 1600, alt="doubtful faces, boxed"),
        ]
    return pieces


def fold_contents(config, rows, task):
    """Section: the content of each fold; of the run's folds.csv if it is of this data, else of new folds."""
    rows, known = rows.assign(twin=folds.twins(rows)), Path(config.run) / "folds.csv"
    config, words = copy.deepcopy(config), f"As {config.run} would assign them."
    with tempfile.TemporaryDirectory() as home:
        put(config, "run", home)
        try:
            if known.is_file():
                (Path(home) / "folds.csv").write_bytes(known.read_bytes())
                words = f"As in {known}."
            rows = folds.assign_folds(rows, config)
        except InputError as error:
            (Path(home) / "folds.csv").unlink(missing_ok=True)
            if not known.is_file():
                return [html.text(f"They can't be assigned: {error}")]
            words = f"As a new run would assign them: {known} is of other data."
            try:
                rows = folds.assign_folds(rows, config)
            except InputError as error:
                return [html.text(f"They can't be assigned: {error}")]
    there = folds.folds_of(rows)
    tables = [folds.fold_table(task, rows, there)]
    if there and not task.numeric:
        tables.append(folds.balance_table(task, cleaning.capped(rows, config), there[0]))
    return [html.text(words), *map(html.columns, tables)]


def difference(config, rows, others):
    """Section: how the photos to predict differ from those to train on, by tools.domain_shift. Of several processes all
    call it, since they share the photos."""
    from tools import domain_shift

    rng = np.random.default_rng(config.seed)
    people = rng.permutation(rows["id"].unique())
    size = rows.groupby("id").size()
    own = rows[rows["id"].isin(people[: max(2, int((size[people].cumsum() <= SAMPLE).sum()))])].reset_index(drop=True)
    asked = others.iloc[np.sort(rng.permutation(len(others))[:SAMPLE])].reset_index(drop=True)
    own, asked = own.assign(file=own["photo"]), asked.assign(file=asked["photo"])
    first, second = domain_shift.extract_features(own, config), domain_shift.extract_features(asked, config)
    kept, held = np.isfinite(first).all(1), np.isfinite(second).all(1)
    own, asked, first, second = own[kept], asked[held], first[kept], second[held]
    if own["id"].nunique() < MIN_COUNT or len(asked) < MIN_COUNT:
        few = f"{own['id'].nunique()} people or groups to train on and {len(asked)} photos to predict"
        return [html.text(f"{few} are too few for a comparison: {MIN_COUNT} of each are needed.")]
    auc, scores = domain_shift.separate(first, second, own["id"].to_numpy(str))
    baseline = domain_shift.baseline_auc(first, own["id"].to_numpy(str))
    words = (
        f"AUC {auc:.3f} over {len(own)} photos to train on and {len(asked)} to predict. Random halves of the people to "
        f"train on come to {baseline:.3f}."
    )
    verdict = (
        "They differ: look at the typical photos."
        if auc > max(0.7, baseline + 0.1)
        else "There is no clear difference."
    )
    mine, theirs = scores[: len(own)], scores[len(own) :]
    typical_eval = [(asked["photo"].iloc[k], [f"{theirs[k]:.0%} eval", html.Name(asked["ImageID"].iloc[k])])
               for k in np.argsort(-theirs)[:TYPICAL]]  # fmt: skip
    typical_train = [(own["photo"].iloc[k], [f"{1 - mine[k]:.0%} train", html.Name(own["ImageID"].iloc[k])])
               for k in np.argsort(mine)[:TYPICAL]]  # fmt: skip
    note = (
        "A classifier of a pretrained backbone's features separates the two; it is not trained on the photo that it "
        "classifies, nor on its person. Above 0.7, scores on folds may not hold for the predictions."
    )
    return [
        html.text(f"{words} {verdict}"),
        html.text(note, note=True),
        "<h3>Photos to predict that are most typical of them</h3>",
        html.gallery(typical_eval),
        "<h3>Photos to train on that are most typical of them</h3>",
        html.gallery(typical_train),
    ]


# --------------------------------------------------------------------------------------------------- the first screen


def what_is_there(task, rows, others) -> list[str]:
    """Photos, people and classes in a sentence each; the rarest class."""
    own = rows[rows["source"] == "train"]
    pieces = [html.big(str(len(own)), f"photos of {own['id'].nunique()} people or groups to train on")]
    pieces.append(html.text(f"{0 if others is None else len(others)} photos to predict."))
    if not task.numeric:
        count = np.array([task.has(own["target"], k).sum() for k in range(task.size)])
        least, most = int(count.argmin()), int(count.argmax())
        pieces.append(
            html.text(
                f"{task.size} classes: from {task.classes[least]} ({count[least]} photos) to {task.classes[most]} "
                f"({count[most]}). Macro F1 counts them alike."
            )
        )
    return pieces


def what_is_wrong(problems, seen, sections) -> list[str]:
    """How many rows and photos can't be used, and where to look."""
    broken = int((seen["reason"] != "").sum())
    pieces = [html.text(f"{len(problems.rows)} rows and {broken} photos can't be used.")]
    place = {heading: f"#s{k}" for k, (heading, _) in enumerate([one for one in sections if one[1]], start=1)}
    looks = [("What can't be used", "which"), ("Duplicates", "photos twice"), ("Train and eval", "how eval differs")]
    found = [f'<a href="{place[heading]}">{words}</a>' for heading, words in looks if heading in place]
    return [*pieces, f"<p>See {', '.join(found)}.</p>"]


def what_next(config) -> list[str]:
    """The commands that come next."""
    words = f"--data.layout {config.data.layout} --data.train {quoted(config.data.train)}"
    pieces = []
    if config.data.crops and not (crop_folder(config.data.crops) / "manifest.csv").is_file():
        pieces.append(html.command("python face_crop.py", "with the same --data.* words: there are no crops yet"))
    pieces.append(html.command(f"python train_kfold.py {words} --run {quoted(config.run)}", "trains all folds"))
    return pieces


def first_photos(rows):
    """Some random photos of each class."""
    some = rows[rows["source"] == "train"].sample(frac=1, random_state=0).groupby("target", sort=True).head(2)
    return some[: 4 * TILES] if rows["target"].dtype.kind != "f" else rows.sample(min(TILES, len(rows)), random_state=0)


USED = ("task", "data")  # --help shows these groups of settings


def main(argv: list[str] | None = None) -> None:
    config = cli.read(__doc__, argv=argv, used=USED)
    page = runs.output_folder(config) / "eda.html"
    put(config, "data.strict", False)  # bad rows are shown, and stop nothing
    rows, problems = dataset.training_rows(config.without_pseudo())
    task = config.predicted
    others = dataset.eval_rows(config) if dataset.answerable(config) else None
    own = rows[rows["source"] == "train"]
    if not is_main_process():
        if others is not None:
            difference(config, own, others)
        return
    photos = rows["photo"].drop_duplicates().tolist()
    source = np.array(["train"] * len(photos))
    if others is not None:
        new = [photo for photo in others["photo"].drop_duplicates() if photo not in set(photos)]
        photos, source = photos + new, np.concatenate([source, ["eval"] * len(new)])
    seen = measure(duplicates.fingerprint(photos))
    some = first_photos(rows)
    labels = [f"{t:g}" if task.numeric else task.classes[t] for t in ([] if task.multilabel else some["target"])]
    labels = labels or [" ".join(np.array(task.classes)[row]) or "none" for row in task.sets(some["target"])]
    some = [
        (photo, [label, html.Name(name)])
        for photo, label, name in zip(some["photo"], labels, some["ImageID"], strict=True)
    ]
    sections = [
        ("Classes", classes(task, rows)),
        ("Some photos", [html.gallery(some)]),
        ("What can't be used", unusable(problems, seen, photos)),
        ("Sizes, light, sharpness", shapes(seen, source)),
        ("Duplicates", duplicate_pairs(task, rows, photos, source, seen)),
        ("Crops", crops(config)),
        ("Folds", fold_contents(config, rows, task)),
    ]  # fmt: skip
    if others is not None:
        sections.append(("Train and eval", difference(config, own, others)))
    intro = (
        f"{(rows['source'] == 'train').sum()} photos to train on, {0 if others is None else len(others)} to predict."
    )
    first = html.lead(
        [
            ("What is there?", what_is_there(task, rows, others)),
            ("What is wrong?", what_is_wrong(problems, seen, sections)),
            ("What next?", what_next(config)),
        ]
    )
    html.write(page, f"{config.data.train}: the data", intro, sections, first)
    print(page)


if __name__ == "__main__":
    run_main(main)
