"""The contract of `Method` and `Subset`, kept by every method with every choice of kinds that the search offers."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from trainers import checkpoint
from trainers.candidate import Candidate
from trainers.errors import BadSelection, TrainingDiverged
from trainers.fit import Plan, fit
from trainers.methods import METHODS, Subset
from trainers.units import REGIONS

CHOICES = [(method, kinds) for method in METHODS.values() for kinds in method.kinds]
PLAN = Plan(steps=2, learning_rate=1e-3, batch_size=3, seed=5)
LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
STATES = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=CHOICES, ids=lambda choice: f"{choice[0].name}-{'+'.join(choice[1])}")
def candidate(request) -> Candidate:
    method, kinds = request.param
    return Candidate(method.name, REGIONS, kinds, method.reference_rate, 2, method.ranks[1] if method.ranks else None)


def apply(unet, units, candidate, seed: int = 0) -> Subset:
    torch.manual_seed(seed)
    return METHODS[candidate.method].apply(unet, units, candidate)


@torch.no_grad()
def output(unet) -> torch.Tensor:
    return unet(LATENTS, torch.tensor([10, 900]), STATES).sample


def snapshot(unet) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


def check_untouched(unet, before: dict[str, torch.Tensor]) -> None:
    after = unet.state_dict()
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert [name for name, p in unet.named_parameters() if p.requires_grad or p.grad is not None] == []
    assert not any("peft" in type(module).__module__ for module in unet.modules())
    assert not any(module.training for module in unet.modules())


@contextmanager
def optimizers_seen():
    """The optimizers that take a step inside."""
    seen: dict[int, torch.optim.Optimizer] = {}
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: seen.update({id(optimizer): optimizer}))
    try:
        yield seen
    finally:
        hook.remove()


def test_at_the_start_the_network_computes_what_the_base_does(unet, units, candidate):
    before = output(unet)
    apply(unet, units, candidate)
    assert torch.equal(output(unet), before)


def test_gradients_reach_all_that_is_selected_and_nothing_else(unet, units, candidate):
    subset = apply(unet, units, candidate)
    unet(LATENTS, torch.tensor([10, 900]), STATES).sample.square().mean().backward()
    selected = {id(parameter) for parameter in subset.parameters.values()}
    for name, parameter in unet.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (id(parameter) in selected), name
    # Zero gradients would do as well as none: all that training moves must be moved by the first two steps at least.
    flat = [name for name, parameter in subset.parameters.items() if not parameter.grad.any() and "lora_A" not in name]
    assert flat == []


def test_all_else_is_frozen_also_in_a_network_that_came_trainable(unet, units, candidate):
    unet.requires_grad_(True)
    subset = apply(unet, units, candidate)
    trainable = {id(parameter) for parameter in unet.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for parameter in subset.parameters.values()}


def test_the_count_is_what_the_optimizer_holds(unet, units, candidate, scheduler, examples):
    declared = METHODS[candidate.method].count(unet, units, candidate)
    subset = apply(unet, units, candidate)
    with optimizers_seen() as seen:
        fit(unet, scheduler, subset, examples, PLAN)
    (optimizer,) = seen.values()
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert declared == subset.count == sum(parameter.numel() for parameter in held)
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in optimizer.state}


def test_counting_leaves_the_network_alone(unet, units, candidate):
    before = snapshot(unet)
    METHODS[candidate.method].count(unet, units, candidate)
    check_untouched(unet, before)


def test_training_moves_the_subset_alone_and_restore_is_exact(unet, units, candidate, scheduler, examples):
    before, said = snapshot(unet), output(unet)
    subset = apply(unet, units, candidate)
    start = subset.tensors()
    fit(unet, scheduler, subset, examples, PLAN)
    now, own = subset.tensors(), {id(parameter) for parameter in subset.parameters.values()}
    assert [name for name in now if torch.equal(now[name], start[name])] == []
    others = [parameter for parameter in unet.parameters() if id(parameter) not in own]
    frozen = [tensor for name, tensor in before.items() if candidate.method == "lora" or name not in now]
    assert len(others) == len(frozen) and all(torch.equal(a, b) for a, b in zip(others, frozen))
    assert not torch.equal(output(unet), said)
    subset.restore()
    check_untouched(unet, before)
    assert torch.equal(output(unet), said)


def test_restore_is_exact_after_an_exception_in_the_middle(unet, units, candidate, scheduler, examples):
    def stop(step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    before = snapshot(unet)
    subset = apply(unet, units, candidate)
    with pytest.raises(KeyboardInterrupt):
        fit(unet, scheduler, subset, examples, PLAN, stop)
    subset.restore()
    check_untouched(unet, before)


def test_restore_is_exact_after_weights_that_are_not_finite(unet, units, candidate, scheduler, examples):
    before = snapshot(unet)
    examples.mean[:] = float("nan")
    subset = apply(unet, units, candidate)
    with pytest.raises(TrainingDiverged):
        fit(unet, scheduler, subset, examples, PLAN)
    assert any(tensor.isnan().any() for tensor in subset.tensors().values()), "nothing was spoilt, so nothing is proved"
    subset.restore()
    check_untouched(unet, before)


def test_what_is_saved_and_loaded_computes_the_same(unet, units, candidate, scheduler, examples, tmp_path):
    subset = apply(unet, units, candidate)
    fit(unet, scheduler, subset, examples, PLAN)
    trained = output(unet)
    checkpoint.save(tmp_path / "kept.safetensors", subset, candidate, "base")
    subset.restore()
    read, _, tensors = checkpoint.read(tmp_path / "kept.safetensors")
    again = apply(unet, units, read, seed=99)
    assert not torch.equal(output(unet), trained)
    again.load(tensors)
    assert torch.equal(output(unet), trained)


@pytest.mark.parametrize("spoil, word", [(lambda tensors, name: tensors.pop(name), "missing"),
                                         (lambda tensors, name: tensors.update({name: torch.zeros(1)}), "(1,)")])
def test_tensors_of_another_candidate_are_refused_before_anything_is_set(unet, units, candidate, spoil, word):
    subset = apply(unet, units, candidate)
    start = subset.tensors()
    wrong = {name: torch.full_like(tensor, 7.0) for name, tensor in start.items()}
    last = list(start)[-1]
    spoil(wrong, last)
    with pytest.raises(BadSelection) as caught:
        subset.load(wrong)
    assert last in str(caught.value) and word in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(start[name], tensor) for name, tensor in subset.tensors().items())


def test_tensors_are_copies(unet, units, candidate):
    subset = apply(unet, units, candidate)
    for tensor in subset.tensors().values():
        tensor.fill_(7.0)
    assert not any((parameter == 7.0).all() for parameter in subset.parameters.values())


def test_all_candidates_one_after_another_leave_the_same_bits(unet, units, scheduler, examples):
    before = snapshot(unet)
    for method, kinds in CHOICES:
        candidate = Candidate(method.name, ("mid", "up"), kinds, 1e-2, 1, method.ranks[0] if method.ranks else None)
        subset = apply(unet, units, candidate)
        fit(unet, scheduler, subset, examples, Plan(steps=1, learning_rate=1e-2, batch_size=2, seed=0))
        subset.restore()
    check_untouched(unet, before)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_a_selection_without_parameters_is_refused_and_nothing_is_touched(unet, units, method):
    before = snapshot(unet)
    empty = Candidate(method.name, ("mid",), ("resampling",), 1e-3, 1, 4 if method.ranks else None)
    with pytest.raises(BadSelection):
        method.apply(unet, units, empty)
    with pytest.raises(BadSelection):
        method.count(unet, units, empty)
    check_untouched(unet, before)
