"""torchaudio, also beside a build of torch that its compiled extension does not fit.

Linux wheels of torchaudio are linked against CUDA, so that beside a CPU build of torch the import ends in an OSError.
The Mel filter bank and ``MelSpectrogram`` are plain Python and need no extension: where the import fails, an empty
stand-in takes the extension's place. Nothing on disk is touched.
"""

import sys
from types import ModuleType


def import_torchaudio() -> ModuleType:
    """Return the torchaudio module; its compiled parts may be missing.

    Raises:
        ImportError: if torchaudio is not installed at all.
    """
    try:
        import torchaudio
    except OSError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        extension = ModuleType("torchaudio._extension")
        extension._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
        extension._IS_ALIGN_AVAILABLE = False  # type: ignore[attr-defined]
        extension.fail_if_no_align = lambda function: function  # type: ignore[attr-defined]
        sys.modules["torchaudio._extension"] = extension
        import torchaudio
    return torchaudio
