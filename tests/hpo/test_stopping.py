"""A request to stop leaves an interruptible block at once, and waits for the end of what is not one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from hpo import stopping
from hpo.stopping import Stopped, interruptible


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    former = signal.getsignal(signal.SIGUSR1)
    stopping.on_signals(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, former)
    stopping.requested.clear()


def test_a_signal_leaves_an_interruptible_block() -> None:
    with pytest.raises(Stopped), interruptible():
        signal.raise_signal(signal.SIGUSR1)
        time.sleep(5)
        pytest.fail("the block went on")


def test_a_signal_outside_waits_for_the_next_block() -> None:
    signal.raise_signal(signal.SIGUSR1)
    reached = True
    with pytest.raises(Stopped), interruptible():
        reached = False
    assert reached


def test_a_second_signal_does_not_disturb_the_giving_back() -> None:
    with pytest.raises(Stopped):
        try:
            with interruptible():
                signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.raise_signal(signal.SIGUSR1)


def test_without_a_request_nothing_happens() -> None:
    with interruptible():
        pass
    assert not stopping.requested.is_set()


def test_no_library_that_catches_exceptions_swallows_it() -> None:
    assert not issubclass(Stopped, Exception)
