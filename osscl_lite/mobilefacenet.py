"""MobileFaceNet, the embedding network (Chen et al. 2018), in the small table that OS-SCL uses and an older one.

Explained in chapter 2. Every spatial size follows from the input: 128 x 313 (10 s) and 60 x 8 both work.
"""

from math import prod, sqrt

from torch import Tensor, nn

from osscl_lite import cpu

# Expansion t, channels in widths, repeats n, stride of the first.
BOTTLENECKS: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "small": ((2, 2, 2, 2), (4, 2, 2, 2), (4, 2, 2, 2)),
    "older": ((2, 1, 5, 2), (4, 2, 1, 2), (2, 2, 6, 1), (4, 2, 1, 2), (2, 2, 2, 1)),  # CLP-SCF's; STgram-MFN's at first
}


class ConvBlock(nn.Sequential):
    """Convolution without bias, BatchNorm, and PReLU unless ``linear``. (B, in, H, W) -> (B, out, H', W')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        nn.init.normal_(convolution.weight, std=sqrt(2 / (prod(convolution.kernel_size) * out_channels)))
        layers = [convolution, nn.BatchNorm2d(out_channels)]
        super().__init__(*layers, *([] if linear else [nn.PReLU(out_channels)]))

    def forward(self, x: Tensor) -> Tensor:
        convolution, norm, *prelu = self
        x = convolution(x)
        if cpu.fits(x, norm):  # training on a CPU: the same values in half the time
            return cpu.norm_prelu(x, norm, *prelu)
        for layer in (norm, *prelu):
            x = layer(x)
        return x


class Bottleneck(nn.Module):
    """Inverted bottleneck: 1x1 up, depthwise 3x3, 1x1 linear down; a residual where the shape allows."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.layers = nn.Sequential(
            ConvBlock(in_channels, hidden, 1),
            ConvBlock(hidden, hidden, 3, stride, 1, groups=hidden),
            ConvBlock(hidden, out_channels, 1, linear=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileFaceNet(nn.Module):
    """Picture to embedding: (B, in_channels, bands, frames) -> (B, embedding). Explained in chapter 2.

    Args:
        in_channels: 1 (Log-Mel), 2 (STgram) or 3 (TFSTgram).
        bands: height of the picture.
        frames: width of the picture.
        width: channels of the stem; the stages have 2 * width, the last map 8 * width. The paper's is 64.
        embedding: E of the paper, 128.
        bottlenecks: one of ``BOTTLENECKS``.
    """

    def __init__(
        self, in_channels: int, bands: int, frames: int, width: int = 64, embedding: int = 128,
        bottlenecks: str = "small",
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem = nn.Sequential(
            ConvBlock(in_channels, width, 3, 2, 1),  # (B, w, bands/2, frames/2)
            ConvBlock(width, width, 3, 1, 1, groups=width),
        )
        stages, channels = [], width
        for expansion, widths, repeats, stride in BOTTLENECKS[bottlenecks]:
            for repeat in range(repeats):
                stages.append(Bottleneck(channels, widths * width, stride if repeat == 0 else 1, expansion))
                channels = widths * width
        self.stages = nn.Sequential(*stages)  # (B, 2w, bands/16, frames/16)
        self.expand = ConvBlock(channels, 8 * width, 1)  # (B, 8w, bands/16, frames/16)
        remaining = (halve(bands, 4), halve(frames, 4))
        self.pool = ConvBlock(8 * width, 8 * width, remaining, groups=8 * width, linear=True)  # (B, 8w, 1, 1)
        self.project = ConvBlock(8 * width, embedding, 1, linear=True)  # (B, E, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.pool(self.expand(self.stages(self.stem(x))))).flatten(1)


def halve(size: int, times: int) -> int:
    """Length of an axis after ``times`` 3-wide convolutions of stride 2 with padding 1."""
    for _ in range(times):
        size = (size + 1) // 2
    return size
