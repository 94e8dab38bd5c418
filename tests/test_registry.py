"""foldface/registry.py: names of losses, augmentations, detectors, scores, layouts, splitters; a user's files."""

import json
import re

import pandas as pd
import pytest

import loss  # noqa: F401 (it registers the losses)
from foldface import cli, metrics, registry, runs, task
from foldface.data import augment, folds, layouts  # noqa: F401 (they register theirs)
from foldface.faces import detect
from foldface.files import InputError


def test_the_names_that_help_lists_are_those_that_are_registered():
    for kind, listed in registry.BUILT_IN.items():
        guesses = detect.GUESSES if kind == "detector" else ()
        assert set(listed) == {*registry.REGISTERED[kind], *guesses}, kind


def test_help_lists_every_name_of_ours(capsys):
    with pytest.raises(SystemExit):
        cli.read("", argv=["--help", "all"])
    out = capsys.readouterr().out
    ours = [name for listed in registry.BUILT_IN.values() for name in listed]
    assert [name for name in ours if not re.search(rf"\b{name}\b", out)] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--loss.name", "focl"],
            "loss.name focl: there is no such loss; did you mean focal? There are cross",
        ),
        (["--data.augment", "snow"], "data.augment snow: there is no such augmentation; There are none, light,"),
        (
            ["--task.score", "f2"],
            "task.score f2: there is no such score; There are f1, accuracy, mae, within, roc_auc,",
        ),
        (["--data.layout", "zip"], "data.layout zip: there is no such layout; There are competition, aaf,"),
        (["--data.splitter", "random"], "data.splitter random: there is no such splitter; There are pandas_streaming"),
        (
            ["--crop.detectors", "[dlib,centre]"],
            "crop.detectors dlib: there is no such detector; There are retina",
        ),
        (["--data.extra", '[{"layout": "zip", "path": "x"}]'], "data.extra: layout zip: there is no such layout"),
    ],
)
def test_an_unknown_name_is_refused_with_the_names_that_there_are(words, said):
    with pytest.raises(InputError) as caught:
        cli.read("", argv=words)
    assert str(caught.value).startswith(said) and "--plugins FILE.py" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "mine_a.py",
            "from foldface.registry import register\nregister('loss', 'focal')(lambda *_: 0)",
            "is there al",
        ),
        ("mine_b.py", "from foldface.registry import register\nregister('lose', 'x')(lambda *_: 0)", "no such kind"),
        ("mine_c.py", "def broken(:\n", "can't be imported: invalid syntax"),
        ("mine_d.py", "import no_such_package_of_mine", "can't be imported: No module named"),
        ("json.py", "", "there is another module called json: rename the file"),
        ("mine.txt", "", "should be a Python file"),
        ("", "", "should be a Python file"),
    ],
)
def test_a_file_that_can_be_no_plugin_is_refused_in_one_line(tmp_path, own_registry, name, text, said):
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        cli.read("", argv=["--plugins", str(tmp_path / (name or "nothing.py"))])


def test_a_plugin_is_imported_once_and_may_import_its_neighbours(tmp_path, own_registry, monkeypatch):
    (tmp_path / "mine_e.py").write_text(
        "from mine_helper import NAME\nfrom foldface.registry import register\nregister('loss', NAME)(lambda *_: 0)\n"
    )
    (tmp_path / "mine_helper.py").write_text("NAME = 'mine_too'\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in (f"[{tmp_path}/mine_e.py]", "~/mine_e.py"):
        config = cli.read("", argv=["--plugins", words, "--loss.name", "mine_too"])
        assert config.loss.name == "mine_too" and config.plugins == [f"{tmp_path}/mine_e.py"]
    (tmp_path / "more.json").write_text(json.dumps({"plugins": [f"{tmp_path}/mine_e.py"]}))
    assert cli.read("", argv=["--config", str(tmp_path / "more.json"), "--loss.name", "mine_too"])


def test_the_files_that_a_run_names_are_never_run(tmp_path, own_registry, capsys):
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    run = tmp_path / "run"
    run.mkdir()
    (run / "args.json").write_text(json.dumps({"plugins": [str(tmp_path / "evil.py")]}))
    assert runs.read_for_run("", argv=["--run", str(run)]).plugins == []
    assert "evil.py" in capsys.readouterr().err  # it is said
    (run / "folds.csv").write_text("id,fold\n")
    with pytest.raises(InputError, match="no program is run because a run names it"):
        cli.read("", argv=["--config", str(run / "args.json")])
    assert cli.read("", argv=["--config", str(run / "args.json"), "--plugins", "[]"]).plugins == []


@pytest.mark.parametrize("name", ["config", "print_config", "help", "retry"])
def test_a_file_of_settings_names_settings_alone(tmp_path, own_registry, name):
    """jsonargparse would read the file that `config` names, and with it what no run may name."""
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "inner.json").write_text(json.dumps({"plugins": [str(tmp_path / "evil.py")]}))
    (tmp_path / "args.json").write_text(json.dumps({name: str(tmp_path / "inner.json")}))
    with pytest.raises(InputError, match=rf"args.json: .*{name}"):
        cli.read("", {"--retry": {"action": "store_true"}}, ["--config", str(tmp_path / "args.json")])


def test_a_url_in_a_runs_settings_is_seen_in_either_way_of_writing(tmp_path):
    (tmp_path / "folds.csv").write_text("id,fold\n")
    url = "https://ann:secret@localhost:1/c"
    for content in ({"data": {"crops": url}}, {"data.crops": url}):
        (tmp_path / "args.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match="nothing is fetched because a run names it") as caught:
            cli.read("", argv=["--config", str(tmp_path / "args.json")])
        assert "secret" not in str(caught.value)


def test_a_score_of_numbers_where_less_is_better_chooses_the_lowest(own_registry):
    @registry.register("score", "worst")
    class Worst(metrics.Score):
        numbers = less_is_better = True

        def value(self, task, target, answer):
            return abs(target - answer).max()

    age = task.Task([{"name": "age", "range": [0, 100]}], score="worst")
    assert metrics.scores(age, [1.0, 2.0], [1.0, 5.0]) == {"worst": 3.0, "mae": 1.5, "within": 1.0}
    assert metrics.gain(age, [1.0], [2.0]) > metrics.gain(age, [1.0], [3.0]) and metrics.title(age) == "worst"
    low, high = metrics.interval(age, [1.0, 2.0], [1.0, 5.0], ["a", "b"])
    assert (low, high) == (0.0, 3.0)
    with pytest.raises(InputError, match="the answer is a class: choose one of f1, accuracy"):
        metrics.score_of(task.Task(task.MASK_TASK["heads"], score="worst"))


def test_a_splitter_that_gives_no_folds_is_refused(own_registry):
    registry.register("splitter", "seven")(lambda people, folds, seed: [7] * len(people))
    with pytest.raises(InputError, match="should give each of 3 groups a fold 0 to 1"):
        folds.deal(pd.DataFrame({"group": [0, 1, 2], "stratum": [0, 0, 1]}), 2, "seven", 0)
