"""What the command line says of methods and budgets, and how a model meets one where it will run."""
import argparse

import torch
from torch.utils.data import DataLoader

from ..devices import resolve_device, resolve_dtype
from ..errors import unknown_name
from ..methods.asvit import ASViT
from ..models.budget import check_budget
from ..models.method import known_methods
from ..models.model import AdaptiveViT, calibrate

__all__ = ['calibrate_on', 'check_budgets', 'check_form']


def check_budgets(
    budgets:list[float], # Budgets as given
) -> list[float]:        # The same budgets
    "Raise ValueError for a budget that cannot be, and for an order from which nobody could read a frontier"
    ordered = sorted({check_budget(budget) for budget in budgets}, reverse=True)
    if budgets == ordered: return budgets
    given, right = (' '.join(f'{budget:g}' for budget in some) for some in (budgets, ordered))
    raise ValueError(f'budgets are {given}: give each once, from the largest, as in {right}')


def check_form(
    form:str, # Name of a method; behind a colon, how as-vit folds what it drops, as in 'as-vit:merge'
) -> str:     # The same name
    "Raise ValueError where a colon asks for what there is not; any other wrong name is left to `adapt`"
    method, _, fold = form.partition(':')
    if not fold or form in known_methods(): return form
    if method == 'as-vit': raise unknown_name('fold', fold, ASViT.forms)
    if method in known_methods():
        raise ValueError(f'{form!r}: only as-vit folds what it drops, as in as-vit:{fold}')
    return form


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
