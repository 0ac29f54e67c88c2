"""A run on a stream that breaks, and goes on later."""

import re

import pytest
import torch
from datasets import Dataset
from tones import TINY, saved_weights

from famx.data import _parquet_stream
from famx.data._parquet_stream import ParquetStream


@pytest.fixture
def parquet(corpus, tmp_path):
    """A folder of parquet files of the corpus of tones."""
    for split in ("train", "dev", "test"):
        rows = []
        for line in (corpus / f"{split}.tsv").read_text().splitlines():
            file, text, *_ = line.split("\t")
            content = (corpus / file).read_bytes()
            rows.append({"audio": {"path": file, "bytes": content}, "text": text})
        table = Dataset.from_list(rows)
        for shard in range(2):
            file = tmp_path / "tones" / f"{split}-{shard:05d}-of-00002.parquet"
            table.shard(2, shard).to_parquet(file, batch_size=3)
    return tmp_path / "tones"


def test_a_run_whose_stream_breaks_is_saved_and_goes_on_bit_for_bit(
    parquet, command, monkeypatch, tmp_path
):
    words = [*TINY, "data=hub_stream", f"data.path={parquet}", "data.window=6"]
    words.append("data.splits=[train,validation,test]")
    result = command("train", *words, "hydra.run.dir=unbroken")
    assert result.status == 0, result.err
    assert "24 examples, in windows of some 6" in result.out

    # the files are gone from the third window on
    monkeypatch.setattr(_parquet_stream, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    window = ParquetStream.window

    def window_of_a_broken_stream(stream, number):
        if number >= 2 and parquet.exists():
            parquet.rename(tmp_path / "elsewhere")
        return window(stream, number)

    with monkeypatch.context() as patch:
        patch.setattr(ParquetStream, "window", window_of_a_broken_stream)
        result = command("train", *words, "hydra.run.dir=broken")
    assert result.status == 2
    assert "could not be read in 4 attempts (FileNotFoundError" in result.err
    [step] = re.findall(r"; step (\d) is saved, resume=RUN continues", result.err)
    assert 2 < int(step) < 7
    assert (tmp_path / "broken" / "checkpoints" / f"step-{step}").is_dir()

    (tmp_path / "elsewhere").rename(parquet)
    result = command("train", "resume=broken")
    assert result.status == 0, result.err
    expected = saved_weights(tmp_path / "unbroken")
    for name, weight in saved_weights(tmp_path / "broken").items():
        assert torch.equal(weight, expected[name])
