"""A model through torch's exporter and through ONNX Runtime."""

from __future__ import annotations

import ast
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from everypool._check import LARGEST, Shown, invalid
from everypool.pool import apply
from everypool.reducers import Max, Mean
from everypool.surgery.inputs import Case, Inputs, outputs_of
from everypool.windows import Adaptive

__all__ = ["Comparison", "compared", "installed", "versions", "written"]


@dataclass(frozen=True)
class Comparison:
    """The file in ONNX Runtime against the model in eager mode, at one size.

    Args:
        dtype: of the model.
        size: of the axes that are free, the batch's excepted; or the shapes of all inputs.
        batches: how many samples there were, one after the other.
        absolute: the largest error of any element of any output; infinite where shapes differ, or what is not finite.
        relative: the same as a share of the largest value of that output.
        ok: the relative error is within the tolerance.
        why: what ONNX Runtime said, if it did not run.
        layer: where it is not ok, the first layer whose output is off, or which did not run, as far as that can be told.
    """

    dtype: str
    size: str
    batches: tuple[int, ...]
    absolute: float
    relative: float
    ok: bool
    why: str = ""
    layer: str = ""


def installed() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            rule = "run where onnx, onnxscript and onnxruntime are installed: pip install 'everypool[onnx]'"
            raise NotImplementedError(f"`export` must be {rule}, got no module {name!r}") from error


def versions() -> str:
    """Of what has written and run the file."""
    runtime, exporter = (import_module(name).__version__ for name in ("onnxruntime", "onnxscript"))
    return f"torch {torch.__version__}, onnxscript {exporter}, ONNX Runtime {runtime}"


class Flat(nn.Module):
    """A model with its inputs in two containers and its outputs in one tuple, which the exporter takes of any model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        return tuple(outputs_of(self.model(*args, **kwargs)).values())


class Exact(TorchFunctionMode):
    """Adaptive poolings of torch by everypool's, while a graph is recorded."""

    NAME = re.compile(r"_?adaptive_(avg|max)_pool([123])d(_with_indices)?")

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.inside: list[str] = []  # names of the modules that run
        self.model = model
        self.stack = ExitStack()

    def enter(self, name: str, *_: Any) -> None:
        self.inside.append(name)

    def leave(self, *_: Any) -> None:
        self.inside.pop()

    def __enter__(self) -> Exact:
        for name, module in self.model.named_modules():
            self.stack.callback(module.register_forward_pre_hook(partial(self.enter, name)).remove)
            self.stack.callback(module.register_forward_hook(self.leave).remove)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.stack.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = self.NAME.fullmatch(getattr(func, "__name__", ""))
        if found is None:
            return func(*args, **(kwargs or {}))
        kind, nd, indices = found[1], int(found[2]), found[3] is not None
        return self.pooled(func, kind, nd, indices, *args, **(kwargs or {}))

    def pooled(
        self, func: Any, kind: str, nd: int, indices: bool, input: Tensor, output_size: Any, return_indices: bool = False
    ) -> Any:
        indices = indices or return_indices
        out = (output_size,) * nd if not isinstance(output_size, (tuple, list)) else tuple(output_size)
        if all(isinstance(n, int) and n == 1 for n in out) and not indices:
            return func(input, output_size)  # the whole map: right as it is
        where = self.inside[-1] if self.inside and self.inside[-1] else type(self.model).__name__
        bins = " x ".join("as it is" if n is None else str(n) if isinstance(n, int) else "a size of the model's" for n in out)
        self.seen.append(f"{where}: {func.__name__} to {bins}")
        reducer = Mean() if kind == "avg" else Max(indices=indices)
        return apply(input, reducer, Adaptive(out), nd=nd)


@dataclass(frozen=True)
class Program:
    """What the exporter has written."""

    replaced: tuple[str, ...]
    bounds: tuple[tuple[int, int], ...]  # of the sizes that it was recorded for: the file itself has no such limits
    layers: Mapping[str, str]  # of the file's nodes: the name of the layer that each is of
    values: Mapping[str, str]  # of the layers: the name of the last value of each


def written(model: nn.Module, inputs: Inputs, outputs: Sequence[str], path: Path, opset: int) -> Program:
    """The model in a file."""
    exact = Exact(model)
    try:
        with quiet():
            with exact:
                program = torch.export.export(
                    Flat(model), inputs.call(inputs.first()), dynamic_shapes=inputs.dims(), strict=False
                )
            made: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs.names),
                output_names=list(outputs),
                verbose=False,
            )
            if made.model.opset_imports.get("") != opset:
                raise invalid("opset", "one that the exporter can write this model in", opset)
            layers, values = locate_layers(made.model.graph)
            for node in made.model.graph.all_nodes():
                node.metadata_props.clear()  # lines of Python and paths of this machine
            name_axes(made.model.graph, inputs)
            made.save(path)
    except Exception as error:
        if str(error).startswith("`opset`"):
            raise
        where = f" in {layer_name(exact.inside[-1], model)}" if exact.inside else ""  # what runs when it stops
        text = Shown(f"{type(error).__name__}{where}: {' '.join(str(error).split())[:600]}")
        raise invalid("model", "one that torch's exporter takes with these axes free", text) from error
    replaced = (f"{text}{f' ({n} times)' if n > 1 else ''}" for text, n in Counter(exact.seen).items())
    return Program(tuple(replaced), bounds(program, inputs), layers, values)


def locate_layers(graph: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return the layer of every node, and the last value of every layer, by the scopes that the exporter notes."""
    layers: dict[str, str] = {}
    values: dict[str, str] = {}
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        names = [scope.partition(".")[2] for scope in scopes if scope.partition(".")[0] == "model"]
        if names:
            layers[node.name] = names[-1]
            values |= {name: node.outputs[0].name for name in names}
    return layers, values


def name_axes(graph: Any, inputs: Inputs) -> None:
    """Give the free axes of the graph their names n, c, d, h and w, in place of the exporter's numbers."""
    names: dict[str, str] = {}
    for number, value in enumerate(graph.inputs):
        for axis, name in enumerate(inputs.axis_names(number)):
            symbol = getattr(value.shape[axis], "value", None)
            if axis in inputs.free[number] and isinstance(symbol, str) and symbol not in names:
                names[symbol] = name if name not in names.values() else f"{name}_{inputs.names[number]}"
    if not names:
        return
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    for value in (*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)):
        for axis, size in enumerate(value.shape or ()):
            if isinstance(getattr(size, "value", None), str):
                value.shape[axis] = type(size)(pattern.sub(lambda found: names[found[0]], size.value))


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn of their own affairs."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def bounds(program: torch.export.ExportedProgram, inputs: Inputs) -> tuple[tuple[int, int], ...]:
    """Smallest and largest size of each of `inputs.axes()` for which the recording holds, as far as that is known."""
    if not inputs.axes():
        return ()
    known = program.graph_signature.user_inputs
    leading = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in known][inputs.leading]
    found = []
    for axis in inputs.axes():
        expression = leading.meta["val"].shape[axis].node.expr
        limits = program.range_constraints.get(expression)
        low, high = (limits.lower, limits.upper) if limits is not None else (0, LARGEST)
        found.append((int(low), int(high) if high < LARGEST else LARGEST))
    return tuple(found)


def compared(
    path: Path, reference: nn.Module, inputs: Inputs, cases: Sequence[Case], tolerance: tuple[float, float], program: Program
) -> list[Comparison]:
    """The file in ONNX Runtime against the model, which computes in float32 where the file does in float16."""
    ort: Any = import_module("onnxruntime")
    dtype = next((x.dtype for x in inputs.tensors if x.is_floating_point()), next(reference.parameters(), torch.empty(0)).dtype)
    kind, limit = str(dtype).removeprefix("torch."), tolerance[dtype == torch.float16]
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is in the report
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        infinite, where = (float("inf"), float("inf")), failed_layer(error, reference, program)
        return [Comparison(kind, c.size, c.batches, *infinite, False, first_line(error), where) for c in cases]
    taken = {item.name for item in session.get_inputs()}
    found = []
    for case in cases:
        worst, why, layer = (0.0, 0.0), "", ""
        for call in case.calls:
            given = {name: x.detach().cpu().numpy() for name, x in zip(inputs.names, call, strict=True) if name in taken}
            expected = inputs.run(reference, call).values()
            try:
                results = session.run(None, given)
            except Exception as error:
                worst, why = (float("inf"), float("inf")), first_line(error)
                layer = failed_layer(error, reference, program)
                break
            for result, wanted in zip(results, expected, strict=True):
                worst = max(worst, apart(torch.from_numpy(result), wanted.detach().cpu()), key=lambda pair: pair[1])
            if worst[1] > limit:
                layer = layer or wrong_layer(path, reference, inputs, call, limit, program)
        found.append(Comparison(kind, case.size, case.batches, *worst, worst[1] <= limit, why, layer))
    return found


def failed_layer(error: Exception, model: nn.Module, program: Program) -> str:
    """Return the layer of the node that ONNX Runtime complains of; "" where it names none."""
    found = re.search(r"[Nn]ame:\s*'([^']+)'|Node \(([^)]+)\)", str(error))
    name = "" if found is None else found[1] or found[2]
    return layer_name(program.layers[name], model) if name in program.layers else ""


def wrong_layer(path: Path, model: nn.Module, inputs: Inputs, call: Sequence[Tensor], limit: float, program: Program) -> str:
    """Return the first layer that gives something else in the file than in the model; "" where none can be compared."""
    onnx, ort = import_module("onnx"), import_module("onnxruntime")
    given: list[tuple[str, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda _module, _input, output, name=name: given.append((name, output)))
        for name, module in model.named_modules()
        if name in program.values
    ]
    try:
        inputs.run(model, call)
    finally:
        for handle in handles:
            handle.remove()
    given = [(name, output) for name, output in given if isinstance(output, Tensor)]
    asked = list(dict.fromkeys(program.values[name] for name, _ in given))
    try:
        graph = onnx.load(path)
        there = {value.name for value in graph.graph.output}
        graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in asked if name not in there)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        taken = {item.name for item in session.get_inputs()}
        arrays = {name: x.detach().cpu().numpy() for name, x in zip(inputs.names, call, strict=True) if name in taken}
        results = dict(zip(asked, session.run(asked, arrays), strict=True))
    except Exception:  # too large for one message, or a type that the runtime does not hand out: the report stands without
        return ""
    for name, output in given:
        result = torch.from_numpy(results[program.values[name]])
        if result.is_floating_point() == output.is_floating_point() and apart(result, output.detach().cpu())[1] > limit:
            return layer_name(name, model)
    return ""


def layer_name(name: str, model: nn.Module) -> str:
    return name or type(model).__name__


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


def apart(result: Tensor, expected: Tensor) -> tuple[float, float]:
    """The largest error, and its share of the largest value; infinite where shapes differ, or what is not finite."""
    if result.shape != expected.shape:
        return float("inf"), float("inf")
    if not result.numel():
        return 0.0, 0.0
    result, expected = result.double(), expected.double()
    finite = expected.isfinite()
    same = torch.allclose(result[~finite], expected[~finite], rtol=0, atol=0, equal_nan=True)
    if not same or not bool(result[finite].isfinite().all()):
        return float("inf"), float("inf")
    error = float((result - expected)[finite].abs().amax()) if bool(finite.any()) else 0.0
    largest = float(expected[finite].abs().amax()) if bool(finite.any()) else 0.0
    return error, error / max(largest, 1e-6)
