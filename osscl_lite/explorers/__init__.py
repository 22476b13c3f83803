"""What can be moved in the book: frames computed beforehand, for ``widgets.frame_player``, and live explorers.

The frames need no kernel. The explorers compute anything anew, need one, and are made of core
ipywidgets (7.7 or newer).
"""

from osscl_lite.explorers.alarms import Rates, threshold_explorer, threshold_frames, thresholds
from osscl_lite.explorers.clips import clip_explorer, clip_frames
from osscl_lite.explorers.losses import (
    margin_boundary,
    margin_explorer,
    margin_frames,
    margin_logits,
    pulls,
    temperature_explorer,
    temperature_frames,
)
from osscl_lite.explorers.mixup import mixup_explorer, mixup_frames
from osscl_lite.explorers.reduction import (
    Squeeze,
    draw_squeeze,
    reduction_explorer,
    reduction_frames,
    squeeze,
    squeeze_frames,
)

__all__ = [
    "Rates",
    "Squeeze",
    "clip_explorer",
    "clip_frames",
    "draw_squeeze",
    "margin_boundary",
    "margin_explorer",
    "margin_frames",
    "margin_logits",
    "mixup_explorer",
    "mixup_frames",
    "pulls",
    "reduction_explorer",
    "reduction_frames",
    "squeeze",
    "squeeze_frames",
    "temperature_explorer",
    "temperature_frames",
    "threshold_explorer",
    "threshold_frames",
    "thresholds",
]
