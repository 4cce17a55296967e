"`calibrate`: a budget is met, and saved if asked."
import pytest
import torch

import adaptive_tokens as at
from adaptive_tokens.images.digits import ClutteredDigits, normalize


@pytest.mark.parametrize('kind, words, budget', [('dense', ['--budget', '0.9'], .9), ('dense', [], .65),
                                                 ('as-vit', [], .8), ('as-vit', ['--budget', '0.9'], .9),
                                                 ('a-vit', [], .8), ('a-vit', ['--budget', '0.7'], .7)])
def test_calibrate(run, kept, out, kind, words, budget):
    code, text, _ = run('calibrate', '--model', kept/kind, *words, '--n', '64', '--device', 'cpu', '--out', out)
    assert code == 0 and str(out) in text
    model = at.AdaptiveViT.from_pretrained(out)
    assert model.budget == budget and abs(float(text.split()[2]) / budget - 1) < .03
    images = normalize(ClutteredDigits('train', size=64, image_size=32).batch(range(64)).images)
    with torch.no_grad(): spent = model(images, return_trace=True)[1].macs.mean().item() / at.macs(model.vit)
    assert abs(spent - float(text.split()[2])) < 2e-3


def test_calibrate_may_only_look(run, adaptive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = run('calibrate', '--model', adaptive, '--n', '16', '--device', 'cpu')
    assert code == 0 and 'saved' not in text and list(tmp_path.iterdir()) == []


def test_calibrate_does_not_change_the_method_of_a_checkpoint(refused, adaptive):
    refused(['runs as-vit, not a-vit'], 'calibrate', '--model', adaptive, '--method', 'a-vit')
