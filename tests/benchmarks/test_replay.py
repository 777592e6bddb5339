"""The table of measured trials as a problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from optuna.trial import FixedTrial

from benchmarks.cells import Cell
from benchmarks.replay import Table, answers
from hpo.flat import STEPS
from hpo.proposer import Proposer
from hpo.spaces.base import BadProposal


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.read()


def answered(table: Table, cell: Cell) -> Any:
    return table.propose(FixedTrial({**answers(cell), STEPS: table.rungs[-1]}))


def test_each_cell_of_the_table_can_be_asked_for_and_no_other(table: Table) -> None:
    for cell in table.rows:
        assert dict(answered(table, cell).root)["cell"] == cell
    absent, *others = table.rows
    without = replace(table, rows={cell: table.rows[cell] for cell in others})
    with pytest.raises(BadProposal, match="not in the table"):
        answered(without, absent)


def test_the_yardstick_is_full_fine_tuning_and_gives_the_reference_point(table: Table) -> None:
    cell = dict(table.propose(FixedTrial(dict(table.yardstick))).root)["cell"]
    assert cell.method == "full" and len(cell.regions) == 3
    assert table.values[table.rows[cell], -1, 1] == table.reference[1], "it copies more than the base model"


def test_baselines_are_the_papers_methods_as_published(table: Table) -> None:
    cells = [dict(table.propose(FixedTrial(dict(each))).root)["cell"] for each in table.baselines]
    assert [cell.method for cell in cells] == ["attention", "bias", "norm", "lora", "svdiff", "difffit"]
    assert all(len(cell.regions) == 3 for cell in cells) and {cell.rank for cell in cells if cell.method == "lora"} == {16}
    assert all(0 < cell.rate < 6 for cell in cells), "the reference rate lies inside of a method's range"
    assert all(each["steps"] == table.rungs[-1] for each in (table.yardstick, *table.baselines))


def test_no_cell_is_better_than_the_best_there_is(table: Table) -> None:
    for cell, row in table.rows.items():
        point = answered(table, cell)
        for rung, steps in enumerate(table.rungs):
            values = table.true(point, steps)
            assert (values == table.values[row, rung]).all()
            assert np.prod(np.maximum(np.array(table.reference) - values, 0)) <= table.best_hypervolume


def test_a_rank_is_on_one_scale_for_all_methods(table: Table) -> None:
    view = Proposer("gp", 0, ["minimize"] * 2, table.propose, table.rungs).history.view
    assert set(view.known) == {"method", "blocks", "rank", "learning rate", STEPS}
    assert all(list(ranks) == sorted(ranks) for _, ranks in table.offers.values())
