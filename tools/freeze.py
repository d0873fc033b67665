#!/usr/bin/env python3
"""Record what a change of names and files must leave as it is, and compare it afterwards.

    python tools/freeze.py record build/freeze.json
    python tools/freeze.py compare build/freeze.json

Recorded are the bits of results, gradients and gradients of gradients of every generated case, by the definition, by the
compiled loops of each instruction set and by the fused kernels in Triton's interpreter; outputs and state-dict keys of
every block; signatures of all that is public; keys of trials and the types of their rows; what the command line prints as
JSON; and how many tests there are. Bits are those of one machine: record and compare on the same one.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMPLEMENTATIONS = {  # name: which implementation is forced, and the environment it needs
    "definition": ("eager", {}),
    "cpu avx2": ("cpu", {"EVERYPOOL_ISA": "avx2"}),
    "cpu baseline": ("cpu", {"EVERYPOOL_ISA": "baseline"}),
    "triton": ("triton", {"TRITON_INTERPRET": "1"}),
}
PARTS = ("blocks", "signatures", "trials", "commands", "tests")
COMMANDS = (
    ("list", "--json"),
    ("explain", "soft", "--kernel", "2", "--shape", "8,64,56,56", "--json"),
    ("explain", "max", "--kernel", "3", "--stride", "2", "--padding", "1", "--shape", "1,3,224,224", "--json"),
)
TRIALS = 20
SHOWN = 20  # differences that are printed of each part


def digest(tensors: Any) -> str:
    """Return a digest of the types, shapes and bits of tensors."""
    import torch

    found = hashlib.sha256()
    for x in tensors:
        found.update(f"{x.dtype}{tuple(x.shape)}".encode())
        found.update(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def derive(row: Any, case: Any, x: Any, **options: Any) -> str:
    """Return the digest of a result, its gradient, and the gradient of that; or the name of the error."""
    import torch
    from cases import as_tuple, pooled

    try:
        leaf = x.clone().requires_grad_()
        parts = as_tuple(pooled(row, case, leaf, **options))
        loss = sum((part.double().sin().sum() for part in parts), torch.zeros((), dtype=torch.float64))
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        again = torch.autograd.grad(grad.double().cos().sum(), leaf, allow_unused=True)[0] if grad.requires_grad else None
        return digest([*parts, grad, *([] if again is None else [again])])
    except NotImplementedError:
        return "NotImplementedError"


def record_bits(implementation: str) -> dict[str, str]:
    """Return a digest for every generated case; of the fused kernels, which take seconds, for some of each kind."""
    import numpy as np
    import torch
    from cases import CASES, CONTRACT, DEFAULTS, ROWS, numbers

    from everypool.backends.choose import forced

    found: dict[str, str] = {}
    slow = implementation == "triton"
    cases = CONTRACT if slow else CASES
    with forced(implementation):
        for row in DEFAULTS if slow else ROWS:
            for case in cases:
                x = torch.from_numpy(numbers((2, 3, *case.spatial))).float()
                found[f"{row.id} {case.id}"] = derive(row, case, x)
                if case in CONTRACT:
                    mask = np.random.default_rng(1).random((2, 1, *case.spatial)) < 0.6
                    found[f"{row.id} {case.id} masked"] = derive(row, case, x, mask=torch.from_numpy(mask))
    return found


def record_blocks() -> dict[str, Any]:
    """Return the outputs and state-dict keys of every operation's sample module."""
    import torch

    import everypool

    found = {}
    for name, operation in everypool.operations().items():
        if operation.sample is None:
            continue
        torch.manual_seed(0)
        module, arguments = operation.sample()
        result = module.eval()(*arguments)
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        tensors = [x for x in results if isinstance(x, torch.Tensor)]
        found[name] = {"output": digest(tensors), "state": {k: list(v.shape) for k, v in module.state_dict().items()}}
    return found


def record_signatures() -> dict[str, str]:
    """Return the signature of every public name."""
    import everypool
    import everypool.functional

    found = {}
    for module in (everypool, everypool.functional):
        for name in sorted(getattr(module, "__all__", dir(module))):
            item = getattr(module, name)
            if callable(item) and not name.startswith("_"):
                try:
                    found[f"{module.__name__}.{name}"] = str(inspect.signature(item))
                except ValueError:
                    found[f"{module.__name__}.{name}"] = "none"
    return found


def record_trials() -> dict[str, Any]:
    """Return the keys of the first trials of every experiment in turn, and the types of a row on the disk."""
    import pyarrow.parquet as pq

    from everypool.study.experiment import experiments
    from everypool.study.store import Store
    from everypool.study.trial import Outcome

    every = list(experiments().values())
    first = [next(iter(e.trials(scale)), None) for e in every for scale in (e.full, e.quick)]
    trials = [trial for trial in first if trial is not None][:TRIALS]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), "freeze")
        outcome = Outcome(measures={"accuracy": 0.5}, seconds=1.0, machine="some")
        store.add(trials[0], outcome)
        schema = pq.read_schema(next(Path(folder).glob("*.parquet")))
    return {"keys": {f"{t.experiment} {t.variant} {t.seed} {i}": t.key() for i, t in enumerate(trials)}, "schema": str(schema)}


def record_commands() -> dict[str, str]:
    """Return what commands print as JSON."""
    found = {}
    for command in COMMANDS:
        done = subprocess.run([sys.executable, "-m", "everypool.cli", *command], capture_output=True, text=True, check=True)
        found[" ".join(command)] = json.dumps(json.loads(done.stdout), sort_keys=True)
    return found


def record_tests() -> dict[str, int]:
    """Return the number of tests."""
    call = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    return {"collected": sum("::" in line for line in done.stdout.splitlines())}


def list_parts() -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Yield the name of each part, the arguments that record it alone, and its environment."""
    for name, (implementation, environment) in IMPLEMENTATIONS.items():
        yield name, ["bits", implementation], environment
    for name in PARTS:
        yield name, ["part", name], {}


def record_all() -> dict[str, Any]:
    """Record every part in a process of its own."""
    found = {}
    for name, arguments, environment in list_parts():
        path = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])
        variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
        call = [sys.executable, __file__, *arguments]
        done = subprocess.run(call, env=variables, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout)
        print(f"{name}: {count(found[name])}", flush=True)
    return found


def count(part: Any) -> int:
    """Return the number of values in a part."""
    return sum(map(count, part.values())) if isinstance(part, dict) else 1


def flatten(part: Any, path: str = "") -> dict[str, Any]:
    """Return the values of a part by their paths."""
    if not isinstance(part, dict):
        return {path: part}
    found: dict[str, Any] = {}
    for key, value in part.items():
        found |= flatten(value, f"{path} / {key}" if path else key)
    return found


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print what differs; return the number of differences."""
    differences = 0
    for name in before:
        old, new = flatten(before[name]), flatten(after.get(name, {}))
        changed = [key for key in old if key in new and old[key] != new[key]]
        gone, added = [key for key in old if key not in new], [key for key in new if key not in old]
        differences += len(changed) + len(gone) + len(added)
        print(f"{name}: {len(old)} recorded, {len(changed)} changed, {len(gone)} gone, {len(added)} added")
        for kind, keys in (("changed", changed), ("gone", gone), ("added", added)):
            for key in keys[:SHOWN]:
                print(f"  {kind}: {key}")
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare", "bits", "part"))
    parser.add_argument("item", help="a file; for `bits` an implementation, for `part` one of " + ", ".join(PARTS))
    arguments = parser.parse_args()
    if arguments.what in ("bits", "part"):
        warnings.simplefilter("ignore")
        part = record_bits(arguments.item) if arguments.what == "bits" else globals()[f"record_{arguments.item}"]()
        json.dump(part, sys.stdout)
        return 0
    path = Path(arguments.item)
    if arguments.what == "record":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record_all(), indent=1) + "\n", encoding="utf-8")
        return 0
    return min(compare(json.loads(path.read_text(encoding="utf-8")), record_all()), 1)


if __name__ == "__main__":
    sys.exit(main())
