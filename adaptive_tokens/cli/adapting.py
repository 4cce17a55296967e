"""How is a dense model made adaptive, by a word and a number from the command line?"""
import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..devices import resolve_device, resolve_dtype
from ..models.method import check_budget, known_methods
from ..models.model import AdaptiveViT, adapt, calibrate

__all__ = ['by_form', 'calibrate_on', 'check_budgets']


def check_budgets(
    budgets:list[float], # Budgets as given
) -> list[float]:        # The same budgets
    "Raise ValueError for a budget that cannot be, and for an order from which nobody could read a frontier"
    ordered = sorted({check_budget(budget) for budget in budgets}, reverse=True)
    if budgets == ordered: return budgets
    given, right = (' '.join(f'{budget:g}' for budget in some) for some in (budgets, ordered))
    raise ValueError(f'budgets are {given}: give each once, from the largest, as in {right}')


def by_form(
    dense:nn.Module, # timm ViT
    form:str,        # Name of a method; behind a colon, how as-vit folds what it drops, as in 'as-vit:merge'
    budget:float,    # Share of the dense multiply-adds to spend
) -> AdaptiveViT:    # Adaptive model, not calibrated
    "`adapt` by one word; raises ValueError for a word that names no method"
    method, _, fold = form.partition(':')
    if not fold: return adapt(dense, method, budget)
    if method in known_methods() and method != 'as-vit':
        raise ValueError(f'{form!r}: only as-vit folds what it drops, as in as-vit:{fold}')
    return adapt(dense, method, budget, fold=fold)


def calibrate_on(
    model:AdaptiveViT,       # Model whose knob is turned
    loader:DataLoader,       # Images to meet the budget on
    args:argparse.Namespace, # Options device and dtype
    budget:float|None=None,  # Share of the dense multiply-adds; None: the model's own
) -> float:                  # Share of the dense multiply-adds that the model spends on these images now
    "`calibrate` on the device and in the precision in which the model will run"
    device, dtype = resolve_device(args.device), resolve_dtype(args.dtype)
    batches = [images.to(device) for images, _ in loader]
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        return calibrate(model.to(device), batches, budget)
