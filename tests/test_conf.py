"""What the command line accepts, what it refuses, and in which words."""

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

from famx.config import CONF, plain, publish, schema
from famx.data.loader import LoaderConfig
from famx.experiment import build_model, build_optimizer, settle
from famx.registry import PARTS, ROOMS, names
from famx.trainer import TrainerConfig

publish(trainer=TrainerConfig, loader=LoaderConfig)
CHOICES = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("model", "experiment", "data")
}
SMALL = ["model.d_model=16", "model.n_heads=2", "model.n_layers=1"]


def composed(*words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return settle(plain(compose("train", [*words, *SMALL])))


@pytest.mark.parametrize("group", CHOICES)
def test_every_file_of_a_group_composes_and_builds(group):
    for name in CHOICES[group]:
        config = composed(f"{group}={name}")
        model = build_model(config, vocab_size=11)
        build_optimizer(config["optim"], model.parameters(), config["momentum"], config["spectrum"])


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in ("data", "momentum", "spectrum")])
def test_every_part_of_a_room_composes_and_builds(room):
    for name in names(room):
        config = composed(f"{room}={name}")
        assert config[room]["name"] == name
        model = build_model(config, vocab_size=11)
        build_optimizer(config["optim"], model.parameters(), config["momentum"], config["spectrum"])


def test_a_schema_has_just_what_the_signature_has():
    for room in ROOMS:
        for name in names(room):
            fields = schema(PARTS[room][name], name).__dataclass_fields__
            assert "name" in fields and not {"d_model", "params", "rotary", "tokenizer", "causal"} & fields.keys()


def famx(*words, cwd):
    command = [sys.executable, "-m", "famx.train", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


MISTAKES = {
    "attention=myelinatd": ["attention=myelinatd: no such part; did you mean myelinated?"],
    "attention.temprature=1": ["attention=multihead has no attention.temprature"],
    "layer.dropout=much": ["layer.dropout=much", "Float"],
    "layer.drop=0.1": ["layer=prenorm has no layer.drop", "did you mean dropout?"],
    "atention=multihead": ["atention", "did you mean attention?"],
    "model.d_model=15": ["d_model=15 is not a multiple of n_heads=4"],
    "model=drawn model.draw.sed=7": ["model.draw has no model.draw.sed", "did you mean seed?"],
    "model=drawn model.draw.space.norm=[layrnorm]": ["norm=layrnorm: no such part", "did you mean layernorm?"],
    "optim=nothing": ["optim=nothing: no such part", "adamw"],
    "trainer.device=tpu": ["trainer.device=tpu", "cuda"],
    "watch=loud": ["watch=loud: no such setting", "full, light, off"],
    "kinds.conv.alpha=much": ["kinds.conv.alpha=much must be a number"],
    "kinds.conv.alfa=0.5": ["no kinds.conv.alfa", "did you mean alpha?"],
    "resume=nowhere": ["nowhere is not a run with checkpoints"],
    "init_from=nowhere": ["nowhere is not a run with checkpoints"],
    "famx_parts=[nowhere.py]": ["there is no file", "nowhere.py"],
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(word, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 99)
    result = famx("task=lm", "data=text", f"data.path={text}", "trainer.max_steps=1", *word.split(), cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    for words in MISTAKES[word]:
        assert words in line
