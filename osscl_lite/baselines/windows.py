"""Systems that learn from short windows of a picture, one network a machine type. Explained in chapter 9.

IDNN, Group MADE, the MobileNetV2 classifier and Glow_Aff differ in the network and in what it minimises; what they
share stands here: cutting clips into windows, one training loop, the mean over a clip's windows as its score.
"""

import re
import time
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from osscl_lite.cpu import kept_memory
from osscl_lite.data import fingerprint, hall_version, machine_names, take, training_clips
from osscl_lite.detector import Scorer, Standardise, check_format, read_inputs
from osscl_lite.errors import BadInput
from osscl_lite.features import LogMel, frames_of
from osscl_lite.files import check_identity, fitting, read_tensors, write_tensors
from osscl_lite.recipe import Values
from osscl_lite.training import fit_input, pick_device

BASELINE = "baseline.safetensors"
RANGES = (
    ("seconds", 0.1, 600),
    ("bands", 1, 1024),
    ("frames", 1, 100_000),
    ("context", 1, 100_000),
    ("stride", 1, 100_000),
    ("epochs", 1, 100_000),
    ("batch_size", 2, 10_000_000),
    ("learning_rate", 0, 10),
)


@dataclass(frozen=True)
class WindowRecipe(Values):
    """What every such system is told; each adds its own. Times are seconds, windows are counted in frames."""

    name: str
    size: str
    input: str = "waveform"  # "log_mel" or "features" where ``fit_windows`` was given precomputed pictures
    seconds: float = 10.0
    sample_rate: int = 16_000
    n_fft: int = 1024
    hop: int = 512
    bands: int = 128
    frames: int = 313  # of waveforms: 1 + samples // hop, whatever is given here
    context: int = 5  # frames of a window; of a shorter picture all of its frames
    stride: int = 1  # frames from one window to the next
    epochs: int = 100
    batch_size: int = 512  # windows
    learning_rate: float = 1e-3
    seed: int = 2024

    def __post_init__(self) -> None:
        self.check(dict(input=("waveform", "log_mel", "features")), RANGES)
        if self.input == "waveform":
            object.__setattr__(self, "frames", frames_of(round(self.seconds * self.sample_rate), self.hop))
        object.__setattr__(self, "context", min(self.context, self.frames))


class Network(nn.Module):
    """What learns, one for each machine type; ``machine_ids`` is the number of machine IDs of the type.

    A subclass names its recipe's class and says what it minimises and how it scores.
    """

    recipe_type: ClassVar[type[WindowRecipe]] = WindowRecipe

    def __init__(self, recipe: WindowRecipe, machine_ids: int) -> None:
        super().__init__()
        self.recipe, self.machine_ids = recipe, machine_ids

    def start(self, pictures: Tensor) -> None:
        """Look at the training pictures of the type, (N, frames, bands), once, before the first step."""

    def loss(self, windows: Tensor, y: Tensor) -> Tensor:
        """(B, bands, context), machine ID within the type (B,) -> a scalar."""
        raise NotImplementedError

    def score(self, windows: Tensor, y: Tensor) -> Tensor:
        """(B, bands, context), machine ID within the type (B,) -> (B,); higher is more anomalous."""
        raise NotImplementedError


def cut(pictures: Tensor, context: int, stride: int) -> Tensor:
    """All windows of pictures as a view, nothing is copied: (N, frames, bands) -> (N, windows, bands, context).

    A window never reaches over the end of its clip: there are 1 + (frames - context) // stride of them, and with a
    stride the last frames may be in none (of 313 frames, 32 and 32 leave out 25).
    """
    return pictures.unfold(1, context, stride)


class Windowed(Scorer, nn.Module):
    """The trained system: a network for each machine type, and the mean score of a clip's windows.

    Args:
        recipe: what to build.
        machines: names of the machine IDs, such as "fan/id_00".
        network: the class of the networks.

    Attributes:
        networks: by machine type.
        log: one row an epoch and type after ``fit_windows``, else None.
    """

    def __init__(self, recipe: WindowRecipe, machines: list[str], network: type[Network]) -> None:
        super().__init__()
        self.recipe, self.machines = recipe, list(machines)
        self.hall_version: str | None = None
        self.log: pd.DataFrame | None = None
        waveform = recipe.input == "waveform"
        self.log_mel = LogMel(recipe.bands, recipe.sample_rate, recipe.n_fft, recipe.hop) if waveform else None
        self.standardise = Standardise(recipe.bands, recipe.frames) if recipe.input == "features" else nn.Identity()
        self.types = [name.split("/")[0] for name in self.machines]  # of each machine
        self.places = [self.types[:label].count(kind) for label, kind in enumerate(self.types)]  # within its type
        self.networks = nn.ModuleDict()
        for kind in dict.fromkeys(self.types):
            with torch.random.fork_rng(devices=[]):
                torch.random.default_generator.manual_seed(recipe.seed)  # no network depends on the other types
                self.networks[kind] = network(recipe, self.types.count(kind))
        self.eval()

    def about(self) -> dict[str, Any]:
        return super().about() | dict(kind="baseline")

    @torch.no_grad()
    def pictures(self, inputs: Tensor) -> Tensor:
        """Waveforms (B, L) or pictures (B, bands, frames) -> standardised pictures, time first: (B, frames, bands)."""
        picture = inputs if self.log_mel is None else self.log_mel(inputs)
        return self.standardise(picture).transpose(1, 2).contiguous()

    @torch.no_grad()
    def score(self, inputs: Tensor, machine_labels: Tensor) -> Tensor:
        """Anomaly scores, the mean over each clip's windows; higher is more anomalous.

        Args:
            inputs: waveforms (B, L), float32 in [-1, 1], or precomputed pictures (B, bands, frames).
            machine_labels: (B,) integers in the order of ``machines``.

        Returns:
            (B,) scores. A score does not depend on the other clips of the batch.

        Raises:
            ValueError: for clips or labels that do not fit.
        """
        device = next(self.parameters()).device
        pictures = self.pictures(self.checked(inputs).to(device))
        labels = self.checked_labels(machine_labels, len(pictures)).tolist()
        scores = pictures.new_empty(len(pictures))
        for kind in {self.types[label] for label in labels}:
            rows = torch.tensor([row for row, label in enumerate(labels) if self.types[label] == kind], device=device)
            y = torch.tensor([self.places[label] for label in labels if self.types[label] == kind], device=device)
            windows = cut(pictures[rows], self.recipe.context, self.recipe.stride)
            count = windows.shape[1]
            parts = zip(
                windows.flatten(0, 1).split(self.recipe.batch_size),
                y.repeat_interleave(count).split(self.recipe.batch_size),
                strict=True,
            )
            parts = [self.networks[kind].score(part, own) for part, own in parts]
            scores[rows] = torch.cat(parts).view(-1, count).mean(1)
        return scores

    def save(self, path: str | Path) -> None:
        """Write weights, recipe and machine names as one .safetensors file, whole or not at all."""
        write_tensors(Path(path), self.state_dict(), self.about())

    @classmethod
    def load(cls, path: str | Path, network: type[Network], device: str | torch.device = "cpu") -> Self:
        """Read a system that ``save`` wrote.

        Raises:
            BadInput: in one line, if the file is missing, damaged, or holds another system.
        """
        tensors, about = read_tensors(Path(path), "baseline")
        check_format(path, about)
        with fitting(path, network.__name__):
            model = cls(network.recipe_type.from_dict(about["recipe"]), about["machines"], network)
            model.load_state_dict(tensors)
        model.hall_version = about["hall_version"]
        return model.to(device)


def fit_windows(
    recipe: WindowRecipe,
    clips: pd.DataFrame,
    network: type[Network],
    *,
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> Windowed:
    """Train one network a machine type on the windows of its normal training clips; the last epoch is kept.

    Args:
        recipe: what to train. On precomputed features its input, bands and frames are set from them.
        clips: a table from ``load_clips``; other rows than training clips are not looked at.
        network: what learns.
        device: "cpu", "cuda", ... or "auto": a GPU if there is one.
        out: folder for the weights of each finished type, and of the whole (baseline.safetensors). The same call again
            goes on with the types that are missing; on a CPU with the same result as without the stop.
        progress: a text bar with the loss.

    Raises:
        BadInput: no training clips, clips that cannot be read, an ``out`` folder that belongs to another run, or a loss
            that is no longer finite.
    """
    device, out = pick_device(device), None if out is None else Path(out)
    clips = training_clips(clips)
    if clips.empty:
        raise BadInput("the table has no normal clips of split train: nothing to learn from")
    for kind in clips["machine_type"].unique():
        if not re.fullmatch(r"[\w-]+", kind):
            raise BadInput(f"machine type {kind!r}: its weights go by its name; use letters, digits, _ and - only")
    recipe, machines = fit_input(recipe, clips), machine_names(clips)
    identity = dict(recipe=recipe.to_dict(), machines=machines, clips=fingerprint(clips))
    inputs, model = read_inputs(recipe, clips), Windowed(recipe, machines, network)
    labels = model.machine_labels(clips)
    if recipe.input == "features":
        model.standardise.fit(torch.from_numpy(inputs))
    model.hall_version = hall_version(clips)
    model.to(device)
    log: list[dict[str, Any]] = []
    with kept_memory(), tqdm(total=len(model.networks) * recipe.epochs, disable=not progress, unit="epoch") as bar:
        for kind, learner in model.networks.items():
            kept = None if out is None else out / f"{kind}.safetensors"
            if kept is not None and kept.exists():
                rows = _read_type(kept, learner, identity)
                bar.update(recipe.epochs)
            else:
                own = np.flatnonzero((clips["machine_type"] == kind).to_numpy())
                y = torch.tensor(model.places)[labels[own]].to(device)
                batches = [_take(recipe, inputs, own[start : start + 64]) for start in range(0, len(own), 64)]
                pictures = torch.cat([model.pictures(batch.to(device)) for batch in batches])
                rows = _train(learner, kind, pictures, y, bar)
                if kept is not None:
                    write_tensors(kept, learner.state_dict(), dict(kind="checkpoint", identity=identity, log=rows))
            log += rows
    model.log = pd.DataFrame(log, columns=["machine_type", "epoch", "train_loss", "seconds"])
    if out is not None:
        model.save(out / BASELINE)
    return model


def _take(recipe: WindowRecipe, inputs: np.ndarray, rows: np.ndarray) -> Tensor:
    return take(inputs, rows, "cpu") if recipe.input == "waveform" else torch.from_numpy(inputs[rows])


def _train(network: Network, kind: str, pictures: Tensor, y: Tensor, bar: tqdm) -> list[dict[str, Any]]:
    """Adam at a constant rate over all windows, shuffled anew each epoch by (seed, epoch); returns the log's rows."""
    recipe, device, log = network.recipe, pictures.device, []
    windows = cut(pictures, recipe.context, recipe.stride).transpose(2, 3)  # a window's frames lie in one piece
    count, per_clip = windows.shape[0] * windows.shape[1], windows.shape[1]
    if count < 2:
        raise BadInput(f"{kind}: {count} training windows; training needs two or more")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)  # of dropout
        network.start(pictures)
        network.train()
        optimizer = torch.optim.Adam(
            network.parameters(), lr=recipe.learning_rate, fused=device.type in ("cpu", "cuda")
        )
        for epoch in range(recipe.epochs):
            total, steps, began = torch.zeros((), device=device), 0, time.perf_counter()
            shuffled = np.random.default_rng([recipe.seed, 1 + epoch]).permutation(count)
            for rows in torch.from_numpy(shuffled).to(device).split(recipe.batch_size):
                if len(rows) < 2:  # too few for BatchNorm
                    continue
                clip = rows // per_clip
                loss = network.loss(windows[clip, rows % per_clip].transpose(1, 2), y[clip])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total, steps = total + loss.detach(), steps + 1
            if not isfinite(mean := (total / steps).item()):
                raise BadInput(f"{kind}, epoch {epoch + 1}: the training loss is not finite; lower the learning rate")
            seconds = time.perf_counter() - began
            log.append(dict(machine_type=kind, epoch=epoch + 1, train_loss=mean, seconds=seconds))
            bar.set_postfix_str(f"{kind} {mean:.4g}")
            bar.update()
    network.eval()
    return log


def _read_type(path: Path, network: Network, identity: dict[str, Any]) -> list[dict[str, Any]]:
    """Take a finished type's weights from the folder; returns the log's rows.

    Raises:
        BadInput: if the file is damaged or belongs to another recipe or other clips.
    """
    tensors, about = read_tensors(path, "checkpoint")
    check_identity(path, about, identity)
    network.load_state_dict(tensors)
    return about["log"]
