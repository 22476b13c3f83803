"""Recipes: every hyper-parameter of a detector as plain data. Explained in chapter 5.

``recipe("tfstgram-osscl")`` gives the paper's values; ``replace(recipe, reduction=16)`` is a column of its Table VI.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

from osscl_lite.features import FRONT_ENDS, MEL_SCALES, frames_of
from osscl_lite.mobilefacenet import BOTTLENECKS
from osscl_lite.perturbation import ACTIVATIONS

# What a value may be: field, lowest, highest. None is a reduction too: no head.
RANGES: tuple[tuple[str, float, float], ...] = (
    ("seconds", 0.1, 600),
    ("bands", 1, 1024),
    ("frames", 1, 100_000),
    ("width", 1, 1024),
    ("embedding", 1, 8192),
    ("reduction", 1, 8192),
    ("epochs", 1, 100_000),
    ("batch_size", 2, 100_000),
    ("learning_rate", 0, 10),
    ("temperature", 1e-4, 100),
    ("mixup_beta", 1e-3, 1e3),
    ("holdout", 0, 0.9),
    ("flat_epochs", 0, 1),
    ("highest_hz", 100, 100_000),
)


class Values:
    """What the recipes of all systems have, frozen dataclasses with a name: checks, and their values as plain data."""

    later: ClassVar[tuple[str, ...]] = ()  # fields that older files may lack; they get their defaults

    def check(self, allowed: dict[str, Iterable[str | int]], ranges: Iterable[tuple[str, float, float]]) -> None:
        """Raise a ValueError for a value that is none of the allowed ones, or out of its range (None is out of all)."""
        for field, values in allowed.items():
            if (value := getattr(self, field)) not in values:
                raise ValueError(f"recipe {self.name}: {field} {value!r} is none of {', '.join(map(str, values))}")
        for field, low, high in ranges:
            value = getattr(self, field)
            if value is None or not low <= value <= high:
                raise ValueError(f"recipe {self.name}: {field} must lie from {low:g} to {high:g}, got {value}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild a recipe from ``to_dict``.

        Raises:
            ValueError: naming the fields that are missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        if odd := sorted(set(values) - known | known - set(cls.later) - set(values)):
            raise ValueError(f"no {cls.__name__} of this version of osscl_lite: missing or unknown {', '.join(odd)}")
        return cls(**values)


@dataclass(frozen=True)
class Recipe(Values):
    """One row of the paper's tables at one size. Explained in chapter 5.

    Times are seconds, rates are per step, angles are radians.
    """

    name: str
    size: str
    # What comes in
    front_end: str  # "logmel", "stgram", "tfstgram" or "tastgram"
    input: str = "waveform"  # "log_mel" or "features" where ``fit`` was given precomputed pictures
    seconds: float = 10.0
    sample_rate: int = 16_000
    n_fft: int = 2048
    hop: int = 512
    mel: str = "slaney"  # or "htk", as STgram-MFN has it
    bands: int = 128
    highest_hz: float | None = None  # the network sees the Mel bands below only; None is all
    frames: int = 313  # of waveforms: 1 + samples // hop, whatever is given here
    # The network
    width: int = 64
    bottlenecks: str = "small"  # or "older": the table of MobileFaceNet
    embedding: int = 128  # E
    head: str = "perturbation"  # or "projection": what follows the embedding (CLP-SCF's: one linear layer, BatchNorm)
    reduction: int | None = 64  # R; None leaves the perturbation head out
    activation: str = "leaky_relu"  # of the perturbation head
    # The losses
    # "osscl" (eq. 4 with mixup), "namix" (eq. 2 with mixup), "arcface" (no mixup), or "supcon" (no classes, no mixup)
    loss: str = "osscl"
    mixup_beta: float = 0.5  # lam ~ Beta(0.5, 0.5)
    margin: float = 0.7  # m
    scale: float = 30.0  # s
    temperature: float = 0.02  # tau
    # One stage of training
    epochs: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.1  # as a fraction of learning_rate, the end of the cosine
    flat_epochs: float = 0.0  # fraction of the epochs before the cosine begins
    weight_decay: float = 0.01
    shrink: float = 2e-6  # live floats, BatchNorm statistics included, lose this fraction at each step
    ema_horizon: float = 10_000 / 161_700  # horizon of the moving average as a fraction of the run's steps
    holdout: float = 0.05  # fraction of the training clips, all normal, that chooses the epoch
    seed: int = 2024

    later: ClassVar[tuple[str, ...]] = ("mel", "highest_hz", "bottlenecks", "head", "flat_epochs")

    def __post_init__(self) -> None:
        choices = dict(
            front_end=FRONT_ENDS, input=("waveform", "log_mel", "features"), activation=ACTIVATIONS,
            loss=("osscl", "namix", "arcface", "supcon"), head=("perturbation", "projection"), mel=MEL_SCALES,
            bottlenecks=BOTTLENECKS,
        )  # fmt: skip
        absent = [field for field in ("reduction", "highest_hz") if getattr(self, field) is None]
        self.check(choices, [limits for limits in RANGES if limits[0] not in absent])
        if self.input != "waveform" and self.front_end != "logmel":
            raise ValueError(
                f"recipe {self.name}: {self.front_end} learns from waveforms, and precomputed features have none; "
                "use a logmel recipe"
            )
        if self.highest_hz is not None and (self.front_end != "logmel" or self.input == "features"):
            raise ValueError(f"recipe {self.name}: highest_hz cuts Log-Mel bands, this one has others")
        if self.input == "waveform":  # the picture's width follows from the clip's length
            object.__setattr__(self, "frames", frames_of(round(self.seconds * self.sample_rate), self.hop))


# A size says how long, how wide and how often, for every row alike.
SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "book": dict(seconds=2.0, bands=64, width=16, epochs=16, batch_size=64, learning_rate=1e-3),
    "tiny": dict(seconds=2.0, bands=32, width=16, epochs=3, batch_size=32, learning_rate=1e-3),
    "features": dict(width=32, epochs=15, batch_size=64, learning_rate=1e-3),  # precomputed ones bring their own bands
}
# The programs of STgram-MFN and CLP-SCF: their Log-Mel, Adam, a cosine that begins at epoch 20 of 300, neither moving
# average nor shrink. The epoch is chosen here as in all rows, by held-out normal clips.
OTHERS = dict(
    bottlenecks="older", loss="arcface", reduction=None, batch_size=128, flat_epochs=20 / 300, weight_decay=0.0,
    shrink=0.0, ema_horizon=0.0,
)  # fmt: skip
CLP_SCF = OTHERS | dict(head="projection", margin=1.0, final_learning_rate=0.0)
THEIR_LOG_MEL = dict(mel="htk", n_fft=1024)

ROWS: dict[str, dict[str, Any]] = {
    "logmel-osscl": dict(front_end="logmel"),
    "stgram-osscl": dict(front_end="stgram", activation="relu", margin=0.4),
    "tfstgram-osscl": dict(front_end="tfstgram", activation="relu", margin=0.4),
    "logmel-arcface": dict(front_end="logmel", loss="arcface", reduction=None),
    "stgram-arcface": dict(front_end="stgram", loss="arcface", reduction=None),
    "tfstgram-arcface": dict(front_end="tfstgram", loss="arcface", reduction=None, margin=0.4),
    "logmel-namix": dict(front_end="logmel", loss="namix", reduction=None),
    "tastgram-namix": dict(front_end="tastgram", loss="namix", reduction=None, shrink=0.0, ema_horizon=0.0),
    "stgram-mfn": dict(front_end="stgram") | OTHERS | THEIR_LOG_MEL,
    "clp-scf": dict(front_end="stgram") | CLP_SCF | THEIR_LOG_MEL,
    "logmel-clp-scf": dict(front_end="logmel") | CLP_SCF,
}


def recipe(name: str, size: str = "paper") -> Recipe:
    """Look up a recipe by name. Explained in chapter 5.

    Args:
        name: ``logmel-osscl``, ``stgram-osscl``, ``tfstgram-osscl``, or ``-arcface`` for the same front end with
            ArcFace alone. The STgram margin and activation are ours: the paper states them for the other two only.
            Other systems: ``stgram-mfn`` (Liu et al. 2022), ``clp-scf`` (Guan et al. 2023, the second stage; see
            ``osscl_lite.baselines.clp_scf``), ``tastgram-namix`` (Choi and Choi 2024; on OS-SCL's Log-Mel, whose floor
            differs from theirs in silence only). ``logmel-namix`` and ``logmel-clp-scf`` are the same losses on
            Log-Mel alone, for data without sound.
        size: "paper" (10 s, width 64, 300 epochs), "book" (minutes on two CPU cores), "tiny" (plumbing) or "features"
            (precomputed pictures).

    Raises:
        ValueError: for an unknown name or size, listing the known ones.
    """
    if name not in ROWS:
        raise ValueError(f"unknown recipe {name!r}: choose one of {', '.join(ROWS)}")
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: choose one of {', '.join(SIZES)}")
    return Recipe(name=name, size=size, **ROWS[name] | SIZES[size])


__all__ = ["Recipe", "recipe", "replace"]
