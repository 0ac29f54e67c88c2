"""Text sampled from a language model."""

import pytest
import torch
from torch import nn

from famx.data._tokenizers import byte_tokenizer, train_tokenizer
from famx.generate import encode_prompt
from famx.model import Model
from famx.nn.sampling import Sampling, choose_tokens, sample_tokens
from famx.notation import UserError
from famx.registry import build

VOCAB = 7


@pytest.fixture
def model():
    torch.manual_seed(0)
    rotary = build("rotary", {"name": "rope"}, head_dim=8)
    sizes = {"d_model": 16, "causal": True}
    layer = build(
        "layer",
        {"name": "prenorm"},
        **sizes,
        attention=lambda: build(
            "attention", {"name": "multihead"}, **sizes, n_heads=2, rotary=rotary
        ),
        feedforward=lambda: build("feedforward", {"name": "gelu"}, d_model=16),
        norm=lambda: build("norm", {"name": "layernorm"}, d_model=16),
    )
    frontend = build("frontend", {"name": "tokens"}, d_model=16, vocab_size=VOCAB)
    return Model(frontend, [layer], nn.LayerNorm(16), 16, VOCAB).eval()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_temperature_zero_takes_the_most_probable_token_after_all_before(model):
    prompt = torch.randint(VOCAB, (3, 4), generator=generator())
    sampled = sample_tokens(model, prompt, 6, 100, Sampling(temperature=0), generator())
    text = prompt
    for _ in range(6):
        scores, _ = model(text)
        text = torch.cat((text, scores[:, -1:].argmax(-1)), 1)
    assert torch.equal(sampled, text[:, 4:])


def test_model_never_reads_more_than_its_context(model):
    sizes = []
    forward = model.forward

    def count(chunk, state):
        sizes.append((id(state), chunk.shape[1]))
        return forward(chunk, state=state)

    model.forward = count
    prompt = torch.randint(VOCAB, (2, 9), generator=generator())
    assert sample_tokens(model, prompt, 30, 8, Sampling(), generator()).shape == (2, 30)
    total = 0
    previous = None
    for state, size in sizes:
        total = size if state != previous else total + size
        previous = state
        assert total <= 8


def test_tokens_have_the_probabilities_of_the_scores():
    scores = torch.randn(VOCAB, generator=generator()).expand(40_000, -1)
    for temperature in (0.5, 1.0):
        tokens = choose_tokens(scores, Sampling(temperature), generator())
        share = torch.bincount(tokens.flatten(), minlength=VOCAB) / len(tokens)
        expected = (scores[0] / temperature).softmax(-1)
        torch.testing.assert_close(share, expected, atol=0.012, rtol=0)


def test_low_temperature_gives_the_most_probable_token():
    scores = torch.randn(9, VOCAB, generator=generator())
    for temperature in (1e-5, 1e-40, 5e-324):
        tokens = choose_tokens(scores, Sampling(temperature), generator())
        assert torch.equal(tokens, scores.argmax(-1, keepdim=True)), temperature


def test_unlikely_tokens_can_be_left_out():
    scores = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(4000, -1)
    for sampling, expected in {
        Sampling(top_k=1): {0},
        Sampling(top_k=3): {0, 1, 2},
        Sampling(top_p=0.01): {0},
        Sampling(top_p=0.65): {0, 1},
        Sampling(top_p=0.75): {0, 1, 2},
        Sampling(top_k=2, top_p=0.99): {0, 1},
    }.items():
        tokens = choose_tokens(scores, sampling, generator())
        assert set(tokens.flatten().tolist()) == expected, sampling


def test_seed_decides_the_text(model):
    prompt = torch.zeros(1, 1, dtype=torch.long)
    first, again, other = (
        sample_tokens(model, prompt, 20, 100, Sampling(), generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_prompt_that_the_tokens_do_not_write_is_refused():
    subwords = train_tokenizer(["to be or not to be"] * 3, (), vocab_size=12)
    assert subwords.decode(encode_prompt(subwords, "to be")) == "to be"
    for tokenizer, prompt, sentence in (
        (subwords, " to be", "--prompt ' to be' is 'to be' in tokens: write it so"),
        (subwords, "bé", "--prompt has characters outside the vocabulary: 'é'"),
        (subwords, "b\udce4", r"--prompt b\\udce4 is not UTF-8"),
        (byte_tokenizer(), "b\udce4", r"--prompt b\\udce4 is not UTF-8"),
    ):
        with pytest.raises(UserError, match=f"^{sentence}$"):
            encode_prompt(tokenizer, prompt)
