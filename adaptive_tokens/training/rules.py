"""What each number of a recipe must be, and the words for one that is not."""
import math
from collections.abc import Mapping

from timm.optim import list_optimizers

from ..errors import unknown_name
from ..models.method import check_budget, known_methods

__all__ = ['RULES', 'check_recipe']


def whole(value): return isinstance(value, int) and value >= 1
def positive(value): return 0 < value < math.inf
def at_least_zero(value): return value >= 0
def share(value): return 0 <= value <= 1
def positive_share(value): return 0 < value <= 1
def share_below_one(value): return 0 <= value < 1


# Fields that are numbers: a test, and the end of the sentence 'it must be ...'
RULES = {
    'epochs': (whole, 'a whole number, at least 1'),
    'accumulate': (whole, 'a whole number, at least 1'),
    'batch_size': (whole, 'a whole number, at least 1'),
    'lr': (positive, 'above 0'),
    'floor': (share, 'from 0 to 1, a share of lr'),
    'warmup': (share_below_one, 'a share of the steps, from 0 to below 1'),
    'weight_decay': (at_least_zero, '0 or more'),
    'layer_decay': (positive_share, 'above 0, at most 1'),
    'clip': (at_least_zero, '0 (no clipping) or more'),
    'ema': (share_below_one, 'from 0 (none) to below 1'),
    'label_smoothing': (share_below_one, 'from 0 to below 1'),
    'mixup': (at_least_zero, '0 (none) or more'),
    'cutmix': (at_least_zero, '0 (none) or more'),
    'erase': (share, 'a probability'),
    'drop_path': (share_below_one, 'from 0 to below 1'),
}


def is_number(value): return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_recipe(
    recipe, # Recipe to look at, or anything with its fields
):
    "Raise ValueError naming the field, its value and what would be right"
    for name, (fits, right) in RULES.items():
        value = getattr(recipe, name)
        if not is_number(value) or not fits(value): raise ValueError(f'{name} is {value!r}; it must be {right}')
    if recipe.opt not in list_optimizers(): raise unknown_name('optimiser', recipe.opt, list_optimizers())
    if recipe.method and recipe.method not in known_methods():
        raise unknown_name('method', recipe.method, known_methods())
    if isinstance(recipe.budget, (bool, str)):
        raise ValueError(f'budget is {recipe.budget!r}; it must be a number, '
                         'the share of the dense multiply-adds to spend')
    check_budget(recipe.budget)
    if not isinstance(recipe.options, Mapping):
        raise ValueError(f"options is {recipe.options!r}; it must be a mapping, as in 'options: {{T: 10}}'")
