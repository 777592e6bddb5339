"""Captioned pictures that are not chests: symmetric figures with names, plates with wavy rims, soft ellipses, curved stripes,
thin curves and markers.

The miniature is pre-trained on these alone. They share with radiographs only what an auto-encoder needs (soft edges, fine
curves, grey levels) and the words of position, size and degree; no anatomy is drawn here. The figures are there because a
base that has only seen things at random places cannot be taught an order by a few of its parameters.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np

SIZE = 64  # pixels a side
CURVE_POINTS = 20  # samples along a thin curve; neighbours are then less than three pixels apart
PLATES, ELLIPSES, STRIPES, CURVES, MARKERS = 10, 6, 2, 3, 2  # most shapes of a kind in one picture
GREY_SHARE = 0.7  # radiographs are grey; colour keeps the three channels of the auto-encoder from collapsing

COLOURS = {"red": (1, 0.25, 0.2), "green": (0.3, 0.9, 0.3), "blue": (0.25, 0.4, 1), "yellow": (1, 0.9, 0.3)}
ROWS, COLUMNS = ("upper", "mid", "lower"), ("left", "middle", "right")
GROUNDS = ("black", "dark", "grey", "light")
LIGHTEST = 0.85  # ground level
FIGURE_SHARE = 0.75  # of the pictures: whole things in their usual order, which a name calls up, as in most photographs
FIGURES = ("vase", "mask", "leaf", "butterfly", "bottle", "lantern", "shield", "beetle", "cup", "bell", "owl", "fish", "pear", "kettle", "tent", "crown",
           "violin", "anchor", "moth", "urn", "helmet", "tulip", "acorn", "lyre", "castle", "robot", "jug", "pine", "crab", "turtle", "shell", "clock", "lamp", "drum",
           "harp", "frog", "rabbit", "cactus", "tower", "boat", "kite", "apple", "candle", "goblet", "spider", "orchid")


def words() -> tuple[str, ...]:
    """The vocabulary of reports, each word of which names one shape of its own (`named_ellipse`)."""
    return tuple((files("trainers.miniature") / "words.txt").read_text().split())


@dataclass
class Scene:
    """Shapes of one picture in units of the picture's side (0..1), and the phrases that describe them."""

    ground: tuple[float, float, float, float]  # level, slope in x, slope in y, amplitude of the smooth field
    plates: list[tuple] = field(default_factory=list)  # x, y, radius x, radius y, angle, power, edge, level, slopes, rim's waves
    ellipses: list[tuple] = field(default_factory=list)  # x, y, radius x, radius y, angle, softness, delta
    stripes: list[tuple] = field(default_factory=list)  # x, y, radius, angle, cycles, bend, phase, sharpness, delta
    curves: list[tuple] = field(default_factory=list)  # x0, y0, x1, y1, x2, y2, width, delta
    markers: list[tuple] = field(default_factory=list)  # x, y, width, height, delta
    grain: float = 0.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    phrases: list[str] = field(default_factory=list)

    @property
    def caption(self) -> str:
        return ", ".join(self.phrases)


def chance_of(word: str) -> np.random.Generator:
    """The random numbers that belong to a word, on every machine the same."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big"))


def ground_phrase(level: float) -> str:
    return f"{GROUNDS[min(int(level / LIGHTEST * 4), 3)]} ground"


def named_ellipse(word: str) -> tuple:
    """The one ellipse that `word` stands for, the same in every picture: place, size and sign come from its hash."""
    rng = chance_of(word)
    x, y = rng.uniform(0.15, 0.85, 2)
    rx, ry = np.exp(rng.uniform(np.log(0.06), np.log(0.25), 2))
    return (x, y, rx, ry, rng.uniform(0, np.pi), rng.uniform(0.1, 0.5), rng.choice([-1, 1]) * rng.uniform(0.25, 0.6))


def place(x: float, y: float) -> str:
    return f"{ROWS[min(int(y * 3), 2)]} {COLUMNS[min(int(x * 3), 2)]}"


def compose(rng: np.random.Generator, vocabulary: tuple[str, ...]) -> Scene:
    """One random scene with its caption; everything that a reader of the caption could ask for is in it."""
    level = rng.uniform(0.02, LIGHTEST)
    scene = Scene((level, *rng.normal(0, 0.15, 2), rng.choice([0.0, rng.uniform(0.02, 0.25)])))
    scene.phrases.append(ground_phrase(level))
    if rng.random() > GREY_SHARE:
        colour = rng.choice(list(COLOURS))
        scene.tint = COLOURS[colour]
        scene.phrases.append(str(colour))
    figure = rng.random() < FIGURE_SHARE
    if figure:
        add_figure(scene, rng)
    for _ in range(rng.integers(0, 2) if figure else rng.integers(1, 5)):
        add_plate(scene, rng, largest=0.15 if figure else 0.6)
    for _ in range(rng.integers(0, 2 if figure else 3)):
        x, y = rng.uniform(0.05, 0.95, 2)
        rx, ry = np.exp(rng.uniform(np.log(0.03), np.log(0.35), 2))
        delta = rng.choice([-1, 1]) * rng.uniform(0.06, 0.5)
        scene.ellipses.append((x, y, rx, ry, rng.uniform(0, np.pi), rng.uniform(0.03, 0.8), delta))
        scene.phrases.append(f"{size_of(rx, ry)} {'bright opacity' if delta > 0 else 'dark lucency'} {place(x, y)}")
    for word in rng.choice(vocabulary, rng.integers(0, 3), replace=False):
        scene.ellipses.append(named_ellipse(word))
        scene.phrases.append(str(word))
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        x, y, radius = *rng.uniform(0.1, 0.9, 2), rng.uniform(0.15, 0.7)
        cycles, delta = rng.uniform(3, 11), np.exp(rng.uniform(np.log(0.02), np.log(0.2)))
        scene.stripes.append((x, y, radius, rng.uniform(0, np.pi), cycles, rng.normal(0, 0.8),
                              rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 4), delta))
        scene.phrases.append(f"{'mild' if delta < 0.06 else 'marked'} {'fine' if cycles > 6.5 else 'coarse'} stripes {place(x, y)}")
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 3])):
        points = np.clip(rng.uniform(-0.1, 1.1, 2) + np.concatenate([np.zeros(2), rng.normal(0, 0.4, 4)]).reshape(3, 2), -0.2, 1.2)
        scene.curves.append((*points.ravel(), rng.uniform(0.5, 1.6) / SIZE, rng.choice([-1, 1, 1, 1]) * rng.uniform(0.15, 0.8)))
        scene.phrases.append(f"thin line {place(*np.clip(points[1], 0, 0.99))}")
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        x, y = rng.uniform(0.05, 0.95, 2)
        scene.markers.append((x, y, *rng.uniform(0.015, 0.09, 2), rng.choice([-1, 1, 1]) * rng.uniform(0.3, 0.9)))
        scene.phrases.append(f"marker {place(x, y)}")
    scene.grain = rng.choice([0.0, rng.uniform(0, 0.03)])
    tail = scene.phrases[1:]
    rng.shuffle(tail)
    scene.phrases[1:] = tail
    return scene


def size_of(rx: float, ry: float) -> str:
    return ("small", "moderate", "large")[min(int(np.sqrt(rx * ry) / 0.1), 2)]


def prototype(name: str) -> tuple[float, np.ndarray]:
    """Ground level and plates of the figure that `name` stands for, the same in every picture: a body in the middle and up to
    three mirrored pairs of parts, of a form and grey that come from the name's hash."""
    rng = chance_of(name)

    def part(x, y, rx, ry, level):
        return (x, y, rx, ry, 0.0, rng.uniform(1.7, 4), rng.uniform(1, 4), level, 0.0, rng.normal(0, 0.08),
                rng.normal(0, 0.12), 0.0, rng.normal(0, 0.07), np.pi / 2)

    ground, body = rng.permutation([rng.uniform(0.03, 0.4), rng.uniform(0.5, 0.9)])
    plates = [part(0.5, rng.uniform(0.45, 0.6), rng.uniform(0.25, 0.48), rng.uniform(0.28, 0.5), body)]
    for _ in range(rng.integers(1, 4)):
        x, y, rx, ry = rng.uniform(0.12, 0.4), rng.uniform(0.15, 0.85), *np.exp(rng.uniform(np.log(0.06), np.log(0.2), 2))
        left = part(x, y, rx, ry, rng.uniform(0.05, 0.95))
        plates += [left, (1 - x, *left[1:])]
    if rng.random() < 0.5:
        plates.append(part(0.5, rng.uniform(0.2, 0.8), rng.uniform(0.03, 0.15), rng.uniform(0.06, 0.4), rng.uniform(0.05, 0.95)))
    return float(ground), np.array(plates)


def add_figure(scene: Scene, rng: np.random.Generator) -> None:
    """A figure that no two pictures have alike: moved, scaled and with its parts varied; over a ground of its own."""
    name = str(rng.choice(FIGURES))
    ground, plates = prototype(name)
    plates = plates.copy()
    level = float(np.clip(ground + rng.normal(0, 0.06), 0.02, LIGHTEST))
    scene.ground = (level, *rng.normal(0, 0.05, 2), rng.choice([0.0, rng.uniform(0.02, 0.1)]))
    scene.phrases[0] = ground_phrase(level)
    count = len(plates)
    plates[:, :2] += rng.normal(0, 0.025, 2) + rng.normal(0, 0.015, (count, 2))
    plates[:, 2:4] *= np.exp(rng.normal(0, 0.08) + rng.normal(0, 0.1, (count, 2)))
    plates[:, 4] += rng.normal(0, 0.04) + rng.normal(0, 0.05, count)
    plates[:, 7] = np.clip(plates[:, 7] + rng.normal(0, 0.05) + rng.normal(0, 0.05, count), 0, 1)
    plates[:, 8] += rng.normal(0, 0.05, count)
    plates[:, 10] += rng.normal(0, 0.05, count)
    plates[:, 12] += rng.normal(0, 0.04, count)
    scene.plates += [tuple(plate) for plate in plates]
    scene.phrases.append(name)


def add_plate(scene: Scene, rng: np.random.Generator, largest: float = 0.6) -> None:
    """A shape that hides what is under it, from ellipse to rounded box, with a wavy rim and a slope of grey; some come in mirrored pairs."""
    x, y = rng.uniform(-0.05, 1.05, 2)
    rx, ry = np.exp(rng.uniform(np.log(0.07), np.log(largest), 2))
    angle, power = rng.choice([0.0, rng.normal(0, 0.3), rng.uniform(0, np.pi)]), rng.uniform(1.6, 5)
    edge = rng.choice([rng.uniform(0.7, 1.6), rng.uniform(1, 8)])  # pixels
    level, slopes = rng.uniform(0, 1), rng.normal(0, 0.12, 2)
    waves = (rng.normal(0, 0.12), rng.uniform(0, 2 * np.pi), rng.normal(0, 0.07), rng.uniform(0, 2 * np.pi))
    scene.plates.append((x, y, rx, ry, angle, power, edge, level, *slopes, *waves))
    if rng.random() < 0.35:
        a2, p2, a3, p3 = waves
        scene.plates.append((1 - x, y, rx, ry, -angle, power, edge, level, -slopes[0], slopes[1], a2, -p2, -a3, -p3))
    scene.phrases.append(f"{size_of(rx, ry)} {'bright' if level > 0.5 else 'dark'} plate {place(np.clip(x, 0, 0.99), np.clip(y, 0, 0.99))}")


def table(scenes: list[Scene], kind: str, most: int, width: int) -> np.ndarray:
    """The shapes of one kind: (scenes, most, width), rows of zeros where a scene has fewer (delta 0 draws nothing)."""
    out = np.zeros((len(scenes), most, width), np.float32)
    out[..., 2:4] = 1.0  # radii of absent shapes: anything but zero
    for row, scene in zip(out, scenes):
        shapes = getattr(scene, kind)[:most]
        if shapes:
            row[: len(shapes)] = shapes
    return out


def soft_step(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def render(scenes: list[Scene], rng: np.random.Generator) -> np.ndarray:
    """Pictures of the scenes: (n, 64, 64, 3) uint8."""
    n = len(scenes)
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    y, x = np.meshgrid(axis, axis, indexing="ij")
    ground = np.array([s.ground for s in scenes], np.float32)[..., None, None]
    image = ground[:, 0] + ground[:, 1] * (x - 0.5) + ground[:, 2] * (y - 0.5) + ground[:, 3] * smooth_field(n, rng)

    image = over_plates(image, table(scenes, "plates", PLATES, 14), x, y)
    x0, y0, rx, ry, angle, softness, delta = np.moveaxis(table(scenes, "ellipses", ELLIPSES, 7), 2, 0)[..., None, None]
    u = ((x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)) / rx
    v = ((y - y0) * np.cos(angle) - (x - x0) * np.sin(angle)) / ry
    edge = np.maximum(softness, 0.6 / SIZE / np.minimum(rx, ry))  # no edge is sharper than a pixel
    for k in range(ELLIPSES):
        image += delta[:, k] * soft_step((1 - np.sqrt(u[:, k] ** 2 + v[:, k] ** 2)) / edge[:, k] * 2)

    x0, y0, radius, angle, cycles, bend, phase, sharp, delta = np.moveaxis(table(scenes, "stripes", STRIPES, 9), 2, 0)[..., None, None]
    u = (x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)
    v = (y - y0) * np.cos(angle) - (x - x0) * np.sin(angle)
    wave = np.tanh(sharp * np.sin(2 * np.pi * cycles * (u + bend * v**2) + phase)) * soft_step((radius - np.hypot(u, v)) / 0.06)
    image += (delta * wave).sum(1)

    image += thin_curves(table(scenes, "curves", CURVES, 8), x, y)
    x0, y0, w, h, delta = np.moveaxis(table(scenes, "markers", MARKERS, 5), 2, 0)[..., None, None]
    inside = soft_step((w - np.abs(x - x0)) * SIZE * 3) * soft_step((h - np.abs(y - y0)) * SIZE * 3)
    image += (delta * inside).sum(1)

    image += np.array([s.grain for s in scenes], np.float32)[:, None, None] * rng.standard_normal(image.shape, np.float32)
    tinted = np.clip(image, 0, 1)[..., None] * np.array([s.tint for s in scenes], np.float32)[:, None, None, :]
    return np.round(tinted * 255).astype(np.uint8)


def over_plates(image: np.ndarray, shapes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Plates laid over the pictures in order: image (n, 64, 64), shapes (n, k, 14); a plate with edge 0 is absent."""
    for k in range(shapes.shape[1]):
        drawn = np.flatnonzero(shapes[:, k, 6])
        if not len(drawn):
            continue
        x0, y0, rx, ry, angle, power, edge, level, su, sv, a2, p2, a3, p3 = shapes[drawn, k].T[..., None, None]
        u = ((x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)) / rx
        v = ((y - y0) * np.cos(angle) - (x - x0) * np.sin(angle)) / ry
        theta = np.arctan2(v, u)
        rim = 1 + a2 * np.cos(2 * theta + p2) + a3 * np.cos(3 * theta + p3)
        radius = (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)
        cover = soft_step((rim - radius) * np.minimum(rx, ry) * SIZE * 4 / edge)
        image[drawn] += cover * (level + su * u + sv * v - image[drawn])
    return image


def thin_curves(shapes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Quadratic Bézier curves as lines of their width: shapes (n, k, 8), x and y (64, 64) → (n, 64, 64)."""
    t = np.linspace(0, 1, CURVE_POINTS, dtype=np.float32)
    out = np.zeros((len(shapes), *x.shape), np.float32)
    for k in range(shapes.shape[1]):
        drawn = np.flatnonzero(shapes[:, k, 7])
        if not len(drawn):
            continue
        p = shapes[drawn, k]
        basis = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])
        px, py = p[:, 0:6:2] @ basis, p[:, 1:6:2] @ basis
        nearest = np.full((len(drawn), *x.shape), np.inf, np.float32)
        for i in range(CURVE_POINTS - 1):
            ax, ay = px[:, i, None, None], py[:, i, None, None]
            dx, dy = px[:, i + 1, None, None] - ax, py[:, i + 1, None, None] - ay
            s = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx**2 + dy**2 + 1e-9), 0, 1)
            np.minimum(nearest, (x - ax - s * dx) ** 2 + (y - ay - s * dy) ** 2, out=nearest)
        width, delta = p[:, 6, None, None], p[:, 7, None, None]
        out[drawn] += delta * soft_step((width - np.sqrt(nearest)) * SIZE * 3)
    return out


def smooth_field(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random field without detail: n × 6 × 6 normal numbers, interpolated by cosine bumps to (n, 64, 64)."""
    knots = 6
    centres = np.linspace(0, 1, knots)
    axis = (np.arange(SIZE) + 0.5) / SIZE
    bump = np.clip(1 - np.abs(axis[:, None] - centres) * (knots - 1), 0, 1)
    bump = (0.5 - 0.5 * np.cos(np.pi * bump)).astype(np.float32)
    return np.einsum("yi,nij,xj->nyx", bump, rng.standard_normal((n, knots, knots), np.float32), bump)


def draw(n: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """n pictures with captions, the same for the same seed: (n, 64, 64, 3) uint8 and n strings."""
    rng = np.random.default_rng(seed)
    vocabulary = words()
    pictures, captions = [], []
    for start in range(0, n, 64):
        scenes = [compose(rng, vocabulary) for _ in range(min(64, n - start))]
        pictures.append(render(scenes, rng))
        captions += [scene.caption for scene in scenes]
    return np.concatenate(pictures), captions
