"EViT against a slow loop over one image and its tokens."
import pytest

import adaptive_tokens as at
from builders import spread_vit
from slow_rules import check_rule, only


def fuse(method):
    "The best stay; of the others the first takes the mean of all, weighted by class attention"
    def rule(l, x, names, size, A, k):
        if l not in method.places: return x, names, size
        S = {i: A[:, 0, i].mean().item() for i in range(method.P, len(x))}
        order, kept = sorted(S, key=S.get)[::-1], round(method.share * len(S))
        rest = order[kept:]
        x = x.clone()
        if rest: x[rest[0]] = sum(S[i] * x[i] for i in rest) / sum(S[i] for i in rest)
        return only(list(range(method.P)) + sorted(order[:kept] + rest[:1]), x, names, size)
    return rule


@pytest.mark.parametrize('kw', [dict(), dict(reg_tokens=3, qk_norm=True, init_values=.5)], ids=str)
def test_fusing_is_the_slow_one(kw):
    vit, images = spread_vit(images=2, **kw)
    model = at.adapt(vit, 'evit', budget=.6)
    check_rule(vit, images, model, inside=fuse(model.method))
