"""Optuna's system attributes of a trial and of its study, read and written in one go; the SQL is in sql/attributes.sql."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import text

from storage import leases
from storage.store import Store

READ = ("SELECT true AS of_study, key, value_json FROM study_system_attributes WHERE study_id = :study AND key = ANY (:keys) "
        "UNION ALL SELECT false, key, value_json FROM trial_system_attributes WHERE trial_id = :trial")
WRITE = ("SELECT peft_pareto.write_attributes(:trial, CAST(:own AS text[]), CAST(:own_values AS text[]), CAST(:keys AS text[]), CAST(:values AS text[]))")


class Attributes:
    """Stands in for Optuna's storage where something is noted with a trial that this worker holds: what is set is written by `write`.

    Optuna's storage would read all attributes of the study each time, and in those are the notes of all trials. study_keys: of those that are
    read; the trial's own are read all. Raises StorageUnreachable.
    """

    def __init__(self, store: Store, study_id: int, trial_id: int, study_keys: Collection[str]):
        self.store, self.trial_id = store, trial_id
        self.study: dict[str, Any] = {}
        self.trial: dict[str, Any] = {}
        with leases.translated(), store.at_once.connect() as connection:
            for of_study, key, value in connection.execute(text(READ), {"study": study_id, "trial": trial_id, "keys": list(study_keys)}):
                (self.study if of_study else self.trial)[key] = json.loads(value)
        self.study_set: dict[str, Any] = {}
        self.trial_set: dict[str, Any] = {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self.study)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.study[key] = self.study_set[key] = value

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.trial[key] = self.trial_set[key] = value

    def write(self) -> None:
        """All that was set since the last time, in one transaction. Raises LeaseLost, StorageUnreachable."""
        given = {"trial": self.trial_id, "own": list(self.trial_set), "own_values": [json.dumps(value) for value in self.trial_set.values()],
                 "keys": list(self.study_set), "values": [json.dumps(value) for value in self.study_set.values()]}
        with leases.translated(), self.store.at_once.connect() as connection:
            connection.execute(text(WRITE), given)
        self.study_set, self.trial_set = {}, {}
