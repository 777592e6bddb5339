"""What `python -m benchmarks.outer_loop` times is a trial that ends well, on a study like one that a search left."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import outer_loop_study
from hpo.identity import model_folder
from hpo.settings import Settings
from hpo.spaces.base import Trained
from storage import embedded, leases


def test_a_whole_trial_and_a_told_one_end_well_in_a_study_filled_in_bulk(tmp_path: Path) -> None:
    url, chosen = embedded.start(), outer_loop_study.settings("of-20", 100, sampler="random", out=str(tmp_path))
    made = outer_loop_study.create(url, chosen)
    outer_loop_study.fill(made, 20)
    search = outer_loop_study.join(url, chosen, Trained(model_folder(Settings())))
    try:
        outer_loop_study.whole_trial(search)
        outer_loop_study.one_trial(search, np.random.default_rng(1))
        counts = leases.counts(search.store, search.id)
    finally:
        search.store.close()
        made.store.close()
    assert (counts.finished, counts.running, counts.failed) == (22, 0, 0)
