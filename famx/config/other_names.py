"""Options that users look for under another name, or in another section."""

from collections.abc import Iterator, Mapping
from typing import Any

BATCH = "loader.batch_seconds (speech), loader.batch_tokens (text) or loader.batch_rows (images)"
LENGTH = "trainer.max_steps or trainer.max_time (seconds)"

OTHER_NAMES = {
    "batch": BATCH,
    "batch_size": BATCH,
    "per_device_train_batch_size": BATCH,
    "train_batch_size": BATCH,
    "epoch": LENGTH,
    "epochs": LENGTH,
    "max_epoch": LENGTH,
    "max_epochs": LENGTH,
    "num_epochs": LENGTH,
    "num_train_epochs": LENGTH,
    "n_epochs": LENGTH,
    "steps": "trainer.max_steps",
    "num_steps": "trainer.max_steps",
    "iterations": "trainer.max_steps",
    "max_iters": "trainer.max_steps",
    "time": "trainer.max_time (seconds)",
    "lr": "optim.lr",
    "learning_rate": "optim.lr",
    "peak_lr": "optim.lr",
    "optimizer": "optim",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "warmup": "schedule.warmup_steps",
    "num_warmup_steps": "schedule.warmup_steps",
    "grad_clip": "trainer.unit_clip",
    "max_grad_norm": "trainer.unit_clip",
    "gradient_clip_val": "trainer.unit_clip",
    "accum_grad": "trainer.accumulate",
    "grad_accum": "trainer.accumulate",
    "gradient_accumulation_steps": "trainer.accumulate",
    "accumulate_grad_batches": "trainer.accumulate",
    "num_workers": "loader.workers",
    "fp16": "trainer.precision",
    "bf16": "trainer.precision",
    "gpu": "trainer.device=cuda",
    "gpus": "torchrun --nproc-per-node=N -m famx.train",
    "n_layer": "model.n_layers",
    "num_layers": "model.n_layers",
    "num_hidden_layers": "model.n_layers",
    "n_head": "model.n_heads",
    "num_heads": "model.n_heads",
    "hidden_size": "model.d_model",
    "n_embd": "model.d_model",
    "output_dir": "hydra.run.dir",
    "dataset": "data",
    "tokenizer": "task.vocab_size",
    "freeze_param": "finetune.freeze",
    "freeze": "finetune.freeze",
    "layer_decay": "finetune.layer_decay",
    "layerwise_lr_decay": "finetune.layer_decay",
    "llrd": "finetune.layer_decay",
    "report_to": "logger",
    "tracker": "logger",
    "use_wandb": "logger=wandb",
    "wandb": "logger=wandb",
    "mlflow": "logger=mlflow",
}
"""Names in other frameworks -> options of famx."""


def elsewhere(key: str, config: Mapping[str, Any], section: str = "") -> str:
    """Returns the options that a key may mean, empty if it is not known.

    Args:
        key: the last step of the option that does not exist.
        config: the composed config.
        section: the section in which the key does not exist.
    """
    if key in OTHER_NAMES:
        return OTHER_NAMES[key]
    return " or ".join(_options_named(key, config, section))


def _options_named(key: str, config: Mapping[str, Any], section: str) -> Iterator[str]:
    for name, options in config.items():
        # the name of a part, and options of Hydra, are no options of famx
        is_section = isinstance(options, Mapping) and name not in (section, "hydra")
        if is_section and key in options and key != "name":
            yield f"{name}.{key}"
