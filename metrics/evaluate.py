"""From what was measured on one model to all its scores: which sets each metric compares. No arithmetic of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.arrays import finite, row_indices, same_length
from metrics.copying import CopySide, copy_excess, copy_rate
from metrics.errors import BadArray
from metrics.estimate import Estimate
from metrics.frechet import Projection, dimension_for, fd_estimate
from metrics.kernel import kid_estimate
from metrics.loss_gap import LossSide, loss_gap
from metrics.minimum_distance import amd_estimate
from metrics.scores import Scores


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Real pictures of one set of patients.

    Attributes:
        features: (n, d) from the encoder, for quality and AMD.
        patients: (n,) patient of each picture.
        copies: (n, k) the space in which copying is measured (latents, say); None = `features`.

    Raises:
        BadArray: NaN, or not one row a picture in each.
    """

    features: np.ndarray
    patients: np.ndarray
    copies: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "patients", np.asarray(self.patients))
        _same_rows(self, self.patients)


@dataclass(frozen=True, eq=False)
class Generated:
    """Pictures that a model made from the captions of one set.

    Attributes:
        features: (G, d) from the same encoder.
        own: (G,) row, in that set, of the picture whose caption called each up.
        copies: (G, k) as in `PictureSet`.

    Raises:
        BadArray: NaN, or not one row a picture in each.
    """

    features: np.ndarray
    own: np.ndarray
    copies: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "own", np.asarray(self.own))
        _same_rows(self, self.own)


@dataclass(frozen=True, eq=False)
class Measured:
    """All that is measured on one model (or on the untouched base), at noise common to all models.

    Attributes:
        train, twin: pictures made from captions of either side.
        train_losses, twin_losses: (n_train, draws), (n_twin, draws) denoising loss of each picture of either side at
            draws of noise and timestep that are common to all models; None = not measured, then `loss_gap` is left out.
    """

    train: Generated
    twin: Generated
    train_losses: np.ndarray | None = None
    twin_losses: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class References:
    """What every model of a study is held against.

    Attributes:
        validate, train, twin: real pictures. For confirmation: test, train, second twin.
        projection: the space of `fd`, fitted once on the validate pictures; see `projection_for`.
        base: the untouched base, measured with the noise that models are measured with.
    """

    validate: PictureSet
    train: PictureSet
    twin: PictureSet
    projection: Projection
    base: Measured


def projection_for(validate: PictureSet, twin: PictureSet, generated: int) -> Projection:
    """The space of `fd` where `generated` pictures are made per side: validate's PCA, a quarter of the smallest set that
    is compared with validate (`real_floor` has the pictures of two sides as large as twin)."""
    return Projection.fit(validate.features, dimension_for(min(generated, 2 * len(twin.features), len(validate.features))))


def evaluate(references: References, measured: Measured) -> Scores:
    """All scores of one model.

    Quality (`fd`, `kid`) is that of pictures from twin captions against validate, so that copying buys none. The
    untouched base itself may be given: its `copy_excess` and `loss_gap` are 0 without width.

    Raises:
        BadArray: rows, sides or numbers of pictures that do not match; the message names them.
    """
    if (measured.train_losses is None) != (measured.twin_losses is None):
        raise BadArray("losses are given for one side only: give train_losses and twin_losses, or neither")
    sides = copy_sides(references, measured)
    estimates = {
        "fd": _fd(references, measured.twin.features, sides[1].patients[sides[1].own]),
        "kid": kid_estimate(
            references.validate.features,
            references.validate.patients,
            measured.twin.features,
            sides[1].patients[sides[1].own],
        ),
        "copy_excess": copy_excess(*sides),
        "copy_rate": copy_rate(*sides),
        "amd_train": _amd(references, measured, references.train),
        "amd_twin": _amd(references, measured, references.twin),
    }
    if measured.train_losses is not None:
        estimates["loss_gap"] = loss_gap(*loss_sides(references, measured))
    return Scores(estimates)


def real_floor(references: References) -> Scores:
    """`fd` and `kid` of real pictures against validate: what a perfect model would score (`q_real`).

    FD's bias goes with 1/n, so as many pictures are taken as the base made from twin captions: the twin's own (evenly
    spaced rows), and where those are too few, train's. Where both together are fewer, the floor is slightly too high.
    """
    validate = references.validate
    features = np.concatenate([references.twin.features, references.train.features])
    patients = np.concatenate([references.twin.patients, references.train.patients])
    wanted, twins = len(references.base.twin.features), len(references.twin.features)
    rows = np.linspace(0, twins - 1, wanted).round().astype(int) if wanted <= twins else np.arange(min(wanted, len(features)))
    features, patients = features[rows], patients[rows]
    kid = kid_estimate(validate.features, validate.patients, features, patients)
    return Scores({"fd": _fd(references, features, patients), "kid": kid})


def copy_sides(references: References, measured: Measured) -> tuple[CopySide, CopySide]:
    """Train and twin as `copy_excess` and `copy_rate` take them, beside the base.

    For the paired difference of two models, replace `references.base` with the other model.
    """
    return (
        _copy_side("train", references.train, measured.train, references.base.train),
        _copy_side("twin", references.twin, measured.twin, references.base.twin),
    )


def loss_sides(references: References, measured: Measured) -> tuple[LossSide, LossSide]:
    """Train and twin as `loss_gap` takes them, beside the base.

    Raises:
        BadArray: losses of the model or of the base were not measured.
    """
    means = {}
    for name, model in (("measured", measured), ("base", references.base)):
        if model.train_losses is None or model.twin_losses is None:
            raise BadArray(f"{name} has no losses: measure them for both sides, at the noise common to all models")
        for side in ("train", "twin"):
            losses = getattr(model, f"{side}_losses")
            means[name, side] = finite(f"{name}.{side}_losses", losses, 2).mean(axis=1)
    return (
        LossSide(means["measured", "train"], means["base", "train"], references.train.patients),
        LossSide(means["measured", "twin"], means["base", "twin"], references.twin.patients),
    )


def _copy_side(name: str, pictures: PictureSet, generated: Generated, base: Generated) -> CopySide:
    own = row_indices(f"{name}.own", generated.own, len(pictures.features))
    if not np.array_equal(own, base.own):
        raise BadArray(
            f"{name}: model and base were given different captions: use the same captions, in the same order"
        )
    return CopySide(_copies(pictures), pictures.patients, _copies(generated), own, _copies(base))


def _copies(pictures: PictureSet | Generated) -> np.ndarray:
    return pictures.features if pictures.copies is None else pictures.copies


def _fd(references: References, features: np.ndarray, patients: np.ndarray) -> Estimate:
    project, validate = references.projection, references.validate
    return fd_estimate(project(validate.features), validate.patients, project(features), patients)


def _amd(references: References, measured: Measured, against: PictureSet) -> Estimate:
    generated = np.concatenate([measured.train.features, measured.twin.features])
    patients = np.concatenate(
        [references.train.patients[measured.train.own], references.twin.patients[measured.twin.own]]
    )
    return amd_estimate(generated, patients, against.features, against.patients)


def _same_rows(pictures: PictureSet | Generated, row_names: np.ndarray) -> None:
    label = type(pictures).__name__
    same_length(f"{label}.features", finite(f"{label}.features", pictures.features, 2), "patients or own", row_names)
    if pictures.copies is not None:
        same_length(f"{label}.copies", finite(f"{label}.copies", pictures.copies, 2), "patients or own", row_names)
