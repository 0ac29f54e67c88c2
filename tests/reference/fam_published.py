"""FAM as published, in plain form: one tensor at a time, one step after another, as seed.md describes it."""

import torch


def bands_equal(power, n):
    size = len(power) // n
    return [power[i * size : (i + 1) * size].sum().item() for i in range(n)]


def bands_log(power, n):
    edges = [int(len(power) ** (i / n) - 1) for i in range(n + 1)]
    return [power[edges[i] : edges[i + 1]].sum().item() for i in range(n)]


def bands_split(power, n):
    middle = len(power) // 2
    return bands_equal(power[:middle], n // 2) + bands_equal(power[middle:], n - n // 2)


def momentum(kind, bands, a):
    n = len(bands)
    if kind == "conv":
        if sum(bands[n // 4 : 3 * n // 4]) > 0.4:
            return min(0.97, a + 0.07)
        return min(0.95, a + 0.05) if sum(bands[3 * n // 4 :]) > 0.3 else a
    if kind == "attention":
        largest = bands.index(max(bands))
        if largest < n // 4:
            return max(0.85, a - 0.05)
        return min(0.98, a + 0.08) if largest > 3 * n // 4 else a
    if kind == "embedding":
        return min(0.98, a + 0.08) if sum(bands[3 * n // 4 :]) > 0.2 else a
    return min(0.95, a + 0.05) if sum(bands[n // 2 :]) > 0.3 else a


class PlainFAM:
    """`draw(step)` gives, for each tensor, the indices along its leading axes; none where the whole tensor is read."""

    def __init__(
        self,
        params,
        settings,
        draw,
        lr=1e-3,
        beta=0.99,
        weight_decay=0.0,
        fam_start_step=100,
        min_size=256,
        eps=1e-8,
    ):
        self.params, self.settings, self.draw = params, settings, draw
        self.lr, self.beta, self.weight_decay, self.eps = lr, beta, weight_decay, eps
        self.fam_start_step, self.min_size = fam_start_step, min_size
        self.averages = [torch.zeros_like(p) for p in params]
        self.history = [None] * len(params)
        self.steps = 0
        self.used = []

    def step(self, gradients):
        self.steps += 1
        drawn = self.draw(self.steps)
        self.used = [self.one(i, gradient, drawn[i]) for i, gradient in enumerate(gradients)]

    def one(self, i, gradient, drawn):
        p, average, (kind, a, n) = self.params[i], self.averages[i], self.settings[i]
        gradient = gradient + self.weight_decay * p
        if self.steps > self.fam_start_step and p.numel() > self.min_size:
            sample = gradient
            if len(drawn) == 2:
                sample = gradient[drawn[0]][:, drawn[1]]
            elif len(drawn) == 1:
                sample = gradient[drawn[0]]
            power = torch.fft.rfft(sample.flatten()).abs()
            power = power / (power.sum() + self.eps)
            bands = {"conv": bands_log, "attention": bands_split}.get(kind, bands_equal)(power, n)
            old = self.history[i]
            new = (
                bands
                if old is None
                else [self.beta * h + (1 - self.beta) * b for h, b in zip(old, bands, strict=True)]
            )
            self.history[i] = new
            a = momentum(kind, new, a)
        average.copy_(a * average + (1 - a) * gradient)
        p.sub_(self.lr * average)
        return a
