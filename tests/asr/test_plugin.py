import subprocess
import sys
from importlib.resources import files

import pytest
import yaml

from ticketkit_asr import plugin
from ticketkit_asr.training.trainer import SpeechTrainer


@pytest.fixture
def registered():
    """What the plugin registers: name -> (object, options model)."""
    found = {}

    def register(name, obj, *, options=None):
        found[name] = (obj, options)

    plugin.ticketkit_register_backbones(register=register)
    plugin.ticketkit_register_corpora(register=register)
    plugin.ticketkit_register_trainers(register=register)
    return found


def test_the_plugin_registers_the_speech_entries_with_options_and_a_summary(registered):
    assert set(registered) == {
        *("cnn_lstm", "rnnt", "conformer", "transformer"),
        *("an4", "common_voice", "fsdd", "librispeech", "manifest", "spoken_digits", "tedlium"),
        "asr",
    }
    for obj, options in registered.values():
        assert obj.__doc__
        assert options.model_config["frozen"]
        assert options.model_config["extra"] == "forbid"


def test_importing_and_registering_loads_nothing_heavy():
    code = (
        "import sys\nfrom ticketkit_asr import plugin\n"
        "register = lambda name, obj, options=None: None\n"
        "plugin.ticketkit_register_backbones(register=register)\n"
        "plugin.ticketkit_register_corpora(register=register)\n"
        "plugin.ticketkit_register_trainers(register=register)\n"
        "print([m for m in ('torch', 'torchaudio', 'soundfile', 'jiwer', 'espeakng_loader') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_entries_fit_together(registered, tiny, two_tones):
    bundle = registered["cnn_lstm"][0](options=tiny)
    options = registered["asr"][1](epochs=1)
    trainer = registered["asr"][0](bundle, two_tones, seed=0, options=options)
    assert isinstance(trainer, SpeechTrainer)
    assert set(trainer.evaluate("dev")) == {"wer", "cer", "loss"}


@pytest.mark.parametrize("recipe", sorted(p.name[:-5] for p in (files("ticketkit_asr") / "recipes").iterdir()))
def test_recipes_name_what_is_registered_with_options_it_takes(registered, recipe):
    settings = yaml.safe_load((files("ticketkit_asr") / "recipes" / f"{recipe}.yaml").read_text("utf-8"))
    for role in ("corpus", "backbone", "trainer"):
        given = dict(settings[role])
        registered[given.pop("name")][1].model_validate(given)
    assert settings["metric"] in ("wer", "cer")
