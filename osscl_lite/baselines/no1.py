"""No. 1 of the challenge: a classifier and a density model, fused. Giri et al., DCASE 2020. Explained in chapter 9.

The winner is an ensemble of ID classifiers and Group MADE. Here it is one of each, those of ``mobilenetv2`` and
``group_made``, as they are. The fusion is left open, so ours: each score is standardised by its mean and standard
deviation on the training clips of the machine ID, then the two are averaged. The report is recalled to weigh the parts
by machine type, tuned on anomalies of the development set; no anomaly is looked at here. Both parts know their
training clips better than others, and by how much differs: the scales of the two are not quite even on new clips.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from osscl_lite.baselines import group_made, mobilenetv2
from osscl_lite.baselines.group_made import GroupMADERecipe
from osscl_lite.baselines.mobilenetv2 import MobileNetV2Recipe
from osscl_lite.baselines.windows import Windowed
from osscl_lite.data import training_clips
from osscl_lite.detector import Scorer

OWN = ("context", "stride", "epochs", "batch_size", "learning_rate", "hidden")  # what Group MADE does not share


@dataclass(frozen=True)
class No1Recipe(MobileNetV2Recipe):
    """All of the classifier, and what of Group MADE differs from it, as ``made_`` and the field.
    Explained in chapter 9.
    """

    name: str = "no1"
    made_context: int = 5
    made_stride: int = 1
    made_epochs: int = 100
    made_batch_size: int = 512
    made_learning_rate: float = 1e-4
    made_hidden: int = 512

    @property
    def classifier(self) -> MobileNetV2Recipe:
        values = {field: value for field, value in self.to_dict().items() if not field.startswith("made_")}
        return MobileNetV2Recipe.from_dict(values | dict(name="mobilenetv2"))

    @property
    def made(self) -> GroupMADERecipe:
        shared = {field: getattr(self, field) for field in GroupMADERecipe().to_dict() if field not in OWN}
        own = {field: getattr(self, f"made_{field}") for field in OWN}
        return GroupMADERecipe.from_dict(shared | own | dict(name="group-made"))


def recipe(size: str = "paper") -> No1Recipe:
    """The recipes of both parts at a size, "paper", "book", "tiny" or "features", as one. Explained in chapter 9."""
    made = group_made.recipe(size)
    both = mobilenetv2.recipe(size).to_dict() | {f"made_{field}": getattr(made, field) for field in OWN}
    return No1Recipe.from_dict(both | dict(name="no1"))


class No1(Scorer, nn.Module):
    """Both parts, and where their scores lie on the training clips of each machine ID.

    Attributes:
        mean, std: of the classifier's and of Group MADE's score, (2, machine IDs).
        log: the logs of both parts, column ``part`` says whose a row is.
    """

    def __init__(self, recipe: No1Recipe, classifier: Windowed, made: Windowed) -> None:
        super().__init__()
        self.recipe, self.machines, self.hall_version = recipe, classifier.machines, classifier.hall_version
        self.parts = nn.ModuleList([classifier, made])
        self.register_buffer("mean", torch.zeros(2, len(self.machines)))
        self.register_buffer("std", torch.ones(2, len(self.machines)))
        named = zip(("classifier", "made"), self.parts, strict=True)
        self.log = pd.concat([part.log.assign(part=name) for name, part in named], ignore_index=True)
        self.eval()

    @torch.no_grad()
    def calibrate(self, clips: pd.DataFrame) -> None:
        """Take mean and standard deviation of both scores over the normal training clips of each machine ID."""
        labels = self.machine_labels(clips)
        for place, part in enumerate(self.parts):
            scores = torch.from_numpy(part.score_clips(clips)).double()
            for label in range(len(self.machines)):
                own = scores[labels == label]
                mean, std = own.mean(), own.std(correction=0)
                # Scores that are equal but for rounding (a single clip, say) are moved and not stretched.
                self.mean[place, label], self.std[place, label] = mean, std if std > 1e-5 * (1 + mean.abs()) else 1.0

    @torch.no_grad()
    def score(self, inputs: Tensor, machine_labels: Tensor) -> Tensor:
        """The mean of both standardised scores; arguments, shapes and errors as of ``Windowed.score``."""
        scores = torch.stack([part.score(inputs, machine_labels) for part in self.parts])  # (2, B)
        labels = machine_labels.to(scores.device)
        return ((scores - self.mean[:, labels]) / self.std[:, labels]).mean(0)


def fit(
    recipe: No1Recipe,
    clips: pd.DataFrame,
    *,
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> No1:
    """Train both parts, each as ``fit_windows`` does in a folder of its own below ``out``, and fuse them.
    Explained in chapter 9.
    """
    clips = training_clips(clips)
    options = dict(device=device, progress=progress)
    folders = [None if out is None else Path(out) / name for name in ("classifier", "made")]
    classifier = mobilenetv2.fit(recipe.classifier, clips, out=folders[0], **options)
    made = group_made.fit(recipe.made, clips, out=folders[1], **options)
    shapes = {field: getattr(classifier.recipe, field) for field in ("input", "bands", "frames", "context")}
    model = No1(replace(recipe, **shapes), classifier, made).to(next(classifier.parameters()).device)
    model.calibrate(clips)
    return model
