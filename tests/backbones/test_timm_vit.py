"Every family of timm's plain Vision Transformers runs on both tables; everything else is refused by name."
import pytest
import timm
import torch
from small_families import FAMILIES, make

from adaptive_tokens.backbones.backbone import (UnsupportedBackbone, backbone_of, check_backbone, check_images,
                                                run_block)
from adaptive_tokens.tokens.masked import MaskedTokens
from adaptive_tokens.tokens.packed import PackedTokens


@pytest.mark.parametrize('table', [MaskedTokens, PackedTokens])
@pytest.mark.parametrize('family', FAMILIES)
def test_all_tokens_kept_equals_timm(family, table):
    vit, images = make(FAMILIES[family]), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        backbone = backbone_of(vit)
        t = table(backbone.embed(images), vit.num_prefix_tokens)
        for block in backbone.blocks: t = run_block(block, t)
        torch.testing.assert_close(backbone.read_out(t), vit(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize('family', FAMILIES)
def test_tables_agree_on_survivors(family):
    vit, images = make(FAMILIES[family]), torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        backbone = backbone_of(vit)
        x = backbone.embed(images)
        M, T = MaskedTokens(x, vit.num_prefix_tokens), PackedTokens(x, vit.num_prefix_tokens)
        on = (torch.rand(x.shape[:2]) < torch.tensor([[.1], [.5], [1.]])) | M.is_prefix
        M, T = M.keep(on), T.keep(on.flatten())
        for block in backbone.blocks: M, T = run_block(block, M), run_block(block, T)
        torch.testing.assert_close(backbone.read_out(T), backbone.read_out(M), atol=1e-5, rtol=0)


def test_another_resolution():
    vit = make(FAMILIES['dynamic size'])
    images = torch.randn(1, 3, 160, 256)
    with torch.no_grad():
        backbone = backbone_of(vit)
        t = PackedTokens(backbone.embed(images), 1)
        for block in backbone.blocks: t = run_block(block, t)
        torch.testing.assert_close(backbone.read_out(t), vit(images), atol=1e-6, rtol=0)


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


def test_bright_images_in_half_precision_are_finite():
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    bright = torch.full((8, 3, 32, 32), 8., dtype=torch.float16)
    assert bright.sum().isinf()
    check_images(vit, bright)
    bright[0, 0, 0, 0] = float('inf')
    with pytest.raises(ValueError, match='NaN or infinity'): check_images(vit, bright)


def test_images_of_whole_numbers_are_refused():
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    whole = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match='images are uint8; normalise them'): check_images(vit, whole)
