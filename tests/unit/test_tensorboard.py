"""A run's reports reach its files, and a resumed run continues them."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

from famx.monitoring.descriptions import DESCRIPTIONS
from famx.monitoring.hooks import trial_name
from famx.monitoring.metrics import HeatMap
from famx.monitoring.tensorboard import RunLog
from famx.notation import UserError
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
    assert [point.value for point in events(run_dir).Scalars("loss")] == [2.0]
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
    assert recorded.Tags()["tensors"] == ["how to read this/text_summary", "samples/text_summary"]
    (table,) = recorded.Tensors("samples/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert text == "| reference | hypothesis |\n| --- | --- |\n| a¦b | c |"


def test_hparams_are_of_the_session_and_list_no_columns(run_dir):
    log = RunLog(run_dir)
    log.log_hparams("transformer_fam", {"optim": "fam", "optim.weight_decay": 0.5})
    log.close()
    metadata = events(run_dir).summary_metadata
    hparams = {tag for tag in metadata if tag.startswith("_hparams_")}
    assert hparams == {"_hparams_/session_start_info"}
    content = metadata["_hparams_/session_start_info"].plugin_data.content
    session = parse_session_start_info_plugin_data(content)
    assert session.group_name == "transformer_fam"
    # a title breaks its line at spaces only
    assert set(session.hparams) == {"optim", "optim weight_decay"}


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("2026-01-02_03-04-05_worm_fam", "worm_fam 2026-01-02_03-04-05"),
        (
            "2026-01-02_03-04-05_sweep/optim=fam,seed=1",
            "optim=fam,seed=1 2026-01-02_03-04-05_sweep",
        ),
        ("mine/run", "run mine"),
    ],
)
def test_names_of_runs_begin_with_what_differs(folder, name):
    assert trial_name(Path("outputs") / folder) == name


def test_curves_have_descriptions(run_dir):
    tags = ("optim/momentum/conv", "probe/coefficient/conv", "probe/momentum/conv", "my/own")
    log = RunLog(run_dir)
    log.log_curves(1, dict.fromkeys(tags, 0.5))
    log.close()
    metadata = events(run_dir).summary_metadata
    descriptions = [metadata[tag].summary_description for tag in tags]
    begins = ["momentum chosen", "momentum set", "momentum in effect", ""]
    assert [description.partition(":")[0] for description in descriptions] == begins


def test_a_page_of_text_explains_every_description(run_dir):
    RunLog(run_dir).close()
    (page,) = events(run_dir).Tensors("how to read this/text_summary")
    text = page.tensor_proto.string_val[0].decode()
    for beginning, description in DESCRIPTIONS.items():
        assert beginning in text
        assert description in text


def test_charts_show_several_curves(run_dir):
    log = RunLog(run_dir)
    tags = ["bands/norm_1_32+", "bands/norm_2_11-16"]
    log.log_charts({"bands": {"norm": tags}})
    log.close()
    (layout,) = events(run_dir).Tensors("custom_scalars__config__")
    parsed = Layout.FromString(layout.tensor_proto.string_val[0])
    (chart,) = parsed.category[0].chart
    assert chart.title == "norm"
    for tag, pattern in zip(tags, chart.multiline.tag, strict=True):
        assert re.search(pattern, tag)


def test_an_error_that_ends_a_run_is_in_its_log_and_printed_once(run_dir, caplog):
    log = RunLog(run_dir)
    log.log_error(UserError("a mistake"))
    log.log_error(ZeroDivisionError("a fault"))
    log.close()
    text = run_dir.log_file.read_text()
    assert "ended by UserError: a mistake" in text
    assert "ended by ZeroDivisionError: a fault" in text
    # the command prints it
    assert not caplog.text
