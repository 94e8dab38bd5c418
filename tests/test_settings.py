"""Settings: every one explained, and whoever mistypes one is told which was meant."""

import ast
import dataclasses
import json
import re
import resource
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from helpers import ROOT

from foldface import cli, runs
from foldface.files import InputError
from foldface.settings import FILES, GROUPS, MOVED_TO_HEADS, RENAMED_KEYS, Config, as_dict, flatten, task_of
from foldface.task import Task

SCRIPTS = sorted(
    path.name
    for path in ROOT.glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text() and path.name != "args.py"
)

# tools that are all torch import it at their top, and --help takes seconds
TRAINING = ("benchmark", "check_repeat", "gpu_check", "random_split", "embed", "expert", "same_person")
MODULES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("tools", "demo")
    for path in (ROOT / folder).glob("*.py")
    if "run_main(main)" in path.read_text() and path.stem not in TRAINING
)

# what --help must not import: of the scripts nothing that takes long; tools draw, and read photos
HEAVY = {True: {"torch", "timm", "albumentations", "sklearn", "onnxruntime"}, False: {"torch", "timm"}}


def complaint(*words):
    with pytest.raises(InputError) as caught:
        cli.read("", argv=[str(word) for word in words])
    return str(caught.value)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").rglob("*.json")), ids=lambda path: path.stem)
def test_every_recipe_can_be_read(recipe):
    assert cli.read("", argv=["--config", str(recipe)]).run.startswith("runs/")


def test_a_setting_is_overridden_by_its_dotted_name():
    config = cli.read("", argv=["--train.lr", "1e-4", "--train.only_folds", "[0,1]", "--model.pretrained", "true"])
    assert (config.train.lr, config.train.only_folds, config.model.pretrained) == (1e-4, [0, 1], True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A function that writes settings into a file of the folder that commands are started in; returns its path."""
    monkeypatch.chdir(tmp_path)

    def write(name, **content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return str(path)

    return write


def test_a_later_file_wins_over_an_earlier_one_all_over_args_json_and_the_command_line_over_all(folder):
    folder("args.json", seed=5, device="cpu", train={"epochs": 2, "lr": 0.25, "folds": 3})
    first, second = folder("a.json", seed=1, train={"epochs": 3, "lr": 0.5}), folder("b.json", train={"epochs": 5})
    config = cli.read("", argv=["--seed", "9", "--config", first, "--config", second])
    assert (config.seed, config.train.lr, config.train.folds, config.device) == (9, 0.5, 3, "cpu")
    assert config.train.epochs == 5  # as the later file has it, though that is the default
    assert cli.read("", argv=[]).train.lr == cli.read("", argv=["--config", "args.json"]).train.lr == 0.25


def test_what_follows_a_run_takes_args_json_then_the_run_then_files_and_the_command_line(folder, capsys):
    folder("args.json", data={"image_size": 96, "eval": "mine"}, loss={"gamma": 3.5}, inference={"batch_size": 7})
    run = str(
        Path(folder("runs/a/args.json", data={"image_size": 128, "eval": "theirs"}, pseudo={"threshold": 0.7})).parent
    )
    found = runs.read_for_run("", argv=["--run", run])
    assert (found.data.image_size, found.data.eval, found.pseudo.threshold) == (128, "theirs", 0.7)  # the run's
    assert (found.loss.gamma, found.inference.batch_size) == (3.5, 7)  # args.json's: the run does not say
    assert "data.eval: theirs (from " in capsys.readouterr().out
    recipe = folder("recipe.json", data={"image_size": 64}, pseudo={"threshold": 0.8}, loss={"gamma": 2.5})
    found = runs.read_for_run("", argv=["--run", run, "--config", recipe, "--pseudo.threshold", "0.9"])
    assert (found.data.image_size, found.pseudo.threshold, found.loss.gamma) == (64, 0.9, 2.5)  # 64, 0.9: the defaults
    said = [line for line in capsys.readouterr().out.splitlines() if "given now" in line]
    assert said == [
        f"data.image_size: 64 (given now; {run}/args.json has 128)",
        f"pseudo.threshold: 0.9 (given now; {run}/args.json has 0.7)",
    ]


def test_a_task_that_is_not_the_runs_is_said_and_not_taken(folder, capsys):
    heads = [{"name": "kind", "classes": ["a", "b"]}]
    run = str(Path(folder("run/args.json", task={"heads": heads, "score": "accuracy"})).parent)
    recipe = folder("recipe.json", task={"heads": [{"name": "kind"}], "score": "accuracy", "answer_as": "name"})
    found = runs.read_for_run("", argv=["--run", run, "--config", recipe])  # the recipe that it was trained with
    assert found.predicted.classes == ("a", "b") and found.task.answer_as == "name"
    assert capsys.readouterr().err == ""
    found = runs.read_for_run("", argv=["--run", run, "--task.score", "f1"])
    assert found.task.score == "accuracy"
    assert 'warning: task.score "f1": is not taken' in capsys.readouterr().err


# settings of text that are no paths; a new one is to be put here or into args.FILES
TEXTS = {
    "train.optimizer",
    "task.answer",
    "data.group",
    "data.eval_group",
    "data.eval_group_heads",
    "data.only",
    "model.backbone",
    "app.host",
    "app.root_url",
    "plugins",
}
TEXTS |= {"data.photo_column", "data.photo_suffix", "data.id_column"}


def test_every_setting_that_is_a_path_knows_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    extra, value = '[{"layout": "aaf", "path": "~/more"}]', {"data.roots": '["~/x"]'}
    words = [word for key in FILES for word in (f"--{key}", value.get(key, "~/x"))]
    config = cli.read("", {"--photos": {"nargs": "+"}}, [*words, "--data.extra", extra, "--photos", "~/a", "b~"])
    found = flatten(as_dict(config))
    assert [key for key in FILES if found[key] not in ("/home/anna/x", ["/home/anna/x"])] == []
    assert config.data.extra[0].path == "/home/anna/more" and config.photos == ["/home/anna/a", "b~"]
    kinds = (str, typing.List[str], typing.Union[bool, str], typing.Union[typing.List[str], str])
    texts = {
        f"{prefix}{field.name}"
        for prefix, kind in [("", Config), *((f"{name}.", kind) for name, kind in GROUPS.items())]
        for field in dataclasses.fields(kind)
        if field.type in kinds
    }
    assert texts == TEXTS | set(FILES)


def test_settings_files_and_runs_of_the_home_folder_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.json").write_text('{"run": "~/mine", "data": {"train": "~/photos", "pseudo": "~/p.csv"}}')
    for words in (["--config", "~/a.json"], ["--config=~/a.json"]):
        config = cli.read("", argv=words)
        assert (config.run, config.data.train) == (f"{tmp_path}/mine", f"{tmp_path}/photos")
    (tmp_path / "mine").mkdir()
    runs.save(config)
    (tmp_path / "mine" / "args.json").write_text((tmp_path / "mine" / "args.json").read_text().replace("/photos", "/p"))
    assert runs.read_for_run("", argv=["--run", "~/mine"]).data.train == f"{tmp_path}/p"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--train.epocks", "3"], "--train.epocks: there is no such setting; did you mean --train.epochs 3?"),
        (["--epochs", "3"], "--epochs: there is no such setting; did you mean --train.epochs 3?"),
        (["--train.epoch", "3"], "did you mean --train.epochs 3?"),
        (["--lr=0.1"], "did you mean --train.lr 0.1?"),
        (["--train-epochs", "3"], "did you mean --train.epochs 3?"),
        (["--batch-size", "8"], "did you mean --train.batch_size 8?"),
        (["--learning-rate", "0.1"], "did you mean --train.lr 0.1?"),
        (["-e", "3"], "-e: a setting is typed as --NAME VALUE: did you mean --train.epochs 3?"),
        (["-lr=0.1"], "did you mean --train.lr 0.1?"),
        (["data.train=x"], "did you mean --data.train x?"),
        (["train.epochs", "3"], "did you mean --train.epochs 3?"),
        (["epochs=3"], "did you mean --train.epochs 3?"),
        (["--train", "photos"], "or did you mean --data.train photos?"),
        (["--train.epochs", "2.5"], '"train.epochs": should be int > 0'),
        (["--train.epochs", "many"], "train.epochs"),
        (["--train.epochs", "0"], "train.epochs"),
        (["--train.lr", "nan"], "train.lr"),
        (["--train.sampler", "al"], "['all', 'balanced']"),
        (["--task.heads.age.train_bounds", "[30,20]"], "which rise"),
        (["--data.strict", "perhaps"], "data.strict"),
        (["--data.extra", '[{"layout": "aaf"}]'], "data.extra"),
        (["--data.augment", "diary"], "set it to 224"),
        (["--data.augment", "report"], "write diary instead of report"),
        (["--inference.backend", "int8"], "write onnx instead of int8"),
        (["--train.optimizer", "sgd", "--train.momentum", "0.5"], "onecycle moves the momentum by itself"),
        (["--train.nesterov", "true", "--train.momentum", "0"], "train.nesterov looks ahead by the momentum"),
        (["--model.heads", "joint", "--task.answer", "[gender,age]"], "model.heads joint has an output for each class"),
        (["--train.only_folds", "[5]"], "names fold 5, but train.folds is 5"),
        (["--crop.detectors", "[]"], "crop.detectors is []: name at least one"),
        (["--config", "nowhere.json"], "nowhere.json: no such file"),
        (["stray"], "stray: stands alone: a setting is typed as --NAME VALUE"),
        (["--train", '{"epochs": 3}'], "--train is a group of settings: name one"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_the_key(words, expected):
    line = complaint(*words)
    assert expected in line and "\n" not in line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"train": {"lrr": 1}}', "train.lrr: there is no such setting; did you mean train.lr?"),
        ('{"trane": {}}', "did you mean train?"),
        ('{"seed": 1,}', "can't be read as JSON"),
        ("[1]", "should be a JSON object"),
        ('{"seed": "__import__(\'os\')"}', "seed"),
    ],
)
def test_a_bad_settings_file_is_named(tmp_path, content, expected):
    path = tmp_path / "mine.json"
    path.write_text(content)
    line = complaint("--config", path)
    assert expected in line and "\n" not in line


@pytest.mark.slow
def test_the_page_of_all_settings_is_that_of_their_declaration():
    made = subprocess.run([sys.executable, "-m", "tools.settings_page"], capture_output=True, text=True).stdout
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert page == made, "write it again: python -m tools.settings_page > docs/settings.md"
    assert [key for key in ALL if f"| `{key}` |" not in page] == []


def help_of(capsys, *words, used=("data.eval", "train")):
    with pytest.raises(SystemExit) as caught:
        cli.read("What it does.", {"--soft": {"action": "store_true", "help": "vote"}}, ["--help", *words], used)
    assert not caught.value.code
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "tools/stress").glob("*.py"))])
def test_a_tool_that_stresses_says_how_it_is_used(name):
    done = subprocess.run(
        [sys.executable, "-m", f"tools.stress.{name}", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "usage" in done.stdout and f"tools.stress.{name}" in done.stdout, done.stderr


def test_help_shows_the_settings_that_the_script_uses_and_no_others(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = help_of(capsys)
    assert "What it does." in text and "--soft" in text and "docs/settings.md" in text
    assert "--data.eval" in text and "--data.train" not in text and "--train.lr" in text and "--gan.lr" not in text
    assert re.search(r"(?m)^  --run +runs/sample +folder that a run writes to$", text)
    assert re.search(r"(?m)^  --train.sampler +all +all \| balanced: ", text)
    rows = [line for line in text.splitlines() if line.startswith("  --train.")]
    assert len(rows) == sum(key.startswith("train.") for key in ALL) and max(map(len, rows)) <= 100


def test_help_on_a_group_or_a_setting_tells_all_that_is_known_of_it(capsys):
    text = " ".join(help_of(capsys, "data.eval", "train").split())
    assert "--data.eval text; default data/sample/eval the photos to answer for: a folder with info.csv and" in text
    assert "--train.lr float > 0; default 0.001" in text and "--train.only_folds list of int ≥ 0 or null" in text
    assert "--data.crops" not in text and "--soft" not in text
    everything = help_of(capsys, "all", used=tuple(GROUPS))
    assert [key for key in ALL if f"--{key} " not in everything] == []
    with pytest.raises(InputError, match=r"--help trane: there is no such setting or group; did you mean train\?"):
        cli.read("", argv=["--help", "trane"])


def test_every_group_of_settings_is_in_the_help_of_some_script():
    sources = [*ROOT.glob("*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("demo/*.py")]
    found = [
        re.search(r"^USED = (\(.*?\))", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL) for path in sources
    ]
    assert set(GROUPS) <= {name for one in found if one for name in ast.literal_eval(one[1])}


def test_a_setting_of_another_scripts_group_is_read_and_no_run_holds_it(folder):
    recipe = folder("recipe.json", gan={"epochs": 7}, app={"advice": "mine.json"}, run="runs/a")
    config = cli.read("", argv=["--config", recipe, "--sample.people", "5"], used=("data",))
    assert (config.gan.epochs, config.app.advice, config.sample.people) == (7, "mine.json", 5)
    runs.save(config)
    assert not {"gan", "app", "sample"} & set(json.loads(Path("runs/a/args.json").read_text()))


def python_seconds(code):
    """(processor seconds, what it printed) of a program: not what the clock says, since a machine may be busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", [*SCRIPTS, *MODULES])
def test_help_answers_at_once_and_without_torch(script):
    code = (
        f"import sys, runpy; sys.argv = ['{script}', '--help']\n"
        f"try: runpy.run_path('{ROOT / script}', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        f"heavy = {HEAVY[script in SCRIPTS]} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    seconds, text = python_seconds(code)
    module = "-m " + script.removesuffix(".py").replace("/", ".")
    assert "--run " in text and (script if script in SCRIPTS else module) in text
    assert not re.search(r"Optional|Positive|Union|ITEM", text)
    assert len(text.splitlines()) <= 160, "a screen or two, not a book"
    most = 1.5 if script in SCRIPTS else 3  # on an idle machine; a busy one takes longer for any import
    if seconds > most:
        pairs = [(python_seconds(code)[0], python_seconds("import pandas")[0]) for _ in range(3)]
        assert min(ours / theirs for ours, theirs in pairs) < 3 * most, pairs


def test_a_run_refuses_other_settings_and_names_what_changed(competition):
    runs.save(competition.config())
    runs.save(competition.config("--train.lr", 0.3))  # nothing was begun yet
    (competition.root / "run" / "folds.csv").write_text("id,fold\n")
    runs.save(competition.config("--train.lr", 0.3))  # dealing people into folds is no training
    (competition.root / "run" / "fold0").mkdir()
    (competition.root / "run" / "fold0" / "state.pt").write_bytes(b"")
    runs.save(competition.config("--train.lr", 0.3, "--data.workers", 1))
    with pytest.raises(InputError, match=r"train\.lr was 0\.3, is 0\.5"):
        runs.save(competition.config("--train.lr", 0.5))


@pytest.mark.slow
def test_after_training_a_run_remembers_what_it_was_started_with(competition, capsys):
    runs.save(competition.config("--inference.flip", "true"))
    run = str(competition.root / "run")
    later = runs.read_for_run("", argv=["--run", run])
    assert later.data.eval == str(competition.eval) and later.data.crops == "" and later.inference.flip
    assert "data.eval" in capsys.readouterr().out
    assert runs.read_for_run("", argv=["--run", run, "--data.eval", "elsewhere"]).data.eval == "elsewhere"
    flags = {"--runs": {"nargs": "+", "default": []}}
    assert runs.read_for_run("", flags, ["--runs", run, "other"]).data.eval == str(competition.eval)


ALL = flatten(as_dict(Config()))
ANOTHER = {
    "data.eval_group_heads": [
        "mask"
    ],  # values other than the defaults that a run may have and that go with the defaults of all others
    "task.heads": [{"name": "kind", "classes": ["a", "b"]}],
    "task.answer": ["gender"],
    "task.score": "accuracy",
    "data.layout": "folder",
    "data.box_pixels": "stored",
    "data.extra": [{"layout": "aaf", "path": "more"}],
    "data.duplicates": "drop",
    "data.only": ["mask=normal"],
    "data.resize_mode": "pad",
    "data.augment": "strong",
    "data.splitter": "sklearn",
    "crop.missing": "drop",
    "task.answer_as": "name",
    "task.reported": ["accuracy"],
    "model.pretrained": False,
    "model.beside": [{"backbone": "resnet18", "pretrained": True, "image_size": 64, "zoom": 1.0, "frozen": False}],
    "model.init": "default",  # another needs random weights
    "model.heads": "joint",
    "loss.name": "focal",
    "loss.balance": "inverse",
    "train.amp": "off",
    "data.flip": 0.6,
    "inference.backend": "onnx",
}


def another(key):
    """A value of a setting that is not its default."""
    value = ALL[key]
    if key in ANOTHER:
        return ANOTHER[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "elsewhere"
    return value + 1 if isinstance(value, int) else value / 2 + 0.1


def test_a_run_that_was_begun_does_not_change_who_is_left_out_for_want_of_a_face(tmp_path):
    runs.save(cli.read("", argv=["--run", str(tmp_path)]))
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0" / "log.csv").write_text("epoch\n1\n")
    runs.save(cli.read("", argv=["--run", str(tmp_path), "--crop.size", "160"]))  # of the crops alone
    with pytest.raises(InputError, match=r'crop.missing was "guess", is "drop"'):
        runs.save(cli.read("", argv=["--run", str(tmp_path), "--crop.missing", "drop"]))


def test_every_setting_is_either_the_runs_or_the_commands():
    taken, groups = set(runs.OF_A_RUN), tuple(name for name in runs.OF_A_COMMAND if name.endswith("."))
    own = set(runs.OF_A_COMMAND) - set(groups) | {key for key in ALL if key.startswith(groups)}
    assert not taken & own and taken | own == set(ALL), (taken | own) ^ set(ALL)


@pytest.mark.slow
@pytest.mark.parametrize("key", runs.OF_A_RUN)
def test_what_decides_answers_comes_from_the_run(tmp_path, capsys, key):
    then = as_dict(Config())
    *groups, name = key.split(".")
    (then[groups[0]] if groups else then)[name] = another(key)
    (tmp_path / "args.json").write_text(json.dumps(then))
    found = flatten(as_dict(runs.read_for_run("", argv=["--run", str(tmp_path)])))
    expected = flatten(as_dict(Config())) | {"run": str(tmp_path), key: another(key)}
    if key == "task.heads":
        found[key] = [{"name": head["name"], "classes": head["classes"]} for head in found[key]]
    assert found == expected
    said = capsys.readouterr().out
    assert (f"{key}: {another(key)} (from " in said) == (key in runs.PATHS and key != "model.pretrained")


def test_an_old_run_that_answered_in_int8_answers_by_onnx(tmp_path):
    runs.save(cli.read("", argv=["--run", str(tmp_path), "--inference.backend", "onnx"]))
    path = tmp_path / "args.json"
    path.write_text(path.read_text().replace('"onnx"', '"int8"'))
    assert runs.read_for_run("", argv=["--run", str(tmp_path)]).inference.backend == "onnx"


def test_a_run_whose_augmentation_was_called_report_goes_on_with_the_same_list(tmp_path):
    config = cli.read("", argv=["--run", str(tmp_path), "--data.augment", "diary", "--data.image_size", "224"])
    runs.save(config)
    path = tmp_path / "args.json"
    path.write_text(path.read_text().replace('"diary"', '"report"'))
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0/log.csv").touch()
    runs.refuse_other_settings(config)
    assert runs.read_for_run("", argv=["--run", str(tmp_path)]).data.augment == "diary"
    config.data.augment = "none"
    with pytest.raises(InputError, match=r"data\.augment was"):
        runs.refuse_other_settings(config)


@pytest.mark.parametrize("key", sorted(set(ALL) - set(runs.OF_A_RUN)))
def test_where_to_write_what_to_open_and_how_much_to_take_never_comes_from_a_run(tmp_path, capsys, key):
    then = as_dict(Config())
    *groups, name = key.split(".")
    (then[groups[0]] if groups else then)[name] = "/home/victim/.profile"
    (tmp_path / "args.json").write_text(json.dumps(then))
    found = flatten(as_dict(runs.read_for_run("", argv=["--run", str(tmp_path)])))
    assert found == flatten(as_dict(Config())) | {"run": str(tmp_path)}
    missed = f'--{key} "/home/victim/.profile": not taken from a run'
    assert (missed in capsys.readouterr().err) == (key in runs.MISSED)


def test_a_strangers_run_writes_over_no_file_of_mine(competition, capsys):
    victim = competition.root / "profile"
    victim.write_text("mine")
    config = competition.config("--submission", victim, "--app.host", "0.0.0.0", "--data.roots", '["/"]')
    runs.save(config)
    found = runs.read_for_run("", argv=["--run", config.run])
    assert (found.submission, found.app.host, found.data.roots) == ("submission.csv", "127.0.0.1", [])
    assert found.data.train == str(competition.train)


@pytest.mark.parametrize("key", ["app.host", "app.port", "app.root_url"])
def test_no_file_opens_a_port(tmp_path, key):
    value = {"app.host": "0.0.0.0", "app.port": 80, "app.root_url": "https://example.org"}[key]
    (tmp_path / "recipe.json").write_text(json.dumps({"app": {key[4:]: value}}))
    line = complaint("--config", tmp_path / "recipe.json")
    assert f"given on the command line alone: --{key} {value}" in line
    assert getattr(cli.read("", argv=[f"--{key}", str(value)]).app, key[4:]) == value


@pytest.mark.slow
def test_a_script_ends_with_one_line_and_exit_2():
    done = subprocess.run([sys.executable, ROOT / "ensemble.py", "--run", "runs/none"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: runs/none: has no fold0.csv")
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_switch_may_stand_alone():
    config = cli.read("", argv=["--inference.flip", "--crop.align", "--seed", "3", "--data.strict", "false"])
    assert config.inference.flip and config.crop.align and not config.data.strict and config.seed == 3
    assert cli.read("", argv=["--seed", "3", "--crop.align"]).crop.align


OLD = json.loads((Path(__file__).parent / "earlier_run.json").read_text())  # of the version before names were changed


@pytest.mark.slow
def test_a_run_of_before_is_read_goes_on_and_is_compared_under_the_names_of_today(tmp_path):
    (tmp_path / "args.json").write_text(json.dumps(OLD | {"run": str(tmp_path)}))
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0" / "log.csv").touch()
    words = ["--task.tolerance", "4", "--data.test_size", "0.1", "--data.resize_mode", "pad", "--data.augment", "trash"]
    words += ["--data.random_erasing", "0.2", "--model.init_from_run", "first", "--train.checkpoint", "last"]
    words += ["--train.weight_averaging", "ema", "--run", str(tmp_path)]
    runs.refuse_other_settings(cli.read("", argv=words))  # each of them as the run has it
    for k in range(0, len(words) - 2, 2):
        with pytest.raises(InputError, match=f"{words[k][2:]} was .*, is "):
            runs.refuse_other_settings(cli.read("", argv=words[:k] + words[k + 2 :]))
    found = runs.read_for_run("", argv=["--run", str(tmp_path)])
    assert (found.task.tolerance, found.data.test_size, found.data.resize_mode) == (4, 0.1, "pad")
    assert found.data.random_erasing == 0.2 and task_of(OLD)["tolerance"] == 4


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_a_setting_under_its_old_name_is_refused_with_the_new_one(folder, old, new):
    group, name = old.split(".")
    assert complaint(f"--{old}", "1") == f"--{old}: is called {new} now"
    assert complaint("--config", folder("old.json", **{group: {name: 1}})).endswith(
        f"old.json: {old}: is called {new} now"
    )
    assert new in ALL or new.startswith("task.heads"), f"{new} is no setting"


@pytest.mark.parametrize(("old", "field"), MOVED_TO_HEADS.items())
def test_what_was_said_of_ages_beside_the_task_is_refused_with_the_field_of_the_head(folder, old, field):
    group, name = old.split(".")
    for words in ([f"--{old}", "1"], ["--config", folder("old.json", **{group: {name: 1}})]):
        assert complaint(*words).endswith(
            f"{old}: is a field of a head now: task.heads.NAME.{field}, such as task.heads.age.{field}"
        )


def test_a_field_of_one_head_is_changed_and_the_others_stay(folder):
    def ages(*words):
        heads = cli.read("", argv=words).task.heads
        assert [head.name for head in heads] == ["mask", "gender", "age"] and heads[0].weight == 1
        return heads[2]

    first = folder("first.json", task={"heads": {"age": {"learn": "ordinal", "weight": 2}}})
    second = folder("second.json", task={"heads": {"age": {"learn": "distribution", "train_bounds": [30, 55]}}})
    found = ages("--config", first, "--config", second, "--task.heads.age.sigma", "2.5", "--task.heads.age.train_gap=1")
    assert (found.learn, found.weight, found.train_bounds, found.sigma, found.train_gap) == (
        "distribution", 2, [30, 55], 2.5, 1,
    )  # fmt: skip
    assert found.bounds == [30, 60] and found.unit == "years" and ages().train_bounds == [30, 58]
    whole = folder("whole.json", task={"heads": [{"name": "kind"}]})
    assert [head.name for head in cli.read("", argv=["--config", first, "--config", whole]).task.heads] == ["kind"]
    assert "gender" in complaint("--config", whole, "--task.heads.gender.weight", "2")


@pytest.mark.parametrize(
    ("then", "field", "now"),
    [
        ({}, "train_bounds", [30, 58]),
        ({"data": {"age_boundary": 55}}, "train_bounds", [30, 55]),
        ({"data": {"age_boundary": 60}}, "train_bounds", []),
        ({"data": {"age_gap": 2}}, "train_gap", 2),
        ({"model": {"age": "ordinal"}}, "learn", "ordinal"),
        ({"loss": {"age_sigma": 3.0}}, "sigma", 3.0),
        ({"loss": {"weights": [1, 1, 2]}}, "weight", 2),
    ],
    ids=str,
)
def test_a_run_of_before_goes_on_with_its_ages_in_the_task(tmp_path, then, field, now):
    old = {key: value | then.get(key, {}) if isinstance(value, dict) else value for key, value in OLD.items()}
    (tmp_path / "args.json").write_text(json.dumps(old | {"run": str(tmp_path)}))
    found = runs.read_for_run("", argv=["--run", str(tmp_path)])
    assert getattr(found.task.heads[2], field) == now and [head.weight for head in found.task.heads[:2]] == [1, 1]
    assert Task(**task_of(old)).number.trained == found.predicted.number.trained
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0" / "log.csv").touch()
    other = 7 if field in ("sigma", "weight", "train_gap") else "[29,59]" if field == "train_bounds" else "regression"
    words = ["--run", str(tmp_path), f"--task.heads.age.{field}", str(other)]
    with pytest.raises(InputError, match=rf"task\.heads\.age\.{field} was .*, is ") as caught:
        runs.refuse_other_settings(cli.read("", argv=words))
    assert str(caught.value).count("task.heads.") == 1


def test_what_is_no_setting_any_more_is_refused_and_a_run_that_had_another_value_does_not_go_on(tmp_path):
    assert complaint("--crop.retry") == "--crop.retry: is no setting any more: give face_crop.py --retry"
    assert complaint("--loss.span", "9") == "--loss.span: is no setting any more: it is always 2048"
    (tmp_path / "args.json").write_text(json.dumps({"loss": {"span": 512}, "run": str(tmp_path)}))
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0" / "log.csv").touch()
    with pytest.raises(InputError, match=r"loss\.span was 512, is always 2048 now"):
        runs.refuse_other_settings(cli.read("", argv=["--run", str(tmp_path)]))


def test_a_runs_own_settings_are_checked_too(tmp_path):
    run = tmp_path / "run"
    runs.save(cli.read("", argv=["--run", str(run), "--data.min_side", "3"]))
    assert runs.read_for_run("", argv=["--run", str(run)]).data.min_side == 3
    text = (run / "args.json").read_text().replace('"min_side": 3', '"min_side": "__import__(1)"')
    (run / "args.json").write_text(text)
    with pytest.raises(InputError, match=r"run/args.json: .*data.min_side"):
        runs.read_for_run("", argv=["--run", str(run)])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.heads", "joint", "--task.heads.age.learn", "ordinal"], "needs a head of its own"),
        (["--data.only", "[mask=none]"], "is no class or number of a head"),
        (["--train.weight_averaging", "swa", "--train.epochs", "3"], "none is left to average"),
        (["--train.warmup_epochs", "5", "--train.epochs", "5"], "none is left to train"),
    ],
)
def test_methods_that_do_not_go_together_are_refused(words, expected):
    with pytest.raises(InputError, match=expected):
        cli.read("", argv=words)
