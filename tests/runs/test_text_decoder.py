"""Runs of speech to text with a decoder: trained, resumed, evaluated, transcribed, transferred."""

import json
import re
import signal

import pytest
import torch
from test_processes import execute
from tones import reported_values, saved_weights, stopped_at, tones_config, tones_words

import famx
from famx.experiment.build import build_experiment
from famx.experiment.report import flops_per_unit
from famx.experiment.resolve import check_parts_fit, resolve
from famx.experiment.run import run
from famx.experiment.transfer import initialize_from
from famx.notation import UserError

SEQ2SEQ = ("task=seq2seq", "model.decoder_layers=1")


TASKS = {"seq2seq": SEQ2SEQ, "transducer": ("task=transducer",)}


@pytest.fixture(scope="module", params=TASKS)
def trained(request, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    run(tones_config(corpus, *TASKS[request.param]), folder)
    return folder


@pytest.mark.parametrize("decode", ["seq2seq_greedy", "seq2seq_beam", "ctc_greedy"])
def test_run_is_evaluated_and_transcribes_with_each_decoder(decode, trained, corpus):
    loss = json.loads((trained / "scores.test.json").read_text())["loss"]
    words = [f"decode={decode}"] + (["decode.beam=3"] if decode == "seq2seq_beam" else [])
    recognizer = famx.load(trained, overrides=words)
    evaluation = recognizer.evaluate("test")
    assert evaluation.loss == pytest.approx(loss)
    assert set(evaluation.metrics) == {"loss", "wer", "cer"}
    # a recording alone has the text that it has in a batch
    file = corpus / "test0.wav"
    index = evaluation.ids.index("test0.wav") if "test0.wav" in evaluation.ids else 0
    assert recognizer.transcribe(file) == [evaluation.hypotheses[index]]


def test_resumed_run_equals_an_unbroken_one(trained, corpus, tmp_path):
    config = tones_config(corpus, *TASKS[trained.name])
    with stopped_at(4, signal.SIGTERM):
        run(config, tmp_path / "run")
    run(config, tmp_path / "run", resume=True)
    expected = saved_weights(trained)
    weights = saved_weights(tmp_path / "run")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_training_in_bfloat16_with_every_block_that_has_state(corpus, tmp_path):
    for attention in ("multihead", "worm", "gated_pass"):
        words = [*SEQ2SEQ, f"attention={attention}", "trainer.precision=bf16", "optim=fam"]
        latest = run(tones_config(corpus, *words, "trainer.max_steps=2"), tmp_path / attention)
        assert latest["train/loss"] < 20


def test_run_starts_from_the_encoder_of_another_task(corpus, tmp_path):
    run(tones_config(corpus, "trainer.max_steps=1"), tmp_path / "ctc")
    experiment = build_experiment(resolve(tones_config(corpus, *SEQ2SEQ)), torch.device("cpu"))
    transfer = initialize_from(experiment.model, experiment.tokenizer, str(tmp_path / "ctc"))
    vocabulary = experiment.tokenizer.get_vocab()
    assert vocabulary["<end>"] == 1
    # rows of the blank and of the letters, not of the end, which CTC does not have
    assert transfer.by_token == dict.fromkeys(("score.weight", "score.bias"), len(vocabulary) - 1)
    assert all(name.startswith("decoder.") for name in transfer.initial)
    assert not transfer.unused


def test_flops_of_the_decoder_are_counted(corpus):
    flops = []
    for n_pairs in (1, 2, 3):
        config = resolve(tones_config(corpus, *SEQ2SEQ, f"model.decoder_layers={n_pairs}"))
        flops.append(flops_per_unit(build_experiment(config, torch.device("cpu"))))
    # each pair of layers has the same
    assert flops[2] - flops[1] == pytest.approx(flops[1] - flops[0])
    assert flops[1] > flops[0]


def test_decoders_of_other_tasks_are_refused(corpus, tmp_path):
    with pytest.raises(UserError, match="decodes tokens and task=seq2seq gives text and frames"):
        run(tones_config(corpus, *SEQ2SEQ, "decode=lm_greedy"), tmp_path / "run")
    with pytest.raises(UserError, match="decodes text and task=ctc gives frames"):
        run(tones_config(corpus, "decode=seq2seq_beam"), tmp_path / "run")


def test_decoders_of_untrained_outputs_are_refused(corpus):
    for words, message in (
        (
            ("task.ctc_weight=0", "decode=ctc_greedy"),
            "decode=ctc_greedy decodes the output frames, which task.ctc_weight=0.0 does not train",
        ),
        (("task.ctc_weight=0", "decode=ctc_beam"), "decode=ctc_beam decodes the output frames"),
        (
            ("task.ctc_weight=0", "decode=seq2seq_beam"),
            "or use decode=seq2seq_greedy, or decode=seq2seq_beam with decode.ctc_weight=0",
        ),
        (("task.ctc_weight=1",), "decode=seq2seq_greedy decodes the output text, which task.ctc_"),
        (("task.ctc_weight=1", "decode=seq2seq_beam"), "decrease it, or use decode=ctc_greedy"),
    ):
        config = resolve(tones_config(corpus, *SEQ2SEQ, *words))
        with pytest.raises(UserError, match=re.escape(message)):
            check_parts_fit(config)
        # the weights of another run may be trained
        check_parts_fit(config | {"init_from": "run"})
    for words in (
        ("task.ctc_weight=0",),
        ("task.ctc_weight=0", "decode=seq2seq_beam", "decode.ctc_weight=0"),
        ("task.ctc_weight=1", "decode=ctc_greedy"),
        ("task.ctc_weight=1", "decode=seq2seq_beam", "decode.ctc_weight=1"),
    ):
        check_parts_fit(resolve(tones_config(corpus, *SEQ2SEQ, *words)))


def test_trained_run_refuses_a_decoder_of_an_untrained_output(corpus, tmp_path):
    run(tones_config(corpus, *SEQ2SEQ, "task.ctc_weight=0", "trainer.max_steps=1"), tmp_path / "a")
    with pytest.raises(UserError, match=r"output frames, which task\.ctc_weight=0"):
        famx.load(tmp_path / "a", overrides=["decode=ctc_greedy"])


def test_times_of_a_text_decoder_are_refused_with_the_decoder_that_has_them(trained, corpus):
    with pytest.raises(UserError, match=r"uses no scores of frames.*; decode=ctc_greedy has"):
        famx.load(trained).transcribe(corpus / "test0.wav", timestamps="word")
    recognizer = famx.load(trained, overrides=["decode=ctc_greedy"])
    (transcript,) = recognizer.transcribe(corpus / "test0.wav", timestamps="word")
    assert [unit.text for unit in transcript.units] == transcript.text.split()


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["multihead", "worm"])
def test_two_processes_report_the_losses_of_one(attention, corpus, tmp_path):
    words = [*SEQ2SEQ, f"attention={attention}", "model.decoder_layers=2", "layer.dropout=0"]
    words += ["trainer.max_steps=5", "trainer.log_every=1", "model.n_layers=2"]
    losses = []
    for n_processes in (1, 2):
        folder = tmp_path / str(n_processes)
        launch = ["-m", "torch.distributed.run", f"--nproc-per-node={n_processes}"]
        launch += ["--master-port=0", "--standalone", "-m", "famx.train"]
        result = execute(
            *launch, *tones_words(corpus, *words, f"hydra.run.dir={folder}"), OMP_NUM_THREADS="1"
        )
        assert result.returncode == 0, result.stderr
        losses.append(list(reported_values(folder, "train/loss").values()))
    assert len(losses[0]) == 5
    # policies of some blocks draw differently on each process
    rtol = 1e-4 if attention == "multihead" else 0.5
    assert losses[1] == pytest.approx(losses[0], rel=rtol)
