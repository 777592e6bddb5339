"""The record of a training: the mean of its last tenth, the share that was kept, and both over several goes."""

from __future__ import annotations

import pytest

from trainers.record import Record


@pytest.mark.parametrize("steps, wanted", [(1, 1.0), (9, 9.0), (10, 10.0), (20, 19.5), (35, 34.0)])
def test_the_loss_is_that_of_the_last_tenth(steps, wanted):
    record = Record(batch_size=4)
    for step in range(1, steps + 1):
        record.add(float(step), 4)
    assert record.fit().loss == wanted and record.fit().kept == 1.0


def test_the_share_of_kept_samples():
    record = Record(batch_size=4)
    for kept in (4, 0, 1, 3):
        record.add(1.0, kept)
    assert record.fit().kept == 0.5


def test_a_second_go_adds_to_the_first():
    first, second = Record(batch_size=2), Record(batch_size=2)
    first.seconds = 100.0
    first.add(0.1, 1)
    second.load_state_dict(first.state_dict())
    second.add(0.3, 2)
    assert second.losses == pytest.approx([0.1, 0.3]) and second.fit().kept == 0.75 and second.fit().seconds == 100.0
