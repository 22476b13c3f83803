"""The feature perturbation head (paper, section II-A), explained in chapter 4."""

from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class FeaturePerturbationHead(nn.Sequential):
    """Squeeze an embedding through R values and stretch it back: h(x) = BN(a(W2 BN(a(W1 x)))). Explained in chapter 4.

    Both losses, and the score, use its output after L2 normalisation. Nothing asks it to give x back.

    Args:
        embedding: E, the number of values of an embedding.
        reduction: R, the width of the waist; 64 in the paper, any positive number here.
        activation: "relu" (the paper's for TFSTgram) or "leaky_relu" (slope 0.01, for Log-Mel).

    Shapes:
        (B, E) -> (B, E)
    """

    def __init__(self, embedding: int = 128, reduction: int = 64, activation: str = "relu") -> None:
        act = ACTIVATIONS[activation]
        super().__init__(
            nn.Linear(embedding, reduction),  # (B, E) -> (B, R)
            act(),
            nn.BatchNorm1d(reduction),
            nn.Linear(reduction, embedding),  # (B, R) -> (B, E)
            act(),
            nn.BatchNorm1d(embedding),
        )


def unit_sphere(x: Tensor) -> Tensor:
    """L2-normalise each row: (B, E) -> (B, E) with norm 1. Explained in chapter 4."""
    return functional.normalize(x, dim=1)
