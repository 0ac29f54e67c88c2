"""Protocols of optional abilities of a part, which the trainer and the monitoring check."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

Item = TypeVar("Item")


@runtime_checkable
class Observed(Protocol):
    """A part that reports metrics while it is observed.

    While `observed` is True, a call fills `metrics` with detached tensors on the part's device: 0-d
    for a curve, 1-d for a histogram or one column of a heat map, 2-d for a heat map. A metric named
    `over_time/...` is an image of (rows, time) of the last sample of the batch. Parts never log,
    print or read a tensor on the host.
    """

    observed: bool
    metrics: dict[str, Tensor]


@runtime_checkable
class HasPenalty(Protocol):
    """A module with a penalty on its computation, which is added to the training loss."""

    def penalty(self) -> Float[Tensor, ""] | None:
        """Returns the penalty of the last training call in units of the loss, None if none."""
        ...


@runtime_checkable
class LearnsFromLoss(Protocol):
    """A module with state (thresholds, Q-tables) that is updated from the loss after each step."""

    def after_step(self, loss: Float[Tensor, ""]) -> None:
        """Updates the state from the mean loss of the optimizer step that was just taken."""
        ...


@runtime_checkable
class CountsInputs(Protocol):
    """A module with statistics of its inputs, over all processes of a run.

    A process that repeats the rows of another one sets `is_counted` to False.
    """

    is_counted: bool


@runtime_checkable
class ConnectsLayers(Protocol):
    """A block that exchanges messages with the blocks of other layers through the decode state."""

    connects_layers: bool


@runtime_checkable
class StartsMessages(ConnectsLayers, Protocol):
    """A block with parameters that only the first block of a chain of messages uses."""

    def drop_start(self) -> None:
        """Removes these parameters, since a block of an earlier layer sends the messages."""
        ...


@runtime_checkable
class HasSelfAttentionModules(Protocol):
    """A block with modules that only self-attention uses."""

    def drop_self_attention(self) -> None:
        """Removes these modules, since the block will always attend to a memory."""
        ...


@runtime_checkable
class StartsPretrained(Protocol):
    """A frontend whose weights a new run reads from a folder, before those of `init_from`."""

    def load_pretrained(self) -> str | None:
        """Reads the weights; returns one line about them, None if there is no folder."""
        ...


@runtime_checkable
class HasExemptions(Protocol):
    """A part that does not give some guarantees: name of the contract -> reason."""

    exempt: Mapping[str, str]


@runtime_checkable
class SkipsNonFinite(Protocol):
    """An optimizer that skips a step whose gradients are not all finite, without a device sync.

    A caller that has checked the gradients sets `found_inf` (0-d, 1 = not finite) before `step`.
    """

    found_inf: Tensor | None
    skipped: Tensor


@runtime_checkable
class UsesMomentumRule(Protocol):
    """An optimizer whose momentum is set by a rule for each tensor."""

    rule: nn.Module


@runtime_checkable
class DecidesByBands(Protocol):
    """A momentum rule that decides by the bands of the spectra of gradients.

    Attributes:
        rows: indices of the tensors that it measures; the others have no bands.
    """

    rows: list[int]

    def decided_bands(self) -> Float[Tensor, "measured bands"]:
        """Returns the powers behind the coefficients, 1 = white noise; NaN if there is none."""
        ...

    def band_names(self) -> list[tuple[str, ...]]:
        """Returns the names of the bands of each measured tensor."""
        ...


class ComputeCost:
    """Mixin of modules with a penalty on the share of their computation that is performed.

    A training call stores the share in `last_compute`, and `penalty` returns `cost` times the
    share. The share is neither copied nor saved with the module, since it belongs to the graph of
    one call.
    """

    cost: float  # penalty for a share of 1, in units of the loss
    last_compute: Tensor | None = None

    def penalty(self) -> Float[Tensor, ""] | None:
        """Returns `cost` times the share of the last training call, and clears the share."""
        # a second call must not add the same penalty again
        compute = self.last_compute
        self.last_compute = None
        if compute is None or not self.cost:
            return None
        return self.cost * compute

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "last_compute": None}


def connect_layers(layers: nn.Module) -> bool:
    """Prepares the blocks of a stack of layers to exchange messages; returns whether any do.

    A parameter without a gradient would stop a training on several processes, so all blocks but
    the first of each class lose the parameters of the first one.
    """
    classes: set[type[nn.Module]] = set()
    for module in layers.modules():
        if not isinstance(module, ConnectsLayers) or not module.connects_layers:
            continue
        if type(module) in classes and isinstance(module, StartsMessages):
            module.drop_start()
        classes.add(type(module))
    return bool(classes)


def drop_self_attention(layers: nn.Module) -> None:
    """Removes from layers that will always attend to a memory what only self-attention uses.

    A parameter without a gradient would stop a training on several processes.
    """
    for module in list(layers.modules()):
        if isinstance(module, HasSelfAttentionModules):
            module.drop_self_attention()


def observe_last_batch(module: nn.Module, batches: Iterable[Item]) -> Iterator[Item]:
    """Yields the batches, and turns on the metrics of all parts of `module` for the last batch."""
    # a batch is held back until the next one shows that it is not the last
    pending: list[Item] = []
    for batch in batches:
        yield from pending
        pending = [batch]
    set_observed(module, True)
    yield from pending
    set_observed(module, False)


def set_observed(module: nn.Module, observed: bool) -> None:
    """Turns the collection of metrics on or off for every part inside `module`."""
    for part in module.modules():
        if isinstance(part, Observed):
            part.observed = observed
