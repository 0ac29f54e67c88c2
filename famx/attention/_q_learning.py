"""Q-learning that nudges what a block predicts, rewarded when the loss falls (seed.md: Refiner; Watkins 1989)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

SHIFTS = (-1.0, -0.3, 0.0, 0.3, 1.0)  # actions: what is added to the logits
LEVELS = 4  # of the mean share, which with the loss falling or not make the states
MEMORY = 0.99  # of the running mean of the loss


class Refiner(nn.Module):
    """`logits + shift[a]`, one action a training step, the best of `Q[state]` in evaluation.

    After each training step, `Q[s, a] += alpha (r + gamma max Q[s'] - Q[s, a])` with
    `r = (usual loss - loss) / usual loss - cost * share`, where share is the mean of `sigmoid(logits + shift)` over all
    that is real in the step, of one or more calls. The states are 4 levels of the share, each with the loss above or
    below its running mean. The next action is the best in s', or with probability epsilon any.

    Args:
        alpha: learning rate, in (0, 1].
        gamma: weight of the future, in [0, 1).
        epsilon: how often to explore, in [0, 1].
        cost: of a share of 1, in units of the relative fall of the loss.
    """

    observed = False

    def __init__(
        self, alpha: float = 0.1, gamma: float = 0.9, epsilon: float = 0.1, cost: float = 0.01
    ):
        super().__init__()
        if not (0 < alpha <= 1 and 0 <= gamma < 1 and 0 <= epsilon <= 1):
            raise ValueError(
                f"alpha={alpha} must be in (0, 1], gamma={gamma} in [0, 1), epsilon={epsilon} in [0, 1]"
            )
        self.alpha, self.gamma, self.epsilon, self.cost = alpha, gamma, epsilon, cost
        self.register_buffer("shifts", torch.tensor(SHIFTS), persistent=False)
        self.register_buffer("table", torch.zeros(2 * LEVELS, len(SHIFTS)))
        self.register_buffer("state", torch.zeros(1, dtype=torch.long))
        self.register_buffer("action", torch.full((1,), SHIFTS.index(0.0)))
        self.register_buffer("usual_loss", torch.tensor(torch.nan))
        self.shares: tuple[Tensor, Tensor] | None = (
            None  # since the last feedback: their sum, and how many
        )
        self.metrics: dict[str, Tensor] = {}

    def forward(
        self, logits: Float[Tensor, "*any"], real: Float[Tensor, "*#any"] | None = None
    ) -> Float[Tensor, "*any"]:
        """Adds the shift.

        Args:
            real: 1 where a logit counts, 0 for padding; None: all count.
        """
        action = self.action if self.training else self.best(self.state)
        shift = self.shifts[action]
        logits = logits + shift.to(logits)
        if self.observed:
            self.metrics = {"shift": shift.mean(), "q_values": self.table.clone()}
        if self.training:
            share = logits.detach().float().sigmoid()
            counts = torch.ones_like(share) if real is None else real.expand_as(share).float()
            total, count = self.shares or (0, 0)
            self.shares = total + (share * counts).sum(), count + counts.sum()
        return logits

    def best(self, state: Tensor) -> Tensor:
        """The action of the highest value; while nothing sets one apart, the one that changes nothing."""
        values = self.table[state]
        return (values + 1e-6 * (self.shifts == 0)).argmax(-1)

    @torch.no_grad()
    def after_step(self, loss: Float[Tensor, ""]) -> None:
        """Learns from the last training step and chooses the next action."""
        if self.shares is None:
            return
        total, count = self.shares
        share = total / count.clamp(min=1)
        usual = torch.where(self.usual_loss.isnan(), loss, self.usual_loss)
        reward = (usual - loss) / usual.abs().clamp(min=1e-9) - self.cost * share
        level = (share * LEVELS).long().clamp(max=LEVELS - 1)
        to = (level + LEVELS * (loss > usual)).view(1)
        error = reward + self.gamma * self.table[to].amax(-1) - self.table[self.state, self.action]
        self.table[self.state, self.action] += self.alpha * error.nan_to_num(0.0, 0.0, 0.0)
        self.usual_loss.copy_(
            torch.where(loss.isfinite(), MEMORY * usual + (1 - MEMORY) * loss, self.usual_loss)
        )
        explores = torch.rand_like(share) < self.epsilon
        self.action.copy_(torch.where(explores, torch.randint_like(to, len(SHIFTS)), self.best(to)))
        self.state.copy_(to)
        self.shares = None
