"""Q-learning of a shift of logits, rewarded by a lower loss (seed.md: Refiner; Watkins 1989)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from famx.nn.processes import of_first_process, sum_over_processes

SHIFTS = (-1.0, -0.3, 0.0, 0.3, 1.0)  # actions: what is added to the logits
LEVELS = 4  # levels of the mean share; each, with a loss below or above its mean, is a state
DECAY = 0.99  # decay of the running mean of the loss


class Refiner(nn.Module):
    """`logits + shift[a]`, one action per training step; in evaluation the best of `Q[state]`.

    After each training step, `Q[s, a] += alpha (r + gamma max Q[s'] - Q[s, a])` with `r = (mean
    loss - loss) / mean loss - cost * share`, where mean loss is a running mean and share is the
    mean of `sigmoid(logits + shift)` over the positions of the step without padding, of one or more
    calls. The states are 4 levels of the share, each with the loss below or above its mean. The
    next action is the best one in s', or with probability epsilon a random one.

    Args:
        alpha: learning rate, in (0, 1].
        gamma: weight of future rewards, in [0, 1).
        epsilon: probability of a random action, in [0, 1].
        cost: penalty for a share of 1, in units of the relative decrease of the loss.
    """

    observed: bool = False
    shifts: Float[Tensor, " actions"]
    table: Float[Tensor, "states actions"]
    state: Int[Tensor, " 1"]
    action: Int[Tensor, " 1"]
    mean_loss: Float[Tensor, ""]
    share_total: Float[Tensor, ""]
    counted: Float[Tensor, ""]

    def __init__(
        self, alpha: float = 0.1, gamma: float = 0.9, epsilon: float = 0.1, cost: float = 0.01
    ):
        super().__init__()
        if not (0 < alpha <= 1 and 0 <= gamma < 1 and 0 <= epsilon <= 1):
            raise ValueError(
                f"alpha={alpha} must be in (0, 1], gamma={gamma} in [0, 1), "
                f"epsilon={epsilon} in [0, 1]"
            )
        self.alpha = alpha
        self.gamma = gamma
        self.epsilon = epsilon
        self.cost = cost
        self.register_buffer("shifts", torch.tensor(SHIFTS), persistent=False)
        self.register_buffer("table", torch.zeros(2 * LEVELS, len(SHIFTS)))
        self.register_buffer("state", torch.zeros(1, dtype=torch.long))
        self.register_buffer("action", torch.full((1,), SHIFTS.index(0.0)))
        self.register_buffer("mean_loss", torch.tensor(torch.nan))
        # sum of shares and number of logits since the last `after_step`; buffers, which a training
        # step adds to in place, as a CUDA graph requires
        self.register_buffer("share_total", torch.zeros(()), persistent=False)
        self.register_buffer("counted", torch.zeros(()), persistent=False)
        self.metrics: dict[str, Tensor] = {}

    def forward(
        self, logits: Float[Tensor, "*any"], real: Float[Tensor, "*#any"] | None = None
    ) -> Float[Tensor, "*any"]:
        """Adds the shift.

        Args:
            real: 1 where a logit counts, 0 for padding; None if all count.
        """
        action = self.action if self.training else self.best_action(self.state)
        shift = self.shifts[action]
        logits = logits + shift.to(logits)
        if self.observed:
            self.metrics = {"shift": shift.mean(), "q_values": self.table.clone()}
        if self.training:
            share = logits.detach().float().sigmoid()
            weight = torch.ones_like(share) if real is None else real.expand_as(share).float()
            self.share_total += (share * weight).sum()
            self.counted += weight.sum()
        return logits

    def best_action(self, state: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Returns the action with the highest value; the shift of 0 wins ties."""
        return (self.table[state] + 1e-6 * (self.shifts == 0)).argmax(-1)

    @torch.no_grad()
    def after_step(self, loss: Float[Tensor, ""]) -> None:
        """Learns from the last training step and selects the next action."""
        # sums over the whole batch, of which each process computes a share
        share_total, counted = sum_over_processes(torch.stack((self.share_total, self.counted)))
        # without a training call since the last step, nothing changes
        trained = counted > 0
        share = share_total / counted.clamp(min=1)

        # reward of the last action; the mean loss begins at the loss of the first step
        mean_loss = torch.where(self.mean_loss.isnan(), loss, self.mean_loss)
        reward = (mean_loss - loss) / mean_loss.abs().clamp(min=1e-9) - self.cost * share

        # next state
        level = (share * LEVELS).long().clamp(max=LEVELS - 1)
        next_state = (level + LEVELS * (loss > mean_loss)).view(1)

        # update of the Q-table; a loss that is not finite changes nothing
        future = self.gamma * self.table[next_state].amax(-1)
        error = reward + future - self.table[self.state, self.action]
        change = self.alpha * error.nan_to_num(0.0, 0.0, 0.0)
        self.table[self.state, self.action] += torch.where(trained, change, 0.0)
        new_mean_loss = DECAY * mean_loss + (1 - DECAY) * loss
        learns = loss.isfinite() & trained
        self.mean_loss.copy_(torch.where(learns, new_mean_loss, self.mean_loss))

        # next action
        explores = torch.rand_like(share) < self.epsilon
        random_action = torch.randint_like(next_state, len(SHIFTS))
        best_action = self.best_action(next_state)
        # generators differ between processes
        next_action = of_first_process(torch.where(explores, random_action, best_action))
        self.action.copy_(torch.where(trained, next_action, self.action))
        self.state.copy_(torch.where(trained, next_state, self.state))
        self.share_total.zero_()
        self.counted.zero_()
