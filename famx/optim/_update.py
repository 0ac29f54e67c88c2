"""The input of a step of an optimizer: parameters, gradients, state and numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from famx.optim._kernels import scalars

Group = dict[str, Any]


def states_of(
    state: Mapping[Tensor, dict[str, Tensor]],
    params: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    init: Callable[[Tensor], dict[str, Tensor]],
) -> list[dict[str, Tensor]]:
    """Returns the state of each parameter, empty where the gradient is missing.

    Args:
        state: the optimizer's state, which makes an empty dict for a new parameter.
        init: returns the initial state of a parameter.
    """
    rows = zip(params, gradients, strict=True)
    states = [{} if gradient is None else state[p] for p, gradient in rows]
    if not all(states):
        for p, gradient, param_state in zip(params, gradients, states, strict=True):
            if gradient is not None and not param_state:
                param_state.update(init(p))
    return states


class Update(NamedTuple):
    """One parameter in one step. Numbers are floats on the CPU, else 0-d tensors on the device.

    Args:
        param: the parameter.
        gradient: its gradient, contiguous.
        state: its state, as named tensors.
        momentum: its coefficient, in [0, 1).
        momentum_product: product of its coefficients in all steps so far, this one included.
        step: number of its steps with a gradient, this one included.
    """

    param: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    momentum: float | Tensor
    momentum_product: float | Tensor
    step: float | Tensor


class GroupUpdate(NamedTuple):
    """The parameters of a group in one step, with their numbers as vectors on the device.

    Args:
        params: the parameters.
        gradients: their gradients, contiguous; None where one is missing.
        states: their state, as named tensors; empty where the gradient is missing.
        momentum, momentum_product, step: see `Update`, one value per parameter.
    """

    params: Sequence[Tensor]
    gradients: Sequence[Tensor | None]
    states: Sequence[dict[str, Tensor]]
    momentum: Float[Tensor, " tensors"]
    momentum_product: Float[Tensor, " tensors"]
    step: Float[Tensor, " tensors"]

    def state(self, name: str) -> list[Tensor | None]:
        """Returns a tensor of the state of each parameter, None where the gradient is missing."""
        return [state.get(name) for state in self.states]

    def split(self) -> list[Update]:
        """Returns the parameters that have a gradient, one by one."""
        numbers = zip(
            scalars(self.momentum), scalars(self.momentum_product), scalars(self.step), strict=True
        )
        updates = []
        rows = zip(self.params, self.gradients, self.states, numbers, strict=True)
        for p, gradient, state, (momentum, product, step) in rows:
            if gradient is not None:
                updates.append(Update(p, gradient, state, momentum, product, step))
        return updates
