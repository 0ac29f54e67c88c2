"""The transducer: its lattice, the probabilities of texts, and their decoding."""

from itertools import product

import pytest
import torch
from test_seq2seq import (
    END,
    TEXTS,
    TOKENIZER,
    VOCAB_SIZE,
    beam_search,
    predict_by_steps,
    speech_batch,
)
from test_seq2seq import compose_config as compose_seq2seq
from torch.testing import assert_close
from torchaudio.functional import rnnt_loss

from famx.experiment import build_model
from famx.nn.encoding import Encoding
from famx.nn.transducer import score_next_tokens
from famx.notation import UserError
from famx.registry import build
from famx.task._next_tokens import text_inputs

BLANK = 0


def compose_config(*words):
    return compose_seq2seq("task=transducer", "model.decoder_layers=null", *words)


def train(model, batch, steps):
    task = build("task", {"name": "transducer"}, tokenizer=TOKENIZER)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def encoded():
    """Returns a model that has begun to learn, whose texts are not empty, and an encoding."""
    torch.manual_seed(3)
    model = build_model(compose_config(), VOCAB_SIZE).train()
    batch = speech_batch(("ab", "b", "ca"))
    train(model, batch, steps=30)
    with torch.inference_mode():
        return model, model.encode(batch.inputs, batch.lengths)


def text_of(tokens):
    return torch.tensor([[END, *tokens]])


@torch.no_grad()
def log_prob(model, encoding, row, tokens):
    """Returns log p(text | signal) by the loss of torchaudio."""
    n_frames = int(encoding.lengths[row])
    one = Encoding(*(tensor[row : row + 1].clone() for tensor in encoding))
    lattice = model.decoder.text_scores(text_of(tokens), one)[:, :n_frames]
    targets = torch.tensor([tokens], dtype=torch.int32).view(1, -1)
    sizes = [torch.tensor([n], dtype=torch.int32) for n in (n_frames, len(tokens))]
    return -float(rnnt_loss(lattice.contiguous(), targets, *sizes, blank=BLANK, reduction="sum"))


@pytest.mark.parametrize("tokens", [[], [2], [2, 3, 3, 4], [4, 2, 2, 2, 3, 4]])
def test_predictions_multiply_to_the_probability_of_the_text(tokens, encoded):
    model, encoding = encoded
    for row in range(3):
        one = Encoding(*(tensor[row : row + 1] for tensor in encoding))
        with torch.inference_mode():
            log_probs = model.predict(text_of(tokens), one)[0].log_softmax(-1)
        predicted = sum(float(log_probs[u, token]) for u, token in enumerate([*tokens, END]))
        assert predicted == pytest.approx(log_prob(model, encoding, row, tokens), rel=1e-4)


def paths_of(n_frames, tokens):
    """Returns each order of the blanks and the tokens, the last of which is a blank."""
    for is_token in product((False, True), repeat=n_frames - 1 + len(tokens)):
        if sum(is_token) == len(tokens):
            yield (*is_token, False)


@pytest.mark.parametrize("tokens", [[], [2], [3, 2], [2, 2, 3]])
def test_probability_of_a_text_is_a_sum_over_its_paths(tokens):
    n_frames = 3
    lattice = torch.randn(1, n_frames, len(tokens) + 1, VOCAB_SIZE, dtype=torch.double)
    probs = lattice.softmax(-1)[0]
    expected = 0.0
    for path in paths_of(n_frames, tokens):
        t = u = 0
        prob = 1.0
        for is_token in path:
            prob *= float(probs[t, u, tokens[u] if is_token else BLANK])
            t, u = (t, u + 1) if is_token else (t + 1, u)
        expected += prob
    scores = score_next_tokens(lattice, text_of(tokens), torch.tensor([n_frames]), {})
    assert float(scores[0, -1, END].exp()) == pytest.approx(expected)


def test_a_text_is_as_probable_as_all_that_may_follow_it(encoded):
    model, encoding = encoded
    text = torch.tensor([[END, 2, 3, 3]] * 3)
    with torch.inference_mode():
        scores = model.predict(text, encoding)
    total = scores.logsumexp(-1)
    # nothing is before the beginning
    assert_close(total[:, 0], torch.zeros(3, dtype=torch.double), rtol=0, atol=1e-6)
    for u in range(1, 4):
        assert_close(total[:, u], scores[:, u - 1].gather(1, text[:, u : u + 1])[:, 0])


def test_step_by_step_equals_the_pass_over_all_tokens(encoded):
    model, encoding = encoded
    text = torch.tensor([[END, 2, 4, 4, 3], [END, 3, 3, 2, 4], [END, 4, 2, 3, 2]])
    with torch.inference_mode():
        expected = model.predict(text, encoding)
    assert_close(predict_by_steps(model, text, encoding), expected)


def test_scores_of_a_row_do_not_depend_on_the_batch(encoded):
    model, encoding = encoded
    text = torch.tensor([[END, 2, 4, 3]] * 3)
    lengths = torch.tensor([encoding.frames.shape[1], 3, 1])
    with torch.inference_mode():
        together = model.predict(text, encoding._replace(lengths=lengths))
        for row, length in enumerate(lengths.tolist()):
            one = Encoding(*(tensor[row : row + 1] for tensor in encoding))
            cut = one._replace(frames=one.frames[:, :length], lengths=lengths[row : row + 1])
            assert_close(model.predict(text[:1], cut)[0], together[row], rtol=1e-4, atol=1e-4)


def test_a_beam_of_one_is_greedy_decoding(encoded):
    model, encoding = encoded
    greedy = build("decode", {"name": "seq2seq_greedy"}, tokenizer=TOKENIZER)
    texts = greedy.decode_encoding(model, encoding)
    hypotheses = beam_search(model, encoding, beam=1, ctc_weight=0.0)
    assert texts == [TOKENIZER.decode(hypothesis.tokens) for hypothesis in hypotheses]
    assert any(texts)


def test_the_score_of_a_beam_is_that_of_its_text_and_no_lower_than_that_of_a_narrower_one(encoded):
    model, encoding = encoded
    earlier = [-torch.inf] * 3
    n_complete = 0
    for beam in (1, 2, 4, 8):
        hypotheses = beam_search(model, encoding, beam=beam, ctc_weight=0.0)
        for row, (tokens, score) in enumerate(hypotheses):
            # a text of as many tokens as frames is cut, so that it has no end
            if len(tokens) < int(encoding.lengths[row]):
                n_complete += 1
                assert score == pytest.approx(log_prob(model, encoding, row, tokens), rel=1e-4)
            assert score >= earlier[row] - 1e-6
        earlier = [hypothesis.score for hypothesis in hypotheses]
    assert n_complete >= 8


def test_a_wide_beam_has_the_best_of_all_texts():
    torch.manual_seed(5)
    model = build_model(compose_config(), VOCAB_SIZE).eval()
    batch = speech_batch(("a",), samples=1600)
    with torch.inference_mode():
        encoding = model.encode(batch.inputs, batch.lengths)
    n_frames = int(encoding.lengths)
    texts = [
        list(tokens)
        for size in range(n_frames)
        for tokens in product(range(2, VOCAB_SIZE), repeat=size)
    ]
    best = max(log_prob(model, encoding, 0, tokens) for tokens in texts)
    (hypothesis,) = beam_search(model, encoding, beam=64, ctc_weight=0.0)
    assert hypothesis.score >= best - 1e-4


def test_loss_equals_that_computed_from_the_predictions():
    model = build_model(compose_config("layer.dropout=0"), VOCAB_SIZE)
    batch = speech_batch()
    task = build("task", {"name": "transducer", "ctc_weight": 0.2}, tokenizer=TOKENIZER)
    text, _ = text_inputs(batch)
    with torch.no_grad():
        encoding = model.encode(batch.inputs, batch.lengths)
        log_probs = model.predict(text, encoding).log_softmax(-1)
        total = 0.0
        for row, size in enumerate(batch.target_lengths.tolist()):
            tokens = [*batch.targets[row, :size].tolist(), END]
            total -= sum(float(log_probs[row, u, token]) for u, token in enumerate(tokens))
        ctc_loss = float(task.ctc.loss_of_scores(encoding.scores, encoding.lengths, batch))
        loss = float(task.loss(model, batch))
    assert loss == pytest.approx(0.2 * ctc_loss + 0.8 * total / task.count(batch), rel=1e-5)


@pytest.mark.parametrize("texts", [("", ""), ("ab", "")])
def test_texts_without_tokens_have_a_finite_loss(texts):
    model = build_model(compose_config(), VOCAB_SIZE)
    task = build("task", {"name": "transducer"}, tokenizer=TOKENIZER)
    loss = task.loss(model, speech_batch(texts))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.decoder.parameters() if p.grad is not None)


def test_every_parameter_gets_a_gradient():
    model = build_model(compose_config(), VOCAB_SIZE)
    task = build("task", {"name": "transducer"}, tokenizer=TOKENIZER)
    task.loss(model, speech_batch()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_a_model_learns_two_recordings_by_heart():
    batch = speech_batch()
    model = train(build_model(compose_config("layer.dropout=0"), VOCAB_SIZE), batch, steps=120)
    for name in ("seq2seq_greedy", "seq2seq_beam", "ctc_greedy"):
        decoder = build("decode", {"name": name}, tokenizer=TOKENIZER)
        assert decoder(model, batch) == TEXTS


def test_layers_of_a_decoder_with_attention_are_refused():
    message = "decoder_layers=2 has no effect with task=transducer"
    with pytest.raises(UserError, match=message):
        compose_seq2seq("task=transducer", "model.decoder_layers=2")
