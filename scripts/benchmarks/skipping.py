"""Does evaluation skip what is gated off? All off / all on, and spans: skipping [ROW...]"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from benchmarks import interleaved, print_ratio, select_rows
from famx.registry import build

D_MODEL = 256
N_HEADS = 4
ROUNDS = 15
SHAPES = ((8, 150), (8, 600), (1, 1500))  # batch, positions
GATED = {"skip": 0.25, "myelinated": 0.25, "gated_pass": 0.25, "content_update": 0.8}
# fraction of the longest span, and the accepted time in units of multihead
SPANS = {0.999: 1.2, 0.05: 1.0}


def main(words: list[str]) -> None:
    """Prints a line for each row that the words name, length and causality; all without words."""
    for name in select_rows(words, (*GATED, "adaptive_span")):
        for (batch, length), causal in product(SHAPES, (False, True)):
            title = f"{name} b={batch} t={length}{' causal' * causal}"
            x = torch.randn(batch, length, D_MODEL)
            for what, parts, limit in comparisons(name, causal):
                calls = [partial(evaluate, part.eval(), x) for part in parts]
                print_ratio(f"{title}, {what}", interleaved(*calls, ROUNDS), f"<= {limit}")


def comparisons(
    name: str, causal: bool
) -> Iterator[tuple[str, tuple[nn.Module, nn.Module], float]]:
    """Yields a description, the part and its baseline, and the largest accepted ratio."""
    if name == "adaptive_span":
        baseline = build_block("multihead", causal)
        for fraction, limit in SPANS.items():
            block = build_block(name, causal, max_span=512)
            nn.init.zeros_(block.span.weight)
            nn.init.constant_(block.span.bias, torch.tensor(fraction).logit().item())
            yield f"spans of {round(512 * fraction)} / multihead", (block, baseline), limit
        return
    opened = build_layer(causal) if name == "skip" else build_block(name, causal)
    closed = copy.deepcopy(opened)
    set_gates(opened, 99.0)
    set_gates(closed, -99.0)
    yield "all off / all on", (closed, opened), GATED[name]


def set_gates(part: nn.Module, bias: float) -> None:
    for name, module in part.named_modules():
        if name.endswith(("importance", "evidence", "gate.2", "predictor.2")):
            nn.init.zeros_(module.weight)
            nn.init.constant_(module.bias, bias)


def build_block(name: str, causal: bool, **hyperparameters: object) -> nn.Module:
    rotary = build("rotary", {"name": "rope"}, head_dim=D_MODEL // N_HEADS)
    context = {"d_model": D_MODEL, "n_heads": N_HEADS, "rotary": rotary, "causal": causal}
    return build("attention", {"name": name, **hyperparameters}, **context)


def build_layer(causal: bool) -> nn.Module:
    factories: dict[str, Callable[[], nn.Module]] = {
        "attention": partial(build_block, "multihead", causal),
        "feedforward": partial(build, "feedforward", {"name": "gelu"}, d_model=D_MODEL),
        "norm": partial(build, "norm", {"name": "layernorm"}, d_model=D_MODEL),
    }
    return build("layer", {"name": "skip"}, d_model=D_MODEL, causal=causal, **factories)


@torch.no_grad()
def evaluate(part: nn.Module, x: Tensor, _: int) -> Tensor:
    """Returns the output in evaluation, where closed gates are not computed."""
    return part(x)
