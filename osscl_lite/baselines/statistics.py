"""Scores without training: Mahalanobis distance and nearest neighbours, one model per machine ID.
Explained in chapters 2 and 6.

Both work on any vectors, mean Log-Mels of clips or a detector's embeddings, and in double precision: embeddings that
nearly point one way are at distance 0 in single precision, and still differ.
"""

import numpy as np
import pandas as pd
import torch
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from osscl_lite.detector import read_batches
from osscl_lite.features import LogMel
from osscl_lite.recipe import Recipe


def mean_log_mel(recipe: Recipe, clips: pd.DataFrame) -> np.ndarray:
    """Log-Mel (or another precomputed picture) of each clip averaged over time: (N, bands), dB. Explained in chapter 2.

    For pictures that are no Log-Mels nothing is averaged: the vector is the whole picture, (N, bands * frames).
    """
    front_end = (
        LogMel(recipe.bands, recipe.sample_rate, recipe.n_fft, recipe.hop, recipe.mel)
        if recipe.input == "waveform"
        else None
    )
    vectors = []
    for batch in read_batches(recipe, clips, 256):
        picture = batch if front_end is None else front_end(batch)
        vectors.append(picture.flatten(1) if recipe.input == "features" else picture.mean(2))
    return torch.cat(vectors).numpy()


def mahalanobis(
    train: np.ndarray, train_machines: np.ndarray, test: np.ndarray, test_machines: np.ndarray
) -> np.ndarray:
    """Squared Mahalanobis distance to the clip's own machine ID (covariance after Ledoit and Wolf 2004).
    Explained in chapters 2 and 6.

    Args:
        train: vectors of normal training clips, (N, D); ``train_machines`` their machine names, (N,).
        test: vectors to score, (M, D); ``test_machines`` their machine names, (M,).

    Returns:
        (M,) scores, higher is more anomalous; NaN for a machine without training clips.
    """
    train, test = np.asarray(train, np.float64), np.asarray(test, np.float64)
    scores = np.full(len(test), np.nan)
    for machine in np.unique(test_machines):
        own, rows = train[train_machines == machine], test_machines == machine
        if len(own):
            scores[rows] = LedoitWolf().fit(own).mahalanobis(test[rows])
    return scores


def nearest_neighbour(
    train: np.ndarray, train_machines: np.ndarray, test: np.ndarray, test_machines: np.ndarray, metric: str
) -> np.ndarray:
    """Distance to the nearest training clip of the same machine ID. Explained in chapter 6.

    Args:
        train, train_machines, test, test_machines: as for ``mahalanobis``.
        metric: "cosine" for embeddings; "standardised" for mean Log-Mels: Euclidean after each value was standardised
            over the machine's own training clips.

    Returns:
        (M,) scores, higher is more anomalous; NaN for a machine without training clips.
    """
    train, test = np.asarray(train, np.float64), np.asarray(test, np.float64)
    scores = np.full(len(test), np.nan)
    for machine in np.unique(test_machines):
        own, rows = train[train_machines == machine], test_machines == machine
        if not len(own):
            continue
        scaler = StandardScaler(with_mean=metric == "standardised", with_std=metric == "standardised").fit(own)
        neighbours = NearestNeighbors(n_neighbors=1, metric="euclidean" if metric == "standardised" else metric)
        neighbours.fit(scaler.transform(own))
        scores[rows] = neighbours.kneighbors(scaler.transform(test[rows]))[0][:, 0]
    return scores
