"""Where a search's files lie: one folder a study, whatever its name."""

from __future__ import annotations

import pytest

from hpo.home import study_folder

NAMES = ["plain", "a b", "a_b", "a/b", "../up", "..", ".hidden", "🩻", "👩‍⚕️", "it's", "it_s", "x" * 200, "CON"]


def test_no_two_names_share_a_folder_and_none_leaves_it(tmp_path) -> None:
    folders = [study_folder(tmp_path, name) for name in NAMES]
    assert len(set(folders)) == len(NAMES)
    for folder in folders:
        assert folder.parent == tmp_path and folder.name not in ("", ".", "..")
        folder.mkdir()


@pytest.mark.parametrize("name", ["plain", "peft-pareto", "run_2.1"])
def test_plain_names_are_kept(name: str, tmp_path) -> None:
    assert study_folder(tmp_path, name).name == name
