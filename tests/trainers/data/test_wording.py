"""What phantoms' reports say: the finding, its side, in words that vary, under MIMIC's headings and line width."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.data.findings import ACUTE, CHRONIC, Finding
from trainers.data.reports import caption, sections
from trainers.data.wording import NORMAL_IMPRESSION, report

SAID = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": ("cardiomegaly", "heart", "cardiac silhouette"),
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Enlarged Cardiomediastinum": "mediastin",
    "Fracture": "fracture",
    "Lung Lesion": ("nodule", "nodular"),
    "Lung Opacity": "opacity",
    "Pacemaker": "pacemaker",
    "Pleural Effusion": "effusion",
    "Pleural Other": "pleural thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
    "Tubes": ("tubes", "catheter", "devices"),
}
SIDED = ("Atelectasis", "Consolidation", "Fracture", "Lung Lesion", "Lung Opacity", "Pleural Effusion", "Pneumothorax")


def reports(*findings: Finding) -> list[str]:
    return [report(findings, "CHEST (PA AND LAT)", "woman", np.random.default_rng(seed)) for seed in range(60)]


@pytest.mark.parametrize("kind", CHRONIC + ACUTE)
def test_the_caption_names_the_finding_in_several_ways(kind):
    said = (SAID[kind],) if isinstance(SAID[kind], str) else SAID[kind]
    captions = {caption(text) for text in reports(Finding(kind))}
    assert all(any(word in text.lower() for word in said) for text in captions)
    assert len(captions) >= 3


@pytest.mark.parametrize("kind", SIDED)
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_caption_names_the_side(kind, side):
    other = {"left": "right", "right": "left"}[side]
    for text in map(caption, reports(Finding(kind, side))):
        assert side in text.lower() and other not in text.lower()


def test_no_template_is_left_open():
    for kind in CHRONIC + ACUTE:
        for sure in (True, False):
            text = "".join(reports(Finding(kind, "bilateral", sure=sure)))
            assert "{" not in text and "  is" not in text and "minimally" not in text


def test_unsure_findings_are_hedged():
    assert all(
        "possible" in text.lower() or "may be" in text
        for text in map(caption, reports(Finding("Cardiomegaly", sure=False)))
    )


def test_normal_studies_mostly_share_one_impression():
    captions = [dict(sections(text)).get("IMPRESSION") for text in reports()]
    assert 0.4 < np.mean([text == NORMAL_IMPRESSION for text in captions]) < 0.9


def test_some_lack_a_section_and_none_lacks_both():
    lacking = [{"FINDINGS", "IMPRESSION"} - dict(sections(text)).keys() for text in reports(Finding("Edema"))]
    assert {frozenset(names) for names in lacking} == {frozenset(), frozenset({"FINDINGS"}), frozenset({"IMPRESSION"})}


def test_lines_are_wrapped_as_mimics_are():
    lines = "".join(reports(*(Finding(kind) for kind in CHRONIC))).splitlines()
    assert max(map(len, lines)) <= 78
    assert all(line.startswith(" ") for line in lines if line)
