"""Settings that contradict one another are refused here, in one line each; what a layout implies is filled in."""

import dataclasses
import operator
import re
from pathlib import Path

from foldface import metrics
from foldface.files import InputError
from foldface.registry import refuse_unknown
from foldface.runtime import is_main_process
from foldface.settings import FILES, Config, TrainConfig, at_home, put
from foldface.urls import refuse_bad_url

OF_CLASSES = {"folder": "a class a folder", "boxes": "the label of a box"}  # layouts that have one head, and no faces


def check(config: Config) -> Config:
    """Refuse settings that each are possible but don't go together (InputError); returns them, with the home folder
    for a ~ at the beginning of paths."""
    for key in FILES:
        put(config, key, at_home(operator.attrgetter(key)(config)))
    extras = [dataclasses.asdict(extra) for extra in config.data.extra]
    put(config, "data.extra", [extra | {"path": at_home(extra["path"])} for extra in extras])
    others = [dataclasses.asdict(other) for other in config.model.beside]
    put(config, "model.beside", [other | {"pretrained": at_home(other["pretrained"])} for other in others])
    refuse_bad_url(config.data.crops, "data.crops")
    refuse_unknown_names(config)
    data, train = config.data, config.train
    if data.augment == "diary" and data.image_size != 224:
        raise InputError(
            f"data.augment diary cuts 50-pixel holes into 224 pixels: data.image_size is {data.image_size}, "
            "set it to 224 or choose light or strong"
        )
    check_task(config)
    if not train.minutes and train.weight_averaging == "swa" and train.swa_start >= train.epochs:
        raise InputError(f"train.swa_start {train.swa_start}: of {train.epochs} epochs none is left to average")
    if train.weight_averaging == "swa" and train.warmup_epochs > 0 and train.swa_start <= train.warmup_epochs:
        raise InputError(
            f"train.warmup_epochs {train.warmup_epochs}: swa averages from epoch {train.swa_start} on, before the "
            "learning rate has risen: give less, or a larger train.swa_start"
        )
    if train.optimizer == "sgd" and train.scheduler == "onecycle" and train.momentum != TrainConfig.momentum:
        raise InputError(
            f"train.momentum {train.momentum}: scheduler onecycle moves the momentum by itself: leave it at "
            f"{TrainConfig.momentum}, or take another train.scheduler"
        )
    if train.nesterov and not train.momentum:
        raise InputError("train.nesterov looks ahead by the momentum, and train.momentum is 0: give it one")
    if train.minutes:
        counted = [f"train.{name}" for name in ("warmup_epochs", "freeze_epochs", "patience") if getattr(train, name)]
        if train.weight_averaging == "swa":
            counted.append("train.weight_averaging swa")
        if train.scheduler not in ("onecycle", "cosine"):
            counted.append(f"train.scheduler {train.scheduler}")
        if counted:
            raise InputError(
                f"train.minutes {train.minutes:g}: {counted[0]} counts in epochs, how many fit nobody knows yet: "
                "take train.scheduler onecycle or cosine, without it"
            )
    elif train.warmup_epochs >= train.epochs:
        raise InputError(f"train.warmup_epochs {train.warmup_epochs}: of {train.epochs} epochs none is left to train")
    if train.patience and train.val_interval > 1:
        raise InputError(f"train.patience {train.patience} looks at every epoch: leave train.val_interval at 1")
    wrong = [k for k in train.only_folds or [] if k >= train.folds]
    if wrong:
        raise InputError(
            f"train.only_folds names fold {wrong[0]}, but train.folds is {train.folds}: folds are 0..{train.folds - 1}"
        )
    chain = config.crop.detectors
    if not chain or len(set(chain)) < len(chain):
        raise InputError(f"crop.detectors is {chain}: name at least one, such as centre, none twice")
    if config.gan.kind == "projected" and config.gan.width % 4:
        raise InputError(f"gan.width {config.gan.width}: give a multiple of 4")
    if len(config.gan.betas) not in (0, 2):
        raise InputError(f"gan.betas is {config.gan.betas}: give two, such as [0.5, 0.999], or [] for the default")
    boxes = data.layout == "boxes" or data.eval.endswith(".json") or any(e.layout == "boxes" for e in data.extra)
    if boxes and (data.crops or data.duplicates == "drop"):
        raise InputError(
            "data.layout boxes: boxes are cut out by themselves, and photos hold several of them: "
            "--data.crops '' and data.duplicates keep or together"
        )
    if config.crop.missing == "drop" and not data.crops:
        raise InputError(
            "crop.missing drop: without crops no detector looks for faces: name data.crops, or --crop.missing guess"
        )
    guesses = [k for k, name in enumerate(chain) if name in ("person", "centre")]
    if guesses and guesses[0] < len(chain) - len(guesses):
        raise InputError(f"crop.detectors is {chain}: person and centre guess, so they go last")
    return config


def follow_layout(config: Config, given: set[str]) -> None:
    """Where each photo has one class by its folder or box, the mask task and the sample data's paths, if nobody gave
    them, make no sense: take the classes of the data and whole photos, and say so. given: dotted names."""
    usual, data, said = Config(), config.data, []

    def is_usual(key):
        return key not in given and operator.attrgetter(key)(config) == operator.attrgetter(key)(usual)

    if data.layout not in OF_CLASSES or is_usual("data.train"):
        return
    if is_usual("task.heads"):
        put(config, "task.heads", [{"name": "class"}])
        put(config, "task.answer_as", config.task.answer_as if "task.answer_as" in given else "name")
        said.append(f"the task is {OF_CLASSES[data.layout]} (task.heads)")
    if is_usual("data.crops"):
        put(config, "data.crops", "")
        said.append("photos are taken whole (data.crops)")
    if is_usual("data.eval"):
        put(config, "data.eval", "")
    if is_usual("run") and "data.train" in given:
        put(config, "run", f"runs/{Path(data.train).resolve().stem}")
        said.append(f"the run is {config.run}")
    if said and is_main_process():
        print(f"data.layout {data.layout}: {', '.join(said)}")


def refuse_unknown_names(config):
    """Raise InputError for a loss, score, ... that is neither ours nor of a file in plugins."""
    metrics.refuse_unknown_score(config.task.score, "task.score")
    for name in config.task.reported:
        metrics.refuse_unknown_score(name, "task.reported")
    refuse_unknown("layout", config.data.layout, "data.layout")
    for extra in config.data.extra:
        refuse_unknown("layout", extra.layout, "data.extra: layout")
    refuse_unknown("augment", config.data.augment, "data.augment")
    refuse_unknown("splitter", config.data.splitter, "data.splitter")
    for name in config.crop.detectors:
        refuse_unknown("detector", name, "crop.detectors")
    refuse_unknown("loss", config.loss.name, "loss.name")


def conditional(head, config):
    """Is a head one that data.only names? It need not be learned."""
    return any(re.match(rf"\s*{re.escape(head.name)}\s*(>=|<|=)", words) for words in config.data.only)


def check_labels(config):
    """Refuse settings that don't go with several labels a photo (InputError)."""
    wrong = [
        ("model.heads joint", config.model.heads == "joint", "multi"),
        ("train.sampler balanced", config.train.sampler == "balanced", "all"),
        ("data.max_per_class", config.data.max_per_class > 0, "0"),
        (f"loss.name {config.loss.name}", config.loss.name not in ("cross_entropy", "asymmetric"), "cross_entropy"),
    ]
    for what, there, instead in wrong:
        if there:
            raise InputError(f"{what} is for one class a photo; task.heads has several labels a photo: take {instead}")


def check_task(config):
    """Refuse settings that don't go with the task (InputError)."""
    task, chosen = config.predicted, config.model
    beside = [head.name for head in task.heads if head not in task.answered and not conditional(head, config)]
    if chosen.heads == "joint" and (task.numeric or beside):
        raise InputError("model.heads joint has an output for each class of the answer alone: model.heads multi")
    for head in task.heads if chosen.heads == "joint" else ():
        if head.weight != 1:
            raise InputError(
                f"task.heads.{head.name}.weight {head.weight:g} weighs heads against one another, model.heads joint "
                "has one: leave it at 1"
            )
        if head.learn != "classes":
            raise InputError(
                f"task.heads.{head.name}.learn {head.learn} needs a head of its own: --model.heads multi, or "
                f"--task.heads.{head.name}.learn classes"
            )
    if config.loss.name == "asymmetric" and not task.multilabel:
        raise InputError("loss.name asymmetric is for several labels a photo, a head of kind multilabel")
    if task.multilabel:
        check_labels(config)
    if task.number and task.number.kind == "number" and task.number.learn == "classes":
        raise InputError(
            f"task.heads.{task.number.name}.learn classes: {task.number.name} is a number without classes: choose "
            "distribution, ordinal, regression or sigmoid"
        )
    if chosen.init != "default" and chosen.pretrained is not False:
        raise InputError(f"model.init {chosen.init} is for random weights: --model.pretrained false")
    still = [other.backbone for other in chosen.beside if other.frozen and other.pretrained is False]
    if still:
        raise InputError(
            f'model.beside: {still[0]} has random weights ("pretrained": false) and would keep them: "frozen": false'
        )
    if task.settled:
        for words in config.data.only:
            task.condition(words)
    if task.numeric and (config.train.sampler == "balanced" or config.loss.balance != "none"):
        raise InputError("train.sampler balanced and loss.balance weigh classes; the answer is a number")
    if task.numeric and config.data.max_per_class:
        raise InputError("data.max_per_class counts classes; the answer is a number")
    if task.numeric and config.loss.name in ("f1", "neighbour"):
        raise InputError(f"loss.name {config.loss.name} is one of classes; the answer is a number")
    if config.loss.name == "neighbour" and (task.number not in task.answered):
        raise InputError(
            "loss.name neighbour: the answer has no head that is cut from numbers, so no class has neighbours"
        )
