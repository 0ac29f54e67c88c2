"""Does evaluation skip what is gated off? All off / all on, and spans: skipping [ROW...]

It takes one thread, since two of them wait for each other on a core that others use.
"""

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
LONGEST = 512
# spans in positions, one for all heads or one for each
SPANS = {"long": (511,), "middle": (256,), "mixed": (5, 50, 200, 500), "short": (26,)}


def main(words: list[str]) -> None:
    """Prints a line for each row that the words name, length and causality; all without words."""
    torch.set_num_threads(1)
    for name in select_rows(words, (*GATED, "adaptive_span")):
        for (batch, length), causal in product(SHAPES, (False, True)):
            title = f"{name} b={batch} t={length}{' causal' * causal}"
            x = torch.randn(batch, length, D_MODEL)
            for what, parts, limit in comparisons(name, length, causal):
                calls = [partial(evaluate, part.eval(), x) for part in parts]
                print_ratio(f"{title}, {what}", interleaved(*calls, ROUNDS), f"<= {limit}")


def comparisons(
    name: str, length: int, causal: bool
) -> Iterator[tuple[str, tuple[nn.Module, nn.Module], float]]:
    """Yields a description, the part and its baseline, and the largest accepted ratio."""
    if name == "adaptive_span":
        baseline = build_block("multihead", causal)
        for what, spans in SPANS.items():
            block = build_block(name, causal, max_span=LONGEST)
            nn.init.zeros_(block.span.weight)
            with torch.no_grad():
                block.span.bias.copy_((torch.tensor(spans) / LONGEST).logit())
            # a span is short if its window is a small part of the sequence
            is_short = 2 * (max(spans) + block.ramp) < length / 2
            yield f"{what} spans / multihead", (block, baseline), 1.0 if is_short else 1.2
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
