"""Values as PostgreSQL takes them: plain finite numbers, JSON that jsonb can hold, text without NUL. No table is named here."""

from __future__ import annotations

import json
import math
from typing import Any

from storage.errors import BadValue


def number(name: str, value: Any) -> float:
    """Any finite number type, numpy's too, as a float; psycopg2 writes a numpy.float64 as `np.float64(…)`, which is not SQL.

    Raises BadValue for NaN and infinity, by name.
    """
    plain = float(value)
    if not math.isfinite(plain):
        raise BadValue(f"{name}={plain} must be a finite number: settle the trial as failed instead")
    return plain


def optional(name: str, value: Any) -> float | None:
    """The same, or None."""
    return None if value is None else number(name, value)


def dumped(value: Any) -> str:
    """JSON for jsonb, which can hold no NUL character and no NaN (ValueError)."""
    return json.dumps(value, allow_nan=False).replace("\\u0000", "")


def as_stored(value: Any) -> Any:
    """The value as it comes back from jsonb: tuples are lists, keys are text. Raises BadValue."""
    try:
        return json.loads(dumped(value))
    except (TypeError, ValueError) as error:
        raise BadValue(f"{error}: this cannot be stored as JSON; use plain values") from error


def clean(said: str | None) -> str | None:
    """Text as PostgreSQL can hold it: a message of a crashed library may have NUL characters."""
    return None if said is None else said.replace("\0", "")
