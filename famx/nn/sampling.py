"""Samples text from a language model, token by token."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from famx.nn.state import DecodeState


class Sampling(NamedTuple):
    """How the next token is sampled: p(v) ~ exp(score_v / temperature) over the likeliest tokens.

    Args:
        temperature: 1 samples from the model's own distribution, 0 takes its most probable token.
        top_k: number of the likeliest tokens that can be sampled; 0 for all.
        top_p: the likeliest tokens whose probabilities sum to this can be sampled (nucleus
            sampling, Holtzman et al. 2020), at least one; 1 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@torch.inference_mode()
def sample_tokens(
    model: nn.Module,
    prompt: Int[Tensor, "b t"],
    n_tokens: int,
    context: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> Int[Tensor, "b n_tokens"]:
    """Continues each row of a prompt.

    A model has learned from at most `context` tokens. When so many precede the next one, the model
    reads the newer half of them again, and forgets the rest.

    Args:
        model: `(tokens, state=state) -> (scores, lengths)`, in evaluation.
        prompt: token ids, at least one a row.
        n_tokens: number of tokens to sample.
        generator: source of random numbers, on the CPU.
    """
    text = prompt
    state = DecodeState()
    chunk = text[:, -context:]
    n_read = 0
    for _ in range(n_tokens):
        n_read += chunk.shape[1]
        scores, _ = model(chunk, state=state)
        chunk = choose_tokens(scores[:, -1], sampling, generator)
        text = torch.cat((text, chunk), 1)
        if n_read == context:
            state = DecodeState()
            chunk = text[:, -max(1, context // 2) :]
            n_read = 0
    return text[:, prompt.shape[1] :]


def choose_tokens(
    scores: Float[Tensor, "b v"], sampling: Sampling, generator: torch.Generator
) -> Int[Tensor, "b 1"]:
    """Samples one token for each row of scores."""
    if sampling.temperature == 0:
        return scores.argmax(-1, keepdim=True)
    # in 64 bits and at most 0, so that a low temperature gives no infinite score
    scores_on_cpu = scores.cpu().double()
    largest = scores_on_cpu.amax(-1, keepdim=True)
    probs = ((scores_on_cpu - largest) / sampling.temperature).softmax(-1)
    # the likeliest first
    probs, tokens = probs.sort(descending=True)
    if sampling.top_k:
        probs[:, sampling.top_k :] = 0
    # a token can be sampled if those before it do not reach the sum
    before = probs.cumsum(-1) - probs
    probs = probs.masked_fill(before >= sampling.top_p, 0)
    index = torch.multinomial(probs, 1, generator=generator)
    return tokens.gather(1, index).to(scores.device)
