"""torchvision, also beside a build of torch that its compiled extension does not fit.

Linux wheels of torchvision are linked against CUDA, so that beside a CPU build of torch its operators (non-maximum
suppression and the like) are missing and the import ends in a RuntimeError. Its networks are plain Python and need none
of them: where the import fails, an empty stand-in takes the place of what describes the operators to torch. Nothing on
disk is touched. transformers imports torchvision wherever it is installed, so call this before it.
"""

import sys
from types import ModuleType

from osscl_lite.errors import BadInput


def import_torchvision() -> ModuleType:
    """Return the torchvision module; its compiled operators may be missing.

    Raises:
        BadInput: if torchvision is not installed.
    """
    try:
        import torchvision
    except ModuleNotFoundError:
        raise BadInput('torchvision is not installed; pip install "osscl_lite[tables]"') from None
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
        import torchvision
    return torchvision
