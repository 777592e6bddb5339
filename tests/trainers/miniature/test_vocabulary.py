"""The tokenizer: any text has tokens and is not lost, in the file format that CLIPTokenizer reads."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from trainers.miniature import vocabulary
from trainers.miniature.vocabulary import CONTEXT, END, END_OF_WORD, START

TEXTS = ["no acute cardiopulmonary process", "small nodule in the left upper lobe"] * 5
MERGES = 40


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary.write(folder, TEXTS, MERGES)
    return folder


@pytest.fixture(scope="session")
def tokenizer(folder):
    return CLIPTokenizer.from_pretrained(folder)


def letters(text: str) -> str:
    """A text without what CLIP's tokenizer makes equal: case, composition of accents, blanks."""
    return "".join(unicodedata.normalize("NFC", text).lower().split())


@pytest.mark.parametrize("text", ["Small NODULE", "opacité à gauche", "легкие 肺 🫁👩‍⚕️", "2.5 cm (T4-T5), ?", "<|startoftext|", "\n\t x", "it's", "a" * 300])
def test_any_text_has_tokens_and_comes_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    inner = ids[1:-1]
    assert inner and tokenizer.eos_token_id not in inner and tokenizer.bos_token_id not in inner
    assert letters(tokenizer.decode(inner)) == letters(text)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp", "Cn"))))
def test_no_character_is_unknown(tokenizer, text):
    ids = tokenizer(text).input_ids[1:-1]
    assert bool(ids) == bool(text.strip())
    assert tokenizer.unk_token_id not in ids


def test_the_empty_text_is_start_and_end(tokenizer):
    assert tokenizer("").input_ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_case_does_not_matter_and_words_do(tokenizer):
    assert tokenizer("NODULE").input_ids == tokenizer("nodule").input_ids != tokenizer("nodules").input_ids


def test_words_that_it_learned_from_are_shorter_than_their_letters(tokenizer):
    assert len(tokenizer("nodule").input_ids) - 2 < 3 < len("nodule")


def test_a_long_text_is_cut_at_the_window(tokenizer):
    ids = tokenizer("left lung " * 100, truncation=True).input_ids
    assert tokenizer.model_max_length == CONTEXT == len(ids) and ids[-1] == tokenizer.eos_token_id


def test_files_are_clip_s(folder):
    tokens = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(tokens.values()) == list(range(len(tokens)))
    assert len(merges) - 1 <= MERGES and all(len(line.split(" ")) == 2 for line in merges[1:])
    assert all("".join(line.split(" ")) in tokens for line in merges[1:])
    bytes_alone = [token for token in tokens if len(token) == 1]
    assert len(bytes_alone) == 256 and all(token + END_OF_WORD in tokens for token in bytes_alone)
    assert (tokens[START], tokens[END]) == (len(tokens) - 2, len(tokens) - 1)


def test_size_is_given_and_the_same_texts_give_the_same_files(folder, tmp_path):
    size = vocabulary.write(tmp_path, TEXTS, MERGES)
    assert size == len(json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")))
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_upper_and_lower_case_texts_teach_the_same(folder, tmp_path):
    vocabulary.write(tmp_path, [text.upper() for text in TEXTS], MERGES)
    assert (tmp_path / "merges.txt").read_bytes() == (folder / "merges.txt").read_bytes()
