import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("ci", deadline=None, derandomize=True, max_examples=100, database=None)
settings.register_profile(
    "thorough", deadline=None, max_examples=3000, database=None, suppress_health_check=[HealthCheck.too_slow]
)
torch.set_num_threads(1)  # tiny networks run no faster on two, and a hundred times slower on a busy machine
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same torch seed; what a test draws does not depend on the tests before it."""
    torch.manual_seed(0)
