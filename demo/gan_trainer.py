"""What a GAN's training consists of: its time budget, its batches, both networks with their optimizers, their state."""

import time
from pathlib import Path

import numpy as np
import timm.utils
import torch

from demo import gan_networks
from foldface.files import InputError
from foldface.nn.resume import load_tensors, random_states, set_random_states
from foldface.runtime import PROCESS_START
from foldface.settings import Config, GanConfig

EMA_DECAY = 0.999  # of the generator's weights, a step
RECONSTRUCTION_WEIGHT = 1.5  # of the distance between a photo and its reconstruction, beside the adversarial loss
DECAY_SHARE = 0.4  # of the training, at its end, in which the learning rates fall to 1 % of their start
DISCRIMINATOR_LR = 0.2  # times the generator's: at the same rate the discriminator wins
BETAS = {"vanilla": (0.5, 0.999), "projected": (0.0, 0.99)}  # of Adam: Radford et al. 2016, Sauer et al. 2021


class Clock:
    """The time that gan.minutes leaves, counted from the start of this process.

    minutes: gan.minutes, 0 = no limit; spent: seconds of earlier starts; ending: seconds that the last measurement, its
    picture and its files take.
    """

    def __init__(self, minutes: float, spent: float, ending: float):
        self.seconds, self.earlier, self.ending = 60 * minutes, spent, ending

    @property
    def spent(self) -> float:
        """Seconds of all starts."""
        return self.earlier + time.monotonic() - PROCESS_START

    @property
    def over(self) -> bool:
        """True when the training has to end."""
        return bool(self.seconds) and self.spent >= self.seconds - self.ending

    @property
    def done(self) -> float:
        """Share of the time that has passed; 0 without gan.minutes."""
        return self.spent / max(1.0, self.seconds - self.ending) if self.seconds else 0.0


def betas_of(gan: GanConfig) -> tuple[float, float]:
    """Adam's betas: gan.betas, or, where it is empty, the default of gan.kind."""
    return tuple(map(float, gan.betas or BETAS[gan.kind]))  # plain floats: a state can't hold jsonargparse's subclass


def balanced_batches(target: np.ndarray, batch_size: int, seed) -> np.ndarray:
    """Batches of an epoch, (steps, batch_size) indices: about as many draws as photos, every label equally likely.

    target: (n,) class indices; seed: an int or a list of ints.
    """
    rng = np.random.default_rng(seed)
    count = np.bincount(target)
    weights = 1 / count[target] / (count > 0).sum()
    steps = max(1, len(target) // batch_size)
    return rng.choice(len(target), (steps, batch_size), p=weights)


class GanTrainer:
    """A generator and a discriminator, their optimizers, and how far the training is: all that is saved."""

    KEPT = ("epoch", "step", "steps", "spent", "losses", "log")
    PARTS = (("generator", "maker"), ("discriminator", "judge"), ("average", "average"))  # attribute, name in state.pt

    def __init__(self, config: Config, photos: int, classes: int, device: torch.device):
        """photos: number of photos to learn from; classes: number of labels."""
        gan = config.gan
        torch.manual_seed(config.seed)
        self.kind, self.device = gan.kind, device
        self.generator = gan_networks.make_generator(gan.kind, gan.image_size, classes, gan.width, photos)
        self.discriminator = gan_networks.make_discriminator(gan.kind, gan.image_size, classes, gan.width)
        for net in (self.generator, self.discriminator):
            net.to(device, memory_format=torch.channels_last)
        self.average = timm.utils.ModelEmaV3(self.generator, decay=EMA_DECAY, use_warmup=True)
        self.learned = [value for value in self.discriminator.parameters() if value.requires_grad]
        self.rates = gan.lr, gan.lr * (1 if self.vanilla else DISCRIMINATOR_LR)
        self.optimizers = [
            torch.optim.Adam(values, rate, betas=betas_of(gan), fused=True)
            for values, rate in zip((self.generator.parameters(), self.learned), self.rates, strict=True)
        ]
        self.epoch, self.step, self.steps, self.spent = 0, 0, 0, 0.0
        self.losses, self.log = [0.0, 0.0], []

    @property
    def vanilla(self) -> bool:
        return self.kind == "vanilla"

    @property
    def eval_model(self):
        """The generator whose pictures are shown: its moving average, or the vanilla generator itself."""
        return self.generator if self.vanilla else self.average.module

    def prepare(self, photos, target) -> None:
        """Learn from the photos what the first step needs. photos: (n, s, s, 3) uint8; target: (n,) int64; tensors."""
        if self.vanilla:
            return
        self.generator.learn(photos, target)
        some = photos[torch.randperm(len(photos))[:256]].to(self.device)
        self.discriminator.calibrate(some.permute(0, 3, 1, 2).float() / 127.5 - 1)
        self.average.set(self.generator)

    def set_rates(self, progress: float) -> None:
        """Set the learning rates for the share of the training that is done, 0..1."""
        if not self.vanilla:
            for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * min(1, max(0.01, 1 - progress) / DECAY_SHARE)

    def train_step(self, real, kind, index, flipped):
        """Update both networks once, from the same pictures. Returns (discriminator loss, generator loss), 0-d tensors.

        real: (n, 3, s, s) in -1..1, the photos `index` (n,), mirrored where `flipped` (n,) bool; kind: (n,) classes.
        Half of the pictures reconstruct the photos themselves from their codes, so that the right result is known. The
        others are blends, which only the discriminator judges.
        """
        noise, half, shown = torch.randn(len(real), gan_networks.LATENT, device=self.device), 0, real
        if self.vanilla:
            made = varied = self.generator(noise, kind)
        else:
            codes, half = self.generator.codes.blend(noise, kind), len(real) // 2
            codes[:half] = self.generator.codes.own(index[:half], flipped[:half])
            made = self.generator(noise, kind, codes)
            shown, varied = gan_networks.augment(real, made)
        with torch.no_grad():
            real_features = self.discriminator.features(shown)
        made_features = self.discriminator.features(varied)
        # the discriminator's graph ends at its features, so that one backward pass of each network is enough
        leaves = [each.detach().requires_grad_() for each in made_features]
        both = [torch.cat(pair) for pair in zip(real_features, leaves, strict=True)]
        real_scores, made_scores = self.discriminator(both, torch.cat([kind, kind])).chunk(2)
        g_loss = gan_networks.generator_loss(self.kind, made_scores)
        gradients = torch.autograd.grad(g_loss, leaves, retain_graph=True)
        d_loss = gan_networks.discriminator_loss(self.kind, real_scores, made_scores)
        self.optimizers[1].zero_grad(set_to_none=True)
        d_loss.backward(inputs=self.learned)
        self.optimizers[1].step()
        total = sum((gradient * each).sum() for gradient, each in zip(gradients, made_features, strict=True))
        if half:
            pairs = zip(real_features, made_features, strict=True)
            differences = sum(abs(one[:half] - other[:half]).mean() for one, other in pairs)
            total = total + RECONSTRUCTION_WEIGHT * differences + abs(made[:half] - real[:half]).mean()
        self.optimizers[0].zero_grad(set_to_none=True)
        total.backward()
        self.optimizers[0].step()
        self.steps += 1
        self.average.update(self.generator, step=self.steps)
        return d_loss.detach(), g_loss.detach()

    def state(self) -> dict:
        """All that `set_state` needs to go on."""
        parts = {saved: getattr(self, name).state_dict() for name, saved in self.PARTS}
        parts["optimizers"] = [one.state_dict() for one in self.optimizers]
        return parts | {name: getattr(self, name) for name in self.KEPT} | {"random": random_states()}

    def resume(self, path: Path, fixed: dict) -> None:
        """Go on from a state file. Raises InputError where it is damaged or of a training with other `fixed` values."""
        try:
            content = load_tensors(path)
            # betas were no setting in earlier versions
            before, state = {"betas": list(BETAS[self.kind])} | content["fixed"], content["pair"]
        except Exception as error:  # a damaged file fails in many ways
            first = str(error).strip().splitlines()[0]
            raise InputError(f"{path}: can't go on from it ({first}): start again with --overwrite") from None
        wrong = [name for name in fixed if fixed[name] != before.get(name)]
        if wrong:
            raise InputError(f"{path}: {wrong[0]} has changed: give the old value, or start again with --overwrite")
        self.set_state(state)

    def set_state(self, state: dict) -> None:
        for name, saved in self.PARTS:
            getattr(self, name).load_state_dict(state[saved])
        for optimizer, content in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(content)
        for name in self.KEPT:
            setattr(self, name, state[name])
        set_random_states(state["random"])
