"""Pictures that aren't there: one conditional GAN for all labels of a task, from the photos that it trains on.

    python -m demo.gan --run runs/trash                             into runs/trash/gan; started again, it goes on
    python -m demo.gan --config recipes/try/gan_vanilla.json --run runs/trash --gan.minutes 30
    python -m demo.gan --run runs/trash --judge 100                 what the run's own classifier makes of its pictures

Every epoch a grid of pictures, a column a label, from the same noise; every few epochs how far they lie from the photos
in what a pretrained network sees. The generator of least distance is kept (best.safetensors), not the last: with few
photos a GAN gets worse again. Photos of the test set that was put aside are not learned from.
"""

import hashlib
import time
from pathlib import Path

import numpy as np
import pandas as pd

import dataset
from dataset import prepare
from foldface import runs
from foldface.cli import run_main
from foldface.files import InputError, atomic_write, folder_lock, refuse_unwritable, write_csv
from foldface.nn import devices
from foldface.report import charts
from foldface.runtime import PROCESS_START
from foldface.settings import GanConfig

COLUMNS = ["epoch", "seconds", "d_loss", "g_loss", "frechet", "kernel", "variety", "notice"]
MEASURED = 2000  # pictures that distances are measured with
SHOWN = 8  # rows of the grid
EMA = 0.999  # of the generator's weights, at each step
REDRAWN = 1.5  # weight of how far a photo that is drawn anew looks from itself, beside what the discriminator says
CALMING = 0.4  # share of the training, at its end, in which the learning rates go down to nothing
WON = 0.1  # loss of the discriminator below which it has won
ALIKE = 0.5  # of the variety of photos: below it pictures of a label are alike
WORSE = 1.5  # times the best distance
BETAS = {"vanilla": (0.5, 0.999), "projected": (0.0, 0.99)}  # of Adam: of Radford et al. 2016, and of Sauer et al. 2021
ENDING = 3.0  # seconds for the last grid of pictures, tables and weights
JUDGE_RATE = 0.2  # of the discriminator: at the generator's own rate it wins and nothing is learned from it


# ------------------------------------------------------------------------------------------------------- photos


def read_photos(rows, config):
    """All photos as (n, size, size, 3) uint8, without augmentation: they lie in memory, 12 KB each at 64 pixels."""
    from tqdm import tqdm

    from foldface.data import loader

    data, size = config.data, config.gan.image_size
    photos = loader.PhotoDataset(rows, "none", size, False, fit=data.fit)
    found = np.empty((len(rows), size, size, 3), np.uint8)
    with tqdm(total=len(rows), desc="reading", unit="photo", disable=None) as bar:
        for indices, batch, errors in loader.make(photos, loader.SeededBatchSampler(len(rows), 64), data.workers):
            if any(errors):
                k = next(k for k, error in enumerate(errors) if error)
                raise InputError(f"{rows['file'].iloc[int(indices[k])]}: can't be read any more ({errors[k]})")
            found[indices.numpy()] = batch.numpy()
            bar.update(len(batch))
    return found


def order(target, batch_size, seed):
    """Batches of an epoch, (steps, batch_size) indices: as many draws as photos, every label as likely as another."""
    rng = np.random.default_rng(seed)
    count = np.bincount(target)
    chance = 1 / count[target] / (count > 0).sum()
    steps = max(1, len(target) // batch_size)
    return rng.choice(len(target), (steps, batch_size), p=chance)


# ------------------------------------------------------------------------------------------------- the two networks


class Clock:
    """What gan.minutes leaves, from the start of this process on.

    minutes: gan.minutes, 0 = no end; spent: seconds of earlier starts; ending: seconds that the last measurement, its
    picture and its files take.
    """

    def __init__(self, minutes: float, spent: float, ending: float):
        self.seconds, self.earlier, self.ending = 60 * minutes, spent, ending

    @property
    def spent(self) -> float:
        """Seconds of all starts."""
        return self.earlier + time.monotonic() - PROCESS_START

    @property
    def left(self) -> float:
        """Seconds until the training has to end."""
        return self.seconds - self.ending - self.spent if self.seconds else float("inf")

    @property
    def over(self) -> bool:
        return self.left <= 0

    @property
    def done(self) -> float:
        """Share of the minutes that is over, 0 without gan.minutes."""
        return self.spent / max(1.0, self.seconds - self.ending) if self.seconds else 0.0


def betas_of(gan: GanConfig) -> tuple[float, float]:
    """Adam's betas: gan.betas, or, where it is empty, those of gan.kind."""
    return tuple(map(float, gan.betas or BETAS[gan.kind]))  # not jsonargparse's subclass, which no state can hold


class GanTrainer:
    """A generator and a discriminator, all that moves them, and what was seen of them: as it is saved."""

    def __init__(self, config, photos, classes, device):
        """photos: how many there are to learn from; classes: how many labels."""
        import timm.utils
        import torch

        from demo import gan_networks

        gan = config.gan
        torch.manual_seed(config.seed)
        self.kind, self.device = gan.kind, device
        self.generator = gan_networks.make_generator(gan.kind, gan.image_size, classes, gan.width, photos)
        self.discriminator = gan_networks.make_discriminator(gan.kind, gan.image_size, classes, gan.width)
        for net in (self.generator, self.discriminator):
            net.to(device, memory_format=torch.channels_last)
        self.average = timm.utils.ModelEmaV3(self.generator, decay=EMA, use_warmup=True)
        betas = betas_of(gan)
        self.learned = [value for value in self.discriminator.parameters() if value.requires_grad]
        self.rates = gan.lr, gan.lr * (1 if self.vanilla else JUDGE_RATE)
        self.optimizers = [
            torch.optim.Adam(values, rate, betas=betas, fused=True)
            for values, rate in zip((self.generator.parameters(), self.learned), self.rates, strict=True)
        ]
        self.epoch, self.step, self.steps, self.spent = 0, 0, 0, 0.0
        self.losses, self.log = [0.0, 0.0], []

    @property
    def vanilla(self):
        return self.kind == "vanilla"

    @property
    def answering(self):
        """The generator whose pictures are shown: its average over the steps, or the vanilla one itself."""
        return self.generator if self.vanilla else self.average.module

    def begin(self, store, target):
        """What is learned from the photos before the first step. store: (n, s, s, 3) uint8 tensor; target: (n,)."""
        import torch

        if self.vanilla:
            return
        self.generator.learn(store, target)
        some = store[torch.randperm(len(store))[:256]].to(self.device)
        self.discriminator.settle(some.permute(0, 3, 1, 2).float() / 127.5 - 1)
        self.average.set(self.generator)

    def set_rates(self, progress):
        """Set the learning rates for a share of the training that is done."""
        if not self.vanilla:
            for one, rate in zip(self.optimizers, self.rates, strict=True):
                one.param_groups[0]["lr"] = rate * min(1, max(0.01, 1 - progress) / CALMING)

    def train_step(self, real, kind, index, turned):
        """One step of both, which judge and are judged at once. real: (n, 3, s, s) in -1..1, the photos `index` (n,),
        mirrored where `turned` (n,); kind: (n,). Returns their losses as tensors.

        Half of the pictures are the photos themselves, drawn anew from their coarse looks: there it is known what comes
        out. The others are blends, which the discriminator alone judges.
        """
        import torch

        from demo import gan_networks

        noise, half, shown = torch.randn(len(real), gan_networks.LATENT, device=self.device), 0, real
        if self.vanilla:
            made = varied = self.generator(noise, kind)
        else:
            codes, half = self.generator.codes.blend(noise, kind), len(real) // 2
            codes[:half] = self.generator.codes.own(index[:half], turned[:half])
            made = self.generator(noise, kind, codes)
            shown, varied = gan_networks.augment(real, made)
        with torch.no_grad():
            seen = self.discriminator.look(shown)
        seen_made = self.discriminator.look(varied)
        judged = [each.detach().requires_grad_() for each in seen_made]
        both = [torch.cat(pair) for pair in zip(seen, judged, strict=True)]
        scores, made_scores = self.discriminator(both, torch.cat([kind, kind])).chunk(2)
        g_loss = gan_networks.generator_loss(self.kind, made_scores)
        pulls = torch.autograd.grad(g_loss, judged, retain_graph=True)
        d_loss = gan_networks.discriminator_loss(self.kind, scores, made_scores)
        self.optimizers[1].zero_grad(set_to_none=True)
        d_loss.backward(inputs=self.learned)
        self.optimizers[1].step()
        total = sum((pull * each).sum() for pull, each in zip(pulls, seen_made, strict=True))
        if half:
            apart = (abs(one[:half] - other[:half]).mean() for one, other in zip(seen, seen_made, strict=True))
            total = total + REDRAWN * sum(apart) + abs(made[:half] - real[:half]).mean()
        self.optimizers[0].zero_grad(set_to_none=True)
        total.backward()
        self.optimizers[0].step()
        self.steps += 1
        self.average.update(self.generator, step=self.steps)
        return d_loss.detach(), g_loss.detach()

    KEPT = ("epoch", "step", "steps", "spent", "losses", "log")

    def state(self):
        from foldface.nn.resume import random_states

        parts = {name: getattr(self, name).state_dict() for name in ("maker", "judge", "average")}
        parts["optimizers"] = [one.state_dict() for one in self.optimizers]
        return parts | {name: getattr(self, name) for name in self.KEPT} | {"random": random_states()}

    def resume(self, path, fixed):
        """Take over what a file holds. Raises InputError where it is damaged, or of another training than `fixed`."""
        from foldface.nn.resume import load_tensors

        try:
            kept = load_tensors(path)
            before, state = {"betas": list(BETAS[self.kind])} | kept["fixed"], kept["pair"]  # once they were no setting
        except Exception as error:  # a damaged file fails in many ways, all with one way out
            first = str(error).strip().splitlines()[0]
            raise InputError(f"{path}: can't go on from it ({first}): begin anew with --overwrite") from None
        wrong = [name for name in fixed if fixed[name] != before.get(name)]
        if wrong:
            raise InputError(f"{path}: {wrong[0]} is another than it was: go on as before, or --overwrite")
        self.set_state(state)

    def set_state(self, state):
        from foldface.nn.resume import set_random_states

        for name in ("maker", "judge", "average"):
            getattr(self, name).load_state_dict(state[name])
        for one, kept in zip(self.optimizers, state["optimizers"], strict=True):
            one.load_state_dict(kept)
        for name in self.KEPT:
            setattr(self, name, state[name])
        set_random_states(state["random"])


# ------------------------------------------------------------------------------------------------- what is looked at


def labels_of(count, classes):
    """`count` class indices, as many of each as can be: (count,) int64."""
    import torch

    return torch.arange(count) % classes


def draw_grid(net, classes, path):
    """A picture of pictures: a column a label, named; SHOWN rows, from the same noise every time."""
    from demo import gan_networks

    kind = labels_of(SHOWN * len(classes), len(classes))
    made = gan_networks.pictures(net, kind, seed=0)
    made = made.reshape(SHOWN, len(classes), *made.shape[1:])

    def draw(ax):
        side = made.shape[2]
        ax.imshow(made.transpose(0, 2, 1, 3, 4).reshape(SHOWN * side, len(classes) * side, 3))
        ax.set_xticks([side * (k + 0.5) for k in range(len(classes))], classes, fontsize=8, rotation=30, ha="right")
        ax.set_yticks([])
        ax.spines[["left", "bottom"]].set_visible(False)

    from PIL import Image

    with atomic_write(path, sync=False) as partial:
        Image.fromarray(charts.pixels(draw, 0.4 + 0.9 * len(classes), 0.9 * SHOWN + 0.6)).save(partial, format="png")


class GanMetrics:
    """Measures pictures against photos in the feature space of lite0 at 96 pixels."""

    def __init__(self, photos, target, classes):
        """photos: (n, s, s, 3) uint8; target: (n,) of `classes` classes."""
        from foldface.nn.features import Distance, Features, spread

        self.see, self.count, self.spread = Features(), classes, spread
        rng = np.random.default_rng(0)  # every label as often as pictures have it
        self.kind = labels_of(MEASURED, classes)
        place = [rng.permutation(np.flatnonzero(target == k))[: int((self.kind == k).sum())] for k in range(classes)]
        real = self.see.many(photos[np.concatenate(place)])
        self.distance, self.real = Distance(real), self.variety(real, np.repeat(range(classes), list(map(len, place))))

    def variety(self, features, kind):
        """The mean distance between two pictures of one label."""
        return float(np.mean([self.spread(features[kind == k][:100]) for k in range(self.count)]))

    def measure(self, net, seed=1):
        """{frechet, kernel, variety (1 = as different from one another as photos)} of a generator's pictures."""
        from demo import gan_networks

        found = self.see.many(gan_networks.pictures(net, self.kind, seed))
        variety = self.variety(found, self.kind.numpy()) / self.real
        return {
            "frechet": self.distance.frechet(found),
            "kernel": self.distance.kernel(found),
            "variety": variety,
        }


def notice(log):
    """What is wrong with a training, in words, "" if nothing is. log: rows of log.csv, the newest last.

    The signs of a collapse: the discriminator's loss near 0 while the generator's rises; pictures of a label that are
    alike; a distance far above the least.
    """
    now, words = log[-1], []
    low = min(row["g_loss"] for row in log)
    if now["d_loss"] < WON and now["g_loss"] > low + 1:
        words.append(f"the discriminator has won (loss {now['d_loss']:.3f}, the generator's {now['g_loss']:.2f})")
    seen = [row for row in log if np.isfinite(row["frechet"])]
    if seen and seen[-1] is now:
        if now["variety"] < ALIKE:
            words.append(f"pictures of a label are alike ({now['variety']:.2f} of the photos' variety)")
        best = min(seen, key=lambda row: row["frechet"])
        if now["frechet"] > WORSE * best["frechet"]:
            words.append(f"{now['frechet'] / best['frechet']:.1f} times as far as at epoch {best['epoch']}")
    return "; ".join(words)


# ------------------------------------------------------------------------------------------------------ the training


def train(config, overwrite=False):
    """Train until gan.epochs or gan.minutes are over; the result is in runs/NAME/gan. Returns the log."""
    import torch
    from tqdm import tqdm

    import model
    from foldface.nn.resume import stopping_between_steps

    gan, home = config.gan, Path(config.run) / "gan"
    refuse_unwritable(home, "name another --run")
    task = dataset.infer_classes(config)
    if task.numeric:
        raise InputError("gan.py makes pictures of classes: this task's answer is a number")
    rows = prepare(config)
    rows = rows[rows["source"] == "train"].reset_index(drop=True)
    target = rows["target"].to_numpy()
    empty = [name for k, name in enumerate(task.classes) if not (target == k).any()]
    if empty:
        raise InputError(f"{config.data.train}: no photo of {', '.join(empty)}: a GAN can't learn what it never saw")
    if np.bincount(target).max() < 2:
        raise InputError(f"{config.data.train}: one photo a label is nothing to learn a label from")
    if len(rows) < gan.batch_size:
        raise InputError(f"{len(rows)} photos are fewer than gan.batch_size {gan.batch_size}")
    device = devices.choose(config)
    about = {"gan": gan.kind, "image_size": gan.image_size, "width": gan.width, "classes": list(task.classes)}
    about["photos"] = len(rows)
    learned = hashlib.sha1("\n".join([config.data.fit, *rows["ImageID"], *map(str, target)]).encode()).hexdigest()
    fixed = about | {"batch_size": gan.batch_size, "lr": gan.lr, "betas": list(betas_of(gan)), "seed": config.seed}
    fixed["photos and labels"] = learned
    with folder_lock(home):
        photos, path = read_photos(rows, config), home / "state.pt"
        store, kinds = torch.from_numpy(photos), torch.tensor(target)
        pair = GanTrainer(config, len(rows), task.size, device)
        if path.is_file() and not overwrite:
            pair.resume(path, fixed)
            print(f"{home}: goes on in epoch {pair.epoch + 1}")
        else:
            for old in [path, *home.glob("*.png"), *home.glob("*.safetensors"), home / "log.csv"]:
                old.unlink(missing_ok=True)
            pair.begin(store, kinds)
        before = time.monotonic()
        ruler, kinds = GanMetrics(photos, target, task.size), kinds.to(device)
        clock = Clock(gan.minutes, pair.spent, ENDING + 1.5 * (time.monotonic() - before))
        saved, over = time.monotonic(), clock.over
        if over and not pair.steps:
            raise InputError(
                f"gan.minutes {gan.minutes:g}: they are over before training begins (reading and preparing took "
                f"{clock.spent:.0f} s, the last measurement takes about {clock.ending:.0f}): give it more"
            )

        def save():
            with atomic_write(path) as partial:
                torch.save({"pair": pair.state(), "fixed": fixed}, partial)

        with stopping_between_steps() as stop:
            while pair.epoch < gan.epochs and not over:
                batches = order(target, gan.batch_size, [config.seed, pair.epoch])
                sums = torch.tensor(pair.losses, device=device)
                title = f"epoch {pair.epoch + 1}/{gan.epochs}"
                bar = tqdm(total=len(batches), initial=pair.step, desc=title, unit="step", disable=None, leave=False)
                with bar:
                    for place in batches[pair.step :]:
                        index = torch.from_numpy(place)
                        real = store[index].to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 127.5 - 1
                        index, turned = index.to(device, non_blocking=True), torch.rand(len(real), device=device) < 0.5
                        real = torch.where(turned[:, None, None, None], real.flip(3), real)
                        done = (pair.epoch + pair.step / len(batches)) / gan.epochs
                        pair.set_rates(max(done, clock.done))
                        sums += torch.stack(pair.train_step(real, kinds[index], index, turned))
                        pair.step += 1
                        bar.update()
                        due = time.monotonic() - saved > 60 * config.save_minutes
                        if stop.asked or due:
                            pair.losses, pair.spent, saved = sums.tolist(), clock.spent, time.monotonic()
                            save()
                        if stop.asked:
                            stop.end()
                        if clock.over:
                            break
                over, pair.spent = clock.over, clock.spent
                losses = (sums / pair.step).tolist()
                pair.epoch, pair.step, pair.losses = pair.epoch + 1, 0, [0.0, 0.0]
                row = {"epoch": pair.epoch, "seconds": pair.spent, "d_loss": losses[0], "g_loss": losses[1]}
                measured = pair.epoch % gan.measure_epochs == 0 or over or pair.epoch == gan.epochs
                before = time.monotonic()
                row |= ruler.measure(pair.answering) if measured else dict.fromkeys(COLUMNS[4:7], float("nan"))
                if measured:
                    clock.ending = ENDING + 1.2 * (time.monotonic() - before)
                    over = over or clock.over
                last = over or pair.epoch == gan.epochs
                if not np.isfinite(losses).all():
                    raise InputError(f"epoch {pair.epoch}: a loss is {losses}: lower gan.lr")
                pair.log.append(row)
                row["notice"] = notice(pair.log)
                log_epoch(row, gan.epochs)
                seen = [one["frechet"] for one in pair.log if np.isfinite(one["frechet"])]
                if measured and row["frechet"] == min(seen):
                    model.save(home / "best.safetensors", pair.answering, about | row)
                draw_grid(pair.answering, task.classes, home / f"epoch{pair.epoch:04d}.png")
                write_csv(home / "log.csv", pd.DataFrame(pair.log, columns=COLUMNS))
                if last:
                    model.save(home / "last.safetensors", pair.answering, about | row)
                    pair.spent = clock.spent
                    save()
    return pair.log


def log_epoch(row, epochs):
    """Print an epoch that was measured, or that something is wrong with, in one line."""
    if np.isfinite(row["frechet"]) or row["notice"]:
        far = f"  distance {row['frechet']:.1f}" if np.isfinite(row["frechet"]) else ""
        warned = f"  ({row['notice']})" if row["notice"] else ""
        print(
            f"epoch {row['epoch']}/{epochs}  {row['seconds'] / 60:.1f} min  discriminator {row['d_loss']:.3f}  "
            f"generator {row['g_loss']:.3f}{far}{warned}",
            flush=True,
        )


def discriminator(config, count):
    """Print what share of `count` pictures of each label the run's own folds give that label."""
    import model
    from demo import gan_networks
    from foldface.nn import predicting

    net, about = gan_networks.load(Path(config.run) / "gan" / "best.safetensors")
    net.to(devices.choose(config))
    nets, abouts, heads = model.load_folds(model.checkpoints(config.run))
    if list(heads.task.classes) != about["classes"]:
        raise InputError(f"{config.run}: its classifier has other classes than its GAN")
    kind = labels_of(count * len(about["classes"]), len(about["classes"]))
    for how, make in (("as they come", gan_networks.pictures), ("as the demo chooses them", gan_networks.chosen)):
        told = predicting.answer_photos(nets, abouts, heads, make(net, kind, seed=2), config)[
            :, : heads.task.size
        ].argmax(1)
        right = told == kind.numpy()
        each = ", ".join(f"{name} {right[kind.numpy() == k].mean():.2f}" for k, name in enumerate(about["classes"]))
        print(f"{right.mean():.3f} of {len(kind)} pictures {how} get the label they were made for: {each}")


FLAGS = {
    "--overwrite": {"action": "store_true", "help": "begin anew; leave it out to go on after a stop"},
    "--judge": {"type": int, "default": 0, "metavar": "N", "help": "only judge N pictures a label by the run's folds"},
}


def main():
    config = runs.read_for_run(__doc__, FLAGS)
    if config.discriminator:
        discriminator(config, config.discriminator)
        return
    log = train(config, config.overwrite)
    best = min((row for row in log if np.isfinite(row["frechet"])), key=lambda row: row["frechet"])
    print(
        f"{config.run}/gan/best.safetensors: epoch {best['epoch']} of {len(log)}, distance {best['frechet']:.1f}, "
        f"kernel distance {best['kernel']:.3f}; look at {config.run}/gan/epoch{best['epoch']:04d}.png"
    )


if __name__ == "__main__":
    run_main(main)
