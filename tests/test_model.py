"""MobileFaceNet and the perturbation head: counts, shapes, first weights."""

import math

import pytest
import torch
from torch import nn

import osscl_lite as ol
from osscl_lite.mobilefacenet import MobileFaceNet
from osscl_lite.perturbation import FeaturePerturbationHead, unit_sphere


def count(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(("channels", "parameters"), [(1, 869_760), (3, 870_912)])
def test_mobilefacenet_parameters(channels, parameters):
    assert count(MobileFaceNet(channels, 128, 313)) == parameters


@pytest.mark.parametrize("reduction", [1, 16, 64, 256])
def test_head_parameters(reduction):
    assert count(FeaturePerturbationHead(128, reduction)) == 259 * reduction + 384


@pytest.mark.parametrize(
    ("name", "parameters"), [("logmel-osscl", 891_968), ("stgram-osscl", 1_172_950), ("tfstgram-osscl", 1_372_246)]
)
def test_detector_parameters(name, parameters):
    model = ol.Detector(ol.recipe(name), classes=41)
    assert count(model) == parameters
    assert model.class_weight.shape == (41, 128)


def test_layers_of_mobilefacenet():
    net = MobileFaceNet(1, 128, 313)
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert all(layer.bias is None for layer in layers)
    assert [layer.stride for layer in layers if layer.stride != (1, 1)] == [(2, 2)] * 4
    stages = [
        (block.layers[0][0].out_channels, block.layers[2][0].out_channels, block.residual) for block in net.stages
    ]
    assert stages == [
        (128, 128, False),
        (256, 128, True),
        (512, 128, False),
        (512, 128, True),
        (512, 128, False),
        (512, 128, True),
    ]
    pool = net.pool[0]
    assert (pool.kernel_size, pool.groups, pool.out_channels) == ((8, 20), 512, 512)
    assert [len(block) for block in (net.stem[0], net.stem[1], net.expand, net.pool, net.project)] == [3, 3, 3, 2, 2]
    assert all(len(block.layers[2]) == 2 for block in net.stages)  # linear


def test_first_weights_of_mobilefacenet():
    for layer in MobileFaceNet(3, 128, 313).modules():
        if isinstance(layer, nn.Conv2d):
            expected = math.sqrt(2 / (math.prod(layer.kernel_size) * layer.out_channels))
            assert layer.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(layer.weight.numel()))
            assert abs(layer.weight.mean().item()) < 5 * expected / math.sqrt(layer.weight.numel())


@pytest.mark.parametrize(
    ("bands", "frames", "width"), [(60, 8, 16), (128, 200, 16), (64, 63, 16), (33, 47, 8), (1, 1, 8)]
)
def test_any_picture_gives_an_embedding(bands, frames, width):
    net = MobileFaceNet(1, bands, frames, width, embedding=96).eval()
    assert net(torch.randn(2, 1, bands, frames)).shape == (2, 96)


def test_a_residual_block_adds_its_input():
    net = MobileFaceNet(1, 32, 32, 8).eval()
    x = torch.randn(1, 16, 4, 4)
    block = net.stages[1]
    torch.testing.assert_close(block(x), x + block.layers(x))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_head_is_the_equation(activation):
    head, x = FeaturePerturbationHead(6, 4, activation).eval(), torch.randn(5, 6)
    for index in (2, 5):
        head[index].running_mean.uniform_(-1, 1)
        head[index].running_var.uniform_(0.5, 2)
    slope, y = 0.01 if activation == "leaky_relu" else 0.0, x
    for linear, norm in ((head[0], head[2]), (head[3], head[5])):
        y = torch.stack([linear.weight @ row + linear.bias for row in y])
        y = torch.where(y > 0, y, slope * y)
        y = (y - norm.running_mean) / torch.sqrt(norm.running_var + 1e-5) * norm.weight + norm.bias
    torch.testing.assert_close(head(x), y, rtol=1e-4, atol=1e-5)


def test_embeddings_lie_on_the_sphere():
    x = 7 * torch.randn(5, 6)
    torch.testing.assert_close(unit_sphere(x), x / x.square().sum(1, keepdim=True).sqrt())
