"""Where samples come from: one file per source, all of them real and all from installed packages or the user's own files."""

from __future__ import annotations

__all__: list[str] = []
