"""One case: checked against the definition in float64, then timed against torch."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases import outputs
from benchmarks.gpu.cases import Case, Inputs, laid_out, traffic
from benchmarks.gpu.timing import Clock, turns
from benchmarks.measure import EPSILONS, MERCY, paired
from everypool.backends.choose import forced

__all__ = ["Allotment", "Data", "Lost", "Row", "first_line", "measured", "warm_up"]

Call = Callable[[], Any]
Contender = Callable[[], tuple[list[Tensor], Sequence[Tensor]]]

MOST = 2.0  # seconds that timing a pass takes at most
LEAST = 0.1  # and at least
NOTHING = 1e-9  # of the largest value of all tensors


class Lost(Exception):
    """Why the GPU answers no more."""


@dataclass
class Row:
    """What was found for one pass of one case."""

    case: Case
    train: bool
    checked: str = ""  # on what
    problem: str | None = None  # of everypool
    refused: str | None = None  # why no fused kernel ran
    skipped: str | None = None  # why there is no figure
    operators: tuple[str, ...] = ()  # of everypool's that ran
    bytes: int = 0  # at least to be moved
    milliseconds: dict[str, float] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)  # milliseconds in which the host queues a call
    ratios: dict[str, float] = field(default_factory=dict)  # everypool's time over the other's
    peaks: dict[str, int] = field(default_factory=dict)  # bytes
    dropped: dict[str, str] = field(default_factory=dict)  # failed, is wrong, or had no time

    @property
    def direction(self) -> str:
        return "forward+backward" if self.train else "forward"


@dataclass
class Allotment:
    """Seconds left, in equal parts for the passes that are left."""

    deadline: float  # by time.monotonic
    passes: int = 1
    compiling: list[float] = field(default_factory=list)  # what torch.compile took

    def share(self) -> float:
        return max(0.0, self.deadline - time.monotonic()) / self.passes

    def compiles(self, left: float) -> bool:
        """Whether so many seconds will do for torch.compile."""
        return left > (statistics.median(self.compiling) if self.compiling else 0)


@dataclass(frozen=True)
class Data:
    """The inputs of a case, what flows back into its outputs, and what is right for the first samples."""

    case: Case
    inputs: Inputs
    flow: list[Tensor]
    results: list[Tensor]  # float64
    gradients: list[Tensor]  # float64, of maps and, where all samples are checked, weights
    samples: int  # how many are checked
    where: str  # the type of device on which float64 was computed

    @classmethod
    def make(cls, case: Case, device: torch.device) -> Data:
        """Where memory is too short for all samples in float64, for fewer; in the end for one on the CPU."""
        inputs = Inputs.make(case, device)
        batch = inputs.maps[0].shape[0]
        fewer = [] if case.whole else [batch >> shift for shift in range(1, batch.bit_length())]
        for samples in (batch, *fewer):
            try:
                return cls.defined(case, inputs, samples, device)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
        return cls.defined(case, inputs, batch if case.whole else 1, torch.device("cpu"))

    @classmethod
    def defined(cls, case: Case, inputs: Inputs, samples: int, where: torch.device) -> Data:
        """With the first samples by the definition."""
        batch = inputs.maps[0].shape[0]
        part = (lambda t: t) if case.whole else (lambda t: t[:samples])
        leaves = [part(x).to(where).double() for x in inputs.maps] + [w.to(where).double() for w in inputs.weights]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        given = [part(t).to(where) for t in inputs.given]
        device = inputs.maps[0].device
        with forced("eager"), torch.enable_grad():
            results = outputs(case.ours(*leaves, *given))
            flow = []
            for seed, y in enumerate(results):
                generator = torch.Generator(device).manual_seed(100 + seed)
                shape = y.shape if case.whole else (batch, *y.shape[1:])
                g = laid_out(torch.randn(shape, generator=generator, device=device).to(case.dtype), case.last)
                flow.append(g)
            if case.undecided is not None:
                with torch.no_grad():
                    never = case.undecided(*leaves, *given).to(device)
                flow = [g.masked_fill(never, 0) for g in flow]
            wanted = leaves if samples == batch else leaves[: len(inputs.maps)]
            gradients = torch.autograd.grad(results, wanted, [part(g).to(where).double() for g in flow])
        results = [y.detach().to(device) for y in results]
        return cls(case, inputs, flow, results, [g.to(device) for g in gradients], samples, where.type)

    @property
    def checked(self) -> str:
        batch = self.inputs.maps[0].shape[0]
        return f"{self.samples} of {batch} samples, float64 on {self.where}"

    def problem(self, results: list[Tensor], gradients: Sequence[Tensor], mercy: int = 1) -> str | None:
        """What is wrong with these; None if nothing."""
        if not self.case.whole:
            results = [y[: self.samples] for y in results]
            gradients = [g[: self.samples] for g in gradients[: len(self.inputs.maps)]] + [*gradients[len(self.inputs.maps) :]]
        right = self.results
        dtype = self.case.dtype
        allowed = mercy * self.case.allowance * EPSILONS[dtype] * torch.finfo(dtype).eps
        found = fault([y.detach() for y in results], right, allowed)
        if found is None and gradients:
            found = fault(gradients[: len(self.gradients)], self.gradients, allowed)
            found = found and f"gradient: {found}"
        return found


def fault(got: Sequence[Tensor], right: Sequence[Tensor], allowed: float) -> str | None:
    """What is wrong with outputs or gradients, errors being shares of a tensor's largest value; None if nothing.

    Where the right values are 0 but for rounding errors of float64, the largest value of all tensors stands for theirs.
    """
    if len(got) != len(right):
        return f"there are {len(got)} tensors instead of {len(right)}"
    scales = [float(expected.abs().max()) for expected in right]
    scales = [scale if scale > NOTHING * max(scales) else max(scales) for scale in scales]
    for number, (y, expected, scale) in enumerate(zip(got, right, scales, strict=True)):
        if y.shape != expected.shape:
            return f"tensor {number} has shape {tuple(y.shape)} instead of {tuple(expected.shape)}"
        error = float((y.double() - expected).abs().max()) / max(scale, 1e-30)
        if not error <= allowed:
            return f"tensor {number} is off by {error:.1e} of its largest value, allowed is {allowed:.1e}"
    return None


class Seen(TorchDispatchMode):
    """The names of everypool's own operators that run meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "everypool":
            self.names.append(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN meanwhile, so that what nobody writes shows."""
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    settings.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        settings.fill_uninitialized_memory = before[0]
        torch.use_deterministic_algorithms(before[1])


def contender(function: Callable[..., Any], data: Data, train: bool) -> Contender:
    """One call: outputs, and gradients if it trains."""
    inputs = data.inputs
    if not train:
        return lambda: (outputs(function(*inputs.trained, *inputs.given)), ())
    leaves = [x.detach().requires_grad_() for x in inputs.trained]

    def step() -> tuple[list[Tensor], Sequence[Tensor]]:
        results = outputs(function(*leaves, *inputs.given))
        return results, torch.autograd.grad(results, leaves, data.flow)

    return step


def ours(data: Data, train: bool, row: Row) -> Contender | None:
    """everypool by its fused kernels, or as it is where they refuse; None, and the row says why, if it is wrong."""
    plain = contender(data.case.ours, data, train)

    def fused() -> Any:
        with forced("triton"):
            return plain()

    call: Contender = fused
    try:
        with poisoned(), Seen() as seen:
            results = call()
    except NotImplementedError as reason:
        row.refused, call = str(reason).rpartition("'triton': ")[2], plain
        with poisoned(), Seen() as seen:
            results = call()
    row.operators = tuple(dict.fromkeys(seen.names))
    if row.refused is None and not seen.names:
        row.refused = "it runs torch's operators"
    row.problem = data.problem(*results)
    if row.problem is None and row.refused is None:
        again = call()
        if not all(torch.equal(a, b) for a, b in zip((*results[0], *results[1]), (*again[0], *again[1]), strict=True)):
            row.problem = "two runs differ"
    row.bytes = traffic(data.case, data.inputs, results[0])[int(train)]
    return call if row.problem is None else None


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:200]}"


def rival(name: str, functions: Sequence[Callable[..., Any]], data: Data, train: bool, clock: Clock | None, row: Row) -> Any:
    """The fastest of the right ways to write a case, and its call; None, and the row says why, if none is right."""
    best: tuple[float, Callable[..., Any], Contender] | None = None
    problems = []
    for function in functions:
        try:
            call = contender(function, data, train)
            problem = data.problem(*call(), mercy=MERCY)
            taken = 0.0 if problem or clock is None or len(functions) == 1 else min(clock.spans(call, 3))
        except Exception as error:  # a rival may fail in any way; the others go on
            if clock is not None and clock.lost():
                raise Lost(f"{name}: {first_line(error)}") from error
            problem = first_line(error)
        if problem is not None:
            problems.append(problem)
        elif best is None or taken < best[0]:
            best = taken, function, call
    if best is None:
        row.dropped[name] = "; ".join(problems)
        return None
    return best[1:]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()

    def plain(*inputs: Tensor) -> Any:
        return function(*inputs)

    return torch.compile(plain, dynamic=False, fullgraph=True)


def warm_up(device: torch.device) -> None:
    """The first use of torch.compile takes longer than any other, and says nothing of what others will take."""
    x = torch.randn(1, 1, 8, 8, device=device, requires_grad=True)
    try:
        compiled(lambda x: F.max_pool2d(x, 2))(x).sum().backward()
    except Exception as error:  # what the cases will tell too
        print(f"torch.compile does not work: {first_line(error)}")


def measured(data: Data, train: bool, clock: Clock | None, rounds: int, allotment: Allotment, rivals: Sequence[str]) -> Row:
    """Check, and with a clock time, everypool and its rivals in one pass of a case.

    Raises:
        Lost: the GPU answers no more.
        torch.OutOfMemoryError: everypool itself found no memory.
    """
    row = Row(data.case, train, data.checked)
    end = time.monotonic() + allotment.share()
    calls: dict[str, Contender] = {}
    with torch.set_grad_enabled(train):
        try:
            own = ours(data, train, row)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            row.problem = first_line(error)
            if clock is not None and clock.lost():
                raise Lost(row.problem) from error
            return row
        if own is None:
            return row
        calls["everypool"] = own
        fastest = rival("eager", data.case.rivals, data, train, clock, row)
        if fastest is not None:
            calls["eager"] = fastest[1]
        if "compile" in rivals and fastest is not None:
            start = time.monotonic()
            if allotment.compiles(end - start - LEAST):
                for form in (fastest[0], *(other for other in data.case.rivals if other is not fastest[0])):
                    found = rival("compile", [compiled(form)], data, train, clock, row)
                    if found is not None:
                        calls["compile"] = found[1]
                        row.dropped.pop("compile", None)
                        break
                allotment.compiling.append(time.monotonic() - start)
            else:
                row.dropped["compile"] = "no time left to compile"
        if clock is not None:
            time_all(calls, clock, rounds, max(LEAST, min(MOST, end - time.monotonic())), row)
    return row


def time_all(calls: dict[str, Contender], clock: Clock, rounds: int, seconds: float, row: Row) -> None:
    """Fill in the row's figures."""
    row.peaks = {name: clock.peak(call) for name, call in calls.items()}
    times, row.host = turns(clock, dict(calls), rounds, seconds)
    row.milliseconds = {name: statistics.median(taken) for name, taken in times.items()}
    row.ratios = {name: paired(times, "everypool", name) for name in times if name != "everypool"}
