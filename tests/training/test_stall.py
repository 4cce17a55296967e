"What goes wrong without a word is announced once."
import warnings

import torch
from small_runs import sparse

from adaptive_tokens.training.stall import StallMonitor


def test_a_penalty_without_gradient_and_a_cost_that_stands_still_are_announced_once():
    model = sparse()
    watch, said = StallMonitor(patience=3), []
    run = type('Run', (), dict(model=model, steps=7))
    model.method.theta.grad = torch.zeros(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(8): watch(run, .9)
        said = [str(w.message) for w in caught]
    assert len(said) == 2 and 'theta of as-vit has had exactly zero gradient for 3 steps (step 7)' in said[0]
    assert 'stood at 0.900' in said[1] and 'the budget is 0.7' in said[1]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        watch, model.method.theta.grad = StallMonitor(patience=3), torch.ones(2)
        for share in (.9, .8, .7, .7, .7, .7): watch(run, share)
