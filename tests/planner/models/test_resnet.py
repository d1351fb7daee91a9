from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from planner import models
from planner.models.resnet import Bottleneck, ResNet
from tests.planner.models.reference import RESNET


def test_stages_halve_the_resolution_and_double_the_channels() -> None:
    with torch.device("meta"):
        model = ResNet(RESNET)
        x = torch.empty(1, RESNET.width, 16, 16)
        shapes = []
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]


def test_a_block_with_a_silent_last_norm_is_its_input() -> None:
    block = Bottleneck(32, 8, stride=1)
    torch.nn.init.zeros_(block.bn3.weight)
    x = torch.randn(2, 32, 5, 5).relu()
    torch.testing.assert_close(block(x), x)


def test_resnet50_forward_arithmetic_is_the_published_one() -> None:
    # torchvision prints 4.09 GFLOPS for ResNet50_Weights.IMAGENET1K_V1, counting a multiply and add as one.
    with torch.device("meta"):
        model, make_inputs = models.build("resnet-50")
        images, _ = make_inputs(1, 1)
        with FlopCounterMode(display=False) as counter:
            model.logits(images)
    assert round(counter.get_total_flops() / 2 / 10**9, 2) == 4.09
