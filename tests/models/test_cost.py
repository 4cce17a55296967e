"Multiply-adds: the formula equals torch's own count of what really ran."
import pytest
import timm
import torch

import adaptive_tokens as at
from adaptive_tokens.backbones.backbone import backbone_of
from adaptive_tokens.measure.operators import OperatorCounter
from adaptive_tokens.models.cost import block_macs, head_macs, macs, stem_macs


def counted(model, images):
    with torch.no_grad(), OperatorCounter() as counter: model(images)
    return counter.get_total_flops()


@pytest.mark.parametrize('name, published', [('deit_tiny_patch16_224', 1.2535), ('deit_small_patch16_224', 4.5985),
                                             ('deit_base_patch16_224', 17.5631)])
def test_published_figures(name, published):
    with torch.device('meta'): vit = timm.create_model(name)
    assert round((macs(vit) - head_macs(vit)) / 1e9, 4) == published


@pytest.mark.parametrize('kw', [dict(model_name='deit_tiny_patch16_224'),
                                dict(model_name='deit_tiny_distilled_patch16_224'),
                                dict(model_name='vit_small_patch14_reg4_dinov2', img_size=224, num_classes=10)])
def test_dense_formula_equals_the_counter(kw):
    vit = timm.create_model(depth=2, **kw).eval()
    assert 2 * macs(vit) == counted(vit, torch.randn(1, 3, 224, 224))


@pytest.mark.parametrize('theta', [(.002, .003, .004), (.0045, .005, .005), (1., 1., 1.), (-1., -1., -1.)])
def test_adaptive_formula_equals_the_counter(theta):
    torch.manual_seed(0)
    model = at.adapt(timm.create_model('deit_tiny_patch16_224').eval(), 'as-vit', theta=theta)
    images = torch.randn(3, 3, 224, 224)
    with torch.no_grad(): trace = model(images, return_trace=True)[1]
    # whole numbers; torch counts no flops for the class row, a product of vectors
    total = macs(model.vit, trace.counts)
    assert 2 * total.sum().item() == counted(model, images)
    scored = total + sum(trace.counts[:, p - 1] * 192 for p in (4, 7, 10))
    torch.testing.assert_close(trace.macs.double(), scored.double(), rtol=1e-7, atol=0)  # float32 holds 24 bits


def test_budget_one_costs_exactly_the_dense_model():
    model = at.adapt(timm.create_model('deit_tiny_patch16_224', depth=3).eval(), 'as-vit', budget=1.)
    with torch.no_grad(): trace = model(torch.randn(2, 3, 224, 224), return_trace=True)[1]
    assert trace.macs.tolist() == [macs(model.vit)] * 2


def test_counts_of_any_shape_and_gradient():
    vit = timm.create_model('deit_tiny_patch16_224', depth=2)
    counts = torch.tensor([[[197., 100.], [197., 0.]]], requires_grad=True)
    total = macs(vit, counts)
    assert total.shape == (1, 2)
    total.sum().backward()
    assert counts.grad[0, 0, 1] == 12 * 192**2 + 4 * 100 * 192
    assert total[0, 1] == stem_macs(vit, 196) + block_macs(backbone_of(vit).blocks[0], 197) + head_macs(vit)
