"One model of two blocks for every family of timm's plain Vision Transformers."
import timm
import torch

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


SAMPLES = {'TimmViT': FAMILIES}  # by family: models that tests/backbones/test_conformance_backbones.py asks
