"""Sentences with labels of a Hugging Face data set, from the hub or from a local folder."""

from pathlib import Path
from typing import Any

from famx.data._hub_tables import load_table, require_columns, source_split_of
from famx.data._tables import text_column
from famx.data.sentences import Sentences
from famx.notation import UserError
from famx.registry import register


@register
class HubSentences(Sentences):
    """A data set as `datasets.load_dataset(path, subset)` loads it, for task=classify.

    Args:
        split: "train", "dev" or "test".
        path: OWNER/NAME on the hub, with @REVISION for another revision than the newest. Or a
            folder: of `save_to_disk`, of parquet files, or one with SPLIT.csv or SPLIT.tsv.
        subset: configuration of the data set, if it has several.
        splits: names of train, dev and test in the data set, in this order; each may be a slice
            such as `train[:90%]`.
        text: column of the sentences.
        label: column of the labels.
    """

    path_options = ("path",)

    def __init__(
        self,
        split: str,
        *,
        path: str = "",
        subset: str = "",
        splits: tuple[str, ...] = ("train[:90%]", "train[90%:]", "test"),
        text: str = "text",
        label: str = "label",
    ) -> None:
        source = source_split_of(split, self.splits, path, splits)
        table = load_table(path, subset, source)
        require_columns(table.column_names, path, {"text": text, "label": label})
        labels = text_column(table, label, "data.label")
        sentences = text_column(table, text, "data.text")
        rows = list(zip(labels, map(str.strip, sentences), strict=True))
        for index, (name, sentence) in enumerate(rows):
            if not (name and sentence):
                missing = "sentence" if name else "label"
                raise UserError(f"data.path={path}: {source}[{index}] has no {missing}")
        if not rows:
            raise UserError(f"data.path={path} has no rows in the split {source}")
        self._set_rows(split, rows)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

        features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
        tables = {}
        for split, size in (("train", 24), ("test", 6)):
            labels = [i % 2 for i in range(size)]
            sentences = [f"sentence {i} of {'ab'[i % 2] * (1 + i % 5)}" for i in range(size)]
            columns = {"text": sentences, "label": labels}
            tables[split] = Dataset.from_dict(columns, features=features)
        DatasetDict(tables).save_to_disk(folder / "dataset")
        return {"path": str(folder / "dataset"), "splits": ("train[:75%]", "train[75%:]", "test")}
