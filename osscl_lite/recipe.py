"""Recipes: every hyper-parameter of a detector as plain data. Explained in chapter 5.

``recipe("tfstgram-osscl")`` gives the paper's values; ``replace(recipe, reduction=16)`` is a column of its Table VI.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from osscl_lite.features import FRONT_ENDS, frames_of
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
)


@dataclass(frozen=True)
class Recipe:
    """One row of the paper's tables at one size. Times are seconds, rates are per step, angles are radians."""

    name: str
    size: str
    # What comes in
    front_end: str  # "logmel", "stgram" or "tfstgram"
    input: str = "waveform"  # "log_mel" or "features" where ``fit`` was given precomputed pictures
    seconds: float = 10.0
    sample_rate: int = 16_000
    n_fft: int = 2048
    hop: int = 512
    bands: int = 128
    frames: int = 313  # of waveforms: 1 + samples // hop, whatever is given here
    # The network
    width: int = 64
    embedding: int = 128  # E
    reduction: int | None = 64  # R; None leaves the perturbation head out
    activation: str = "leaky_relu"  # of the perturbation head
    # The losses
    loss: str = "osscl"  # "osscl" (eq. 4 with mixup) or "arcface" (neither mixup nor the contrastive loss)
    mixup_beta: float = 0.5  # lam ~ Beta(0.5, 0.5)
    margin: float = 0.7  # m
    scale: float = 30.0  # s
    temperature: float = 0.02  # tau
    # One stage of training
    epochs: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.1  # as a fraction of learning_rate, the end of the cosine
    weight_decay: float = 0.01
    shrink: float = 2e-6  # live floats, BatchNorm statistics included, lose this fraction at each step
    ema_horizon: float = 10_000 / 161_700  # horizon of the moving average as a fraction of the run's steps
    holdout: float = 0.05  # fraction of the training clips, all normal, that chooses the epoch
    seed: int = 2024

    def __post_init__(self) -> None:
        for field, allowed in (
            ("front_end", FRONT_ENDS),
            ("input", ("waveform", "log_mel", "features")),
            ("activation", ACTIVATIONS),
            ("loss", ("osscl", "arcface")),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"recipe {self.name}: {field} {getattr(self, field)!r} is none of {', '.join(allowed)}"
                )
        if self.input != "waveform" and self.front_end != "logmel":
            raise ValueError(
                f"recipe {self.name}: {self.front_end} learns from waveforms, and precomputed features have none; "
                "use a logmel recipe"
            )
        for field, low, high in RANGES:
            value = getattr(self, field)
            if not (low <= value <= high if value is not None else field == "reduction"):
                raise ValueError(f"recipe {self.name}: {field} must lie from {low:g} to {high:g}, got {value}")
        if self.input == "waveform":  # the picture's width follows from the clip's length
            object.__setattr__(self, "frames", frames_of(round(self.seconds * self.sample_rate), self.hop))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Rebuild a recipe from ``to_dict``.

        Raises:
            ValueError: naming the fields that are missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        if odd := sorted(known ^ set(values)):
            raise ValueError(f"not a recipe of this version of osscl_lite: missing or unknown {', '.join(odd)}")
        return cls(**values)


SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "book": dict(seconds=2.0, bands=64, width=16, epochs=16, learning_rate=1e-3),
    "tiny": dict(seconds=2.0, bands=32, width=16, epochs=3, batch_size=32, learning_rate=1e-3),
}

ROWS: dict[str, dict[str, Any]] = {
    "logmel-osscl": dict(front_end="logmel"),
    "stgram-osscl": dict(front_end="stgram", activation="relu", margin=0.4),
    "tfstgram-osscl": dict(front_end="tfstgram", activation="relu", margin=0.4),
    "logmel-arcface": dict(front_end="logmel", loss="arcface", reduction=None),
    "stgram-arcface": dict(front_end="stgram", loss="arcface", reduction=None),
    "tfstgram-arcface": dict(front_end="tfstgram", loss="arcface", reduction=None, margin=0.4),
}


def recipe(name: str, size: str = "paper") -> Recipe:
    """Look up a recipe by name.

    Args:
        name: ``logmel-osscl``, ``stgram-osscl``, ``tfstgram-osscl``, or ``-arcface`` for the same front end with
            ArcFace alone. The STgram margin and activation are ours: the paper states them for the other two only.
        size: "paper" (10 s, width 64, 300 epochs), "book" (minutes on two CPU cores) or "tiny" (plumbing).

    Raises:
        ValueError: for an unknown name or size, listing the known ones.
    """
    if name not in ROWS:
        raise ValueError(f"unknown recipe {name!r}: choose one of {', '.join(ROWS)}")
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: choose one of {', '.join(SIZES)}")
    return Recipe(name=name, size=size, **SIZES[size], **ROWS[name])


__all__ = ["Recipe", "recipe", "replace"]
