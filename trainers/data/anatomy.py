"""The normal chest of a phantom: a patient's anatomy as numbers, and its projection as smooth layers on a grid.
Findings are drawn onto it in `findings`; files are written in `phantoms`.

Coordinates: u runs from -1 (the picture's left, the patient's right) to 1, v from -1 (top) to 1 (bottom).
`a` is the distance from the midline towards one side, so that left and right share their formulas."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, fields

import numpy as np

SIDES = {"right": -1.0, "left": 1.0}  # as the radiologist names them: the patient's right is the picture's left


FOG, ROOF = 0.08, 0.88  # darkest and brightest grey of a film, 0..1: with them its contrast is that of real radiographs

def between(low: float, high: float):
    """A field that is drawn uniformly from low..high for each patient."""
    return field(metadata={"range": (low, high)})


@dataclass(frozen=True)
class Anatomy:
    """One patient's body, in units of half a picture's side unless it says otherwise."""

    shoulder_width: float = between(0.86, 1.2)
    shoulder_height: float = between(-1.0, -0.82)
    waist_width: float = between(0.72, 1.1)
    neck_width: float = between(0.16, 0.26)
    tissue: float = between(0.5, 0.68)  # attenuation of the body without lungs

    lung_top: float = between(-0.82, -0.62)
    lung_width: float = between(0.52, 0.74)
    lung_taper: float = between(2.0, 4.5)  # exponent: higher is squarer at the apex
    lung_base: float = between(0.38, 0.68)
    left_base_drop: float = between(-0.02, 0.1)
    lung_asymmetry: float = between(-0.05, 0.05)
    lung_air: float = between(0.32, 0.5)  # attenuation that the air takes away
    dome_height: float = between(0.08, 0.24)
    dome_centre: float = between(0.22, 0.36)

    rib_spacing: float = between(0.13, 0.21)
    rib_phase: float = between(0.0, 1.0)  # in spacings
    rib_slope: float = between(-0.1, 0.35)
    rib_bend: float = between(0.2, 0.8)
    rib_width: float = between(0.26, 0.42)  # in spacings
    rib_contrast: float = between(0.04, 0.11)
    front_rib_slope: float = between(0.4, 1.0)
    front_rib_contrast: float = between(0.01, 0.04)

    clavicle_drop: float = between(0.12, 0.26)  # below the lung's apex, at the midline
    clavicle_slope: float = between(0.05, 0.34)
    clavicle_arch: float = between(0.0, 0.08)
    clavicle_contrast: float = between(0.07, 0.16)

    spine_width: float = between(0.06, 0.1)
    spine_contrast: float = between(0.03, 0.1)
    vertebra_height: float = between(0.1, 0.15)
    scoliosis: float = between(-0.05, 0.05)
    scoliosis_phase: float = between(0.0, 6.28)

    heart_length: float = between(0.3, 0.42)
    heart_breadth: float = between(0.2, 0.29)
    heart_tilt: float = between(0.5, 1.05)  # radians
    heart_shift: float = between(0.08, 0.18)
    heart_lift: float = between(0.18, 0.3)  # of its centre above the lung base
    mediastinum_width: float = between(0.09, 0.16)
    aortic_knob: float = between(0.05, 0.11)
    hilum: float = between(0.05, 0.15)
    vessels: float = between(0.02, 0.07)
    vessel_count: float = between(4.0, 9.0)

    breast: float = between(-0.12, 0.1)  # none below 0
    breast_drop: float = between(0.1, 0.35)
    gastric_bubble: float = between(-0.06, 0.12)  # none below 0.03

    exposure: float = between(-0.05, 0.06)
    contrast: float = between(0.95, 1.35)
    gamma: float = between(0.75, 1.25)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Anatomy:
        return cls(**{part.name: float(rng.uniform(*part.metadata["range"])) for part in fields(cls)})


@dataclass(frozen=True)
class Pose:
    """How a patient stands in one study. Small, so that two studies of one patient look alike."""

    turn: float = 0.0  # radians
    zoom: float = 1.0
    right: float = 0.0
    down: float = 0.0
    breath: float = 0.0  # how far the diaphragms are down

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Pose:
        turn, zoom, right, down, breath = rng.normal(0.0, 1.0, 5)
        return cls(0.012 * turn, 1 + 0.012 * zoom, 0.012 * right, 0.012 * down, 0.012 * breath)


def soft(distance: np.ndarray, edge: float) -> np.ndarray:
    """1 where the distance is well below 0, 0 where it is well above, a smooth step of half-width `edge` between."""
    step = np.clip(0.5 - distance / (2 * edge), 0.0, 1.0)
    return step * step * (3 - 2 * step)


def blob(
    chest: Chest, u: float, v: float, radius_u: float, radius_v: float, edge: float, turn: float = 0.0
) -> np.ndarray:
    """A filled ellipse with a soft edge; `edge` is in units of its radius."""
    du, dv = chest.u - u, chest.v - v
    if turn:
        du, dv = np.cos(turn) * du + np.sin(turn) * dv, np.cos(turn) * dv - np.sin(turn) * du
    return soft(np.sqrt((du / radius_u) ** 2 + (dv / radius_v) ** 2) - 1, edge)


def line(chest: Chest, points: list[tuple[float, float]], width: float) -> np.ndarray:
    """A thin smooth line through the points (u, v), `width` wide."""
    shortest = np.full_like(chest.u, 9.0)
    for (u0, v0), (u1, v1) in itertools.pairwise(points):
        along = np.clip(
            ((chest.u - u0) * (u1 - u0) + (chest.v - v0) * (v1 - v0)) / ((u1 - u0) ** 2 + (v1 - v0) ** 2), 0, 1
        )
        np.minimum(
            shortest, (chest.u - u0 - along * (u1 - u0)) ** 2 + (chest.v - v0 - along * (v1 - v0)) ** 2, out=shortest
        )
    return soft(np.sqrt(shortest) - width / 2, max(0.5 * width, chest.pixel))


class Chest:
    """The layers of one picture while it is drawn, each (resolution, resolution) float32.

    `dense` is what attenuates apart from the lungs, `air` what the lungs take away, `vessels` the lungs' drawing,
    `bright` bones and devices. `lung[side]` is the lung's mask before anything covers it; `out[side]` the distance `a`.
    """

    def __init__(self, anatomy: Anatomy, pose: Pose, resolution: int):
        self.anatomy, self.pixel = anatomy, 2.0 / resolution
        axis = ((np.arange(resolution, dtype=np.float32) + 0.5) / resolution * 2 - 1) / pose.zoom
        across, down = np.meshgrid(axis - pose.right, axis - pose.down)
        cos, sin = np.float32(np.cos(pose.turn)), np.float32(np.sin(pose.turn))
        self.u, self.v = cos * across + sin * down, cos * down - sin * across
        self.base = {
            "right": anatomy.lung_base + pose.breath,
            "left": anatomy.lung_base + anatomy.left_base_drop + pose.breath,
        }
        self.midline = anatomy.scoliosis * np.sin(2.2 * self.v + anatomy.scoliosis_phase) - anatomy.scoliosis * np.sin(
            anatomy.scoliosis_phase
        )
        self.out = {side: sign * (self.u - self.midline) for side, sign in SIDES.items()}
        self.edge, self.dome, self.lung = {}, {}, {}
        for side in SIDES:
            self._shape_lung(side)
        self.bright = np.zeros_like(self.u)
        self._body()
        self._mediastinum()
        self._vessels()
        self._bones()

    def _shape_lung(self, side: str) -> None:
        body, a, base = self.anatomy, self.out[side], self.base[side]
        depth = np.clip((self.v - body.lung_top) / (base - body.lung_top), 0.0, 1.0)
        width = body.lung_width + SIDES[side] * body.lung_asymmetry
        self.edge[side] = width * np.sqrt(1 - (1 - depth) ** body.lung_taper)
        reach = width - body.dome_centre
        self.dome[side] = base - body.dome_height * (
            1 - (np.maximum(a - body.dome_centre, 0.3 * (body.dome_centre - a)) / reach) ** 2
        )
        self.lung[side] = (
            soft(a - self.edge[side], 0.02)
            * soft(0.05 - a, 0.02)
            * soft(self.v - self.dome[side], 0.02)
            * soft(body.lung_top + 0.02 - self.v, 0.03)
        )

    def _body(self) -> None:
        body, across = self.anatomy, np.abs(self.u)
        down = np.clip((self.v - body.shoulder_height) / 0.62, 0.0, 1.0)
        width = body.neck_width + (body.shoulder_width - body.neck_width) * down**0.6
        low = np.clip((self.v + 0.25) / 0.6, 0.0, 1.0)
        width += (body.waist_width - body.shoulder_width) * low * low * (3 - 2 * low)
        rounding = np.sqrt(np.clip(1.02 - (across / np.maximum(width, 0.05)) ** 2, 0.0, 1.0))
        self.dense = body.tissue * soft(across - width, 0.03) * (0.55 + 0.45 * rounding)
        for side in SIDES:
            belly = (
                soft(self.dome[side] - self.v, 0.02)
                * soft(self.out[side] - self.edge[side] - 0.02, 0.05)
                * soft(-self.out[side], 0.02)
            )
            self.dense += 0.16 * belly
        if body.gastric_bubble > 0.03:
            self.dense -= 0.2 * blob(
                self, 0.3, self.base["left"] + 0.13, body.gastric_bubble * 1.6, body.gastric_bubble, 0.3
            )
        if body.breast > 0:
            for sign in SIDES.values():
                centre = (sign * 0.42, body.breast_drop + 0.02)
                self.dense += (
                    (0.05 + 0.9 * body.breast) * blob(self, *centre, 0.32, 0.34, 0.12) * soft(-self.v - 0.2, 0.4)
                )

    def _mediastinum(self) -> None:
        body = self.anatomy
        heart_v = body.lung_base - body.heart_lift
        heart = blob(self, body.heart_shift, heart_v, body.heart_length, body.heart_breadth, 0.14, body.heart_tilt)
        atrium = blob(self, 0.0, heart_v - 0.02, 0.75 * body.heart_breadth, 0.8 * body.heart_length, 0.2)
        heart = np.maximum(heart, atrium)
        flare = body.mediastinum_width * (1 + 0.5 * np.clip(self.v + 0.1, 0, 1))
        middle = soft(np.abs(self.u - self.midline) - flare, 0.05)
        knob = blob(self, body.mediastinum_width * 0.8, -0.28, body.aortic_knob, body.aortic_knob * 1.2, 0.3)
        cover = 1 - (1 - 0.9 * heart) * (1 - 0.85 * middle) * (1 - 0.7 * knob)
        lungs = self.lung["right"] + self.lung["left"]
        self.air = body.lung_air * lungs * (1 - cover)
        self.dense += 0.03 * heart + 0.04 * middle

    def _vessels(self) -> None:
        body = self.anatomy
        self.vessels = np.zeros_like(self.u)
        for side, sign in SIDES.items():
            from_hilum = self.out[side] - body.mediastinum_width, self.v + 0.08
            distance = np.sqrt(from_hilum[0] ** 2 + from_hilum[1] ** 2)
            angle = np.arctan2(from_hilum[1], from_hilum[0])
            streak = 0.5 + 0.5 * np.cos(body.vessel_count * angle + 6 * distance * (1.3 + sign * body.heart_tilt))
            fading = np.exp(-((distance / 0.38) ** 2))
            root = np.exp(-((distance / 0.13) ** 2))
            self.vessels += self.lung[side] * (body.vessels * streak**3 * fading * 1.6 + body.hilum * root)

    def _bones(self) -> None:
        body = self.anatomy
        spine = soft(np.abs(self.u - self.midline) - body.spine_width, 0.02)
        discs = 0.7 + 0.3 * np.cos(self.v * (2 * np.pi / body.vertebra_height))
        self.bright += body.spine_contrast * spine * discs * soft(self.v - 0.95, 0.1)
        for side, sign in SIDES.items():
            self.bright += self.ribs(side)
            a = self.out[side]
            height = (
                body.lung_top
                + body.clavicle_drop
                - body.clavicle_slope * a
                - body.clavicle_arch * np.sin(np.clip(a - 0.08, 0, 0.6) * 5)
            )
            clavicle = (
                soft(np.abs(self.v - height) - 0.025, 0.02)
                * soft(0.09 - a, 0.03)
                * soft(a - 0.72, 0.05)
                * (self.dense > 0.2)
            )
            shoulder = blob(self, sign * body.shoulder_width * 0.86, body.shoulder_height + 0.5, 0.12, 0.15, 0.3)
            self.bright += body.clavicle_contrast * clavicle + 0.1 * shoulder

    def ribs(self, side: str, shift: float = 0.0) -> np.ndarray:
        """The cage of one side, back and front, moved down by `shift`."""
        body, a, v = self.anatomy, self.out[side], self.v - shift
        cage = soft(a - self.edge[side] - 0.05, 0.03) * soft(0.05 - a, 0.03)
        cage *= soft(body.lung_top - 0.06 - v, 0.06) * soft(v - self.base[side] - 0.12, 0.15)
        half = body.rib_width * body.rib_spacing / 2
        back = (v - body.rib_slope * a - body.rib_bend * a * a) / body.rib_spacing + body.rib_phase
        distance = np.abs(back - np.floor(back) - 0.5) * body.rib_spacing
        # The cortex, being seen edge-on, is brighter than the middle of a rib.
        rib = soft(distance - half, 0.015) * (0.65 + 0.35 * np.clip(distance / half, 0, 1))
        front = (v + body.front_rib_slope * (a - 0.2)) / body.rib_spacing + body.rib_phase + 0.3
        off = np.abs(front - np.floor(front) - 0.5) * body.rib_spacing
        front_rib = soft(off - half, 0.02) * soft(0.3 - a, 0.12)
        return cage * (body.rib_contrast * rib + body.front_rib_contrast * front_rib)

    def film(self, rng: np.random.Generator, noise: float = 0.008) -> np.ndarray:
        """The layers as a picture: (resolution, resolution) uint8, air dark."""
        body = self.anatomy
        level = self.dense - self.air + self.vessels + self.bright
        level = 0.5 + body.contrast * (level + body.exposure - 0.45)
        level = np.clip(level, 0.0, 1.0) ** np.float32(body.gamma)
        level = FOG + (ROOF - FOG) * level
        level += rng.normal(0.0, noise, level.shape).astype(np.float32)
        return np.round(np.clip(level, 0.0, 1.0) * 255).astype(np.uint8)
