"""What is wrapped around another optimizer: shares its groups and state, acts before and after its step."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from famx import registry
from famx.notation import UserError
from famx.optim._common import captured, dense, whole


class Wrapper(torch.optim.Optimizer):
    """A step is `before`, the base's step, `after`, of the parameters that have a gradient.

    Args:
        params: an optimizer, or parameters or groups over which the base is built.
        momentum: factory of the rule that the base wears, if it is built.
        spectrum: factory of what that rule measures with.
        base: name of the optimizer to build.
        lr: its learning rate; its usual one if not given.
    """

    exempt: ClassVar[dict[str, str]] = {
        "meta": "its usual base, torch's AdamW, has no meta form",
        "no_host_read": "its usual base, torch's AdamW, may read the learning rate and the step count",
        "non_finite": "its usual base, torch's AdamW, takes every gradient",
    }

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None,
        spectrum: Callable[..., nn.Module] | None,
        *,
        base: str,
        lr: float | None,
    ):
        given = {"momentum": momentum, "spectrum": spectrum}
        given = {room: factory for room, factory in given.items() if factory is not None}
        if isinstance(params, torch.optim.Optimizer):
            if given or lr is not None:
                raise UserError(
                    f"{type(self).__name__} got an optimizer, which has its lr, momentum and spectrum"
                )
            self.base = params
        else:
            for room in given:
                if room not in inspect.signature(registry.get("optim", base)).parameters:
                    raise UserError(
                        f"optim.base={base} wears no {room}, so {room}= would change nothing"
                    )
            config = {"name": base} if lr is None else {"name": base, "lr": lr}
            self.base = registry.build("optim", config, params=params, **given)
        self.calls = 0
        self.kept: dict[Tensor, dict[str, Tensor]] = {}
        super().__init__(self.base.param_groups, self.base.defaults)
        self.share()

    def share(self) -> None:
        """The base's groups and state are this one's."""
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def before(self, params: list[Tensor]) -> None:
        """What comes before the base's step."""

    def after(self, params: list[Tensor], moved: float | Tensor) -> None:
        """What comes after it; `moved` is 0 where the base has cancelled its step, else 1."""

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; `closure`, if given, computes the loss anew, which is returned.

        Raises:
            UserError: a CUDA graph is being captured.
        """
        if captured():
            raise UserError(
                f"{type(self).__name__}.step counts on the host: capture that of the optimizer within it"
            )
        loss = None if closure is None else torch.enable_grad()(closure)()
        params = [p for group in self.param_groups for p in group["params"] if dense(p) is not None]
        self.calls += 1
        skipped = self.base.skipped.clone() if hasattr(self.base, "skipped") else None
        self.before(params)
        self.base.step()
        self.after(params, 1.0 if skipped is None else 1.0 - (self.base.skipped - skipped))
        return loss

    @property
    def observed(self) -> bool:
        return self.base.observed

    @observed.setter
    def observed(self, on: bool) -> None:
        self.base.observed = on

    @property
    def capturable(self) -> bool:
        return False

    @capturable.setter
    def capturable(self, on: bool) -> None:
        raise UserError(
            f"capturable={on} is not for {type(self).__name__}: set it on the optimizer within, and capture that"
        )

    @property
    def metrics(self) -> dict[str, Tensor]:
        return self.base.metrics

    @property
    def skipped(self) -> Tensor:
        return self.base.skipped

    @property
    def found_inf(self) -> Tensor | None:
        return self.base.found_inf

    @found_inf.setter
    def found_inf(self, flag: Tensor | None) -> None:
        if not hasattr(
            self.base, "found_inf"
        ):  # torch's own would go on reading it in every later step
            raise AttributeError(
                f"{type(self.base).__name__} is told by no found_inf of the gradients"
            )
        self.base.found_inf = flag

    __getstate__ = whole

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if any(param_group is group for group in self.base.param_groups):
            super().add_param_group(param_group)
        else:
            self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base's, and what this keeps under its own name, by the place of the parameter."""
        places = {
            p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])
        }
        kept = {places[p]: state for p, state in self.kept.items()}
        return {**self.base.state_dict(), type(self).__name__: {"calls": self.calls, "kept": kept}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Raises:
            UserError: it is of another optimizer.
        """
        name = type(self).__name__
        if name not in state_dict:
            raise UserError(f"the state is not of {name}: it holds {sorted(state_dict)}")
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != name})
        self.share()
        self.calls = state_dict[name]["calls"]
        params = [p for group in self.param_groups for p in group["params"]]
        self.kept = {
            (p := params[int(place)]): {
                key: value.to(p.device, p.dtype, copy=True) for key, value in state.items()
            }
            for place, state in state_dict[name]["kept"].items()
        }
