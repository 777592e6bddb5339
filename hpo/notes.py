"""What the dashboard shows of a trial: its note with words, scores and generated pictures. Never a patient's picture."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
from PIL import Image

from hpo import home
from metrics.scores import SCORES
from storage import leases

if TYPE_CHECKING:
    from hpo.inner_loop import Result
    from hpo.study import Asked, Search

log = logging.getLogger(__name__)

COLUMNS, ROWS = 8, 3  # generated pictures in a note
LEAST_SIDE, MOST_SIDE = 96, 192  # pixels of the longer side that a picture is shown with
GRID = "generated at {steps} steps.png"


def artifact_folder() -> Path:
    """Where the dashboard finds the pictures of notes."""
    return home.data_root() / "artifacts"


def grid(pictures: np.ndarray, columns: int = COLUMNS, rows: int = ROWS) -> Image.Image:
    """The first pictures (n, H, W) uint8 side by side, small ones enlarged, large ones made smaller; no row is empty."""
    longer = max(pictures.shape[1:])
    shown = min(max(longer, LEAST_SIDE), MOST_SIDE)
    height, width = (max(round(side * shown / longer), 1) for side in pictures.shape[1:])
    enlarged = Image.Resampling.NEAREST if longer < shown else Image.Resampling.LANCZOS
    tiles = pictures[: columns * rows]
    sheet = Image.new("L", (min(len(tiles), columns) * width, -(-len(tiles) // columns) * height))
    for place, picture in enumerate(tiles):
        sheet.paste(Image.fromarray(np.asarray(picture)).resize((width, height), enlarged), (place % columns * width, place // columns * height))
    return sheet


def write(search: Search, asked: Asked, result: Result) -> None:
    """Save the grid as an Optuna artifact and the note that shows it; may be done twice.

    A disk that refuses the picture costs the note its picture, not the trial its scores. Raises StorageUnreachable.
    """
    from optuna_dashboard import save_note

    with leases.translated():
        name_objectives(search)
        trial = optuna.trial.Trial(search.study, asked.id)
        try:
            picture = f"![generated pictures](/artifacts/{search.id}/{asked.id}/{upload(trial, result.pictures, GRID.format(steps=result.steps))})"
        except OSError as error:
            log.warning("trial %d: its note is without pictures, %s cannot be written (%s)", asked.number, artifact_folder(), error.strerror)
            picture = f"The pictures could not be written: {error.strerror}."
        save_note(trial, text(asked, result, picture))


def name_objectives(search: Search) -> None:
    """Axes of the dashboard's plots, which would be called 0 and 1."""
    if search.study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls it experimental
            search.study.set_metric_names(list(search.objectives.names))


def upload(trial: optuna.trial.Trial, pictures: np.ndarray, name: str) -> str:
    """The artifact's id; that of an earlier try if there was one. Raises OSError."""
    from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact

    folder = artifact_folder()
    for known in get_all_artifact_meta(trial):
        if known.filename == name and (folder / known.artifact_id).is_file():
            return known.artifact_id
    file = folder / f".{trial._trial_id}-{os.getpid()}" / name  # the dashboard shows the file's name
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        grid(pictures).save(file)
        return upload_artifact(artifact_store=FileSystemArtifactStore(folder), file_path=str(file), study_or_trial=trial)
    finally:
        file.unlink(missing_ok=True)
        file.parent.rmdir()


def text(asked: Asked, result: Result, picture: str) -> str:
    """The note in Markdown."""
    rows = "\n".join(f"| {name} | {estimate.value:.4g} | {estimate.low:.4g} … {estimate.high:.4g} | {SCORES[name].unit} | "
                     f"{'lower' if SCORES[name].direction == 'minimize' else 'higher'} | {SCORES[name].meaning} |"
                     for name, estimate in result.scores.items())
    return (f"**{asked.at(result.steps).words}**\n\n{result.trainable:,} trainable parameters ({result.trainable_share:.3%} of the U-Net), "
            f"{result.seconds['total']:.0f} s, training loss {result.training_loss:.4f}\n\n"
            f"| score | value | 95 % interval | unit | better | what it is |\n|---|---|---|---|---|---|\n{rows}\n\n"
            f"Generated from captions of patients that were not learned from:\n\n{picture}\n")
