"""The two GANs of gan.py: networks, what they minimise, and how a generator is stored.

    sngan      small convolutional networks with spectral norm, class-conditional batch norm and a projection
               discriminator (Miyato et al. 2018; Miyato & Koyama 2018), hinge loss, DiffAugment (Zhao et al. 2020)
    vanilla    two perceptrons (Goodfellow et al. 2014) that are told the class (Mirza & Osindero 2014), to compare with

Pictures are (n, 3, size, size) float32 in -1..1, classes (n,) int64.
"""

import itertools
import json

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from files import InputError

LATENT = 128


# ---------------------------------------------------------------------------------------------------- the networks


class ClassNorm(nn.Module):
    """Batch norm whose scale and shift belong to the class (de Vries et al. 2017)."""

    def __init__(self, channels, classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale, self.shift = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x, kind):
        return self.norm(x) * self.scale(kind)[..., None, None] + self.shift(kind)[..., None, None]


def widths(size, width):
    """Channels at 4, 8, ... size/2 pixels, the widest first: `width` at half of the size, doubled with each halving,
    eight times at most."""
    steps = size.bit_length() - 3  # 64 -> 4 doublings from 4 pixels
    return [min(width * 2 ** (steps - 1 - k), 8 * width) for k in range(steps)]


class Generator(nn.Module):
    """Noise (n, LATENT) and classes -> pictures; each step doubles the side."""

    def __init__(self, size, classes, width):
        super().__init__()
        channels = widths(size, width)
        self.first = nn.Linear(LATENT, channels[0] * 16)
        self.norms = nn.ModuleList(ClassNorm(count, classes) for count in channels)
        outs = [*channels[1:], 3]
        self.steps = nn.ModuleList(
            nn.ConvTranspose2d(count, out, 4, 2, 1) for count, out in zip(channels, outs, strict=True)
        )
        for part in [self.first, *self.steps]:
            nn.init.orthogonal_(part.weight)

    def forward(self, noise, kind):
        x = self.first(noise).unflatten(1, (-1, 4, 4))
        for norm, step in zip(self.norms, self.steps, strict=True):
            x = step(F.relu(norm(x, kind)))
        return torch.tanh(x)


class Discriminator(nn.Module):
    """Pictures and classes -> scores (n,): how real, plus how much of that class."""

    def __init__(self, size, classes, width):
        super().__init__()
        channels = widths(size, width)[::-1]
        ins = [3, *channels[:-1]]
        self.steps = nn.ModuleList(
            spectral_norm(nn.Conv2d(count, out, 4, 2, 1)) for count, out in zip(ins, channels, strict=True)
        )
        last = channels[-1]
        self.last = spectral_norm(nn.Conv2d(last, last, 3, 1, 1))
        self.real = spectral_norm(nn.Linear(last, 1))
        self.kind = spectral_norm(nn.Embedding(classes, last))

    def forward(self, x, kind):
        for step in self.steps:
            x = F.leaky_relu(step(x), 0.1)
        x = F.leaky_relu(self.last(x), 0.1).sum((2, 3))
        return self.real(x)[:, 0] + (self.kind(kind) * x).sum(1)


class FlatGenerator(nn.Module):
    """The vanilla generator: a perceptron, batch norm between its layers."""

    def __init__(self, size, classes, width):
        super().__init__()
        self.size, self.classes = size, classes
        sides, layers = [LATENT + classes, 4 * width, 8 * width, 16 * width, 32 * width], []
        for count, out in itertools.pairwise(sides):
            layers += [nn.Linear(count, out), nn.BatchNorm1d(out), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Linear(sides[-1], 3 * size * size))

    def forward(self, noise, kind):
        told = torch.cat([noise, F.one_hot(kind, self.classes).to(noise.dtype)], 1)
        return torch.tanh(self.net(told)).unflatten(1, (3, self.size, self.size))


class FlatDiscriminator(nn.Module):
    """The vanilla discriminator: a perceptron."""

    def __init__(self, size, classes, width):
        super().__init__()
        self.classes = classes
        self.net = nn.Sequential(
            nn.Linear(3 * size * size + classes, 16 * width), nn.LeakyReLU(0.2),
            nn.Linear(16 * width, 8 * width), nn.LeakyReLU(0.2), nn.Linear(8 * width, 1),
        )  # fmt: skip

    def forward(self, x, kind):
        return self.net(torch.cat([x.flatten(1), F.one_hot(kind, self.classes).to(x.dtype)], 1))[:, 0]


def build(kind, size, classes, width):
    """(generator, discriminator) of a kind, for pictures of `size` pixels (a power of two from 16 on)."""
    if kind == "vanilla":
        return FlatGenerator(size, classes, width), FlatDiscriminator(size, classes, width)
    return Generator(size, classes, width), Discriminator(size, classes, width)


# -------------------------------------------------------------------------------------------------------- losses


def discriminator_loss(kind, real, made):
    """Scores of real and made pictures (n,) -> loss: hinge (Lim & Ye 2017), or cross entropy of the vanilla one."""
    if kind == "vanilla":
        return F.softplus(-real).mean() + F.softplus(made).mean()
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def generator_loss(kind, made):
    """Scores of made pictures (n,) -> loss; the vanilla one is the non-saturating of the paper."""
    return F.softplus(-made).mean() if kind == "vanilla" else -made.mean()


def augment(x):
    """DiffAugment (Zhao et al. 2020): colours, a shift of up to an eighth and a hole of half the side, each picture
    its own, in steps that gradients pass through. Real and made pictures go through it before they are judged."""
    n, side, device = len(x), x.shape[-1], x.device

    def some(low, high):
        return torch.rand(n, 1, 1, 1, device=device) * (high - low) + low

    x = x + some(-0.5, 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * some(0, 2) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * some(0.5, 1.5) + mean
    most = side // 8
    down, across = torch.randint(-most, most + 1, (2, n, 1, 1), device=device)
    at = torch.arange(side, device=device)
    rows = (at[None, :, None] + down + most).clamp(0, side + 2 * most - 1)
    columns = (at[None, None, :] + across + most).clamp(0, side + 2 * most - 1)
    padded = F.pad(x, [most] * 4).permute(0, 2, 3, 1)
    x = padded[torch.arange(n, device=device)[:, None, None], rows, columns].permute(0, 3, 1, 2)
    top, left = torch.randint(0, side, (2, n, 1, 1), device=device)
    hole = (abs(at[None, :, None] - top) < side // 4) & (abs(at[None, None, :] - left) < side // 4)
    return x * (~hole[:, None])


# ------------------------------------------------------------------------------------------------------- pictures


@torch.no_grad()
def pictures(net, kind, seed, batch=64):
    """Pictures of classes (n,) as (n, size, size, 3) uint8: the same seed, the same pictures."""
    device = next(net.parameters()).device
    noise = torch.randn(len(kind), LATENT, generator=torch.Generator().manual_seed(seed)).to(device)
    training, found = net.training, []
    net.eval()
    for start in range(0, len(kind), batch):
        made = net(noise[start : start + batch], kind[start : start + batch].to(device))
        found.append(((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu())
    net.train(training)
    return torch.cat(found).numpy()


def load(path):
    """(generator in eval mode, about) of a file that gan.py wrote. Raises InputError if it didn't."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
        net, _ = build(about["gan"], about["image_size"], len(about["classes"]), about["width"])
        net.load_state_dict(load_file(path))
    except Exception as error:  # a damaged file fails in many ways
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path}: is no generator of ours ({what})") from None
    return net.eval(), about
