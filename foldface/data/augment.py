"""Prepare photos for a model: resize them, and in training apply a preset of augmentations.

The steps are albumentations' (2.0.8), seeded by the photo's seed (loader.PhotoDataset).
"""

import math
import warnings

import albumentations as A
import cv2
import numpy as np

from foldface.registry import lookup, register


class RandomAffine(A.ImageOnlyTransform):
    """Rotate a photo by up to `rotate` degrees, scale width and height by 1 +- `scale` and shift it by up to `shift` of
    its side, around its centre; beyond its border it is mirrored. Faster than A.Affine, which handles masks and boxes.
    """

    def __init__(self, rotate, scale, shift, p):
        super().__init__(p=p)
        self.rotate, self.scale, self.shift = math.radians(rotate), scale, shift

    def apply(self, img: np.ndarray, **_: object) -> np.ndarray:
        draw, side = self.py_random.uniform, np.array(img.shape[1::-1])
        angle = draw(-self.rotate, self.rotate)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        turn *= [1 + draw(-self.scale, self.scale), 1 + draw(-self.scale, self.scale)]
        middle, moved = (side - 1) / 2, side * [draw(-self.shift, self.shift), draw(-self.shift, self.shift)]
        place = np.column_stack([turn, middle - turn @ middle + moved])
        return cv2.warpAffine(img, place, side.tolist(), borderMode=cv2.BORDER_REFLECT_101)


class ResizedCrop(A.ImageOnlyTransform):
    """Crop a part of a photo and resize it to the photo's size: `scale` of its area, sides as 3:4 to 4:3 (Szegedy et
    al. 2015). A.RandomResizedCrop would have to know the size before."""

    def __init__(self, scale, p=1.0):
        super().__init__(p=p)
        self.scale = scale

    def apply(self, img: np.ndarray, **_: object) -> np.ndarray:
        high, wide = img.shape[:2]
        area, ratio = self.py_random.uniform(*self.scale), math.exp(self.py_random.uniform(*np.log([3 / 4, 4 / 3])))
        height = min(high, max(1, round(high * math.sqrt(area / ratio))))
        width = min(wide, max(1, round(wide * math.sqrt(area * ratio))))
        top, left = self.py_random.randint(0, high - height), self.py_random.randint(0, wide - width)
        return cv2.resize(img[top : top + height, left : left + width], (wide, high), interpolation=cv2.INTER_LINEAR)


def squared(fit, size):
    """Steps that make a photo square: stretch it, pad it with black (keeps its proportions), or crop its centre."""
    if fit == "pad":
        return [
            A.LongestMaxSize(size, interpolation=cv2.INTER_AREA),
            A.PadIfNeeded(size, size, border_mode=cv2.BORDER_CONSTANT, fill=0),
        ]
    if fit == "crop":
        return [A.SmallestMaxSize(size, interpolation=cv2.INTER_AREA), A.CenterCrop(size, size)]
    return [A.Resize(size, size, interpolation=cv2.INTER_AREA)]


def shape(augment: str, size: int, fit: str = "stretch") -> A.Compose:
    """The steps of a preset for every photo: (h, w, 3) uint8 -> (size, size, 3) uint8. fit: see `squared`.

    They are all that is done for predictions. Pixels are normalised later, on the device (loader.normalize).
    """
    if augment == "diary":  # the diary's list, in its order and with albumentations' defaults
        return A.Compose([A.CenterCrop(400, 256, pad_if_needed=True), A.Resize(224, 224)])
    return A.Compose(squared(fit, size))


def with_flip(steps, p):
    """The steps of a preset with a horizontal flip of probability p as the first and only one."""
    kept = []
    for step in steps:
        if isinstance(step, A.OneOf):
            parts = [part for part in step.transforms if not isinstance(part, A.HorizontalFlip)]
            share = sum(part.p for part in parts) / sum(part.p for part in step.transforms)
            step = A.OneOf(parts, p=step.p * share)  # the others keep their probability
        if not isinstance(step, A.HorizontalFlip):
            kept.append(step)
    return [A.HorizontalFlip(p=p), *kept]


# An augmentation by its name (data.augment): () -> albumentations' transforms, for photos (s, s, 3) uint8.


@register("augment", "none")
def none() -> list[A.BasicTransform]:
    return []


@register("augment", "light")
def light() -> list[A.BasicTransform]:
    return [
        A.HorizontalFlip(),
        RandomAffine(8, 0.08, 0.04, p=0.8),
        A.RandomBrightnessContrast(0.2, 0.2),
    ]


@register("augment", "diary")
def diary() -> list[A.BasicTransform]:
    """The diary's list, in its order and with albumentations' defaults."""
    return [
        A.RandomBrightnessContrast(),
        A.HorizontalFlip(),
        A.InvertImg(),
        A.CoarseDropout(num_holes_range=(4, 4), hole_height_range=(50, 50), hole_width_range=(50, 50)),
    ]


@register("augment", "strong")
def strong() -> list[A.BasicTransform]:
    return [
        A.HorizontalFlip(),
        RandomAffine(15, 0.15, 0.08, p=0.9),
        A.RandomBrightnessContrast(0.3, 0.3, p=0.7),
        A.HueSaturationValue(10, 25, 15),
        A.ToGray(p=0.1),
        A.OneOf(
            [A.GaussianBlur((3, 5)), A.ImageCompression(quality_range=(40, 80)), A.GaussNoise((0.02, 0.08))], p=0.4
        ),
        A.CoarseDropout(num_holes_range=(1, 3), hole_height_range=(0.1, 0.25), hole_width_range=(0.1, 0.25)),
    ]


@register("augment", "trash")
def trash() -> list[A.BasicTransform]:
    """The trash team's list, in its order and with albumentations' defaults."""
    with warnings.catch_warnings():  # ShiftScaleRotate says at each start that Affine does the same
        warnings.filterwarnings("ignore", message="ShiftScaleRotate is a special case")
        moved = A.ShiftScaleRotate(p=1)
    return [
        A.OneOf([moved, A.RandomRotate90(p=1)]),
        A.OneOf([A.Spatter(mode="rain", p=1), A.Spatter(mode="mud", p=1)]),
        A.OneOf([A.RandomBrightnessContrast(p=1), A.RandomToneCurve(p=1)]),
        A.OneOf([A.GaussianBlur(p=1), A.GaussNoise(p=1)]),
        A.RandomShadow(),
        A.HorizontalFlip(),
        A.VerticalFlip(),
    ]


@register("augment", "shapes")
def shapes() -> list[A.BasicTransform]:
    """No colours, and of each kind one change at a time."""
    return [
        A.OneOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1), A.RandomRotate90(p=1)], p=0.75),
        A.OneOf(
            [
                A.Affine(rotate=(-45, 45), scale=(0.8, 1.2), translate_percent=(-0.08, 0.08), p=1),
                A.Perspective(p=1),
                A.GridDistortion(p=1),
                A.OpticalDistortion(p=1),
            ],
            p=0.6,
        ),
        A.OneOf([A.MotionBlur((3, 5), p=1), A.MedianBlur(3, p=1), A.GaussianBlur((3, 5), p=1)], p=0.2),
    ]


def operations(strength: float) -> list[A.BasicTransform]:
    """The fourteen operations of RandAugment, each as strong as it comes up to `strength` (0..1) of its range."""
    colour = 0.9 * strength
    return [
        A.NoOp(p=1),
        A.AutoContrast(p=1),
        A.Equalize(p=1),
        A.Affine(rotate=(-30 * strength, 30 * strength), p=1),
        A.Posterize(num_bits=(round(8 - 4 * strength), 8), p=1),
        A.Solarize(threshold_range=(1 - strength, 1.0), p=1),
        A.ColorJitter((1, 1), (1, 1), (1 - colour, 1 + colour), (0, 0), p=1),
        A.ColorJitter((1, 1), (1 - colour, 1 + colour), (1, 1), (0, 0), p=1),
        A.ColorJitter((1 - colour, 1 + colour), (1, 1), (1, 1), (0, 0), p=1),
        A.Sharpen(alpha=(0.0, colour), p=1),
        A.Affine(shear={"x": (-17 * strength, 17 * strength), "y": (0, 0)}, p=1),
        A.Affine(shear={"x": (0, 0), "y": (-17 * strength, 17 * strength)}, p=1),
        A.Affine(translate_percent={"x": (-0.3 * strength, 0.3 * strength), "y": (0, 0)}, p=1),
        A.Affine(translate_percent={"x": (0, 0), "y": (-0.3 * strength, 0.3 * strength)}, p=1),
    ]


@register("augment", "randaugment")
def randaugment() -> list[A.BasicTransform]:
    """RandAugment (Cubuk et al. 2019): two of the operations, at half of their strength."""
    return [A.HorizontalFlip(), A.SomeOf(operations(0.5), n=2, replace=True, p=1)]


@register("augment", "trivialaugment")
def trivialaugment() -> list[A.BasicTransform]:
    """TrivialAugment (Müller & Hutter 2021): one of the operations, of any strength."""
    return [A.HorizontalFlip(), A.OneOf(operations(1.0), p=1)]


@register("augment", "resized_crop")
def resized_crop() -> list[A.BasicTransform]:
    """What most of timm's networks were trained with: a part of the photo, mirrored or not. Faces are framed already:
    at least half of the area stays."""
    return [A.HorizontalFlip(), ResizedCrop((0.5, 1.0))]


def variation(augment: str, erasing: float = 0.0, flip: float | None = None) -> A.Compose:
    """The random steps of a preset for a training photo after `shape`: (s, s, 3) uint8 -> the same.

    erasing: probability of random erasing (Zhong et al. 2020) at the end; flip: probability of a horizontal flip, None
    = the preset's own.
    """
    varied = lookup("augment", augment)()
    if flip is not None:
        varied = with_flip(varied, flip)
    if erasing:
        varied = [*varied, A.Erasing(fill="random_uniform", p=erasing)]
    return A.Compose(varied)
