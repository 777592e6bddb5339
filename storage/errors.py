"""What can go wrong with the store, by cause. `str(error)` is one line: the value, the rule, the way out."""

from __future__ import annotations


class StorageError(RuntimeError):
    """Base of everything that this package raises on purpose."""

    def __init__(self, line: str) -> None:
        super().__init__(" ".join(line.split()))


class BadStorageUrl(StorageError):
    """The URL cannot name a PostgreSQL database: malformed, or of another kind."""


class StorageUnreachable(StorageError):
    """The server does not answer, refuses, or cannot go on (no memory, no disk): nothing is wrong with the trial."""


class FolderUnusable(StorageError):
    """The embedded server's folder cannot be written, is full, or belongs to something else."""


class SchemaError(StorageError):
    """The tables cannot be made or read: a newer version made them, or the role lacks a right."""


class UnknownStudy(StorageError):
    """There is no such study; `known` holds the names that there are."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        self.name, self.known = name, known
        names = ", ".join(repr(one) for one in known[:10]) or "none yet"
        super().__init__(f"study {name!r} is not in this store: choose one of: {names}")


class ForeignStudy(StorageError):
    """A study of that name holds trials that were not run under leases."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"study {name!r} has trials that were not made by peft-pareto: choose another study name")


class SettingsDiffer(StorageError):
    """A setting that decides what a score means is not the one that the study was made with."""

    def __init__(self, name: str, stored: object, given: object, places: tuple[str, str] | None = None) -> None:
        """places: where the stored and the given content came from, if the two values are hashes of contents."""
        self.name, self.stored, self.given = name, stored, given
        of = ("", "") if places is None else (f" ({places[0]})", f" ({places[1]})")
        way = "use the stored value" if places is None else f"give --{name} as it was ({places[0]})"
        super().__init__(
            f"setting {name!r} is {stored!r}{of[0]} in the stored study but {given!r}{of[1]} in this run, and scores could not be "
            f"compared: {way}, or another study name"
        )


class StudyFull(StorageError):
    """As many trials are finished or running as were asked for; no other may start."""

    def __init__(self, study: int, trials: int) -> None:
        self.study, self.trials = study, trials
        super().__init__(
            f"study {study} has its {trials} trials finished or running: wait for one to fail, or ask for more trials"
        )


class NotNow(StorageError):
    """A trial that was worth starting when it was looked for is not any more, by what others have begun or written since."""

    def __init__(self, study: int, why: str) -> None:
        self.study, self.why = study, why
        super().__init__(f"study {study}: {why}; look for another trial")


class CodeDiffers(StorageError):
    """A worker has another version of the program than the launch that the study was last run with."""

    def __init__(self, study: int, stored: str, own: str) -> None:
        self.study, self.stored, self.own = study, stored, own
        super().__init__(f"study {study} is run with code {stored}, this worker has {own}: use that version, or launch the study anew with this one")


class NoWorker(StorageError):
    """The connection has no worker name, so that a lease would have no holder."""

    def __init__(self, trial: int | None) -> None:
        self.trial = trial
        super().__init__(f"trial {trial} cannot start without a worker: open the store with worker=NAME")


class LeaseLost(StorageError):
    """The trial is not (or no longer) this worker's to write: another holder, an expired lease, or a finished trial."""

    def __init__(self, trial: int, worker: str | None, why: str = "it holds no lease on it") -> None:
        self.trial, self.worker, self.why = trial, worker, why
        super().__init__(f"trial {trial} may not be written by worker {worker!r}: {why}; drop it and ask for another")


class RungLost(StorageError):
    """A rung that was written is not stored any more: the server that answers now lagged behind the one that stored it."""

    def __init__(self, trial: int, steps: int) -> None:
        self.trial, self.steps = trial, steps
        super().__init__(f"trial {trial} has no rung at {steps} steps any more, a fail-over of the database lost it: the trial is evaluated there again")


class BadValue(StorageError):
    """A value that must not reach the store, such as a NaN score."""
