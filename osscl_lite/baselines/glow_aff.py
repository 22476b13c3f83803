"""Glow_Aff: a flow for each machine ID, taught by the others of its type. Dohi et al., ICASSP 2021.
Explained in chapter 9.

A flow maps a window x to values z of the same number through invertible steps, and so gives its density: log p(x) =
log N(z; 0, 1) + log abs det dz/dx. Each step of Glow (Kingma and Dhariwal 2018) is an actnorm, an invertible 1x1
convolution and an affine coupling; a level begins with a squeeze (2 x 2 values become 4 channels) and ends with a split
(half of the channels go to z at once). The blocks are those of the library normflows.

The flow of an ID learns to find that ID's windows likely and those of the other IDs of the type unlikely. With D values
in a window and L(x) = log p(x) / D:

    loss = -mean over own windows L + mean over others softplus(L(other) - mean L(own) + gap)

with no gradient through the mean in the second term. The softplus is ours, in place of the paper's penalty: it lies
above 0 and its slope fades once others lie well below, so that pushing them away ends by itself. The score of a window
is -L; a type with one ID has no others and trains on likelihood alone.

From the paper or recalled of it: 128 bands x 32 frames, 3 levels of 12 steps, 512 hidden channels, Adam 1e-4, a batch
half own, half others. Ours: bands standardised over the type's training clips (L is the density of such pictures),
then a first actnorm for each band, since the bands of a spectrum differ as pixels do not; the coupling's scale from
0.12 to 0.998, Glow's sigmoid of a bounded value; the convolution's matrix as it is, without LU factors; windows that do
not overlap; gap and epochs. And all of the small sizes: they squeeze twice before their first level, which leaves a
quarter of the places to compute at, and two windows that share a frame cover the 63 frames of 2 s. A picture whose
bands or frames halve less often gets fewer levels (60 x 8: one, of 15 x 2 places with 16 channels).
"""

from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from osscl_lite.baselines.windows import Network, Windowed, WindowRecipe, fit_windows
from osscl_lite.errors import BadInput

BOUND = 4.0  # of what the coupling's sigmoid sees, less 2: scales from 0.12 to 0.998
DEVIATION = 0.1  # of a band of an ID at the start, at least, as a fraction of the type's

SMALL = dict(squeezes=2, levels=2, steps=4, hidden=32, learning_rate=3e-3)
SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "book": dict(seconds=2.0, bands=64, stride=31, epochs=7, batch_size=112, **SMALL),
    "tiny": dict(seconds=2.0, bands=32, stride=31, epochs=5, batch_size=56, **SMALL),
    "features": dict(epochs=10, batch_size=112, **SMALL),
}


@dataclass(frozen=True)
class GlowRecipe(WindowRecipe):
    """All of Glow_Aff; ``batch_size`` counts own windows, over all IDs of a type, and as many others join.
    Explained in chapter 9.
    """

    name: str = "glow-aff"
    size: str = "paper"
    context: int = 32
    stride: int = 32
    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-4
    squeezes: int = 1  # before the first level
    levels: int = 3
    steps: int = 12  # of a level
    hidden: int = 512  # channels inside a coupling
    gap: float = 1.0  # nats a value

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("squeezes", "levels", "steps", "hidden"):
            if not 1 <= (value := getattr(self, field)) <= 4096:
                raise ValueError(f"recipe {self.name}: {field} must lie from 1 to 4096, got {value}")


def recipe(size: str = "paper") -> GlowRecipe:
    """The recipe at a size: "paper", "book", "tiny" or "features". Explained in chapter 9."""
    return GlowRecipe(size=size, **SIZES[size])


class Coupling(nn.Module):
    """What a coupling reads off its first half: (B, C, H, W) -> (B, 2 C, H, W), shift and scale in turns.

    The last layer starts at zero: at first a coupling shifts nothing and scales by sigmoid(2) = 0.88.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, 2 * channels, 3, padding=1),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, half: Tensor) -> Tensor:
        shift, scale = self.layers(half).chunk(2, 1)
        return torch.stack([shift, BOUND * torch.tanh(scale / BOUND)], 2).flatten(1, 2)


def make_flow(recipe: GlowRecipe) -> nn.Module:
    """One flow over windows (B, 1, bands, context): normflows' ``MultiscaleFlow``.

    Raises:
        BadInput: if bands or frames of a window are odd; or without normflows.
    """
    try:
        import normflows
    except ModuleNotFoundError:
        raise BadInput('normflows is not installed; pip install "osscl_lite[tables]"') from None
    halvings = min(halves(recipe.bands), halves(recipe.context))
    if halvings == 0:
        raise BadInput(
            f"windows of {recipe.bands} bands x {recipe.context} frames: Glow halves both; choose an even context"
        )
    squeezes = min(recipe.squeezes, halvings)
    levels = min(recipe.levels, 1 + halvings - squeezes)
    flows, bases = [], []  # normflows counts levels, and what a level does, from z to x
    channels, height, width = 1, recipe.bands, recipe.context
    for level in range(levels):
        count = 1 if level else squeezes
        channels, height, width = channels * 4**count, height >> count, width >> count
        blocks: list[nn.Module] = []
        for _ in range(recipe.steps):
            blocks += [
                normflows.flows.AffineCouplingBlock(Coupling(channels // 2, recipe.hidden), scale_map="sigmoid"),
                normflows.flows.Invertible1x1Conv(channels),
                normflows.flows.ActNorm((channels, 1, 1)),
            ]
        flows.insert(0, blocks + [normflows.flows.Squeeze() for _ in range(count)])
        channels = channels // 2 if level < levels - 1 else channels
        bases.insert(0, normflows.distributions.DiagGaussian((channels, height, width), trainable=False))
    merges = [normflows.flows.Merge() for _ in range(levels - 1)]
    by_band = normflows.flows.ActNorm((1, recipe.bands, 1))
    return normflows.MultiscaleFlow(bases, flows, merges, transform=by_band, class_cond=False)


def halves(count: int) -> int:
    """How often ``count`` can be halved."""
    return (count & -count).bit_length() - 1


class Glow(Network):
    """A flow for each ID of a type.

    Raises:
        BadInput: if bands or frames of a window are odd; or without normflows.
    """

    recipe_type = GlowRecipe

    def __init__(self, recipe: GlowRecipe, machine_ids: int) -> None:
        super().__init__(recipe, machine_ids)
        self.register_buffer("mean", torch.zeros(recipe.bands, 1))
        self.register_buffer("std", torch.ones(recipe.bands, 1))
        self.flows = nn.ModuleList(make_flow(recipe) for _ in range(machine_ids))
        self.flows.to(memory_format=torch.channels_last)

    def likelihood(self, windows: Tensor, place: int) -> Tensor:
        """Log-density under one ID's flow in nats a value: standardised (B, bands, context) -> (B,)."""
        flow = self.flows[place]
        z, log_det = flow.inverse_and_log_det(windows.unsqueeze(1))  # its own log_prob trips over actnorm's scalar
        log_p = log_det + sum(base.log_prob(part) for base, part in zip(flow.q0, z, strict=True))
        return log_p / windows[0].numel()

    def start(self, pictures: Tensor) -> None:
        self.mean.copy_(pictures.mean((0, 1))[:, None])
        self.std.copy_(pictures.std((0, 1)).clamp_min(1e-3)[:, None])

    @torch.no_grad()
    def begin(self, windows: Tensor, place: int) -> None:
        """Set the actnorms of a flow by the first windows of its ID, standardised (B, bands, context)."""
        by_band = self.flows[place].transform
        by_band.inverse(windows.unsqueeze(1))
        by_band.s.clamp_(min=log(DEVIATION))
        self.likelihood(windows, place)

    def loss(self, windows: Tensor, y: Tensor) -> Tensor:
        windows = (windows.contiguous() - self.mean) / self.std
        total = windows.new_zeros(())
        for place in y.unique().tolist():
            own, others = windows[y == place], windows[y != place]
            if not self.flows[place].transform.data_dep_init_done:
                self.begin(own, place)
            others = others[:: max(1, len(others) // len(own))][: len(own)]  # the batch is shuffled already
            likelihood, unlike = self.likelihood(torch.cat([own, others]), place).split([len(own), len(others)])
            loss = -likelihood.mean()
            if len(others):
                loss = loss + functional.softplus(unlike - likelihood.detach().mean() + self.recipe.gap).mean()
            total = total + loss * len(own) / len(windows)
        return total

    def score(self, windows: Tensor, y: Tensor) -> Tensor:
        windows = (windows.contiguous() - self.mean) / self.std
        scores = windows.new_empty(len(windows))
        for place in y.unique().tolist():
            scores[y == place] = -self.likelihood(windows[y == place], place)
        return scores


def fit(
    recipe: GlowRecipe,
    clips: pd.DataFrame,
    *,
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> Windowed:
    """Train the flows; see ``fit_windows``. Explained in chapter 9."""
    return fit_windows(recipe, clips, Glow, device=device, out=out, progress=progress)
