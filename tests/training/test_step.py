"One step: accumulated gradients, mixed images, and numbers that are not numbers."
import math

import pytest
import torch
import torch.nn.functional as F
from small_runs import CLASSES, both, loader, make, pictures, quick, sparse, tiny, weights

from adaptive_tokens.models.model import AdaptiveViT
from adaptive_tokens.training import step
from adaptive_tokens.training.fit import fit
from adaptive_tokens.training.recipe import Recipe, make_optimizer


@both
def test_a_loss_that_is_not_finite_stops_at_once(kind, tmp_path):
    model = make(kind)
    with torch.no_grad(): getattr(model, 'vit', model).head.bias[1] = math.nan
    with pytest.raises(ValueError, match="loss term 'task' is nan in step 1 "):
        fit(model, loader(), out=tmp_path, **quick)
    assert not list(tmp_path.iterdir())


def test_a_bad_step_is_neither_taken_nor_saved(tmp_path, monkeypatch):
    calls, terms_of = [], step.loss_terms
    def spoiled(*args):
        calls.append(weights(args[0]))
        terms, *rest = terms_of(*args)
        if len(calls) == 5: terms['budget'] = terms['budget'] * math.inf
        return terms, *rest
    monkeypatch.setattr(step, 'loss_terms', spoiled)
    model = sparse()
    with pytest.raises(ValueError, match="loss term 'budget' is inf in step 5"):
        fit(model, loader(), epochs=3, out=tmp_path, **quick)
    assert torch.equal(weights(model), calls[4]) and not model.training
    assert len((tmp_path/'log.jsonl').read_text().splitlines()) == 1
    first = AdaptiveViT.from_pretrained(tmp_path/'last')  # an epoch has three steps
    assert torch.equal(weights(first), calls[3])


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    model = tiny()
    model.head.weight.register_hook(lambda grad: grad * math.nan)
    before = weights(model)
    for clip in (1., 0.):
        with pytest.raises(ValueError, match='norm of the gradient is nan in step 1'):
            fit(model, loader(), clip=clip, **quick)
    assert torch.equal(weights(model), before)


def test_a_gradient_that_is_not_finite_in_the_method_alone_stops_the_run():
    model = sparse()
    model.vit.requires_grad_(False)
    model.method.theta.register_hook(lambda g: g * float('nan'))
    with pytest.raises(ValueError, match="the norm of the method's gradient is nan in step 1"):
        fit(model, loader(), **quick)


@pytest.mark.parametrize('n, accumulate', [(40, 1), (40, 2), (40, 3), (33, 5)])
def test_accumulated_gradients_are_those_of_the_batches_together(n, accumulate):
    "Batches of 8, the last smaller: a step's gradient is the mean of its batches' gradients, in the last group as well"
    x, y = pictures(n)
    batches = [(x[i:i + 8], y[i:i + 8]) for i in range(0, n, 8)]
    model, by_hand = tiny(), tiny()
    plain = dict(lr=.1, opt='sgd', warmup=0., floor=1., clip=0., weight_decay=0.)
    rows = fit(model, batches, epochs=1, accumulate=accumulate, **plain, **quick)
    optimizer = make_optimizer(by_hand.train(), Recipe(lr=.1, opt='sgd', weight_decay=0.))
    for k in range(0, len(batches), accumulate):
        group = batches[k:k + accumulate]
        sum(F.cross_entropy(by_hand(images), labels) / len(group) for images, labels in group).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-6, rtol=1e-5)
    assert rows[0]['step'] == -(-len(batches) // accumulate)


@pytest.mark.parametrize('n', [33, 34])
def test_mixed_images_train_also_where_one_has_no_partner(n):
    x, y = pictures(n)
    batches = [(x[:n // 2], y[:n // 2]), (x[n // 2:], y[n // 2:])]
    before = [images.clone() for images, _ in batches]
    rows = fit(tiny(), batches, epochs=2, mixup=.8, cutmix=1., **quick)
    assert all(torch.equal(images, old) for (images, _), old in zip(batches, before))
    assert math.isfinite(rows[-1]['loss'])
    soft = [(images, F.one_hot(labels, CLASSES).float()) for images, labels in batches]
    with pytest.raises(ValueError, match='soft targets.*mixup=0'): fit(tiny(), soft, mixup=.8, **quick)
