"""The detector: front end, MobileFaceNet, perturbation head and class weights. Explained in chapters 5 and 6."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from osscl_lite.cpu import kept_memory
from osscl_lite.data import load_features, load_waveforms, take
from osscl_lite.data.waveforms import hall_versions
from osscl_lite.errors import BadInput
from osscl_lite.features import FrontEnd, LogMel, bands_below
from osscl_lite.files import fitting, read_tensors, write_tensors
from osscl_lite.losses import arcface_logits, log_odds_against
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


class Scorer:
    """What every detector does with clips, whatever computes its embeddings and scores.

    Attributes:
        recipe: its recipe.
        machines: names of the classes, such as "fan/id_00"; machine labels count in this order.
        hall_version: version of the generated hall it was trained on, or None.
    """

    recipe: Recipe
    machines: list[str]
    hall_version: str | None

    def embed(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def score(self, inputs: Tensor, machine_labels: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def samples(self) -> int:
        """Samples of a clip that the recipe reads: its first ``recipe.seconds``."""
        return round(self.recipe.seconds * self.recipe.sample_rate)

    def about(self) -> dict[str, Any]:
        """What stands in the file beside the weights."""
        return dict(
            kind="detector", format=FORMAT, recipe=self.recipe.to_dict(), machines=self.machines,
            hall_version=self.hall_version,
        )  # fmt: skip

    def checked(self, inputs: Tensor) -> Tensor:
        """Inputs as the network takes them: float32, waveforms cut to the recipe's first seconds.

        Raises:
            ValueError: if the clips are too short, of another shape, no floats, or hold NaN or infinite values.
        """
        r = self.recipe
        if not inputs.is_floating_point():
            raise ValueError(f"expected floats, waveforms in [-1, 1], got {inputs.dtype}; divide int16 by 32768")
        if not torch.isfinite(inputs).all():
            raise ValueError("the clips hold NaN or infinite values")
        if r.input != "waveform":
            if inputs.shape[1:] != (r.bands, r.frames):
                raise ValueError(f"expected (B, {r.bands}, {r.frames}) pictures, got {tuple(inputs.shape)}")
            return inputs.float()
        if inputs.ndim != 2 or inputs.shape[1] < self.samples:
            raise ValueError(
                f"expected (B, L) waveforms of {self.samples} samples ({r.seconds:g} s) or more, "
                f"got {tuple(inputs.shape)}"
            )
        return inputs[:, : self.samples].float()

    def checked_labels(self, machine_labels: Tensor, count: int) -> Tensor:
        """Machine labels of ``count`` clips, int64.

        Raises:
            ValueError: if there are more or fewer, or one is no class of this detector.
        """
        labels = torch.as_tensor(machine_labels).long()
        if labels.shape != (count,) or not ((labels >= 0) & (labels < len(self.machines))).all():
            raise ValueError(
                f"expected {count} machine labels from 0 to {len(self.machines) - 1}, got {str(labels.tolist())[:100]}"
            )
        return labels

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
        """Perturbed embeddings of any rows of a clips table: (N, E). Explained in chapter 4.

        Raises:
            BadClips: listing each row that cannot be read, a line a file.
        """
        self._say_other_hall(clips)
        with kept_memory():
            batches = [self.embed(batch).cpu() for batch in read_batches(self.recipe, clips, batch_size)]
        return torch.cat(batches).numpy() if batches else np.empty((0, self.recipe.embedding), np.float32)

    def score_clips(self, clips: pd.DataFrame, batch_size: int = 64) -> np.ndarray:
        """Anomaly scores of any rows of a clips table: (N,), float32. Explained in chapter 6.

        Raises:
            BadInput: naming the machine IDs that this detector was not trained on.
            BadClips: listing each row that cannot be read, a line a file.
        """
        labels = self.machine_labels(clips).split(batch_size)
        self._say_other_hall(clips)
        batches = zip(read_batches(self.recipe, clips, batch_size), labels, strict=len(clips) > 0)
        with kept_memory():
            scores = [self.score(batch, own).cpu() for batch, own in batches]
        return torch.cat(scores).numpy() if scores else np.empty(0, np.float32)

    def _say_other_hall(self, clips: pd.DataFrame) -> None:
        versions = hall_versions(clips)
        if self.hall_version and versions - {self.hall_version}:
            warnings.warn(
                f"trained on hall version {self.hall_version}, scoring version {', '.join(sorted(versions))}: "
                "the machines differ",
                stacklevel=3,
            )


class Detector(Scorer, nn.Module):
    """One-stage detector: sound in, anomaly score out. Explained in chapters 5 and 6.

    Args:
        recipe: what to build; all shapes follow from it.
        classes: the names of the machine IDs in class order, or how many there are.

    Attributes:
        recipe: what it was built from.
        machines: names of the machine IDs, such as "fan/id_00"; machine labels count in this order.
        class_weight: the centres of the machine IDs, (C, E), of any length.
        log: one row an epoch after ``fit``, else None.
        watched: after a ``fit`` that watched clips, the scores of its moving average after each epoch, (epochs, N).
        last: after a ``fit`` the state of its moving average at the last epoch, which need not be the chosen one.
        earlier: after a training in stages the detectors of those before, else none. Not part of what ``save`` writes.
    """

    def __init__(self, recipe: Recipe, classes: int | Sequence[str]) -> None:
        super().__init__()
        self.recipe = recipe
        self.machines = [f"class {i}" for i in range(classes)] if isinstance(classes, int) else list(classes)
        self.hall_version: str | None = None
        self.log: pd.DataFrame | None = None
        self.watched: np.ndarray | None = None
        self.last: dict[str, Tensor] | None = None
        self.earlier: tuple[Detector, ...] = ()
        r = recipe
        self.log_mel = LogMel(r.bands, r.sample_rate, r.n_fft, r.hop, r.mel) if r.input == "waveform" else None
        self.bands = r.bands if r.highest_hz is None else bands_below(r.highest_hz, r.bands, r.sample_rate, r.mel)
        self.standardise = Standardise(r.bands, r.frames) if r.input == "features" else nn.Identity()
        self.front_end = FrontEnd(r.front_end, r.bands, r.frames, r.width, r.hop)
        self.network = MobileFaceNet(self.front_end.channels, self.bands, r.frames, r.width, r.embedding, r.bottlenecks)
        self.network.to(memory_format=torch.channels_last)
        self.perturbation: nn.Module = nn.Identity()
        if r.head == "projection":
            self.perturbation = nn.Sequential(*projection(r.embedding))
        elif r.reduction is not None:
            self.perturbation = FeaturePerturbationHead(r.embedding, r.reduction, r.activation)
        # What only the first of two stages has, between the embedding and its loss.
        rest = [nn.ReLU(), *projection(r.embedding), nn.ReLU(), *projection(r.embedding)]
        self.projector = nn.Sequential(*rest) if r.loss == "supcon" else None
        self.class_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(len(self.machines), r.embedding)))
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.class_weight.device

    def forward(self, waveforms: Tensor | None, log_mel: Tensor) -> Tensor:
        """Perturbed embeddings on the unit sphere: (B, L), (B, bands, frames) -> (B, E)."""
        return unit_sphere(self.perturbation(self.unperturbed(waveforms, log_mel)))

    def unperturbed(self, waveforms: Tensor | None, log_mel: Tensor) -> Tensor:
        """Embeddings as the network gives them: (B, L), (B, bands, frames) -> (B, E)."""
        picture = self.front_end(waveforms, self.standardise(log_mel))  # (B, channels, bands, frames)
        return self.network(picture[:, :, : self.bands].contiguous(memory_format=torch.channels_last))

    def logits(self, z: Tensor, machine_labels: Tensor, margin: float | None = None) -> Tensor:
        """ArcFace logits with the recipe's margin, or another, on the given labels: (B, E), (B,) -> (B, classes).
        Explained in chapter 3.
        """
        margin = self.recipe.margin if margin is None else margin
        return arcface_logits(z, self.class_weight, machine_labels, margin, self.recipe.scale)

    @torch.no_grad()
    def embed(self, inputs: Tensor) -> Tensor:
        """Perturbed embeddings of clips. Explained in chapter 4.

        Args:
            inputs: waveforms (B, L), float32 in [-1, 1], of which the recipe's first seconds are read; or precomputed
                pictures (B, bands, frames) for a recipe of precomputed features.

        Returns:
            (B, E), each row of norm 1.

        Raises:
            ValueError: if the clips are too short, of another shape, no floats, or hold NaN or infinite values.
        """
        inputs = self.checked(inputs).to(self.device)
        return self(None, inputs) if self.log_mel is None else self(inputs, self.log_mel(inputs))

    @torch.no_grad()
    def score(self, inputs: Tensor, machine_labels: Tensor) -> Tensor:
        """Anomaly scores: cross-entropy of the margin logits at the clip's own machine ID; higher is more anomalous.
        Explained in chapter 6.

        Args:
            inputs: as for ``embed``.
            machine_labels: (B,) integers in the order of ``machines``.

        Returns:
            (B,) scores. A score does not depend on the other clips of the batch.

        Raises:
            ValueError: as ``embed``, or for labels of another number or of no class.
        """
        z = self.embed(inputs)
        return self.score_embeddings(z, self.checked_labels(machine_labels, len(z)))

    @torch.no_grad()
    def score_embeddings(self, z: Tensor, machine_labels: Tensor, margin: float | None = None) -> Tensor:
        """The score from embeddings; ``margin=0`` gives plain cross-entropy: (B, E), (B,) -> (B,).
        Explained in chapter 6.

        In single precision the log-softmax gives the same 0 to every clip whose p is above 1 - 6e-8, and cosines near 1
        have steps of 6e-8: hence the log-odds, and the double precision.
        """
        machine_labels = torch.as_tensor(machine_labels, device=self.device)
        margin = self.recipe.margin if margin is None else margin
        unit = functional.normalize(z.to(self.device).double(), dim=1)
        logits = arcface_logits(unit, self.class_weight.double(), machine_labels, margin, self.recipe.scale)
        return functional.softplus(log_odds_against(logits, machine_labels)).to(z.dtype)

    def save(self, path: str | Path) -> None:
        """Write weights, recipe and machine names as one .safetensors file, whole or not at all.
        Explained in chapter 5.
        """
        write_tensors(Path(path), self.state_dict(), self.about())

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a detector that ``save`` wrote. Explained in chapter 5.

        Raises:
            BadInput: in one line, if the file is missing, damaged, or does not fit its own recipe.
        """
        tensors, about = read_tensors(Path(path), "detector")
        check_format(path, about)
        with fitting(path, "the recipe beside them"):
            model = cls(Recipe.from_dict(about["recipe"]), about["machines"])
            model.load_state_dict(tensors)
        model.hall_version = about["hall_version"]
        return model.to(device)


def projection(embedding: int) -> list[nn.Module]:
    """One layer of CLP-SCF's projector: linear without bias, BatchNorm."""
    return [nn.Linear(embedding, embedding, bias=False), nn.BatchNorm1d(embedding)]


def check_format(path: str | Path, about: dict[str, Any]) -> None:
    """Refuse a detector's file of another format.

    Raises:
        BadInput: in one line.
    """
    if about.get("format") != FORMAT:
        raise BadInput(f"{path}: detector format {about.get('format')}, this version reads {FORMAT}; save it again")


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
