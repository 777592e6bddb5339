"""From Python: Settings, search and open_study are all there is to import."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import hpo
from storage.errors import UnknownStudy


def test_an_open_study_is_optunas_with_its_trials(searching: Callable, finish: Callable, url: str) -> None:
    search = searching()
    finish(search, fd=1.0, copy_excess=0.5)
    for storage in (None, url):
        study = hpo.open_study(search.settings.study, storage)
        assert [trial.values for trial in study.trials] == [[1.0, 0.5]] and len(study.directions) == 2


def test_an_unknown_study_is_named_with_those_that_there_are(searching: Callable) -> None:
    known = searching().settings.study
    with pytest.raises(UnknownStudy, match=known):
        hpo.open_study("nowhere")


def test_the_three_names_are_public() -> None:
    assert set(hpo.__all__) == {"Settings", "open_study", "search"} and all(hasattr(hpo, name) for name in hpo.__all__)
