"""How much memory a trial takes at its peak: of the GPU, or of this process where it computes on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"  # in clear_refs: the peak resident size becomes the present one (Linux, proc(5))


class Peak:
    """Counts from when it is made."""

    def __init__(self, device: str):
        self.device = device
        if device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        elif CLEAR.exists():
            try:
                CLEAR.write_text(RESET_PEAK)
            except OSError:  # not allowed in some containers: the peak is then that of the whole process
                pass

    def bytes(self) -> int | None:
        """None where this system does not say."""
        if self.device.startswith("cuda"):
            import torch

            return torch.cuda.max_memory_allocated(self.device)
        return host_peak()


def host_peak() -> int | None:
    """Peak resident memory of this process in bytes, memory-mapped files included."""
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
