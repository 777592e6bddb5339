"""The table of samplers."""

from __future__ import annotations

import warnings

import pytest

from hpo import samplers
from hpo.errors import BadSetting
from hpo.samplers import SAMPLERS, check, made


@pytest.mark.parametrize("name", SAMPLERS)
def test_optuna_gives_no_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(SAMPLERS[name].make, 0, lambda wishes, generator: None)


def test_an_unknown_sampler_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(BadSetting, match="--sampler 'nsga' is unknown: take nsga2"):
        check("nsga")


def test_the_gaussian_process_says_what_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(samplers, "find_spec", lambda package: None if package == "scipy" else object())
    with pytest.raises(BadSetting, match="--sampler gp: .* needs scipy, which is not installed; pip install scipy, or take tpe"):
        check("gp")
    check("tpe")
