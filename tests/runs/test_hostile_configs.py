"""Configs of strangers: what would run code, read secrets or write elsewhere is refused."""

import sys

import pytest
import yaml

from famx.config.schema import config_folder

SECRET = "a-secret-of-the-environment"
TEXT = (
    *("task=lm", "data=text", "data.path=text.txt", "trainer.max_steps=1", "trainer.device=cpu"),
    *("model.d_model=16", "model.n_heads=2", "model.n_layers=1"),
)
# each of them would write the file `stolen`
CALLS = {
    "copyfile": {"_target_": "shutil.copyfile", "src": "text.txt", "dst": "stolen"},
    "urlretrieve": {
        "_target_": "urllib.request.urlretrieve",
        "url": "file://{tmp}/text.txt",
        "filename": "stolen",
    },
    "load_file": {"_target_": "famx.registry.load_file", "path": "steals.py"},
    "Popen": {"_target_": "subprocess.Popen", "args": ["touch", "stolen"]},
    "partial": {"_target_": "shutil.copyfile", "_args_": ["text.txt", "stolen"]},
    "nested": {"_target_": "builtins.dict", "x": {"_target_": "os.mkdir", "path": "stolen"}},
}
LOG_FILE = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"handlers": ["own"]},
    "handlers": {"own": {"class": "logging.FileHandler", "filename": "stolen"}},
}
LOG_CALL = LOG_FILE | {"handlers": {"own": {"()": "steals.Handler"}}}
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"

# options of Hydra in `experiment/evil.yaml`
FILES = {
    **{f"callback {name}": {"callbacks": {"x": call}} for name, call in CALLS.items()},
    **{f"launcher {name}": {"launcher": call} for name, call in CALLS.items()},
    **{f"sweeper {name}": {"sweeper": call} for name, call in CALLS.items()},
    **{f"in params {name}": {"sweeper": {"params": {"x": call}}} for name, call in CALLS.items()},
    "in the launcher": {"launcher": {"_target_": BASIC, "x": CALLS["copyfile"]}},
    "in a list of the launcher": {"launcher": {"_target_": BASIC, "x": [CALLS["copyfile"]]}},
    "callback elsewhere": {"callbacks": "${model.draw}"},
    "target elsewhere": {"launcher": {"_target_": "${name}", "src": "text.txt", "dst": "stolen"}},
    "job logging to a file": {"job_logging": LOG_FILE},
    "job logging by a call": {"job_logging": LOG_CALL},
    "hydra logging to a file": {"hydra_logging": LOG_FILE},
    "hydra logging by a call": {"hydra_logging": LOG_CALL},
    "root logger": {"job_logging": {"root": {"level": "DEBUG"}}},
    "setup of a job": {"launcher": {"_target_": SLURM, "setup": ["touch stolen"]}},
    "python of a job": {"launcher": {"_target_": SLURM, "python": "touch stolen"}},
    "search space": {"sweeper": {"_target_": OPTUNA, "custom_search_space": "os.mkdir"}},
    "sampler": {"sweeper": {"_target_": OPTUNA, "sampler": CALLS["copyfile"]}},
    "pool": {"launcher": {"_target_": JOBLIB, "x": CALLS["copyfile"]}},
    "output folder": {"output_subdir": "../stolen"},
    "run folder": {"run": {"dir": "stolen"}},
    "sweep folder": {"sweep": {"dir": "stolen"}},
    "folder of a run of a sweep": {"sweep": {"subdir": "../../stolen"}},
    "environment": {"job": {"env_set": {"PATH": "stolen"}}},
    "copied environment": {"job": {"env_copy": ["FAMX_SECRET"]}},
    "copied nothing": {"job": {"env_copy": ["FAMX_ABSENT"]}},
    "swept search path": {"sweeper": {"params": {"hydra.searchpath": "[pkg://steals]"}}},
    "swept callback": {"sweeper": {"params": {"+hydra.callbacks.x._target_": "os.getcwd"}}},
    "swept parts": {"sweeper": {"params": {"famx_parts": "[steals.py]"}}},
    "swept folder": {"sweeper": {"params": {"hydra.sweep.subdir": "stolen"}}},
}
ROOTS = {
    "parts": {"famx_parts": ["steals.py"]},
    "resume": {"resume": "somewhere"},
    "name": {"name": "/../../../stolen"},
    "name of a preset": {"model": {"name": "x/../../../stolen"}},
    "secret": {"probe": "${oc.env:FAMX_SECRET}"},
    "secret with a default": {"probe": "${oc.env:FAMX_SECRET,x}"},
    "old secret": {"probe": "${env:FAMX_SECRET}"},
    "decoded secret": {"probe": "${oc.decode:'${oc.env:FAMX_SECRET}'}"},
    "secret by parts": {"probe": "${${init_from}.env:FAMX_SECRET}", "init_from": "oc"},
    "created secret": {"probe": "${oc.create:{a: '${oc.env:FAMX_SECRET}'}}"},
}
WORDS = {
    **{
        f"word {name}": [
            f"+hydra.callbacks.x={{{', '.join(f'{k}: {v}' for k, v in call.items())}}}"
        ]
        for name, call in CALLS.items()
        if name in ("copyfile", "load_file")
    },
    "words": [f"+hydra.callbacks.x.{k}={v}" for k, v in CALLS["copyfile"].items()],
    "launcher": ["hydra.launcher._target_=shutil.copyfile"],
    "sweeper": ["-m", "seed=0,1", "hydra.sweeper._target_=shutil.copyfile"],
    "no logging": ["hydra/job_logging=default"],
    "package": ["hydra.searchpath=[pkg://steals]"],
    "package and folder": ["hydra.searchpath=[file://., pkg://steals]"],
    "secret in a word": ["name=${oc.env:FAMX_SECRET}"],
    "secret in a folder": ["hydra.run.dir=${oc.env:FAMX_SECRET}"],
    "subfolder": ["hydra.output_subdir=../stolen"],
    "callback group": ["+experiment@hydra.callbacks=evil", "--config-dir", "evil"],
}


@pytest.fixture
def hostile(command, tmp_path, monkeypatch):
    """Returns a function that trains and checks that one sentence refuses it, and nothing else."""
    monkeypatch.setenv("FAMX_SECRET", SECRET)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil" / "experiment").mkdir(parents=True)
    (tmp_path / "evil" / "experiment" / "evil.yaml").write_text("# @package _global_\n")
    (tmp_path / "steals").mkdir()
    for file in (tmp_path / "steals.py", tmp_path / "steals" / "__init__.py"):
        file.write_text(f"import os\nos.mkdir({str(tmp_path / 'stolen')!r})")

    def run(*words):
        before = set(tmp_path.rglob("*"))
        finished = command("train", *TEXT, *words)
        assert finished.status == 2, finished.err
        # Hydra makes the folder of all runs before a value is refused
        assert set(tmp_path.rglob("*")) - {tmp_path / "outputs"} == before
        assert SECRET not in finished.out + finished.sentence
        assert "steals" not in sys.modules
        return finished.sentence

    return run


def write(tmp_path, config):
    """Writes an experiment; launchers and sweepers become choices, which have no schema."""
    config = dict(config)
    hydra = dict(config.pop("hydra", {}))
    defaults = []
    for group in ("launcher", "sweeper"):
        if "_target_" in hydra.get(group, {}):
            (tmp_path / "evil" / "hydra" / group).mkdir(parents=True)
            choice = yaml.safe_dump(hydra.pop(group)).replace("{tmp}", str(tmp_path))
            (tmp_path / "evil" / "hydra" / group / "evil.yaml").write_text(choice)
            defaults.append({f"override /hydra/{group}": "evil"})
    text = yaml.safe_dump({"defaults": [*defaults, "_self_"], "hydra": hydra} | config)
    file = tmp_path / "evil" / "experiment" / "evil.yaml"
    file.write_text("# @package _global_\n" + text.replace("{tmp}", str(tmp_path)))


@pytest.mark.parametrize("case", [*FILES, *ROOTS])
def test_experiment_file_executes_nothing(case, hostile, tmp_path):
    config = ROOTS[case] if case in ROOTS else {"hydra": FILES[case]}
    write(tmp_path, config)
    # launchers and sweepers are built for a sweep; a single run is named by the command line
    needs_sweep = {"launcher", "sweeper", "sweep", "name"} & {*config, *config.get("hydra", {})}
    sentence = hostile("--config-dir", "evil", "experiment=evil", *(["-m"] if needs_sweep else []))
    # nothing else is refused
    option = "name" if "model" in config else next(iter(config))
    assert f"famx: {option}" in sentence


def test_harmless_experiment_file_is_accepted(command, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    config = {"hydra": {"sweeper": {"params": {"seed": "1,2"}}}, "probe": "${oc.select:x,off}"}
    text = "# @package _global_\n" + yaml.safe_dump(config)
    (tmp_path / "own" / "experiment" / "own.yaml").write_text(text)
    finished = command("train", *TEXT, "--config-dir", "own", "experiment=own", "--cfg", "job")
    assert finished.status == 0, finished.err
    assert "probe: ${oc.select:x,off}" in finished.out


@pytest.mark.parametrize("case", WORDS)
def test_word_executes_nothing(case, hostile):
    hostile(*WORDS[case])


def test_experiment_that_is_swept_executes_nothing(hostile, command, tmp_path):
    write(tmp_path, {"hydra": {"job_logging": LOG_FILE}})
    words = ("-m", "--config-dir", "evil", "experiment=evil,digits", "hydra.sweep.dir=sweep")
    finished = command("train", *TEXT, *words)
    assert finished.status == 2
    assert "hydra.job_logging={" in finished.sentence
    assert not (tmp_path / "stolen").exists()
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["multirun.yaml"]


def test_configs_next_to_an_installed_package_are_not_used(tmp_path):
    package = tmp_path / "site-packages" / "famx"
    for folder in (package.parent, package):
        (folder / "conf").mkdir(parents=True)
        (folder / "conf" / "train.yaml").touch()
    assert config_folder(package) == package / "conf"
