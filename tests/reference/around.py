"""Lookahead, adaptive clipping and EMA-Nesterov around any `step(gradients)`, in plain form."""

import torch
from reference.clip import clipped_tensor


class PlainLookahead:
    def __init__(self, params, base, k=5, share=0.5):
        self.params = params
        self.base = base
        self.k = k
        self.share = share
        self.slow = [p.clone() for p in params]
        self.t = 0

    def step(self, gradients):
        self.base.step(gradients)
        self.t += 1
        if self.t % self.k == 0:
            for i, p in enumerate(self.params):
                self.slow[i] = self.slow[i] + self.share * (p - self.slow[i])
                p.copy_(self.slow[i])


class PlainAGC:
    def __init__(self, params, base, clip=0.01, eps=1e-3):
        self.params = params
        self.base = base
        self.clip = clip
        self.eps = eps

    def step(self, gradients):
        pairs = zip(self.params, gradients, strict=True)
        self.base.step([clipped_tensor(p, gradient, self.clip, self.eps) for p, gradient in pairs])


class PlainEMANesterov:
    """Stores θ; the parameters are at the point y where gradients are computed."""

    def __init__(self, params, base, beta=0.5, gamma=0.95, start_step=100, stop_step=None):
        self.params = params
        self.base = base
        self.beta = beta
        self.gamma = gamma
        self.start_step = start_step
        self.stop_step = stop_step
        self.theta = [p.clone() for p in params]
        self.m = [torch.zeros_like(p) for p in params]
        self.t = 0

    def step(self, gradients):
        self.base.step(gradients)
        self.t += 1
        ahead = self.t > self.start_step and (self.stop_step is None or self.t < self.stop_step)
        for i, p in enumerate(self.params):
            self.m[i] = self.gamma * self.m[i] + (1 - self.gamma) * (p - self.theta[i])
            self.theta[i] = p.clone()
            p.add_(self.beta * self.m[i] if ahead else 0)
