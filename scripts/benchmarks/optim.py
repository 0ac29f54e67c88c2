"""Optimizer steps on the 98 tensors of a transformer, in units of those of torch: optim [ROW...]"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from benchmarks import copy_rate, interleaved, load_reference, print_ratio, select_rows
from famx.optim import FAM, AdamW, FAMAdamW, FAMPublished, MaxFactor, Muon, parameter_groups
from famx.registry import build

WIDTH = 224
VOCAB_SIZE = 1000
WARMUP_STEPS = 130  # rules begin to act after 100
# passes over the parameters' memory that a step takes at least, reads and writes
PASSES = {"SGD with momentum": 5, "AdamW": 7}

Groups = list[dict[str, Any]]


class Steps(Protocol):
    """Anything that takes a step along the gradients of its parameters."""

    def step(self) -> object: ...


class Row(NamedTuple):
    """Two optimizers whose steps are compared, each built from parameter groups."""

    baseline_name: str
    optimizer: Callable[[Groups], Steps]
    baseline: Callable[[Groups], Steps]
    gate: str


class Block(nn.Module):
    """A transformer layer of twelve tensors."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4)
        self.wide = nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))


class SkippableSteps:
    """An optimizer that is told at each step that its gradients are finite, as the trainer does."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.found_inf = torch.zeros(())

    def step(self) -> None:
        self.optimizer.found_inf = self.found_inf
        self.optimizer.step()


class PlainPublishedFAM:
    """The slow plain form that the tests compare `fam_published` with."""

    def __init__(self, groups: Groups):
        optimizer = FAMPublished(groups)
        # the same settings and random draws
        settings = [(info.kind, info.base, info.n_bands) for info in optimizer.tensors]
        row_by_index = {index: row for row, index in enumerate(optimizer.rule.rows)}
        draws = optimizer.rule.spectrum.draws
        self.params = list(ungrouped(groups))

        def draw(step: int) -> list[list[Tensor]]:
            of_measured = draws(step)
            of_all: list[list[Tensor]] = []
            for i in range(len(self.params)):
                of_all.append(of_measured[row_by_index[i]] if i in row_by_index else [])
            return of_all

        reference = load_reference("fam_published")
        self.plain = reference.PlainFAM([p.data for p in self.params], settings, draw)

    def step(self) -> None:
        self.plain.step([p.grad for p in self.params])


def transformer() -> nn.Module:
    """Returns eight blocks between an embedding and an output layer."""
    torch.manual_seed(0)
    embedding = nn.Embedding(VOCAB_SIZE, WIDTH)
    output = nn.Linear(WIDTH, VOCAB_SIZE, bias=False)
    return nn.ModuleList([embedding, output, *(Block() for _ in range(8))])


def step_function(make_optimizer: Callable[[Groups], Steps]) -> Callable[[int], object]:
    """Returns a function of the round that takes a step along gradients that are made in advance.

    They are noise around a slow drift.
    """
    # gradients
    groups = parameter_groups(transformer())
    params = list(ungrouped(groups))
    drift = [torch.randn_like(p) / 10 for p in params]
    gradients = []
    for _ in range(4):
        gradients.append([d + torch.randn_like(d) for d in drift])
    next_gradients = cycle(gradients)
    # steps, the first of which are not timed
    optimizer = make_optimizer(groups)

    def step(_: int) -> None:
        for p, gradient in zip(params, next(next_gradients), strict=True):
            p.grad = gradient
        optimizer.step()

    for i in range(WARMUP_STEPS):
        step(i)
    return step


def ungrouped(groups: Groups) -> Iterator[nn.Parameter]:
    """Yields the parameters of groups, without famx's settings."""
    for group in groups:
        yield from group["params"]


def torch_adamw(groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW(ungrouped(groups), lr=1e-3, weight_decay=0.01, fused=True)


def torch_sgd(groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.SGD(ungrouped(groups), lr=1e-3, momentum=0.9, fused=True)


def torch_adafactor(groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(ungrouped(groups), foreach=True)


class TorchMuon:
    """torch's Muon for the matrices that are no embeddings, and its AdamW for all else."""

    def __init__(self, groups: Groups):
        matrices = []
        others = []
        for group in groups:
            for p in group["params"]:
                is_matrix = p.ndim == 2 and group["kind"] != "embedding"
                (matrices if is_matrix else others).append(p)
        self.muon = torch.optim.Muon(matrices, lr=1e-3, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(others, lr=1e-3, fused=True)

    def step(self) -> None:
        self.muon.step()
        self.adamw.step()


def fam_that_measures_each_step(groups: Groups) -> torch.optim.Optimizer:
    return FAM(groups, spectrum=partial(build, "spectrum", {"name": "temporal", "every": 1}))


def main(words: list[str], rounds: int = 100) -> None:
    """Prints the ratios of the rows that the words name, all without words; then the floors."""
    fam_adamw = partial(FAMAdamW, lr=1e-3, weight_decay=0.01)
    adamw = partial(AdamW, lr=1e-3, weight_decay=0.01)
    # the gate is the largest ratio that is accepted, and the one to aim for
    rows = {
        "fam_adamw": Row("torch AdamW fused", fam_adamw, torch_adamw, "1.15, reach 1.03"),
        "fam_adamw_in_training": Row(
            "torch AdamW fused",
            lambda groups: SkippableSteps(fam_adamw(groups)),
            torch_adamw,
            "1.15, reach 1.03",
        ),
        "adamw": Row("torch AdamW fused", adamw, torch_adamw, ""),
        "fam": Row("torch SGD momentum fused", FAM, torch_sgd, "1.5, reach 1.25"),
        "fam_in_training": Row(
            "torch SGD momentum fused",
            lambda groups: SkippableSteps(FAM(groups)),
            torch_sgd,
            "1.5, reach 1.25",
        ),
        "fam_measured_each_step": Row(
            "torch SGD momentum fused", fam_that_measures_each_step, torch_sgd, "1.5"
        ),
        "maxfactor": Row("torch Adafactor foreach", MaxFactor, torch_adafactor, "0.5, reach 0.25"),
        "muon": Row("torch Muon and AdamW", partial(Muon, lr=1e-3), TorchMuon, "1"),
        "fam_published": Row("its plain form", FAMPublished, PlainPublishedFAM, "0.5, reach 0.3"),
    }
    for name in select_rows(words, rows):
        row = rows[name]
        functions = (step_function(row.optimizer), step_function(row.baseline))
        print_ratio(f"{name} / {row.baseline_name}", interleaved(*functions, rounds), row.gate)

    # the floor that copying sets
    numel = sum(p.numel() for p in transformer().parameters())
    rate = copy_rate()
    for name, passes in PASSES.items():
        milliseconds = 1e3 * passes * 4 * numel / rate
        print(f"floor of {name}: {passes} passes over {numel:,} parameters, {milliseconds:.2f} ms")
    # the memory of the spectrum over steps
    sketch = FAM(parameter_groups(transformer())).rule.spectrum.ring
    share = sketch.nbytes / (4 * numel)
    print(f"temporal sketch: {share:.3f} of the parameters' bytes (gate 0.04, reach 0.02)")
