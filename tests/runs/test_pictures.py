"""Runs whose pictures are in TensorBoard, and change nothing of what is trained."""

import logging
import signal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_classify import config as classify_config
from tones import saved_weights, stopped_at, tones_config

from famx.data._example import write_corpus
from famx.data.sentences import Sentences
from famx.experiment.run import run

ON = ("pictures=on", "trainer.max_steps=4", "trainer.eval_every=2")


def pictures(folder):
    """Returns the steps of each picture by its tag, without heat maps of metrics."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    steps = {}
    for tag in events.Tags()["images"]:
        if tag.startswith("dev/") or (tag.startswith("attention/") and "layer_" in tag):
            steps[tag] = [image.step for image in events.Images(tag)]
    return steps


@pytest.mark.parametrize(
    ("words", "blocks"),
    [
        (("model.n_layers=2",), ("layer_1", "layer_2")),
        # averaged weights, and blocks that exchange messages
        (("attention=content_update", "trainer.ema=0.5", "layer=skip"), ("layer_1",)),
        (("layer=conformer", "optim=fam"), ("layer_1",)),
        (("task=seq2seq", "trainer.ema=0.5"), ("layer_1", "text_layer_1", "memory_layer_1")),
        (("task=transducer",), ("layer_1",)),
    ],
)
def test_speech_has_an_utterance_at_evaluations_and_attention_at_the_end(
    words, blocks, corpus, tmp_path
):
    run(tones_config(corpus, *ON, *words), tmp_path / "run")
    expected = {f"attention/{block}": [4] for block in blocks}
    expected["dev/utterance"] = [2, 4]
    assert pictures(tmp_path / "run") == expected
    assert "no pictures" not in (tmp_path / "run" / "famx.log").read_text()


def test_a_classifier_of_speech_has_an_utterance_and_confusions(tmp_path):
    write_corpus(tmp_path, n_recordings=4)
    for split, speaker in (("train", "anna"), ("dev", "bob"), ("test", "bob")):
        rows = (f"{speaker}0.wav\tzero", f"{speaker}1.wav\tone")
        (tmp_path / f"{split}.tsv").write_text("\n".join(rows))
    words = ("data=manifest", f"data.root={tmp_path}")
    run(classify_config(*words), tmp_path / "run")
    tags = ("attention/layer_1", "dev/confusion", "dev/utterance")
    assert pictures(tmp_path / "run") == {tag: [3] for tag in tags}


def test_text_has_attention_and_confusions(tmp_path):
    root = Sentences.example(tmp_path)["root"]
    words = ("data=sentences", f"data.root={root}")
    run(classify_config(*words), tmp_path / "run")
    assert pictures(tmp_path / "run") == {"attention/layer_1": [3], "dev/confusion": [3]}


def test_language_model_has_attention(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be " * 99)
    words = ("task=lm", "data=text", f"data.path={tmp_path / 'text.txt'}", "data.block=16")
    run(classify_config(*words), tmp_path / "run")
    assert pictures(tmp_path / "run") == {"attention/layer_1": [3]}


@pytest.mark.parametrize("task", ["ctc", "seq2seq"])
def test_pictures_change_no_weight_and_a_resumed_run_has_them_too(task, corpus, tmp_path):
    # dropout draws from the global generator, gates have buffers
    words = (*ON, f"task={task}", "attention=gated_pass", "layer.dropout=0.2")
    run(tones_config(corpus, *words), tmp_path / "on")
    run(tones_config(corpus, *words, "pictures=off"), tmp_path / "off")
    with stopped_at(3, signal.SIGTERM):
        run(tones_config(corpus, *words), tmp_path / "resumed")
    run(tones_config(corpus, *words), tmp_path / "resumed", resume=True)
    expected = saved_weights(tmp_path / "off")
    for name in ("on", "resumed"):
        weights = saved_weights(tmp_path / name)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert pictures(tmp_path / "off") == {}
    assert pictures(tmp_path / "resumed") == pictures(tmp_path / "on")


def test_a_picture_that_raises_an_error_ends_no_run(corpus, tmp_path, monkeypatch, caplog):
    def fail(utterance):
        raise RuntimeError("no room")

    monkeypatch.setattr("famx.monitoring.pictures.draw_utterance", fail)
    with caplog.at_level(logging.WARNING):
        run(tones_config(corpus, *ON), tmp_path / "run")
    assert pictures(tmp_path / "run") == {}
    warnings = [text for text in caplog.messages if text.startswith("no pictures")]
    assert warnings == ["no pictures from step 2 on: RuntimeError: no room"]


def test_pictures_are_on_or_off(command, corpus):
    refused = command("train", "data=manifest", f"data.root={corpus}", "pictures=onn")
    assert refused.status == 2
    assert (
        refused.sentence == "famx: pictures=onn: no such level; did you mean on? (choices: off, on)"
    )
