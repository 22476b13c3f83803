"""A loader that works as the authors' program does: each clip is read and transformed anew, one by one, every epoch.

One process, no workers: ``__getitem__`` reads a WAV file with soundfile and computes its Log-Mel with torchaudio on the
CPU. What trains on the batches is the plain step.
"""

import numpy as np
import pandas as pd
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.plain import PlainRun
from osscl_lite import Recipe
from osscl_lite._torchaudio import import_torchaudio


class WavFiles(Dataset):
    """Clips as (waveform (L,), Log-Mel (bands, frames) in dB, label).

    Args:
        recipe: length, bands, and the window of the Log-Mel.
        paths: WAV files.
        labels: class of each.
    """

    def __init__(self, recipe: Recipe, paths: list[str], labels: Tensor) -> None:
        self.paths, self.labels, self.samples = paths, labels, round(recipe.seconds * recipe.sample_rate)
        transforms = import_torchaudio().transforms
        self.mel = transforms.MelSpectrogram(
            recipe.sample_rate, n_fft=recipe.n_fft, hop_length=recipe.hop, n_mels=recipe.bands, power=2.0,
            mel_scale="slaney", norm="slaney", pad_mode="constant",
        )  # fmt: skip
        self.decibels = transforms.AmplitudeToDB("power")  # 10 log10, floor 1e-10, no top_db

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        waveform = torch.from_numpy(soundfile.read(self.paths[row], frames=self.samples, dtype="float32")[0])
        return waveform, self.decibels(self.mel(waveform)), self.labels[row]


class ReferenceRun:
    """Reference loader and plain step. Arguments as for ``PlainRun``."""

    def __init__(self, recipe: Recipe, clips: pd.DataFrame, machines: list[str], device: torch.device) -> None:
        self.plain = PlainRun(recipe, clips, machines, device, preload=False)
        files = WavFiles(recipe, list(clips["path"]), self.plain.y.cpu())
        self.loader = DataLoader(files, batch_size=recipe.batch_size, shuffle=True, num_workers=0)

    def train_epoch(self) -> float:
        """Read, transform and train on every clip once; the mean loss."""
        plain, recipe, rng, losses = self.plain, self.plain.recipe, self.plain.begin_epoch(), []
        for waveforms, log_mel, y in self.loader:
            if len(y) == 1:  # BatchNorm cannot normalise it
                continue
            lam = float(np.float32(rng.beta(recipe.mixup_beta, recipe.mixup_beta)))
            permutation = torch.from_numpy(rng.permutation(len(y))).to(plain.device)
            batch = (tensor.to(plain.device) for tensor in (waveforms, log_mel, y))
            losses.append(plain.step(*batch, lam, permutation))
        return torch.stack(losses).mean().item()
