import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketkit_asr.training.optimisation import build_optimizer, learning_rate
from ticketkit_asr.training.options import TrainerOptions


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"optimizer": "adamw", "betas": (0.9, 0.98)}, torch.optim.AdamW),
        ({"optimizer": "adam", "betas": (0.8, 0.98)}, torch.optim.Adam),
        ({"optimizer": "sgd", "momentum": 0.5}, torch.optim.SGD),
        ({"optimizer": "sgd", "momentum": 0.0}, torch.optim.SGD),
    ],
)
def test_options_reach_the_optimizer(options, kind):
    chosen = TrainerOptions(lr=0.03, weight_decay=0.25, **options)
    optimizer = build_optimizer([torch.nn.Parameter(torch.ones(3))], chosen)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.03, 0.25)
    for name in ("betas", "momentum"):
        if name in group:
            assert group[name] == getattr(chosen, name)


@given(st.integers(0, 100_000), st.integers(1, 5000))
def test_noam_rises_to_its_peak_at_the_end_of_warming_up_and_falls_from_there(step, warmup):
    options = TrainerOptions(schedule="noam", warmup=warmup, lr=0.5)
    rate, following = (learning_rate(s, 1, options) for s in (step, step + 1))
    assert 0 < rate <= 0.5
    assert (rate < following) == (step + 1 < warmup)
    assert learning_rate(warmup - 1, 1, options) == 0.5


def test_noam_is_the_published_formula_scaled_to_its_peak():
    options = TrainerOptions(schedule="noam", warmup=400, lr=1.0)
    for step in (1, 100, 400, 1600, 10_000):
        published = min(step**-0.5, step * 400**-1.5)  # Vaswani et al. 2017, equation 3, without d_model
        assert learning_rate(step - 1, 9, options) == pytest.approx(published * 400**0.5)


def test_anneal_falls_with_the_epoch_alone_and_constant_never():
    options = TrainerOptions(lr=0.011, lr_anneal=1.1)
    assert [learning_rate(7, epoch, options) for epoch in (1, 2, 3)] == pytest.approx([0.011, 0.01, 0.011 / 1.21])
    assert learning_rate(10**6, 50, TrainerOptions(schedule="constant", lr=0.2)) == 0.2


@pytest.mark.parametrize("wrong", [{"betas": (0.9, 1.0)}, {"lr": 0}, {"accumulate": 0}, {"precision": "fp16"}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainerOptions(**wrong)
