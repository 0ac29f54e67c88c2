"""Recordings of any length are recognised as in one pass, with the times of what was said."""

import numpy as np
import pytest
import torch

from famx.data._tokenizers import train_tokenizer
from famx.decode._alignment import TimedText, TokenSpan, align, character_times, word_times
from famx.decode._recognition import recognize
from famx.decode._surfaces import surfaces
from famx.decode._transcript import subtitles
from famx.decode._windows import FrameStep, cut_at_blanks, frame_step, windowed_scores
from famx.frontend._pretrained import Pretrained
from famx.notation import SAMPLE_RATE, UserError
from famx.registry import PARTS, build

STEP = FrameStep(640, 1)
WORDS = ("ab", "cab", "bb", "a", "caba")


class LocalModel(torch.nn.Module):
    """Scores frames of 640 samples by the samples of the 9 frames around each."""

    def __init__(self, n_tokens=5):
        super().__init__()
        self.convolution = torch.nn.Conv1d(640, n_tokens, 9, padding=4)
        self.longest = 0

    def forward(self, inputs, lengths):
        self.longest = max(self.longest, int(lengths.max()))
        padded = torch.nn.functional.pad(inputs, (0, -inputs.shape[1] % 640))
        frames = padded.unflatten(1, (-1, 640))
        return self.convolution(frames.mT).mT, (lengths + 639) // 640


class Spelled(torch.nn.Module):
    """Reads the token of each frame from its first sample, certain of it.

    Frames near the ends of a window are noise, except at the ends of the recording, which are
    marked in the second sample.
    """

    def __init__(self, n_tokens):
        super().__init__()
        self.n_tokens = n_tokens

    def forward(self, inputs, lengths):
        frames = inputs.unflatten(1, (-1, 640))
        tokens = frames[..., 0].round().long()
        n_frames = lengths // 640
        for row, marks, length in zip(tokens, frames[..., 1], n_frames.tolist(), strict=True):
            if marks[0] == 0:
                row[:12] = torch.randint(1, self.n_tokens, (12,))
            if marks[length - 1] == 0:
                row[length - 12 : length] = torch.randint(1, self.n_tokens, (12,))
        return 20.0 * torch.nn.functional.one_hot(tokens, self.n_tokens), n_frames


def spelled_signal(tokens):
    """Returns a signal, one frame for each token."""
    signal = torch.zeros(len(tokens), 640)
    signal[:, 0] = torch.tensor(tokens).float()
    signal[[0, -1], 1] = 1.0
    return signal.flatten()


def many_words(tokenizer, count):
    """Returns words, and a token for each frame of an utterance of them."""
    rng = np.random.default_rng(0)
    words = []
    frames = [0] * 20
    for _ in range(count):
        word = WORDS[rng.integers(len(WORDS))]
        words.append(word)
        for token in tokenizer.encode(f"{word} ").ids:
            frames += [token] * rng.integers(1, 4) + [0] * rng.integers(1, 6)
        frames += [0] * rng.integers(0, 10)
    return words, frames + [0] * 20


@pytest.mark.parametrize("seconds", [3.1, 29.99, 30.0, 61.7, 131.0])
def test_windows_give_the_scores_of_one_pass_of_a_local_model(seconds):
    model = LocalModel()
    signal = torch.randn(int(seconds * SAMPLE_RATE))
    expected, _ = model(signal[None], torch.tensor([len(signal)]))
    for window in (5.0, 30.0):
        model.longest = 0
        scores = windowed_scores(model, signal, STEP, window)
        assert model.longest <= window * SAMPLE_RATE
        torch.testing.assert_close(scores, expected[0])


@pytest.mark.parametrize("window", [5.0, 17.3, 30.0])
def test_no_word_is_lost_or_doubled_at_a_seam(window):
    tokenizer = train_tokenizer(["abc "], ["<blank>"])
    words, frames = many_words(tokenizer, 400)
    assert len(frames) * 0.04 > 4 * window
    model = Spelled(tokenizer.get_vocab_size())
    for name in ("ctc_greedy", "ctc_beam"):
        decoder = build("decode", {"name": name}, tokenizer=tokenizer, load_run=str)
        transcript = recognize(model, decoder, spelled_signal(frames), STEP, window, "word")
        assert transcript.text.split() == words
        assert [unit.text for unit in transcript.units] == transcript.text.split()
        # in the order of the recording
        times = [time for unit in transcript.units for time in (unit.start, unit.end)]
        assert times == sorted(times)
        assert times[-1] <= len(frames) * 0.04 + 1e-6


def test_words_have_the_times_at_which_they_are_spelled():
    tokenizer = train_tokenizer(["abc "], ["<blank>"])
    words, frames = many_words(tokenizer, 40)
    decoder = build("decode", {"name": "ctc_greedy"}, tokenizer=tokenizer)
    model = Spelled(tokenizer.get_vocab_size())
    space = tokenizer.token_to_id(" ")
    # frames of each word by hand
    starts = []
    ends = []
    is_within = False
    for i, token in enumerate(frames):
        if token not in (0, space):
            if not is_within:
                starts.append(i)
                ends.append(i)
            is_within = True
            ends[-1] = i + 1
        elif token == space:
            is_within = False
    for window in (3.0, 100.0):
        units = recognize(model, decoder, spelled_signal(frames), STEP, window, "word").units
        assert [unit.text for unit in units] == words
        assert [unit.start for unit in units] == pytest.approx([0.04 * i for i in starts])
        assert [unit.end for unit in units] == pytest.approx([0.04 * i for i in ends])


@pytest.mark.parametrize("window", [5.0, 30.0])
def test_words_on_both_sides_of_a_long_pause_keep_their_times(window):
    tokenizer = train_tokenizer(["abc "], ["<blank>"])
    decoder = build("decode", {"name": "ctc_greedy"}, tokenizer=tokenizer)
    model = Spelled(tokenizer.get_vocab_size())
    a, b, space = (tokenizer.token_to_id(character) for character in "ab ")
    # two words, a pause longer than a window, and two words
    spoken = [a, a, 0, b, 0, space, 0, b, 0, 0]
    frames = [0] * 30 + spoken + [0] * 900 + [space, 0] + spoken + [0] * 30
    units = recognize(model, decoder, spelled_signal(frames), STEP, window, "word").units
    starts = [30, 37, 942, 949]
    assert [unit.text for unit in units] == ["ab", "b", "ab", "b"]
    assert [unit.start for unit in units] == pytest.approx([0.04 * i for i in starts])
    assert [unit.end - unit.start for unit in units] == pytest.approx([0.16, 0.04, 0.16, 0.04])


def test_blanks_and_special_tokens_write_no_text():
    tokenizer = train_tokenizer(["ab"], ["<blank>", "<end>"])
    assert surfaces(tokenizer) == ["", "", "a", "b"]


def test_characters_of_a_subword_share_its_frames():
    spans = [TokenSpan(1, 10, 14), TokenSpan(2, 20, 21)]
    characters = character_times(spans, ["", " ab", "c"], 1, 0.04)
    assert [c.text for c in characters] == [" ", "a", "b", "c"]
    assert [c.start for c in characters] == pytest.approx(
        [0.4, 0.4 + 0.16 / 3, 0.4 + 0.32 / 3, 0.8]
    )
    [word] = word_times(characters)
    assert word.text == "abc"
    assert (word.start, word.end) == pytest.approx((0.4 + 0.16 / 3, 0.84))
    # two frames for one stretch of time
    [letter] = character_times([TokenSpan(1, 5, 6)], ["", "a"], 2, 0.04)
    assert (letter.start, letter.end) == pytest.approx((0.08, 0.12))


def test_alignment_is_the_most_probable_one():
    path = [0, 1, 1, 0, 1, 0, 0, 2, 2, 2, 0]
    scores = 5.0 * torch.nn.functional.one_hot(torch.tensor(path), 3)
    assert align(scores, [1, 1, 2]) == [TokenSpan(1, 1, 3), TokenSpan(1, 4, 5), TokenSpan(2, 7, 10)]
    assert align(scores, []) == []


def test_pieces_between_blanks_decode_to_the_same_tokens():
    tokenizer = train_tokenizer(["abc "], ["<blank>"])
    decoder = build("decode", {"name": "ctc_greedy"}, tokenizer=tokenizer)
    scores = torch.randn(700, tokenizer.get_vocab_size())
    scores[:, 0] += 1
    pieces = cut_at_blanks(scores, 50)
    assert max(map(len, pieces)) <= 50
    assert torch.equal(torch.cat(pieces), scores)
    rows = [decoder.decode_tokens(piece[None], torch.tensor([len(piece)]))[0] for piece in pieces]
    [expected] = decoder.decode_tokens(scores[None], torch.tensor([700]))
    assert [token for row in rows for token in row] == expected


@pytest.mark.parametrize("name", sorted(PARTS["frontend"]))
def test_frames_of_every_frontend_have_their_times(name):
    if PARTS["frontend"][name].modality.value != "speech":
        pytest.skip("not of speech")
    part = PARTS["frontend"][name]
    frontend = build("frontend", {"name": name, **part.example()}, d_model=8)
    step = frame_step(frontend.n_frames)
    # a later beginning by whole steps leaves out as many frames
    lengths = torch.arange(30_000, 33_000, 7)
    later = frontend.n_frames(lengths - 3 * step.samples)
    assert torch.equal(frontend.n_frames(lengths) - later, torch.full_like(later, 3 * step.frames))
    # a pretrained encoder has the step that it was trained with
    assert step.seconds == pytest.approx(0.04) or issubclass(part, Pretrained)


def test_frontend_of_patches_has_several_frames_at_once():
    frontend = build("frontend", {"name": "mel_patches", "patch_mels": 16}, d_model=8)
    assert frame_step(frontend.n_frames) == FrameStep(640, 4)
    with pytest.raises(UserError, match="no constant step"):
        frame_step(lambda lengths: lengths.double().sqrt().long())


def test_subtitles_are_short_and_end_at_pauses():
    words = [
        TimedText("one", 0.0, 0.5),
        TimedText("two", 0.6, 1.0),
        TimedText("three", 3600.2, 3601.0),
    ]
    assert subtitles(words) == (
        "1\n00:00:00,000 --> 00:00:01,000\none two\n\n2\n01:00:00,200 --> 01:00:01,000\nthree\n"
    )
    long = [TimedText("word", i / 2, i / 2 + 0.4) for i in range(100)]
    blocks = subtitles(long).strip().split("\n\n")
    assert sum(block.count("word") for block in blocks) == 100
    assert max(block.count("word") for block in blocks) <= 13
    assert subtitles([]) == ""
