"Heads that are shut: deleted in fact, one by one or by spans, in both forms and both tables."
import copy

import pytest
import torch

from adaptive_tokens.backbones.backbone import backbone_of
from adaptive_tokens.backbones.heads import FORMS, gated_heads, heads_by_head
from adaptive_tokens.tokens.masked import MaskedTokens
from adaptive_tokens.tokens.packed import PackedTokens
from gated_models import FAMILIES, build, drawn, rows_of


@pytest.mark.parametrize('table', [MaskedTokens, PackedTokens])
def test_a_shut_head_is_a_head_that_was_deleted(table):
    vit, images = build()
    t, block = table(rows_of(vit, images)), backbone_of(vit).blocks[0]
    deleted = copy.deepcopy(vit)
    with torch.no_grad():
        deleted.blocks[0].attn.proj.weight[:, 16:32] = 0
        shut = gated_heads(block, t, torch.tensor([[True, False, True]]).expand(6, -1), 'full')
        all_open = gated_heads(backbone_of(deleted).blocks[0], t, torch.ones(6, 3, dtype=torch.bool), 'full')
        torch.testing.assert_close(shut, all_open, atol=1e-6, rtol=0)


def without_head(attn, h):
    "Attention whose q, k, v rows and projection columns of one head are gone, written out by hand"
    Dh, H = attn.head_dim, attn.num_heads
    left = [i for i in range(H * Dh) if i // Dh != h]
    rows = [part * H * Dh + i for part in range(3) for i in left]

    def attend(x):
        qkv = x @ attn.qkv.weight[rows].mT + attn.qkv.bias[rows]
        q, k, v = qkv.view(len(x), -1, 3, H - 1, Dh).permute(2, 0, 3, 1, 4)
        a = (q @ k.mT * Dh**-.5).softmax(-1)
        return (a @ v).transpose(1, 2).flatten(2) @ attn.proj.weight[:, left].mT + attn.proj.bias
    return attend


@pytest.mark.parametrize('table', [MaskedTokens, PackedTokens])
@pytest.mark.parametrize('h', [0, 1, 2])
def test_a_shut_head_is_rows_and_columns_deleted(table, h):
    vit, images = build()
    own, block, t = vit.blocks[0], backbone_of(vit).blocks[0], table(rows_of(vit, images))
    heads = (torch.arange(3) != h).expand(6, -1)
    with torch.no_grad():
        expected = without_head(own.attn, h)(own.norm1(rows_of(vit, images)))
        shut = gated_heads(block, t, heads if table is PackedTokens else heads.float(), 'full').view(6, 65, 48)
        torch.testing.assert_close(shut, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize('kw', FAMILIES, ids=str)
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('rate', [0., .4, 1.])
def test_head_by_head_is_image_by_image(kw, form, rate):
    vit, images = build(**kw)
    g = drawn(vit, images, rate)[0]
    t = PackedTokens(rows_of(vit, images), vit.num_prefix_tokens).keep(g.rows.flatten())
    own, block = vit.blocks[0], backbone_of(vit).blocks[0]
    with torch.no_grad():
        update = own.ls1(heads_by_head(block, own.norm1(t.x), t, g.heads, form))
        torch.testing.assert_close(update, gated_heads(block, t, g.heads, form), atol=1e-5, rtol=0)


@pytest.mark.parametrize('table', [MaskedTokens, PackedTokens])
@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_partial_form_gives_each_token_its_own_value(table, mode):
    vit, images = build()
    t = table(rows_of(vit, images))
    if mode == 'train': vit.train()
    own, block = vit.blocks[0], backbone_of(vit).blocks[0]
    with torch.no_grad():
        given = gated_heads(block, t, torch.zeros(6, 3, dtype=torch.bool), 'partial')
        v = own.attn.qkv(own.norm1(t.x))[..., 96:]
        torch.testing.assert_close(given, own.attn.proj(v), atol=1e-6, rtol=0)
