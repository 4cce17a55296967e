"""What a budget is, and how the knob that meets it is found by halving an interval."""
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ['bisect', 'check_budget', 'halve', 'largest_within']


def check_budget(
    budget:float, # Share of the dense multiply-adds
) -> float:       # The same number
    "Raise ValueError unless 0 < budget <= 1"
    if not 0 < budget <= 1:
        raise ValueError(f'budget is {budget}; it is the share of the dense multiply-adds to spend: above 0, at most 1')
    return float(budget)


def halve(
    fits:Callable, # Whether a number is still on the lower side: bool, or a bool tensor for many intervals at once
    low:float|Tensor,  # Lower end
    high:float|Tensor, # Upper end
    rounds:int,        # Times to halve
) -> tuple:            # Lower and upper end afterwards
    "Halve an interval around the place up to which something fits"
    for _ in range(rounds):
        middle = (low + high) / 2
        fitting = fits(middle)
        if isinstance(fitting, Tensor):
            low, high = torch.where(fitting, middle, low), torch.where(fitting, high, middle)
        elif fitting: low = middle
        else: high = middle
    return low, high


def largest_within(
    costs:Callable, # Growing function of a number from 0 to 1: cost as a share of the dense one
    budget:float,   # Share of the dense multiply-adds
) -> float:         # The largest number whose cost is within the budget
    "Raises ValueError where even 0 is too expensive"
    if costs(0.) > budget: raise ValueError(f'budget {budget} is out of reach: at its cheapest this method spends '
                                            f'{costs(0.):.3f} of the dense multiply-adds')
    if costs(1.) <= budget: return 1.
    return halve(lambda x: costs(x) <= budget, 0., 1., 40)[0]


def bisect(
    share_at:Callable, # Cost at a value of the knob, as a share of the dense cost
    low:float,         # One end of the knob
    high:float,        # Other end
    budget:float,      # Share that is wanted
    falls:bool=True,   # Whether the cost falls from low to high
) -> tuple[float, float]: # Share that came closest, and its knob
    "Bisection that stops a thousandth from the budget, or after 16 looks, for costs that take a run to know"
    seen = {}
    while len(seen) < 16 and not any(abs(spent / budget - 1) < .001 for spent in seen.values()):
        middle = (low + high) / 2
        seen[middle] = share_at(middle)
        low, high = (middle, high) if (seen[middle] > budget) == falls else (low, middle)
    knob = min(seen, key=lambda k: abs(seen[k] - budget))
    return seen[knob], knob
