"""What the dashboard shows of a trial: its note with words, scores and generated pictures. Never a patient's picture."""

from __future__ import annotations

import io
import json
import logging
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from hpo import home
from metrics.scores import SCORES
from storage.attributes import Attributes

if TYPE_CHECKING:
    from hpo.inner_loop import Result
    from hpo.study import Asked, Search

log = logging.getLogger(__name__)

COLUMNS, ROWS = 8, 3  # generated pictures in a note
LEAST_SIDE, MOST_SIDE = 96, 192  # pixels of the longer side that a picture is shown with
METRIC_NAMES = "study:metric_names"  # Optuna's key
MOST_PARTS = 16  # of a note, which the dashboard stores in pieces of 2,045 characters
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

    A disk that refuses the picture costs the note its picture, not the trial its scores. Raises LeaseLost, StorageUnreachable.
    """
    from optuna_dashboard._note import note_str_key_prefix, note_ver_key, save_note_with_version

    version = note_ver_key(asked.id)
    attributes = Attributes(search.store, search.id, asked.id,
                            (METRIC_NAMES, version, *(f"{note_str_key_prefix(asked.id)}{part}" for part in range(MOST_PARTS))))
    try:
        picture = f"![generated pictures](/artifacts/{search.id}/{asked.id}/{upload(attributes, result.pictures, GRID.format(steps=result.steps))})"
    except OSError as error:
        log.warning("trial %d: its note is without pictures, %s cannot be written (%s)", asked.number, artifact_folder(), error.strerror)
        picture = f"The pictures could not be written: {error.strerror}."
    if METRIC_NAMES not in attributes.study:  # axes of the dashboard's plots, which would be called 0 and 1
        attributes.set_study_system_attr(search.id, METRIC_NAMES, list(search.objectives.names))
    save_note_with_version(attributes, search.id, asked.id, attributes.study.get(version, 0) + 1, text(asked, result, picture))
    attributes.write()


def upload(attributes: Attributes, pictures: np.ndarray, name: str) -> str:
    """The artifact's id; that of an earlier try if there was one. It is noted first, so that no file is left that nobody knows of. Raises OSError,
    LeaseLost."""
    from optuna.artifacts._upload import ARTIFACTS_ATTR_PREFIX, ArtifactMeta

    known = (json.loads(value) for key, value in attributes.trial.items() if key.startswith(ARTIFACTS_ATTR_PREFIX))
    artifact = next((each["artifact_id"] for each in known if each["filename"] == name), None)
    if artifact is None:
        artifact = str(uuid.uuid4())
        described = ArtifactMeta(artifact, name, "image/png", None)  # the dashboard shows the name
        attributes.set_trial_system_attr(attributes.trial_id, ARTIFACTS_ATTR_PREFIX + artifact, json.dumps(asdict(described)))
        attributes.write()
    encoded, file = io.BytesIO(), artifact_folder() / artifact
    grid(pictures).save(encoded, "PNG")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Under its own name, and in one go: of a worker that is killed meanwhile nothing stays by another name, which nobody would know.
        file.write_bytes(encoded.getbuffer())
    except OSError:
        file.unlink(missing_ok=True)
        raise
    return artifact


def text(asked: Asked, result: Result, picture: str) -> str:
    """The note in Markdown."""
    rows = "\n".join(f"| {name} | {estimate.value:.4g} | {estimate.low:.4g} … {estimate.high:.4g} | {SCORES[name].unit} | "
                     f"{'lower' if SCORES[name].direction == 'minimize' else 'higher'} | {SCORES[name].meaning} |"
                     for name, estimate in result.scores.items())
    return (f"**{asked.at(result.steps).words}**\n\n{result.trainable:,} trainable parameters ({result.trainable_share:.3%} of the U-Net), "
            f"{result.spent}, training loss {result.training_loss:.4f}\n\n"
            f"| score | value | 95 % interval | unit | better | what it is |\n|---|---|---|---|---|---|\n{rows}\n\n"
            f"Generated from captions of patients that were not learned from:\n\n{picture}\n")
