"""The detector: front end, MobileFaceNet, perturbation head and class weights. Explained in chapters 5 and 6."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from osscl_lite.data import load_features, load_waveforms, take
from osscl_lite.errors import BadInput
from osscl_lite.features import FrontEnd, LogMel
from osscl_lite.files import read_tensors, write_tensors
from osscl_lite.losses import arcface_logits
from osscl_lite.mobilefacenet import MobileFaceNet
from osscl_lite.perturbation import FeaturePerturbationHead, unit_sphere
from osscl_lite.recipe import Recipe

FORMAT = 1


class Standardise(nn.Module):
    """Per-bin standardisation of pictures that are not Log-Mels; the statistics travel with the weights."""

    def __init__(self, bands: int, frames: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(bands, frames))
        self.register_buffer("std", torch.ones(bands, frames))

    def fit(self, features: Tensor) -> None:
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp_min(1e-6))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std


class Detector(nn.Module):
    """One-stage detector: sound in, anomaly score out.

    Args:
        recipe: what to build; all shapes follow from it.
        classes: the names of the machine IDs in class order, or how many there are.

    Attributes:
        machines: names of the classes, such as "fan/id_00"; machine labels count in this order.
        hall_version: version of the generated hall it was trained on, or None.
        log: one row an epoch after ``fit``, else None.
    """

    def __init__(self, recipe: Recipe, classes: int | Sequence[str]) -> None:
        super().__init__()
        self.recipe = recipe
        self.machines = [f"class {i}" for i in range(classes)] if isinstance(classes, int) else list(classes)
        self.hall_version: str | None = None
        self.log: pd.DataFrame | None = None
        r = recipe
        self.log_mel = LogMel(r.bands, r.sample_rate, r.n_fft, r.hop) if r.input == "waveform" else None
        self.standardise = Standardise(r.bands, r.frames) if r.input == "features" else nn.Identity()
        self.front_end = FrontEnd(r.front_end, r.bands, r.frames, r.width, r.hop)
        self.network = MobileFaceNet(self.front_end.channels, r.bands, r.frames, r.width, r.embedding)
        self.network.to(memory_format=torch.channels_last)
        self.perturbation = (
            nn.Identity() if r.reduction is None else FeaturePerturbationHead(r.embedding, r.reduction, r.activation)
        )
        self.class_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(len(self.machines), r.embedding)))
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.class_weight.device

    @property
    def samples(self) -> int:
        """Samples of a clip that the recipe reads: its first ``recipe.seconds``."""
        return round(self.recipe.seconds * self.recipe.sample_rate)

    def forward(self, waveforms: Tensor | None, log_mel: Tensor) -> Tensor:
        """Perturbed embeddings on the unit sphere: (B, L), (B, bands, frames) -> (B, E)."""
        picture = self.front_end(waveforms, self.standardise(log_mel))  # (B, channels, bands, frames)
        embedding = self.network(picture.contiguous(memory_format=torch.channels_last))  # (B, E)
        return unit_sphere(self.perturbation(embedding))

    def logits(self, z: Tensor, machine_labels: Tensor, margin: float | None = None) -> Tensor:
        """ArcFace logits with the recipe's margin, or another, on the given labels: (B, E), (B,) -> (B, classes)."""
        margin = self.recipe.margin if margin is None else margin
        return arcface_logits(z, self.class_weight, machine_labels, margin, self.recipe.scale)

    @torch.no_grad()
    def embed(self, inputs: Tensor) -> Tensor:
        """Perturbed embeddings of clips.

        Args:
            inputs: waveforms (B, L), float32 in [-1, 1], of which the recipe's first seconds are read; or precomputed
                pictures (B, bands, frames) for a recipe of precomputed features.

        Returns:
            (B, E), each row of norm 1.

        Raises:
            ValueError: if the clips are too short, of another shape, no floats, or hold NaN or infinite values.
        """
        r = self.recipe
        if not inputs.is_floating_point():
            raise ValueError(f"expected floats, waveforms in [-1, 1], got {inputs.dtype}; divide int16 by 32768")
        if not torch.isfinite(inputs).all():
            raise ValueError("the clips hold NaN or infinite values")
        inputs = inputs.to(self.device, torch.float32)
        if self.log_mel is None:
            if inputs.shape[1:] != (r.bands, r.frames):
                raise ValueError(f"expected (B, {r.bands}, {r.frames}) pictures, got {tuple(inputs.shape)}")
            return self(None, inputs)
        if inputs.ndim != 2 or inputs.shape[1] < self.samples:
            raise ValueError(
                f"expected (B, L) waveforms of {self.samples} samples ({r.seconds:g} s) or more, "
                f"got {tuple(inputs.shape)}"
            )
        waveforms = inputs[:, : self.samples]
        return self(waveforms, self.log_mel(waveforms))

    @torch.no_grad()
    def score(self, inputs: Tensor, machine_labels: Tensor) -> Tensor:
        """Anomaly scores: cross-entropy of the margin logits at the clip's own machine ID; higher is more anomalous.

        Args:
            inputs: as for ``embed``.
            machine_labels: (B,) integers in the order of ``machines``.

        Returns:
            (B,) scores. A score does not depend on the other clips of the batch.
        """
        return self.score_embeddings(self.embed(inputs), machine_labels)

    @torch.no_grad()
    def score_embeddings(self, z: Tensor, machine_labels: Tensor, margin: float | None = None) -> Tensor:
        """The score from embeddings; ``margin=0`` gives plain cross-entropy: (B, E), (B,) -> (B,)."""
        machine_labels = torch.as_tensor(machine_labels, device=self.device)
        logits = self.logits(z.to(self.device), machine_labels, margin)
        return functional.cross_entropy(logits, machine_labels, reduction="none")

    def machine_labels(self, clips: pd.DataFrame) -> Tensor:
        """Class of each row, (N,).

        Raises:
            BadInput: naming the machine IDs that this detector was not trained on.
        """
        names = clips["machine_type"] + "/" + clips["machine_id"]
        if strangers := sorted(set(names) - set(self.machines)):
            raise BadInput(
                f"not trained on {', '.join(strangers)}: this detector knows {', '.join(self.machines)}; "
                "train it on these machines too"
            )
        return torch.tensor(names.map({name: label for label, name in enumerate(self.machines)}).to_numpy(np.int64))

    def embed_clips(self, clips: pd.DataFrame, batch_size: int = 64) -> np.ndarray:
        """Perturbed embeddings of any rows of a clips table: (N, E).

        Raises:
            BadClips: listing each row that cannot be read, a line a file.
        """
        versions = {path.split("/")[2] for path in clips["path"] if path.startswith("hall://")}
        if self.hall_version and versions - {self.hall_version}:
            warnings.warn(
                f"trained on hall version {self.hall_version}, scoring version {', '.join(sorted(versions))}: "
                "the machines differ",
                stacklevel=2,
            )
        batches = [self.embed(batch).cpu() for batch in read_batches(self.recipe, clips, batch_size)]
        return torch.cat(batches).numpy() if batches else np.empty((0, self.recipe.embedding), np.float32)

    def score_clips(self, clips: pd.DataFrame, batch_size: int = 64) -> np.ndarray:
        """Anomaly scores of any rows of a clips table: (N,), float32."""
        labels = self.machine_labels(clips)
        return self.score_embeddings(torch.from_numpy(self.embed_clips(clips, batch_size)), labels).cpu().numpy()

    def save(self, path: str | Path) -> None:
        """Write weights, recipe and machine names as one .safetensors file, whole or not at all."""
        about = dict(kind="detector", format=FORMAT, recipe=self.recipe.to_dict(), machines=self.machines)
        write_tensors(Path(path), self.state_dict(), about | {"hall_version": self.hall_version})

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a detector that ``save`` wrote.

        Raises:
            BadInput: in one line, if the file is missing, damaged, or does not fit its own recipe.
        """
        tensors, about = read_tensors(Path(path), "detector")
        if about.get("format") != FORMAT:
            raise BadInput(f"{path}: detector format {about.get('format')}, this version reads {FORMAT}; save it again")
        try:
            model = cls(Recipe.from_dict(about["recipe"]), about["machines"])
            model.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise BadInput(f"{path}: the weights do not fit the recipe beside them ({reason}); save it again") from None
        model.hall_version = about["hall_version"]
        return model.to(device)


def read_inputs(recipe: Recipe, clips: pd.DataFrame) -> np.ndarray:
    """Clips as one array: int16 waveforms (N, L), or float32 pictures (N, bands, frames) of precomputed features.

    Raises:
        BadClips: if clips cannot be read; BadInput: if the clips are of another kind than the recipe's.
    """
    if recipe.input == "waveform":
        if len(clips) and clips["path"].iloc[0].endswith(".npz"):
            raise BadInput(f"{clips['path'].iloc[0]}: precomputed features, but this detector listens to waveforms")
        return load_waveforms(clips, recipe.seconds)
    features, kind = load_features(clips)
    expected = "log_mel" if recipe.input == "log_mel" else "features"
    if (kind == "log_mel") != (expected == "log_mel") or features.shape[1:] != (recipe.bands, recipe.frames):
        raise BadInput(
            f"{clips['path'].iloc[0]}: {kind} of {features.shape[1]} x {features.shape[2]}, but this detector was "
            f"trained on {expected} of {recipe.bands} x {recipe.frames}"
        )
    return features


def read_batches(recipe: Recipe, clips: pd.DataFrame, batch_size: int) -> Iterator[Tensor]:
    """Float batches of ``read_inputs`` in row order; waveforms scaled to [-1, 1)."""
    inputs = read_inputs(recipe, clips) if len(clips) else ()
    for start in range(0, len(inputs), batch_size):
        rows = np.arange(start, min(start + batch_size, len(inputs)))
        yield take(inputs, rows, "cpu") if recipe.input == "waveform" else torch.from_numpy(inputs[rows])
