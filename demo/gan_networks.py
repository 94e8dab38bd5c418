"""The two GANs of demo.gan: their networks and losses, making pictures, and reading a generator's file.

    projected  a small convolutional generator that blends the coarse looks of two photos of a label and draws the
               blend again (fusion; Hong et al. 2020, F2GAN), with class-conditional batch norm; a discriminator on the
               features of a pretrained network (Sauer et al. 2021), with spectral norm, class projection (Miyato et al.
               2018; Miyato & Koyama 2018), hinge loss, DiffAugment (Zhao et al. 2020)
    vanilla    two perceptrons (Goodfellow et al. 2014) with the class as input (Mirza & Osindero 2014), a baseline

Pictures are (n, 3, size, size) float32 in -1..1, classes (n,) int64.
"""

import functools
import itertools
import json
import math

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import model
from foldface.files import InputError
from foldface.nn import features

LATENT = 128
CANDIDATES = 16  # pictures of which `chosen` takes one
PROBED = 1280  # features of lite1
CODE = 256  # size of a photo's code
FEATURE_SCALE = (
    3.0  # what the discriminator sees is divided by it: at 1.4 it wins more, and pictures come nearer half as fast
)


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


class Codes(nn.Module):
    """The coarse looks of the photos, as principal components of small copies (side pixels), each photo's and its
    mirror image's; saved with the weights: a generator's file says that much of every photo that it learned from.

    Of few photos a label has, a normal distribution of codes is a blur; blends of two of them are not.
    """

    LEAST = math.pi / 8  # a blend is cos a of one photo and sin a of another, a from LEAST to pi / 2 - LEAST

    def __init__(self, side, classes, photos):
        super().__init__()
        self.side, pixels = side, 3 * side * side
        shapes = {"mean": (pixels,), "basis": (CODE, pixels), "codes": (2 * photos, CODE), "middles": (classes, CODE)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        for name, count in (("place", 2 * photos), ("start", classes), ("count", classes)):
            self.register_buffer(name, torch.ones(count, dtype=torch.long))

    @torch.no_grad()
    def learn(self, photos, kind):
        """Take the codes of photos (n, s, s, 3) uint8 of classes (n,), of each at least one, all on the CPU."""
        size = (self.side, self.side)
        small = torch.cat(
            [F.interpolate(part.permute(0, 3, 1, 2).float(), size, mode="area") for part in photos.split(256)]
        )
        rows, kind = torch.cat([small, small.flip(3)]).flatten(1) / 127.5 - 1, torch.cat([kind, kind])
        mean, scale, order = rows.mean(0), len(rows) ** 0.5, kind.argsort(stable=True)
        left, size, right = torch.svd_lowrank(rows - mean, min(CODE, *rows.shape), niter=4)
        codes, found = torch.zeros(self.codes.shape), len(size)
        codes[:, :found] = left[order] * scale  # a class's codes stand in a row
        count = kind.bincount(minlength=len(self.count))
        self.mean.copy_(mean)
        self.basis[:found].copy_(size[:, None] * right.T / scale)
        self.codes.copy_(codes)
        self.place.copy_(order.argsort())
        self.count.copy_(count)
        self.start.copy_(count.cumsum(0) - count)
        self.middles.copy_(torch.stack([part.mean(0) for part in codes.split(count.tolist())]))

    def own(self, index, turned):
        """The codes (n, CODE) of the photos `index` (n,), mirrored where `turned` (n,) bool."""
        return self.codes[self.place[index + turned * (len(self.place) // 2)]]

    def blend(self, noise, kind):
        """The codes (n, CODE) of blends of two photos of classes (n,): noise (n, 3 or more) says which and how much."""
        chance, middle = torch.special.ndtr(noise[:, :3]), self.middles[kind]
        count = self.count[kind, None]
        pair = self.start[kind, None] + torch.minimum((chance[:, :2] * count).long(), count - 1)
        angle = self.LEAST + chance[:, 2:] * (math.pi / 2 - 2 * self.LEAST)
        one, other = (self.codes[pair[:, k]] - middle for k in (0, 1))
        return middle + angle.cos() * one + angle.sin() * other

    def decode(self, codes):
        """Codes (n, CODE) -> the small pictures (n, 3, side, side) that they stand for, about -1..1."""
        return (self.mean + codes @ self.basis).unflatten(1, (3, self.side, self.side))


class Generator(nn.Module):
    """Noise (n, LATENT) and classes -> pictures: a blend of two photos' coarse looks, half as large as the picture, and
    what a network that starts from its code at 4 pixels adds to it."""

    def __init__(self, size, classes, width, photos):
        super().__init__()
        channels, self.size = widths(size, width), size
        self.codes = Codes(size // 2, classes, photos)
        self.first = nn.Linear(CODE, channels[0] * 16)
        self.norms = nn.ModuleList(ClassNorm(count, classes) for count in channels[:-1])
        self.steps = nn.ModuleList(nn.ConvTranspose2d(*pair, 4, 2, 1) for pair in itertools.pairwise(channels))
        self.enter = nn.Conv2d(3, width, 3, 1, 1)
        self.details = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in range(3))
        self.detail_norms = nn.ModuleList(ClassNorm(width, classes) for _ in self.details)
        self.last = nn.Conv2d(width // 4, 3, 3, 1, 1)
        self.probe = nn.Linear(PROBED, classes).requires_grad_(False)
        for part in [self.first, *self.steps]:
            nn.init.orthogonal_(part.weight)
        nn.init.zeros_(self.last.weight)  # it begins with the blends as they are
        nn.init.zeros_(self.last.bias)

    @torch.no_grad()
    def learn(self, photos, kind):
        """Take the codes of photos (n, s, s, 3) uint8 of classes (n,), and what tells these apart (`chosen`)."""
        self.codes.learn(photos, kind)
        seen = np.concatenate([eyes().many(way) for way in (photos.numpy(), photos.flip(2).numpy())])
        for own, found in zip(
            (self.probe.weight, self.probe.bias), features.linear_probe(seen, kind.repeat(2)), strict=True
        ):
            own.copy_(torch.from_numpy(found))

    def forward(self, noise, kind, codes=None):
        """codes: those to draw, (n, CODE), instead of blends that the noise chooses."""
        codes = self.codes.blend(noise, kind) if codes is None else codes
        look = self.codes.decode(codes)
        x = self.first(codes).unflatten(1, (-1, 4, 4))
        for norm, step in zip(self.norms, self.steps, strict=True):
            x = step(F.relu(norm(x, kind)))
        x = x + self.enter(look)
        one, two, three = (lambda x, k=k: self.details[k](F.relu(self.detail_norms[k](x, kind))) for k in range(3))
        x = F.relu(F.pixel_shuffle(three(x + two(one(x))), 2))
        coarse = F.interpolate(look, (self.size, self.size), mode="bicubic").clamp(-0.97, 0.97)
        return torch.tanh(self.last(x) + coarse.atanh())


class Discriminator(nn.Module):
    """Looks at pictures through a pretrained network that stays as it is, at four scales (projected GAN, Sauer et al.
    2021): what it sees is mixed over channels and scales by random convolutions, and one small network a scale judges.

    Its eyes are lite1's, not those of lite0 that distances are measured with.
    """

    SCALES, MIXED, JUDGED = [1, 2, 3, 4], 64, 128

    def __init__(self, size, classes):
        super().__init__()
        self.side = max(64, size)
        self.eyes = model.build(*features.LITE1[:1], 2, features.LITE1[1], self.side).requires_grad_(False)
        with torch.no_grad():
            shapes = [seen.shape[1:3] for seen in self.see(torch.zeros(1, 3, size, size))]
        fixed = [nn.Conv2d(count, self.MIXED, 1, bias=False) for count, _ in shapes]
        across = [nn.Conv2d(self.MIXED, self.MIXED, 3, 1, 1, bias=False) for _ in shapes]
        for part in fixed + across:
            nn.init.kaiming_normal_(part.weight)
        self.mixers, self.crossings = (nn.ModuleList(parts).requires_grad_(False) for parts in (fixed, across))
        for name, value in (("means", 0.0), ("spreads", 1.0)):
            self.register_buffer(name, torch.full((len(shapes), self.MIXED), value))
        self.heads = nn.ModuleList(self.head(side) for _, side in shapes)
        self.real = nn.ModuleList(spectral_norm(nn.Conv2d(self.JUDGED, 1, 1)) for _ in shapes)
        self.kind = nn.ModuleList(spectral_norm(nn.Embedding(classes, self.JUDGED)) for _ in shapes)

    def head(self, side):
        """From what is seen at a scale, down to 4 pixels."""
        layers, count = [], self.MIXED
        while side > 4:
            layers += [spectral_norm(nn.Conv2d(count, self.JUDGED, 4, 2, 1)), nn.LeakyReLU(0.2)]
            count, side = self.JUDGED, side // 2
        return nn.Sequential(*layers, spectral_norm(nn.Conv2d(count, self.JUDGED, 3, 1, 1)), nn.LeakyReLU(0.2))

    def train(self, mode=True):
        super().train(mode)
        self.eyes.eval()
        return self

    def see(self, x):
        if x.shape[-1] != self.side:
            x = F.interpolate(x, (self.side, self.side), mode="bilinear")
        return self.eyes.forward_intermediates(x, indices=self.SCALES, intermediates_only=True)

    def calibrate(self, photos):
        """Normalise features to mean 0 and deviation 1 over photos (n, 3, s, s), so that no scale dominates."""
        with torch.no_grad():
            for k, (mix, seen) in enumerate(zip(self.mixers, self.see(photos), strict=True)):
                self.means[k] = mix(seen).mean((0, 2, 3))
                self.spreads[k] = mix(seen).std((0, 2, 3))

    def features(self, x):
        """The fixed features of pictures, one tensor a scale, the finest first."""
        mixed = [mix(seen) for mix, seen in zip(self.mixers, self.see(x), strict=True)]
        means, spreads = self.means[..., None, None], self.spreads[..., None, None]
        mixed = [(each - mean) / spread for each, mean, spread in zip(mixed, means, spreads, strict=True)]
        found, below = [], 0.0
        for each, cross in zip(reversed(mixed), reversed(self.crossings), strict=True):
            if found:
                below = F.interpolate(found[-1], each.shape[2:], mode="bilinear")
            found.append(cross(each + below) / FEATURE_SCALE)
        return found[::-1]

    def forward(self, seen, kind):
        """`features` and classes -> scores (n, places): real or made, plus the class projection."""
        felt = [head(each) for head, each in zip(self.heads, seen, strict=True)]
        scores = [
            (real(each)[:, 0] + (name(kind)[..., None, None] * each).sum(1)).flatten(1)
            for each, real, name in zip(felt, self.real, self.kind, strict=True)
        ]
        return torch.cat(scores, 1)


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
        inputs = torch.cat([noise, F.one_hot(kind, self.classes).to(noise.dtype)], 1)
        return torch.tanh(self.net(inputs)).unflatten(1, (3, self.size, self.size))


class FlatDiscriminator(nn.Module):
    """The vanilla discriminator: a perceptron."""

    def __init__(self, size, classes, width):
        super().__init__()
        self.classes = classes
        self.net = nn.Sequential(
            nn.Linear(3 * size * size + classes, 16 * width), nn.LeakyReLU(0.2),
            nn.Linear(16 * width, 8 * width), nn.LeakyReLU(0.2), nn.Linear(8 * width, 1),
        )  # fmt: skip

    def features(self, x):
        return [x]

    def forward(self, seen, kind):
        """-> scores (n,)."""
        (x,) = seen
        return self.net(torch.cat([x.flatten(1), F.one_hot(kind, self.classes).to(x.dtype)], 1))[:, 0]


def make_generator(kind, size, classes, width, photos):
    """The generator of a kind, for pictures of `size` pixels (a power of two from 16 on), from so many photos."""
    return FlatGenerator(size, classes, width) if kind == "vanilla" else Generator(size, classes, width, photos)


def make_discriminator(kind, size, classes, width):
    """The discriminator of a kind: `features` of pictures, then a call with them gives scores."""
    return FlatDiscriminator(size, classes, width) if kind == "vanilla" else Discriminator(size, classes)


# -------------------------------------------------------------------------------------------------------- losses


def discriminator_loss(kind, real, made):
    """Scores of real and made pictures -> loss: hinge (Lim & Ye 2017), or cross entropy of the vanilla one."""
    if kind == "vanilla":
        return F.softplus(-real).mean() + F.softplus(made).mean()
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def generator_loss(kind, made):
    """Scores of made pictures -> loss; the vanilla one is the non-saturating of the paper."""
    return F.softplus(-made).mean() if kind == "vanilla" else -made.mean()


def augment(real, made):
    """DiffAugment (Zhao et al. 2020): brightness, colours and a shift of up to an eighth, each pair of pictures its
    own, in steps that gradients pass through. Real and made pictures go through it before they are judged.

    Milder than in the paper, and without its hole: colours that are always changed are not judged, and drift.
    """
    n, side, device = len(real), real.shape[-1], real.device
    brighter = 0.4 * torch.rand(n, 1, 1, 1, device=device) - 0.2
    colourful = torch.rand(n, 1, 1, 1, device=device) + 0.5
    most = side // 8
    down, across = torch.randint(-most, most + 1, (2, n, 1, 1), device=device)
    at = torch.arange(side, device=device) + most
    each, rows, columns = torch.arange(n, device=device)[:, None, None], at[None, :, None], at[None, None, :]

    def vary(x):
        grey = x.mean(1, keepdim=True)
        x = (x - grey) * colourful + grey + brighter
        padded = F.pad(x, [most] * 4).permute(0, 2, 3, 1)
        return padded[each, rows + down, columns + across].permute(0, 3, 1, 2)

    return vary(real), vary(made)


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


@functools.cache
def eyes():
    """The features of lite1, loaded once."""
    return features.Features(*features.LITE1)


def chosen(net, kind, seed):
    """`pictures`, each the one of CANDIDATES that looks most like its label to a linear classifier of the photos on
    what lite1 sees (rejection; Azadi et al. 2019). The vanilla generator's are as they come."""
    found = pictures(net, kind, seed)
    if isinstance(net, FlatGenerator):
        return found

    def likeness(made):
        seen = torch.from_numpy(eyes().many(made)).to(net.probe.weight.device)
        return net.probe(seen).softmax(1).cpu()[torch.arange(len(kind)), kind].numpy()

    best = likeness(found)
    for k in range(1, CANDIDATES):
        made = pictures(net, kind, seed + 1_000_003 * k)
        score = likeness(made)
        found[score > best], best = made[score > best], np.maximum(score, best)
    return found


def load(path):
    """(generator in eval mode, about) of a file that demo.gan wrote. Raises InputError if it didn't."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            size, width, photos = (about[key] for key in ("image_size", "width", "photos"))
            with torch.device("meta"):
                empty = make_generator(about["gan"], size, len(about["classes"]), width, photos)
            model.refuse_other_tensors(file, empty)
        net = make_generator(about["gan"], size, len(about["classes"]), width, photos)
        net.load_state_dict(load_file(path))
    except Exception as error:  # a damaged file fails in many ways
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path}: is no generator of demo.gan ({what})") from None
    return net.eval(), about
