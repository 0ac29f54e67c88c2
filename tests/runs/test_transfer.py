"""Initial weights from runs with other vocabularies, sizes and layers."""

import signal

import pytest
import torch
from hydra import compose, initialize_config_dir
from tones import saved_weights, stopped_at

from famx.config.schema import CONF, to_plain
from famx.config.versions import VERSION_BASE
from famx.experiment.build import build_experiment, build_run_optimizer
from famx.experiment.report import hparams
from famx.experiment.resolve import resolve
from famx.experiment.run import run
from famx.experiment.transfer import initialize_from
from famx.notation import UserError
from famx.training import checkpoint
from famx.training.run_dir import RunDir
from famx.training.trainer_config import TrainerConfig


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two files of text: the same number of characters, and more."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "abc.txt").write_text("abcab cab bca " * 200)
    (folder / "bcd.txt").write_text("bcdbc dbc cdb " * 200)
    (folder / "more.txt").write_text("zxcab cab bca " * 200)
    return folder


def text_config(texts, name, *words):
    options = [
        "task=lm",
        "data=text",
        f"data.path={texts / name}",
        "data.block=8",
        "model.d_model=16",
        "model.n_heads=2",
        "model.n_layers=1",
        "loader.batch_tokens=64",
        "trainer.max_steps=3",
        "trainer.device=cpu",
    ]
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return to_plain(compose("train", [*options, *words]))


@pytest.fixture(scope="module")
def source(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "run"
    run(text_config(texts, "abc.txt"), folder)
    return folder


def transferred(texts, name, source, *words):
    config = resolve(text_config(texts, name, *words))
    experiment = build_experiment(config, torch.device("cpu"))
    initial = {key: value.clone() for key, value in experiment.model.state_dict().items()}
    transfer = initialize_from(experiment.model, experiment.tokenizer, str(source))
    return experiment, initial, transfer


@pytest.mark.parametrize(("name", "n_common"), [("bcd.txt", 3), ("more.txt", 4)])
def test_rows_of_scores_and_embeddings_are_those_of_equal_tokens(texts, source, name, n_common):
    experiment, initial, transfer = transferred(texts, name, source)
    weights = checkpoint.load(RunDir(source).checkpoints, "best")["model"]
    vocabulary = experiment.tokenizer.get_vocab()
    other = RunDir(source).load_tokenizer().get_vocab()
    by_token = {"score.weight", "score.bias", "frontend.weight"}
    for key, tensor in experiment.model.state_dict().items():
        if key not in by_token:
            assert torch.equal(tensor, weights[key])
            continue
        for token, row in vocabulary.items():
            expected = weights[key][other[token]] if token in other else initial[key][row]
            assert torch.equal(tensor[row], expected), (key, token)
    assert transfer.by_token == dict.fromkeys(by_token, n_common)
    assert set(transfer.loaded) == set(weights) - by_token


def test_equal_vocabularies_load_every_tensor(texts, source):
    experiment, _, transfer = transferred(texts, "abc.txt", source)
    weights = checkpoint.load(RunDir(source).checkpoints, "best")["model"]
    assert set(transfer.loaded) == set(weights)
    assert not transfer.by_token and not transfer.initial and not transfer.unused
    for key, tensor in experiment.model.state_dict().items():
        assert torch.equal(tensor, weights[key])


def test_further_layers_start_anew_and_are_listed(texts, source):
    _, _, transfer = transferred(texts, "abc.txt", source, "model.n_layers=2")
    assert all(name.startswith("layers.1.") for name in transfer.initial)
    assert set(transfer.initial.values()) == {"absent there"}
    titles = [column.header for column in transfer.table().columns]
    assert titles == ["tensors", ""]


def test_model_without_a_common_matrix_in_its_layers_is_refused(texts, source):
    with pytest.raises(UserError, match=r"another model: layers\..* there, .* here$"):
        transferred(texts, "abc.txt", source, "model.d_model=32")


def test_only_some_modules_are_loaded(texts, source):
    config = resolve(text_config(texts, "abc.txt"))
    experiment = build_experiment(config, torch.device("cpu"))
    initial = {key: value.clone() for key, value in experiment.model.state_dict().items()}
    arguments = (experiment.model, experiment.tokenizer, str(source))
    transfer = initialize_from(*arguments, only=["frontend"])
    weights = checkpoint.load(RunDir(source).checkpoints, "best")["model"]
    for key, tensor in experiment.model.state_dict().items():
        expected = weights[key] if key.startswith("frontend.") else initial[key]
        assert torch.equal(tensor, expected), key
    assert set(transfer.initial.values()) == {"not in finetune.only"}
    with pytest.raises(
        UserError, match=r"finetune\.only: the model has no fronted; did you mean f"
    ):
        initialize_from(*arguments, only=["fronted"])


def test_frozen_modules_keep_their_weights_also_when_resumed(texts, source, tmp_path):
    words = (f"init_from={source}", "finetune.freeze=[frontend,layers.0.attention]")
    folder = tmp_path / "run"
    config = text_config(texts, "abc.txt", *words, "trainer.save_every=2")
    run(config, folder)
    config["trainer"]["max_steps"] = 5
    run(config, folder, resume=True)
    weights = checkpoint.load(RunDir(source).checkpoints, "best")["model"]
    for key, tensor in checkpoint.load(RunDir(folder).checkpoints)["model"].items():
        is_frozen = key.startswith(("frontend.", "layers.0.attention."))
        assert torch.equal(tensor, weights[key]) == is_frozen, key


UNFROZEN_BY_STEPS = ("finetune.freeze=[frontend,layers.0.attention]", "finetune.freeze_steps=[4,2]")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        *(["optim=adamw"], ["optim=fam"], ["optim=muon"], ["optim=fam_maxfactor"]),
        *(["optim=lookahead"], ["optim=ema_nesterov", "optim.start_step=1"], ["optim=adafactor"]),
        *(["optim=sgd", "trainer.accumulate=2", "trainer.ema=.9"], ["optim=agc"]),
    ],
)
def test_modules_are_trained_after_their_steps_also_when_resumed(words, texts, tmp_path):
    # steps begin with the full rate
    words = (*UNFROZEN_BY_STEPS, *words, "trainer.max_steps=6", "schedule=constant", "probe=full")
    config = text_config(texts, "abc.txt", *words)
    initial = build_experiment(resolve(config), torch.device("cpu")).model.state_dict()
    last = {}
    # a run that ends at each step, resumed at once, and one that is not interrupted
    for step in range(1, 6):
        with stopped_at(step, signal.SIGTERM):
            assert run(config, tmp_path / "run", resume=step > 1)["stopped_by"] == signal.SIGTERM
        last[step] = checkpoint.load(RunDir(tmp_path / "run").checkpoints)["model"]
    run(config, tmp_path / "run", resume=True)
    run(config, tmp_path / "unbroken")
    for key, tensor in initial.items():
        n_frozen = 0
        if key.startswith("frontend."):
            n_frozen = 4
        elif key.startswith("layers.0.attention."):
            n_frozen = 2
        for step, weights in last.items():
            assert torch.equal(weights[key], tensor) == (step <= n_frozen), (key, step)
    resumed, unbroken = saved_weights(tmp_path / "run"), saved_weights(tmp_path / "unbroken")
    for key, tensor in unbroken.items():
        assert torch.equal(resumed[key], tensor), key


def test_learning_rates_fall_from_the_scores_to_the_frontend(texts):
    words = ("model.n_layers=3", "finetune.layer_decay=.5", "optim=adamw", "optim.lr=1")
    config = resolve(text_config(texts, "abc.txt", *words))
    experiment = build_experiment(config, torch.device("cpu"))
    optimizer = build_run_optimizer(experiment, TrainerConfig(**config["trainer"]))
    rates = {}
    for group in optimizer.param_groups:
        # embeddings have .8 of the rate
        factor = 0.8 if group["kind"] == "embedding" else 1.0
        rates |= dict.fromkeys(group["param_names"], group["lr"] / factor)
    # decay^(n - i), the formula of ULMFiT
    expected = {"frontend": 0.125, "layers.0": 0.25, "layers.1": 0.5, "layers.2": 1.0}
    assert rates.keys() == dict(experiment.model.named_parameters()).keys()
    for name, rate in rates.items():
        module = name.split(".")[0]
        if module == "layers":
            module = ".".join(name.split(".")[:2])
        assert rate == pytest.approx(expected.get(module, 1.0)), name
    # reports show the rate of the first group
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_one_rate_of_all_layers_is_the_default(texts):
    groups = []
    for words in ((), ("finetune.layer_decay=1",)):
        config = resolve(text_config(texts, "abc.txt", *words))
        experiment = build_experiment(config, torch.device("cpu"))
        optimizer = build_run_optimizer(experiment, TrainerConfig(**config["trainer"]))
        groups.append([(group["kind"], group["lr"]) for group in optimizer.param_groups])
    assert groups[0] == groups[1]
    kinds = [kind for kind, _ in groups[0]]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune.freeze_steps=2"], "finetune.freeze_steps=2 needs modules that are frozen"),
        (
            ["finetune.freeze=[frontend]", "finetune.freeze_steps=0"],
            "finetune.freeze_steps=0 must be an integer of at least 1",
        ),
        (
            ["finetune.freeze=[frontend]", "finetune.freeze_steps=[2,1]"],
            r"finetune.freeze_steps=\[2,1\] has 2 numbers for the 1 modules",
        ),
        (
            ["finetune.freeze=[frontend]", "finetune.freeze_steps=3"],
            "finetune.freeze_steps=3 must be below trainer.max_steps=3",
        ),
        (
            ["finetune.layer_decay=0"],
            "finetune.layer_decay=0.0 must be at least 0.01 and at most 1",
        ),
        (
            ["finetune.layer_decay=1.1"],
            "finetune.layer_decay=1.1 must be at least 0.01 and at most 1",
        ),
        (["finetune.freeze=[frontend,layers,norm,score]"], "leaves nothing to train"),
        (["finetune.freeze=[layer]"], "finetune.freeze: the model has no layer; did you mean lay"),
        (["finetune.only=[frontend]"], "finetune.only needs a run whose weights are loaded"),
    ],
)
def test_fine_tuning_without_effect_is_refused(words, message, texts, tmp_path):
    with pytest.raises(UserError, match=message):
        run(text_config(texts, "abc.txt", *words), tmp_path / "run")


def test_fine_tuning_beats_training_from_scratch_on_little_data(texts, tmp_path):
    # other sentences of the same words, of which there are few
    (texts / "long.txt").write_text("the cat sat on the mat and the rat ran " * 100)
    (texts / "little.txt").write_text("the rat sat on the cat and the mat ran " * 8)
    run(text_config(texts, "long.txt", "trainer.max_steps=150", "optim.lr=.01"), tmp_path / "long")
    words = ("trainer.max_steps=20", "optim.lr=.003")
    scratch = run(text_config(texts, "little.txt", *words), tmp_path / "scratch")
    words = (f"init_from={tmp_path / 'long'}", *words)
    tuned = run(text_config(texts, "little.txt", *words), tmp_path / "tuned")
    assert tuned["test/loss"] < 0.5 * scratch["test/loss"]


def test_fine_tuning_is_among_the_settings_that_tell_runs_apart(texts, source):
    words = (f"init_from={source}", *UNFROZEN_BY_STEPS, "finetune.layer_decay=.5")
    settings = hparams(resolve(text_config(texts, "abc.txt", *words)))
    assert settings["init_from"] == str(source)
    assert settings["finetune.freeze"] == "['frontend', 'layers.0.attention']"
    assert settings["finetune.freeze_steps"] == "[4, 2]"
    assert settings["finetune.layer_decay"] == 0.5
    assert "finetune.only" not in settings


def test_run_prints_what_was_loaded(texts, source, tmp_path, capsys):
    run(text_config(texts, "bcd.txt", f"init_from={source}"), tmp_path / "run")
    output = capsys.readouterr().out
    assert "score.weight: 3 of 4 rows" in output
