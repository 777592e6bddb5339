"""Mitigations in real trainings: with every method, resumed in the middle, and in generation."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from training import PLAN, same, subset_of

from trainers.candidate import Applied, Candidate
from trainers.fit import fit
from trainers.methods import METHODS
from trainers.mitigations import MITIGATIONS, WEIGHTS, check, generation_hooks, training_hooks
from trainers.mitigations.hooks import Guard, Learned
from trainers.plan import Examples
from trainers.resuming import Checkpoints
from trainers.sampling import initial_noise, sample
from trainers.units import REGIONS

TRAINING, GENERATION = ([name for name, each in MITIGATIONS.items() if (each.protects == WEIGHTS) is at_training] for at_training in (True, False))
PAIRS = list(itertools.product(METHODS, TRAINING))
SOME = [(method, TRAINING[place % len(TRAINING)]) for place, method in enumerate(METHODS)]  # each method once and each mitigation


@pytest.fixture
def captioned(examples, learned) -> Examples:
    """The examples with the states of the captions that `learned` has."""
    return replace(examples, states=learned.encode([*learned.captions, ""]))


def applied(*names: str) -> list[Applied]:
    """At the published strength, but random words always, so that few steps show them."""
    strengths = {name: {number: choices[0] for number, choices in MITIGATIONS[name].strengths.items()} for name in names}
    if "rwa" in strengths:
        strengths["rwa"]["probability"] = 1.0
    return [Applied.of(name, **strength) for name, strength in strengths.items()]


def candidate_of(method: str) -> Candidate:
    each = METHODS[method]
    return Candidate.of(method, REGIONS, each.kinds[0], each.reference_rate, 2, each.ranks[0] if each.ranks else None, norm_rate=each.reference_norm_rate)


def trains(unet, units, scheduler, examples: Examples, learned: Learned, method: str, mitigation: str) -> None:
    """Two steps, finite and with the base back after them."""
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    candidate = replace(candidate_of(method), mitigations=tuple(applied(mitigation)))
    check(candidate.mitigations)
    subset = METHODS[method].apply(unet, units, candidate)
    start = subset.tensors()
    done = fit(unet, scheduler, subset, examples, replace(PLAN, steps=2, learning_rate=candidate.learning_rate, batch_size=4), rates=subset.rates(candidate),
               hooks=training_hooks(candidate.mitigations, learned), encode=learned.encode)
    values = subset.tensors()
    assert all(tensor.isfinite().all() for tensor in values.values()) and done.loss > 0
    assert done.kept == 0 or not same(values, start)
    subset.restore()
    assert same(dict(unet.state_dict()), before)


@pytest.mark.parametrize("method, mitigation", SOME)
def test_each_method_trains_with_a_mitigation(unet, units, scheduler, captioned, learned, method, mitigation):
    assert {each for _, each in SOME} == set(TRAINING)
    trains(unet, units, scheduler, captioned, learned, method, mitigation)


@pytest.mark.slow
@pytest.mark.parametrize("method, mitigation", [pair for pair in PAIRS if pair not in SOME])
def test_every_method_trains_with_every_mitigation(unet, units, scheduler, captioned, learned, method, mitigation):
    trains(unet, units, scheduler, captioned, learned, method, mitigation)


def test_all_that_go_together_train_together(unet, units, scheduler, captioned, learned):
    together = [name for name in TRAINING if name != "rwa-once"]
    subset = subset_of(unet, units)
    fit(unet, scheduler, subset, captioned, PLAN, hooks=training_hooks(applied(*together), learned), encode=learned.encode)
    assert all(tensor.isfinite().all() for tensor in subset.tensors().values())
    subset.restore()


@pytest.mark.parametrize("names", [("rwa", "noise"), ("rwa-once", "threshold-quantile"), ("threshold", "deduplication")])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(unet, units, scheduler, captioned, learned, encoder, names, monkeypatch, tmp_path):
    """Also with a text encoder that remembers nothing, and with norms enough for a threshold before the stop."""
    monkeypatch.setattr("trainers.mitigations.threshold_quantile.WARM_UP", 6)
    plan, kept = replace(PLAN, steps=9, caption_dropout=0.0), Checkpoints(tmp_path / "state", 1, {})

    class Stopped(Exception):
        pass

    def stop(step):
        if step == 5:
            raise Stopped

    def run(checkpoints=None, on_step=lambda step: None):
        subset = subset_of(unet, units)
        try:
            done = fit(unet, scheduler, subset, captioned, plan, on_step, hooks=training_hooks(applied(*names), learned), encode=learned.encode,
                       checkpoints=checkpoints)
            return done.kept, subset.tensors()
        finally:
            subset.restore()

    whole = run()
    with pytest.raises(Stopped):
        run(kept, stop)
    encoder.remembered.clear()
    resumed = run(kept)
    assert resumed[0] == whole[0] and same(resumed[1], whole[1])
    if "threshold-quantile" in names:
        assert 0 < whole[0] < 1, "else there was nothing to go wrong"


def test_the_mitigation_is_what_makes_the_difference(unet, units, scheduler, captioned, learned):
    """Each leaves other weights behind than a plain training does; deduplication of pictures that are not alike the same ones."""
    def run(*names):
        subset = subset_of(unet, units)
        try:
            fit(unet, scheduler, subset, captioned, replace(PLAN, batch_size=8), hooks=training_hooks(applied(*names), learned), encode=learned.encode)
            return subset.tensors()
        finally:
            subset.restore()

    plain = run()
    for name in ("rwa", "rwa-once", "noise", "threshold"):
        assert not same(run(name), plain)
    assert same(run("deduplication"), plain)


# Generation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora", "svdiff", "difffit"])
def test_pictures_of_a_trained_subset_are_guarded(unet, units, scheduler, captioned, learned, method):
    """Prompt optimization goes through the U-Net backwards, whatever a method has put into it for generating."""
    subset = METHODS[method].apply(unet, units, candidate_of(method))
    fit(unet, scheduler, subset, captioned, replace(PLAN, steps=2))
    guard = Guard(tuple(generation_hooks(applied(*GENERATION), learned)), [*learned.captions, ""], learned.encode)
    drawn = dict(steps=3, guidance_scale=2.0, batch_size=2)
    with subset.generating():
        plain, guarded = (sample(unet, scheduler.config, captioned.states, torch.arange(3), initial_noise(3, (4, 8, 8), 7), guard=given, **drawn)
                          for given in (None, guard))
    assert guarded.isfinite().all() and not torch.allclose(guarded, plain, atol=1e-3)
    assert all(parameter.grad is None for parameter in unet.parameters())
    subset.restore()
