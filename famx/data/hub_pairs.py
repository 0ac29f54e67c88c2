"""Texts with their translations of a Hugging Face data set, from the hub or a local folder."""

from pathlib import Path
from typing import Any

from famx.data._hub_tables import load_table, require_columns, source_split_of
from famx.data._normalisers import Normaliser
from famx.data._pairs import Pair, PairDataset
from famx.data._tables import text_column
from famx.registry import register


@register
class HubPairs(PairDataset):
    """A data set as `datasets.load_dataset(path, subset)` loads it, for task=translate.

    Args:
        split: "train", "dev" or "test".
        path: OWNER/NAME on the hub, with @REVISION for another revision than the newest. Or a
            folder: of `save_to_disk`, of parquet files, or one with SPLIT.csv or SPLIT.tsv.
        subset: configuration of the data set, if it has several.
        splits: names of train, dev and test in the data set, in this order; each may be a slice
            such as `train[:90%]`.
        source, target: columns of the texts. The keys of a column of mappings, as most data sets of
            translations have it, are columns such as `translation.en`.
        normaliser: normalisation of both sides: as written ("none"), in NFC without invisible
            characters ("unicode"), lower case without punctuation ("basic"), or Whisper's rules for
            English ("english", of the extra `english`).
        skip_bad: leaves out pairs with an empty side and counts them; otherwise the first one is
            refused.
    """

    path_options = ("path",)

    def __init__(
        self,
        split: str,
        *,
        path: str = "",
        subset: str = "",
        splits: tuple[str, ...] = ("train", "validation", "test"),
        source: str = "source",
        target: str = "target",
        normaliser: Normaliser = "none",
        skip_bad: bool = False,
    ) -> None:
        name = source_split_of(split, self.splits, path, splits)
        # the format of a table stays bound to the columns that it had before
        table = load_table(path, subset, name).flatten().with_format(None)
        require_columns(table.column_names, path, {"source": source, "target": target})
        locations = [f"data.path={path}, {name}[{index}]" for index in range(len(table))]
        sources = text_column(table, source, "data.source")
        targets = text_column(table, target, "data.target")
        pairs = list(map(Pair, sources, targets, locations))
        super().__init__(split, pairs, normaliser, skip_bad)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        from datasets import Dataset, DatasetDict

        tables = {}
        for split, size in (("train", 24), ("validation", 6), ("test", 6)):
            texts = [f"{'ab'[i % 2] * (1 + i % 5)} {split}" for i in range(size)]
            rows = [{"de": text, "en": text[::-1]} for text in texts]
            tables[split] = Dataset.from_dict({"translation": rows})
        DatasetDict(tables).save_to_disk(folder / "dataset")
        columns = {"source": "translation.de", "target": "translation.en"}
        return {"path": str(folder / "dataset")} | columns
