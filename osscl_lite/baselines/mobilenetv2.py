"""MobileNetV2 told to name the machine ID. Giri et al., DCASE 2020 workshop. Explained in chapter 9.

One classifier a machine type, over the IDs of that type. The network, its input (segments of 64 frames every 8 frames,
one channel repeated three times, dB as they are), cross-entropy, Adam 1e-5, 20 epochs and batches of 32 are those of
the challenge's baseline of 2021, which has the same idea. The score is the mean over a clip's segments of
log((1 - p) / p), p the probability of the clip's own ID, as that baseline intends: its program has a bracket amiss.

Left open: IDs of one type or of all (Table II says only "classifier"). Ours: the Log-Mel of this package (Slaney scale,
floor at -100 dB, zero padding); torchvision's start of the weights and its BatchNorm (momentum 0.1, eps 1e-5; the
baseline's are Keras's, 0.001 and 1e-3), no dropout; and of the small sizes segments, epochs and rate. A clip of 2 s has
63 frames, fewer than a segment of 64: there, two segments of 32 frames cover it, one frame shared. Left out: the
paper's ArcFace variant and its made-up classes from mixed or warped clips.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from osscl_lite._torchvision import import_torchvision
from osscl_lite.baselines.windows import Network, Windowed, WindowRecipe, fit_windows
from osscl_lite.errors import BadInput
from osscl_lite.losses import log_odds_against

SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "book": dict(seconds=2.0, bands=64, context=32, stride=31, epochs=10, learning_rate=1e-3),
    "tiny": dict(seconds=2.0, bands=32, context=32, stride=31, epochs=5, learning_rate=1e-3),
    "features": dict(stride=34, epochs=8, learning_rate=1e-3),
}


@dataclass(frozen=True)
class MobileNetV2Recipe(WindowRecipe):
    """All of the MobileNetV2 classifier; ``width`` multiplies the channels of its blocks. Explained in chapter 9."""

    name: str = "mobilenetv2"
    size: str = "paper"
    context: int = 64
    stride: int = 8
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 1e-5
    width: float = 0.5


def recipe(size: str = "paper") -> MobileNetV2Recipe:
    """The recipe at a size: "paper", "book", "tiny" or "features". Explained in chapter 9."""
    return MobileNetV2Recipe(size=size, **SIZES[size])


class MobileNetV2(Network):
    """torchvision's MobileNetV2 and a linear layer to the IDs of one type.

    At width 0.5 and K IDs it has 706,224 + 1,281 K numbers, counted as Keras counts: weights, and the running mean and
    variance of each BatchNorm (18,544 of them, which do not learn). The picture's size does not matter.

    Raises:
        BadInput: for a type with a single ID, which leaves nothing to tell apart; or without torchvision.
    """

    recipe_type = MobileNetV2Recipe

    def __init__(self, recipe: MobileNetV2Recipe, machine_ids: int) -> None:
        super().__init__(recipe, machine_ids)
        if machine_ids < 2:
            raise BadInput("MobileNetV2 tells the machine IDs of a type apart: leave out types with a single ID")
        models = import_torchvision().models
        self.classifier = models.mobilenet_v2(num_classes=machine_ids, width_mult=recipe.width, dropout=0.0)
        self.classifier.to(memory_format=torch.channels_last)

    def forward(self, windows: Tensor) -> Tensor:
        """(B, bands, context) -> logits (B, K)."""
        picture = windows.unsqueeze(1).expand(-1, 3, -1, -1)  # (B, 3, bands, context)
        return self.classifier(picture.contiguous(memory_format=torch.channels_last))

    def loss(self, windows: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(self(windows), y)

    def score(self, windows: Tensor, y: Tensor) -> Tensor:
        return log_odds_against(self(windows), y)


def fit(
    recipe: MobileNetV2Recipe,
    clips: pd.DataFrame,
    *,
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> Windowed:
    """Train the classifiers; see ``fit_windows``. Explained in chapter 9."""
    return fit_windows(recipe, clips, MobileNetV2, device=device, out=out, progress=progress)
