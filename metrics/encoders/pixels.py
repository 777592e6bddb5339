"""The encoder without weights: small grey pixels. Sees layout and brightness, no meaning."""

from __future__ import annotations

import numpy as np

from metrics.encoders import PIXELS, checked_pictures

SIDE = 32
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
BATCH = 256


class PixelEncoder:
    """Pictures averaged down to 32 × 32 grey pixels in 0..1, row by row: 1024 features."""

    name = PIXELS
    dimension = SIDE * SIDE
    networks = ()
    content_hash = f"{PIXELS}-{SIDE}-bt601"

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """pictures (n, H, W) grey or (n, H, W, 3) RGB, uint8 -> (n, 1024) float32 in 0..1.

        Each small pixel is the mean of the area that it covers; smaller pictures are repeated up.

        Raises:
            BadArray: another shape or type.
        """
        import torch
        from torch.nn.functional import adaptive_avg_pool2d

        checked_pictures(pictures)
        rows = []
        for start in range(0, len(pictures), BATCH):
            batch = pictures[start : start + BATCH].astype(np.float32) / 255
            grey = batch @ np.array(LUMA, dtype=np.float32) if batch.ndim == 4 else batch
            rows.append(adaptive_avg_pool2d(torch.from_numpy(grey)[:, None], SIDE).flatten(1).numpy())
        return np.concatenate(rows)
