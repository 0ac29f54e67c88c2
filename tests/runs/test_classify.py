"""One label for a sequence: runs on images, sentences and recordings, and what is refused."""

import json

import pytest
from hydra import compose, initialize_config_dir
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from famx.analysis.runs import read_run
from famx.config.schema import CONF, register_schemas, to_plain
from famx.config.versions import VERSION_BASE
from famx.data._example import write_corpus
from famx.data.digit_images import DigitImages
from famx.data.manifest import Manifest
from famx.data.sentences import Sentences
from famx.experiment import run
from famx.experiment.resolve import check_parts_fit, resolve
from famx.inference import Recognizer
from famx.notation import UserError
from famx.task.classify import Classify
from famx.training.loader import Loader
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig

TINY = [
    *("task=classify", "model.d_model=16", "model.n_heads=2", "model.n_layers=1"),
    *("trainer.max_steps=3", "trainer.log_every=1", "trainer.eval_every=3", "trainer.device=cpu"),
]


def config(*words):
    register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return to_plain(compose("train", [*TINY, *words]))


def train(folder, *words):
    """Trains in `folder/run`, and checks what every classification leaves there."""
    latest = run(config(*words), folder / "run")
    scores = json.loads((folder / "run" / "scores.test.json").read_text())
    assert scores["error"]["rate"] == latest["test/error"]
    assert 0 <= scores["error"]["low"] <= scores["error"]["rate"] <= scores["error"]["high"] <= 1
    assert 0 <= scores["f1_error"]["rate"] <= 1
    # the same scores from the run's folder
    evaluation = Recognizer(folder / "run").evaluate("test")
    assert evaluation.metrics["error"] == latest["test/error"]
    return latest, evaluation


def test_images_are_trained_scored_and_evaluated(tmp_path):
    path = DigitImages.example(tmp_path)["path"]
    latest, evaluation = train(tmp_path, "data=digit_images", f"data.path={path}")
    assert latest["train/examples_per_second"] > 0
    assert set(evaluation.hypotheses) <= {"0", "1", "2"}
    assert "real-time" not in evaluation.table("test").title


def test_sentences_are_trained_scored_and_evaluated(tmp_path, capsys):
    root = Sentences.example(tmp_path)["root"]
    latest, evaluation = train(tmp_path, "data=sentences", f"data.root={root}")
    assert latest["train/examples_per_second"] > 0
    assert set(evaluation.references) == {"a", "b"}
    printed = capsys.readouterr().out
    assert "examples/s" in printed and "audio" not in printed and "transcribe" not in printed


def test_recordings_are_classified_without_a_word_of_transcription(tmp_path, capsys):
    write_corpus(tmp_path / "corpus")
    words = ["data=manifest", f"data.root={tmp_path / 'corpus'}", "frontend=mel_patches"]
    words += ["frontend.patch_time=8", "frontend.patch_mels=16"]
    _, evaluation = train(tmp_path, *words, "rotary=axial", "rotary.width=4")
    assert set(evaluation.references) <= {"zero", "one", "two", "three", "four", "five", "six"} | {
        *("seven", "eight", "nine")
    }
    printed = capsys.readouterr().out
    assert "examples/s" in printed and "transcribe" not in printed
    # runs are compared by their wrong labels, recording by recording
    scored = read_run(tmp_path / "run", "test", None)
    assert scored.metric == "error" and len(scored.errors) == len(evaluation.ids)
    assert scored.rate == pytest.approx(evaluation.metrics["error"])


@pytest.mark.parametrize("unknown", ["error", "skip", "replace"])
def test_labels_of_several_letters_have_no_unknown_characters(unknown, tmp_path, caplog):
    write_corpus(tmp_path, n_recordings=4)
    for split, speaker in (("train", "anna"), ("dev", "bob")):
        rows = (f"{speaker}0.wav\tzero", f"{speaker}1.wav\tone")
        (tmp_path / f"{split}.tsv").write_text("\n".join(rows))
    data = {"root": str(tmp_path), "unknown": unknown}
    tokenizer = Classify.build_tokenizer(Manifest("train", 0, **data))
    loader = Loader(Manifest("dev", 0, **data), tokenizer, split="dev")
    assert not loader.skipped
    assert not caplog.messages


def test_confusions_are_a_picture_of_each_evaluation(tmp_path):
    path = DigitImages.example(tmp_path)["path"]
    train(tmp_path, "data=digit_images", f"data.path={path}")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [image.step for image in events.Images("dev/confusion")] == [3]


def test_labels_that_cannot_be_learned_are_refused(tmp_path):
    for name, lines, message in (
        ("one", "a\tfirst\na\tsecond\n", "all 2 examples of training have 'a'"),
        ("two", "a\tfirst\nb\tsecond\n", "has the label 'c', which the training data does not"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.tsv").write_text(lines)
        (folder / "dev.tsv").write_text(lines)
        (folder / "test.tsv").write_text("c\tthird\n")
        words = ["data=sentences", "data.dev=dev.tsv", f"data.root={folder}"]
        with pytest.raises(UserError, match=message):
            run(config(*words), folder / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("frontend=tokens",), "frontend=tokens is for text and data=digit_images for images"),
        (("decode=ctc_greedy",), "decodes frames and task=classify gives labels"),
        (("frontend=patches", "frontend.width=9"), "images of width 8 and 1 channels do not fit"),
        (("task.label_smoothing=1.0",), r"label_smoothing=1.0 must be from 0 to below 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(words, message, tmp_path):
    path = DigitImages.example(tmp_path)["path"]
    with pytest.raises(UserError, match=message):
        run(config("data=digit_images", f"data.path={path}", *words), tmp_path / "run")


def test_frontend_that_sees_later_tokens_is_refused_by_language_models():
    register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        composed = to_plain(compose("train", ["task=lm", "frontend=token_context"]))
    with pytest.raises(UserError, match="sees later tokens, which task=lm must not"):
        check_parts_fit(resolve(composed))
