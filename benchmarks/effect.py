"""`python -m benchmarks.effect [--data DIR]` repeats the papers' effect and writes its part of docs/results.md.

Untouched base and the papers' methods, each alone, with random word addition (rwa) and with threshold mitigation (tm), three seeds
each, at five numbers of steps; controls that learn from the second twin; and all of them compared at equal quality,
early-stopped full fine-tuning among them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from math import comb
from pathlib import Path

import numpy as np

from benchmarks.documents import DOCS, table, write_part
from benchmarks.effect_runs import CONTROL_DRAWS, METHODS, MITIGATIONS, RECIPES, SEEDS, SLOW_RATE, Run, measured_at, recipe, runs, settings_of, steps_of
from benchmarks.summaries import chance_of_fewer, pairs_apart, seed_noise, signal_to_noise, z
from hpo import home
from hpo.inner_loop import InnerLoop, pick_device
from hpo.objectives import parse
from hpo.settings import Settings
from metrics.copying import copy_excess
from metrics.estimate import Estimate
from metrics.evaluate import Measured, References, copy_sides, evaluate, loss_sides
from metrics.loss_gap import loss_gap
from metrics.scores import SCORES, Scores
from trainers.cache import key_of

CALIBRATED = ("loss_gap", "copy_excess", "copy_rate")
FIRST_DRAWS, ENOUGH_CONTROLS = 5, 13 / 15  # this share of the intervals must hold 0, in the first draws and in all of them
LINEAR_BELOW = 0.02  # copy_excess: about its standard error, below which a logarithm would only show noise
PATH_SCORES = ("fd", "copy_excess", "loss_gap", "copy_rate")


@dataclass(frozen=True)
class Effect:
    """All runs of one data set: what was measured, by run and steps, and the references that it is held against.

    measured: by (recipe, seed, steps), with captions as they are written and, where a mitigation changed them, as training heard them.
    """

    settings: Settings
    references: References
    base: Scores
    floor: Scores
    measured: dict[tuple[str, int, int], list[Measured]]
    pictures: dict[tuple[str, int], np.ndarray]  # (recipe, steps) of seed 0
    controls: dict[int, Scores]
    scored: dict[tuple[str, int, int], Scores] = field(default_factory=dict, repr=False)  # each is asked for by several tables

    def steps(self, recipe: str) -> list[int]:
        """At which it was measured, in each seed."""
        return sorted(steps for name, seed, steps in self.measured if name == recipe and seed == SEEDS[0])

    def scores(self, method: str, seed: int, steps: int) -> Scores:
        run = method, seed, steps
        if run not in self.scored:
            self.scored[run] = reduce(Scores.worse, (evaluate(self.references, measured) for measured in self.measured[run]))
        return self.scored[run]

    def mean(self, name: str, steps: int, score: str) -> float:
        """Over the seeds."""
        return float(np.mean([self.scores(name, seed, steps)[score].value for seed in SEEDS]))

    def paired(self, score: str, method: str, other: str, seed: int | None, steps: int) -> Estimate:
        """Difference of two methods on the same patients and noise; seed None pools the seeds (losses are averaged)."""
        one, two = (self.pooled(each, steps) if seed is None else self.measured[each, seed, steps][0] for each in (method, other))
        against = replace(self.references, base=two)
        return loss_gap(*loss_sides(against, one)) if score == "loss_gap" else copy_excess(*copy_sides(against, one))

    def pooled(self, method: str, steps: int) -> Measured:
        each = [self.measured[method, seed, steps][0] for seed in SEEDS]
        return replace(each[0], train_losses=np.mean([m.train_losses for m in each], 0), twin_losses=np.mean([m.twin_losses for m in each], 0))


def run_workers(settings: Settings, folder: Path, workers: int) -> None:
    command = [sys.executable, "-m", "benchmarks.effect_runs", "--folder", str(folder), "--settings", json.dumps(settings.to_json())]
    processes = [subprocess.Popen(command) for _ in range(workers)]
    if any([process.wait() for process in processes]):
        raise SystemExit("a worker failed; run the same command again, finished runs are kept")


def load(inner: InnerLoop, folder: Path) -> Effect:
    settings = inner.settings
    measured, pictures = {}, {}
    for run in runs():
        if run.control:
            continue
        arrays = np.load(folder / f"{run.name}.npz")
        for steps in steps_of(settings, run):
            measured[run.recipe, run.seed, steps] = measured_at(arrays, steps)
            if run.seed == SEEDS[0]:
                pictures[run.recipe, steps] = arrays[f"{steps}/pictures"]
    pictures["base", 0] = np.array(inner.base_pictures)
    controls = {}
    for draw in CONTROL_DRAWS:
        run = Run("full", draw, control=True)
        other = InnerLoop(settings_of(settings, run), inner.device)
        controls[draw] = evaluate(other.references, measured_at(np.load(folder / f"{run.name}.npz"), settings.steps)[0])
    return Effect(settings, inner.references, inner.base_scores(), inner.real_scores(), measured, pictures, controls)


def shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.3g} ({min(values):.3g} … {max(values):.3g})"


def paths_table(effect: Effect) -> str:
    rows = [["untouched base", "0", f"{effect.base['fd'].value:.3g}", "0", "0", f"{effect.base['copy_rate'].value:.3g}"],
            ["real pictures", "–", f"{effect.floor['fd'].value:.3g}", "–", "–", "–"]]
    for name in RECIPES:
        for steps in effect.steps(name):
            each = [effect.scores(name, seed, steps) for seed in SEEDS]
            rows.append([name, str(steps), *(spread([scores[score].value for scores in each]) for score in PATH_SCORES)])
    return table(["trained", "steps", *(f"`{name}`" for name in PATH_SCORES)], rows)


def expectations(effect: Effect) -> tuple[str, list[tuple[bool, str]]]:
    """What was expected at the default steps, whether it holds, and with which figures."""
    at = effect.settings.steps
    checks: list[tuple[bool, str]] = []
    for seed in SEEDS:
        difference = effect.paired("copy_excess", "full", "bias", seed, at)
        checks.append((difference.low > 0, f"`copy_excess`, full − bias, seed {seed}: {shown(difference)} is wholly above 0"))
    difference = effect.paired("loss_gap", "full", "bias", None, at)
    checks.append((difference.low > 0, f"`loss_gap`, full − bias, pooled over seeds: {shown(difference)} is wholly above 0"))
    means = {method: np.mean([effect.scores(method, seed, at)["copy_excess"].value for seed in SEEDS]) for method in ("full", "attention", "bias")}
    checks.append((means["full"] > means["attention"] > means["bias"],
                   "`copy_excess` of attention lies between: " + " > ".join(f"{name} {value:.3g}" for name, value in means.items())))
    base = effect.base["fd"].value
    for method in METHODS:
        best = min(np.mean([effect.scores(method, seed, steps)["fd"].value for seed in SEEDS]) for steps in effect.steps(method))
        checks.append((best < base, f"best `fd` of {method}: {best:.3g} is better than the untouched base's {base:.3g}"))
    for draws in (FIRST_DRAWS, len(effect.controls)):
        held = [scores[name].low <= 0 <= scores[name].high for scores in list(effect.controls.values())[:draws] for name in CALIBRATED]
        least = round(ENOUGH_CONTROLS * len(held))
        checks.append((sum(held) >= least, f"controls, {draws} draws of the sides: {sum(held)} of {len(held)} intervals hold 0, at least {least} are expected "
                                           f"(of intervals that are right fewer do in {chance_of_fewer(least, len(held)):.2%} of such experiments)"))
    return "\n".join(f"- {'holds' if holds else '**does not hold**'}: {text}" for holds, text in checks), checks


def controls_table(effect: Effect) -> str:
    rows = [[str(draw), *(shown(scores[name]) for name in CALIBRATED)] for draw, scores in effect.controls.items()]
    all_z = {name: [z(scores[name]) for scores in effect.controls.values()] for name in CALIBRATED}
    draws = len(effect.controls)
    rows.append([f"root mean square of *z* (1.00 ± {np.sqrt(0.5 / draws):.2f} if intervals are right)", *(f"{np.sqrt(np.mean(np.square(all_z[name]))):.2f}" for name in CALIBRATED)])
    rows.append([f"mean of *z* (0.00 ± {np.sqrt(1 / draws):.2f})", *(f"{np.mean(all_z[name]):.2f}" for name in CALIBRATED)])
    held = np.mean([scores[name].low <= 0 <= scores[name].high for scores in effect.controls.values() for name in CALIBRATED])
    first = len(CALIBRATED) * FIRST_DRAWS
    return table(["draw of the sides", *(f"`{name}`" for name in CALIBRATED)], rows) + (
        f"\n\nAn interval of 95 % misses once in 20 times by itself, so the first {first} are few to judge by: where they are right, fewer than "
        f"{round(ENOUGH_CONTROLS * first)} of them hold 0 in {chance_of_fewer(round(ENOUGH_CONTROLS * first), first):.1%} of such experiments. "
        f"All {len(CALIBRATED) * draws} tell more: {held:.1%} hold 0.")


def equal_quality(effect: Effect) -> str:
    """At levels of `fd`, the best of each method alone: the least copying with which each recipe reaches them (means over seeds)."""
    levels = sorted({min(effect.mean(method, steps, "fd") for steps in effect.steps(method)) for method in METHODS})
    rows = []
    for each in RECIPES:
        row = [each]
        for level in levels:
            reached = [(effect.mean(each, steps, "copy_excess"), steps) for steps in effect.steps(each) if effect.mean(each, steps, "fd") <= level * (1 + 1e-9)]
            row.append(f"{min(reached)[0]:.3g} ({min(reached)[1]})" if reached else "–")
        rows.append(row)
    return table(["trained", *(f"`fd` ≤ {level:.3g}" for level in levels)], rows) + (
        "\n\nIn brackets the number of steps; –: not reached. `full-slow` is full fine-tuning at "
        f"{SLOW_RATE['full-slow'][1]:g} × its reference rate, an early-stopped rival. With a mitigation, paths have "
        f"{', '.join(map(str, effect.steps(recipe('full', 'rwa'))))} steps only.")


def claims(effect: Effect) -> str:
    """The papers' claims, each as figures at the default steps."""
    at, lines = effect.settings.steps, []
    for method in ("svdiff", "difffit"):
        less = effect.paired("copy_excess", "full", method, SEEDS[0], at)
        fd = {name: (effect.mean(name, at, "fd"), min(effect.mean(name, steps, "fd") for steps in effect.steps(name))) for name in ("full", method)}
        lines.append(f"- `{method}` copies less than full fine-tuning: `copy_excess` full − {method} {shown(less)} (first seed)")
        lines.append(f"- `{method}` looks better than full fine-tuning: `fd` {fd[method][0]:.3g} against {fd['full'][0]:.3g}, "
                     f"at each one's best number of steps {fd[method][1]:.3g} against {fd['full'][1]:.3g}")
    for mitigation in filter(None, MITIGATIONS):
        changes = [f"{method} {effect.mean(recipe(method, mitigation), at, 'copy_excess') - effect.mean(method, at, 'copy_excess'):+.3g} "
                   f"({effect.mean(recipe(method, mitigation), at, 'fd') - effect.mean(method, at, 'fd'):+.2g})" for method in METHODS]
        lines.append(f"- {mitigation} lowers copying with every method: change of `copy_excess` (of `fd`): {', '.join(changes)}")
    return "\n".join(lines)


def by_method(effect: Effect, score: str) -> np.ndarray:
    """(methods, seeds) values of a score at the default steps."""
    return np.array([[effect.scores(method, seed, effect.settings.steps)[score].value for seed in SEEDS] for method in METHODS])


def scores_table(effect: Effect) -> str:
    """Signal to noise of every score at the default steps: the range of the methods' means is often the doing of one method, so
    the pairs of methods that a score tells apart are counted beside it."""
    rows = []
    for name in SCORES:
        values = by_method(effect, name)
        noise = seed_noise(values)
        rows.append([f"`{name}`", SCORES[name].kind, f"{signal_to_noise(values):.1f}" if noise else "–", f"{pairs_apart(values)} of {comb(len(METHODS), 2)}",
                     *(f"{value:.3g}" for value in values.mean(1)), f"{noise:.2g}"])
    return table(["score", "kind", "range / noise", "pairs of methods apart", *METHODS, "deviation between seeds"], rows)


def default_pair(effect: Effect) -> str:
    """Whether another pair of objectives than the default tells more pairs of methods apart, in a sentence a kind. Of memorization
    only the calibrated scores are asked: the others say how far pictures are from real ones, copied or not."""
    values = {name: by_method(effect, name) for name in SCORES}
    apart = {name: pairs_apart(values[name]) for name in SCORES}
    ratio = {name: signal_to_noise(values[name]) if seed_noise(values[name]) else 0.0 for name in SCORES}
    sentences = ["Objectives are judged by the pairs of methods that they tell apart. The range over the noise is no measure of that: it is set by the one "
                 "method that copies most, while a front is decided among those that copy little."]
    for name in parse(Settings().objectives).names:
        rivals = CALIBRATED if SCORES[name].kind == "memorization" else [other for other in SCORES if SCORES[other].kind == "quality"]
        others = [other for other in rivals if other != name]
        better = [other for other in others if apart[other] > apart[name]]
        said = ", ".join(f"`{other}` {apart[other]}" for other in better or others)
        sentences.append(f"**Better than the default {SCORES[name].kind} objective `{name}` ({apart[name]} pairs): {said}.**" if better else
                         f"No other {SCORES[name].kind} score tells more pairs apart than the default objective `{name}` ({apart[name]}; {said}).")
        sentences += [f"`{other}` has the larger range over noise ({ratio[other]:.1f} against {ratio[name]:.1f})." for other in others if ratio[other] > ratio[name]]
    return " ".join(sentences)


def draw_paths(effect: Effect, path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from hpo.picture import style

    figure, axes = plt.subplots(1, len(MITIGATIONS), figsize=(5 * len(MITIGATIONS), 5), dpi=100, sharex=True, sharey=True)
    for axis, mitigation in zip(axes, MITIGATIONS):
        for method in METHODS:
            for seed in SEEDS:
                name = recipe(method, mitigation)
                points = [effect.scores(name, seed, steps) for steps in effect.steps(name)]
                axis.plot([p["copy_excess"].value for p in points], [p["fd"].value for p in points], "o-", color=style(method)[0], alpha=0.75,
                          markersize=3.5, linewidth=1, label=method if seed == SEEDS[0] else None)
        axis.axhline(effect.floor["fd"].value, color="grey", linewidth=0.8, linestyle="--", label="real pictures")
        axis.scatter([0], [effect.base["fd"].value], marker="x", color="black", label="untouched base")
        axis.set_yscale("log")
        axis.set_xscale("symlog", linthresh=LINEAR_BELOW)
        axis.set_xlabel("copy_excess (lower is better)")
        steps = ", ".join(map(str, effect.steps(recipe("full", mitigation))))
        axis.set_title(f"{f'with {mitigation}' if mitigation else 'alone'}: {steps} steps along each path", fontsize=10)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("fd (lower is better)")
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{title}, three seeds", fontsize=11)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def draw_grid(effect: Effect, path: Path) -> None:
    """Generated pictures, a row a method at the default steps, from the same captions and noise."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [("untouched base", effect.pictures["base", 0]), *((m, effect.pictures[m, effect.settings.steps]) for m in METHODS)]
    figure, axes = plt.subplots(len(rows), 10, figsize=(11, 1.15 * len(rows)), dpi=90)
    for line, (name, pictures) in zip(axes, rows):
        for axis, picture in zip(line, pictures):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path)
    plt.close(figure)


def report(effect: Effect, title: str, part: str, command: str, with_grid: bool) -> list[tuple[bool, str]]:
    DOCS.mkdir(exist_ok=True)
    draw_paths(effect, DOCS / f"effect-{part}.png", title)
    if with_grid:
        draw_grid(effect, DOCS / f"grid-{part}.png")
    text, checks = expectations(effect)
    patients = len(set(effect.references.train.patients))
    sections: list[tuple[str, Callable[[], str]]] = [
        ("At each number of steps (mean over three seeds, smallest … largest)", lambda: paths_table(effect)),
        ("At equal quality: the least `copy_excess` with which an `fd` is reached", lambda: equal_quality(effect)),
        ("The papers' claims, at the default steps", lambda: claims(effect)),
        ("Controls: full fine-tuning on the second twin, scored as if on train", lambda: controls_table(effect)),
        ("Which scores tell methods apart", lambda: scores_table(effect) + "\n\n" + default_pair(effect))]
    body = [f"## {title}", f"Made by `{command}`. {effect.settings.train_images} pictures of {patients} patients a side, "
            f"{effect.settings.generated} generated a side, {effect.settings.steps} steps by default.",
            f"![paths](effect-{part}.png)", *([f"![generated pictures](grid-{part}.png)"] if with_grid else []), "### Expected", text]
    for heading, make in sections:
        body += [f"### {heading}", make()]
    write_part("results.md", part, "\n\n".join(body))
    return checks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=None, help="MIMIC-CXR-JPG folder (default: phantoms)")
    parser.add_argument("--title", default=None, help="what the documents call the data")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--folder", type=Path, default=None, help="where runs are kept (default: in the data folder)")
    given = parser.parse_args()
    settings = Settings(data=given.data).check()
    part = "phantoms" if given.data is None else "xrays"
    title = given.title or ("Phantoms" if given.data is None else "X-rays")
    inner = InnerLoop(settings, pick_device(settings.device))
    candidates = sorted({run.candidate(settings).hash for run in runs()})
    folder = given.folder or home.data_root() / "effect" / f"{part}-{key_of(inner.meaning, candidates)[:12]}"
    run_workers(settings, folder, given.workers)
    command = "python -m benchmarks.effect" + ("" if given.data is None else f" --data DIR --title {shlex.quote(title)}")
    checks = report(load(inner, folder), title, part, command, with_grid=given.data is None)
    for holds, text in checks:
        print("holds" if holds else "DOES NOT HOLD", text)
    return 0 if all(holds for holds, _ in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
