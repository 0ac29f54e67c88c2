"""What the command line accepts, what it refuses, and in which words."""

import errno
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from famx import files
from famx.config import schema as config
from famx.config.schema import CONF, register_schemas, schema, to_plain
from famx.experiment.build import build_optimizer
from famx.experiment.resolve import resolve
from famx.experiment import build_model
from famx.notation import UserError
from famx.registry import PARTS, ROOMS, load, load_entry_points, names
from famx.training import checkpoint
from famx.training.loader import LoaderConfig
from famx.training.trainer import Trainer, TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
CHOICES = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in ("model", "experiment", "data")
}
SMALL = ["model.d_model=16", "model.n_heads=2", "model.n_layers=1"]


def composed(*words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(to_plain(compose("train", [*words, *SMALL])))


@pytest.mark.parametrize("group", CHOICES)
def test_every_file_of_a_group_composes_and_builds(group):
    for name in CHOICES[group]:
        config = composed(f"{group}={name}")
        model = build_model(config, vocab_size=11)
        build_optimizer(config["optim"], model.parameters(), config["momentum"], config["spectrum"])


@pytest.mark.parametrize(
    "room", [room for room in ROOMS if room not in ("data", "momentum", "spectrum")]
)
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
            assert (
                "name" in fields
                and not {"d_model", "params", "rotary", "tokenizer", "causal"} & fields.keys()
            )


@pytest.fixture
def famx(tmp_path, monkeypatch, capsys):
    """`famx("train", ...)` runs a verb in a folder of its own; its status and what it prints."""

    def run(verb, *words):
        module = importlib.import_module(f"famx.{verb}")
        main = module.main if hasattr(module, "main") else lambda: module.show(sys.argv[1:])
        monkeypatch.setattr(sys, "argv", [verb, *map(str, words)])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as ended:
            config.verb(main)
        told = capsys.readouterr()
        return ended.value.code, told.out, told.err

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PARTS, "norm", dict(PARTS["norm"]))  # where twice.py registers
    (tmp_path / "text.txt").write_text("to be or not to be " * 99)
    (tmp_path / "raises.py").write_text("1 / 0")
    (tmp_path / "breaks.py").write_text("def (")
    (tmp_path / "bare.py").write_text(
        "from famx.registry import register\n\n\n@register\nclass Part: ...\n"
    )
    twice = "\n\n\n".join(f"@register('norm')\nclass {name}: ..." for name in "AB")
    (tmp_path / "twice.py").write_text(f"from famx.registry import register\n\n\n{twice}\n")
    (tmp_path / "part.txt").write_text("")
    return run


TEXT = (
    "task=lm",
    "data=text",
    "data.path=text.txt",
    "trainer.max_steps=1",
    "trainer.device=cpu",
    *SMALL,
)
MISTAKES = {
    "attention=myelinatd": ["attention=myelinatd: no such part; did you mean myelinated?"],
    "attention.temprature=1": ["attention=multihead has no attention.temprature"],
    "layer.dropout=much": ["layer.dropout=much", "Float"],
    "layer.dropout=nan": ["layer.dropout=nan must be finite"],
    "layer.drop=0.1": ["layer=prenorm has no layer.drop", "did you mean dropout?"],
    "atention=multihead": ["atention", "did you mean attention?"],
    "model.d_model=15": ["d_model=15 is not a multiple of n_heads=2"],
    "model.d_model=wide": ["model.d_model=wide must be a whole number of 1 or more"],
    "model.n_layers=0": ["model.n_layers=0 must be a whole number of 1 or more"],
    "model=drawn model.draw.sed=7": ["model.draw has no model.draw.sed", "did you mean seed?"],
    "model=drawn model.draw.space.norm=[layrnorm]": [
        "norm=layrnorm: no such part",
        "did you mean layernorm?",
    ],
    "+trainer.foo=1": ["trainer has no trainer.foo;"],
    "++nosuch.a=1": ["famx has no nosuch;"],
    "optim=nothing": ["optim=nothing: no such part", "adamw"],
    "optim.lr=-1": ["optim.lr=-1.0 must be at least 0"],
    "optim.lr=inf": ["optim.lr=inf must be finite"],
    "optim.betas=[0.9]": ["optim.betas=[0.9] must hold 2 values, as (0.9, 0.98) does"],
    "optim=maxfactor optim.eps=[1,2,3]": ["optim.eps=[1.0, 2.0, 3.0] must hold 2 values"],
    "seed=-1": ["seed=-1 must be a whole number of 0 or more"],
    "attention=null": ["attention=null leaves attention without a choice"],
    "~rotary": ["~rotary leaves rotary without a choice"],
    "optim=fam,adamw": ["optim=fam,adamw names several values", "give -m too"],
    "name=" + 300 * "x": ["File name too long"],
    "model=drawn model.draw.mutate=x": ["it needs seed, mutate: {seed, genes}"],
    "trainer.threads=100000": ["trainer.threads=100000 must be between 1 and 1,024"],
    "trainer.device=tpu": ["trainer.device=tpu", "cuda"],
    "trainer.log_every=0": ["trainer.log_every=0 must be at least 1"],
    "trainer.max_steps=0": ["trainer.max_steps=0 must be at least 1"],
    "trainer.max_time=nan": ["trainer.max_time=nan must be finite"],
    "trainer.clip=0": ["trainer.clip=0.0 must be above 0"],
    "trainer.ema=1": ["trainer.ema=1.0 must be at least 0 and less than 1"],
    "loader.batch=0": ["loader.batch=0.0 must be above 0"],
    "loader.speed=[1,9]": ["loader.speed=[1.0, 9.0] must be between 0.2 and 5"],
    "loader.speed=[]": ["loader.speed=[] must have a factor"],
    "loader.snr=[inf]": ["loader.snr=[inf] must be finite"],
    "loader.mel_width=1.5": ["loader.mel_width=1.5 must be between 0 and 1"],
    "task=ctc": ["data=text is of tokens and task=ctc of seconds", "manifest"],
    "data=hub": ["data=hub is of seconds and task=lm of tokens"],
    "frontend=log_mel": ["frontend=log_mel is of seconds and task=lm of tokens"],
    "frontend.n_mels=40": ["give frontend=log_mel too"],
    "task.units=0": ["task=lm has no task.units"],
    "watch=loud": ["watch=loud: no such setting", "full, light, off"],
    "kinds.conv.alpha=much": ["kinds.conv.alpha=much must be a number"],
    "kinds.conv.lr_scale=inf": ["kinds.conv.lr_scale=inf must be finite"],
    "kinds.conv.alfa=0.5": ["no kinds.conv.alfa", "did you mean alpha?"],
    "kinds.convv.alpha=0.5": ["kinds has no kinds.convv;", "did you mean conv?"],
    "kinds.convv.alpha=0.5 layer.drop=0.1": ["kinds has no kinds.convv;", "did you mean conv?"],
    "~kinds.convv": ["kinds has no kinds.convv;", "did you mean conv?"],
    "seed.x=3": ["seed has no seed.x"],
    "experimet=shakespeare": ["famx has no experimet;", "did you mean experiment?"],
    "kinds.conv.alpha=0.5": [
        "kinds.conv.alpha=0.5 would change nothing",
        "optim=adamw has no alpha for each kind",
    ],
    "resume=nowhere": ["nowhere is not a run with checkpoints"],
    "resume=": ["resume= names no run"],
    "init_from=nowhere": ["nowhere is not a run with checkpoints"],
    "hydra.run.dir=text.txt": ["text.txt cannot be written: File exists"],
    "hydra.run.dir=text.txt/run": ["text.txt/run cannot be written: Not a directory"],
    "--foo": ["python -m famx.train: unrecognized arguments: --foo"],
    "foo": ["foo cannot be read as KEY=VALUE"],
    "optim.lr=[": ["optim.lr=[ cannot be read as KEY=VALUE"],
    "famx_parts=[nowhere.py]": ["there is no file", "nowhere.py"],
    "famx_parts=nowhere.py": ["there is no file", "nowhere.py"],
    "famx_parts=[": ["famx_parts=[ cannot be read"],
    "famx_parts=[raises.py]": ["raises.py cannot be run: ZeroDivisionError: division by zero"],
    "famx_parts=[breaks.py]": ["breaks.py cannot be run: SyntaxError"],
    "famx_parts=[bare.py]": ["outside the package a part names its room", "bare.py"],
    "famx_parts=[twice.py]": ["norm=twice is", "A already, rename"],
    "famx_parts=[part.txt]": ["part.txt is no Python file"],
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_told_in_one_sentence_and_leaves_nothing(word, famx, tmp_path):
    status, _, told = famx("train", *TEXT, *word.split())
    assert status == 2, told
    (line,) = told.strip().splitlines()
    for words in MISTAKES[word]:
        assert words in line
    assert not list(tmp_path.glob("outputs/*"))


def test_a_run_is_named_by_the_parts_that_were_chosen(famx, tmp_path):
    words = ["+attention=cosine", "optim=sgd", "layer.dropout=0.2"]
    for given, name in (([], "transformer_sgd_text_lm_cosine"), (["name=mine"], "mine")):
        status, _, told = famx("train", *TEXT, *words, *given)
        assert status == 0, told
        assert len(list(tmp_path.glob(f"outputs/*_{name}/config.yaml"))) == 1


def test_the_catalogue_has_every_choice_of_every_group_and_what_it_is(famx):
    status, out, told = famx("parts")
    assert status == 0, told
    listed = {}
    for line in out.splitlines():
        if not line.startswith(" "):
            room = listed.setdefault(line, [])
        elif not line.startswith("   "):
            name, *words = line.split()
            assert words
            room.append(name)
    assert list(listed) == [*ROOMS, "model", "experiment"]
    for room, found in listed.items():
        assert found == [*(names(room) if room in ROOMS else []), *CHOICES.get(room, [])]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package of the given entry point."""

    def install(value):
        folder = tmp_path / "site" / "own-1.dist-info"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "METADATA").write_text("Name: own\nVersion: 1\n")
        (folder / "entry_points.txt").write_text(f"[famx.parts]\nmine = {value}\n")
        load.cache_clear()
        load_entry_points.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield install
    load.cache_clear()
    load_entry_points.cache_clear()


def test_parts_of_an_installed_package_are_choices_in_every_command(famx, installed, tmp_path):
    (tmp_path / "its").mkdir()
    (tmp_path / "its" / "offset.py").write_text(
        "import torch\nfrom famx.registry import names, register\nnames('norm')\n\n\n@register('norm')\n"
        "class Offset(torch.nn.LayerNorm):\n"
        "    def __init__(self, d_model, *, by: float = 0.0):\n"
        "        super().__init__(d_model)\n        self.by = by\n"
        "    def forward(self, x):\n        return super().forward(x) + self.by\n"
    )
    installed("its.offset")
    for command in (
        ["parts", "norm"],
        ["train", *TEXT, "norm=offset", "norm.by=0.5", "hydra.run.dir=run"],
        ["evaluate", "run"],
        ["train", "resume=run", "trainer.max_steps=2"],
    ):
        status, out, told = famx(*command)
        assert status == 0, told
        assert command[0] != "parts" or "by=0.0" in out
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["famx_parts"] == []


@pytest.mark.parametrize(
    ("value", "fault"),
    {
        "nowhere.at_all": "ModuleNotFoundError: No module named 'nowhere'",
        "raises": "ZeroDivisionError: division by zero",
        "bare": "outside the package a part names its room",
    }.items(),
)
def test_a_broken_package_is_told_by_its_entry_point(value, fault, famx, installed):
    installed(value)
    for command in (["parts", "norm"], ["train", *TEXT]):
        status, _, told = famx(*command)
        assert status == 2 and len(told.strip().splitlines()) == 1, told
        assert f"the entry point famx.parts mine = {value} cannot be loaded: {fault}" in told


def test_a_command_ends_with_the_status_of_its_mistake(tmp_path):
    command = [sys.executable, "-m", "famx.train", "layer.drop=0.1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["-m famx.parts norm", "scripts/benchmark"])
def test_a_command_whose_reader_has_enough_ends_quietly(command):
    read, write = os.pipe()
    os.close(read)
    words, root = [sys.executable, *command.split()], Path(__file__).parents[2]
    done = subprocess.run(words, cwd=root, stdout=write, stderr=subprocess.PIPE, timeout=120)
    os.close(write)
    assert done.returncode == 141 and not done.stderr


def test_a_folder_holds_one_run_and_a_run_goes_on_only_whole_and_under_right_words(famx, tmp_path):
    words = [*TEXT, "trainer.max_steps=3", "hydra.run.dir=run"]
    status, out, told = famx("train", *words)
    assert status == 0, told
    assert "train loss" in out and "perplexity" in out and "famx.transcribe" not in out
    stored = tmp_path / "run" / "config.yaml"
    before = stored.read_text()
    assert str(tmp_path / "text.txt") in before
    mistakes = {
        ("train", *words): "run already holds a run: go on with resume=",
        ("train", "resume=run", "trainer.max_steps"): "each with =VALUE",
        ("train", "resume=run", "trainer.max_steps=abc"): "trainer.max_steps",
        ("train", "resume=run", "trainer.log_every=0"): "trainer.log_every=0 must be at least 1",
        ("train", "resume=run", "optim.lr=1"): "optim.lr=1 is not what may change",
        ("evaluate", "run", "nonsense"): "nonsense",
        ("transcribe", "run", "a.wav"): "is a model of text",
        ("parts", "--foo"): "unrecognized arguments: --foo",
        ("parts", "norm", "modl"): "modl: no such room; did you mean model?",
    }
    for command, sentence in mistakes.items():
        status, _, told = famx(*command)
        assert status == 2 and sentence in told and len(told.strip().splitlines()) == 1, told
        assert stored.read_text() == before
    older = {
        key: value for key, value in yaml.safe_load(before).items() if key not in ("watch", "kinds")
    }
    stored.write_text(yaml.safe_dump(older))
    status, _, told = famx("train", "resume=run", "trainer.max_steps=4")
    assert status == 0, told
    for name, spoiled in (
        ("tokenizer.json", "{"),
        ("config.yaml", "a: ["),
        ("config.yaml", ""),
        ("config.yaml", "task: 3"),
    ):
        (tmp_path / "run" / name).write_text(spoiled)
        for command in (
            ("train", "resume=run"),
            ("evaluate", "run"),
            ("transcribe", "run", "a.wav"),
        ):
            status, _, told = famx(*command)
            assert status == 2 and name in told and len(told.strip().splitlines()) == 1, told


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(famx, tmp_path):
    words = [
        "optim=sgd",
        "optim.lr=1e38",
        "schedule=constant",
        "trainer.max_steps=40",
        "hydra.run.dir=run",
    ]
    status, _, told = famx("train", *TEXT, *words)
    assert status == 2 and " loss is " in told and len(told.strip().splitlines()) == 1, told
    assert not list((tmp_path / "run" / "checkpoints").glob("step-40"))


def test_words_beside_a_sweep_are_held_to_each_of_its_runs(famx, tmp_path):
    beside = ["optim.n_bands=4", "trainer.patience=null"]
    swept = [
        "optim=fam,fam_published",
        "data.path=choice(./text.txt)",
        "trainer.precision=choice(fp32)",
    ]
    words = [word for word in TEXT if not word.startswith("data.path")]
    status, _, told = famx("train", "-m", *words, *swept, *beside, "hydra.sweep.dir=sweep")
    assert status == 0, told
    found = {path.parent.name for path in tmp_path.glob("sweep/*/config.yaml")}
    assert found == {
        f"optim={name},data.path=._text.txt,trainer.precision=fp32"
        for name in ("fam", "fam_published")
    }
    status, _, told = famx(
        "train", "-m", "experiment=fam_under_the_microscope", *TEXT, "hydra.sweep.dir=microscope"
    )
    assert status == 0, told
    found = {path.parent.name for path in tmp_path.glob("microscope/*/config.yaml")}
    assert found == {f"optim={name}" for name in ("fam_published", "fam", "adamw", "ema_sgd")}
    status, _, told = famx("train", "-m", *SMALL, "experiment=digits,libri", "data.root=nowhere")
    assert status == 2 and "there is no manifest nowhere" in told, told
    status, _, told = famx("train", "-m", *TEXT, "optim=fam,adamw", "optim.n_bands=4")
    assert status == 2 and "optim.n_bands" in told, told


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path, monkeypatch):
    def full(file, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "scores.json").write_text("old")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"scores\.json cannot be written: No space left"):
        files.write_atomic(tmp_path / "scores.json", "new")
    assert (tmp_path / "scores.json").read_text() == "old"


@pytest.mark.parametrize("file", ["events", "famx.log"])
def test_a_disk_that_fills_up_in_a_run_is_told_in_one_sentence(file, famx, tmp_path, monkeypatch):
    from tensorboard.compat.tensorflow_stub.io import gfile

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if file == "events":  # which a thread of their own writes
        monkeypatch.setattr(gfile.LocalFileSystem, "append", full)
    else:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / file).symlink_to("/dev/full")
    status, _, told = famx("train", *TEXT, "trainer.log_every=1", "hydra.run.dir=run")
    assert status == 2 and "run cannot be written: No space left on device" in told, told
    assert len(told.strip().splitlines()) == 1, told


def test_a_signal_ends_a_sweep_with_the_run_it_falls_in(famx, tmp_path, monkeypatch):
    train = Trainer._train
    monkeypatch.setattr(
        Trainer, "_train", lambda *run: (train(*run), os.kill(os.getpid(), signal.SIGTERM))
    )
    status, _, _ = famx(
        "train", "-m", *TEXT, "trainer.max_steps=3", "seed=0,1", "hydra.sweep.dir=sweep"
    )
    assert status == 128 + signal.SIGTERM
    assert [folder.name for folder in (tmp_path / "sweep").iterdir() if folder.is_dir()] == [
        "seed=0"
    ]
    assert checkpoint.load(tmp_path / "sweep" / "seed=0" / "checkpoints")["step"] == 1
