"""Mistakes on the command line: one sentence, exit status 2, and no folder of a run."""

import subprocess
import sys

import pytest

from famx.config.errors import RENAMED
from famx.config.versions import IS_NEW
from famx.registry import ROOMS

SMALL = ("model.d_model=16", "model.n_heads=2", "model.n_layers=1")
TEXT = (
    *("task=lm", "data=text", "data.path=text.txt"),
    *("trainer.max_steps=1", "trainer.device=cpu", *SMALL),
)
# words -> parts of the sentence
UNKNOWN = {
    "attention=myelinatd": ["attention=myelinatd: no such part; did you mean myelinated?"],
    "optim=nothing": ["optim=nothing: no such part; choose from adafactor, adamw"],
    "model=drown": ["model=drown: no such preset; did you mean drawn?"],
    "experiment=shakespear": ["no such experiment; did you mean shakespeare?"],
    "attention.temprature=1": ["attention=multihead has no attention.temprature"],
    "layer.drop=0.1": ["layer=prenorm has no layer.drop; did you mean dropout?"],
    "atention=multihead": ["no option atention; did you mean attention?"],
    "experimet=shakespeare": ["no option experimet; did you mean experiment?"],
    # other frameworks' names, and options of another section
    "batch_size=8": ["no option batch_size: set loader.batch_seconds (speech), loader.batch_tok"],
    "epochs=10": ["there is no option epochs: set trainer.max_steps or trainer.max_time"],
    "lr=1e-3": ["there is no option lr: set optim.lr"],
    "trainer.lr=1": ["trainer has no trainer.lr: set optim.lr"],
    "max_steps=10": ["there is no option max_steps: set trainer.max_steps"],
    "dropout=0.2": ["there is no option dropout: set layer.dropout"],
    "+trainer.foo=1": ["trainer has no trainer.foo; choose from accumulate"],
    "++nosuch.a=1": ["there is no option nosuch;"],
    "seed.x=3": ["seed is 0, so it has no seed.x"],
    "model.layers.x=3": ["model.layers is null, so it has no model.layers.x"],
    "model=drawn model.draw.sed=7": ["model.draw has no model.draw.sed; did you mean seed?"],
    "model=drawn model.draw.space.norm=[layrnorm]": ["norm=layrnorm: no such part; did you mean"],
    "model.draw.seed=7": ["model.draw is null, so it has no model.draw.seed"],
    # Hydra 1.4 checks what is missing before what is null
    "model.draw={seed:7}": [
        "model.draw.space: Missing mandatory value"
        if IS_NEW
        else "model.draw is null, so it has no model.draw.seed"
    ],
    "frontend.n_mels=40": ["frontend.n_mels", "not chosen yet: add frontend=log_mel"],
    "task.vocab_size=0": ["task=lm has no task.vocab_size"],
    "decode=lm_greedy decode.lm=a.arpa": [
        "has no decode.lm, which is an option of decode=ctc_beam"
    ],
    "probe=loud": ["probe=loud: no such level; choose from full, light, off"],
    "param_groups.conv.alfa=0.5": ["no param_groups.conv.alfa; did you mean alpha?"],
    "param_groups.convv.alpha=0.5": ["no param_groups.convv; did you mean conv?"],
    "param_groups.convv.alpha=0.5 layer.drop=0.1": ["no param_groups.convv;"],
    "trainer={max_steps:1,foo:2}": ["trainer has no trainer.foo;"],
    "hydra.foo=1": ["hydra.foo"],
    "hydra=3": ["must be a string or a list"],
    "--foo": ["python -m famx.train: unrecognized arguments: --foo"],
}
WRONG_VALUES = {
    "layer.dropout=much": ["layer.dropout=much", "it must be a number"],
    "layer.dropout={a:1}": ["layer.dropout"],
    "layer.dropout=nan": ["layer.dropout=nan must be finite"],
    "optim.lr=-1": ["optim.lr=-1.0 must be at least 0"],
    "optim.lr=inf": ["optim.lr=inf must be finite"],
    "optim.lr=abc": ["optim.lr=abc: it must be a number, got abc"],
    "loader.speed=[a]": ["loader.speed=['a']: it must be a number, got a"],
    "trainer.max_steps=1.5": ["trainer.max_steps=1.5: it must be an integer, got 1.5"],
    "trainer.compile=maybe": ["trainer.compile=maybe: it must be true or false, got maybe"],
    "data.path=null": ["data.path=null: it must have a value"],
    "optim.lr=???": ["optim.lr", "Missing mandatory value"],
    "optim.lr=${nope}": ["optim.lr", "Interpolation key 'nope' not found"],
    "optim.betas=[0.9]": ["optim.betas=[0.9] must have 2 values, like its default (0.9, 0.98)"],
    "optim=maxfactor optim.eps=[1,2,3]": ["optim.eps=[1.0, 2.0, 3.0] must have 2 values"],
    "model.d_model=15": ["d_model=15 is not a multiple of n_heads=2"],
    "model.d_model=wide": ["model.d_model=wide", "it must be an integer"],
    "model.d_model=true": ["model.d_model=True", "it must be an integer"],
    "model.n_layers=10000000": ["model.n_layers=10000000", "at most 2,000"],
    "model.d_model=4000000000": ["model.d_model=4000000000", "at most 1,048,576"],
    "model.d_model=1000000 model.n_layers=9": ["model.d_model=1000000 with 9 layers", " GB"],
    "loader.workers=1000000": ["loader.workers=1000000 must be between 0 and 256"],
    "loader.buckets=10000000000": ["loader.buckets=10000000000 must be between 1 and 100,000"],
    "loader.time_masks=1000000000": ["loader.time_masks=1000000000 must be between 0 and 1,000"],
    "loader.mel_masks=1001": ["loader.mel_masks=1001 must be between 0 and 1,000"],
    "trainer.accumulate=1000000000000": ["trainer.accumulate=1000000000000 must be between 1"],
    "model.n_layers=0": ["model.n_layers=0 must be", "1"],
    "model.layers=3": ["model.layers=3", "list"],
    "model.layers=[multihead]": ["multihead"],
    "model=drawn model.draw=3": ["model.draw=3 must be a mapping of seed, mutate, space"],
    "model=drawn model.draw.mutate=x": ["model.draw.mutate=x must be a mapping of seed, genes"],
    "model=drawn model.draw.space=3": ["model.draw.space=3 must be a mapping"],
    "seed=-1": ["seed=-1 must be", "0"],
    "seed=1.5": ["seed=1.5", "it must be an integer"],
    "name=[a]": ["name", "string"],
    "name=" + 300 * "x": ["must have at most 220"],
    "probe={a:b}": ["probe={'a': 'b'}: no such level"],
    "param_groups=3": ["param_groups=3 must be a mapping of conv, attention"],
    "param_groups.conv=3": ["param_groups.conv=3 must be a mapping of alpha, n_bands"],
    "param_groups.conv.alpha=much": ["param_groups.conv.alpha=much", "it must be a number"],
    "param_groups.conv.lr_scale=inf": ["param_groups.conv.lr_scale=inf must be finite"],
    "param_groups.conv.alpha=0.5": ["param_groups.conv.alpha=0.5", "optim=muon has no alpha"],
    "trainer.threads=100000": ["trainer.threads=100000 must be between 1 and 1,024"],
    "trainer.device=tpu": ["trainer.device=tpu", "cuda"],
    "trainer.log_every=0": ["trainer.log_every=0 must be at least 1"],
    "trainer.max_steps=0": ["trainer.max_steps=0 must be at least 1"],
    "trainer.max_time=nan": ["trainer.max_time=nan must be finite"],
    "trainer.unit_clip=0": ["trainer.unit_clip=0.0 must be above 0"],
    "trainer.ema=1": ["trainer.ema=1.0 must be at least 0 and less than 1"],
    "trainer.ema=0.9 trainer.tail_average=0.2": [
        "trainer.ema=0.9 and trainer.tail_average=0.2 are two averages of the weights"
    ],
    "loader.batch_seconds=0": ["loader.batch_seconds=0.0 must be above 0"],
    "loader.batch_tokens=0": ["loader.batch_tokens=0 must be at least 1"],
    "loader.speed=[1,9]": ["loader.speed=[1.0, 9.0] must be between 0.2 and 5"],
    "loader.speed=[]": ["loader.speed=[] must have at least one factor"],
    "loader.snr=[inf]": ["loader.snr=[inf] must be finite"],
    "loader.noise=1.10": ["loader.noise changes recordings, and data=text has none"],
    "loader.rooms=text.txt": ["loader.rooms changes recordings, and data=text has none"],
    "loader.noise_probability=2": ["loader.noise_probability=2.0 must be between 0 and 1"],
    "loader.mel_width=1.5": ["loader.mel_width=1.5 must be between 0 and 1"],
    "loader={batch_tokens:abc}": ["loader.batch_tokens=abc: it must be an integer"],
    "task=ctc": ["data=text", "task=ctc", "manifest"],
    "data=hub": ["data=hub", "task=lm", "text"],
    "frontend=log_mel": ["frontend=log_mel", "task=lm", "tokens"],
    "hydra.run.dir=text.txt": ["text.txt cannot be written: File exists"],
    "hydra.run.dir=text.txt/run": ["text.txt/run cannot be written: Not a directory"],
}
UNREADABLE = {
    "foo": ["foo cannot be read as KEY=VALUE"],
    "optim.lr=[": ["optim.lr=[ cannot be read as KEY=VALUE"],
    "optim=fam,adamw": ["optim has several values", "add -m"],
}
REMOVED = {
    "attention=null": ["attention=null leaves attention without a part"],
    "model=": ["model= leaves model without a preset"],
    "trainer=null": ["trainer=null leaves the run without a trainer"],
    "experiment=null": ["experiment=null: a run without an experiment leaves this option out"],
    "~rotary": ["~rotary leaves rotary without a part; choose one, such as rotary=axial"],
    "~loader": ["~loader leaves the run without a loader"],
    "~seed": ["~seed: an option can be set, by seed=VALUE, but not removed"],
    "~param_groups.convv": ["~param_groups.convv: an option can be set"],
    "model=drawn ~model.draw.mutate": ["~model.draw.mutate: an option can be set"],
}
RUN_FOLDERS = {
    "resume=nowhere": ["nowhere is not a run with checkpoints"],
    "resume=": ["resume= needs the folder of a run"],
    "init_from=nowhere": ["nowhere is not a run with checkpoints"],
    "init_from={a:1}": ["init_from is null, so it has no init_from.a"],
    "init_from=[a]": ["init_from", "string"],
    "init_from.x=3": ["init_from is null, so it has no init_from.x"],
}
USER_PARTS = {
    "famx_parts=[nowhere.py]": ["there is no file", "nowhere.py"],
    "famx_parts=nowhere.py": ["there is no file", "nowhere.py"],
    "famx_parts=[": ["famx_parts=[ cannot be read"],
    "famx_parts={a: b}": ["there is no file"],
    "famx_parts=[raises.py]": ["raises.py cannot be run: ZeroDivisionError: division by zero"],
    "famx_parts=[breaks.py]": ["breaks.py cannot be run: SyntaxError"],
    "famx_parts=[bare.py]": ["outside the package a part names its room", "bare.py"],
    "famx_parts=[twice.py]": ["norm=twice is already", "A; rename"],
    "famx_parts=[part.txt]": ["part.txt is not a Python file"],
}
MISTAKES = {
    words: expected
    for table in (UNKNOWN, WRONG_VALUES, UNREADABLE, REMOVED, RUN_FOLDERS, USER_PARTS)
    for words, expected in table.items()
}


def refused(finished, tmp_path):
    """Returns the sentence of a command that was refused and left no folder."""
    assert finished.status == 2, finished.err
    assert not list(tmp_path.glob("outputs/*"))
    return finished.sentence


@pytest.mark.parametrize("words", MISTAKES)
def test_mistake_is_refused_in_one_sentence_and_leaves_no_folder(words, command, tmp_path):
    separate = [words] if words.startswith("famx_parts") else words.split()
    sentence = refused(command("train", *TEXT, *separate), tmp_path)
    for expected in MISTAKES[words]:
        assert expected in sentence


def test_two_views_without_masks_are_refused(command, tmp_path):
    words = ("data=spoken", "task.consistency=0.2", "loader.time_masks=0", "loader.mel_masks=0")
    sentence = refused(command("train", *SMALL, *words, "trainer.max_steps=1"), tmp_path)
    assert "loader.time_masks_per_second=0 mask nothing" in sentence


def test_an_intermediate_layer_that_the_model_does_not_have_is_refused(command, tmp_path):
    words = ("data=spoken", "task.intermediate_layer=4", "model.n_layers=4")
    sentence = refused(command("train", *words, "trainer.max_steps=1"), tmp_path)
    assert "task.intermediate_layer=4 must be below the last of model.n_layers=4" in sentence


VALUES_THAT_ARE_NO_NAME = ("{_target_:os.system}", "{name:multihead}", "[a]", "[multihead]", "3")


@pytest.mark.parametrize("group", [*ROOMS, "model", "experiment"])
def test_choice_that_is_not_a_name_is_refused(group, command, tmp_path):
    for value in VALUES_THAT_ARE_NO_NAME:
        sentence = refused(command("train", *TEXT, f"{group}={value}"), tmp_path)
        assert f"{group}={value} must be the name of one " in sentence
        assert f"such as {group}=" in sentence


def test_part_cannot_be_chosen_by_its_key_name(command, tmp_path):
    for room in ROOMS:
        sentence = refused(command("train", *TEXT, f"{room}.name=other"), tmp_path)
        assert sentence.endswith(f"{room}.name=other: a part is chosen by {room}=other")


@pytest.mark.parametrize("option", RENAMED)
def test_option_of_famx_0_1_is_refused_with_its_new_name(option, command, tmp_path):
    preset = "model=drawn" if option.startswith("model.draw") else "model=transformer"
    sentence = refused(command("train", *TEXT, preset, f"{option}=1"), tmp_path)
    assert sentence.endswith(f"{option} is now {RENAMED[option]}")


@pytest.mark.parametrize("room", ["data", "frontend", "momentum", "spectrum"])
def test_value_of_famx_0_1_is_refused_with_its_new_name(room, command, tmp_path):
    sentence = refused(command("train", *TEXT, f"{room}=usual"), tmp_path)
    assert sentence.endswith(f"{room}=usual is now {room}=default")


def test_nested_option_of_famx_0_1_is_refused_with_its_new_name(command, tmp_path):
    sentence = refused(command("train", *TEXT, "kinds.conv.alpha=0.5"), tmp_path)
    assert sentence.endswith("kinds.conv.alpha=0.5: kinds is now param_groups")
    words = ("model=drawn", "model.draw.space.norm=usual")
    sentence = refused(command("train", *TEXT, *words), tmp_path)
    assert sentence.endswith("model.draw.space.norm=usual is now model.draw.space.norm=default")


@pytest.mark.parametrize(
    ("words", "expected"),
    {
        "optim=fam,adamw optim.n_bands=4": "optim=adamw has no optim.n_bands",
        "optim=fam,adamww": "optim=adamww: no such part; did you mean adamw?",
        "seed=0,x": "seed=x: it must be an integer, got x",
        "attention=multihead,{a:b}": "must be the name of one part",
        "seed=interval(1,2)": "seed=interval(1,2) is an interval",
        "optim.lr=tag(log,interval(1e-4,1e-2))": "add sweep.tune=dev/loss",
        "--cfg job": "only one of",
    }.items(),
)
def test_mistake_in_a_sweep_is_refused_before_a_run_begins(words, expected, command, tmp_path):
    finished = command("train", "-m", *TEXT, *words.split(), "hydra.sweep.dir=sweep")
    assert finished.status == 2, finished.err
    assert expected in finished.sentence
    assert not list(tmp_path.glob("sweep/*/*"))


def test_mistake_in_a_run_of_a_sweep_is_reported_with_the_run(command):
    words = ("-m", *SMALL, "experiment=digits,libri", "data.root=nowhere")
    finished = command("train", *words, "hydra.sweep.dir=sweep")
    assert finished.status == 2, finished.err
    refusals = finished.err.strip().splitlines()
    for name, line in zip(("digits", "libri"), refusals, strict=True):
        assert f"experiment={name} is refused: " in line
        assert "there is no manifest nowhere" in line


USER_EXPERIMENT = """\
# @package _global_
hydra:
  sweeper:
    params:
      optim: fam,adamww
"""


def test_mistake_in_a_users_folder_of_experiments_is_explained(command, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(USER_EXPERIMENT)
    words = (*TEXT, "--config-dir", ".", "experiment=mine")
    sentence = refused(command("train", *words, "layer.drop=0.1"), tmp_path)
    assert "layer=prenorm has no layer.drop" in sentence
    finished = command("train", *words, "-m", "hydra.sweep.dir=sweep")
    assert finished.status == 2
    assert "optim=adamww: no such part; did you mean adamw?" in finished.sentence
    sentence = refused(command("train", *TEXT, "--config-dir", ".", "experiment=yours"), tmp_path)
    assert "experiment=yours: no such experiment; choose from digit_images" in sentence
    assert "mine" in sentence
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nwatch: light\n")
    sentence = refused(command("train", *words), tmp_path)
    assert "In 'experiment/mine'" in sentence
    assert sentence.endswith("watch is now probe")


@pytest.mark.slow
def test_process_exits_with_the_status_of_a_mistake(tmp_path):
    words = [sys.executable, "-m", "famx.train", "layer.drop=0.1"]
    finished = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 2
    assert len(finished.stderr.strip().splitlines()) == 1
