"""What every attention block promises."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import jaxtyping
import torch
from torch import Tensor, nn

from famx.attention import as_torch_mha
from famx.contracts import Contract, ContractError, build_for_test, require, require_finite
from famx.registry import build

Part = Callable[..., nn.Module]

B, T, S, D, H = 2, 7, 5, 24, 4
LONG = 131  # positions, more than a block of what works in blocks


def shape(part: Part) -> None:
    block, x = _block(part), torch.randn(B, T, D)
    y = block(x)
    require(y.shape == x.shape, f"turns {tuple(x.shape)} into {tuple(y.shape)}")
    require(y.dtype == x.dtype, f"turns {x.dtype} into {y.dtype}")
    _finite(y)


def one_position(part: Part) -> None:
    for causal in (False, True):
        y = _block(part, causal)(torch.randn(B, 1, D))
        require(y.shape == (B, 1, D), f"turns {(B, 1, D)} into {tuple(y.shape)}")
        _finite(y)


def other_length(part: Part) -> None:
    block, x, memory = _block(part), torch.randn(B, T, D), torch.randn(B, S, D)
    y = block(x, memory)
    require(
        y.shape == x.shape, f"{T} positions that attend to a memory of {S} become {tuple(y.shape)}"
    )
    require(not _near(y, block(x, memory.flip(0))), "another memory changes nothing")


def mask_obeyed(part: Part) -> None:
    block, x, memory = _block(part), torch.randn(B, T, D), torch.randn(B, S, D)
    hidden = torch.ones(B, 1, 1, T, dtype=torch.bool)
    hidden[..., 2] = False
    seen = [t for t in range(T) if t != 2]
    apart = block(_changed(x, 2), mask=hidden)[:, seen]
    require(
        _near(block(x, mask=hidden)[:, seen], apart),
        "other outputs change with x at t=2, which the mask hides",
    )
    whole, other = block(x, memory, hidden[..., :S]), block(x, _changed(memory, 2), hidden[..., :S])
    require(_near(whole, other), "the output changes with the memory at s=2, which the mask hides")
    pair = torch.ones(3, 3, dtype=torch.bool), torch.ones(T - 3, T - 3, dtype=torch.bool)
    packed = torch.block_diag(*pair).bool()[None, None]
    whole, other = block(x, mask=packed), block(_changed(x, 4), mask=packed)
    require(
        _near(whole[:, :3], other[:, :3]),
        "of two packed sequences, the first changes with x at t=4 of the second",
    )
    require(not _near(block(x), block(x, mask=hidden)), "a mask changes nothing")


def fully_masked(part: Part) -> None:
    for causal in (False, True):
        block = _block(part, causal)
        mask = torch.ones(B, 1, 1, T, dtype=torch.bool)
        mask[0] = False
        y = block(torch.randn(B, T, D), mask=mask)
        require(y.isfinite().all(), "a sample whose mask hides everything is not finite")
        y.square().mean().backward()
        for name, p in block.named_parameters():
            require(
                p.grad is None or p.grad.isfinite().all(),
                f"a sample hidden whole makes the gradient of {name} nan",
            )


def causal(part: Part) -> None:
    """No output depends on a later position, and a state makes step-by-step decoding equal to the whole pass."""
    block, x = _block(part, causal=True), torch.randn(B, T, D)
    padding = torch.ones(B, 1, 1, T, dtype=torch.bool)
    padding[1, ..., :2] = False
    with _no_shape_hook():
        for training in (False, True):
            for mask in (None, padding):
                _keeps_the_future_out(block.train(training), x, mask, range(1, T))
        block.eval()
        _keeps_the_future_out(block, torch.randn(1, LONG, D), None, (2, LONG // 2, LONG - 1))
        for chunk in (1, 3):
            _decodes(block, x, None, None, chunk)
            _decodes(block, x, None, padding, chunk)
            _decodes(block, x, torch.randn(B, S, D), None, chunk)


def padding_independent(part: Part) -> None:
    for causal in (False, True):
        for whole, real in ((T, S), (LONG, S), (LONG, LONG - 2)):
            block, x = _block(part, causal), torch.randn(B, whole, D)
            mask = (
                torch.arange(whole)[None, None, None]
                < torch.tensor([whole, real])[:, None, None, None]
            )
            padded, alone = block(x, mask=mask)[1:, :real], block(x[1:, :real])
            require(
                _near(padded, alone),
                f"a sample of {real} positions changes when it is padded to {whole}",
            )


def batch_independent(part: Part) -> None:
    for causal in (False, True):
        for length in (T, LONG):
            block, x = _block(part, causal), torch.randn(4, length, D)
            together = block(x)
            for i in range(4):
                alone, long = (
                    block(x[i : i + 1]),
                    f" where it has {length} positions" * (length > T),
                )
                require(
                    _near(together[i : i + 1], alone),
                    f"sample {i} depends on its batch-mates{long}",
                )


def deterministic(part: Part) -> None:
    block, x = _block(part), torch.randn(B, T, D)
    require(
        torch.equal(*require_finite(block(x), block(x))),
        "in evaluation, two calls on the same x differ",
    )


def watching_changes_nothing(part: Part) -> None:
    block, x = _block(part), torch.randn(B, T, D)
    before = block(x)
    for module in block.modules():
        if hasattr(module, "observed"):
            module.observed = True
    require(
        torch.equal(*require_finite(before, block(x))), "the output changes while it is observed"
    )
    for module in block.modules():
        for name, value in getattr(module, "metrics", {}).items():
            require(not value.requires_grad, f"metric {name} keeps the graph alive")
            require(value.isfinite().all(), f"metric {name} is {value}")
            pictured = not name.startswith("over_time/") or (
                value.ndim == 2 and value.shape[1] == T
            )
            require(pictured, f"metric {name} is {tuple(value.shape)}, not rows of {T} positions")


def every_gradient(part: Part) -> None:
    for causal in (False, True):
        block = _block(part, causal).train()
        loss = block(torch.randn(4, T, D)).square().mean()
        costs = [m.penalty() for m in block.modules() if hasattr(m, "penalty")]
        sum((cost for cost in costs if cost is not None), loss).backward()
        dead = [name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()]
        who = (
            f"parameters {', '.join(dead)} get"
            if len(dead) > 1
            else f"parameter {''.join(dead)} gets"
        )
        require(not dead, f"{who} no gradient")
        for name, p in block.named_parameters():
            require(p.grad.isfinite().all(), f"the gradient of parameter {name} is not finite")


def its_copy_is_alike(part: Part) -> None:
    block, x = _block(part), torch.randn(B, T, D)
    block.train()(x)
    twin = copy.deepcopy(block)
    require(
        _near(twin.eval()(x), block.eval()(x)),
        "a copy of it, made after a training call, gives something else",
    )


def half_precision(part: Part) -> None:
    block, x = _block(part, noise=0.0), torch.randn(B, T, D)
    exact = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    _a_tenth(_off(y.float(), exact), "under autocast to bfloat16")
    y = block.bfloat16()(x.bfloat16())
    require(y.dtype == torch.bfloat16, f"turns torch.bfloat16 into {y.dtype}")
    _a_tenth(_off(y.float(), exact), "in bfloat16")


def compiles(part: Part) -> None:
    block, x, mask = (
        _block(part, noise=0.0),
        torch.randn(B, T, D),
        torch.ones(B, 1, 1, T, dtype=torch.bool),
    )
    torch.compiler.reset()  # all blocks share the code of their base, which compiles for a few of them only
    with _no_shape_hook():
        expected = block(x, mask=mask)
        y = torch.compile(block, backend="aot_eager", fullgraph=True)(x, mask=mask)
        y.sum().backward()
        require(_near(y, expected), "compiled, the output is another one")


def large_inputs(part: Part) -> None:
    block, x = _block(part, noise=0.0), (1000 * torch.randn(B, T, D)).requires_grad_()
    y = block(x)
    require(y.isfinite().all(), "inputs times 1000 give an output that is not finite")
    y.mean().backward()
    require(x.grad.isfinite().all(), "inputs times 1000 give a gradient that is not finite")


def bad_sizes(part: Part) -> None:
    try:
        build_for_test(part, d_model=15, n_heads=4, rotary=nn.Identity(), causal=False)
    except ValueError as error:
        require(
            "15" in str(error) and "4" in str(error),
            f"refuses d_model=15 n_heads=4 without naming both: {error}",
        )
    else:
        raise ContractError("accepts d_model=15, which n_heads=4 does not divide")


def in_place_of_torch(part: Part) -> None:
    block, x = _block(part), torch.randn(B, T, D)
    padding = torch.arange(T) >= torch.tensor([T, S])[:, None]
    for batch_first in (True, False):
        layer = nn.TransformerEncoderLayer(D, H, 2 * D, dropout=0.0, batch_first=batch_first).eval()
        layer.self_attn = as_torch_mha(block, batch_first)
        normed = layer.norm1(x + block(x, mask=~padding[:, None, None]))
        expected = layer.norm2(normed + layer.linear2(layer.linear1(normed).relu()))
        y = layer(x if batch_first else x.transpose(0, 1), src_key_padding_mask=padding)
        y = y if batch_first else y.transpose(0, 1)
        require(
            _near(y, expected), "inside torch's encoder layer, it does not give what it gives alone"
        )


def _keeps_the_future_out(
    block: nn.Module, x: Tensor, mask: Tensor | None, changes: Iterable[int]
) -> None:
    whole = _drawn(block, x, mask=mask)
    _finite(whole)
    for s in changes:
        other = _drawn(block, _changed(x, s), mask=mask)
        for t in range(s):
            require(
                _near(whole[:, t], other[:, t]),
                f"leaks the future{' in training' * block.training}: output at t={t} changes when x at t={s} does",
            )
        require(
            not _near(whole[:, s], other[:, s]), f"output at t={s} does not depend on x at t={s}"
        )


def _decodes(
    block: nn.Module, x: Tensor, memory: Tensor | None, mask: Tensor | None, chunk: int
) -> None:
    state: dict = {}
    steps = [
        block(x[:, t : t + chunk], memory, None if mask is None else mask[..., : t + chunk], state)
        for t in range(0, T, chunk)
    ]
    whole, decoded = block(x, memory, mask), torch.cat(steps, 1)
    for t in range(T):
        require(
            _near(decoded[:, t], whole[:, t]),
            f"decoding {chunk} at a time with a state{', padded' * (mask is not None)}"
            f"{', with a memory' * (memory is not None)} differs from the whole pass, "
            f"first at t={t}, by {_off(decoded[:, t], whole[:, t]):.2g} of the largest entry there",
        )


def _a_tenth(error: float, where: str) -> None:
    require(
        error <= 0.1,
        f"{where} the output is off by {error:.0%} of its largest entry, more than a tenth",
    )


def _block(part: Part, causal: bool = False, noise: float = 0.3) -> nn.Module:
    """A block in evaluation. The noise on its weights moves gates and policies, which start out all alike."""
    rotary = build("rotary", {"name": "rope"}, head_dim=D // H)
    block = build_for_test(part, d_model=D, n_heads=H, rotary=rotary, causal=causal).eval()
    with torch.no_grad():
        for p in block.parameters():
            p += noise * torch.randn_like(p)
    return block


def _changed(x: Tensor, t: int) -> Tensor:
    x = x.clone()
    x[:, t] += 3 * torch.randn(x.shape[-1])
    return x


def _drawn(block: nn.Module, *args: object, **kwargs: object) -> Tensor:
    """The output under one fixed stream of random numbers."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        return block(*args, **kwargs)


def _finite(y: Tensor) -> None:
    places = (~y.isfinite()).nonzero().tolist()
    which = (
        f", that of sample {places[0][0]} at t={places[0][1]}"
        if 0 < len(places) < y.numel()
        else ""
    )
    require(not places, f"an output is not finite{which}")


def _off(a: Tensor, b: Tensor) -> float:
    """The largest difference, in units of the largest entry of the second."""
    a, b = require_finite(a, b)
    return ((a - b).abs().max() / (1e-3 + b.abs().max())).item()


def _near(a: Tensor, b: Tensor) -> bool:
    return _off(a, b) <= 1e-4


@contextmanager
def _no_shape_hook() -> Iterator[None]:
    """Without jaxtyping's checks, which a compiler would have to trace."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


CONTRACT: tuple[Contract, ...] = (
    shape,
    one_position,
    other_length,
    mask_obeyed,
    fully_masked,
    causal,
    padding_independent,
    batch_independent,
    deterministic,
    watching_changes_nothing,
    every_gradient,
    its_copy_is_alike,
    half_precision,
    compiles,
    large_inputs,
    bad_sizes,
    in_place_of_torch,
)
