"""The study behind `everypool compare`: data, network, trials, measures, statistics, report.

Nothing is imported here, since each part needs another share of the extra `cli`.
"""

from __future__ import annotations

__all__: list[str] = []
