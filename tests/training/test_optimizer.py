"What decays, how the learning rate moves, and labels that are not certain."
import pytest
import torch
import torch.nn.functional as F
from small_runs import CLASSES, sparse, tiny

from adaptive_tokens.images.digits import digits_vit
from adaptive_tokens.models.model import adapt
from adaptive_tokens.training.recipe import (Recipe, make_mixup, make_optimizer, make_scheduler, parameter_groups,
                                             smoothed)


def test_what_decays():
    model = sparse()
    groups = parameter_groups(model, .1)
    still, decaying, own = ({id(p) for p in group['params']} for group in groups)
    named = dict(model.named_parameters())
    assert {id(named[n]) for n in ('vit.pos_embed', 'vit.cls_token', 'vit.norm.weight', 'vit.head.bias')} <= still
    assert {id(named[n]) for n in ('vit.head.weight', 'vit.blocks.0.mlp.fc1.weight')} <= decaying
    assert own == {id(model.method.theta)} and groups[2]['lr_scale'] == model.method.lr_scale < 1
    assert [group['weight_decay'] for group in groups] == [0, .1, 0]
    assert len(still) + len(decaying) + len(own) == len(named)
    assert still | decaying | own == {id(p) for p in named.values()}
    assert len(parameter_groups(tiny(), .1)) == 2 and len(parameter_groups(tiny(), 0.)) == 1


def test_schedule_climbs_then_falls_by_steps():
    recipe = Recipe(epochs=4, lr=.1, warmup=.25)
    optimizer = make_optimizer(tiny(), recipe)
    schedule, lr = make_scheduler(optimizer, recipe, 10), []
    for step in range(41):
        schedule.step_update(step)
        lr.append(optimizer.param_groups[0]['lr'])
    assert lr[0] == pytest.approx(.001) and lr[:10] == sorted(lr[:10]) and lr[10:] == sorted(lr[10:], reverse=True)
    assert max(lr) > .08 and lr[-1] == pytest.approx(.001)


def test_smoothing_equals_torch_and_passes_through():
    x, y = torch.randn(6, CLASSES), torch.tensor([0, 1, 2, 3, 0, 1])
    for s in (0., .1, .5):
        expected = F.cross_entropy(x, y, label_smoothing=s)
        torch.testing.assert_close(F.cross_entropy(x, smoothed(y, CLASSES, s)), expected)
    assert smoothed(y, CLASSES, 0.) is y


def test_layer_decay_slows_the_early_blocks_and_keeps_the_method_apart():
    model = adapt(digits_vit(img_size=32, depth=4), 'as-vit')
    optimizer = make_optimizer(model, Recipe(layer_decay=.5))
    scale = {id(p): group.get('lr_scale', 1.) for group in optimizer.param_groups for p in group['params']}
    rates = [scale[id(block.mlp.fc1.weight)] for block in model.vit.blocks]
    assert all(a == pytest.approx(b / 2) for a, b in zip(rates, rates[1:]))
    assert scale[id(model.method.theta)] == model.method.lr_scale
    assert len(scale) == len(list(model.parameters()))


def test_a_frozen_backbone_leaves_the_method_alone_to_learn():
    model = adapt(digits_vit(img_size=32, depth=4), 'adavit')
    model.vit.requires_grad_(False)
    for decay in (1., .5):
        groups = parameter_groups(model, .05, decay)
        assert {id(p) for g in groups for p in g['params']} == {id(p) for p in model.method.parameters()}
    with pytest.raises(ValueError, match='nothing to train'): make_optimizer(model.vit, Recipe())


def test_mixing_warns_for_a_vit_alone():
    with pytest.warns(UserWarning, match='A-ViT .*mixup'): make_mixup(Recipe(mixup=.8), 10, 'a-vit')
    assert make_mixup(Recipe(), 10) is None and make_mixup(Recipe(cutmix=1.), 10, 'as-vit') is not None
    images, targets = make_mixup(Recipe(cutmix=1.), 4)(torch.zeros(2, 3, 8, 8), torch.tensor([0, 3]))
    torch.testing.assert_close(targets.sum(1), torch.ones(2))
