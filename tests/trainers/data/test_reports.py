"""Sections and captions of reports that are worded as MIMIC-CXR's are."""

from __future__ import annotations

import pytest

from trainers.data.reports import caption, sections

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with ?pleural effusion  // ?pleural effusion

 FINDINGS:

 Cardiac size cannot be evaluated.  Large left pleural effusion is new since
 ___.  Small right effusion is new.

 IMPRESSION:

 Large left   pleural effusion, new
 from ___.
"""


def test_sections_in_order_each_in_one_line():
    assert sections(REPORT) == [
        ("", ""),
        ("FINAL REPORT", ""),
        ("EXAMINATION", "CHEST (PA AND LAT)"),
        ("INDICATION", "___ year old woman with ?pleural effusion // ?pleural effusion"),
        (
            "FINDINGS",
            "Cardiac size cannot be evaluated. Large left pleural effusion is new since ___. "
            "Small right effusion is new.",
        ),
        ("IMPRESSION", "Large left pleural effusion, new from ___."),
    ]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (REPORT, "Large left pleural effusion, new from ___."),
        ("FINDINGS: Clear.\n\nIMPRESSION: First.\n\nIMPRESSION: Last.", "Last."),
        ("IMPRESSION: First.\n\nIMPRESSION:\n \n", "First."),
        ("FINDINGS: Clear lungs.\n\n IMPRESSION:  \n", "Clear lungs."),
        ("FINDINGS: Clear lungs.", "Clear lungs."),
        ("FINDINGS AND IMPRESSION: No pneumonia.", "No pneumonia."),
        ("FINDINGS/IMPRESSION:\n No pneumonia.", "No pneumonia."),
        ("Impression: Mixed case.", "Mixed case."),
        ("IMPRESSION:\n 1. One.\n 2. Two: see above.\n", "1. One. 2. Two: see above."),
        ("IMPRESSION: Clear.\n\n NOTIFICATION:  Dr. ___ was called.", "Clear."),
        ("IMPRESSION: Clear.\r\n RECOMMENDATION(S):  Repeat.", "Clear."),
        ("WET READ: ___ 9:00 PM\n Clear.\n" + "_" * 78 + "\n FINAL REPORT\n IMPRESSION: Effusion.", "Effusion."),
        ("IMPRESSION: Clear.\n FINAL ADDENDUM\n Seen again.", "Clear."),
        ("PA AND LATERAL VIEWS OF THE CHEST: Clear.", ""),
        ("The impression: is not a header here, findings: neither.", ""),
        ("", ""),
    ],
)
def test_caption(report, expected):
    assert caption(report) == expected
