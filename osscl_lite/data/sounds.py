"""Building blocks of generated sound: counted random numbers, phases, tones, noises, kicks, a room, a factory.

Everything is float64 and batched: a batch holds clips of one machine, (B, samples). A source is written as a spectrum,
the `torch.fft.rfft` of its waveform, because filters, rooms and pulse shapes are then products. Products of spectra are
circular convolutions: what rings past the end of a clip is heard at its beginning, as in a machine that has run for a
while.

Random numbers never come from torch, whose streams differ between devices and releases, but from raw words of the
counter-based generator Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by a hash of
what is drawn. Explained in chapter 1 and in the appendix on the hall.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SAMPLE_RATE = 16_000
HIGHEST_TONE = 7_600.0  # Hz; a tone above it is muted, as by the recorder's anti-aliasing filter
LOWEST = 20.0  # Hz; no source sounds below it
CURVE_POINTS = 96  # a filter is drawn at this many log-spaced frequencies and interpolated
KICK_SECONDS = 0.12
_FIELD_MEAN, _FIELD_STD = 4 * 65535 / 2, math.sqrt(4 * (65536**2 - 1) / 12)


class Draws:
    """Random numbers for a batch of clips, one counted stream a clip: the batch a clip is in does not matter.

    Uniforms are (word >> 11) / 2**53; normals are the sum of a word's four 16-bit fields, centred and scaled (kurtosis
    2.7).

    Args:
        keys: one text a clip; the same text gives the same numbers for ever.
    """

    def __init__(self, keys: list[str]):
        digests = [hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys]
        self._words = [np.random.Philox(key=int.from_bytes(digest, "little")).random_raw for digest in digests]

    def _raw(self, count: int) -> np.ndarray:
        return np.stack([np.atleast_1d(words(count)) for words in self._words])

    def uniform(self, low: float, high: float, count: int = 1) -> Tensor:
        """Uniform numbers in [low, high), (B, count)."""
        unit = (self._raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return torch.from_numpy(low + (high - low) * unit)

    def normal(self, count: int = 1) -> Tensor:
        """Standard normals to the accuracy of four uniforms, (B, count)."""
        fields = self._raw(count).view(np.uint16).reshape(len(self._words), count, 4)
        total = fields[..., 0].astype(np.float64)
        for i in (1, 2, 3):
            total += fields[..., i]
        return torch.from_numpy((total - _FIELD_MEAN) / _FIELD_STD)


@lru_cache(maxsize=4)
def frequencies(samples: int) -> Tensor:
    """Frequencies of the bins of a clip's spectrum in Hz, (samples // 2 + 1,)."""
    return torch.fft.rfftfreq(samples, 1 / SAMPLE_RATE, dtype=torch.float64)


@lru_cache(maxsize=4)
def seconds(samples: int) -> Tensor:
    """Times of the samples of a clip in seconds, (samples,)."""
    return torch.arange(samples, dtype=torch.float64) / SAMPLE_RATE


@lru_cache(maxsize=1)
def curve_frequencies() -> Tensor:
    """The log-spaced frequencies in Hz at which filters are drawn, (CURVE_POINTS,)."""
    return torch.logspace(math.log10(LOWEST), math.log10(SAMPLE_RATE / 2), CURVE_POINTS, dtype=torch.float64)


@lru_cache(maxsize=4)
def _curve_places(samples: int) -> tuple[Tensor, Tensor]:
    step = math.log(SAMPLE_RATE / 2 / LOWEST) / (CURVE_POINTS - 1)
    place = torch.log(frequencies(samples).clamp(min=LOWEST) / LOWEST) / step
    left = place.floor().long().clamp(max=CURVE_POINTS - 2)
    return left, place - left


def gain(curve_db: Tensor, samples: int) -> Tensor:
    """Amplitude at every bin of a filter in dB, (B, CURVE_POINTS) -> (B, bins); 0 below 20 Hz."""
    left, part = _curve_places(samples)
    decibel = torch.lerp(curve_db[:, left], curve_db[:, left + 1], part)
    return torch.exp(decibel * (math.log(10) / 20)) * (frequencies(samples) >= LOWEST)


def amplitude(decibel: Tensor | float) -> Tensor:
    """Amplitude ratio of a level difference in dB: 10 ** (dB / 20)."""
    return 10.0 ** (torch.as_tensor(decibel, dtype=torch.float64) / 20)


def tilt(knee: Tensor | float, slope: Tensor | float) -> Tensor:
    """A filter flat to `knee` Hz and falling by `slope` dB an octave above it, (B or 1, CURVE_POINTS) in dB."""
    octaves = torch.log2(curve_frequencies() / torch.as_tensor(knee, dtype=torch.float64)).clamp(min=0)
    return torch.atleast_2d(-torch.as_tensor(slope, dtype=torch.float64) * octaves)


def passband(low: float, high: float, slope: float = 24.0) -> Tensor:
    """A filter flat from `low` to `high` Hz, falling by `slope` dB an octave outside, (1, CURVE_POINTS) in dB."""
    f = curve_frequencies()
    outside = torch.log2(low / f).clamp(min=0) + torch.log2(f / high).clamp(min=0)
    return (-slope * outside)[None]


def bumps(draws: Draws, count: int, sigma: float) -> Tensor:
    """A random filter: `count` bells 0.3 to 1 octave wide, of heights N(0, sigma) dB, (B, CURVE_POINTS)."""
    centre = draws.uniform(math.log2(60), math.log2(HIGHEST_TONE), count)[..., None]
    width = draws.uniform(0.3, 1.0, count)[..., None]
    height = sigma * draws.normal(count)[..., None]
    return (height * torch.exp(-0.5 * ((torch.log2(curve_frequencies()) - centre) / width) ** 2)).sum(1)


def noise(draws: Draws, curve_db: Tensor, samples: int, unit: bool = True) -> Tensor:
    """Spectrum of Gaussian noise with the given filter, of mean square 1 if `unit`, (B, bins)."""
    bins = samples // 2 + 1
    shape = gain(curve_db, samples)
    if unit:
        shape = shape / shape.square().mean(1, keepdim=True).sqrt()
    raw = draws.normal(2 * bins) * math.sqrt(samples / 2)
    return torch.view_as_complex(raw.view(-1, bins, 2)) * shape


def power(spectrum: Tensor, samples: int, low: float = 0.0, high: float = SAMPLE_RATE) -> Tensor:
    """Mean square between two frequencies of the waveform behind a spectrum (Parseval), (B, 1)."""
    f = frequencies(samples)
    inside = (f >= low) & (f < high)
    return 2 * torch.view_as_real(spectrum[:, inside]).square().sum((1, 2))[:, None] / samples**2


def warped_time(draws: Draws, samples: int, wow: float) -> Tensor:
    """Time as a shaft of wandering speed counts it: t + sum_j a_j sin(2 pi w_j t + theta_j) / (2 pi w_j), (B, samples)
    in s.

    Two wanderings of 0.2 to 4 Hz with a_j of `wow` times 0.1 to 0.3 %; multiplied by a rate in Hz it is a phase in
    cycles.
    """
    time = seconds(samples)
    warped = time.expand(len(draws._words), samples).clone()
    w, theta = draws.uniform(0.2, 4.0, 2), draws.uniform(0, 2 * math.pi, 2)
    a = wow * draws.uniform(0.001, 0.003, 2)
    for j in range(2):
        omega = 2 * math.pi * w[:, j : j + 1]
        warped += a[:, j : j + 1] / omega * torch.sin(omega * time + theta[:, j : j + 1])
    return warped


def tones(phase: Tensor, amplitudes: Tensor, theta: Tensor, rate: Tensor) -> Tensor:
    """A bank of harmonics, sum_k A_k cos(2 pi k phase + theta_k), by powers of exp(2 pi i phase) (Horner), (B,
    samples).

    Args:
        phase: cycles of the fundamental, (B, samples).
        amplitudes: A_1 ... A_K, (B, K).
        theta: phases in radians, (B, K).
        rate: highest rate of the fundamental in Hz, (B, 1); harmonics above 7.6 kHz are muted.
    """
    order = torch.arange(1, amplitudes.shape[1] + 1, dtype=torch.float64)
    weights = torch.polar(amplitudes * (order * rate <= HIGHEST_TONE), theta)
    turn = 2 * math.pi * phase
    z = torch.complex(torch.cos(turn), torch.sin(turn))
    total = weights[:, -1:].expand_as(z)
    for k in range(amplitudes.shape[1] - 2, -1, -1):
        total = torch.addcmul(weights[:, k : k + 1], total, z)
    return (total * z).real


def steady_tone(rate: Tensor, size: Tensor, theta: Tensor, samples: int) -> Tensor:
    """Spectrum of constant tones, (B, K) each, moved to whole cycles of the clip: one bin each, (B, bins)."""
    place = (rate * samples / SAMPLE_RATE).round().long().clamp(1, samples // 2 - 1)
    line = torch.polar(size * samples / 2, theta)
    out = torch.zeros(len(rate), samples // 2 + 1, dtype=torch.complex128)
    for k in range(rate.shape[1]):
        out[torch.arange(len(rate)), place[:, k]] += line[:, k]
    return out


def pulses(times: Tensor, sizes: Tensor, samples: int) -> Tensor:
    """Spectrum of impulses of the given sizes at the given seconds, (B, E) each; those outside are left out."""
    place = (times * SAMPLE_RATE).round().long()
    inside = (place >= 0) & (place < samples)
    track = torch.zeros(len(times), samples, dtype=torch.float64)
    track.scatter_add_(1, place.clamp(0, samples - 1), sizes.expand_as(times) * inside)
    return torch.fft.rfft(track)


def kick(modes: Tensor, decays: Tensor, weights: Tensor, samples: int) -> Tensor:
    """Spectrum of a kick, K(t) = sum_i g_i exp(-t / tau_i) sin(2 pi f_i t), scaled to unit energy, (B, bins).

    Args:
        modes: f_i in Hz, (B, M).
        decays: tau_i in seconds, (B, M).
        weights: g_i, (B, M).
    """
    time = seconds(min(samples, int(KICK_SECONDS * SAMPLE_RATE)))
    modes, decays, weights = modes[..., None], decays[..., None], weights[..., None]
    shape = (weights * torch.exp(-time / decays) * torch.sin(2 * math.pi * modes * time)).sum(1)
    return torch.fft.rfft(shape / shape.square().sum(1, keepdim=True).sqrt(), n=samples)


def poisson_times(draws: Draws, rate: Tensor | float, highest: float, duration: float) -> Tensor:
    """Times of a Poisson process in seconds, (B, E); those past the duration are to be left out.

    Args:
        rate: events a second, a number or (B, 1).
        highest: the highest rate asked for; it sets how many gaps are drawn.
    """
    count = int(highest * duration + 4 * math.sqrt(highest * duration) + 4)
    gaps = -torch.log1p(-draws.uniform(0, 1, count)) / torch.as_tensor(rate, dtype=torch.float64)
    return gaps.cumsum(1)


def regular_times(draws: Draws, rate: Tensor, highest: float, duration: float, jitter: float = 0.0) -> Tensor:
    """Times of a train of events at `rate` Hz (B, 1), from a random start, each gap x (1 + jitter N(0, 1)), (B, E)."""
    count = int(highest * duration) + 2
    gaps = 1 + jitter * draws.normal(count)
    start = draws.uniform(0, 1) / rate
    return start + (gaps.cumsum(1) - gaps[:, :1]) / rate


def walk(draws: Draws, sigma: float, samples: int, step: float = 0.4) -> Tensor:
    """A slow wandering of level: N(0, sigma) dB every `step` seconds, interpolated, as amplitude, (B, samples)."""
    knots = int(samples / SAMPLE_RATE / step) + 2
    place = seconds(samples) / step
    left = place.floor().long()
    level = sigma * draws.normal(knots)
    return amplitude(torch.lerp(level[:, left], level[:, left + 1], place - left))


def room(draws: Draws, reverberation: float, direct: float, samples: int) -> Tensor:
    """Spectrum of a room's answer: the direct sound, 3 ms of silence, then exponentially decaying noise, (1, bins).

    The tail is low-passed at 3 kHz (air and walls take high frequencies first); Kuttruff, "Room acoustics".

    Args:
        reverberation: RT60 in seconds, at most 1.
        direct: energy of the direct sound over that of the tail, dB.
    """
    time = seconds(SAMPLE_RATE)
    tail = draws.normal(SAMPLE_RATE) * torch.exp(-3 * math.log(10) * time / reverberation) * (time >= 0.003)
    spectrum = torch.fft.rfft(tail) * gain(tilt(3_000, 6.0), SAMPLE_RATE)
    tail = torch.fft.irfft(spectrum, n=SAMPLE_RATE)
    tail = tail * amplitude(-direct) / tail.square().sum().sqrt()
    tail[:, 0] += 1
    return torch.fft.rfft(tail, n=samples) if samples >= SAMPLE_RATE else torch.fft.rfft(tail[:, :samples])


def factory(draws: Draws, samples: int, slope_sigma: float, bump_sigma: float, walk_sigma: float) -> Tensor:
    """Factory noise of mean square about 1: tilted noise, 1 to 3 far machines' tones, 0.4 impacts a second, (B,
    samples).

    The noise falls by 5.5 dB an octave from 100 Hz. MIMII adds such noise, recorded in real factories
    (arXiv:1909.09347).

    Args:
        slope_sigma: spread between clips of the fall, dB an octave.
        bump_sigma: height of the five random bumps of its colour, dB.
        walk_sigma: slow wandering of its level, dB.
    """
    duration = samples / SAMPLE_RATE
    curve = tilt(100.0, 5.5 + slope_sigma * draws.normal()) + bumps(draws, 5, bump_sigma)
    spectrum = noise(draws, curve, samples)
    rate = torch.exp(draws.uniform(math.log(60), math.log(700), 3))
    present = torch.arange(3) < draws.uniform(1, 4).floor()
    size = math.sqrt(2) * amplitude(draws.uniform(-22, -10, 3)) * present
    spectrum += steady_tone(rate, size, draws.uniform(0, 2 * math.pi, 3), samples)
    times = poisson_times(draws, 0.4, 0.4, duration)
    sizes = 6 * torch.exp(0.5 * draws.normal(times.shape[1]))
    modes, decays = draws.uniform(300, 3_500, 3), draws.uniform(0.004, 0.02, 3)
    spectrum += pulses(times, sizes, samples) * kick(modes, decays, draws.uniform(0.3, 1, 3), samples)
    return torch.fft.irfft(spectrum, n=samples) * walk(draws, walk_sigma, samples)
