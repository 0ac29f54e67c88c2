"""Any attention, rotary, norm, feedforward and layer go together and learn: a sample of all their combinations."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from famx.config.schema import CONF, register_schemas, to_plain
from famx.data.spoken import Spoken
from famx.experiment import build_model
from famx.experiment.resolve import resolve
from famx.registry import LAYER_ROOMS, build, names
from famx.seeding import numpy_rng
from famx.training.loader import Loader, LoaderConfig
from famx.training.trainer_config import TrainerConfig

register_schemas(trainer=TrainerConfig, loader=LoaderConfig)
SIZES = [
    "model.d_model=24",
    "model.n_heads=2",
    "frontend=log_mel",
    "frontend.channels=4",
    "frontend.context=1",
]


def sampled(count):
    """Combinations of parts: each room deals all of its own, shuffled, again and again."""
    dealt = {
        room: [
            name
            for deal in range(count)
            for name in numpy_rng(0, room, deal).permutation(names(room)).tolist()
        ]
        for room in LAYER_ROOMS
    }
    return [{room: dealt[room][i] for room in LAYER_ROOMS} for i in range(count)]


class FewSpoken(Spoken):
    sizes = {"train": 6, "dev": 0, "test": 0, "unheard": 0}  # noqa: RUF012


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A batch of the embedded speech, and its tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAMX_CACHE", str(tmp_path_factory.mktemp("cache")))
        data = FewSpoken("train")
    tokenizer = data.build_tokenizer(special_tokens=("<blank>",))
    loader = Loader(data, tokenizer, config=LoaderConfig(batch_seconds=8.0))
    return tokenizer, next(loader.eval_batches())


@pytest.mark.parametrize(
    "parts",
    sampled(max(12, *(len(names(room)) for room in LAYER_ROOMS))),
    ids=lambda parts: "-".join(parts.values()),
)
def test_parts_go_together_and_learn(parts, spoken):
    tokenizer, batch = spoken
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = [f"{room}={name}" for room, name in parts.items()]
        config = resolve(to_plain(compose("train", ["model.n_layers=1", *SIZES, *words])))
    model = build_model(config, tokenizer.get_vocab_size())
    task = build("task", {"name": "ctc"}, tokenizer=tokenizer)
    optimizer, losses = torch.optim.Adam(model.parameters(), 5e-3), []
    for _ in range(20):
        losses.append(task.loss(model, batch))
        losses[-1].backward()
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.stack(losses).isfinite().all()
    assert losses[-1] < 0.9 * losses[0], (
        f"the loss does not fall: {[f'{loss:.2f}' for loss in losses]}"
    )
