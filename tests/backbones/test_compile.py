"Compiled parts answer as plain ones do, in as few programs as there are parts."
import shutil

import pytest
import timm
import torch
from small_families import FAMILIES, make
from torch._dynamo.utils import counters

from adaptive_tokens.backbones.backbone import backbone_of, run_block
from adaptive_tokens.backbones.compile import compile_parts
from adaptive_tokens.models.model import adapt
from adaptive_tokens.tokens.packed import PackedTokens


@pytest.mark.parametrize('family', ['deit3', 'qk-norm', 'no class token'])
def test_compiled_parts_change_nothing(family, traced):
    vit = make(FAMILIES[family])
    model = adapt(vit, 'tome', .6).eval()
    images = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        plain, compiled = model(images), compile_parts(model)(images)
        torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)
        assert counters['stats']['unique_graphs'] > 0
        before = counters['stats']['calls_captured']
        torch.testing.assert_close(compile_parts(model, False)(images), plain, atol=0, rtol=0)
        assert counters['stats']['calls_captured'] == before


def test_programs_are_shared_by_blocks_and_by_numbers_of_rows(traced):
    vit = compile_parts(adapt(make(dict(FAMILIES['deit'], depth=6)), 'as-vit')).vit
    programs = []
    with torch.no_grad():
        for n in (30, 17, 197, 5):
            t = PackedTokens(torch.randn(2, n, 192))
            for block in backbone_of(vit).blocks: t = run_block(block, t)
            programs.append(counters['stats']['unique_graphs'])
    assert len(set(programs)) == 1 and 3 <= programs[0] < 6  # three parts, six blocks


def test_compiling_keeps_weights_and_names(traced):
    vit = make(FAMILIES['deit'])
    names, images = list(vit.state_dict()), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        plain = vit(images)
        torch.testing.assert_close(compile_parts(vit)(images), plain, atol=1e-5, rtol=1e-5)
        assert counters['stats']['unique_graphs'] > 0
    assert list(vit.state_dict()) == names and list(compile_parts(vit, False).state_dict()) == names


def test_a_rate_of_its_own_in_every_block_is_no_reason_to_give_up(traced):
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, embed_dim=16, num_heads=2, depth=10, drop_path_rate=.1)
    with torch.no_grad(): compile_parts(adapt(vit, 'as-vit', .9).train())(torch.randn(2, 3, 32, 32))
    seen = counters['frames']
    assert seen['ok'] == seen['total'] and counters['stats']['unique_graphs'] > 8  # torch's own limit for variants


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='no C++ compiler')
def test_parts_through_the_real_compiler():
    model = adapt(make(FAMILIES['deit']), 'as-vit', places=(1,), theta=(.005,)).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        compiled, plain = compile_parts(model)(images), compile_parts(model, False)(images)
        torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-4)
