"""Fine-tuning: initial weights of another run, modules that are frozen, learning rates by depth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rich.table import Table
from tokenizers import Tokenizer
from torch import Tensor, nn

from famx.config.sections import FinetuneConfig
from famx.model import Model, ModelWithDecoder
from famx.notation import UserError, suggest
from famx.training import checkpoint
from famx.training.checkpoint import evaluated_weights
from famx.training.hooks import Hook
from famx.training.run_dir import RunDir
from famx.training.trainer import Trainer

EXCLUDED = "not in finetune.only"


@dataclass
class Transfer:
    """The result of `init_from`.

    Args:
        source: folder of the other run.
        loaded: names of the tensors that were loaded completely.
        by_token: tensors with a row per token -> number of rows that were loaded.
        initial: names of the tensors that start anew -> why.
        unused: names of tensors of the other run that this model lacks.
        n_tokens: size of this model's vocabulary.
    """

    source: str
    n_tokens: int
    loaded: list[str] = field(default_factory=list)
    by_token: dict[str, int] = field(default_factory=dict)
    initial: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Returns the content of the table as one line, for famx.log."""
        facts = [f"loaded {len(self.loaded)} tensors"]
        for name, n_rows in self.by_token.items():
            facts.append(f"of {name} {n_rows} of {self.n_tokens} rows")
        facts += [f"{name} anew ({reason})" for name, reason in self.initial.items()]
        facts += [f"{name} unused" for name in self.unused]
        return f"weights of {self.source}: {', '.join(facts)}"

    def table(self) -> Table:
        """Returns what was loaded, by token, and what starts anew, for the terminal."""
        title = f"weights of {self.source}"
        table = Table("tensors", "", title=title, title_justify="left")
        table.add_row("loaded", f"{len(self.loaded)}")
        for name, n_rows in self.by_token.items():
            table.add_row("by token", f"{name}: {n_rows} of {self.n_tokens} rows, the others anew")
        for name, reason in self.initial.items():
            table.add_row("anew", f"{name} ({reason})")
        for name in self.unused:
            table.add_row("unused", name)
        return table


def initialize_from(
    model: Model, tokenizer: Tokenizer, run: str, only: Sequence[str] = ()
) -> Transfer:
    """Loads the best weights of another run, as far as they fit.

    Tensors are matched by name and shape. Of the score layer and the embeddings, whose rows are
    tokens, the rows of equal tokens are loaded. Everything else has its initial values.

    Args:
        tokenizer: tokenizer of the model.
        run: folder of the other run.
        only: modules whose weights are loaded; empty for all.

    Raises:
        UserError: there is no such run or module, or no matrix of its layers fits.
    """
    _require_modules(model, "finetune.only", only)
    run_dir = RunDir(run)
    saved = checkpoint.load(run_dir.require_checkpoints(), "best")
    vocabulary = tokenizer.get_vocab()
    other_vocabulary = run_dir.load_tokenizer().get_vocab()
    weights = evaluated_weights(saved, run)
    transfer = Transfer(run, len(vocabulary), unused=sorted(weights))
    rows = _rows_of_equal_tokens(vocabulary, other_vocabulary)
    for name, tensor in model.state_dict().items():
        if name not in weights:
            transfer.initial[name] = "absent there"
            continue
        transfer.unused.remove(name)
        if only and not _is_inside(name, only):
            transfer.initial[name] = EXCLUDED
            continue
        other = weights[name].to(tensor.device)
        is_by_token = vocabulary != other_vocabulary and name in _tensors_by_token(model)
        if is_by_token and _fits(tensor, other, other_vocabulary):
            tensor[rows[0].to(tensor.device)] = other[rows[1].to(tensor.device)].to(tensor.dtype)
            transfer.by_token[name] = len(rows[0])
        elif tensor.shape == other.shape and not is_by_token:
            tensor.copy_(other)
            transfer.loaded.append(name)
        else:
            transfer.initial[name] = f"{tuple(other.shape)} there, {tuple(tensor.shape)} here"
    _refuse_other_model(model, transfer)
    return transfer


class FreezeForSteps(Hook):
    """Keeps parameters as they are in the first steps of a run, by dropping their gradients.

    Without a gradient, an optimizer neither changes a parameter nor begins its state. All passes
    compute all gradients, so CUDA graphs, compiled layers and the exchange between processes are
    those of a run without frozen modules. The number of the step alone decides, so that a resumed
    run needs no state.

    Args:
        steps: parameter -> number of steps in which it does not change.
    """

    def __init__(self, steps: Mapping[nn.Parameter, int]):
        self.steps = steps

    def before_optimizer_step(self, trainer: Trainer, grad_norms: Tensor) -> None:
        for parameter, n_steps in self.steps.items():
            if trainer.step < n_steps:
                parameter.grad = None


def freeze(
    model: Model, settings: FinetuneConfig, max_steps: int | None = None
) -> list[FreezeForSteps]:
    """Excludes the weights of modules from training, or from its first steps.

    Args:
        max_steps: number of steps of the run, if it is set.

    Returns:
        The hook that a run needs whose modules are frozen in its first steps.

    Raises:
        UserError: there is no such module, it would be frozen in all steps of the run, or nothing
            would be trained.
    """
    modules = settings.freeze
    _require_modules(model, "finetune.freeze", modules)
    numbers = settings.steps_of_modules()
    if max_steps is not None and max(numbers, default=0) >= max_steps:
        raise UserError(
            f"finetune.freeze_steps={max(numbers)} must be below trainer.max_steps={max_steps}; "
            "leave it out to freeze the modules in all steps"
        )
    frozen: dict[nn.Parameter, int] = {}
    for name, parameter in model.named_parameters():
        inside = [i for i, module in enumerate(modules) if _is_inside(name, [module])]
        if inside:
            frozen[parameter] = max(numbers[i] for i in inside) if numbers else 0
    if frozen and len(frozen) == len(list(model.parameters())):
        raise UserError(f"finetune.freeze=[{','.join(modules)}] leaves nothing to train")
    if numbers:
        return [FreezeForSteps(frozen)]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return []


def depth_factors(model: Model, decay: float) -> dict[str, float]:
    """Returns the factors of the learning rates of all parameters by their depth.

    Layer i of n, counted from 1, has the factor decay^(n - i), the frontend decay^n, and everything
    after the layers 1: the last norm, the scores, and a decoder. Layers near the input are the most
    general ones, and change the least (discriminative fine-tuning of ULMFiT, arXiv:1801.06146,
    section 3.2, where decay = 1 / 2.6).

    Args:
        decay: factor from a layer to the one below it.
    """
    n_layers = len(model.layers)
    factors = {}
    for name, _ in model.named_parameters():
        first, *rest = name.split(".")
        depth = n_layers
        if first == "frontend":
            depth = 0
        elif first == "layers":
            depth = int(rest[0]) + 1
        factors[name] = decay ** (n_layers - depth)
    return factors


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _require_modules(model: Model, option: str, modules: Sequence[str]) -> None:
    """Raises a UserError if the model lacks one of the modules, or the module has no weights."""
    known = {name for name, module in model.named_modules() if name and module.state_dict()}
    for module in modules:
        if module not in known:
            # of hundreds, those that are mostly meant
            choices = [name for name in known if name.count(".") < 2]
            raise UserError(f"{option}: the model has no {module}{suggest(module, choices)}")


def _refuse_other_model(model: Model, transfer: Transfer) -> None:
    """Raises a UserError if no matrix of the layers was loaded, unless none was to be."""
    reasons = dict(transfer.initial)
    for name, tensor in model.state_dict().items():
        if name.startswith("layers.") and tensor.ndim > 1:
            if name in transfer.loaded or transfer.initial.get(name) == EXCLUDED:
                return
            reasons = {name: transfer.initial[name]} | reasons
    for name, reason in reasons.items():
        raise UserError(f"{transfer.source} is a checkpoint of another model: {name} is {reason}")


def _rows_of_equal_tokens(
    vocabulary: Mapping[str, int], other: Mapping[str, int]
) -> tuple[Tensor, Tensor]:
    """Returns the ids of the tokens that are in both vocabularies, in each of them."""
    common = sorted(vocabulary.keys() & other.keys(), key=vocabulary.__getitem__)
    ids = [vocabulary[token] for token in common]
    other_ids = [other[token] for token in common]
    return torch.tensor(ids, dtype=torch.long), torch.tensor(other_ids, dtype=torch.long)


def _tensors_by_token(model: Model) -> set[str]:
    """Returns the names of the tensors whose rows are tokens: scores and embeddings."""
    names = {f"score.{name}" for name, _ in model.score.named_parameters()}
    # the frames of some models have no scores, but then the tokens of their decoder have
    score = model.score
    embeddings = [*model.frontend.named_modules(prefix="frontend")]
    if isinstance(model, ModelWithDecoder):
        decoder = model.decoder
        names |= {f"decoder.score.{name}" for name, _ in decoder.score.named_parameters()}
        score = decoder.score
        embeddings += decoder.embedding.named_modules(prefix="decoder.embedding")
    for name, module in embeddings:
        if isinstance(module, nn.Embedding) and module.num_embeddings == score.out_features:
            names.add(f"{name}.weight")
    return names


def _fits(tensor: Tensor, other: Tensor, vocabulary: Mapping[str, int]) -> bool:
    return other.shape[1:] == tensor.shape[1:] and other.shape[0] == len(vocabulary)
