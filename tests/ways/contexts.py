"""Plain calls within a context, on another thread, in another process, or of a copied module."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from .derivatives import (
    Outcome,
    check_all,
    check_outcome,
    compute_loss,
    derive,
    expect,
    get_leaves,
    list_parts,
    put_leaves,
    run_plainly,
)
from .registry import add_way, choose_main
from .subjects import OTHER, SUBJECTS, Subject


class LoggingDispatch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


class LoggingFunction(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("cpu")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def any_algorithm() -> Iterator[None]:
    """The fixture of all tests asks for deterministic ones."""
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True)


@contextmanager
def anomaly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
        with torch.autograd.detect_anomaly(check_nan=True):
            yield


@contextmanager
def packed_numbers() -> Iterator[None]:
    """Tensors saved for the gradient are kept elsewhere, by number."""
    kept: list[Tensor] = []

    def pack(x: Tensor) -> int:
        kept.append(x.detach().clone())
        return len(kept) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda number: kept[number]):
        yield


MakeContext = Callable[[], AbstractContextManager[Any]]
# name, what, the context, the order of derivatives that it has, whether the compiled kernels run within
CONTEXTS: list[tuple[str, str, MakeContext, int, bool]] = [
    ("eager", "a plain call, twice", nullcontext, 2, True),
    ("no_grad", "torch.no_grad", torch.no_grad, 0, True),
    ("inference_mode", "torch.inference_mode", torch.inference_mode, 0, True),
    ("dispatch mode", "within a TorchDispatchMode of the user", LoggingDispatch, 2, False),
    ("function mode", "within a TorchFunctionMode of the user", LoggingFunction, 2, True),
    ("default device", 'after torch.set_default_device("cpu")', default_device, 2, True),
    ("device cpu", 'with torch.device("cpu")', lambda: torch.device("cpu"), 2, True),
    ("device meta", 'with torch.device("meta"), the input on the CPU', lambda: torch.device("meta"), 2, True),
    (
        "autocast",
        "torch.autocast to bfloat16, the input float64",
        lambda: torch.autocast("cpu", torch.bfloat16),
        2,
        True,
    ),
    ("nondeterministic", "torch.use_deterministic_algorithms(False)", any_algorithm, 2, True),
    ("saved tensors hooks", "saved_tensors_hooks that keep tensors elsewhere", packed_numbers, 2, True),
    ("save on cpu", "torch.autograd.graph.save_on_cpu", torch.autograd.graph.save_on_cpu, 2, True),
    ("anomaly", "torch.autograd.detect_anomaly", anomaly, 2, True),
]


def _add_context(name: str, summary: str, context: MakeContext, order: int, kernels: bool) -> None:
    def run(subject: Subject) -> None:
        expected = expect(subject)
        for _ in range(2 if name == "eager" else 1):
            module, arguments = subject.module(), subject.arguments()
            with context():
                found = run_plainly(subject, module, arguments, order=order)
            check_outcome(found, expected, order)

    run.__doc__ = summary
    add_way(name, kernels=kernels)(run)


for _context in CONTEXTS:
    _add_context(*_context)


@add_way("flop counter", kernels=True)
def call_counted(subject: Subject) -> None:
    """FlopCounterMode (first derivatives: its hooks refuse torch.autograd.grad)"""
    with FlopCounterMode(display=False):
        found = run_backward(subject, lambda module, *arguments: module(*arguments))
    check_outcome(found, expect(subject), 1)


def run_backward(subject: Subject, call: Callable[..., Any]) -> Outcome:
    """The outcome of first order by `backward()`."""
    module, arguments = subject.module(), subject.arguments()
    leaves = [x.detach().requires_grad_() for x in get_leaves(arguments)]
    wanted = [*leaves, *module.parameters()]
    result = call(module, *put_leaves(arguments, leaves))
    compute_loss(result).backward()
    firsts = [torch.zeros_like(x) if x.grad is None else x.grad for x in wanted]
    return Outcome([part.detach() for part in list_parts(result)], firsts, [])


@add_way("checkpoint", kernels=True)
def call_by_checkpoint(subject: Subject) -> None:
    """torch.utils.checkpoint, use_reentrant=False"""
    module, arguments = subject.module(), subject.arguments()
    leaves = [x.detach().requires_grad_() for x in get_leaves(arguments)]
    given = put_leaves(arguments, leaves)
    found = derive(lambda: checkpoint(module, *given, use_reentrant=False), [*leaves, *module.parameters()])
    check_outcome(found, expect(subject))


@add_way("checkpoint reentrant", kernels=True)
def call_by_reentrant_checkpoint(subject: Subject) -> None:
    """torch.utils.checkpoint, use_reentrant=True (first derivatives: it knows `backward()` alone)"""

    def call(module: nn.Module, *given: Any) -> Any:
        if isinstance(given[0], list):  # it sees no tensors within a list
            return checkpoint(lambda *leaves: module(list(leaves), *given[1:]), *given[0], use_reentrant=True)
        return checkpoint(module, *given, use_reentrant=True)

    check_outcome(run_backward(subject, call), expect(subject), 1)


@add_way("deepcopy", kernels=True)
def call_copy(subject: Subject) -> None:
    """copy.deepcopy of a module that has been called"""
    module = subject.module()
    module(*subject.arguments())
    check_outcome(run_plainly(subject, copy.deepcopy(module)), expect(subject))


@add_way("pickle", kernels=True)
def call_pickled(subject: Subject) -> None:
    """pickle and torch.save of a module"""
    module = subject.module()
    check_outcome(run_plainly(subject, pickle.loads(pickle.dumps(module))), expect(subject))
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    check_outcome(run_plainly(subject, torch.load(buffer, weights_only=False)), expect(subject))


@add_way("state_dict", kernels=True)
def call_restored(subject: Subject) -> None:
    """state_dict through torch.save and torch.load(weights_only=True), strictly into a new module"""
    buffer = io.BytesIO()
    torch.save(subject.module().state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(7)
    other = subject.build().double().train(subject.is_learning)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    check_outcome(run_plainly(subject, other), expect(subject))


def reset(module: nn.Module) -> None:
    """Do as torch's own deferred initialization: whoever holds parameters or buffers is asked to make them."""
    torch.manual_seed(3)
    for part in module.modules():
        if list(part.parameters(recurse=False)) or list(part.buffers(recurse=False)):
            part.reset_parameters()


@add_way("meta to_empty", kernels=True)
def call_materialized(subject: Subject) -> None:
    """built on meta, to_empty, reset_parameters of every part"""
    torch.manual_seed(3)
    with torch.device("meta"):
        module = subject.build()
    module = module.to_empty(device="cpu").double().train(subject.is_learning)
    reset(module)
    other = subject.module()
    reset(other)
    check_outcome(run_plainly(subject, module), run_plainly(subject, other))
    if not subject.has_convolutions:  # nothing is drawn by chance
        check_outcome(run_plainly(subject, module), expect(subject))


@add_way("jit.script", kernels=None, fits=choose_main)
def call_scripted(subject: Subject) -> None:
    """torch.jit.script"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(subject.module())
    check_outcome(run_plainly(subject, scripted), expect(subject))


@add_way("threads", kernels=True)
def call_from_threads(subject: Subject) -> None:
    """four threads at once, two sizes"""
    sizes = [0, OTHER, 0, OTHER]
    for size in sizes:
        expect(subject, size)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda size: run_plainly(subject, size=size), sizes))
    for outcome, size in zip(found, sizes, strict=True):
        check_outcome(outcome, expect(subject, size))


def _send_outcome(number: int, connection: Any) -> None:
    found = run_plainly(SUBJECTS[number])
    connection.send([[x.tolist() for x in items] for items in (found.values, found.firsts, found.seconds)])


@add_way("fork", kernels=None, fits=choose_main)
def call_from_fork(subject: Subject) -> None:
    """a process forked after calls"""
    expected = expect(subject)
    mine, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_send_outcome, args=(SUBJECTS.index(subject), theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python: threads exist
        child.start()
    theirs.close()
    assert mine.poll(60)
    found = mine.recv()
    child.join(60)
    assert child.exitcode == 0
    for items, wanted in zip(found, (expected.values, expected.firsts, expected.seconds), strict=True):
        check_all([torch.tensor(a, dtype=b.dtype).reshape(b.shape) for a, b in zip(items, wanted, strict=True)], wanted)
