"Fixed rates: the best, the worst and any patches, against a slow loop over one image and its tokens."
import pytest
import torch

import adaptive_tokens as at
from builders import spread_vit
from slow_rules import check_rule, only

FAMILIES = [dict(), dict(reg_tokens=3, qk_norm=True, init_values=.5)]


def best_stay(method, sign=1):
    "The patches with the highest class attention stay, or with sign -1 those with the lowest"
    def rule(l, x, names, size, A, k):
        if l not in method.places: return x, names, size
        S = {i: sign * A[:, 0, i].mean().item() for i in range(method.P, len(x))}
        stay = sorted(S, key=S.get)[::-1][:method.num_kept(l, len(S), method.share)]
        return only(list(range(method.P)) + sorted(stay), x, names, size)
    return rule


def chance(method):
    "A number for each of 65 tokens and each block decides"
    def rule(l, x, names, size, A, k):
        if l not in method.places: return x, names, size
        draw = torch.rand(65, generator=torch.Generator().manual_seed(l))
        ranked = sorted(range(method.P, len(x)), key=lambda i: -draw[names[i]].item())
        patches = ranked[:method.num_kept(l, len(x) - method.P, method.share)]
        return only(list(range(method.P)) + sorted(patches), x, names, size)
    return rule


@pytest.mark.parametrize('kw', FAMILIES, ids=str)
@pytest.mark.parametrize('name, sign', [('fixed-rate', 1), ('lowest', -1)])
def test_each_rate_is_the_slow_one(name, sign, kw):
    vit, images = spread_vit(images=2, **kw)
    model = at.adapt(vit, name, budget=.6)
    check_rule(vit, images, model, inside=best_stay(model.method, sign))


@pytest.mark.parametrize('seed', [0, 1])
def test_chance_is_the_slow_one(seed):
    vit, images = spread_vit(seed=seed, images=2)
    model = at.adapt(vit, 'random', budget=.6)
    check_rule(vit, images, model, inside=chance(model.method))


def test_nothing_left_but_the_class_token():
    vit, images = spread_vit(images=2)
    model = at.adapt(vit, 'fixed-rate', share=0.)
    with torch.no_grad(): assert model(images, return_trace=True)[1].counts[:, -1].tolist() == [1, 1]
