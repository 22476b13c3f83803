"""The same training as one writes it first: plain torch.nn, float32, eager, contiguous, torch's defaults.

The layers are written out again, so that nothing the package does for speed reaches them; their names are those of
``Detector``, so that both start from the same weights. Losses and mixup are the package's own functions.
"""

from math import prod, sqrt

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from osscl_lite import Detector, Recipe, load_waveforms
from osscl_lite.features import FRONT_ENDS, LogMel
from osscl_lite.losses import arcface_logits, mixup, noisy_arcmix, noisy_supcon
from osscl_lite.mobilefacenet import BOTTLENECKS, halve
from osscl_lite.training import learning_rate


def conv2d(i: int, o: int, kernel: int | tuple[int, int], stride: int = 1, padding: int = 0, groups: int = 1,
           linear: bool = False) -> nn.Sequential:  # fmt: skip
    """Convolution, BatchNorm and, unless ``linear``, PReLU."""
    layers = [nn.Conv2d(i, o, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(o)]
    nn.init.normal_(layers[0].weight, std=sqrt(2 / (prod(layers[0].kernel_size) * o)))
    return nn.Sequential(*layers, *([] if linear else [nn.PReLU(o)]))


def conv1d(i: int, o: int, kernel: int, **options: int) -> list[nn.Module]:
    """Convolution, BatchNorm, ReLU."""
    return [nn.Conv1d(i, o, kernel, bias=False, **options), nn.BatchNorm1d(o), nn.ReLU()]


class PlainBottleneck(nn.Module):
    """Inverted bottleneck."""

    def __init__(self, i: int, o: int, stride: int, expansion: int) -> None:
        super().__init__()
        h, self.residual = i * expansion, stride == 1 and i == o
        self.layers = nn.Sequential(conv2d(i, h, 1), conv2d(h, h, 3, stride, 1, h), conv2d(h, o, 1, linear=True))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class PlainNetwork(nn.Module):
    """MobileFaceNet."""

    def __init__(self, channels: int, bands: int, frames: int, width: int, embedding: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv2d(channels, width, 3, 2, 1), conv2d(width, width, 3, 1, 1, width))
        stages, i = [], width
        for expansion, widths, repeats, stride in BOTTLENECKS["small"]:
            for repeat in range(repeats):
                stages.append(PlainBottleneck(i, widths * width, 1 if repeat else stride, expansion))
                i = widths * width
        self.stages = nn.Sequential(*stages)
        self.expand = conv2d(i, 8 * width, 1)
        self.pool = conv2d(8 * width, 8 * width, (halve(bands, 4), halve(frames, 4)), groups=8 * width, linear=True)
        self.project = conv2d(8 * width, embedding, 1, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.pool(self.expand(self.stages(self.stem(x))))).flatten(1)


class PlainTgram(nn.Module):
    """Tgram."""

    def __init__(self, bands: int, frames: int, hop: int) -> None:
        super().__init__()
        self.extract = nn.Conv1d(1, bands, 1024, hop, 512, bias=False)
        self.encode = nn.Sequential(*(
            nn.Sequential(nn.LayerNorm(frames), nn.LeakyReLU(0.2), nn.Conv1d(bands, bands, 3, padding=1, bias=False))
            for _ in range(3)
        ))  # fmt: skip

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.encode(self.extract(waveforms.unsqueeze(1)))


class PlainTFgram(nn.Module):
    """TFgram."""

    def __init__(self, bands: int, frames: int, width: int) -> None:
        super().__init__()
        near, far = dict(padding=1), dict(padding=2, dilation=2)
        self.layers = nn.Sequential(
            *conv1d(1, width, 11, stride=5, padding=5),
            *conv1d(width, width, 3, **near), *conv1d(width, width, 3, **far), nn.MaxPool1d(4),
            *conv1d(width, bands, 3, **near), *conv1d(bands, bands, 3, **far), nn.AdaptiveMaxPool1d(2 * frames),
            *conv1d(bands, bands, 3, **near), *conv1d(bands, bands, 3, **far), nn.AdaptiveMaxPool1d(frames),
        )  # fmt: skip

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.layers(waveforms.unsqueeze(1))


class PlainFrontEnd(nn.Module):
    """Log-Mel, and Tgram and TFgram where the recipe has them."""

    def __init__(self, r: Recipe) -> None:
        super().__init__()
        self.channels = FRONT_ENDS[r.front_end]
        self.tgram = PlainTgram(r.bands, r.frames, r.hop) if self.channels > 1 else None
        self.tfgram = PlainTFgram(r.bands, r.frames, r.width) if self.channels > 2 else None

    def forward(self, waveforms: Tensor | None, log_mel: Tensor) -> Tensor:
        pictures = [log_mel]
        for net in (self.tgram, self.tfgram):
            if net is not None:
                pictures.append(net(waveforms))
        return torch.stack(pictures, dim=1)


class PlainDetector(nn.Module):
    """Detector without scoring: (B, L), (B, bands, frames) -> (B, E) on the unit sphere."""

    def __init__(self, r: Recipe, classes: int) -> None:
        super().__init__()
        self.front_end = PlainFrontEnd(r)
        self.network = PlainNetwork(self.front_end.channels, r.bands, r.frames, r.width, r.embedding)
        act = nn.LeakyReLU if r.activation == "leaky_relu" else nn.ReLU
        self.perturbation = nn.Sequential(
            nn.Linear(r.embedding, r.reduction), act(), nn.BatchNorm1d(r.reduction),
            nn.Linear(r.reduction, r.embedding), act(), nn.BatchNorm1d(r.embedding),
        )  # fmt: skip
        self.class_weight = nn.Parameter(torch.empty(classes, r.embedding))

    def forward(self, waveforms: Tensor | None, log_mel: Tensor) -> Tensor:
        return functional.normalize(self.perturbation(self.network(self.front_end(waveforms, log_mel))), dim=1)


class PlainRun:
    """One training of an OS-SCL recipe, the counterpart of ``osscl_lite.training.Run``.

    Args:
        recipe: an ``-osscl`` recipe of waveforms.
        clips: training clips, all of which are trained on.
        machines: class names in class order.
        device: where to train.
        channels_last: the one part of the package's step that can be switched on here.
        preload: keep int16 clips and Log-Mels in memory; a loader that brings its own batches needs neither.
    """

    def __init__(self, recipe: Recipe, clips: pd.DataFrame, machines: list[str], device: torch.device,
                 channels_last: bool = False, preload: bool = True) -> None:  # fmt: skip
        self.recipe, self.device, self.epoch = recipe, device, 0
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(recipe.seed)
            ours = Detector(recipe, machines)
        self.model = PlainDetector(recipe, len(machines))
        self.model.load_state_dict(ours.state_dict())
        self.model.to(device).train()
        if channels_last:
            self.model.network.to(memory_format=torch.channels_last)
        self.y = ours.machine_labels(clips).to(device)
        if preload:
            self.waveforms = torch.from_numpy(np.array(load_waveforms(clips, recipe.seconds))).to(device)
            front_end = LogMel(recipe.bands, recipe.sample_rate, recipe.n_fft, recipe.hop).to(device)
            self.log_mel = torch.cat([front_end(part.float() / 32768) for part in self.waveforms.split(256)])
        self.steps = -(-(len(clips) - 1) // recipe.batch_size)
        decay = 1 - 1 / max(1.0, recipe.ema_horizon * self.steps * recipe.epochs)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.ema.n_averaged.fill_(1)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )

    def step(self, waveforms: Tensor | None, log_mel: Tensor, y: Tensor, lam: float, permutation: Tensor) -> Tensor:
        """One step on a batch, float waveforms or None; returns the loss, a scalar on the device."""
        recipe = self.recipe
        waveforms, log_mel, y_a, y_b = mixup(waveforms, log_mel, y, lam, permutation)
        z = self.model(waveforms, log_mel)
        logits = arcface_logits(z, self.model.class_weight, y_a, recipe.margin, recipe.scale)
        loss = noisy_supcon(z, y_a, recipe.temperature) + noisy_arcmix(logits, y_a, y_b, lam)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.ema.update_parameters(self.model)
        with torch.no_grad():
            for tensor in self.model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.mul_(1 - recipe.shrink)
        return loss.detach()

    def begin_epoch(self) -> np.random.Generator:
        """Set the epoch's learning rate; the generator of its random draws, the same as in ``Run``."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.epoch)
        self.epoch += 1
        return np.random.default_rng([self.recipe.seed, self.epoch])

    def train_epoch(self) -> float:
        """One pass over the clips with the random draws of ``Run``; the mean loss. Waits for the device once."""
        recipe, rng = self.recipe, self.begin_epoch()
        order = torch.from_numpy(rng.permutation(len(self.y))).to(self.device)
        lams = rng.beta(recipe.mixup_beta, recipe.mixup_beta, self.steps).astype(np.float32)
        total = torch.zeros((), device=self.device)
        for step in range(self.steps):
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            permutation = torch.from_numpy(rng.permutation(len(rows))).to(self.device)
            waveforms = self.waveforms[rows].float() / 32768 if self.model.front_end.channels > 1 else None
            total += self.step(waveforms, self.log_mel[rows], self.y[rows], float(lams[step]), permutation)
        return (total / self.steps).item()
