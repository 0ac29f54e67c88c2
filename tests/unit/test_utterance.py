"""Pictures of an utterance: tokens at their frames, posteriors, alignments, any text."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_seq2seq import TOKENIZER, VOCAB_SIZE, compose_config, speech_batch
from torch import nn
from torch.testing import assert_close

from famx.data._tokenizers import byte_tokenizer
from famx.data.base import Speech
from famx.experiment import build_model
from famx.monitoring.figures import Axis, draw_matrix, printable, text_width
from famx.monitoring.pictures import median_example
from famx.monitoring.utterance import (
    FrameMap,
    TimedToken,
    Utterance,
    emission_posteriors,
    recognize_utterance,
    token_names,
)
from famx.monitoring.utterance_figure import LEVELS, _labels, _place, _words, draw_utterance
from famx.notation import Modality
from famx.registry import build

# what no font has, what matplotlib would read as a formula, and what no text should have
ODD = "$x_1^2$ 日本語 😀 עברית \ud83d \x00 \t\n ½ ␣"
RATE = 16_000


class Scores(nn.Module):
    """A model of frames whose scores are known."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, inputs, lengths=None, spans=None):
        return self.scores[None], torch.tensor([len(self.scores)])


def scores_of(tokens, confidence=9.0):
    scores = torch.zeros(len(tokens), VOCAB_SIZE)
    scores[range(len(tokens)), tokens] = confidence
    return scores


def utterance_of(tokens, seconds=2.0, text=""):
    return Utterance("id", text, text, torch.randn(int(seconds * RATE)), tokens, [])


def test_tokens_are_at_the_frames_that_emit_them():
    task = build("task", {"name": "ctc"}, tokenizer=TOKENIZER)
    batch = speech_batch(("ab",))
    a, b = TOKENIZER.encode("ab").ids
    frames = [0, a, a, 0, 0, b, a, 0]
    utterance = recognize_utterance(task, Scores(scores_of(frames)), batch)
    assert utterance.reference == "ab"
    assert utterance.hypothesis == "aba"
    step = utterance.seconds / len(frames)
    spans = [(round(token.start / step), round(token.end / step)) for token in utterance.tokens]
    assert [token.text for token in utterance.tokens] == ["a", "b", "a"]
    assert spans == [(1, 3), (5, 6), (6, 7)]
    # probable tokens in the order of their best frames, below the blank
    (posteriors,) = utterance.maps
    assert posteriors.rows == ("blank", "a", "b")
    expected = scores_of(frames).softmax(-1).T[[0, a, b]]
    assert_close(posteriors.values, expected)


def test_pictures_have_no_posteriors_of_untrained_frames():
    torch.manual_seed(0)
    model = build_model(compose_config(), VOCAB_SIZE).eval()
    batch = speech_batch(("abc",))
    titles = {}
    for weight in (0.0, 0.3):
        options = {"name": "seq2seq", "ctc_weight": weight}
        task = build("task", options, tokenizer=TOKENIZER)
        utterance = recognize_utterance(task, model, batch)
        titles[weight] = [frame_map.title.partition(":")[0] for frame_map in utterance.maps]
        *_, alignment = utterance.maps
        assert alignment.rows == ("a", "b", "c", "end")
        assert_close(alignment.values.sum(1), torch.ones(4))
        assert weight or not utterance.tokens
    assert titles == {0.0: ["attention of the decoder"], 0.3: ["CTC", "attention of the decoder"]}


def test_a_text_of_more_tokens_than_frames_has_no_times():
    class Chatters:
        def __call__(self, model, batch):
            return ["abc" * 99]

        def decode_encoding(self, model, encoding):
            return ["abc" * 99]

    task = build("task", {"name": "seq2seq"}, tokenizer=TOKENIZER)
    task.decoder = Chatters()
    model = build_model(compose_config(), VOCAB_SIZE).eval()
    utterance = recognize_utterance(task, model, speech_batch(("abc",)))
    assert utterance.hypothesis == "abc" * 99
    assert not utterance.tokens


def test_emissions_of_a_transducer_equal_the_sum_over_all_paths():
    torch.manual_seed(0)
    n_frames = 4
    tokens = [2, 3, 2]
    scores = torch.randn(1, n_frames, len(tokens) + 1, VOCAB_SIZE)
    log_probs = scores[0].double().log_softmax(-1)
    total = 0.0
    expected = torch.zeros(len(tokens), n_frames, dtype=torch.double)
    # a path is the order of its blanks and tokens; the last blank ends it
    n_steps = n_frames - 1 + len(tokens)
    for emitting in combinations(range(n_steps), len(tokens)):
        frame = 0
        written = 0
        log_p = torch.zeros((), dtype=torch.double)
        emitted_at = []
        for step in range(n_steps):
            token = tokens[written] if step in emitting else 0
            log_p = log_p + log_probs[frame, written, token]
            if token:
                emitted_at.append(frame)
                written += 1
            else:
                frame += 1
        p = (log_p + log_probs[frame, written, 0]).exp()
        total = total + p
        expected[range(len(tokens)), emitted_at] += p
    measured = emission_posteriors(scores, torch.tensor([tokens]))
    assert_close(measured, (expected / total).float(), atol=1e-5, rtol=1e-4)


def test_names_of_tokens_are_visible():
    tokens = list(b"a b\n")
    assert token_names(byte_tokenizer(), tokens) == ("a", "␣", "b", "↵")


def test_words_begin_at_spaces_and_marks():
    texts = ["▁th", "e", "␣", "c", "at", "␣", "▁", "s"]
    tokens = [TimedToken(text, i, i + 1) for i, text in enumerate(texts)]
    assert [tuple(word) for word in _words(tokens)] == [("the", 0, 2), ("cat", 3, 5), ("s", 7, 8)]


times = st.lists(st.floats(0, 5), max_size=40).map(sorted)
names = st.text(min_size=0, max_size=6)


@settings(max_examples=20, deadline=None)
@given(times=times, name=names, scale=st.floats(0.1, 10))
def test_names_above_a_spectrogram_never_touch(times, name, scale):
    tokens = [TimedToken(name, time, time) for time in times]
    labels = _place(tokens, scale, LEVELS)
    half = text_width(printable(name)) / 2
    for first, second in combinations(labels, 2):
        if first.level == second.level:
            assert (second.seconds - first.seconds) * scale >= 2 * half
    if len(labels) < len(tokens):
        assert {label.level for label in labels} == set(range(LEVELS))


def test_words_replace_tokens_that_have_no_room():
    letters = "a long text of many letters ".replace(" ", "␣") * 9
    tokens = [TimedToken(letter, 0.02 * i, 0.02 * i) for i, letter in enumerate(letters)]
    assert "letters" in {label.text for label in _labels(utterance_of(tokens, seconds=6.0))}
    apart = [TimedToken(letter, float(i), float(i)) for i, letter in enumerate("along␣")]
    assert [label.text for label in _labels(utterance_of(apart, seconds=6.0))] == [*"along␣"]
    # without spaces there are no words
    dense = [TimedToken("a", 0.01 * i, 0.01 * i) for i in range(99)]
    assert {label.text for label in _labels(utterance_of(dense, seconds=6.0))} == {"a"}


@pytest.mark.parametrize("seconds", [1 / RATE, 0.01, 12.0])
def test_pictures_have_any_text_and_length(seconds):
    # warnings, such as of missing characters, are errors
    tokens = [TimedToken(letter, 0.0, 0.0) for letter in ODD]
    maps = [FrameMap("title", (ODD, "b"), torch.full((2, 3), torch.nan))]
    utterance = utterance_of(tokens, seconds, ODD * 40)._replace(maps=maps)
    pixels = draw_utterance(utterance)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    silent = utterance._replace(signal=torch.zeros_like(utterance.signal), tokens=[], maps=[])
    assert draw_utterance(silent).shape[0] < pixels.shape[0]


@pytest.mark.parametrize(("n_rows", "n_columns"), [(1, 1), (3, 90), (90, 5)])
def test_matrices_have_any_size_and_names(n_rows, n_columns):
    values = torch.rand(n_rows, n_columns)
    values[0] = torch.nan
    rows = Axis("rows", (ODD,) * n_rows)
    columns = Axis("columns", size=float(n_columns))
    pixels = draw_matrix(values, ODD, rows, columns, is_numbered=True)
    assert 300 < pixels.shape[0] < 1200 and 300 < pixels.shape[1] < 1500


class Lengths(Speech):
    """Recordings of which only lengths and texts are known."""

    def __init__(self, lengths, texts):
        ids = [str(i) for i in range(len(lengths))]
        super().__init__(ids, texts, ids, lengths)

    def samples(self, index):
        raise NotImplementedError

    @classmethod
    def example(cls, folder):
        return {}


class TextLengths(Lengths):
    modality = Modality.TEXT


@pytest.mark.parametrize(
    ("lengths", "texts", "skipped", "expected"),
    [
        ([3.0, 1.0, 2.0], "abc", (), 2),
        ([3.0, 1.0, 2.0], "abc", {2}, 1),
        ([30.0, 20.0, 40.0], "abc", (), 1),  # all are long
        ([1.0, 2.0, 3.0, 40.0, 50.0], "abcde", (), 1),  # the median of the short ones
        ([1.0, 2.0, 3.0], ["", "", "c"], (), 2),
        ([1.0, 2.0, 3.0], ["", "", ""], (), 1),
    ],
)
def test_example_is_the_median_of_short_ones_with_text(lengths, texts, skipped, expected):
    assert median_example(Lengths(lengths, list(texts)), skipped) == expected


def test_texts_may_have_any_length():
    assert median_example(TextLengths([99.0, 500.0, 300.0], [""] * 3)) == 2
