"""ResNet with bottleneck blocks (arXiv 1512.03385), in the v1.5 form: the 3 x 3 convolution carries the stride."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.configs import ResNetConfig
from planner.models.layers import ReferenceModel

_EXPANSION = 4


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions around ``width`` inner channels, added to the (projected) input."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = _EXPANSION * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.downsample(x))


def _stage(in_channels: int, width: int, num_blocks: int, stride: int) -> nn.Sequential:
    """``num_blocks`` bottlenecks of which the first changes the channels and, by ``stride``, the resolution."""
    rest = (Bottleneck(_EXPANSION * width, width, 1) for _ in range(num_blocks - 1))
    return nn.Sequential(Bottleneck(in_channels, width, stride), *rest)


class ResNet(ReferenceModel):
    """Stem, four stages, global average and a classifier: ``(images, labels) -> mean cross-entropy``."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        width, blocks = config.width, config.num_blocks
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(width, width, blocks[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, blocks[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = _stage(16 * width, 8 * width, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.output = nn.Linear(32 * width, config.num_classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss (scalar, float32) of ``images [B, 3, H, W]`` against ``labels [B]``."""
        return F.cross_entropy(self.logits(images).float(), labels)

    def logits(self, images: Tensor) -> Tensor:
        """``images [B, 3, H, W]`` -> ``[B, num_classes]``."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.output(self.avgpool(x).flatten(1))
