"""`python -m benchmarks.captions [--write]` measures what captions that change cost a training step of the miniature.

Random words need the text encoder in training, since states of captions are cached and those of new texts are not. Each repeat
trains every variant once, in turn, with a text encoder that is loaded and remembers nothing, so that a ratio compares neighbours.
Processor time on one thread is measured, which a busy machine changes less than time on the clock.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import torch

from benchmarks.documents import table, write_part
from hpo import home
from hpo.settings import Settings
from hpo.spaces.reference import reference_candidate
from trainers import base_model
from trainers.candidate import Applied
from trainers.captions import CaptionEncoder
from trainers.data import mimic, phantoms
from trainers.fit import fit
from trainers.methods import METHODS
from trainers.mitigations import in_words, training_hooks
from trainers.mitigations.hooks import Learned
from trainers.plan import Examples, Plan
from trainers.units import walk

METHOD = "bias"  # whose steps are among the shortest, so that captions weigh most
VARIANTS = (None, Applied.of("rwa", words=2, probability=0.1), Applied.of("rwa", words=1, probability=1.0), Applied.of("rwa", words=4, probability=1.0),
            Applied.of("rwa-once", words=4), Applied.of("noise", scale=0.1), Applied.of("threshold-quantile", quantile=0.9))
SETTINGS = Settings()
SHAPE = (4, 8, 8)  # of the miniature's latents


class Bench:
    """The miniature and as many captions of phantoms as a study learns from, with random latents: these cost what real ones do."""

    def __init__(self):
        self.pipeline = base_model.load(base_model.MINIATURE)
        self.captions = [picture.caption for picture in mimic.read(phantoms.ensure(home.phantoms_folder()))[: SETTINGS.train_images]]
        self.texts = sorted(set(self.captions))
        self.loaded = CaptionEncoder(base_model.MINIATURE)
        self.states = self.loaded.encode([*self.texts, ""])
        self.rows = np.array([self.texts.index(caption) for caption in self.captions])
        mean = torch.randn(len(self.captions), *SHAPE, generator=torch.Generator().manual_seed(0))
        self.examples = Examples(mean, torch.zeros_like(mean), self.states, torch.from_numpy(self.rows))

    def encoder(self) -> CaptionEncoder:
        """One that has nothing to load and remembers nothing."""
        made = CaptionEncoder(base_model.MINIATURE, known=([*self.texts, ""], self.states))
        made.tokenizer, made.text_encoder = self.loaded.tokenizer, self.loaded.text_encoder
        return made

    def seconds_a_step(self, applied: Applied | None, steps: int, seed: int) -> tuple[float, float]:
        """Of the processor in a training, and the texts that it encoded a step."""
        encoder = self.encoder()
        learned = Learned(self.texts, self.rows, encoder.encode, encoder.random_word, lambda: np.eye(len(self.rows)), seed)
        candidate, unet = reference_candidate(METHOD, steps), self.pipeline.unet
        subset = METHODS[METHOD].apply(unet, walk(unet), candidate)
        started = time.process_time()
        try:
            fit(unet, self.pipeline.scheduler(), subset, self.examples, Plan(steps, candidate.learning_rate, SETTINGS.batch_size, seed),
                hooks=training_hooks([applied] if applied else [], learned), encode=encoder.encode)
            return (time.process_time() - started) / steps, encoder.encoded / steps
        finally:
            subset.restore()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50, help="of each training")
    parser.add_argument("--repeats", type=int, default=7, help="trainings of each variant")
    parser.add_argument("--write", action="store_true", help="replace the part captions of docs/speed.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench()
    bench.seconds_a_step(None, 5, 0)  # the first steps of a process are slower
    found = [[bench.seconds_a_step(applied, given.steps, seed) for applied in VARIANTS] for seed in range(given.repeats)]
    rows = []
    for place, applied in enumerate(VARIANTS):
        ratios = [repeat[place][0] / repeat[0][0] for repeat in found]
        rows.append(["none" if applied is None else in_words(applied), f"{1000 * median(repeat[place][0] for repeat in found):.1f}",
                     f"{median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})", f"{median(repeat[place][1] for repeat in found):.1f}"])
    text = (f"Made by `python -m benchmarks.captions --write`: {METHOD} on the miniature, batch {SETTINGS.batch_size}, one thread, {given.steps} steps, "
            f"{given.repeats} repeats. The ratio to no mitigation is of neighbours in time: median (least … most).\n\n"
            + table(["mitigation", "ms a step", "ratio", "texts encoded a step"], rows))
    print(text)
    if given.write:
        write_part("speed.md", "captions", text)


if __name__ == "__main__":
    main()
