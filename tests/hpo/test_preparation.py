"""From a data folder to a study's pictures: what is cached, when it is read again, and what its user is told."""

from __future__ import annotations

import zipfile
from dataclasses import replace

from hpo.identity import resolution_of
from hpo.preparation import SPLITS, Dealt, dealt_sides
from trainers.data import mimic


def dealt_of(settings) -> Dealt:
    return dealt_sides(settings, resolution_of(settings))


def test_the_second_look_gives_the_same_pictures_from_the_cache(settings):
    first, second = dealt_of(settings()), dealt_of(settings())
    assert first.content == second.content and first.pictures == second.pictures
    assert {len(first.pictures[name]) for name in SPLITS[:3]} == {12}


def test_content_follows_pixels_patients_and_captions(settings):
    dealt = dealt_of(settings())
    brighter = {**dealt.pixels, "twin": dealt.pixels["twin"] + 1}
    renamed = {**dealt.pictures, "train": (replace(dealt.pictures["train"][0], caption="another"), *dealt.pictures["train"][1:])}
    assert len({dealt.content, replace(dealt, pixels=brighter).content, replace(dealt, pictures=renamed).content, dealt_of(settings(seed=1)).content}) == 4


def test_corrupt_pictures_are_skipped_counted_and_told(settings, spoilt):
    """One of the pictures that would have been dealt: far less than one in a hundred of the folder."""
    own = settings(data=str(spoilt))
    before = dealt_of(own)
    before.pictures["train"][0].path.write_bytes(b"no JPEG")
    after = dealt_of(own)
    assert before.corrupt == 0 and after.corrupt == 1
    assert "1 corrupt picture was skipped" in after.warnings and after.content != before.content
    assert replace(after, corrupt=3).warnings[0] == "3 corrupt pictures were skipped"


def test_a_report_that_changes_is_read_again_also_when_reports_are_unpacked(settings, spoilt):
    with zipfile.ZipFile(spoilt / mimic.REPORTS) as reports:
        reports.extractall(spoilt)
    (spoilt / mimic.REPORTS).unlink()
    own = settings(data=str(spoilt))
    before = dealt_of(own)
    first = before.pictures["train"][0]
    (report,) = mimic.report_files(spoilt, [first])
    report.write_text("IMPRESSION: Something else altogether.")
    after = dealt_of(own)
    assert after.pictures["train"][0].caption == "Something else altogether." and after.content != before.content


def test_few_patients_are_warned_of(settings):
    dealt = dealt_of(settings())
    assert len(dealt.warnings) == 1 and "patients a side" in dealt.warnings[0]
