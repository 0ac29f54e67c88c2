"""MaxFactor in plain form: one tensor at a time, one step after another, with no shortcut."""

from math import sqrt

import torch


class PlainMaxFactor:
    """`averages` gives, for each tensor, the momentum of the average that is taken before, or None."""

    def __init__(
        self, params, lr=0.1, beta2_decay=-0.8, eps=(1e-10, 1e-3), clip_threshold=1.0, weight_decay=0.025, gamma=0.99,
        min_lr=1e-7, full_matrix=False, clip=None, magnitude="row", averages=None,
    ):  # fmt: skip
        self.params, self.lr, self.beta2_decay, self.eps = params, lr, beta2_decay, eps
        self.clip_threshold, self.weight_decay, self.gamma, self.min_lr = (
            clip_threshold,
            weight_decay,
            gamma,
            min_lr,
        )
        self.full_matrix, self.clip, self.magnitude = full_matrix, clip, magnitude
        self.averages = averages or [None] * len(params)
        self.state = [{} for _ in params]
        self.t = 0

    def step(self, gradients):
        self.t += 1
        for i, gradient in enumerate(gradients):
            if self.averages[i] is not None:
                m = self.state[i].get("m", torch.zeros_like(gradient))
                gradient = self.state[i]["m"] = (
                    self.averages[i]() * m + (1 - self.averages[i]()) * gradient
                )
            self.one(self.params[i], gradient, self.state[i])

    def one(self, p, gradient, state):
        b = min(0.999, max(1e-3, self.t**self.beta2_decay))
        size = max(self.eps[1], p.square().mean().sqrt().item())
        a = size * max(self.min_lr, min(self.lr, 1 / sqrt(self.t)))
        if self.clip is not None:
            norm = gradient.square().sum().sqrt().item()
            gradient = gradient * min(1.0, self.clip * size * sqrt(p.numel()) / norm)
        p.mul_(1 - self.lr * self.weight_decay)
        matrix = p.ndim > 1
        g = gradient.reshape(p.shape[0], -1) if matrix else gradient
        if matrix and not self.full_matrix:
            rows, columns = (
                state.get("R", torch.zeros(g.shape[0])),
                state.get("C", torch.zeros(g.shape[1])),
            )
            rows = state["R"] = (1 - b) * rows + b * g.square().mean(1)
            columns = state["C"] = (1 - b) * columns + b * g.square().mean(0)
            v = rows[:, None] * columns[None, :] / rows.max()
        else:
            weight = b if matrix else 1 - self.gamma
            v = state["V"] = (1 - weight) * state.get(
                "V", torch.zeros_like(g)
            ) + weight * g.square()
        u = g / torch.maximum(v, torch.tensor(self.eps[0] ** 2)).sqrt()
        u = u / (max(1.0, u.square().mean().sqrt().item() / self.clip_threshold) * u.abs().max())
        if matrix:
            largest = {
                "row": u.abs().max(1, keepdim=True).values, "max": u.abs().max(), "median": u.abs().median()
            }[self.magnitude]  # fmt: skip
            u = u.sign() * largest
        p.sub_(a * u.view(p.shape))
