"""Real architectures through a swap and back: `python tests/architectures.py [NAME ...]` prints a row of a table for each.

Maxima become SoftPool, heads GeM. Each model runs forward and backward, is compiled whole, exported as ONNX and run in ONNX
Runtime with another batch, saved and loaded into a model that was swapped alike, copied and pickled; a dry run before and
`undo` after must leave answers bit for bit as they were. What cannot be swapped is named with its reason.
"""

from __future__ import annotations

import copy
import io
import pickle
import sys
import warnings
from typing import Any

import models
import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from everypool import find, swap

LEFT_OUT = ("EfficientNet",)  # with random weights its answers are around 1e-43, where no two paths agree


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    heads = "architecture", "from", "poolings found", "swapped", "backward", "compiled", "ONNX", "saved and loaded", "undone"
    print(f"| {' | '.join(heads)} |")
    print("| :-- | :-- | :-- | :-- | :-- | --: | --: | :-- | :-- |", flush=True)
    failed = 0
    for package, group in (("transformers", models.TRANSFORMERS), ("timm", models.TIMM), ("torchvision", models.TORCHVISION)):
        for name in group:
            if name in LEFT_OUT or (names and name not in names):
                continue
            try:
                cells = passed(name)
            except Exception as error:
                failed += 1
                cells = [f"**{type(error).__name__}: {' '.join(str(error).split())[:200]}**"]
            print(f"| {name} | {package} | {' | '.join(cells)} |", flush=True)
    return min(failed, 1)


def passed(name: str) -> list[str]:
    model, size = models.build(name)
    x = models.pixels(size)
    found = find(model, x)
    counts = {what: sum(p.what == what for p in found) for what in dict.fromkeys(p.what for p in found)}
    listed = ", ".join(f"{what}{f' x {n}' if n > 1 else ''}" for what, n in counts.items()) or "none"
    rules: dict[Any, str] = {}
    if any(p.reducer == "max" for p in found):
        rules[lambda p: p.reducer == "max"] = "soft"
    if any(p.place == "head" for p in found):
        rules["head"] = "gem:signed=odd"
    if not rules:
        return [listed, *["nothing to swap"], *["-"] * 5]
    answer, keys, kinds = answered(model, x), list(model.state_dict()), [type(m) for m in model.modules()]
    swap(model, rules, x, dry_run=True)
    same(answered(model, x), answer)
    report = swap(model, rules, x)
    backward(model, x)
    expected = answered(model, x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled_error = f"{difference(answered(compiled, x), expected):.1g}"
    torch._dynamo.reset()
    try:
        onnx = f"{exported(model, x):.1g}"
    except torch.onnx.OnnxExporterError:
        try:
            exported(models.build(name)[0], x)
        except torch.onnx.OnnxExporterError:
            onnx = "refused, as the original is"
        else:
            raise
    again, _ = models.build(name)
    swap(again, rules, x)
    again.load_state_dict(model.state_dict())
    for other in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        same(answered(other, x), expected)
    report.undo()
    same(answered(model, x), answer)
    if list(model.state_dict()) != keys or [type(m) for m in model.modules()] != kinds:
        raise AssertionError("undo left something")
    return [listed, str(len(report.changes)), "yes", compiled_error, onnx, "same bits", "same bits"]


def answered(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model(x)
    return answer


def same(actual: Tensor, expected: Tensor) -> None:
    if not torch.equal(actual, expected):
        raise AssertionError(f"differs by {difference(actual, expected):.2g}")


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest answer."""
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    if not error < 1e-4:
        raise AssertionError(f"differs by {error:.2g}")
    return error


def backward(model: nn.Module, x: Tensor) -> None:
    model(x).float().square().sum().backward()
    learned = {n: p.grad for n, p in model.named_parameters() if n.endswith(".p")}
    wrong = [n for n, grad in learned.items() if grad is None or not grad.isfinite().all()]
    if wrong and len(wrong) == len(learned):  # one that the answer does not depend on has none
        raise AssertionError(f"no gradient of {', '.join(wrong)}")
    model.zero_grad(set_to_none=True)


def exported(model: nn.Module, x: Tensor) -> float:
    options: dict[str, Any] = {"dynamo": True, "verbose": False, "optimize": False}
    buffer = io.BytesIO()
    torch.onnx.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), **options).save(buffer)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(buffer.getvalue(), settings)
    other = torch.randn(3, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    got: np.ndarray = session.run(None, {session.get_inputs()[0].name: other.numpy()})[0]
    return difference(torch.from_numpy(got), answered(model, other))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
