"""What must be true before the first step: batches, labels, recipe and model that fit, a folder to write to."""
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backbones.backbone import check_images

__all__ = ['check_targets', 'peek_batches']


def check_targets(
    targets:Tensor, # Class numbers [B], or soft targets [B, classes]
    classes:int,    # Outputs of the head
    soft:bool=True, # Whether soft targets will do
):
    "Raise ValueError that names the label which the head has no output for"
    if soft and targets.ndim == 2 and targets.shape[1] == classes: return
    if targets.ndim != 1 or targets.is_floating_point():
        or_soft = f', or soft targets [B, {classes}] for a head of {classes} classes' if soft else ''
        raise ValueError(f'targets are {targets.dtype} {list(targets.shape)}; give class numbers [B]{or_soft}')
    wrong = targets[(targets < 0) | (targets >= classes)]
    if len(wrong):
        raise ValueError(f'label {wrong[0].item()} does not fit a head of {classes} classes (0 to {classes - 1}): '
                         'check the class map, or create the model with num_classes=...')


def peek_batches(
    loader:Iterable,  # Batches (images, targets)
    model:nn.Module,  # Model that will take them
    name:str,         # Name of the loader, for the message
    count:int=4,      # Number of batches to look at
    soft:bool=True,   # Whether soft targets will do
) -> list:            # Pairs (images, targets), as the loader gives them
    "The first batches of a loader, checked; raises ValueError if there is none or they do not fit the model"
    batches = []
    for batch in list(islice(loader, count)):
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise ValueError(f'{name} gives batches of type {type(batch).__name__}; they must be (images, targets)')
        batches.append(tuple(batch[:2]))
    if not batches: raise ValueError(f'{name} has no batch: check its data set, batch size and drop_last')
    for images, targets in batches:
        check_images(model, images)
        check_targets(targets, model.num_classes, soft)
    known = getattr(getattr(loader, 'dataset', None), 'targets', None)  # torchvision's name for all labels of a set
    if known is not None: check_targets(torch.as_tensor(known), model.num_classes)
    return batches


def check_length(
    loader:Iterable, # Training loader
):
    "Raise ValueError if it cannot say how many batches an epoch has, which the schedule must know"
    try: len(loader)
    except TypeError:
        raise ValueError('train_loader has no length, which the schedule needs: give its data set a __len__') from None


def check_out(
    out:Path|None, # Folder for checkpoints and log, made if it is missing; None: none are written
):
    "Raise ValueError if files cannot be made there"
    if out is None: return
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out): pass
    except OSError as e:
        raise ValueError(f'cannot write to out={out} ({e.strerror}): give a folder that can be written') from None


def check_fit(
    recipe,            # Recipe of the run
    model:nn.Module,   # Model to be trained
    budget_given:bool, # Whether the budget was given beside the recipe
):
    "Raise ValueError for a recipe that was made for another method, budget or option"
    method = getattr(model, 'method', None)
    if not recipe.method and (method is None or not budget_given): return
    if recipe.method and (method is None or recipe.method not in (method.name, method.full_name)):
        kind = 'is dense' if method is None else f'runs {method.full_name!r}'
        raise ValueError(f'the recipe is for {recipe.method!r} and the model {kind}: '
                         f'adapt(vit, {recipe.method!r}) makes one that fits')
    if method.budget != recipe.budget:
        raise ValueError(f'the recipe is for budget {recipe.budget} and the model has {method.budget}: '
                         f'give fit budget={method.budget}')
    for name, own in method.options().items():
        value = recipe.options.get(name, own)
        if value != own:
            raise ValueError(f'the recipe is for {name}={value!r} and the model has {own!r}: '
                             f'adapt(vit, {method.name!r}, {name}={value!r}) makes one that fits')
