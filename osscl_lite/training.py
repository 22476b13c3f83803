"""fit(): the whole recipe in one stage. Explained in chapter 5; what makes it fast, in the appendix on speed."""

import json
import os
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from hashlib import blake2b
from math import cos, isfinite, pi
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from osscl_lite.cpu import kept_memory
from osscl_lite.data import fingerprint, hall_version, load_features, machine_names, to_float, training_clips
from osscl_lite.detector import Detector, read_inputs
from osscl_lite.errors import BadInput
from osscl_lite.files import check_identity, read_tensors, write_tensors, write_whole
from osscl_lite.holdout import hold_out, look, nothing_learned
from osscl_lite.losses import mixup, noisy_arcmix, noisy_supcon, supcon
from osscl_lite.parallel import Team, joined
from osscl_lite.perturbation import unit_sphere
from osscl_lite.pictures import Pictures, step_bytes
from osscl_lite.recipe import Recipe

CHECKPOINT, DETECTOR, LOG = "checkpoint.safetensors", "detector.safetensors", "log.csv"


def fit(
    recipe: Recipe,
    clips: pd.DataFrame,
    *,
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    progress: bool = True,
    start: Detector | None = None,
    watch: pd.DataFrame | None = None,
) -> Detector:
    """Train a detector on the normal clips of split train.
    Explained in chapter 5; what makes it fast, in the appendix on speed.

    Under torchrun the processes train one detector together: each takes its share of every batch, and the losses see
    the whole batch.

    Args:
        recipe: what to train. On precomputed features its input, bands and frames are set from them.
        clips: a table from ``load_clips``; other rows than training clips are not looked at.
        device: "cpu", "cuda", ... or "auto": a GPU if there is one.
        out: folder for a checkpoint and the log (log.csv) every epoch, and the detector (detector.safetensors). The
            same call again goes on where the last one stopped; on a CPU with the same result, byte for byte, as
            without the stop. Another number of processes may go on too; the result then differs by rounding, by a
            last batch that does not divide, and on CPUs by BatchNorm, which sees a process's share there.
        progress: a text bar with the losses.
        start: a detector whose weights to begin with, where it has those of the same name.
        watch: clips to score after each epoch, N of them, for a look back (``watched``); no choice depends on them.

    Returns:
        The moving average of the weights at the epoch with the lowest cross-entropy on held-out normal clips (the last
        epoch for loss "supcon", which knows no classes), in eval mode; ``log`` holds one row an epoch, ``watched``
        (epochs, N) scores, ``last`` the state of the last epoch.

    Warns:
        UserWarning: if the chosen epoch's average tells no machines apart and the last one does (chapter 9).

    Raises:
        BadInput: no training clips, fewer than two machine IDs, clips that cannot be read, an ``out`` folder that
            belongs to another run, or another process of the team that is gone.
    """
    device = pick_device(device)
    clips = training_clips(clips)
    machines = machine_names(clips)
    if len(machines) < 2:
        raise BadInput(f"training tells machine IDs apart and needs two or more; found {', '.join(machines) or 'none'}")
    recipe, out = fit_input(recipe, clips), None if out is None else Path(out)
    with kept_memory(), joined(device) as team:
        run = Run(recipe, clips, machines, device, out, team, start, watch)
        with tqdm(
            total=run.epochs * run.steps,
            initial=run.epoch * run.steps,
            disable=not (progress and team.first),
            unit="step",
            mininterval=1,
        ) as bar:
            while run.epoch < run.epochs:
                try:
                    losses = run.train_epoch(bar)
                except torch.OutOfMemoryError:
                    raise BadInput(
                        f"{device}: its memory is too small for batches of {recipe.batch_size} clips of "
                        f"{recipe.seconds:g} s at width {recipe.width}; set a smaller batch_size"
                    ) from None
                run.finish_epoch(losses)
                bar.set_postfix({key: f"{run.log[-1][key]:.3f}" for key in ("train_loss", "holdout_loss")})
        return run.finish()


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto" is the GPU if CUDA finds one, else the CPU; each process of torchrun takes a GPU of its own.

    Raises:
        BadInput: if there is no such device here.
    """
    try:
        found = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        if found.type == "cuda" and found.index is None:
            found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"device {device}: not usable here ({str(error).splitlines()[0]}); say auto or cpu") from None
    return found


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Cosine from the first to the final learning rate, one value an epoch (Loshchilov and Hutter 2017).
    Explained in chapter 5.
    """
    low = recipe.learning_rate * recipe.final_learning_rate
    flat = round(recipe.flat_epochs * recipe.epochs)
    along = max(0, epoch - flat) / max(1, recipe.epochs - flat)
    return low + (recipe.learning_rate - low) * (1 + cos(pi * along)) / 2


class OneStage(nn.Module):
    """The two losses of a batch (eq. 4): what learns, from clips to loss, in one module. Explained in chapter 3.

    Args:
        model: the detector in training.
        team: the processes that share the batch.
        half: the network in bfloat16, the head and the losses in float32.
    """

    def __init__(self, model: Detector, team: Team, half: bool) -> None:
        super().__init__()
        self.model, self.team, self.half = model, team, half

    def forward(
        self, waveforms: Tensor | None, log_mel: Tensor, y: Tensor, permutation: Tensor, lam: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Contrastive and classification loss of a batch; the one that the recipe's loss has not is 0.

        "osscl" has both and mixes, "namix" mixes and has no contrastive one; "arcface" and "supcon" have one each and
        mix nothing.

        Args:
            waveforms: (B, L), int16, or None; log_mel: (B, bands, frames); y: (B,); permutation: (B,), who is mixed in;
            lam: the batch's lambda, a scalar.
        """
        recipe, share = self.model.recipe, self.team.share(len(y))
        if waveforms is not None:
            waveforms = to_float(waveforms)
        if recipe.loss in ("arcface", "supcon"):
            z = self.embed(waveforms, log_mel, share)
            if recipe.loss == "supcon":
                return supcon(z, y, recipe.temperature), z.new_zeros(())
            return z.new_zeros(()), functional.cross_entropy(self.model.logits(z, y), y)
        waveforms, log_mel, y_a, y_b = mixup(waveforms, log_mel, y, lam, permutation)
        z = self.embed(waveforms, log_mel, share)
        return (
            noisy_supcon(z, y_a, recipe.temperature) if recipe.loss == "osscl" else z.new_zeros(()),
            noisy_arcmix(self.model.logits(z, y_a), y_a, y_b, lam),
        )

    def embed(self, waveforms: Tensor | None, log_mel: Tensor, share: slice) -> Tensor:
        """What the losses see of the whole batch, (B, E) on the unit sphere; this process computes its share."""
        waveforms = None if waveforms is None else waveforms[share]
        with torch.autocast(log_mel.device.type, torch.bfloat16, enabled=self.half):
            embedding = self.model.unperturbed(waveforms, log_mel[share])
        z = self.model.perturbation(embedding.to(log_mel.dtype))
        return self.team.gather(unit_sphere(z if self.model.projector is None else self.model.projector(z)))


class Recorded:
    """Record a training step of fixed shapes as one CUDA graph, then replay it: one launch instead of thousands.

    Batches of another shape (an epoch's last) run step by step. So do the first ones, which also warm up what picks its
    algorithm when first called.
    """

    WARM = 3

    def __init__(self, step: Callable[..., Tensor]) -> None:
        self.step, self.seen = step, 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        shapes = [None if tensor is None else tensor.shape for tensor in inputs]
        if self.seen == 0:
            self.shapes = shapes
        if shapes != self.shapes:
            return self.step(*inputs)
        self.seen += 1
        if self.seen <= self.WARM:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                losses = self.step(*inputs)
            torch.cuda.current_stream().wait_stream(side)
            return losses
        if self.graph is None:
            self.inputs = [None if tensor is None else tensor.clone() for tensor in inputs]
            torch.cuda.empty_cache()  # the graph has memory of its own
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # records, runs nothing
                self.losses = self.step(*self.inputs)
        for kept, given in zip(self.inputs, inputs, strict=True):
            if kept is not None:
                kept.copy_(given)
        self.graph.replay()
        return self.losses


class Run:
    """One training: the model, its moving average, the optimiser, and where they stand."""

    def __init__(
        self,
        recipe: Recipe,
        clips: pd.DataFrame,
        machines: list[str],
        device: torch.device,
        out: Path | None,
        team: Team | None = None,
        start: Detector | None = None,
        watch: pd.DataFrame | None = None,
    ) -> None:
        self.recipe, self.device, self.out, self.epochs, self.team = recipe, device, out, recipe.epochs, team or Team()
        if recipe.batch_size % self.team.size:
            raise BadInput(
                f"batches of {recipe.batch_size} do not divide among {self.team.size} processes; "
                "choose another batch_size"
            )
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(recipe.seed)  # the CPU's generator alone
            model = Detector(recipe, machines)
        if start is not None:
            own, given = model.state_dict(), start.state_dict()
            model.load_state_dict({name: value for name, value in given.items() if name in own}, strict=False)
        if recipe.loss == "supcon":
            model.class_weight.requires_grad_(False)
        held = hold_out(clips, recipe.holdout, recipe.seed)
        half, reserve = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0), 0
        if device.type == "cuda":
            reserve = int((0.75 if half else 1.5) * step_bytes(model, recipe.batch_size // self.team.size))
        if self.team.size > 1:
            with self.team.first_before_others():
                read_inputs(recipe, clips)  # from here on in the cache
        self.pictures = Pictures(recipe, clips, model.machine_labels(clips), device, reserve)
        if recipe.input == "features":
            model.standardise.fit(self.pictures.log_mel[torch.from_numpy(~held).to(device)])
        self.watched: list[Tensor] = []
        self.watching = None if watch is None else Pictures(recipe, watch, model.machine_labels(watch), device, reserve)
        model.to(device)
        self.train_rows, self.held_rows = np.flatnonzero(~held), np.flatnonzero(held)
        self.steps = len(self.split(self.train_rows))
        if self.steps < 1:
            raise BadInput(f"{len(self.train_rows)} training clips: training needs two or more a process")

        model.hall_version = hall_version(clips)
        self.average = deepcopy(model).requires_grad_(False).eval()  # starts at the initial weights
        self.average_step = 1 / max(1.0, recipe.ema_horizon * self.steps * self.epochs)
        self.model = self.team.synchronised(model, device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            # A recorded step reads its rate from the device.
            lr=torch.tensor(recipe.learning_rate, device=device) if device.type == "cuda" else recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=device.type in ("cpu", "cuda"),
            capturable=device.type == "cuda",
        )
        live, average = self.model.state_dict(), self.average.state_dict()
        floats = [
            name for name, tensor in live.items() if tensor.is_floating_point() and not name.startswith("standardise.")
        ]
        self.live, self.averaged = [live[name] for name in floats], [average[name] for name in floats]
        self.epoch, self.best_loss, self.log = 0, float("inf"), []
        self.best = {name: tensor.clone() for name, tensor in average.items()}
        watches = None if watch is None else fingerprint(watch)
        self.identity = dict(recipe=recipe.to_dict(), machines=machines, clips=fingerprint(clips), watch=watches)
        if start is not None:
            weights = b"".join(tensor.cpu().numpy().tobytes() for tensor in start.state_dict().values())
            self.identity["start"] = blake2b(weights, digest_size=8).hexdigest()
        if out is not None:
            self.resume()
        if not self.team.all_say(json.dumps([self.identity, self.epoch]), device):
            raise BadInput(
                "the processes found different recipes, clips or checkpoints: start all with the same command, with "
                "folders that all of them reach"
            )
        self.losses = self.team.wrap(OneStage(self.model, self.team, half), device)
        self.step = Recorded(self.take_step) if device.type == "cuda" and self.team.size == 1 else self.take_step

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows in batches, the last one short.

        Of several processes each takes as many clips of it, the rest is left out. BatchNorm needs two clips a process:
        a last batch of fewer is left out.
        """
        size, each = self.recipe.batch_size, self.team.size
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        batches = [batch[: len(batch) // each * each] for batch in batches]
        return [batch for batch in batches if len(batch) >= 2 * each]

    def train_epoch(self, bar: tqdm) -> dict[str, float]:
        """One pass over the training clips; all random draws come from (seed, epoch), so a repeat is the same.

        Everything drawn is uploaded at the start, and the losses are looked at in the end: in between, a GPU never
        waits for the CPU.
        """
        recipe, began = self.recipe, time.perf_counter()
        for group in self.optimizer.param_groups:
            rate = learning_rate(recipe, self.epoch)
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
        rng = np.random.default_rng([recipe.seed, 1 + self.epoch])
        rows = self.split(rng.permutation(self.train_rows))
        lams = rng.beta(recipe.mixup_beta, recipe.mixup_beta, self.steps).astype(np.float32)
        permutations = [rng.permutation(len(batch)) for batch in rows]
        sizes = [len(batch) for batch in rows]
        permutations = torch.from_numpy(np.concatenate(permutations)).to(self.device).split(sizes)
        lams = torch.from_numpy(lams).to(self.device)
        totals = torch.zeros(2, device=self.device)
        self.model.train()
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            for batch, permutation, lam in zip(self.pictures.batches(rows), permutations, lams, strict=True):
                totals += self.step(*batch, permutation, lam)
                bar.update()
        supcon, classification = (totals / self.steps).tolist()
        return dict(
            train_loss=supcon + classification,
            supcon_loss=supcon,
            arc_loss=classification,
            seconds=time.perf_counter() - began,
        )

    def take_step(
        self, waveforms: Tensor | None, log_mel: Tensor, y: Tensor, permutation: Tensor, lam: Tensor
    ) -> Tensor:
        """One step of the optimiser, the moving average and the shrink; returns the two losses, (2,)."""
        supcon, classification = self.losses(waveforms, log_mel, y, permutation, lam)
        self.optimizer.zero_grad(set_to_none=True)
        (supcon + classification).backward()
        self.optimizer.step()
        torch._foreach_lerp_(self.averaged, self.live, self.average_step)
        torch._foreach_mul_(self.live, 1 - self.recipe.shrink)
        return torch.stack([supcon.detach(), classification.detach()])

    @torch.no_grad()
    def average_embeddings(self, pictures: Pictures, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Embeddings of clips by the moving average, and their labels: (N, E), (N,)."""
        parts = [rows[start : start + 256] for start in range(0, len(rows), 256)]
        found = [
            (self.average(None if waveforms is None else to_float(waveforms), log_mel), y)
            for waveforms, log_mel, y in pictures.batches(parts)
        ]
        z, y = zip(*found, strict=True)
        return torch.cat(z), torch.cat(y)

    def look_at_holdout(self) -> dict[str, float]:
        """The moving average on the held-out normal clips, as ``look`` gives it."""
        return look(self.average, *self.average_embeddings(self.pictures, self.held_rows))

    def finish_epoch(self, losses: dict[str, float]) -> None:
        """Choose the epoch, extend the log, write the checkpoint.

        Raises:
            BadInput: if the training loss is no longer finite.
        """
        if not isfinite(losses["train_loss"]):
            raise BadInput(f"epoch {self.epoch + 1}: the training loss is not finite; lower the learning rate")
        self.team.agree(self.live + self.averaged)  # BatchNorm statistics differ where each process has its own
        names = ("holdout_loss", "holdout_accuracy", "own_cosine", "other_cosine")
        seen = self.look_at_holdout() if len(self.held_rows) else dict.fromkeys(names, float("nan"))
        loss = seen["holdout_loss"]
        chosen = not loss >= self.best_loss  # without held-out clips, or classes, the last epoch
        if chosen:
            self.best_loss = loss
            self.best = {name: tensor.clone() for name, tensor in self.average.state_dict().items()}
        rate = learning_rate(self.recipe, self.epoch)
        self.log.append(dict(epoch=self.epoch + 1, learning_rate=rate, **losses, **seen, chosen=chosen))
        if self.watching is not None:
            z, y = self.average_embeddings(self.watching, np.arange(len(self.watching.y)))
            self.watched.append(self.average.score_embeddings(z, y).cpu())
        self.epoch += 1
        if self.out is not None and self.team.first:
            self.write_checkpoint()

    def learning(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that learn, by name."""
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def write_checkpoint(self) -> None:
        tensors = {f"live.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {"watched": torch.stack(self.watched)} if self.watched else {}
        for name, parameter in self.learning():
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
        check_identity(path, about, self.identity)

        def part(name: str) -> dict[str, Tensor]:
            return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + ".")}

        self.model.load_state_dict(part("live"))
        self.average.load_state_dict(part("average"))
        self.best, self.watched = part("best"), [scores.float() for scores in tensors.get("watched", ())]
        moments = part("optimizer")
        for name, parameter in self.learning():
            self.optimizer.state[parameter] = {
                "step": moments[f"{name}.step"].to(self.device),
                **{
                    key: torch.empty_like(parameter).copy_(moments[f"{name}.{key}"])
                    for key in ("exp_avg", "exp_avg_sq")
                },
            }
        self.epoch, self.log = about["epoch"], about["log"]
        self.best_loss = float("inf") if about["best_loss"] is None else about["best_loss"]

    def finish(self) -> Detector:
        """Return the chosen epoch's average and write it beside the log; warn if it tells nothing apart."""
        model = self.average
        model.last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.best)
        if self.team.first and (unlearned := nothing_learned(self.log)):
            warnings.warn(unlearned, stacklevel=3)
        model.requires_grad_(True).eval()
        model.hall_version, model.log = self.model.hall_version, pd.DataFrame(self.log)
        model.watched = torch.stack(self.watched).numpy() if self.watched else None
        if self.out is not None and self.team.first:
            model.save(self.out / DETECTOR)
        return model


def fit_input(recipe: Recipe, clips: pd.DataFrame) -> Recipe:
    """The recipe with input, bands and frames set from precomputed features where the clips are such."""
    if not clips["path"].iloc[0].endswith(".npz"):
        return recipe
    features, kind = load_features(clips.iloc[:1])
    kind = "log_mel" if kind == "log_mel" else "features"
    try:
        return replace(recipe, input=kind, bands=features.shape[1], frames=features.shape[2])
    except ValueError as error:
        raise BadInput(f"{clips['path'].iloc[0]}: {error}") from None
