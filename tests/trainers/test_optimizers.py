"""Optimizers: groups by rate, the settings of the papers' code, extras that are asked for by name, and that all of them learn."""

from __future__ import annotations

import pytest
import torch

from trainers import optimizers
from trainers.errors import BadSelection
from trainers.optimizers import OPTIMIZERS, PACKAGES, check, optimizer_of, scale_rates


def available(name: str) -> str:
    """The optimizer's name, or the test is skipped where its package is missing."""
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name], reason=f"{name} needs {PACKAGES[name]}: pip install 'peft-pareto[optimizers]'")
    return name


@pytest.fixture
def parameters():
    torch.manual_seed(0)
    return {"matrix": torch.nn.Parameter(torch.randn(80, 80)), "scale": torch.nn.Parameter(torch.ones(80)), "shift": torch.nn.Parameter(torch.zeros(80))}


def test_one_group_for_each_rate_in_the_order_of_the_parameters(parameters):
    optimizer = optimizer_of("adamw", parameters, {"matrix": 1e-3, "scale": 1e-5, "shift": 1e-3})
    assert [(group["lr"], [id(p) for p in group["params"]]) for group in optimizer.param_groups] == [
        (1e-3, [id(parameters["matrix"]), id(parameters["shift"])]), (1e-5, [id(parameters["scale"])])]
    scale_rates(optimizer, 0.5)
    scale_rates(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [2.5e-4, 2.5e-6], "the factor is on the rate itself, not on the last one"


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_the_settings_are_the_papers(parameters, name):
    (group,) = optimizer_of(available(name), parameters, dict.fromkeys(parameters, 1e-3)).param_groups
    assert (tuple(group["betas"]), group["weight_decay"], group["eps"]) == ((0.9, 0.999), 1e-2, 1e-8)
    assert name != "adamw" or group["fused"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_comes_nearer_to_a_target(parameters, name):
    optimizer = optimizer_of(available(name), parameters, dict.fromkeys(parameters, 1e-2))
    distances = []
    for _ in range(60):
        optimizer.zero_grad()
        distance = sum(parameter.square().mean() for name, parameter in parameters.items() if name != "shift") + parameters["shift"].mean()
        distance.backward()
        distances.append(distance.item())
        optimizer.step()
    assert distances[-1] < distances[0] - 0.01 and all(parameter.isfinite().all() for parameter in parameters.values())


def test_eight_bits_keep_small_tensors_moments_in_fp32_and_move_like_adamw(parameters):
    moved = {}
    for name in ("adamw", available("adamw8bit")):
        own = {each: torch.nn.Parameter(parameter.detach().clone()) for each, parameter in parameters.items()}
        optimizer = optimizer_of(name, own, dict.fromkeys(own, 1e-2))
        sum(parameter.square().sum() for parameter in own.values()).backward()
        optimizer.step()
        moved[name] = own
    assert [optimizer.state[parameter]["state1"].dtype for parameter in own.values()] == [torch.uint8, torch.float32, torch.float32]
    for each in parameters:
        torch.testing.assert_close(moved["adamw8bit"][each], moved["adamw"][each], atol=2e-3, rtol=0)


def test_prodigy_does_not_read_the_rate_and_refuses_two_of_them(parameters, capsys):
    (group,) = optimizer_of(available("prodigy"), parameters, dict.fromkeys(parameters, 1e-3)).param_groups
    assert group["lr"] == 1.0 and capsys.readouterr().out == ""
    with pytest.raises(BadSelection, match=r"2 \(1e-05, 0.001\): take --optimizer adamw"):
        optimizer_of("prodigy", parameters, {"matrix": 1e-3, "scale": 1e-5, "shift": 1e-3})


def test_an_unknown_optimizer_is_refused_with_the_nearest():
    with pytest.raises(BadSelection, match="'adam' is unknown: take adamw"):
        check("adam")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_one_line_with_the_command(name, monkeypatch):
    monkeypatch.setattr(optimizers, "PACKAGES", {name: "no_such_package"})
    with pytest.raises(BadSelection) as refused:
        check(name)
    assert str(refused.value) == f"optimizer {name} needs no_such_package, which is not installed: pip install 'peft-pareto[optimizers]'"
