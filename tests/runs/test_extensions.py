"""Each extension is one file, written here as a user would; it works, nothing else is edited."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import famx
from famx.analysis.runs import read_run
from famx.config.schema import CONF, register_schemas, to_plain
from famx.config.versions import VERSION_BASE
from famx.contracts import applicable
from famx.experiment import run
from famx.inference import Recognizer
from famx.notation import UserError
from famx.registry import PARTS, load_file
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig

TINY = [
    "model.d_model=16",
    "model.n_heads=2",
    "model.n_layers=1",
    "trainer.max_steps=3",
    "trainer.log_every=1",
    "trainer.eval_every=3",
    "trainer.device=cpu",
]

TASK = '''"""Speech to text by CTC, scored by whole sentences."""

from famx.notation import Modality
from famx.registry import register
from famx.task.base import Score
from famx.task.ctc import CTC


@register("task")
class Sentences(CTC):
    """Selects checkpoints by the fraction of sentences with an error."""

    selection_metric = "ser"

    def score(self, references, hypotheses):
        wrong = [r != h for r, h in zip(references, hypotheses, strict=True)]
        rate = sum(wrong) / len(wrong)
        return {"ser": Score(rate, rate, rate)}
'''

DATA_SET = '''"""Tones of one pitch for each letter, made when they are read."""

from pathlib import Path

import numpy as np

from famx.data.base import Speech, check_split
from famx.registry import register


@register("data")
class Tones(Speech):
    """A tone for each letter."""

    splits = ("train", "dev", "test")
    path_options = ("letters_file",)

    def __init__(self, split, seed, *, letters_file: str = ""):
        check_split(split, self.splits)
        letters = Path(letters_file).read_text().split()
        n = {"train": 12, "dev": 4, "test": 4}[split]
        texts = [letters[i % len(letters)] * (1 + i % 2) for i in range(n)]
        super().__init__(
            ids=[f"{split}{i}" for i in range(n)],
            texts=texts,
            speakers=["someone"] * n,
            lengths=[0.5] * n,
        )

    def samples(self, index):
        pitch = 300 + 200 * (ord(self.texts[index][0]) - ord("a"))
        wave = np.sin(2 * np.pi * pitch * np.arange(8000) / 16_000)
        return (9000 * wave).astype(np.int16)

    @classmethod
    def example(cls, folder):
        (folder / "letters.txt").write_text("a b c")
        return {"letters_file": str(folder / "letters.txt")}
'''

DECODER = '''"""Greedy decoding in capitals."""

from famx.decode.ctc_greedy import CTCGreedy
from famx.registry import register


@register("decode")
class Capitals(CTCGreedy):
    """Best path, in capitals, with a mark at the end."""

    def __init__(self, tokenizer, *, mark: str = ""):
        super().__init__(tokenizer)
        self.mark = mark

    def text_of(self, tokens):
        return super().text_of(tokens).upper() + self.mark
'''

WRAPPER = '''"""Keeps the norm of every matrix."""

from famx.optim._wrapper import Wrapper
from famx.registry import register


@register("optim")
class NormPreserving(Wrapper):
    """After each step, rescales each matrix to its norm from before."""

    def before(self, params):
        self.norms = [p.norm() for p in params]

    def after(self, params, stepped):
        for p, norm in zip(params, self.norms, strict=True):
            if p.ndim > 1:
                p.mul_(norm / p.norm().clamp_min(1e-12))
'''

HOOK = '''"""A picture of the texts at each evaluation."""

import torch

from famx.monitoring.hooks import WriteRunLog
from famx.monitoring.metrics import HeatMap
from famx.registry import register
from famx.training.hooks import Hook


@register("hook")
class TextLengths(Hook):
    """Draws the lengths of references and hypotheses."""

    def on_evaluation(self, trainer, evaluation):
        lengths = [
            [float(len(text)) for text in texts]
            for texts in (evaluation.references, evaluation.hypotheses)
        ]
        image = HeatMap(torch.tensor(lengths), ("reference", "hypothesis"), "utterances")
        trainer.hook(WriteRunLog).log.log_images(trainer.step, {"dev/text_lengths": image})
'''


@pytest.fixture
def user_part(tmp_path, monkeypatch):
    """Returns a function that writes a part to a file and registers it as `famx_parts=` does."""
    # the table of parts is restored after the test
    for room in [*PARTS, "hook"]:
        monkeypatch.setitem(PARTS, room, dict(PARTS.get(room, {})))

    def register(source, name):
        file = tmp_path / f"{name}.py"
        file.write_text(source)
        load_file(file)

    return register


def compose_config(*words):
    # schemas are those of the parts that are registered by now
    register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return to_plain(compose("train", [*TINY, *words]))


def ctc_words(corpus):
    return ["task=ctc", "data=manifest", f"data.root={corpus}", "task.vocab_size=0"]


def test_task_of_a_user_selects_checkpoints_and_reports_by_its_score(user_part, corpus, tmp_path):
    user_part(TASK, "sentences")
    words = [word.replace("task=ctc", "task=sentences") for word in ctc_words(corpus)]
    latest = run(compose_config(*words), tmp_path / "run")
    assert 0 <= latest["dev/ser"] <= 1
    assert "dev/wer" not in latest
    scores = json.loads((tmp_path / "run" / "scores.test.json").read_text())
    assert scores["ser"]["rate"] == latest["test/ser"]
    # a comparison shows it too
    scored = read_run(tmp_path / "run", "test", None)
    assert scored.metric == "ser"
    assert scored.rate == latest["test/ser"]


def test_data_set_of_a_user_trains_and_its_paths_become_absolute(user_part, tmp_path, monkeypatch):
    user_part(DATA_SET, "tones")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letters.txt").write_text("a b c")
    words = ["task=ctc", "task.vocab_size=0", "data=tones", "data.letters_file=letters.txt"]
    run(compose_config(*words), tmp_path / "run")
    monkeypatch.chdir("/")
    evaluation = Recognizer(tmp_path / "run").evaluate("dev")
    assert len(evaluation.ids) == 4


def test_data_set_of_a_user_satisfies_the_contracts_of_its_room(user_part):
    user_part(DATA_SET, "tones")
    part = PARTS["data"]["tones"]
    for contract in applicable("data", part).values():
        contract(part)


def test_trained_run_is_decoded_by_a_decoder_that_is_written_later(user_part, corpus, tmp_path):
    run(
        compose_config(*ctc_words(corpus), "trainer.max_steps=30", "optim.lr=1e-2"),
        tmp_path / "run",
    )
    scores = (tmp_path / "run" / "scores.test.json").read_text()
    user_part(DECODER, "capitals")
    overrides = ["decode=capitals", "decode.mark=x"]
    evaluation = Recognizer(tmp_path / "run", overrides=overrides).evaluate("test")
    assert all(text.endswith("x") for text in evaluation.hypotheses)
    # beside the scores of greedy decoding, which stay
    assert (tmp_path / "run" / "scores.test.json").read_text() == scores
    assert (tmp_path / "run" / "scores.test.capitals,mark=x.json").exists()
    recognizer = famx.load(tmp_path / "run", overrides=overrides)
    (text,) = recognizer.transcribe(corpus / "test0.wav")
    assert text.endswith("x")
    # also where the text is made of several windows
    (transcript,) = recognizer.transcribe(corpus / "test0.wav", timestamps="word")
    assert transcript.text == text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("decode=greedy", "decode=greedy: no such part"),
        ("decode=lm_greedy", "decodes tokens and task=ctc gives frames"),
        ("decode.beam=8", "has no decode.beam"),
        ("optim.lr=1", "cannot be set for a trained run"),
    ],
)
def test_decoding_that_does_not_fit_is_refused(word, message, corpus, tmp_path):
    run(compose_config(*ctc_words(corpus), "trainer.max_steps=1"), tmp_path / "run")
    with pytest.raises(UserError, match=message):
        Recognizer(tmp_path / "run", overrides=[word])


def test_optimizer_wrapper_of_a_user_trains_and_acts_after_each_step(user_part, corpus, tmp_path):
    user_part(WRAPPER, "norm_preserving")
    run(compose_config(*ctc_words(corpus), "optim=norm_preserving"), tmp_path / "run")
    part = PARTS["optim"]["norm_preserving"]
    layer = torch.nn.Linear(5, 7)
    norm = layer.weight.norm().item()
    optimizer = part(layer.parameters())
    layer(torch.randn(3, 5)).square().sum().backward()
    optimizer.step()
    assert layer.weight.norm().item() == pytest.approx(norm)


def test_hook_of_a_user_writes_an_image_of_each_evaluation(user_part, corpus, tmp_path):
    user_part(HOOK, "text_lengths")
    run(compose_config(*ctc_words(corpus)), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [image.step for image in events.Images("dev/text_lengths")] == [3]
