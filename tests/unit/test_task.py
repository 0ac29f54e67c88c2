from types import SimpleNamespace

import pytest
import torch

from famx.contracts import applicable, contracts
from famx.data._tokenizers import byte_tokenizer, train_tokenizer
from famx.registry import PARTS, build, names
from famx.task._wer import errors


@pytest.mark.parametrize(
    ("name", "law"),
    [(name, law) for name in names("task") for law in applicable("task", PARTS["task"][name])],
)
def test_law(name, law):
    contracts("task")[law](PARTS["task"][name])


def test_errors_are_those_counted_by_hand():
    references, hypotheses = ["the cat sat down", "a b"], ["the hat sat", "a x b"]
    words, chars = (errors(references, hypotheses, unit) for unit in ("word", "char"))
    assert (words.substitutions, words.deletions, words.insertions, words.units) == (1, 1, 1, 6)
    assert words.rate == 3 / 6 and words.low <= words.rate <= words.high
    assert (chars.substitutions, chars.deletions, chars.insertions, chars.units) == (1, 5, 2, 19)
    assert errors(["a"], ["b c d"], "word").rate == 3


def test_ctc_merges_repeats_that_no_blank_parts_and_reads_no_padding():
    tokenizer = train_tokenizer(["ab"])
    task = build("task", {"name": "ctc"}, tokenizer=tokenizer)
    path = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 0], [2, 2, 1, 1, 0, 1, 2, 1]])
    scores = 9.0 * torch.nn.functional.one_hot(path, 3)
    batch = SimpleNamespace(inputs=None, lengths=None)
    assert task.decode(lambda *_: (scores, torch.tensor([8, 4])), batch) == ["aab", "ba"]


def test_ctc_is_the_sum_over_all_alignments():
    task = build("task", {"name": "ctc"}, tokenizer=train_tokenizer(["ab"]))
    log_probs = torch.randn(1, 2, 3).log_softmax(-1)
    p = log_probs[0].exp()
    batch = SimpleNamespace(inputs=None, lengths=None, spans=None, targets=torch.tensor([[1]]))
    batch.target_lengths = torch.tensor([1])
    found = task.loss(lambda *_: (log_probs, torch.tensor([2])), batch)
    torch.testing.assert_close(
        found, -(p[0, 1] * p[1, 1] + p[0, 0] * p[1, 1] + p[0, 1] * p[1, 0]).log()
    )


def test_a_language_model_goes_on_from_the_first_half():
    task = build("task", {"name": "lm"}, tokenizer=byte_tokenizer())
    batch = SimpleNamespace(inputs=torch.tensor([list(b"abcdef"), list(b"uvwxyz")]))
    following = lambda inputs, state: (9.0 * torch.nn.functional.one_hot(inputs + 1, 256), None)  # noqa: E731
    assert task.decode(following, batch) == ["def", "xyz"]
