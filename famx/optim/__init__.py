from famx.optim.adamw import AdamW
from famx.optim.ema_sgd import EmaSGD
from famx.optim.fam import FAM
from famx.optim.fam_adamw import FAMAdamW
from famx.optim.fam_maxfactor import FAMMaxFactor
from famx.optim.fam_published import FAMPublished
from famx.optim.groups import parameter_groups
from famx.optim.maxfactor import MaxFactor
from famx.optim.sgd import SGD
from famx.optim.simple_fam import SimpleFAM

__all__ = [
    "FAM",
    "SGD",
    "AdamW",
    "EmaSGD",
    "FAMAdamW",
    "FAMMaxFactor",
    "FAMPublished",
    "MaxFactor",
    "SimpleFAM",
    "parameter_groups",
]
