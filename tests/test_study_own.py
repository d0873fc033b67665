"""The user's own data and network: files as they come, broken ones too, models, and poolings put into them."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import textwrap
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from everypool.study.data.own import load
from everypool.study.data.own.arrays import arranged
from everypool.study.experiments import own
from everypool.study.models import build_model, model_hash
from everypool.study.trial import Trial, run
from everypool.surgery import find

DRAWN = np.random.default_rng(0)
TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def picture(path: Path, value: int, size: tuple[int, int] = (12, 10), mode: str = "L", **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "I;16") else (value, 0, 255)).save(path, **options)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for kind, value in (("cat", 51), ("dog", 204)):
        for number in range(3):
            picture(root / kind / "deep" / f"{number}.png", value)
    return root


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    path = tmp_path / "a.npz"
    np.savez(path, x=DRAWN.integers(0, 256, (20, 9, 8), dtype=np.uint8), y=np.arange(20) % 2)
    return path


# folders


def test_a_folder_of_class_folders(photos: Path) -> None:
    got = load(photos)
    assert got.inputs.shape == (6, 1, 10, 10)
    assert got.inputs.dtype == torch.float32
    assert got.classes == ("cat", "dog")
    assert got.labels.tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(got.inputs[:, 0, 5, 5], torch.tensor([0.2] * 3 + [0.8] * 3))
    assert (got.nd, got.skipped, got.source) == (2, (), str(photos))
    assert len(got.fingerprint) == 16
    assert load(photos, size=7).inputs.shape == (6, 1, 7, 7)


HIDDEN = [
    ".ipynb_checkpoints/0-checkpoint.png", "deep/.ipynb_checkpoints/0.png", ".git/objects/0.png", "deep/.cache/far/down/0.png",
    "__MACOSX/0.png", "deep/__MACOSX/._0.png", "._0.png", "deep/.0.png", ".thumbnails/.0.jpg",
]  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_hidden_is_no_sample(photos: Path, name: str) -> None:
    """At any depth of a class; not what lies beneath a hidden folder that the user names."""
    before = load(photos)
    for kind in ("cat", "dog"):
        picture(photos / kind / name, 120)
    if not name.startswith("deep"):  # which would be a class
        picture(photos / name, 120)
    got = load(photos)
    assert (got.labels.tolist(), got.skipped, got.fingerprint) == (before.labels.tolist(), (), before.fingerprint)
    assert torch.equal(got.inputs, before.inputs)
    secret = photos.rename(photos.parent / ".photos")
    assert torch.equal(load(secret).inputs, before.inputs)


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_file_by_several_names_counts_once(photos: Path, link: str) -> None:
    """So train and test never share one, whatever the seed."""
    for where in ("cat/again.png", "dog/of_a_cat.png"):
        getattr(photos / where, link)(photos / "cat" / "deep" / "0.png")
    got = load(photos)
    assert got.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert got.skipped == (
        ("cat/deep/0.png", "the same file as cat/again.png"),
        ("dog/of_a_cat.png", "the same file as cat/again.png"),
    )
    for seed in range(5):
        train, test = own.stratified(got.labels, torch.Generator().manual_seed(seed), got)
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(6))


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("known", [True, False])
def test_rows_of_hidden_files_are_no_samples(tmp_path: Path, name: str, known: bool) -> None:
    arrow, table = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    Image.new("L", (5, 5), 90).save(buffer, "PNG")
    names = ["a/0.png", f"a/{name}", "b/0.png", f"b/{name}" if known else "/home/me/.cache/b/1.png", "./b/2.png", None]
    rows = [{"bytes": buffer.getvalue(), "path": path} for path in names]
    table.write_table(arrow.table({"image": rows, "label": ["a", "a", "b", "b", "b", "a"]}), tmp_path / "t.parquet")
    got = load(tmp_path / "t.parquet")
    assert (got.labels.tolist(), got.skipped) == ([0, 1, 1, 0] if known else [0, 1, 1, 1, 0], ())


@pytest.mark.parametrize("column", ["values", "image"])
@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["b", "a", "b", "a"], ("a", "b"), [1, 0, 1, 0]),
        (["a", "a\0", "a", "a\0"], ("a", "a\0"), [0, 1, 0, 1]),
        ([b"a", b"a\0", b"a", b"a\0"], ("a", "a\0"), [0, 1, 0, 1]),
        ([2**63 + 1, 2**63 + 2, 2**63 + 1, 2**63 + 2], (str(2**63 + 1), str(2**63 + 2)), [0, 1, 0, 1]),
        ([10, 9, 10, 9], ("9", "10"), [1, 0, 1, 0]),
        ([True, False, True, False], ("False", "True"), [1, 0, 1, 0]),
        ([-1.0, 3.0, -1.0, 3.0], ("-1", "3"), [0, 1, 0, 1]),
    ],
    ids=["texts", "texts with a zero", "bytes with a zero", "large", "numbers", "truth", "whole floats"],
)
def test_labels_of_a_table(
    tmp_path: Path, column: str, labels: list[object], classes: tuple[str, ...], numbers: list[int]
) -> None:
    arrow, table = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    Image.new("L", (5, 5), 90).save(buffer, "PNG")
    cells = [[0.5, 1.0]] * 4 if column == "values" else [buffer.getvalue()] * 4
    column_of = arrow.array(labels, arrow.uint64() if labels[0] == 2**63 + 1 else None)
    for each in (column_of, column_of.dictionary_encode()):
        table.write_table(arrow.table({"label": each, column: cells}), tmp_path / "t.parquet")
        got = load(tmp_path / "t.parquet")
        assert (got.classes, got.labels.tolist()) == (classes, numbers)


def test_floats_that_are_no_labels(tmp_path: Path) -> None:
    arrow, table = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for wrong in (1e300, 2.0**60, float("nan"), float("inf"), 0.5):
        table.write_table(arrow.table({"label": [1.0, wrong], "values": [[0.5], [1.0]]}), tmp_path / "t.parquet")
        with pytest.raises(
            ValueError, match="`data` must be labelled by an integer or a string per sample, got labels that are"
        ):
            load(tmp_path / "t.parquet")


def test_one_coloured_image_makes_all_have_three_channels(photos: Path) -> None:
    picture(photos / "cat" / "red.jpg", 255, mode="RGB", quality=100)
    got = load(photos)
    assert got.inputs.shape[1] == 3
    red = got.inputs[(got.inputs[:, 0] != got.inputs[:, 2]).flatten(1).any(1) | (got.inputs[:, 1].amax((1, 2)) < 0.02)]
    assert len(red) == 1
    torch.testing.assert_close(red[0, :, 5, 5], torch.tensor([1.0, 0.0, 1.0]), atol=0.02, rtol=0)
    assert torch.equal(got.inputs[-1, 0], got.inputs[-1, 2])


def test_the_fingerprint_is_that_of_the_content(photos: Path, tmp_path: Path) -> None:
    before = load(photos).fingerprint
    moved = photos.rename(tmp_path / "elsewhere")
    assert load(moved).fingerprint == before
    picture(moved / "dog" / "deep" / "0.png", 205)
    changed = load(moved).fingerprint
    assert changed != before
    (moved / "dog" / "deep" / "0.png").rename(moved / "cat" / "deep" / "9.png")
    assert load(moved).fingerprint not in (before, changed)


def test_orientation_transparency_and_depth(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is left in the file is on top
    half = np.zeros((16, 16), np.uint8)
    half[:, :8] = 255
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        Image.fromarray(half).save(tmp_path / kind / "turned.png", exif=exif)
    clear = np.zeros((16, 16, 2), np.uint8)  # black, and nowhere opaque but in the middle
    clear[4:12, 4:12, 1] = 255
    Image.merge("LA", [Image.fromarray(clear[..., 0]), Image.fromarray(clear[..., 1])]).save(tmp_path / "b" / "v.png")
    Image.fromarray(np.full((16, 16), 2**15, np.uint16)).save(tmp_path / "b" / "w.png")
    got = load(tmp_path)
    assert got.skipped == ()
    assert got.inputs.shape == (4, 1, 16, 16)
    assert got.inputs[0, 0, :7].min() == 1
    assert got.inputs[0, 0, 9:].max() == 0
    assert got.inputs[2, 0, 0, 0] == 1
    assert got.inputs[2, 0, 8, 8] == 0
    torch.testing.assert_close(got.inputs[3], torch.full((1, 16, 16), 2**15 / (2**16 - 1)))


def test_the_middle_of_long_images_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((10, 50), np.uint8)
    wide[:, 20:30] = 255
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        Image.fromarray(wide).save(tmp_path / kind / "0.bmp")
        Image.fromarray(wide.T).save(tmp_path / kind / "1.tif")
    assert load(tmp_path).inputs.min() == 1


def bomb(side: int) -> bytes:
    """A PNG that claims to be of that size and has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    head = side.to_bytes(4) * 2 + b"\x08\x00\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_what_cannot_be_read_is_named_and_passed_over(photos: Path) -> None:
    good = io.BytesIO()
    Image.fromarray(DRAWN.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(good, "JPEG")
    broken = {
        "empty.png": b"",
        "text.png": b"hello",
        "truncated.jpg": good.getvalue()[:1500],
        "bomb.png": bomb(20_000),
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    }
    for name, content in broken.items():
        (photos / "dog" / name).write_bytes(content)
    os.mkfifo(photos / "dog" / "pipe.png")
    (photos / "dog" / "notes.txt").write_text("no image")
    got = load(photos)
    assert len(got.inputs) == 6
    assert sorted(name for name, _ in got.skipped) == sorted(f"dog/{name}" for name in [*broken, "pipe.png"])
    assert all(why for _, why in got.skipped)
    assert "DecompressionBomb" in dict(got.skipped)["dog/bomb.png"]


def folder_with(path: Path, *kinds: str) -> Path:
    path.mkdir()
    for kind in kinds:
        (path / kind).mkdir(parents=True)
    return path


def test_folders_that_are_no_data(tmp_path: Path, photos: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(ValueError, match=f"^`data` must be .*{match}") as caught:
            load(path)
        assert str(path) in str(caught.value)

    refused(folder_with(tmp_path / "none"), "two at least, got 0")
    refused(folder_with(tmp_path / "one", "a"), "two at least, got 1")
    refused(folder_with(tmp_path / "empty", "a", "b"), "no image in 'a'")
    refused(folder_with(tmp_path / "parts", "train", "test"), "is it one of these")
    for number in range(3):
        (photos / "cat" / "deep" / f"{number}.png").write_bytes(b"x")
    refused(photos, "no readable image in 'cat'")


# arrays


def test_layouts_by_shape() -> None:
    def shape(*extents: int, dtype: str = "float32", layout: str | None = None, nd: int | None = None) -> tuple[int, ...]:
        return tuple(arranged(np.zeros(extents, dtype), layout, nd, "there").shape)

    assert shape(5, 24) == (5, 1, 24)
    assert shape(5, 3, 24) == (5, 3, 24)
    assert shape(5, 20, 24, dtype="uint8") == (5, 1, 20, 24)
    assert shape(5, 24, 24) == (5, 1, 24, 24)
    assert shape(5, 24, 24, nd=1) == (5, 24, 24)
    assert shape(5, 20, 24, nd=2) == (5, 1, 20, 24)
    assert shape(5, 24, 3, layout="NLC") == (5, 3, 24)
    assert shape(5, 8, 9, 3) == (5, 3, 8, 9)
    assert shape(5, 3, 8, 9) == (5, 3, 8, 9)
    assert shape(5, 12, 8, 9) == (5, 12, 8, 9)
    assert shape(5, 8, 8, 8) == (5, 1, 8, 8, 8)
    assert shape(5, 8, 8, 8, nd=2) == (5, 8, 8, 8)
    assert shape(5, 6, 7, 8, nd=3) == (5, 1, 6, 7, 8)
    assert shape(5, 2, 6, 7, 8) == (5, 2, 6, 7, 8)
    assert shape(5, 6, 7, 8, 1) == (5, 1, 6, 7, 8)
    values = DRAWN.random((5, 6, 7, 3))
    torch.testing.assert_close(arranged(values, "NHWC", None, "")[1, 2], torch.from_numpy(values[1, :, :, 2]).float())
    for extents, options in (((5,), {}), ((5, 1, 1, 1, 1, 1), {}), ((5, 4), {"layout": "NHW"}), ((5, 4), {"nd": 2})):
        with pytest.raises(ValueError, match=r"^`data` must be .* in 'there'"):
            shape(*extents, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^`layout` must be one of"):
        shape(5, 4, layout="LN")


@pytest.mark.parametrize(
    ("dtype", "largest"), [("uint8", 255), ("int16", 2**15 - 1), ("uint16", 2**16 - 1), ("int64", 40), ("bool", 1)]
)
def test_whole_numbers_are_scaled(dtype: str, largest: int) -> None:
    values = np.array([[0, 1], [20, 40]]).astype(dtype)
    torch.testing.assert_close(arranged(values, None, None, "")[:, 0], torch.from_numpy(values.astype("float32") / largest))


def test_npz_and_npy(arrays: Path, tmp_path: Path) -> None:
    got = load(arrays)
    with np.load(arrays) as file:
        x, y = file["x"], file["y"]
    torch.testing.assert_close(got.inputs[:, 0], torch.from_numpy(x / 255).float())
    assert got.labels.tolist() == y.tolist()
    np.savez_compressed(tmp_path / "parts.npz", x_train=x[:15], y_train=y[:15], x_test=x[15:], y_test=y[15:])
    assert torch.equal(load(tmp_path / "parts.npz").inputs, got.inputs)
    np.savez(tmp_path / "med.npz", train_images=x, train_labels=y[:, None])
    assert torch.equal(load(tmp_path / "med.npz").labels, got.labels)
    np.save(tmp_path / "b.npy", x.astype(">f8"))
    np.save(tmp_path / "b.labels.npy", np.where(y == 0, "left", "right"))
    named = load(tmp_path / "b.npy", nd=2)
    assert named.classes == ("left", "right")
    assert torch.equal(named.inputs[:, 0], torch.from_numpy(x).float())
    assert named.fingerprint != got.fingerprint


def test_labels_become_numbers_in_order(tmp_path: Path) -> None:
    x = np.zeros((4, 6), np.float32)
    np.savez(tmp_path / "a.npz", X=x, y=np.array([10.0, 9.0, 10.0, -1.0]))
    got = load(tmp_path / "a.npz")
    assert got.classes == ("-1", "9", "10")
    assert got.labels.tolist() == [2, 1, 2, 0]


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, ("trapped",)


X, Y = np.zeros((6, 8), np.float32), np.arange(6) % 2
NAN = X.copy()
NAN[4, 2] = np.nan
BAD_ARRAYS = {
    "nan": ({"x": NAN, "y": Y}, "finite.*sample 4"),
    "large": ({"x": X.astype(np.float64) + 1e300, "y": Y}, "finite"),
    "lengths": ({"x": X, "y": Y[:5]}, "one label per sample"),
    "one class": ({"x": X, "y": Y * 0}, "two classes"),
    "fractions": ({"x": X, "y": Y / 2}, "integer or a string"),
    "onehot": ({"x": X, "y": np.eye(6)}, "integer or a string"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "not empty"),
    "flat": ({"x": X[:, :0], "y": Y}, "not empty"),
    "complex": ({"x": X * 1j, "y": Y}, "numbers, got an array of type complex"),
    "text": ({"x": X.astype(str), "y": Y}, "numbers"),
    "scalar": ({"x": X[0, 0], "y": Y}, "one label per sample"),
    "keys": ({"a": X, "b": Y}, "x and y.*a, b"),
    "parts": ({"x_train": X, "y_train": Y, "x_test": X[:, :5], "y_test": Y}, "one shape"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_no_data(case: str, tmp_path: Path) -> None:
    content, match = BAD_ARRAYS[case]
    np.savez(tmp_path / "bad.npz", **content)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"(?s)^`data` must be .*{match}.*bad.npz"):
        load(tmp_path / "bad.npz")


def test_hostile_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrays: Path) -> None:
    monkeypatch.chdir(tmp_path)
    traps = np.array([Trap()] * 6, dtype=object)
    np.savez("objects.npz", x=X, y=traps, allow_pickle=True)
    np.save("o.npy", traps, allow_pickle=True)
    np.save("o.labels.npy", Y)
    Path("pickle.npz").write_bytes(pickle.dumps(Trap()))
    Path("zero.npz").write_bytes(b"")
    Path("cut.npz").write_bytes(arrays.read_bytes()[:-100])
    spoilt = bytearray(arrays.read_bytes())
    spoilt[400] ^= 255
    Path("spoilt.npz").write_bytes(spoilt)
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    header += b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 9), }".ljust(117) + b"\n"
    with zipfile.ZipFile("huge.npz", "w") as archive:
        archive.writestr("x.npy", header)
        archive.writestr("y.npy", header)
    Path("huge.npy").write_bytes(header)
    np.save("huge.labels.npy", Y)
    for name in ("objects.npz", "o.npy", "pickle.npz", "zero.npz", "cut.npz", "spoilt.npz", "huge.npz", "huge.npy"):
        with pytest.raises(ValueError, match=f"(?s)^`data` must be .*{name}"):
            load(name)
    assert not Path("trapped").exists()
    np.save("alone.npy", X)
    with pytest.raises(ValueError, match=r"alone.labels.npy"):
        load("alone.npy")


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    monkeypatch.chdir(tmp_path)
    got = load("digits")
    assert got.inputs.shape == (1797, 1, 10, 10)
    assert got.classes == tuple("0123456789")
    photos.rename("digits")
    assert load("digits").classes == ("cat", "dog")
    os.mkfifo("pipe.npz")
    Path("a.csv").write_text("1,2")
    for source in ("nothing", "none.npz", "pipe.npz", "a.csv"):
        with pytest.raises(ValueError, match=r"^`data` must be"):
            load(source)
    with pytest.raises(ValueError, match=r"^`size` must be"):
        load("mnist", size=3)


# tables


def test_parquet(photos: Path, tmp_path: Path, arrays: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    files = [*sorted(photos.rglob("*.png")), None]
    content = [b"no image" if file is None else file.read_bytes() for file in files]
    labels = ["cat"] * 3 + ["dog"] * 4
    truth = load(photos)
    for images in (content, [{"bytes": item, "path": None} for item in content]):
        parquet.write_table(arrow.table({"image": images, "label": labels}), tmp_path / "a.parquet")
        got = load(tmp_path / "a.parquet")
        assert torch.equal(got.inputs, truth.inputs)
        assert torch.equal(got.labels, truth.labels)
        assert got.classes == truth.classes
        assert [name for name, _ in got.skipped] == ["row 6"]
    with np.load(arrays) as file:
        x, y = file["x"], file["y"]
    parquet.write_table(arrow.table({"values": arrow.array(x.tolist(), arrow.list_(arrow.list_(arrow.uint8()))), "label": y}),
                        tmp_path / "b.parquet")  # fmt: skip
    assert torch.equal(load(tmp_path / "b.parquet").inputs, load(arrays).inputs)


def test_parquet_that_is_no_data(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "bad.parquet"
    tables = {
        "columns label and": {"a": [1]},
        "no label in row 1": {"values": [[1.0], [2.0]], "label": [1, None]},
        "one length": {"values": [[1.0], [2.0, 3.0]], "label": [0, 1]},
        "values in every row": {"values": [[1.0], None], "label": [0, 1]},
        "numbers": {"values": [["a"], ["b"]], "label": [0, 1]},
        "finite": {"values": [[1.0], [float("inf")]], "label": [0, 1]},
        "integer or a string": {"values": [[1.0], [2.0]], "label": [[0], [1, 2]]},
        "classes that have samples|not empty": {"image": [b"x", b"y"], "label": [0, 1]},
        "two classes": {"values": [[1.0], [2.0]], "label": ["a", "a"]},
    }
    for match, columns in tables.items():
        parquet.write_table(arrow.table(columns), path)
        with pytest.raises(ValueError, match=f"(?s)^`data` must be .*({match}).*bad.parquet"):
            load(path)
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-30], whole[:20] + bytes(40) + whole[60:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"(?s)^`data` must be .*bad.parquet"):
            load(path)


# models


@pytest.mark.parametrize(("nd", "size"), [(1, (24,)), (1, (1,)), (2, (10, 3)), (3, (6, 5, 4))])
def test_the_small_network(nd: int, size: tuple[int, ...]) -> None:
    model = build_model("small", classes=3, channels=2, nd=nd, size=size)
    output = model(torch.rand(4, 2, *size))
    assert output.shape == (4, 3)
    found = find(model, torch.rand(2, 2, *size))
    assert [p.place for p in found][-1] == "head"
    if min(size) >= 4:
        assert [p.place for p in found] == ["stem", "stage", "head"]


def user_file(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(textwrap.dedent(text))
    return f"{folder / 'mine.py'}:build"


SIZED = {"classes": 3, "channels": 1, "nd": 2, "size": (8, 8)}


def test_a_file_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WIDTH = 5\n")
    spec = user_file(
        tmp_path,
        """
        from torch import nn
        import beside

        def build(num_classes, in_channels=1, *, width=beside.WIDTH):
            import beside
            layers = nn.Conv2d(in_channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
            return nn.Sequential(*layers)

        class Net(nn.Module):
            def __init__(self, input_size, **rest):
                super().__init__()
                self.line = nn.Linear(input_size[0] * input_size[1], rest["num_classes"])

            def forward(self, x):
                return self.line(x.flatten(1))
        """,
    )
    assert build_model(spec, **SIZED)[0].weight.shape == (5, 1, 3, 3)  # type: ignore[arg-type]
    assert build_model(spec.replace("build", "Net"), **SIZED).line.in_features == 64  # type: ignore[arg-type]
    before = model_hash(spec)
    spec = user_file(tmp_path, "from torch import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n")
    assert model_hash(spec) != before
    assert len(build_model(spec, **SIZED)) == 2  # type: ignore[arg-type]


def test_a_module_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets_of_mine").mkdir()
    Path("nets_of_mine", "__init__.py").write_text("")
    Path("nets_of_mine", "one.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))"
    )
    assert len(build_model("nets_of_mine.one:build", **SIZED)) == 2  # type: ignore[arg-type]
    for spec in ("nets_of_mine.two:build", "nets_of_yours:build", "missing.py:build", "nothing", "a:b c", ":build", "x.py:"):
        with pytest.raises(ValueError, match=r"^`model` must be"):
            build_model(spec, **SIZED)  # type: ignore[arg-type]


BAD_MODELS = {
    "def other(): pass": (ValueError, "`model` must be a function that is in .*other"),
    "def build(width): pass": (ValueError, "`model` must be a function that needs no other arguments.*width"),
    "def build(num_classes, /): pass": (ValueError, "`model` must be a function that needs no other"),
    "def build(): return 3": (TypeError, "`model` must be a function that returns a torch.nn.Module, got int"),
    "from torch import nn\ndef build(): return nn.Flatten()": (ValueError, r"`model` must be a network that gives \(N, 3\)"),
    "from torch import nn\ndef build(): return nn.Conv2d(7, 3, 3)": (RuntimeError, "does not run on samples of shape"),
    "def build(): raise KeyError('here')": (RuntimeError, "KeyError: 'here'"),
    "import nowhere_at_all": (RuntimeError, "ModuleNotFoundError"),
    "def build(:": (RuntimeError, "SyntaxError"),
    "import sys; sys.exit(3)": (RuntimeError, "SystemExit: 3"),
}


@pytest.mark.parametrize("text", BAD_MODELS)
def test_files_that_give_no_model(text: str, tmp_path: Path) -> None:
    kind, match = BAD_MODELS[text]
    with pytest.raises(kind, match=match) as caught:
        build_model(user_file(tmp_path, text), **SIZED)  # type: ignore[arg-type]
    if kind is RuntimeError:
        assert caught.value.__cause__ is not None
        assert not isinstance(caught.value, ValueError)


# the experiment


def test_splits_have_every_class_on_both_sides() -> None:
    labels = torch.tensor([0] * 10 + [1] * 2 + [2] * 31)
    samples = everypool_samples(labels)
    train, test = own.stratified(labels, torch.Generator().manual_seed(1), samples)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(43))
    assert torch.bincount(labels[test]).tolist() == [2, 1, 6]
    again = own.stratified(labels, torch.Generator().manual_seed(1), samples)
    assert torch.equal(again[0], train)
    with pytest.raises(ValueError, match=r"^`data` must be of two samples of every class, got 1 of '1'"):
        own.stratified(torch.tensor([0, 0, 1]), torch.Generator(), everypool_samples(torch.tensor([0, 0, 1])))


def everypool_samples(labels: Tensor) -> own.Samples:
    names = tuple(str(number) for number in range(int(labels.max()) + 1))
    return own.Samples(torch.rand(len(labels), 1, 8), labels, names, (), "", 1, "here")


def test_small_parts_of_the_experiment() -> None:
    assert own.batch_size(65, 64) == 63
    assert own.batch_size(64, 64) == 64
    assert own.batch_size(3, 2) == 3
    inputs = torch.rand(9, 2, 5, 4) * torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1) + 3
    train = torch.arange(6)
    got = own.standardised(inputs, train).numpy()
    truth = inputs[:, 0].numpy()
    np.testing.assert_allclose(got[:, 0], (truth - truth[:6].mean()) / truth[:6].std(), rtol=1e-4, atol=1e-4)
    assert (got[:, 1] == 0).all()
    assert len(own.moved(inputs, 1)) == 4
    assert own.moved(inputs, 4) == []
    volume = torch.rand(1, 1, 4, 4, 4)
    torch.testing.assert_close(own.moved(volume, 1)[4][..., 1:], volume[..., :-1])

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(x[:, 0, 0].long(), 3).float()

    answers, labels = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 0])
    truth_share = balanced_accuracy_score(labels, answers)
    assert own.balanced(Fixed(), answers.float().reshape(-1, 1, 1), labels) == pytest.approx(100 * truth_share)


def test_a_trial_on_own_data_and_model(tmp_path: Path) -> None:
    x = DRAWN.random((40, 2, 24), dtype=np.float32)
    y = np.arange(40) % 2
    x[y == 1] += np.sin(np.arange(24, dtype=np.float32))
    np.savez(tmp_path / "series.npz", x=x, y=y)
    spec = user_file(
        tmp_path,
        """
        from torch import nn

        def build(num_classes, in_channels):
            trunk = nn.Conv1d(in_channels, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(1)
            return nn.Sequential(*trunk, nn.Flatten(), nn.Linear(4, num_classes))
        """,
    )
    settings, samples = own.prepared(tmp_path / "series.npz", model=spec, epochs=2, batch=8)
    assert settings["where"] == "stem,head"
    assert samples.nd == 1
    record = own.described(settings, samples, seeds=3)
    assert record.measures["accuracy"].step == 12.5
    assert record.nd == 1
    trials = [Trial("own", pool, 1, tuple(sorted(settings.items()))) for pool in ("soft", own.ORIGINAL)]
    outcomes = [run(trial) for trial in trials]
    assert run(trials[0]).measures == pytest.approx(outcomes[0].measures, abs=0, nan_ok=True)
    for outcome in outcomes:
        assert np.isnan(outcome.measures["rotation 10"])
        assert not np.isnan(outcome.measures["shift 4"])
        assert outcome.measures["parameters"] == 2 * 3 * 4 + 4 + 4 * 2 + 2
        assert outcome.measures["multiply-adds"] == 22 * 3 * 2 * 4 + 4 * 2
    model, inputs, labels = own.sample(trials[0])
    assert model(inputs).shape == (len(labels), 2)
    np.savez(tmp_path / "series.npz", x=x, y=1 - y)
    own.loaded.cache_clear()
    with pytest.raises(ValueError, match=r"^`data` must be what they were when the trial was planned"):
        run(trials[0])
    np.savez(tmp_path / "series.npz", x=x, y=y)
    user_file(tmp_path, (tmp_path / "mine.py").read_text() + "\n")
    with pytest.raises(ValueError, match=r"^`(data|model)` must be what (they were|it was) when"):
        run(trials[0])


@pytest.mark.parametrize(
    ("options", "match"),
    [({"where": "stage2"}, "`where`"), ({"model": "large"}, "`model`"), ({"batch": 1}, "`batch`"), ({"epochs": 0}, "`epochs`"),
     ({"rate": 0.0}, "`rate`"), ({"nd": 2}, "`data`")],
)  # fmt: skip
def test_settings_are_refused_before_anything_is_trained(options: dict[str, object], match: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=DRAWN.random((8, 16), dtype=np.float32), y=np.arange(8) % 2)
    with pytest.raises(ValueError, match=f"^{match} must be"):
        own.prepared(tmp_path / "a.npz", **options)  # type: ignore[arg-type]
