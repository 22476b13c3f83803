"""One-stage supervised contrastive learning for anomalous sound detection: a small package with a book around it."""

import os

# Threads that wait by sleeping: two that spin are far slower than one as soon as another program wants a core.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # GNU's: the next loop is often only microseconds away
# Large tensors on large pages, where the system has them: fewer page faults and address look-ups in training.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from osscl_lite import losses  # noqa: E402
from osscl_lite.data import load_clips, load_waveforms  # noqa: E402
from osscl_lite.detector import Detector  # noqa: E402
from osscl_lite.metrics import evaluate  # noqa: E402
from osscl_lite.recipe import Recipe, recipe, replace  # noqa: E402
from osscl_lite.training import fit  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "Detector",
    "Recipe",
    "evaluate",
    "fit",
    "load_clips",
    "load_waveforms",
    "losses",
    "recipe",
    "replace",
]
