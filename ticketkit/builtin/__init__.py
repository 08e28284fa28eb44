"""The built-in entries of every kind, registered through the same hooks as anyone's."""

from ticketkit.builtin import (
    activation_criteria,
    allocators,
    coupled_units,
    exporters,
    gradient_criteria,
    granularities,
    n_m,
    onnx_exporter,
    runtime_exporters,
    schedules,
    synflow,
    weight_criteria,
)
from ticketkit.hookspecs import Register, hookimpl


@hookimpl
def ticketkit_register_criteria(register: Register) -> None:
    """Register the built-in criteria."""
    register("magnitude", weight_criteria.magnitude)
    register("magnitude_over_init", weight_criteria.magnitude_over_init, needs={"initial"})
    register("layer_normalised_magnitude", weight_criteria.layer_normalised_magnitude)
    register("magnitude_increase", weight_criteria.magnitude_increase, needs={"initial"})
    register("signed_movement", weight_criteria.signed_movement, needs={"initial"})
    register("lamp", weight_criteria.lamp)
    register("random", weight_criteria.random)
    register("inverted", weight_criteria.inverted, options=weight_criteria.InvertedOptions, needs={"initial"})
    gradients = {"options": gradient_criteria.GradientOptions, "needs": {"gradients"}}
    register("snip", gradient_criteria.snip, **gradients)
    register("taylor", gradient_criteria.taylor, **gradients)
    register("fisher", gradient_criteria.fisher, **gradients)
    register("grasp", gradient_criteria.grasp, options=gradient_criteria.GraspOptions, needs={"gradients"})
    register("synflow", synflow.synflow, options=synflow.SynflowOptions, needs={"gradients"})
    register("wanda", activation_criteria.wanda, needs={"activations"})


@hookimpl
def ticketkit_register_schedules(register: Register) -> None:
    """Register the built-in schedules."""
    register("geometric", schedules.geometric)
    register("one_shot", schedules.one_shot)
    register("linear", schedules.linear)
    register("cubic", schedules.cubic)
    register("cosine", schedules.cosine)
    register("constant_count", schedules.constant_count, options=schedules.ConstantCountOptions)
    register("explicit", schedules.explicit, options=schedules.ExplicitOptions)


@hookimpl
def ticketkit_register_granularities(register: Register) -> None:
    """Register the built-in granularities."""
    register("weight", granularities.weight)
    register("block", granularities.block, options=granularities.BlockOptions)
    register("n_m", n_m.n_m, options=n_m.NOfMOptions)
    register("row", granularities.row, options=granularities.UnitOptions)
    register("column", granularities.column, options=granularities.UnitOptions)
    register("filter", coupled_units.filter_, options=coupled_units.FeedOptions)
    register("channel", granularities.channel, options=granularities.UnitOptions)
    register("rnn_unit", coupled_units.rnn_unit, options=coupled_units.FeedOptions)
    register("head", coupled_units.head, options=granularities.UnitOptions)


@hookimpl
def ticketkit_register_allocators(register: Register) -> None:
    """Register the built-in allocators."""
    register("global", allocators.global_ranking)
    register("uniform", allocators.uniform)
    register("erdos_renyi", allocators.erdos_renyi)
    register("erk", allocators.erk)
    register("by_pattern", allocators.by_pattern, options=allocators.ByPatternOptions)
    register("layer_counts", allocators.layer_counts, options=allocators.LayerCountsOptions)


@hookimpl
def ticketkit_register_exporters(register: Register) -> None:
    """Register the built-in exporters."""
    register("weights", exporters.weights)
    register("onnx", onnx_exporter.onnx)
    register("compressed", runtime_exporters.compressed, options=runtime_exporters.CompressedOptions)
    register("auto", runtime_exporters.auto, options=runtime_exporters.RuntimeOptions)
    register("dense", runtime_exporters.dense, options=runtime_exporters.RuntimeOptions)
    register("sparse", runtime_exporters.sparse, options=runtime_exporters.RuntimeOptions)
    register("compact", runtime_exporters.compact, options=runtime_exporters.RuntimeOptions)
