"""The command `train`: a run by a recipe, and at its end the epoch to take."""
import argparse
import sys
from dataclasses import fields

import torch

from ..models.files import staged
from ..training.fit import fit
from ..training.log import plot_log
from ..training.recipe import Recipe
from ..training.resume import best_epoch
from .build import PLAIN, build_run, recipe_from_args
from .options import BY_NAME, FOLDERS, Unset, chosen, command
from .output import check_folder, is_first_process, print_once, unless_empty

__all__ = ['train']


def _numbers():
    "The numbers of a recipe as options: without one, the recipe's own"
    for field in fields(Recipe):
        if field.name in ('method', 'backbone', 'budget', 'options'): continue  # these are described apart
        plain = PLAIN.epochs if field.name == 'epochs' else field.default or 'none'
        yield field.name, Unset(f"the recipe's, or {plain}")


@command(
    'Train a dense model, or make one adaptive by a method and train that.\n'
    'Prints its numbers in full, then writes best/ and last/ (checkpoints with model cards), log.jsonl (one line per\n'
    'epoch), log.png and states/ (to go on from, --resume) into --out.',
    'adaptive-tokens train --method dense --epochs 30 --out runs/dense',
    'adaptive-tokens train --method as-vit --budget 0.65 --init runs/dense/best --lr 3e-4 --out runs/as-vit',
    'adaptive-tokens train --method a-vit --backbone deit_tiny_patch16_224 --pretrained --data photos --lr 1e-5',
    'adaptive-tokens train --recipe as-vit/deit-s-0.65 --pretrained --data imagenet --epochs 10 --resume',
    many=('tracker',),
    recipe=Unset('none: what stands here'), method=Unset("the recipe's, or dense"),
    budget=Unset("the recipe's, or 0.65"), backbone=Unset("the recipe's, or digits"), pretrained=False,
    init=Unset('--backbone, fresh or pretrained'),
    teacher=Unset('the model that training starts from, if it is trained for the classes of the data'),
    classes=Unset('as in the data'),
    data='digits', val_data=Unset('the validation split of --data, if it has one'), reader=FOLDERS, split='train',
    val_split='validation', class_map=BY_NAME, n=Unset('all'), val_n=Unset('all'), unreadable='raise', workers=0,
    **dict(_numbers()),
    resume=False, every=0, compiled=False, tracker=Unset('none'), out=Unset('runs/ and the name of the method'))
def train(
    args:argparse.Namespace, # Parsed options
):
    "Prints the recipe, and at the end the best epoch"
    recipe = recipe_from_args(args)
    out = check_folder(args.out or f"runs/{recipe.method or 'dense'}")
    if (out/'log.jsonl').exists() and not args.resume:
        raise ValueError(f'{out} holds a run already: go on with it (--resume), name another --out, or remove it')
    torch.manual_seed(args.seed)
    model, teacher, loaders = build_run(args, recipe)
    print_once(recipe)
    how = chosen(args, 'device', 'dtype', 'seed', 'resume', 'every', 'compiled')
    with unless_empty(out):
        rows = fit(model, *loaders, recipe, teacher=teacher, out=out, progress=sys.stderr.isatty(),
                   trackers=args.tracker or (), **how)
    if is_first_process():
        with staged(out) as folder: plot_log(rows).savefig(folder/'log.png', dpi=110)
    print_once(_conclusion(rows, getattr(model, 'budget', None), out) + _skipped(loaders))


def _conclusion(rows, budget, out):
    "One line for the epoch to take"
    best = rows[best_epoch(rows, budget)]
    judged = 'not validated'
    if 'top1' in best: judged = f"top-1 {best['top1']:.1f} % at {best['macs_share']:.3f} of the dense multiply-adds"
    return f"epoch {best['epoch']} of {len(rows)}: {judged}; {out/'best'}"


def _skipped(loaders):
    "One more line where images were skipped, with the names of the first"
    names = []
    for loader in loaders:
        data = getattr(loader, 'dataset', None)
        names += getattr(getattr(data, 'dataset', data), 'skipped', ())
    if not names: return ''
    more = ', ...' if len(names) > 5 else ''
    return f"\n{len(names)} images could not be read and were skipped: {', '.join(names[:5])}{more}"
