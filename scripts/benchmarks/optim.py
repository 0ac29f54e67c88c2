"""Steps of optimizers on the 98 tensors (5 M entries) of a transformer, beside torch's or a plain form: optim [NAME]"""

import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import torch
from torch import nn

from benchmarks import asked, copy_rate, interleaved, told
from famx.optim import FAM, AdamW, FAMAdamW, FAMPublished, MaxFactor, parameter_groups
from famx.registry import build

WIDTH, VOCABULARY = 224, 1000
WARM = 130  # steps before the clock starts: rules begin to act after 100


class Block(nn.Module):
    """Twelve tensors."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))


def model() -> nn.Module:
    """Eight blocks, a table and its way back."""
    torch.manual_seed(0)
    ends = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
    return nn.ModuleList([*ends, *(Block() for _ in range(8))])


def stepping(make: Callable[[list], object]) -> Callable[[int], object]:
    """A function of the round that takes a step along gradients made beforehand, noise about a slow drift."""
    groups = parameter_groups(model())
    params = [p for group in groups for p in group["params"]]
    drift = [torch.randn_like(p) / 10 for p in params]
    rows = cycle([[d + torch.randn_like(d) for d in drift] for _ in range(4)])
    optimizer = make(groups)

    def step(_: int) -> None:
        for p, gradient in zip(params, next(rows), strict=True):
            p.grad = gradient
        optimizer.step()

    for i in range(WARM):
        step(i)
    return step


def bare(groups: list) -> Iterator[nn.Parameter]:
    return (p for group in groups for p in group["params"])


def plain_fam(groups: list) -> object:
    """The slow form that the tests hold `fam_published` equal to, as an optimizer."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from reference import fam_published

    famx = FAMPublished(groups)
    settings = [(info.kind, info.base, info.n_bands) for info in famx.tensors]
    params = list(bare(groups))
    rows = {row: i for i, row in enumerate(famx.rule.rows)}
    draws = famx.rule.spectrum.draws

    def draw(step: int) -> list:
        drawn = draws(step)
        return [drawn[rows[i]] if i in rows else [] for i in range(len(params))]

    reference = fam_published.PlainFAM([p.data for p in params], settings, draw)
    reference_step = reference.step
    reference.step = lambda: reference_step([p.grad for p in params])
    return reference


def told_finite(optimizer: torch.optim.Optimizer) -> object:
    """One that is told each step, as famx's trainer does it, what the norm of the gradients said of them."""
    finite, step = torch.zeros(()), optimizer.step

    def taking() -> None:
        optimizer.found_inf = finite
        step()

    optimizer.step = taking
    return optimizer


def temporal(every: int) -> Callable[..., nn.Module]:
    return lambda tensors: build("spectrum", {"name": "temporal", "every": every}, tensors=tensors)


def main(words: list[str], rounds: int = 100) -> None:
    """Prints ratios; words choose among them by their first word. At the end, the floor that copying sets."""
    adam = {"lr": 1e-3, "weight_decay": 0.01}
    pairs = {
        "fam_adamw / torch AdamW fused": (
            lambda g: FAMAdamW(g, **adam),
            lambda g: torch.optim.AdamW(bare(g), **adam, fused=True),
            "1.15, reach 1.03",
        ),
        "fam_adamw_in_training / torch AdamW fused": (
            lambda g: told_finite(FAMAdamW(g, **adam)),
            lambda g: torch.optim.AdamW(bare(g), **adam, fused=True),
            "1.15, reach 1.03",
        ),
        "adamw / torch AdamW fused": (
            lambda g: AdamW(g, **adam),
            lambda g: torch.optim.AdamW(bare(g), **adam, fused=True),
            "",
        ),
        "fam / torch SGD momentum fused": (
            FAM,
            lambda g: torch.optim.SGD(bare(g), lr=1e-3, momentum=0.9, fused=True),
            "1.5, reach 1.25",
        ),
        "fam_in_training / torch SGD momentum fused": (
            lambda g: told_finite(FAM(g)),
            lambda g: torch.optim.SGD(bare(g), lr=1e-3, momentum=0.9, fused=True),
            "1.5, reach 1.25",
        ),
        "fam_measured_each_step / torch SGD momentum fused": (
            lambda g: FAM(g, spectrum=temporal(1)),
            lambda g: torch.optim.SGD(bare(g), lr=1e-3, momentum=0.9, fused=True),
            "1.5",
        ),
        "maxfactor / torch Adafactor foreach": (
            MaxFactor,
            lambda g: torch.optim.Adafactor(bare(g), foreach=True),
            "0.5, reach 0.25",
        ),
        "fam_published / its plain form": (FAMPublished, plain_fam, "0.5, reach 0.3"),
    }
    titles = {name.split()[0]: name for name in pairs}
    for name in asked(words, titles):
        one, other, gate = pairs[titles[name]]
        told(titles[name], interleaved(stepping(one), stepping(other), rounds), gate)
    numel = sum(p.numel() for p in model().parameters())
    rate = copy_rate()
    for name, passes in (("SGD with momentum", 5), ("AdamW", 7)):
        print(
            f"floor of {name}: {passes} passes over {numel:,} parameters, {1e3 * passes * 4 * numel / rate:.2f} ms"
        )
    sketch = FAM(parameter_groups(model())).rule.spectrum.ring
    print(
        f"temporal sketch: {sketch.nbytes / (4 * numel):.3f} of the parameters' bytes (gate 0.04, reach 0.02)"
    )
