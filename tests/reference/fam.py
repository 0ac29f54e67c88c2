"""FAM on the temporal spectrum in plain form: one tensor, one coordinate, one frequency a time."""

import cmath
from math import gcd, pi, sqrt

import torch

WINDOW = 32
EVERY = 8
COORDINATES = 64
BINS = 17


def even(n_bins, n):
    size = n_bins // n
    bands = [(i * size, (i + 1) * size) for i in range(n - 1)]
    # the last band has the rest of the bins
    return [*bands, ((n - 1) * size, n_bins)]


def edges(kind, n):
    """Returns the first bin and the end of each of n bands."""
    if kind != "attention":
        return even(BINS, n)
    middle = BINS // 2
    upper = even(BINS - middle, n - n // 2)
    return even(middle, n // 2) + [(start + middle, stop + middle) for start, stop in upper]


def coordinates(shape):
    """Returns the indices of the entries that are followed."""
    numel = torch.Size(shape).numel()
    stride = numel // COORDINATES
    while len(shape) > 1 and gcd(stride, shape[-1]) > 1:
        stride -= 1
    return [i * stride for i in range(COORDINATES)]


def shares(series, kind, n):
    """Returns the share of power in each band of one tensor.

    Args:
        series: WINDOW lists of COORDINATES values.
    """
    mean = [0.0] * BINS
    for column in zip(*series, strict=True):
        power = []
        for f in range(BINS):
            terms = (x * cmath.exp(-2j * pi * f * t / WINDOW) for t, x in enumerate(column))
            power.append(abs(sum(terms)) ** 2)
        for f in range(BINS):
            mean[f] += power[f] / sum(power) / COORDINATES
    return [sum(mean[start:stop]) for start, stop in edges(kind, n)]


def fires(bands, widths):
    """Returns whether bands have more power than white noise by a quarter and four deviations."""
    width = sum(widths)
    chance = 4 * sqrt((1 - width) / (width * COORDINATES * BINS / 2))
    return sum(bands) > width * (1 + max(0.25, chance))


def momentum(kind, bands, a):
    n = len(bands)
    widths = [(stop - start) / BINS for start, stop in edges(kind, n)]

    def region(start, stop):
        return fires(bands[start:stop], widths[start:stop])

    loud = {b: bands[b] / widths[b] for b in range(n) if region(b, b + 1)}
    largest = max(loud, key=loud.get) if loud else None
    a = handler(kind, region, largest, n, a)
    # the boost of the loudest band
    if largest is not None and largest < n // 3:
        return 0.95 * a
    if largest is not None and largest >= n - n // 3:
        return max(a, min(0.98, 1.05 * a))
    return a


def handler(kind, region, largest, n, base):
    """Returns the momentum by the rule of the tensor's kind."""
    if kind == "conv":
        if region(n // 4, 3 * n // 4):
            return max(base, min(0.97, base + 0.07))
        if region(3 * n // 4, n):
            return max(base, min(0.95, base + 0.05))
    elif kind == "attention":
        if largest is not None and largest < n // 4:
            return min(base, max(0.85, base - 0.05))
        if largest is not None and largest > 3 * n // 4:
            return max(base, min(0.98, base + 0.08))
    elif kind == "embedding":
        if region(3 * n // 4, n):
            return max(base, min(0.98, base + 0.08))
    elif region(n // 2, n):
        return max(base, min(0.95, base + 0.05))
    return base


class PlainFAM:
    """FAM; `settings` are the kind, the base momentum and the number of bands of each tensor."""

    def __init__(self, params, settings, lr, fam_start_step, beta=0.99):
        self.params = params
        self.settings = settings
        self.lr = lr
        self.fam_start_step = fam_start_step
        self.beta = beta
        self.averages = [torch.zeros_like(p) for p in params]
        self.series = [[] for _ in params]
        self.history = [None] * len(params)
        self.momenta = [a for _, a, _ in settings]
        self.steps = 0

    def step(self, gradients):
        self.steps += 1
        for i, gradient in enumerate(gradients):
            if gradient.numel() > 256:
                self.measure(i, gradient)
            a = self.momenta[i]
            self.averages[i].copy_(a * self.averages[i] + (1 - a) * gradient)
            self.params[i].sub_(self.lr * self.averages[i])

    def measure(self, i, gradient):
        """Updates the history and the momentum of one tensor, where that is due."""
        kind, base, n = self.settings[i]
        flat = gradient.flatten().bfloat16().tolist()
        self.series[i].append([flat[c] for c in coordinates(gradient.shape)])
        due = self.steps >= WINDOW and (self.steps - WINDOW) % EVERY == 0
        if not due or self.steps <= self.fam_start_step:
            return
        bands = shares(self.series[i][-WINDOW:], kind, n)
        if self.history[i] is not None:
            decay = self.beta**EVERY
            pairs = zip(self.history[i], bands, strict=True)
            bands = [decay * h + (1 - decay) * b for h, b in pairs]
        self.history[i] = bands
        self.momenta[i] = momentum(kind, bands, base)
