"""The Ray engine: Ray Tune with a Searcher over the same study. Postgres is the truth; Ray only places trials."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from hpo import home
from hpo.engines.base import Engine, Watch
from hpo.engines.local import default_workers, gpus
from hpo.settings import Settings

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between looks at the study when nothing may start


def make_trainable():
    """A Tune class whose actor joins the study once and then runs one of its trials per Tune trial.

    What a trial is, is asked for in the actor: the process that asks holds the lease, so a proposal never waits in Ray's
    queue with a lease that nobody extends, and an actor that dies loses nothing but its own trial.
    """
    from ray import tune

    class StudyTrial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            os.environ[home.HOME_VARIABLE] = config["home"]
            os.chdir(config["folder"])
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
            import torch

            from hpo.worker import Worker, quiet_libraries

            torch.set_num_threads(config["threads"])
            quiet_libraries()
            self.worker = Worker(config["url"], config["study"], config["device"])

        def reset_config(self, config: dict[str, Any]) -> bool:
            return True  # the actor is used again: the base model stays loaded

        def step(self) -> dict[str, Any]:
            ended = self.worker.step()
            return {"done": True, "study_ended": ended is not None, "status": ended.status if ended else 0}

        def save_checkpoint(self, checkpoint_dir: str):
            return None  # what a trial needs to go on is in Postgres

        def load_checkpoint(self, checkpoint) -> None:
            pass

    return StudyTrial


def make_searcher(url: str, settings: Settings, most: int, given: dict[str, Any]):
    """A Ray Searcher that lets as many trials start as the study still needs, and ends when the study has."""
    from ray.tune.search import Searcher

    from hpo.study import Search
    from storage import leases
    from storage.store import open_store

    class StudySearcher(Searcher):
        def __init__(self):
            super().__init__(metric=None, mode=None)
            self.search = Search(open_store(url), settings)
            self.live: set[str] = set()
            self.looked = 0.0

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            if len(self.live) >= most or time.monotonic() - self.looked < LOOK_SECONDS:
                return None
            counts = leases.counts(self.search.store, self.search.id)
            if self.search.ended(counts) is not None:
                return Searcher.FINISHED
            if len(self.live) >= counts.trials - counts.finished:
                self.looked = time.monotonic()
                return None
            self.live.add(trial_id)
            return dict(given)

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            self.live.discard(trial_id)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: a relaunch builds a new Tuner from the study."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: see `save`."""

        def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
            """Nothing: see `save`."""

    return StudySearcher()


class Ray(Engine):
    name = "ray"

    def run(self, settings: Settings, url: str, watch: Watch) -> int:
        import ray
        from ray import tune

        devices = gpus(settings.device)
        most = settings.workers or (max(int(len(devices) / settings.gpus_per_trial), 1) if devices else default_workers(devices))
        cores = os.cpu_count() or 1
        threads = max(cores // most, 1)
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(address=settings.ray_address, **({"logging_level": logging.ERROR, "log_to_driver": False} if settings.ray_address else quiet))
        given = {"url": url, "study": settings.study, "threads": threads, "device": "cuda" if devices else "cpu",
                 "home": str(home.data_root().absolute()), "folder": os.getcwd()}

        class Watching(tune.Callback):
            def on_step_end(self, iteration, trials, **info) -> None:
                watch()

        resources = {"cpu": min(threads, cores / most), "gpu": settings.gpus_per_trial if devices else 0}
        tuner = tune.Tuner(
            tune.with_resources(make_trainable(), resources),
            tune_config=tune.TuneConfig(search_alg=make_searcher(url, settings, most, given), num_samples=-1, reuse_actors=True,
                                        trial_name_creator=lambda trial: trial.trial_id),
            run_config=tune.RunConfig(name="peft-pareto", storage_path=str(home.data_root().absolute() / "ray"), verbose=0,
                                      callbacks=[Watching()], failure_config=tune.FailureConfig(max_failures=0)))
        try:
            tuner.fit()
        finally:
            ray.shutdown()
        return 0
