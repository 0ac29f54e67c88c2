"""Parts of all rooms of a layer fit together and learn, in a sample of their combinations."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from famx.config.schema import CONF, VERSION_BASE, register_schemas, to_plain
from famx.data.spoken import Spoken
from famx.experiment import build_model
from famx.experiment.resolve import resolve
from famx.registry import LAYER_ROOMS, build, names
from famx.seeding import numpy_rng
from famx.training.loader import Loader
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
SMALL = (
    "model.d_model=24",
    "model.n_heads=2",
    "model.n_layers=1",
    "frontend=log_mel",
    "frontend.channels=4",
    "frontend.context=1",
)
# every part occurs in at least one combination
N_COMBINATIONS = max(12, *(len(names(room)) for room in LAYER_ROOMS))


def sampled_combinations(n):
    """Returns n combinations, room -> part; a room repeats a part when all have been used."""
    combinations = [{} for _ in range(n)]
    for room in LAYER_ROOMS:
        parts = []
        for repetition in range(n):
            parts += numpy_rng(0, room, repetition).permutation(names(room)).tolist()
        for combination, part in zip(combinations, parts, strict=False):
            combination[room] = part
    return combinations


class FewSpoken(Spoken):
    sizes = {"train": 6, "dev": 0, "test": 0, "unheard": 0}  # noqa: RUF012


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Returns a tokenizer and a batch of the embedded speech."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAMX_CACHE", str(tmp_path_factory.mktemp("cache")))
        dataset = FewSpoken("train")
    tokenizer = dataset.build_tokenizer(special_tokens=("<blank>",))
    loader = Loader(dataset, tokenizer, config=LoaderConfig(batch_seconds=8.0))
    return tokenizer, next(loader.eval_batches())


@pytest.mark.parametrize(
    "combination",
    sampled_combinations(N_COMBINATIONS),
    ids=lambda combination: "-".join(combination.values()),
)
def test_parts_fit_together_and_learn(combination, spoken):
    # a model of one layer
    tokenizer, batch = spoken
    words = [f"{room}={name}" for room, name in combination.items()]
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        config = resolve(to_plain(compose("train", [*SMALL, *words])))
    model = build_model(config, tokenizer.get_vocab_size())
    task = build("task", {"name": "ctc"}, tokenizer=tokenizer)

    # steps on one batch
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(20):
        loss = task.loss(model, batch)
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < 0.9 * losses[0], f"the loss does not fall: {losses}"
