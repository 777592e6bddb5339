"""Findings of phantoms: each can be seen at the miniature's 64 x 64, on the side that it names."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.data.anatomy import Anatomy, Chest, Pose
from trainers.data.findings import ACUTE, CHEXPERT, CHRONIC, Finding, deform, draw, sample_acute, sample_chronic

ANATOMY = Anatomy.sample(np.random.default_rng(4))


def film(*findings: Finding) -> np.ndarray:
    """(64, 64): the same patient and film each time, with these findings."""
    chest = Chest(deform(ANATOMY, findings), Pose(), 64)
    draw(chest, findings, np.random.default_rng(1), np.random.default_rng(2))
    return chest.film(np.random.default_rng(3), noise=0).astype(float)


@pytest.mark.parametrize("kind", CHRONIC + ACUTE)
@pytest.mark.parametrize("severity", ["small", "large"])
def test_every_finding_is_seen(kind, severity):
    changed = np.abs(film(Finding(kind, severity=severity)) - film())
    assert (changed > 10).sum() >= 8  # pixels, of 4,096


@pytest.mark.parametrize(
    "kind", ["Pleural Effusion", "Consolidation", "Pneumothorax", "Lung Lesion", "Fracture", "Atelectasis"]
)
def test_the_right_side_is_on_the_left_of_the_picture(kind):
    basis = film() if kind != "Atelectasis" else film(Finding(kind, "bilateral"))
    changed = np.abs(film(Finding(kind, "right")) - basis)
    left, right = changed[:, :30].sum(), changed[:, 34:].sum()
    assert left > 3 * right if kind != "Atelectasis" else right > 3 * left  # on the left both have it


@pytest.mark.parametrize("kind", ["Pleural Effusion", "Consolidation", "Cardiomegaly", "Edema", "Pneumothorax"])
def test_a_large_one_changes_more_than_a_small_one(kind):
    small, large = (np.abs(film(Finding(kind, severity=severity)) - film()).sum() for severity in ("small", "large"))
    assert large > 1.3 * small


def test_zones_are_where_they_say():
    rows = np.arange(64)[:, None]
    heights = []
    for zone in ("upper", "mid", "lower"):
        changed = np.abs(film(Finding("Lung Lesion", zone=zone, severity="large")) - film())
        heights.append((changed * rows).sum() / changed.sum())
    assert heights[0] + 8 < heights[1] < heights[2] - 4


def test_air_darkens_and_fluid_brightens():
    assert (film(Finding("Pneumothorax", severity="large")) - film()).min() < -15
    assert (film(Finding("Pleural Effusion", severity="large")) - film()).max() > 40


def test_labels_are_chexperts():
    assert {Finding(kind).label for kind in CHRONIC + ACUTE} | {"No Finding"} == set(CHEXPERT)


def test_an_ill_patient_has_something():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        chronic = sample_chronic(rng)
        acute = sample_acute(rng, at_least=0 if chronic else 1)
        assert chronic or acute
        assert len(acute) <= 2
