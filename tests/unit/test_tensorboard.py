"""A run's reports reach its files, and a resumed run continues them."""

import json
import logging
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from famx.monitoring.metrics import HeatMap
from famx.monitoring.tensorboard import RunLog
from famx.training.run_dir import RunDir


@pytest.fixture
def run_dir(tmp_path) -> RunDir:
    return RunDir(tmp_path / "run")


def write_report(log: RunLog, step: int, **metrics: object) -> None:
    log.write(step, 0, 1.5, "train", metrics)


def events(run_dir: RunDir) -> EventAccumulator:
    return EventAccumulator(str(run_dir.path)).Reload()


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_numbers_become_a_line_and_curves(run_dir):
    log = RunLog(run_dir)
    write_report(log, 5, loss=2.0, histogram=torch.rand(4))
    log.close()
    (line,) = lines(run_dir.metrics_file)
    assert line == {"step": 5, "epoch": 0, "seconds": 1.5, "split": "train", "loss": 2.0}
    tags = events(run_dir).Tags()
    assert tags["scalars"] == ["loss"]
    assert tags["histograms"] == ["histogram"]


def test_the_last_matrix_of_each_tag_becomes_an_image(run_dir):
    log = RunLog(run_dir)
    for step in (1, 2):
        write_report(log, step, matrix=torch.ones(3, 4) * step, zeros=torch.zeros(3, 4))
    log.log_images(2, {"image": HeatMap(torch.rand(2, 5), ("a", "b"), "columns")})
    log.log_images(3, {})
    log.close()
    recorded = events(run_dir)
    assert sorted(recorded.Tags()["images"]) == ["image", "matrix"]
    assert [image.step for image in recorded.Images("matrix")] == [2]


def test_a_resumed_log_has_no_reports_of_later_steps(run_dir):
    log = RunLog(run_dir)
    for step in (1, 2, 3):
        write_report(log, step, loss=float(step))
    log.close()
    with run_dir.metrics_file.open("a") as stream:
        stream.write('{"step": 4, "lo')  # a crash
    log = RunLog(run_dir, step=2)
    write_report(log, 3, loss=30.0)
    log.close()
    assert [line["loss"] for line in lines(run_dir.metrics_file)] == [1, 2, 30]
    assert [point.value for point in events(run_dir).Scalars("loss")] == [1, 2, 30]


def test_messages_are_logged_until_the_log_is_closed(run_dir):
    log = RunLog(run_dir)
    logging.getLogger("famx.anything").info("first")
    log.close()
    logging.getLogger("famx.anything").info("second")
    text = run_dir.log_file.read_text()
    assert "first" in text
    assert "second" not in text


def test_cells_of_a_text_table_cannot_end_it(run_dir):
    log = RunLog(run_dir)
    log.log_text_table(1, "samples", ("reference", "hypothesis"), [("a|b", "c")])
    log.log_text_table(1, "empty", ("reference", "hypothesis"), [])
    log.close()
    recorded = events(run_dir)
    assert recorded.Tags()["tensors"] == ["samples/text_summary"]
    (table,) = recorded.Tensors("samples/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert text == "| reference | hypothesis |\n| --- | --- |\n| a¦b | c |"


def test_hparams_are_of_the_session_and_list_no_columns(run_dir):
    log = RunLog(run_dir)
    log.log_hparams({"optim": "fam", "optim.lr": 0.5}, {"test/wer": 0.1}, 7)
    log.close()
    recorded = events(run_dir)
    hparams = {tag for tag in recorded.summary_metadata if tag.startswith("_hparams_")}
    assert hparams == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    (score,) = recorded.Scalars("test/wer")
    assert (score.step, score.value) == (7, pytest.approx(0.1))
