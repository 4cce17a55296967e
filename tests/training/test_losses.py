"Terms of the loss, their sum, and what a teacher adds."
import math

import pytest
import torch
from small_runs import CLASSES, both, loader, make, pictures, quick, sparse, tiny

from adaptive_tokens.methods.asvit import ASViT
from adaptive_tokens.models.model import adapt
from adaptive_tokens.training.fit import fit
from adaptive_tokens.training.losses import DENSE_DISTILL_WEIGHT, loss_terms, losses


@both
def test_terms_are_finite_and_sum_to_the_loss(kind):
    model, (x, y), teacher = make(kind).train(), pictures(), tiny().eval()
    for opinion in (None, teacher(x).detach()):
        terms, answer, trace = loss_terms(model, x, y, opinion)
        names = {'task'} | ({'distill'} if opinion is not None else set()) | ({'budget'} if kind == 'as-vit' else set())
        assert set(terms) == names | {'loss'} and answer.shape == (len(x), CLASSES)
        assert (trace is None) == (kind == 'dense')
        torch.testing.assert_close(terms['loss'], sum(terms[name] for name in names))
        assert all(term.isfinite() for term in terms.values())


@pytest.mark.parametrize('method', ['as-vit', 'a-vit', 'adavit'])
def test_half_precision_keeps_what_decides_in_float32_and_finite(method):
    model = adapt(tiny(), method, budget=.7).train()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast('cpu', dtype): terms, _, trace = loss_terms(model, *pictures(8))
        terms['loss'].backward()
        kept = [trace.macs, *model.method.buffers(), *model.method.parameters(), *(v for v in terms.values())]
        assert all(v.dtype == torch.float32 for v in kept if v.is_floating_point())
        assert trace.score.dtype == torch.float32
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('other, tokens', [(dict(), True), (dict(embed_dim=32), False), (dict(patch_size=16), False)])
def test_a_teacher_lends_its_tokens_where_they_fit(other, tokens):
    model = adapt(tiny(), 'dynamicvit', budget=.7, places=(1,))
    row, = fit(model, loader(), epochs=1, lr=1e-3, teacher=tiny(**other), **quick)
    assert ('tokens' in row) == tokens and 'distill' in row and math.isfinite(row['loss'])


def test_no_tokens_are_asked_for_where_the_method_has_no_use_for_them():
    assert 'tokens' not in fit(sparse(), loader(), epochs=1, lr=1e-3, teacher=tiny(), device='cpu', progress=False)[0]


def test_losses_sum_and_teacher_counts():
    model, (images, _) = sparse(theta=(.05, .06)).train(), pictures(4)
    logits, trace = model(images, return_trace=True)
    terms = losses(model, logits, torch.arange(4), trace, torch.randn(4, CLASSES))
    assert set(terms) == {'loss', 'task', 'distill', 'budget'}
    torch.testing.assert_close(terms['loss'], terms['task'] + terms['distill'] + terms['budget'])
    assert losses(model, logits, torch.arange(4), trace, logits.detach())['distill'].abs() < 1e-6
    assert 'distill' not in losses(model, logits, torch.arange(4), trace)


def test_a_dense_model_and_as_vit_weigh_a_teacher_alike(): assert DENSE_DISTILL_WEIGHT == ASViT.distill_weight
