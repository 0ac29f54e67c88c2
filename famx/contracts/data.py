"""Guarantees of every data set, checked on the tiny corpus of its `example`."""

import functools
import math
import tempfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import torch

from famx.contracts import Contract, ContractError, require
from famx.data.base import Dataset
from famx.nn.batch import Batch, Example
from famx.notation import Modality
from famx.registry import hyperparameters, select_context
from famx.training.loader import Loader
from famx.training.loader_config import LoaderConfig

# seconds: a duration that is read from a header may be rounded; numbers of tokens are exact
LENGTH_TOLERANCE = 0.02
Step = tuple[int, int, Batch]
"""Epoch, position in it, and batch."""


class Builder:
    """Builds data sets of a part over its example.

    Args:
        part: class of the data set.
        folder: folder for the corpus of the example.
    """

    def __init__(self, part: type[Dataset], folder: Path) -> None:
        require(
            issubclass(part, Dataset),
            f"{part.__name__} is not a subclass of famx.data.base.Dataset",
        )
        self.part = part
        self.splits = part.splits
        self.options = part.example(folder)
        # hyperparameters that famx.check was called with, which come before those of the example
        init = vars(part).get("__init__")
        if isinstance(init, functools.partialmethod):
            self.options |= init.keywords

    def dataset(self, split: str = "train", seed: int = 0) -> Dataset:
        """Builds one split."""
        context = select_context(self.part, {"split": split, "seed": seed})
        return self.part(**context, **self.options)

    def loader(self, seed: int = 0, workers: int = 0) -> Loader:
        """Builds a loader of the training split, with some four items in a batch."""
        dataset = self.dataset(seed=seed)
        budget = 4.0 * max(dataset.lengths)
        # of the budgets, the loader reads the one of the data's modality
        config = LoaderConfig(
            batch_seconds=budget,
            batch_tokens=math.ceil(budget),
            batch_rows=math.ceil(budget),
            buckets=2,
            workers=workers,
        )
        tokenizer = dataset.build_tokenizer() if dataset.modality is not Modality.TEXT else None
        return Loader(dataset, tokenizer, seed, config)


def on_example(contract: Callable[[Builder], None]) -> Contract:
    """Turns a contract over a `Builder` into one over a part, in a temporary folder."""

    @functools.wraps(contract)
    def contract_of_part(part: type[Dataset]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            contract(Builder(part, Path(folder)))

    return contract_of_part


@on_example
def options_exist(build: Builder) -> None:
    """The options of the example, and those that are paths, are hyperparameters of the part."""
    known = hyperparameters(build.part)
    for option in (*build.part.path_options, *build.options):
        require(option in known, f"{option} is no hyperparameter of {build.part.__name__}")


@on_example
def items_match_columns(build: Builder) -> None:
    """The columns of ids, texts and lengths describe the items, row by row."""
    for split in build.splits:
        dataset = build.dataset(split)
        # columns of equal length
        sizes = (len(dataset), len(dataset.ids), len(dataset.texts), len(dataset.lengths))
        require(
            len(set(sizes)) == 1 and sizes[0] > 0,
            "{} has {} items, {} ids, {} texts, {} lengths".format(split, *sizes),
        )
        # whose rows are the items
        for index in range(len(dataset)):
            example = dataset[index]
            require(
                isinstance(example, Example),
                f"item {index} of {split} is a {type(example).__name__}",
            )
            columns = (dataset.ids[index], dataset.texts[index])
            require(
                (example.id, example.text) == columns,
                f"item {index} of {split} is {example}, the data set lists {columns}",
            )


@on_example
def items_match_modality(build: Builder) -> None:
    """The signal of speech is float32 in [-1, 1], that of text int64; each has one dimension.

    That of images is float32 in [-1, 1], (rows, columns, channels), all of one width.
    """
    for split in build.splits:
        dataset = build.dataset(split)
        is_text = dataset.modality is Modality.TEXT
        dtype = torch.int64 if is_text else torch.float32
        row = dataset[0].signal.shape[1:]
        ndim = 3 if dataset.modality is Modality.IMAGE else 1
        for index in range(len(dataset)):
            name, signal, _ = dataset[index]
            require(
                signal.ndim == ndim and signal.dtype == dtype and signal.shape[1:] == row,
                f"{name} is {signal.dtype} of {tuple(signal.shape)}",
            )
            if not is_text:
                require(signal.abs().max() <= 1, f"{name} reaches {signal.abs().max()}")


@on_example
def lengths_match_items(build: Builder) -> None:
    """The listed length of an item is its duration in seconds, or its number of tokens or rows."""
    for split in build.splits:
        dataset = build.dataset(split)
        modality = dataset.modality
        for index, length in enumerate(dataset.lengths):
            size = len(dataset[index].signal)
            # the last token id of a text is a target only, if the text is its own target
            is_target = modality is Modality.TEXT and not dataset.texts[index]
            actual = modality.amount(size - 1 if is_target else size)
            require(
                abs(actual - length) <= LENGTH_TOLERANCE,
                f"item {index} of {split} is {actual} {modality.unit}s long, not {length}",
            )


@on_example
def splits_disjoint(build: Builder) -> None:
    """There are splits train and dev, and no two splits share an id."""
    require(
        {"train", "dev"} <= set(build.splits), f"has the splits {build.splits}, not train and dev"
    )
    split_of_id: dict[str, str] = {}
    for split in build.splits:
        for name in build.dataset(split).ids:
            first = split_of_id.setdefault(name, split)
            require(first == split, f"{name} is in {first} and in {split}")


@on_example
def unknown_split_refused(build: Builder) -> None:
    """A split that does not exist is refused by a message that names it."""
    try:
        build.dataset("tomorrow")
    except ValueError as error:
        require(
            "tomorrow" in str(error), f"refuses the split 'tomorrow' without naming it: {error}"
        )
    else:
        raise ContractError("accepts 'tomorrow' as a split")


@on_example
def tokenizer_encodes_items(build: Builder) -> None:
    """The tokenizer of the data set covers all of its items."""
    dataset = build.dataset()
    # the items of text are token ids already, of the inputs or of the targets
    if dataset.modality is Modality.TEXT:
        vocab_size = dataset.input_vocab_size or dataset.build_tokenizer().get_vocab_size()
        for index in range(len(dataset)):
            largest = int(dataset[index].signal.max())
            require(largest < vocab_size, f"id {largest} is outside {vocab_size} tokens")
        return
    # the texts of speech are encoded, and contain no special token
    tokenizer = dataset.build_tokenizer(special_tokens=("<blank>",))
    require(tokenizer.token_to_id("<blank>") == 0, "a special token does not get the first id")
    for text in dataset.texts:
        ids = tokenizer.encode(text).ids
        require(tokenizer.decode(ids) == text and 0 not in ids, f"{text!r} is encoded as {ids}")


@on_example
def items_independent_of_order(build: Builder) -> None:
    """An item is a function of seed, epoch and index, whichever items were read before it."""
    # two data sets, read in opposite orders, and epochs out of order
    forwards = build.dataset()
    backwards = build.dataset()
    for epoch in (2, 0, 1):
        indices = range(len(forwards.at(epoch)))
        expected = {index: backwards.at(epoch)[index] for index in reversed(indices)}
        for index in indices:
            require(
                _equal_examples(forwards.at(epoch)[index], expected[index]),
                f"item {index} of epoch {epoch} depends on what was read before it",
            )


@on_example
def plan_deterministic(build: Builder) -> None:
    """The order of an epoch is a function of seed and epoch, and contains every item once."""
    loader = build.loader()
    for epoch in (1, 0):
        plan = loader.plan(epoch)
        # a loader that has planned no epoch before
        require(
            plan == build.loader().plan(epoch),
            f"the order of epoch {epoch} depends on more than seed and epoch",
        )
        # whichever batches an item is in
        indices = sorted(index for batch in plan for index in batch.indices)
        require(
            indices == list(range(len(loader.dataset.at(epoch)))),
            f"epoch {epoch} does not contain every item once",
        )
    require(loader.plan(0) != build.loader(seed=1).plan(0), "another seed gives the same order")


@on_example
def resume_exact(build: Builder) -> None:
    """A loader that starts at any position continues with the batches of an unbroken run."""
    # at some four items a batch, these steps pass the end of an epoch where the example is small
    n_steps = 6
    steps = list(islice(build.loader().train_batches(), n_steps))
    # a run that stops after each of the steps and continues
    for stop in range(n_steps - 1):
        epoch, position, _ = steps[stop]
        resumed = build.loader().train_batches(epoch, position + 1)
        _require_equal_steps(
            steps[stop + 1 :],
            islice(resumed, n_steps - stop - 1),
            f"resumed after epoch {epoch}, position {position}",
        )


@on_example
def workers_change_nothing(build: Builder) -> None:
    """Two workers give the same batches as none, in the same order."""
    n_steps = 5
    _require_equal_steps(
        islice(build.loader().train_batches(), n_steps),
        islice(build.loader(workers=2).train_batches(), n_steps),
        "with two workers",
    )


@on_example
def evaluation_covers_items(build: Builder) -> None:
    """An evaluation reads every item once, without blanked spans."""
    loader = build.loader()
    batches = list(loader.eval_batches())
    ids = [name for batch in batches for name in batch.ids]
    require(sorted(ids) == sorted(loader.dataset.ids), "evaluation omits or repeats items")
    require(all(batch.spans is None for batch in batches), "evaluation blanks something")


def _equal_examples(first: Example, second: Example) -> bool:
    same_texts = (first.id, first.text) == (second.id, second.text)
    return same_texts and torch.equal(first.signal, second.signal)


def _require_equal_steps(expected: Iterable[Step], actual: Iterable[Step], setting: str) -> None:
    """Requires two sequences of batches to be equal; `setting` says how the second one differs."""
    for (epoch, position, batch), (epoch_2, position_2, batch_2) in zip(
        expected, actual, strict=True
    ):
        label = f"{setting}, the batch at epoch {epoch}, position {position}"
        require(
            (epoch, position, batch.ids) == (epoch_2, position_2, batch_2.ids),
            f"{label} differs: {batch_2.ids}",
        )
        # tensors have no equality of one truth value
        for name in ("inputs", "lengths", "targets", "spans"):
            tensor = getattr(batch, name)
            tensor_2 = getattr(batch_2, name)
            both_none = tensor is None and tensor_2 is None
            require(both_none or torch.equal(tensor, tensor_2), f"{label} has different {name}")


CONTRACT: tuple[Contract, ...] = (
    options_exist,
    items_match_columns,
    items_match_modality,
    lengths_match_items,
    splits_disjoint,
    unknown_split_refused,
    tokenizer_encodes_items,
    items_independent_of_order,
    plan_deterministic,
    resume_exact,
    workers_change_nothing,
    evaluation_covers_items,
)
ESSENTIAL: tuple[Contract, ...] = (
    items_match_columns,
    lengths_match_items,
    splits_disjoint,
    items_independent_of_order,
    plan_deterministic,
    evaluation_covers_items,
)
