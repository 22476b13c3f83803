"""What clips that share a background do to a split: ``python -m osscl_lite.leak``.
Explained in the appendix on real data.

One noise may lie under a clip of each machine ID; a split that takes such a group apart shows a learner the test clips.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeClassifier

from osscl_lite.baselines.statistics import mahalanobis, nearest_neighbour
from osscl_lite.data import fingerprint
from osscl_lite.data.precomputed import features_table, load_features
from osscl_lite.errors import BadInput
from osscl_lite.files import write_whole
from osscl_lite.metrics import evaluate
from osscl_lite.record import RESULTS

LESS = "spectrogram less its mean spectrum"


def measure(root: Path, seeds: int) -> dict[str, Any]:
    """How often neighbours share a background, and what four simple detectors make of each split.
    Explained in the appendix on real data.

    Args:
        root: a folder of features with a column background, see ``data.precomputed``.
        seeds: draws of whole groups ("by background") and of single clips ("by clip") for training.

    Returns:
        data, fingerprint, clips, groups (size -> count), nearest (of ``neighbours``), splits (rows of ``score``).
    """
    clips = features_table(root)
    if "background" not in clips or clips["background"].is_unique:
        raise BadInput(f"{root / 'clips.csv'}: names no backgrounds that clips share, so nothing can leak by them")
    pictures = load_features(clips)[0]  # (N, bands, frames)
    means = pictures.mean(2)  # (N, bands)
    looks = {"whole spectrogram": pictures, LESS: pictures - means[:, :, None], "mean spectrum": means}
    alike = {name: closeness(values.reshape(len(clips), -1)) for name, values in looks.items()}
    splits = [score(clips, means, alike[LESS], split="as given", seed=0)]
    for way in ("by background", "by clip"):
        splits += [score(redrawn(clips, way, s), means, alike[LESS], split=way, seed=s) for s in range(seeds)]
    return dict(
        data=root.resolve().name,
        fingerprint=fingerprint(clips),
        splits=splits,
        clips={", ".join(key): len(part) for key, part in clips.groupby(["split", "label"])},
        groups={str(size): int(n) for size, n in clips.groupby("background").size().value_counts().items()},
        nearest={name: neighbours(clips, values) for name, values in alike.items()},
    )


def closeness(x: np.ndarray) -> np.ndarray:
    """(N, D) -> (N, N), correlations: of what lies about the mean of all clips."""
    x = x - x.mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def neighbours(clips: pd.DataFrame, alike: np.ndarray) -> dict[str, float]:
    """How often the other clip that is most alike, by (N, N), has the same background, and another machine ID."""
    nearest = np.where(np.eye(len(alike), dtype=bool), -np.inf, alike).argmax(1)
    names = (clips["machine_type"] + clips["machine_id"]).to_numpy()
    background = clips["background"].to_numpy()
    found = dict(
        chance_background=chance(background),
        chance_other_id=1 - chance(names),
        other_id=(names[nearest] != names).mean(),
        same_background=(background[nearest] == background).mean(),
    )
    return {name: float(value) for name, value in found.items()}


def chance(values: np.ndarray) -> float:
    """How often two rows that are drawn have the same value, (N,)."""
    return ((values[:, None] == values).sum() / len(values) - 1) / (len(values) - 1)


def redrawn(clips: pd.DataFrame, way: str, seed: int) -> pd.DataFrame:
    """The table with its normal clips split anew, as many for training as before."""
    rng = np.random.default_rng(seed)
    normal = clips[clips["label"].eq("normal")]
    share = normal["split"].eq("train").mean()
    split = pd.Series("test", clips.index)
    if way == "by background":
        groups = rng.permutation(normal["background"].unique())
        split[normal.index[normal["background"].isin(groups[: round(share * len(groups))])]] = "train"
    else:
        for _, part in normal.groupby(["machine_type", "machine_id"]):
            split[rng.permutation(part.index)[: round(share * len(part))]] = "train"
    return clips.assign(split=split)


def score(clips: pd.DataFrame, means: np.ndarray, alike: np.ndarray, **row: Any) -> dict[str, Any]:
    """Detectors on one split; ``named``, ``shared``: of the normal test clips, named rightly, of a known background."""
    machines = (clips["machine_type"] + "/" + clips["machine_id"]).to_numpy()
    train = clips["split"].eq("train").to_numpy()
    learned, own = machines[train], machines[~train]
    names = np.unique(learned)
    test = clips[~train].reset_index(drop=True)
    normal = test["label"].eq("normal")
    row |= dict(shared=float(test["background"].isin(clips["background"][train])[normal].mean()))
    vectors = (means[train], learned, means[~train], own)
    scores = {"Mahalanobis": mahalanobis(*vectors), "1-NN": nearest_neighbour(*vectors, "standardised")}
    standardised = (means - means[train].mean(0)) / means[train].std(0)
    named = {}
    for name, inputs in {"mean spectrum": standardised, LESS: alike[:, train]}.items():
        sides = RidgeClassifier().fit(inputs[train], learned).decision_function(inputs[~train])  # (M, IDs)
        mine = names == own[:, None]
        scores[f"ID classifier, {name}"] = np.where(mine, -np.inf, sides).max(1) - sides[mine]
        named[f"ID classifier, {name}"] = dict(named=float((names[sides.argmax(1)] == own)[normal].mean()))
    for name, values in scores.items():
        last = evaluate(values, test).query("machine_id == 'all' and average == 'mean'").iloc[-1]
        row[name] = dict(auc=float(last["auc"]), pauc=float(last["pauc"])) | named.get(name, {})
    return row


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m osscl_lite.leak", description=measure.__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of features whose clips share backgrounds")
    parser.add_argument("--to", type=Path, default=RESULTS, help="folder of leak-<name of the data>.json")
    parser.add_argument("--seeds", type=int, default=20, help="draws of each kind of split")
    options = parser.parse_args(arguments)
    try:
        result = measure(options.root, options.seeds)
        write_whole(options.to / f"leak-{result['data']}.json", json.dumps(result, indent=1).encode())
    except (BadInput, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
