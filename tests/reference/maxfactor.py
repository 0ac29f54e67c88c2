"""MaxFactor in plain form: one tensor at a time, one step after another, without a shortcut."""

from math import sqrt

import torch


class PlainMaxFactor:
    """MaxFactor; `averages` has for each tensor a function that returns its momentum, or None."""

    def __init__(self, params, averages=None, **options):
        self.params = params
        self.averages = averages or [None] * len(params)
        self.lr = options.pop("lr", 0.1)
        self.beta2_decay = options.pop("beta2_decay", -0.8)
        self.eps = options.pop("eps", (1e-10, 1e-3))
        self.clip_threshold = options.pop("clip_threshold", 1.0)
        self.weight_decay = options.pop("weight_decay", 0.025)
        self.gamma = options.pop("gamma", 0.99)
        self.min_lr = options.pop("min_lr", 1e-7)
        self.full_matrix = options.pop("full_matrix", False)
        self.clip = options.pop("clip", None)
        self.magnitude = options.pop("magnitude", "row")
        assert not options
        self.state = [{} for _ in params]
        self.t = 0

    def step(self, gradients):
        self.t += 1
        for i, gradient in enumerate(gradients):
            state = self.state[i]
            if self.averages[i] is not None:
                a = self.averages[i]()
                m = state.get("m", torch.zeros_like(gradient))
                gradient = a * m + (1 - a) * gradient
                state["m"] = gradient
            self.update(self.params[i], gradient, state)

    def update(self, p, gradient, state):
        """Takes the step of one tensor."""
        size = max(self.eps[1], p.square().mean().sqrt().item())
        a = size * max(self.min_lr, min(self.lr, 1 / sqrt(self.t)))
        if self.clip is not None:
            norm = gradient.square().sum().sqrt().item()
            gradient = gradient * min(1.0, self.clip * size * sqrt(p.numel()) / norm)
        p.mul_(1 - self.lr * self.weight_decay)
        is_matrix = p.ndim > 1
        g = gradient.reshape(p.shape[0], -1) if is_matrix else gradient
        v = self.second_moment(g, is_matrix, state)
        u = g / torch.maximum(v, torch.tensor(self.eps[0] ** 2)).sqrt()
        u = u / (max(1.0, u.square().mean().sqrt().item() / self.clip_threshold) * u.abs().max())
        if is_matrix:
            magnitudes = {
                "row": u.abs().max(1, keepdim=True).values,
                "max": u.abs().max(),
                "median": u.abs().median(),
            }
            u = u.sign() * magnitudes[self.magnitude]
        p.sub_(a * u.view(p.shape))

    def second_moment(self, g, is_matrix, state):
        """Updates V by the squares of g and returns it."""
        b = min(0.999, max(1e-3, self.t**self.beta2_decay))
        if is_matrix and not self.full_matrix:
            rows = state.get("R", torch.zeros(g.shape[0]))
            columns = state.get("C", torch.zeros(g.shape[1]))
            state["R"] = (1 - b) * rows + b * g.square().mean(1)
            state["C"] = (1 - b) * columns + b * g.square().mean(0)
            return state["R"][:, None] * state["C"][None, :] / state["R"].max()
        weight = b if is_matrix else 1 - self.gamma
        v = state.get("V", torch.zeros_like(g))
        state["V"] = (1 - weight) * v + weight * g.square()
        return state["V"]
