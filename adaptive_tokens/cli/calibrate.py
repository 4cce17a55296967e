"""The command `calibrate`: the knob of a model is turned until it meets a budget on some images."""
import argparse

from ..images.by_name import find_images, make_backbone
from ..models.checkpoint import load
from ..models.model import adapt, is_adaptive
from .adapting import calibrate_on
from .options import BY_NAME, FOLDERS, READING, Unset, chosen, command
from .output import print_once, results

__all__ = ['calibrate']


@command(
    'Aim a model at a budget without training: its knob is set so that the mean cost on some images is right.\n'
    'A dense checkpoint or timm model is made adaptive first. With --out the result is saved as a checkpoint.',
    'adaptive-tokens calibrate --model runs/dense/best --budget 0.7 --out runs/calibrated',
    'adaptive-tokens calibrate --backbone deit_tiny_patch16_224 --pretrained --images photos/ --out deit-0.65',
    model=Unset('none'), backbone=Unset('none'), pretrained=False,
    method=Unset("an adaptive checkpoint's own, or as-vit"), budget=Unset("an adaptive checkpoint's own, or 0.65"),
    images='digits', reader=FOLDERS, split='train', class_map=BY_NAME, n=256, batch_size=32, workers=0,
    out=Unset('nothing is saved'))
def calibrate(
    args:argparse.Namespace, # Parsed options
):
    "Prints the share that is spent now, and saves the model if asked"
    if bool(args.model) == bool(args.backbone): raise ValueError('name one model: --model DIR, or --backbone NAME')
    with results(args.out) as folder:
        model = _model(args)
        loader = find_images(args.images, model.vit, args.split, args.n, batch_size=args.batch_size,
                             **chosen(args, *READING))
        spent = calibrate_on(model, loader, args, args.budget)
        if folder: model.cpu().save_pretrained(folder)
    saved = f'; saved in {args.out}' if args.out else ''
    print_once(f'{model.method.name} spends {spent:.3f} of the dense multiply-adds on {len(loader.dataset)} images'
               + saved)


def _model(args):
    "The adaptive model that was named, or the dense one made adaptive"
    model = load(args.model) if args.model else make_backbone(args.backbone, args.pretrained)
    if not is_adaptive(model):
        return adapt(model, args.method or 'as-vit', .65 if args.budget is None else args.budget)
    if args.method not in (None, model.method.name, model.method.full_name):
        raise ValueError(f'{args.model} runs {model.method.name}, not {args.method}: leave --method out, '
                         'or name a dense checkpoint')
    return model
