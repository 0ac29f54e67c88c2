"""Effects of genes of sampled layers are found, and chance is not taken for one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from famx.analysis.gene_effects import Effect, marginal_effects
from famx.analysis.runs import Run, Setting

Layer = dict[str, Any]


def setting(layers: Sequence[Layer], loss: float, n_seeds: int = 1, **settings: str) -> Setting:
    runs = {}
    for seed in range(n_seeds):
        runs[seed] = Run(
            folder=Path("."),
            settings=settings,
            seed=seed,
            steps=1,
            parameters=1,
            metric="loss",
            test="",
            errors=np.array([loss]),
            units=np.ones(1),
            layers=layers,
        )
    return Setting("", runs)


def random_layer(rng: np.random.Generator) -> Layer:
    n_heads = int(rng.choice([2, 4, 8]))
    attention: Layer = {"name": "multihead"}
    if rng.random() < 0.5:
        attention = {"name": "topk", "keys": 16}
    activation = str(rng.choice(["relu", "silu", "mish"]))
    return {
        "n_heads": n_heads,
        "attention": attention,
        "feedforward": {"name": "gelu", "activation": activation},
        "layer": {"name": str(rng.choice(["prenorm", "postnorm", "skip"]))},
    }


def random_settings(rng: np.random.Generator) -> list[Setting]:
    """Returns settings in which each `skip` layer adds 0.3 to the loss."""
    settings = []
    for _ in range(30):
        layers = [random_layer(rng) for _ in range(4)]
        n_skips = sum(layer["layer"]["name"] == "skip" for layer in layers)
        loss = 1 + 0.3 * n_skips + 0.1 * rng.standard_normal()
        settings.append(setting(layers, loss, n_seeds=2))
    return settings


def is_significant(effect: Effect) -> bool:
    return effect.verdict != "not shown"


def test_only_the_gene_that_has_an_effect_is_significant():
    rng = np.random.default_rng(0)
    false_alarms = []
    for _ in range(60):
        effects = {effect.gene: effect for effect in marginal_effects(random_settings(rng))}
        skip = effects["layer=skip"]
        assert 0.1 < skip.low < skip.high < 0.5
        others = [effect for gene, effect in effects.items() if not gene.startswith("layer=")]
        false_alarms.append(any(map(is_significant, others)))
    assert np.mean(false_alarms) <= 0.1


def test_effects_are_of_all_genes_that_vary_the_best_first():
    effects = marginal_effects(random_settings(np.random.default_rng(0)))
    assert effects == sorted(effects, key=lambda effect: effect.mean)
    genes = {effect.gene for effect in effects}
    assert {"n_heads=4", "attention=topk", "feedforward=gelu activation=silu"} <= genes
    assert not any("keys" in gene for gene in genes), "keys has one value"


def test_too_few_settings_have_no_effects():
    settings = random_settings(np.random.default_rng(0))
    assert marginal_effects(settings[:3]) == []
    assert marginal_effects([]) == []


def test_diverged_settings_are_omitted():
    first, *others = random_settings(np.random.default_rng(0))
    runs = {seed: run._replace(errors=np.array([np.nan])) for seed, run in first.runs.items()}
    assert marginal_effects([Setting("", runs), *others]) == marginal_effects(others)


def test_depth_and_other_settings_are_not_effects_of_a_gene():
    rng = np.random.default_rng(1)
    false_alarms = []
    for _ in range(40):
        settings = []
        for i in range(24):
            depth = (2, 6)[i % 2]
            optim = ("adamw", "fam")[i // 2 % 2]
            layers = []
            for _ in range(depth):
                norm = str(rng.choice(["x", "y"]))
                layers.append({"norm": {"name": norm}, "n_heads": int(rng.choice([2, 4]))})
            loss = 3 - 0.2 * depth + (optim == "fam") + 0.05 * rng.standard_normal()
            settings.append(setting(layers, loss, optim=optim))
        false_alarms.append(any(map(is_significant, marginal_effects(settings))))
    assert np.mean(false_alarms) <= 0.1
