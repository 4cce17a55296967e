"Adapting, executing, tracing."
import pytest
import timm
import torch
from small_vits import small
from torch import nn

import adaptive_tokens as at
from adaptive_tokens.models.method import METHODS


def test_adapt_shares_weights_and_mode(vit):
    assert at.adapt(vit).vit is vit and not at.adapt(vit).training
    assert at.adapt(vit.train()).training


def test_a_method_instance_is_taken_as_it_is(vit):
    method = at.ASViT(vit, budget=.5)
    assert at.adapt(vit, method).method is method and at.adapt(vit, method).budget == .5


def test_uncalibrated_model_answers_like_the_dense_one(vit, images):
    with torch.no_grad(): torch.testing.assert_close(at.adapt(vit)(images), vit(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize('call, says', [
    (lambda v: at.adapt(v, 'asvit'), "no method 'asvit'; nearest: as-vit"),
    (lambda v: at.adapt(v, budget=0), 'budget is 0'),
    (lambda v: at.adapt(v, budget=1.5), 'budget is 1.5'),
    (lambda v: at.adapt(v, budget=float('nan')), 'budget is nan'),
    (lambda v: at.adapt(nn.Linear(2, 2)), 'Linear is not understood'),
    (lambda v: at.create_model('as-vit', 'deit_smal_patch16_224'), 'nearest: deit_small_patch16_224'),
    (lambda v: at.create_model('as-vti', 'deit_tiny_patch16_224'), 'nearest: as-vit'),
    (lambda v: at.adapt(v, 'as-vit', places=(6,)), 'from 1 to 5'),
    (lambda v: at.adapt(v, 'as-vit', theta=(.1,)), '1 thresholds for 3 places')])
def test_wrong_arguments(vit, call, says):
    with pytest.raises(ValueError) as e: call(vit)
    assert says in str(e.value)


def test_execution_is_checked(model, images):
    model.execution = 'paked'
    with pytest.raises(ValueError, match='nearest: packed'): model(images)
    model.execution = 'packed'
    with pytest.raises(ValueError, match='call model.eval()'): model.train()(images)


@pytest.mark.parametrize('execution', ['packed', 'masked'])
def test_trace(model, images, execution):
    model.execution = execution
    with torch.no_grad():
        logits, trace = model(images, return_trace=True)
        torch.testing.assert_close(logits, model(images), atol=1e-6, rtol=0)
    B, L, N, H = 4, 6, 65, 3
    assert trace.active.shape == trace.score.shape == (B, L, N) and trace.active.dtype == torch.bool
    assert trace.heads.shape == (B, L, H) and trace.sublayers.shape == (B, L, 2) and trace.heads.all()
    assert trace.active[:, :, 0].all() and trace.active[:, 0].all()
    assert (trace.active[:, 1:] <= trace.active[:, :-1]).all(), 'a dropped token came back'
    scored = [p - 1 for p in model.method.places]
    assert torch.equal(~trace.score[:, scored].isnan(), trace.active[:, scored])
    assert trace.score[:, [l for l in range(L) if l not in scored]].isnan().all()
    assert torch.equal(trace.depth, trace.active.sum(1)) and 'GMACs per image' in repr(trace)


def test_traces_of_both_executions_agree(model, images):
    out = []
    for model.execution in ('packed', 'masked'):
        with torch.no_grad(): out.append(model(images, return_trace=True)[1])
    assert torch.equal(out[0].active, out[1].active) and torch.equal(out[0].macs, out[1].macs)
    torch.testing.assert_close(out[0].score, out[1].score, atol=1e-6, rtol=1e-5, equal_nan=True)


def test_calibrate_checks_its_input(model, images):
    for bad, says in (([], 'no batches'), ([images * float('nan')], 'NaN'), ([images[:, :1]], 'wants')):
        with pytest.raises(ValueError, match=says): at.calibrate(model, bad)
    with pytest.raises(ValueError, match='budget is 0'): at.calibrate(model, [images], 0)


def test_registered_names():
    assert METHODS['as-vit'] is at.ASViT


def test_half_precision_leaves_thresholds_alone(model):
    before = model.method.theta.detach().clone()
    assert torch.equal(model.bfloat16().method.theta, before) and model.vit.head.weight.dtype == torch.bfloat16


def test_an_option_that_a_method_does_not_have_is_named():
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    with pytest.raises(ValueError, match="no option of as-vit 'plases'; nearest: places"):
        at.adapt(vit, 'as-vit', plases=(1,))
    with pytest.raises(ValueError, match="no option of a-vit 'budget_weight'"): at.adapt(vit, 'a-vit', budget_weight=1.)


@pytest.mark.parametrize('name', ['as-vit', 'a-vit', 'adavit', 'tome'])
def test_batches_of_two_sizes_are_not_calibrated_on(name):
    model = at.adapt(small(dynamic_img_size=True), name)
    with pytest.raises(ValueError, match='images of 64x64 and of 96x96: calibrate on one size'):
        at.calibrate(model, [torch.randn(2, 3, 64, 64), torch.randn(2, 3, 96, 96)], .7)
