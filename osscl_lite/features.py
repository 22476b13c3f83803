"""Front ends: what turns a waveform into the network's picture. Explained in chapter 2.

``logmel`` is the Log-Mel alone, ``stgram`` adds the learned Tgram, ``tfstgram`` adds Tgram and TFgram (paper, eq. 3).
``tastgram`` is another system's (Choi and Choi 2024): Tgram, Log-Mel, and the Log-Mel weighted frame by frame.
"""

import torch
from torch import Tensor, nn

from osscl_lite._torchaudio import import_torchaudio

FRONT_ENDS: dict[str, int] = {"logmel": 1, "stgram": 2, "tfstgram": 3, "tastgram": 3}  # name -> channels of the picture
MEL_SCALES: dict[str, dict[str, str | None]] = {
    "slaney": dict(mel_scale="slaney", norm="slaney", pad_mode="constant"),  # OS-SCL's
    "htk": dict(mel_scale="htk", norm=None, pad_mode="reflect"),  # STgram-MFN's and CLP-SCF's
}


def frames_of(samples: int, hop: int = 512) -> int:
    """Number of centred frames of a clip: 313 for the paper's 160,000 samples at hop 512. Explained in chapter 2."""
    return 1 + samples // hop


class LogMel(nn.Module):
    """Log-Mel spectrogram in dB: (B, L) -> (B, bands, 1 + L // hop). Explained in chapter 2.

    torchaudio's ``MelSpectrogram`` with the Slaney scale and norm, power 2, zero padding, then 10 log10 with a floor of
    1e-10: silence is -100 dB, and nothing depends on the loudest frame of the clip. Waveforms lie in [-1, 1].
    ``mel`` "htk" takes the HTK scale without norm and pads by reflection, as STgram-MFN does.
    """

    def __init__(
        self, bands: int = 128, sample_rate: int = 16_000, n_fft: int = 2048, hop: int = 512, mel: str = "slaney"
    ) -> None:
        super().__init__()
        self.mel = import_torchaudio().transforms.MelSpectrogram(
            sample_rate,
            n_fft=n_fft,
            hop_length=hop,
            n_mels=bands,
            power=2.0,
            **MEL_SCALES[mel],
        )
        for module in self.mel.modules():  # window and filter bank follow from the arguments: not in checkpoints
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)

    @torch.no_grad()
    def forward(self, waveforms: Tensor) -> Tensor:
        return 10 * self.mel(waveforms).clamp_min(1e-10).log10()


def bands_below(hertz: float, bands: int, sample_rate: int = 16_000, mel: str = "slaney") -> int:
    """How many of the Mel bands, counted from the lowest, hear nothing above a frequency."""
    filters = LogMel(bands, sample_rate, mel=mel).mel.mel_scale.fb  # (frequencies, bands)
    frequencies = torch.linspace(0, sample_rate / 2, len(filters))
    return int((filters[frequencies > hertz].sum(0) == 0).sum())


def tagram(log_mel: Tensor) -> Tensor:
    """TAgram, the temporal attention of TASTgram (Choi and Choi 2024): it has no weights to learn.

    The largest and the mean value of a frame, added, pass a sigmoid; the frame is multiplied by that. Far below 0 dB,
    where quiet recordings lie, the gate is nearly shut.

    Args:
        log_mel: (B, bands, frames), dB.

    Returns:
        (B, bands, frames).
    """
    return log_mel * (log_mel.amax(1, keepdim=True) + log_mel.mean(1, keepdim=True)).sigmoid()


class TgramNet(nn.Module):
    """Tgram, the temporal feature of STgram-MFN: (B, L) -> (B, bands, frames). Explained in chapter 2.

    One long convolution per frame, then three rounds of LayerNorm over the frames, LeakyReLU and a short convolution.
    """

    def __init__(self, bands: int = 128, frames: int = 313, n_fft: int = 1024, hop: int = 512) -> None:
        super().__init__()
        self.extract = nn.Conv1d(1, bands, n_fft, hop, n_fft // 2, bias=False)  # (B, bands, frames)
        self.encode = nn.Sequential(
            *(
                nn.Sequential(
                    nn.LayerNorm(frames), nn.LeakyReLU(0.2), nn.Conv1d(bands, bands, 3, padding=1, bias=False)
                )
                for _ in range(3)
            )
        )

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.encode(self.extract(waveforms.unsqueeze(1)))


class TFgramNet(nn.Module):
    """TFgram, the paper's learned time-frequency feature (Table I): (B, L) -> (B, bands, frames).
    Explained in chapter 2.

    Args:
        bands: channels of the last two blocks, the picture's height (128 in the paper).
        frames: the picture's width (313 in the paper); the second block ends at twice that.
        width: channels of the stem and the first block (64 in the paper).
    """

    def __init__(self, bands: int = 128, frames: int = 313, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *convolution(1, width, 11, stride=5, padding=5),  # (B, w, L/5)
            *self.block(width, width),
            nn.MaxPool1d(4),  # (B, w, L/20)
            *self.block(width, bands),
            nn.AdaptiveMaxPool1d(2 * frames),  # (B, bands, 2 frames)
            *self.block(bands, bands),
            nn.AdaptiveMaxPool1d(frames),  # (B, bands, frames)
        )

    @staticmethod
    def block(in_channels: int, out_channels: int) -> list[nn.Module]:
        return convolution(in_channels, out_channels, 3, padding=1) + convolution(
            out_channels, out_channels, 3, padding=2, dilation=2
        )

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.layers(waveforms.unsqueeze(1))


def convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1
) -> list[nn.Module]:
    """Conv1d without bias (Xavier-uniform), BatchNorm, ReLU: one row of Table I."""
    layer = nn.Conv1d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return [layer, nn.BatchNorm1d(out_channels), nn.ReLU()]


class FrontEnd(nn.Module):
    """Stack the channels of a front end into one picture (paper, eq. 3). Explained in chapter 2.

    Args:
        name: one of ``FRONT_ENDS``.
        bands: height of the picture.
        frames: width of the picture.
        width: channels of TFgram's stem.
        hop: stride of Tgram, samples.

    Shapes:
        waveforms (B, L), log_mel (B, bands, frames) -> (B, channels, bands, frames). Log-Mels come ready made: they do
        not learn, so training computes them once. ``waveforms`` may be None for ``logmel``.
    """

    def __init__(self, name: str, bands: int = 128, frames: int = 313, width: int = 64, hop: int = 512) -> None:
        super().__init__()
        if name not in FRONT_ENDS:
            raise ValueError(f"unknown front end {name!r}: choose one of {', '.join(FRONT_ENDS)}")
        self.channels = FRONT_ENDS[name]
        self.tgram = TgramNet(bands, frames, hop=hop) if name != "logmel" else None
        self.tfgram = TFgramNet(bands, frames, width) if name == "tfstgram" else None
        self.attends = name == "tastgram"

    def forward(self, waveforms: Tensor | None, log_mel: Tensor) -> Tensor:
        if self.attends:
            return torch.stack([self.tgram(waveforms), log_mel, tagram(log_mel)], dim=1)
        learned = [net(waveforms) for net in (self.tgram, self.tfgram) if net is not None]
        return torch.stack([log_mel, *learned], dim=1)
