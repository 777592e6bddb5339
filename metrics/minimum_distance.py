"""AMD, the papers' measure: how far generated pictures are, on average, from the nearest of a set of pictures."""

from __future__ import annotations

import numpy as np

from metrics.arrays import finite, same_length
from metrics.errors import BadArray
from metrics.estimate import Estimate
from metrics.patients import interval, jackknife


def minimum_distances(generated: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Cosine distance of each generated picture from its nearest reference: (G, d), (n, d) -> (G,), 0..2.

    A row of zeros has no direction: its cosine with everything is taken as 0.
    """
    return _cosine_distances(generated, references).min(axis=1)


def amd(generated: np.ndarray, references: np.ndarray) -> float:
    """Average minimum distance, 0..2: (G, d), (n, d); higher = less memorised (arXiv 2410.22149).

    0 where every picture is a copy; more references can only lower it, so compare at equally many. Unchanged by a
    scale of the features and by the order of rows. Has no null of its own: read it beside the twin's.

    >>> amd(np.eye(2), np.array([[1.0, 0.0]]))
    0.5
    """
    return float(minimum_distances(generated, references).mean())


def amd_estimate(
    generated: np.ndarray, generated_patients: np.ndarray, references: np.ndarray, reference_patients: np.ndarray
) -> Estimate:
    """`amd` with a 95 % interval, by leaving out patients: (G, d), (G,), (n, d), (n,).

    A patient who is left out goes with all pictures of theirs, generated (from their captions) and reference. So a
    hub patient whom everything is near to widens the interval.

    Raises:
        BadArray: NaN, arrays that do not match, or references of fewer than two patients.
    """
    distances = _cosine_distances(generated, references)
    same_length("generated", distances, "generated_patients", generated_patients)
    same_length("references", references, "reference_patients", reference_patients)
    owners, owner = np.unique(np.asarray(reference_patients), return_inverse=True)
    if len(owners) < 2:
        raise BadArray(f"reference_patients holds {len(owners)} patient, an interval needs at least 2: take more")
    by_owner = np.stack([distances[:, owner == number].min(axis=1) for number in range(len(owners))], axis=1)
    order = np.argsort(by_owner, axis=1)[:, :2]
    nearest, second = np.take_along_axis(by_owner, order, axis=1).T
    generated_patients = np.asarray(generated_patients)

    def without(patient) -> float:
        kept = generated_patients != patient
        return float(np.where(owners[order[kept, 0]] == patient, second[kept], nearest[kept]).mean())

    if len(np.unique(generated_patients)) < 2:
        raise BadArray(
            "generated_patients holds 1 patient, an interval needs at least 2: use captions of more patients"
        )
    strangers = np.setdiff1d(generated_patients, owners)
    spreads = [jackknife(np.array([without(patient) for patient in some]), some.tolist()) for some in (owners, strangers) if len(some)]
    return interval(float(nearest.mean()), [spread for spread in spreads if spread.units > 1])


def _cosine_distances(generated: np.ndarray, references: np.ndarray) -> np.ndarray:
    generated, references = finite("generated", generated, 2), finite("references", references, 2)
    if generated.shape[1] != references.shape[1]:
        raise BadArray(f"generated has {generated.shape[1]} columns, references {references.shape[1]}: use one encoder")
    return np.clip(1 - _directions(generated) @ _directions(references).T, 0, 2)  # rounding gives -1e-16


def _directions(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.divide(features, lengths, out=np.zeros_like(features), where=lengths > 0)
