"""The sections of a config that are not parts, as dataclasses: their fields, types and defaults.

Hydra checks the types. `LoaderConfig` and `TrainerConfig` are defined where they are used.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING

from famx.notation import UserError
from famx.validate import COUNT, NON_NEGATIVE, RATIO, SIZE, THREADS, ConfigSection


@dataclass
class MutateConfig:
    """Changes of sampled layers.

    Args:
        seed: seed that selects the genes and their new values.
        genes: number of genes that change.
    """

    seed: int = 0
    genes: int = 0


@dataclass
class DrawConfig:
    """A search space of layers, and the seed of a sample (famx/experiment/search.py).

    Args:
        seed: seed of the sample, independent of the seed of training.
        mutate: changes after sampling.
        space: options of `n_heads` and of each room of a layer: `all`, `default`, a list of parts,
            or a mapping part -> hyperparameter -> values. Values are a list, a range {low, high},
            or one value.
        defaults: the options for which `default` in `space` stands.
    """

    seed: int = 0
    mutate: MutateConfig = field(default_factory=MutateConfig)
    space: dict[str, Any] = MISSING
    defaults: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig(ConfigSection):
    """Sizes of a model, and the parts of single layers if these differ.

    Args:
        name: name of the preset.
        d_model: channels of each position.
        n_heads: attention heads, which divide d_model.
        n_layers: number of layers; replaced by the length of `layers` if that is set.
        layers: one mapping per layer, such as {attention: worm, n_heads: 8}; values that it leaves
            out are those of the config.
        draw: the search space, if layers are sampled.
        decoder_layers: pairs of layers of the decoder of `task=seq2seq` and `task=translate`, the
            first to attend to the text, the second to the encoder, with the parts of the config;
            None for half of `n_layers`.
    """

    name: str = MISSING
    d_model: Annotated[int, SIZE] = 192
    n_heads: Annotated[int, SIZE] = 4
    n_layers: Annotated[int, SIZE] = 4
    layers: list[Any] | None = None
    draw: DrawConfig | None = None
    decoder_layers: Annotated[int | None, SIZE] = None


@dataclass
class ParamGroupConfig:
    """Settings for the parameters of one kind; None leaves the default of the kind.

    Args:
        alpha: momentum.
        n_bands: number of frequency bands in which gradients are measured.
        lr_scale: factor of the learning rate.
        decay_scale: factor of the weight decay.
    """

    alpha: float | None = None
    n_bands: int | None = None
    lr_scale: float | None = None
    decay_scale: float | None = None


@dataclass
class ParamGroupsConfig:
    """Settings by the kind of module that owns a parameter (famx/optim/_param_groups.py)."""

    conv: ParamGroupConfig = field(default_factory=ParamGroupConfig)
    attention: ParamGroupConfig = field(default_factory=ParamGroupConfig)
    embedding: ParamGroupConfig = field(default_factory=ParamGroupConfig)
    norm: ParamGroupConfig = field(default_factory=ParamGroupConfig)
    other: ParamGroupConfig = field(default_factory=ParamGroupConfig)


@dataclass
class SweepConfig(ConfigSection):
    """Options of a sweep.

    Args:
        jobs: number of runs that train at once on this machine; None for as many as keep its GPU
            busy (famx/experiment/packing.py), or one for each CPU core. Each of several runs has an
            equal share of the CPU cores, and writes its output to output.log in its folder.
        retries: how often a run is started again that a signal or an error of famx has ended.
        mixed_code: whether runs that were trained with other code count as runs of this sweep.
        tune: metric on dev, such as dev/loss, whose minimum is searched for instead of training all
            combinations.
        trials: number of runs of that search.
    """

    jobs: Annotated[int | None, THREADS] = 1
    retries: Annotated[int, NON_NEGATIVE] = 1
    mixed_code: bool = False
    tune: str | None = None
    trials: Annotated[int, COUNT] = 20


@dataclass
class FinetuneConfig(ConfigSection):
    """Selects the weights of `init_from` that are loaded, those that are trained, and their rates.

    Args:
        only: modules whose weights are loaded, such as [frontend,layers.0]; empty for all that fit.
        freeze: modules whose weights are not trained, such as [frontend].
        freeze_steps: number of steps after which these modules are trained too, or a list with one
            number for each of them; None for never.
        layer_decay: factor of the learning rate from each layer to the one below it, which is
            trained more slowly; 1 for one rate of all layers.
    """

    only: list[str] = field(default_factory=list)
    freeze: list[str] = field(default_factory=list)
    freeze_steps: Any = None
    layer_decay: Annotated[float, RATIO] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        value = self.freeze_steps
        if value is None:
            return
        key = f"finetune.freeze_steps={str(value).replace(' ', '')}"
        numbers = self.steps_of_modules()
        if any(type(number) is not int or number < 1 for number in numbers):
            raise UserError(f"{key} must be an integer of at least 1, or a list of such integers")
        if not self.freeze:
            raise UserError(f"{key} needs modules that are frozen: finetune.freeze=[frontend]")
        if len(numbers) != len(self.freeze):
            raise UserError(
                f"{key} has {len(numbers)} numbers for the {len(self.freeze)} modules of "
                f"finetune.freeze=[{','.join(self.freeze)}]: give one for each, or one for all"
            )

    def steps_of_modules(self) -> list[int]:
        """Returns how many steps each module of `freeze` is frozen; empty for all steps."""
        if self.freeze_steps is None:
            return []
        if isinstance(self.freeze_steps, list):
            return self.freeze_steps
        return [self.freeze_steps] * max(1, len(self.freeze))


@dataclass
class RunConfig:
    """The config of a run except its parts, the loader and the trainer.

    Args:
        seed: seed of weights, batches and augmentation, at least 0.
        name: name of the run's folder.
        probe: level of the optimizer probe, `off`, `light` or `full`; not typed as a string, since
            YAML reads off as false.
        param_groups: settings of single kinds of parameters.
        sweep: options of a sweep, which no run depends on.
        resume: folder of a run to continue.
        init_from: folder of a run whose weights are the initial ones.
        logger: where the curves of a run go besides its folder, `tensorboard` for nowhere else, or
            `mlflow`, `wandb` or `trackio` (docs/trackers.md).
        finetune: which of these weights are loaded, and which are trained from when and how fast.
        famx_parts: files of the user's parts; in a stored config, their names and digests.
        check: whether parts outside of famx are checked before they train, `on` or `off`; not typed
            as a string, since YAML reads both as booleans.
        pictures: whether TensorBoard gets pictures of one example of dev, `on` or `off`; not typed
            as a string either (docs/tensorboard.md).
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    seed: int = 0
    name: str = MISSING
    probe: Any = "light"
    param_groups: ParamGroupsConfig = field(default_factory=ParamGroupsConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    resume: str | None = None
    init_from: str | None = None
    logger: str = "tensorboard"
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    famx_parts: Any = field(default_factory=list)
    check: Any = "on"
    pictures: Any = "on"
