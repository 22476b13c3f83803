"""The six machine types of the hall, each a sum of sources written from physics.

Every function takes the machine (`Identity`, its numbers for life) and the batch (`Clips`, what changes from clip to
clip and how far each fault mechanism has gone) and returns a `Sound`. Machinery noise: Norton & Karczub, "Fundamentals
of noise and vibration analysis"; pumps and cavitation: Brennen, "Hydrodynamics of pumps"; bearings: Randall & Antoni
2011, McFadden & Smith 1984. Explained in chapter 1 and in the appendix on the hall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from osscl_lite.data import sounds as s
from osscl_lite.data.faults import VOLTAGE
from osscl_lite.data.identity import Identity
from osscl_lite.data.sounds import Draws, amplitude

LINE = 50.0  # Hz, mains
RATE = float(s.SAMPLE_RATE)


@dataclass
class Sound:
    """A machine before its room: the running part, and each additive mechanism at mean square 1; spectra, (B, bins)."""

    running: Tensor
    added: dict[str, Tensor] = field(default_factory=dict)


class Clips:
    """A batch of clips of one machine while it is made.

    Args:
        draws: the machine stream of each clip.
        samples: length.
        spread: factor on the clip-to-clip spreads.
        levels: how far each fault mechanism has gone in each clip, (B, 1) by name.
        voltage: signed severity of a voltage fault, (B, 1).
    """

    def __init__(self, draws: Draws, samples: int, spread: float, levels: dict[str, Tensor], voltage: Tensor):
        self.draws, self.samples, self.spread, self.levels, self.voltage = draws, samples, spread, levels, voltage
        self.duration = samples / RATE

    def level(self, fault: str) -> Tensor:
        """Level of a fault mechanism, (B, 1)."""
        return self.levels[fault]

    def speed(self, one: Identity, sigma: float = 0.009) -> Tensor:
        """Speed factor: load and temperature, and the supply: v (1 +- (0.005 + c severity)), (B, 1)."""
        supply = 1 + torch.sign(self.voltage) * 0.005 + VOLTAGE.get(one.machine_type, 0.0) * self.voltage
        return (1 + self.spread * sigma * self.draws.normal()) * supply

    def vary(self, values: Tensor, sigma: float = 0.012) -> Tensor:
        """Resonances as they are in this clip: moved by temperature and load, (1, M) -> (B, M)."""
        return values * (1 + self.spread * sigma * self.draws.normal(values.shape[1]))

    def angles(self, count: int) -> Tensor:
        """Phases in radians, (B, count)."""
        return self.draws.uniform(0, 2 * math.pi, count)

    def bank(self, phase: Tensor, decibel: Tensor, rate: Tensor) -> Tensor:
        """Harmonics of a phase at these levels, each 1 dB up or down from clip to clip, (B, samples)."""
        level = decibel + self.spread * self.draws.normal(decibel.shape[1])
        return s.tones(phase, amplitude(level), self.angles(decibel.shape[1]), rate)

    def noise(self, curve: Tensor) -> Tensor:
        """Spectrum of Gaussian noise of mean square 1, (B, bins)."""
        return s.noise(self.draws, curve, self.samples)

    def shape(self, spectrum: Tensor, curve: Tensor) -> Tensor:
        """A spectrum through a filter, (B, bins)."""
        return spectrum * s.gain(curve, self.samples)

    def wave(self, spectrum: Tensor) -> Tensor:
        """The waveform of a spectrum, (B, samples)."""
        return torch.fft.irfft(spectrum, n=self.samples)

    def kick(self, modes: Tensor, decay: float) -> Tensor:
        """Spectrum of one knock on resonances that differ a little from clip to clip, (B, bins)."""
        here = self.vary(modes)
        count = modes.shape[1]
        decays = decay * torch.linspace(1.3, 0.7, count, dtype=torch.float64).expand_as(here)
        return s.kick(here, decays, amplitude(self.spread * self.draws.normal(count)), self.samples)


def _harmonics(count: int, fall: float) -> Tensor:
    """Levels of harmonics that fall by `fall` dB each, together of mean square 1, (1, count) in dB."""
    levels = -fall * torch.arange(count, dtype=torch.float64)
    return (levels - 10 * torch.log10((10 ** (levels / 10)).sum() / 2))[None]


def bearing(one: Identity, clip: Clips, shaft: Tensor, highest: float) -> Tensor:
    """Pulses of a worn outer race: BPFO = (n/2) f_r (1 - (d/D) cos alpha), gaps x (1 + 0.015 N), modes 4.6 to 7 kHz."""
    balls, ratio = one.count(7, 11), one.shared(0.15, 0.25)
    rate = balls / 2 * (1 - ratio) * shaft
    highest = balls / 2 * highest
    times = s.regular_times(clip.draws, rate, highest, clip.duration, 0.015)
    knock = clip.kick(one.modes(4_600, 7_000, 3), 0.0015)
    sizes = torch.ones(1, 1, dtype=torch.float64)
    return s.pulses(times, sizes, clip.samples) * knock / torch.sqrt(rate / RATE)


def fan(one: Identity, clip: Clips) -> Sound:
    """Axial or centrifugal fan: blade tones k B f_r, turbulence falling above a knee, both x (1 + m cos 2 pi phi),
    shaft, mains hum.

    Imbalance deepens m and the shaft's first order; clogging raises the blade tones and the turbulence below 250 Hz (as
    MIMII's faulty fan id_00 does) and dulls the rest; a cracked blade adds shaft orders round B f_r; a rubbing blade,
    noise once a turn.
    """
    f_r, blades = one.speed(15, 50), one.count(5, 12)
    fall, knee, slope, tonal = one.shared(4, 8), one.modes(300, 800, 1), one.shared(5, 8), one.level(-10, 6)
    hum = one.level(-24, -14)
    imbalance, clogging, crack = clip.level("imbalance"), clip.level("clogging"), clip.level("cracked blade")

    v = clip.speed(one) * (1 + 0.01 * clogging)
    phase = f_r * v * s.warped_time(clip.draws, clip.samples, clip.spread) + clip.draws.uniform(0, 1)
    turn = torch.cos(2 * math.pi * phase)
    blade = clip.bank(blades * phase, _harmonics(10, fall) + tonal + 6 * clogging, blades * f_r * v)
    orders = torch.full((len(v), blades + 2), -200.0, dtype=torch.float64)
    orders[:, :3] = tonal - 14 + torch.tensor([0.0, -6.0, -10.0], dtype=torch.float64)
    orders[:, :1] += 20 * imbalance
    for side in (-2, -1, 1):
        orders[:, blades - 1 + side] = (tonal - 20 + 26 * crack)[:, 0] - 3 * (abs(side) - 1)
    shaft = clip.bank(phase, orders, f_r * v)

    low = clip.shape(clip.noise(s.tilt(knee, slope)), 7 * clogging * _low_shelf(250.0) + s.tilt(1_000, 1.5 * clogging))
    air = (clip.wave(low) + blade) * (1 + (0.06 + 0.5 * imbalance) * turn) + shaft
    lines = torch.tensor([[2 * LINE, 4 * LINE]], dtype=torch.float64).expand(len(v), 2)
    sizes = amplitude(torch.tensor([[hum, hum - 8.0]])) * math.sqrt(2)
    running = torch.fft.rfft(air) * amplitude(55 * torch.log10(v))
    running = running + s.steady_tone(lines, sizes.expand_as(lines), clip.angles(2), clip.samples)
    rub = clip.wave(clip.noise(s.passband(2_000, 6_000))) * turn.clamp(min=0) ** 6 / math.sqrt(0.1128)
    added = {"worn bearing": bearing(one, clip, f_r * v, 55.0), "rubbing": torch.fft.rfft(rub)}
    return Sound(running, added)


def _low_shelf(corner: float) -> Tensor:
    """1 below the corner, 0 an octave above it, straight between on log frequency, (1, CURVE_POINTS)."""
    return (1 - torch.log2(s.curve_frequencies() / corner)).clamp(0, 1)[None]


def pump(one: Identity, clip: Clips) -> Sound:
    """Water pump: vane tones Z f_r and shaft orders with slip sidebands, flow noise, micro-cavitation, all through
    three pipe resonances.

    An induction motor turns at f_r = (2 f_line / poles)(1 - slip). Clogging raises the vane tones and takes flow away,
    cavitation makes more and louder bursts, a leak hisses flat above 4 kHz.
    """
    poles, slip, vanes = 2 * one.count(1, 2), one.shared(0.01, 0.05), one.count(3, 8)
    f_r = 2 * LINE / poles * (1 - slip) * one.speed(0.98, 1.02)
    fall, knee, slope, tonal = one.shared(4, 8), one.modes(300, 1_000, 1), one.shared(4, 7), one.level(-8, 4)
    pipes, sharp = one.modes(200, 2_500, 3), one.shared(10, 30)
    bursts, burst_level, burst_time = one.shared(5, 20), one.level(-16, -8), one.shared(0.002, 0.008)
    imbalance, clogging, cavitation = clip.level("imbalance"), clip.level("clogging"), clip.level("cavitation")

    v = clip.speed(one, 0.004)
    phase = f_r * v * s.warped_time(clip.draws, clip.samples, clip.spread) + clip.draws.uniform(0, 1)
    beat = 1 + 0.15 * torch.cos(2 * math.pi * 2 * slip * LINE * s.seconds(clip.samples) + clip.angles(1))
    vane = clip.bank(vanes * phase, _harmonics(8, fall) + tonal + 6 * clogging, vanes * f_r * v)
    orders = tonal - 5 - torch.tensor([[0.0, 4.0, 8.0, 10.0]], dtype=torch.float64).expand(len(v), 4).clone()
    orders[:, :1] += 20 * imbalance
    shaft = clip.bank(phase, orders, f_r * v)
    flow = clip.wave(clip.noise(s.tilt(knee, slope))) * amplitude(-4 * clogging)
    water = (flow + vane * beat) * (1 + (0.03 + 0.5 * imbalance) * torch.cos(2 * math.pi * phase)) + shaft

    rate = bursts * (1 + 6 * cavitation)
    times = s.poisson_times(clip.draws, rate, 7 * bursts * 1.4, clip.duration)
    sizes = amplitude(burst_level + 10 * cavitation) * torch.exp(0.4 * clip.draws.normal(times.shape[1]))
    decay = torch.fft.rfft(torch.exp(-s.seconds(clip.samples) / burst_time))
    envelope = clip.wave(s.pulses(times, sizes, clip.samples) * decay).clamp(min=0)
    collapse = clip.wave(clip.noise(s.passband(2_000, 6_000))) * envelope / math.sqrt(bursts * burst_time / 2)

    f = s.frequencies(clip.samples).clamp(min=1)
    ring = torch.ones(len(v), len(f), dtype=torch.float64)
    for i in range(3):
        centre = clip.vary(pipes)[:, i : i + 1]
        ring += 2.0 / torch.sqrt(1 + (sharp * (f / centre - centre / f)) ** 2)
    running = torch.fft.rfft(water + collapse) * ring
    hiss = clip.noise(s.passband(4_000, 7_600))
    return Sound(running, {"worn bearing": bearing(one, clip, f_r * v, 52.0), "leakage": hiss})


def slider(one: Identity, clip: Clips) -> Sound:
    """Linear rail: strokes of trapezoid speed V(t), gear mesh f_m int V, balls passing, rail noise ~ V^1.2, servo tone,
    knock at reversals.

    A slack belt wobbles the mesh at 6 to 12 Hz and slaps at the reversals; a dry rail loses mesh and gains noise; a
    damaged rail knocks five times, 7 ms apart, wherever the carriage passes x_d; a dry guide squeals at 2.5 to 6 kHz
    with 9 Hz FM of 0.3 %.
    """
    cycle, ramp = one.speed(0.9, 1.6), one.shared(0.1, 0.3)
    f_m, balls, servo = one.speed(300, 900), one.speed(25, 70), one.modes(1_300, 3_000, 1)
    knee, slope = one.modes(600, 1_500, 1), one.shared(4, 6)
    mesh_level, servo_level, knock_level, back = (
        one.level(-10, 0),
        one.level(-20, -8),
        one.level(0, 8),
        one.level(-3, 0),
    )
    wobble, place = one.shared(6, 12), one.shared(0.25, 0.75)
    slack, dry = clip.level("slack belt"), clip.level("no grease")

    half = cycle / 2 / (clip.speed(one) * (1 - 0.01 * slack) * (1 - 0.03 * dry))
    strokes = s.seconds(clip.samples) / half + 2 * clip.draws.uniform(0, 1)
    number = strokes.floor()
    part = strokes - number
    v = torch.minimum(torch.minimum(part, 1 - part) / ramp, torch.ones((), dtype=torch.float64))
    travel = (part.clamp(max=ramp) ** 2 - (part - 1 + ramp).clamp(min=0) ** 2) / (2 * ramp) + (part - ramp).clamp(min=0)
    way = half * (number * (1 - ramp) + travel)
    backwards = number % 2
    loud = v * (1 + (float(amplitude(back)) - 1) * backwards)

    omega = 2 * math.pi * wobble
    swing = (0.002 + 0.1 * slack) / omega * torch.sin(omega * s.seconds(clip.samples) + clip.angles(1))
    mesh = clip.bank(f_m * (way + swing), _harmonics(6, 5) + mesh_level - 6 * dry, torch.full_like(half, f_m))
    rolling = clip.bank(balls * way, _harmonics(4, 3) - 10, torch.full_like(half, balls))
    here = clip.vary(servo)
    drive = clip.bank(
        here * s.warped_time(clip.draws, clip.samples, clip.spread), _harmonics(2, 10) + servo_level, here
    )
    rail = clip.shape(clip.noise(s.tilt(knee, slope)), s.tilt(1_000, -1.5 * dry) + 9 * dry)
    moving = torch.fft.rfft((mesh + rolling) * loud + drive * (v > 0.05) + clip.wave(rail) * loud**1.2)

    first = strokes[:, :1]
    reversals = (torch.arange(int(clip.duration / 0.4) + 3) + 1 - first % 1) * half
    even = amplitude(clip.spread * clip.draws.normal(reversals.shape[1]))
    turnings = s.pulses(reversals, even, clip.samples)
    energy = torch.sqrt(0.1 * RATE * torch.ones(1, 1, dtype=torch.float64))
    slap = turnings * clip.kick(one.modes(120, 900, 3), 0.012) * energy * amplitude(knock_level - 14 + 20 * slack)
    stop = turnings * clip.kick(one.modes(400, 3_000, 4), 0.006) * energy * amplitude(knock_level - 12)

    where = torch.where((torch.arange(reversals.shape[1]) + first.floor()) % 2 == 0, 1 - place, place)
    passing = (reversals[..., None] + half[..., None] * where[..., None] + 0.007 * torch.arange(5)).flatten(1)
    damage = s.pulses(passing, torch.ones(1, 1, dtype=torch.float64), clip.samples) * clip.kick(
        one.modes(1_000, 6_000, 4), 0.004
    )
    cry = clip.vary(one.modes(2_500, 6_000, 1))
    trill = 0.003 / (2 * math.pi * 9) * torch.sin(2 * math.pi * 9 * s.seconds(clip.samples) + clip.angles(1))
    squeal = (
        clip.bank(cry * (s.seconds(clip.samples) + trill), torch.zeros(1, 1, dtype=torch.float64), cry)
        * v
        * math.sqrt(2)
    )
    worn = clip.wave(bearing(one, clip, torch.full_like(half, 22.0), 24.0)) * v
    added = {
        "worn bearing": torch.fft.rfft(worn),
        "rail damage": damage / torch.sqrt(5 / half / RATE),
        "squeal": torch.fft.rfft(squeal),
    }
    return Sound(moving + slap + stop, added)


def valve(one: Identity, clip: Clips) -> Sound:
    """Solenoid valve: at each opening a knock, a bounce 3 to 8 ms later and a burst of gas; coil and PWM whine while
    held; a softer release.

    Contamination delays, weakens and doubles the knock; clogging takes flow and lengthens the burst; a leak hisses
    while the valve is shut; a sluggish release comes late and soft.
    """
    period, duty = one.speed(0.4, 0.9), one.shared(0.3, 0.6)
    bounce, burst = one.speed(0.003, 0.008), one.speed(0.03, 0.15)
    knee, gas_level, coil_level, whine_level = (
        one.shared(1_500, 3_000),
        one.level(-4, 6),
        one.level(-26, -16),
        one.level(-30, -20),
    )
    whine, softer = one.modes(1_000, 4_000, 1), one.level(-9, -4)
    grit, clogging, late = clip.level("contamination"), clip.level("clogging"), clip.level("sluggish release")

    here = period * clip.speed(one)
    count = int(clip.duration / 0.35) + 4
    openings = (torch.arange(count) - 1 - clip.draws.uniform(0, 1)) * here
    openings = openings + 0.004 * clip.spread * clip.draws.normal(count)
    releases = openings + duty * here + 0.06 * late
    strength = amplitude(clip.spread * clip.draws.normal(count))
    track = _steps(openings, releases, clip.samples)

    modes = one.modes(1_000, 6_000, 4)
    knock = s.kick(
        clip.vary(modes) * (1 - 0.05 * grit),
        torch.full((1, 4), one.shared(0.002, 0.015), dtype=torch.float64),
        torch.ones(1, 4, dtype=torch.float64),
        clip.samples,
    )
    struck = openings + 0.04 * grit
    hits = s.pulses(struck, strength, clip.samples) + amplitude(-8.0) * s.pulses(
        struck + bounce, strength, clip.samples
    )
    hits = (
        hits + 1.0 * grit.clamp(max=1) * s.pulses(struck + 0.012 + 0.01 * grit, strength, clip.samples)
    ) * amplitude(-6 * grit)
    back = s.pulses(releases, strength, clip.samples) * amplitude(softer - 10 * late)
    energy = math.sqrt(0.5 * RATE)
    decay = torch.fft.rfft(torch.exp(-s.seconds(clip.samples) / (burst * (1 + clogging))))
    gust = clip.wave(s.pulses(openings + 0.04 * grit, strength, clip.samples) * decay).clamp(min=0) + 0.15 * track
    gas = clip.wave(clip.shape(clip.noise(s.passband(knee, 7_600, 9.0)), s.tilt(2_000, 3 * clogging))) * gust
    gas = gas * amplitude(gas_level - 12 * clogging)
    coil = clip.bank(
        2 * LINE * s.seconds(clip.samples) + clip.draws.uniform(0, 1),
        _harmonics(6, 4) + coil_level,
        torch.full_like(here, 100.0),
    )
    song = clip.vary(whine)
    sing = clip.bank(song * s.seconds(clip.samples), _harmonics(2, 6) + whine_level, song)
    running = (hits + back) * knock * energy + torch.fft.rfft(gas + (coil + sing) * track)
    shut = clip.wave(clip.noise(s.passband(4_000, 7_600))) * (1 - track)
    return Sound(running, {"leakage": torch.fft.rfft(shut)})


def _steps(on: Tensor, off: Tensor, samples: int) -> Tensor:
    """1 between each time in `on` and the one in `off` after it, else 0, (B, E) each in seconds -> (B, samples)."""
    track = torch.zeros(len(on), samples + 1, dtype=torch.float64)
    for times, sign in ((on, 1.0), (off, -1.0)):
        place = (times * RATE).round().long().clamp(0, samples)
        track.scatter_add_(1, place, torch.full_like(times, sign))
    return track.cumsum(1)[:, :-1].clamp(0, 1)


def toy_car(one: Identity, clip: Clips) -> Sound:
    """Mini-4WD: motor orders 1 to 6, commutation 6 f, an 8-tooth pinion's mesh 8 f, wheels at f / ratio, noise, 12
    random knocks a second.

    A car's case is a motor and a bearing, plastic or steel (ToyADMOS). A bent shaft modulates everything at the wheel
    rate; a chipped tooth knocks once a turn and puts sidebands on the mesh; a melted gear loses mesh and gains noise; a
    steel ribbon ticks on the floor.
    """
    f, ratio, plastic = one.speed(120, 450), one.shared(3.5, 5.0), one.count(0, 1)
    fall, tonal, knee = one.shared(2, 5), one.level(-4, 5), one.modes(250, 900, 1)
    slope = one.shared(3.5, 6.0) + plastic
    bent, chipped, melted = clip.level("bent shaft"), clip.level("chipped tooth"), clip.level("melted gear")

    v = clip.speed(one) * (1 - 0.03 * melted)
    sag = 0.01 * clip.spread * clip.draws.uniform(0, 1)
    time = s.warped_time(clip.draws, clip.samples, clip.spread)
    time = time - sag * time**2 / (2 * clip.duration)
    phase = f * v * time + clip.draws.uniform(0, 1)
    wheel = f / ratio * v
    roll = torch.cos(2 * math.pi * phase / ratio)
    orders = _harmonics(12, fall) + tonal
    orders[:, 5::6] += 8
    motor = clip.bank(phase, orders, f * v)
    mesh = clip.bank(8 * phase, _harmonics(2, 6) + tonal - 4 - 6 * melted, 8 * f * v) * (1 + 0.8 * chipped * roll)
    low = torch.tensor([[0.0, -4.0]], dtype=torch.float64) + tonal - 20 + 24 * bent
    wheels = clip.bank(phase / ratio, low, wheel)
    hiss = clip.shape(clip.noise(s.tilt(knee, slope)), s.tilt(1_000, -1.5 * melted) + 5 * melted) * amplitude(
        -3.0 * plastic
    )
    sound = (motor + mesh + clip.wave(hiss)) * (1 + 0.6 * bent.clamp(max=1.5) * roll) + wheels
    times = s.poisson_times(clip.draws, 12.0, 12.0, clip.duration)
    sizes = torch.exp(0.5 * clip.draws.normal(times.shape[1])) * amplitude(-10.0)
    knocks = s.pulses(times, sizes, clip.samples) * clip.kick(one.modes(300, 3_000, 4), 0.005) / math.sqrt(12 / RATE)
    running = (torch.fft.rfft(sound) + knocks) * amplitude(40 * torch.log10(v))

    per_turn = one.count(1, 3)
    ticks = s.regular_times(clip.draws, per_turn * wheel, per_turn * 600 / 3.5, clip.duration, 0.05)
    ribbon = s.pulses(ticks, torch.exp(0.4 * clip.draws.normal(ticks.shape[1])), clip.samples)
    ribbon = ribbon * clip.kick(one.modes(4_300, 7_000, 3), 0.0015) / torch.sqrt(1.17 * per_turn * wheel / RATE)
    slow = wheel / 3
    teeth = s.regular_times(clip.draws, slow, 70.0, clip.duration, 0.01)
    tooth = s.pulses(teeth, torch.ones(1, 1, dtype=torch.float64), clip.samples)
    tooth = tooth * clip.kick(one.modes(1_000, 4_000, 4), 0.003) / torch.sqrt(slow / RATE)
    return Sound(running, {"steel ribbon": ribbon, "chipped tooth": tooth})


def toy_conveyor(one: Identity, clip: Clips) -> Sound:
    """Toy belt conveyor: motor, two gear stages, rollers of slightly different speed, a splice once a belt turn,
    irregular rattle.

    Tension slows the belt, spreads the rollers and adds noise; a slack belt wobbles and slaps; an object on the belt
    knocks once a belt turn at 0.15 to 0.9 kHz; voltage moves all tones.
    """
    f, belt, rollers = one.speed(100, 200), one.speed(0.6, 1.5), one.count(3, 6)
    teeth, ratio, fall, tonal = one.count(8, 12), one.shared(2.5, 4.0), one.shared(3, 6), one.level(-4, 4)
    knee, slope, rattles = one.modes(300, 1_000, 1), one.shared(3.5, 5.5), one.shared(20, 40)
    roller, wobble = one.modes(60, 160, rollers), one.shared(6, 12)
    slack, chipped, tension = clip.level("slack belt"), clip.level("chipped tooth"), clip.level("tension")

    v = clip.speed(one) * (1 - 0.04 * tension) * (1 - 0.01 * slack)
    phase = f * v * s.warped_time(clip.draws, clip.samples, clip.spread) + clip.draws.uniform(0, 1)
    omega = 2 * math.pi * wobble
    swing = (0.002 + 0.1 * slack) * f / omega * torch.sin(omega * s.seconds(clip.samples) + clip.angles(1))
    motor = clip.bank(phase, _harmonics(8, fall) + tonal, f * v)
    first = clip.bank(teeth * phase, _harmonics(3, 5) + tonal - 4, teeth * f * v)
    turn = torch.cos(2 * math.pi * phase / ratio)
    second = clip.bank((phase + swing) * (teeth / ratio), _harmonics(4, 5) + tonal - 2, teeth / ratio * f * v)
    gears = (first + second) * (1 + 0.8 * chipped * turn)
    hiss = clip.wave(clip.noise(s.tilt(knee, slope))) * amplitude(4 * tension)
    here = clip.vary(roller) * v * (1 + 0.06 * tension * torch.linspace(-1, 1, rollers, dtype=torch.float64))
    here = torch.cat([here, 2 * here], 1)
    size = amplitude(-8 - 6 * (torch.arange(2 * rollers) // rollers)) * math.sqrt(2 / rollers)
    rolling = s.steady_tone(here, size.expand_as(here), clip.angles(2 * rollers), clip.samples)
    times = s.poisson_times(clip.draws, rattles, rattles, clip.duration)
    sizes = torch.exp(0.7 * clip.draws.normal(times.shape[1])) * amplitude(-6.0)
    rattle = (
        s.pulses(times, sizes, clip.samples) * clip.kick(one.modes(500, 5_000, 4), 0.004) / math.sqrt(rattles / RATE)
    )
    turns = v / belt
    laps = s.regular_times(clip.draws, turns, 2.5, clip.duration)
    lap = s.pulses(laps, torch.ones(1, 1, dtype=torch.float64), clip.samples) / torch.sqrt(turns / RATE)
    splice = lap * clip.kick(one.modes(200, 900, 3), 0.01) * amplitude(-12.0 + 14 * slack)
    running = (torch.fft.rfft(motor + gears + hiss) + rolling + rattle + splice) * amplitude(40 * torch.log10(v))

    later = s.pulses(laps + 0.4 / turns, torch.ones(1, 1, dtype=torch.float64), clip.samples) / torch.sqrt(turns / RATE)
    chips = s.regular_times(clip.draws, f * v / ratio / 3, 40.0, clip.duration, 0.01)
    tooth = s.pulses(chips, torch.ones(1, 1, dtype=torch.float64), clip.samples) / torch.sqrt(f * v / ratio / 3 / RATE)
    cry = clip.vary(one.modes(2_500, 6_000, 1))
    trill = 0.003 / (2 * math.pi * 9) * torch.sin(2 * math.pi * 9 * s.seconds(clip.samples) + clip.angles(1))
    grip = 0.5 + 0.5 * torch.cos(2 * math.pi * turns * s.seconds(clip.samples) + clip.angles(1))
    squeal = (
        clip.bank(cry * (s.seconds(clip.samples) + trill), torch.zeros(1, 1, dtype=torch.float64), cry) * grip * 2.3
    )
    added = {
        "worn bearing": bearing(one, clip, f * v / ratio, 90.0),
        "object on belt": later * clip.kick(one.modes(150, 900, 3), 0.012),
        "chipped tooth": tooth * clip.kick(one.modes(1_000, 4_000, 4), 0.003),
        "squeal": torch.fft.rfft(squeal),
    }
    return Sound(running, added)


SOURCES = {"fan": fan, "pump": pump, "slider": slider, "ToyCar": toy_car, "ToyConveyor": toy_conveyor, "valve": valve}
