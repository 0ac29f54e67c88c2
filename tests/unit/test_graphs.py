"""Replayed passes equal passes without graphs; a part that a replay would get wrong is named."""

import contextlib
import copy
import random

import jaxtyping
import pytest
import torch
from hydra import compose, initialize_config_dir
from recorded_graph import RecordedGraph
from torch import nn

from famx.config.schema import CONF, register_schemas, to_plain
from famx.config.versions import VERSION_BASE
from famx.data._tokenizers import train_tokenizer
from famx.experiment.resolve import resolve
from famx.model import build_model
from famx.nn.batch import Batch
from famx.nn.hooks import HasPenalty
from famx.notation import Modality
from famx.registry import build, names
from famx.training.graphs import GraphedPasses
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)

WIDTH = 6
TINY = ("model.d_model=16", "model.n_heads=2", "model.n_layers=2", "frontend.channels=4")
GRAPHS_ON = {"is_enabled": True, "accumulates": False}


class Part(nn.Module):
    """Dropout, a buffer that changes in place, metrics, and a sum for a learning rule."""

    observed = False

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.unused = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.dropout = nn.Dropout(0.5)
        self.metrics = {}
        self.total = None

    def forward(self, x):
        x = self.norm(self.dropout(self.linear(x)))
        if self.observed:
            self.metrics = {"mean": x.detach().mean()}
        self.total = x.detach().sum() + (0 if self.total is None else self.total)
        return x


class Counting(Part):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x) * self.calls


class RandomOnTheHost(Part):
    def forward(self, x):
        return super().forward(x) * random.random()


class ReplacesItsBuffer(Part):
    def forward(self, x):
        self.norm.running_mean = self.norm.running_mean * 0.5
        return super().forward(x)


class Remembers(Part):
    def forward(self, x):
        x = super().forward(x + getattr(self, "memory", 0.0))
        self.memory = x.detach().mean()
        return x


def batches(count=9):
    """Batches of two shapes."""
    result = []
    for i in range(count):
        rows = 4 + i % 2
        result.append(
            Batch(
                ids=[str(i)] * rows,
                texts=["text"] * rows,
                inputs=torch.randn(rows, WIDTH),
                lengths=torch.full((rows,), WIDTH),
                targets=torch.zeros(rows, 0, dtype=torch.long),
                target_lengths=torch.zeros(rows, dtype=torch.long),
                spans=None,
                modality=Modality.SPEECH,
            )
        )
    return result


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Captures passes by recording them. As in a real capture, nothing changes."""

    @contextlib.contextmanager
    def capture(graph, **options):
        with graph:
            yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(
        GraphedPasses,
        "_capture",
        lambda self, batch, original=GraphedPasses._capture: without_effects(
            self.model, lambda: original(self, batch)
        ),
    )


def without_effects(model, function):
    buffers = copy.deepcopy(dict(model.named_buffers()))
    random_state = torch.get_rng_state()
    result = function()
    torch.set_rng_state(random_state)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return result


def run(model, rows, accumulate=1, objective=None, **options):
    """Trains on the batches; returns the losses, gradients, metrics and buffers of each step."""

    def mean_square(batch):
        loss = model(batch.inputs).square().mean()
        return loss, loss * 2

    passes = GraphedPasses(
        objective or mean_square, model, list(model.parameters()), **GRAPHS_ON | options
    )
    results = []
    for i, batch in enumerate(rows):
        torch.manual_seed(i)
        model.observed = i % 3 == 2
        loss = passes(batch, 0.5).clone()
        if (i + 1) % accumulate:
            continue
        gradients = {name: copy.deepcopy(p.grad) for name, p in model.named_parameters()}
        state = {name: buffer.clone() for name, buffer in model.named_buffers()}
        observed = copy.deepcopy(model.metrics)
        total = getattr(model, "total", None)
        results.append((loss, gradients, state, observed, copy.deepcopy(total)))
        model.total = None
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad
        model.zero_grad(set_to_none=True)
    return results, passes


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_replayed_passes_equal_passes(accumulate):
    model = Part()
    expected, _ = run(copy.deepcopy(model), batches_of(0), accumulate, is_enabled=False)
    results, passes = run(model, batches_of(0), accumulate, accumulates=accumulate > 1)
    # a sum over the passes of a step cannot be replayed
    assert passes.is_enabled == (accumulate == 1)
    for result, expected_result in zip(results, expected, strict=True):
        torch.testing.assert_close(result, expected_result)


def batches_of(seed, count=18):
    torch.manual_seed(seed)
    return batches(count)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_gradients_of_several_batches_are_summed():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5))
    model.metrics = {}
    rows = batches_of(0)
    expected, _ = run(copy.deepcopy(model), rows, accumulate=3, is_enabled=False)
    results, passes = run(model, rows, accumulate=3, accumulates=True)
    assert passes.is_enabled and all(passes.graphs.values())
    for result, expected_result in zip(results, expected, strict=True):
        torch.testing.assert_close(result[:2], expected_result[:2])


@pytest.mark.usefixtures("as_on_a_gpu")
def test_each_shape_is_captured_once():
    _, passes = run(Part(), batches_of(0))
    captured = [graph for graph in passes.graphs.values() if graph]
    # two shapes, each with metrics and without
    assert passes.is_enabled and len(captured) == 4


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Counting, "sets its attribute calls in every pass"),
        (RandomOnTheHost, "draws random numbers on the host"),
        (ReplacesItsBuffer, "the buffer norm.running_mean is replaced in every pass"),
        (Remembers, "keeps its attribute memory from one pass to the next"),
    ],
)
def test_a_part_that_cannot_be_replayed_is_named_once(part, reason, caplog):
    model = part()
    expected, _ = run(copy.deepcopy(model), batches_of(0), is_enabled=False)
    random.seed(0)
    results, passes = run(model, batches_of(0))
    assert not passes.is_enabled
    assert [reason in message for message in caplog.messages] == [True]
    if part is not RandomOnTheHost:
        for result, expected_result in zip(results, expected, strict=True):
            torch.testing.assert_close(result, expected_result)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_loss_that_reads_texts_runs_without_graphs(caplog):
    model = Part()

    def length_of_texts(batch):
        loss = model(batch.inputs).square().mean() * sum(len(text) for text in batch.texts)
        return loss, loss

    _, passes = run(model, batches_of(0), objective=length_of_texts)
    assert not passes.is_enabled
    assert "reads the names or texts of a batch" in caplog.text


def recordings_of(rows, samples):
    """A batch of noise with random texts of the letters a and b."""
    lengths = torch.randint(samples // 2, samples, (rows,))
    lengths[0] = samples
    # the memory of torch's CTC loss depends on the longest target
    target_lengths = torch.randint(1, 5, (rows,))
    target_lengths[0] = 4
    return Batch(
        ids=[str(i) for i in range(rows)],
        texts=[""] * rows,
        inputs=torch.randn(rows, samples),
        lengths=lengths,
        targets=torch.randint(1, 3, (rows, 4)),
        target_lengths=target_lengths,
        spans=torch.rand(rows, 2, 4) / 4,
        modality=Modality.SPEECH,
        other_spans=torch.rand(rows, 2, 4) / 4,
    )


FURTHER_LOSSES = {"consistency": 0.2, "intermediate_layer": 1}


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("attention", "options"),
    [(name, {}) for name in names("attention")]
    # of one view and one layer, then of two; the layers of worm exchange messages
    + [("multihead", FURTHER_LOSSES), ("worm", FURTHER_LOSSES)],
)
def test_replayed_passes_of_each_block_equal_passes(attention, options, monkeypatch):
    # type checks draw random numbers on the host in every call
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    words = (f"attention={attention}", "layer.dropout=0.1", "frontend=log_mel", *TINY)
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        config = resolve(to_plain(compose("train", list(words))))
    tokenizer = train_tokenizer(["ab"], ["<blank>"])
    task = build("task", {"name": "ctc", **options}, tokenizer=tokenizer)
    model = build_model(config, 3)
    model.metrics = {}
    rows = [recordings_of(2 + i % 2, 6400) for i in range(12)]

    def objective_of(net):
        def objective(batch):
            loss = task.loss(net, batch)
            penalties = [part.penalty() for part in net.modules() if isinstance(part, HasPenalty)]
            return loss, sum((p for p in penalties if p is not None), loss)

        return objective

    plain = copy.deepcopy(model)
    expected, _ = run(plain, rows, objective=objective_of(plain), is_enabled=False)
    results, passes = run(model, rows, objective=objective_of(model))
    assert passes.is_enabled and any(passes.graphs.values())
    for result, expected_result in zip(results, expected, strict=True):
        torch.testing.assert_close(
            result[:3], expected_result[:3], rtol=1e-4, atol=1e-5, equal_nan=True
        )
