"""Trains a model of two layers with each block and layer; prints losses and learned statistics.

`python -m torch.distributed.run --nproc-per-node=2 zoo_processes.py` trains on two processes.
"""

import json
from functools import partial
from typing import Any

import torch
from torch import distributed, nn

from famx.attention.myelinated import MyelinatedAttention
from famx.data._tokenizers import byte_tokenizer
from famx.model import build_model
from famx.nn.batch import Batch
from famx.nn.processes import sum_over_processes
from famx.notation import Modality
from famx.registry import names
from famx.seeding import seed_for
from famx.task.lm import LanguageModel
from famx.training.device import join_process_group
from famx.training.trainer import Trainer
from famx.training.trainer_config import TrainerConfig

STEPS = 5
IDS = 11  # size of the vocabulary
PARTS = {
    "task": "lm",
    "frontend": "tokens",
    "attention": "multihead",
    "rotary": "rope",
    "norm": "layernorm",
    "feedforward": "gelu",
    "layer": "prenorm",
}
# settings with which the few steps have an effect on every state
OPTIONS: dict[str, dict[str, Any]] = {
    "adaptive_span": {"cost": 1.0, "max_span": 4, "ramp": 2},
    "gated_pass": {"rate": 0.5},
    "integrated": {"cost": 1.0, "epsilon": 0.5, "alpha": 1.0, "max_span": 4, "ramp": 2},
    "myelinated": {"cost": 1.0, "threshold": 0.8},
    "worm": {"cost": 1.0, "threshold": 0.8, "max_span": 4, "ramp": 2},
    "skip": {"cost": 1.0},
}


def build_language_model(room: str, name: str) -> nn.Module:
    config: dict[str, Any] = {part_room: {"name": part} for part_room, part in PARTS.items()}
    config[room] = {"name": name, **OPTIONS.get(name, {})}
    # random draws of a step differ between processes: no dropout, and jumps that are certain
    config["layer"]["dropout"] = 0.0
    config["model"] = {"d_model": 24, "n_heads": 4, "n_layers": 2}
    torch.manual_seed(0)
    model = build_model(config, IDS)
    for module in model.modules():
        if isinstance(module, MyelinatedAttention):
            nn.init.constant_(module.policy[-1].bias[1:], -99.0)
    return model


def random_batches() -> list[Batch]:
    """Returns batches in which rows of one process are longer than those of the other."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for step in range(STEPS):
        lengths = torch.tensor([12, 4 + step, 10, 3, 11])
        size = (len(lengths), 12)
        batches.append(
            Batch(
                ids=[str(row) for row in range(len(lengths))],
                texts=[""] * len(lengths),
                inputs=torch.randint(IDS, size, generator=generator),
                lengths=lengths,
                targets=torch.zeros(len(lengths), 0, dtype=torch.long),
                target_lengths=torch.zeros(len(lengths), dtype=torch.long),
                spans=None,
                modality=Modality.TEXT,
            )
        )
    return batches


def train(model: nn.Module) -> list[float]:
    """Returns the loss of each step, and at the end the mean of each saved buffer."""
    trainer = Trainer(
        model=model,
        task=LanguageModel(byte_tokenizer()),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
        schedule=lambda total_steps: lambda step: 1.0,
        batches=lambda epoch, position: iter(()),
        seed_for=partial(seed_for, 0),
        config=TrainerConfig(max_steps=STEPS),
        device=torch.device("cpu"),
    )
    positions = [(0, i, batch) for i, batch in enumerate(random_batches())]
    losses = []
    for fetched in trainer.gradients.prefetch(positions):
        trainer.loss_sum.zero_()
        trainer.train_step([fetched])
        losses.append(sum_over_processes(trainer.loss_sum).item())
    parameters = dict(model.named_parameters())
    saved = model.state_dict()
    buffers = [saved[name] for name in saved if name not in parameters]
    return losses + [buffer.double().mean().item() for buffer in buffers]


def train_all() -> dict[str, list[float]]:
    losses = {}
    for room in ("attention", "layer"):
        for name in names(room):
            losses[f"{room}={name}"] = train(build_language_model(room, name))
    return losses


if __name__ == "__main__":
    is_main_process = join_process_group(torch.device("cpu"))
    losses = train_all()
    if is_main_process:
        print(json.dumps(losses), flush=True)
    # threads of gloo may abort a process that ends before the others
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
