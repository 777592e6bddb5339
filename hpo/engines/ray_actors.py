"""What runs in Ray's processes: the Tune trainable, whose actor is one worker of the study, and the bell that stops them all."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from ray import tune

from hpo import home, stopping
from hpo.command import OUR_ERRORS, one_line
from hpo.stopping import Stopped

LISTEN_SECONDS = 0.5
STOP_SIGNAL = signal.SIGUSR1  # SIGTERM is Ray's own


class Bell:
    """One actor that all others listen to. Rung by the driver, at the end or on Ctrl-C."""

    def __init__(self):
        self.rung, self.workers = False, []

    def join(self, worker: str) -> None:
        self.workers.append(worker)

    def ring(self) -> list[str]:
        """Ask everybody to stop; gives the workers' names, by which leases are held."""
        self.rung = True
        return self.workers

    def is_rung(self) -> bool:
        return self.rung


class StudyTrial(tune.Trainable):
    """Joins the study once, and then runs one of its trials per Tune trial, a rung a step: the base model stays loaded.

    A result has the study's `trial` and its `steps` at a rung, and `refused` if this worker cannot take part, in the words for the user.
    """

    def setup(self, config: dict[str, Any], given: dict[str, Any], bell: Any) -> None:
        from hpo.worker import Worker, log_to_stderr, use_threads

        if given["home"] is not None:
            os.environ[home.HOME_VARIABLE] = given["home"]
        stopping.on_signals(STOP_SIGNAL)
        threading.Thread(target=listen, args=(bell,), name="bell", daemon=True).start()
        log_to_stderr()
        self.refused = None
        try:
            with stopping.interruptible():
                use_threads(given["threads"])
                self.worker = Worker(given["url"], given["study"], given["device"])
        except OUR_ERRORS as error:
            self.refused = one_line(error)
        except Stopped:
            return
        else:
            bell.join.remote(self.worker.search.store.worker)

    def reset_config(self, config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        from hpo.worker import Rung

        stopping.at_rest(None)
        done = None
        try:
            if self.refused is None:
                done = self.worker.turn()
        except OUR_ERRORS as error:
            self.refused = one_line(error)
        except Stopped:
            pass
        rung = {"trial": done.trial, "steps": done.steps} if isinstance(done, Rung) else {}
        if rung:
            stopping.at_rest(self.worker.give_back)
        return {"done": not rung, "refused": self.refused, **rung}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: what a trial needs to go on is in Postgres."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see `save_checkpoint`."""


def listen(bell: Any) -> None:
    """Ask this process to stop once the bell is rung."""
    import ray

    while not ray.get(bell.is_rung.remote()):
        time.sleep(LISTEN_SECONDS)
    signal.pthread_kill(threading.main_thread().ident, STOP_SIGNAL)
