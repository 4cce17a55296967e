"Accuracy and multiply-adds are means over images."
import math

import pytest
import torch
from small_runs import both, loader, make, pictures, sparse, tiny

from adaptive_tokens.models.cost import macs
from adaptive_tokens.models.model import calibrate
from adaptive_tokens.training.evaluate import evaluate


@both
def test_evaluate_means_are_over_images(kind):
    model, (x, y) = make(kind), pictures(21)
    if kind == 'as-vit': calibrate(model, [x])
    found = evaluate(model.train(), loader(x, y, shuffle=False, batch=8), device='cpu')
    assert model.training and found['n'] == 21
    assert found['top1'] == pytest.approx(100 * (model.eval()(x).argmax(1) == y).float().mean().item())
    vit = getattr(model, 'vit', model)
    spent = model(x, return_trace=True)[1].macs.double() if kind == 'as-vit' else torch.full((21,), float(macs(vit)))
    assert found['gmacs'] == pytest.approx(spent.mean().item() / 1e9)
    assert found['gmacs_spread'] == pytest.approx(spent.std(correction=0).item() / 1e9, abs=1e-12)
    assert found['macs_share'] == pytest.approx(spent.mean().item() / macs(vit))


@both
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_evaluate_in_lower_precision(kind, dtype):
    model, seen = make(kind), set()
    getattr(model, 'vit', model).blocks[0].mlp.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    assert evaluate(model, loader(), device='cpu', dtype=dtype)['n'] == 40
    assert seen == {getattr(torch, dtype)}


def test_evaluate_counts_the_image_at_hand():
    vit = tiny(dynamic_img_size=True)
    x = torch.randn(3, 3, 64, 48)
    found = evaluate(vit, [(x, torch.tensor([0, 1, 2]))], device='cpu')
    assert found['gmacs'] == pytest.approx(macs(vit, None, 48) / 1e9)


def test_evaluate_names_what_is_wrong():
    with pytest.raises(ValueError, match='no batch to evaluate'): evaluate(tiny(), [], device='cpu')
    with pytest.raises(ValueError, match='label 7 does not fit a head of 4'):
        evaluate(tiny(), [(pictures(2)[0], torch.tensor([1, 7]))], device='cpu')
    with pytest.raises(ValueError, match='NaN'):
        evaluate(tiny(), [(torch.full((1, 3, 32, 32), math.nan), torch.tensor([0]))], device='cpu')
    with pytest.raises(ValueError, match='16x16'):
        evaluate(sparse(), [(torch.zeros(1, 3, 16, 16), torch.tensor([0]))], device='cpu')
