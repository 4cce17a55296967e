"Every family of timm's plain Vision Transformers runs on both tables; everything else is refused by name."
import shutil

import pytest
import timm
import torch
from torch._dynamo.utils import counters

from adaptive_tokens.backbones.timm_vit import (UnsupportedBackbone, check_backbone, check_images, compile_parts,
    embed, read_out, run_block)
from adaptive_tokens.models.model import adapt
from adaptive_tokens.tokens.masked import MaskedTokens
from adaptive_tokens.tokens.packed import PackedTokens

FAMILIES = {
    'deit': dict(model_name='deit_tiny_patch16_224'),
    'deit3': dict(model_name='deit3_small_patch16_224'),
    'distilled': dict(model_name='deit_tiny_distilled_patch16_224'),
    'registers': dict(model_name='vit_small_patch14_reg4_dinov2', img_size=224, num_classes=10),
    'qk-norm': dict(model_name='vit_tiny_patch16_224', qk_norm=True),
    'average pooling': dict(model_name='vit_tiny_patch16_224', global_pool='avg'),
    'no class token': dict(model_name='vit_tiny_patch16_224', class_token=False, global_pool='avg'),
    'scaled norms': dict(model_name='vit_tiny_patch16_224', scale_attn_norm=True, scale_mlp_norm=True),
    'pre-norm': dict(model_name='vit_base_patch32_clip_224', num_classes=10),
    'dynamic size': dict(model_name='vit_tiny_patch16_224', dynamic_img_size=True),
}


def make(kw):
    torch.manual_seed(0)
    vit = timm.create_model(**{'depth': 2, **kw}).eval()
    with torch.no_grad():
        for name, p in vit.named_parameters():
            if 'gamma' in name: p.uniform_(.1, 1)
    return vit


@pytest.mark.parametrize('table', [MaskedTokens, PackedTokens])
@pytest.mark.parametrize('family', FAMILIES)
def test_all_tokens_kept_equals_timm(family, table):
    vit, images = make(FAMILIES[family]), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        t = table(embed(vit, images), vit.num_prefix_tokens)
        for block in vit.blocks: t = run_block(block, t)
        torch.testing.assert_close(read_out(vit, t), vit(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize('family', FAMILIES)
def test_tables_agree_on_survivors(family):
    vit, images = make(FAMILIES[family]), torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        x = embed(vit, images)
        M, T = MaskedTokens(x, vit.num_prefix_tokens), PackedTokens(x, vit.num_prefix_tokens)
        on = (torch.rand(x.shape[:2]) < torch.tensor([[.1], [.5], [1.]])) | M.is_prefix
        M, T = M.keep(on), T.keep(on.flatten())
        for block in vit.blocks: M, T = run_block(block, M), run_block(block, T)
        torch.testing.assert_close(read_out(vit, T), read_out(vit, M), atol=1e-5, rtol=0)


def test_another_resolution():
    vit = make(FAMILIES['dynamic size'])
    images = torch.randn(1, 3, 160, 256)
    with torch.no_grad():
        t = PackedTokens(embed(vit, images), 1)
        for block in vit.blocks: t = run_block(block, t)
        torch.testing.assert_close(read_out(vit, t), vit(images), atol=1e-6, rtol=0)


REFUSED = {
    'swin_tiny_patch4_window7_224': ({}, 'SwinTransformer'),
    'vit_small_patch16_18x2_224': (dict(depth=1), 'ParallelThingsBlock'),
    'vit_relpos_small_patch16_224': (dict(depth=1), 'VisionTransformerRelPos'),
    'eva02_tiny_patch14_224': (dict(depth=1), 'Eva'),
    'resnet18': ({}, 'ResNet'),
    'vit_tiny_patch16_224': (dict(depth=1, patch_drop_rate=.5), 'patch dropout'),
    'vit_base_patch16_siglip_224': (dict(depth=1), "pooling 'map'"),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_by_name(name):
    kw, says = REFUSED[name]
    with pytest.raises(UnsupportedBackbone) as e: check_backbone(timm.create_model(name, **kw))
    assert says in str(e.value) and 'What works: timm VisionTransformer' in str(e.value)


@pytest.mark.parametrize('shape, says', [((1, 1, 224, 224), r'wants \[B, 3, height, width\]'),
                                         ((3, 224, 224), r'shape \[3, 224, 224\]'),
                                         ((1, 3, 192, 224), 'images are 192x224; this backbone wants 224x224')])
def test_wrong_images(shape, says):
    with pytest.raises(ValueError, match=says): check_images(make(FAMILIES['deit']), torch.zeros(shape))


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), float('-inf')])
def test_not_a_number(bad):
    images = torch.zeros(2, 3, 224, 224)
    images[1, 2, 100, 7] = bad
    with pytest.raises(ValueError, match='NaN or infinity'): check_images(make(FAMILIES['deit']), images)


# --- compiled parts

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
            for block in vit.blocks: t = run_block(block, t)
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
    model, images = adapt(make(FAMILIES['deit']), 'as-vit', places=(1,), theta=(.005,)).eval(), torch.randn(2, 3, 224, 224)
    with torch.inference_mode(): torch.testing.assert_close(compile_parts(model)(images), compile_parts(model, False)(images), atol=1e-4, rtol=1e-4)


def test_bright_images_in_half_precision_are_finite():
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    bright = torch.full((8, 3, 32, 32), 8., dtype=torch.float16)
    assert bright.sum().isinf()
    check_images(vit, bright)
    bright[0, 0, 0, 0] = float('inf')
    with pytest.raises(ValueError, match='NaN or infinity'): check_images(vit, bright)


def test_images_of_whole_numbers_are_refused():
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match='images are uint8; normalise them'): check_images(vit, torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
