"""A user's space in Python: a function that makes a candidate of an Optuna trial, as FILE.py:function or package.module:function."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna

from hpo.errors import BadSetting
from hpo.settings import LARGEST
from hpo.spaces.base import ROOTS, SHORT, BadProposal, Bounds, Space, Trained, is_number, is_region
from trainers import mitigations
from trainers.candidate import Applied, Candidate, Part, rounded
from trainers.errors import BadSelection, nearest
from trainers.methods import method
from trainers.units import REGIONS

TRIES = 10  # proposals that a launch asks for; if none of them is a candidate, none of a trial's will be
LONGEST_SHOWN = 80  # characters of what a function gave, in a message
LONGEST_SAID = 300  # characters of what it raised


class Function(Space):
    """Called with the trial, and with the bounds if it takes two arguments. What it gives is checked before it is trained.

    Its source file is hashed, not what that imports. Raises BadSetting where there is no such function.
    """

    def __init__(self, spec: str):
        self.spec = spec
        place, _, attribute = spec.rpartition(":")
        is_file = place.endswith(".py")
        module = from_file(spec, Path(place)) if is_file else from_import(spec, place)
        self.function = function_of(spec, module, attribute)
        self.takes_bounds = takes_bounds(spec, self.function)
        self.name = f"{Path(place).absolute()}:{attribute}" if is_file else spec
        self.content = hashlib.sha256(source(spec, module) + attribute.encode()).hexdigest()[:SHORT]

    def check(self, bounds: Bounds) -> None:
        """Asks for a few proposals, on a study of its own, so that a function that always raises, or gives what the base model's U-Net cannot
        have, ends the launch at once."""
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        trained = None if bounds.model is None else Trained(bounds.model)
        said: list[str] = []
        for _ in range(TRIES):
            try:
                candidate = self.propose(study.ask(), bounds)
            except BadProposal as error:
                said.append(str(error))
                continue
            reason = None if trained is None else trained.reason(candidate)
            if reason is None:
                return
            said.append(f"--space {self.spec}: what the function gave cannot be trained: {reason}")
        raise BadSetting(f"{said[0]} ({TRIES} of {TRIES} proposals failed)")

    def propose(self, trial: Any, bounds: Bounds) -> Candidate:
        try:
            given = self.function(trial, bounds) if self.takes_bounds else self.function(trial)
        except (Exception, SystemExit) as error:  # whatever a user's function raises is its trial's reason
            raise BadProposal(f"--space {self.spec}: the function raised {said_of(error)}; mend it, or catch it there") from error
        try:
            return vetted(given, bounds)
        except BadSelection as error:
            raise BadProposal(f"--space {self.spec}: what the function gave cannot be trained: {error}") from error


def vetted(given: Any, bounds: Bounds) -> Candidate:
    """The candidate, its rates rounded as its words say them. Raises BadSelection in words that say what was given."""
    if not isinstance(given, Candidate):
        raise BadSelection(f"{shown(given)} is no candidate, return a trainers.candidate.Candidate")
    try:
        candidate = Candidate.from_json(json.loads(json.dumps(given.to_json())))
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        raise BadSelection(f"{shown(given)} is not of a candidate's types ({said_of(error)}), build it with Candidate.of") from error
    known = method(named("method", candidate.method))
    if not candidate.parts:
        raise BadSelection(f"{shown(given)} has no part: name one with regions and kinds")
    for part in (*given.parts, *given.frozen):
        check_part(part)
    for applied in candidate.mitigations:
        check_applied(applied)
    if known.ranks and not all(type(part.rank) is int and part.rank > 0 for part in candidate.parts):
        raise BadSelection(f"{shown(given)} has no rank: {known.title} needs one in each part, such as {known.ranks[0]}")
    if type(candidate.steps) is not int or not 1 <= candidate.steps <= bounds.steps[-1]:
        raise BadSelection(f"steps={shown(candidate.steps)}: give a whole number from 1 to {bounds.steps[-1]}, or raise --steps")
    norm_rate = None if candidate.norm_rate is None else rate_of("norm_rate", candidate.norm_rate)
    candidate = replace(candidate, learning_rate=rate_of("learning_rate", candidate.learning_rate), norm_rate=norm_rate)
    known.check(candidate)
    mitigations.check(candidate.mitigations)
    for applied in candidate.mitigations:
        if applied.mitigation not in bounds.mitigations:
            raise BadSelection(f"mitigation {applied.mitigation} does not protect {bounds.protects}: leave it out or take --protects outputs")
    return candidate


def named(what: str, name: Any) -> str:
    if not isinstance(name, str):
        raise BadSelection(f"{what}={shown(name)}: give a name in quotes")
    return name


def check_applied(applied: Applied) -> None:
    """Raises BadSelection for what is no mitigation's name, or no number of any; `mitigations.check` knows the others."""
    named("mitigation", applied.mitigation)
    for name, value in applied.strength:
        if not is_number(value):
            raise BadSelection(f"mitigation {applied.mitigation}: {name}={shown(value)}: give a number")


def check_part(part: Part) -> None:
    """Raises BadSelection for what is no part of any U-Net."""
    for name, values in (("regions", part.regions), ("kinds", part.kinds)):
        if not isinstance(values, (tuple, list)) or not values or not all(isinstance(value, str) for value in values):
            raise BadSelection(f"{name}={shown(values)}: give a tuple of names, such as {('up',) if name == 'regions' else ('bias',)}")
    for region in part.regions:
        if not is_region(region):
            raise BadSelection(f"region {shown(region)} is unknown: take {nearest(region, (*REGIONS, *ROOTS))}")
    if part.rank is not None and (type(part.rank) is not int or not 0 < part.rank <= LARGEST):
        raise BadSelection(f"rank={shown(part.rank)}: give a whole number from 1 on, or leave it out")
    if part.alpha is not None and not (is_number(part.alpha) and part.alpha > 0):
        raise BadSelection(f"alpha={shown(part.alpha)}: give a number above 0 and up to {LARGEST}, or leave it out")


def rate_of(name: str, rate: Any) -> float:
    if not (is_number(rate) and rate > 0):
        raise BadSelection(f"{name}={shown(rate)}: give a number above 0 and up to {LARGEST}")
    return rounded(rate)


def from_file(spec: str, file: Path) -> ModuleType:
    if not file.is_file():
        raise BadSetting(f"--space {spec}: there is no file {file}, give a Python file")
    name = f"_space_{hashlib.sha256(str(file.absolute()).encode()).hexdigest()[:SHORT]}"
    found = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # a dataclass in the file looks for its module there
    return imported(spec, lambda: found.loader.exec_module(module) or module)


def from_import(spec: str, name: str) -> ModuleType:
    return imported(spec, lambda: importlib.import_module(name))


def imported(spec: str, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except (Exception, SystemExit) as error:  # whatever a user's module raises
        raise BadSetting(f"--space {spec}: it cannot be imported ({said_of(error)}), mend it or give FILE.py:function") from error


def function_of(spec: str, module: ModuleType, name: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if callable(found):
        return found
    own = [each for each, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
    raise BadSetting(f"--space {spec}: there is no function {name!r}, take {nearest(name, own)}")


def takes_bounds(spec: str, function: Callable[..., Any]) -> bool:
    """Whether it takes the bounds beside the trial. BadSetting where it can be called with neither one nor two arguments."""
    for count in (2, 1):
        try:
            inspect.signature(function).bind(*[None] * count)
            return count == 2
        except TypeError:
            continue
        except ValueError:  # no signature to be seen
            return False
    raise BadSetting(f"--space {spec}: the function takes other arguments, define it as function(trial) or function(trial, bounds)")


def source(spec: str, module: ModuleType) -> bytes:
    try:
        return Path(module.__file__).read_bytes()
    except (AttributeError, TypeError, OSError) as error:
        raise BadSetting(f"--space {spec}: its source cannot be read ({said_of(error)}), give a function of a Python file") from error


def said_of(error: BaseException) -> str:
    said = "".join(character if character.isprintable() else " " for character in str(error))  # PostgreSQL takes no NUL
    return f"{type(error).__name__}: {' '.join(said.split())[:LONGEST_SAID] or 'no message'}"


def shown(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets in brackets
        text = f"{type(value).__name__} ({error})"
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…"
