"""The public names of the optimizers; `famx.registry` finds the parts of all rooms."""

from famx.optim._param_groups import parameter_groups
from famx.optim.adafactor import Adafactor
from famx.optim.adamw import AdamW
from famx.optim.agc import AGC
from famx.optim.ema_nesterov import EMANesterov
from famx.optim.ema_sgd import EmaSGD
from famx.optim.fam import FAM
from famx.optim.fam_adamw import FAMAdamW
from famx.optim.fam_bandwise import FAMBandwise
from famx.optim.fam_maxfactor import FAMMaxFactor
from famx.optim.fam_published import FAMPublished
from famx.optim.lookahead import Lookahead
from famx.optim.maxfactor import MaxFactor
from famx.optim.muon import Muon
from famx.optim.nadamw import NAdamW
from famx.optim.sgd import SGD
from famx.optim.simple_fam import SimpleFAM

__all__ = [
    "AGC",
    "FAM",
    "SGD",
    "Adafactor",
    "AdamW",
    "EMANesterov",
    "EmaSGD",
    "FAMAdamW",
    "FAMBandwise",
    "FAMMaxFactor",
    "FAMPublished",
    "Lookahead",
    "MaxFactor",
    "Muon",
    "NAdamW",
    "SimpleFAM",
    "parameter_groups",
]
