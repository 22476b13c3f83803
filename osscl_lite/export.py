"""A detector as one ONNX file, front end included, and a reader of such files. Explained in the appendix on speed.

The graph computes what ``Detector.score`` computes, in operators that ONNX Runtime is quick at. Its operators for the
short-time Fourier transform, PReLU and one-dimensional convolutions are slow on a CPU: each of the first four classes
is one layer of the detector written otherwise, equal to it up to rounding. ``benchmarks/inference.py`` measures it.
"""

import json
import logging
import math
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from osscl_lite.detector import Detector, Scorer, check_format
from osscl_lite.errors import BadInput
from osscl_lite.features import LogMel, TFgramNet
from osscl_lite.files import check_kind, write_whole
from osscl_lite.losses import log_odds_against
from osscl_lite.recipe import Recipe

OUTPUTS = ["scores", "embeddings"]
AT_ONCE = 4  # clips that OnnxDetector gives to one run: more of them leave the processor's cache


class MatrixLogMel(nn.Module):
    """``LogMel`` as matrix products, for clips of one length: (B, L) -> (B, bands, 1 + L // hop).

    The discrete Fourier transform of N = n_fft samples in two steps (Cooley and Tukey 1965), with N = N1 N2,
    n = N2 n1 + n2 and k = k1 + N1 k2: a sum over n1, then one over n2 whose matrix holds the twiddle factors. Samples
    are real, so k1 up to N1 / 2 give every power; the rows of the filter bank stand in their order.
    """

    def __init__(self, log_mel: LogMel, samples: int) -> None:
        super().__init__()
        size, hop = log_mel.mel.n_fft, log_mel.mel.hop_length
        self.pad_mode = log_mel.mel.spectrogram.pad_mode
        # Frames are put together from blocks, which is quicker than from samples
        self.block = math.gcd(size, hop)
        starts = torch.arange(1 + samples // hop) * (hop // self.block)
        index = starts[:, None] + torch.arange(size // self.block)  # (frames, blocks of a frame)
        self.pad = (size // 2, (int(index.max()) + 1) * self.block - samples - size // 2)

        self.n1 = min((n for n in range(1, size + 1) if size % n == 0), key=lambda n: n + 4 * size / n)
        self.n2, self.k1 = size // self.n1, self.n1 // 2 + 1
        n1, n2, k1 = (torch.arange(count, dtype=torch.float64) for count in (self.n1, self.n2, self.k1))
        k = k1[:, None] + self.n1 * n2  # (k1, k2)
        first = torch.stack(rotation(k1[:, None] * n1 / self.n1), 1)  # (k1, re im, n1)
        real, imaginary = rotation(n2[:, None] * k[:, None, :] / size)  # (k1, n2, k2) each
        second = torch.cat([torch.cat([real, imaginary], 2), torch.cat([-imaginary, real], 2)], 1)
        once = (k <= size // 2) | (-k % self.n1 > self.n1 // 2)  # X[N - k] has the power of X[k]: take one of them
        bank = log_mel.mel.mel_scale.fb[torch.minimum(k, size - k).long()] * once[..., None]  # (k1, k2, bands)
        for name, constant in {
            "index": index,
            "window": log_mel.mel.spectrogram.window,
            "first": first.float().flatten(0, 1),  # (k1 re im, n1)
            "second": second.float(),  # (k1, re im n2, re im k2)
            "bank": torch.cat([bank, bank], 1).flatten(0, 1),  # (k1 re im k2, bands)
        }.items():
            self.register_buffer(name, constant)

    def forward(self, waveforms: Tensor) -> Tensor:
        blocks = functional.pad(waveforms, self.pad, self.pad_mode).reshape(waveforms.shape[0], -1, self.block)
        frames = blocks[:, self.index].reshape(-1, self.n1 * self.n2) * self.window  # (B frames, N)
        x = self.first @ frames.reshape(-1, self.n1, self.n2)  # (B frames, k1 re im, n2)
        x = x.reshape(-1, self.k1, 2 * self.n2).transpose(0, 1) @ self.second  # (k1, B frames, re im k2)
        squares = x.square().transpose(0, 1).reshape(waveforms.shape[0], len(self.index), -1)
        return 10 * (squares @ self.bank).clamp_min(1e-10).log10().transpose(1, 2)


def rotation(turns: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of exp(-2 pi i turns)."""
    return torch.cos(2 * torch.pi * turns), -torch.sin(2 * torch.pi * turns)


class SplitPReLU(nn.Module):
    """``PReLU`` as x + (1 - slope) relu(-x), each factor a depthwise 1 x 1 convolution: (B, C, H, W) -> (B, C, H, W).

    So the maps stay in the blocked layout of the convolutions around them.
    """

    def __init__(self, prelu: nn.PReLU) -> None:
        super().__init__()
        self.register_buffer("slope", prelu.weight.detach().reshape(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        channels = len(self.slope)
        below = functional.conv2d(x, -torch.ones_like(self.slope), groups=channels).relu()
        return functional.conv2d(below, 1 - self.slope, groups=channels) + x


class Windows(nn.Module):
    """``AdaptiveMaxPool1d`` of a known length, which ONNX has no operator for: (..., length) -> (..., outputs)."""

    def __init__(self, length: int, outputs: int) -> None:
        super().__init__()
        i = torch.arange(outputs)
        first, last = i * length // outputs, -(-(i + 1) * length // outputs) - 1
        width = int((last - first).max()) + 1
        self.register_buffer("index", torch.minimum(first[:, None] + torch.arange(width), last[:, None]))

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.index].amax(-1)


class PictureTFgram(nn.Module):
    """``TFgramNet`` with its waveform as a picture of one row, as the quick convolutions are two-dimensional."""

    def __init__(self, net: TFgramNet, samples: int) -> None:
        super().__init__()
        x, layers = torch.zeros(1, 1, samples), []
        for layer in net.layers:
            layers.append(on_pictures(layer, x.shape[-1]))
            x = layer(x)
        self.layers = nn.Sequential(*layers)

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.layers(waveforms[:, None, None]).squeeze(2)


def on_pictures(layer: nn.Module, length: int) -> nn.Module:
    """A layer over (B, C, length) as the same layer over (B, C, 1, length)."""
    if isinstance(layer, nn.Conv1d):
        wide = nn.Conv2d(
            layer.in_channels, layer.out_channels, (1, *layer.kernel_size), (1, *layer.stride), (0, *layer.padding),
            (1, *layer.dilation), bias=False,
        )  # fmt: skip
        wide.weight = nn.Parameter(layer.weight.detach().unsqueeze(2))
        return wide
    if isinstance(layer, nn.BatchNorm1d):
        wide = nn.BatchNorm2d(layer.num_features, layer.eps)
        wide.load_state_dict(layer.state_dict())
        return wide
    if isinstance(layer, nn.MaxPool1d):
        return nn.MaxPool2d((1, layer.kernel_size))
    return Windows(length, layer.output_size) if isinstance(layer, nn.AdaptiveMaxPool1d) else layer


class Graph(nn.Module):
    """What the file holds: (B, L) waveforms or (B, bands, frames) pictures, (B,) labels -> (B,) scores, (B, E)."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = Detector(model.recipe, model.machines)  # a copy on the CPU
        self.model.load_state_dict(model.state_dict())
        self.model.hall_version = model.hall_version
        if self.model.log_mel is not None:
            self.model.log_mel = MatrixLogMel(self.model.log_mel, model.samples)
        if self.model.front_end.tfgram is not None:
            self.model.front_end.tfgram = PictureTFgram(self.model.front_end.tfgram, model.samples)
        for module in list(self.model.network.modules()):
            for name, layer in module.named_children():
                if isinstance(layer, nn.PReLU):
                    setattr(module, name, SplitPReLU(layer))
        self.eval()

    def forward(self, inputs: Tensor, machine_labels: Tensor) -> tuple[Tensor, Tensor]:
        z = self.model(inputs, inputs if self.model.log_mel is None else self.model.log_mel(inputs))
        odds = log_odds_against(self.model.logits(z, machine_labels), machine_labels)
        return torch.log(1 + odds.double().exp()).float(), z  # ONNX Runtime's Softplus would round small ones to 0


def export(model: Detector, path: str | Path) -> None:
    """Write a detector as one ONNX file, whole or not at all. Explained in the appendix on speed.

    Inputs: ``waveforms`` (B, L), float32 in [-1, 1], of exactly the recipe's samples (or ``pictures`` (B, bands,
    frames) for a recipe of precomputed features), and ``machine_labels`` (B,), int64. Outputs: ``scores`` (B,) and
    ``embeddings`` (B, E). Any B. Recipe, machine names and hall version stand in the metadata under ``about``, as JSON.

    Raises:
        BadInput: in one line, if the packages for it are missing or the name does not end in .onnx.
    """
    if Path(path).suffix != ".onnx":
        raise BadInput(f"{path}: give it a name that ends in .onnx, by which it is known when scoring")
    for package in ("onnx", "onnxscript"):
        needed(package)
    write_graph(Graph(model), Path(path))


def write_graph(graph: Graph, path: Path) -> None:
    """Trace a graph with clips of silence and write it as ONNX."""
    name, shape = graph_input(graph.model)
    batch = {0: torch.export.Dim("batch")}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own innards
        logger.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                graph,
                (torch.zeros(2, *shape), torch.zeros(2, dtype=torch.int64)),
                dynamo=True,
                verbose=False,
                input_names=[name, "machine_labels"],
                output_names=OUTPUTS,
                dynamic_shapes=(batch, batch),
            )
        finally:
            logger.setLevel(level)
    program.model.metadata_props["about"] = json.dumps(graph.model.about(), sort_keys=True)
    write_whole(path, program.model_proto.SerializeToString())


class OnnxDetector(Scorer):
    """A detector that ``export`` wrote, run by ONNX Runtime on the CPU, with as many threads as PyTorch has.
    Explained in the appendix on speed.

    It scores and embeds as ``Detector`` does, and refuses what that refuses.
    """

    def __init__(self, session: Any, recipe: Recipe, machines: list[str], hall_version: str | None) -> None:
        self.session, self.recipe, self.machines, self.hall_version = session, recipe, machines, hall_version

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file of ``export``.

        Raises:
            BadInput: in one line, if onnxruntime or the file is missing, or the file is damaged, another program's, or
                does not fit its own recipe.
        """
        onnxruntime = needed("onnxruntime")
        if not Path(path).is_file():
            raise BadInput(f"{path}: no such file; give the path of a detector that was exported as .onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors only
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no class
            reason = " ".join(str(error).split())[:300]
            raise BadInput(f"{path}: not a readable ONNX file ({reason}); export the detector again") from None
        try:
            about = dict(json.loads(session.get_modelmeta().custom_metadata_map["about"]))
        except (KeyError, TypeError, ValueError):
            about = {}
        check_kind(Path(path), about, "detector")
        check_format(path, about)
        try:
            model = cls(session, Recipe.from_dict(about["recipe"]), list(about["machines"]), about["hall_version"])
            name, shape = graph_input(model)
            first, outputs = session.get_inputs()[0], [node.name for node in session.get_outputs()]
            if (first.name, *first.shape[1:], *outputs) != (name, *shape, *OUTPUTS):
                raise ValueError(f"it takes {first.name} {first.shape[1:]}, the recipe {name} {list(shape)}")
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise BadInput(f"{path}: the graph does not fit the recipe in it ({reason}); export it again") from None
        return model

    def _run(self, output: str, inputs: Tensor, machine_labels: Tensor) -> Tensor:
        name, shape = graph_input(self)
        if len(inputs) == 0:  # shapes of no clips confuse the graph
            return self._run(output, torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64))[:0]
        runs = [
            self.session.run([output], {name: some.numpy(), "machine_labels": labels.numpy()})[0]
            for some, labels in zip(inputs.split(AT_ONCE), machine_labels.split(AT_ONCE), strict=True)
        ]
        return torch.from_numpy(np.concatenate(runs))

    def embed(self, inputs: Tensor) -> Tensor:
        """Perturbed embeddings of clips, as ``Detector.embed``: (B, L) -> (B, E)."""
        inputs = self.checked(inputs).cpu()
        return self._run("embeddings", inputs, torch.zeros(len(inputs), dtype=torch.int64))

    def score(self, inputs: Tensor, machine_labels: Tensor) -> Tensor:
        """Anomaly scores of clips, as ``Detector.score``: (B, L), (B,) -> (B,)."""
        inputs = self.checked(inputs).cpu()
        return self._run("scores", inputs, self.checked_labels(machine_labels, len(inputs)).cpu())


def graph_input(model: Scorer) -> tuple[str, tuple[int, ...]]:
    """Name and shape, without the batch, of what a graph takes beside labels."""
    r = model.recipe
    return ("waveforms", (model.samples,)) if r.input == "waveform" else ("pictures", (r.bands, r.frames))


def needed(package: str) -> ModuleType:
    """Import an optional package.

    Raises:
        BadInput: in one line with the command that installs it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise BadInput(f'ONNX files need {package} ({error}): pip install "osscl_lite[onnx]"') from None
