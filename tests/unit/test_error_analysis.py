"""Errors of an evaluation equal those counted by hand."""

import json
import math

import numpy as np
import pytest
import torch
from scored_runs import REFERENCES
from tokenizers import Tokenizer, models

from famx.data._subwords import train_byte_subwords
from famx.data._tokenizers import byte_tokenizer, train_tokenizer
from famx.nn.batch import Batch
from famx.notation import Modality
from famx.registry import build
from famx.training.error_analysis import analyse, interval_over_groups
from famx.training.evaluate import Evaluation
from famx.training.run_dir import RunDir

IDS = ["u0", "u1", "u2", "u3"]
HYPOTHESES = ["one two four", "four five", "six eight nine", "on ten"]
SPEAKERS = {"u0": "anna", "u1": "bob", "u2": "anna", "u3": "bob"}


def ctc():
    return build("task", {"name": "ctc"}, tokenizer=train_tokenizer(["a"], ["<blank>"]))


def evaluation(speakers, hypotheses=HYPOTHESES):
    task = ctc()
    return Evaluation(
        loss=1.0,
        scores=task.score(REFERENCES, hypotheses),
        ids=IDS,
        references=REFERENCES,
        hypotheses=hypotheses,
        modality=Modality.SPEECH,
        amount=10.0,
        seconds=1.0,
        precision="fp32",
        analysis=analyse(task, IDS, REFERENCES, hypotheses, speakers),
    )


def test_confusions_are_words_in_the_place_of_others():
    confusions = ctc().confusions(["a b c", "a b", "x y", "z"], ["a d c", "a d", "x", "z new"])
    assert confusions == [("b", "d", 2), ("", "new", 1), ("y", "", 1)]


def test_confusions_count_every_error():
    task = ctc()
    errors, _ = task.error_counts(REFERENCES, HYPOTHESES)["wer"]
    assert errors.tolist() == [1, 0, 1, 1]
    assert sum(row.times for row in task.confusions(REFERENCES, HYPOTHESES)) == errors.sum()


def test_differences_align_the_words_of_utterances_with_errors_alone():
    text = ctc().differences(IDS, REFERENCES, HYPOTHESES)
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert [block[0] for block in blocks] == ["u0", "u2", "u3"]
    # a word stands below the word that it is compared with
    assert blocks[1][1].split() == ["REF:", "six", "seven", "eight", "nine"]
    assert blocks[1][2].split() == ["HYP:", "six", "*****", "eight", "nine"]
    assert blocks[1][1].index("eight") == blocks[1][2].index("eight")


def test_scores_by_speaker_are_those_of_their_utterances():
    rows = evaluation(SPEAKERS).analysis.speakers
    # anna has 2 errors of 7 words, bob 1 of 3: the highest rate first
    assert [row.speaker for row in rows] == ["bob", "anna"]
    assert [row.rates["wer"] for row in rows] == pytest.approx([1 / 3, 2 / 7])
    assert [row.utterances for row in rows] == [2, 2]


def test_interval_by_speaker_takes_speakers_as_they_are():
    errors = np.array([0, 0, 0, 10, 10, 10])
    units = np.full(6, 10)
    # two speakers: both the same one, or each once
    assert interval_over_groups(errors, units, list("aaabbb")) == (0.0, 1.0)
    low, high = interval_over_groups(errors, units, list("abcdef"))
    assert 0 < low < 0.5 < high < 1
    assert all(map(math.isnan, interval_over_groups(errors, units, list("aaaaaa"))))


@pytest.mark.parametrize("speakers", [{}, {"u0": "anna"}, dict.fromkeys(IDS, "")])
def test_speakers_that_are_not_known_have_no_scores(speakers):
    summary = evaluation(speakers).summary({})
    assert "speakers" not in summary and "low_by_speaker" not in summary["wer"]


def test_scores_of_one_speaker_have_no_interval_over_speakers():
    summary = evaluation(dict.fromkeys(IDS, "anna")).summary({})
    assert len(summary["speakers"]) == 1 and "low_by_speaker" not in summary["wer"]


def test_analysis_is_written_and_removed_with_the_scores(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.write_evaluation(evaluation(SPEAKERS), "test", {})
    scores = json.loads(run_dir.scores_file("test").read_text())
    assert scores["wer"]["low_by_speaker"] <= scores["wer"]["rate"] == 0.3
    assert {row["speaker"]: row["wer"] for row in scores["speakers"]}["bob"] == pytest.approx(1 / 3)
    assert ["three", "four", 1] in scores["confusions"]
    # names of scores are mappings with a rate, and nothing else is
    names = [name for name, x in scores.items() if isinstance(x, dict) and "rate" in x]
    assert names == ["wer", "cer"]
    assert run_dir.differences_file("test").read_text().startswith("u0\n")
    # without errors nothing remains of the last evaluation
    run_dir.write_evaluation(evaluation(SPEAKERS, REFERENCES), "test", {})
    assert not run_dir.differences_file("test").exists()
    run_dir.write_evaluation(evaluation(SPEAKERS), "test", {})
    run_dir.remove_evaluations()
    assert not list(tmp_path.iterdir())


def test_tables_show_speakers_and_confusions():
    result = evaluation(SPEAKERS)
    speakers, confusions = result.analysis.tables()
    assert speakers.title.startswith("WER over 2 speakers: ")
    assert speakers.row_count == 2 and confusions.row_count == 3


def test_confusions_of_labels_are_the_wrong_ones():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}))
    task = build("task", {"name": "classify"}, tokenizer=tokenizer)
    references, hypotheses = list("aabbc"), list("abaac")
    assert task.confusions(references, hypotheses) == [("b", "a", 2), ("a", "b", 1)]
    errors, units = task.error_counts(references, hypotheses)["error"]
    assert errors.tolist() == [0, 1, 1, 1, 0] and units.tolist() == [1] * 5


def text_batch(rows, lengths):
    return Batch(
        ids=[str(i) for i in range(len(rows))],
        texts=[],
        inputs=torch.tensor(rows),
        lengths=torch.tensor(lengths),
        targets=torch.zeros(len(rows), 0, dtype=torch.long),
        target_lengths=torch.zeros(len(rows), dtype=torch.long),
        spans=None,
        modality=Modality.TEXT,
    )


def test_characters_of_bytes_are_those_of_the_text():
    task = build("task", {"name": "lm"}, tokenizer=byte_tokenizer())
    first, second = list("xäöz€".encode()), list(b"xy")
    rows = [first, second + [0] * (len(first) - len(second))]
    # the first id of a row is not predicted, and padding is none
    assert task.count_characters(text_batch(rows, [len(first), 2])) == 4 + 1


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_characters_of_subwords_are_those_of_the_text(kind):
    tokenizer = train_byte_subwords(["one été, two 日本 \n"] * 9, 300, kind)
    task = build("task", {"name": "lm"}, tokenizer=tokenizer)
    text = "x one été äöz€ 日本語😀\u0085\xad\n"
    ids = tokenizer.encode(text).ids
    assert task.count_characters(text_batch([ids], [len(ids)])) == len(text) - 1


def test_bits_per_character_count_characters_and_not_tokens():
    result = Evaluation(
        loss=math.log(2) * 3,
        scores={},
        ids=[],
        references=[],
        hypotheses=[],
        modality=Modality.TEXT,
        amount=10.0,
        seconds=1.0,
        precision="fp32",
        units=10,
        characters=15,
    )
    assert result.bits_per_character == pytest.approx(2)
    summary = result.summary({})
    assert summary["bits_per_character"] == pytest.approx(2)
    assert summary["perplexity"] == pytest.approx(8)
    assert "bits per character" in [str(c.header) for c in result.table("test").columns]
