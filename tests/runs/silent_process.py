"""Trains under torchrun until a process stops or kills itself: silent_process.py RANK SIGNAL"""

import os
import signal
import sys

import famx.train
from famx.config.command import run_command
from famx.training import heartbeat
from famx.training.trainer import Trainer

rank, name = sys.argv[1:3]
sys.argv[1:3] = []
# the default is meant for busy machines
heartbeat.MAX_SILENCE = 8.0
train_step = Trainer.train_step


def train_step_with_signal(self, batches):
    if self.step == 2 and os.environ["RANK"] == rank:
        os.kill(os.getpid(), signal.Signals[name])
    train_step(self, batches)


Trainer.train_step = train_step_with_signal
run_command(famx.train.main)
