"""Entries of checkpoints in another form than a module here has them in."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["reshape_entries"]


def reshape_entries(module: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Give the entries of a module's own parameters and buffers its number of axes: (1,) for (), (C,) for (1, C, 1, 1)."""
    for name, own in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        entry = state_dict.get(prefix + name)
        if isinstance(entry, Tensor) and [n for n in entry.shape if n != 1] == [n for n in own.shape if n != 1]:
            state_dict[prefix + name] = entry.reshape(own.shape)
