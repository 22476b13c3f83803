"""AnoPatch: a pre-trained audio transformer, fine-tuned to tell machine IDs apart (Jiang et al., Interspeech 2024).

All of the transformer learns. Attentive statistics pooling (Desplanques et al., Interspeech 2020) makes one vector of
its tokens, BatchNorm and a linear layer make that the embedding, ArcFace tells the 41 machine IDs apart. The score is
one less the cosine to the nearest training clip of the same ID. Explained in chapter 9.

Left open by what we could read, and chosen here: the published AST and WavLM Large and what their libraries feed them,
pooling with the mean and deviation of all tokens as context and a waist of 128, embedding 128, margin 0.5, scale 30,
AdamW at 1e-4 for 9 epochs of batches of 32 (10,206 steps on the challenge's 36,283 clips), a rate that rises over the
first tenth of the steps and then stays, the last epoch kept, the single nearest neighbour, and SpecAugment: one mask in
time of up to 0.1875 of the clip, one in frequency of up to 0.375 of the bands. WavLM hears the waveform and has no
bands: the mask in time lies on its tokens, in place of its own.

The weights are not part of this package, and without them ``fit`` refuses: a random transformer is not AnoPatch. The
smaller sizes are ours: shorter clips and fewer epochs of the same transformer, which wants a GPU all the same; only
"tiny" raises the rate, for the small random networks of the tests.
"""

import hashlib
import os
import time
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from osscl_lite.baselines.backbones import ADAPTERS, SOURCES, Backbone, library
from osscl_lite.baselines.statistics import nearest_neighbour
from osscl_lite.baselines.windows import BASELINE
from osscl_lite.cpu import kept_memory
from osscl_lite.data import SAMPLE_RATE, fingerprint, hall_version, machine_names, take, training_clips
from osscl_lite.detector import Scorer, check_format, read_batches, read_inputs
from osscl_lite.errors import BadInput
from osscl_lite.files import check_identity, fitting, read_tensors, write_tensors, write_whole
from osscl_lite.losses import arcface_logits
from osscl_lite.perturbation import unit_sphere
from osscl_lite.recipe import Values
from osscl_lite.training import CHECKPOINT, LOG, pick_device

WEIGHTS = "OSSCL_LITE_WEIGHTS"  # environment variable: a folder with folders named ast, wavlm, beats, atst
RANGES = (
    ("seconds", 0.1, 600),
    ("embedding", 1, 8192),
    ("attention", 1, 8192),
    ("time_mask", 0, 1),
    ("frequency_mask", 0, 1),
    ("epochs", 1, 100_000),
    ("batch_size", 2, 100_000),
    ("learning_rate", 0, 10),
    ("warmup", 0, 1),
)
SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "book": dict(seconds=2.0, epochs=4),
    "tiny": dict(seconds=2.0, epochs=4, batch_size=16, learning_rate=1e-3),
}


@dataclass(frozen=True)
class AnoPatchRecipe(Values):
    """AnoPatch over one transformer. Explained in chapter 9. Times are seconds, rates per step, angles radians."""

    name: str
    size: str
    backbone: str  # "wavlm", "ast", "beats" or "atst"
    weights: str | None = None  # a folder, or "hub:OWNER/NAME" to fetch it; None: the backbone's in $OSSCL_LITE_WEIGHTS
    input: str = "waveform"
    seconds: float = 10.0
    sample_rate: int = SAMPLE_RATE
    embedding: int = 128  # E
    attention: int = 128  # waist of the attention
    margin: float = 0.5  # m
    scale: float = 30.0  # s
    time_mask: float = 0.1875  # longest mask, as a fraction of the picture's frames
    frequency_mask: float = 0.375  # as a fraction of its bands
    epochs: int = 9
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup: float = 0.1  # fraction of the steps over which the rate rises from 0
    weight_decay: float = 0.01
    seed: int = 2024

    def __post_init__(self) -> None:
        self.check(dict(backbone=SOURCES, input=("waveform",), sample_rate=(SAMPLE_RATE,)), RANGES)


def recipe(size: str = "paper", backbone: str = "beats") -> AnoPatchRecipe:
    """The recipe of one row of Table V: "wavlm", "atst", "ast" or "beats", at a size. Explained in chapter 9.

    Raises:
        ValueError: for an unknown size or backbone, listing the known ones.
    """
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: choose one of {', '.join(SIZES)}")
    return AnoPatchRecipe(name=f"anopatch-{backbone}", size=size, backbone=backbone, **SIZES[size])


def why_not(recipe: AnoPatchRecipe) -> str | None:
    """The line that says why this recipe cannot run here, or None if it names its weights and has an adapter."""
    name, source = recipe.backbone, SOURCES[recipe.backbone]
    if name not in ADAPTERS:
        return (
            f"anopatch-{name}: the transformers library has no {name}; get {source}, write a subclass of "
            f"osscl_lite.baselines.backbones.Backbone around it and set ADAPTERS[{name!r}] to it"
        )
    if _named(recipe) is None:
        return (
            f"anopatch-{name}: no weights; get {source} and name their folder, replace(recipe, weights='FOLDER'), or "
            f"put it as {name} into the folder that the environment variable {WEIGHTS} names"
        )
    return None


def _named(recipe: AnoPatchRecipe) -> str | None:
    if recipe.weights is not None or not (root := os.environ.get(WEIGHTS)):
        return recipe.weights
    folder = Path(root, recipe.backbone)
    return str(folder) if folder.is_dir() else None


def weights_folder(recipe: AnoPatchRecipe) -> Path:
    """The folder of the published weights; "hub:OWNER/NAME" is fetched into the cache of huggingface_hub.

    Raises:
        BadInput: in one line: no adapter, no weights named, no such folder, or nothing could be fetched.
    """
    if reason := why_not(recipe):
        raise BadInput(reason)
    named = str(_named(recipe))
    if not named.startswith("hub:"):
        if not Path(named).is_dir():
            raise BadInput(f"{named}: no such folder; get {SOURCES[recipe.backbone]} and name its folder")
        return Path(named)
    library()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(named[4:], allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # of the network, of the hub, of the disk
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{named}: could not be fetched ({reason}); get it by hand and name its folder") from None


def _sha256(folder: Path) -> str:
    """Which weights: a hash of all files of a folder, by name."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


class AttentiveStatistics(nn.Module):
    """Weighted mean and deviation of tokens, each channel with weights of its own: (B, T, D) -> (B, 2 D).

    The weights come from each token beside the mean and deviation of all (ECAPA-TDNN's context): tanh(W [x, mean,
    deviation] + b), a second layer to D values, softmax over the tokens. W is kept in two parts, so that the context is
    multiplied once a clip.
    """

    def __init__(self, width: int, attention: int) -> None:
        super().__init__()
        self.token = nn.Linear(width, attention)
        self.context = nn.Linear(2 * width, attention, bias=False)
        self.weight = nn.Linear(attention, width)

    def forward(self, tokens: Tensor) -> Tensor:
        mean = tokens.mean(1, keepdim=True)  # (B, 1, D)
        context = torch.cat([mean, (tokens - mean).square().mean(1, keepdim=True).clamp_min(1e-6).sqrt()], 2)
        weights = self.weight(torch.tanh(self.token(tokens) + self.context(context))).softmax(1)  # (B, T, D)
        mean = (weights * tokens).sum(1)  # (B, D)
        variance = (weights * (tokens - mean[:, None]).square()).sum(1)
        return torch.cat([mean, variance.clamp_min(1e-6).sqrt()], 1)


class AnoPatch(Scorer, nn.Module):
    """The trained system: transformer, pooling, embedding, and the embeddings of all training clips.

    Args:
        recipe: what to build.
        machines: names of the machine IDs, such as "fan/id_00".
        backbone: the transformer.

    Attributes:
        memory: embeddings of the normal training clips, (N, E); memory_labels: their machine labels, (N,).
        weights_sha256: which published weights it started from.
        log: one row an epoch after ``fit``, else None.
    """

    memory: Tensor
    memory_labels: Tensor

    def __init__(self, recipe: AnoPatchRecipe, machines: list[str], backbone: Backbone) -> None:
        super().__init__()
        self.recipe, self.machines, self.backbone = recipe, list(machines), backbone
        self.hall_version: str | None = None
        self.weights_sha256: str | None = None
        self.log: pd.DataFrame | None = None
        self.pool = AttentiveStatistics(backbone.width, recipe.attention)
        self.norm = nn.BatchNorm1d(2 * backbone.width)
        self.project = nn.Linear(2 * backbone.width, recipe.embedding)
        self.class_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(len(self.machines), recipe.embedding)))
        self.remember(torch.empty(0, recipe.embedding), torch.empty(0, dtype=torch.long))
        self.eval()

    def remember(self, embeddings: Tensor, machine_labels: Tensor) -> None:
        """Keep these embeddings, (N, E), as those of normal clips of these machines, (N,)."""
        self.register_buffer("memory", embeddings)
        self.register_buffer("memory_labels", machine_labels)

    @property
    def device(self) -> torch.device:
        return self.class_weight.device

    def forward(self, waveforms: Tensor, half: bool = False) -> Tensor:
        """Embeddings on the unit sphere: (B, L) -> (B, E). In training mode parts of the clips are masked.

        ``half``: the transformer in bfloat16, the rest in float32.
        """
        masks = (self.recipe.time_mask, self.recipe.frequency_mask) if self.training else (0.0, 0.0)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            tokens = self.backbone(waveforms, *masks)  # (B, T, D)
        return unit_sphere(self.project(self.norm(self.pool(tokens.float()))))

    def loss(self, waveforms: Tensor, y: Tensor, half: bool = False) -> Tensor:
        """Cross-entropy of the ArcFace logits: (B, L), (B,) -> a scalar."""
        z, recipe = self(waveforms, half), self.recipe
        return functional.cross_entropy(arcface_logits(z, self.class_weight, y, recipe.margin, recipe.scale), y)

    @torch.no_grad()
    def embed(self, inputs: Tensor) -> Tensor:
        """Embeddings of waveforms, which are read and refused as by ``Detector.embed``: (B, L) -> (B, E)."""
        return self(self.checked(inputs))

    @torch.no_grad()
    def score(self, inputs: Tensor, machine_labels: Tensor) -> Tensor:
        """Anomaly scores: one less the cosine to the nearest training clip of the same ID; 0 for a training clip.

        Args:
            inputs: as for ``embed``.
            machine_labels: (B,) integers in the order of ``machines``.

        Returns:
            (B,) scores, from 0 to 2. A score does not depend on the other clips of the batch.

        Raises:
            ValueError: as ``embed``, or for labels of another number or of no class.
        """
        z = self.embed(inputs).cpu().numpy()
        own = self.checked_labels(machine_labels, len(z)).numpy()
        memory, labels = self.memory.cpu().numpy(), self.memory_labels.cpu().numpy()
        return torch.from_numpy(nearest_neighbour(memory, labels, z, own, "cosine")).float()

    def about(self) -> dict[str, Any]:
        extra = dict(kind="baseline", backbone=self.backbone.description, weights_sha256=self.weights_sha256)
        return super().about() | extra

    def save(self, path: str | Path) -> None:
        """Write weights, memory, recipe and machine names as one .safetensors file, whole or not at all."""
        write_tensors(Path(path), self.state_dict(), self.about())

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a system that ``save`` wrote; the published weights are not needed.

        Raises:
            BadInput: in one line, if the file is missing, damaged, or holds another system.
        """
        tensors, about = read_tensors(Path(path), "baseline")
        check_format(path, about)
        with fitting(path, "AnoPatch"):
            recipe = AnoPatchRecipe.from_dict(about["recipe"])
            model = cls(recipe, about["machines"], ADAPTERS[recipe.backbone](about["backbone"]))
            model.remember(tensors["memory"], tensors["memory_labels"])
            model.load_state_dict(tensors)
        model.hall_version, model.weights_sha256 = about["hall_version"], about["weights_sha256"]
        return model.to(device)


def fit(
    recipe: AnoPatchRecipe,
    clips: pd.DataFrame,
    *,
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> AnoPatch:
    """Fine-tune the whole transformer on the machine IDs of the normal clips of split train. Explained in chapter 9.

    Args:
        recipe: what to train; its weights, or those in the folder that $OSSCL_LITE_WEIGHTS names.
        clips: a table from ``load_clips``; other rows than training clips are not looked at.
        device: "cpu", "cuda", ... or "auto": a GPU if there is one.
        out: folder for a checkpoint and the log (log.csv) every epoch, and the system (baseline.safetensors). The same
            call again goes on where the last one stopped; on a CPU with the same result as without the stop.
        progress: a text bar with the loss.

    Returns:
        The system after the last epoch, in eval mode.

    Raises:
        BadInput: no weights, weights that do not fit, precomputed features, fewer than two machine IDs, clips that
            cannot be read, an ``out`` folder that belongs to another run, or a loss that is no longer finite.
    """
    device, out = pick_device(device), None if out is None else Path(out)
    clips = training_clips(clips)
    machines = machine_names(clips)
    if len(machines) < 2:
        raise BadInput(f"training tells machine IDs apart and needs two or more; found {', '.join(machines) or 'none'}")
    if clips["path"].iloc[0].endswith(".npz"):
        raise BadInput(
            f"{clips['path'].iloc[0]}: precomputed features, but a pre-trained transformer takes the sound itself, or "
            "the Mel picture it was trained with; give clips with waveforms"
        )
    folder = weights_folder(recipe)
    backbone, sha256 = ADAPTERS[recipe.backbone].read(folder), _sha256(folder)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(recipe.seed)
        model = AnoPatch(recipe, machines, backbone)
    model.weights_sha256 = sha256
    model.hall_version = hall_version(clips)
    try:
        with kept_memory():
            _train(model.to(device), clips, out, progress)
            embeddings = [model.embed(batch) for batch in read_batches(recipe, clips, recipe.batch_size)]
    except torch.OutOfMemoryError:
        raise BadInput(
            f"{device}: its memory is too small for batches of {recipe.batch_size} clips of {recipe.seconds:g} s; set "
            "a smaller batch_size"
        ) from None
    model.remember(torch.cat(embeddings), model.machine_labels(clips).to(device))
    if out is not None:
        model.save(out / BASELINE)
    return model


def _train(model: AnoPatch, clips: pd.DataFrame, out: Path | None, progress: bool) -> None:
    """AdamW over all weights; all random draws of an epoch come from (seed, epoch), so a repeat is the same."""
    recipe, device = model.recipe, model.device
    inputs, labels = read_inputs(recipe, clips), model.machine_labels(clips)
    steps = len(_batches(recipe, np.arange(len(clips))))
    if steps < 1:
        raise BadInput(f"{len(clips)} training clip: training needs two or more")
    rising = max(1, round(recipe.warmup * steps * recipe.epochs))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    settings = {key: value for key, value in recipe.to_dict().items() if key != "weights"}  # a folder may move
    identity = dict(recipe=settings, machines=model.machines, clips=fingerprint(clips), weights=model.weights_sha256)
    log = _resume(model, optimizer, identity, out)
    half = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    bar = tqdm(total=steps * recipe.epochs, initial=steps * len(log), disable=not progress, unit="step", mininterval=1)
    with bar, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for epoch in range(len(log), recipe.epochs):
            began, total = time.perf_counter(), torch.zeros((), device=device)
            rng = np.random.default_rng([recipe.seed, 1 + epoch])
            torch.manual_seed(int(rng.integers(2**63)))  # of dropout, dropped layers and masks
            model.train()
            for step, rows in enumerate(_batches(recipe, rng.permutation(len(clips))), start=epoch * steps):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * min(1.0, (1 + step) / rising)
                loss = model.loss(take(inputs, rows, "cpu"), labels[rows].to(device), half)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.detach()
                bar.update()
            if not isfinite(mean := (total / steps).item()):
                raise BadInput(f"epoch {epoch + 1}: the training loss is not finite; lower the learning rate")
            log.append(dict(epoch=epoch + 1, train_loss=mean, seconds=time.perf_counter() - began))
            bar.set_postfix_str(f"{mean:.3f}")
            if out is not None:
                _write_checkpoint(model, optimizer, identity, log, out)
    model.eval()
    model.log = pd.DataFrame(log)


def _batches(recipe: AnoPatchRecipe, rows: np.ndarray) -> list[np.ndarray]:
    """Rows in batches, the last one short; a last one of a single clip is left out, BatchNorm needs two."""
    batches = [rows[start : start + recipe.batch_size] for start in range(0, len(rows), recipe.batch_size)]
    return [batch for batch in batches if len(batch) > 1]


def _write_checkpoint(
    model: AnoPatch, optimizer: torch.optim.Optimizer, identity: dict[str, Any], log: list[dict[str, Any]], out: Path
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():  # none for a layer that was dropped at each step
            tensors[f"optimizer.{name}.{key}"] = value
    write_tensors(out / CHECKPOINT, tensors, dict(kind="checkpoint", identity=identity, log=log))
    write_whole(out / LOG, pd.DataFrame(log).to_csv(index=False).encode())


def _resume(
    model: AnoPatch, optimizer: torch.optim.Optimizer, identity: dict[str, Any], out: Path | None
) -> list[dict[str, Any]]:
    """Go on from the folder's checkpoint, if it has one; returns the log so far.

    Raises:
        BadInput: if the checkpoint is damaged or belongs to another recipe, other clips or other weights.
    """
    if out is None or not (path := out / CHECKPOINT).exists():
        return []
    tensors, about = read_tensors(path, "checkpoint")
    check_identity(path, about, identity)
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    for name, parameter in model.named_parameters():
        kept = {key: tensors.get(f"optimizer.{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
        if kept["step"] is not None:
            device = parameter.device
            optimizer.state[parameter] = dict(
                step=kept["step"], exp_avg=kept["exp_avg"].to(device), exp_avg_sq=kept["exp_avg_sq"].to(device)
            )
    return about["log"]
