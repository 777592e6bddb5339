"""Signs of life: who gives some may be spoken for, who gives none may not, and is reported once what was kept has run out."""

from __future__ import annotations

import pytest

from storage import life as module
from storage.life import Life
from storage.retrying import PATIENCE_SECONDS


class Clock:
    """A clock that stands until it is put forward."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(module, "time", made := Clock())
    return made


def looks(life: Life, clock: Clock, seconds: float) -> list[bool]:
    """Look every ten seconds, for so long."""
    found = []
    for _ in range(round(seconds / 10)):
        clock.seconds += 10
        found.append(life.goes_on())
    return found


def test_it_goes_on_while_there_are_signs_and_for_the_limit_after_them(clock: Clock) -> None:
    said: list[str] = []
    life = Life("trial 7", 100.0, said.append)
    life.begin(30.0)
    for _ in range(20):
        assert all(looks(life, clock, 100))
        life.sign()
    life.at = "step 3 of 9"
    assert looks(life, clock, 130) == [True] * 10 + [False] * 3 and said == []
    assert looks(life, clock, 10) == [False] and said == ["trial 7: no sign of life for 140 s at: step 3 of 9"]
    life.sign()
    assert all(looks(life, clock, 100)), "it came back"


def test_a_process_that_was_paused_as_a_whole_does_not_hang(clock: Clock) -> None:
    said: list[str] = []
    life = Life("trial 7", 100.0, said.append)
    life.begin(30.0)
    clock.seconds += 5000
    assert looks(life, clock, 120) == [True] * 11 + [False] and said == []


def test_without_a_limit_it_never_hangs(clock: Clock) -> None:
    life = Life()
    life.begin(30.0)
    assert all(looks(life, clock, 10 * PATIENCE_SECONDS))
