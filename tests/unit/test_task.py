"""Losses and error rates equal values computed by hand."""

from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from famx.data._tokenizers import byte_tokenizer, train_tokenizer
from famx.frontend.tokens import Tokens
from famx.model import Model
from famx.nn.batch import Batch
from famx.notation import Modality, UserError
from famx.registry import build, get
from famx.task._wer import error_rate

BLANK = "<blank>"


class FixedScores(torch.nn.Module):
    """Gives the same scores and lengths whatever it reads."""

    def __init__(self, scores, lengths):
        super().__init__()
        self.scores = scores
        self.lengths = torch.tensor(lengths)

    def forward(self, *inputs):
        return self.scores, self.lengths


def speech_batch(frames, targets):
    """A batch of speech whose inputs do not matter, with so many frames and target ids."""
    targets = torch.tensor(targets)
    return Batch(
        ids=[str(i) for i in range(len(targets))],
        texts=[""] * len(targets),
        inputs=torch.zeros(len(targets), frames),
        lengths=torch.full((len(targets),), frames),
        targets=targets,
        target_lengths=torch.full((len(targets),), targets.shape[1]),
        spans=None,
        modality=Modality.SPEECH,
    )


def test_error_rates_equal_those_counted_by_hand():
    references = ["the cat sat down", "a b"]
    hypotheses = ["the hat sat", "a x b"]
    words = error_rate(references, hypotheses, "word")
    chars = error_rate(references, hypotheses, "char")
    assert (words.substitutions, words.deletions, words.insertions, words.units) == (1, 1, 1, 6)
    assert words.rate == 3 / 6 and words.low <= words.rate <= words.high
    assert (chars.substitutions, chars.deletions, chars.insertions, chars.units) == (1, 5, 2, 19)
    assert error_rate(["a"], ["b c d"], "word").rate == 3


def test_ctc_loss_sums_over_all_alignments():
    task = build("task", {"name": "ctc"}, tokenizer=train_tokenizer(["ab"], [BLANK]))
    log_probs = torch.randn(1, 3, 3).log_softmax(-1)
    probs = log_probs[0].exp()
    # every path of three frames that collapses to "a", the token 1
    total = torch.zeros(())
    for path in product(range(3), repeat=3):
        collapsed = [
            token for i, token in enumerate(path) if token and (i == 0 or token != path[i - 1])
        ]
        if collapsed == [1]:
            total = total + probs[0, path[0]] * probs[1, path[1]] * probs[2, path[2]]
    loss = task.loss(FixedScores(log_probs, [3]), speech_batch(3, [[1]]))
    torch.testing.assert_close(loss, -total.log())


@pytest.mark.parametrize(
    ("text", "n_frames", "is_learnable"), [("ab", 2, True), ("aa", 2, False), ("aa", 3, True)]
)
def test_ctc_rejects_texts_that_need_more_frames(text, n_frames, is_learnable):
    task = build("task", {"name": "ctc"}, tokenizer=train_tokenizer(["ab"], [BLANK]))
    reason = task.reject(n_frames, text)
    assert (reason is None) == is_learnable
    if not is_learnable:
        assert f"has {n_frames} frames" in reason and "needs 3" in reason


def test_language_model_loss_is_the_mean_over_real_positions():
    task = build("task", {"name": "lm"}, tokenizer=byte_tokenizer())
    batch = Batch(
        ids=["0", "1"],
        texts=[],
        inputs=torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]),
        lengths=torch.tensor([4, 2]),
        targets=torch.zeros(2, 0, dtype=torch.long),
        target_lengths=torch.zeros(2, dtype=torch.long),
        spans=None,
        modality=Modality.TEXT,
    )
    scores = torch.randn(2, 3, 256)
    log_probs = scores.log_softmax(-1)
    by_hand = [log_probs[0, 0, 2], log_probs[0, 1, 3], log_probs[0, 2, 4], log_probs[1, 0, 6]]
    loss = task.loss(FixedScores(scores, [3, 1]), batch)
    assert task.count(batch) == 4
    torch.testing.assert_close(loss, -torch.stack(by_hand).mean())


class NoHostReads(TorchDispatchMode):
    """Refuses operators that would wait for a device, or whose shapes depend on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name() not in ("aten::_local_scalar_dense", "aten::nonzero"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lengths", [[4, 4], [4, 2]])
def test_language_model_loss_reads_nothing_on_the_host(lengths):
    task = build("task", {"name": "lm"}, tokenizer=byte_tokenizer())
    batch = Batch(
        ids=["0", "1"],
        texts=[],
        inputs=torch.ones(2, 4, dtype=torch.long),
        lengths=torch.tensor(lengths),
        targets=torch.zeros(2, 0, dtype=torch.long),
        target_lengths=torch.zeros(2, dtype=torch.long),
        spans=None,
        modality=Modality.TEXT,
    )
    model = Model(Tokens(8, 256), [], torch.nn.LayerNorm(8), d_model=8, vocab_size=256)
    with NoHostReads():
        task.loss(model, batch).backward()
        with pytest.raises(AssertionError):
            task.count(batch)


class LabelledData:
    """The labels of training data."""

    def __init__(self, *texts):
        self.texts = list(texts)

    def build_tokenizer(self, vocab_size=0, special_tokens=()):
        raise AssertionError("labels are no texts to be cut into tokens")


def label_batch(scores, lengths, targets):
    """A task of three labels, a model of these scores, and a batch with these targets."""
    task_class = get("task", "classify")
    tokenizer = task_class.build_tokenizer(LabelledData("b", "c", "a", "b"))
    task = build("task", {"name": "classify"}, tokenizer=tokenizer)
    return task, FixedScores(scores, lengths), speech_batch(scores.shape[1], targets)


def test_classification_is_of_the_mean_frame_without_padding():
    scores = torch.randn(2, 4, 3)
    scores[1, 2:] = torch.nan
    task, model, batch = label_batch(scores, [4, 2], [[2], [0]])
    log_probs = torch.stack([scores[0].mean(0), scores[1, :2].mean(0)]).log_softmax(-1)
    loss, labels = task.evaluate_batch(model, batch)
    torch.testing.assert_close(loss, -(log_probs[0, 2] + log_probs[1, 0]) / 2)
    assert labels == ["abc"[i] for i in log_probs.argmax(-1)]
    assert task.count(batch) == 2


def test_classification_by_logsumexp_sums_over_frames_without_padding():
    scores = torch.randn(2, 4, 3)
    scores[1, 2:] = torch.nan
    task, model, batch = label_batch(scores, [4, 2], [[2], [0]])
    task = build("task", {"name": "classify", "pooling": "logsumexp"}, tokenizer=task.tokenizer)
    # p(label) is the sum over frames, divided by that over frames and labels
    sums = torch.stack([scores[0].exp().sum(0), scores[1, :2].exp().sum(0)])
    probs = sums / sums.sum(-1, keepdim=True)
    loss, labels = task.evaluate_batch(model, batch)
    torch.testing.assert_close(loss, -(probs[0, 2].log() + probs[1, 0].log()) / 2)
    torch.testing.assert_close(task.loss(model, batch), loss)
    assert labels == ["abc"[i] for i in probs.argmax(-1)] == task.decode(model, batch)


def test_smoothed_labels_share_their_target_equally():
    scores = torch.randn(1, 2, 3)
    task, model, batch = label_batch(scores, [2], [[1]])
    task.label_smoothing = 0.3
    log_probs = scores[0].mean(0).log_softmax(-1)
    target = torch.tensor([0.1, 0.8, 0.1])
    torch.testing.assert_close(task.loss(model, batch), -(target * log_probs).sum())


def test_scores_of_labels_equal_those_counted_by_hand():
    references = ["a", "a", "b", "b", "b", "c"]
    hypotheses = ["a", "b", "b", "b", "b", "b"]
    task, *_ = label_batch(torch.zeros(1, 1, 3), [1], [[0]])
    scores = task.score(references, hypotheses)
    # F1 of a: 2 * 1 / (2 + 1), of b: 2 * 3 / (3 + 5), of c: 0
    assert scores["error"].rate == pytest.approx(2 / 6)
    # the wrong labels are those of the error
    assert scores["error"].counts == {"wrong": 2, "of": 6}
    assert not scores["f1_error"].counts
    assert scores["f1_error"].rate == pytest.approx(1 - (2 / 3 + 6 / 8 + 0) / 3)
    for score in scores.values():
        assert 0 <= score.low <= score.rate <= score.high <= 1
    _, matrix = task.picture(references, hypotheses)
    expected = torch.tensor([[0.5, 0.5, 0], [0, 1, 0], [0, 1, 0]])
    torch.testing.assert_close(matrix.values, expected)


def test_labels_of_one_class_or_none_are_refused():
    task_class = get("task", "classify")
    for texts, message in (
        (["a", "a"], "at least two labels, but all 2 examples of training have 'a'"),
        (["a", "", "b"], "1 of the 3 of training have none"),
    ):
        with pytest.raises(UserError, match=message):
            task_class.build_tokenizer(LabelledData(*texts))
