"""The outer loop: `search` runs a study, `open_study` gives its Optuna study, `Settings` says what is run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def _refuse_shadows() -> None:
    """`python -m` and notebooks look for packages in the current folder first, where the user may have a metrics.py."""
    here = Path(__file__).resolve().parent.parent
    for name in ("metrics", "storage", "trainers"):
        found = find_spec(name)
        if found is None or found.origin is None or Path(found.origin).resolve().parent.parent != here:
            place = "nothing" if found is None else found.origin or "a folder without __init__.py"
            # With this name, `python -m hpo.launch` prints the message on one line.
            raise ImportError(f"package {name!r} of peft-pareto is wanted in {here}, found is {place}: run from another folder, "
                              "or set PYTHONSAFEPATH=1", name=__name__)


_refuse_shadows()

from hpo.settings import Settings  # noqa: E402 - it imports the packages that were looked for


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
