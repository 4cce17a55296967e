"A small ViT, thresholds between its scores, and images for it."
import timm

THETA = (.008, .012, .014)


def small(**changes):
    kw = dict(img_size=64, patch_size=8, embed_dim=48, depth=6, num_heads=3, num_classes=7)
    return timm.create_model(**{'model_name': 'vit_tiny_patch16_224', **kw, **changes}).eval()
