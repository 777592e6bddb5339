"""What runs in Ray's processes: the Tune trainable, whose actor is one worker of the study, and the bell that stops them all."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import Any

from ray import tune

from hpo import home, stopping
from hpo.command import OUR_ERRORS, one_line
from hpo.stopping import Stopped

LISTEN_SECONDS = 0.5
BELL_LOST = "the process ray::Bell, by which this launch stops its actors, was lost: run the same command again, evaluated rungs are kept"
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

    A result is a rung's: it has the study's `trial` and its `steps`. The last one is also `done` and has the trial's `outcome`, as `run_trial` gives it; and
    `refused` if this worker cannot take part, in the words for the user.
    """

    def setup(self, config: dict[str, Any], given: dict[str, Any], bell: Any) -> None:
        from hpo.worker import Worker, log_to_file, log_to_stderr, use_threads

        if given["home"] is not None:
            os.environ[home.HOME_VARIABLE] = given["home"]
        stopping.on_signals(STOP_SIGNAL)
        self.stepping, self.worker, self.refused = threading.Lock(), None, None
        threading.Thread(target=self.listen, args=(bell,), name="bell", daemon=True).start()
        log_to_stderr()
        try:
            with stopping.interruptible():
                use_threads(given["threads"])
                self.worker = Worker(given["url"], given["study"], given["device"], given["paths"])
        except OUR_ERRORS as error:
            self.refused = one_line(error)
        except Stopped:
            return
        else:
            settings = self.worker.search.settings
            log_to_file(home.logs_folder(settings.out, settings.study) / f"ray-{socket.gethostname()}.log")
            bell.join.remote(self.worker.search.store.worker)

    def reset_config(self, config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        from hpo.worker import Over, Rung

        done = None
        with self.stepping:
            try:
                if self.refused is None and self.worker is not None:
                    done = self.worker.turn()
            except OUR_ERRORS as error:
                self.refused = one_line(error)
            except Stopped:
                pass
        reached = {"trial": done.trial, "steps": done.steps} if isinstance(done, (Rung, Over)) else {}
        ended = {"outcome": done.outcome} if isinstance(done, Over) else {}
        return {"done": not isinstance(done, Rung), "refused": self.refused, **reached, **ended}

    def listen(self, bell: Any) -> None:
        """Have this process stop once the bell is rung: at once while it runs, by the signal; between two rungs from here, since Ray keeps the main thread
        outside Python then, where no signal is handled."""
        while not self.is_rung(bell):
            time.sleep(LISTEN_SECONDS)
        stopping.requested.set()
        signal.pthread_kill(threading.main_thread().ident, STOP_SIGNAL)
        with self.stepping:
            if self.worker is not None:
                self.worker.give_back()

    def is_rung(self, bell: Any) -> bool:
        """Whether to stop. A bell that is lost is one that has rung: its node is the launch's, which is lost with it; a launch that lives ends with these words,
        since no actor could be stopped any more."""
        import ray

        try:
            return ray.get(bell.is_rung.remote())
        except ray.exceptions.ActorUnavailableError:  # it may live, and will be asked again
            return False
        except ray.exceptions.RayError:
            self.refused = BELL_LOST
            return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: what a trial needs to go on is in Postgres."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see `save_checkpoint`."""

