"""`everypool list` and `everypool show` as processes, and what their pictures say against the operations themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import everypool
from everypool.cli import main
from everypool.study.picture import gallery
from everypool.study.picture.folds import zoom
from everypool.study.picture.formula import typeset
from everypool.study.picture.modules import association, patches, recalled
from everypool.study.picture.photo import open_photo
from everypool.study.picture.scene import gradient, plain

PHOTO = open_photo().cells()


def command(*arguments: str, folder: Path, columns: int = 80) -> subprocess.CompletedProcess[str]:
    source = str(Path(__file__).resolve().parent.parent / "src")
    environment = {**os.environ, "PYTHONPATH": source, "COLUMNS": str(columns), "PYTHONIOENCODING": "utf-8"}
    call = [sys.executable, "-m", "everypool.cli", *arguments]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line that names the argument, and exit code 2."""
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    for word in words:
        assert word in done.stderr


# --- list


def test_list_names_every_operation_within_80_columns(tmp_path: Path):
    done = command("list", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    first_words = {line.split()[0] for line in lines if line and not line.startswith(" ")}
    assert set(everypool.operations()) <= first_words
    assert "y[h, w] = max(x[h:, w])" in done.stdout  # brackets are not markup


def test_list_as_json_has_every_name_that_can_be_imported(tmp_path: Path):
    records = json.loads(command("list", "--json", folder=tmp_path).stdout)
    assert [r["name"] for r in records] != []
    assert {r["name"] for r in records} == set(everypool.operations())
    for one in records:
        assert all(hasattr(everypool, name) for name in one["names"]), one["name"]
    narrowed = json.loads(command("list", "--json", "--kind", "windows", "--nd", "3", folder=tmp_path).stdout)
    assert "corner" not in {r["name"] for r in narrowed}  # two axes only
    assert {r["kind"] for r in narrowed} == {"windows"}


def test_list_refuses(tmp_path: Path):
    refused(command("list", "--kind", "reducers", folder=tmp_path), "--kind", "reducer")
    refused(command("list", "--nd", "4", folder=tmp_path), "--nd")


# --- show


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        size: tuple[int, int] = picture.size
        return size


NAMES = [(op, name) for op in everypool.operations().values() for name in (op.name, *op.aliases)]
OWN = set(gallery.drawable())


@pytest.mark.parametrize(("operation", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_name_is_drawn_as_itself_or_not_at_all(operation: everypool.Operation, name: str):
    """Never as another operation: the record's own words are on the page."""
    if operation.name not in OWN:
        with pytest.raises(ValueError, match=rf"^`OP` must be an operation with a picture of its own, got '{name}', which"):
            gallery.scene_of(name, PHOTO)
        return
    scene = gallery.scene_of(name, PHOTO)
    assert (scene.formula, scene.summary, scene.source) == (operation.formula, operation.summary, operation.source)
    assert len(scene.main) == 3
    for canvas in (*scene.main, *scene.detail):
        assert canvas.layers
        for layer in canvas.layers:
            assert np.isfinite(layer.values).all()
            assert layer.place[2] <= canvas.size[0] + 1e-9
            assert layer.place[3] <= canvas.size[1] + 1e-9
    typeset(scene.formula)


def test_what_is_named_in_place_of_a_module_has_a_picture():
    assert len(OWN) == 25
    assert set(everypool.operations()) - OWN == set(gallery.INSIDE)
    assert set(gallery.INSIDE.values()) <= OWN


def test_pictures_of_modules_are_what_the_modules_give():
    """With the convolutions as they would be to pass everything on."""
    scene = gallery.scene_of("yolo_spp", PHOTO)
    for layer, k in zip(scene.main[1].layers, (1, 5, 9, 13), strict=True):
        np.testing.assert_array_equal(layer.values, plain(F.max_pool2d(PHOTO, k, 1, k // 2)))
    scene = gallery.scene_of("pyramid_pooling_module", PHOTO)
    for layer, n in zip(scene.main[1].layers, (1, 2, 3, 6), strict=True):
        grid = F.interpolate(F.adaptive_avg_pool2d(PHOTO, n), PHOTO.shape[2:], mode="bilinear", align_corners=True)
        np.testing.assert_allclose(layer.values, plain(grid), rtol=1e-5)
    scene = gallery.scene_of("lenet_subsampling", PHOTO)
    expected = 1.7159 * torch.tanh(2 / 3 * (0.05 * 4 * F.avg_pool2d(PHOTO, 2) - 1))
    np.testing.assert_allclose(scene.main[1].layers[0].values, plain(expected), rtol=1e-4, atol=1e-6)


def test_show_writes_a_slide(tmp_path: Path):
    done = command("show", "soft", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "soft.png\n", "")
    assert size_of(tmp_path / "soft.png") == (1920, 1080)
    assert [path.name for path in tmp_path.iterdir()] == ["soft.png"]


def test_show_all_and_an_own_photo(tmp_path: Path):
    shades = np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8)
    Image.fromarray(shades).save(tmp_path / "mine.png")
    done = command("show", "--all", "--image", "mine.png", "-o", "sheet.svg", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "sheet.svg\n", "")
    assert (tmp_path / "sheet.svg").read_text().lstrip().startswith("<?xml")
    done = command("show", "gem:p=10", "--image", "mine.png", "--kernel", "3", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "gem-p-10.png\n")
    assert size_of(tmp_path / "gem-p-10.png") == (1920, 1080)


REFUSED = [
    (["show", "max", "--all"], ["OP"]),
    (["show", "sofft"], ["did you mean 'soft'?"]),
    (["show", "gem:q=3"], ["gem"]),
    (["show", "corner_module"], ["`OP` must be", "everypool show corner` draws"]),
    (["show", "global_average_head"], ["which has none"]),
    (["show", "strip:p=3"], ["OP", "reducer"]),
    (["show", "max", "--kernel", "0"], ["--kernel"]),
    (["show", "max", "--kernel", "1000"], ["kernel", "at most"]),
    (["show", "max", "--image", "nowhere.png"], ["image", "nowhere.png"]),
    (["show", "max", "--image", "words.png"], ["image", "words.png"]),
    (["show", "max", "--image", "empty.png"], ["image"]),
    (["show", "max", "--image", "."], ["image"]),
    (["show", "max", "-o", "max.jpeg"], ["output", ".png"]),
    (["show", "max", "-o", "none/max.png"], ["output", "folder"]),
]


def test_show_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    refused(command("show", folder=tmp_path), "OP")
    (tmp_path / "words.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    monkeypatch.chdir(tmp_path)
    for arguments, words in REFUSED:  # in this process: each of its own takes seconds
        with pytest.raises(SystemExit) as end:
            main(arguments)
        out, err = capsys.readouterr()
        refused(subprocess.CompletedProcess(arguments, end.value.code, out, err), *words)  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {"words.png", "empty.png"}


# --- what the pictures say


def test_the_numbers_of_a_zoom_are_those_of_torch():
    near = zoom(lambda t: everypool.max_pool(t, 2), PHOTO, 2)
    side = near.input.shape[0]
    crop = PHOTO[..., near.top : near.top + side, near.left : near.left + side].clone().requires_grad_()
    pooled = F.max_pool2d(crop, 2)
    pooled.sum().backward()
    np.testing.assert_array_equal(near.input, plain(crop))
    np.testing.assert_array_equal(near.output, plain(pooled))
    grad: Any = crop.grad
    np.testing.assert_array_equal(near.gradient, plain(grad))


def test_gradient_is_that_of_the_sum():
    x = torch.rand(1, 1, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(gradient(lambda t: F.avg_pool2d(t, 2), x), torch.full_like(x, 0.25))
    assert not gradient(lambda t: torch.ones(3), x).any()  # what does not depend on the photo


def test_retrieval_is_softmax_attention():
    stored = patches(PHOTO)
    state = stored[5].clone()
    state[8:] = 0
    flat = stored.flatten(1)
    share = torch.softmax(4.0 * flat @ state.flatten(), 0)
    np.testing.assert_allclose(association(stored, state, 4.0), share, rtol=1e-9)
    torch.testing.assert_close(recalled(stored, state, 4.0).flatten(), share @ flat)


def test_formulas_are_set_as_mathematics():
    assert typeset("y = (mean(x^p))^(1/p)") == r"$y\ =\ (\mathrm{mean}(x^{p}))^{1/p}$"
    assert typeset("q <- xi k") == r"$q\ \leftarrow\ \xi\ k$"


def test_commands_run_again_in_one_process(capsys: pytest.CaptureFixture[str]):
    """Once imported, the module `everypool.cli.list` must not take the place of Python's `list`."""
    for _ in range(2):
        with pytest.raises(SystemExit) as left:
            main(["list", "--json"])
        assert left.value.code == 0
        assert json.loads(capsys.readouterr().out)
