"""Names of other frameworks lead to options that exist."""

import re

import pytest

from famx.config.other_names import OTHER_NAMES
from famx.config.sections import FinetuneConfig, ModelConfig
from famx.registry import PARTS, ROOMS, hyperparameters, names
from famx.training.loader_config import LoaderConfig
from famx.training.trainer_config import TrainerConfig

SECTIONS = {
    "trainer": TrainerConfig,
    "loader": LoaderConfig,
    "model": ModelConfig,
    "finetune": FinetuneConfig,
}
OPTIONS = set(ROOMS) | {"hydra.run.dir", "logger"}
OPTIONS |= {f"{name}.{key}" for name, cls in SECTIONS.items() for key in cls.__dataclass_fields__}
for room in ROOMS:
    for name in names(room):
        OPTIONS |= {f"{room}.{key}" for key in hyperparameters(PARTS[room][name])}


@pytest.mark.parametrize(("name", "meant"), OTHER_NAMES.items())
def test_name_of_another_framework_leads_to_options_of_famx(name, meant):
    assert name not in OPTIONS
    if "torchrun" in meant:
        return
    options = re.findall(r"[a-z][a-z_.]*(?:_[a-z]+)*", re.sub(r"\(.*?\)|=\w+", "", meant))
    options = [option for option in options if option != "or"]
    assert options
    assert set(options) <= OPTIONS
