"""What goes wrong without a word: a parameter that gets no gradient, a cost that stands still beside its budget."""
import warnings
from collections import Counter, deque

import torch

__all__ = ['StallMonitor']


class StallMonitor:
    "Warns once of a method's parameter that gets no gradient, and once of a cost that stands still beside its budget"
    def __init__(self,
        patience:int=100, # Steps in a row before a warning
    ):
        self.patience = patience
        self.silent = Counter()               # steps in a row without gradient, by name of the parameter
        self.shares = deque(maxlen=patience)  # cost of the latest steps
        self.said = set()

    def __call__(self,
        run,         # Run between backward and update
        share:float, # Multiply-adds of its latest batch as a share of the dense model's
    ):
        "Look at the numbers of one step"
        method = getattr(run.model, 'method', None)
        if method is None or not method.decides: return
        self._watch_gradients(method, run.steps)
        self._watch_cost(method.budget, share, run.steps)

    def _watch_gradients(self, method, step):
        learning = {name: p for name, p in method.named_parameters() if p.requires_grad}
        if not learning: return
        sizes = [torch.zeros(()) if p.grad is None else p.grad.abs().max().float().cpu() for p in learning.values()]
        for name, size in zip(learning, torch.stack(sizes).tolist()):
            self.silent[name] = 0 if size else self.silent[name] + 1
            if self.silent[name] == self.patience:
                self._say(name, f'{name} of {method.name} has had exactly zero gradient for {self.patience} steps '
                                f'(step {step}): it cannot learn. Set it from data again (calibrate), '
                                'or raise the weight of the penalty')

    def _watch_cost(self, budget, share, step):
        self.shares.append(share)
        mean = sum(self.shares) / len(self.shares)
        still = len(self.shares) == self.patience and max(self.shares) - min(self.shares) < .002
        if still and abs(mean - budget) > .05:
            self._say('budget', f'the cost has stood at {mean:.3f} of the dense multiply-adds for {self.patience} '
                                f'steps (step {step}), and the budget is {budget}: raise the weight of the penalty '
                                'or lr, or calibrate before training')

    def _say(self, what, text):
        if what not in self.said: warnings.warn(text, stacklevel=3)
        self.said.add(what)
