"""The table of methods: names, ranges, and what an unknown name is answered."""

from __future__ import annotations

import pytest

from trainers.errors import BadSelection
from trainers.methods import METHODS, method


def test_the_methods_of_the_papers_are_there_under_their_names():
    assert {"full", "attention", "norm", "bias", "svdiff", "difffit", "lora", "rslora", "dora", "loha", "lokr", "oft", "boft", "ia3", "hra", "vera",
            "ln-tuning"} <= set(METHODS)
    assert all(method(name).name == name for name in METHODS)


@pytest.mark.parametrize("each", METHODS.values(), ids=lambda each: each.name)
def test_the_baseline_is_inside_the_search(each):
    low, high = each.learning_rates
    assert 0 < low <= each.reference_rate <= high
    assert each.title and each.kinds and len(set(each.kinds)) == len(each.kinds)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(BadSelection, match="method 'lorra' is unknown: take lora"):
        method("lorra")
