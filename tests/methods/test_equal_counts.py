"What holds for all methods that keep the same number of tokens in every image."
from functools import partial

import pytest
import torch

import adaptive_tokens as at
from adaptive_tokens.backbones.backbone import backbone_of
from adaptive_tokens.measure.operators import OperatorCounter
from adaptive_tokens.models.cost import class_row_macs, macs
from adaptive_tokens.training.losses import losses
from builders import spread_vit

NAMES = ['fixed-rate', 'evit', 'random', 'lowest', 'tome', 'dynamicvit']
FAMILIES = [dict(), dict(reg_tokens=3), dict(model_name='deit_tiny_distilled_patch16_224', depth=6)]
each_name = pytest.mark.parametrize('name', NAMES)
build = partial(spread_vit, images=4)


def both(model, images):
    "Logits and trace, packed and masked"
    out = {}
    for model.execution in ('packed', 'masked'):
        with torch.no_grad(): out[model.execution] = model(images, return_trace=True)
    model.execution = 'auto'
    return out['packed'], out['masked']


@pytest.mark.parametrize('budget', [.5, .8])
@each_name
@pytest.mark.parametrize('kw', FAMILIES, ids=str)
def test_budget_without_data_and_both_tables(name, kw, budget):
    vit, images = build(**kw)
    model = at.adapt(vit, name, budget=budget)
    (logits, trace), (masked, masked_trace) = both(model, images)
    spent = (trace.macs / macs(vit)).tolist()
    assert len(set(spent)) == 1 and budget - .02 < spent[0] <= budget + 1e-6
    assert at.calibrate(model, [images]) == pytest.approx(spent[0], rel=1e-6)
    assert torch.equal(trace.active, masked_trace.active) and torch.equal(trace.macs, masked_trace.macs)
    torch.testing.assert_close(logits, masked, atol=1e-5, rtol=0)
    assert trace.active[:, :, :vit.num_prefix_tokens].all()
    torch.testing.assert_close(trace.score.nan_to_num(), masked_trace.score.nan_to_num(), atol=1e-5, rtol=1e-4)


@each_name
def test_more_budget_keeps_no_fewer_tokens(name):
    vit, images = build(images=1, depth=6)
    kept = []
    for budget in (.5, .6, .601, .9, 1.):
        with torch.no_grad(): kept.append(at.adapt(vit, name, budget=budget)(images, return_trace=True)[1].counts)
    for less, more in zip(kept, kept[1:]): assert (more >= less).all()
    assert (kept[-1] == 65).all() and (kept[0] < kept[-1]).any()


@each_name
def test_an_image_is_the_same_alone_and_in_any_company(name):
    vit, images = build(images=5, depth=6)
    model, order = at.adapt(vit, name, budget=.6), torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        together = model(images)
        torch.testing.assert_close(torch.cat([model(i[None]) for i in images]), together, atol=1e-5, rtol=0)
        torch.testing.assert_close(model(images[order]), together[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize('share', [0., .01, .5, .99, 1.])
@each_name
def test_edge_shares(name, share):
    vit, images = build(images=2, depth=4)
    places = None if name == 'tome' else (1, 2, 4)
    model = at.adapt(vit, name, budget=.9, share=share, places=places)
    (logits, trace), (masked, masked_trace) = both(model, images)
    torch.testing.assert_close(logits, masked, atol=1e-5, rtol=0)
    assert torch.equal(trace.active, masked_trace.active)
    if share == 1: torch.testing.assert_close(logits, vit(images).detach(), atol=1e-5, rtol=0)


@each_name
def test_cost_equals_torchs_count(name):
    vit, images = build(images=3)
    model = at.adapt(vit, name, budget=.6)
    with torch.no_grad(): trace = model(images, return_trace=True)[1]
    with torch.no_grad(), OperatorCounter() as counter: model(images)
    total, blocks = trace.macs.double().sum(), backbone_of(vit).blocks
    if name in ('fixed-rate', 'lowest', 'evit'):  # torch counts no flops for the class row, a product of vectors
        total = total - sum(class_row_macs(blocks[p - 1], trace.counts[:, p - 1]) for p in model.method.places).sum()
    assert counter.get_total_flops() == pytest.approx(2 * total.item(), rel=1e-7)


@each_name
def test_packed_attention_is_one_plain_call(name, monkeypatch):
    vit, images = build()
    model, calls = at.adapt(vit, name, budget=.6), []
    plain = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **options):
        calls.append(0)
        return plain(*args, **options)
    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', counted)
    with torch.no_grad(): model(images)
    assert len(calls) == len(vit.blocks)


@each_name
def test_save_load_and_budget_one(name, tmp_path):
    vit, images = build(images=2, depth=4)
    model = at.adapt(vit, name, budget=.7)
    model.save_pretrained(tmp_path)
    again = at.AdaptiveViT.from_pretrained(tmp_path)
    assert again.method.options() == model.method.options() and again.budget == .7
    with torch.no_grad():
        torch.testing.assert_close(again(images), model(images), atol=1e-6, rtol=0)
        assert torch.equal(at.adapt(vit, name, budget=1.)(images), vit(images))


@each_name
def test_bf16_runs_close_to_float32(name):
    vit, images = build(images=2, depth=4)
    model = at.adapt(vit, name, budget=.7)
    with torch.no_grad():
        want, trace = model(images, return_trace=True)
        got, half = model.bfloat16()(images.bfloat16(), return_trace=True)
    assert torch.equal(half.counts, trace.counts) and torch.isfinite(got).all()
    assert (half.active == trace.active).float().mean() > .8
    same = (half.active == trace.active).flatten(1).all(1)
    if name == 'random': assert same.all()  # its lot does not depend on rounding
    if same.any(): assert (got.float() - want)[same].norm() < .2 * want[same].norm()  # as for AS-ViT


@each_name
def test_training_reaches_the_weights(name):
    vit, images = build(images=3, depth=4)
    model = at.adapt(vit, name, budget=.7).train()
    logits, trace = model(images, return_trace=True)
    losses(model, logits, torch.arange(3), trace)['loss'].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert vit.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('name, options, says', [
    ('tome', dict(places=(0,)), 'places are'), ('evit', dict(places=(13,)), 'from 1 to 12'),
    ('fixed-rate', dict(budget=.1), 'budget 0.1 is out of reach'), ('dynamicvit', dict(budget=0), 'above 0'),
    ('random', dict(share=1.5), 'share is 1.5')])
def test_bad_input(name, options, says):
    with pytest.raises(ValueError, match=says): at.adapt(build()[0], name, **options)


@pytest.mark.parametrize('name', ['fixed-rate', 'evit', 'lowest'])
def test_no_class_token_is_refused_where_it_is_asked(name):
    vit, images = build(class_token=False, global_pool='avg', depth=2)
    with pytest.raises(ValueError, match='asks the class token'): at.adapt(vit, name)
    with torch.no_grad(): assert at.adapt(vit, 'tome', budget=.8)(images).shape == (4, 7)
