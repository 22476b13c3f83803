"""CLP-SCF, the two-stage method that OS-SCL answers (Guan et al., ICASSP 2023). Explained in chapter 8.

First contrastive learning on machine IDs, with no classes and no augmentation: the positives of a clip are the other
clips of its ID. Then the machine-ID classifier: encoder and first layer of the projector go on, ArcFace is put on them,
and everything learns. Facts from the authors' program: projector of three layers, temperature 0.1, Adam at 5e-4 for 101
epochs; then margin 1.0, Adam at 1e-4 for 300 epochs, constant until epoch 20 and along a cosine to 0 from there.

Left open or changed here: both stages hold out the same clips, and the epoch of the second is chosen on them (their
program looks at the test set); the last short batch is kept; smaller sizes keep the ratios of epochs and rates; batches
have 64 clips there.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from osscl_lite import training
from osscl_lite.detector import Detector
from osscl_lite.recipe import Recipe

FIRST_EPOCHS = 101 / 300  # of the epochs of the second stage
FIRST_RATE = 5.0  # times the rate of the second stage
TEMPERATURE = 0.1


def first_stage(recipe: Recipe) -> Recipe:
    """The recipe of the contrastive stage; ``recipe`` is the second stage's. Explained in chapter 8."""
    return replace(
        recipe,
        name=f"{recipe.name}-first-stage",
        loss="supcon",
        temperature=TEMPERATURE,
        epochs=max(1, round(FIRST_EPOCHS * recipe.epochs)),
        learning_rate=FIRST_RATE * recipe.learning_rate,
        flat_epochs=1.0,
    )


def fit(
    recipe: Recipe,
    clips: pd.DataFrame,
    *,
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    progress: bool = True,
    watch: pd.DataFrame | None = None,
) -> Detector:
    """Train both stages; arguments, result and errors as for ``osscl_lite.training.fit``. Explained in chapter 8.

    Args:
        recipe: ``recipe("clp-scf")`` or ``recipe("logmel-clp-scf")``.
        out: folder with a folder for each stage.

    Returns:
        The detector of the second stage; ``earlier`` holds the one of the first, which embeds and cannot score.
    """
    folders = [None, None] if out is None else [Path(out, "first-stage"), Path(out, "second-stage")]
    earlier = training.fit(first_stage(recipe), clips, device=device, out=folders[0], progress=progress)
    model = training.fit(
        recipe, clips, device=device, out=folders[1], progress=progress, start=earlier, watch=watch
    )  # fmt: skip
    model.earlier = (earlier,)
    return model
