"""Normalisation of texts: invisible characters, numbers, and the names of the rules."""

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from famx.data._example import write_corpus
from famx.data._normalisers import (
    DESCRIPTIONS,
    NORMALISERS,
    _whisper_rules,
    normalise_basic,
    normalise_english,
    normalise_unicode,
    normaliser_version,
)
from famx.data.manifest import Manifest
from famx.notation import UserError
from famx.task._wer import error_rate

# those that remove invisible characters and leave a normalised text as it is
STABLE = ("basic", "unicode")


@pytest.mark.parametrize("name", STABLE)
@pytest.mark.parametrize(
    "invisible",
    ["\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u200e", "\ufe0f", "\u034f"],
)
def test_invisible_characters_change_no_word(name, invisible):
    text = f"{invisible}win{invisible}dow{invisible} seat"
    assert NORMALISERS[name](text) == "window seat"


def test_symbols_with_their_marks_are_no_words():
    assert normalise_basic("I \u2764\ufe0f you \u26a0\u0336 1\ufe0f\u20e3 '\u0301") == "i you 1"


def test_numbers_that_are_one_character_do_not_join_their_neighbours():
    assert normalise_basic("1\u00bd") != normalise_basic("11 2")
    assert normalise_basic("10\u00b2") != normalise_basic("102")
    assert normalise_basic("1\u00bd cups of H\u2082O") == "1\u00bd cups of h\u2082o"


def test_compatibility_forms_of_letters_and_digits_become_plain_ones():
    assert normalise_basic("\uff21\uff22\uff11 \ufb01ne \uff76\uff9e") == "ab1 fine \u30ac"


@pytest.mark.parametrize("name", STABLE)
@given(text=st.text(max_size=20))
@settings(deadline=None, max_examples=100)
def test_normalised_text_is_nfc_and_stays_itself(name, text):
    normalised = NORMALISERS[name](text)
    assert unicodedata.is_normalized("NFC", normalised)
    assert NORMALISERS[name](normalised) == normalised
    decomposed = unicodedata.normalize("NFD", text)
    assert NORMALISERS[name](decomposed) == normalised


def test_texts_stay_as_they_are_written_with_the_rule_unicode(tmp_path):
    write_corpus(tmp_path, n_recordings=1)
    (tmp_path / "train.tsv").write_text("anna0.wav\tCafe\u0301,  o\u2019clock!\n", encoding="utf-8")
    dataset = Manifest("train", 0, root=str(tmp_path), normaliser="unicode")
    assert dataset.texts == ["Caf\u00e9, o\u2019clock!"] == [normalise_unicode(dataset.texts[0])]
    assert dataset.normaliser == "unicode"
    assert Manifest("train", 0, root=str(tmp_path)).texts == ["caf\u00e9 o'clock"]


def test_ascii_has_a_shorter_way_to_the_same_text():
    class Other(str):
        """A text that does not take the shorter way."""

        def isascii(self):
            return False

    characters = [chr(code) for code in range(128)]
    texts = [a + b + c for a in "a'. " for b in characters for c in "z'. "]
    for text in texts:
        assert normalise_basic(text) == normalise_basic(Other(text)), repr(text)


def test_texts_stay_as_they_are_with_none_except_for_spaces():
    text = " Cafe\u0301\u200b,\t o\u2019clock!\n(x) "
    assert NORMALISERS["none"](text) == "Cafe\u0301\u200b, o\u2019clock! (x)"


# English, by the pairs of Whisper's own tests (openai/whisper, tests/test_normalizer.py)


@pytest.mark.parametrize(
    ("written", "normalised"),
    [
        ("Let's", "let us"),
        ("he's like", "he is like"),
        ("she's been like", "she has been like"),
        ("10km", "10 km"),
        ("10mm", "10 mm"),
        ("RC232", "rc 232"),
        (
            "Mr. Park visited Assoc. Prof. Kim Jr.",
            "mister park visited associate professor kim junior",
        ),
        ("mobilisation", "mobilization"),
        ("cancelation", "cancellation"),
        ("two", "2"),
        ("five twenty four", "524"),
        ("nineteen ninety nine", "1999"),
        ("two point five million", "2500000"),
        ("200 thousand dollars", "$200000"),
        ("\u20ac52.4 million", "\u20ac52400000"),
        ("two double o eight", "2008"),
        ("forty three thousand two hundred and sixty", "43260"),
        ("nineteen fifties", "1950s"),
        ("thirty three thousand and three hundred and thirty third", "33333rd"),
        ("july third twenty twenty", "july 3rd 2020"),
        ("3 14", "3 14"),
        ("fourteen point 4", "14.4"),
        ("two point two five dollars", "$2.25"),
        ("seventy six per cent", "76%"),
        ("double oh seven", "007"),
        ("one triple oh one", "10001"),
    ],
)
def test_english_follows_the_published_pairs(written, normalised):
    assert normalise_english(written) == normalised


def test_english_removes_brackets_and_hesitations():
    assert normalise_english("[noise] Uh, (laughs) I won't <sigh> go.") == "i will not go"
    assert normalise_english("[noise] uh (laughs)") == ""


def test_absent_package_is_named_with_its_extra(monkeypatch):
    _whisper_rules.cache_clear()
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", None)
    with pytest.raises(UserError, match=r"^data\.normaliser=english needs .*pip install 'famx\[en"):
        normalise_english("one")


def test_every_normaliser_has_a_version_and_a_description():
    versions = {name: normaliser_version(name) for name in NORMALISERS}
    assert versions.pop("english").startswith("whisper-normalizer 0.1.")
    assert set(versions.values()) == {"1"}
    assert DESCRIPTIONS.keys() == NORMALISERS.keys()


# texts of which nothing is left


@pytest.mark.parametrize(("normaliser", "text"), [("basic", "..."), ("english", "[noise] uh")])
def test_empty_reference_of_a_test_remains_and_is_counted_as_insertions(
    normaliser, text, tmp_path, caplog
):
    write_corpus(tmp_path, n_recordings=3)
    lines = f"carl0.wav\tred fox\ncarl1.wav\t{text}\n"
    (tmp_path / "test.tsv").write_text(lines)
    dataset = Manifest("test", 0, root=str(tmp_path), normaliser=normaliser)
    assert dataset.texts == ["red fox", ""]
    assert "1 of 2 texts are empty after normalisation, the first that of carl1.wav" in caplog.text
    rate = error_rate(dataset.texts, ["red fox", "a b c"], "word")
    assert (rate.insertions, rate.deletions, rate.substitutions, rate.units) == (3, 0, 0, 2)
    assert rate.rate == 1.5


@pytest.mark.parametrize(("split", "text"), [("train", "..."), ("test", ""), ("test", "  ")])
def test_text_without_words_is_refused_in_train_and_where_nothing_is_written(split, text, tmp_path):
    write_corpus(tmp_path, n_recordings=3)
    (tmp_path / f"{split}.tsv").write_text(f"anna0.wav\tone\nanna1.wav\t{text}\n")
    with pytest.raises(UserError, match=r"^anna1\.wav has no words in its text$"):
        Manifest(split, 0, root=str(tmp_path))


def test_joined_utterance_has_no_space_for_an_empty_text(tmp_path):
    write_corpus(tmp_path, n_recordings=3)
    lines = "carl0.wav\tone\tcarl\ncarl1.wav\t...\tcarl\ncarl2.wav\ttwo\tcarl\n"
    (tmp_path / "test.tsv").write_text(lines)
    [text] = Manifest("test", 0, root=str(tmp_path), join=(3, 3)).texts
    assert sorted(text.split(" ")) == ["one", "two"]
