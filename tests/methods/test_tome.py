"ToMe against a slow loop over one image and its tokens, and its matching."
import pytest
import torch
from hypothesis import given, settings, strategies as st

import adaptive_tokens as at
from adaptive_tokens.methods.tome import match_pairs
from builders import spread_vit
from slow_rules import check_rule, only


def merge(method):
    "Patches dealt in turn to two sets; the best edges between the sets are merged, and the others dealt anew"
    def rule(l, x, names, size, A, k):
        if l not in method.places: return x, names, size
        f, P, n = k.mean(1), method.P, len(x)

        def cos(i, j): return (f[i] @ f[j] / f[i].norm() / f[j].norm()).item()
        a, b = list(range(P, n, 2)), list(range(P + 1, n, 2))
        edges = [max((cos(i, j), i, j) for j in b) for i in a] if b else []
        chosen = sorted(edges, reverse=True)[:(n - P) - method.num_kept(l, n - P, method.share)]
        before, x, held, size = x, x.clone(), size, list(size)
        for j in {j for _, _, j in chosen}:
            parts = [j] + [i for _, i, to in chosen if to == j]
            size[j] = sum(held[i] for i in parts)
            x[j] = sum(held[i] * before[i] for i in parts) / size[j]
        gone = {i for _, i, _ in chosen}
        return only([*range(P), *(i for i in a if i not in gone), *b], x, names, size)
    return rule


@pytest.mark.parametrize('kw', [dict(), dict(reg_tokens=3, qk_norm=True, init_values=.5)], ids=str)
def test_merging_is_the_slow_one(kw):
    vit, images = spread_vit(images=2, **kw)
    model = at.adapt(vit, 'tome', budget=.6)
    check_rule(vit, images, model, inside=merge(model.method))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 20), st.integers(0, 99), st.floats(0, 1))
def test_pairs_are_between_two_sets_and_everybody_is_somewhere(n, seed, rate):
    torch.manual_seed(seed)
    f, r = torch.nn.functional.normalize(torch.randn(2, n, 5), dim=-1), round(rate * (n // 2))
    src, dst, rest = match_pairs(f, r)
    assert (src % 2 == 0).all() and (dst % 2 == 1).all() and src.shape == dst.shape == (2, r)
    for b in range(2): assert sorted([*src[b].tolist(), *rest[b].tolist()]) == list(range(n))
