"""Radiology reports as MIMIC-CXR words and wraps them: sections, and the caption that they give. Reads no files."""

from __future__ import annotations

import re

# A header stands at the start of a line and ends in a colon: "IMPRESSION:", "CHEST, PA AND LATERAL:". Headers of other
# sections are known by their capitals alone; these two may be in small letters too.
_HEADER = re.compile(
    r"^[ \t]*(?P<name>[A-Z][A-Z0-9 ,/&()'.\-]{2,70}"
    r"|(?i:(?:findings?|impressions?|conclusions?)(?:[ \t]*(?:and|&|/)[ \t]*(?:findings?|impressions?))?))[ \t]*:",
    re.MULTILINE,
)
_BARE_HEADER = re.compile(
    r"^[ \t]*(?P<name>FINAL REPORT|FINAL ADDENDUM|ADDENDUM|WET READ|PRELIMINARY REPORT)[ \t]*$", re.MULTILINE
)
_RULE = re.compile(r"^[ \t]*_{10,}[ \t]*$", re.MULTILINE)  # a drawn line; "___" inside a line is what was de-identified


def sections(report: str) -> list[tuple[str, str]]:
    """The report's sections in order, as (header in capitals, text in one line). Text before any header is under ""."""
    report = _RULE.sub("", report.replace("\r\n", "\n").replace("\r", "\n"))
    marks = [
        (match.start(), match.end(), match["name"])
        for pattern in (_HEADER, _BARE_HEADER)
        for match in pattern.finditer(report)
    ]
    marks = [(0, 0, ""), *sorted(marks)]
    ends = [start for start, _, _ in marks[1:]] + [len(report)]
    return [
        (" ".join(name.upper().split()), _one_line(report[begin:end])) for (_, begin, name), end in zip(marks, ends)
    ]


def caption(report: str) -> str:
    """What the report says of the picture, in one line: its last impression that is not empty, else its last findings,
    else "". A combined section ("FINDINGS AND IMPRESSION") counts as an impression."""
    impressions, findings = [], []
    for name, text in sections(report):
        if "IMPRESSION" in name or name in ("CONCLUSION", "CONCLUSIONS"):
            impressions.append(text)
        elif name in ("FINDINGS", "FINDING"):
            findings.append(text)
    return next((text for text in (*reversed(impressions), *reversed(findings)) if text), "")


def _one_line(text: str) -> str:
    return " ".join(text.split())
