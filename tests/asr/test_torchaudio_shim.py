import subprocess
import sys

import pytest

from ticketkit import DataError
from ticketkit_asr.extras import require


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_transforms_and_masks_run_beside_any_torch():
    run(
        "import torch\n"
        "from ticketkit_asr.torchaudio_shim import torchaudio\n"
        "t = torchaudio().transforms\n"
        "x = t.MelSpectrogram(16000, n_fft=512)(torch.zeros(16000))\n"
        "t.TimeMasking(10)(x); t.Resample(22050, 8000)(torch.zeros(22050))\n"
    )


def broken_torchaudio(tmp_path, text: str) -> str:
    """Code that runs `text` where torchaudio's own extension cannot load."""
    package = tmp_path / "torchaudio"
    (package / "_extension").mkdir(parents=True)
    (package / "_extension" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    (package / "__init__.py").write_text(text)
    return f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom ticketkit_asr.torchaudio_shim import torchaudio\n"


def test_a_broken_extension_is_replaced_by_a_stub(tmp_path):
    code = broken_torchaudio(tmp_path, "from . import _extension\nfound = _extension._IS_TORCHAUDIO_EXT_AVAILABLE")
    assert run(code + "print(torchaudio().found, torchaudio().found)") == "False False"


def test_the_first_error_is_raised_and_no_stub_stays_when_the_stub_does_not_help(tmp_path):
    code = broken_torchaudio(tmp_path, "from . import _extension\nraise ValueError('broken anyway')")
    code += (
        "try:\n    torchaudio()\n"
        "except OSError as error:\n    print(error, [m for m in sys.modules if m.startswith('torchaudio')])"
    )
    assert run(code) == "libcudart.so.13: cannot open []"


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    with pytest.raises(DataError, match=r"no_such_package is not installed.*pip install 'ticketkit\[asr\]'"):
        require("no_such_package", extra="asr")
