"""Front ends: the Log-Mel against librosa, Tgram and TFgram against the notes, torchaudio with no extension."""

import subprocess
import sys

import librosa
import numpy as np
import pytest
import torch
from torch import nn

from osscl_lite.features import FRONT_ENDS, FrontEnd, LogMel, TFgramNet, TgramNet, bands_below, frames_of


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("level", [0.3, 1e-4])
@pytest.mark.parametrize("bands", [32, 64, 128])
def test_log_mel_is_librosa_s(bands, level):
    wave = (level * np.random.default_rng(0).standard_normal(32_000)).astype(np.float32)
    wave += level * np.sin(2 * np.pi * 440 / 16_000 * np.arange(32_000)).astype(np.float32)
    mel = librosa.feature.melspectrogram(
        y=wave,
        sr=16_000,
        n_fft=2048,
        hop_length=512,
        n_mels=bands,
        power=2.0,
        pad_mode="constant",
        htk=False,
        norm="slaney",
    )
    expected = 10 * np.log10(np.maximum(mel, 1e-10))
    got = LogMel(bands)(torch.from_numpy(wave)[None])[0].numpy()
    assert got.shape == (bands, 63) and np.abs(got - expected).max() < 2e-3


def test_silence_is_the_floor_and_nothing_hangs_on_the_loudest_frame():
    wave = torch.zeros(2, 32_000)
    wave[1, 16_000:] = 0.9 * torch.sin(torch.arange(16_000) * 0.3)
    silent, half = LogMel(64)(wave)
    assert (silent == -100).all() and (half[:, :20] == -100).all() and half.max() > 0


@pytest.mark.parametrize(("seconds", "frames"), [(2, 63), (10, 313)])
def test_shapes_at_two_and_ten_seconds(seconds, frames):
    wave = torch.randn(1, seconds * 16_000)
    assert frames_of(wave.shape[1]) == frames
    log_mel = LogMel(128)(wave)
    assert log_mel.shape == (1, 128, frames) and not log_mel.requires_grad
    for name, channels in FRONT_ENDS.items():
        picture = FrontEnd(name, 128, frames)(wave, log_mel)
        assert picture.shape == (1, channels, 128, frames)
        assert torch.equal(picture[:, 1 if name == "tastgram" else 0], log_mel)


def test_the_channels_are_log_mel_tgram_tfgram_in_this_order():
    wave, log_mel = torch.randn(2, 32_000), torch.randn(2, 32, 63)
    front_end = FrontEnd("tfstgram", 32, 63, 16).eval()
    picture = front_end(wave, log_mel)
    assert torch.equal(picture[:, 1], front_end.tgram(wave)) and torch.equal(picture[:, 2], front_end.tfgram(wave))
    assert FrontEnd("logmel", 32, 63)(None, log_mel).shape == (2, 1, 32, 63)
    with pytest.raises(ValueError, match="choose one of logmel, stgram, tfstgram"):
        FrontEnd("mel")


def test_tastgram_stacks_tgram_log_mel_and_the_gated_log_mel():
    wave, log_mel = torch.randn(2, 32_000), 20 * torch.randn(2, 32, 63) - 10
    front_end = FrontEnd("tastgram", 32, 63)
    picture = front_end(wave, log_mel)
    gate = 1 / (1 + np.exp(-(log_mel.numpy().max(1) + log_mel.numpy().mean(1))))  # (2, 63): no weight in it
    np.testing.assert_allclose(picture[:, 2].detach(), log_mel.numpy() * gate[:, None], rtol=1e-4, atol=1e-6)
    assert torch.equal(picture[:, 0], front_end.tgram(wave))


def test_the_htk_log_mel_is_librosas():
    wave = 0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    settings = dict(n_fft=1024, hop_length=512, n_mels=128, power=2.0, htk=True, norm=None, pad_mode="reflect")
    power = librosa.feature.melspectrogram(y=wave, sr=16_000, **settings)
    found = LogMel(128, n_fft=1024, mel="htk")(torch.from_numpy(wave)[None])[0]
    np.testing.assert_allclose(found, 10 * np.log10(np.maximum(power, 1e-10)), atol=2e-3)


@pytest.mark.parametrize("hertz", [1_000, 2_000, 4_000, 8_000])
def test_bands_below_a_frequency_end_there(hertz):
    edges = librosa.mel_frequencies(64 + 2, fmin=0, fmax=8_000)[2:]  # upper edges of the bands
    assert abs(bands_below(hertz, 64) - (edges <= hertz + 1e-6).sum()) <= 1 and bands_below(8_000, 64) == 64


def test_another_hop_gives_another_width():
    wave, log_mel = torch.randn(1, 32_000), torch.randn(1, 32, 126)
    assert FrontEnd("tfstgram", 32, frames_of(32_000, 256), 16, hop=256)(wave, log_mel).shape == (1, 3, 32, 126)


def test_tgram_has_the_layers_of_the_notes():
    net = TgramNet()
    assert count(net) == 280_406
    first = net.extract
    assert (first.kernel_size, first.stride, first.padding, first.bias) == ((1024,), (512,), (512,), None)
    assert len(net.encode) == 3
    for norm, activation, convolution in net.encode:
        assert norm.normalized_shape == (313,) and activation.negative_slope == 0.2
        assert (convolution.kernel_size, convolution.padding, convolution.bias) == ((3,), (1,), None)


def test_tfgram_has_the_layers_of_table_1():
    net = TFgramNet()
    assert count(net) == 198_720
    rows = [
        (
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size[0],
            layer.stride[0],
            layer.padding[0],
            layer.dilation[0],
        )
        for layer in net.layers
        if isinstance(layer, nn.Conv1d)
    ]
    assert rows == [
        (1, 64, 11, 5, 5, 1),
        (64, 64, 3, 1, 1, 1),
        (64, 64, 3, 1, 2, 2),
        (64, 128, 3, 1, 1, 1),
        (128, 128, 3, 1, 2, 2),
        (128, 128, 3, 1, 1, 1),
        (128, 128, 3, 1, 2, 2),
    ]
    assert all(layer.bias is None for layer in net.layers if isinstance(layer, nn.Conv1d))
    kinds = "".join(type(layer).__name__[0] for layer in net.layers)  # Conv, BatchNorm, ReLU, MaxPool, AdaptiveMaxPool
    assert kinds == "CBR" + "CBRCBR" + "M" + "CBRCBR" + "A" + "CBRCBR" + "A"
    pools = [layer for layer in net.layers if "MaxPool" in type(layer).__name__]
    assert (pools[0].kernel_size, pools[1].output_size, pools[2].output_size) == (4, 626, 313)


def test_tfgram_starts_xavier_uniform():
    for layer in TFgramNet().layers:
        if isinstance(layer, nn.Conv1d):
            fan = (layer.in_channels + layer.out_channels) * layer.kernel_size[0]
            bound = (6 / fan) ** 0.5
            assert 0.95 * bound < layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


BROKEN = """
import builtins, sys
real = builtins.__import__
def fake(name, globals=None, locals=None, fromlist=(), level=0):
    inside = (globals or {}).get("__name__", "")
    wanted = name == "torchaudio._extension" or (inside == "torchaudio" and "_extension" in (fromlist or ()))
    if wanted and "torchaudio._extension" not in sys.modules:
        raise OSError("libc10_cuda.so: cannot open shared object file")
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = fake
"""
GOOD = """
import sys
from types import ModuleType
module = ModuleType("torchaudio")
module.transforms = "the real one"
sys.modules["torchaudio"] = module
from osscl_lite._torchaudio import import_torchaudio
assert import_torchaudio() is module and "torchaudio._extension" not in sys.modules
"""
USE = """
import torch
from osscl_lite.features import LogMel
print(tuple(LogMel(64)(torch.zeros(1, 32000)).shape))
"""


def test_a_torchaudio_whose_extension_does_not_load_is_used_all_the_same():
    done = subprocess.run([sys.executable, "-c", BROKEN + USE], capture_output=True, text=True)
    assert done.stdout == "(1, 64, 63)\n", done.stderr


def test_a_good_torchaudio_is_left_as_it_is():
    subprocess.run([sys.executable, "-c", GOOD], check=True)
