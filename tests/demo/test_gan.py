"""Pictures that aren't there: what the networks promise, what is measured, and a training that can be stopped."""

import types

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, at_step, write_photo
from torch.optim.optimizer import register_optimizer_step_pre_hook

import dataset
from demo import gan, gan_metrics, gan_networks, gan_trainer, gan_training
from foldface import cli, runtime
from foldface.files import InputError
from foldface.nn import features


def small_generator(kind, size, classes, photos=12, width=4):
    """A generator that has learned the codes of so many photos of noise, whose mean is that of their class."""
    torch.manual_seed(0)
    maker = gan_networks.make_generator(kind, size, classes, width, photos)
    if kind == "projected":
        told = torch.arange(photos) % classes
        pixels = 127 + 40 * torch.randn(photos, size, size, 3) + 40 * told[:, None, None, None]
        maker.codes.learn(pixels.clamp(0, 255).to(torch.uint8), told)
    return maker


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["projected", "vanilla"])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_pictures_have_their_size_and_every_label_is_its_own(kind, size):
    maker, judge = small_generator(kind, size, 3), gan_networks.make_discriminator(kind, size, 3, 4)
    noise, told = torch.randn(6, gan_networks.LATENT), torch.arange(6) % 3
    made = maker(noise, told)
    assert made.shape == (6, 3, size, size) and made.min() >= -1 and made.max() <= 1
    seen = judge.features(made)
    scores = judge(seen, told)
    assert len(scores) == 6
    gan_networks.generator_loss(kind, scores).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in maker.parameters() if p.requires_grad)
    with torch.no_grad():
        scores = [judge(judge.features(made), torch.full((6,), k)) for k in range(3)]
    assert not torch.allclose(scores[0], scores[1])  # the judge is told which label it should be


def test_codes_are_of_the_photos_and_blends_are_of_two_of_a_label():
    photos = torch.randint(30, 220, (9, 32, 32, 3), dtype=torch.uint8)
    told = torch.tensor([0, 1, 2, 1, 1, 0, 2, 1, 1])
    codes = gan_networks.Codes(16, 3, 9)
    codes.learn(photos, told)
    pixels = photos.permute(0, 3, 1, 2) / 127.5 - 1
    small = torch.nn.functional.interpolate(pixels, (16, 16), mode="area")
    index, turned = torch.arange(9), torch.arange(9) % 2 == 0
    looks = codes.decode(codes.own(index, turned))
    assert torch.allclose(looks, torch.where(turned[:, None, None, None], small.flip(3), small), atol=1e-3)
    kind = torch.arange(600) % 3
    blends = codes.blend(torch.randn(600, gan_networks.LATENT), kind)
    both = torch.cat([codes.own(index, turned), codes.own(index, ~turned)])
    for k in range(3):
        mine = both[torch.cat([told, told]) == k]
        middle = mine.mean(0)
        weights = torch.linalg.lstsq((mine - middle).T, (blends[kind == k] - middle).T).solution.T
        rest = (blends[kind == k] - middle) - weights @ (mine - middle)
        assert rest.abs().max() < 1e-2  # of its own label's photos, and of nothing else
        assert torch.cdist(blends[kind == k], mine).min() > 0.1  # and never one of them


def test_a_photo_drawn_anew_begins_as_its_coarse_look():
    maker = small_generator("projected", 32, 3)
    index, turned = torch.arange(4), torch.zeros(4, dtype=torch.bool)
    codes = maker.codes.own(index, turned)
    made = maker(torch.randn(4, gan_networks.LATENT), index % 3, codes)
    wanted = torch.nn.functional.interpolate(maker.codes.decode(codes), (32, 32), mode="bicubic").clamp(-0.97, 0.97)
    assert torch.allclose(made, wanted, atol=1e-5)


def test_the_same_seed_makes_the_same_picture_whatever_else_is_made():
    maker = small_generator("projected", 32, 2)
    both = gan_networks.pictures(maker, torch.tensor([0, 1]), seed=5)
    again = gan_networks.pictures(maker, torch.tensor([0, 1]), seed=5)
    other = gan_networks.pictures(maker, torch.tensor([0, 1]), seed=6)
    assert (both == again).all() and (both != other).any() and both.dtype == np.uint8 and maker.training


@pytest.mark.slow
def test_of_several_pictures_the_one_most_like_its_label_is_chosen():
    maker = small_generator("projected", 32, 3).eval()
    maker.probe.weight.copy_(torch.randn(maker.probe.weight.shape))
    kind = torch.ones(10, dtype=torch.long)
    plain, picked = gan_networks.pictures(maker, kind, 3), gan_networks.chosen(maker, kind, 3)
    seen = [torch.from_numpy(gan_networks.eyes().many(made)) for made in (plain, picked)]
    before, after = (maker.probe(one).softmax(1)[:, 1] for one in seen)
    assert (after >= before).all() and (after > before).float().mean() > 0.5
    assert (gan_networks.chosen(maker, kind[:1], 3) == picked[:1]).all()
    vanilla = gan_networks.make_generator("vanilla", 32, 3, 4, 12)
    assert (gan_networks.chosen(vanilla, kind, 3) == gan_networks.pictures(vanilla, kind, 3)).all()


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_tells_classes_apart_that_a_line_can(classes):
    rng = np.random.default_rng(0)
    kind = np.arange(300) % classes
    seen = rng.normal(size=(300, 20)) * rng.uniform(0.1, 9, 20) + 5
    seen[:, :classes] += 30 * np.eye(classes)[kind]
    weight, bias = features.linear_probe(seen, kind)
    assert weight.shape == (classes, 20) and bias.shape == (classes,)
    assert ((seen @ weight.T + bias).argmax(1) == kind).mean() > 0.97


@pytest.mark.slow
def test_the_discriminators_layers_have_a_norm_of_one_and_its_eyes_stay():
    judge = gan_networks.make_discriminator("projected", 64, 2, 8).train()
    eyes = {name: value.clone() for name, value in judge.eyes.state_dict().items()}
    x, kind = torch.rand(8, 3, 64, 64) * 2 - 1, torch.zeros(8, dtype=torch.long)
    judge.calibrate(x)
    assert [seen.shape[1:] for seen in judge.features(x)] == [(64, 16, 16), (64, 8, 8), (64, 4, 4), (64, 2, 2)]
    assert all(0.2 < seen.std() < 1 for seen in judge.features(x))  # no scale drowns the others
    for _ in range(60):
        judge(judge.features(x), kind)  # the power iteration goes a step at each call
    for part in (judge.real[0], judge.kind[1], judge.heads[0][0]):
        assert torch.linalg.matrix_norm(part.weight.detach().flatten(1), 2) == pytest.approx(1, abs=0.05)
    judge(judge.features(x), kind).sum().backward()
    assert all(value.grad is None for value in judge.eyes.parameters())
    assert all(torch.equal(value, eyes[name]) for name, value in judge.eyes.state_dict().items())


def test_diffaugment_varies_a_pair_alike_and_lets_gradients_through():
    torch.manual_seed(0)
    x = (torch.rand(64, 3, 32, 32) + 1).requires_grad_()
    varied, same = gan_networks.augment(x, x.detach())
    assert varied.shape == x.shape and torch.equal(varied, same)
    varied.sum().backward()
    assert x.grad.isfinite().all() and (x.grad != 0).float().mean() > 0.7
    apart = (varied - x).detach().flatten(1).abs().mean(1)
    assert (apart > 0.05).all() and apart.std() > 0.01  # each its own
    assert (varied == 0).flatten(1).any(1).float().mean() > 0.8  # shifted: beyond the border is nothing


def test_losses_are_those_of_their_papers():
    real, made = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert gan_networks.discriminator_loss("projected", real, made) == pytest.approx((0 + 1) / 2 + (0 + 2) / 2)
    assert gan_networks.generator_loss("projected", made) == pytest.approx(1.0)
    zero = torch.zeros(2)
    assert gan_networks.discriminator_loss("vanilla", zero, zero) == pytest.approx(2 * np.log(2))


@pytest.mark.slow
def test_distances_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(4000, 6))
    ruler = features.Distance(real)
    assert ruler.frechet(real) == pytest.approx(0, abs=1e-6)
    assert ruler.frechet(real + 2) == pytest.approx(6 * 4, rel=1e-6)  # the means alone differ
    assert ruler.frechet(3 * real) == pytest.approx(
        4 * np.trace(np.cov(real.T)) + 4 * (real.mean(0) ** 2).sum(), rel=1e-6
    )
    same = [features.Distance(real[:500]).kernel(rng.normal(size=(500, 6))) for _ in range(5)]
    assert abs(np.mean(same)) < 0.02  # unbiased: nothing, where nothing differs
    assert ruler.kernel(real[:500] + 1) > 0.3


def row(**told):
    return {"epoch": 1, "d_loss": 1.0, "g_loss": 0.5, "frechet": 100.0, "variety": 0.9} | told


def test_a_collapse_is_noticed_and_a_good_training_is_not():
    good = [row(epoch=k, frechet=100.0 - k) for k in range(1, 6)]
    assert gan_metrics.find_collapse(good) == ""
    assert "has won" in gan_metrics.find_collapse([*good, row(epoch=6, d_loss=0.02, g_loss=19.0)])
    assert gan_metrics.find_collapse([row(epoch=6, d_loss=0.02, g_loss=19.0)]) == ""  # nothing to compare with yet
    assert "alike" in gan_metrics.find_collapse([*good, row(epoch=6, variety=0.2)])
    assert "2.0 times as far as at epoch 5" in gan_metrics.find_collapse([*good, row(epoch=6, frechet=190.0)])


def test_every_label_is_as_likely_as_another():
    target = np.array([0] * 900 + [1] * 90 + [2] * 10)
    drawn = target[gan_trainer.balanced_batches(target, 50, 0).ravel()]
    assert np.bincount(drawn).min() > 0.25 * len(drawn)
    assert (gan_trainer.balanced_batches(target, 50, [0, 1]) == gan_trainer.balanced_batches(target, 50, [0, 1])).all()


class FakeRuler:
    """Distances that are told, instead of 8 s for measuring them."""

    told = None

    def __init__(self, *_):
        pass

    def measure(self, net, seed=1):
        value = FakeRuler.told.pop(0) if FakeRuler.told else 50.0
        return {"frechet": value, "kernel": value / 100, "variety": 1.0}


def words(tmp_path, *more):
    for k in range(24):
        write_photo(tmp_path / "kinds" / "ab"[k % 2] / f"{k}.jpg", k)
    told = ["--data.layout", "folder", "--data.train", tmp_path / "kinds", "--data.eval", "", "--data.crops", ""]
    told += ["--task.heads", '[{"name": "kind", "column": "class"}]', "--run", tmp_path / "run", "--device", "cpu"]
    told += ["--gan.image_size", 32, "--gan.width", 4, "--gan.batch_size", 8, "--gan.measure_epochs", 1]
    told += ["--train.folds", 2, "--data.workers", 0, *more]
    return cli.read("", gan.FLAGS, [*map(str, told)])


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
@pytest.mark.parametrize(("first", "each", "least"), [(10, 12, 95), (2, 50, 80)])  # the first says little of the others
def test_minutes_are_those_of_the_command_and_end_within_an_epoch(tmp_path, monkeypatch, first, each, least):
    now = types.SimpleNamespace(seconds=runtime.PROCESS_START)
    monkeypatch.setattr(gan_training.time, "monotonic", lambda: now.seconds)

    class SlowRuler(FakeRuler):
        def __init__(self, *_):
            now.seconds += first

        def measure(self, net, seed=1):
            now.seconds += each
            return {"frechet": 50.0, "kernel": 0.5, "variety": 1.0}

    def slow(*_):
        now.seconds += 5  # two optimizers: ten seconds a step

    hook = register_optimizer_step_pre_hook(slow)
    log = gan_training.train(words(tmp_path, "--gan.minutes", 2, "--gan.epochs", 500), metrics_of=SlowRuler)
    taken = now.seconds - runtime.PROCESS_START
    assert least <= taken <= 120 and log[-1]["seconds"] <= taken  # all that it did
    assert np.isfinite(log[-1]["frechet"]) and (tmp_path / "run" / "gan" / "last.safetensors").is_file()
    steps = len(log)
    again = gan_training.train(words(tmp_path, "--gan.minutes", 2, "--gan.epochs", 500), metrics_of=SlowRuler)
    assert len(again) == steps  # they are over
    with pytest.raises(InputError, match="over before training begins"):
        gan_training.train(words(tmp_path, "--gan.minutes", 0.1, "--run", tmp_path / "short"), metrics_of=SlowRuler)
    hook.remove()


@pytest.mark.slow
def test_betas_are_a_setting_and_old_states_had_those_of_their_kind(tmp_path):
    assert gan_trainer.betas_of(words(tmp_path).gan) == (0.0, 0.99)
    assert gan_trainer.betas_of(words(tmp_path, "--gan.kind", "vanilla").gan) == (0.5, 0.999)
    assert gan_trainer.betas_of(words(tmp_path, "--gan.betas", "[0.9,0.999]").gan) == (0.9, 0.999)
    pair = gan_trainer.GanTrainer(words(tmp_path, "--gan.betas", "[0.9,0.95]"), 8, 2, torch.device("cpu"))
    assert all(one.param_groups[0]["betas"] == (0.9, 0.95) for one in pair.optimizers)
    torch.save({"pair": pair.state(), "fixed": {"lr": 0.1}}, tmp_path / "state.pt")
    pair.resume(tmp_path / "state.pt", {"lr": 0.1, "betas": [0.0, 0.99]})
    with pytest.raises(InputError, match="betas has changed"):
        pair.resume(tmp_path / "state.pt", {"lr": 0.1, "betas": [0.9, 0.95]})
    with pytest.raises(InputError, match="give two"):
        words(tmp_path, "--gan.betas", "[0.9]")


def test_the_vanilla_recipe_is_the_reports():
    chosen = cli.read("", argv=["--config", str(ROOT / "recipes/try/gan_vanilla.json")]).gan
    assert (chosen.kind, chosen.epochs, chosen.lr, chosen.betas) == ("vanilla", 500, 5e-4, [0.5, 0.999])


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_the_nearest_generator_is_kept_not_the_last(tmp_path):
    FakeRuler.told = [90.0, 30.0, 60.0]
    log = gan_training.train(words(tmp_path, "--gan.epochs", 3), metrics_of=FakeRuler)
    home = tmp_path / "run" / "gan"
    _, best = gan_networks.load(home / "best.safetensors")
    _, last = gan_networks.load(home / "last.safetensors")
    assert (best["epoch"], last["epoch"], best["frechet"]) == (2, 3, 30.0) and best["classes"] == ["a", "b"]
    assert "2.0 times as far" in log[-1]["notice"]
    assert len(pd.read_csv(home / "log.csv")) == 3 and len(list(home.glob("epoch*.png"))) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_the_test_set_is_not_learned_from(tmp_path):
    config, learned = words(tmp_path, "--data.test_size", 0.25), []

    class Enough(Exception):
        pass

    def ruler(photos, *_):
        learned.extend(photo.tobytes() for photo in photos)
        raise Enough

    with pytest.raises(Enough):
        gan_training.train(config, metrics_of=ruler)
    rows = dataset.prepare(config)
    training, aside = (rows[rows["source"] == source] for source in ("train", "test"))
    assert len(aside) == 6
    assert learned == [photo.tobytes() for photo in gan_training.read_photos(training.reset_index(drop=True), config)]


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_a_stopped_training_goes_on_as_if_it_had_never_stopped(tmp_path):
    FakeRuler.told = None
    gan_training.train(words(tmp_path, "--gan.epochs", 3), metrics_of=FakeRuler)
    whole = (tmp_path / "run/gan/last.safetensors").read_bytes()
    config = words(tmp_path, "--gan.epochs", 3, "--run", tmp_path / "other")
    with at_step(9), pytest.raises(KeyboardInterrupt):  # two a step: in the middle of the second epoch
        gan_training.train(config, metrics_of=FakeRuler)
    assert not (tmp_path / "other/gan/last.safetensors").exists()
    log = gan_training.train(config, metrics_of=FakeRuler)
    ours, theirs = (
        gan_networks.load(path)[0].state_dict()
        for path in (tmp_path / "run/gan/last.safetensors", tmp_path / "other/gan/last.safetensors")
    )
    assert whole and all(torch.equal(ours[name], theirs[name]) for name in ours) and len(log) == 3
    with pytest.raises(InputError, match="lr has changed"):
        gan_training.train(words(tmp_path, "--gan.epochs", 4, "--gan.lr", 0.1, "--run", tmp_path / "other"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_a_training_that_begins_anew_forgets_the_old_one_at_once(tmp_path):
    def stopped(*_):
        raise KeyboardInterrupt

    old = tmp_path / "run" / "gan" / "state.pt"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of the former training")
    with pytest.raises(KeyboardInterrupt):
        gan_training.train(words(tmp_path, "--gan.epochs", 1), overwrite=True, metrics_of=stopped)
    assert not old.exists()


def test_who_measures_draws_nothing():
    before = torch.get_rng_state()
    features.Features()  # a GAN that goes on builds it where the undisturbed one has it already
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
@pytest.mark.usefixtures("one_accelerator")
def test_what_can_not_be_gone_on_with_is_said_in_a_line(tmp_path):
    config = words(tmp_path, "--gan.epochs", 1)
    gan_training.train(config, metrics_of=FakeRuler)
    (tmp_path / "kinds" / "a" / "0.jpg").rename(tmp_path / "kinds" / "b" / "0.jpg")  # as many photos, other labels
    (tmp_path / "run" / "folds.csv").unlink()
    with pytest.raises(InputError, match="photos and labels has changed"):
        gan_training.train(config)
    (tmp_path / "run" / "gan" / "state.pt").write_bytes(b"half of it")
    with pytest.raises(InputError, match="can't go on from it"):
        gan_training.train(config)
    with pytest.raises(InputError, match="multiple of 4"):
        words(tmp_path, "--gan.width", 6)


def test_a_file_that_is_no_generator_is_refused(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(InputError, match=r"no generator of demo\.gan"):
        gan_networks.load(tmp_path / "bad.safetensors")
