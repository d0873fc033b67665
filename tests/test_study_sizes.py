"""Samples of different sizes: batches against each sample alone, sizes against real outputs, and no test data in training."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import everypool
from everypool.study.data import brain
from everypool.study.experiments import frames, patches, volumes
from everypool.study.ragged import PlaceNorm, Ragged, RaggedNet, cropped, drawn, padded, resized, steadiness, windows_of
from everypool.study.trial import Context, Trial

CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
SIDES = [(7, 12, 9), (13, 7, 8), (10, 10, 10), (8, 9, 13)]


def absent(*names: str) -> None:
    """Skip the test where one of the packages is missing; they are not imported."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def samples(nd: int, channels: int = 3) -> list[Tensor]:
    return [torch.rand(channels, *sides[:nd]) for sides in SIDES]


@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize(
    "arguments", [{"stride": 2, "padding": 1}, {"stride": 3}, {"padding": 2, "dilation": 2}], ids=lambda a: ",".join(a)
)
def test_valid_sizes_are_those_of_each_sample_alone(nd: int, arguments: dict[str, int]) -> None:
    layers = [CONVOLUTIONS[nd - 1](3, 1, 3, **arguments), everypool.create("max", nd=nd, kernel_size=3, **arguments)]
    layers += [everypool.create("avg", nd=nd, kernel_size=3, stride=2, ceil_mode=True)]
    _, sizes = padded(samples(nd))
    for layer in layers:
        alone = [list(layer(sample[None]).shape[2:]) for sample in samples(nd)]
        assert windows_of(layer).valid_sizes(sizes).tolist() == alone


def test_a_padded_batch_is_zero_behind_each_sample() -> None:
    batch, sizes = padded([torch.ones(2, 1, 3), torch.ones(2, 2, 2)], stretch=2)
    assert batch.shape == (2, 2, 4, 6)
    assert sizes.tolist() == [[1, 3], [2, 2]]
    assert batch.sum().item() == 2 * 3 + 2 * 4
    assert batch[0, :, :1, :3].all()
    assert batch[1, :, :2, :2].all()
    again, _ = Ragged([torch.zeros(2, 5, 5), torch.ones(2, 2, 2), torch.ones(2, 1, 3)])(torch.tensor([2, 1]))
    assert torch.equal(again, padded([torch.ones(2, 1, 3), torch.ones(2, 2, 2)])[0])


def test_place_norm_is_numpys_at_every_place() -> None:
    x = torch.rand(2, 5, 3, 4, dtype=torch.float64)
    norm = PlaceNorm(5).to(torch.float64)
    values = x.numpy()
    expected = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(x).detach(), expected, atol=1e-12)


@pytest.mark.parametrize("inside", ["stride", "max", "avg", "soft", "center"])
@pytest.mark.parametrize("nd", [1, 2, 3])
def test_a_sample_in_a_batch_counts_as_alone(nd: int, inside: str) -> None:
    net = RaggedNet((3, 4, 5), 6, nd=nd, levels=(1, 2), reducer="avg", inside=inside).to(torch.float64)
    given = [sample.to(torch.float64) for sample in samples(nd)]
    batch, sizes = padded(given, stretch=2)
    together = net(batch, sizes)
    together.square().sum().backward()
    slopes = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    alone = torch.cat([net(*padded([sample])) for sample in given])
    alone.square().sum().backward()
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(slopes, [p.grad for p in net.parameters()])
    net.masked = False
    assert (net(batch, sizes) - alone).abs().max() > 1e-3


def test_alone_means_the_one_path_without_sizes() -> None:
    net = RaggedNet((3, 4), 2, nd=2, levels=(1,), reducer="avg")
    x = torch.rand(1, 3, 6, 8)
    expected = net.head(torch.relu(net.norms[0](net.convolutions[0](x))))
    assert torch.equal(net(x, torch.tensor([[6, 8]])), expected)


def test_resized_and_cropped_by_hand() -> None:
    assert resized(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), [2]).tolist() == [[0.5, 2.5]]
    image = torch.arange(16.0).reshape(1, 4, 4)
    assert cropped(image, [2, 2]).tolist() == [[[5, 6], [9, 10]]]
    assert cropped(image, [6, 1])[0, :, 0].tolist() == [0, 1, 5, 9, 13, 0]
    scale = resized(image, [2, 2])  # smoothed before it shrinks: the edges weigh more than a plain sample's four pixels
    assert scale.mean().item() == pytest.approx(7.5)
    assert scale[0, 0, 0] > 2.5
    assert resized(torch.ones(2, 3, 4, 5), [6, 2, 5]).shape == (2, 6, 2, 5)


def test_boxes_drawn_have_every_side_and_reach_both_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    space = torch.arange(6.0 * 7).reshape(1, 6, 7)
    boxes = [drawn(space, (2, 4), generator) for _ in range(200)]
    assert {b.shape[1] for b in boxes} == {b.shape[2] for b in boxes} == {2, 3, 4}
    assert {int(b.min()) for b in boxes} >= {0, 7 * 4 + 5}
    assert max(int(b.max()) for b in boxes) == 41


class Fullness(nn.Module):
    """Says 1 of a sample that is padded."""

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        share = sizes.prod(1) / x[0, 0].numel()
        return torch.stack([share, 1.5 * (1 - share)], 1)


def test_steadiness_counts_those_that_change() -> None:
    given = [torch.ones(1, 4), torch.ones(1, 3), torch.ones(1, 1), torch.ones(1, 2)]
    assert steadiness(Fullness(), given) == 50.0  # shares 1, 3/4, 1/4, 1/2 in the batch: the last two change


def test_halves_of_photographs_share_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.arange(3 * 100 * 201.0).reshape(3, 100, 201)
    monkeypatch.setattr(patches.photos, "load", lambda name: pixels)
    train, test = patches.halves(torch.Generator().manual_seed(1))
    for mine, yours in zip(train, test, strict=True):
        assert not set(mine.flatten().tolist()) & set(yours.flatten().tolist())
        assert mine.shape[2] + yours.shape[2] == 201
    firsts = {float(half.min()) for half in train}
    assert len(firsts) == 2  # some train on the left and some on the right
    some, labels = patches.patches(train, 3, (96, 96), torch.Generator())
    assert labels.tolist() == sorted(labels.tolist())
    assert len(some) == 3 * len(patches.NAMES)


def test_blocks_of_the_scan_share_no_cell_nor_its_mirror_image(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = torch.arange(98 * 116 * 94).reshape(1, 98, 116, 94)
    cells = torch.minimum(cells, cells.flip(1)).expand(3, -1, -1, -1)  # mirror images have one number
    monkeypatch.setattr(volumes.brain, "load", lambda: cells)
    train, test = volumes.blocks(torch.Generator().manual_seed(0))
    assert len(train) == 4
    assert len(test) == 2
    ours = set(torch.cat([block.flatten() for block in train]).tolist())
    theirs = set(torch.cat([block.flatten() for block in test]).tolist())
    assert not ours & theirs
    assert min(side for block in (*train, *test) for side in block.shape[1:]) >= max(volumes.SIZES[20])


def test_the_class_of_a_box_is_the_tissue_that_fills_more() -> None:
    upward, across = torch.meshgrid(torch.arange(30.0), torch.arange(30.0), indexing="ij")
    one, none, little = torch.ones(30, 30), torch.zeros(30, 30), torch.full((30, 30), 0.3)
    # grey where the scan grows along one axis, white where it grows along the other; a third block is left out as empty
    planes = [(upward, one, none), (across, none, one), (upward + across, little, little)]
    sources = [torch.stack(plane) for plane in planes]
    boxes, labels = volumes.crops(sources, 10, (5, 9), torch.Generator().manual_seed(0))
    assert labels.tolist() == [0] * 10 + [1] * 10
    for box, label in zip(boxes, labels.tolist(), strict=True):
        assert box.mean().abs() < 1e-5
        assert box.std().item() == pytest.approx(1, rel=1e-4)
        assert box.diff(dim=2 - label).abs().max() < 1e-5


def test_the_template_has_two_equal_halves() -> None:
    absent("nilearn", "nibabel")
    maps = brain.load()
    assert maps.shape == (3, 98, 116, 94)
    assert maps.min() == 0
    assert 0.9 < maps.max() <= 1
    for whole in maps[:, 13:85]:  # 197 cells of 1 mm cannot be halved: the halves are alike but for half a cell of 2 mm
        assert torch.corrcoef(torch.stack([whole.flatten(), whole.flip(0).flatten()]))[0, 1] > 0.9
    assert (maps[1:].sum(0) <= 1.02).all()


def test_every_block_gives_boxes_of_every_size_and_class() -> None:
    absent("nilearn", "nibabel")
    train, test = volumes.blocks(torch.Generator())
    for block in (*train, *test):
        for sides in volumes.SIZES.values():
            generator = torch.Generator().manual_seed(0)
            boxes = [drawn(block, sides, generator)[1:].mean((1, 2, 3)) for _ in range(100)]
            kept = [float(white - grey) for grey, white in boxes if grey + white >= volumes.FILLED]
            assert min(kept) < 0 < max(kept)


def test_clips_grow_one_after_the_other() -> None:
    made = frames.clips(torch.stack([torch.zeros(1, 28, 28), torch.ones(1, 28, 28)]))
    assert [m.shape[1] for m in made] == 2 * list(frames.GROWING)
    assert [round(m.mean().item()) for m in made] == [0] * 11 + [1] * 11
    parts = [*frames.SEEN, *(side for sides in frames.RANGES.values() for side in sides)]
    assert sorted(parts) == list(frames.GROWING)


@pytest.mark.parametrize(
    ("experiment", "variant", "settings"),
    [
        (patches.EXPERIMENT, "naive avg", (("epochs", 1), ("patches", 4))),
        (patches.EXPERIMENT, "resize", (("epochs", 1), ("patches", 4))),
        (volumes.EXPERIMENT, "adaptive", (("epochs", 1),)),
        (frames.EXPERIMENT, "fixed", (("epochs", 1),)),
    ],
    ids=lambda value: getattr(value, "name", value if isinstance(value, str) else ""),
)
def test_trials_take_what_they_say(experiment: patches.Experiment, variant: str, settings: tuple[tuple[str, int], ...]) -> None:
    absent(*experiment.needs)
    torch.manual_seed(0)
    results = experiment.run(Trial(experiment.name, variant, 0, settings), Context())
    assert set(results) == set(experiment.measures)
    assert all(0 <= results[name] <= 100 for name, measure in experiment.measures.items() if measure.unit == "%")
    assert (results["alone"] == 100) == (variant != "naive avg")


@pytest.mark.parametrize("module", [patches, volumes, frames], ids=lambda module: module.EXPERIMENT.name)
def test_variants_are_those_that_are_built(module: type[patches]) -> None:  # type: ignore[valid-type]
    assert list(module.VARIANTS) == list(module.EXPERIMENT.variants)  # type: ignore[attr-defined]
    widths = {module.build(variant).convolutions[0].weight.shape for variant in module.VARIANTS}  # type: ignore[attr-defined]
    assert len(widths) == 1
