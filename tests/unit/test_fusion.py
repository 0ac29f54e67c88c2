"""A beam search with a language model finds the text with the highest sum of both scores."""

import math
from itertools import groupby, product

import pytest
import torch
from test_arpa import log10_by_definition

from famx.data._tokenizers import train_tokenizer
from famx.decode._arpa import read_arpa
from famx.decode._run_fusion import LanguageModelRun
from famx.notation import UserError
from famx.registry import build

WORDS = """\\data\\
ngram 1=6
ngram 2=3
\\1-grams:
-99 <s> -0.4
-1.0 </s>
-0.6 a -0.2
-0.9 ab -0.3
-1.2 b
-2.0 <unk>
\\2-grams:
-0.2 <s> ab
-0.1 ab a
-0.3 a </s>
\\end\\
"""
# without a probability of words that it does not have
CLOSED = WORDS.replace("-2.0 <unk>\n", "").replace("1=6", "1=5")
CHARACTERS = """\\data\\
ngram 1=5
ngram 2=4
\\1-grams:
-99 <s> -0.4
-0.9 </s>
-0.5 a -0.2
-0.6 b -0.3
-0.4 <space> -0.1
\\2-grams:
-0.2 <s> b
-0.1 b a
-0.3 a <space>
-0.7 <space> a
\\end\\
"""


def no_run(folder):
    raise AssertionError(folder)


def beam_search(tokenizer, lm, load_run=no_run, **options):
    weight = {"lm_weight": 0.7} if lm else {}
    options = {"beam": 4096, "blank_threshold": 1.0, **weight, **options}
    choice = {"name": "ctc_beam", "lm": str(lm), **options}
    return build("decode", choice, tokenizer=tokenizer, load_run=load_run)


def log_probs_of_texts(scores):
    """Returns ln p of each sequence of tokens, by listing all alignments."""
    log_probs = scores.double().log_softmax(-1)
    sums = {}
    for path in product(range(scores.shape[1]), repeat=len(scores)):
        tokens = tuple(token for token, _ in groupby(path) if token)
        value = math.exp(log_probs[torch.arange(len(path)), list(path)].sum())
        sums[tokens] = sums.get(tokens, 0.0) + value
    return {tokens: math.log(value) for tokens, value in sums.items()}


def units_of(text, is_of_words):
    if is_of_words:
        return text.split()
    # a space at the beginning of a text does not count
    text = text[1:] if text.startswith(" ") else text
    return ["<space>" if c == " " else c for c in text]


@pytest.mark.parametrize("vocab_size", [0, 6])
@pytest.mark.parametrize("content", [WORDS, CLOSED, CHARACTERS])
def test_score_is_that_of_the_signal_and_of_the_ngrams(content, vocab_size, tmp_path):
    tokenizer = train_tokenizer(["ab a ab", "b ab"], ["<blank>"], vocab_size)
    texts = [tokenizer.id_to_token(i).replace("▁", " ") for i in range(tokenizer.get_vocab_size())]
    assert (" ab" in texts) == bool(vocab_size)
    file = tmp_path / "lm.arpa"
    file.write_text(content)
    decoder = beam_search(tokenizer, file, length_bonus=0.4)
    if content == CLOSED:
        # 10^-3 for each character of other words, the first one here
        file.write_text(WORDS.replace("-2.0 <unk>", "-3 <unk>"))
    arpa = read_arpa(str(file))
    for _ in range(3):
        scores = 2 * torch.randn(1, 5, len(texts))
        expected = {}
        for tokens, log_prob in log_probs_of_texts(scores[0]).items():
            text = "".join(texts[token] for token in tokens)
            units = [*units_of(text, content != CHARACTERS), "</s>"]
            total = log_prob + 0.4 * (len(units) - 1)
            for i, unit in enumerate(units):
                known = unit if unit in arpa.words else "<unk>"
                # the file of characters has all of them, and no <unk>
                before = ["<s>", *(w if w in arpa.words else "<unk>" for w in units[:i])]
                total += 0.7 * math.log(10) * log10_by_definition(arpa, before, known)
                if content == CLOSED and known == "<unk>":
                    total -= 0.7 * math.log(10) * 3 * (len(unit) - 1)
            expected[tokens] = total
        hypotheses = decoder.search(scores, torch.tensor([5]))
        reached = {}
        rows = zip(hypotheses.tokens[0].tolist(), hypotheses.scores[0].tolist(), strict=True)
        for tokens, score in rows:
            if score > -math.inf:
                reached[tuple(token for token in tokens if token >= 0)] = score
        assert reached == pytest.approx(expected)
        assert hypotheses.best()[0] == list(max(expected, key=expected.get))


def test_unknown_words_keep_their_boundaries_where_the_file_has_no_unk(tmp_path):
    tokenizer = train_tokenizer(["ba cab a"], ["<blank>"])
    file = tmp_path / "lm.arpa"
    file.write_text(CLOSED)
    decoder = beam_search(tokenizer, file, beam=8, lm_weight=0.5)
    for text in ("ba cab", "cab ab ba", "a ba ab bab", "bacaba ab"):
        frames = [token for id in tokenizer.encode(text).ids for token in (0, id, 0)]
        one_hot = torch.nn.functional.one_hot(torch.tensor([frames]), tokenizer.get_vocab_size())
        scores = 12.0 * one_hot + torch.randn(one_hot.shape)
        assert decoder.decode_scores(scores, torch.tensor([len(frames)])) == [text]


@pytest.mark.parametrize("content", [WORDS, CHARACTERS])
def test_texts_with_ngrams_depend_on_neither_batch_nor_padding(content, tmp_path):
    tokenizer = train_tokenizer(["ab a ab", "b ab"], ["<blank>"])
    file = tmp_path / "lm.arpa"
    file.write_text(content)
    decoder = beam_search(tokenizer, file, beam=3, blank_threshold=0.8)
    scores = 3 * torch.randn(4, 20, tokenizer.get_vocab_size())
    lengths = torch.tensor([20, 3, 11, 16])
    together = decoder.decode_scores(scores, lengths)
    for i, length in enumerate(lengths):
        alone = decoder.decode_scores(scores[i : i + 1, :length], lengths[i : i + 1])
        assert alone == [together[i]]


def test_weight_of_0_changes_no_text(tmp_path):
    tokenizer = train_tokenizer(["ab a ab", "b ab"], ["<blank>"])
    file = tmp_path / "lm.arpa"
    file.write_text(WORDS)
    scores = 2 * torch.randn(3, 12, tokenizer.get_vocab_size())
    lengths = torch.tensor([12, 9, 5])
    plain = beam_search(tokenizer, "", beam=4).search(scores, lengths)
    fused = beam_search(tokenizer, file, beam=4, lm_weight=0.0).search(scores, lengths)
    assert fused.best() == plain.best()
    torch.testing.assert_close(fused.scores, plain.scores)


def test_language_model_of_other_letters_is_refused(tmp_path):
    tokenizer = train_tokenizer(["ab a ab"], ["<blank>"])
    file = tmp_path / "lm.arpa"
    file.write_text(WORDS.replace(" ab", " AB").replace(" a", " A").replace(" b", " B"))
    with pytest.raises(UserError, match="none of its 3 words consists of characters of the run"):
        beam_search(tokenizer, file)


@pytest.mark.parametrize("option", ["length_bonus", "lm_weight"])
def test_option_of_a_language_model_without_one_is_refused(option):
    with pytest.raises(UserError, match=rf"{option}=1\.0 has no effect without decode\.lm"):
        beam_search(train_tokenizer(["ab"], ["<blank>"]), "", **{option: 1.0})


class NextToken(torch.nn.Module):
    """A causal model whose scores depend on the last two tokens and on the position."""

    def __init__(self, n_tokens):
        super().__init__()
        self.table = torch.randn(n_tokens, n_tokens, n_tokens)
        self.place = torch.randn(64, n_tokens)

    def forward(self, inputs):
        before = torch.nn.functional.pad(inputs[:, :-1], (1, 0))
        return self.table[before, inputs] + self.place[: inputs.shape[1]], None


@pytest.mark.parametrize("context", [3, 20])
def test_score_is_that_of_the_signal_and_of_a_run(context, tmp_path):
    tokenizer = train_tokenizer(["ab a"], ["<blank>"])
    # other numbers of the same characters, and a newline, by which texts begin and end
    lm_tokenizer = train_tokenizer(["\nab c"])
    model = NextToken(lm_tokenizer.get_vocab_size())
    run = LanguageModelRun("lm", model, lm_tokenizer, torch.device("cpu"), context)
    decoder = beam_search(tokenizer, tmp_path, lambda folder: run, length_bonus=0.3)
    scores = 2 * torch.randn(2, 5, tokenizer.get_vocab_size())
    hypotheses = decoder.search(scores, torch.tensor([5, 4]))
    for row, size in ((0, 5), (1, 4)):
        expected = {}
        for tokens, log_prob in log_probs_of_texts(scores[row, :size]).items():
            text = "\n" + "".join(tokenizer.id_to_token(token) for token in tokens) + "\n"
            ids = lm_tokenizer.encode(text).ids
            total = log_prob + 0.3 * len(tokens)
            for i in range(1, len(ids)):
                visible = torch.tensor([ids[:i][-context:]])
                log_probs = model(visible)[0][0, -1].double().log_softmax(-1)
                total += 0.7 * float(log_probs[ids[i]])
            expected[tokens] = total
        reached = {}
        rows = zip(hypotheses.tokens[row].tolist(), hypotheses.scores[row].tolist(), strict=True)
        for tokens, score in rows:
            if score > -math.inf:
                reached[tuple(token for token in tokens if token >= 0)] = score
        assert reached == pytest.approx(expected, abs=1e-5)


def test_run_of_other_tokens_is_refused(tmp_path):
    lm_tokenizer = train_tokenizer(["\na "])
    run = LanguageModelRun("lm", NextToken(3), lm_tokenizer, torch.device("cpu"), 9)
    with pytest.raises(UserError, match=r"decode\.lm=lm has no token 'b'; its tokens must be"):
        beam_search(train_tokenizer(["ab a"], ["<blank>"]), tmp_path, lambda folder: run)
