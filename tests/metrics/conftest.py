"""Gaussian stand-ins for features: patients whose pictures are alike, and samplers that follow captions."""

from __future__ import annotations

import numpy as np
import pytest

from metrics.copying import CopySide


def patient_pictures(rng, patients, each, dimension, spread=0.5):
    """Pictures (patients * each, dimension) round a centre a patient, with each patient's number (patients * each,)."""
    centres = rng.standard_normal((patients, 1, dimension))
    pictures = centres + spread * rng.standard_normal((patients, each, dimension))
    return pictures.reshape(-1, dimension), np.repeat(np.arange(patients), each)


def copy_sides(seed, patients=30, each=2, dimension=24, noise=1.5, copied=0.0, base=False):
    """Train and twin, and a sampler that follows captions with `noise` and copies a share of the training pictures."""
    rng = np.random.default_rng(seed)
    sides = []
    for number in range(2):
        references, names = patient_pictures(rng, patients, each, dimension)
        own = np.arange(len(references))
        generated = references + noise * rng.standard_normal(references.shape)
        before = generated + 0.1 * rng.standard_normal(references.shape) if base else None
        if number == 0:
            hit = rng.random(len(references)) < copied
            generated[hit] = references[hit] + 0.05 * rng.standard_normal(references[hit].shape)
        sides.append(CopySide(references, names + patients * number, generated, own, before))
    return tuple(sides)


@pytest.fixture(scope="session")
def draw_patients():
    return patient_pictures


@pytest.fixture(scope="session")
def draw_sides():
    return copy_sides
