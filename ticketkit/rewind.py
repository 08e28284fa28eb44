"""Going back: to which state of the network a round returns, and which parts of it do.

| policy | a pruned round starts from |
|---|---|
| `init` | the state before the first round (Frankle & Carbin 2019) |
| `step:500` | the state after 500 optimizer steps of the first round (Frankle et al. 2020) |
| `epoch:1` | the same, counted in epochs of `steps_per_epoch` steps |
| `pretrained` | the weights in a file, from which the first round starts too |
| `reinit` | fresh weights from each module's own initialiser: the control that shows what rewinding is worth |
| `learning_rate` | the weights as trained; what the loop tracks, such as its schedule, goes back (Renda et al. 2020) |
| `none` | everything as trained: fine-tuning, the standard pruning |

The parts of the contract: `weights` (in scope), `biases`, `other_parameters` (out of scope), `buffers` (BatchNorm
statistics and counters), `rng` (Python's, NumPy's and torch's generators), and whatever a loop hands to `Round.track`
under the name it has there: `optimizer`, `scheduler`, `scaler`, `ema`, `sampler`. Gradients are always cleared,
training flags always set back. An object that is not tracked is rewound by building a fresh one each round.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ticketkit.errors import ConfigError, RunError, ScopeError, StorageError
from ticketkit.mask import shape_differences
from ticketkit.names import named_modules
from ticketkit.rng import seeded
from ticketkit.snapshot import Snapshot, state_tensors

MODEL_PARTS = ("weights", "biases", "other_parameters", "buffers")
PARTS = (*MODEL_PARTS, "rng")

Policy = Literal["init", "step", "epoch", "pretrained", "reinit", "learning_rate", "none"]
Initialiser = Callable[[nn.Module], object]


class Rewind(BaseModel):
    """One rewind policy: where a round goes back to, and the parts that stay as the last round left them.

    `keep` names parts of the contract that are carried over although the policy would rewind them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Policy = "init"
    step: int = Field(default=0, ge=0)
    epoch: int = Field(default=0, ge=0)
    steps_per_epoch: int | None = Field(default=None, ge=1)
    path: Path | None = None
    keep: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = {"step": bool(self.step), "epoch": bool(self.epoch), "pretrained": self.path is not None}
        for policy, there in given.items():
            if there != (self.name == policy):
                what = {"step": "step", "epoch": "epoch", "pretrained": "path"}[policy]
                raise ValueError(f"rewind {policy!r} goes with {what}= above zero, and only it does")
        return self

    @classmethod
    def of(cls, spec: "str | Mapping[str, Any] | Rewind") -> "Rewind":
        """Return the policy that a user named: `"step:500"`, or a mapping with `name` and options.

        >>> Rewind.of("step:500").step, Rewind.of({"name": "init", "keep": ["buffers"]}).keep
        (500, ('buffers',))
        """
        if isinstance(spec, Rewind):
            return spec
        if not isinstance(spec, str | Mapping):
            raise ConfigError(f"rewind must be a policy such as 'init' or a mapping with its name, not {spec!r}")
        if isinstance(spec, str):
            name, colon, number = spec.partition(":")
            if colon and (name not in ("step", "epoch") or not number.isdigit()):
                raise ConfigError(f"rewind {spec!r}: write 'step:500' or 'epoch:1'; other policies take no number")
            spec = {"name": name, name: int(number)} if colon else {"name": name}
        try:
            return cls.model_validate(dict(spec))
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'rewind'}: {e['msg']}" for e in error.errors())
            raise ConfigError(f"rewind {dict(spec)}: {faults}") from error

    def __str__(self) -> str:
        """Return the policy as a user would write it."""
        return {"step": f"step:{self.step}", "epoch": f"epoch:{self.epoch}"}.get(self.name, self.name)

    @property
    def capture_step(self) -> int | None:
        """The optimizer step of the first round after which the state to go back to is captured, if it is one."""
        if self.name == "epoch":
            if self.steps_per_epoch is None:
                raise ConfigError(
                    f"rewind 'epoch:{self.epoch}' needs the number of optimizer steps in an epoch: rewind="
                    f"{{'name': 'epoch', 'epoch': {self.epoch}, 'steps_per_epoch': len(loader)}}"
                )
            return self.epoch * self.steps_per_epoch
        return self.step if self.name == "step" else None

    def rewinds(self, part: str) -> bool:
        """Say whether a part goes back; what is not a part of the network is something that the loop tracks."""
        if self.name == "none" or part in self.keep:
            return False
        return self.name != "learning_rate" or part not in PARTS

    def check_parts(self, tracked: Collection[str]) -> None:
        """Raise `ConfigError` when `keep` names something that neither the network nor the loop has."""
        if unknown := sorted(set(self.keep) - set(PARTS) - set(tracked)):
            raise ConfigError(
                f"rewind keep={unknown} names no part of the contract ({', '.join(PARTS)}) and nothing that the loop "
                f"tracks ({', '.join(tracked) or 'it tracks nothing'}); round.track(optimizer=...) hands things over"
            )

    def rewound_parts(self, tracked: Collection[str] = ()) -> tuple[str, ...]:
        """Return the parts that go back, in the order of the contract."""
        return tuple(part for part in (*PARTS, *sorted(tracked)) if self.rewinds(part))


def part_of(key: str, scope: Collection[str]) -> str:
    """Return the part of the contract that a snapshot's key belongs to.

    >>> [part_of(key, {"fc.weight"}) for key in ("parameter/fc.weight", "parameter/fc.bias", "buffer/bn.running_mean")]
    ['weights', 'biases', 'buffers']
    """
    kind, _, name = key.partition("/")
    if kind == "buffer":
        return "buffers"
    if name in scope:
        return "weights"
    return "biases" if "bias" in name.rpartition(".")[2] else "other_parameters"


def rewind_(model: nn.Module, origin: Snapshot, policy: Rewind, scope: Collection[str]) -> None:
    """Put the parts of a trained model that the policy rewinds back to `origin`, in place; clear all gradients."""
    keys = {key for key in origin.tensors if policy.rewinds(part_of(key, scope))}
    origin.restore_tensors(model, keys)
    if policy.rewinds("rng"):
        origin.rng.restore()


def check_reinitialisable(model: nn.Module) -> None:
    """Raise `ScopeError` listing the modules with weights of their own but without an initialiser of their own."""
    without = [
        f"{name or '(the model itself)'} ({type(module).__name__})"
        for name, module in named_modules(model)
        if _own_state(module) and _initialiser(module) is None
    ]
    if without:
        raise ScopeError(
            f"no reset_parameters() in {', '.join(without)}; define it there, or pass initialise= with a function that "
            "initialises the whole model"
        )
    borrowed = [type(module).__name__ for _, module in named_modules(model) if "_init_weights" in dir(type(module))]
    if borrowed:
        raise ScopeError(
            f"{borrowed[0]} initialises the modules inside it itself (_init_weights), so their own reset_parameters() "
            "would draw from another distribution; pass initialise= with a function that initialises the whole model, "
            "for a model of transformers: lambda model: model.load_state_dict(type(model)(model.config).state_dict())"
        )


def reinitialise_(model: nn.Module, seed: int, initialise: Initialiser | None = None) -> None:
    """Draw fresh initial weights in place from a seed, leaving the global generators as they were.

    Each module's own `reset_parameters` is called, inner modules before those around them, as constructors do; or
    `initialise(model)`. Raises `ScopeError` for a module without an initialiser and `RunError` if nothing changes.
    """
    if initialise is None:
        check_reinitialisable(model)
    before = Snapshot.capture(model)
    with seeded(seed):
        if initialise is not None:
            initialise(model)
        else:
            for module in reversed(list(model.modules())):
                if reset := _initialiser(module):
                    reset()
    if all(tensor.equal(before.tensors[key].to(tensor.device)) for key, tensor in state_tensors(model).items()):
        raise RunError("the initialiser changed no weight of the model, so this would be no control; check initialise=")


def load_pretrained_(model: nn.Module, path: Path) -> None:
    """Load a safetensors file of weights into the model in place.

    Keys may be names of parameters and buffers, or those of a snapshot (`parameter/<name>`, `buffer/<name>`). Raises
    `StorageError` for an unreadable file and `ScopeError` listing every parameter that is missing or of another shape.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot read pretrained weights from {path}: {error}") from error
    values = {key.removeprefix("parameter/").removeprefix("buffer/"): tensor for key, tensor in found.items()}
    live = {key.partition("/")[2]: tensor for key, tensor in state_tensors(model).items()}
    parameters = {name for name, tensor in live.items() if isinstance(tensor, nn.Parameter)}
    usable = {name: tuple(values[name].shape) for name in live if name in values}
    expected = {name: tuple(t.shape) for name, t in live.items() if name in parameters or name in usable}
    if problems := shape_differences(expected, usable):
        raise ScopeError(f"{path} does not hold the weights of {type(model).__name__}:\n  " + "\n  ".join(problems))
    for name in usable:
        live[name].detach().copy_(values[name])


def _own_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _initialiser(module: nn.Module) -> Callable[[], object] | None:
    """Return the module's own initialiser; torch's attention and Transformer spell it with an underscore."""
    found = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    return found if callable(found) else None
