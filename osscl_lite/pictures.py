"""Training clips where the network can have them without waiting. Explained in the appendix on speed."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from osscl_lite.data import take, to_float
from osscl_lite.detector import Detector, read_inputs
from osscl_lite.features import LogMel
from osscl_lite.recipe import Recipe

CHUNK = 256  # clips whose Log-Mels are computed, or which are uploaded, at a time


class Pictures:
    """dB Log-Mels, computed once, and int16 sound where the front end learns from it.
    Explained in the appendix on speed.

    Both lie on the device if they fit. Else the sound stays in its memory-mapped file, and a thread reads the next
    batch into pinned memory while the device computes; if not even the Log-Mels fit, they are computed from that batch.

    Args:
        recipe: which input, which front end.
        clips: the training clips, N of them.
        y: their machine labels, (N,).
        device: where the network is.
        reserve: bytes of device memory to leave for the training step.

    Attributes:
        log_mel: (N, bands, frames) on the device, or None where each batch computes its own.
        waveforms: int16 (N, L), a tensor on the device or the memory-mapped array; None where nothing needs sound.
        y: (N,), on the device.
    """

    def __init__(self, recipe: Recipe, clips: pd.DataFrame, y: Tensor, device: torch.device, reserve: int = 0) -> None:
        inputs = read_inputs(recipe, clips)
        self.device, self.y = device, y.to(device)
        self.log_mel: Tensor | None = None
        self.waveforms: Tensor | np.ndarray | None = None
        self.listens = recipe.front_end != "logmel"
        if recipe.input != "waveform":
            self.log_mel = torch.from_numpy(inputs).to(device)
            return
        self.front_end = LogMel(recipe.bands, recipe.sample_rate, recipe.n_fft, recipe.hop, recipe.mel).to(device)
        room, pictures = room_for_clips(device, reserve), 4 * len(inputs) * recipe.bands * recipe.frames
        if pictures <= room:
            self.log_mel = torch.empty(len(inputs), recipe.bands, recipe.frames, device=device)
            room -= pictures
        if self.listens or self.log_mel is None:
            # A CPU reads the mapped file as fast as a copy of it.
            upload = device.type != "cpu" and inputs.nbytes <= room
            self.waveforms = torch.empty(inputs.shape, dtype=torch.int16, device=device) if upload else inputs
        for start in range(0, len(inputs), CHUNK):
            chunk = slice(start, start + CHUNK)
            if isinstance(self.waveforms, Tensor):
                self.waveforms[chunk] = torch.from_numpy(np.array(inputs[chunk])).to(device)
            if self.log_mel is not None:
                rows = np.arange(len(inputs))[chunk]
                self.log_mel[chunk] = self.front_end(take(inputs, rows, device))

    def batches(self, rows: Sequence[np.ndarray]) -> Iterator[tuple[Tensor | None, Tensor, Tensor]]:
        """Batches of clips, on the device.

        Args:
            rows: for each batch its clips, (B,) integers.

        Yields:
            int16 waveforms (B, L), or None where the front end needs no sound; Log-Mels (B, bands, frames); labels.
        """
        uploaded = torch.from_numpy(np.concatenate(rows)).to(self.device).split([len(part) for part in rows])
        if isinstance(self.waveforms, np.ndarray):
            sounds = self._read_ahead(self.waveforms, rows)
        else:
            sounds = (None if self.waveforms is None else self.waveforms[part] for part in uploaded)
        for part, sound in zip(uploaded, sounds, strict=True):
            log_mel = self.front_end(to_float(sound)) if self.log_mel is None else self.log_mel[part]
            yield sound if self.listens else None, log_mel, self.y[part]

    def _read_ahead(self, waveforms: np.ndarray, rows: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Batches from the disk, each read while the one before is in use."""

        def read(part: np.ndarray) -> Tensor:
            sound = torch.from_numpy(waveforms[part])
            return sound.pin_memory() if self.device.type == "cuda" else sound

        with ThreadPoolExecutor(1) as thread:
            following = thread.submit(read, rows[0])
            for index in range(len(rows)):
                sound = following.result()
                if index + 1 < len(rows):
                    following = thread.submit(read, rows[index + 1])
                yield sound.to(self.device, non_blocking=True)


def room_for_clips(device: torch.device, reserve: int) -> int:
    """Bytes of memory that clips may take: on a GPU nine tenths of what is free, less what the step needs."""
    if device.type != "cuda":
        return sys.maxsize
    free, _ = torch.cuda.mem_get_info(device)
    return int(0.9 * free) - reserve


def step_bytes(model: Detector, batch_size: int) -> int:
    """Bytes that a float32 training step keeps for its backward pass, counted on tensors without content.
    Explained in the appendix on speed.
    """
    recipe, kept = model.recipe, {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    twin = deepcopy(model).to("meta").train()
    sound = torch.empty(batch_size, model.samples, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        twin(sound, torch.empty(batch_size, recipe.bands, recipe.frames, device="meta"))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
