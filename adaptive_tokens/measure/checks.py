"""Models and images that can be compared: a benchmark that runs for minutes should fail in its first second."""
from torch import nn, Tensor

from ..backbones.backbone import check_backbone, check_images, timm_model
from ..models.model import is_adaptive

__all__ = []


def check_models(
    models:dict[str, nn.Module], # Models by name
    dense:str,                   # Name of the baseline
):
    "Raise ValueError, naming the model, where a comparison would mean nothing"
    if not models:
        raise ValueError("there are no models to compare: give a dict such as {'dense': vit, 'as-vit': model}")
    if dense not in models:
        raise ValueError(f'no model is called {dense!r}, which dense= names as the baseline; there are {list(models)}')
    if is_adaptive(models[dense]):
        raise ValueError(f'the baseline {dense!r} is adaptive: give the timm model that it wraps, its .vit')
    for model in models.values(): check_backbone(timm_model(model))
    classes = {name: model.num_classes for name, model in models.items()}
    if len(set(classes.values())) > 1: raise ValueError(f'models differ in their number of classes: {classes}')
    if not all(block.attn.fused_attn for block in models[dense].blocks):
        raise ValueError(f'the baseline {dense!r} runs without fused attention, which flatters every other model: '
                         'call timm.layers.set_fused_attn(True) before it is created')


def check_data(
    models:dict[str, nn.Module], # Models by name
    images:Tensor,               # Images [n, C, height, width]
    labels:Tensor|None,          # Class of each image [n]
):
    "Raise ValueError for images that a model cannot take and for labels that do not fit"
    for model in models.values(): check_images(model, images)
    if labels is None: return
    if labels.shape != images.shape[:1]:
        raise ValueError(f'labels have shape {list(labels.shape)} for {len(images)} images: '
                         'give one class number per image')
    classes = next(iter(models.values())).num_classes
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f'labels go from {labels.min()} to {labels.max()}; the models have classes 0 to {classes - 1}')
