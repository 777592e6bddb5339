"""Captions that are not known beforehand: the same states whatever was asked before, each text encoded once, within a bound of memory."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from trainers import captions
from trainers.captions import CaptionEncoder, encode_captions
from trainers.errors import BadModel

TEXTS = ["no acute cardiopulmonary process", "small nodule", "", "nodule in the left lung"]
ROW = 77 * 64 * 4  # bytes of one text's states


@pytest.fixture(scope="module")
def expected(random_base) -> torch.Tensor:
    """As transformers itself gives them."""
    tokens = CLIPTokenizer.from_pretrained(random_base / "tokenizer")(TEXTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        return CLIPTextModel.from_pretrained(random_base / "text_encoder", dtype=torch.float32).eval()(tokens).last_hidden_state


@pytest.fixture
def encoder(random_base, loaded):
    """With the parts that are loaded already, nothing remembered; takes the arguments of a CaptionEncoder."""

    def make(**given) -> CaptionEncoder:
        made = CaptionEncoder(random_base, **given)
        made.tokenizer, made.text_encoder = loaded.tokenizer, loaded.text_encoder
        return made

    return make


def test_states_are_the_text_encoder_s_last_ones(encoder, expected, random_base):
    states = encoder().encode(TEXTS)
    assert states.dtype == torch.float32 and states.shape == (4, 77, 64)
    torch.testing.assert_close(states, expected)
    assert (encode_captions(random_base, TEXTS) == states.numpy()).all() and not torch.allclose(states[0], states[1])


def test_captions_are_cut_at_77_tokens(random_base):
    """What differs only after the window is the same; what differs inside it is not."""
    body = "nodule " * 200
    states = encode_captions(random_base, [body + "left", body + "process", "left " + body])
    assert states.shape == (3, 77, 64)
    np.testing.assert_array_equal(states[0], states[1])
    assert not np.allclose(states[0], states[2])


def test_a_text_gives_the_same_bits_in_any_company(encoder):
    """A resumed training asks in other batches, and has to go on bit for bit."""
    whole = encoder().encode(TEXTS)
    assert torch.equal(encoder(batch_size=1).encode(TEXTS), whole)
    assert torch.equal(encoder(batch_size=3).encode(TEXTS[::-1]), whole.flip(0))
    made = encoder()
    made.encode(TEXTS[1:3])
    assert torch.equal(made.encode([TEXTS[0], *TEXTS]), whole[[0, 0, 1, 2, 3]])


def test_each_text_is_encoded_once(encoder):
    made = encoder(batch_size=2)
    for asked in (TEXTS, TEXTS[::-1], [TEXTS[1]] * 5, TEXTS):
        made.encode(asked)
        assert made.encoded == 4
    made.encode(["left lung", TEXTS[0]])
    assert made.encoded == 5


def test_what_is_known_is_not_encoded(encoder):
    known = torch.arange(2.0).view(2, 1, 1).expand(2, 77, 64)
    made = encoder(known=(TEXTS[:2], known))
    assert torch.equal(made.encode(TEXTS[1::-1]), known.flip(0)) and made.encoded == 0
    assert torch.equal(made.encode(TEXTS)[:2], known) and made.encoded == 2
    with pytest.raises(ValueError):
        encoder(known=(TEXTS, known))


def test_memory_is_bounded_and_what_was_not_asked_for_goes_first(encoder):
    made = encoder(memory=2 * ROW + 1)
    made.encode(["a", "b"])
    made.encode(["a"])
    made.encode(["c"])  # b goes
    assert list(made.remembered) == ["a", "c"] and made.held == 2 * ROW
    assert sum(states.untyped_storage().nbytes() for states in made.remembered.values()) == made.held, "no view of a whole batch is kept"
    made.encode(["a", "c"])
    assert made.encoded == 3
    made.encode(["b"])
    assert made.encoded == 4 and list(made.remembered) == ["c", "b"]


def test_more_texts_than_are_remembered_are_still_right(encoder, expected):
    made = encoder(memory=ROW, batch_size=2)
    for _ in range(2):
        torch.testing.assert_close(made.encode(TEXTS), expected)
    assert len(made.remembered) == 1
    assert torch.equal(encoder(memory=0).encode(TEXTS[:1]), made.encode(TEXTS[:1]))


def test_what_is_encoded_while_sampling_can_be_trained_with(random_base):
    """Autograd refuses tensors, and weights, that come from inference mode."""
    made = CaptionEncoder(random_base)
    with torch.inference_mode():
        states = made.encode(TEXTS[:1])
    assert not states.is_inference() and not any(parameter.is_inference() for parameter in made.text_encoder.parameters())
    weight = torch.ones(64, requires_grad=True)
    (made.encode(TEXTS[:1]) * weight).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_long_texts_are_cut_at_the_window(encoder):
    made = encoder()
    cut = made.encode(["lung " * 500, "lung " * 200])
    assert cut.shape == (2, 77, 64) and torch.equal(cut[0], cut[1])


# Random words --------------------------------------------------------------------------------------------------------


def test_random_words_are_the_vocabularys(encoder):
    made, generator = encoder(), np.random.default_rng(0)
    words = [made.random_word(generator) for _ in range(4000)]
    assert all(word.isprintable() and word.strip() == word != "" and "<|" not in word and "\ufffd" not in word for word in words)
    printable = {byte for byte in map(chr, range(33, 127))}
    assert printable <= set(words) and {"lung", "nodule"} <= set(words)
    shares = [words.count(word) / 4000 for word in ("!", "Z", "~")]  # each byte is two tokens, alone and at a word's end
    assert max(shares) < 3 * min(shares)
    assert words[:20] == [made.random_word(generator) for generator in [np.random.default_rng(0)] for _ in range(20)]


def test_a_random_word_of_the_vocabulary_is_the_token_it_was(encoder):
    """By hand: the tokenizer reads the word for "lung" as the token that it was decoded from."""
    made = encoder()
    number = made.tokenizer.convert_tokens_to_ids("lung</w>")

    class Only:
        def integers(self, high):
            assert high == len(made.tokenizer)
            return number

    assert made.random_word(Only()) == "lung" and made.tokenizer("lung").input_ids[1:-1] == [number]


# Bad input -----------------------------------------------------------------------------------------------------------


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    made = CaptionEncoder(tmp_path / "nowhere")
    with pytest.raises(BadModel, match="nowhere"):
        made.encode(["left lung"])


def test_a_damaged_tokenizer_is_refused_in_one_line(random_base, tmp_path):
    folder = shutil.copytree(random_base, tmp_path / "base")
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    for ask in (lambda made: made.encode(["left lung"]), lambda made: made.random_word(np.random.default_rng(0))):
        with pytest.raises(BadModel, match="tokenizer/ cannot be loaded") as caught:
            ask(CaptionEncoder(folder))
        assert "\n" not in str(caught.value)


def test_the_bound_of_memory_holds_what_is_looked_ahead():
    """Else what a mitigation has encoded in advance is forgotten before its step comes: Stable Diffusion 2.1's states are the largest."""
    from trainers.mitigations.random_words import ENCODED_AHEAD

    assert captions.MEMORY > 4 * ENCODED_AHEAD * 77 * 1024 * 4
