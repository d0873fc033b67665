"""Real architectures with random weights, small where their configuration allows it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from everypool.study.models.timm import package

with contextlib.suppress(ModuleNotFoundError):
    package()  # declares what torchvision lacks beside a torch of another build; transformers imports it too


class Logits(nn.Module):
    """A model of transformers as a function from pixels to one tensor."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, pixel_values: Tensor) -> Tensor:
        result: Tensor = getattr(self.model(pixel_values=pixel_values), self.output)
        return result


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], num_labels=5, layer_type="basic"
    )
    return Logits(ResNetForImageClassification(config), "logits")


def convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return Logits(
        ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_labels=5)),
        "logits",
    )


def mobilenet_v1() -> nn.Module:
    from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

    return Logits(MobileNetV1ForImageClassification(MobileNetV1Config(depth_multiplier=0.25, num_labels=5)), "logits")


def mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return Logits(MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.35, num_labels=5)), "logits")


def segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForImageClassification

    config = SegformerConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 4], num_labels=5)
    return Logits(SegformerForImageClassification(config), "logits")


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, num_labels=5
    )
    return Logits(ViTForImageClassification(config), "logits")


def poolformer() -> nn.Module:
    from transformers import PoolFormerConfig, PoolFormerForImageClassification

    config = PoolFormerConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_labels=5)
    return Logits(PoolFormerForImageClassification(config), "logits")


def swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(image_size=64, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, num_labels=5)
    return Logits(SwinForImageClassification(config), "logits")


def regnet() -> nn.Module:
    from transformers import RegNetConfig, RegNetForImageClassification

    config = RegNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], groups_width=8, num_labels=5)
    return Logits(RegNetForImageClassification(config), "logits")


def efficientnet() -> nn.Module:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320, num_labels=5)
    return Logits(EfficientNetForImageClassification(config), "logits")


def levit() -> nn.Module:
    from transformers import LevitConfig, LevitForImageClassification

    config = LevitConfig(
        image_size=128,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[1, 2, 2],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        num_labels=5,
    )
    return Logits(LevitForImageClassification(config), "logits")


def dinov2() -> nn.Module:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14, num_labels=5
    )
    return Logits(Dinov2ForImageClassification(config), "logits")


def detr() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=5, num_labels=5,
    )  # fmt: skip
    return Logits(DetrForObjectDetection(config), "logits")


TRANSFORMERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet": (resnet, 64),
    "ConvNeXt": (convnext, 64),
    "MobileNetV1": (mobilenet_v1, 64),
    "MobileNetV2": (mobilenet_v2, 64),
    "SegFormer": (segformer, 64),
    "ViT": (vit, 64),
    "PoolFormer": (poolformer, 64),
    "Swin": (swin, 64),
    "RegNet": (regnet, 64),
    "EfficientNet": (efficientnet, 64),
    "LeViT": (levit, 128),
    "DINOv2": (dinov2, 56),
    "DETR": (detr, 64),
}


def from_timm(name: str) -> nn.Module:
    made: nn.Module = package().create_model(name, num_classes=5)
    return made


def from_torchvision(name: str, **options: Any) -> nn.Module:
    import torchvision

    made: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=5, **options)
    return made


TIMM: dict[str, tuple[Callable[[], nn.Module], int]] = {
    name: (partial(from_timm, name), 64) for name in ("resnet18", "convnext_atto", "mobilenetv3_small_050", "regnetx_002")
}
TORCHVISION: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "densenet121": (partial(from_torchvision, "densenet121"), 64),
    "mobilenet_v2": (partial(from_torchvision, "mobilenet_v2"), 64),
    "shufflenet_v2_x0_5": (partial(from_torchvision, "shufflenet_v2_x0_5"), 64),
    "squeezenet1_1": (partial(from_torchvision, "squeezenet1_1"), 64),
    "googlenet": (partial(from_torchvision, "googlenet", init_weights=False, aux_logits=False), 64),
}


def pixels(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def build(name: str) -> tuple[nn.Module, int]:
    """The model in evaluation mode, and the side of its images; skips the test where its package is not installed."""
    package_name = next(
        p for p, group in (("transformers", TRANSFORMERS), ("timm", TIMM), ("torchvision", TORCHVISION)) if name in group
    )
    pytest.importorskip(package_name)
    made, size = {**TRANSFORMERS, **TIMM, **TORCHVISION}[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return made().eval(), size
