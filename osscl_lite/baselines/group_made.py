"""Group MADE: the density of a window, frame by frame. Giri et al., DCASE 2020 Task 2, winner. Explained in chapter 9.

MADE (Germain et al., ICML 2015) writes a density as a product of conditionals, all from one network whose masks let no
value see itself or a later one. Here the masks speak of groups, and a group is one frame of all bands:

    p(x) = prod_g p(x_g | x_1 ... x_(g-1)),    each conditional a diagonal Gaussian.

The score is -log p, the mean over a clip's windows. Left open by what is published, so ours: windows of 5 frames with
the middle one last, which makes the last conditional a probabilistic IDNN; 4 hidden layers of 512 ReLU; one network a
machine type that is told the machine ID as a one-hot vector; bands standardised over the type's training clips;
log-variances kept within -7 and 7; Adam at 1e-4, batches of 512 windows, 100 epochs; and all of the small sizes.
"""

from dataclasses import dataclass
from math import log, pi
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from osscl_lite.baselines.windows import Network, Windowed, WindowRecipe, fit_windows

LAYERS, LOWEST, HIGHEST = 4, -7.0, 7.0  # hidden layers; log-variances
SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "book": dict(seconds=2.0, bands=64, hidden=256, epochs=8, learning_rate=1e-3),
    "tiny": dict(seconds=2.0, bands=32, hidden=128, epochs=10, batch_size=128, learning_rate=1e-3),
    "features": dict(hidden=256, epochs=8, learning_rate=1e-3),
}


@dataclass(frozen=True)
class GroupMADERecipe(WindowRecipe):
    """All of Group MADE; ``hidden`` is the width of its layers. Explained in chapter 9."""

    name: str = "group-made"
    size: str = "paper"
    learning_rate: float = 1e-4
    hidden: int = 512


def recipe(size: str = "paper") -> GroupMADERecipe:
    """The recipe at a size: "paper", "book", "tiny" or "features". Explained in chapter 9."""
    return GroupMADERecipe(size=size, **SIZES[size])


class MaskedLinear(nn.Linear):
    """A linear layer in which a unit sees those before it whose degree is at most its own.

    Args:
        before, after: the degrees of inputs and outputs, (I,) and (O,).
    """

    def __init__(self, before: Tensor, after: Tensor) -> None:
        super().__init__(len(before), len(after))
        self.register_buffer("mask", (before <= after.unsqueeze(1)).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.mask, self.bias)


class GroupMADE(Network):
    """log p of windows of ``context`` frames, told the machine ID.

    Group g = 1 ... G has degree g, the ID 0, hidden units 0 ... G - 1 in turn; the outputs of group g have g - 1.
    """

    recipe_type = GroupMADERecipe

    def __init__(self, recipe: GroupMADERecipe, machine_ids: int) -> None:
        super().__init__(recipe, machine_ids)
        groups, bands = recipe.context, recipe.bands
        middle = groups // 2
        self.order = [frame for frame in range(groups) if frame != middle] + [middle]  # frames as groups 1 ... G
        values = torch.arange(1, groups + 1).repeat_interleave(bands)
        degrees = [torch.cat([values, torch.zeros(machine_ids)]), *[torch.arange(recipe.hidden) % groups] * LAYERS]
        layers: list[nn.Module] = []
        for before, after in zip(degrees, degrees[1:], strict=False):
            layers += [MaskedLinear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, MaskedLinear(degrees[-1], torch.cat([values - 1, values - 1])))
        self.register_buffer("mean", torch.zeros(bands))  # dB
        self.register_buffer("std", torch.ones(bands))

    def start(self, pictures: Tensor) -> None:
        self.mean.copy_(pictures.mean((0, 1)))
        self.std.copy_(pictures.std((0, 1)).clamp_min(1e-6))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised groups (B, G, bands), ID (B,) -> mean and log-variance of each value, both (B, G, bands)."""
        told = torch.cat([x.flatten(1), functional.one_hot(y, self.machine_ids).to(x)], 1)
        mean, log_variance = self.layers(told).view(len(x), 2, *x.shape[1:]).unbind(1)
        return mean, log_variance.clamp(LOWEST, HIGHEST)

    def score(self, windows: Tensor, y: Tensor) -> Tensor:
        """-log p of the window as it came in, in nats: (B, bands, context), (B,) -> (B,)."""
        x = (windows.transpose(1, 2)[:, self.order] - self.mean) / self.std
        mean, log_variance = self(x, y)
        nats = 0.5 * (log_variance + (x - mean).square() * (-log_variance).exp() + log(2 * pi)) + self.std.log()
        return nats.sum((1, 2))

    def loss(self, windows: Tensor, y: Tensor) -> Tensor:
        return self.score(windows, y).mean()


def fit(
    recipe: GroupMADERecipe,
    clips: pd.DataFrame,
    *,
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> Windowed:
    """Train Group MADE; see ``fit_windows``. Explained in chapter 9."""
    return fit_windows(recipe, clips, GroupMADE, device=device, out=out, progress=progress)
