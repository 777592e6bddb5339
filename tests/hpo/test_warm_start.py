"""What is taken over from another study or a file: scaled for the sampler's eyes only, the front run first, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from told import beside, quickly, run

from hpo import front as front_command
from hpo import warm_start
from hpo.errors import BadSetting
from hpo.launch import queue_of
from hpo.spaces.reference import reference_candidate
from hpo.study import Search
from storage import results, standing

Searching = Callable[..., Search]
IDENTITY = {"model": "m", "encoder": "e", "data": "d"}


@pytest.fixture
def finished(searching: Searching) -> Search:
    """Of 30 steps, base (5, 0), yardstick (1, 1), the methods as published."""
    search = searching(steps=30, trials=4, baselines=True, pruner="none", learning_rate_scale=0.5)
    for fd, copied in ((1.0, 1.0), (2.0, 0.5), (3.0, 0.2), (4.0, 0.4)):
        quickly(search, fd, copied)
    return search


def started(searching: Searching, source: Search, **more) -> Search:
    return searching(**{"trials": 9, "baselines": False, "warm_start": source.settings.study, "sampler": "tpe", **more})


def test_values_are_scaled_so_that_base_and_yardstick_come_to_lie_on_each_other(searching: Searching, finished: Search, opened: Callable) -> None:
    search = started(searching, finished)
    search.recall.refresh()
    assert search.recall.proposer.history.points == [], "there is no yardstick to scale by"
    run(search, lambda asked, steps: (3.0, 2.0 * steps / 40))
    search.recall.refresh()
    points = search.recall.proposer.history.points
    assert [(point.number, point.steps) for point in points] == [(0, 4), (0, 13), (0, 40), (-1, 40), (-2, 40), (-3, 40), (-4, 40)]
    # fd: 5 → 5 and 1 → 3; copy_excess: 0 → 0 and 1 → 2.
    assert [point.values for point in points[3:]] == [pytest.approx(values) for values in ((3.0, 2.0), (3.5, 1.0), (4.0, 0.4), (4.5, 0.8))]
    assert points[4].parameters["method"] == "attention"
    late = beside(search, opened)
    late.recall.refresh()
    assert late.recall.proposer.history.points == points


FUNCTION = """
from trainers.candidate import Candidate

def propose(trial, bounds):
    return Candidate.of("bias", ("up",), ("bias",), trial.suggest_float("rate", 1e-4, 1e-2, log=True), bounds.steps[-1])
"""


def test_what_a_function_of_the_users_gave_is_taken_over_by_the_answers_that_gave_it(searching: Searching, tmp_path) -> None:
    (tmp_path / "space.py").write_text(FUNCTION)
    source = searching(trials=4, space=f"{tmp_path / 'space.py'}:propose", pruner="none", baselines=False)
    for copied in (1.0, 0.5, 0.2, 0.4):
        run(source, lambda asked, steps, copied=copied: (1.0, copied))
    search = started(searching, source, space=f"{tmp_path / 'space.py'}:propose")
    quickly(search, 1.0, 1.0)
    search.recall.refresh()
    taken = {(point.steps, point.parameters["rate"]) for point in search.recall.proposer.history.points if point.number < 0}
    given = {row.parameters["rate"] for row in standing.evaluated(source.store, source.id, 10**9) if row.candidate["method"] == "bias"}
    assert len(given) == 3 and taken == {(steps, rate) for steps in (4, 13, 40) for rate in given}


@pytest.mark.parametrize(("here", "expected"), [((6.0, 2.0), [1.0, 2.0, 3.0, 4.0]), ((5.0, 2.0), [1.0, 2.0, 3.0, 4.0]), ((3.0, 2.0), [3.0, 3.5, 4.0, 4.5])])
def test_a_yardstick_that_is_no_better_than_the_base_turns_nothing_round(here: tuple, expected: list, searching: Searching, finished: Search) -> None:
    search = started(searching, finished)
    run(search, lambda asked, steps: here)
    search.recall.refresh()
    assert [point.values[0] for point in search.recall.proposer.history.points if point.number < 0] == pytest.approx(expected)


def test_noise_is_no_scale() -> None:
    assert warm_start.scaled(0.1, (0.0, -0.01, 0.01), (0.002, -0.008, 0.012), 0.05, 0.6) == pytest.approx(0.15)


def test_rungs_that_are_far_from_this_studys_are_left_out(searching: Searching, finished: Search) -> None:
    finished.register(5, IDENTITY)
    source = finished
    assert run(source, lambda asked, steps: (2.0, 0.5))[1] == "finished"
    both = [started(searching, source, rungs=rungs) for rungs in (3, 2)]
    for search in both:
        run(search, lambda asked, steps: (3.0, 1.0))
        search.recall.refresh()
    steps = [[point.steps for point in search.recall.proposer.history.points if point.number == -5] for search in both]
    assert steps == [[4, 13, 40], [13, 40]]


def test_what_would_violate_a_bound_is_taught_as_such(searching: Searching, finished: Search) -> None:
    search = started(searching, finished, max_trainable="5%", require="fd<=3.8")
    run(search, lambda asked, steps: (3.0, 2.0 * steps / 40))
    search.recall.refresh()
    points = [point for point in search.recall.proposer.history.points if point.number < 0]
    methods = [point.parameters["method"] for point in points]
    assert sorted(search.constraints.foreseen(1, 1, {})) == ["max-trainable 5%", "require fd<=3.8"]
    assert [point.violations[0] > 0 for point in points] == [method in ("full", "attention") for method in methods]
    assert [point.violations[1] for point in points] == [pytest.approx((point.values[0] - 3.8) / 3.8) for point in points]


def test_only_the_sampler_sees_them(searching: Searching, finished: Search, query: Callable) -> None:
    search = started(searching, finished)
    run(search, lambda asked, steps: (3.0, 1.0))
    search.recall.refresh()
    assert set(search.recall.pruner.trials) == {0}
    assert query("SELECT count(*) FROM rung_scores WHERE study = :s", s=search.settings.study) == [(3,)]


def test_a_resumed_study_takes_over_no_more_than_it_did_at_first(searching: Searching, finished: Search, opened: Callable) -> None:
    search = started(searching, finished)
    finished.register(5, IDENTITY)
    quickly(finished, 2.0, 0.0)
    late = beside(search, opened)
    late.register(9, IDENTITY)
    quickly(late, 1.0, 1.0)
    late.recall.refresh()
    assert [point.number for point in late.recall.proposer.history.points] == [0, -1, -2, -3, -4]


def test_a_worker_notes_how_far_the_other_study_is_where_the_launch_was_killed_before_it_did(searching: Searching, finished: Search, opened: Callable,
                                                                                             monkeypatch) -> None:
    settings = replace(finished.settings, study=f"{finished.settings.study}-killed", warm_start=finished.settings.study, baselines=False, sampler="tpe")

    def killed(*given, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(warm_start, "settle", killed)
        Search(opened(), settings).register(9, IDENTITY)
    worker = Search(opened(), settings)
    worker.register(None, IDENTITY)
    results.record_references(worker.store, worker.id, q_base=5.0, q_real=0.0, m_base=0.0, scores={"fd": (5.0, 4.9, 5.1), "copy_excess": (0, 0, 0)})
    finished.register(5, IDENTITY)
    quickly(finished, 2.0, 0.0)
    late = Search(opened(), settings)
    late.register(None, IDENTITY)
    quickly(late, 1.0, 1.0)
    for search in (worker, late):
        search.recall.refresh()
        assert [point.number for point in search.recall.proposer.history.points] == [0, -1, -2, -3, -4]


def test_the_front_is_run_first_at_this_studys_rates_and_rungs(searching: Searching, finished: Search) -> None:
    search = started(searching, finished)
    entries = queue_of(search)
    assert [entry["why"] for entry in entries] == [f"on the front of {finished.settings.study}"] * 3
    assert [warm_start.Candidate.from_json(entry["candidate"]) for entry in entries] == [reference_candidate(name, 40) for name in ("full", "attention", "bias")]
    search.register(9, IDENTITY, entries)
    assert [quickly(search, 1.0, 1.0).candidate.method for _ in range(3)] == ["full", "attention", "bias"], "the yardstick is the first of them"


def test_a_later_launch_queues_nothing_that_the_other_study_has_found_since(searching: Searching, finished: Search, opened: Callable) -> None:
    search = started(searching, finished)
    search.register(9, IDENTITY, queue_of(search))
    assert queue_of(beside(search, opened)) == []
    other = searching(steps=30, trials=1, baselines=True, pruner="none")
    quickly(other, 1.0, 1.0)
    assert len(queue_of(Search(opened(), replace(search.settings, warm_start=other.settings.study)))) == 1


def test_of_the_rungs_of_one_training_the_longest_is_run_first(searching: Searching) -> None:
    """It passes the others, which then cost no trial."""
    source = searching(trials=3, baselines=True, pruner="none")
    run(source, lambda asked, steps: (9.0 - steps / 40, steps / 40))
    assert sorted(row["steps"] for row in results.front(source.store, source.settings.study)) == [4, 13, 40]
    search = started(searching, source)
    candidates = warm_start.front(search, source.settings.study)
    assert [candidate.steps for candidate in candidates] == [40, 13, 4]


def test_a_joint_reward_is_taken_over_as_it_is(searching: Searching) -> None:
    source = searching(trials=2, baselines=True, objectives="joint_reward")
    quickly(source, 3.0, 1.0), quickly(source, 1.0, 0.5)
    search = started(searching, source, objectives="joint_reward")
    quickly(search, 4.0, 2.0)
    search.recall.refresh()
    assert [point.values for point in search.recall.proposer.history.points] == [pytest.approx([value]) for value in (0.1 - 0.5, 0.2 - 0.5, 0.4 - 0.25)]


def test_what_cannot_be_taken_over_is_refused_in_one_line(searching: Searching, finished: Search) -> None:
    unfinished = searching()
    unfinished.ask()
    name = finished.settings.study
    for changes, error, words in (
            ({"warm_start": "nowhere", "study": "test-here"}, BadSetting, f"--warm-start nowhere: there is no such study in this store, take one of .*'{name}'"),
            ({"warm_start": name, "objectives": "kid,copy_excess"}, BadSetting, f"--warm-start {name}: its objectives are fd,copy_excess, this study's are kid,copy"),
            ({"warm_start": unfinished.settings.study}, BadSetting, "its yardstick is not finished, .*: finish it first"),
            ({"warm_start": "test-self", "study": "test-self"}, BadSetting, "it is the study itself, name another one")):
        with pytest.raises(error, match=words) as refused:
            searching(**changes)
        assert "\n" not in str(refused.value)


def test_the_front_as_candidates_is_what_enqueue_reads(finished: Search, searching: Searching, tmp_path, capsys) -> None:
    front_command.main(["--study", finished.settings.study, "--format", "candidates"])
    file = tmp_path / "front.jsonl"
    file.write_text(capsys.readouterr().out + "\n")
    search = searching(enqueue=str(file))
    names = [row["method"] for row in results.front(finished.store, finished.settings.study)]
    assert [entry["why"] for entry in queue_of(search)] == ["enqueued"] * 3
    assert warm_start.enqueued(search, str(file)) == [reference_candidate(name, 30, 0.5) for name in names]


GOOD = reference_candidate("bias", 40).to_json()


PART, RWA = GOOD["parts"][0], {"mitigation": "rwa", "strength": {"words": 4, "probability": 0.1}}


def changed(**changes) -> str:
    return json.dumps({**GOOD, **changes})


@pytest.mark.parametrize(("line", "words"), [
    ("{", "line 2 is no candidate \\(JSONDecodeError: .*\\): '{', write one a line as python -m hpo.front --format candidates does"),
    ("[1]", "line 2 is no candidate \\(TypeError: .*\\): '\\[1\\]', write one"), ("[" * 100_000, "line 2 is no candidate \\(RecursionError: .*\\): '\\[{79}…, write one"),
    ("{}", "line 2 is no candidate \\(KeyError"), (changed(steps=41), "line 2: steps=41: give a whole number from 1 to 40, or raise --steps"),
    (changed(steps="many"), "line 2: steps='many'"), (changed(learning_rate="fast"), "line 2: learning_rate='fast'"), (changed(colour=1), "line 2 is no candidate \\(TypeError"),
    (changed(learning_rate=10**400), "line 2: learning_rate=10*…: give a number above 0"), (changed(norm_rate=[1]), "line 2: norm_rate=\\[1\\]"),
    (changed(learning_rate=float("inf")), "line 2: learning_rate=inf: give a number above 0"), (changed(steps=[40]), "line 2: steps=\\[40\\]"),
    (changed(method="biass"), "line 2: .*bias"), (changed(method=["lora"]), "line 2: method=\\['lora'\\]: give a name in quotes"), (changed(method=None), "line 2: method=None: give a name"),
    (changed(parts=[]), "line 2: .*has no part"), (changed(parts=7), "line 2 is no candidate \\(TypeError"), (changed(parts=[{**PART, "regions": [["up"]]}]), "line 2: regions=.*give a tuple of names"),
    (changed(parts=[{**PART, "rank": [8]}]), "line 2: rank=\\[8\\]: give a whole number"), (changed(frozen=[{**PART, "rank": {}}]), "line 2: rank={}"),
    (changed(parts=[{**PART, "alpha": 10**400}]), "line 2: alpha=10*…: give a number above 0"), (changed(parts=[{**PART, "alpha": "1"}]), "line 2: alpha='1'"),
    (changed(mitigations=[{"mitigation": "rwaa", "strength": {}}]), "line 2: .*rwa"), (changed(mitigations=[{**RWA, "mitigation": ["rwa"]}]), "line 2: mitigation=\\['rwa'\\]: give a name"),
    (changed(mitigations=[{**RWA, "strength": {"words": 10**400, "probability": 0.1}}]), "line 2: mitigation rwa: words=10*…: give a number"),
    (changed(mitigations=[{**RWA, "strength": 4}]), "line 2 is no candidate"), (changed(mitigations=7), "line 2 is no candidate"),
    (f'{{"method": {"[" * 700}{"]" * 700}}}', "line 2 is no candidate"), (changed(method=1).replace("1", "9" * 5000, 1), "line 2 is no candidate \\(ValueError")])
def test_a_line_that_is_no_candidate_is_named(line: str, words: str, searching: Searching, tmp_path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(BadSetting, match=f"^--enqueue {file}: {words}") as refused:
        queue_of(searching(enqueue=str(file)))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_any_candidate_is_refused(text: str, searching: Searching, tmp_path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(text)
    with pytest.raises(BadSetting, match=f"^--enqueue {file}: there is no candidate in it, write one a line .*, or leave the flag out"):
        queue_of(searching(enqueue=str(file)))


def test_a_file_that_is_not_there_is_named(searching: Searching) -> None:
    with pytest.raises(BadSetting, match="--enqueue nowhere.jsonl: it cannot be read .* give a text file with a candidate a line"):
        queue_of(searching(enqueue="nowhere.jsonl"))


def test_another_warm_start_of_a_later_launch_is_noted_too(searching: Searching, finished: Search, opened: Callable) -> None:
    search = searching(trials=9, baselines=False)
    quickly(search, 1.0, 1.0)
    later = Search(opened(), replace(search.settings, warm_start=finished.settings.study))
    later.register(9, IDENTITY)
    later.recall.refresh()
    assert [point.number for point in later.recall.proposer.history.points] == [0, -1, -2, -3, -4]
