"""Reads the package's .sql files, which stay beside the code. What they say is in the files themselves."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

#: Functions, triggers and views, in the order in which they need each other.
SCRIPTS = ("rules.sql", "leases.sql", "trials.sql", "rungs.sql", "results.sql", "attributes.sql", "front.sql", "views.sql", "standing.sql")


@cache
def text_of(name: str, folder: str = "sql") -> str:
    """The file `storage/<folder>/<name>`; works from an installed package too."""
    return resources.files("storage").joinpath(folder, name).read_text(encoding="utf-8")


def placed(sql: str, optuna_schema: str) -> str:
    """In our files `optuna.` stands for the schema where Optuna's tables are, usually public."""
    quoted = '"' + optuna_schema.replace('"', '""') + '"'
    return re.sub(r"\boptuna\.", lambda _: quoted + ".", sql)
