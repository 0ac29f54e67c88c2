"""The progress of a run is printed a line a report where there is no terminal."""

import logging

from famx.monitoring.progress import TrainingProgress, format_score


def report(progress: TrainingProgress, **changes: object) -> None:
    values = {"step": 10, "total_steps": 40, "rate": 123.4, "seconds": 5.0, "best_score": 0.5}
    progress.report("train", "loss 2.000", **(values | changes))


def test_a_report_is_a_line_with_rate_and_remaining_time(capsys, caplog):
    caplog.set_level(logging.INFO)
    report(TrainingProgress("wer", "audio"))
    line = "step 10/40  train loss 2.000"
    assert capsys.readouterr().out.splitlines()[-1] == f"{line}  123 audio s/s  15 s left"
    assert line in caplog.messages


def test_the_total_may_not_be_known(capsys):
    report(TrainingProgress("loss", "tokens"), total_steps=None)
    expected = "step 10/?  train loss 2.000  123 tokens/s"
    assert capsys.readouterr().out.splitlines()[-1] == expected


def test_the_bar_has_the_best_score():
    progress = TrainingProgress("wer", "audio", quiet=True)
    report(progress)
    (task,) = progress.bar.tasks
    assert "  best wer 50.00 %  " in task.description
    report(progress, best_score=float("inf"))
    assert "best" not in task.description


def test_a_quiet_process_prints_and_logs_nothing(capsys, caplog):
    caplog.set_level(logging.INFO)
    report(TrainingProgress("wer", "audio", quiet=True))
    assert not capsys.readouterr().out
    assert not caplog.messages


def test_rates_are_in_percent_and_losses_are_not():
    assert format_score("wer", 0.1234) == "12.34 %"
    assert format_score("loss", 1.23456) == "1.235"
