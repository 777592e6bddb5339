"""`python -m hpo.launch` on bad input: one line that begins with "error:", status 2, no traceback, and nothing lost."""

from __future__ import annotations

import gzip
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import optuna
import pytest
from commands import help_of
from finished_study import scores, tell
from launching import flags
from rich.console import Console

from benchmarks.faults_proxy import Proxy
from hpo import keeping, launch, tried
from hpo.command import one_line_errors
from hpo.errors import BadSetting
from hpo.identity import identity, resolution_of
from hpo.inner_loop import InnerLoop
from hpo.plan import left
from hpo.preparation import dealt_sides
from hpo.settings import Settings
from hpo.study import Search
from storage import cluster, embedded, results
from storage.errors import StorageUnreachable
from storage.store import open_store, worker_name
from trainers.data import phantoms

Made = Callable[..., Settings]


@pytest.fixture
def refused(capsys) -> Iterator[Callable[[list[str]], str]]:
    """Runs launch in this process, which must be refused; gives the line on standard error, without "error: "."""
    former = signal.getsignal(signal.SIGTERM)

    def run(words: list[str]) -> str:
        assert one_line_errors(lambda: launch.main(words)) == 2
        return only_line(capsys.readouterr().err)

    yield run
    signal.signal(signal.SIGTERM, former)


def only_line(said: str) -> str:
    assert said.startswith("error: ") and said.count("\n") == 1 and said.endswith("\n"), said
    return said.removeprefix("error: ").strip()


def command(settings: Settings, **changed: str) -> list[str]:
    """The command line of these settings with some flags as a user might get them wrong."""
    words = [word for word in flags(settings) if word.split("=")[0] not in {f"--{name.replace('_', '-')}" for name in changed}]
    return words + [f"--{name.replace('_', '-')}={value}" for name, value in changed.items()]


def test_a_data_folder_that_does_not_exist(refused: Callable, settings: Made, tmp_path) -> None:
    line = refused(flags(settings(data=str(tmp_path / "none"))))
    assert str(tmp_path / "none") in line and "does not exist" in line and "give a folder" in line


@pytest.mark.parametrize("table", ["metadata", "split"])
def test_a_data_folder_without_a_csv(table: str, refused: Callable, settings: Made, spoilt: Path) -> None:
    next(spoilt.glob(f"*{table}.csv*")).unlink()
    assert f"lacks mimic-cxr-2.0.0-{table}.csv.gz" in refused(flags(settings(data=str(spoilt))))


def test_pictures_that_the_csv_names_are_missing(refused: Callable, settings: Made, spoilt: Path) -> None:
    for picture in sorted(spoilt.rglob("*.jpg"))[::3]:
        picture.unlink()
    line = refused(flags(settings(data=str(spoilt))))
    assert "missing" in line and "the first: " in line and "complete the download" in line


def test_more_corrupt_pictures_than_one_in_a_hundred(refused: Callable, settings: Made, spoilt: Path) -> None:
    for picture in sorted(spoilt.rglob("*.jpg"))[::10]:
        picture.write_bytes(b"no JPEG")
    assert "are corrupt, at most 1% may be" in refused(flags(settings(data=str(spoilt))))


def test_too_few_patients(refused: Callable, settings: Made, tmp_path) -> None:
    few = phantoms.write(tmp_path / "few", patients=25, seed=1, resolution=64)
    assert "30 are needed (10 for each of three sides)" in refused(flags(settings(data=str(few))))


def test_a_damaged_csv(refused: Callable, settings: Made, spoilt: Path) -> None:
    table = next(spoilt.glob("*split.csv.gz"))
    table.write_bytes(gzip.compress(b"dicom_id,study_id,subject_id\n1,2,3\n"))
    assert "lacks column split" in refused(flags(settings(data=str(spoilt))))


def test_more_pictures_a_side_than_there_are(refused: Callable, settings: Made) -> None:
    assert "--train-images=5000: this data folder has at most" in refused(flags(settings(train_images=5000)))


def test_a_model_folder_that_does_not_exist_or_lacks_its_unet(refused: Callable, settings: Made, model: Path, tmp_path) -> None:
    assert "there is no such folder" in refused(flags(settings(model=str(tmp_path / "none"))))
    without = Path(shutil.copytree(model / "base", tmp_path / "without"))
    shutil.rmtree(without / "unet")
    assert f"--model {without}: it has no unet/ folder" in refused(flags(settings(model=str(without))))


def test_a_model_with_pickled_weights_only(refused: Callable, settings: Made, model: Path, tmp_path) -> None:
    pickled = Path(shutil.copytree(model / "base", tmp_path / "pickled"))
    for file in (pickled / "unet").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    assert "only pickled weights" in (line := refused(flags(settings(model=str(pickled))))) and "safe_serialization=True" in line


def test_a_model_without_an_encoder(refused: Callable, model: Path) -> None:
    assert "needs an --encoder of your own" in refused([f"--model={model / 'base'}"])


def test_an_encoder_that_is_none(refused: Callable, settings: Made, tmp_path) -> None:
    assert f"{str(tmp_path / 'none')!r} is neither 'pixels' nor a folder" in refused(flags(settings(encoder=str(tmp_path / "none"))))


def test_an_encoder_folder_that_holds_no_clip(refused: Callable, settings: Made, model: Path, tmp_path) -> None:
    """Before anything is started, not by the workers."""
    for folder, says in ((model / "base", "has no preprocessor_config.json"), (tmp_path / "bert", "model_type 'bert'")):
        if not folder.exists():
            shutil.copytree(model / "clip", folder)
            (folder / "config.json").write_text('{"model_type": "bert"}')
        assert says in (line := refused(flags(settings(encoder=str(folder))))) and str(folder) in line


def test_a_resolution_that_the_model_cannot_have(refused: Callable, settings: Made) -> None:
    for given, near in (("60", "56 or 64"), ("12", "8 or 16"), ("4", "8"), ("64x65", "64 or 64x72"), ("65x64", "64 or 72x64"), ("3x60", "8x56 or 8x64")):
        assert f"--resolution {given}: this model needs multiples of 8, take {near}" in refused(flags(settings(resolution=given)))


@pytest.mark.parametrize(("url", "says"), [
    ("postgresql://nobody@host.invalid/db", "no such host"), ("postgresql://u:secret@127.0.0.1:1/db", "no server answers there"),
    ("sqlite:///study.db", "only PostgreSQL"), ("mysql://h/d", "only PostgreSQL"), ("not a url", "is not a URL"), ("", "is not a URL"),
    ("postgresql://h:port/d", "cannot be read as a URL")])
def test_a_store_that_cannot_be_used(url: str, says: str, refused: Callable, settings: Made) -> None:
    line = refused(flags(settings(storage=url)))
    assert says in line and "secret" not in line


def test_a_store_that_refuses_the_user(refused: Callable, settings: Made) -> None:
    wrong = embedded.start().replace("postgres@", "nobody:wrong@", 1)
    line = refused(flags(settings(storage=wrong)))
    assert "nobody" in line and "wrong" not in line.replace("correct", "") and "URL" in line


@pytest.mark.parametrize(("name", "value", "says"), [("trials", "0", "at least 1"), ("objectives", "copy", "take copy_"), ("sampler", "nsga", "take nsga2"),
                                                     ("space", "reference2", "take reference"), ("engine", "locale", "take local"), ("keep", "al", "take all"),
                                                     ("precision", "fp3", "take fp"), ("batch_size", "0", "at least 1"), ("workers", "0", "at least 1"),
                                                     ("device", "cuda", "lists no GPU")])
def test_a_flag_with_a_bad_value(name: str, value: str, says: str, refused: Callable, settings: Made, monkeypatch) -> None:
    if name == "device":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # also where there is one
    line = refused(command(settings(), **{name: value}))
    assert says in line and f"--{name.replace('_', '-')}" in line and value in line


def test_an_output_folder_that_cannot_be_written(refused: Callable, settings: Made, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(flags(settings(out=str(tmp_path / "file" / "out"))))


def test_a_known_study_with_another_meaning_is_refused_with_both_values_and_nothing_is_lost(refused: Callable, settings: Made, opened: Callable,
                                                                                              finish: Callable, states: Callable) -> None:
    known = settings()
    search = Search(opened(), known)
    search.register(3, identity(known, dealt_sides(known, resolution_of(known))))
    finish(search)
    for name, value, says in (("steps", 5, "'steps' is 4 in the stored study but 5"), ("seed", 1, "'seed' is 0 in the stored study but 1"),
                              ("train_images", 14, "'train_images' is 12 in the stored study but 14"), ("resolution", 32, "'resolution' is 64 in the stored study but 32"),
                              ("resolution", "48x72", "'resolution' is 64 in the stored study but '48x72'"),
                              ("objectives", "kid,loss_gap", "['fd', 'copy_excess'] in the stored study but ['kid', 'loss_gap']")):
        assert says in refused(flags(settings(**{**known.to_json(), name: value})))
    assert states(known.study) == {"COMPLETE": 1}
    for aloud in (settings(study=known.study, resolution=size) for size in (64, "64x64")):  # the model's own
        assert not Search(opened(), aloud).register(3, identity(aloud, dealt_sides(aloud, resolution_of(aloud)))).created


@pytest.mark.parametrize(("words", "says"), [(["--trials", "0"], "--trials 0: it must be at least 1"), (["--trails", "3"], "take --trials"),
                                             (["--config", "/nowhere/x.toml"], "cannot be read")])
def test_the_command_itself_ends_with_one_line(words: list[str], says: str, repository: Path) -> None:
    ended = subprocess.run([sys.executable, "-m", "hpo.launch", *words], capture_output=True, text=True, cwd=repository)
    assert ended.returncode == 2 and ended.stdout == "" and says in only_line(ended.stderr)


def test_the_command_itself_names_what_is_wrong_with_data_and_store(settings: Made, repository: Path, tmp_path) -> None:
    for wrong, says in ((settings(data=str(tmp_path / "none")), "does not exist"), (settings(storage="sqlite:///x"), "only PostgreSQL")):
        ended = subprocess.run([sys.executable, "-m", "hpo.launch", *flags(wrong)], capture_output=True, text=True, cwd=repository)
        assert ended.returncode == 2 and ended.stdout == "" and says in only_line(ended.stderr)


def test_help_shows_every_setting_with_its_default() -> None:
    for each in fields(Settings):
        flag = f"--{each.name.replace('_', '-')}"
        entry = re.search(rf"^  {flag} \[?[A-Z]+\]?(.*?)(?=^  --|^\S|\Z)", help_of("hpo.launch"), re.DOTALL | re.MULTILINE)
        assert entry, f"{flag} is no flag"
        said = " ".join(entry[1].split())
        assert said.startswith(each.metadata["help"]) and "(default: " in said, flag
        assert each.default is None or f"(default: {each.default})" in said, flag


def test_a_launch_says_what_a_password_is_never(settings: Made) -> None:
    secret = settings(storage="postgresql://user:secret@host/db")
    lines = launch.closing(secret, None, None, launch.Found([], Path("a.png"), Path("a.html"), 0))
    assert "secret" not in (said := "\n".join(lines)) and "--storage" in said and "postgresql://user@host/db" in said


def test_the_sql_line_is_good_for_any_name(settings: Made) -> None:
    lines = list(launch.closing(settings(study="it's \"a\" $(name)"), None, None, launch.Found([], Path("a.png"), Path("a.html"), 0)))
    sql = next(line for line in lines if line.startswith("SQL:")).split(" -c ")[1]
    ended = subprocess.run(f"printf %s {sql}", shell=True, capture_output=True, text=True)
    assert ended.stdout == "SELECT * FROM pareto_front WHERE study = 'it''s \"a\" $(name)'"


def test_lines_are_not_broken_at_the_width_of_a_screen(tmp_path) -> None:
    with (tmp_path / "said").open("w") as stream:
        launch.say(Console(file=stream, width=20), "[bold] " + "word " * 30)
    assert (tmp_path / "said").read_text() == "[bold] " + "word " * 30 + "\n"


def test_a_plan_says_what_a_launch_costs_and_begins_no_study(settings: Made, query: Callable, capsys) -> None:
    """On phantoms, with measured seconds; nothing was prepared for this seed."""
    chosen = settings(trials=7, seed=76)
    assert one_line_errors(lambda: launch.main([*flags(chosen), "--plan"])) == 0
    printed = capsys.readouterr()
    lines = dict(line.split(":", 1) for line in printed.out.splitlines())
    assert printed.err == "" and list(lines) == ["study", "sides", "caches", "measured", "preparation", "a trial", "7 trials", "disk", "states"]
    assert lines["study"].split() == f"{chosen.study} is new: 7 trials to run".split() and lines["preparation"].endswith(", once")
    assert "train 12 pictures of" in lines["sides"] and "second twin 12 pictures" in lines["sides"] and "validate" in lines["sides"]
    assert all(method in lines["measured"] for method in ("full", "lora", "bias")) and "of its 2 evaluations" in lines["a trial"]
    assert "worker-hours" in lines["7 trials"] and "with 1 at a time" in lines["7 trials"]
    assert not query("SELECT 1 FROM studies WHERE study_name = :s", s=chosen.study) and not Path(chosen.out).exists()


def test_a_plan_of_a_study_that_is_there_is_of_what_is_left(settings: Made, searching: Callable, finish: Callable, query: Callable, capsys) -> None:
    chosen = settings(trials=7)
    search = searching(chosen, identity(chosen, dealt_sides(chosen, resolution_of(chosen))))
    finish(search), finish(search)
    before = query("SELECT trials, settings FROM peft_pareto.studies WHERE study_id = :s", s=search.id)

    def said(**changes) -> dict[str, str]:
        assert one_line_errors(lambda: launch.main([*flags(replace(chosen, **changes)), "--plan"])) == 0
        return dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())

    lines = said(trials=9)
    assert lines["study"].strip() == f"{chosen.study} has 2 finished trials, 7 of 9 are left" and "if none is stopped" in lines["7 trials"]
    (running,) = [search.ask()]
    assert said()["study"].endswith("5 of 7 are left, 1 of which run now")
    search.release(running)
    assert said(trials=2) == {"study": f"       {chosen.study} has 2 finished trials, nothing is left: all 2 trials are finished"}
    assert one_line_errors(lambda: launch.main([*flags(replace(chosen, steps=8)), "--plan"])) == 2 and "steps" in capsys.readouterr().err
    assert before == query("SELECT trials, settings FROM peft_pareto.studies WHERE study_id = :s", s=search.id) and not Path(chosen.out).exists()


def test_a_plan_knows_what_is_prepared(settings: Made, capsys) -> None:
    chosen = settings(trials=2, seed=77)
    InnerLoop(chosen, "cpu")
    assert one_line_errors(lambda: launch.main([*flags(chosen), "--plan"])) == 0
    assert "the rest is kept from before" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("preparation:"))


@pytest.mark.parametrize(("changes", "says"), [({"max_trainable": "1"}, "none of 1,000 random proposals meets it"), ({"warm_start": "nowhere"}, "--warm-start nowhere: there is no such study in this store"),
                                               ({"enqueue": "nowhere.jsonl"}, "--enqueue nowhere.jsonl: it cannot be read")])
def test_a_plan_checks_what_a_launch_does_before_its_first_trial(changes: dict, says: str, settings: Made, query: Callable, capsys) -> None:
    chosen = settings(**changes)
    assert one_line_errors(lambda: launch.main([*flags(chosen), "--plan"])) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
    assert not query("SELECT 1 FROM studies WHERE study_name = :s", s=chosen.study) and not Path(chosen.out).exists()


def test_what_a_launch_does_not_give_back_is_said_when_it_is_interrupted(searching: Callable[..., Search]) -> None:
    search = searching(trials=9)
    asked = search.ask()
    assert launch.interrupted(search) == ("interrupted: running trials were given back but for 1, which others run or whose workers died and have a lease left, "
                                          "run the same command again to go on")
    search.release(asked)
    assert launch.interrupted(search) == "interrupted: running trials were given back, run the same command again to go on"


def test_a_plan_without_a_store_makes_none(settings: Made, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PEFT_PARETO_HOME", str(tmp_path / "home"))
    chosen = settings()
    what = identity(chosen, dealt_sides(chosen, resolution_of(chosen)))
    assert left(chosen, what, launch.queue_of).trials == 3 and not (tmp_path / "home" / "postgres").exists()
    with pytest.raises(BadSetting, match="--warm-start other: there is no such study in this store, which has no other: leave the flag out"):
        left(settings(warm_start="other"), what, launch.queue_of)


@pytest.mark.parametrize(("words", "says"), [(["--rungs", "9"], "--rungs 9"), (["--trials", "0"], "--trials 0"), (["--data", "/nowhere"], "/nowhere"),
                                             (["--workers", "2", "--device", "cuda:0"], "--workers 2: there is 1 GPU"), (["--paln"], "take --plan")])
def test_a_plan_with_bad_input_is_one_line(words: list[str], says: str, refused: Callable) -> None:
    assert says in refused(["--plan", *words])


def test_a_library_that_was_not_tried_is_a_line_at_the_launch(settings: Made, opened: Callable, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tried, "version", lambda name: "9.9.1")
    chosen = settings()
    search = Search(opened(), chosen)
    registered = search.register(3, identity(chosen, dealt_sides(chosen, resolution_of(chosen))))
    with (tmp_path / "said").open("w") as stream:
        launch.announce(chosen, search, registered, [], Console(file=stream, width=40))
    assert "warning: optuna 9.9.1 was not tried with this program" in (tmp_path / "said").read_text().splitlines()[1]


def test_what_a_worker_left_that_was_killed_after_the_last_trial_is_deleted_by_the_next_launch(settings: Made, opened: Callable, tmp_path) -> None:
    chosen = settings(trials=2, baselines=False, pruner="none", sampler="random")
    search = Search(opened(), chosen)
    search.register(2, identity(chosen, dealt_sides(chosen, resolution_of(chosen))))
    kept = []
    for place in (1.0, 2.0):
        asked = search.ask()
        for kind, path in ((keeping.WEIGHTS, keeping.path_for(search, asked, asked.candidate.steps)), (keeping.STATE, keeping.state_path(search, asked))):
            keeping.note(search, asked, kind, path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            kept.append(path)
        tell(search, asked, scores(place, place))
    with (tmp_path / "said").open("w") as stream:
        assert launch.search(chosen, Console(file=stream, width=80)).status == 0
    assert [path.exists() for path in kept] == [True, True, False, False]


def test_a_launch_says_what_it_changes_for_others(settings: Made, opened: Callable, tmp_path) -> None:
    chosen = settings(trials=12)
    search = Search(opened(), chosen)
    what = identity(chosen, dealt_sides(chosen, resolution_of(chosen)))
    search.register(12, what)
    for trials, hours, keep, says in ((20, None, "all", "--trials was 12, is 20 now; --keep was front, is all now, also for what was kept before, for workers that run too"),
                                      (20, None, "all", None),
                                      (20, 2.0, "all", r"the end of --hours was none, is \d{4}-\d\d-\d\d \d\d:\d\d now, for workers that run too")):
        again = replace(chosen, trials=trials, hours=hours, keep=keep)
        registered = Search(opened(), again).register(trials, what)
        with (tmp_path / "said").open("w") as stream:
            launch.announce(again, search, registered, [], Console(file=stream))
        lines = (tmp_path / "said").read_text().splitlines()
        assert re.fullmatch(says, lines[1]) if says else not any("workers that run too" in line for line in lines)


def test_a_refused_launch_leaves_neither_a_study_nor_a_folder(refused: Callable, settings: Made, query: Callable, tmp_path) -> None:
    (file := tmp_path / "file").write_text("")
    for wrong, says in (({"max_trainable": "1"}, "none of 1,000 random proposals meets it"), ({"device": "mps"}, "--device mps: this machine cannot compute on it ("),
                        ({"out": str(file)}, f"--out {file}: the front's picture cannot be written there (Not a directory), give a folder"),
                        ({"out": str(tmp_path / ("x" * 300))}, "cannot be written there (File name too long)"),
                        ({"checkpoints": str(file)}, f"--checkpoints {file}: training states cannot be written there")):
        chosen = settings(**wrong)
        for words in (flags(chosen), [*flags(chosen), "--plan"]):
            assert says in (said := refused(words)) and len(said) < 600
        assert not query("SELECT 1 FROM studies WHERE study_name = :s", s=chosen.study) and (wrong.get("out") or not Path(chosen.out).exists())


def test_a_plan_of_what_others_run_is_refused_as_a_launch_is(refused: Callable, settings: Made, searching: Callable, opened: Callable, query: Callable) -> None:
    chosen = settings(trials=7)
    search = searching(chosen, identity(chosen, dealt_sides(chosen, resolution_of(chosen))))
    assert search.ask()
    assert "--trials 6: study" in refused([*flags(replace(chosen, trials=6)), "--plan"])
    query("UPDATE peft_pareto.studies SET settings = jsonb_set(settings, '{free,code}', '\"older\"') WHERE study_id = :s", s=search.id)
    assert "run with another version of this program (older" in refused([*flags(chosen), "--plan"])
    foreign = settings()
    optuna.create_study(study_name=foreign.study, storage=opened().optuna, directions=["minimize"] * 2).ask()
    assert "that were not made by peft-pareto" in refused([*flags(foreign), "--plan"])


def test_a_launch_bears_a_database_that_is_away_when_it_begins_and_when_it_shows_the_front(settings: Made, url: str, tmp_path, capsys) -> None:
    folder = dict(parse_qsl(urlsplit(url).query))["host"]
    with Proxy(f"{folder}/{cluster.SOCKET}") as proxy:
        chosen = settings(trials=1, storage=f"postgresql://postgres@127.0.0.1:{proxy.port}/peft_pareto?sslmode=disable")
        study = Search(open_store(chosen.storage, worker_name()), chosen)
        what = identity(chosen, dealt_sides(chosen, resolution_of(chosen)))
        registered, console = study.register(1, what), Console(file=(tmp_path / "said").open("w"))
        for call in (lambda: launch.announce(chosen, study, registered, [], console), lambda: launch.show(chosen, study, console, 0)):
            proxy.set("refuse")
            with pytest.raises(StorageUnreachable):
                results.front(study.store, chosen.study)
            threading.Timer(1, proxy.set, ("pass",)).start()
            call()
        study.store.close()
    assert "no rung is evaluated yet" in capsys.readouterr().out


def test_a_launch_says_whether_nothing_is_evaluated_or_nothing_meets_the_constraints(settings: Made, opened: Callable, capsys, tmp_path) -> None:
    chosen = settings(require="copy_excess<=0.5")
    search = Search(opened(), chosen)
    search.register(3, identity(chosen, dealt_sides(chosen, resolution_of(chosen))))
    console = Console(file=(tmp_path / "said").open("w"))
    assert launch.show(chosen, search, console, 0).rows == []
    assert "no rung is evaluated yet, so there is no front" in capsys.readouterr().out
    asked = search.ask()
    search.report(asked, 2, scores(1.0, 0.9), 1234, 1.0, None)
    assert launch.show(chosen, search, console, 0).rows == []
    assert "no evaluated rung meets the constraints, so there is no front" in capsys.readouterr().out


def test_a_launch_without_constraints_says_that_no_rung_has_a_reward(settings: Made, opened: Callable, capsys, tmp_path) -> None:
    chosen = settings(objectives="joint_reward")
    search = Search(opened(), chosen)
    search.register(3, identity(chosen, dealt_sides(chosen, resolution_of(chosen))))
    search.report(search.ask(), 2, scores(1.0, 0.9), 1234, 1.0, None)
    assert launch.show(chosen, search, Console(file=(tmp_path / "said").open("w")), 0).rows == []
    assert "joint_reward is known of no evaluated rung, since no yardstick has given one, so there is no front" in capsys.readouterr().out
