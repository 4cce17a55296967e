"A dense model learns, and a student learns to do with less."
import copy

import pytest
import torch
from small_runs import loader, pictures, quick, sparse, tiny

from adaptive_tokens.models.model import calibrate
from adaptive_tokens.training.evaluate import evaluate
from adaptive_tokens.training.fit import fit
from adaptive_tokens.training.losses import losses
from adaptive_tokens.training.recipe import Recipe, make_optimizer, make_scheduler


@pytest.fixture(scope='module')
def learned():
    vit = tiny()
    fit(vit, loader(), epochs=20, lr=1e-2, **quick)
    return vit


def test_a_dense_model_learns_and_a_student_learns_to_do_with_less(learned):
    assert not learned.training and evaluate(learned, loader(), device='cpu')['top1'] > 95
    student = sparse(copy.deepcopy(learned))
    rows = fit(student, loader(), loader(shuffle=False), epochs=10, lr=3e-3, teacher=learned, **quick)
    assert rows[-1]['loss'] < rows[0]['loss'] and rows[-1]['top1'] > 90 and not student.training
    assert rows[-1]['macs_share'] == pytest.approx(.7, rel=.05)


def test_thresholds_get_gradient_from_task_and_from_budget():
    model, (x, y) = sparse(budget=.8), pictures()
    calibrate(model, [x])
    model.method.budget = .7
    for name in ('task', 'budget'):
        answer, trace = model.train()(x, return_trace=True)
        grad, = torch.autograd.grad(losses(model, answer, y, trace)[name], model.method.theta)
        assert (grad != 0).all(), name


@pytest.mark.parametrize('start, budget', [(.95, .6), (.95, .8), (.7, .95)])
def test_budget_loss_alone_reaches_the_budget_within_two_percent_in_200_steps(learned, start, budget):
    model, (x, y) = sparse(copy.deepcopy(learned), T=1e3), pictures(64)
    calibrate(model, [x], start)
    model.method.budget = budget
    model.vit.requires_grad_(False)
    recipe = Recipe(lr=1e-3 / model.method.lr_scale, warmup=0)
    optimizer = make_optimizer(model, recipe)
    schedule = make_scheduler(optimizer, recipe, 200)
    for step in range(200):
        answer, trace = model.train()(x, return_trace=True)
        losses(model, answer, y, trace)['budget'].backward()
        schedule.step_update(step)
        optimizer.step()
        optimizer.zero_grad()
    assert evaluate(model, [(x, y)], device='cpu')['macs_share'] == pytest.approx(budget, rel=.02)


def test_a_dead_threshold_is_revived_by_fit():
    model = sparse(theta=(.9, .95), patience=2)
    with pytest.warns(UserWarning, match='exactly zero gradient'): row = fit(model, loader(), epochs=4, **quick)[-1]
    assert max(row['theta']) < .5 and row['theta'] == pytest.approx(model.method.theta.tolist())
    assert row['train_macs_share'] > 1.1 * evaluate(sparse(theta=(.9, .95)), loader(), device='cpu')['macs_share']
