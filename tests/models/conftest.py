"A small ViT, an adaptive model around it, and images."
import pytest
import torch
from small_vits import THETA, small

from adaptive_tokens.models.model import adapt


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return small()


@pytest.fixture
def model(vit): return adapt(vit, 'as-vit', theta=THETA)


@pytest.fixture
def images(): return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
