"""Pre-trained audio transformers for AnoPatch: waveforms in, tokens out. Explained in chapter 9.

AST and WavLM come from the transformers library, which is imported when one is needed; their weights are read from a
folder in the layout in which they are published. Any other is a subclass of ``Backbone`` put into ``ADAPTERS``.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from osscl_lite._torchaudio import import_torchaudio
from osscl_lite._torchvision import import_torchvision
from osscl_lite.data import SAMPLE_RATE
from osscl_lite.errors import BadInput

KALDI_WINDOW, KALDI_HOP = 400, 160  # samples of a frame of Kaldi's Mel bands at 16 kHz, and from one to the next
SOURCES = {  # which weights, and where they are published
    "wavlm": "microsoft/wavlm-large (https://huggingface.co/microsoft/wavlm-large)",
    "ast": "MIT/ast-finetuned-audioset-10-10-0.4593 (https://huggingface.co/MIT/ast-finetuned-audioset-10-10-0.4593)",
    "beats": "BEATs_iter3 (https://github.com/microsoft/unilm/tree/master/beats)",
    "atst": "ATST-Frame base (https://github.com/Audio-WestlakeU/audiossl)",
}


class Backbone(nn.Module):
    """A pre-trained transformer: waveforms in, tokens out. What an adapter for another one has to offer.

    Args:
        description: JSON values from which the network can be built again, with random weights.

    Attributes:
        description: the same.
        width: D, the length of a token.
    """

    description: dict[str, Any]
    width: int

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.description = description

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The network with the published weights of a folder.

        Raises:
            BadInput: in one line, if a file is missing or a weight is missing, of another shape, or unknown.
        """
        raise NotImplementedError

    def forward(self, waveforms: Tensor, time_mask: float = 0.0, frequency_mask: float = 0.0) -> Tensor:
        """Tokens of clips, on the network's device.

        Args:
            waveforms: (B, L), float32 in [-1, 1], 16 kHz, on any device.
            time_mask, frequency_mask: SpecAugment while training: the longest masks, as fractions.

        Returns:
            (B, T, D): frames or patches; tokens that stand for the whole clip are left out.
        """
        raise NotImplementedError


class Published(Backbone):
    """A backbone of the transformers library: its network, its file layout, its own preparation of the sound."""

    name: ClassVar[str]
    model_type: ClassVar[str]  # as config.json has it
    model: ClassVar[str]
    config: ClassVar[str]
    extractor: ClassVar[str]
    heads: ClassVar[tuple[str, ...]]  # weights in the file that belong to other tasks

    def __init__(self, description: dict[str, Any], network: nn.Module | None = None) -> None:
        super().__init__(description)
        config = getattr(library(), self.config).from_dict(description["config"])
        self.extract = getattr(library(), self.extractor).from_dict(description["preprocessor"])
        if self.extract.sampling_rate != SAMPLE_RATE:
            raise ValueError(f"it listens at {self.extract.sampling_rate} Hz, {SAMPLE_RATE} are needed")
        self.network = getattr(library(), self.model)(config) if network is None else network
        self.width = config.hidden_size

    @classmethod
    def read(cls, folder: Path) -> Self:
        description = {}
        for key, name, field, wanted in (
            ("config", "config.json", "model_type", cls.model_type),
            ("preprocessor", "preprocessor_config.json", "feature_extractor_type", cls.extractor),
        ):
            try:
                description[key] = json.loads((folder / name).read_text(encoding="utf-8"))
                found = description[key][field]
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = " ".join(f"{type(error).__name__} {error}".split())
                raise BadInput(
                    f"{folder / name}: cannot be read ({reason}); give the folder of {SOURCES[cls.name]}"
                ) from None
            if found != wanted:
                raise BadInput(
                    f"{folder / name}: {field} is {found}, needed is {wanted}; give the folder of {SOURCES[cls.name]}"
                )
        if not any(folder.glob("*.safetensors")):
            raise BadInput(
                f"{folder}: has no .safetensors file, and pickled weights are not read, since they may run code; write "
                f"them anew with transformers.{cls.model}.from_pretrained(FOLDER).save_pretrained(OTHER)"
            )
        try:
            with _quiet():
                network, found = getattr(library(), cls.model).from_pretrained(
                    folder,
                    local_files_only=True,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # all of them are named below
                    output_loading_info=True,
                    dtype=torch.float32,
                )
            backbone = cls(description, network)
        except Exception as error:  # the library raises what its parts raise: OSError, SafetensorError, TypeError, ...
            reason = " ".join(str(error).split())[:300]
            raise BadInput(f"{folder}: cannot be read as {cls.model} ({reason}); get the files again") from None
        wrong = [f"{key} is missing" for key in sorted(found["missing_keys"])]
        wrong += [f"{key[0]} has another shape" for key in sorted(found["mismatched_keys"])]
        wrong += [f"{key} is unknown" for key in sorted(found["unexpected_keys"]) if not key.startswith(cls.heads)]
        wrong += [" ".join(line.split()) for line in found["error_msgs"]]
        if wrong:
            more = f" and {len(wrong) - 1} more such" if len(wrong) > 1 else ""
            raise BadInput(f"{folder}: the weights do not fit config.json: {wrong[0]}{more}; get the files again")
        return backbone

    def heard(self, waveforms: Tensor) -> Tensor:
        """What the library makes of the sound, on the network's device."""
        sound = list(waveforms.cpu().numpy())
        inputs = self.extract(sound, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_values"]
        return inputs.to(next(self.parameters()).device)


class AST(Published):
    """Audio spectrogram transformer (Gong et al., Interspeech 2021): a token a patch of 16 frames x 16 bands.

    Its picture has 128 Kaldi Mel bands and always as many frames as it was trained with (1024, 10.24 s): longer clips
    are cut, shorter ones padded, so that its position embeddings stay in place. Masks lie on frames that hold sound,
    and tokens of padding alone are left out.
    """

    name, model_type, config, model = "ast", "audio-spectrogram-transformer", "ASTConfig", "ASTModel"
    extractor, heads = "ASTFeatureExtractor", ("classifier.",)

    def __init__(self, description: dict[str, Any], network: nn.Module | None = None) -> None:
        super().__init__(description, network)
        for field in ("max_length", "num_mel_bins"):
            if (heard := getattr(self.extract, field)) != (seen := getattr(self.network.config, field)):
                raise ValueError(f"{field} is {heard} in preprocessor_config.json and {seen} in config.json")

    def forward(self, waveforms: Tensor, time_mask: float = 0.0, frequency_mask: float = 0.0) -> Tensor:
        picture = self.heard(waveforms).transpose(1, 2)  # (B, bands, frames)
        bands, frames = picture.shape[1:]
        sound = min(frames, max(1, 1 + (waveforms.shape[1] - KALDI_WINDOW) // KALDI_HOP))  # frames that are no padding
        transforms = import_torchaudio().transforms
        masked = transforms.TimeMasking(round(time_mask * sound), iid_masks=True)(picture[:, :, :sound])
        picture = torch.cat([masked, picture[:, :, sound:]], 2)
        picture = transforms.FrequencyMasking(round(frequency_mask * bands), iid_masks=True)(picture)
        tokens = self.network(picture.transpose(1, 2)).last_hidden_state[:, 2:]  # without class and distillation
        config = self.network.config
        across = 1 + (frames - config.patch_size) // config.time_stride  # patches in time, one band after the other
        heard = 1 + (sound - 1) // config.time_stride  # that begin before the sound ends
        return tokens.unflatten(1, (-1, across))[:, :, :heard].flatten(1, 2)  # (B, patches, D)


class WavLM(Published):
    """WavLM (Chen et al., 2022): raw sound in, a token every 20 ms."""

    name, model_type, config, model = "wavlm", "wavlm", "WavLMConfig", "WavLMModel"
    extractor, heads = "Wav2Vec2FeatureExtractor", ("classifier.", "projector.", "lm_head.", "layer_weights")

    def __init__(self, description: dict[str, Any], network: nn.Module | None = None) -> None:
        super().__init__(description, network)
        # Its own masks come from NumPy's global generator, which would make no two trainings alike.
        self.network.config.mask_time_prob = self.network.config.mask_feature_prob = 0.0

    def forward(self, waveforms: Tensor, time_mask: float = 0.0, frequency_mask: float = 0.0) -> Tensor:
        sound = self.heard(waveforms)  # (B, L)
        masked = None
        if time_mask > 0 and hasattr(self.network, "masked_spec_embed"):
            tokens = int(self.network._get_feat_extract_output_lengths(sound.shape[1]))
            ones = torch.ones(len(sound), 1, tokens, device=sound.device)
            masking = import_torchaudio().transforms.TimeMasking(round(time_mask * tokens), iid_masks=True)
            masked = masking(ones)[:, 0] == 0  # (B, T)
        return self.network(sound, mask_time_indices=masked).last_hidden_state


ADAPTERS: dict[str, type[Backbone]] = {"ast": AST, "wavlm": WavLM}  # put others in here


@cache
def library() -> ModuleType:
    """The transformers library, imported when it is needed.

    Raises:
        BadInput: if it is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import_torchaudio()  # it makes the Kaldi Mel bands, also where its extension does not load
    with contextlib.suppress(BadInput):
        import_torchvision()  # not needed here, but imported wherever it is installed
    try:
        import transformers

        for published in (AST, WavLM):  # what the library puts off, it imports now
            getattr(transformers, published.model), getattr(transformers, published.extractor)
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f'AnoPatch needs transformers: pip install "osscl_lite[tables]" ({reason})') from None
    return transformers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own reports and bars: what is amiss is said in one line."""
    logging = library().utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
