"""fit(): the whole recipe in one stage. Explained in chapter 5."""

import json
import time
from dataclasses import dataclass, replace
from math import ceil, cos, isfinite, pi
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from osscl_lite.data import fingerprint, load_features, machine_names, take
from osscl_lite.detector import Detector, read_inputs
from osscl_lite.errors import BadInput
from osscl_lite.features import LogMel
from osscl_lite.files import read_tensors, write_tensors, write_whole
from osscl_lite.losses import mixup, noisy_arcmix, noisy_supcon
from osscl_lite.recipe import Recipe

CHECKPOINT, DETECTOR, LOG = "checkpoint.safetensors", "detector.safetensors", "log.csv"


@dataclass
class Pictures:
    """Training clips on the device: dB Log-Mels computed once, sound only where the front end needs it."""

    log_mel: Tensor  # (N, bands, frames)
    waveforms: Tensor | None  # (N, L), int16
    y: Tensor  # (N,)

    def take(self, rows: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        waveforms = None if self.waveforms is None else take(self.waveforms, rows, rows.device)
        return waveforms, self.log_mel[rows], self.y[rows]


def fit(
    recipe: Recipe,
    clips: pd.DataFrame,
    *,
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> Detector:
    """Train a detector on the normal clips of split train.

    Args:
        recipe: what to train. On precomputed features its input, bands and frames are set from them.
        clips: a table from ``load_clips``; other rows than training clips are not looked at.
        device: "cpu", "cuda", ... or "auto": a GPU if there is one.
        out: folder for a checkpoint and the log (log.csv) every epoch, and the detector (detector.safetensors). The
            same call again goes on where the last one stopped; on a CPU with the same result, byte for byte, as
            without the stop.
        progress: a text bar with the losses.

    Returns:
        The moving average of the weights at the epoch with the lowest cross-entropy on held-out normal clips, in eval
        mode; ``log`` holds one row an epoch.

    Raises:
        BadInput: no training clips, fewer than two machine IDs, clips that cannot be read, or an ``out`` folder that
            belongs to another run.
    """
    device = pick_device(device)
    clips = clips[(clips["split"] == "train") & (clips["label"] == "normal")].reset_index(drop=True)
    machines = machine_names(clips)
    if len(machines) < 2:
        raise BadInput(f"training tells machine IDs apart and needs two or more; found {', '.join(machines) or 'none'}")
    run = Run(_fit_input(recipe, clips), clips, machines, device, None if out is None else Path(out))
    with tqdm(
        total=run.epochs * run.steps, initial=run.epoch * run.steps, disable=not progress, unit="step", mininterval=1
    ) as bar:
        while run.epoch < run.epochs:
            losses = run.train_epoch(bar)
            run.finish_epoch(losses)
            bar.set_postfix({key: f"{run.log[-1][key]:.3f}" for key in ("train_loss", "holdout_loss")})
    return run.finish()


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto" is the GPU if CUDA finds one, else the CPU.

    Raises:
        BadInput: if there is no such device here.
    """
    try:
        found = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"device {device}: not usable here ({str(error).splitlines()[0]}); say auto or cpu") from None
    return found


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Cosine from the first to the final learning rate, one value an epoch (Loshchilov and Hutter 2017)."""
    low = recipe.learning_rate * recipe.final_learning_rate
    return low + (recipe.learning_rate - low) * (1 + cos(pi * epoch / recipe.epochs)) / 2


def hold_out(clips: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    """Choose clips that pick the epoch: a boolean mask (N,), about ``fraction`` of the rows.

    Clips that share a background recording stay together, where the table says so.
    """
    rng = np.random.default_rng([seed, 0])
    groups = clips["background"].to_numpy() if "background" in clips else np.arange(len(clips))
    names = rng.permutation(pd.unique(groups))
    return np.isin(groups, names[: ceil(fraction * len(names))])


class Run:
    """One training: the model, its moving average, the optimiser, and where they stand."""

    def __init__(
        self, recipe: Recipe, clips: pd.DataFrame, machines: list[str], device: torch.device, out: Path | None
    ) -> None:
        self.recipe, self.device, self.out, self.epochs = recipe, device, out, recipe.epochs
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(recipe.seed)  # the CPU's generator alone
            self.model = Detector(recipe, machines)
        held = hold_out(clips, recipe.holdout, recipe.seed)
        everything = load_pictures(recipe, clips, self.model.machine_labels(clips), device)
        if recipe.input == "features":
            self.model.standardise.fit(everything.log_mel[torch.from_numpy(~held).to(device)])
        self.model.to(device)
        self.train_rows = torch.from_numpy(np.flatnonzero(~held)).to(device)
        self.held_rows = torch.from_numpy(np.flatnonzero(held)).to(device)
        self.pictures = everything
        # A last batch of one clip is left out: BatchNorm cannot normalise it.
        self.steps = -(-(len(self.train_rows) - 1) // recipe.batch_size)
        if self.steps < 1:
            raise BadInput("one training clip: training needs two or more")

        versions = {path.split("/")[2] for path in clips["path"] if path.startswith("hall://")}
        self.model.hall_version = versions.pop() if len(versions) == 1 else None
        decay = 1 - 1 / max(1.0, recipe.ema_horizon * self.steps * self.epochs)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.ema.n_averaged.fill_(1)  # the average starts at the initial weights, not at the first step's
        self.ema.eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.live = [
            tensor
            for name, tensor in self.model.state_dict().items()
            if tensor.is_floating_point() and not name.startswith("standardise.")
        ]
        self.epoch, self.best_loss, self.log = 0, float("inf"), []
        self.best = {name: tensor.clone() for name, tensor in self.ema.module.state_dict().items()}
        self.identity = dict(recipe=recipe.to_dict(), machines=machines, clips=fingerprint(clips))
        if out is not None:
            self.resume()

    def train_epoch(self, bar: tqdm) -> dict[str, float]:
        """One pass over the training clips; all random draws come from (seed, epoch), so a repeat is the same."""
        recipe, began = self.recipe, time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.epoch)
        rng = np.random.default_rng([recipe.seed, 1 + self.epoch])
        order = self.train_rows[torch.from_numpy(rng.permutation(len(self.train_rows))).to(self.device)]
        lams = rng.beta(recipe.mixup_beta, recipe.mixup_beta, self.steps).astype(np.float32)
        totals = torch.zeros(2, device=self.device)
        self.model.train()
        for step in range(self.steps):
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            permutation = torch.from_numpy(rng.permutation(len(rows))).to(self.device)
            supcon, classification = self.losses(rows, float(lams[step]), permutation)
            self.optimizer.zero_grad(set_to_none=True)
            (supcon + classification).backward()
            self.optimizer.step()
            self.ema.update_parameters(self.model)
            torch._foreach_mul_(self.live, 1 - recipe.shrink)
            totals += torch.stack([supcon.detach(), classification.detach()])
            bar.update()
        supcon, classification = (totals / self.steps).tolist()
        return dict(
            train_loss=supcon + classification,
            supcon_loss=supcon,
            arc_loss=classification,
            seconds=time.perf_counter() - began,
        )

    def losses(self, rows: Tensor, lam: float, permutation: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of eq. 4 on one batch; for loss "arcface" the first is 0 and nothing is mixed."""
        waveforms, log_mel, y = self.pictures.take(rows)
        if self.recipe.loss == "arcface":
            z = self.model(waveforms, log_mel)
            return z.new_zeros(()), functional.cross_entropy(self.model.logits(z, y), y)
        waveforms, log_mel, y_a, y_b = mixup(waveforms, log_mel, y, lam, permutation)
        z = self.model(waveforms, log_mel)
        return (
            noisy_supcon(z, y_a, self.recipe.temperature),
            noisy_arcmix(self.model.logits(z, y_a), y_a, y_b, lam),
        )

    @torch.no_grad()
    def holdout_loss(self) -> tuple[float, float]:
        """Cross-entropy of the margin logits and accuracy of the moving average on the held-out normal clips."""
        loss, right = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for rows in self.held_rows.split(256):
            waveforms, log_mel, y = self.pictures.take(rows)
            z = self.ema.module(waveforms, log_mel)
            loss += functional.cross_entropy(self.ema.module.logits(z, y), y, reduction="sum")
            right += (self.ema.module.logits(z, y, margin=0.0).argmax(1) == y).sum()
        return (loss / len(self.held_rows)).item(), (right / len(self.held_rows)).item()

    def finish_epoch(self, losses: dict[str, float]) -> None:
        """Choose the epoch, extend the log, write the checkpoint.

        Raises:
            BadInput: if the training loss is no longer finite.
        """
        if not isfinite(losses["train_loss"]):
            raise BadInput(f"epoch {self.epoch + 1}: the training loss is not finite; lower the learning rate")
        loss, accuracy = self.holdout_loss() if len(self.held_rows) else (float("nan"), float("nan"))
        chosen = not loss >= self.best_loss  # without held-out clips, the last epoch
        if chosen:
            self.best_loss = loss
            self.best = {name: tensor.clone() for name, tensor in self.ema.module.state_dict().items()}
        rate = learning_rate(self.recipe, self.epoch)
        self.log.append(
            dict(
                epoch=self.epoch + 1, learning_rate=rate, **losses, holdout_loss=loss, holdout_accuracy=accuracy,
                chosen=chosen,
            )
        )  # fmt: skip
        self.epoch += 1
        if self.out is not None:
            self.write_checkpoint()

    def write_checkpoint(self) -> None:
        tensors = {f"live.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.ema.module.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = value
        best = None if self.best_loss == float("inf") else self.best_loss
        about = dict(kind="checkpoint", epoch=self.epoch, best_loss=best, log=self.log, identity=self.identity)
        write_tensors(self.out / CHECKPOINT, tensors, about)
        write_whole(self.out / LOG, pd.DataFrame(self.log).to_csv(index=False).encode())

    @torch.no_grad()
    def resume(self) -> None:
        """Go on from the folder's checkpoint, if it has one.

        Raises:
            BadInput: if the checkpoint is damaged or belongs to another recipe or other clips.
        """
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        tensors, about = read_tensors(path, "checkpoint")
        if about.get("identity") != json.loads(json.dumps(self.identity)):
            different = [key for key in self.identity if about.get("identity", {}).get(key) != self.identity[key]]
            raise BadInput(f"{path}: from a run with another {', '.join(different)}; give another folder, or delete it")

        def part(name: str) -> dict[str, Tensor]:
            return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + ".")}

        self.model.load_state_dict(part("live"))
        self.ema.module.load_state_dict(part("average"))
        self.best = part("best")
        moments = part("optimizer")
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                "step": moments[f"{name}.step"],
                **{
                    key: torch.empty_like(parameter).copy_(moments[f"{name}.{key}"])
                    for key in ("exp_avg", "exp_avg_sq")
                },
            }
        self.epoch, self.log = about["epoch"], about["log"]
        self.best_loss = float("inf") if about["best_loss"] is None else about["best_loss"]

    def finish(self) -> Detector:
        """Return the chosen epoch's average and write it beside the log."""
        model = self.ema.module
        model.load_state_dict(self.best)
        model.requires_grad_(True).eval()
        model.hall_version, model.log = self.model.hall_version, pd.DataFrame(self.log)
        if self.out is not None:
            model.save(self.out / DETECTOR)
        return model


def load_pictures(recipe: Recipe, clips: pd.DataFrame, y: Tensor, device: torch.device) -> Pictures:
    """Read the clips once and compute their Log-Mels once, in chunks, on the device."""
    inputs = read_inputs(recipe, clips)
    if recipe.input != "waveform":
        return Pictures(torch.from_numpy(inputs).to(device), None, y.to(device))
    front_end = LogMel(recipe.bands, recipe.sample_rate, recipe.n_fft, recipe.hop).to(device)
    log_mel = torch.empty(len(inputs), recipe.bands, recipe.frames, device=device)
    for start in range(0, len(inputs), 256):
        rows = np.arange(start, min(start + 256, len(inputs)))
        log_mel[start : start + 256] = front_end(take(inputs, rows, device))
    waveforms = None if recipe.front_end == "logmel" else torch.from_numpy(np.array(inputs)).to(device)
    return Pictures(log_mel, waveforms, y.to(device))


def _fit_input(recipe: Recipe, clips: pd.DataFrame) -> Recipe:
    """The recipe, with input, bands and frames set from precomputed features where the clips are such."""
    if not clips["path"].iloc[0].endswith(".npz"):
        return recipe
    features, kind = load_features(clips.iloc[:1])
    kind = "log_mel" if kind == "log_mel" else "features"
    try:
        return replace(recipe, input=kind, bands=features.shape[1], frames=features.shape[2])
    except ValueError as error:
        raise BadInput(f"{clips['path'].iloc[0]}: {error}") from None
