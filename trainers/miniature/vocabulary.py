"""The miniature's tokenizer: byte-pair merges learned from its own captions and the words of reports, in CLIP's file format."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77  # tokens, as CLIP's
END_OF_WORD = "</w>"
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # how CLIP cuts text before merging


def write(folder: Path, texts: list[str], merges: int) -> int:
    """Learn at most `merges` merges from lower-cased texts, write a CLIPTokenizer folder, give the vocabulary's size."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=2 * len(alphabet) + merges, initial_alphabet=alphabet,
                                  end_of_word_suffix=END_OF_WORD, show_progress=False)
    tokenizer.train_from_iterator((text.lower() for text in texts), trainer)
    learned = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]][:merges]

    # Every byte alone and at a word's end comes first, as in CLIP, so that no text is without tokens.
    tokens = [*alphabet, *(byte + END_OF_WORD for byte in alphabet), *("".join(pair) for pair in learned), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in learned))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "do_lower_case": True, "errors": "replace",
        "bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}, indent=2))
    return len(vocabulary)
