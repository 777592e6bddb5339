"""Which sets each score compares."""

import dataclasses

import numpy as np
import pytest

from metrics.copying import copy_excess
from metrics.errors import BadArray
from metrics.evaluate import (
    Generated,
    Measured,
    PictureSet,
    References,
    copy_sides,
    evaluate,
    projection_for,
    real_floor,
)
from metrics.frechet import fd
from metrics.kernel import kid
from metrics.minimum_distance import amd
from metrics.scores import SCORES

OWN = np.arange(48)


@pytest.fixture
def study(draw_patients):
    """References, and a model that learned: a tenth of the way from the base's pictures to validate's distribution."""
    rng = np.random.default_rng(0)
    sets = {}
    for number, name in enumerate(("validate", "train", "twin")):
        pictures, patients = draw_patients(rng, 24, 2, 16)
        sets[name] = PictureSet(pictures, patients + 100 * number, copies=pictures[:, :8] * 5)

    def model(shift, copied):
        made = {}
        for name in ("train", "twin"):
            pictures = sets[name].features + rng.standard_normal((48, 16)) + shift
            pictures[: copied if name == "train" else 0] = sets[name].features[: copied if name == "train" else 0]
            made[name] = Generated(pictures, OWN, copies=pictures[:, :8] * 5)
        return Measured(made["train"], made["twin"], rng.random((48, 2)) - 0.02 * copied, rng.random((48, 2)))

    base = model(2.0, 0)
    projection = projection_for(sets["validate"], sets["twin"], generated=48)
    return References(**sets, projection=projection, base=base), model(0.2, 24)


def test_every_score_of_the_table_is_measured(study):
    assert list(evaluate(*study)) == list(SCORES)


def test_quality_is_that_of_twin_captions_against_validate(study):
    references, model = study
    scores = evaluate(references, model)
    project = references.projection
    assert project.axes.shape == (16, 12)
    assert scores["fd"].value == fd(project(references.validate.features), project(model.twin.features))
    assert scores["kid"].value == pytest.approx(kid(references.validate.features, model.twin.features))
    copied = dataclasses.replace(model, train=dataclasses.replace(model.train, features=references.train.features))
    assert evaluate(references, copied)["fd"] == scores["fd"]


def test_copying_is_measured_in_its_own_space_and_amd_on_features(study):
    references, model = study
    scores = evaluate(references, model)
    train, twin = copy_sides(references, model)
    assert np.array_equal(train.references, references.train.copies)
    assert np.array_equal(twin.base, references.base.twin.copies)
    assert scores["copy_excess"] == copy_excess(train, twin)
    assert scores["copy_excess"].low > 0 and scores["copy_rate"].low > 0 and scores["loss_gap"].low > 0
    generated = np.concatenate([model.train.features, model.twin.features])
    assert scores["amd_train"].value == pytest.approx(amd(generated, references.train.features))
    assert (
        scores["amd_train"].value < scores["amd_twin"].value == pytest.approx(amd(generated, references.twin.features))
    )


def test_without_a_space_of_its_own_copying_is_measured_on_features(study):
    references, model = study
    train, _ = copy_sides(
        dataclasses.replace(references, train=PictureSet(references.train.features, references.train.patients)), model
    )
    assert np.array_equal(train.references, references.train.features)


def test_swapped_sides_change_the_sign_of_every_calibrated_score(study):
    references, model = study

    def swapped(measured):
        return Measured(measured.twin, measured.train, measured.twin_losses, measured.train_losses)

    there = evaluate(references, model)
    mirrored = dataclasses.replace(
        references, train=references.twin, twin=references.train, base=swapped(references.base)
    )
    back = evaluate(mirrored, swapped(model))
    for name in ("loss_gap", "copy_excess", "copy_rate"):
        assert back[name].value == pytest.approx(-there[name].value, rel=1e-9)
    assert back["amd_twin"].value == pytest.approx(there["amd_train"].value)


def test_the_untouched_base_is_scored_too(study):
    references, _ = study
    scores = evaluate(references, references.base)
    for name in ("copy_excess", "loss_gap"):
        assert scores[name].to_json() == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert scores["fd"].value > real_floor(references)["fd"].value


def test_losses_may_be_left_out_but_not_by_half(study):
    references, model = study
    without = dataclasses.replace(model, train_losses=None, twin_losses=None)
    assert "loss_gap" not in evaluate(references, without)
    with pytest.raises(BadArray, match="losses are given for one side only"):
        evaluate(references, dataclasses.replace(model, twin_losses=None))
    with pytest.raises(BadArray, match="base has no losses"):
        evaluate(dataclasses.replace(references, base=without), model)


def test_the_floor_takes_as_many_real_pictures_as_are_generated(study):
    references, _ = study
    project = references.projection
    some = dataclasses.replace(
        references.base, twin=Generated(references.base.twin.features[:24], OWN[:24], references.base.twin.copies[:24])
    )
    rows = np.linspace(0, 47, 24).round().astype(int)
    expected = fd(project(references.validate.features), project(references.twin.features[rows]))
    assert real_floor(dataclasses.replace(references, base=some))["fd"].value == expected
    assert real_floor(references)["fd"].value < expected
    many = dataclasses.replace(references, base=dataclasses.replace(references.base, twin=Generated(np.ones((60, 16)), np.arange(60) % 48)))
    both = np.concatenate([references.twin.features, references.train.features[:12]])
    assert real_floor(many)["fd"].value == fd(project(references.validate.features), project(both))


def test_a_model_and_a_base_with_other_captions_are_not_compared(study):
    references, model = study
    other = dataclasses.replace(model, twin=dataclasses.replace(model.twin, own=OWN[::-1]))
    with pytest.raises(BadArray, match="twin: model and base were given different captions"):
        evaluate(references, other)


def test_rows_must_agree_at_the_door():
    with pytest.raises(BadArray, match="PictureSet.features has 3 rows"):
        PictureSet(np.ones((3, 2)), np.arange(2))
    with pytest.raises(BadArray, match="Generated.copies holds NaN"):
        Generated(np.ones((2, 2)), np.arange(2), np.full((2, 2), np.nan))
