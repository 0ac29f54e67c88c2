"""FAM as published, in plain form: one tensor at a time, as seed.md describes it."""

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
    """FAM as published.

    Args:
        settings: kind, base momentum and number of bands of each tensor.
        draw: returns for a step, for each tensor, the indices along its leading axes that are
            sampled; no indices where the full tensor is measured.
    """

    def __init__(self, params, settings, draw, lr=1e-3, weight_decay=0.0, fam_start_step=100):
        self.params = params
        self.settings = settings
        self.draw = draw
        self.lr = lr
        self.weight_decay = weight_decay
        self.fam_start_step = fam_start_step
        self.beta = 0.99
        self.min_size = 256
        self.eps = 1e-8
        self.averages = [torch.zeros_like(p) for p in params]
        self.history = [None] * len(params)
        self.steps = 0
        self.momenta = []

    def step(self, gradients):
        self.steps += 1
        indices = self.draw(self.steps)
        self.momenta = []
        for i, (p, gradient) in enumerate(zip(self.params, gradients, strict=True)):
            gradient = gradient + self.weight_decay * p
            a = self.settings[i][1]
            if self.steps > self.fam_start_step and p.numel() > self.min_size:
                a = self.measure(i, gradient, indices[i])
            self.averages[i].copy_(a * self.averages[i] + (1 - a) * gradient)
            p.sub_(self.lr * self.averages[i])
            self.momenta.append(a)

    def measure(self, i, gradient, indices):
        """Updates the history of one tensor and returns its momentum."""
        kind, a, n = self.settings[i]
        sample = gradient
        if len(indices) > 0:
            sample = sample[indices[0]]
        if len(indices) == 2:
            sample = sample[:, indices[1]]
        power = torch.fft.rfft(sample.flatten()).abs()
        power = power / (power.sum() + self.eps)
        measure_bands = {"conv": bands_log, "attention": bands_split}.get(kind, bands_equal)
        bands = measure_bands(power, n)
        if self.history[i] is not None:
            pairs = zip(self.history[i], bands, strict=True)
            bands = [self.beta * h + (1 - self.beta) * b for h, b in pairs]
        self.history[i] = bands
        return momentum(kind, bands, a)
