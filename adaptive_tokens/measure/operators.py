"""Multiply-adds counted by torch while a model runs, the same on every version of torch."""
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

__all__ = ['OperatorCounter']


def _attention_flops(q_shape, k_shape, v_shape, *args, **options):
    "Flops of fused attention by the shapes of queries, keys and values [B, H, N, Dh]"
    return sdpa_flop_count(q_shape, k_shape, v_shape)


# Operators that some versions of torch from 2.5 to 2.15 count and others do not.
_FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


class OperatorCounter(FlopCounterMode):
    """Count the multiply-adds of the operators that run while the block lasts, by the shapes that they get.

    Where a version of torch has its own formula for an operator, that one is used; fused attention on the CPU,
    which some versions leave out, is counted in all of them. Loops in C++ bring their formulas along when they
    are compiled. Norms, activations and sums count nothing, as in `models.cost`.
    """
    def __init__(self):
        super().__init__(display=False, custom_mapping={o: f for o, f in _FORMULAS.items() if o not in flop_registry})

    @property
    def macs(self) -> int:
        "Multiply-adds so far, of all images together; torch counts two flops for each"
        return self.get_total_flops() // 2
