"""The rungs of a study: the numbers of steps at which trials are evaluated, and which candidates may have."""

from __future__ import annotations

from hpo.errors import BadSetting


def ladder(steps: int, rungs: int, reduction: int) -> tuple[int, ...]:
    """steps / reduction^k, rounded, for k = rungs − 1 … 0 (successive halving, arXiv 1502.07943). Raises BadSetting where they do not grow.

    >>> ladder(200, 3, 3)
    (22, 67, 200)
    """
    found = grid(steps, rungs, reduction)
    if not grows(found):
        most = next(count for count in range(rungs, 0, -1) if grows(grid(steps, count, reduction)))
        raise BadSetting(f"--rungs {rungs} --reduction {reduction}: of --steps {steps} they would be {', '.join(map(str, found))}, which do not grow "
                         f"from 1 on: take --rungs {most}, or more --steps")
    return found


def grid(steps: int, rungs: int, reduction: int) -> tuple[int, ...]:
    return tuple(round(steps / reduction**k) for k in reversed(range(rungs)))


def grows(rungs: tuple[int, ...]) -> bool:
    return rungs[0] >= 1 and all(before < after for before, after in zip(rungs, rungs[1:]))
