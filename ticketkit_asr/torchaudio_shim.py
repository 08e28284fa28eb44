"""The only door to torchaudio, which also opens beside a torch that torchaudio's compiled part does not fit.

torchaudio's Linux wheels are linked to one CUDA build of torch. Beside a CPU build (`OSError`) or another CUDA version
(`RuntimeError`) `import torchaudio` fails, although everything we use of it (transforms, functional) is plain Python.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ticketkit_asr.extras import require

_EXTENSION = "torchaudio._extension"


def torchaudio() -> Any:
    """Return the torchaudio module, without its compiled extension where that does not load.

    Raises `DataError` when torchaudio is not installed, and torchaudio's own error when even its Python part fails.
    Not available without the extension: `load`, `save`, `forced_align`, `rnnt_loss`.
    """
    try:
        return require("torchaudio", extra="asr")
    except (OSError, RuntimeError) as error:
        return _import_without_extension(error)


def _import_without_extension(first_error: Exception) -> Any:
    """Return torchaudio imported over a stub of its extension; leave no stub and raise `first_error` if that fails."""
    _forget_torchaudio()
    sys.modules[_EXTENSION] = _extension_stub()
    try:
        return import_module("torchaudio")
    except Exception:
        _forget_torchaudio()
        raise first_error from None


def _forget_torchaudio() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]


def _extension_stub() -> ModuleType:
    """Return a package with the names that torchaudio's Python modules import from `torchaudio._extension`."""
    stub = ModuleType(_EXTENSION, "Stands in for torchaudio's compiled extension, which does not fit this torch.")
    stub.__spec__ = ModuleSpec(_EXTENSION, loader=None, is_package=True)
    stub.__path__ = []
    facts: dict[str, Any] = {
        "_IS_TORCHAUDIO_EXT_AVAILABLE": False,
        "_IS_ALIGN_AVAILABLE": False,
        "fail_if_no_align": lambda function: function,
        "_load_lib": lambda _name: False,
        "_check_cuda_version": lambda: None,
    }
    for name, fact in facts.items():
        setattr(stub, name, fact)
    return stub
