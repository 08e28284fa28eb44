"""The only door to transformers, which also opens beside a torchaudio that does not load."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ticketkit import DataError

_PIP = "pip install 'transformers>=4.57'"


def transformers() -> Any:
    """Return the transformers module with its Whisper imported.

    Raises `DataError` naming the command that installs it. A package that is there but broken raises its own error.
    """
    try:
        module = import_module("transformers")
        with _loadable_torchaudio():
            import_module("transformers.models.whisper.modeling_whisper")
            import_module("transformers.models.whisper.feature_extraction_whisper")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise DataError(f"transformers is not installed; it comes with: {_PIP}") from error
    return module


@contextmanager
def _loadable_torchaudio() -> Iterator[None]:
    """Let `import torchaudio` succeed inside the block, and leave no trace of that.

    transformers imports torchaudio where it is installed, though Whisper does not need it. torchaudio's Linux wheels
    are linked to one CUDA build of torch and fail to load beside any other.
    """
    try:
        import_module("torchaudio")
    except ImportError:
        yield  # transformers does without
        return
    except (OSError, RuntimeError):
        pass
    else:
        yield
        return
    stub = ModuleType("torchaudio", "Stands in for a torchaudio that does not load.")
    stub.__spec__ = ModuleSpec("torchaudio", loader=None)
    sys.modules["torchaudio"] = stub
    try:
        yield
    finally:
        sys.modules.pop("torchaudio", None)
