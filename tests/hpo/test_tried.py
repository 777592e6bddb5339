"""Warnings about versions of libraries that were not tried."""

from __future__ import annotations

import pytest

from hpo import engines, tried


def test_what_is_installed_here_was_tried() -> None:
    assert [tried.warnings(name) for name in engines.CLASSES] == [[]] * len(engines.CLASSES)


@pytest.mark.parametrize("engine", engines.CLASSES)
def test_another_version_is_a_line_that_names_it_and_the_way_out(engine: str, monkeypatch) -> None:
    monkeypatch.setattr(tried, "version", {"optuna": "5.1.0", "ray": "2.60.3"}.__getitem__)
    assert tried.warnings(engine) == ["optuna 5.1.0 was not tried with this program, only 5.0: if anything is odd, install optuna==5.0.*"]


def test_ray_matters_only_where_it_runs_trials(monkeypatch) -> None:
    monkeypatch.setattr(tried, "version", {"optuna": "5.0.9", "ray": "3.0.0"}.__getitem__)
    assert tried.warnings("local") == [] and len(tried.warnings("ray")) == 1
