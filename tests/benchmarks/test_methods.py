"""docs/methods.md has every method and says of none that it fails; what is left out of PEFT still fails."""

from __future__ import annotations

import re

import pytest

from benchmarks.documents import DOCS
from benchmarks.methods import FILE, LEFT_OUT, failing, mark
from trainers.methods import METHODS
from trainers.methods.conformance import PROPERTIES, Verdict


def part(name: str) -> str:
    text = (DOCS / FILE).read_text()
    return text.split(f"<!-- begin {name} -->")[1].split(f"<!-- end {name} -->")[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_table_has_every_method_and_property(precision):
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part(precision).splitlines() if line.startswith("|")]
    assert header == ["method", *PROPERTIES]
    assert {method.title for method in METHODS.values()} <= {row[0] for row in rows}
    assert all(len(row) == len(header) and re.fullmatch(r"yes|exact|\de-\d\d", cell) for row in rows for cell in row[1:])


def test_the_overview_has_every_method_with_its_rates_and_its_paper():
    rows = {line.split("|")[1].strip(): line for line in part("overview").splitlines() if line.startswith("|")}
    for name, method in METHODS.items():
        rates = " … ".join(f"{rate:g}" for rate in method.learning_rates)
        assert all(f"| {each} |" in rows[f"`{name}`"] for each in (method.title, rates, method.paper)), f"{name}: python -m benchmarks.methods"


def test_a_property_that_does_not_hold_stands_out():
    assert mark(Verdict(False, "1e+00")) == "**no**: 1e+00"
    assert mark(Verdict(True, "exact")) == "exact"


@pytest.mark.parametrize("method, kinds, precision, reason", LEFT_OUT, ids=lambda value: getattr(value, "title", ""))
def test_what_is_left_out_fails_and_is_in_the_document(method, kinds, precision, reason):
    """If it does not, PEFT was mended: it can have a line in the table."""
    assert not all(verdict.holds for verdict in failing(method, kinds, precision).values())
    assert f"| {method.title} |" in part("left out")
