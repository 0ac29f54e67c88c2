"""Contracts of tasks: a loss that is a mean over units, and an evaluation that agrees."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from famx.contracts import Contract, build_for_test, require
from famx.contracts._text_models import FreeLattice, FreeText
from famx.data._tokenizers import encode, train_tokenizer
from famx.nn.batch import Batch
from famx.nn.masks import length_mask
from famx.notation import Modality, Subwords
from famx.registry import hyperparameters
from famx.task.base import Task

# repeated letters, which CTC tells apart by a blank, and targets of different lengths
TEXTS = ("abba cab", "cabbb", "a")
# frames or tokens of each row; enough frames for the tokens of its text and their blanks
FRAMES = 20
LENGTHS = (FRAMES, FRAMES - 6, FRAMES - 9)


def one_batch_overfits(part: type[Task]) -> None:
    """Scores that are free to take any value reach a loss near 0 and decode to the right texts."""
    task, batch, model = _example(part)
    first = task.loss(model, batch).item()
    _fit(task, model, batch)
    last = task.loss(model, batch).item()
    require(
        last < 0.05 * first,
        f"one batch is not learned: its loss only falls from {first:.3f} to {last:.3f}",
    )
    # a task without texts has its loss alone
    if batch.texts:
        texts = task.decode(model, batch)
        require(texts == batch.texts, f"decodes {texts} from scores that fit {batch.texts}")
        scores = task.score(batch.texts, texts)
        wrong = {}
        for name, score in scores.items():
            right = 1.0 if score.higher_is_better else 0.0
            if not math.isclose(score.rate, right):
                wrong[name] = score.rate
        require(bool(scores) and not wrong, f"counts errors where there are none: {wrong}")


def evaluates_as_it_trains_and_decodes(part: type[Task]) -> None:
    """`evaluate_batch` returns the loss of `loss` and, if it returns texts, those of `decode`."""
    task, batch, model = _example(part)
    loss, texts = task.evaluate_batch(model, batch)
    expected = task.loss(model, batch)
    require(
        torch.allclose(loss, expected),
        f"evaluates to a loss of {loss.item()} where it trains on {expected.item()}",
    )
    if texts:
        decoded = task.decode(model, batch)
        require(texts == decoded, f"evaluates {texts} where it decodes {decoded}")


def selects_by_a_metric_that_it_gives(part: type[Task]) -> None:
    """`selection_metric` is the loss or a score that `score` returns."""
    task, batch, model = _example(part)
    _, texts = task.evaluate_batch(model, batch)
    names = ["loss", *task.score(batch.texts, texts)] if texts else ["loss"]
    require(
        task.selection_metric in names,
        f"selects checkpoints by {task.selection_metric}, but gives {', '.join(names)}",
    )


def says_of_which_scores_higher_is_better(part: type[Task]) -> None:
    """`higher_is_better` names exactly the scores that say so."""
    task, batch, model = _example(part)
    _, texts = task.evaluate_batch(model, batch)
    scores = task.score(batch.texts, texts) if texts else {}
    higher = sorted(name for name, score in scores.items() if score.higher_is_better)
    require(
        higher == sorted(task.higher_is_better),
        f"higher_is_better={task.higher_is_better}, but its scores say so of {higher}",
    )


def padding_counts_nothing(part: type[Task]) -> None:
    """Neither loss nor texts depend on the scores of padding."""
    task, batch, model = _example(part)
    _fit(task, model, batch)
    loss = task.loss(model, batch).item()
    texts = task.decode(model, batch)
    # large enough to change which token is the most probable in padding
    with torch.no_grad():
        for name, padding in model.named_parameters():
            if name.endswith("padding"):
                padding.add_(9 * torch.randn_like(padding))
    changed = task.loss(model, batch).item()
    require(
        abs(changed - loss) <= 1e-5 * loss,
        f"the loss goes from {loss} to {changed} with the scores of padding",
    )
    require(
        not batch.texts or task.decode(model, batch) == texts,
        "the decoded texts change with the scores of padding",
    )


def loss_is_a_mean_over_units(part: type[Task]) -> None:
    """The losses of a batch's shards, weighted by their counts, average to its own."""
    task, batch, model = _example(part)
    # two shards of a different number of rows, as of two processes
    shards = [batch.shard(rank, 2) for rank in range(2)]
    counts = [task.count(shard) for shard in shards]
    total = task.count(batch)
    require(sum(counts) == total, f"counts {total} units, and {counts} in its shards")
    # the mean over all units, from the means over those of each shard
    losses = torch.stack([task.loss(model, shard) for shard in shards])
    mean = (losses * torch.tensor(counts)).sum() / total
    loss = task.loss(model, batch)
    require(torch.allclose(mean, loss, rtol=1e-5), f"the loss is {loss}, and {mean} by its shards")


class FreeScores(nn.Module):
    """A model whose scores are parameters: a row for each input value, and one for all padding."""

    def __init__(self, rows: int, vocab_size: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(rows, vocab_size))
        self.padding = nn.Parameter(torch.randn(vocab_size))

    def forward(
        self,
        inputs: Tensor,
        lengths: Tensor | None = None,
        spans: Tensor | None = None,
        state: object | None = None,
    ) -> tuple[Tensor, Tensor]:
        if lengths is None:
            lengths = torch.full((len(inputs),), inputs.shape[1])
        is_real = length_mask(lengths, inputs.shape[1])[..., None]
        return torch.where(is_real, self.table[inputs.long()], self.padding), lengths


class _Texts:
    """The training data of the example."""

    def __init__(self) -> None:
        self.texts = list(TEXTS)

    def build_tokenizer(
        self,
        vocab_size: int = 0,
        special_tokens: Sequence[str] = (),
        subwords: Subwords = "bpe",
    ) -> Tokenizer:
        return train_tokenizer(TEXTS, special_tokens or ("<blank>",))


def _example(part: type[Task]) -> tuple[Task, Batch, nn.Module]:
    """Builds a task, a batch of three rows of different lengths, and free scores for it."""
    tokenizer = part.build_tokenizer(_Texts())
    task = _build_task(part, tokenizer)
    targets = [torch.tensor(encode(tokenizer, text, text)) for text in TEXTS]
    texts = list(TEXTS)
    # each input value selects a row of the free scores, so it must always have the same target
    if not part.predicts_inputs:
        # each frame is a number of its own
        lengths = torch.tensor(LENGTHS)
        inputs = torch.arange(len(TEXTS) * FRAMES).view(len(TEXTS), FRAMES).float()
    else:
        # each token is always followed by the same one
        n_tokens = tokenizer.get_vocab_size() - 1
        targets = [torch.arange(length) % n_tokens + 1 for length in LENGTHS]
        texts = []
        lengths = torch.tensor(LENGTHS)
        inputs = nn.utils.rnn.pad_sequence(targets, batch_first=True)
    # rows of different lengths, padded
    batch = Batch(
        ids=list(TEXTS),
        texts=texts,
        inputs=inputs,
        lengths=lengths,
        targets=nn.utils.rnn.pad_sequence(targets, batch_first=True),
        target_lengths=torch.tensor([len(row) for row in targets]),
        spans=None,
        # a task of any modality reads the frames of a model, of whichever data
        modality=part.modality or Modality.SPEECH,
    )
    vocab_size = tokenizer.get_vocab_size()
    model: nn.Module = FreeScores(int(inputs.max()) + 1, vocab_size)
    if part.decoder_kind == "attention":
        model = FreeText(model, len(TEXTS), FRAMES, vocab_size)
    elif part.decoder_kind == "transducer":
        model = FreeLattice(model, len(TEXTS), FRAMES, vocab_size)
    return task, batch, model


def _build_task(part: type[Task], tokenizer: Tokenizer) -> Task:
    # with smoothed labels, the smallest loss is not 0
    is_smoothed = "label_smoothing" in hyperparameters(part)
    options = {"label_smoothing": 0.0} if is_smoothed else {}
    constructor: Callable[..., Task] = part
    return build_for_test(partial(constructor, **options), tokenizer=tokenizer)


def _fit(task: Task, model: nn.Module, batch: Batch, steps: int = 150) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()


CONTRACT: tuple[Contract, ...] = (
    one_batch_overfits,
    evaluates_as_it_trains_and_decodes,
    selects_by_a_metric_that_it_gives,
    says_of_which_scores_higher_is_better,
    padding_counts_nothing,
    loss_is_a_mean_over_units,
)
ESSENTIAL: tuple[Contract, ...] = (
    evaluates_as_it_trains_and_decodes,
    selects_by_a_metric_that_it_gives,
    says_of_which_scores_higher_is_better,
    padding_counts_nothing,
    loss_is_a_mean_over_units,
)
