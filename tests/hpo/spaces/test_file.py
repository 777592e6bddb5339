"""Spaces in TOML: what they offer, what is wrong with one in a line, and that its content decides, not its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpo.errors import BadSetting
from hpo.settings import Settings
from hpo.spaces import Bounds, named
from hpo.spaces import file as module
from hpo.spaces.default import WHERE
from hpo.spaces.file import File
from trainers.candidate import Applied, Candidate, Part
from trainers.methods import METHODS
from trainers.mitigations import MITIGATIONS
from trainers.units import REGIONS

SPACE = """
steps = [100, 200]
regions = ["up", ["mid", "up"]]

[methods.bias]
regions = ["resolution/2"]

[methods.lora]
kinds = ["cross-attention", ["self-attention", "cross-attention"]]
ranks = [4, 8]
learning_rates = [1e-4, 1e-2]
"""


@pytest.fixture
def written(tmp_path) -> Callable[[str], File]:
    """A space of this text."""
    def make(text: str, name: str = "space.toml") -> File:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return named(str(tmp_path / name))

    return make


def test_a_file_offers_what_it_says_and_no_more(written: Callable, bounds: Bounds, proposed: Callable) -> None:
    space = written(SPACE)
    seen = proposed(space, bounds, 200)
    assert {candidate.method for candidate in seen} == {"bias", "lora"} and {candidate.steps for candidate in seen} == {100, 200}
    assert not any(candidate.mitigations for candidate in seen)
    for candidate in seen:
        if candidate.method == "bias":
            assert candidate.parts[0].regions == ("resolution/2",) and candidate.parts[0].kinds in METHODS["bias"].kinds
        else:
            assert {part.kinds for part in candidate.parts} <= {("cross-attention",), ("self-attention", "cross-attention")}
            assert 1e-4 <= candidate.learning_rate <= 1e-2 and {part.rank for part in candidate.parts} <= {4, 8}
            assert {region for part in candidate.parts for region in part.regions} <= {"mid", "up"}
    assert {len(candidate.parts) for candidate in seen} == {1, 2}


def test_a_candidate_by_hand_and_back(written: Callable, bounds: Bounds, answered: Callable) -> None:
    answers = {"method": "lora", "blocks of lora": "mid and up blocks", "kinds of lora": "cross-attention", "ranks of lora": "one a region",
               "rank of lora in mid blocks": 4, "rank of lora in up blocks": 8, "learning rate of lora": 3e-4, "steps": 200}
    space = written(SPACE)
    candidate = space.propose(answered(answers), bounds)
    assert candidate == Candidate("lora", (Part(("mid",), ("cross-attention",), 4), Part(("up",), ("cross-attention",), 8)), 3e-4, 200)
    assert space.fixed(candidate, bounds).params == answers


def test_parameters_give_the_same_candidate_back(written: Callable, bounds: Bounds, answered: Callable, proposed: Callable) -> None:
    text = SPACE + "".join(f"[methods.{name}]\n" for name in METHODS if name not in ("bias", "lora"))
    text += "".join(f"[mitigations.{name}]\n" for name in MITIGATIONS)
    space, here = written(text), replace(bounds, protects="outputs", rate_scale=0.123456)
    seen = proposed(space, here, 300)
    assert {candidate.method for candidate in seen} == set(METHODS)
    assert {applied.mitigation for candidate in seen for applied in candidate.mitigations} == set(MITIGATIONS)
    for candidate in seen:
        assert space.propose(answered(space.fixed(candidate, here).params), here) == candidate


def test_only_the_methods_own_rates_are_scaled(written: Callable, bounds: Bounds) -> None:
    text = "[methods.lora]\nlearning_rates = [1e-4, 1e-2]\n[methods.bias]\n"
    choices = written(text).choices(replace(bounds, rate_scale=0.5))
    assert choices.methods["lora"].learning_rates == (1e-4, 1e-2)
    assert choices.methods["bias"].learning_rates == tuple(rate / 2 for rate in METHODS["bias"].learning_rates)
    assert choices.steps == bounds.steps and choices.methods["bias"].regions == (REGIONS,)


def test_mitigations_with_numbers_of_their_own(written: Callable, bounds: Bounds, proposed: Callable) -> None:
    text = "[methods.bias]\n[mitigations.rwa]\nprobability = [0.2]\nwords = [3]\n"
    seen = {candidate.mitigations for candidate in proposed(written(text), bounds)}
    assert seen == {(), (Applied.of("rwa", words=3, probability=0.2),)}
    always = {candidate.mitigations for candidate in proposed(written("always_mitigate = true\n" + text), bounds)}
    assert always == seen - {()}


def test_the_example_of_the_docstring_is_a_space(written: Callable, bounds: Bounds, proposed: Callable) -> None:
    example = "\n".join(line for line in module.__doc__.splitlines() if line.startswith("    "))
    space = written(example)
    space.check(bounds)
    assert set(space.methods) == {"bias", "lora", "svdiff"} and proposed(space, bounds)


@pytest.mark.parametrize(("text", "says"), [
    ("", "it names no method, add a table such as [methods.lora]"), ("methods = ['lora']", "it must be tables, write [methods.full]"),
    ("method = 1", "key 'method' is unknown: take methods"), ("[methods.lorra]", "[methods.lorra] is unknown: take lora"),
    ("[methods.lora]\nrank = [4]", "key 'methods.lora.rank' is unknown: take ranks"), ("[methods.bias]\nranks = [4]", "methods.bias.ranks: bias tuning has none"),
    ("[methods.bias]\nnorm_rates = [1, 2]", "methods.bias.norm_rates: bias tuning has none, leave it out"),
    ("[methods.lora]\nranks = 4", "methods.lora.ranks = 4: it must be a list of whole numbers from 1 on"), ("[methods.lora]\nranks = [0]", "from 1 on"),
    ("[methods.lora]\nranks = [true]", "from 1 on"), ("[methods.lora]\nranks = []", "from 1 on"), ("steps = [1.5]\n[methods.bias]", "steps = [1.5]: it must be"),
    ("[methods.lora]\nlearning_rates = [1e-2, 1e-4]", "the lowest and the highest rate, both above 0"), ("[methods.lora]\nlearning_rates = [0, 1]", "above 0"),
    (f"[methods.lora]\nlearning_rates = [1e-4, {10**400}]", "at most 2147483647"), (f"[methods.lora]\nranks = [{10**400}]", "whole numbers from 1 on"),
    (f"[methods.bias]\n[mitigations.rwa]\nprobability = [{10**400}]", "a list of numbers"), (f"steps = {'9' * 5000}", "it is not TOML"),
    (f"steps = {'[' * 100_000}", "it is not TOML"), ("[methods.lora]\nlearning_rates = [1]", "write [1e-4, 1e-2]"), ("[methods.lora]\nlearning_rates = [nan, inf]", "above 0"),
    ("[methods.lora]\nkinds = ['atention']", "kind 'atention' is unknown: take attention"), ("[methods.lora]\nkinds = [[]]", "each one kind or a list of them"),
    ("[methods.lora]\nkinds = 'attention'", "a list of choices"), ("[methods.lora]\nkinds = [[1]]", "a list of choices"),
    ("regions = ['upp']\n[methods.lora]", "region 'upp' is unknown: take up"), ("[methods.lora]\nregions = ['dwn_blocks.1']", "is unknown: take down_blocks"),
    ("always_mitigate = 1\n[methods.bias]", "always_mitigate = 1: it must be true or false"),
    ("always_mitigate = true\n[methods.bias]", "it names no mitigation: add a table"),
    ("[methods.bias]\n[mitigations.rwaa]", "[mitigations.rwaa] is unknown: take rwa"), ("[methods.bias]\n[mitigations]\nrwa = 1", "it must be tables"),
    ("[methods.bias]\n[mitigations.rwa]\nword = [1]", "key 'mitigations.rwa.word' is unknown: take words"),
    ("[methods.bias]\n[mitigations.rwa]\nprobability = [1.5]", "probability is 1.5 and must be above 0 and at most 1"),
    ("[methods.bias]\n[mitigations.rwa]\nprobability = ['x']", "a list of numbers up to 2147483647"), ("steps 3", "it is not TOML"), ("\udc80", "it is not TOML")])
def test_what_is_wrong_is_one_line_that_names_the_file(text: str, says: str, tmp_path) -> None:
    (tmp_path / "bad.toml").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(BadSetting) as refused:
        Settings(space=str(tmp_path / "bad.toml")).check()
    assert says in (line := str(refused.value)) and line.startswith(f"--space {tmp_path / 'bad.toml'}: ") and len(line.splitlines()) == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path) -> None:
    with pytest.raises(BadSetting, match=r"none.toml: it cannot be read \(No such file or directory\), give a TOML file"):
        named(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(("text", "says"), [
    ("steps = [100, 201]\n[methods.bias]", "steps 201: no candidate may have more than --steps 200, raise it or take fewer here"),
    ("[methods.bias]\n[mitigations.random-tokens]", "[mitigations.random-tokens]: it does not protect weights, leave it out or take --protects outputs"),
    ("[methods.bias]\nregions = ['up_blocks.1.attentions.7']", "region 'up_blocks.1.attentions.7' is not in this U-Net: take up_blocks.1.attentions.1"),
    ("[methods.bias]\nregions = ['up', 'up_blocks.9']", "region 'up_blocks.9' is not in this U-Net: take up_blocks."),
    ("[methods.bias]\nregions = ['resolution/7']", "region 'resolution/7' is not in this U-Net: take resolution/"),
    ("[methods.lora]\nranks = [4, 100000]", "methods.lora: rank 100000"),
    ("[methods.full]\nregions = ['mid']\nkinds = ['resampling']", "methods.full: kinds resampling have no parameters in mid")])
def test_what_the_study_does_not_allow_is_refused_when_it_is_launched(text: str, says: str, written: Callable, bounds: Bounds, model) -> None:
    space = written(text)
    with pytest.raises(BadSetting) as refused:
        space.check(replace(bounds, model=model / "base"))
    assert says in str(refused.value)


def test_the_content_decides_not_the_place_or_the_layout(written: Callable, tmp_path, monkeypatch) -> None:
    first, moved, same, other = written(SPACE), written(SPACE, "moved.toml"), written("# a comment\n" + SPACE, "same.toml"), written(SPACE + "#", "other.toml")
    assert first.content == moved.content == same.content == other.content
    assert written(SPACE.replace("ranks = [4, 8]", "ranks = [4, 16]"), "changed.toml").content != first.content
    monkeypatch.chdir(tmp_path)
    assert named("space.toml").name == first.name == str(Path(tmp_path) / "space.toml"), "absolute, for workers in other folders"


def test_without_regions_all_blocks_are_meant(written: Callable, bounds: Bounds, proposed: Callable) -> None:
    assert {candidate.parts[0].regions for candidate in proposed(written("[methods.bias]"), bounds, 20)} == {REGIONS} != set(WHERE)
