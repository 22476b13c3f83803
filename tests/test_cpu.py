"""The CPU's own BatchNorm and PReLU against PyTorch's, forward and backward."""

import os
import platform
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from osscl_lite import cpu
from osscl_lite.mobilefacenet import ConvBlock


def block(channels, linear=False):
    made = ConvBlock(3, channels, 3, padding=1, linear=linear).train()
    with torch.no_grad():
        for layer in list(made)[1:]:
            for values in layer.parameters():
                values.uniform_(-0.5, 1.5)
        made[1].running_mean.normal_()
        made[1].running_var.uniform_(0.5, 2)
    return made


def as_torch_does(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def compare(ours, x, rtol=5e-4):
    """Outputs, all gradients and running statistics of our norm and PReLU, and of PyTorch's layers in float64."""
    norm, *prelu = list(ours)[1:]
    theirs = [deepcopy(layer).double() for layer in (norm, *prelu)]
    x_ours, x_theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    y_ours, y_theirs = cpu.norm_prelu(x_ours, norm, *prelu), as_torch_does(theirs, x_theirs)
    direction = torch.randn(y_ours.shape, generator=torch.Generator().manual_seed(1))
    (y_ours * direction).sum().backward()
    (y_theirs * direction.double()).sum().backward()
    pairs = [(y_ours, y_theirs), (x_ours.grad, x_theirs.grad)]
    for mine, other in zip((norm, *prelu), theirs, strict=True):
        pairs += [(a.grad, b.grad) for a, b in zip(mine.parameters(), other.parameters(), strict=True)]
        pairs += list(zip(mine.buffers(), other.buffers(), strict=True))
    for a, b in pairs:
        scale = max(1.0, float(b.detach().double().abs().max()))
        torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=rtol * scale)


@settings(max_examples=20, deadline=None)
@given(
    channels=st.integers(1, 40), batch=st.integers(2, 5), height=st.integers(1, 9), width=st.integers(1, 9),
    linear=st.booleans(), offset=st.floats(-50, 50), seed=st.integers(0, 1000),
)  # fmt: skip
def test_values_gradients_and_statistics_are_those_of_pytorch(channels, batch, height, width, linear, offset, seed):
    torch.manual_seed(seed)
    x = (torch.randn(batch, channels, height, width) + offset).contiguous(memory_format=torch.channels_last)
    compare(block(channels, linear), x)


def test_the_network_takes_this_way_in_training():
    made, x = block(5), torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert type(made(x).grad_fn).__name__ == "NormPReLUBackward"
    assert type(made.eval()(x).grad_fn).__name__ != "NormPReLUBackward"


def test_a_large_map_is_shared_among_threads_and_stays_the_same():
    before = torch.get_num_threads()
    torch.manual_seed(0)
    made, x = block(32), torch.randn(32, 32, 24, 20).contiguous(memory_format=torch.channels_last)
    assert x.numel() >= 3 * cpu.SHARE
    outputs = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            ours = deepcopy(made)
            compare(ours, x)
            layers = list(deepcopy(made))[1:]
            y = cpu.norm_prelu(x, *layers)
            slopes = [parameter for layer in layers for parameter in layer.parameters()]
            outputs.append([y, *torch.autograd.grad(y.square().sum(), slopes)])
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*outputs, strict=True):
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-3)


def test_nan_and_infinity_pass_through():
    for bad in (float("nan"), float("inf")):
        made, x = block(4), torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
        x[0, 0, 0, 0] = bad
        y = made(x)
        assert not torch.isfinite(y).all()
        assert torch.isnan(y).any() == torch.isnan(as_torch_does(made, x)).any()


def test_only_training_in_float32_on_channels_last_takes_this_way():
    made = block(4)
    x = torch.randn(2, 3, 4, 4)
    last = x.contiguous(memory_format=torch.channels_last)
    assert cpu.fits(last, made[1]) and not cpu.fits(x, made[1])
    assert not cpu.fits(last.double(), made[1]) and not cpu.fits(last.to("meta"), made[1])
    with torch.no_grad():
        assert not cpu.fits(last, made[1])
    made.eval()
    assert not cpu.fits(last, made[1])
    assert torch.equal(made(last), as_torch_does(made, last))


def test_one_value_a_channel_is_refused_as_pytorch_does():
    made, x = ConvBlock(3, 4, 1).train(), torch.randn(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        as_torch_does(made, x)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        made(x)


def test_layers_that_stand_still_get_no_gradient():
    made, x = block(4), torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    made[1].requires_grad_(False)
    made(x).sum().backward()
    assert made[1].weight.grad is None and made[0].weight.grad is not None
    assert isinstance(made[2], nn.PReLU) and made[2].weight.grad is not None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_memory_is_kept_inside_and_given_back_after():
    """Page faults of large tensors made again and again: few inside, many outside."""
    program = """
import resource
import torch
from osscl_lite.cpu import kept_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
outside = faults()
with kept_memory():
    with kept_memory():
        faults()
    inside = min(faults() for _ in range(5))
print(outside, inside, faults())
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env=os.environ | {"THP_MEM_ALLOC_ENABLE": "0"},
    )  # fmt: skip
    outside, inside, after = map(int, run.stdout.split())
    assert inside < 100 < 5_000 < outside and after > 5_000
