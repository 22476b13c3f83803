"""The 41 machines: who is related to whom, and what each machine keeps for life.

Machines of a type come from few makers. Siblings share a design, a room and nearly all numbers; cousins are further
apart; a stranger is drawn alone. What a machine is depends on the hall's version only, never on the seed that draws its
clips. Explained in chapter 1 and in the appendix on the hall.
"""

from __future__ import annotations

import math

from torch import Tensor

from osscl_lite.data.faults import CONSTANTS, FAULTS
from osscl_lite.data.sounds import Draws

HALL_VERSION = "1"

# Families by last digit: the first machine is the design, the others are its kin.
_KIN = {
    "": (0.0, 0.0, 0.0),
    "sibling": (0.0135, 0.02, 0.7),
    "cousin": (0.05, 0.08, 1.5),
}  # speed, modes (relative), levels (dB)
_PLAIN = {0: (0, ""), 2: (0, "sibling"), 1: (1, ""), 3: (1, "sibling"), 4: (4, ""), 5: (4, "cousin"), 6: (6, "")}
_CAR = {1: (1, ""), 2: (1, "sibling"), 3: (3, ""), 4: (3, "cousin"), 5: (5, ""), 6: (5, "sibling"), 7: (7, "")}
_CONVEYOR = {1: (1, ""), 2: (1, "sibling"), 3: (1, "cousin"), 4: (4, ""), 5: (4, "sibling"), 6: (4, "cousin")}
_FAMILIES = {"fan": _PLAIN, "pump": _PLAIN, "slider": _PLAIN, "valve": _PLAIN, "ToyCar": _CAR, "ToyConveyor": _CONVEYOR}


def siblings() -> list[tuple[str, str]]:
    """Pairs of machines that are made nearly alike, by name ("fan/id_00", "fan/id_02"). Explained in chapter 1."""
    return [
        (f"{kind}/id_{head:02d}", f"{kind}/id_{member:02d}")
        for kind in _FAMILIES
        for member, (head, kin) in _FAMILIES[kind].items()
        if kin == "sibling"
    ]


class Identity:
    """Draws what one machine keeps for life; each call draws the next number, shared with its kin."""

    def __init__(self, machine_type: str, machine_id: str):
        number = int(machine_id.removeprefix("id_"))
        head, kin = _FAMILIES[machine_type][number]
        self.head, self.number = head, number
        self.machine_type, self.machine_id = machine_type, machine_id
        self.constants = CONSTANTS[machine_type]
        self.far_speed, self.far_mode, self.far_level = (self.constants.kin * far for far in _KIN[kin])
        share = {"": 0.0, "sibling": self.constants.kinship, "cousin": 0.8}[kin]
        self._kind = Draws([f"hall {HALL_VERSION}|{machine_type}|kind"])
        self._design = Draws([f"hall {HALL_VERSION}|{machine_type}|{head}|design"])
        self._own = Draws([f"hall {HALL_VERSION}|{machine_type}|{number}|own"])
        worst = self.constants.character
        self.character = {
            fault.name: (1 - share) * float(self._design.uniform(0, worst)) + share * float(self._own.uniform(0, worst))
            for fault in FAULTS[machine_type]
            if fault.name != "wrong voltage"
        }
        self.loudness = self.level(*self.constants.level)
        self.snr = self.level(*self.constants.snr, own=False)

    def _unit(self, count: int = 1) -> Tensor:
        """Where in its range a number of the design lies, 0 ... 1, (1, count): round what the whole type has."""
        kind, design = self._kind.uniform(0, 1, count), self._design.uniform(0, 1, count)
        return kind + self.constants.strangeness * (design - kind)

    def count(self, low: int, high: int) -> int:
        """A whole number (blades, teeth, balls), low ... high; a family shares it."""
        return min(high, int(low + (high + 1 - low) * self._unit()))

    def shared(self, low: float, high: float) -> float:
        """A number that a family shares (a ratio, a room), uniform."""
        return low + (high - low) * float(self._unit())

    def _away(self, far: float) -> float:
        sign, size = self._own.uniform(-1, 1, 2)[0].tolist()
        return math.copysign(far * (0.9 + 0.2 * abs(size)), sign)

    def speed(self, low: float, high: float) -> float:
        """A rate in Hz (or a time in s), log-uniform; siblings are 1.2 to 1.5 % apart, cousins 5 %."""
        return low * (high / low) ** float(self._unit()) * (1 + self._away(self.far_speed))

    def modes(self, low: float, high: float, count: int) -> Tensor:
        """Frequencies of resonances in Hz, log-uniform, (1, count); siblings are 2 % apart, cousins 8 %."""
        return low * (high / low) ** self._unit(count) * (1 + self.far_mode * self._own.normal(count))

    def level(self, low: float, high: float, own: bool = True) -> float:
        """A level in dB (or any linear number), uniform; siblings are 0.7 dB apart, cousins 1.5 dB, if `own`."""
        shared = self.shared(low, high)
        return shared + 0.5 * self.far_level * float(self._own.normal()) if own else shared

    def place(self) -> tuple[Draws, Draws, Draws]:
        """Streams for room and equaliser: of the type (one laboratory), of the family, of the machine itself."""
        return tuple(
            Draws([f"hall {HALL_VERSION}|{self.machine_type}|{who}|place"])
            for who in ("kind", self.head, f"own {self.number}")
        )
