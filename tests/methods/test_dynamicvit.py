"DynamicViT against a slow loop over one image and its tokens, and what its predictors learn from."
import copy

import pytest
import torch

import adaptive_tokens as at
from adaptive_tokens.training.losses import losses, teacher_outputs
from builders import spread_vit
from slow_rules import check_rule, only


def predict(method):
    "After a block a network rates the patches one by one; the best stay"
    predictors = dict(zip(method.places, method.predictors))

    def rule(l, x, names, size):
        if l not in predictors: return x, names, size
        P, net = method.P, predictors[l].double()
        z = net.inner(x[P:])
        half = z.shape[1] // 2
        mean = z[:, half:].mean(0)
        keep = [net.outer(torch.cat([row[:half], mean])).softmax(0)[0].item() for row in z]
        net.float()
        stay = sorted(range(len(keep)), key=keep.__getitem__)[::-1][:method.num_kept(l, len(keep), method.share)]
        return only(list(range(P)) + [P + i for i in sorted(stay)], x, names, size)
    return rule


@pytest.mark.parametrize('kw', [dict(), dict(reg_tokens=3, qk_norm=True, init_values=.5)], ids=str)
def test_predicting_is_the_slow_one(kw):
    vit, images = spread_vit(images=2, **kw)
    model = at.adapt(vit, 'dynamicvit', budget=.6)
    check_rule(vit, images, model, between=predict(model.method))


def test_predictor_learns_its_share():
    vit, images = spread_vit(images=8, depth=4)
    model = at.adapt(vit, 'dynamicvit', budget=.7).train()
    optimiser = torch.optim.Adam(model.method.parameters(), lr=1e-2)

    def off():
        trace = model(images, return_trace=True)[1]
        return model.method.extra_losses(trace, vit)['ratio']
    first = off().item()
    for _ in range(30):
        optimiser.zero_grad()
        off().backward()
        optimiser.step()
    assert off().item() < first / 4


@pytest.mark.parametrize('options', [{}, dict(class_token=False, global_pool='avg'), dict(global_pool='avg')])
def test_tokens_of_the_teacher_count_for_patches_that_are_left(options):
    vit, images = spread_vit(images=3, depth=4, **options)
    model, teacher = at.adapt(vit, 'dynamicvit', budget=.7).train(), copy.deepcopy(vit).eval()
    torch.manual_seed(0)
    logits, trace = model(images, return_trace=True)
    with torch.no_grad(): tokens = teacher_outputs(teacher, images, model)[1]
    assert tokens.mean(-1).abs().max() < 1e-5  # behind a norm
    tokens, P = tokens + 1, vit.num_prefix_tokens
    own, left = trace.final
    assert not left[:, :P].any() and torch.equal(left.sum(1), trace.counts[:, -1].long() - P)
    distances = [torch.stack([((own[b, i] - tokens[b, i])**2).mean() for i in range(own.shape[1]) if left[b, i]]).mean()
                 for b in range(3)]
    terms = losses(model, logits, torch.arange(3), trace, tokens=tokens)
    torch.testing.assert_close(terms['tokens'], .5 * sum(distances) / 3)
    assert 'tokens' not in losses(model, logits, torch.arange(3), trace)
    terms['tokens'].backward()
    assert model.method.predictors[0].outer[0].weight.grad.abs().sum() > 0
    assert vit.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_tokens_behind_a_drop_in_the_last_block_and_an_image_without_any():
    vit, images = spread_vit(images=2, depth=4)
    model = at.adapt(vit, 'dynamicvit', budget=.7, places=(2, 4)).train()
    logits, trace = model(images, return_trace=True)
    own, left = trace.final
    assert (left.sum(1) < trace.counts[:, -1]).all()
    trace.final = own, left & torch.tensor([[True], [False]])
    half = losses(model, logits, torch.arange(2), trace, tokens=own.detach() + 1)['tokens']
    assert half.item() == pytest.approx(.25)  # weight 1/2, distance 1 in one image of two


def test_a_model_that_keeps_all_is_no_distance_from_itself():
    vit, images = spread_vit(images=2, depth=4)
    vit.eval()
    model = at.adapt(vit, 'dynamicvit', budget=1).train()
    vit.eval()  # no dropout, no stochastic depth
    logits, trace = model(images, return_trace=True)
    assert losses(model, logits, torch.arange(2), trace, tokens=vit.forward_features(images).detach())['tokens'] < 1e-9


def test_another_budget_forgets_what_the_last_step_kept():
    vit, images = spread_vit(images=2, depth=4)
    model = at.adapt(vit, 'dynamicvit', budget=.7).train()
    model(images)
    assert len(model.method.kept) == 3
    at.calibrate(model, [images], 1.)
    logits, trace = model(images, return_trace=True)
    assert list(losses(model, logits, torch.arange(2), trace)) == ['loss', 'task']
