"""What every attention block promises."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jaxtyping
import torch
from torch import Tensor, nn

from famx.attention import as_torch_mha
from famx.registry import asked, build

Part = Callable[..., nn.Module]

B, T, S, D, H = 2, 7, 5, 24, 4


def shape(part: Part) -> None:
    block, x = _block(part), torch.randn(B, T, D)
    y = block(x)
    assert y.shape == x.shape, f"turns {tuple(x.shape)} into {tuple(y.shape)}"
    assert y.dtype == x.dtype, f"turns {x.dtype} into {y.dtype}"


def one_position(part: Part) -> None:
    for causal in (False, True):
        y = _block(part, causal)(torch.randn(B, 1, D))
        assert y.shape == (B, 1, D) and y.isfinite().all(), f"a sequence of one position gives {y}"


def other_length(part: Part) -> None:
    block, x, memory = _block(part), torch.randn(B, T, D), torch.randn(B, S, D)
    y = block(x, memory)
    assert y.shape == x.shape, f"{T} positions that attend to a memory of {S} become {tuple(y.shape)}"
    assert not _near(y, block(x, memory.flip(0))), "another memory changes nothing"


def mask_obeyed(part: Part) -> None:
    block, x, memory = _block(part), torch.randn(B, T, D), torch.randn(B, S, D)
    hidden = torch.ones(B, 1, 1, T, dtype=torch.bool)
    hidden[..., 2] = False
    seen = [t for t in range(T) if t != 2]
    apart = block(_changed(x, 2), mask=hidden)[:, seen]
    assert _near(block(x, mask=hidden)[:, seen], apart), "other outputs change with x at t=2, which the mask hides"
    whole, other = block(x, memory, hidden[..., :S]), block(x, _changed(memory, 2), hidden[..., :S])
    assert _near(whole, other), "the output changes with the memory at s=2, which the mask hides"
    pair = torch.ones(3, 3, dtype=torch.bool), torch.ones(T - 3, T - 3, dtype=torch.bool)
    packed = torch.block_diag(*pair).bool()[None, None]
    whole, other = block(x, mask=packed), block(_changed(x, 4), mask=packed)
    assert _near(whole[:, :3], other[:, :3]), "of two packed sequences, the first changes with x at t=4 of the second"
    assert not _near(block(x), block(x, mask=hidden)), "a mask changes nothing"


def fully_masked(part: Part) -> None:
    for causal in (False, True):
        block = _block(part, causal)
        mask = torch.ones(B, 1, 1, T, dtype=torch.bool)
        mask[0] = False
        y = block(torch.randn(B, T, D), mask=mask)
        assert y.isfinite().all(), "a sample whose mask hides everything is not finite"
        y.square().mean().backward()
        for name, p in block.named_parameters():
            assert p.grad is None or p.grad.isfinite().all(), f"a sample hidden whole makes the gradient of {name} nan"


def causal(part: Part) -> None:
    """No output depends on a later position, and a state makes step-by-step decoding equal to the whole pass."""
    block, x = _block(part, causal=True), torch.randn(B, T, D)
    padding = torch.ones(B, 1, 1, T, dtype=torch.bool)
    padding[1, ..., :2] = False
    with _no_shape_hook():
        for training in (False, True):
            for mask in (None, padding):
                _keeps_the_future_out(block.train(training), x, mask)
        block.eval()
        for chunk in (1, 3):
            _decodes(block, x, None, None, chunk)
            _decodes(block, x, None, padding, chunk)
            _decodes(block, x, torch.randn(B, S, D), None, chunk)


def padding_independent(part: Part) -> None:
    for causal in (False, True):
        block, x = _block(part, causal), torch.randn(B, T, D)
        mask = torch.arange(T)[None, None, None] < torch.tensor([T, S])[:, None, None, None]
        padded, alone = block(x, mask=mask)[1:, :S], block(x[1:, :S])
        assert _near(padded, alone), f"a sample of {S} positions changes when it is padded to {T}"


def batch_independent(part: Part) -> None:
    for causal in (False, True):
        block, x = _block(part, causal), torch.randn(4, T, D)
        together = block(x)
        for i in range(4):
            assert _near(together[i : i + 1], block(x[i : i + 1])), f"sample {i} depends on its batch-mates"


def deterministic(part: Part) -> None:
    block, x = _block(part), torch.randn(B, T, D)
    assert torch.equal(block(x), block(x)), "in evaluation, two calls on the same x differ"


def watching_changes_nothing(part: Part) -> None:
    block, x = _block(part), torch.randn(B, T, D)
    before = block(x)
    for module in block.modules():
        if hasattr(module, "observed"):
            module.observed = True
    assert torch.equal(before, block(x)), "the output changes while it is observed"
    for module in block.modules():
        for name, value in getattr(module, "metrics", {}).items():
            assert not value.requires_grad, f"metric {name} keeps the graph alive"
            assert value.isfinite().all(), f"metric {name} is {value}"
            pictured = not name.startswith("over_time/") or (value.ndim == 2 and value.shape[1] == T)
            assert pictured, f"metric {name} is {tuple(value.shape)}, not rows of {T} positions"


def every_gradient(part: Part) -> None:
    for causal in (False, True):
        block = _block(part, causal).train()
        loss = block(torch.randn(4, T, D)).square().mean()
        costs = [m.penalty() for m in block.modules() if hasattr(m, "penalty")]
        sum((cost for cost in costs if cost is not None), loss).backward()
        for name, p in block.named_parameters():
            assert p.grad is not None and p.grad.any(), f"parameter {name} gets no gradient"
            assert p.grad.isfinite().all(), f"the gradient of parameter {name} is not finite"


def half_precision(part: Part) -> None:
    block, x = _block(part, noise=0.0), torch.randn(B, T, D)
    exact = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert _near(y.float(), exact, 0.1), "under autocast to bfloat16 the output is off by more than a tenth"
    y = block.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16, f"turns torch.bfloat16 into {y.dtype}"
    assert _near(y.float(), exact, 0.1), "in bfloat16 the output is off by more than a tenth"


def compiles(part: Part) -> None:
    block, x, mask = _block(part, noise=0.0), torch.randn(B, T, D), torch.ones(B, 1, 1, T, dtype=torch.bool)
    torch.compiler.reset()  # all blocks share the code of their base, which compiles for a few of them only
    with _no_shape_hook():
        y = torch.compile(block, backend="aot_eager", fullgraph=True)(x, mask=mask)
        y.sum().backward()
        assert _near(y, block(x, mask=mask)), "compiled, the output is another one"


def large_inputs(part: Part) -> None:
    block, x = _block(part, noise=0.0), (1000 * torch.randn(B, T, D)).requires_grad_()
    y = block(x)
    assert y.isfinite().all(), "inputs times 1000 give an output that is not finite"
    y.mean().backward()
    assert x.grad.isfinite().all(), "inputs times 1000 give a gradient that is not finite"


def bad_sizes(part: Part) -> None:
    try:
        part(**asked(part, dict(d_model=15, n_heads=4, rotary=nn.Identity(), causal=False)))
    except ValueError as error:
        assert "15" in str(error) and "4" in str(error), f"refuses d_model=15 n_heads=4 without naming both: {error}"
    else:
        raise AssertionError("accepts d_model=15, which n_heads=4 does not divide")


def in_place_of_torch(part: Part) -> None:
    block, x = _block(part), torch.randn(B, T, D)
    layer = nn.TransformerEncoderLayer(D, H, 2 * D, dropout=0.0, batch_first=True).eval()
    layer.self_attn = as_torch_mha(block)
    padding = torch.arange(T) >= torch.tensor([T, S])[:, None]
    normed = layer.norm1(x + block(x, mask=~padding[:, None, None]))
    expected = layer.norm2(normed + layer.linear2(layer.linear1(normed).relu()))
    y = layer(x, src_key_padding_mask=padding)
    assert _near(y, expected), "inside torch's encoder layer, it does not give what it gives alone"


def _keeps_the_future_out(block: nn.Module, x: Tensor, mask: Tensor | None) -> None:
    whole = _drawn(block, x, mask=mask)
    for s in range(1, T):
        other = _drawn(block, _changed(x, s), mask=mask)
        for t in range(s):
            assert _near(whole[:, t], other[:, t]), (
                f"leaks the future{' in training' * block.training}: output at t={t} changes when x at t={s} does"
            )
        assert not _near(whole[:, s], other[:, s]), f"output at t={s} does not depend on x at t={s}"


def _decodes(block: nn.Module, x: Tensor, memory: Tensor | None, mask: Tensor | None, chunk: int) -> None:
    state: dict = {}
    steps = [
        block(x[:, t : t + chunk], memory, None if mask is None else mask[..., : t + chunk], state)
        for t in range(0, T, chunk)
    ]
    assert _near(torch.cat(steps, 1), block(x, memory, mask)), (
        f"decoding {chunk} at a time with a state is not what the whole pass gives"
        f"{' (padded)' * (mask is not None)}{' (with a memory)' * (memory is not None)}"
    )


def _block(part: Part, causal: bool = False, noise: float = 0.3) -> nn.Module:
    """A block in evaluation. The noise on its weights moves gates and policies, which start out all alike."""
    rotary = build("rotary", {"name": "rope"}, head_dim=D // H)
    block = part(**asked(part, dict(d_model=D, n_heads=H, rotary=rotary, causal=causal))).eval()
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


def _near(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((a - b).abs().max() <= tolerance * (1e-3 + b.abs().max()))


@contextmanager
def _no_shape_hook() -> Iterator[None]:
    """Without jaxtyping's checks, which a compiler would have to trace."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
