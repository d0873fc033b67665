"""PANet's heads: the published state dicts, loops over levels and boxes, derivatives, ties, boxes that are not there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from everypool import PANetBoxHead, PANetConvBoxHead, PANetMaskHead

SCALES = (0.25, 0.125)
BOXES = torch.tensor([[0, 3.0, 2.0, 30.0, 40.0], [1, 8.0, 9.0, 20.0, 15.0], [1, -6.0, 0.0, 60.0, 47.0]], dtype=torch.float64)


def maps(channels: int = 3) -> list[Tensor]:
    return [torch.randn(2, channels, 16, 12, dtype=torch.float64), torch.randn(2, channels, 8, 6, dtype=torch.float64)]


def aligned(x: np.ndarray, box: np.ndarray, bins: int, scale: float) -> np.ndarray:
    """The published RoIAlign with 2 x 2 samples, bin after bin."""
    x1, y1, x2, y2 = box[1:] * scale
    high, wide = max(y2 - y1, 1.0) / bins, max(x2 - x1, 1.0) / bins
    plane = x[int(box[0])]
    out = np.zeros((plane.shape[0], bins, bins))
    for i, j, a, b in np.ndindex(bins, bins, 2, 2):
        y, z = y1 + (i + (a + 0.5) / 2) * high, x1 + (j + (b + 0.5) / 2) * wide
        if y < -1 or z < -1 or y > plane.shape[1] or z > plane.shape[2]:
            continue
        y, z = min(max(y, 0), plane.shape[1] - 1), min(max(z, 0), plane.shape[2] - 1)
        top, left = int(y), int(z)
        low, right = min(top + 1, plane.shape[1] - 1), min(left + 1, plane.shape[2] - 1)
        dy, dz = y - top, z - left
        first = plane[:, top, left] * (1 - dz) + plane[:, top, right] * dz
        second = plane[:, low, left] * (1 - dz) + plane[:, low, right] * dz
        out[:, i, j] += (first * (1 - dy) + second * dy) / 4
    return out


def test_box_head_against_loops() -> None:
    """relu(gn(W2 max over levels of relu(gn(W1_l x_l)))), nothing shared with the package."""
    head = PANetBoxHead(3, 64, 2, SCALES).double()
    inputs, s = maps(), head.state_dict()
    for r, box in enumerate(BOXES):
        levels = []
        for i, (x, scale) in enumerate(zip(inputs, SCALES, strict=True)):
            vector = torch.from_numpy(aligned(x.numpy(), box.numpy(), 2, scale)).reshape(1, -1)
            y = vector @ s[f"fc1.{i}.0.weight"].T + s[f"fc1.{i}.0.bias"]
            levels.append(F.group_norm(y, 32, s[f"fc1.{i}.1.weight"], s[f"fc1.{i}.1.bias"]).relu())
        fused = torch.maximum(levels[0], levels[1])
        y = F.group_norm(fused @ s["fc2.0.weight"].T + s["fc2.0.bias"], 32, s["fc2.1.weight"], s["fc2.1.bias"]).relu()
        torch.testing.assert_close(head(inputs, BOXES)[r : r + 1], y)


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def convolution(name: str, norm: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (256, 256, 3, 3), f"{norm}.weight": (256,), f"{norm}.bias": (256,)}


def test_published_state_dicts() -> None:
    """Names and shapes of roi_2mlp_head_gn_panet, roi_Xconv1fc_gn_head_panet and mask_rcnn_fcn_head_v1upXconvs_gn_adp."""
    vector = {"weight": (1024,), "bias": (1024,)}
    box = linear("fc2.0", 1024, 1024) | {f"fc2.1.{key}": shape for key, shape in vector.items()}
    convs, mask = linear("fc", 256 * 49, 1024), {"upconv.weight": (256, 256, 2, 2), "upconv.bias": (256,)}
    for i in range(4):
        box |= linear(f"fc1.{i}.0", 256 * 49, 1024) | {f"fc1.{i}.1.{key}": shape for key, shape in vector.items()}
        convs |= convolution(f"conv1_head.{i}.0", f"conv1_head.{i}.1")
        mask |= convolution(f"mask_conv1.{i}.0", f"mask_conv1.{i}.1")
    for i in range(0, 9, 3):
        convs |= convolution(f"convs.{i}", f"convs.{i + 1}")
        mask |= convolution(f"conv_fcn.{i}", f"conv_fcn.{i + 1}")
    with torch.device("meta"):
        for head, expected in ((PANetBoxHead(), box), (PANetConvBoxHead(), convs), (PANetMaskHead(), mask)):
            assert {key: tuple(value.shape) for key, value in head.state_dict().items()} == expected


def test_published_initial_values() -> None:
    """Xavier for linear layers (uniform), He by the outputs for convolutions (normal), no bias."""
    torch.manual_seed(0)
    head = PANetConvBoxHead(64, 512, 4, SCALES, width=64, convs=2)
    conv, fc = head.conv1_head[0][0].weight, head.fc.weight
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert fc.abs().max().item() == pytest.approx(math.sqrt(3 / fc.shape[1]), rel=0.01)
    assert not head.fc.bias.any()


@pytest.mark.parametrize("fuse", ["max", "sum"])
def test_derivatives(fuse: str) -> None:
    head = PANetBoxHead(2, 64, 1, SCALES, fuse).double()
    for group in (*head.fc1, head.fc2):  # two channels per group would leave little but their order
        group[1].num_groups = 4
    inputs = [torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True), torch.randn(2, 2, 3, 2, dtype=torch.float64)]
    inputs[1].requires_grad_()
    boxes = BOXES * torch.tensor([1, 0.3, 0.3, 0.3, 0.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: head([a, b], boxes), inputs)


def test_equal_levels_share_the_gradient() -> None:
    """Where levels tie (common after ReLU), each gets its equal part, not the last one all."""
    head = PANetMaskHead(3, 32, 2, (1.0, 1.0, 1.0), convs=1).double()
    for conv in head.mask_conv1:
        conv.load_state_dict(head.mask_conv1[0].state_dict())
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(3)]
    head(inputs, torch.tensor([[0, 0.0, 0.0, 5.0, 5.0]], dtype=torch.float64)).square().sum().backward()
    assert inputs[0].grad.any()
    for other in inputs[1:]:
        torch.testing.assert_close(other.grad, inputs[0].grad)


@pytest.mark.parametrize("made", [PANetBoxHead, PANetConvBoxHead, PANetMaskHead])
def test_boxes_are_independent(made: Any) -> None:
    """A box gives what it gives alone; no box gives an empty result; a list of boxes per sample is the same."""
    settings = {"hidden": 64} if made is PANetBoxHead else {"width": 32}
    head = made(3, resolution=2, scales=SCALES, **settings).double()
    inputs = maps()
    together = head(inputs, BOXES)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], head(inputs, BOXES[i : i + 1]))
    torch.testing.assert_close(together, head(inputs, [BOXES[:1, 1:], BOXES[1:, 1:]]))
    assert head(inputs, BOXES[:0]).shape == (0, *together.shape[1:])


def test_bad_input() -> None:
    head = PANetBoxHead(3, 64, 1, SCALES).double()
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: head(maps()[:1], BOXES), ValueError, "inputs"),
        (lambda: head(maps(4), BOXES), ValueError, "inputs"),
        (lambda: head(maps(), BOXES[:, 1:]), ValueError, "boxes"),
        (lambda: head(maps(), BOXES + 2), ValueError, "boxes"),
        (lambda: PANetBoxHead(3, 32, 0), ValueError, "resolution"),
        (lambda: PANetBoxHead(3, 32, scales=(1.0, -1.0)), ValueError, "scales"),
        (lambda: head([x.int() for x in maps()], BOXES), TypeError, "inputs"),
        (lambda: PANetBoxHead(3, 64, 1, sampling_ratio=2.0), TypeError, "sampling_ratio"),
        (lambda: PANetBoxHead(3, 64, 1, sampling_ratio=True), TypeError, "sampling_ratio"),
        (lambda: PANetMaskHead(3, 32, 2, sampling_ratio="2"), TypeError, "sampling_ratio"),
        # 32 groups of one value: the result would be the bias, and one box alone an error
        (lambda: PANetBoxHead(3, 32), ValueError, "hidden"),
        (lambda: PANetConvBoxHead(3, 8, 1, width=32), ValueError, "width"),
        (lambda: PANetMaskHead(3, 32, 1), ValueError, "width"),
        (lambda: PANetMaskHead(3, 31), ValueError, "width"),
        (lambda: PANetConvBoxHead(3, convs=0), ValueError, "convs"),
    ]
    for made, error, name in cases:
        with pytest.raises(error, match=f"^`{name}` must be .+, got "):
            made()
