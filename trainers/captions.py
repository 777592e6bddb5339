"""The text encoder at work on texts that are not known beforehand: loaded on first use, in batches, each text once while it is remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from trainers.base_model import read_part
from trainers.model_files import Source, find, first_line

BATCH = 32  # texts that are encoded at a time: on a CPU core a text then costs half of what it does alone
NO_CHARACTER = "\ufffd"  # what stands in the place of bytes that are none
MEMORY = 256 << 20  # bytes of states that are remembered: some 1,100 texts of Stable Diffusion v1.5


def encode_captions(model: str | Path | Source, captions: list[str], device: str = "cpu", batch_size: int = BATCH) -> np.ndarray:
    """As `CaptionEncoder.encode`, once, as numpy."""
    return CaptionEncoder(model, device, batch_size=batch_size).encode(captions).cpu().numpy()


class CaptionEncoder:
    """Texts → last hidden states of the base model's frozen text encoder, in float32 on `device`.

    model: as `model_files.find` takes it, or a pipeline's `source`. known: texts whose states are at hand, (k,) and
    (k, tokens, width) on the device: they are not encoded, nor do they count as remembered. memory: bytes of states of other
    texts that are remembered; those that were not asked for the longest time are forgotten first. What a text gives does not
    depend on what was asked before it. For use by one thread.
    """

    def __init__(self, model: str | Path | Source, device: str | torch.device = "cpu", *, known: tuple[Sequence[str], torch.Tensor] | None = None,
                 batch_size: int = BATCH, memory: int = MEMORY):
        self.model, self.device, self.batch_size, self.memory = model, device, batch_size, memory
        self.known = dict(zip(*known, strict=True)) if known else {}
        self.remembered: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.held = 0  # bytes that are remembered
        self.encoded = 0  # texts that went through the text encoder so far

    def encode(self, texts: list[str]) -> torch.Tensor:
        """(k, tokens, width) float32 of k ≥ 1 texts, cut at the encoder's window. Raises BadModel where the tokenizer or the text encoder
        is not usable."""
        # What is remembered in sampling may be trained with later, and autograd refuses tensors of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            found = {text: self.recall(text) for text in dict.fromkeys(texts)}
            missing = [text for text, states in found.items() if states is None]
            for start in range(0, len(missing), self.batch_size):
                batch = missing[start : start + self.batch_size]
                for text, states in zip(batch, self.run(batch)):
                    found[text] = self.remembered[text] = states.clone()  # a row alone: a view would keep its whole batch in memory
                    self.held += states.nbytes
            while self.held > self.memory:
                self.held -= self.remembered.popitem(last=False)[1].nbytes
            return torch.stack([found[text] for text in texts])

    def recall(self, text: str) -> torch.Tensor | None:
        if text in self.remembered:
            self.remembered.move_to_end(text)
            return self.remembered[text]
        return self.known.get(text)

    def run(self, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=self.window, return_tensors="pt").input_ids
        self.encoded += len(texts)
        return self.text_encoder(tokens.to(self.device))[0].float()

    def random_word(self, generator: np.random.Generator) -> str:
        """What a random token stands for, any of the vocabulary alike but special tokens and those that are no printable text by themselves,
        such as half a character."""
        while True:
            number = int(generator.integers(len(self.tokenizer)))
            word = "" if number in self.special else self.tokenizer.decode([number]).strip()
            if word and word.isprintable() and NO_CHARACTER not in word:
                return word

    @cached_property
    def source(self) -> Source:
        return find(self.model)

    @cached_property
    def tokenizer(self):
        from transformers import CLIPTokenizer

        try:
            return CLIPTokenizer.from_pretrained(self.source.tokenizer, local_files_only=True)
        except Exception as error:  # what is wrong with a vocabulary is said in a bare Exception
            raise self.source.bad(f"tokenizer/ cannot be loaded ({first_line(error)}); copy the model anew") from error

    @cached_property
    def special(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    @cached_property
    def text_encoder(self):
        from transformers import CLIPTextModel

        return read_part(self.source, "text_encoder", CLIPTextModel, dtype=torch.float32).to(self.device).eval().requires_grad_(False)

    @property
    def window(self) -> int:
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
