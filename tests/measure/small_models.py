"Models and options that several files of tests about measuring share."
import timm
import torch

from adaptive_tokens.measure import benchmark as bench
from adaptive_tokens.models.model import adapt

quick = dict(batch_size=3, repeats=2, latency_repeats=4, device='cpu', progress=False, allow_noise=True)


def small(**changes):
    torch.manual_seed(0)
    return timm.create_model('test_vit', **{**dict(img_size=64, num_classes=10, depth=3), **changes}).eval()


def adaptive(vit, budget=.65, theta=(.055, .06)):
    return adapt(vit, 'as-vit', budget=budget, places=(1, 2), theta=theta).eval()


def fail_above(most, error, monkeypatch):
    "Measure up to a batch size, and raise the error beyond it"
    real = bench.measure
    def measure(models, images, size, *rest):
        if size > most: raise error
        return real(models, images, size, *rest)
    monkeypatch.setattr(bench, 'measure', measure)
