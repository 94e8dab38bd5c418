"""Combine the predictions of all folds, of one run or several, into submission.csv. Needs no torch.

    python ensemble.py --soft                       mean of the probabilities, or of the numbers
    python ensemble.py --hard                       majority of the answers, or median; --rank: mean of the ranks
    python ensemble.py --folds 0                    one fold's answers, no ensemble
    python ensemble.py --final alone                those of the fit on all photos (train.final); without: not those
    python ensemble.py --soft --runs runs/a runs/b  all folds of several runs, one vote each
    python ensemble.py --weights search --runs runs/a runs/b runs/c
    python ensemble.py --stack --columns camera sex --embeddings    a model of predictions, columns, tools.embed
    python ensemble.py --decide boundary bias       what counts as which answer, for the best score
    python ensemble.py --decide temperature         probabilities that mean what they say; answers stay
    python ensemble.py --data.eval_group id --data.eval_group_heads '["gender", "age"]'   a person's photos together
                                                    (without ids: tools.same_person; a competition may forbid it)

Prints each run's out-of-fold score with its interval, and how many answers each class has; both, and how far the
members agree, go into the first run's report.html too. Weights, stacks and decisions are chosen on out-of-fold
predictions, scored on people that they were not chosen on, and used only if they beat the plain vote there.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

import dataset
from foldface import blend, metrics, oof, predictions, shared, submission
from foldface.blend import VOTES, votes_without_one
from foldface.cli import run_main
from foldface.data.layouts import groups_by_name
from foldface.files import InputError, is_csv, read_json, refuse_unwritable, write_csv
from foldface.report import vote as section
from foldface.runs import read_for_run
from foldface.settings import task_of
from foldface.task import Task


def members(
    task: Task, runs: Sequence[str], folds: Iterable[int] = (), final: str = "with"
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The predictions of all runs: (ImageIDs (n,), {path of a fold's CSV: (n, k) or, of numbers, (n,) float32}).

    folds, final: of predictions.voting_files. Raises InputError if a run lacks one, or if photos or their order differ.
    """
    ids, found = None, {}
    for run in runs:
        for path in predictions.voting_files(run, folds, final):
            frame = predictions.read_fold(task, path)
            if ids is None:
                ids, first = frame["ImageID"].to_numpy(), path
            if len(frame) != len(ids):
                raise InputError(
                    f"{path}: has {len(frame)} rows, {first} has {len(ids)}: they answer for different photos"
                )
            different = frame["ImageID"].to_numpy() != ids
            if different.any():
                row = int(different.argmax())
                raise InputError(
                    f"{path}, row {row + 2}: is {frame['ImageID'].iloc[row]}, {first} has {ids[row]} there: "
                    "run inference.py with the same data.eval for all"
                )
            found[str(path)] = predictions.values(task, frame)
    return ids, found


def refuse_other_tasks(task: Task, runs: Sequence[str]) -> None:
    """Raise InputError if a run's task differs from the first run's: other heads, classes or bounds."""
    for run in runs[1:]:
        path = Path(run) / "args.json"
        content = read_json(path, "train it again") if path.is_file() else {}
        if "task" not in content:
            continue
        other = Task(**task_of(content))
        if not task.same(other):
            raise InputError(
                f"{run}: answers {other.describe()}, {runs[0]} answers {task.describe()}: they can't vote together"
            )


def introduce(known: oof.OofPredictions, runs: Sequence[str], vote: str) -> np.ndarray:
    """Print the out-of-fold score of each run, and what the vote of all runs gains by it. Returns that vote."""
    everyone, lines = VOTES[vote](known.task, known.predictions), []
    if len(runs) > 1:
        lines += [(blend.scored(known.task, known.predictions[k]), str(run), None) for k, run in enumerate(runs)]
        others = votes_without_one(known.task, vote, known.predictions)
        lines += [(everyone, f"  with {run} in it", other) for run, other in zip(runs, others, strict=True)]
    lines.append((everyone, f"plain {vote} vote of {len(runs)} runs" if len(runs) > 1 else str(runs[0]), None))
    known.log_scores(lines)
    log_reported(known, vote, everyone)
    return everyone


def log_reported(known: oof.OofPredictions, vote: str, everyone: np.ndarray) -> None:
    """Print the scores of task.reported of the vote, with their intervals. everyone: as `introduce` returns it."""
    votes = everyone if known.task.numeric else blend.votes(known.predictions, vote).mean(0)
    for name in metrics.own_names(known.task)[1:]:
        of_votes = metrics.of_probabilities(known.task, name)
        known.log_interval(votes if of_votes else known.task.decide(everyone), name)


def share_known(config, known: oof.OofPredictions, vote: str, plain: np.ndarray) -> np.ndarray:
    """Let the photos of data.eval_group share their answers in `known`, and print what that brings over the plain vote,
    (n,) or (n, k). Returns the new vote."""
    groups = shared.known(config, known.photos, known.people)
    known.share(groups)
    together = VOTES[vote](known.task, known.predictions)
    who = config.data.eval_group
    who = f"person of {who}" if is_csv(who) else who
    title = f"photos of one {who} answered together ({', '.join(groups.heads)})"
    if not known.log_score(together, title, plain):
        print("that is no better; it is done since data.eval_group says so")
    return together


def search_weights(
    known: oof.OofPredictions, runs: Sequence[str], vote: str, baseline: np.ndarray
) -> tuple[Callable, np.ndarray] | None:
    """Fit weights of the runs by hill climbing: (weigh, answer), or None if they don't beat the plain vote, `baseline`
    (n,), on people that they were not fitted to.

    weigh(rows): fits weights (m,) to rows, (n,) bool. answer (n,): of each person, with weights fitted to other people.
    """
    stack, kept = blend.votes(known.predictions, vote), {}

    def weigh(rows):
        if rows.tobytes() not in kept:  # --decide asks for the same ones
            kept[rows.tobytes()] = blend.climb(known.task, stack[:, rows], known.target[rows])
        return kept[rows.tobytes()]

    def fit(rows):
        weights = weigh(rows)
        return lambda others: blend.scored(known.task, np.tensordot(weights, stack[:, others], 1))

    answer = blend.nested(fit, known.target, known.part)
    if not known.log_score(answer, "searched weights, on people not searched on", baseline):
        print("the plain vote is not beaten: it stays")
        return None
    weights = weigh(np.ones(len(known.target), bool))
    print("weights: " + ", ".join(f"{run} {weight:.2f}" for run, weight in zip(runs, weights, strict=True)))
    return weigh, answer


def decide(known: oof.OofPredictions, what: Sequence[str], weigh: Callable, baseline: np.ndarray) -> Callable | None:
    """Choose what --decide names: a function of predictions (m, n, k) and numbers (m, n, columns) of m runs that gives
    scores (n, k), whose largest is the answer. None if it doesn't beat the baseline's answers (n,).

    weigh: of search_weights. Each person is scored with weights and decisions that were chosen on other people.
    """
    task, head = known.task, known.task.number
    if "thresholds" in what:
        return oof.decide_thresholds(known, weigh, baseline)
    if "temperature" in what:
        return oof.decide_temperature(known, weigh)

    def mean(weights, probabilities, numbers, boundary=None):
        each = probabilities if boundary is None else blend.at_boundary(task, probabilities, numbers, boundary)
        return np.tensordot(weights, each, 1)

    if "boundary" in what and known.numbers is None:
        raise InputError("--decide boundary: the runs have no age in years: train with a head of learn distribution")
    bounds, kept = head.steps[len(head.bounds) - 1 :] if "boundary" in what else [None], {}

    def scores_at(weights):
        if weights.tobytes() not in kept:
            kept.clear()  # equal weights are the same for all parts, searched ones differ: one of them is enough
            kept[weights.tobytes()] = {b: mean(weights, known.predictions, known.numbers, b) for b in bounds}
        return kept[weights.tobytes()]

    def choose(rows):
        weights, target, boundary = weigh(rows), known.target[rows], None
        if "boundary" in what:
            at = {bound: found[rows] for bound, found in scores_at(weights).items()}
            boundary = blend.choose_boundary(task, at, target, head.trained[-1])
        bias = blend.choose_bias(task, scores_at(weights)[boundary][rows], target) if "bias" in what else {}
        return weights, boundary, bias

    def fit(rows):
        weights, boundary, bias = choose(rows)
        scores = scores_at(weights)[boundary] * np.exp(blend.spread_bias(task, bias))
        return lambda others: scores[others].argmax(1)

    title = f"decided {' and '.join(what)}, on people not decided on"
    if not known.log_score(blend.nested(fit, known.target, known.part), title, baseline):
        print("the plain answer is not beaten: it stays")
        return None
    weights, boundary, bias = choose(np.ones(len(known.target), bool))
    if boundary:
        print(f"the last class of {head.name} begins at {boundary:g}")
    moved = [f"{name} {task.head(name).classes[k]} {size:+.1f}" for (name, k), size in bias.items() if size]
    if moved:
        print(f"log bias: {', '.join(moved)}")
    return lambda members, numbers: np.exp(blend.spread_bias(task, bias)) * mean(weights, members, numbers, boundary)


# ------------------------------------------------------------------------------------------------------ the answers


def by_run(
    task: Task, runs: Sequence[str], found: dict, ids: np.ndarray, groups: shared.Groups | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The mean of each run's members: predictions (m, n, k) or (m, n), and task.number.columns (m, n, columns), None if
    a run has no numbers. found, ids: of `members`; groups: whose numbers are shared."""
    means, numbers = [], []
    for run in runs:
        paths = [Path(path) for path in found if Path(path).parent == Path(run)]
        means.append(np.mean([found[str(path)] for path in paths], axis=0, dtype=float))
        behind = oof.read_numbers(task, paths, ids)
        behind = None if behind is None else behind.mean(0)
        numbers.append(behind if behind is None or groups is None else groups.share_numbers(behind))
    return np.stack(means), None if any(behind is None for behind in numbers) else np.stack(numbers)


USED = ("task", "data.layout", "data.eval", "data.id_column", "data.sample_submission", "data.box_pixels", "data.group")
USED += ("data.roots", "data.train", "data.eval_group", "data.eval_group_heads")  # --help shows these
FLAGS = {
    "--soft": {"action": "store_true", "help": "mean of the probabilities (the default)"},
    "--hard": {"action": "store_true", "help": "majority of the answers"},
    "--rank": {"action": "store_true", "help": "mean of each class's rank among the photos"},
    "--runs": {"nargs": "+", "default": [], "help": "run folders to put together (default: the folder of --run)"},
    "--folds": {"type": int, "nargs": "+", "default": [], "help": "folds that vote, of each run (default: all)"},
    "--final": {
        "choices": ["with", "alone", "without"],
        "default": "with",
        "help": "the final fit (train.final) votes as one more fold, instead of the folds, or not",
    },
    "--weights": {
        "choices": ["equal", "search"],
        "default": "equal",
        "help": "search: hill climbing on the out-of-fold score, taken if it beats the plain vote on other people",
    },
    "--stack": {
        "nargs": "?",
        "const": "auto",
        "choices": ["auto", "linear", "boosting"],
        "default": None,
        "help": "a model of each head, learned from out-of-fold predictions and what --columns and --embeddings add: "
        "linear (ridge, logistic regression), boosting (gradient boosting) or the better one; taken if it beats the "
        "plain vote on other people",
    },
    "--columns": {
        "nargs": "+",
        "default": [],
        "help": "columns of the tables of data.train and data.eval, for --stack",
    },
    "--embeddings": {"action": "store_true", "help": "for --stack: features of the photos, which tools.embed wrote"},
    "--decide": {
        "nargs": "+",
        "choices": ["boundary", "bias", "thresholds", "temperature"],
        "default": [],
        "help": "choose the age at which the oldest class begins (ages in years), a bias of each head's classes; of "
        "several labels a photo the probability from which each is answered; the temperature at which probabilities "
        "mean what they say, answers stay",
    },
}


def refuse_misfits(config, task: Task, vote: str) -> None:
    """Raise InputError where words of the command don't go together, or not with the task."""
    if config.decide and vote != "soft":
        raise InputError("--decide chooses on mean probabilities: leave --hard and --rank out")
    if task.numeric and (config.decide or vote == "rank"):
        raise InputError(
            "--decide and --rank are about classes; the answer is a number: --soft (mean) or --hard (median)"
        )
    if "temperature" in config.decide:
        if len(set(config.decide)) > 1:
            raise InputError("--decide temperature is about probabilities, all else about answers: give it alone")
    elif config.decide and metrics.of_probabilities(task):
        raise InputError(
            f"--decide chooses among answers; task.score {task.score} looks at probabilities: leave it out"
        )
    elif config.decide and ("thresholds" in config.decide) != task.multilabel:
        what = "thresholds is" if not task.multilabel else f"{config.decide[0]} is not"
        raise InputError(f"--decide: {what} for several labels a photo, a head of kind multilabel")
    if (config.columns or config.embeddings) and not config.stack:
        raise InputError(f"--{'columns' if config.columns else 'embeddings'} is what --stack learns from: add it")
    others = [f"--weights {config.weights}"] * (config.weights == "search") + ["--decide"] * bool(config.decide)
    others += [f"--{vote}"] * (vote != "soft")
    if config.stack and others:
        raise InputError(f"--stack takes the place of {others[0]}: choose one")
    if task.multilabel and vote != "soft":
        raise InputError(f"--{vote} counts one class a photo; of several labels take --soft")
    if config.folds and config.final == "alone":
        raise InputError("--folds and --final alone: give one of the two")


def main(argv: list[str] | None = None) -> None:
    config = read_for_run(__doc__, FLAGS, argv, USED)
    chosen = [name for name in VOTES if getattr(config, name)]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join('--' + name for name in chosen)}: choose one")
    vote, task = chosen[0] if chosen else "soft", config.predicted
    runs = config.runs or [str(predictions.folder_of(config))]
    refuse_unwritable(Path(config.submission).parent, "name another --submission")
    if (Path(runs[0]) / "report.html").is_file():
        refuse_unwritable(config.output or runs[0], "name a folder for report.html with --output")
    choosing = config.weights == "search" or config.decide or config.stack
    refuse_misfits(config, task, vote)
    refuse_other_tasks(task, runs)
    ids, found = members(task, runs, dict.fromkeys(config.folds), config.final)
    finals = [path for path in found if Path(path).name == "final.csv"]
    if finals:
        how = "answers alone" if config.final == "alone" else "votes too, as one more fold"
        print(f"{', '.join(finals)} {how}; it has no out-of-fold answers: scores printed here are those of the folds")
    rows = dataset.eval_rows(config)
    wanted = rows["ImageID"].to_numpy()
    if len(wanted) != len(ids) or (wanted != ids).any():
        raise InputError(
            f"{config.data.eval} has other rows ({len(wanted)}) than {next(iter(found))} ({len(ids)}): "
            "run inference.py again with the same data.eval"
        )
    submission.form_for(config, task, rows)  # what can't be made is refused before the work
    groups = shared.asked(config, rows) if config.data.eval_group else None
    if groups:
        print(f"data.eval_group: {shared.FORBIDDEN}")
        found = {path: groups.share(one) for path, one in found.items()}
    columns, known = {}, None
    try:
        known = oof.OofPredictions(task, runs)
        columns["training"] = known.target
        plain = introduce(known, runs, vote)
        plain = share_known(config, known, vote, plain) if groups else plain
    except InputError as error:
        if choosing:
            raise
        print(f"no score of the vote: {error}")
    searched = search_weights(known, runs, vote, plain) if config.weights == "search" else None
    stacked, decision = None, None
    if config.stack:
        from foldface import stack as stacking  # scikit-learn takes a second, which --help should not wait for

        means, _ = by_run(task, runs, found, ids, groups)
        inputs = stacking.inputs_of(config, known, runs, means, ids)
        stacked = stacking.search(known, inputs, config.stack, means, plain)
    if config.decide:
        equal = np.full(len(runs), 1 / len(runs))
        decision = decide(known, config.decide, *(searched or (lambda _: equal, plain)))
    stack = np.stack(list(found.values()))
    if stacked is not None:
        scores = stacked
        answer = task.decide(scores)
    elif decision:
        scores = decision(*by_run(task, runs, found, ids, groups))
        answer = task.decide(scores)
    elif searched:
        weights, (means, _) = searched[0](np.ones(len(known.target), bool)), by_run(task, runs, found, ids, groups)
        scores = np.tensordot(weights, blend.votes(means, vote), 1)
        answer = task.decide(scores)
    else:  # nothing was chosen, or nothing chosen was better
        scores, answer = blend.votes(stack, vote).mean(0), task.decide(VOTES[vote](task, stack))
    if groups and (
        stacked is not None or not groups.all_heads
    ):  # members share theirs each: their mean may be nearly so
        scores = groups.share(scores)
        answer = task.decide(scores)
    frame, delimiter, said = submission.make(config, task, rows, answer, None if task.numeric else scores)
    write_csv(config.submission, frame, delimiter)
    if said:
        print(f"{config.submission}, as {config.data.sample_submission} has it: {said}")
    if task.confused and not said:
        print(f"warning: {config.submission}: {task.confused}", file=sys.stderr)
    spread = predictions.spread(task, columns | {"answers": answer})
    print(spread)
    plain_f1 = known and not choosing and task.score == "f1" and not task.multilabel
    if plain_f1 and (hint := predictions.describe_underpredicted(task, known.target, answer)):
        print(hint)
    log_known_answers(task, rows, answer, scores, config.data.group)
    section.show(task, runs[0], config.output or runs[0], found, known.lines if known else [], spread)
    names = {"hard": "median", "soft": "mean"} if task.numeric else {"hard": "majority", "soft": "mean"}
    print(
        f"{(names | {'rank': 'mean rank'})[vote]} of {len(found)} members from {len(runs)} runs, {len(ids)} answers: "
        f"{config.submission}"
    )


def log_known_answers(task, rows, answer, scores, group):
    """Print the scores where the folders or names of data.eval say what is true, with the interval over the people or
    objects that data.group (a regular expression) tells of their names, else over photos."""
    if "target" not in rows:
        return
    known = (rows["target"].notna() if task.numeric else rows["target"] >= 0).to_numpy()
    if not known.any():
        return
    ids = rows["ImageID"].to_numpy(object)
    if group:
        groups = np.array(groups_by_name(group, ids), dtype=object)
        ids = np.where(groups == "", ids, groups)
    frame = rows[known].assign(ans=answer[known], id=ids[known])
    if any(metrics.of_probabilities(task, name) for name in metrics.own_names(task)):
        frame[task.probabilities] = scores[known]
    first, *others = predictions.describe(task, predictions.measured(task, frame))
    print(f"{int(known.sum())} photos whose folder or name tells the truth: {first}), {', '.join(others)}")


if __name__ == "__main__":
    run_main(main)
