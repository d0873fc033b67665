"""All cases in turn, printed and saved one by one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.gpu.cases import Case
from benchmarks.gpu.measure import Allotment, Data, Lost, Row, first_line, measured, warm_up
from benchmarks.gpu.report import line, record
from benchmarks.gpu.timing import Clock

__all__ = ["run_cases"]

Records = list[dict[str, Any]]


def run_cases(
    cases: Sequence[Case],
    clock: Clock | None,
    copy: float | None,
    rounds: int,
    allotment: Allotment,
    rivals: Sequence[str],
    save: Callable[[Records], None],
) -> tuple[Records, bool]:
    """Both passes of each case, without a clock only checked; `save` is told the records after each case.

    Returns:
        The records, and whether the GPU was lost, in which case the last case is the one that lost it.
    """
    records: Records = []
    device = torch.device("cpu" if clock is None else clock.device)

    if "compile" in rivals:
        warm_up(device)

    def told(row: Row) -> None:
        records.append(record(row, copy))
        print(line(row, copy), flush=True)

    for number, case in enumerate(cases):
        lost, train = False, False
        try:
            if clock is not None and allotment.share() == 0:
                for train in (False, True):
                    told(Row(case, train, skipped="no time left"))
            else:
                data = Data.make(case, device)
                for train in (False, True):
                    allotment.passes = 2 * (len(cases) - number) - int(train)
                    told(measured(data, train, clock, rounds, allotment, rivals))
                del data
        except Lost as error:
            lost = True
            told(Row(case, train, problem=f"{error}; the GPU is lost"))
        except torch.OutOfMemoryError as error:
            told(Row(case, train, skipped=first_line(error)))
        except Exception as error:  # the definition itself fails: the others go on
            lost = clock is not None and clock.lost()
            told(Row(case, train, problem=first_line(error)))
        save(records)
        if lost:
            return records, True
        if clock is not None:
            gc.collect()
            torch.cuda.empty_cache()
    return records, False
