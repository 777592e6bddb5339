"""The rungs of a study: the numbers of steps which candidates may have, and at which trials are evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from hpo.errors import BadSetting

SHOWN = 6  # of rungs that do not grow, in a message


def ladder(steps: int, rungs: int, reduction: int) -> tuple[int, ...]:
    """steps / reduction^k, rounded, for k = rungs − 1 … 0 (successive halving, arXiv 1502.07943). Raises BadSetting where they do not grow.

    >>> ladder(200, 3, 3)
    (22, 67, 200)
    """
    found = longest(steps, reduction)
    if rungs > len(found):
        shown = (rung(steps, reduction, len(found)), *found)
        before, after = ", ".join(map(str, shown[:SHOWN])), f", … up to {steps}" if len(shown) > SHOWN else ""
        raise BadSetting(f"--rungs {rungs} --reduction {reduction}: of --steps {steps} they would be {'… ' if rungs > len(shown) else ''}{before}{after}, "
                         f"which do not grow from 1 on: take --rungs {len(found)}, or more --steps")
    return found[-rungs:]


def evaluated(rungs: Sequence[int], last: int, steps: int) -> tuple[int, ...]:
    """Where a trial of so many steps is evaluated, if trials are at the study's last so many rungs: at those below its own steps, and at those.

    >>> evaluated((22, 67, 200), 2, 200), evaluated((22, 67, 200), 2, 67)
    ((67, 200), (67,))
    """
    return (*(each for each in rungs[-last:] if each < steps), steps)


def longest(steps: int, reduction: int) -> tuple[int, ...]:
    """As many rungs as grow from 1 on. Counted from the last one: from the first asked for, numbers would have as many digits as somebody may ask for rungs."""
    found = [steps]
    while 1 <= (below := rung(steps, reduction, len(found))) < found[-1]:
        found.append(below)
    return tuple(reversed(found))


def rung(steps: int, reduction: int, k: int) -> int:
    return round(steps / reduction**k)
