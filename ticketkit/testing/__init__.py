"""What tests of ticketkit and of its plugins are made of: hypothesis strategies and tiny networks.

Nothing in the library imports this package; it needs the extra `testing`.
"""

try:
    import hypothesis  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("ticketkit.testing needs hypothesis: pip install 'ticketkit[testing]'") from error

from ticketkit.testing.models import TINY_NETS, TinyNet, attention, bilstm_tagger, convnet, mlp, tied_gru
from ticketkit.testing.strategies import DTYPES, masks, scores, selections, shape_maps, shapes, tied_scores

__all__ = [
    "DTYPES",
    "TINY_NETS",
    "TinyNet",
    "attention",
    "bilstm_tagger",
    "convnet",
    "masks",
    "mlp",
    "scores",
    "selections",
    "shape_maps",
    "shapes",
    "tied_gru",
    "tied_scores",
]
