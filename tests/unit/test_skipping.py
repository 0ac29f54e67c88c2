"""In evaluation, parts with gates compute only what the gates leave, and give the same output."""

import copy
from functools import partial

import pytest
import torch
from attention_blocks import add_noise, build_block
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from famx.attention import myelinated
from famx.contracts.attention import D
from famx.nn.gating import select_open
from famx.nn.pooling import prefix_sum, running_mean
from famx.nn.state import DecodeState
from famx.registry import build

T = 9
BLOCKS = ("myelinated", "worm", "gated_pass", "content_update", "integrated")
PARTS = (*BLOCKS, "skip", "skip with connected blocks")


def build_part(name, causal):
    """Builds a part in evaluation, with noise on its weights and some of its gates open.

    It has double precision, since gates must not differ by rounding.
    """
    if name in BLOCKS:
        part = build_block(name, causal, **THRESHOLDS.get(name, {}))
    else:
        inner = "multihead" if name == "skip" else "content_update"
        part = build(
            "layer",
            {"name": "skip"},
            d_model=D,
            causal=causal,
            attention=partial(build_block, inner, causal),
            feedforward=partial(build, "feedforward", {"name": "gelu"}, d_model=D),
            norm=partial(build, "norm", {"name": "layernorm"}, d_model=D),
        )
    add_noise(part, 0.5)
    for gate in gates(part):
        nn.init.zeros_(gate.bias)
    return part.double().eval()


THRESHOLDS = {"myelinated": {"threshold": 0.5, "n_layers": 4}, "worm": {"threshold": 0.5}}


def gates(part):
    """Yields the linear maps whose bias opens and closes all gates of a part."""
    for name, module in part.named_modules():
        if name.endswith(("importance", "evidence", "gate.2", "predictor.2")):
            yield module


def set_gates(part, value):
    with torch.no_grad():
        for gate in gates(part):
            gate.weight.zero_()
            gate.bias.fill_(value)


def masks(b):
    """Returns None, padding, and packed sequences."""
    padding = torch.ones(b, 1, 1, T, dtype=torch.bool)
    padding[1, ..., 6:] = False
    packed = torch.block_diag(torch.ones(4, 4), torch.ones(5, 5)).bool()[None, None]
    return None, padding, packed, padding & packed


def full_pass():
    return DecodeState(incremental=False)


def example(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def run(layers, x, memory=None, mask=None, state=None):
    for layer in layers:
        x = x + layer(x, memory, mask, state)
    return x


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_output_equals_that_of_the_dense_form(name, causal):
    layers = [build_part(name, causal) for _ in range(2)]
    x = example(5, T, D)
    for mask in masks(5):
        # with gradients, all is computed and multiplied by the gates
        expected = run(layers, x, None, mask, full_pass())
        with torch.no_grad():
            assert_close(run(layers, x, None, mask, full_pass()), expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_output_with_a_memory_equals_that_of_the_dense_form(name, causal):
    layers = [build_part(name, causal) for _ in range(2)]
    x = example(5, T, D)
    memory = example(5, 6, D)
    padding = torch.arange(6) < torch.tensor([6, 3, 4, 6, 1])[:, None, None, None]
    for mask in (None, padding):
        expected = run(layers, x, memory, mask, full_pass())
        with torch.no_grad():
            y = run(layers, x, memory, mask, full_pass())
        assert_close(y, expected)


@pytest.mark.parametrize("logit", [-9.0, 0.0, 9.0])
@pytest.mark.parametrize("name", PARTS)
def test_decoding_equals_a_full_pass(name, logit):
    layers = [build_part(name, causal=True) for _ in range(2)]
    if logit:
        for layer in layers:
            set_gates(layer, logit)
    x = example(2, T, D)
    memory = example(2, 6, D)
    for source in (None, memory):
        expected = run(layers, x, source, None, full_pass())
        for chunk in (1, 2):
            state = DecodeState()
            with torch.no_grad():
                chunks = [run(layers, part, source, None, state) for part in x.split(chunk, 1)]
            assert_close(torch.cat(chunks, 1), expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", [name for name in PARTS if name != "integrated"])
def test_closed_gates_save_products(name, causal):
    part = build_part(name, causal)
    x = example(2, T, D)
    counts = []
    for logit in (9.0, -9.0):
        set_gates(part, logit)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            part(x)
        counts.append(counter.get_total_flops())
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            part(x)
        counts.append(counter.get_total_flops())
    skipping_open, dense_open, skipping_closed, dense_closed = counts
    assert skipping_open <= dense_open == dense_closed
    # the local half of worm has no gates
    assert skipping_closed < (0.95 if name == "worm" else 0.9) * skipping_open


@pytest.mark.parametrize("name", ["gated_pass", "skip"])
def test_nothing_is_computed_behind_closed_gates(name, monkeypatch):
    part = build_part(name, causal=False)
    set_gates(part, -9.0)

    def fail(*_):
        raise AssertionError("attention is computed")

    inner = part if name == "gated_pass" else part.attention
    monkeypatch.setattr(inner, "project", fail)
    x = example(2, T, D)
    with torch.no_grad():
        assert_close(part(x), x if name == "skip" else torch.zeros_like(x))


def test_positions_that_no_layer_has_changed_are_pooled_once(monkeypatch):
    part = build_part("myelinated", causal=True)
    set_gates(part, -9.0)
    pools = []

    def count(*arguments):
        pools.append(arguments)
        return running_mean(*arguments)

    monkeypatch.setattr(myelinated, "running_mean", count)
    with torch.no_grad():
        part(example(2, T, D))
    # the start and layer 0 see the same positions; of four layers, the last one has no pool
    assert len(pools) == 3


@pytest.mark.parametrize("name", ["myelinated", "worm", "adaptive_span"])
def test_evaluation_runs_in_mixed_precision(name):
    block = build_block(name, causal=True).eval()
    x = torch.randn(2, T, D)
    with torch.no_grad():
        expected = block(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(block(x).float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("positions", [1, 5, 16, 33, 150])
def test_sums_in_parts_equal_a_cumulative_sum(positions):
    x = example(2, positions, 2**16 // positions)
    assert_close(prefix_sum(x, torch.float64), x.cumsum(1))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [-9.0, 0.0, 9.0])
def test_adaptive_span_equals_its_dense_form(bias, causal):
    block = build_block("adaptive_span", causal, max_span=20, ramp=4).double().eval()
    add_noise(block, 0.3)
    nn.init.constant_(block.span.bias, bias)
    x = example(3, T, D)
    for mask in masks(3):
        expected = block(x, mask=mask)
        with torch.no_grad():
            assert_close(block(x, mask=mask), expected, rtol=1e-5, atol=1e-5)


def test_adaptive_span_runs_on_inputs_that_are_not_finite():
    with torch.no_grad():
        y = build_block("adaptive_span").eval()(torch.full((1, T, D), torch.nan))
    assert y.isnan().all()


def test_metrics_are_those_of_the_dense_form():
    for name in ("myelinated", "gated_pass", "content_update"):
        part = build_part(name, causal=True)
        part.observed = True
        x = example(4, T, D)
        part(x)
        expected = copy.deepcopy(part.metrics)
        with torch.no_grad():
            part(x)
        assert_close(part.metrics, expected)


def test_selection_takes_the_open_positions_in_order():
    gates = torch.zeros(4, 8, dtype=torch.bool)
    gates[1, 2] = True
    gates[3, [1, 5, 6]] = True
    selection = select_open(gates)
    assert selection.rows.tolist() == [1, 3]
    assert selection.positions[0, 0] == 2
    assert selection.positions[1].tolist() == [1, 5, 6]
    assert select_open(~gates[:3]) is None
    assert select_open(torch.zeros(3, 5, dtype=torch.bool)).is_empty
