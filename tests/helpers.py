"""What tests build by hand."""

from pathlib import Path

import loss
import train
from foldface.nn import optim, resume
from foldface.nn.heads import Heads
from foldface.nn.learner import Learner


def make_learner(config, rows, steps, accelerator, seconds=None):
    """The Learner of fold 0, of so many steps an epoch, without loaders."""
    heads = Heads(config.predicted, config.model.heads, config.model.age)
    net = train.make_net(config, heads.size, 0, accelerator)
    criterion, targets = loss.make(heads, rows, config.loss)
    average, mixup = optim.make_average(net, config.train), loss.make_mixup(config.train)
    parameters = optim.parameter_groups(net, config.train)
    optimizer = optim.make_optimizer(parameters, config.train, fused=accelerator.scaler is None)
    scheduler = train.make_scheduler(config, optimizer, steps, 0, seconds)
    folder, belongs = Path(config.run) / "fold0", resume.belongs(config, 0, rows)
    return Learner(
        net, criterion, targets, optimizer, scheduler, config, accelerator, average, mixup, folder, None, belongs
    )
