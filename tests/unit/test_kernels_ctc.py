"""The CTC kernel equals torch's loss in double precision, also in rows without an alignment."""

import pytest
import torch
from torch.nn.functional import ctc_loss
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from famx import kernels
from famx.data._tokenizers import train_tokenizer
from famx.model import Model
from famx.nn.batch import Batch
from famx.notation import Modality
from famx.registry import build

kernel = pytest.importorskip("famx.kernels.ctc", reason="needs Triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_batch(b, t, v, u, repeats=False):
    """Scores, targets and both lengths; the first row has no padding, and each length occurs."""
    scores = torch.randn(b, t, v) * 3
    targets = torch.randint(1, 3 if repeats else v, (b, u))
    lengths = torch.randint(0, t + 1, (b,))
    lengths[0] = t
    target_lengths = torch.randint(0, u + 1, (b,))
    target_lengths[0] = u
    return scores.to(DEVICE), targets.to(DEVICE), lengths.to(DEVICE), target_lengths.to(DEVICE)


def loss_and_gradient(scores, *batch):
    scores = scores.clone().requires_grad_()
    loss = kernel.ctc_loss(scores.log_softmax(-1), *batch)
    # the gradient of the loss times a factor, as that of a mean
    return loss.detach(), torch.autograd.grad(0.7 * loss, scores)[0]


def reference(scores, *batch):
    scores = scores.cpu().double().requires_grad_()
    log_probs = scores.log_softmax(-1).transpose(0, 1)
    batch = [tensor.cpu() for tensor in batch]
    loss = ctc_loss(log_probs, *batch, reduction="sum", zero_infinity=True)
    return loss.detach(), torch.autograd.grad(0.7 * loss, scores)[0]


def assert_equals_reference(*batch):
    values = [value.cpu().double() for value in loss_and_gradient(*batch)]
    assert_close(values, list(reference(*batch)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize(
    ("b", "t", "v", "u"),
    [
        (4, 7, 5, 3),
        (2, 1, 4, 1),
        (3, 5, 3, 4),
        (2, 24, 6, 18),  # more labels than one step of the gradient reads
        (1, 3, 140, 2),  # more tokens than one program of the gradient writes
        (1, 36, 4, 33),  # more states than threads of a warp
    ],
)
def test_loss_and_gradient_equal_those_of_torch(b, t, v, u, repeats):
    assert_equals_reference(*random_batch(b, t, v, u, repeats))


# columns: frames, target; the last three have no alignment
ROWS = [
    (4, [1, 2]),
    (4, [1, 1, 2]),
    (3, [1, 1]),
    (3, []),
    (1, []),
    (1, [2]),
    (0, []),
    (0, [1]),
    (2, [1, 1]),
    (2, [1, 2, 1]),
]


@pytest.mark.parametrize(("n_frames", "target"), ROWS)
def test_a_row_equals_torch(n_frames, target):
    scores = torch.randn(1, 4, 3, device=DEVICE)
    # padding of the targets repeats the last token, which must not be read
    targets = torch.tensor([target + [1] * (3 - len(target))], device=DEVICE)
    lengths = torch.tensor([n_frames], device=DEVICE)
    assert_equals_reference(scores, targets, lengths, torch.tensor([len(target)], device=DEVICE))


def test_rows_without_an_alignment_change_nothing():
    scores = torch.randn(len(ROWS), 4, 3, device=DEVICE)
    targets = torch.tensor([target + [1] * (3 - len(target)) for _, target in ROWS], device=DEVICE)
    lengths = torch.tensor([n_frames for n_frames, _ in ROWS], device=DEVICE)
    target_lengths = torch.tensor([len(target) for _, target in ROWS], device=DEVICE)
    loss, gradient = loss_and_gradient(scores, targets, lengths, target_lengths)
    assert_equals_reference(scores, targets, lengths, target_lengths)
    assert not gradient[-3:].any()
    possible = slice(0, -3)
    part = scores[possible], targets[possible], lengths[possible], target_lengths[possible]
    assert torch.equal(loss_and_gradient(*part)[0], loss)


def test_targets_of_width_0():
    scores, targets, lengths, target_lengths = random_batch(2, 3, 4, 0)
    assert_equals_reference(scores, targets, lengths, target_lengths)


def test_padding_and_other_rows_change_no_bit():
    scores, targets, lengths, target_lengths = random_batch(3, 9, 5, 17)
    lengths[1] = 6
    target_lengths[1] = 4
    _, gradient = loss_and_gradient(scores, targets, lengths, target_lengths)
    alone = scores[1:2, :6], targets[1:2, :4], lengths[1:2], target_lengths[1:2]
    loss_alone, gradient_alone = loss_and_gradient(*alone)
    assert torch.equal(gradient[1:2, :6], gradient_alone)
    assert not gradient[1, 6:].any()
    # the loss of the row, whose neighbours have no alignment
    lengths[0] = 0
    lengths[2] = 0
    target_lengths[2] = 1
    assert torch.equal(loss_and_gradient(scores, targets, lengths, target_lengths)[0], loss_alone)


def test_long_rows_are_more_exact_than_in_fp32():
    scores, targets, lengths, target_lengths = random_batch(1, 100, 8, 30)
    batch = scores, targets, lengths, target_lengths
    gradient = loss_and_gradient(*batch)[1].cpu().double()
    assert (gradient - reference(*batch)[1]).abs().max() < 1e-5


def test_inputs_that_are_not_contiguous():
    scores = torch.randn(2, 4, 5, device=DEVICE)
    targets = torch.tensor([[1, 2], [3, 4]], device=DEVICE)
    lengths = torch.tensor([3, 4], device=DEVICE)
    target_lengths = torch.tensor([2, 2], device=DEVICE)
    expected = loss_and_gradient(scores, targets, lengths, target_lengths)
    # the same values with gaps between rows, and lengths of 32 bits
    strided = scores.transpose(0, 1).contiguous().transpose(0, 1)
    padded = torch.cat((targets, torch.zeros_like(targets)), 1)[:, :2]
    every_second = torch.stack((lengths, torch.zeros_like(lengths)), 1).int()[:, 0]
    values = loss_and_gradient(strided, padded, every_second, target_lengths.int())
    assert_close(values, expected, rtol=0, atol=0)


def test_a_token_of_probability_0():
    scores, targets, lengths, target_lengths = random_batch(2, 6, 5, 2)
    scores[:, 2, 3] = -torch.inf
    scores[:, 4, 0] = -torch.inf
    values = loss_and_gradient(scores, targets, lengths, target_lengths)
    # torch's own gradient is NaN there, so its scores are low, but finite
    expected = reference(scores.clamp(min=-1e3), targets, lengths, target_lengths)
    assert_close([value.cpu().double() for value in values], list(expected), rtol=1e-5, atol=1e-6)


def test_a_nan_is_not_hidden():
    scores, targets, lengths, target_lengths = random_batch(2, 4, 5, 2)
    for frame in (0, 3):
        broken = scores.clone()
        broken[0, frame, 1] = torch.nan
        loss, gradient = loss_and_gradient(broken, targets, lengths, target_lengths)
        assert loss.isnan()
        assert gradient[0].isnan().any()
        assert gradient[1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4)])
def test_empty_batches(shape):
    scores = torch.zeros(shape, device=DEVICE)
    targets = torch.ones(shape[0], 1, dtype=torch.long, device=DEVICE)
    zeros = torch.zeros(shape[0], dtype=torch.long, device=DEVICE)
    loss, gradient = loss_and_gradient(scores, targets, zeros, zeros)
    assert loss == 0
    assert gradient.shape == shape


class FixedScores(torch.nn.Module):
    """Gives the same scores and lengths whatever it reads."""

    def __init__(self, scores, lengths):
        super().__init__()
        self.scores = scores
        self.lengths = lengths

    def forward(self, *inputs):
        return self.scores, self.lengths


def speech_batch(targets, lengths, target_lengths):
    b = len(targets)
    return Batch(
        ids=[""] * b,
        texts=[""] * b,
        inputs=torch.zeros(b, 4),
        lengths=lengths,
        targets=targets,
        target_lengths=target_lengths,
        spans=None,
        modality=Modality.SPEECH,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_task_computes_the_same_loss_with_the_kernel(monkeypatch, dtype):
    task = build("task", {"name": "ctc"}, tokenizer=train_tokenizer(["ab"], ["<blank>"]))
    scores, targets, lengths, target_lengths = random_batch(3, 6, 3, 2)
    batch = speech_batch(targets, lengths, target_lengths)
    results = {}
    for is_available in (False, True):
        monkeypatch.setattr(kernels, "available", lambda device, value=is_available: value)
        leaf = scores.to(dtype).requires_grad_()
        loss = task.loss(FixedScores(leaf, lengths), batch)
        results[is_available] = loss.detach(), torch.autograd.grad(loss, leaf)[0]
    assert results[True][1].dtype == dtype
    # the gradients of bf16 scores are rounded to it
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert_close(results[True], results[False], rtol=tolerance, atol=tolerance / 10)


class NoHostReads(TorchDispatchMode):
    """Refuses operators that would wait for a device, or whose shapes depend on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name() not in ("aten::_local_scalar_dense", "aten::nonzero"), func
        return func(*args, **(kwargs or {}))


class Linear(torch.nn.Linear):
    """A layer without attention."""

    def forward(self, x, mask=None, state=None):
        return super().forward(x)


@pytest.mark.parametrize(
    ("normalize", "options"),
    [
        ("utterance", {}),
        ("global", {}),
        ("utterance", {"consistency": 0.2, "intermediate_layer": 1}),
    ],
)
def test_a_training_step_reads_nothing_on_the_host(monkeypatch, normalize, options):
    monkeypatch.setattr(kernels, "available", lambda device: True)
    tokenizer = train_tokenizer(["ab"], ["<blank>"])
    task = build("task", {"name": "ctc", **options}, tokenizer=tokenizer)
    settings = {"name": "log_mel", "n_mels": 8, "channels": 4, "context": 3}
    frontend = build("frontend", settings | {"normalize": normalize}, d_model=8)
    layers = [Linear(8, 8), Linear(8, 8)]
    model = Model(frontend, layers, torch.nn.LayerNorm(8), d_model=8, vocab_size=3).to(DEVICE)
    batch = Batch(
        ids=["0", "1"],
        texts=["", ""],
        inputs=torch.randn(2, 3200),
        lengths=torch.tensor([3200, 1600]),
        targets=torch.tensor([[1, 2], [1, 0]]),
        target_lengths=torch.tensor([2, 1]),
        spans=torch.rand(2, 2, 4),
        modality=Modality.SPEECH,
        other_spans=torch.rand(2, 2, 4),
    ).to(DEVICE)
    with NoHostReads():
        loss = task.loss(model, batch)
        loss.backward()
        with pytest.raises(AssertionError):
            task.count(batch)
    assert loss > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
# a leaf belongs to the stream on which it was first used
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream:UserWarning")
def test_a_cuda_graph_reads_lengths_and_targets_anew():
    task = build("task", {"name": "ctc"}, tokenizer=train_tokenizer(["ab"], ["<blank>"]))
    static = random_batch(4, 30, 40, 9)
    leaf = static[0].requires_grad_()
    # the counts of a batch are read on the host when it is built
    batch = speech_batch(*[tensor.cpu() for tensor in static[1:]]).to(DEVICE)
    model = FixedScores(leaf, batch.lengths)

    def step():
        loss = task.loss(model, batch)
        return loss, torch.autograd.grad(loss, leaf)[0]

    # kernels are compiled before the capture, on a stream of its own
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    # another batch of the same shapes
    scores, targets, lengths, target_lengths = random_batch(4, 30, 40, 9, repeats=True)
    with torch.no_grad():
        leaf.copy_(scores)
    batch.targets.copy_(targets)
    batch.lengths.copy_(lengths)
    batch.target_lengths.copy_(target_lengths)
    graph.replay()
    replayed = [value.clone() for value in captured]
    assert_close(replayed, list(step()), rtol=0, atol=0)
    loss, gradient = reference(scores, targets, lengths, target_lengths)
    count = target_lengths.sum().item()
    expected = [loss / count, gradient / 0.7 / count]
    assert_close([value.cpu().double() for value in replayed], expected, rtol=1e-5, atol=1e-6)
