"""ARPA files: what they state is what is looked up, and a bad line is named."""

import gzip
import itertools
import math
import re

import pytest
import torch

from famx.decode._arpa import read_arpa
from famx.decode._ngram import NGramModel
from famx.notation import UserError

WORDS = """a comment before the header

\\data\\
ngram 1=5
ngram 2=4
ngram 3=2

\\1-grams:
-99\t<s>\t-0.5
-0.7\t</s>
-0.4\ta\t-0.3
-0.6\tb\t-0.2
-1.5\t<unk>

\\2-grams:
-0.1\t<s> a\t-0.05
-0.2\ta b\t-0.15
-0.3\tb </s>
-0.35\tb a\t0.02

\\3-grams:
-0.01\t<s> a b
-0.02\tb a b

\\end\\
"""


def write(folder, text, name="lm.arpa"):
    file = folder / name
    file.write_text(text)
    return str(file)


def log10_by_definition(arpa, context, word):
    """Returns log10 p(word | context) by the recursion that defines a backoff model."""
    table = {}
    for ngrams in arpa.orders:
        rows = zip(ngrams.words, ngrams.log_probs, ngrams.backoffs, strict=True)
        for words, log_prob, backoff in rows:
            table[tuple(arpa.words[i] for i in words)] = (log_prob, backoff)
    context = context[max(0, len(context) - len(arpa.orders) + 1) :]
    if (*context, word) in table:
        return table[(*context, word)][0]
    backoff = table[tuple(context)][1] if tuple(context) in table else 0.0
    return backoff + log10_by_definition(arpa, context[1:], word)


def test_every_text_has_the_probability_that_the_file_defines(tmp_path):
    arpa = read_arpa(write(tmp_path, WORDS))
    model = NGramModel(arpa)
    texts = list(itertools.product(["a", "b", "<unk>", "</s>"], repeat=4))
    states = torch.full((len(texts),), model.first_state())
    for i in range(4):
        words = torch.tensor([model.ids[text[i]] for text in texts])
        log_probs, states = model.look_up(states, words)
        expected = [log10_by_definition(arpa, ["<s>", *text[:i]], text[i]) for text in texts]
        assert log_probs.tolist() == pytest.approx([math.log(10) * x for x in expected])


def test_word_outside_a_file_without_unk_is_improbable(tmp_path):
    text = WORDS.replace("-1.5\t<unk>\n", "").replace("ngram 1=5", "ngram 1=4")
    model = NGramModel(read_arpa(write(tmp_path, text)))
    log_prob, state = model.look_up(torch.tensor(0), torch.tensor(model.unknown))
    assert float(log_prob) == pytest.approx(-10 * math.log(10))
    # its context is empty
    after, _ = model.look_up(state, torch.tensor(model.ids["a"]))
    assert float(after) == pytest.approx(-0.4 * math.log(10))


def test_gzipped_file_is_read(tmp_path):
    plain = read_arpa(write(tmp_path, WORDS))
    file = tmp_path / "lm.gz"
    file.write_bytes(gzip.compress(WORDS.encode()))
    assert read_arpa(str(file)).words == plain.words
    file.write_bytes(gzip.compress(WORDS.encode())[:-20])
    with pytest.raises(UserError, match=r"lm\.gz is cut short: its gzip stream has no end"):
        read_arpa(str(file))


@pytest.mark.parametrize("lines", range(3, len(WORDS.splitlines())))
def test_file_that_is_cut_short_is_refused(lines, tmp_path):
    file = write(tmp_path, "\n".join(WORDS.splitlines()[:lines]))
    with pytest.raises(UserError, match=rf"^{re.escape(file)} is cut short after line [^\n]*$"):
        read_arpa(file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "data", "has no line \\data\\, so it is no ARPA file"),
        ("ngram 2=4", "ngram 3=4", "line 5: expected ngram 2=COUNT or \\1-grams:, got 'ngram 3=4'"),
        ("ngram 2=4", "ngram 2=5", "line 21: \\2-grams: has 4 n-grams, and the header states 5"),
        ("ngram 2=4", "ngram 2=3", "line 19: expected \\3-grams:, got '-0.35\\tb a\\t0.02'"),
        (
            "-0.2\ta b\t-0.15",
            "-0.2\ta",
            "line 17: a 2-gram is a log10 probability and 2 words, and perhaps",
        ),
        ("-0.2\ta b", "x\ta b", "line 17: 'x' is not a number"),
        ("-0.2\ta b", "nan\ta b", "line 17: nan is not finite"),
        ("-0.2\ta b", "0.2\ta b", "line 17: the log10 probability 0.2 is above 0"),
        ("-0.2\ta b", "-0.2\ta c", "line 17: the word 'c' is not among the unigrams"),
        ("-0.6\tb", "-0.6\ta", "line 12: the unigram a is listed twice"),
        ("-0.2\ta b", "-0.2\tb a", "line 19: the n-gram is listed twice"),
        ("b a b\n", "<unk> a b\n", "line 23: its words but the last are no n-gram of the section"),
        ("b a b\n", "b a b\n-1\ta a a\n", "line 24: expected \\end\\ after the last n-gram, got"),
        ("b a b\n", "b a b -0.1\n", "line 23: a 3-gram is a log10 probability and 3 words, got"),
    ],
)
def test_bad_line_is_refused_with_its_number_and_the_rule(old, new, message, tmp_path):
    file = write(tmp_path, WORDS.replace(old, new, 1))
    with pytest.raises(UserError) as raised:
        NGramModel(read_arpa(file))
    assert str(raised.value).startswith(file)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "lm.arpa"
    file.write_bytes(WORDS.encode().replace(b"\tb\t", b"\t\xff\t"))
    with pytest.raises(UserError, match=r"lm\.arpa, line 12: it is not UTF-8"):
        read_arpa(str(file))
    with pytest.raises(UserError, match="does not exist"):
        read_arpa(str(tmp_path / "nothing.arpa"))
