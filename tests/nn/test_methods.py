"""Heads, losses and ways to train: each does what its paper says, and none leaks."""

import json
import types

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers import MASK, ROOT, at_step, make_learner, mask_task
from safetensors.torch import load_file

import dataset
import loss
import model
import train
from foldface import cli
from foldface.data import folds, loader
from foldface.files import InputError, read_csv
from foldface.nn import batchnorm, optim
from foldface.nn.heads import LEARNED, ORDINAL_LOGIT_BIAS, Heads
from foldface.nn.mixup import mix
from foldface.settings import LossConfig, TrainConfig
from foldface.task import MASK_TASK

pytestmark = pytest.mark.usefixtures("one_accelerator")
IN_YEARS = ["distribution", "ordinal", "regression"]


# -------------------------------------------------------------------------------------------------------- heads


def test_three_heads_multiply_to_the_18_classes():
    outputs = torch.randn(4, 8)
    probabilities = Heads(MASK, "multi").log_probabilities(outputs).exp()
    assert torch.allclose(probabilities.sum(1), torch.ones(4))
    mask, gender, age = (part.softmax(1) for part in outputs.split([3, 2, 3], 1))
    answer = MASK.encode(1, 0, 2)
    assert torch.allclose(probabilities[:, answer], mask[:, 1] * gender[:, 0] * age[:, 2])


@pytest.mark.parametrize("age", IN_YEARS)
def test_an_age_in_years_is_a_distribution_and_its_classes_follow(age):
    reader = Heads(mask_task(learn=age), "multi")
    outputs = torch.randn(6, reader.size)
    years = reader.log_grid(reader.split(outputs)[2]).exp()
    assert years.shape == (6, 101) and torch.allclose(years.sum(1), torch.ones(6), atol=1e-4)
    found = reader.answers(outputs)
    assert found.shape == (6, reader.width)
    by_age = found[:, :18].reshape(6, 6, 3).sum(1)
    expected = torch.stack([years[:, :30].sum(1), years[:, 30:58].sum(1), years[:, 58:].sum(1)], 1)
    assert torch.allclose(by_age, expected, atol=1e-4)
    columns = dict(zip(MASK.number.columns, found[:, 18:].T, strict=True))
    assert torch.allclose(columns["from58"], expected[:, 2], atol=1e-4)
    assert torch.allclose(columns["years"], years @ torch.arange(101.0), atol=1e-2)


def test_a_regressed_age_is_a_laplace_distribution_that_begins_at_forty():
    """Each year has what lies within half a year of it; the first and the last have all that lies beyond them."""
    torch.manual_seed(0)
    reader = Heads(mask_task(learn="regression"), "multi")
    raw = 2 * torch.randn(6, 2)
    mean, width = reader.laplace(raw)
    years = torch.distributions.Laplace(mean.double(), width.double())
    below = years.cdf(torch.arange(0.5, 100, dtype=torch.float64).expand(6, 100))
    expected = torch.nn.functional.pad(torch.nn.functional.pad(below, (1, 0)), (0, 1), value=1.0).diff(dim=1)
    assert torch.allclose(reader.log_grid(raw).exp().double(), expected, atol=1e-5)
    mean, width = reader.laplace(torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, -99.0]]))
    assert mean[:, 0].tolist() == pytest.approx([40, 55, 40])
    assert width[:, 0].tolist() == pytest.approx([0.5 + 15 * np.log1p(np.exp(-1)), 0.5 + 15 * np.log(2), 0.5])


@pytest.mark.slow
@pytest.mark.parametrize("age", IN_YEARS)
def test_an_age_in_years_can_be_learned(age):
    torch.manual_seed(0)
    reader, true = Heads(mask_task(learn=age), "multi"), torch.tensor([20.0, 35.0, 57.0, 60.0])
    criterion, targets = make_loss(reader, label=[0, 1, 1, 2]), make_targets([0, 1, 1, 2], ages=true.numpy())
    outputs = torch.zeros(4, reader.size, requires_grad=True)
    optimizer = torch.optim.Adam([outputs], 0.05)
    for _ in range(400):
        optimizer.zero_grad()
        criterion(outputs, *targets.of(torch.arange(4), "cpu")).sum().backward()
        optimizer.step()
    found = reader.answers(outputs.detach())
    assert (found[:, 18] - true).abs().max() < 2.5
    assert found[:, :18].argmax(1).tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("age", IN_YEARS)
def test_years_are_as_exact_under_autocast(age):
    torch.manual_seed(0)
    reader = Heads(mask_task(learn=age), "multi")
    outputs = 3 * torch.randn(50, reader.size)
    with torch.autocast("cpu", torch.bfloat16):
        found = reader.answers(outputs)
    assert found.dtype == torch.float32 and torch.allclose(found, reader.answers(outputs), atol=1e-4)


# ------------------------------------------------------------------------------------------------------- losses


def make_loss(reader=None, label=(0,), **config):
    return loss.Loss(reader or Heads(MASK, "joint"), LossConfig(**config), torch.as_tensor(label).numpy())


def make_targets(label, ages=None, **config):
    rows = pd.DataFrame({"label": torch.as_tensor(label).numpy(), "age": np.nan if ages is None else ages})
    return loss.Targets(MASK, rows, LossConfig(**config))


def values(logits, label, reader=None, **config):
    """The loss of logits (n, 18) of a joint head against labels (n,)."""
    criterion = make_loss(reader, label, **config)
    return criterion(logits, *make_targets(label, **config).of(torch.arange(len(label)), "cpu"))


@pytest.mark.parametrize("name", ["cross_entropy", "neighbour"])
def test_without_smoothing_it_is_cross_entropy(name):
    logits, label = torch.randn(50, 18), torch.randint(18, (50,))
    expected = torch.nn.functional.cross_entropy(logits, label, reduction="none")
    assert torch.allclose(values(logits, label, name=name), expected)


def weighted(*weights):
    """The mask task with these weights of its heads."""
    described = [head | {"weight": weight} for head, weight in zip(MASK_TASK["heads"], weights, strict=True)]
    return cli.read("", argv=["--task.heads", json.dumps(described)]).predicted


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_three_heads_it_is_the_cross_entropy_of_their_product(smoothing):
    reader, outputs, label = Heads(MASK, "multi"), torch.randn(50, 8), torch.randint(18, (50,))
    expected = torch.nn.functional.cross_entropy(
        reader.log_probabilities(outputs), label, reduction="none", label_smoothing=smoothing
    )
    assert torch.allclose(values(outputs, label, reader, smoothing=smoothing), expected, atol=1e-5)
    heavier = values(outputs, label, Heads(weighted(1.0, 1.0, 3.0), "multi"), smoothing=smoothing)
    age = make_loss(Heads(weighted(0.0, 0.0, 1.0), "multi"), label)
    alone = age(outputs, *make_targets(label, smoothing=smoothing).of(torch.arange(50), "cpu"))
    assert torch.allclose(heavier, expected + 2 * alone, atol=1e-5)


def test_smoothing_over_all_classes_is_torchs():
    logits, label = torch.randn(50, 18), torch.randint(18, (50,))
    expected = torch.nn.functional.cross_entropy(logits, label, reduction="none", label_smoothing=0.1)
    assert torch.allclose(values(logits, label, smoothing=0.1), expected)


def test_neighbour_smoothing_reaches_neighbouring_ages_only_and_sums_to_one():
    targets = MASK.smoothed("neighbour", 0.2)
    assert np.allclose(targets.sum(1), 1)
    young, middle, old = (MASK.encode(1, 0, age) for age in range(3))
    assert targets[young].nonzero()[0].tolist() == [young, middle]
    assert targets[young, middle] == pytest.approx(0.2)
    assert targets[middle].nonzero()[0].tolist() == [young, middle, old]
    assert targets[middle, young] == targets[middle, old] == pytest.approx(0.1)
    assert targets[old, middle] == pytest.approx(0.2) and targets[old, young] == 0


@pytest.mark.parametrize("heads", ["joint", "multi"])
@pytest.mark.parametrize("name", ["neighbour", "cross_entropy"])
def test_the_smoothed_loss_is_least_at_the_probabilities_that_are_called_the_surest(name, heads):
    reader = Heads(MASK, heads)
    criterion, targets = make_loss(reader, list(range(18))), make_targets(list(range(18)), name=name, smoothing=0.1)
    outputs = torch.zeros(18, reader.size, requires_grad=True)
    optimizer = torch.optim.Adam([outputs], 0.1)
    for _ in range(600):
        optimizer.zero_grad()
        criterion(outputs, *targets.of(torch.arange(18), "cpu")).sum().backward()
        optimizer.step()
    found = reader.answers(outputs.detach())[torch.arange(18), torch.arange(18)]
    assert np.allclose(found.numpy(), MASK.surest(name, 0.1, heads), atol=2e-3)


def test_pseudo_labels_of_the_report_can_pass_their_threshold():
    config = cli.read("", argv=["--config", str(ROOT / "recipes/report.json")])
    most = config.predicted.surest(config.loss.name, config.loss.smoothing, config.model.heads)
    assert np.allclose(most, 0.9)
    targets, age = config.predicted.smoothed("neighbour", 0.1), config.predicted.encode(0, 0, np.arange(3))
    doubtful = [0.9, 0.1, 0] @ targets[age]  # what the loss wants where nine in ten such faces are below 30
    assert 0.8 <= config.pseudo.threshold + 0.01 <= doubtful[age[0]] < 0.9


@pytest.mark.slow
def test_inverse_weights_are_those_of_scikit_learn_and_effective_ones_are_milder():
    from sklearn.utils.class_weight import compute_class_weight

    label = np.array([0] * 5 + [3] * 20 + [17] * 2)
    weights = loss.class_weights(18, "inverse", label)
    expected = compute_class_weight("balanced", classes=np.array([0, 3, 17]), y=label)
    assert np.allclose(weights[[0, 3, 17]].numpy(), expected)
    many = np.array([0] * 50 + [3] * 5000)
    inverse, effective = (loss.class_weights(18, name, many) for name in ("inverse", "effective"))
    for weight in (inverse, effective):
        assert weight[torch.from_numpy(many)].mean() == pytest.approx(1, rel=1e-4) and weight[1] == 0  # no such photo
    assert 1 < effective[0] / effective[3] < inverse[0] / inverse[3]
    assert effective[0] / effective[3] == pytest.approx((1 - 0.999**5000) / (1 - 0.999**50), rel=1e-3)  # Cui et al.
    logits, target = torch.randn(27, 18), torch.from_numpy(label)
    expected = torch.nn.functional.cross_entropy(logits, target, weight=weights, reduction="none")
    assert torch.allclose(values(logits, label, balance="inverse"), expected)


def test_focal_counts_what_is_sure_less_and_is_cross_entropy_at_gamma_0():
    logits, label = torch.randn(50, 18), torch.randint(18, (50,))
    plain = torch.nn.functional.cross_entropy(logits, label, reduction="none")
    assert torch.allclose(values(logits, label, name="focal", gamma=0.0), plain)
    assert torch.allclose(values(logits, label, name="focal", gamma=2.0), (1 - (-plain).exp()) ** 2 * plain, atol=1e-5)


def test_the_f1_loss_is_the_slope_of_macro_f1_over_its_span():
    torch.manual_seed(0)
    label = torch.randint(17, (400,))  # class 17 is in no photo: it doesn't count
    classes = torch.nn.functional.one_hot(label, 18).float()
    probabilities = (2 * classes + torch.randn(400, 18)).softmax(1)
    span = loss.SoftF1(18, label.numpy(), 400)
    for _ in range(40):
        span.update(loss.f1_sums(probabilities, classes), 400)
    two, both = (probabilities + classes).sum(0)[:17], (probabilities * classes).sum(0)[:17]
    assert span.value() == pytest.approx((2 * both / two).mean().item(), abs=1e-4)
    moved = probabilities.clone().requires_grad_()
    ((2 * (moved * classes).sum(0) / (moved + classes).sum(0))[:17].mean()).backward()
    expected, moved.grad = moved.grad, None
    span(moved, classes).sum().backward()
    assert torch.allclose(-moved.grad / 400, expected, atol=1e-6)
    whole = span(probabilities, classes)
    assert torch.allclose(
        whole, torch.cat([span(p, c) for p, c in zip(probabilities.split(7), classes.split(7), strict=True)])
    )


def test_the_span_of_the_f1_loss_forgets_what_lies_further_back():
    span = loss.SoftF1(2, np.array([0, 0, 0, 1]), 100)
    assert span.true.tolist() == span.predicted.tolist() == [75, 25] and span.both.tolist() == [56.25, 6.25]
    span.update(torch.tensor([[4.0, 6.0], [5.0, 5.0], [3.0, 2.0]]), 10)
    assert span.true.tolist() == pytest.approx([75 * 0.9 + 4, 25 * 0.9 + 6])
    assert span.predicted.tolist() == pytest.approx([75 * 0.9 + 5, 25 * 0.9 + 5])
    assert span.both.tolist() == pytest.approx([56.25 * 0.9 + 3, 6.25 * 0.9 + 2])
    span.update(torch.full((3, 2), 50.0), 200)  # more than a span: nothing is left of before
    assert span.true.tolist() == [50, 50]


def test_an_ordinal_age_asks_each_threshold_of_those_alone_who_passed_the_one_before():
    """CORN's conditional subsets (Shi, Cao & Raschka 2021), threshold by threshold."""
    torch.manual_seed(0)
    reader, ages = Heads(mask_task(learn="ordinal"), "multi"), [0, 1, 37, 99, 100]
    outputs = torch.randn(5, reader.size, requires_grad=True)
    found = make_loss(reader).of_number(outputs, torch.tensor(ages, dtype=torch.float32))
    logits = reader.split(outputs)[2] + ORDINAL_LOGIT_BIAS
    for row, age in enumerate(ages):
        asked = range(min(age, 99) + 1)  # is it above k? of those who are above k - 1
        expected = -sum(torch.nn.functional.logsigmoid(logits[row, k] if age > k else -logits[row, k]) for k in asked)
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-5)
    found[2].backward()
    moved = reader.split(outputs.grad)[2][2].nonzero().flatten().tolist()
    assert moved == list(range(38)), "what lies above 37 is not asked of a person of 37"


def test_a_regressed_age_pays_for_its_width_as_a_laplace_distribution_does():
    torch.manual_seed(0)
    reader, ages = Heads(mask_task(learn="regression"), "multi"), torch.tensor([3.0, 40.0, 88.0])
    outputs = torch.randn(3, reader.size)
    mean, width = reader.laplace(reader.split(outputs)[2])
    expected = -torch.distributions.Laplace(mean[:, 0], width[:, 0]).log_prob(ages)
    assert torch.allclose(make_loss(reader).of_number(outputs, ages), expected, atol=1e-5)


def test_an_age_learned_as_a_distribution_is_a_normal_one_around_the_true_age():
    torch.manual_seed(0)
    ages, years = torch.tensor([20.0, 58.5]), torch.arange(101.0)
    for sigma, used in ((None, 3.0), (5.0, 5.0)):  # by default three hundredths of the range
        reader = Heads(mask_task(learn="distribution", sigma=sigma), "multi")
        outputs = torch.randn(2, reader.size)
        around = torch.stack([torch.distributions.Normal(age, used).log_prob(years).exp() for age in ages])
        log_shares = reader.split(outputs)[2].log_softmax(1)
        expected = -(around / around.sum(1, keepdim=True) * log_shares).sum(1)
        assert torch.allclose(make_loss(reader).of_number(outputs, ages), expected, atol=1e-5)


@pytest.mark.parametrize("age", IN_YEARS)
def test_where_an_age_is_unknown_its_class_stands_alone(age):
    torch.manual_seed(0)
    reader, label = Heads(mask_task(learn=age), "multi"), torch.tensor([0, 4, 17])
    outputs = torch.randn(3, reader.size)
    found = make_loss(reader)(outputs, *make_targets(label).of(torch.arange(3), "cpu"))
    expected = torch.nn.functional.nll_loss(reader.log_probabilities(outputs), label, reduction="none")
    assert torch.allclose(found, expected, atol=1e-5)


def test_an_age_beside_the_answer_costs_its_class_and_nothing_where_it_is_unknown():
    torch.manual_seed(0)
    task = mask_task(answer=["mask", "gender"])
    reader, ages = Heads(task, "multi"), [29.0, 30.0, 57.0, 58.0, np.nan]
    rows = pd.DataFrame({"label": [0, 1, 2, 3, 5], "age": ages})
    outputs = torch.randn(5, reader.size)
    targets = loss.Targets(task, rows, LossConfig())
    found = loss.Loss(reader, LossConfig(), rows["label"].to_numpy())(outputs, *targets.of(torch.arange(5), "cpu"))
    mask, gender, age = outputs.split([3, 2, 3], 1)
    cost = torch.nn.functional.cross_entropy
    expected = cost(mask, torch.tensor([0, 0, 1, 1, 2]), reduction="none")
    expected += cost(gender, torch.tensor([0, 1, 0, 1, 1]), reduction="none")
    expected[:4] += cost(age[:4], torch.tensor([0, 1, 1, 2]), reduction="none")
    assert torch.allclose(found, expected, atol=1e-5)


def test_weights_of_heads_are_refused_for_a_joint_head(competition):
    words = ["--task.heads.age.weight", "2"]
    competition.config(*words)
    with pytest.raises(InputError, match=r"task\.heads\.age\.weight 2 weighs heads .* model\.heads joint has one"):
        competition.config(*words, "--model.heads", "joint")


def test_soft_pseudo_labels_are_trained_on_as_they_are():
    soft = np.full((2, 18), np.nan)
    soft[1] = np.linspace(0, 1, 18) / np.linspace(0, 1, 18).sum()
    rows = pd.DataFrame({"label": [3, 17], "age": np.nan}).join(pd.DataFrame(soft, columns=MASK.probabilities))
    targets = loss.Targets(MASK, rows, LossConfig(smoothing=0.1))
    assert targets.classes[0].argmax() == 3 and targets.classes[0, 0] == pytest.approx(0.1 / 18)
    assert np.allclose(targets.classes[1].numpy(), soft[1], atol=1e-6)


# ------------------------------------------------------------------------------------------------ ways to train


def learner_of(competition, accelerator, *words):
    config = competition.config(*words)
    rows = dataset.prepare(config)
    training, validation = folds.split(rows, 0)
    return make_learner(config, training, 3, accelerator), training, validation


def fit(competition, *words):
    train.train_folds(competition.config(*words), [0])
    return competition.root / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--task.heads.age.learn", "distribution"],
        ["--task.heads.age.learn", "ordinal", "--train.mixup", 0.2],
        ["--task.heads.age.learn", "regression", "--train.weight_averaging", "ema"],
        ["--model.heads", "joint", "--train.cutmix", 1.0, "--train.mixup", 0.5, "--loss.name", "f1"],
        [
            "--train.weight_averaging",
            "swa",
            "--train.swa_start",
            1,
            "--train.scheduler",
            "cosine",
            "--model.freeze_bn",
            "false",
        ],
        ["--train.freeze_epochs", 1, "--train.backbone_lr", 1e-4, "--train.sampler", "balanced"],
        ["--train.freeze_layers", 2, "--train.weight_averaging", "ema", "--model.freeze_bn", "false"],
        [
            "--train.layer_decay",
            0.7,
            "--loss.name",
            "focal",
            "--loss.balance",
            "effective",
            "--data.random_erasing",
            0.5,
        ],
    ],
)
def test_every_method_goes_on_to_the_same_weights_after_an_interrupt(competition, tmp_path, words):
    words = ["--train.epochs", 3, "--model.dropout", 0.2, *words]
    whole = fit(competition, *words)
    resumed = competition.config(*words, "--run", tmp_path / "resumed")
    with at_step(4), pytest.raises(KeyboardInterrupt):
        train.train_folds(resumed, [0])
    train.train_folds(resumed, [0])
    first, second = (load_file(run / "fold0" / "best.safetensors") for run in (whole, tmp_path / "resumed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole / "oof.csv").read_bytes() == (tmp_path / "resumed" / "oof.csv").read_bytes()
    if "--task.heads.age.learn" in words:
        ages = read_csv(whole / "oof_age.csv", ["ImageID", *MASK.number.columns])
        assert ages["ImageID"].tolist() == read_csv(whole / "oof.csv", ["ImageID"])["ImageID"].tolist()


def test_adam_adds_weight_decay_to_the_gradient_and_sgd_is_as_momentum_and_nesterov_say():
    def steps(**words):
        weight = torch.ones(1, requires_grad=True)
        optimizer = optim.make_optimizer([weight], TrainConfig(lr=0.1, **words))
        found = []
        for grad in (2.0, 1.0):
            before, weight.grad = weight.item(), torch.full((1,), grad)
            optimizer.step()
            found.append(before - weight.item())
        return pytest.approx(found, abs=1e-5)

    # Adam divides what was added to the gradient too: its first step is the rate. AdamW takes rate * decay off as well
    assert steps(optimizer="adam", weight_decay=0.5).expected[0] == pytest.approx(0.1, abs=1e-5)
    assert steps(optimizer="adamw", weight_decay=0.5).expected[0] == pytest.approx(0.1 + 0.1 * 0.5, abs=1e-5)
    assert steps(optimizer="sgd", weight_decay=0.0) == [0.2, 0.1 * (1 + 0.9 * 2)]
    assert steps(optimizer="sgd", weight_decay=0.0, momentum=0.5) == [0.2, 0.1 * (1 + 0.5 * 2)]
    assert steps(optimizer="sgd", weight_decay=0.0, nesterov=True) == [0.1 * (2 + 0.9 * 2), 0.1 * (1 + 0.9 * 2.8)]
    assert steps(optimizer="sgd", weight_decay=0.0, momentum=0.0) == [0.2, 0.1]


@pytest.mark.slow
def test_a_frozen_backbone_stays_as_it_was_until_it_is_thawed(competition, tmp_path):
    start = model.build("test_resnet", 8, False, 32)
    weights = tmp_path / "start.safetensors"
    model.save(weights, start, {})
    words = ["--model.pretrained", weights, "--train.epochs", 2]
    frozen = load_file(fit(competition, *words, "--train.freeze_epochs", 2) / "fold0" / "best.safetensors")
    head = [name for name in frozen if name.startswith("fc.") or name.startswith("head.")]
    before = start.state_dict()
    assert head and all(torch.equal(before[name], frozen[name]) for name in frozen if name not in head)
    assert any(not torch.equal(before[name], frozen[name]) for name in head)
    config = competition.config(*words, "--train.freeze_epochs", 1, "--run", tmp_path / "thawed")
    train.train_folds(config, [0])
    log = read_csv(tmp_path / "thawed" / "fold0" / "log.csv", ["epoch"])
    assert len(log) == 2


@pytest.mark.slow
def test_the_lowest_layers_stay_as_they_were_statistics_included(competition, tmp_path):
    start = model.build("test_resnet", 8, False, 32)
    model.save(tmp_path / "start.safetensors", start, {})
    words = ["--model.pretrained", tmp_path / "start.safetensors", "--model.freeze_bn", "false"]
    after = load_file(fit(competition, *words, "--train.freeze_layers", 2) / "fold0" / "best.safetensors")
    same = {name for name, value in start.state_dict().items() if torch.equal(value, after[name])}
    low = ("conv1.", "bn1.", "layer1.")
    assert {name for name in after if name.startswith(low)} <= same
    assert not any(name.startswith(("layer2.", "layer4.")) and name.endswith("weight") for name in same)
    with pytest.raises(InputError, match="this backbone has 5 layers to freeze"):
        batchnorm.lowest_layers(start, 6)
    with pytest.raises(InputError, match="0 layers"):
        batchnorm.lowest_layers(model.build("alexnet", 8, False, 64), 1)


def test_new_statistics_leave_those_of_frozen_layers_alone():
    net = model.build("test_resnet", 8, False, 32)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batchnorm.refresh_batch_norm(net, [torch.randn(8, 3, 32, 32)], batchnorm.lowest_layers(net, 2))
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith(("conv1", "bn1", "layer1")) for name in moved)


def test_backbone_and_layers_have_their_own_learning_rates():
    net = model.build("test_resnet", 8, False, 32)
    config = types.SimpleNamespace(lr=6e-4, backbone_lr=1e-5, layer_decay=1.0, weight_decay=0.01)
    rates = {id(p): g["lr"] for g in optim.parameter_groups(net, config) for p in g["params"]}
    head = {id(p) for p in net.get_classifier().parameters()}
    assert rates == {id(p): 6e-4 if id(p) in head else 1e-5 for p in net.parameters()}
    config.layer_decay = 0.5
    rates = {id(p): g["lr"] for g in optim.parameter_groups(net, config) for p in g["params"]}
    assert len(rates) == len(list(net.parameters()))
    assert rates[id(net.get_classifier().weight)] == 6e-4
    assert rates[id(net.conv1[0].weight)] < rates[id(net.layer4[0].conv1.weight)] <= 1e-5


@pytest.mark.parametrize("changes", [{}, {"backbone_lr": 1e-5}, {"layer_decay": 0.5}], ids=str)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_biases_norm_weights_and_position_embeddings_do_not_decay(name, changes):
    net = timm.create_model(name, num_classes=8)
    groups = optim.parameter_groups(net, TrainConfig(weight_decay=0.01, **changes))
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    spared = {"pos_embed", "cls_token"}
    assert decays == {id(p): 0.0 if p.ndim < 2 or n in spared else 0.01 for n, p in net.named_parameters()}
    assert sum(len(g["params"]) for g in groups) == len(decays), "each parameter is in one group"


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_the_optimizer_is_the_one_that_is_named(name, kind):
    made = optim.make_optimizer([torch.zeros(1, requires_grad=True)], TrainConfig(optimizer=name, lr=0.5))
    group = made.param_groups[0]
    assert type(made) is kind and (group["lr"], group["weight_decay"]) == (0.5, TrainConfig().weight_decay)
    assert (group.get("momentum"), group.get("nesterov")) == ((0.9, False) if name == "sgd" else (None, None))


def test_frozen_layers_are_in_no_group():
    net = timm.create_model("test_resnet", num_classes=8)
    net.conv1.requires_grad_(False)
    taught = {id(p) for g in optim.parameter_groups(net, TrainConfig()) for p in g["params"]}
    assert taught == {id(p) for p in net.parameters() if p.requires_grad}


def test_swa_is_the_mean_of_the_epochs_with_statistics_of_its_own(competition, accelerator):
    words = [
        "--train.weight_averaging",
        "swa",
        "--train.swa_start",
        0,
        "--data.augment",
        "none",
        "--model.freeze_bn",
        "false",
    ]
    mine, training, _ = learner_of(competition, accelerator, *words)
    photos = loader.PhotoDataset(training, "none", 32, False)
    feed = loader.make(photos, loader.SeededBatchSampler(len(training), 16), 0)
    means = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        for value in mine.module.parameters():
            torch.nn.init.normal_(value, std=0.1)
        means.append(mine.module.conv1[0].weight.clone())
        mine.average_epoch(feed)
    assert mine.answering is mine.average.module
    assert torch.allclose(mine.answering.conv1[0].weight, (means[0] + means[1]) / 2, atol=1e-6)
    whole = torch.cat([loader.normalize(batch, *mine.scale) for _, batch, _ in feed])
    seen = mine.answering.conv1(whole).mean((0, 2, 3))
    assert torch.allclose(mine.answering.bn1.running_mean, seen, atol=1e-3)
    assert not torch.allclose(mine.module.bn1.running_mean, seen, atol=1e-3)


def test_the_moving_average_keeps_its_share_at_each_step_and_answers(competition, accelerator):
    mine, training, _ = learner_of(
        competition, accelerator, "--train.weight_averaging", "ema", "--train.ema_decay", 0.3
    )
    name = "layer4.0.conv1.weight"
    expected = None
    for k in range(1, 5):
        mine.set_train_mode()
        mine.train_step(torch.arange(16), torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8), 16)
        plain = mine.module.get_parameter(name).detach().clone()
        kept = 0.0 if k == 1 else 0.3
        expected = plain if expected is None else kept * expected + (1 - kept) * plain
    average = mine.average.module
    assert torch.allclose(average.get_parameter(name), expected, atol=1e-6)
    assert not torch.allclose(plain, expected, atol=1e-5)
    feed = loader.make(
        loader.PhotoDataset(training, "none", 32, False), loader.SeededBatchSampler(len(training), 16), 0
    )
    inputs = loader.normalize(torch.cat([batch for _, batch, _ in feed]), *mine.scale)
    found = mine.predict(feed)
    with torch.no_grad():
        averaged, unaveraged = (mine.heads.answers(net.eval()(inputs)) for net in (average, mine.module))
    assert torch.allclose(found, averaged, atol=1e-5) and not torch.allclose(found, unaveraged, atol=1e-5)


@pytest.mark.slow
def test_the_weights_of_a_moving_average_are_those_that_are_saved(competition, tmp_path):
    """The average changes nothing of the training, only what answers."""
    runs = [fit(competition), tmp_path / "ema"]
    train.train_folds(competition.config("--train.weight_averaging", "ema", "--run", runs[1]), [0])
    plain, average = (load_file(run / "fold0" / "best.safetensors") for run in runs)
    losses = [read_csv(run / "fold0" / "log.csv", ["train_loss"])["train_loss"].tolist() for run in runs]
    assert losses[0] == losses[1]
    assert not torch.equal(plain["layer4.0.conv1.weight"], average["layer4.0.conv1.weight"])


@pytest.mark.slow
def test_cutmix_mixes_labels_by_the_area_that_is_left(competition, accelerator):
    mine, _, _ = learner_of(competition, accelerator, "--train.cutmix", 1.0)
    inputs = torch.zeros(5, 3, 32, 32)
    inputs[:] = torch.arange(5.0)[:, None, None, None]
    targets = mine.targets.of(torch.arange(5), "cpu")
    other, share = mix(mine.mixup, inputs, targets)
    assert torch.equal(other[0], targets[0][[3, 2, 1, 0, 4]]) and share[4] == 1
    for k in range(4):
        assert (inputs[k] == k).float().mean() == pytest.approx(share[k].item(), abs=1e-6)


def test_balanced_draws_make_classes_and_people_as_likely():
    rows = pd.DataFrame({"id": ["a"] * 5 + ["b"] * 5 + ["c"], "label": [0] * 10 + [2]})
    weights = loader.balanced(rows)
    assert weights.sum() == pytest.approx(1) and weights[:10].sum() == pytest.approx(0.5)
    rows = pd.DataFrame({"id": ["a"] * 9 + ["b"], "label": 1})
    assert loader.balanced(rows)[:9].sum() == pytest.approx(0.5)
    batches = loader.SeededBatchSampler(10, 4, shuffle=True, weights=np.eye(10)[3])
    assert {index for batch in batches for index, _ in batch} == {3}


def test_ages_near_a_boundary_are_left_out_of_training_never_of_validation(competition):
    table = [
        [i, g, "x", age, p] for (i, g, _, p), age in zip(competition.people, [28, 31, 32, 56, 57, 60] * 2, strict=True)
    ]
    competition.write_table(rows=table)
    rows = dataset.prepare(competition.config("--task.heads.age.train_gap", 2))
    training, validation = folds.split(rows, 0)
    assert set(training["age"]) <= {32, 60} and set(rows["age"]) == {28, 31, 32, 56, 57, 60}
    assert len(training) + len(validation) < len(rows) and {28, 57} & set(validation["age"])


# ------------------------------------------------------------------------------------------------------- stages


@pytest.mark.slow
def test_a_second_stage_starts_each_fold_from_its_own(competition, tmp_path):
    words = ["--data.only", "[mask=normal]"]
    train.train_folds(competition.config(*words), [0, 1])
    first = competition.root / "run"
    oof = read_csv(first / "oof.csv", ["target"])
    assert len(oof) == 12 and (oof["target"].astype(int) >= 12).all()  # bare faces alone
    second = ["--model.init_from_run", "run", "--run", competition.root / "second", "--train.freeze_epochs", 9]
    train.train_folds(competition.config(*second), [0, 1])
    for k in (0, 1):
        before, after = (
            load_file(competition.root / run / f"fold{k}" / "best.safetensors") for run in ("run", "second")
        )
        assert torch.equal(before["conv1.0.weight"], after["conv1.0.weight"])


@pytest.mark.slow
def test_gender_and_age_of_bare_faces_are_six_joint_classes_and_a_first_stage_of_all_eighteen(competition):
    six = ["--data.only", "[mask=normal]", "--task.answer", "[gender,age]", "--model.heads", "joint"]
    train.train_folds(competition.config(*six), [0])
    first = competition.root / "run"
    oof = read_csv(first / "oof.csv", ["p5", "target"])
    assert len(oof) == 6 and "p6" not in oof and set(oof["target"]) <= set("012345")
    second = ["--model.heads", "joint", "--model.init_from_run", "run", "--run", competition.root / "second"]
    train.train_folds(competition.config(*second), [0])
    oof = read_csv(competition.root / "second" / "oof.csv", ["p17", "target"])
    assert len(oof) == 42 and oof["target"].nunique() > 6
    for name, size in (("run", 6), ("second", 18)):
        assert len(load_file(competition.root / name / "fold0" / "best.safetensors")["fc.weight"]) == size
    assert (first / "folds.csv").read_bytes() == (competition.root / "second" / "folds.csv").read_bytes()


@pytest.mark.slow
def test_weights_that_have_seen_the_people_they_are_validated_on_are_refused(competition):
    fit(competition)
    checkpoint = competition.root / "run" / "fold0" / "best.safetensors"
    other = ["--run", competition.root / "b"]
    with pytest.raises(InputError, match=r"leak: fold 1 would start from .*fold0, which was trained on person"):
        dataset.prepare(competition.config("--model.pretrained", checkpoint, *other))
    dataset.prepare(competition.config("--model.pretrained", checkpoint, *other, "--train.only_folds", "[0]"))
    with pytest.raises(InputError, match=r"leak: fold 0 would start from"):
        dataset.prepare(
            competition.config("--model.init_from_run", "run", "--seed", 3, "--run", competition.root / "c")
        )
    with pytest.raises(InputError, match="is no run of ours"):
        dataset.prepare(competition.config("--model.init_from_run", "nothing", "--run", competition.root / "d"))


# ----------------------------------------------------------------------------------------------------- backbones


@pytest.mark.parametrize(
    "name",
    [
        *("vgg19", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "efficientnet_b0", "efficientnet_b4"),
        *("vit_base_patch16_224", "swin_base_patch4_window7_224", "densenet201", "alexnet"),
    ],
)
def test_the_backbones_of_the_reports_are_one_override_each(name):
    with torch.device("meta"):
        net = model.build(name, 8, False, 224).eval()
        assert net(torch.empty(2, 3, 224, 224)).shape == (2, 8)


@pytest.mark.slow
def test_every_recipe_is_a_set_of_settings_that_go_together():
    paths = list((ROOT / "recipes").rglob("*.json"))
    assert len(paths) >= 18
    assert len({path.stem for path in paths}) == len(paths)  # a recipe is named by its file in comparisons
    for path in paths:
        cli.read("", argv=["--config", str(path)])
    assert LEARNED.keys() == {"sigmoid", *IN_YEARS}
