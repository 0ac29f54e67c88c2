"""FAM on the temporal spectrum in plain form: one tensor, one coordinate, one frequency at a time."""

import cmath
from math import gcd, pi, sqrt

import torch

WINDOW, EVERY, COORDINATES, BINS = 32, 8, 64, 17


def even(n_bins, n):
    size = n_bins // n
    return [(i * size, (i + 1) * size if i < n - 1 else n_bins) for i in range(n)]


def edges(kind, n):
    if kind != "attention":
        return even(BINS, n)
    return even(BINS // 2, n // 2) + [
        (a + BINS // 2, b + BINS // 2) for a, b in even(BINS - BINS // 2, n - n // 2)
    ]


def coordinates(shape):
    numel = torch.Size(shape).numel()
    stride = numel // COORDINATES
    while len(shape) > 1 and gcd(stride, shape[-1]) > 1:
        stride -= 1
    return [i * stride for i in range(COORDINATES)]


def shares(series, kind, n):
    """Of one tensor, from its followed coordinates: a list of WINDOW lists of COORDINATES values."""
    mean = [0.0] * BINS
    for column in zip(*series, strict=True):
        power = [
            abs(sum(x * cmath.exp(-2j * pi * f * t / WINDOW) for t, x in enumerate(column))) ** 2
            for f in range(BINS)
        ]
        for f in range(BINS):
            mean[f] += power[f] / sum(power) / COORDINATES
    return [sum(mean[a:b]) for a, b in edges(kind, n)]


def fires(bands, widths):
    """Whether these bands together are louder than white noise by a quarter and by four deviations of chance."""
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
    base = a
    if kind == "conv":
        if region(n // 4, 3 * n // 4):
            a = max(base, min(0.97, base + 0.07))
        elif region(3 * n // 4, n):
            a = max(base, min(0.95, base + 0.05))
    elif kind == "attention":
        if largest is not None and largest < n // 4:
            a = min(base, max(0.85, base - 0.05))
        elif largest is not None and largest > 3 * n // 4:
            a = max(base, min(0.98, base + 0.08))
    elif kind == "embedding":
        if region(3 * n // 4, n):
            a = max(base, min(0.98, base + 0.08))
    elif region(n // 2, n):
        a = max(base, min(0.95, base + 0.05))
    if largest is not None and largest < n // 3:
        return 0.95 * a
    if largest is not None and largest >= n - n // 3:
        return max(a, min(0.98, 1.05 * a))
    return a


class PlainFAM:
    def __init__(self, params, settings, lr, fam_start_step, beta=0.99):
        self.params, self.settings, self.lr = params, settings, lr
        self.fam_start_step, self.beta = fam_start_step, beta
        self.averages = [torch.zeros_like(p) for p in params]
        self.series = [[] for _ in params]
        self.history = [None] * len(params)
        self.used = [a for _, a, _ in settings]
        self.steps = 0

    def step(self, gradients):
        self.steps += 1
        for i, gradient in enumerate(gradients):
            kind, base, n = self.settings[i]
            if gradient.numel() > 256:
                flat = gradient.flatten().bfloat16().tolist()
                self.series[i].append([flat[c] for c in coordinates(gradient.shape)])
                due = self.steps >= WINDOW and (self.steps - WINDOW) % EVERY == 0
                if due and self.steps > self.fam_start_step:
                    bands, old = shares(self.series[i][-WINDOW:], kind, n), self.history[i]
                    keep = self.beta**EVERY
                    self.history[i] = (
                        bands
                        if old is None
                        else [keep * h + (1 - keep) * b for h, b in zip(old, bands, strict=True)]
                    )
                    self.used[i] = momentum(kind, self.history[i], base)
            a = self.used[i]
            self.averages[i].copy_(a * self.averages[i] + (1 - a) * gradient)
            self.params[i].sub_(self.lr * self.averages[i])
