"What AS-ViT drops, fused or merged into what stays, against a slow loop over one image and its tokens."
import pytest

import adaptive_tokens as at
from builders import spread_vit
from slow_rules import check_rule, only


def thresholds_with_folds(method, P):
    "AS-ViT with thresholds, and what it drops folded"
    thresholds = dict(zip(method.places, method.theta.tolist()))

    def rule(l, x, names, size, A, k, H):
        if l not in thresholds: return x, names, size
        R = H / H.sum(1, keepdim=True)
        S = [(R[i] * A[:, 0, i]).sum().item() for i in range(len(x))]
        go = [i for i in range(P, len(x)) if S[i] <= thresholds[l]]
        stay = [i for i in range(len(x)) if i not in go]
        x, before, size, held = x.clone(), x, list(size), list(size)
        if method.fold == 'fuse' and go:
            best = max(go, key=S.__getitem__)
            x[best] = sum(S[i] * x[i] for i in go) / sum(S[i] for i in go)
            stay = sorted([*stay, best])
        if method.fold == 'merge':
            def cos(i, j): return (before[i] @ before[j] / before[i].norm() / before[j].norm()).item()
            into = {i: max((j for j in stay if j >= P), key=lambda j: cos(i, j), default=None) for i in go}
            for j in set(into.values()) - {None}:
                parts = [j, *(i for i in go if into[i] == j)]
                size[j] = sum(held[i] for i in parts)
                x[j] = sum(held[i] * before[i] for i in parts) / size[j]
        return only(stay, x, names, size)
    return rule


@pytest.mark.parametrize('kw', [dict(), dict(reg_tokens=3, qk_norm=True, init_values=.5)], ids=str)
@pytest.mark.parametrize('fold', ['fuse', 'merge'])
def test_folded_thresholds_are_the_slow_ones(fold, kw):
    vit, images = spread_vit(images=3, **kw)
    model = at.adapt(vit, 'as-vit', fold=fold)
    at.calibrate(model, [images], .6)
    check_rule(vit, images, model, scored=thresholds_with_folds(model.method, vit.num_prefix_tokens))
