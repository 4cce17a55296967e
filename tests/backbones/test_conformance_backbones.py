"""Every family of backbones answers what `Backbone` and `BackboneBlock` ask, and each answer is the model's own.

A family is tested by being registered; its sample models stand in small_families.py.
"""
import copy
import math
from contextlib import nullcontext

import pytest
import torch
from small_families import SAMPLES, make

from adaptive_tokens.backbones.backbone import (FAMILIES, Backbone, BackboneBlock, UnsupportedBackbone, backbone_of,
                                                check_backbone, probe, run_block)
from adaptive_tokens.measure.operators import OperatorCounter
from adaptive_tokens.models.checkpoint import check_rebuilds
from adaptive_tokens.models.cost import macs
from adaptive_tokens.tokens.masked import MaskedTokens
from adaptive_tokens.tokens.packed import PackedTokens

EVERY = [pytest.param(kw, id=f'{family}-{name}') for family, samples in SAMPLES.items() for name, kw in samples.items()]
each_model = pytest.mark.parametrize('kw', EVERY)


@pytest.fixture
def backbone(kw):
    with torch.no_grad(): yield backbone_of(make(kw))


@pytest.fixture
def images(backbone): return torch.randn(3, backbone.in_channels, *backbone.image_size)


def declared(cls): return {name for name in {*vars(cls), *cls.__annotations__} if not name.startswith('_')}


def test_every_family_has_sample_models():
    assert {family.__name__ for family in FAMILIES.values()} == set(SAMPLES)


@pytest.mark.parametrize('family', set(FAMILIES.values()), ids=lambda family: family.__name__)
def test_a_family_says_what_it_supports(family): assert issubclass(family, Backbone) and family.supported


@each_model
def test_everything_that_is_asked_is_answered(backbone):
    for name in declared(Backbone):
        getattr(backbone, name)
        assert name in Backbone.__annotations__ or getattr(type(backbone), name) is not getattr(Backbone, name), name
    for block in backbone.blocks:
        for name in declared(BackboneBlock):
            getattr(block, name)
            asked = getattr(BackboneBlock, name, None)
            assert name in BackboneBlock.__annotations__ or getattr(type(block), name) is not asked, name
        assert block.dropout == 0 and block.block in list(backbone.vit.blocks)


@each_model
def test_a_block_by_its_parts_is_the_models_own_block_on_gathered_rows(backbone, images):
    x, P = backbone.embed(images), backbone.num_prefix_tokens
    on = (torch.rand(x.shape[:2]) < torch.tensor([[.1], [.5], [1.]])) | (torch.arange(x.shape[1]) < P)
    M, T = MaskedTokens(x, P).keep(on), PackedTokens(x, P).keep(on.flatten())
    rows = [x[b, on[b]][None] for b in range(3)]
    for block, own in zip(backbone.blocks, backbone.vit.blocks, strict=True):
        M, T, rows = run_block(block, M), run_block(block, T), [own(z) for z in rows]
        theirs = torch.cat(rows, 1)[0]
        for ours in (T.x, M.x[on]): torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@each_model
def test_the_smaller_pieces_are_the_parts(backbone, images):
    t = PackedTokens(backbone.embed(images), backbone.num_prefix_tokens)
    for block in backbone.blocks:
        normed = block.norm_attention(t.x)
        q, k, v = block.queries_keys_values(t)
        for ours, theirs in zip(block.queries_keys_values(t.replace(normed=normed)), (q, k, v)):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
        assert q.shape == k.shape == v.shape == (len(t.x), block.num_heads, block.head_dim)
        W, b, P, c = block.weights_by_head()
        own = torch.einsum('td,hsed->sthe', normed, W) + (0 if b is None else b.transpose(0, 1)[:, None])
        for ours, theirs in zip((*block.head_norms(own[0], own[1]), own[2]), (q, k, v)):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        if block.plain_heads: assert block.head_norms(q, k)[0] is q
        context = t.attend(q, k, v)
        projected = torch.einsum('the,hed->td', context, P) + (0 if c is None else c)
        torch.testing.assert_close(block.project_heads(context.flatten(1)), projected, atol=1e-4, rtol=1e-4)
        whole = block.project(context)
        if not block.mixes_heads:
            by_pieces = block.finish_attention(block.project_heads(context.flatten(1)))
            torch.testing.assert_close(by_pieces, whole, atol=1e-5, rtol=1e-5)
        mlp = block.feed_forward(t)
        torch.testing.assert_close(block.finish_mlp(block.norm_mlp(t.x)), mlp, atol=1e-5, rtol=1e-5)
        t = run_block(block, t)


@each_model
def test_read_out_is_the_models_own_answer(backbone, images):
    for table in (MaskedTokens, PackedTokens):
        t = table(backbone.embed(images), backbone.num_prefix_tokens)
        for block in backbone.blocks: t = run_block(block, t)
        torch.testing.assert_close(backbone.read_out(t), backbone.vit(images), atol=1e-5, rtol=1e-5)
    final = backbone.final_tokens(t.x)
    assert final.shape == t.x.shape and not torch.equal(final, t.x)


@each_model
def test_shapes_and_costs_are_those_of_the_model(kw, backbone, images):
    x = backbone.embed(images)
    assert x.shape == (3, backbone.num_prefix_tokens + backbone.num_patches, backbone.width)
    assert math.prod(backbone.patch_grid(backbone.image_size)) == backbone.num_patches
    assert backbone.num_heads == backbone.blocks[0].num_heads
    assert backbone.num_read_tokens <= backbone.num_prefix_tokens and backbone.pooling in ('token', 'avg')
    with OperatorCounter() as counter: logits = backbone.vit(images)
    assert logits.shape == (3, backbone.num_classes) and counter.macs == 3 * macs(backbone.vit)
    # norms between the layers of attention and MLP are not read off a model: it is refused, not saved as another one
    says = pytest.raises(ValueError, match='does not rebuild') if 'scale_attn_norm' in kw else nullcontext()
    with says: check_rebuilds(backbone.vit)


@each_model
def test_images_that_do_not_fit_are_refused(backbone, images):
    backbone.check_images(images)
    broken = images.clone()
    broken[0, 0, 0, 0] = float('nan')
    for bad in (images[0], images[:, :1], images[..., :-1], broken, (images * 9).to(torch.uint8)):
        with pytest.raises(ValueError): backbone.check_images(bad)
    backbone.check_images(broken, finite=False)


@each_model
def test_the_probe_passes_and_refuses_a_changed_block(backbone):
    vit = backbone.vit
    check_backbone(vit)
    for model in (vit, vit.train(), vit.eval().bfloat16()):
        modes = [module.training for module in model.modules()]
        probe(model)
        assert [module.training for module in model.modules()] == modes
    changed = copy.deepcopy(vit.float())
    own = type(changed.blocks[0])
    wrong = dict(forward=lambda self, x, **kw: own.forward(self, x) * 1.01)
    changed.blocks[0].__class__ = type('Changed', (own,), wrong)
    with pytest.raises(UnsupportedBackbone, match='computes something else than its parts'): probe(changed)
