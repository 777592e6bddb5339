"""Where measurements are written: marked parts of Markdown files in docs/, each replaced as a whole."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def write_part(file: str, part: str, body: str) -> None:
    """Replace (or append) the part of docs/`file` between its two markers."""
    path = DOCS / file
    begin, end = f"<!-- begin {part} -->", f"<!-- end {part} -->"
    text = path.read_text() if path.exists() else f"# {Path(file).stem.replace('_', ' ').capitalize()}\n"
    block = f"{begin}\n{body.strip()}\n{end}"
    if begin in text:
        head, rest = text.split(begin, 1)
        text = head + block + rest.split(end, 1)[1]
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *("| " + " | ".join(row) + " |" for row in rows)])
