"""Text to text: the laws of its model and its decoders, and scores that are sacrebleu's own."""

import math

import numpy as np
import pytest
import sacrebleu
import torch
from gradients import parameters_without_gradient
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close

from famx.config.schema import CONF, register_schemas, to_plain
from famx.config.versions import VERSION_BASE
from famx.data._pairs import encode_source
from famx.data._tokenizers import train_tokenizer
from famx.experiment import build_model
from famx.experiment.resolve import check_parts_fit, resolve
from famx.nn.batch import Batch
from famx.nn.encoding import Encoding, text_limits
from famx.nn.state import DecodeState
from famx.notation import Modality, UserError
from famx.registry import build, names
from famx.task._next_tokens import text_inputs
from famx.task._translation import bleu, chrf
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
SMALL = [
    *("task=translate", "task.vocab_size=0", "model.d_model=24", "model.n_heads=4"),
    *("model.n_layers=2", "model.decoder_layers=2"),
]
TOKENIZER = train_tokenizer(["abc"], ["<blank>", "<end>"])
VOCAB_SIZE = TOKENIZER.get_vocab_size()
END = 1
SOURCES = ("abca", "bb", "c")
TARGETS = ("acba", "bbb", "ab")


def compose_config(*words):
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return resolve(to_plain(compose("train", [*SMALL, *words])))


def build_small(*words):
    """Returns a model in evaluation, with scores far apart, so that its texts are not empty."""
    model = build_model(compose_config(*words), VOCAB_SIZE).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
        model.decoder.score.weight *= 3
    return model


def pair_batch(sources=SOURCES, targets=TARGETS):
    inputs = [encode_source(source, TOKENIZER) for source in sources]
    tokens = [torch.tensor(TOKENIZER.encode(target).ids) for target in targets]
    return Batch(
        ids=list(sources),
        texts=list(targets),
        inputs=pad_sequence(inputs, batch_first=True),
        lengths=torch.tensor([len(row) for row in inputs]),
        targets=pad_sequence(tokens, batch_first=True),
        target_lengths=torch.tensor([len(row) for row in tokens]),
        spans=None,
        modality=Modality.TEXT,
    )


def build_decoder(name, **options):
    return build("decode", {"name": name, **options}, tokenizer=TOKENIZER)


@torch.inference_mode()
def encode(model, batch):
    return model.encode(batch.inputs, batch.lengths)


@pytest.mark.parametrize("attention", names("attention"))
def test_scores_depend_on_the_source_and_on_earlier_tokens_alone(attention):
    model = build_small(f"attention={attention}")
    batch = pair_batch()
    text = torch.randint(2, VOCAB_SIZE, (3, 6))
    changed_text = text.clone()
    changed_text[:, 3] = 2 + (text[:, 3] - 1) % (VOCAB_SIZE - 2)
    with torch.inference_mode():
        encoding = encode(model, batch)
        scores = model.predict(text, encoding)
        changed = model.predict(changed_text, encoding)
        other = model.predict(text, encode(model, pair_batch(("bcab", "cc", "b"))))
    assert_close(changed[:, :3], scores[:, :3], rtol=1e-4, atol=1e-4)
    assert (changed[:, 3:] - scores[:, 3:]).abs().amax((1, 2)).min() > 1e-3
    assert (other - scores).abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize("attention", names("attention"))
def test_step_by_step_and_alone_a_text_has_the_scores_of_the_batch(attention):
    model = build_small(f"attention={attention}")
    batch = pair_batch()
    text, text_lengths = text_inputs(batch)
    alone = pair_batch(SOURCES[2:], TARGETS[2:])
    with torch.inference_mode():
        expected = model.predict(text, encode(model, batch), text_lengths=text_lengths)
        encoding = encode(model, alone)
        state = DecodeState()
        steps = [model.predict(text[2:, u : u + 1], encoding, state) for u in range(3)]
    assert_close(torch.cat(steps, 1), expected[2:, :3], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("attention", names("attention"))
def test_every_parameter_gets_a_gradient(attention):
    model = build_model(compose_config(f"attention={attention}"), VOCAB_SIZE)
    task = build("task", {"name": "translate"}, tokenizer=TOKENIZER)
    assert not parameters_without_gradient(model, task.loss(model, pair_batch()))


def test_loss_equals_that_computed_by_hand():
    model = build_small()
    batch = pair_batch()
    task = build("task", {"name": "translate", "label_smoothing": 0.3}, tokenizer=TOKENIZER)
    with torch.inference_mode():
        encoding = encode(model, batch)
        total = 0.0
        for row, target in enumerate(TARGETS):
            tokens = TOKENIZER.encode(target).ids
            one = Encoding(*(tensor[row : row + 1] for tensor in encoding))
            scores = model.predict(torch.tensor([[END, *tokens]]), one)[0].log_softmax(-1)
            for u, token in enumerate([*tokens, END]):
                # the smoothed target: .7 of the token, .3 shared by all
                total -= float(0.7 * scores[u, token] + 0.3 * scores[u].mean())
        loss = task.loss(model, batch)
    assert task.count(batch) == sum(map(len, TARGETS))
    assert float(loss) == pytest.approx(total / task.count(batch), rel=1e-4)


@pytest.fixture(scope="module")
def encoded():
    torch.manual_seed(3)
    model = build_small()
    return model, encode(model, pair_batch())


def test_a_beam_of_one_is_greedy_decoding(encoded):
    texts = build_decoder("seq2seq_greedy").decode_encoding(*encoded)
    assert texts == build_decoder("seq2seq_beam", beam=1, ctc_weight=0.0).decode_encoding(*encoded)
    assert any(texts)


@pytest.mark.parametrize("length_norm", [0.0, 1.0])
def test_a_wider_beam_never_has_a_lower_score(length_norm, encoded):
    earlier = [-math.inf] * len(SOURCES)
    for beam in (1, 2, 3, 5):
        options = {"beam": beam, "ctc_weight": 0.0, "length_norm": length_norm}
        hypotheses = build_decoder("seq2seq_beam", **options).search(*encoded)
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert all(np.array(scores) >= np.array(earlier) - 1e-5)
        earlier = scores


def test_the_score_of_a_beam_is_that_of_its_text(encoded):
    model, encoding = encoded
    hypotheses = build_decoder("seq2seq_beam", beam=4, ctc_weight=0.0).search(model, encoding)
    for row, (tokens, score) in enumerate(hypotheses):
        one = Encoding(*(tensor[row : row + 1] for tensor in encoding))
        with torch.inference_mode():
            scores = model.predict(torch.tensor([[END, *tokens]]), one)[0].double().log_softmax(-1)
        # a text at its limit has no end
        rest = [END] if len(tokens) < int(encoding.limits[row]) else []
        expected = sum(float(scores[u, token]) for u, token in enumerate([*tokens, *rest]))
        assert score == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["seq2seq_greedy", "seq2seq_beam"])
def test_a_text_may_be_longer_than_its_source_up_to_its_limit(name):
    model = build_small()
    with torch.no_grad():
        # always the same token, never the end
        model.decoder.score.weight.zero_()
        model.decoder.score.bias.copy_(torch.tensor([0.0, -99.0, 9.0, 0.0, 0.0]))
    encoding = encode(model, pair_batch(("ab", "c"), ("a", "a")))
    assert encoding.limits.tolist() == [59, 56]
    assert text_limits(encoding.lengths, Modality.SPEECH).tolist() == [3, 2]
    options = {"ctc_weight": 0.0, "beam": 2} if name == "seq2seq_beam" else {}
    assert build_decoder(name, **options).decode_encoding(model, encoding) == ["a" * 59, "a" * 56]


def test_a_model_learns_to_reverse_texts_by_heart():
    model = build_model(compose_config("layer.dropout=0"), VOCAB_SIZE).train()
    task = build("task", {"name": "translate"}, tokenizer=TOKENIZER)
    batch = pair_batch()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    model.eval()
    for name, options in (("seq2seq_greedy", {}), ("seq2seq_beam", {"ctc_weight": 0.0})):
        assert build_decoder(name, **options)(model, batch) == list(TARGETS)


def test_decoders_of_frames_are_refused():
    for words in (("decode=seq2seq_beam",), ("decode=ctc_greedy",)):
        config = compose_config(*words)
        # also where weights come from another run
        for init_from in (None, "run"):
            with pytest.raises(UserError, match="decodes frames and task=translate gives text"):
                check_parts_fit(config | {"init_from": init_from})
    with pytest.raises(UserError, match=r"decode\.ctc_weight=0 decodes text alone"):
        check_parts_fit(compose_config("decode=seq2seq_beam"))
    check_parts_fit(compose_config("decode=seq2seq_beam", "decode.ctc_weight=0"))


SENTENCES = st.lists(
    st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "."]), min_size=1, max_size=7),
    min_size=1,
    max_size=6,
).map(lambda rows: [" ".join(row) for row in rows])


@settings(max_examples=30, deadline=None)
@given(references=SENTENCES, data=st.data())
def test_scores_are_those_of_sacrebleu(references, data):
    shuffled = [data.draw(st.permutations(text.split())) for text in references]
    hypotheses = [" ".join(words) for words in shuffled]
    has_four = any(len(text.split()) > 3 for text in references)
    for score, expected in (
        (
            bleu(references, hypotheses),
            sacrebleu.metrics.BLEU(effective_order=not has_four),
        ),
        (chrf(references, hypotheses), sacrebleu.metrics.CHRF()),
    ):
        result = expected.corpus_score(hypotheses, [references])
        assert 100 * score.rate == pytest.approx(result.score, abs=1e-9)
        assert score.signature == str(expected.get_signature())
        assert 0 <= score.low <= score.high <= 1 + 1e-9


def test_interval_is_that_of_sampled_sentences():
    rng = np.random.default_rng(1)
    references = [" ".join(rng.choice(list("abcdefg"), 6)) for _ in range(40)]
    hypotheses = [
        text if i % 2 else " ".join(rng.choice(list("abcdefg"), 6))
        for i, text in enumerate(references)
    ]
    score = bleu(references, hypotheses)
    assert score.low < score.rate < score.high
    rates = []
    for _ in range(300):
        sampled = rng.integers(40, size=40)
        metric = sacrebleu.metrics.BLEU()
        chosen = [hypotheses[i] for i in sampled]
        rates.append(metric.corpus_score(chosen, [[references[i] for i in sampled]]).score / 100)
    expected = np.quantile(rates, [0.025, 0.975])
    assert [score.low, score.high] == pytest.approx(expected, abs=0.04)
    # equal sentences leave nothing to chance
    same = bleu(["a b c d e"] * 9, ["a b c d f"] * 9)
    assert same.low == same.rate == same.high


def test_words_of_bleu_are_an_option_of_the_task():
    task = build("task", {"name": "translate", "bleu_words": "zh"}, tokenizer=TOKENIZER)
    score = task.score(["我喜欢你们的猫"], ["我喜欢你们的狗"])["bleu"]
    assert "tok:zh" in score.signature and score.rate > 0.5
    assert bleu(["我喜欢你们的猫"], ["我喜欢你们的狗"]).rate == 0
    with pytest.raises(UserError, match=r"label_smoothing=1\.0 must be from 0 to below 1"):
        build("task", {"name": "translate", "label_smoothing": 1.0}, tokenizer=TOKENIZER)
