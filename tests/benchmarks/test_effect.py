"""What `python -m benchmarks.effect` writes of its runs, on runs that are made up: no sentence of it may hold by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import documents, effect
from benchmarks.effect_runs import CONTROL_DRAWS, RECIPES, SEEDS, runs, steps_of
from benchmarks.summaries import chance_of_fewer, pairs_apart
from hpo.settings import Settings
from metrics.evaluate import Generated, Measured, PictureSet, References, evaluate, projection_for, real_floor

SETTINGS = Settings(train_images=24, generated=24, steps=8)
OWN = np.arange(24)
AWAY = {"full": 0.1, "full-slow": 0.15, "attention": 0.3, "lora": 0.4, "svdiff": 0.45, "difffit": 0.35, "norm": 0.5, "bias": 0.6}  # of each method's pictures from the real ones
COPIED = {"full": 12, "attention": 5}  # pictures that are copies, at the default steps


@pytest.fixture
def made_up() -> effect.Effect:
    rng = np.random.default_rng(0)
    real = {name: PictureSet(rng.standard_normal((24, 12)), np.arange(24) + 100 * number) for number, name in enumerate(("validate", "train", "twin"))}
    noise = {side: rng.standard_normal((24, 12)) for side in ("train", "twin")}

    def measured(away: float, copied: int, seed: int) -> Measured:
        sides = []
        for side in ("train", "twin"):
            pictures = noise[side] + away + 0.02 * np.random.default_rng(seed).standard_normal((24, 12))
            if side == "train":
                pictures[:copied] = real["train"].features[:copied] + 0.05
            sides.append(Generated(pictures, OWN))
        lowered = np.where(OWN < copied, 0.5, 0.0)[:, None]
        return Measured(*sides, np.ones((24, 4)) - lowered * (1 + 0.001 * seed), np.ones((24, 4)))

    base = measured(2.0, 0, 9)
    references = References(**real, projection=projection_for(real["validate"], real["twin"], 24), base=base)
    paths = {}
    for run in (run for run in runs() if not run.control):
        for steps in steps_of(SETTINGS, run):
            copied = COPIED.get(run.method, 0) if steps >= SETTINGS.steps else 0
            # With rwa the captions as they are written hide what those that were heard call up.
            ways = [0, copied] if run.mitigation == "rwa" else [copied // 2 if run.mitigation else copied]
            paths[run.recipe, run.seed, steps] = [measured(AWAY[run.method], count, run.seed) for count in ways]
    pictures = {(method, steps): np.zeros((16, 8, 8), np.uint8) for method, _, steps in paths} | {("base", 0): np.zeros((24, 8, 8), np.uint8)}
    controls = {draw: evaluate(references, measured(0.1, 0, draw)) for draw in CONTROL_DRAWS}
    return effect.Effect(SETTINGS, references, evaluate(references, base), real_floor(references), paths, pictures, controls)


@pytest.fixture
def docs(tmp_path, monkeypatch):
    for module in (documents, effect):
        monkeypatch.setattr(module, "DOCS", tmp_path)
    return tmp_path


def test_everything_is_written_and_every_expectation_is_judged(made_up, docs):
    checks = effect.report(made_up, "Made up", "made-up", "python -m benchmarks.effect", with_grid=True)
    assert [holds for holds, _ in checks] == [True] * 14, checks
    text = (docs / "results.md").read_text()
    for name in ("effect-made-up.png", "grid-made-up.png"):
        assert f"({name})" in text and (docs / name).read_bytes().startswith(b"\x89PNG")
    assert "All 60 tell more: 100.0% hold 0." in text and "fewer than 13 of them hold 0 in 3.6% of such experiments" in text
    assert text.count("- holds:") == 14 and "| full | 8 |" in text and "| full + rwa | 8 |" in text and "–: not reached" in text and "`loss_gap`" in text
    assert "No other quality score tells more pairs apart than the default objective `fd` (21; `kid` 21)." in text
    assert "**Better than the default memorization objective `copy_excess` (11 pairs): `copy_rate` 15.**" in text


def test_pairs_apart_are_those_further_apart_than_the_noise():
    """Pooled deviation 1 with 3 · 2 degrees of freedom: two means of 3 differ at 5 % from 2.447 · √(2 / 3) = 1.998 on."""
    seeds = np.array([-1.0, 0.0, 1.0])
    assert pairs_apart(np.array([seeds, seeds + 1.99, seeds + 4.0])) == 2
    assert pairs_apart(np.array([seeds, seeds + 2.01, seeds + 4.1])) == 3


def test_chance_of_fewer_is_the_binomials():
    assert chance_of_fewer(15, 15) == pytest.approx(1 - 0.95**15)
    assert chance_of_fewer(13, 15) == pytest.approx(0.0362, abs=1e-4)


def test_an_expectation_that_fails_is_said_to(made_up, docs):
    for (method, seed, steps), _ in list(made_up.measured.items()):
        if method == "full":
            made_up.measured[method, seed, steps] = made_up.measured["bias", seed, steps]
    for draw in (0, 1):
        made_up.controls[draw] = made_up.scores("attention", 0, SETTINGS.steps)
    checks = effect.report(made_up, "Made up", "made-up", "x", with_grid=False)
    said = {text.split(":")[0]: holds for holds, text in checks}
    assert not said["`copy_excess`, full − bias, seed 0"] and not said["`loss_gap`, full − bias, pooled over seeds"] and not said["controls, 5 draws of the sides"] and said["controls, 20 draws of the sides"]
    assert "**does not hold**" in (docs / "results.md").read_text() and "grid-made-up" not in (docs / "results.md").read_text()


def test_at_equal_quality_the_least_copying_counts(made_up):
    """Full reaches every quality that another method reaches, without copying at fewer steps."""
    rows = {row[0].strip(): row[1:] for row in (line.split("|")[1:-1] for line in effect.equal_quality(made_up).splitlines() if line.startswith("| "))}
    assert all("–" not in cell and abs(float(cell.split()[0])) < 0.1 for cell in rows["full"])
    assert "–" in rows["attention"][0] and "–" in rows["bias"][0] and "–" not in rows["bias"][-1]


def test_a_mitigation_that_only_hides_copies_is_found_out(made_up):
    """The worse of the captions as they are written and as the training heard them counts."""
    at = SETTINGS.steps
    assert made_up.mean("full + rwa", at, "copy_excess") == pytest.approx(made_up.mean("full", at, "copy_excess"))
    assert made_up.mean("full + tm", at, "copy_excess") < 0.8 * made_up.mean("full", at, "copy_excess")
    said = effect.claims(made_up)
    assert "rwa lowers copying with every method: change of `copy_excess` (of `fd`): full +0 " in said and "tm lowers" in said


def test_a_part_is_replaced_and_the_others_stay(docs):
    documents.write_part("some.md", "one", "first")
    documents.write_part("some.md", "two", "second")
    documents.write_part("some.md", "one", "third")
    text = (docs / "some.md").read_text()
    assert "first" not in text and text.index("third") < text.index("second") and text.startswith("# Some")


def test_a_control_learns_from_patients_of_another_draw():
    every = list(runs())
    assert len(every) == len(set(every)) == len(RECIPES) * len(SEEDS) + len(CONTROL_DRAWS)
    assert len({replace(SETTINGS, seed=effect.settings_of(SETTINGS, run).seed) for run in every if run.control}) == len(CONTROL_DRAWS)
    assert {effect.settings_of(SETTINGS, run) for run in every if not run.control} == {SETTINGS}
