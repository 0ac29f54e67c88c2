"""`famx.compare` writes a report that a person can quote, and refuses runs of different code."""

import json
import sys
from html.parser import HTMLParser

import pytest
from scored_runs import WRONG_HYPOTHESES, write_scored_run

from famx import compare
from famx.notation import UserError
from famx.training.sweep_dir import find_runs, save_sweep_order


def write_runs(folder, costs=((1.0, 1.0), (1.0, 1.0))):
    """Writes two settings with two seeds; the second has no errors."""
    for optim, hypotheses, (seconds, memory) in zip(
        ("adamw", "fam"), (WRONG_HYPOTHESES, None), costs, strict=True
    ):
        for seed in (0, 1):
            words = (f"optim={optim}", f"seed={seed}")
            options = {"hypotheses": hypotheses} if hypotheses else {}
            run = write_scored_run(folder / ",".join(words), *words, **options)
            result = {"seconds": seconds, "memory": memory, "flops": 2e6, "device": "cpu"}
            (run / "result.json").write_text(json.dumps(result))
            reports = [{"step": step, "dev/wer": 1 / step, "split": "dev"} for step in (100, 400)]
            lines = "".join(json.dumps(report) + "\n" for report in reports)
            (run / "metrics.jsonl").write_text(lines)
    return folder


def run_compare(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, words)])
    assert compare.main() == 0


class Pictures(HTMLParser):
    """Collects the sources of pictures, links and scripts."""

    def __init__(self):
        super().__init__()
        self.sources = []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for key, value in attrs if key in ("src", "href")]


def test_report_begins_with_the_result_and_needs_no_other_file(tmp_path, monkeypatch):
    run_compare(monkeypatch, write_runs(tmp_path))
    html = (tmp_path / "report.html").read_text()
    parser = Pictures()
    parser.feed(html)
    # the comparison and the learning curves
    assert len(parser.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    markdown = (tmp_path / "report.md").read_text()
    for text in (html, markdown):
        assert "Baseline optim=adamw: wer 40.0 %, mean of 2 seeds." in text
        assert "optim=fam: better, -40.0 points (95% interval" in text
        assert (
            text.index("optim=fam: better") < text.index("1.00x") < text.index("optim=fam,seed=1")
        )
        assert "Caution" not in text


def test_report_warns_where_a_better_setting_costs_more(tmp_path, monkeypatch):
    run_compare(monkeypatch, write_runs(tmp_path, costs=((1.0, 1.0), (2.5, 1.0))))
    text = (tmp_path / "report.md").read_text()
    assert "Caution: optim=fam has 2.50 times the time of a step of the baseline" in text


def test_text_of_others_is_no_markup_in_a_report(tmp_path, monkeypatch):
    for seed in (0, 1):
        for root in ("a|b", "<script>alert(1)</script>"):
            words = (f"seed={seed}", f"init_from='{root}'")
            write_scored_run(tmp_path / f"{seed}{root[0]}", *words)
    run_compare(monkeypatch, tmp_path)
    assert "<script>" not in (tmp_path / "report.html").read_text()
    assert "init_from=a\\|b" in (tmp_path / "report.md").read_text()


def test_baseline_is_the_first_run_of_the_command_or_the_named_one(tmp_path, monkeypatch, capsys):
    write_runs(tmp_path)
    save_sweep_order(tmp_path, ["optim=fam,seed=0"])
    save_sweep_order(tmp_path, ["optim=adamw,seed=1"])
    names = [run.name for run in find_runs([tmp_path])]
    assert names[:2] == ["optim=fam,seed=0", "optim=adamw,seed=1"]
    assert len(names) == 4
    run_compare(monkeypatch, tmp_path)
    assert "Baseline optim=fam" in (tmp_path / "report.md").read_text()
    run_compare(monkeypatch, tmp_path, "--baseline", "optim=adamw")
    assert "Baseline optim=adamw" in (tmp_path / "report.md").read_text()
    with pytest.raises(UserError, match="must name one setting, and names 0 of: optim=fam"):
        run_compare(monkeypatch, tmp_path, "--baseline", "optim=sgd")


def test_runs_of_different_code_are_compared_only_on_request(tmp_path, monkeypatch):
    write_runs(tmp_path)
    for i, run in enumerate(find_runs([tmp_path])):
        code = {"model.py": "1", "optim/fam.py": str(i // 2)}
        (run / "identity.json").write_text(json.dumps({"code": code}))
    with pytest.raises(UserError, match=r"different code \(optim/fam.py\): --mixed-code"):
        run_compare(monkeypatch, tmp_path)
    run_compare(monkeypatch, tmp_path, "--mixed-code")
