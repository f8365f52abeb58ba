"""Values that tell whether every rounding of diffusers' arithmetic was done."""

from __future__ import annotations

import torch


def next_to_every_edge() -> torch.Tensor:
    """The values in [-1, 1] between two levels, and the 24 floats on each side: ``(49, 257)``."""
    edges = torch.tensor([(2 * k + 1) / 255 - 1 for k in range(-1, 256)], dtype=torch.float64)
    near = [edges.float()]
    for end in (-2.0, 2.0):
        step = edges.float()
        for _ in range(24):
            step = torch.nextafter(step, torch.tensor(end))
            near.append(step)
    return torch.stack(near)
