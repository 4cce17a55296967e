"Models that several files of tests share."
import timm
import torch


def spread_vit(seed=0, images=6, **kw):
    "A small ViT whose scores are far apart, as they are after training, and images for it"
    torch.manual_seed(seed)
    vit = timm.create_model(**{'model_name': 'vit_tiny_patch16_224', 'img_size': 64, 'patch_size': 8, 'embed_dim': 48,
                               'depth': 12, 'num_heads': 3, 'num_classes': 7, **kw}).eval()
    with torch.no_grad():
        for name, p in vit.named_parameters():  # at initialisation all scores nearly tie
            p.mul_(4. if 'q_norm' in name else 1.5)
    return vit, torch.randn(images, 3, 64, 64)
