"""Spaces in Python: what a function may give, what is refused with which words, and one that never gives a candidate."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import replace

import optuna
import pytest

from hpo.errors import BadSetting
from hpo.settings import Settings
from hpo.spaces import BadProposal, Bounds, named
from hpo.spaces.function import TRIES, Function
from trainers.candidate import Applied, Candidate

HEAD = """
from trainers.candidate import Applied, Candidate, Part

"""
GOOD = HEAD + """
def propose(trial):
    rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
    return Candidate.of("bias", ("up",), ("bias",), rate, trial.suggest_int("steps", 1, 4))
"""


@pytest.fixture
def written(tmp_path) -> Callable[..., Function]:
    """A function space of this text."""
    def make(text: str, function: str = "propose", name: str = "space.py") -> Function:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return named(f"{tmp_path / name}:{function}")

    return make


def body(expression: str) -> str:
    return HEAD + "def propose(trial):\n" + textwrap.indent(expression, "    ") + "\n"


def ask(space: Function, bounds: Bounds) -> Candidate:
    return space.propose(optuna.create_study().ask(), bounds)


def test_a_function_makes_candidates_whose_rates_are_as_their_words_say(written: Callable, bounds: Bounds, answered: Callable) -> None:
    candidate = written(GOOD).propose(answered({"rate": 0.00123456, "steps": 3}), bounds)
    assert candidate == Candidate.of("bias", ("up",), ("bias",), 0.00123, 3)


def test_it_may_take_the_bounds_beside_the_trial(written: Callable, bounds: Bounds) -> None:
    text = HEAD + "def propose(trial, bounds):\n    return Candidate.of('bias', ('up',), ('bias',), 1e-3 * bounds.rate_scale, bounds.steps[-1])\n"
    assert ask(written(text), replace(bounds, rate_scale=0.5)) == Candidate.of("bias", ("up",), ("bias",), 5e-4, 200)


def test_lists_are_as_good_as_tuples(written: Callable, bounds: Bounds) -> None:
    candidate = ask(written(body("return Candidate('lora', [Part(['up'], ['attention'], 4)], 1, 4, mitigations=[Applied.of('rwa', words=2, probability=0.1)])")), bounds)
    assert candidate == Candidate.of("lora", ("up",), ("attention",), 1.0, 4, 4, mitigations=(Applied.of("rwa", words=2, probability=0.1),))
    assert candidate.hash == Candidate.from_json(candidate.to_json()).hash


def test_answers_are_not_told_from_candidates(written: Callable, bounds: Bounds) -> None:
    space = written(GOOD)
    assert space.fixed(ask(space, bounds), bounds) is None


@pytest.mark.parametrize(("text", "says"), [
    ("return None", "what the function gave cannot be trained: None is no candidate, return a trainers.candidate.Candidate"), ("return 'x' * 999", "xxx… is no candidate"),
    ("1 / 0", "the function raised ZeroDivisionError: division by zero; mend it, or catch it there"), ("raise ValueError", "ValueError: no message"),
    ("raise ValueError('a\\nb\\0c')", "ValueError: a b c; mend"), ("exit(3)", "the function raised SystemExit: 3"),
    ("return Candidate.of('biass', ('up',), ('bias',), 1e-3, 4)", "cannot be trained: method 'biass' is unknown: take bias"),
    ("return Candidate.of('bias', ('up',), ('bias',), float('nan'), 4)", "learning_rate=nan: give a number above 0"),
    ("return Candidate.of('bias', ('up',), ('bias',), -1, 4)", "learning_rate=-1: give a number above 0"),
    ("return Candidate.of('bias', ('up',), ('bias',), '1', 4)", "learning_rate='1': give a number above 0"),
    ("return Candidate.of('bias', ('up',), ('bias',), 1, 4, norm_rate=0)", "norm_rate=0: give a number above 0"),
    ("return Candidate.of('bias', ('up',), ('bias',), 1e-3, 201)", "steps=201: give a whole number from 1 to 200, or raise --steps"),
    ("return Candidate.of('bias', ('up',), ('bias',), 1e-3, 0)", "steps=0"), ("return Candidate.of('bias', ('up',), ('bias',), 1e-3, 1.5)", "steps=1.5"),
    ("return Candidate.of('bias', (), ('bias',), 1e-3, 4)", "regions=(): give a tuple of names, such as ('up',)"), ("return Candidate('bias', (), 1e-3, 4)", "has no part"),
    ("return Candidate.of('bias', 'up', ('bias',), 1e-3, 4)", "regions='up': give a tuple of names"),
    ("return Candidate.of('bias', (1,), ('bias',), 1e-3, 4)", "regions=(1,): give a tuple of names"),
    ("return Candidate.of('bias', ('upp',), ('bias',), 1e-3, 4)", "region 'upp' is unknown: take up"),
    ("return Candidate.of('bias', ('up\\0',), ('bias',), 1e-3, 4)", "is unknown: take up"),
    ("return Candidate.of('bias', ('up',), ('attention',), 1e-3, 4)", "kind 'attention' is not trained by bias tuning: take norm or bias"),
    ("return Candidate.of('bias', ('up',), ('bias',), 1e-3, 4, 8)", "rank 8: bias tuning has no rank, leave it out"),
    ("return Candidate.of('bias', ('up',), ('bias',), 1e-3, 4, norm_rate=1e-3)", "norm rate 0.001: bias tuning has no learning rate of its own for norms"),
    ("return Candidate('lora', (Part(('up',), ('attention',), 4, 'x'),), 1e-3, 4)", "alpha='x': give a number above 0 and up to 2147483647, or leave it out"),
    ("return Candidate('lora', (Part(('up',), ('attention',), 4, float('nan')),), 1e-3, 4)", "alpha=nan: give a number above 0"),
    ("return Candidate('bias', ('up',), 1e-3, 4)", "is not of a candidate's types (AttributeError"), ("return Candidate.of('bias', None, ('bias',), 1e-3, 4)", "not of a candidate's types"),
    ("return Candidate.of('lora', ('up',), ('attention',), 1e-3, 4)", "has no rank: LoRA needs one in each part, such as"),
    ("return Candidate.of('bias', ('up',), ('bias',), 1e-3, 4, mitigations=(Applied('rwaa'),))", "mitigation 'rwaa' is unknown: take rwa"),
    ("return Candidate.of('bias', ('up',), ('bias',), 1e-3, 4, mitigations=(Applied('rwa'),))", "mitigation rwa: its number 'words' is missing"),
    ("return Candidate.of('bias', ('up',), ('bias',), 1e-3, 4, mitigations=(Applied.of('random-tokens', words=2),))",
     "mitigation random-tokens does not protect weights: leave it out or take --protects outputs")])
def test_nonsense_is_refused_naming_the_function_and_what_it_gave(text: str, says: str, written: Callable, bounds: Bounds) -> None:
    space = written(body(text))
    with pytest.raises(BadProposal) as refused:
        ask(space, bounds)
    line = str(refused.value)
    assert says in line and line.startswith(f"--space {space.spec}: ") and "the function " in line and len(line.splitlines()) == 1 and "\0" not in line


def test_a_function_that_never_gives_a_candidate_ends_the_launch(written: Callable, bounds: Bounds) -> None:
    with pytest.raises(BadSetting, match=rf"the function gave cannot be trained: 7 is no candidate, .* \({TRIES} of {TRIES} proposals failed\)"):
        written(body("return 7")).check(bounds)


@pytest.mark.parametrize(("given", "says"), [
    ("'bias', ('up_blocks.9',), ('bias',), 1e-3, 4", "region 'up_blocks.9' is not in this U-Net"),
    ("'lora', ('up',), ('attention',), 1e-3, 4, 5000", "rank 5000"), ("'full', ('mid',), ('resampling',), 1e-3, 4", "have no parameters in mid")])
def test_one_that_gives_what_the_base_model_cannot_have_ends_the_launch_too(given: str, says: str, written: Callable, bounds: Bounds, model) -> None:
    with pytest.raises(BadSetting) as refused:
        written(body(f"return Candidate.of({given})")).check(replace(bounds, model=model / "base"))
    assert says in (line := str(refused.value)) and "10 of 10 proposals failed" in line and len(line.splitlines()) == 1


def test_a_function_that_fails_now_and_then_may_be_launched(written: Callable, bounds: Bounds) -> None:
    written(GOOD.replace("    return", "    if trial.number % 3 < 2:\n        raise ValueError('not this one')\n    return")).check(bounds)


@pytest.mark.parametrize(("spec", "says"), [
    ("{}/none.py:propose", "there is no file"), ("{}/space.py:proposal", "there is no function 'proposal', take propose"), ("{}/space.py:", "there is no function ''"),
    ("{}/space.py:HEAD", "there is no function 'HEAD'"), ("no_such_package.space:propose", "it cannot be imported (ModuleNotFoundError: No module named"),
    (":propose", "it cannot be imported"), ("sys:exit", "its source cannot be read"), ("{}/broken.py:propose", "it cannot be imported (SyntaxError"),
    ("{}/raises.py:propose", "it cannot be imported (RuntimeError: at import), mend it or give FILE.py:function"),
    ("{}/space.py:three", "the function takes other arguments, define it as function(trial) or function(trial, bounds)")])
def test_a_function_that_is_not_there_is_one_line(spec: str, says: str, tmp_path) -> None:
    (tmp_path / "space.py").write_text(GOOD + "\nHEAD = 1\n\ndef three(a, b, c):\n    pass\n")
    (tmp_path / "broken.py").write_text("def propose(:\n")
    (tmp_path / "raises.py").write_text("raise RuntimeError('at\\nimport')\n")
    with pytest.raises(BadSetting) as refused:
        Settings(space=spec.format(tmp_path)).check()
    assert says in (line := str(refused.value)) and line.startswith(f"--space {spec.format(tmp_path)}: ") and len(line.splitlines()) == 1


def test_the_content_decides_not_the_place(written: Callable, tmp_path, monkeypatch) -> None:
    first = written(GOOD)
    assert first.content == written(GOOD, name="moved.py").content != written(GOOD + "# changed\n", name="changed.py").content
    two = GOOD + GOOD.replace("def propose", "def other")
    assert written(two, name="two.py").content != written(two, "other", "two.py").content
    monkeypatch.chdir(tmp_path)
    assert named("space.py:propose").name == first.name == f"{tmp_path / 'space.py'}:propose"


def test_of_a_package_the_name_stays(tmp_path, monkeypatch, bounds: Bounds) -> None:
    (tmp_path / "own_spaces").mkdir()
    (tmp_path / "own_spaces" / "__init__.py").write_text("")
    (tmp_path / "own_spaces" / "small.py").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    space = named("own_spaces.small:propose")
    assert space.name == "own_spaces.small:propose" and ask(space, bounds).method == "bias"
