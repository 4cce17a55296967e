"Small models and random gates that tests of AdaViT and of its heads share."
import timm
import torch

import adaptive_tokens as at
from adaptive_tokens.backbones.backbone import backbone_of
from adaptive_tokens.models.trace import Gates

FAMILIES = [dict(), dict(reg_tokens=3), dict(qk_norm=True), dict(init_values=1e-1), dict(qkv_bias=False),
            dict(model_name='deit_tiny_distilled_patch16_224')]


def build(images=6, **kw):
    "A small ViT whose images differ, and images for it"
    torch.manual_seed(0)
    vit = timm.create_model(**{'model_name': 'vit_tiny_patch16_224', 'img_size': 64, 'patch_size': 8, 'embed_dim': 48,
                               'depth': 6, 'num_heads': 3, 'num_classes': 7, **kw}).eval()
    with torch.no_grad():
        for p in vit.parameters(): p.mul_(1.5)
    return vit, torch.randn(images, 3, *vit.patch_embed.img_size)


def scattered(vit, images, budget=.6, **options):
    "An AdaViT whose gates differ from block to block and image to image"
    model = at.adapt(vit, 'adavit', **options)
    with torch.no_grad():
        for b in model.method.biases(): b.add_(torch.randn_like(b))
        for kind in model.method.kinds:
            for layer in model.method.layers[kind]: layer.weight.mul_(20)
    at.calibrate(model, [images], budget)
    return model


def drawn(vit, images, rate):
    "Gates of each block that are open by chance, prefix tokens always"
    N, P, B = 64 + vit.num_prefix_tokens, vit.num_prefix_tokens, len(images)
    rows = [(torch.rand(B, N) < rate).index_fill(1, torch.arange(P), True) for _ in vit.blocks]
    return [Gates(r, torch.rand(B, 3) < rate, torch.rand(B, 2) < rate) for r in rows]


def rows_of(vit, images): return backbone_of(vit).embed(images)
