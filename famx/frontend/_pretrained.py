"""Frontends with an encoder that is trained already, of the library transformers."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from famx.frontend._pretrained_folder import (
    OPTIONAL,
    describe_differences,
    read_config,
    read_weights,
    require_fit,
    require_folder,
)
from famx.frontend.base import Frontend
from famx.notation import Modality, UserError

TYPES = ("hubert", "wav2vec2", "whisper")  # frontends by the type of model that they read


class Pretrained(Frontend):
    """`W encoder(signal) + b`, with an encoder of the library transformers (arXiv:1910.03771).

    The constructor builds the architecture with random weights. A new run then calls
    `load_pretrained`. A trained run has the weights in its checkpoints and the architecture in its
    config, so it does not need the folder.

    Args:
        path: folder that transformers has saved, with config.json and safetensors.
        frozen: whether the encoder is not trained; it then has no dropout either.
        architecture: sizes of the encoder; None for those of the folder.
    """

    modality: ClassVar[Modality] = Modality.SPEECH
    path_options: ClassVar[tuple[str, ...]] = ("path",)
    model_type: ClassVar[str]
    """Name of the frontend, and of the type of model in config.json."""
    sizes: ClassVar[tuple[str, ...]]
    """Entries of config.json that the encoder depends on."""
    renamed: ClassVar[dict[str, str]] = {}
    """Patterns of names in a folder, and what the encoder calls them."""

    def __init__(
        self,
        d_model: int,
        path: str | None,
        frozen: bool,
        architecture: dict[str, Any] | None,
    ):
        super().__init__()
        self.path = path
        self.frozen = frozen
        self.architecture = dict(architecture or self.read_architecture(path))
        _, encoder_class = self.library()
        self.encoder = encoder_class(self.encoder_config())
        if frozen:
            self.encoder.requires_grad_(False).eval()
        self.out = nn.Linear(self.encoder.config.hidden_size, d_model)

    def train(self, mode: bool = True) -> "Pretrained":
        """Sets the mode; a frozen encoder stays in evaluation, without dropout."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def load_pretrained(self) -> str | None:
        """Replaces the random weights of the encoder by those of the folder, if there is one.

        Returns:
            One line about what was loaded.

        Raises:
            UserError: the folder is gone, a file is damaged, or the weights do not fit.
        """
        if self.path is None:
            return None
        folder = require_folder(self.model_type, self.path)
        config_class, encoder_class = self.library()
        config = config_class(**self._entries(self.architecture))
        loaded, info = read_weights(folder, encoder_class, config, self.renamed)
        require_fit(folder, loaded, info)
        weights = loaded.state_dict()
        for name in OPTIONAL.intersection(info["missing_keys"]):
            weights[name].zero_()
        self.encoder.load_state_dict(self.fit(weights))
        n_parameters = sum(p.numel() for p in self.encoder.parameters())
        state = "frozen" if self.frozen else "trained"
        return f"weights of {folder}: loaded {n_parameters:,} into frontend.encoder, {state}"

    def fit(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the weights of a folder in the sizes of this encoder."""
        return weights

    # the library

    @classmethod
    @abstractmethod
    def import_classes(cls) -> tuple[Any, Any]:
        """Imports the library's classes of the config and of the encoder."""

    @classmethod
    def library(cls) -> tuple[Any, Any]:
        """Returns the library's classes of the config and of the encoder.

        Raises:
            UserError: the library is not installed.
        """
        try:
            # imported late: an extra, whose import takes seconds
            return cls.import_classes()
        except ImportError as error:
            raise UserError(
                f"frontend={cls.model_type} needs the package transformers: "
                "pip install 'famx[pretrained]'"
            ) from error

    def encoder_config(self) -> Any:
        """Returns the library's config of the encoder."""
        config_class, _ = self.library()
        # masks are passed in the form of this kernel
        return config_class(**self._entries(self.architecture), attn_implementation="sdpa")

    @classmethod
    def _entries(cls, architecture: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the entries of an architecture that belong to the library's config."""
        return {key: value for key, value in architecture.items() if key in cls.sizes}

    # the architecture

    @classmethod
    def complete(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options with the architecture of the folder, unless they have one.

        Raises:
            UserError: there is no folder with weights, or it holds a model of another type.
        """
        architecture = options.get("architecture") or cls.read_architecture(options.get("path"))
        return {**options, "architecture": architecture}

    @classmethod
    def read_architecture(cls, path: str | None) -> dict[str, Any]:
        """Reads the entries that the encoder depends on from the config.json of a folder.

        Raises:
            UserError: as `complete`.
        """
        folder = require_folder(cls.model_type, path)
        content = read_config(folder)
        config_class, encoder_class = cls.library()
        model_type = content.get("model_type")
        if model_type in TYPES and model_type != cls.model_type:
            raise UserError(
                f"{folder} holds a model of type {model_type}, which frontend={model_type} reads, "
                f"not frontend={cls.model_type}"
            )
        if model_type != cls.model_type:
            # names of a small encoder of this type show what is not there
            config = config_class(**cls._entries(cls.example()["architecture"]))
            _, info = read_weights(folder, encoder_class, config, cls.renamed)
            raise UserError(
                f"{folder} holds a model of type {model_type}, not {cls.model_type}: "
                f"{describe_differences(info)}"
            )
        try:
            config = config_class.from_dict(content)
        # whatever the library raises for values that it does not allow
        except Exception as error:
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{folder / 'config.json'} cannot be used: {first_line}") from error
        values = {key: getattr(config, key) for key in cls.sizes}
        return {key: list(x) if isinstance(x, tuple) else x for key, x in values.items()}
