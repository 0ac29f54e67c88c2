"""What every data set promises."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch

from famx.contracts import Contract, ContractError, build_for_test, require
from famx.nn.batch import Batch, Example
from famx.notation import SAMPLE_RATE
from famx.training.loader import Loader, LoaderConfig

Part = Callable[..., Any]


def items(part: Part) -> None:
    for split in _build(part).splits:
        dataset = _build(part, split)
        require(
            len(dataset) == len(dataset.ids) == len(dataset.texts) == len(dataset.lengths) > 0,
            f"{split} has {len(dataset)} items, {len(dataset.ids)} ids, {len(dataset.texts)} texts, "
            f"{len(dataset.lengths)} lengths",
        )
        for index in range(len(dataset)):
            example = dataset[index]
            require(
                isinstance(example, Example),
                f"item {index} of {split} is a {type(example).__name__}",
            )
            signal, told = example.signal, (dataset.ids[index], dataset.texts[index])
            require(
                (example.id, example.text) == told,
                f"item {index} of {split} is {example}, the data set says {told}",
            )
            kind = torch.float32 if dataset.unit == "seconds" else torch.int64
            require(
                signal.ndim == 1 and signal.dtype == kind,
                f"{example.id} is {signal.dtype} of {tuple(signal.shape)}",
            )
            require(
                signal.abs().max() <= 1 or kind == torch.int64,
                f"{example.id} reaches {signal.abs().max()}",
            )


def lengths_told(part: Part) -> None:
    for split in _build(part).splits:
        dataset = _build(part, split)
        for index, told in enumerate(dataset.lengths):
            n = len(dataset[index].signal)
            found = n / SAMPLE_RATE if dataset.unit == "seconds" else n - 1
            require(
                abs(found - told) <= 0.02,
                f"item {index} of {split} is {found} {dataset.unit} long, not {told}",
            )


def splits_apart(part: Part) -> None:
    seen: dict[str, str] = {}
    for split in _build(part).splits:
        for name in _build(part, split).ids:
            require(
                seen.setdefault(name, split) == split, f"{name} is in {seen[name]} and in {split}"
            )


def unknown_split(part: Part) -> None:
    try:
        _build(part, "tomorrow")
    except ValueError as error:
        require(
            "tomorrow" in str(error), f"refuses the split 'tomorrow' without naming it: {error}"
        )
    else:
        raise ContractError("takes 'tomorrow' for a split")


def items_of_an_epoch(part: Part) -> None:
    one, other = _build(part), _build(part)
    for epoch in (2, 0, 1):
        order = list(range(len(one.at(epoch))))
        backwards = {index: other.at(epoch)[index] for index in reversed(order)}
        for index in order:
            require(
                _same(one.at(epoch)[index], backwards[index]),
                f"item {index} of epoch {epoch} depends on what was read before it",
            )


def order_of_an_epoch(part: Part) -> None:
    loader = _loader(part)
    for epoch in (1, 0):
        plan = loader.plan(epoch)
        require(
            plan == _loader(part).plan(epoch),
            f"the order of epoch {epoch} depends on more than seed and epoch",
        )
        found = sorted(index for batch in plan for _, index in batch)
        require(
            found == list(range(len(loader.dataset.at(epoch)))),
            f"epoch {epoch} does not hold every item once",
        )
    require(loader.plan(0) != _loader(part, seed=1).plan(0), "another seed gives the same order")


def resumed(part: Part) -> None:
    loader, steps = _loader(part), 6
    whole = list(islice(loader.train(), steps))
    for begun in range(steps - 1):
        epoch, position, _ = whole[begun]
        rest = islice(_loader(part).train(epoch, position + 1), steps - begun - 1)
        _assert_equal(
            iter(whole[begun + 1 :]), rest, f"going on after epoch {epoch}, position {position}"
        )


def workers(part: Part) -> None:
    _assert_equal(
        islice(_loader(part).train(), 5),
        islice(_loader(part, workers=2).train(), 5),
        "with two workers",
    )


def plain_once(part: Part) -> None:
    loader = _loader(part)
    found = [name for batch in loader.plain() for name in batch.ids]
    require(
        sorted(found) == sorted(loader.dataset.ids),
        "the plain order leaves items out or repeats them",
    )
    require(
        all(batch.spans is None for batch in loader.plain()), "the plain order blanks something"
    )


def _build(part: Part, split: str = "train", seed: int = 0) -> Any:
    return build_for_test(part, split=split, seed=seed)


def _loader(part: Part, seed: int = 0, workers: int = 0) -> Loader:
    """Some four items a batch."""
    dataset = _build(part, seed=seed)
    config = LoaderConfig(batch=4 * max(dataset.lengths), buckets=2, workers=workers)
    return Loader(dataset, dataset.build_tokenizer(), seed, config)


def _same(one: Example, other: Example) -> bool:
    return one.id == other.id and one.text == other.text and torch.equal(one.signal, other.signal)


def _assert_equal(
    one: Iterator[tuple[int, int, Batch]], other: Iterator[tuple[int, int, Batch]], where: str
) -> None:
    for (epoch, position, batch), (at, place, again) in zip(one, other, strict=True):
        told = f"{where}, the batch at epoch {epoch}, position {position}"
        require(
            (epoch, position, batch.ids) == (at, place, again.ids),
            f"{told} is another: {again.ids}",
        )
        for name in ("inputs", "lengths", "targets", "spans"):
            mine, theirs = getattr(batch, name), getattr(again, name)
            require(
                (mine is None and theirs is None) or torch.equal(mine, theirs),
                f"{told} has other {name}",
            )


CONTRACT: tuple[Contract, ...] = (
    items,
    lengths_told,
    splits_apart,
    unknown_split,
    items_of_an_epoch,
    order_of_an_epoch,
    resumed,
    workers,
    plain_once,
)
