"""Findings of a phantom: which ones a patient has, and how each is drawn onto the normal chest.
The names are CheXpert's; how a radiologist words them is in `wording`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trainers.data.anatomy import SIDES, Anatomy, Chest, blob, line, soft

CHEXPERT = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
NORMAL_SHARE = 0.35  # of patients
CHRONIC = ("Cardiomegaly", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion", "Pleural Other", "Pacemaker")
ACUTE = (
    "Atelectasis",
    "Consolidation",
    "Edema",
    "Lung Opacity",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
    "Tubes",
)
CHRONIC_ODDS = (0.36, 0.08, 0.1, 0.12, 0.1, 0.24)
ACUTE_ODDS = (0.2, 0.12, 0.12, 0.12, 0.28, 0.12, 0.08, 0.12)
SEVERITIES = ("small", "moderate", "large")
ZONE_HEIGHT = {"upper": 0.25, "mid": 0.55, "lower": 0.82}  # of the way from the apex to the base of a lung


@dataclass(frozen=True)
class Finding:
    """One thing to be seen. `kind` is a CheXpert name, or "Pacemaker" or "Tubes" for two sorts of support device."""

    kind: str
    side: str = "left"  # "left", "right" or "bilateral"
    zone: str = "lower"  # "upper", "mid" or "lower"
    severity: str = "moderate"  # "small", "moderate" or "large"
    sure: bool = True

    @property
    def label(self) -> str:
        return "Support Devices" if self.kind in ("Pacemaker", "Tubes") else self.kind

    @property
    def sides(self) -> tuple[str, ...]:
        return tuple(SIDES) if self.side == "bilateral" else (self.side,)

    @property
    def grade(self) -> int:
        """1 small, 2 moderate, 3 large."""
        return SEVERITIES.index(self.severity) + 1


def _one(kind: str, rng: np.random.Generator) -> Finding:
    sides = (
        ("left", "right", "bilateral")
        if kind in ("Pleural Effusion", "Atelectasis", "Pleural Other")
        else ("left", "right")
    )
    zones = ("upper", "mid", "lower")
    unsure = kind in ("Pneumonia", "Lung Opacity", "Atelectasis", "Cardiomegaly") and rng.random() < 0.12
    return Finding(
        kind,
        side="bilateral" if kind == "Edema" else sides[int(rng.random() * len(sides))],
        zone=zones[int(rng.random() * 3)],
        severity=SEVERITIES[int(rng.random() * 3)],
        sure=not unsure,
    )


def sample_chronic(rng: np.random.Generator) -> tuple[Finding, ...]:
    """What a patient who is ill keeps from study to study."""
    return tuple(_one(kind, rng) for kind, odds in zip(CHRONIC, CHRONIC_ODDS) if rng.random() < odds)


def sample_acute(rng: np.random.Generator, at_least: int) -> tuple[Finding, ...]:
    """What comes and goes between studies: at most two findings, and no fewer than `at_least`."""
    drawn = [kind for kind, odds in zip(ACUTE, ACUTE_ODDS) if rng.random() < odds]
    if len(drawn) < at_least:
        drawn = [ACUTE[int(rng.choice(len(ACUTE), p=np.array(ACUTE_ODDS) / sum(ACUTE_ODDS)))]]
    return tuple(_one(kind, rng) for kind in drawn[:2])


def deform(anatomy: Anatomy, findings: tuple[Finding, ...]) -> Anatomy:
    """The anatomy as findings that change the shape of organs leave it."""
    for finding in findings:
        if finding.kind == "Cardiomegaly":
            growth = 1.1 + 0.12 * finding.grade
            anatomy = replace(
                anatomy,
                heart_length=anatomy.heart_length * growth,
                heart_breadth=anatomy.heart_breadth * growth,
                heart_shift=anatomy.heart_shift + 0.03 * finding.grade,
            )
        elif finding.kind == "Enlarged Cardiomediastinum":
            anatomy = replace(
                anatomy,
                mediastinum_width=anatomy.mediastinum_width + 0.05 + 0.02 * finding.grade,
                aortic_knob=anatomy.aortic_knob + 0.03,
            )
        elif finding.kind == "Atelectasis":
            anatomy = replace(anatomy, lung_base=anatomy.lung_base - 0.03 * finding.grade)
    return anatomy


def draw(chest: Chest, findings: tuple[Finding, ...], patient: np.random.Generator, study: np.random.Generator) -> None:
    """Draws the findings onto the chest; what lasts is placed by the patient's generator, the rest by the study's."""
    for finding in findings:
        if finding.kind in DRAWN:
            DRAWN[finding.kind](chest, finding, patient if finding.kind in CHRONIC else study)


def _place(chest: Chest, side: str, zone: str, rng: np.random.Generator) -> tuple[float, float]:
    """A point (u, v) inside one lung, at the height of a zone."""
    top, base = chest.anatomy.lung_top, chest.base[side] - 0.5 * chest.anatomy.dome_height
    v = top + (base - top) * (ZONE_HEIGHT[zone] + rng.uniform(-0.05, 0.05))
    width = chest.anatomy.lung_width * (0.55 if zone == "upper" else 0.62)
    return SIDES[side] * width * rng.uniform(0.75, 1.15), v


def _fill(chest: Chest, mask: np.ndarray, share: float) -> None:
    """Fluid or cells take the place of a share of the air under the mask; vessels there can hardly be told apart."""
    chest.air *= 1 - share * mask
    chest.vessels *= 1 - 0.7 * share * mask


def _cloud(chest: Chest, finding: Finding, rng: np.random.Generator, share: float, size: float) -> None:
    for side in finding.sides:
        u, v = _place(chest, side, finding.zone, rng)
        mask = np.zeros_like(chest.u)
        for _ in range(4):
            radius = size * (0.7 + 0.2 * finding.grade) * rng.uniform(0.7, 1.1)
            du, dv = rng.normal(0, 0.45 * size, 2)
            mask = np.maximum(mask, blob(chest, u + du, v + dv, radius * 1.2, radius, 0.8))
        _fill(chest, mask, share)


def _consolidation(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    _cloud(chest, finding, rng, 0.85, 0.2)


def _opacity(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    _cloud(chest, finding, rng, 0.55, 0.22)


def _edema(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    chest.vessels *= 1.1 + 0.1 * finding.grade
    for sign in SIDES.values():
        wing = blob(chest, sign * 0.26, 0.0, 0.32, 0.5, 0.8)
        chest.air *= 1 - (0.25 + 0.12 * finding.grade) * wing


def _effusion(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    for side in finding.sides:
        rise = (0.1, 0.3, 0.6)[finding.grade - 1] + rng.uniform(-0.02, 0.04)
        meniscus = 0.28 * np.clip(chest.out[side] / chest.anatomy.lung_width, 0, 1.1) ** 3
        level = chest.base[side] - 0.6 * chest.anatomy.dome_height - rise - meniscus + 0.14
        fluid = soft(level - chest.v, 0.04) * soft(-chest.out[side], 0.02)
        _fill(chest, fluid, 0.97)
        chest.dense += 0.06 * fluid * chest.lung[side]


def _pneumothorax(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    for side in finding.sides:
        gap = 0.07 + 0.06 * finding.grade
        depth = np.clip((chest.v - chest.anatomy.lung_top) / 1.1, 0, 1)
        pleura = chest.edge[side] - gap * (1.1 - 0.8 * depth)
        outside = soft(pleura - chest.out[side], 0.015) * chest.lung[side]
        chest.air *= 1 + 0.4 * outside
        chest.vessels *= 1 - outside
        chest.bright += 0.12 * soft(np.abs(chest.out[side] - pleura) - 0.012, 0.014) * chest.lung[side]


def _atelectasis(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    for side in finding.sides:
        for _ in range(finding.grade):
            v = chest.base[side] - chest.anatomy.dome_height - rng.uniform(0.02, 0.2)
            u = SIDES[side] * rng.uniform(0.22, 0.34)
            end = u + SIDES[side] * rng.uniform(0.18, 0.3)
            chest.bright += 0.16 * line(chest, [(u, v), (end, v + rng.uniform(-0.06, 0.04))], 0.045) * chest.lung[side]


def _lesion(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    u, v = _place(chest, finding.side, finding.zone, rng)
    radius = 0.035 + 0.025 * finding.grade
    nodule = blob(chest, u, v, radius, radius * rng.uniform(0.85, 1.15), 0.35)
    _fill(chest, nodule, 0.6)
    chest.bright += 0.12 * nodule


def _thickening(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    for side in finding.sides:
        rim = soft(chest.edge[side] - 0.045 - 0.02 * finding.grade - chest.out[side], 0.03)
        _fill(chest, rim, 0.75)


def _fracture(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """Two neighbouring ribs are out of step lateral of the break, with callus on it."""
    a = chest.anatomy.lung_width * rng.uniform(0.6, 0.75)
    v = rng.uniform(-0.25, 0.15)
    lateral = soft(a - chest.out[finding.side], 0.02) * soft(np.abs(chest.v - v) - 0.16, 0.05)
    chest.bright += lateral * (chest.ribs(finding.side, 0.035 + 0.01 * finding.grade) - chest.ribs(finding.side))
    for rise in (-0.08, 0.08):
        chest.bright += 0.14 * blob(chest, SIDES[finding.side] * a, v + rise, 0.045, 0.035, 0.5)


def _pacemaker(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    sign, body = SIDES[finding.side], chest.anatomy
    u, v = sign * rng.uniform(0.45, 0.58), body.lung_top + rng.uniform(0.22, 0.36)
    box = (np.abs(chest.u - u) / 0.12) ** 4 + (np.abs(chest.v - v) / 0.095) ** 4
    chest.bright += 0.5 * soft(box - 1, 0.3)
    tip = (body.heart_shift + 0.08, body.lung_base - body.heart_lift + 0.1)
    lead = [(u, v - 0.05), (sign * 0.3, v - 0.14), (-0.06, v + 0.02), (-0.1, tip[1] - 0.2), tip]
    chest.bright += 0.35 * line(chest, lead, 0.02)


def _tubes(chest: Chest, finding: Finding, rng: np.random.Generator) -> None:
    """An endotracheal tube where it is grave, a central line from one side, wires on the skin."""
    side, top = SIDES[finding.side], chest.anatomy.lung_top
    if finding.grade > 1:
        chest.bright += 0.3 * line(chest, [(0.01, -1.0), (0.0, -0.3 + rng.uniform(-0.08, 0.08))], 0.03)
    central = [
        (side * 0.2, -1.0),
        (side * 0.14, top - 0.02),
        (-0.08, top + 0.3),
        (-0.1, -0.08 + rng.uniform(-0.05, 0.15)),
    ]
    chest.bright += 0.35 * line(chest, central, 0.022)
    for u, v in ((-0.4, -0.3), (0.42, -0.28), (0.45, 0.3))[: finding.grade]:
        u, v = u + rng.uniform(-0.08, 0.08), v + rng.uniform(-0.1, 0.1)
        chest.bright += 0.3 * blob(chest, u, v, 0.03, 0.03, 0.5)
        chest.bright += 0.16 * line(chest, [(u, v), (u * 0.5 + rng.uniform(-0.2, 0.2), 1.0)], 0.014)


DRAWN = {
    "Atelectasis": _atelectasis,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Fracture": _fracture,
    "Lung Lesion": _lesion,
    "Lung Opacity": _opacity,
    "Pacemaker": _pacemaker,
    "Pleural Effusion": _effusion,
    "Pleural Other": _thickening,
    "Pneumonia": _consolidation,
    "Pneumothorax": _pneumothorax,
    "Tubes": _tubes,
}  # cardiomegaly and a wide mediastinum change the anatomy itself, see `deform`
