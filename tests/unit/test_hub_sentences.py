"""Sentences with labels of Hugging Face data sets in folders."""

import pytest

from famx.data.hub_sentences import HubSentences
from famx.notation import UserError
from famx.task.classify import Classify

TENTHS = ("train[:80%]", "train[80%:90%]", "train[90%:]")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    import datasets

    folder = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


def test_labels_are_the_names_of_classes(tmp_path):
    dataset = HubSentences("train", **HubSentences.example(tmp_path))
    assert dataset.texts[:4] == ["bad", "good", "bad", "good"]
    assert bytes(dataset[1].signal.tolist()).decode() == "sentence 1 of bb"
    assert Classify.build_tokenizer(dataset).get_vocab() == {"bad": 0, "good": 1}


def test_folder_of_tables_is_read_with_values_as_they_are_written(tmp_path):
    lines = [f'{i % 2},"null, {i}",x' for i in range(20)]
    (tmp_path / "train.csv").write_text("\n".join(["kind,review,other", *lines]))
    options = {"path": str(tmp_path), "splits": TENTHS, "text": "review", "label": "kind"}
    splits = [HubSentences(split, **options) for split in ("train", "dev", "test")]
    assert [len(dataset) for dataset in splits] == [16, 2, 2]
    assert splits[1].texts == ["0", "1"]
    assert bytes(splits[1][0].signal.tolist()).decode() == "null, 16"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("label,review\na,b\n", {}, r"has no column data\.text=text; .*label, review"),
        ("kind,text\na,b\n", {}, r"has no column data\.label=label; .*kind, text"),
        ("label,text\na,\n", {}, r": train\[0\] has no sentence$"),
        ("label,text\n,a\n", {}, r": train\[0\] has no label$"),
        ("label,text\n", {}, r"the table .*train\.csv is empty$"),
        ("label,text\na,b\n", {"splits": ("train",)}, r"must name three splits"),
        ("label,text\na,b\n", {"splits": ("dev", "dev", "dev")}, r"no split 'dev'.*divides it$"),
        ("label,text\na,b\n", {"path": ""}, r"needs a data set, data\.path=OWNER/NAME or a folder"),
    ],
)
def test_bad_data_are_refused_in_one_sentence(content, options, message, tmp_path):
    (tmp_path / "train.csv").write_text(content)
    options = {"path": str(tmp_path), "splits": ("train", "train", "train"), **options}
    with pytest.raises(UserError, match=message) as refusal:
        HubSentences("train", **options)
    assert "\n" not in str(refusal.value)
