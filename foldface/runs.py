"""What a run says of itself, and what is taken from it: its args.json, whether it has begun, where answers go."""

import contextlib
import copy
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentError
from safetensors import safe_open

from foldface.cli import FREE, make_parser, read, tidy
from foldface.files import InputError, folder_lock, is_csv, quoted, read_json, refuse_unwritable, write_json
from foldface.predictions import FINAL
from foldface.rules import check
from foldface.runtime import is_main_process
from foldface.settings import (
    GROUPS,
    OF_ONE_SCRIPT,
    REMOVED,
    Config,
    HeadConfig,
    ModelConfig,
    as_dict,
    flatten,
    of_earlier,
    put,
)
from foldface.urls import never_fetched, shown

# Where the data lies may change too in a run that has a data.json: folds.prepare compares the data itself.
DATA_PATHS = ("data.train", "data.extra", "data.pseudo", "data.crops", "data.corrections", "data.roots")
DATA_PATHS += ("data.photo_column", "data.photo_folder", "data.photo_suffix")


# What a command that follows a run takes from the run's args.json: what decides answers, and where the photos lie. A
# run may be a stranger's, so the list is of what is taken; all else (OF_A_COMMAND) comes from the command alone: where
# to write, which hosts and ports, how much of the machine, which folders are open, whose corrections of labels count.
# A test holds that each setting stands in one of the two.
OF_A_RUN = (
    "seed",
    "task.heads",
    "task.answer",
    "task.answer_as",
    "task.score",
    "task.reported",
    "task.tolerance",
    "data.layout",
    "data.train",
    "data.eval",
    "data.extra",
    "data.pseudo",
    "data.crops",
    "data.group",
    "data.eval_group",
    "data.eval_group_heads",
    "data.test_size",
    "data.duplicates",
    "data.min_side",
    "data.max_per_class",
    "data.only",
    "data.strict",
    "data.image_size",
    "data.photo_column",
    "data.photo_folder",
    "data.photo_suffix",
    "data.id_column",
    "data.sample_submission",
    "data.box_pixels",
    "data.resize_mode",
    "data.augment",
    "data.flip",
    "data.random_erasing",
    "data.draw_masks",
    "data.pseudo_soft",
    "data.splitter",
    "crop.missing",
    "model.backbone",
    "model.pretrained",
    "model.beside",
    "model.init",
    "model.heads",
    "model.dropout",
    "model.drop_path",
    "model.freeze_bn",
    "loss.name",
    "loss.smoothing",
    "loss.balance",
    "loss.gamma",
    "train.folds",
    "train.freeze_layers",
    "train.amp",
    "inference.flip",
    "inference.backend",
    "inference.crops",
    "pseudo.threshold",
    "pseudo.max_per_class",
)
OF_A_COMMAND = (
    "run",
    "output",
    "device",
    "submission",
    "log",
    "save_minutes",
    "plugins",
    "data.corrections",
    "data.roots",
    "data.memory_gb",
    "data.workers",
    "crop.detectors",
    "crop.size",
    "crop.margin",
    "crop.align",
    "crop.workers",
    "crop.shards",
    "sample.",
    "model.init_from_run",
    "train.epochs",
    "train.minutes",
    "train.batch_size",
    "train.accumulate",
    "train.optimizer",
    "train.momentum",
    "train.nesterov",
    "train.lr",
    "train.backbone_lr",
    "train.layer_decay",
    "train.freeze_epochs",
    "train.weight_decay",
    "train.scheduler",
    "train.gamma",
    "train.step_epochs",
    "train.warmup_epochs",
    "train.clip_grad",
    "train.sampler",
    "train.first_size",
    "train.mixup",
    "train.cutmix",
    "train.mixup_prob",
    "train.mixup_off_epoch",
    "train.weight_averaging",
    "train.swa_start",
    "train.swa_lr",
    "train.ema_decay",
    "train.checkpoint",
    "train.val_interval",
    "train.patience",
    "train.only_folds",
    "train.final",
    "train.compile",
    "model.grad_checkpointing",
    "inference.batch_size",
    "gan.",
    "app.",
)
PATHS = ("data.train", "data.eval", "data.extra", "data.pseudo", "data.crops", "data.sample_submission")
PATHS += ("data.photo_folder", "model.pretrained")  # printed when taken
# printed when not taken: without them rows are other rows, or a loss has no meaning
MISSED = ("data.corrections", "data.roots", "plugins")
# not taken where these say so, and printed then: a URL whose copy is not here, so that its user has never named it; a
# file of persons, since a competition may forbid what it does
NOT_OF_A_RUN = {"data.crops": never_fetched, "data.eval_group": is_csv}


LATER = ("task.answer_as", "task.reported")  # of the task, what may be said when it is answered


def read_for_run(
    doc: str,
    flags: dict[str, dict] | None = None,
    argv: Sequence[str] | None = None,
    used: Sequence[str] = tuple(GROUPS),
) -> Config:
    """read(), for what comes after training: args.json < what the run says of its answers (OF_A_RUN) < --config files <
    command line.

    So `inference.py --run runs/x` answers for the photos that runs/x was started with, though its command named
    them and this one doesn't. Each value that is given now and is not the run's is printed in one line. Raises
    InputError where the run's args.json holds values that can't be.
    """
    config = read(doc, flags, argv, used)
    first = (getattr(config, "runs", None) or [config.run])[0]  # ensemble.py names several
    path = Path(first) / "args.json"
    if first == config.run and config.output and (Path(config.output) / "args.json").is_file():
        path = Path(config.output) / "args.json"  # inference.py wrote there what it answered for
    if not path.is_file():
        return config
    content = read_json(path, "train again")
    if not isinstance(content, dict):
        raise InputError(f"{path}: should be a JSON object of settings: train again")
    then, now = of_earlier(content), flatten(as_dict(config))
    taken, missed = {}, []
    for key in (key for key in now if key in then):
        given, differs = key in config.given, then[key] != now[key]
        strange = key in NOT_OF_A_RUN and NOT_OF_A_RUN[key](then[key])
        if key.startswith("task.") and not (key in LATER and given):  # the run's models answer no other task
            taken[key] = then[key]
            if given and not same_setting(key, now[key], then[key]):
                print(f"warning: {key} {json.dumps(now[key])}: is not taken, the models of {first} answer "
                      f"{json.dumps(then[key])}", file=sys.stderr)  # fmt: skip
        elif key in OF_A_RUN and given and differs:
            print(f"{key}: {json.dumps(now[key])} (given now; {path} has {json.dumps(then[key])})")
        elif key in OF_A_RUN and differs and not strange:
            taken[key] = then[key]
            if key in PATHS and then[key] and not isinstance(then[key], bool):
                print(f"{key}: {then[key]} (from {path})")
        elif (key in MISSED or strange) and not given and then[key]:
            missed.append(f"--{key} {json.dumps(shown(then[key]) if strange else then[key])}")
    if missed:
        print(f"warning: {path} names {' '.join(missed)}: not taken from a run", file=sys.stderr)
    wanted = as_dict(config)
    for key, value in taken.items():
        group, _, name = key.rpartition(".")
        (wanted[group] if group else wanted)[name] = value
    try:
        make_parser({}).parse_object(copy.deepcopy(wanted))  # it changes what it is given
    except ArgumentError as error:
        raise InputError(f"{path}: {tidy(str(error))}") from None
    for key, value in taken.items():
        put(config, key, value)
    return check(config)


def same_setting(key, now, then):
    """Do two values of a setting of the task say the same? A head that names no classes takes those of the data."""
    if key != "task.heads" or not isinstance(then, list) or len(now) != len(then):
        return now == then
    empty = dataclasses.asdict(HeadConfig(""))
    return all(
        {**empty, **other, **({} if one["classes"] else {"classes": []})} == one
        for one, other in zip(now, then, strict=True)
        if isinstance(other, dict)
    )


def begun(run: Path | str) -> bool:
    """Was a step trained in this run, and kept? Until then nothing hangs on its settings, nor on its folds.csv."""
    return any(any(Path(run).glob(f"fold*/{name}")) for name in ("state.pt", "log.csv", "best.safetensors", "oof.csv"))


def refuse_other_settings(config):
    """Raise InputError if the run was begun with other settings.

    What decides nothing about the result (FREE), such as data.workers, may change.
    """
    path = Path(config.run) / "args.json"
    if not path.is_file() or not begun(config.run):
        return
    before, now = of_earlier(read_json(path, "remove the run's folder to start again")), flatten(as_dict(config))
    before = flatten(as_dict(Config())) | before  # what was not a setting then was as its default is
    free = FREE + (DATA_PATHS if path.with_name("data.json").is_file() else ())
    before, now = by_field(before), by_field(now)
    changed = [
        f"{key} was {json.dumps(before.get(key))}, is {json.dumps(now[key])}"
        for key in now
        if before.get(key) != now[key] and not key.startswith(free)
    ]
    changed += [
        f"{key} was {json.dumps(before[key])}, is always {value} now"
        for key, value in REMOVED.items()
        if key in before and not isinstance(value, str) and before[key] != value
    ]
    if changed:
        raise InputError(
            f"{config.run} was begun with other settings ({'; '.join(changed)}): choose another "
            "--run, or start this one again with --overwrite"
        )


def by_field(flat):
    """Settings, flat, in which each field of a head has a name of its own: task.heads.age.learn."""
    heads = flat["task.heads"]
    found = {key: value for key, value in flat.items() if key != "task.heads"}
    found["task.heads"] = [head["name"] for head in heads]
    return found | {f"task.heads.{head['name']}.{key}": value for head in heads for key, value in head.items()}


def save(config: Config) -> None:
    """Write the settings into their run's args.json; refuse (InputError) if the run was begun with others."""
    refuse_other_settings(config)
    content = {name: value for name, value in as_dict(config).items() if name not in OF_ONE_SCRIPT}
    write_json(Path(config.run) / "args.json", content)


def remember(config: Config, *keys: str) -> None:
    """Put these settings into the args.json of the folder that is written to, so that they need not be given again."""
    path = Path(config.run) / "args.json"
    if not path.is_file():
        return
    content, now = read_json(path, "train again"), as_dict(config)
    path = Path(config.output or config.run) / "args.json"
    for key in keys:
        group, name = key.split(".")
        content.setdefault(group, {})[name] = now[group][name]
    write_json(path, content)


def output_folder(config: Config) -> Path:
    """The Path of the folder that is written to after training. Raises InputError, before any work, where it can't be
    written to or is another run's."""
    output, run = Path(config.output or config.run), Path(config.run)
    if output.resolve() != run.resolve() and any(output.glob("fold*/best.safetensors")):
        raise InputError(f"output {output}: is a run of its own, whose files would be replaced: name another folder")
    refuse_unwritable(output, "name a folder that can be, with --output")
    return output


def next_command(config: Config) -> str:
    """What is typed after a training, to get answers; with --data.eval where the run has no photos to answer for."""
    path = Path(config.data.eval)
    named = bool(config.data.eval) and path.exists()
    return f"python inference.py --run {quoted(config.run)}" + ("" if named else " --data.eval FOLDER")


def origin(config: ModelConfig) -> str:
    """What training starts from, in words."""
    if config.init_from_run:
        return f"{config.backbone} starts from the weights of the run {config.init_from_run}"
    said = start_of(config, "model.pretrained")
    for other in config.beside:
        said += f"; beside it {start_of(other, 'pretrained')}" + " and stays as it is" * other.frozen
    return said


def start_of(network, setting) -> str:
    """What one network, a ModelConfig or BesideConfig, starts from, in words."""
    name, pretrained = network.backbone, network.pretrained
    if pretrained is False:
        return f"{name} starts from random weights ({setting} false)"
    where = "its published weights" if pretrained is True else f"the weights of {pretrained}"
    return f"{name} starts from {where}"


def fold_seed(config: Config, fold: int) -> int:
    """The seed of a fold's initial weights, order and augmentation; the final fit has the place of a last fold."""
    return config.seed * 1009 + (1008 if fold == FINAL else fold)


def final_checkpoint(run: str | Path) -> dict[int, Path]:
    """{FINAL: path of best.safetensors} of the final fit of a run, {} where it has none."""
    path = Path(run) / "final" / "best.safetensors"
    return {FINAL: path} if path.is_file() else {}


def kept_epochs(paths: dict[int, Path]) -> list[int]:
    """The epoch that each weights file is of. Raises InputError for a file that doesn't say it."""
    found = []
    for path in paths.values():
        try:
            with safe_open(path, "np") as file:
                found.append(int(json.loads(file.metadata()["about"])["epoch"]))
        except Exception as error:  # a damaged file fails in many ways
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"{path}: does not say of which epoch it is ({what}): train this fold again") from None
    return found


WRITTEN = ["args.json", "folds.csv", "rejected.csv", "unreadable.csv", "oof.csv", "metrics.json", "pseudo.csv"]
WRITTEN += ["inference.npz", "inference-*.npz", "test.npz", "test-*.npz"]
WRITTEN += ["fold[0-9]", "fold[0-9][0-9]", "fold[0-9].csv", "fold[0-9][0-9].csv"]
WRITTEN += ["oof_*.csv", "fold[0-9]_*.csv", "fold[0-9][0-9]_*.csv", "test.csv", "duplicates.csv", "history.png"]
WRITTEN += ["report.html", "report.json", "final", "final.csv", "final_*.csv"]
WRITTEN += ["same_person.csv"]
WRITTEN += ["data.json", "clean.html", "corrections.csv", "explain.html", "explain.png", "eda.html", "embedding.csv"]


@contextlib.contextmanager
def beginning(config: Config, overwrite: bool = False) -> Iterator[None]:
    """While the block runs no other process begins this run, or reads it with other settings than it was begun with.

    With `overwrite` what is there is removed first. Raises InputError, and removes nothing, where another process
    trains a fold or predicts.
    """
    run = Path(config.run)
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder_lock(run, "beginning", wait=600))
        if is_main_process() and overwrite:
            for name in ("", "final", *(path.name[1:].removesuffix(".lock") for path in run.glob(".fold[0-9]*.lock"))):
                stack.enter_context(folder_lock(run, name))
            reset_run(run)
        if is_main_process():
            refuse_other_settings(config)
        yield


def reset_run(run):
    """Remove what training and all that follows it wrote into a run's folder, and nothing else that lies there."""
    if not (Path(run) / "args.json").is_file():
        return  # no run of ours
    for pattern in WRITTEN:
        for path in Path(run).glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
