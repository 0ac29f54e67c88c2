"""Composing and training by the command line: presets, names, sweeps, resumed runs."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from famx.analysis.settings import SECTIONS, settings_of
from famx.config.composition import initialized_hydra
from famx.config.schema import CONF, limited_resolvers, register_schemas, to_plain
from famx.config.versions import VERSION_BASE
from famx.config.words import preset_names
from famx.experiment import build_model
from famx.experiment.build import build_optimizer
from famx.experiment.resolve import resolve
from famx.frontend.base import Frontend
from famx.monitoring.tensorboard import _LogFile
from famx.registry import ROOMS, get, names
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
GROUPS = ("model", "experiment", "data")
SMALL = ("model.d_model=16", "model.n_heads=2", "model.n_layers=1")
TEXT = (
    *("task=lm", "data=text", "data.path=text.txt"),
    *("trainer.max_steps=1", "trainer.device=cpu", *SMALL),
)


def composed(*words, **options):
    """Returns the resolved config of a small model, with further options of rooms."""
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        config = to_plain(compose("train", [*words, *SMALL]))
    for room, values in options.items():
        config[room] |= values
    return resolve(config)


def build(config):
    model = build_model(config, vocab_size=11)
    build_optimizer(config["optim"], model.parameters(), config["momentum"], config["spectrum"])


# composing


def test_runs_of_a_sweep_are_composed_as_if_each_were_alone():
    words = [[f"attention={name}", "experiment=digits"] for name in ("myelinated", "multihead")]
    words = [*words, ["optim=fam", "model=conformer"], *words]
    together = list(sweep_configs(words))
    alone = [config for word in words for config in sweep_configs([word])]
    assert together == alone


@pytest.mark.parametrize(
    "words",
    [
        ["seed=1", "optim.lr=1e-3", "seed=2"],
        ["optim.lr=0.1", "optim=fam", "momentum=kalman", "param_groups.conv.alpha=.5"],
        ["loader.speed=[1.0]", "trainer.max_steps=null", "name=a", "frontend=log_mel"],
        ["trainer.max_steps=1", "trainer={max_steps:2}"],
        ["trainer={max_steps:2}", "trainer.max_steps=1"],
        ["++optim.lr=2", "optim.lr=3"],
        ["model=drawn", "model.draw.seed=7", "data.root='a b'", "experiment=digits"],
        ["hydra.sweep.dir=x", "task=lm", "data=text", "data.path=1.10"],
    ],
)
def test_runs_that_share_a_config_are_those_of_hydra(words):
    with initialized_hydra([]) as hydra, limited_resolvers():
        loader = hydra.config_loader
        master = hydra.compose_config("train", ["hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
        expected = ConfigLoaderImpl.load_sweep_config(loader, master, words)
        for other in ([*words, "seed=9"], words):
            config = loader.load_sweep_config(master, other)
    # not resolved, since the folder of a run has the time
    both = [OmegaConf.to_container(c, resolve=False) for c in (config, expected)]
    assert both[0] == both[1]
    assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(expected)
    with pytest.raises(ConfigAttributeError):
        config.trainer.nothing = 1


def sweep_configs(runs):
    """Yields the configs of runs as one loader composes them, with interpolations."""
    with initialized_hydra([]) as hydra, limited_resolvers():
        master = hydra.compose_config("train", ["hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
        for words in runs:
            config = hydra.config_loader.load_sweep_config(master, words)
            yield OmegaConf.to_container(config, resolve=False)


@pytest.mark.parametrize("group", GROUPS)
def test_every_file_of_conf_composes_and_builds(group):
    for name in preset_names(group):
        build(composed(f"{group}={name}"))


@pytest.mark.parametrize(
    "room", [room for room in ROOMS if room not in ("data", "decode", "momentum", "spectrum")]
)
def test_every_part_composes_and_builds(room):
    for name in names(room):
        # frontends that read a folder have an example without one
        part = get(room, name)
        options = part.example() if issubclass(part, Frontend) else {}
        config = composed(f"{room}={name}", **{room: options})
        assert config[room]["name"] == name
        build(config)


def test_a_task_chooses_its_model_unless_a_word_or_an_experiment_chooses_one():
    def model(*words):
        with initialize_config_dir(str(CONF), **VERSION_BASE):
            config = compose("train", list(words))
        return config.model.name, config.model.d_model, config.layer.name

    small = ("conformer_small", 96, "conformer")
    transformer = ("transformer", 192, "prenorm")
    for task in ("ctc", "seq2seq", "transducer"):
        assert model(f"task={task}") == small
    for task in ("lm", "classify", "translate"):
        assert model(f"task={task}") == transformer
    assert model("model=transformer") == transformer
    assert model("task=lm", "model=conformer") == ("conformer", 144, "conformer")
    assert model("experiment=digits", "layer=skip") == ("conformer_small", 96, "skip")
    # an experiment that chooses a task of its own, and one that also chooses a model
    assert model("experiment=panel/trec6") == ("transformer", 256, "prenorm")
    assert model("experiment=panel/keywords") == small


def test_preset_changes_only_what_it_says():
    default = composed()["model"]
    for name in preset_names("model"):
        text = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
        if "draw" not in text:
            changed = {key: value for key, value in text.items() if key != "defaults"}
            small = {"d_model": 16, "n_layers": 1}
            assert composed(f"model={name}")["model"] == default | changed | small


def test_experiment_can_set_every_option(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nseed: 3\nprobe: 'off'\ntrainer: {max_steps: 7}\n"
    (tmp_path / "experiment" / "own.yaml").write_text(text)
    config = composed("experiment=own", f"hydra.searchpath=[file://{tmp_path}]")
    assert (config["seed"], config["probe"], config["trainer"]["max_steps"]) == (3, "off", 7)


# training


@pytest.mark.slow
def test_run_is_named_by_the_chosen_parts(command, tmp_path):
    words = ("+attention=cosine", "optim=sgd", "momentum=default", "layer.dropout=0.2")
    assert command("train", *TEXT, *words).status == 0
    assert len(list(tmp_path.glob("outputs/*_transformer_sgd_text_lm_cosine/config.yaml"))) == 1
    assert command("train", *TEXT, *words, "name=mine").status == 0
    assert len(list(tmp_path.glob("outputs/*_mine/config.yaml"))) == 1


@pytest.mark.slow
def test_run_can_be_resumed_evaluated_and_not_overwritten(command, tmp_path):
    words = (*TEXT, "trainer.max_steps=3", "hydra.run.dir=run")
    finished = command("train", *words)
    assert finished.status == 0, finished.err
    for text in ("train loss", "perplexity"):
        assert text in finished.out
    # a language model transcribes nothing
    assert "famx.transcribe" not in finished.out
    config_file = tmp_path / "run" / "config.yaml"
    stored = config_file.read_text()
    assert str(tmp_path / "text.txt") in stored
    mistakes = {
        ("train", *words): "run already holds a run: continue it with resume=",
        ("train", "resume=run", "trainer.max_steps"): "cannot change on resume; these can, each",
        (
            "train",
            "resume=run",
            "trainer.max_steps=abc",
        ): "trainer.max_steps: it must be an integer, got abc",
        ("train", "resume=run", "trainer.max_steps=["): "trainer.max_steps=[ cannot be read",
        ("train", "resume=run", "trainer.log_every=0"): "trainer.log_every=0 must be at least 1",
        ("train", "resume=run", "logger=wandbb"): "logger=wandbb: no such tracker; did you mean w",
        ("train", "resume=run", "logger=[wandb]"): "no such tracker",
        ("train", "finetune.freeze=frontend"): "finetune.freeze=frontend: it must be a list: [a,b]",
        ("train", "resume=run", "optim.lr=1"): "optim.lr=1 cannot change on resume; these can",
        ("train", "resume=run", "--foo"): "--foo cannot change on resume",
        ("evaluate", "run", "nonsense"): "nonsense",
        ("transcribe", "run", "a.wav"): "is a model of text",
    }
    for words, sentence in mistakes.items():
        finished = command(*words)
        assert finished.status == 2
        assert sentence in finished.sentence
        assert config_file.read_text() == stored
    # options that are newer than the run have their defaults
    config = yaml.safe_load(stored)
    for key in ("probe", "param_groups"):
        del config[key]
    config_file.write_text(yaml.safe_dump(config))
    assert command("train", "resume=run", "trainer.max_steps=4", "trust_edits=true").status == 0
    assert command("evaluate", "run").status == 0


@pytest.mark.slow
def test_damaged_or_old_run_is_refused_in_one_sentence(command, tmp_path):
    assert command("train", *TEXT, "hydra.run.dir=run").status == 0
    stored = (tmp_path / "run" / "config.yaml").read_text()
    old_config = yaml.safe_load(stored) | {"watch": "light", "momentum": {"name": "usual"}}
    cases = {
        "watch is now probe, momentum=usual is now momentum=default": yaml.safe_dump(old_config),
        "config.yaml cannot be read": "a: [",
        "config.yaml has no section": "task: 3",
        "has no section data, task": "",
    }
    commands = (("train", "resume=run"), ("evaluate", "run"), ("transcribe", "run", "a.wav"))
    for expected, text in cases.items():
        (tmp_path / "run" / "config.yaml").write_text(text)
        for words in commands:
            finished = command(*words)
            assert finished.status == 2
            assert expected in finished.sentence
    (tmp_path / "run" / "config.yaml").write_text(stored)
    (tmp_path / "run" / "tokenizer.json").write_text("{")
    for words in commands:
        finished = command(*words)
        assert finished.status == 2
        assert "tokenizer.json" in finished.sentence


@pytest.mark.slow
def test_loss_that_is_not_finite_ends_the_run_before_it_is_saved(command, tmp_path):
    words = ("optim=sgd", "optim.lr=1e38", "schedule=constant", "trainer.max_steps=40")
    finished = command("train", *TEXT, *words, "hydra.run.dir=run")
    assert finished.status == 2
    assert " loss is " in finished.sentence
    assert not list((tmp_path / "run" / "checkpoints").glob("step-40"))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["events", "famx.log"])
def test_disk_that_becomes_full_is_reported_in_one_sentence(file, command, tmp_path, monkeypatch):
    from tensorboard.compat.tensorflow_stub.io import gfile

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if file == "events":
        # a thread of TensorBoard writes them
        monkeypatch.setattr(gfile.LocalFileSystem, "append", refuse)
    else:
        monkeypatch.setattr(_LogFile, "_open", lambda self: Path("/dev/full").open("a"))  # noqa: SIM115
    finished = command("train", *TEXT, "trainer.log_every=1", "hydra.run.dir=run")
    assert finished.status == 2
    assert "run cannot be written: No space left on device" in finished.sentence


# sweeps


@pytest.mark.slow
def test_overrides_apply_to_every_run_of_a_sweep(command, tmp_path):
    words = [word for word in TEXT if not word.startswith("data.path")]
    swept = ("optim=fam,fam_published", "data.path=choice(./text.txt)")
    fixed = ("optim.n_bands=4", "trainer.patience=null")
    finished = command("train", *words, *swept, "-m", *fixed, "hydra.sweep.dir=sweep")
    assert finished.status == 0, finished.err
    # only what is swept is in the names
    expected = {f"data.path=._text.txt,optim={name}" for name in ("fam", "fam_published")}
    assert {path.parent.name for path in tmp_path.glob("sweep/*/config.yaml")} == expected


@pytest.mark.slow
def test_override_replaces_the_sweep_of_an_experiment(command, tmp_path):
    words = ("experiment=fam_under_the_microscope", *TEXT, "hydra.sweep.dir=sweep")
    finished = command("train", "-m", *words)
    assert finished.status == 0, finished.err
    # the experiment sweeps tasks too, TEXT sets one
    expected = {f"optim={name}" for name in ("fam_published", "fam", "adamw", "ema_sgd")}
    assert {path.parent.name for path in tmp_path.glob("sweep/*/config.yaml")} == expected


# other commands


def test_catalogue_lists_every_choice_with_a_description(command):
    finished = command("parts")
    assert finished.status == 0, finished.err
    listed = {}
    for line in finished.out.splitlines():
        if not line.startswith(" "):
            room = line
            listed[room] = []
        elif not line.startswith("   "):
            name, *description = line.split()
            assert description
            listed[room].append(name)
    expected = {room: names(room) + preset_names(room) for room in ROOMS}
    expected |= {section: [x.key for x in settings_of(section)] for section in SECTIONS}
    for group in ("model", "experiment"):
        expected[group] = expected.get(group, []) + preset_names(group)
    assert listed == expected


def test_unknown_word_of_the_catalogue_is_refused(command):
    for words, sentence in {
        ("--foo",): "unrecognized arguments: --foo",
        ("norm", "modl"): "modl: no such room; did you mean model?",
    }.items():
        finished = command("parts", *words)
        assert finished.status == 2
        assert sentence in finished.sentence


@pytest.mark.slow
@pytest.mark.parametrize("words", ["-m famx.parts norm", "scripts/benchmark"])
def test_command_ends_quietly_when_its_output_is_closed(words):
    read_end, write_end = os.pipe()
    os.close(read_end)
    finished = subprocess.run(
        [sys.executable, *words.split()],
        cwd=Path(__file__).parents[2],
        stdout=write_end,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    os.close(write_end)
    assert finished.returncode == 141
    assert not finished.stderr
