"""Decoders give the texts that a reader of the scores would write down."""

import torch

from famx.data._tokenizers import byte_tokenizer, train_tokenizer
from famx.nn.batch import Batch
from famx.notation import Modality
from famx.registry import build


class NextLetter(torch.nn.Module):
    """Is sure that each letter is followed by the next one of the alphabet."""

    def forward(self, inputs, state):
        return 9.0 * torch.nn.functional.one_hot(inputs + 1, 256), None


def test_greedy_ctc_merges_repeats_drops_blanks_and_ignores_padding():
    tokenizer = train_tokenizer(["ab"], ["<blank>"])
    decoder = build("decode", {"name": "ctc_greedy"}, tokenizer=tokenizer)
    path = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 0], [2, 2, 1, 1, 0, 1, 2, 1]])
    scores = 9.0 * torch.nn.functional.one_hot(path, 3)
    assert decoder.decode_scores(scores, torch.tensor([8, 4])) == ["aab", "ba"]


def test_greedy_language_model_continues_the_first_half():
    decoder = build("decode", {"name": "lm_greedy"}, tokenizer=byte_tokenizer())
    rows = torch.tensor([list(b"abcdef"), list(b"uvwxyz")])
    batch = Batch(
        ids=["0", "1"],
        texts=[],
        inputs=rows,
        lengths=torch.tensor([6, 6]),
        targets=torch.zeros(2, 0, dtype=torch.long),
        target_lengths=torch.zeros(2, dtype=torch.long),
        spans=None,
        modality=Modality.TEXT,
    )

    assert decoder(NextLetter(), batch) == ["def", "xyz"]
