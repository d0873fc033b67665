"""Everypool and its rivals, each made ready to run one case.

How each is called, always in its own favour where there is a choice:

everypool    its public functions, results in fresh memory
eager        torch's operators; results in fresh memory
compile      torch.compile of the same, of fixed shape and as one graph
onnxruntime  the same exported with torch.onnx, parameters baked in; inputs and results bound to memory that stays
openvino     the same ONNX model in float32; inputs and results in memory that stays
jax          the composition in JAX under jit; forward+backward is one jitted function of value and gradients
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Data, outputs
from benchmarks.ops import JaxOps, PortableOps, TorchOps

__all__ = ["BUILDERS", "Contender", "Unsuited", "missing", "set_threads"]

_THREADS = 1


class Unsuited(Exception):
    """Why a rival has nothing to run for a case."""


@dataclass(frozen=True)
class Contender:
    """One run, and its result as torch tensors: outputs, then gradients if it trains."""

    call: Callable[[], Any]
    read: Callable[[Any], list[Tensor]]


def set_threads(threads: int) -> None:
    """Give everything that runs from now on so many threads, pinned; to be called before a rival is imported."""
    global _THREADS
    _THREADS = threads
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def missing(name: str) -> str | None:
    """Why a rival cannot run here at all; None if it can."""
    needed = {"onnxruntime": ("onnxruntime", "onnxscript"), "openvino": ("openvino", "onnxscript"), "jax": ("jax",)}
    absent = [package for package in needed.get(name, ()) if importlib.util.find_spec(package) is None]
    return f"{', '.join(absent)} not installed" if absent else None


def in_torch(function: Callable[..., Any], data: Data, train: bool) -> Contender:
    if not train:
        inputs = data.inputs
        return Contender(lambda: function(*inputs), outputs)
    leaves = [x.detach().requires_grad_() for x in data.inputs]

    def step() -> tuple[list[Tensor], tuple[Tensor, ...]]:
        results = outputs(function(*leaves))
        return results, torch.autograd.grad(results, leaves, data.flow)

    return Contender(step, lambda both: [y.detach() for y in both[0]] + list(both[1]))


def everypool(data: Data, train: bool) -> Contender:
    return in_torch(data.case.ours, data, train)


def composition(data: Data, ops: Any) -> Callable[..., Any]:
    if data.case.composed is None:
        raise Unsuited("no composition")
    return partial(data.case.composed, ops)


def eager(data: Data, train: bool) -> Contender:
    return in_torch(composition(data, TorchOps()), data, train)


def compiled(data: Data, train: bool) -> Contender:
    torch._dynamo.reset()
    function = composition(data, TorchOps())

    def plain(*inputs: Tensor) -> Any:
        return function(*inputs)

    return in_torch(torch.compile(plain, dynamic=False, fullgraph=True), data, train)


class Exported(nn.Module):
    """A composition with its parameters baked in."""

    def __init__(self, function: Callable[..., Any], parameters: list[Tensor]) -> None:
        super().__init__()
        self.function, self.count = function, len(parameters)
        for number, p in enumerate(parameters):
            self.register_buffer(f"p{number}", p)

    def forward(self, *maps: Tensor) -> Any:
        return self.function(*maps, *(getattr(self, f"p{number}") for number in range(self.count)))


_LAST_MODEL: list[tuple[Data, bytes]] = []


def onnx_model(data: Data, train: bool) -> bytes:
    """The composition as an ONNX file, kept until another case comes."""
    if train:
        raise Unsuited("inference only")
    if data.case.last:
        raise Unsuited("ONNX has no channels_last")
    if data.case.dtype != torch.float32:
        raise Unsuited("float32 only")
    if not _LAST_MODEL or _LAST_MODEL[0][0] is not data:
        module = Exported(composition(data, PortableOps()), data.parameters).eval()
        quiet = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(module, tuple(data.maps), dynamo=True, verbose=False)
        if program is None:
            raise Unsuited("not exported")
        _LAST_MODEL[:] = [(data, program.model_proto.SerializeToString())]
    return _LAST_MODEL[0][1]


def onnxruntime(data: Data, train: bool) -> Contender:
    model = onnx_model(data, train)
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = _THREADS, 1, 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    bound = session.io_binding()
    for node, x in zip(session.get_inputs(), data.maps, strict=True):
        bound.bind_cpu_input(node.name, x.numpy())
    results = [ort.OrtValue.ortvalue_from_numpy(torch.empty(y.shape).numpy()) for y in data.results]
    for node, value in zip(session.get_outputs(), results, strict=True):
        bound.bind_ortvalue_output(node.name, value)
    return Contender(
        lambda: session.run_with_iobinding(bound),
        lambda _: [torch.from_numpy(value.numpy()) for value in results],
    )


@cache
def openvino_core() -> Any:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # without it, nothing is sent
    return importlib.import_module("openvino").Core()


def openvino(data: Data, train: bool) -> Contender:
    model = onnx_model(data, train)
    core = openvino_core()
    ov: Any = importlib.import_module("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": _THREADS,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # the process is pinned already
    }
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    for number, x in enumerate(data.maps):
        request.set_input_tensor(number, ov.Tensor(x.numpy(), shared_memory=True))
    return Contender(
        request.infer,
        lambda _: [torch.from_numpy(request.get_output_tensor(number).data) for number in range(len(data.results))],
    )


def jax(data: Data, train: bool) -> Contender:
    if data.case.composed is None:
        raise Unsuited("no composition")
    jx: Any = importlib.import_module("jax")
    ops = JaxOps(1 if data.case.last else 2)
    inputs, flow = ([to_jax(x, data.case.last) for x in tensors] for tensors in (data.inputs, data.flow))

    def function(*inputs: Any) -> tuple[Any, ...]:
        return tuple(outputs(data.case.composed(ops, *inputs)))  # type: ignore[misc]

    def step(inputs: list[Any], flow: list[Any]) -> Any:
        results, back = jx.vjp(function, *inputs)
        return results, back(tuple(flow))

    if not train:
        run = jx.jit(function)
        return Contender(
            lambda: jx.block_until_ready(run(*inputs)), lambda results: [from_jax(y, data.case.last) for y in results]
        )
    both = jx.jit(step)
    return Contender(
        lambda: jx.block_until_ready(both(inputs, flow)),
        lambda result: [from_jax(y, data.case.last) for part in result for y in part],
    )


def to_jax(x: Tensor, last: bool) -> Any:
    numpy: Any = importlib.import_module("jax.numpy")
    return numpy.from_dlpack((x.permute(0, 2, 3, 1) if last and x.dim() == 4 else x).contiguous())


def from_jax(y: Any, last: bool) -> Tensor:
    x: Tensor = torch.utils.dlpack.from_dlpack(y)
    return x.permute(0, 3, 1, 2) if last and x.dim() == 4 else x


BUILDERS: dict[str, Callable[[Data, bool], Contender]] = {
    "everypool": everypool,
    "eager": eager,
    "compile": compiled,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "jax": jax,
}

for _noisy in ("torch.onnx", "onnxscript", "onnx_ir", "jax", "torch._dynamo", "torch._inductor"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)
