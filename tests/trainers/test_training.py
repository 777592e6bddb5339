"""A training that pauses: at rungs nothing is changed, what is saved there is gone on from to the bit, and what would spoil a state is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from training import PLAN, same, subset_of

from trainers import held_out
from trainers.candidate import Applied
from trainers.errors import BadSelection, TrainingDiverged
from trainers.fit import fit
from trainers.held_out import Curve
from trainers.mitigations import training_hooks
from trainers.mitigations.hooks import Learned
from trainers.resuming import Checkpoints
from trainers.training import Evaluation, Training

CAPTIONS = ["no acute cardiopulmonary process", "small nodule in the left lung", "left lung", "acute process in the small left lung"]
MITIGATIONS = [Applied.of("rwa", words=2, probability=0.5), Applied.of("threshold-quantile", quantile=0.7)]
RICH = replace(PLAN, steps=7, schedule="cosine", schedule_steps=9, warmup_steps=2, accumulate=2, ema_decay=0.8, min_snr_gamma=5.0)
RUNGS = (2, 4, 7)


@pytest.fixture
def make(unet, units, scheduler, examples, loaded, monkeypatch) -> Callable[..., Training]:
    """Trainings with dropout, random words, and norms enough for a threshold from the third step on; the network is the base again before each."""
    monkeypatch.setattr("trainers.mitigations.threshold_quantile.WARM_UP", 6)
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    captioned, made = replace(examples, states=loaded.encode([*CAPTIONS, ""])), []

    def training_of(plan=RICH, **given) -> Training:
        if made:
            made.pop().subset.restore()
        learned = Learned(CAPTIONS, np.arange(10) % 4, loaded.encode, loaded.random_word, lambda: np.eye(10), seed=3)
        made.append(Training(unet, scheduler, subset_of(unet, units), captioned, plan, hooks=training_hooks(MITIGATIONS, learned), encode=loaded.encode, **given))
        return made[0]

    return training_of


def straight(training: Training) -> Training:
    """Trained in one go."""
    with training:
        training.run_to(training.plan.steps)
    return training


def at_rest(training: Training) -> bool:
    return not any(module.training for module in training.unet.modules()) and all(parameter.grad is None for parameter in training.unet.parameters())


# Pauses --------------------------------------------------------------------------------------------------------------


def test_rungs_evaluated_and_saved_change_nothing_and_show_what_a_shorter_training_ends_with(make, tmp_path):
    whole = straight(make())
    wanted, shorter = whole.subset.tensors(), straight(make(replace(RICH, steps=4))).subset.tensors()
    shown = {}
    with make(checkpoints=Checkpoints(tmp_path / "state", 0, {})) as training:
        for rung in RUNGS:
            training.run_to(rung)
            assert training.done == rung and at_rest(training)
            with training.evaluating():
                shown[rung] = training.subset.tensors()
                torch.rand(3)
            training.save()
            torch.manual_seed(rung)
    assert same(training.subset.tensors(), wanted) and same(shown[7], wanted) and same(shown[4], shorter)
    assert training.record.losses == whole.record.losses and 0 < training.fit().kept == whole.fit().kept < 1


def test_another_worker_goes_on_from_a_rung_also_to_more_steps_than_were_planned(make, tmp_path):
    whole, checkpoints = straight(make()), Checkpoints(tmp_path / "state", 0, {})
    wanted, losses, kept = whole.subset.tensors(), whole.record.losses, whole.fit().kept
    with make(replace(RICH, steps=4), checkpoints=checkpoints) as first:
        first.run_to(2)
        first.save()
        first.run_to(4)
        first.save()
    assert checkpoints.step(RICH) == 4
    with make(checkpoints=checkpoints) as second:
        assert second.done == 4 and second.fit() == first.fit()
        second.run_to(2)
        second.run_to(4)
        assert second.done == 4 and second.fit() == first.fit()
        second.run_to(7)
    assert same(second.subset.tensors(), wanted) and second.record.losses == losses and second.fit().kept == kept
    assert second.fit().seconds > first.fit().seconds


def test_what_is_shown_at_a_rung_gone_on_from_is_what_was_shown_there(make, tmp_path):
    checkpoints, shown = Checkpoints(tmp_path / "state", 3, {}), []
    for _ in range(2):
        with make(checkpoints=checkpoints) as training:
            training.run_to(3)
            with training.evaluating():
                shown.append(training.subset.tensors())
    assert same(*shown)


def test_between_two_rungs_torch_s_generators_are_the_caller_s(make):
    torch.manual_seed(7)
    wanted = torch.rand(4)
    torch.manual_seed(7)
    found = [torch.rand(1)]
    with make() as training:
        found.append(torch.rand(1))
        training.run_to(1)
        found.append(torch.rand(1))
        with training.evaluating():
            torch.rand(1)
    assert torch.equal(torch.cat([*found, torch.rand(1)]), wanted)


def test_a_curve_goes_on_over_pauses_and_workers(make, unet, scheduler, examples, tmp_path):
    def run(rungs, found, **given):
        curve = held_out.curve(unet, scheduler, examples, examples, every=2, seed=1, found=found, draws=1)
        with make(evaluations=[curve], **given) as training:
            for rung in rungs:
                training.run_to(rung)
                training.save()
        return found

    wanted, checkpoints = run([6], Curve(1e-3)), Checkpoints(tmp_path / "state", 0, {})
    run([1, 3], Curve(1e-3), checkpoints=checkpoints)
    heard = []
    assert run([4, 6], Curve(1e-3, lambda step, *_: heard.append(step)), checkpoints=checkpoints).points == wanted.points
    assert list(wanted.points) == [0, 2, 4, 6] and heard == [4, 6]


# Leaving -------------------------------------------------------------------------------------------------------------


def test_a_training_that_is_stopped_at_a_rung_is_left_with_what_was_evaluated(make):
    with make() as training:
        training.run_to(2)
        trained = training.subset.tensors()
        with training.evaluating():
            shown = training.subset.tensors()
        assert same(training.subset.tensors(), trained)
    assert same(training.subset.tensors(), shown) and not same(shown, trained) and at_rest(training) and training.done == 2


@pytest.mark.parametrize("where", ["body", "evaluating", "on_step", "evaluation"])
def test_whatever_is_raised_leaves_the_trained_values_at_rest(make, where):
    def stop(step):
        if step == 2:
            raise KeyboardInterrupt

    given = {"on_step": {"on_step": stop}, "evaluation": {"evaluations": [Evaluation(lambda step: True, stop)]}}.get(where, {})
    with pytest.raises(KeyboardInterrupt):
        with make(replace(RICH, ema_decay=0.9), **given) as training:
            training.run_to(2)
            trained = training.subset.tensors()
            if where == "evaluating":
                with training.evaluating():
                    stop(2)
            stop(2)
    assert at_rest(training)
    found = training.subset.tensors()
    if where in ("body", "evaluating"):
        assert same(found, trained)
    else:
        plain = straight(make(replace(RICH, steps=2, ema_decay=None)))
        assert same(found, plain.subset.tensors())


def test_a_worker_that_is_told_to_stop_can_still_save_what_it_has(make, tmp_path):
    whole, checkpoints = straight(make()), Checkpoints(tmp_path / "state", 0, {})
    wanted = whole.subset.tensors()

    def stop(step):
        if step == 3:
            raise KeyboardInterrupt

    with make(checkpoints=checkpoints, on_step=stop) as first:
        with pytest.raises(KeyboardInterrupt):
            first.run_to(7)
        first.save()
    second = straight(make(checkpoints=checkpoints))
    assert checkpoints.step() == 3 and same(second.subset.tensors(), wanted)


# Refused -------------------------------------------------------------------------------------------------------------


def test_a_step_that_was_broken_off_is_neither_saved_nor_gone_on_from(make, unet, tmp_path):
    def stop(*_):
        if training.done == 2:
            raise KeyboardInterrupt

    handle = unet.mid_block.register_full_backward_hook(stop)
    checkpoints = Checkpoints(tmp_path / "state", 1, {})
    with make(checkpoints=checkpoints) as training:
        with pytest.raises(KeyboardInterrupt):
            training.run_to(7)
        for refused in (training.save, lambda: training.run_to(7), lambda: training.evaluating().__enter__()):
            with pytest.raises(AssertionError, match="at step 2 cannot go on.*step 3 was broken off"):
                refused()
    handle.remove()
    assert checkpoints.step() == 2


def test_averaged_values_are_neither_trained_nor_saved(make, tmp_path):
    checkpoints = Checkpoints(tmp_path / "state", 0, {})
    training = make(checkpoints=checkpoints)

    def check_refused(why):
        for refused in (training.save, lambda: training.run_to(2), lambda: training.evaluating().__enter__()):
            with pytest.raises(AssertionError, match=why):
                refused()

    check_refused("it is not entered")
    with training:
        training.run_to(1)
        with training.evaluating():
            check_refused("it is being evaluated")
    check_refused("it is over")
    assert checkpoints.step() is None


def test_a_rung_beyond_the_plan_and_a_fit_of_nothing_are_refused(make):
    with make() as training:
        with pytest.raises(ValueError, match="nothing is trained yet"):
            training.fit()
        with pytest.raises(ValueError, match="rung 8 is beyond the plan's 7 steps"):
            training.run_to(8)


def test_values_that_the_last_step_before_a_rung_spoils_are_noticed_there(make, unet):
    def spoil(step):
        if step == 2:
            unet.conv_in.bias.data[3] = float("inf")

    with pytest.raises(TrainingDiverged, match="at step 2 "):
        with make(on_step=spoil) as training:
            training.run_to(2)


def test_nothing_is_changed_by_one_that_cannot_be_made(make, unet):
    with pytest.raises(BadSelection, match="'step' is unknown"):
        straight(make(replace(RICH, schedule="step")))
    assert not unet.training


# States and seconds --------------------------------------------------------------------------------------------------


def test_a_state_is_written_once_and_only_where_it_is_asked_for(make, tmp_path):
    path = tmp_path / "state"
    with make(checkpoints=Checkpoints(path, 0, {})) as training:
        training.save()
        training.run_to(2)
        assert not path.exists(), "every 0: not by itself, and not before the first step"
        training.save()
        written = path.stat().st_ino
        training.save()
        assert path.stat().st_ino == written
    with make() as without:
        without.run_to(1)
        without.save()


def test_seconds_are_those_of_the_steps(make, unet):
    """A forward pass that takes 0.1 s more counts, evaluations, callbacks and pauses of 0.3 s each do not."""
    slow = unet.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    started = time.monotonic()
    with make(replace(RICH, steps=2), evaluations=[Evaluation(lambda step: step == 1, lambda step: time.sleep(0.3))],
              on_step=lambda step: time.sleep(0.3)) as training:
        training.run_to(1)
        with training.evaluating():
            time.sleep(0.3)
        training.run_to(2)
    slow.remove()
    assert 4 * 0.1 <= training.fit().seconds <= time.monotonic() - started - 4 * 0.3, "two steps of two parts"


def test_fit_is_the_training_without_a_pause(unet, units, scheduler, examples):
    given = (scheduler, subset_of(unet, units), examples, replace(PLAN, ema_decay=0.9))
    done = fit(unet, *given)
    values = given[1].tensors()
    given[1].restore()
    training = straight(Training(unet, scheduler, subset_of(unet, units), examples, given[3]))
    assert same(training.subset.tensors(), values) and training.fit().loss == done.loss
