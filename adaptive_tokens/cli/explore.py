"""The command `explore`: a page that shows which patches models kept, in which block, by which score."""
import argparse
from itertools import islice

import torch
from timm.data import resolve_model_data_config

from ..backbones.backbone import timm_model
from ..devices import resolve_device, resolve_dtype
from ..images.by_name import check_reading, class_folders, find_images, with_fitting_labels
from ..images.drawing import MEAN, STD
from ..look.explorer import MAX_MODELS
from ..look.explorer import explore as look_into
from ..models.checkpoint import load, shipped
from .options import BY_NAME, FOLDERS, READING, Unset, chosen, command
from .output import check_file, print_once

__all__ = ['explore']


@command(
    'Look into models: which patches they kept in which block of an image, by which score, at which price.\n'
    'Writes one page with up to five models side by side; it works without a network.',
    'adaptive-tokens explore', 'adaptive-tokens explore --images photos/ --model runs/dense/best runs/as-vit/best',
    many=('model',), model=Unset('the shipped ones'),
    images='digits', reader=FOLDERS, split='validation', class_map=BY_NAME, n=12, workers=0, out='explorer.html')
def explore(
    args:argparse.Namespace, # Parsed options
):
    "Writes the page, and prints the first image and block as text"
    out, device, dtype = check_file(args.out), resolve_device(args.device), resolve_dtype(args.dtype)
    if args.model: models = {where: load(where) for where in args.model}
    else: models = dict(islice(shipped().items(), MAX_MODELS))
    vit = timm_model(next(iter(models.values())))
    if args.images != 'digits': check_reading(models)
    loader = find_images(args.images, vit, args.split, args.n, batch_size=args.n, **chosen(args, *READING))
    images, labels = with_fitting_labels(loader, vit.num_classes)
    classes = _class_names(class_folders(loader)) if labels is not None else None
    look = dict(mean=MEAN, std=STD) if args.images == 'digits' else resolve_model_data_config(vit)
    models = {name: model.to(device) for name, model in models.items()}
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        page = look_into(models, images, labels, classes, look['mean'], look['std'])
    page.save(out)
    print_once(f'{page}\n\nOpen {out} in a browser')


def _class_names(folders):
    "Names of the classes in the order of their numbers; None where there are no folders"
    if not folders: return None
    names = {number: name for name, number in folders.items()}
    return [names.get(number, str(number)) for number in range(max(names) + 1)]
