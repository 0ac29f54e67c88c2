"""Initial weights from runs with other vocabularies, sizes and layers."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from famx.config.schema import CONF, to_plain
from famx.config.versions import VERSION_BASE
from famx.experiment.build import build_experiment
from famx.experiment.resolve import resolve
from famx.experiment.run import run
from famx.experiment.transfer import initialize_from
from famx.notation import UserError
from famx.training import checkpoint
from famx.training.run_dir import RunDir


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
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


def test_run_prints_what_was_loaded(texts, source, tmp_path, capsys):
    run(text_config(texts, "bcd.txt", f"init_from={source}"), tmp_path / "run")
    output = capsys.readouterr().out
    assert "score.weight: 3 of 4 rows" in output
