"""The token-wise parts of blocks through torch.compile, on request."""
from functools import cache

import torch
from torch import nn

from .backbone import timm_model

__all__ = ['compile_parts', 'compiler', 'is_compiled']


def compiler(
    part,       # Function or module to compile
    **options,  # Options of torch.compile
):
    "torch.compile that gives up later: its eight variants of a function are too few for widths, tables, dropout rates"
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    return torch.compile(part, **options)


@cache
def compiled_part(part):
    "A function of a block and its rows, compiled once for all blocks and all numbers of rows"
    return compiler(part, dynamic=True)


def compile_parts(
    model:nn.Module, # AdaptiveViT, of which the token-wise parts are compiled, or timm model, of which the blocks are
    on:bool=True,    # False: back to the state before
) -> nn.Module:      # The same model; others that share its backbone are changed with it
    "From now on, run the parts of the blocks by torch.compile; the first calls take seconds to minutes"
    vit = timm_model(model)
    for block in vit.blocks:
        if vit is not model: block.compiled = on
        elif on: block._compiled_call_impl = compiler(block._call_impl)  # as block.compile() does
        else: block._compiled_call_impl = None
    return model


def is_compiled(
    model:nn.Module, # AdaptiveViT, timm model, or what torch.compile made of it
) -> bool:           # True where a part of it runs compiled
    "Whether operators of a call may be hidden in compiled programs"
    if hasattr(model, '_orig_mod'): return True
    vit = timm_model(model)
    return vit is not model and any(getattr(block, 'compiled', False) for block in vit.blocks)
