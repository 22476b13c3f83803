"""Mixup, ArcFace, Noisy-ArcMix and the noisy supervised contrastive loss. Explained in chapter 3,
CLP-SCF's in chapter 8.
"""

from math import cos, pi, sin

import torch
from torch import Tensor
from torch.nn import functional


def mixup(
    waveforms: Tensor | None, log_mel: Tensor, y: Tensor, lam: float | Tensor, permutation: Tensor
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Mix each clip with another of the batch, sound and dB Log-Mel alike (paper, II-A). Explained in chapter 3.

    Args:
        waveforms: (B, L), or None where the front end needs no sound.
        log_mel: (B, bands, frames), dB.
        y: machine labels, (B,).
        lam: lambda of the batch, in [0, 1]; never folded to 0.5 and above.
        permutation: which clip is mixed in, (B,).

    Returns:
        Mixed waveforms, mixed Log-Mels, y_a (the labels before mixup) and y_b (the labels of the clips mixed in).
    """
    mixed = None if waveforms is None else torch.lerp(waveforms[permutation], waveforms, lam)
    return mixed, torch.lerp(log_mel[permutation], log_mel, lam), y, y[permutation]


def arcface_logits(z: Tensor, weight: Tensor, y_a: Tensor, margin: float, scale: float = 30.0) -> Tensor:
    """ArcFace logits: cosines to the class weights, with an angular margin on the class y_a (Deng et al. 2019).
    Explained in chapter 3.

    The margin turns cos(theta) into cos(theta + margin) while theta + margin < pi; beyond that it subtracts
    margin * sin(margin), so that the logit keeps falling.

    Args:
        z: perturbed embeddings on the unit sphere, (B, E).
        weight: class weights, (C, E); their length does not matter.
        y_a: machine labels before mixup, (B,).
        margin: m, radians.
        scale: the factor s of the logits.

    Returns:
        Logits, (B, C).
    """
    cosine = functional.linear(z, functional.normalize(weight, dim=1))  # (B, C)
    own = cosine.gather(1, y_a[:, None])  # (B, 1)
    sine = (1 - own.square()).clamp_min(1e-12).sqrt()  # the clamp keeps the gradient finite at |cos| = 1
    shifted = torch.where(own > cos(pi - margin), own * cos(margin) - sine * sin(margin), own - margin * sin(margin))
    return scale * cosine.scatter(1, y_a[:, None], shifted.to(cosine.dtype))


def log_odds_against(logits: Tensor, y: Tensor) -> Tensor:
    """log((1 - p) / p) of the softmax's p at y: (B, C), (B,) -> (B,). Explained in chapter 6.

    1 - p is the sum over the other classes, and the softmax's denominator cancels: exact where p rounds to 0 or 1.
    Its softplus is the cross-entropy, without the ties of clips whose p rounds to 1.
    """
    own = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).logsumexp(1) - own


def noisy_arcmix(logits: Tensor, y_a: Tensor, y_b: Tensor, lam: float | Tensor) -> Tensor:
    """Noisy-ArcMix (eq. 2): the margin sits on y_a in both terms. Explained in chapter 3.

    Args:
        logits: ``arcface_logits`` with the margin on y_a, (B, C).
        y_a: machine labels before mixup, (B,).
        y_b: machine labels of the clips mixed in, (B,).
        lam: lambda of the batch.

    Returns:
        lam * CE(logits, y_a) + (1 - lam) * CE(logits, y_b), a scalar.
    """
    return lam * functional.cross_entropy(logits, y_a) + (1 - lam) * functional.cross_entropy(logits, y_b)


def supcon(z: Tensor, y: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss of CLP-SCF's first stage, as its program takes it (Guan et al. 2023).

    Unlike in eq. 1 the denominator runs over all clips, the anchor itself included; nothing is mixed, and anchors
    without a positive are left out of the mean. Explained in chapter 8.

    Args:
        z: embeddings on the unit sphere, (B, E).
        y: machine labels, (B,).
        temperature: tau.

    Returns:
        The mean over anchors that have a positive, a scalar; 0 if none has.
    """
    similarity = z @ z.T / temperature  # (B, B)
    log_prob = similarity - similarity.logsumexp(1, keepdim=True)
    positive = (y[:, None] == y[None, :]) & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    count = positive.sum(1)
    per_anchor = (log_prob * positive).sum(1) / count.clamp_min(1)
    return -per_anchor.sum() / (count > 0).sum().clamp_min(1)


def noisy_supcon(z: Tensor, y_a: Tensor, temperature: float = 0.02) -> Tensor:
    """Noisy supervised contrastive loss (eq. 1), as the authors' program takes it. Explained in chapter 3.

    Args:
        z: perturbed embeddings on the unit sphere, (B, E).
        y_a: machine labels before mixup, (B,). For small lam they are wrong on purpose.
        temperature: tau.

    Returns:
        The mean over anchors times temperature / 0.07, a scalar. An anchor without a positive adds 0.

    Raises:
        ValueError: if z and y_a disagree in length.
    """
    if len(z) != len(y_a):
        raise ValueError(f"{len(z)} embeddings but {len(y_a)} labels")
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarity = (z @ z.T / temperature).masked_fill(itself, -torch.inf)  # (B, B)
    log_prob = similarity - similarity.logsumexp(1, keepdim=True)  # log of eq. 1's fraction
    positive = (y_a[:, None] == y_a[None, :]) & ~itself
    per_anchor = log_prob.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp_min(1)
    return -(temperature / 0.07) * per_anchor.mean()
