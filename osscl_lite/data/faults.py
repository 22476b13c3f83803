"""What can go wrong with each machine type, how badly, and the frozen constants of the machine hall.

A machine carries every fault mechanism of its type at all times, at a small level of its own: no real machine is
perfect. A faulty clip adds its severity to one of them (a toy's clip, to two of them in 3 of 10 clips):

    level_f = character_f + jitter + gain * severity_f

so that machines of a type differ along the same directions in which they fail. Names of the faults follow the
conditions that the makers of MIMII (arXiv:1909.09347: contamination, leakage, clogging, voltage change, unbalance, rail
damage, loose belt, no grease) and ToyADMOS (arXiv:1908.03299: bent shaft, deformed or melted gear, coiled tyre,
voltage; tension and tail pulley, object on belt) recorded; worn bearings, cavitation, rubbing and squeal are textbook
ones (Randall & Antoni 2011, McFadden & Smith 1984, Brennen). Explained in chapter 1 and in the appendix on the hall.
"""

from __future__ import annotations

from dataclasses import dataclass

from osscl_lite.data.sounds import Draws

BANDS = ("below 1 kHz", "1 to 6 kHz", "above 4 kHz", "all")
BELOW, MIDDLE, ABOVE, ALL = BANDS


@dataclass(frozen=True)
class Fault:
    """One way to fail: its name, the band it sounds in, and its share of a type's faulty clips."""

    name: str
    band: str
    share: float


@dataclass(frozen=True)
class Constants:
    """The calibrated constants of a machine type; nothing else was turned.

    Args:
        level: level of the machine in the room, dBFS, lowest and highest of the IDs (MIMII -38 ... -45, ToyADMOS -33).
        snr: machine over factory noise, dB, lowest and highest of the IDs (a machine's own, as in MIMII).
        spread: factor on every clip-to-clip spread (1: speed 0.9 %, modes 1.2 %, tones 1 dB, colour 1.5 dB).
        level_spread: spread between clips of the level of machine and noise, dB (MIMII 0.1 ... 0.4, ToyADMOS 2).
        walk: slow wandering of the machine's level within a clip, dB.
        strangeness: how far apart the designs of a type lie, as part of their numbers' ranges (1: unrelated products).
        kin: factor on the distances of siblings and cousins.
        character: highest level of a fault mechanism that a normal machine of the type may carry.
        kinship: part of its character that a sibling does not share with its twin machine, 0 ... 1.
        floor: smallest severity of a faulty clip.
        gain: level that a severity of 1 adds.
        onset: level of an additive fault in its band over the machine's own at level 0, dB.
        growth: dB that it gains by level 1.
        factory: spreads of the noise between clips: fall (dB an octave), colour (dB), wandering (dB).
    """

    level: tuple[float, float]
    snr: tuple[float, float]
    spread: float
    level_spread: float
    walk: float
    strangeness: float
    kin: float
    character: float
    kinship: float
    floor: float
    gain: float
    onset: float
    growth: float
    factory: tuple[float, float, float]


FAULTS: dict[str, tuple[Fault, ...]] = {
    "fan": (
        Fault("worn bearing", ABOVE, 0.20),
        Fault("imbalance", BELOW, 0.20),
        Fault("clogging", ALL, 0.15),
        Fault("rubbing", MIDDLE, 0.15),
        Fault("cracked blade", ALL, 0.15),
        Fault("wrong voltage", ALL, 0.15),
    ),
    "pump": (
        Fault("worn bearing", ABOVE, 0.10),
        Fault("leakage", ABOVE, 0.10),
        Fault("imbalance", BELOW, 0.20),
        Fault("clogging", ALL, 0.30),
        Fault("cavitation", MIDDLE, 0.30),
    ),
    "slider": (
        Fault("worn bearing", ABOVE, 0.20),
        Fault("slack belt", BELOW, 0.20),
        Fault("no grease", ALL, 0.20),
        Fault("rail damage", MIDDLE, 0.20),
        Fault("squeal", MIDDLE, 0.20),
    ),
    "ToyCar": (
        Fault("steel ribbon", ABOVE, 0.20),
        Fault("bent shaft", BELOW, 0.20),
        Fault("chipped tooth", MIDDLE, 0.20),
        Fault("melted gear", ALL, 0.20),
        Fault("wrong voltage", ALL, 0.20),
    ),
    "ToyConveyor": (
        Fault("worn bearing", ABOVE, 0.20),
        Fault("slack belt", BELOW, 0.10),
        Fault("object on belt", BELOW, 0.10),
        Fault("chipped tooth", MIDDLE, 0.15),
        Fault("squeal", MIDDLE, 0.15),
        Fault("wrong voltage", ALL, 0.15),
        Fault("tension", ALL, 0.15),
    ),
    "valve": (
        Fault("leakage", ABOVE, 0.20),
        Fault("contamination", MIDDLE, 0.35),
        Fault("clogging", ALL, 0.25),
        Fault("sluggish release", MIDDLE, 0.20),
    ),
}

VOLTAGE = {"fan": 0.05, "ToyCar": 0.165, "ToyConveyor": 0.165}  # part of the speed at severity 1; ToyADMOS: 12 to 17 %
TWO_FAULTS = {"ToyCar": 0.3, "ToyConveyor": 0.3}  # part of the faulty clips with two faults

CONSTANTS: dict[str, Constants] = {
    "fan": Constants(
        level=(-45.0, -38.0),
        snr=(3.0, 9.0),
        level_spread=0.5,
        spread=0.45,
        walk=0.8,
        strangeness=0.12,
        kin=1.0,
        character=0.5,
        kinship=0.3,
        floor=0.3,
        gain=0.52,
        onset=-10.0,
        growth=20.0,
        factory=(1.3, 5.0, 1.2),
    ),
    "pump": Constants(
        level=(-45.0, -38.0),
        snr=(3.0, 9.0),
        level_spread=0.5,
        spread=0.7,
        walk=0.8,
        strangeness=0.05,
        kin=1.0,
        character=0.5,
        kinship=0.3,
        floor=0.2,
        gain=0.85,
        onset=-12.0,
        growth=20.0,
        factory=(1.3, 5.0, 1.2),
    ),
    "slider": Constants(
        level=(-48.0, -41.0),
        snr=(3.0, 9.0),
        level_spread=0.5,
        spread=0.45,
        walk=0.8,
        strangeness=0.02,
        kin=0.5,
        character=0.5,
        kinship=0.15,
        floor=0.2,
        gain=1.3,
        onset=-10.0,
        growth=21.0,
        factory=(1.3, 5.0, 1.2),
    ),
    "ToyCar": Constants(
        level=(-36.0, -33.5),
        snr=(3.0, 9.0),
        level_spread=2.0,
        spread=0.55,
        walk=1.4,
        strangeness=0.03,
        kin=0.5,
        character=0.5,
        kinship=0.15,
        floor=0.15,
        gain=1.1,
        onset=-10.0,
        growth=20.0,
        factory=(0.7, 2.5, 1.2),
    ),
    "ToyConveyor": Constants(
        level=(-36.0, -33.5),
        snr=(3.0, 9.0),
        level_spread=2.0,
        spread=1.1,
        walk=1.4,
        strangeness=0.02,
        kin=0.6,
        character=0.5,
        kinship=0.3,
        floor=0.1,
        gain=0.6,
        onset=-15.0,
        growth=17.5,
        factory=(0.7, 2.5, 1.2),
    ),
    "valve": Constants(
        level=(-45.0, -42.0),
        snr=(8.0, 14.0),
        level_spread=0.5,
        spread=0.3,
        walk=0.8,
        strangeness=0.05,
        kin=0.5,
        character=0.5,
        kinship=0.15,
        floor=0.3,
        gain=1.4,
        onset=-4.0,
        growth=24.0,
        factory=(1.3, 5.0, 1.2),
    ),
}


def faults_of(machine_type: str, key: str) -> tuple[tuple[Fault, ...], float, float]:
    """The fault or faults of one faulty clip.

    Severity is floor + (1 - floor) u, where u is U(0, 0.25) in a quarter of the clips, U(0.25, 0.7) in half, U(0.7, 1)
    in a quarter.

    Args:
        machine_type: the clip's type.
        key: the key of the clip's fault stream.

    Returns:
        The faults, their common severity in 0 ... 1, and the sign of a voltage fault.
    """
    u = Draws([key]).uniform(0, 1, 6)[0].tolist()
    candidates = list(FAULTS[machine_type])
    chosen = [_pick(candidates, u[0])]
    if u[1] < TWO_FAULTS.get(machine_type, 0.0):
        chosen.append(_pick([fault for fault in candidates if fault is not chosen[0]], u[2]))
    low, high = (0.0, 0.25) if u[3] < 0.25 else (0.25, 0.7) if u[3] < 0.75 else (0.7, 1.0)
    floor = CONSTANTS[machine_type].floor
    severity = floor + (1 - floor) * (low + (high - low) * u[4])
    return tuple(chosen), round(severity, 3), 1.0 if u[5] < 0.5 else -1.0


def _pick(candidates: list[Fault], u: float) -> Fault:
    place = u * sum(fault.share for fault in candidates)
    for fault in candidates:
        place -= fault.share
        if place < 0:
            return fault
    return candidates[-1]
