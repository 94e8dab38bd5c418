"""Draw portraits of invented people: traits from a random generator, painted by curves and light.

Nothing here is taken from a photo.
"""

from types import SimpleNamespace

import cv2
import numpy as np

from tools.canvas import MIDDLE, SHAPE, UNIT, X, Y, bell, both, clouds, darken, disc, ink, paint, shaded, smooth

# colours are BGR in 0..1, the order in which OpenCV writes them
SKINS = np.float32(
    [
        [0.71, 0.82, 0.95],
        [0.67, 0.77, 0.92],
        [0.56, 0.69, 0.88],
        [0.44, 0.58, 0.8],
        [0.32, 0.44, 0.66],
        [0.23, 0.32, 0.5],
    ]
)
HAIRS = np.float32(
    [
        [0.07, 0.07, 0.08],
        [0.09, 0.1, 0.13],
        [0.1, 0.15, 0.23],
        [0.14, 0.22, 0.36],
        [0.12, 0.24, 0.48],
        [0.36, 0.55, 0.72],
    ]
)
IRISES = np.float32(
    [[0.08, 0.13, 0.22], [0.12, 0.22, 0.36], [0.22, 0.36, 0.38], [0.55, 0.45, 0.34], [0.42, 0.42, 0.40]]
)
LIPS = np.float32([[0.32, 0.30, 0.70], [0.25, 0.18, 0.66], [0.42, 0.36, 0.78]])
GREY = np.float32([0.68, 0.69, 0.70])


# ---- a person: p holds the traits that invent() gave them --------------------------------------------------------


def invent(rng: np.random.Generator, gender: int, age: int) -> SimpleNamespace:
    """The traits of a random person: lengths in units, shares in 0..1.

    gender: 0 male, 1 female; age: years, 60 is 60 or more. `lean` draws a trait that depends on gender, `worn` one that
    grows with the age that the person looks.
    """
    looks = age + rng.normal() * 2.0 + (rng.uniform(2, 14) if age >= 60 else 0)
    uniform = rng.uniform

    def lean(weight, scale, middle, low, high):
        return float(np.clip(middle + scale * (weight * (1 if gender else -1) + rng.normal()), low, high))

    def worn(start, full):
        return float(np.clip((looks + rng.normal() * 3 - start) / (full - start), 0, 1.15))

    tone, length, wall, cloth = (
        uniform(0, len(SKINS) - 1.01),
        lean(2.4, 1, 0, -9, 9),
        uniform(0.45, 0.85),
        uniform(0.1, 0.7),
    )
    skin = SKINS[int(tone)] * (1 - tone % 1) + SKINS[int(tone) + 1] * (tone % 1) + rng.normal(size=3) * 0.008
    rough = worn(28, 60)
    return SimpleNamespace(
        skin=np.float32(skin + (skin.mean() - skin) * 0.22 * rough),
        rough=rough,
        hair=HAIRS[rng.choice(6, p=[0.28, 0.24, 0.20, 0.13, 0.07, 0.08])] * uniform(0.8, 1.25),
        iris=IRISES[rng.choice(5, p=[0.4, 0.25, 0.15, 0.12, 0.08])],
        wide=uniform(0.97, 1.08),
        jaw=lean(-1.3, 0.07, 0.04, -0.16, 0.26),
        neck=lean(-1, 0.11, 1.5, 1.25, 1.8),
        ears=uniform(0.85, 1.1),
        brow=lean(-2, 0.028, 0.135, 0.05, 0.24),
        brow_y=uniform(-0.76, -0.64),
        arch=lean(0.6, 0.05, 0.1, 0, 0.22),
        ridge=lean(-1.2, 0.08, 0.15, 0, 0.34),
        open=lean(0.4, 0.10, 1.05, 0.8, 1.3),
        tilt=uniform(-0.04, 0.10),
        lash=lean(2, 0.22, 0.45, 0, 1),
        shadow=lean(1.8, 0.2, 0.05, 0, 0.6),
        nose=lean(-0.5, 0.08, 1, 0.82, 1.2),
        nose_y=uniform(-0.10, 0.10),
        mouth=uniform(0.74, 0.92),
        full=lean(0.6, 0.14, 1, 0.7, 1.45),
        lips=lean(2, 0.22, 0.45, 0.08, 1),
        lip_colour=LIPS[rng.integers(3)],
        stubble=max(0, rng.normal() * 0.3 + 0.5) * (1 - gender),
        length="long" if length > 2.1 else "bob" if length > 0 else "short",
        reach=uniform(0, 1),
        volume=uniform(0.2, 0.55),
        fringe=uniform(0, 1) < 0.3,
        sweep=uniform(-0.28, 0.28),
        parting=uniform(0.38, 0.62),
        curl=max(0, rng.normal() * 0.06),
        upward=uniform(0, 1) < 0.45,
        recede=worn(24, 62) * (uniform(0.1, 0.35) if gender else uniform(0.35, 1.1)),
        grey=worn(36, 59),
        lined=worn(26, 60),
        folds=worn(24, 60),
        bags=worn(26, 60),
        sag=worn(32, 66),
        thin=worn(34, 64),
        glasses=uniform(0, 1) < 0.22,
        rim=rng.random(3) * 0.35,
        lens=uniform(0.46, 0.62),
        backdrop=rng.integers(3),
        wall=np.float32(wall + rng.normal(size=3) * 0.04),
        collar=rng.integers(4),
        cloth=np.float32(np.clip(cloth + rng.normal(size=3) * 0.10, 0.03, 0.92)),
        stripes=uniform(0, 1) < 0.2,
        chin=lean(-0.6, 0.06, 3.62, 3.5, 3.8),
        seed=int(rng.integers(2**31)),
    )


def head_edge(p: SimpleNamespace) -> np.ndarray:
    """The right half of the head's outline, crown to chin: (10, 2) units."""
    low = p.jaw + p.sag * 0.1
    return np.array(
        [
            (0, -3.42),
            (1.3, -2.95),
            (1.98, -2),
            (2.16, -1),
            (2.18, 0),
            (2.1 + low * 0.2, 1),
            (1.84 + low, 2),
            (1.38 + low * 1.1, 2.85),
            (0.70 + low * 0.6, 3.42),
            (0, p.chin),
        ]
    ) * (p.wide, 1)


def relief(p, rng):
    """The face's height towards the viewer in units, and the depth of its fine folds, 0..1.6: two (rows, columns)."""
    tip = 1.30 + p.nose_y
    height = 2.1 * np.sqrt(np.clip(1 - np.abs(X / (2.3 * p.wide)) ** 2.3 - np.abs((Y - 0.1) / 3.75) ** 2.6, 0, 1))
    for *place, up in (
        (0, 0.45, 0.24, 0.60, 0.24),
        (0, tip, 0.33 * p.nose, 0.30, 0.36),
        (0.36 * p.nose, tip + 0.14, 0.19, 0.17, 0.19),  # nose
        (1, -0.08, 0.58, 0.36, -0.28),
        (1, 0.03, 0.38, 0.22, 0.15),
        (0.85, -0.55, 0.65, 0.2, p.ridge),  # sockets, eyes, ridge
        (1, 0.42, 0.4, 0.14, 0.13 * p.bags),
        (1.28, 1.15, 0.60, 0.50, 0.20 - 0.12 * p.sag),
        (1.45, 2.1, 0.42, 0.6, -0.10),
        (1.38, 2.75, 0.32, 0.34, 0.26 * p.sag),
        (0, 2.12, p.mouth * 0.7, 0.14, 0.09 * p.full),
        (0, 2.50, p.mouth * 0.6, 0.15, 0.14 * p.full),  # lips
        (0, 1.84, 0.1, 0.14, -0.05),
        (0, 2.86, 0.5, 0.14, -0.09),
        (0, 3.25, 0.45, 0.32, 0.18),
    ):
        height += bell(*place) * up
    w = rng.normal(size=(3, 4)) * 0.05
    forehead = [
        smooth((-1.3 + a, y + 0.12), (-0.6, y + b), (0, y + 0.06), (0.6, y + c), (1.3 + d, y + 0.12))
        for y, (a, b, c, d) in zip((-1.95, -1.62, -1.28), w, strict=True)
    ]
    crow = [curve for y in (-0.26, 0.04, 0.34) for curve in both((1.60, 0.02 + y * 0.4), (1.82, y), (2.0, y * 1.6))]
    frown = both((0.16, -0.85), (0.20, -0.6), (0.14, -0.38))
    bags = both((0.58, 0.26), (0.95, 0.52), (1.38, 0.40)) + both((0.70, 0.44), (1.0, 0.66), (1.3, 0.60))
    cheek = both((0.50, 1.30), (0.82, 1.62), (1.02, 2.1), (1.05, 2.45 + 0.3 * p.sag))
    fine = ink(*forehead, *crow, *frown, soft=1.5, width=3) * p.lined + ink(*bags, soft=1.5, width=3) * p.bags
    fine += ink(*cheek, soft=2.2, width=3) * p.folds * 1.7
    fine += ink(*both((0.92, 2.45), (1.02, 2.75), (0.95, 3.1)), soft=1.8, width=2) * p.sag
    return height, np.minimum(fine, 1.6)


def draw_skin(canvas, p, rng):
    """Draw the neck, the ears and the face with its folds, without eyes, brows and mouth."""
    edge = head_edge(p)
    around = np.concatenate([edge, edge[-2:0:-1] * (-1, 1)])
    # the curve overlaps itself by a few points, so that rounding leaves no seam at the crown
    head = ink(smooth(*around[-4:], *around, *around[:5], count=260)[40:-40], soft=0.7)
    shadow = cv2.stackBlur(np.roll(head, int(UNIT * 0.5), 0), (47, 47))  # the chin's
    neck = [(-p.neck - 0.8, 5.2), (-p.neck, 4.2), (-p.neck * 0.98, 2.2)]
    neck = ink(smooth(*neck, *[(-x, y) for x, y in neck[::-1]], count=60), soft=1)
    paint(canvas, neck, shaded(p.skin, 0.97 - 0.42 * shadow), (X / p.neck * -0.8, 0))
    for side in (-1, 1):
        colour = shaded(p.skin * (0.93, 0.90, 0.97), 1 - 0.3 * bell(2.3 * p.wide, 0.4, 0.14, 0.34))
        ear = ink(disc(side * 2.20 * p.wide, 0.42, 0.28 * p.ears, 0.60 * p.ears), soft=0.8)
        paint(canvas, ear, colour, ((X - side * 1.9) * -0.6, 0))
    height, fine = relief(p, rng)
    height = cv2.GaussianBlur(height, (0, 0), 1.5) - fine * 0.04
    slope = [np.clip(cv2.Sobel(height, cv2.CV_32F, *d, ksize=3, scale=UNIT / 8), -2, 2) for d in ((1, 0), (0, 1))]
    hollow = np.clip(cv2.stackBlur(height, (41, 41)) - height, -0.05, 0.2)
    blotches = clouds(rng, 60) * (0.012 + 0.03 * p.rough) + clouds(rng, 22) * (0.010 + 0.025 * p.rough)
    paint(canvas, head, shaded(p.skin, 1 + blotches - hollow * 1.4 - fine * 0.17), slope)
    flush = bell(1.3, 1.15, 0.55, 0.45) + bell(0, 1.35, 0.3, 0.25) * 0.5
    darken(canvas, flush * (1.2 - p.rough), (0.12, 0.13, 0))
    darken(canvas, bell(1, 0.30, 0.48, 0.20) * (0.06 + 0.16 * p.bags) + bell(1, -0.12, 0.6, 0.3) * 0.12, (0.8, 1, 1))
    darken(canvas, bell(1, -0.20, 0.5, 0.2) * p.shadow, (0.35, 0.6, 0.5))
    beard = smooth((-2, 0.9), (-1.3, 1.75), (0, 1.72), (1.3, 1.75), (2, 0.9), (1.7, 3), (0, 3.9), (-1.7, 3), (-2, 0.9))
    darken(canvas, ink(beard, soft=9) * head * (1 - bell(0, 2.3, 0.6, 0.3)) * p.stubble, (0.40, 0.48, 0.55))
    nostrils = both((0.17 * p.nose, 1.54 + p.nose_y), (0.26 * p.nose, 1.56 + p.nose_y))
    darken(canvas, ink(*nostrils, soft=1.4, width=4) * 0.65)


def draw_eyes(canvas, p, rng):
    """Draw the eyes with lids and lashes, the brows and the glasses."""
    gaze, top, low = rng.uniform(-0.04, 0.04), 0.21 * p.open - 0.05 * p.sag, 0.13 * p.open
    hairs = p.hair * 0.75 * (1 - 0.6 * p.grey) + GREY * 0.6 * p.grey
    y, a, b = p.brow_y, p.arch, p.brow
    for side in (-1, 1):
        lid = smooth((0.56, 0.06), (0.72, -top * 0.75), (1, -top), (1.28, -top * 0.72 - p.tilt * 0.6), (1.47, -p.tilt))
        rim = smooth((1.47, -p.tilt), (1.25, low * 0.8), (1, low), (0.75, low * 0.85), (0.56, 0.06))
        lid, rim = lid * (side, 1), rim * (side, 1)
        ball = ink(np.concatenate([lid, rim]), soft=0.5)
        lit = np.clip(1 - 0.35 * np.clip(1 - (Y + top) / 0.16, 0, 1) - 0.3 * np.abs(X - side), 0, 1)
        paint(canvas, ball, shaded((0.86, 0.87, 0.90), lit))
        iris = disc(side + gaze, -0.02, 0.2, 0.2)
        paint(canvas, ball * ink(iris, soft=0.6), p.iris)
        paint(canvas, ball * ink(iris, soft=0.6, width=2), p.iris * 0.5)
        paint(canvas, ball * ink(disc(side + gaze, -0.02, 0.085, 0.085), soft=0.5), 0.03)
        paint(canvas, ink(disc(side + gaze - 0.07, -0.1, 0.035, 0.035), soft=0.4), 0.97)
        paint(canvas, ink(lid - (0, 0.02), soft=0.5, width=2) * (0.65 + 0.35 * p.lash), p.skin * (0.28 - 0.17 * p.lash))
        paint(canvas, ink(lid[15:] + (0.03 * side, -0.04), soft=0.6, width=2) * p.lash, p.skin * 0.1)
        paint(canvas, ink(rim, soft=0.6, width=1) * 0.45, p.skin * 0.5)
        paint(canvas, ink(lid[2:-2] - (0, 0.14 - 0.05 * p.sag), soft=0.7, width=1) * 0.55, p.skin * 0.55)
        above = smooth((0.40, y + 0.05), (0.8, y - a * 0.5 - b * 0.5), (1.25, y - a - b * 0.4), (1.72, y + 0.04))
        below = smooth((1.72, y + 0.06), (1.25, y - a + b * 0.5), (0.8, y - a * 0.5 + b), (0.44, y + b * 1.3))
        brow = ink(np.concatenate([above, below]) * (side, 1), soft=1.3)
        paint(canvas, brow * np.clip(0.78 - 0.2 * p.thin + clouds(rng, 90) * 0.12, 0, 1), hairs)
    if p.glasses:
        frame = [disc(side * 1.03, 0.08, 0.72, p.lens) for side in (-1, 1)]
        paint(canvas, ink(*frame, soft=1) * 0.08, 1)
        frame += [smooth((-0.32, 0.02), (0, -0.06), (0.32, 0.02)), *both((1.72, -0.05), (2.1, -0.12))]
        paint(canvas, ink(*frame, soft=0.6, width=3) * 0.9, p.rim)


def draw_mouth(canvas, p):
    """Draw the lips and the line between them, its corners a little up."""
    m, f = p.mouth, 0.8 + 0.2 * p.full - 0.25 * p.thin
    line = smooth((-m, 2.24), (-m * 0.5, 2.29), (0, 2.32), (m * 0.5, 2.29), (m, 2.24))
    upper = smooth(
        (m, 2.24),
        (m * 0.5, 2.13 - 0.05 * f),
        (0.13, 2.17 - 0.13 * f),
        (0, 2.21 - 0.11 * f),
        (-0.13, 2.17 - 0.13 * f),
        (-m * 0.5, 2.13 - 0.05 * f),
        (-m, 2.24),
    )
    lower = smooth((m, 2.24), (m * 0.6, 2.45 + 0.06 * f), (0, 2.50 + 0.13 * f), (-m * 0.6, 2.45 + 0.06 * f), (-m, 2.24))
    tint = p.skin * np.float32([0.62, 0.62, 0.86]) * (1 - p.lips) + p.lip_colour * p.lips
    paint(canvas, ink(np.concatenate([line, upper]), soft=1) * 0.85, tint * 0.9)
    paint(canvas, ink(np.concatenate([line, lower]), soft=1) * 0.85, tint)
    darken(canvas, ink(line, soft=0.8, width=2) * 0.6)


def hair_edges(p):
    """Outer and inner edge of the hair in front, from its left end over the top to its right end: two (81, 2) units."""
    grow, back = p.volume * (1 - 0.45 * p.thin), p.recede * 0.75
    outer = head_edge(p)[:6] * (1 + grow / 2.4, 1 + grow / 3.4)
    inner = np.array(
        [
            (0, -2.05 - back * 0.9),
            (0.7, -2.15 - back * 1.4),
            (1.35, -1.85 - back * 1.1),
            (1.80, -1.2 - back * 0.4),
            (1.95, -0.5),
            (2.02, 0.35),
        ]
    ) * (p.wide, 1)
    if p.fringe and p.recede < 0.4:
        inner[:3] = (0, -1.12), (0.75, -1.08), (1.45, -0.98)
    if p.length != "short":
        end = 2.2 + 1.6 * p.reach if p.length == "bob" else 4.4 + 2 * p.reach
        outer = [*outer[:5], (2.5 + grow * 0.8, 1.2), (2.48 + grow * 0.9, end * 0.7), (2.25 + grow * 0.6, end)]
        inner = [*inner[:4], (1.95 * p.wide, -0.2), (1.92 * p.wide, 1.2), (1.86, end * 0.7), (1.78, end)]
    outer, inner = (smooth(*np.multiply(edge[:0:-1], (-1, 1)), *edge, count=81) for edge in (outer, inner))
    if p.recede < 0.72:
        inner[:, 1] += p.sweep * inner[:, 0] * np.exp(-((inner[:, 0] / 1.4) ** 2))
    return outer, inner


def draw_hair(canvas, p, rng):
    """Draw the hair in front: a soft shape with some hundred strands on it, some of them grey."""
    outer, inner = hair_edges(p)
    cover = np.full(SHAPE, 1 - 0.3 * p.thin, np.float32)
    if p.recede > 0.72:  # a bald head keeps the hair at its sides
        cover *= np.clip((np.abs(X) - 1.25 * p.wide + 0.25 * Y) * 2, 0, 1)
    slope = np.clip(X / 2.3, -1, 1) * -0.7, np.clip((Y + 0.5) / 3.4, -1, 0.3) * 0.8
    colour = p.hair * (1 - 0.8 * p.grey) + GREY * 0.8 * p.grey
    paint(canvas, ink(np.concatenate([outer, inner[::-1]]), soft=1.2) * cover, colour * 0.72, slope)
    # a strand runs along the hair's edge, away from the parting, or across it, up from the forehead
    count, reach = 340, np.linspace(0, 1, 14)
    start, depth = rng.random((2, count, 1))
    if p.upward and p.length == "short":
        along, across = start + reach * rng.normal(size=(count, 1)) * 0.05, depth * 0.5 + reach * 0.75
    else:
        along = start + np.sign(start - p.parting) * reach * rng.uniform(0.10, 0.30, (count, 1))
        across = depth + reach * rng.normal(size=(count, 1)) * 0.12
    across = np.clip(across + np.sin(reach * 14 + start * 60) * p.curl, 0, 1.04)[..., None]
    along = np.clip(along, 0, 1) * (len(outer) - 1)
    index = np.arange(len(outer))
    outer, inner = (np.stack([np.interp(along, index, e[:, axis]) for axis in (0, 1)], -1) for e in (outer, inner))
    strands = np.round(((inner + (outer - inner) * across) * UNIT + MIDDLE) * 16).astype(np.int32)
    shine = 0.62 + 0.75 * rng.random((count, 1)) * (0.75 + 0.5 * np.exp(-(((depth - 0.55) / 0.25) ** 2)))
    silver = np.where(rng.random((count, 1)) < p.grey, 1, 0.4 * p.grey)
    tints = np.clip((p.hair + (GREY - p.hair) * silver) * shine + 0.015, 0, 1) * 255
    layer = np.zeros((*SHAPE, 4), np.uint8)
    for strand, tint in zip(strands, tints.tolist(), strict=True):
        cv2.polylines(layer, [strand], False, (*tint, 255), 2, cv2.LINE_AA, 4)
    # the strands were drawn on black, so their colour is already multiplied by their opacity
    cover *= np.float32(0.75 / 255)
    canvas.colour *= 1 - shaded((1, 1, 1), cover * layer[..., 3])
    canvas.colour += layer[..., :3] * shaded((1, 1, 1), cover)


def draw_surroundings(canvas, p, rng):
    """Draw the backdrop: a wall in uneven light, some with soft patches or panels."""
    canvas.colour[:] = shaded(p.wall, 1 + 0.025 * (X * rng.normal() + Y * rng.normal() + clouds(rng, 4)))
    if p.backdrop == 1:
        for tint in rng.normal(size=(3, 3)):
            canvas.colour += shaded(0.7 + 0.5 * tint, clouds(rng, 7) * 0.025)
    if p.backdrop == 2:
        for _ in range(rng.integers(2, 5)):
            left, top, wide = rng.uniform(-6, 5), rng.uniform(-7, 0), rng.uniform(1, 4)
            panel = ink([(left, top), (left + wide, top), (left + wide, 9), (left, 9)], soft=rng.uniform(1, 4))
            paint(canvas, panel * rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.8) + rng.normal(size=3) * 0.05)


def draw_clothes(canvas, p, rng):
    """Draw the shoulders with a collar: round, V, shirt or turtleneck."""
    half = np.array([(0, (4.6, 5.9, 5.1, 4.0)[p.collar]), (p.neck + 0.4, 4.2), (4.0, 4.95), (5.6, 5.9), (9, 9.5)])
    edge = smooth(*half[:0:-1] * (-1, 1), *half, count=80)
    colour = shaded(p.cloth, 1 + 0.10 * clouds(rng, 7) + 0.02 * clouds(rng, 200))
    if p.stripes:
        colour += ((np.sin(Y * 9 + 0.15 * X * X) > 0.3) * np.float32(0.2))[..., None]
    paint(canvas, ink(edge, soft=1), colour, (np.clip(X / 5, -1, 1) * -0.6 + 0.2 * clouds(rng, 8), -0.25))
    darken(canvas, ink(edge[28:52] + (0, 0.16), soft=1.2, width=2) * 0.3)
    if p.collar == 2:
        flap = np.array([(p.neck + 0.3, 3.95), (p.neck + 0.9, 4.6), (0.75, 6.1), (0.02, 5.1)])
        paint(canvas, ink(flap, flap * (-1, 1), soft=0.8), np.clip(p.cloth * 1.2 + 0.06, 0, 1))


def portrait(p: SimpleNamespace) -> SimpleNamespace:
    """A person on a canvas (tools.canvas), without a mask."""
    rng = np.random.default_rng(p.seed)
    canvas = SimpleNamespace(colour=np.zeros((*SHAPE, 3), np.float32), slope=list(np.zeros((2, *SHAPE), np.float32)))
    draw_surroundings(canvas, p, rng)
    if p.length != "short":
        paint(
            canvas, ink(hair_edges(p)[0], soft=1.5), (p.hair * (1 - p.grey) + GREY * p.grey) * 0.45
        )  # behind the neck
    draw_skin(canvas, p, rng)
    draw_clothes(canvas, p, rng)
    draw_eyes(canvas, p, rng)
    draw_mouth(canvas, p)
    draw_hair(canvas, p, rng)
    return canvas
