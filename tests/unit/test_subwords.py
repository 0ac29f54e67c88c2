"""Subwords by byte-pair encoding and unigram, of speech's texts and of language models."""

import functools
import itertools
import json
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from famx.data._example import write_corpus
from famx.data._grammar import sentences
from famx.data._subwords import train_byte_subwords
from famx.data._tokenizers import WORD_MARK, encode, known_characters, train_tokenizer
from famx.data.manifest import Manifest
from famx.data.text import Text
from famx.notation import UserError
from famx.task.ctc import CTC

KINDS = ("bpe", "unigram")
TEXTS = list(itertools.islice(sentences(0), 300))
BLANK = ("<blank>",)


@pytest.mark.parametrize("kind", KINDS)
def test_subwords_are_as_many_as_requested_and_shorter_than_characters(kind):
    tokenizer = train_tokenizer(TEXTS, BLANK, 96, kind)
    assert tokenizer.get_vocab_size() == 96
    assert tokenizer.id_to_token(0) == "<blank>"
    restored = type(tokenizer).from_str(tokenizer.to_str())
    for text in TEXTS:
        ids = encode(tokenizer, text, "an utterance")
        assert tokenizer.decode(ids) == text
        assert 0 not in ids
        assert len(ids) < len(text)
        assert restored.encode(text).ids == ids


@pytest.mark.parametrize("kind", KINDS)
def test_equal_texts_lead_to_the_same_subwords(kind):
    words = train_tokenizer(TEXTS, BLANK, 150, kind).to_str()
    lines = train_byte_subwords(TEXTS, 400, kind).to_str()
    for _ in range(3):
        assert train_tokenizer(TEXTS, BLANK, 150, kind).to_str() == words
        assert train_byte_subwords(TEXTS, 400, kind).to_str() == lines


def test_unigram_gives_frequent_tokens_higher_scores():
    tokenizer = train_tokenizer(TEXTS, BLANK, 120, "unigram")
    counts = Counter(index for text in TEXTS for index in tokenizer.encode(text).ids)
    scores = [score for _, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    by_count = sorted(counts, key=counts.__getitem__)
    quarter = len(by_count) // 4
    assert max(scores[i] for i in by_count[:quarter]) < min(scores[i] for i in by_count[-quarter:])
    assert sum(math.exp(score) for score in scores[1:]) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [["a"], ["ab", "b a"], ["東京都 東京"], ["]^-\\ [a"]])
def test_tiny_texts_have_a_tokenizer(kind, texts):
    tokenizer = train_tokenizer(texts, BLANK, 96, kind)
    for text in texts:
        assert tokenizer.decode(encode(tokenizer, text, "an utterance")) == text


@pytest.mark.parametrize("kind", KINDS)
def test_characters_without_a_token_are_named_with_their_utterance(kind):
    tokenizer = train_tokenizer(TEXTS, BLANK, 96, kind)
    assert known_characters(tokenizer) - {WORD_MARK} == set("".join(TEXTS))
    with pytest.raises(UserError, match=r"^clip 7 has characters outside the vocabulary: 'ß' 'é'$"):
        encode(tokenizer, "zero éß one", "clip 7")
    ids = encode(tokenizer, "zero éß one", "clip 7", is_strict=False)
    assert tokenizer.decode(ids).split() == ["zero", "one"]


def test_unigram_of_fewer_tokens_than_characters_is_refused_in_one_sentence():
    with pytest.raises(
        UserError, match=r"^task\.vocab_size=9 cannot be trained by unigram: [^\n]*$"
    ):
        train_tokenizer(TEXTS, BLANK, 9, "unigram")


def test_task_chooses_the_kind(tmp_path):
    write_corpus(tmp_path)
    corpus = Manifest("train", 0, root=str(tmp_path))
    models = [type(CTC.build_tokenizer(corpus, 40, kind).model).__name__ for kind in KINDS]
    assert models == ["BPE", "Unigram"]
    assert (
        CTC.build_tokenizer(corpus, 40).to_str() == CTC.build_tokenizer(corpus, 40, "bpe").to_str()
    )


# language models


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """A file of lines whose spaces and newlines matter."""
    file = tmp_path_factory.mktemp("play") / "play.txt"
    lines = [f"{'  ' * (i % 3)}SPEAKER:\n{text}, é!\n" for i, text in enumerate(TEXTS)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def decoded(dataset):
    """Returns the text of the tokens of a split that has no random blocks."""
    return dataset.build_tokenizer().decode(dataset._token_ids.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_subwords_of_a_text_are_its_text_in_fewer_tokens(kind, play):
    for split in ("train", "dev", "test"):
        characters = Text(split, 0, path=str(play))
        subwords = Text(split, 0, path=str(play), unit=kind, vocab_size=320)
        assert decoded(subwords) == decoded(characters)
        assert len(subwords._token_ids) < 0.8 * len(characters._token_ids)
        assert subwords.build_tokenizer().get_vocab_size() == 320
        assert subwords[0].signal.max() < 320


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.characters(codec="utf-8"), max_size=30))
@settings(deadline=None, max_examples=60)
def test_subwords_of_bytes_encode_any_text_without_loss(kind, text):
    tokenizer = _byte_subwords(kind)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@functools.cache
def _byte_subwords(kind):
    return train_byte_subwords(TEXTS, 400, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_subwords_are_learned_from_train_alone(kind, tmp_path):
    lines = "".join(f"{text}\n" for text in TEXTS)
    trained = []
    for name, end in (("a", "zzzq " * 400), ("b", "qqqz " * 400)):
        file = tmp_path / f"{name}.txt"
        # what differs is in dev and test
        file.write_text(lines[:8000] + end)
        trained.append(Text("dev", 0, path=str(file), unit=kind, vocab_size=300).build_tokenizer())
    assert trained[0].to_str() == trained[1].to_str()


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_without_room_for_the_bytes_is_refused(kind, play):
    with pytest.raises(UserError, match=r"^data\.vocab_size=255 must be at least 256: each byte"):
        Text("train", 0, path=str(play), unit=kind, vocab_size=255)
    assert Text("train", 0, path=str(play), unit=kind, vocab_size=256).texts


# a run reads another text


@pytest.mark.parametrize("unit", ["chars", *KINDS])
def test_other_text_is_encoded_by_the_tokenizer_of_the_run(unit, play, tmp_path):
    tokenizer = Text("train", 0, path=str(play), unit=unit, vocab_size=300).build_tokenizer()
    other = tmp_path / "other.txt"
    other.write_text("one two three " * 900)
    dataset = Text("dev", 0, path=str(other), unit=unit, vocab_size=300)
    before = dataset.fingerprint()
    dataset.use_tokenizer(tokenizer)
    assert dataset.build_tokenizer().to_str() == tokenizer.to_str()
    assert decoded(dataset) == ("one two three " * 900)[10080:11340]
    assert dataset.fingerprint() != before
    assert len(dataset.ids) == (len(dataset._token_ids) - 1) // 128


def test_character_that_the_run_does_not_know_is_named(play, tmp_path):
    tokenizer = Text("train", 0, path=str(play)).build_tokenizer()
    other = tmp_path / "other.txt"
    # the last tenth, 200 characters, is test
    other.write_text("one two " * 240 + "one @wo\u20ac" + "one two " * 9)
    sentence = (
        r"other\.txt \(test\) has characters that the run has no tokens for: '@' '\u20ac'; the "
        r"first is character 125, and a run with data\.unit=bytes reads any$"
    )
    with pytest.raises(UserError, match=sentence):
        Text("test", 0, path=str(other)).use_tokenizer(tokenizer)
    Text("dev", 0, path=str(other)).use_tokenizer(tokenizer)


def test_tokenizer_of_another_unit_is_refused(play):
    options = {"path": str(play), "vocab_size": 300}
    units = ("chars", "bytes", *KINDS)
    for unit, other in itertools.permutations(units, 2):
        tokenizer = Text("dev", 0, unit=unit, **options).build_tokenizer()
        with pytest.raises(UserError, match=rf"^data\.unit={other} is not the unit of the run"):
            Text("dev", 0, unit=other, **options).use_tokenizer(tokenizer)


# files of their own for dev and test


@pytest.mark.parametrize("unit", ["chars", "bytes", *KINDS])
def test_files_of_dev_and_test_are_those_splits(unit, tmp_path):
    texts = {"train": "to be or not " * 200, "dev": "a b c " * 50, "test": "xyz é " * 60}
    for split, text in texts.items():
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
    names = ("path", "dev", "test")
    options = dict(zip(names, (str(tmp_path / f"{split}.txt") for split in texts), strict=True))
    options |= {"unit": unit, "vocab_size": 300, "block": 16}
    for split, text in texts.items():
        assert decoded(Text(split, 0, **options)) == text
    tokenizers = {Text(split, 0, **options).build_tokenizer().to_str() for split in texts}
    assert len(tokenizers) == 1


def test_one_file_of_dev_and_test_is_refused_and_an_absent_one_is_named(play):
    with pytest.raises(UserError, match=r"^data\.dev= and data\.test=a must both name files"):
        Text("train", 0, path=str(play), test="a")
    with pytest.raises(UserError, match=r"^data\.test=nowhere cannot be read: No such file"):
        Text("train", 0, path=str(play), dev=str(play), test="nowhere")
