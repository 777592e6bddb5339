"""The outer loop: `search` runs a study, `open_study` gives its Optuna study, `Settings` says what is run."""

from __future__ import annotations

from hpo.settings import Settings


def search(settings: Settings):
    """Run or resume a study; see `hpo.launch.search`."""
    from hpo.launch import search

    return search(settings)


def open_study(name: str, storage: str | None = None):
    """The Optuna study of that name. storage: postgresql:// URL, or None for the embedded server. Raises UnknownStudy."""
    import optuna

    from hpo.command import store_url
    from storage import results
    from storage.store import open_store

    store = open_store(store_url(storage))
    results.study_id(store, name)
    return optuna.load_study(study_name=name, storage=store.optuna)


__all__ = ["Settings", "open_study", "search"]
