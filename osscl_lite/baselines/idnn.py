"""IDNN: predict the middle frame of a window from its neighbours. Suefusa et al., ICASSP 2020. Explained in chapter 9.

The idea is the paper's; layer widths, k = 5, the optimiser, 100 epochs, batches of 5,000 windows, one network a machine
type and the mean over frames are those of a later implementation by the first author of STgram-MFN, which probably made
the row that has been copied from table to table since. Ours: the Log-Mel of this package (Slaney scale, floor at -100
dB, zero padding), the bias of the last layer starts at the mean spectrum of the training clips, so that short runs
need not walk there from 0 dB, and the epochs, batches and rates of the small sizes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from osscl_lite.baselines.windows import Network, Windowed, WindowRecipe, fit_windows
from osscl_lite.errors import BadInput

HIDDEN = (128, 64, 32, 16, 32, 64, 128)
SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "book": dict(seconds=2.0, bands=64, epochs=20, batch_size=512),
    "tiny": dict(seconds=2.0, bands=32, epochs=10, batch_size=128),
    "features": dict(epochs=20, batch_size=512),
}


@dataclass(frozen=True)
class IDNNRecipe(WindowRecipe):
    """All of IDNN; the middle one of ``context`` frames is hidden. Explained in chapter 9."""

    name: str = "idnn"
    size: str = "paper"
    batch_size: int = 5000


def recipe(size: str = "paper") -> IDNNRecipe:
    """The recipe at a size: "paper", "book", "tiny" or "features". Explained in chapter 9."""
    return IDNNRecipe(size=size, **SIZES[size])


class IDNN(Network):
    """(context - 1) * bands values through 128-64-32-16-32-64-128 to the bands of the middle frame.

    Each hidden layer is Linear, BatchNorm, ReLU; the last one is linear. 104,944 parameters at 5 frames of 128 bands.
    """

    recipe_type = IDNNRecipe

    def __init__(self, recipe: WindowRecipe, machine_ids: int) -> None:
        super().__init__(recipe, machine_ids)
        if recipe.context < 2:
            raise BadInput(
                f"windows of {recipe.context} frame: IDNN predicts a frame from others; give longer pictures"
            )
        widths = [(recipe.context - 1) * recipe.bands, *HIDDEN]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], recipe.bands))

    @torch.no_grad()
    def start(self, pictures: Tensor) -> None:
        self.layers[-1].bias.copy_(pictures.mean((0, 1)))

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, bands, context) -> the middle frame and its prediction, both (B, bands)."""
        middle = windows.shape[2] // 2
        around = torch.cat([windows[:, :, :middle], windows[:, :, middle + 1 :]], 2)
        return windows[:, :, middle], self.layers(around.flatten(1))

    def loss(self, windows: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(*self(windows))

    def score(self, windows: Tensor, y: Tensor) -> Tensor:
        hidden, predicted = self(windows)
        return (hidden - predicted).square().mean(1)


def fit(
    recipe: IDNNRecipe,
    clips: pd.DataFrame,
    *,
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> Windowed:
    """Train IDNN; see ``fit_windows``. Explained in chapter 9."""
    return fit_windows(recipe, clips, IDNN, device=device, out=out, progress=progress)
