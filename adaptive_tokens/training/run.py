"""What the steps of one training run share, and what changes from step to step."""
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from timm.utils import AverageMeter, ModelEmaV3
from torch import nn

from ..backbones.backbone import timm_model
from .evaluate import judge, summarise
from .recipe import Recipe
from .stall import StallMonitor

__all__ = ['Run']


@dataclass
class Run:
    "What the steps of one training run share; a state holds the fields from `steps` on, which change with every step"
    recipe:Recipe           # Numbers of the run
    accelerator:Accelerator # Devices, precision and processes
    model:nn.Module         # Model as the caller knows it
    call:nn.Module          # The same model as Accelerate has prepared it, on several GPUs in a wrapper
    optimizer:torch.optim.Optimizer # timm's, prepared
    scheduler:object        # timm's schedule of the learning rate
    train:Iterable          # Training loader, prepared
    val:Iterable|None       # Validation loader, prepared; None: nothing is validated
    loaders:tuple           # Both loaders as they were given
    teacher:nn.Module|None=None # Frozen model whose answers are learned
    mix:object=None         # Mixup and cutmix, from `make_mixup`
    ema:ModelEmaV3|None=None # Moving average of the weights, which is what is judged and kept
    progress:bool=False     # Whether to show a bar
    out:Path|None=None      # Folder for checkpoints, log and states
    every:int=0             # Steps between states; 0: one after each epoch
    identity:dict=field(default_factory=dict) # What a state must agree with
    steps:int=0             # Steps of the optimiser so far
    done:int=0              # Batches of this epoch so far
    rows:list=field(default_factory=list) # One row of the log for each finished epoch
    meters:dict=field(default_factory=lambda: defaultdict(AverageMeter)) # Running means of this epoch
    opening:dict|None=field(default=None, init=False) # State of the generators when this epoch began
    reading:dict|None=field(default=None, init=False) # The same when the latest batch was read
    now:dict|None=field(default=None, init=False)     # The same when the run was interrupted
    watch:StallMonitor=field(default_factory=StallMonitor, init=False) # Warns of what stands still

    @property
    def vit(self):
        "The timm model"
        return timm_model(self.model)

    @property
    def budget(self):
        "Share of the dense multiply-adds that the model is to spend; None for a dense model"
        return getattr(self.model, 'budget', None)

    @property
    def lr(self):
        "Learning rate of the weights"
        return max(group['lr'] / group.get('lr_scale', 1.) for group in self.optimizer.param_groups)

    @property
    def result(self):
        "The model that is judged and kept"
        return self.model if self.ema is None else self.ema.module

    @property
    def group(self):
        "Number of batches whose gradients are added up with that of the next one; whether it is the last of them"
        size, left = self.recipe.accumulate, len(self.train) - self.done
        first = self.done // size * size
        return min(size, len(self.train) - first), left == 1 or (self.done + 1) % size == 0

    @property
    def between_steps(self):
        "Whether no gradient waits for others"
        return self.done % self.recipe.accumulate == 0 or self.done == len(self.train)

    def judge(self,
        model:nn.Module, # Model on the run's device
    ) -> dict:           # Row of numbers, as from `evaluate`
        "Judge a model on the validation images, in the run's precision and on all its processes"
        with self.accelerator.autocast():
            gather = self.accelerator.gather_for_metrics
            return summarise(judge(model, self.val, self.accelerator.device, gather=gather))
