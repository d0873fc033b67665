"""Models as ONNX: what is written is run here by ONNX Runtime itself; what is off is not written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import everypool
from everypool.cli import run

pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

OFF = """
from torch import nn

class Off(nn.Module):
    def forward(self, x):
        return 2 * x if x.shape[2] > 12 else 3 * x

def build():
    return Off()
"""
MINE = """
from torch import nn

def build(in_channels):
    return nn.Sequential(nn.Conv1d(in_channels, 2, 1), nn.AdaptiveAvgPool1d(3))
"""


@dataclass
class Found:
    logits: Tensor
    maps: tuple[Tensor, ...] | None = None
    loss: Tensor | None = None


class ModelOutput(OrderedDict[str, Any]):
    """As transformers' outputs are: a dict without what is None, in a class of its own."""


class Net(nn.Module):
    """Adaptive poolings of torch, a function and a module, with bins that do not divide the map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.AdaptiveMaxPool2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.drop(torch.cat([F.adaptive_avg_pool2d(x, 5).flatten(2), self.pool(x).flatten(2)], 2))


class Two(nn.Module):
    """Two inputs by name, outputs in a class that the exporter has never seen."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(6, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Any:
        y = self.linear(tokens) * mask.unsqueeze(-1)
        if self.kind is Found:
            return Found(y.sum(1), (y, mask.sum(1)))
        return self.kind(logits=y.sum(1), hidden=y)


def by_runtime(path: Path, **inputs: Tensor) -> list[np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == list(inputs)
    result: list[np.ndarray] = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return result


def test_adaptive_poolings_of_torch_at_unseen_sizes(tmp_path: Path) -> None:
    """And the model, its mode and the random numbers stay as they were."""
    model = Net()
    model.pool.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path, example = tmp_path / "net.onnx", torch.rand(1, 3, 16, 16)
    state = torch.get_rng_state()
    report = everypool.export(model, path, example)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert report.ok
    assert report.files == (path,)
    assert list(tmp_path.iterdir()) == [path]
    assert report.replaced == ("Net: adaptive_avg_pool2d to 5 x 5", "pool: adaptive_max_pool2d to 4 x 4")
    assert {c.dtype for c in report.comparisons} == {"float32"}
    assert len({c.size for c in report.comparisons}) == 3
    assert "16x16" not in {c.size for c in report.comparisons}
    assert "opset 18" in str(report)
    model.eval()
    for size in ((1, 3, 17, 14), (4, 3, 5, 31), (2, 3, 40, 23)):
        x = torch.randn(size)
        (y,) = by_runtime(path, x=x)
        np.testing.assert_allclose(y, model(x).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Found, ModelOutput])
def test_several_inputs_and_outputs(kind: Any, tmp_path: Path) -> None:
    """By name, with other axes free than those of maps; names of outputs are the keys."""
    model = Two(kind)
    example = {"tokens": torch.randn(2, 5, 6), "mask": torch.ones(2, 5)}
    report = everypool.export(model, tmp_path / "two.onnx", example, dynamic={0, 1}, check=[7, (11,)], opset=20)
    assert report.ok
    assert report.opset == 20
    assert report.inputs == ("tokens (n, c, 6)", "mask (n, c)")
    assert report.outputs == (("logits", "maps_0", "maps_1") if kind is Found else ("logits", "hidden"))
    assert [c.size for c in report.comparisons] == ["7", "11"]
    tokens, mask = torch.randn(3, 4, 6), torch.rand(3, 4)
    logits, first, *_ = by_runtime(tmp_path / "two.onnx", tokens=tokens, mask=mask)
    expected = (tokens @ model.linear.weight.T + model.linear.bias) * mask[..., None]
    np.testing.assert_allclose(logits, expected.sum(1).detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first, expected.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_what_is_off_is_not_written(tmp_path: Path) -> None:
    """Also where it is off beyond a size that only the model's own code knows; an earlier file stays."""
    (tmp_path / "off.py").write_text(OFF, encoding="utf-8")
    target = tmp_path / "off.onnx"
    target.write_bytes(b"of an earlier day")
    arguments = ["export", "off.py:build", "-o", str(target), "--shape", "2x3x16x16"]
    done = subprocess.run(
        [sys.executable, "-m", "everypool.cli", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"float32 +12x16 .* OFF, in Off$", done.stdout, re.M)
    assert "not written, it does not do what the model does; at fault: Off" in done.stdout
    assert target.read_bytes() == b"of an earlier day"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["off.onnx", "off.py"]


class Half(nn.Module):
    """Records something else than it does."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2 if torch.compiler.is_exporting() else x


class Narrow(nn.Module):
    """Runs at the example's size alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2)[..., :192].reshape(-1, 3, 192) if torch.compiler.is_exporting() else x.flatten(2)[..., :5]


class Branching(nn.Module):
    """What it does depends on values, which a graph cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool(x.sum() > 0) else x


@pytest.mark.parametrize("kind", [Half, Narrow])
def test_the_layer_at_fault_is_named(kind: type[nn.Module], tmp_path: Path) -> None:
    """The innermost one, wherever it stands; the report is then false."""
    model = nn.Sequential(
        OrderedDict(first=nn.Conv2d(3, 3, 1), block=nn.Sequential(nn.ReLU(), kind(), nn.Identity()), last=nn.ReLU())
    )
    report = everypool.export(model, tmp_path / "off.onnx", X)
    assert not report
    assert not report.ok
    assert {c.layer for c in report.comparisons if not c.ok} == {"block.1"}
    assert "at fault: block.1" in str(report)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"in block\.1: "):
        everypool.export(nn.Sequential(OrderedDict(block=nn.Sequential(nn.ReLU(), Branching()))), tmp_path / "x.onnx", X)


class Sum(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a.mean((2, 3)) + b.mean((2, 3))


@pytest.mark.parametrize(
    ("made", "example", "dynamic", "names"),
    [
        (everypool.MaxPool1d(1), torch.rand(2, 3, 12), None, [["n", 3, "w"], ["n", 3, "w"]]),
        (everypool.MaxPool1d(1), torch.rand(2, 3, 12), "ncl", [["n", "c", "w"], ["n", "c", "w"]]),
        (everypool.MaxPool2d(1), torch.rand(2, 3, 12, 12), None, [["n", 3, "h", "w"]] * 2),
        (everypool.MaxPool2d(1), torch.rand(2, 3, 12, 12), "c", [[2, "c", 12, 12]] * 2),
        (everypool.MaxPool3d(1), torch.rand(2, 3, 6, 6, 6), "ncdhw", [["n", "c", "d", "h", "w"]] * 2),
        (everypool.GlobalAvgPool(), torch.rand(2, 3, 6, 7), "nhw", [["n", 3, "h", "w"], ["n", 3]]),
        (Sum(), (torch.rand(2, 3, 8, 8), torch.rand(2, 3, 5, 5)), "nhw",
         [["n", 3, "h", "w"], ["n", 3, "h_b", "w_b"], ["n", 3]]),
    ],
)  # fmt: skip
def test_free_axes_have_names(made: nn.Module, example: Any, dynamic: Any, names: list[Any], tmp_path: Path) -> None:
    check = [(torch.rand(2, 3, 6, 5), torch.rand(2, 3, 9, 8))] if isinstance(example, tuple) else None
    report = everypool.export(made, tmp_path / "named.onnx", example, dynamic=dynamic, check=check)
    assert report
    graph = pytest.importorskip("onnx").load(tmp_path / "named.onnx").graph
    found = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (*graph.input, *graph.output)]
    assert found == names


class Refusing(nn.Module):
    """Its code needs the number, which an exporter has not."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.shape[2])


class Even(nn.Module):
    """Takes multiples of four alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], 3, -1, 4, x.shape[3]).sum(3) if x.shape[2] % 4 == 0 else x.reshape(0)


class Words(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x, "words"


X = torch.rand(1, 3, 12, 16)
BAD: list[tuple[Any, Any, dict[str, Any], str]] = [
    (Even, X, {"dynamic": "nhx"}, 'dynamic` must be letters of "ncdhw"'),
    (Even, X, {"dynamic": "d"}, "dynamic` must be axes that an input has"),
    (Even, X, {"dynamic": {0, 4}}, "dynamic` must be numbers of axes from 0 to 3"),
    (Even, X, {"dynamic": 2.0}, "dynamic` must be letters"),
    (Even, X, {"check": [(13, 16)]}, "check` must be of sizes that the model takes, got 13x16: "),
    (Even, X, {"check": [(12, 16, 3)]}, "check` must be of 2 positive sizes"),
    (Even, X, {"check": [torch.rand(1, 4, 12, 16)]}, "check` must be of inputs that differ from the example in free axes"),
    (Even, X, {"check": "12x16"}, "check` must be a sequence of sizes"),
    (Even, X, {"tolerance": (0.0, 1.0)}, "tolerance` must be"),
    (Even, X, {"opset": "18"}, "opset` must be a positive int"),
    (Even, "x", {}, "example` must be made of tensors"),
    (Even, (), {}, "example` must be a tensor, or a tuple or dict"),
    (lambda: F.relu, X, {}, "model` must be a torch.nn.Module"),
    (Words, X, {"dynamic": "none"}, "output` must be made of tensors, .* got str at output_1"),
    (Refusing, X, {"check": [(20, 20)]}, "model` must be one that torch's exporter takes with these axes free, got UserError"),
]


@pytest.mark.parametrize(("made", "example", "arguments", "message"), BAD)
def test_bad_arguments(made: Any, example: Any, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^`{message}") as caught:
        everypool.export(made(), tmp_path / "x.onnx", example, **arguments)
    assert made is not Refusing or caught.value.__cause__ is not None
    assert list(tmp_path.iterdir()) == []


def test_bad_paths(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "x.onnx"):
        with pytest.raises(ValueError, match=r"^`path` must be a file in a folder that exists"):
            everypool.export(Even(), path, X)
    with pytest.raises(TypeError, match=r"^`path` must be"):
        everypool.export(Even(), None, X)  # type: ignore[arg-type]


def test_sizes_are_those_that_the_model_takes(tmp_path: Path) -> None:
    report = everypool.export(Even(), tmp_path / "even.onnx", X, dynamic="h")
    assert report.ok
    assert [c.batches for c in report.comparisons] == [(1,)] * len(report.comparisons)
    assert all(int(c.size) % 4 == 0 and c.size != "12" for c in report.comparisons)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`MODEL` must be "),
        (["soft", "--all"], "`MODEL` must be "),
        (["soft", "--markdown", "x.md"], "`--markdown` must be left out without --all"),
        (["soft", "--shape", "3x24"], "`--shape` must be samples"),
        (["soft", "--check", "12x"], "`--check` must be positive ints"),
        (["soft", "--weights", "none.pt"], "`--weights` must be a file that exists"),
        (["nothing.py:build"], "`model` must be a Python file that exists"),
        (["sotf"], "`model` must be "),
        (["soft", "-o", "no/such/folder.onnx"], "must be a file that can be written"),
    ],
)
def test_bad_command_lines(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["export", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_command_in_both_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With weights of a file; the other type is in a file beside."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    weights = {"0.weight": torch.randn(2, 4, 1).half().float(), "0.bias": torch.randn(2).half().float()}
    torch.save(weights, tmp_path / "mine.pt")
    options = ["-o", "mine.onnx", "--shape", "2x4x10", "--weights", "mine.pt", "--check", "7", "--check", "31", "--float16"]
    assert run(["export", "mine.py:build", *options]) == 0
    out = capsys.readouterr().out
    assert "1: adaptive_avg_pool1d to 3" in out
    assert re.findall(r"^(float\d+) +(\d+) +1, 3 .* ok$", out, re.M) == [
        ("float32", "7"), ("float32", "31"), ("float16", "7"), ("float16", "31")
    ]  # fmt: skip
    x = torch.randn(3, 4, 17).half()
    expected = F.adaptive_avg_pool1d(F.conv1d(x.float(), weights["0.weight"], weights["0.bias"]), 3).numpy()
    (y,) = by_runtime(tmp_path / "mine.onnx", input=x.float())
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    (y,) = by_runtime(tmp_path / "mine.float16.onnx", input=x)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, expected, rtol=1e-2, atol=5e-3)


def test_page_has_a_row_for_every_operation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "onnx.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\|.*\|$", text, re.M)[2:]]
    assert {row[0] for row in rows} == set(everypool.operations())
    for name, *_, float32, _float16 in rows:
        found = re.fullmatch(r"0|([\d.e+-]+) \(([\d.e+-]+)\)", float32)
        assert found, name
        assert float(found[2] or 0) < 1e-5, name
    for op in everypool.operations().values():
        windows = {row[1] for row in rows if row[0] == op.name}
        assert len(windows) == (3 if op.kind == "reducer" else 2 if op.name == "roi" else 1), op.name
