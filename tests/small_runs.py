"Models of two or three blocks, a few dozen images, and runs of seconds; what is drawn at random is seeded."
import os

import pytest
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

from adaptive_tokens.models.checkpoint import load_dense
from adaptive_tokens.models.model import AdaptiveViT, adapt

CLASSES = 4


def tiny(**changes):
    torch.manual_seed(0)
    small = dict(img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2, num_classes=CLASSES)
    return timm.create_model('vit_tiny_patch16_224', **{**small, **changes})


def swin(): return timm.create_model('swin_tiny_patch4_window7_224', depths=(1,))


def sparse(vit=None, budget=.7, **options):
    return adapt(vit or tiny(), 'as-vit', budget=budget, places=(1, 2), **options)


def make(kind): return tiny() if kind == 'dense' else sparse()


def pictures(n=40, seed=1):
    "Images whose class is the quarter that is bright"
    noise = torch.Generator().manual_seed(seed)
    x, y = .3 * torch.randn(n, 3, 32, 32, generator=noise), torch.arange(n) % CLASSES
    for image, label in zip(x, y.tolist()): image[:, label // 2 * 16:][:, :16, label % 2 * 16:][..., :16] += 1
    return x, y


def loader(x=None, y=None, shuffle=True, batch=16):
    if x is None: x, y = pictures()
    return DataLoader(TensorDataset(x, y), batch, shuffle=shuffle, generator=torch.Generator())


def weights(model): return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


@torch.no_grad()
def logits(model): return model.eval()(pictures()[0])


def load(kind, folder): return load_dense(folder) if kind == 'dense' else AdaptiveViT.from_pretrained(folder)


quick = dict(device='cpu', progress=False)
both = pytest.mark.parametrize('kind', ['dense', 'as-vit'])


def lacking_fork():
    "Why a process that has trained cannot be forked; empty if it can."
    if not hasattr(os, 'fork'): return 'no fork on this system'
    beside_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return 'autograd cannot be forked beside a GPU' if beside_gpu else ''
