"""A run as a Kaggle notebook without internet takes it: weights, code, wheels, and the notebook that answers.

    python -m tools.kaggle_kit --run runs/first --out kit --user NAME --competition SLUG
    python -m tools.kaggle_kit --runs runs/first runs/second --out kit        several runs, which vote together
    python -m tools.kaggle_kit --run runs/first --out kit --with_crops        the crops that are there go along
    python -m tools.kaggle_kit --run runs/first --out kit --have have.txt --python 3.12

Writes kit/dataset (a private data set) and kit/notebook (five cells that write submission.csv from /kaggle/input), and
prints the `kaggle` commands that send them and submit. Nothing is sent by this command. What of the competition lies
where is taken from data.eval: its folder here is the competition's folder there (--root names another).
"""

import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np

import dataset
from foldface import runs
from foldface.cli import run_main
from foldface.data.shard_index import INDEX
from foldface.faces import detect
from foldface.faces.manifest import placed, with_files
from foldface.files import InputError, folder_lock, read_csv, read_json, refuse_unwritable, write_csv, write_json
from foldface.settings import Config
from foldface.urls import scheme_of
from tools import kaggle_packages
from tools.kaggle_notebook import Content, notebook

MARKER = "kit.json"  # says that a folder is a kit, here and below /kaggle/input
SCRIPTS = ("inference", "ensemble", "tools.check_submission")
OF_RUN = ("folds.csv", "oof.csv", "oof_*.csv", "metrics.json", "fold*/best.safetensors", "final/best.safetensors")
NOT_OF_RUN = ("oof_embedding.csv",)  # its other half, embedding.csv, is of photos that are not the notebook's
TITLE = 50  # letters that Kaggle takes


# ------------------------------------------------------------------------------------------------------- the runs


def names_of(folders: list[str]) -> dict[str, Path]:
    """{name in the kit: folder} of the runs. Raises InputError where two have one name."""
    found = {}
    for folder in folders:
        name = re.sub(r"[^\w.-]+", "-", Path(folder).resolve().name).strip("-.") or "run"
        if name in found:
            raise InputError(f"--runs: {found[name]} and {folder} would both be called {name}: rename a folder")
        found[name] = Path(folder)
    return found


def crops_of(abouts: dict[str, list[dict]]) -> dict:
    """How the crops of all runs were made, {} = whole photos. abouts: {run: what its weights files say}. Raises
    InputError where runs have other crops."""
    crops = {name: mine[0]["crops"] for name, mine in abouts.items()}  # load_folds made sure that all folds agree
    first, *others = crops
    different = [name for name in others if crops[name] != crops[first]]
    if different:
        raise InputError(f"--runs: {first} and {different[0]} answer on other crops: make a kit for each")
    return crops[first]


def packages_for(config: Config, scripts: list[str], networks: list[dict], crops: dict) -> kaggle_packages.Packages:
    """The packages of a kit. networks: what the weights say of each; crops: how the notebook makes them, {} = not."""
    names = detect.of_detectors(crops.get("detectors", []))
    detectors = {name: detect.detector(name).package for name in names}
    exact = {detectors[name]: version for name, version in crops.get("versions", {}).items() if detectors.get(name)}
    options = ["onnx"] * (config.inference.backend == "onnx")
    options += ["onnx_backbone"] * any("onnx" in one for one in networks)
    options += ["facenet_backbone"] * any(one["backbone"] == "facenet" for one in networks)
    wanted = kaggle_packages.needed(scripts, list(map(Path, config.plugins)), options, detectors)
    have = kaggle_packages.platform_packages(config.have or kaggle_packages.IMAGE)
    return kaggle_packages.choose(wanted, have, config.python, exact)


def copy_run(folder: Path, to: Path) -> None:
    """Copy what answering needs of a run: weights, folds, out-of-fold predictions, settings without this machine's
    paths. Reports stay here: they show photos."""
    for path in sorted(path for pattern in OF_RUN for path in folder.glob(pattern)):
        if path.is_symlink() or path.parent.is_symlink():  # a stranger's run could send any file of this machine along
            raise InputError(f"{path}: is a link, and the kit takes a run's own files alone: put the file there")
        if path.name not in NOT_OF_RUN:
            (to / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to / path.relative_to(folder))
    content = read_json(folder / "args.json", "train again")
    if not isinstance(content, dict):
        raise InputError(f"{folder / 'args.json'}: should be a JSON object of settings: train again")
    local = (*runs.PATHS, *runs.DATA_PATHS, *runs.MISSED, "run", "output", "submission", "model.init_from_run")
    for key in local:
        group, _, name = key.rpartition(".")
        part = content.get(group, {}) if group else content
        if isinstance(part, dict):
            part.pop(name, None)
    write_json(to / "args.json", content)


# ----------------------------------------------------------------------------------------- the competition's files


def settings_of(config: Config, root: Path, crops: dict) -> tuple[dict, list[str]]:
    """(the settings of the notebook, with paths below `root` written from there; the names of those of data).

    Raises InputError where a path that answering needs lies outside of the root.
    """
    data = config.data
    found = {"layout": data.layout, "crops": ""}
    for name in ("eval", "sample_submission", "train"):
        path = getattr(data, name)
        if path and below(path, root) is not None:
            found[name] = below(path, root)
        elif path and name != "train":
            raise InputError(
                f"data.{name} {path}: does not lie in {root}, the competition's folder: name that with --root"
            )
    folders = [data.photo_folder] if isinstance(data.photo_folder, str) else data.photo_folder
    home = Path(data.eval).parent
    for folder in filter(os.path.isabs, folders):
        if below(folder, root) is None:
            raise InputError(f"data.photo_folder {folder}: does not lie in {root}, the competition's folder")
    folders = [os.path.relpath(folder, home) if os.path.isabs(folder) else folder for folder in folders if folder]
    found |= {"photo_folder": folders} if folders else {}
    found |= {name: getattr(data, name) for name in ("photo_column", "photo_suffix") if getattr(data, name)}
    paths = [name for name in ("eval", "sample_submission", "train") if name in found]
    crop = {key: value for key, value in crops.items() if key != "versions"}
    return {"data": found} | ({"crop": crop} if crop else {}), paths


def below(path: str, root: Path) -> str | None:
    """A path as it is written from the folder `root`, with slashes; None where it lies elsewhere."""
    relative = Path(os.path.relpath(os.path.abspath(path), os.path.abspath(root))).as_posix()
    return None if relative.startswith("../") or relative == ".." else relative


def root_of(config: Config) -> Path:
    """The competition's folder here: --root, or the one that holds data.eval and data.sample_submission."""
    if config.root:
        if not Path(config.root).is_dir():
            raise InputError(f"--root {config.root}: there is no such folder")
        return Path(config.root)
    paths = [os.path.abspath(path) for path in (config.data.eval, config.data.sample_submission) if path]
    return Path(os.path.commonpath([os.path.dirname(path) for path in paths]))


def markers_of(config: Config, content: dict) -> list[str]:
    """What tells the competition's folder from others: the table of data.eval, or its folder; the sample."""
    path = content["data"]["eval"]
    table = Path(config.data.eval) / "info.csv"
    found = [f"{path}/info.csv" if table.is_file() else path]
    return [*found, *filter(None, [content["data"].get("sample_submission")])]


def carry_crops(config: Config, to: Path) -> None:
    """Copy the crops of data.eval, and their rows of the manifest. Raises InputError where one is missing."""
    home = Path(config.data.crops)
    if scheme_of(config.data.crops) or (home / INDEX).is_file():
        raise InputError(
            f"{config.data.crops}: is a folder of shards: name the crops that they were made of, with --data.crops"
        )
    rows = dataset.eval_rows(config)
    rows = with_files(rows, home)  # refuses what was not cropped, or was replaced since
    manifest = read_csv(home / "manifest.csv", [])
    mine = manifest.iloc[np.unique(placed(manifest, rows))]
    photos = [below(photo, root_of(config)) or Path(photo).name for photo in mine["photo"]]
    for crop in filter(None, mine["crop"]):
        (to / crop).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(home / crop, to / crop)
    write_csv(to / "manifest.csv", mine.assign(photo=photos))
    shutil.copyfile(home / "crop.json", to / "crop.json")


# -------------------------------------------------------------------------------------------------------- the kit


def slugs(config: Config, names: list[str]) -> tuple[str, str]:
    """The ids of the data set and of the notebook: OWNER/NAME each. Kaggle takes 6 to 50 letters, a-z, 0-9 and "-"."""
    owner = config.user or os.environ.get("KAGGLE_USERNAME", "") or "USERNAME"
    name = re.sub("[^a-z0-9]+", "-", f"foldface-{config.name or names[0]}".lower()).strip("-")
    name = name[: TITLE - len("-submission")].strip("-")
    return f"{owner}/{name}", f"{owner}/{name}-submission"


def title_of(slug: str) -> str:
    """A title that Kaggle makes this slug of."""
    return slug.partition("/")[2].replace("-", " ")


def write_code(to: Path, scripts: list[str], plugins: list[Path]) -> None:
    """Copy the files that the scripts import, the templates beside them, and the licence."""
    files = [*kaggle_packages.reached(scripts, plugins).values(), kaggle_packages.ROOT / "LICENSE"]
    files += [path for folder in {path.parent for path in files} for path in folder.glob("*.jinja")]
    for path in files:
        (to / path.relative_to(kaggle_packages.ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to / path.relative_to(kaggle_packages.ROOT))


def build(config: Config, folders: dict[str, Path], abouts: dict, to: Path) -> tuple[str, str, list[str]]:
    """Fill a new folder with the kit; returns the ids of the data set and the notebook, and lines that say what is in
    it. folders: {name of a run: where it lies}; abouts: {name of a run: what each of its weights files says}."""
    crops = crops_of(abouts)
    making = bool(crops) and not config.with_crops
    if config.with_crops and not crops:
        raise InputError("--with_crops: the run answers on whole photos: leave it out")
    root = root_of(config)
    content, paths = settings_of(config, root, crops)
    home = to / "dataset"
    for name, folder in folders.items():
        copy_run(folder, home / "runs" / name)
    plugins = [Path(path) for path in config.plugins]
    scripts = [*SCRIPTS, *["face_crop"] * making]
    write_code(home / "code", scripts, plugins)
    for path in plugins:
        (home / "plugins").mkdir(exist_ok=True)
        shutil.copyfile(path, home / "plugins" / path.name)
    if plugins:
        content["plugins"] = [f"plugins/{path.name}" for path in plugins]
    if config.with_crops:
        carry_crops(config, home / "crops")

    networks = [one for mine in abouts.values() for about in mine for one in (about, *about.get("beside", ()))]
    packages = packages_for(config, scripts, networks, crops if making else {})
    kaggle_packages.fetch(packages.brought, home / "wheels", config.python)
    lines = [*(f"{name}=={version}" for name, version in packages.brought.items()), *packages.expected]
    (home / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    data_id, notebook_id = slugs(config, list(folders))
    write_json(home / "settings.json", content)
    write_json(home / MARKER, {"runs": list(folders), "python": config.python, "wheels": packages.brought})
    write_json(home / "dataset-metadata.json",
               {"title": title_of(data_id), "id": data_id, "licenses": [{"name": "other"}]})  # fmt: skip
    how = Content(
        markers=markers_of(config, content),
        below=paths,
        crops="made here" if making else "in the kit" if config.with_crops else "",
        runs=list(folders),
        has_plugins=bool(plugins),
        has_sample="sample_submission" in content["data"],
    )
    write_json(to / "notebook" / "submission.ipynb", notebook(how))
    kernel = {
        "id": notebook_id,
        "title": title_of(notebook_id),
        "code_file": "submission.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": config.gpu,
        "enable_internet": False,
        "dataset_sources": [data_id],
        "competition_sources": [config.competition] if config.competition else [],
        "kernel_sources": [],
        "model_sources": [],
    }
    write_json(to / "notebook" / "kernel-metadata.json", kernel)
    said = [f"{part.name:9} {megabytes(part):6.1f} MB" for part in sorted(home.iterdir()) if part.is_dir()]
    said.append(f"wheels: {', '.join(f'{name} {version}' for name, version in packages.brought.items())}")
    said.append(f"the competition's folder, {root} here, is known there by {', '.join(how.markers)}")
    return data_id, notebook_id, said


def megabytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def refuse_others(folder: Path) -> None:
    """Raise InputError for a folder that holds anything but a kit, or can't be written to."""
    refuse_unwritable(folder.parent, "name another --out")
    if folder.exists() and not (folder / "dataset" / MARKER).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise InputError(f"--out {folder}: holds something else than a kit: name a new folder")


USED = ("run", "data", "inference", "plugins")  # --help shows these groups of settings
FLAGS = {
    "--out": {"default": "", "metavar": "DIR", "help": "folder that the kit is written to; a kit there is replaced"},
    "--runs": {"nargs": "+", "default": [], "help": "runs that vote together (default: the one of --run)"},
    "--user": {"default": "", "metavar": "NAME", "help": "your name at Kaggle (default: KAGGLE_USERNAME)"},
    "--competition": {"default": "", "metavar": "SLUG", "help": "the competition, as its address names it"},
    "--name": {"default": "", "help": "what the data set and the notebook are called (default: the run's name)"},
    "--root": {
        "default": "",
        "metavar": "DIR",
        "help": "folder here that is the competition's folder there (default: the one that holds data.eval)",
    },
    "--with_crops": {
        "action": "store_true",
        "help": "take the crops of data.eval along instead of a detector: where all photos are known",
    },
    "--have": {"default": "", "metavar": "FILE", "help": "the platform's packages, as `pip freeze` writes them there"},
    "--python": {
        "nargs": "+",
        "default": ["3.12", "3.13"],
        "metavar": "VERSION",
        "help": "the platform's Python, maybe several (default: 3.12 3.13)",
    },
    "--gpu": {"action": "store_true", "help": "ask for a GPU"},
}


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, FLAGS, argv, USED)
    from model import checkpoints, load_folds

    if not config.out:
        raise InputError("--out: name the folder that the kit is written to")
    strange = [python for python in config.python if not re.fullmatch(r"3\.\d+", python)]
    if strange:
        raise InputError(f"--python {strange[0]}: write it as 3.12")
    if config.data.sample_submission and not Path(config.data.sample_submission).is_file():
        raise InputError(f"data.sample_submission {config.data.sample_submission}: there is no such file here")
    if not dataset.answerable(config):
        raise InputError(f"data.eval {config.data.eval}: names no photos here: give --data.eval as they lie here")
    folders, out = names_of(config.runs or [config.run]), Path(config.out)
    refuse_others(out)
    weights = {name: checkpoints(folder) | runs.final_checkpoint(folder) for name, folder in folders.items()}
    abouts = {name: list(load_folds(paths)[1].values()) for name, paths in weights.items()}
    unfinished = out.with_name(f".{out.name}.unfinished")
    with folder_lock(out.parent, f"{out.name}.kit"):
        shutil.rmtree(unfinished, ignore_errors=True)  # what a kill left
        try:
            data_id, notebook_id, said = build(config, folders, abouts, unfinished)
            shutil.rmtree(out, ignore_errors=True)
            unfinished.rename(out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    print(*said, sep="\n")
    print(*commands(config, out, data_id, notebook_id), sep="\n")


def commands(config: Config, out: Path, data_id: str, notebook_id: str) -> list[str]:
    """The lines that send the kit and submit its answers."""
    data, cells = (shlex.quote(str(out / part)) for part in ("dataset", "notebook"))
    competition = config.competition or "COMPETITION"
    lines = [
        f"kaggle datasets create -p {data} -r zip",
        f"kaggle datasets version -p {data} -r zip -m NOTE     # when it is there already",
        f"kaggle kernels push -p {cells}    # runs it; kaggle kernels status {notebook_id}",
        f"kaggle competitions submit {competition} -k {notebook_id} -v 1 -f submission.csv -m NOTE",
    ]
    if data_id.startswith("USERNAME/"):
        lines.append("first put your name at Kaggle for USERNAME in both -metadata.json, or give --user NAME")
    if not config.competition:
        lines.append("first name the competition in kernel-metadata.json, competition_sources, or give --competition")
    return lines


if __name__ == "__main__":
    run_main(main)
