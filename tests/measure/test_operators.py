"Operators are counted alike whether torch has a formula for them or not."
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import flop_registry, shape_wrapper

from adaptive_tokens.measure import operators
from adaptive_tokens.measure.operators import OperatorCounter
from adaptive_tokens.models.cost import macs

FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def test_a_product_by_hand():
    with OperatorCounter() as counter: torch.randn(5, 7) @ torch.randn(7, 3)
    assert counter.macs == 5 * 7 * 3


def test_attention_by_hand():
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    with torch.no_grad(), OperatorCounter() as counter: F.scaled_dot_product_attention(q, k, k)
    assert counter.macs == 2 * 3 * (5 * 8 * 7 + 5 * 7 * 8)


@pytest.mark.parametrize('known', [True, False])
def test_it_is_the_same_whether_torch_knows_fused_attention(known, vit, images, monkeypatch):
    "As in versions of torch before and after the one that learned to count it"
    if known: monkeypatch.setitem(flop_registry, FUSED, shape_wrapper(operators._FORMULAS[FUSED]))
    else: monkeypatch.delitem(flop_registry, FUSED, raising=False)
    with torch.no_grad(), OperatorCounter() as counter: vit(images)
    assert counter.macs == len(images) * macs(vit)


def test_a_formula_of_torch_comes_first(monkeypatch):
    def formula(*args, out_val=None, **options): return 84
    formula._get_raw = True
    monkeypatch.setitem(flop_registry, FUSED, formula)
    x = torch.randn(1, 1, 4, 8)
    with torch.no_grad(), OperatorCounter() as counter: F.scaled_dot_product_attention(x, x, x)
    assert counter.macs == 42
