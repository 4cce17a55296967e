import pytest
import torch
from small_models import adaptive, small


@pytest.fixture
def vit(): return small()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(7, 3, 64, 64)


@pytest.fixture
def models(vit): return {'dense': vit, 'ours': adaptive(vit)}
