"""What do recipe and options make of a training run: its numbers, model, teacher and images?"""
import argparse
import os
from dataclasses import fields
from pathlib import Path

from torch import nn
from torch.utils.data import DataLoader

from ..errors import unknown_name
from ..images.by_name import class_folders, classes_in, find_images, make_backbone
from ..images.real import EVAL_SPLITS
from ..models.checkpoint import load_dense
from ..models.method import known_methods
from ..models.model import adapt
from ..training.recipe import Recipe, load_recipe
from .options import READING, chosen

__all__ = ['build_run', 'recipe_from_args']

PLAIN = Recipe(epochs=10, budget=.65, backbone='digits')  # what no recipe and no option says otherwise


def recipe_from_args(
    args:argparse.Namespace, # Options of `train`
) -> Recipe:                 # Recipe that was named, or the plain one, with what was given beside it
    "Raises ValueError, before anything is read, for a recipe, method or number that does not exist"
    methods = ('dense', *known_methods())
    if args.method not in (None, *methods): raise unknown_name('method', args.method, methods)
    given = {f.name: getattr(args, f.name) for f in fields(Recipe) if getattr(args, f.name, None) is not None}
    if args.method == 'dense': given['method'] = ''
    if args.init:
        for name in ('backbone', 'pretrained', 'drop_path'):
            if not getattr(args, name): continue
            raise ValueError(f"--init {args.init} brings its own backbone: leave --{name.replace('_', '-')} out")
        given |= dict(backbone='', drop_path=0.)
    return load_recipe(args.recipe, PLAIN, **given)


def build_run(
    args:argparse.Namespace, # Options of `train`
    recipe:Recipe,           # Recipe of the run
) -> tuple[nn.Module, nn.Module|None, tuple]: # Model; teacher, if any; loaders to train and, if any, to validate on
    "Everything that `fit` wants; raises ValueError for a backbone that does not exist before images are read"
    vit = _backbone(args, recipe)
    how = dict(batch_size=_per_process(recipe.batch_size), unreadable=args.unreadable, **chosen(args, *READING))
    augment = dict(auto_augment=recipe.augment or None, re_prob=recipe.erase or None)
    train = find_images(args.data, vit, args.split, args.n, training=True, **how, **augment)
    classes = args.classes or classes_in(train) or vit.num_classes
    answers = bool(args.init or args.pretrained) and classes == vit.num_classes
    if classes != vit.num_classes: vit.reset_classifier(classes)
    model = adapt(vit, recipe.method, recipe.budget, **recipe.options) if recipe.method else vit
    teacher = _teacher(args, vit if recipe.method and answers else None)
    validation = _validation(args, vit, how)
    _check_same_classes(train, validation)
    return model, teacher, (train, validation)


def _backbone(args, recipe):
    "The dense model that training starts from"
    if args.init: return load_dense(args.init)
    drop_path = dict(drop_path_rate=recipe.drop_path) if recipe.drop_path else {}
    return make_backbone(recipe.backbone or 'digits', args.pretrained, **drop_path)


def _per_process(batch_size):
    "Batch size of each process; ValueError for a batch that cannot be shared out"
    processes = int(os.environ.get('WORLD_SIZE', 1))
    if batch_size % processes:
        right = -(-batch_size // processes) * processes
        raise ValueError(f'batch size {batch_size} cannot be shared among {processes} processes: {right} can')
    return batch_size // processes


def _teacher(args, start):
    "The model whose answers are imitated: the one that was named, or else the one that training starts from, if any"
    if args.teacher is None: return start
    return None if args.teacher == 'none' else load_dense(args.teacher)


def _validation(args, vit, how):
    "Loader of the images to validate on; None where --data has no folder for them and nothing else is named"
    root = args.val_data
    if not root and _holds_validation(args): root = args.data
    if root: return find_images(root, vit, args.val_split, args.val_n, **how)
    if args.val_split in EVAL_SPLITS: return None
    raise ValueError(f'{args.data} has no folder {args.val_split!r} to validate on: give its name, --val-split, '
                     'or another place, --val-data')


def _holds_validation(args):
    "Whether images to validate on are expected in --data"
    if args.data == 'digits' or args.reader: return True
    return any((Path(args.data)/split).is_dir() for split in (args.val_split, *EVAL_SPLITS))


def _check_same_classes(train:DataLoader, validation:DataLoader|None):
    "Raise ValueError where images to validate on count a class folder otherwise than those to train on"
    if validation is None: return
    numbers = class_folders(train)
    for name, number in class_folders(validation).items():
        if not numbers or numbers.get(name) == number: continue
        raise ValueError(f'class folder {name!r} is number {number} of the images to validate on and '
                         f'{numbers.get(name, "none")} of those to train on: make the folders the same, or give the '
                         'order of the classes, --class-map FILE')
