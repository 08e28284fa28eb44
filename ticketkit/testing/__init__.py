"""What tests of ticketkit and of its plugins are made of: conformance checks, hypothesis strategies, tiny networks.

A plugin's author tests it in one line, with the check of its kind; each raises `ConformanceError` for the first law
that is broken, and says where, what came and what was allowed:

    def test_movement():
        check_criterion("movement")

Nothing in the library imports this package; it needs the extra `testing`.
"""

try:
    import hypothesis  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("ticketkit.testing needs hypothesis: pip install 'ticketkit[testing]'") from error

from ticketkit.testing.allocator_laws import check_allocator
from ticketkit.testing.backbone_laws import check_backbone
from ticketkit.testing.corpus_laws import check_corpus
from ticketkit.testing.criterion_laws import check_criterion
from ticketkit.testing.exporter_laws import check_exporter
from ticketkit.testing.granularity_laws import check_granularity
from ticketkit.testing.installation import plugin_installed
from ticketkit.testing.models import TINY_NETS, TinyNet, attention, bilstm_tagger, convnet, mlp, tied_gru
from ticketkit.testing.networks import models, scopes
from ticketkit.testing.schedule_laws import check_schedule
from ticketkit.testing.strategies import DTYPES, masks, scores, selections, shape_maps, shapes, tied_scores
from ticketkit.testing.subject import ConformanceError
from ticketkit.testing.trainer_laws import check_trainer

__all__ = [
    "DTYPES",
    "TINY_NETS",
    "ConformanceError",
    "TinyNet",
    "attention",
    "bilstm_tagger",
    "check_allocator",
    "check_backbone",
    "check_corpus",
    "check_criterion",
    "check_exporter",
    "check_granularity",
    "check_schedule",
    "check_trainer",
    "convnet",
    "masks",
    "mlp",
    "models",
    "plugin_installed",
    "scopes",
    "scores",
    "selections",
    "shape_maps",
    "shapes",
    "tied_gru",
    "tied_scores",
]
