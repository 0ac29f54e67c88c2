"""Lookahead around another optimizer: k steps forward, then part of the way back (arXiv:1907.08610)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from famx.optim._wrapper import Wrapper
from famx.registry import register


@register
class Lookahead(Wrapper):
    """After every k steps of the base: slow <- slow + share·(θ - slow); θ <- slow.

    A parameter that has no gradient in a k-th step waits for the next. A step that the base cancels counts among the k.

    Args:
        params: an optimizer, or parameters or groups over which the base is built.
        momentum: factory of the rule that the base wears.
        spectrum: factory of what that rule measures with.
        base: name of the optimizer.
        lr: its learning rate; its usual one if not given.
        base_lr: another name of `lr`.
        k: steps forward.
        share: of the way that is kept, in (0, 1].
    """

    def __init__(
        self,
        params: Any,
        momentum: Callable[..., nn.Module] | None = None,
        spectrum: Callable[..., nn.Module] | None = None,
        *,
        base: str = "adamw",
        lr: float | None = None,
        base_lr: float | None = None,
        k: int = 5,
        share: float = 0.5,
    ):
        if not isinstance(k, int) or k < 1 or not 0 < share <= 1:
            raise ValueError(f"k={k} must be a whole number of at least 1, share={share} in (0, 1]")
        self.k, self.portion = k, share
        super().__init__(params, momentum, spectrum, base=base, lr=base_lr if lr is None else lr)

    def before(self, params: list[Tensor]) -> None:
        for p in params:
            if p not in self.kept:
                self.kept[p] = {"slow": p.detach().clone()}

    def after(self, params: list[Tensor], moved: float | Tensor) -> None:
        if self.calls % self.k:
            return
        for p in params:
            slow, whole = self.kept[p]["slow"], p.new_ones(()).mul_(moved)
            slow.lerp_(p, whole * self.portion)
            p.lerp_(slow, whole)
