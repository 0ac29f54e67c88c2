"""What every task promises."""

from typing import Any

import torch
from torch import Tensor, nn

from famx.contracts import Contract, build_for_test, require
from famx.data._tokenizers import train_tokenizer
from famx.nn.batch import Batch

TEXTS = ("abba cab", "cabbb", "a")
FRAMES = 20


def one_batch_overfits(part: type) -> None:
    """Scores that are free to be any go where the loss is next to nothing and what is decoded is right."""
    task, batch, model = _example(part)
    first = task.loss(model, batch).item()
    _fit(task, model, batch)
    last = task.loss(model, batch).item()
    require(
        last < 0.05 * first,
        f"one batch is not learned: its loss falls from {first:.3f} to {last:.3f} only",
    )
    if batch.texts:
        found = task.decode(model, batch)
        require(found == batch.texts, f"decodes {found} from scores that fit {batch.texts}")
        rates = {name: errors.rate for name, errors in task.score(batch.texts, found).items()}
        require(rates and not any(rates.values()), f"counts errors where there are none: {rates}")


def judges_as_it_trains_and_decodes(part: type) -> None:
    task, batch, model = _example(part)
    loss, found = task.judge(model, batch)
    expected = task.loss(model, batch)
    require(
        torch.allclose(loss, expected),
        f"judges a loss of {loss.item()} where it trains on {expected.item()}",
    )
    if task.metric != "loss":
        decoded = task.decode(model, batch)
        require(found == decoded, f"judges by {found} where it decodes {decoded}")


def padding_counts_nothing(part: type) -> None:
    task, batch, model = _example(part)
    _fit(task, model, batch)
    loss, found = task.loss(model, batch).item(), task.decode(model, batch)
    with torch.no_grad():
        model.beyond += 9 * torch.randn_like(model.beyond)
    changed = task.loss(model, batch).item()
    require(
        abs(changed - loss) <= 1e-5 * loss,
        f"the loss goes from {loss} to {changed} with the scores of padding",
    )
    require(
        not batch.texts or task.decode(model, batch) == found,
        "what is decoded changes with the scores of padding",
    )


def loss_is_a_mean_over_units(part: type) -> None:
    """The losses of a batch's shards, weighed by what `count` counts, make the loss of the batch."""
    task, batch, model = _example(part)
    shards = [batch.shard(rank, 2) for rank in range(2)]
    counts = [task.count(shard) for shard in shards]
    require(
        sum(counts) == task.count(batch),
        f"counts {task.count(batch)} units, and {counts} in its shards",
    )
    mean = sum(
        task.loss(model, shard) * count for shard, count in zip(shards, counts, strict=True)
    ) / sum(counts)
    loss = task.loss(model, batch)
    require(torch.allclose(mean, loss, rtol=1e-5), f"the loss is {loss}, and {mean} by its shards")


class _Scores(nn.Module):
    """Scores that are parameters: of each frame of each row, or of each token; past a row's end they are `beyond`."""

    def __init__(self, rows: int, vocab_size: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(rows, vocab_size))
        self.beyond = nn.Parameter(torch.randn(vocab_size))

    def forward(
        self,
        inputs: Tensor,
        lengths: Tensor | None = None,
        spans: Any = None,
        state: dict | None = None,
    ) -> tuple[Tensor, Tensor]:
        lengths = torch.full((len(inputs),), inputs.shape[1]) if lengths is None else lengths
        real = (torch.arange(inputs.shape[1]) < lengths[:, None])[..., None]
        return torch.where(real, self.table[inputs.long()], self.beyond), lengths


def _example(part: type) -> tuple[Any, Batch, _Scores]:
    """A task, three rows of different lengths, and scores for them."""
    tokenizer = train_tokenizer(TEXTS)
    task, of_speech = build_for_test(part, tokenizer=tokenizer), part.unit == "seconds"
    ids = [torch.tensor(tokenizer.encode(text).ids) for text in TEXTS]
    if of_speech:  # each frame is a number of its own
        lengths = torch.tensor([FRAMES, FRAMES - 6, FRAMES - 9])
        inputs = torch.arange(len(ids) * FRAMES).view(len(ids), FRAMES).float()
    else:  # each token is followed by the same one always
        ids = [
            torch.arange(n) % (tokenizer.get_vocab_size() - 1) + 1
            for n in (FRAMES, FRAMES - 6, FRAMES - 9)
        ]
        lengths = torch.tensor([len(row) for row in ids])
        inputs = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    batch = Batch(
        ids=list(TEXTS),
        texts=list(TEXTS) if of_speech else [],
        inputs=inputs,
        lengths=lengths,
        targets=nn.utils.rnn.pad_sequence(ids, batch_first=True),
        target_lengths=torch.tensor([len(row) for row in ids]),
        spans=None,
        seconds=float(lengths.sum()),
        padding=1 - int(lengths.sum()) / inputs.numel(),
    )
    return task, batch, _Scores(int(inputs.max()) + 1, tokenizer.get_vocab_size())


def _fit(task: Any, model: _Scores, batch: Batch, steps: int = 150) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()


CONTRACT: tuple[Contract, ...] = (
    one_batch_overfits,
    judges_as_it_trains_and_decodes,
    padding_counts_nothing,
    loss_is_a_mean_over_units,
)
