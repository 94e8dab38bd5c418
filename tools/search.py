"""Search settings over the folds with optuna, and say what the search is worth on people that it was not chosen on.

    python -m tools.search --space space.json --config recipes/people_small.json --budget 30 --run runs/search
    space.json: {"train.lr": {"low": 1e-5, "high": 1e-2, "log": true}, "loss.name": ["cross_entropy", "focal"]}

First trains the settings as they are (RUN/default), then trials (RUN/trial-*), each a fold at a time; a trial below the
median of the others ends there. The same command goes on. Writes RUN/journal.log (optuna's storage), RUN/search.html
and RUN/best.json, a recipe for --config. The gain that it prints is nested: for each fold the trial is chosen by the
other folds, and scored on this one. Needs pip install optuna.
"""

import hashlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from foldface import blend, cli, metrics, oof, predictions
from foldface.cli import FREE, run_main
from foldface.files import (
    InputError,
    folder_lock,
    quoted,
    read_csv,
    read_json,
    refuse_unwritable,
    run_command,
    write_json,
)
from foldface.report import html
from foldface.settings import Config, as_dict, flatten
from foldface.task import Task
from tools.compare import STOPPED, without

USED = ("task", "data", "crop", "model", "loss", "train")  # --help shows these groups of settings
FLAGS = {
    "--space": {"default": "", "help": "JSON: a setting's values, or its low and high, and log or step"},
    "--budget": {"type": float, "default": 30.0, "help": "minutes for this command's trials, after the default recipe"},
    "--trials": {"type": int, "default": 0, "help": "trials at most, those of earlier starts included; 0 = no limit"},
}
# settings that change what is scored, not how well it is done
NOT_SEARCHED = (*FREE, "task.", "seed", "train.folds", "data.splitter", "data.train", "data.group", "data.test_size")
NOT_SEARCHED += ("data.layout", "data.only", "data.duplicates", "data.min_side", "train.minutes", "data.strict")
RANGE = {"low", "high", "log", "step"}


def read_space(path: str, words: list[str]) -> dict[str, dict | list]:
    """{dotted name: list of values, or {"low", "high", maybe "log" and "step"}} of a space file.

    words: of the command line, which each end of a range and each value is tried with. Raises InputError, which names
    the key, for a space that can't be searched.
    """
    if not path:
        raise InputError(
            'name the space to search: --space space.json, such as {"train.lr": {"low": 1e-5, "high": 0.01}}'
        )
    space, known = read_json(Path(path), "give the name of a space file to --space"), flatten(as_dict(Config()))
    if not isinstance(space, dict) or not space:
        raise InputError(f'{path}: should be a JSON object such as {{"train.lr": {{"low": 1e-5, "high": 0.01}}}}')
    for key, values in space.items():
        if key not in known:
            raise InputError(f"{path}: {key}: there is no such setting")
        if key.startswith(NOT_SEARCHED):
            raise InputError(f"{path}: {key}: decides what is scored, or nothing that is: it can't be searched")
        if isinstance(values, dict):
            refuse_range(f"{path}: {key}", values)
            tried = [values["low"], values["high"]]
        elif isinstance(values, list) and len(values) > 1:
            tried = values
        else:
            raise InputError(f'{path}: {key}: give a list of at least two values, or {{"low": ..., "high": ...}}')
        for value in tried:
            try:
                cli.read(__doc__, FLAGS, [*words, *typed({key: value})], USED)
            except InputError as error:
                raise InputError(f"{path}: {key}: {json.dumps(value)} can't be: {error}") from None
    return space


def refuse_range(where: str, values: dict) -> None:
    """Raise InputError unless a range has a low end below its high end, above 0 where it is logarithmic."""
    numbers = [values.get(name) for name in ("low", "high", *(["step"] if "step" in values else []))]
    if set(values) - RANGE or any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in numbers):
        raise InputError(f"{where}: a range has the numbers low and high, and maybe log (true) or step (a number)")
    if not values["low"] < values["high"] or values.get("step", 1) <= 0:
        raise InputError(f"{where}: low should be below high, and step above 0")
    if values.get("log") and (values["low"] <= 0 or "step" in values):
        raise InputError(f"{where}: a logarithmic range begins above 0 and has no step")


def typed(chosen: dict) -> list[str]:
    """Settings as words of a command line."""
    return [
        word
        for key, value in chosen.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]


def suggest(trial, space: dict) -> dict:
    """The settings that optuna tries next. trial: an optuna.Trial."""
    chosen = {}
    for key, values in space.items():
        if isinstance(values, list):  # by its place, since optuna's journal holds plain values alone
            chosen[key] = values[trial.suggest_categorical(key, list(range(len(values))))]
            continue
        whole = all(isinstance(values[name], int) for name in ("low", "high"))
        options = {"log": bool(values.get("log"))} | ({"step": values["step"]} if "step" in values else {})
        chosen[key] = (trial.suggest_int if whole else trial.suggest_float)(
            key, values["low"], values["high"], **options
        )
    return chosen


def fold_score(task: Task, run: Path, fold: int) -> float:
    """The score of a finished fold."""
    frame = predictions.read_oof(task, run / f"fold{fold}" / "oof.csv")
    return float(metrics.value(task, frame["target"].to_numpy(), predictions.scored(task, frame)))


class Trainer:
    """Trains recipes fold by fold, each in a folder of its own below `home`, with train_kfold.py."""

    def __init__(self, home: Path, words: list[str], task: Task):
        self.home, self.words, self.task = home, words, task

    def folder(self, chosen: dict) -> Path:
        """A recipe's folder: the same for the same settings, so that nothing is trained twice."""
        digest = hashlib.sha1(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:10]
        return self.home / (f"trial-{digest}" if chosen else "default")

    def folds(self) -> list[int]:
        """All folds, as the default recipe has dealt them."""
        dealt = read_csv(self.home / "default" / "folds.csv", ["id", "fold"])["fold"].astype(int)
        return sorted(dealt[dealt >= 0].unique().tolist())

    def train(self, chosen: dict, folds: list[int] | None) -> int:
        """Train these folds (None = all) of a recipe; returns the exit status. Folds that are finished are kept."""
        run = self.folder(chosen)
        if (
            not chosen
            and (run / "folds.csv").is_file()
            and all((run / f"fold{k}" / "oof.csv").is_file() for k in self.folds())
        ):
            return 0
        if folds is not None and all((run / f"fold{k}" / "oof.csv").is_file() for k in folds):
            return 0
        own = [*self.words, *typed(chosen), "--run", str(run)]
        own += [] if folds is None else ["--train.only_folds", json.dumps(folds)]
        code = run_command([sys.executable, str(Path(__file__).parent.with_name("train_kfold.py")), *own])
        if code in STOPPED:
            raise KeyboardInterrupt
        return code


def run_trials(study, states, space: dict, trainer: Trainer, over: Callable[[], bool]) -> None:
    """Ask optuna for trials and train them, until `over()`. A trial that a stop interrupts is begun again first.
    states: optuna's TrialState, since optuna is imported only where a search is made."""
    folds = trainer.folds()
    for left in study.get_trials(states=(states.RUNNING,)):
        study.tell(left.number, state=states.FAIL)
        study.enqueue_trial(left.params)
    while not over():
        trial = study.ask()
        chosen = suggest(trial, space)
        run, scores = trainer.folder(chosen), []
        trial.set_user_attr("settings", json.dumps(chosen))
        print(f"--- trial {trial.number}: {json.dumps(chosen)}", flush=True)
        for k in folds:
            if scores and over():
                print(f"trial {trial.number} waits for the next start: the budget is over")
                return
            if trainer.train(chosen, [k]):
                print(f"trial {trial.number} can't be trained, see its own line above", file=sys.stderr)
                study.tell(trial, state=states.FAIL)
                break
            scores.append(fold_score(trainer.task, run, k))
            trial.report(float(np.mean(scores)), step=len(scores))
            if len(scores) < len(folds) and trial.should_prune():
                print(f"trial {trial.number}: {np.mean(scores):.3f} after {len(scores)} folds: ends here", flush=True)
                study.tell(trial, state=states.PRUNED)
                break
        else:
            study.tell(trial, float(np.mean(scores)))


def choose_nested(task: Task, answers: np.ndarray, target: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Answers, (n,) or (n, k), of the recipe that is best on the other parts, for each part.

    answers: (recipes, n) or (recipes, n, k), as metrics.value takes them; target (n,); part: (n,), of blend.nested.
    """
    return blend.nested(lambda rows: answers[best_of(task, answers[:, rows], target[rows])].__getitem__, target, part)


def best_of(task: Task, answers: np.ndarray, target: np.ndarray) -> int:
    """Which recipe scores best; of equally good ones the first. answers, target: as in `choose_nested`."""
    return int(np.argmax([metrics.gain(task, target, one) for one in answers]))


def judge(task: Task, home: Path, recipes: dict[Path, dict]) -> tuple[list[str], dict]:
    """Print what the search found: (lines, settings of the best recipe). recipes: {folder: settings} of those whose
    folds are all finished, the default first."""
    known = oof.OofPredictions(task, [str(folder) for folder in recipes])
    answers = np.stack([blend.scored(task, one) for one in known.predictions])
    best, default = best_of(task, answers, known.target), answers[0]
    known.log_scores(
        [
            (default, "the default recipe", None),
            (answers[best], f"the best of {len(recipes)}, chosen on the same people (too good)", default),
            (choose_nested(task, answers, known.target, known.part), "chosen by the other folds (honest)", default),
        ]
    )
    return known.lines, list(recipes.values())[best]


def write_page(home: Path, lines: list[str], best: dict, rows: list[list], command: str) -> None:
    """Write RUN/search.html. rows: of the trials; command: what to type next."""
    found = ", ".join(f"{key} {json.dumps(value)}" for key, value in best.items()) or "the default recipe"
    parts = [
        ("What was found?", [html.text(found), html.command(command, "all folds with it, in a run of its own")]),
        ("What is it worth?", [html.text(line) for line in lines]),
    ]
    sections = [("Trials", [html.table(["trial", "state", "folds", "mean score of its folds", "settings"], rows)])]
    intro = (
        "Each trial is trained on the folds of the default recipe. Choosing among them is scored on people of the fold "
        "that it was not chosen by; which settings were tried hangs on all folds."
    )
    html.write(home / "search.html", f"{home}: search", intro, sections, html.lead(parts))


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else list(argv)
    config = cli.read(__doc__, FLAGS, words, USED)
    if importlib.util.find_spec("optuna") is None:
        raise InputError("tools.search needs optuna, which is not installed: pip install optuna")
    if "train.only_folds" in config.typed or "train.final" in config.typed:
        raise InputError(
            "tools.search trains all folds, one after the other: leave train.only_folds and train.final out"
        )
    words = without(words, ("--space", "--budget", "--trials", "--run"))
    home, space = Path(config.run if "run" in config.typed else "runs/search"), read_space(config.space, words)
    refuse_unwritable(home, "name another --run")
    home.mkdir(parents=True, exist_ok=True)
    with folder_lock(home):
        search(config, home, words, space)


def search(config: Config, home: Path, words: list[str], space: dict) -> None:
    """All that `main` does once the settings are known to be possible."""
    import optuna

    kept = home / "space.json"
    if kept.is_file() and read_json(kept, "remove it") != space:
        raise InputError(f"{home}: was begun with another space ({kept}): name another --run")
    write_json(kept, space)
    trainer = Trainer(home, words, config.predicted)
    print("--- the default recipe", flush=True)
    if trainer.train({}, None):
        raise InputError(f"{home / 'default'}: the settings as they are can't be trained, see the line above")
    saved = read_json(home / "default" / "args.json", "remove it")
    trainer.task = task = cli.read(__doc__, argv=["--task.heads", json.dumps(saved["task"]["heads"]), *words]).predicted
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = optuna.storages.journal.JournalFileBackend(str(home / "journal.log"))
    storage = optuna.storages.JournalStorage(backend)
    names = [one.study_name for one in optuna.get_all_study_summaries(storage)]
    begun = len(optuna.load_study(study_name="foldface", storage=storage).trials) if "foldface" in names else 0
    study = optuna.create_study(
        storage=storage,
        sampler=optuna.samplers.TPESampler(seed=config.seed + begun),  # the same seed would propose the same again
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        study_name="foldface",
        direction="maximize" if metrics.sign(task) > 0 else "minimize",
        load_if_exists=True,
    )
    start = time.monotonic()

    def over():
        done = [one for one in study.get_trials(deepcopy=False) if one.state.name in ("COMPLETE", "PRUNED")]
        return time.monotonic() - start > 60 * config.budget or 0 < config.trials <= len(done)

    run_trials(study, optuna.trial.TrialState, space, trainer, over)
    rows, recipes = [], {home / "default": {}}
    for one in study.get_trials(deepcopy=False):
        chosen, scores = json.loads(one.user_attrs.get("settings", "{}")), one.intermediate_values
        shown = f"{list(scores.values())[-1]:.3f}" if scores else ""
        rows.append([str(one.number), one.state.name.lower(), str(len(scores)), shown, json.dumps(chosen)])
        if one.state == optuna.trial.TrialState.COMPLETE:
            recipes[trainer.folder(chosen)] = chosen
    lines, best = judge(task, home, recipes)
    nested = {}
    for key, value in best.items():
        group, _, name = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[name] = value
    write_json(home / "best.json", nested)
    command = f"python train_kfold.py --config {quoted(home / 'best.json')} --run {quoted(f'{home}-best')}"
    write_page(home, lines, best, rows, command)
    print(f"{len(recipes) - 1} trials of {len(rows)} are complete: {home}/best.json, {home}/search.html; next, "
          f"after the other --config files: {command}")  # fmt: skip


if __name__ == "__main__":
    run_main(main)
