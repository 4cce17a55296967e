"""What makes a run this run: nobody goes on with a run of other numbers, other data or another teacher."""
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from torch import nn
from torch.utils.data import Subset

from ..models.checkpoint import check_rebuilds, timm_arguments
from ..models.model import is_adaptive
from .recipe import Recipe

__all__ = ['describe_data']


def describe_data(
    loader:Iterable|None, # Loader of a run
) -> str:                 # Name and size of its data set, as far as the loader knows
    "Data in a few words"
    if loader is None: return 'nothing'
    data = getattr(loader, 'dataset', None)
    if data is None: return 'batches from memory'
    part = f' of {len(data.dataset)}' if isinstance(data, Subset) else ''
    whole = data.dataset if part else data
    inner = getattr(whole, 'data', whole)  # a data set that wraps timm's
    where = getattr(getattr(inner, 'reader', None), 'root', None) or getattr(inner, 'root', None)
    name = f' {Path(where).name!r}' if isinstance(where, (str, os.PathLike)) else ''
    try: size = f', {len(data)}{part} images'
    except TypeError: size = ''
    return f'{type(inner).__name__}{name}{size}'


def run_signature(
    model:nn.Module, # Model before training
    recipe:Recipe,   # Numbers of the run
    **more,          # What else must be the same
) -> dict:           # The signature, as json would give it back
    "Recipe, backbone, method and whatever else must agree; raises ValueError for a model that could not be saved"
    if is_adaptive(model): config = model.config()
    else:
        check_rebuilds(model)
        config = dict(backbone=timm_arguments(model), method='dense')
    config.pop('timm', None)
    return json.loads(json.dumps(dict(asdict(recipe), **config, **more)))


def check_signature(
    mine:dict,   # Signature of the run that is about to go on
    theirs:dict, # Signature in the state
    out:Path,    # Folder where the state was found
):
    "Raise ValueError naming what differs"
    for name in mine:
        if mine[name] != theirs.get(name):
            raise ValueError(f'{out} holds a run whose {name} is {theirs.get(name)}, and here it is {mine[name]}: '
                             'go on with the same numbers, or give another out')
