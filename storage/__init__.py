"""The store: PostgreSQL, embedded or anybody's, with Optuna's tables and ours. Knows no trainer, metric or sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.store import Store


def open(url: str, worker: str | None = None, upgrade: bool = False) -> Store:
    """The store at `url`, its tables made if need be, and only with `upgrade` brought up to date; see `storage.store.open_store`."""
    # Optuna takes a second to import, which `python -m storage stop` should not wait for.
    from storage.store import open_store

    return open_store(url, worker, upgrade)
