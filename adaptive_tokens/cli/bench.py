"""The command `bench`: models side by side on the same images."""
import argparse
import sys
import warnings
from pathlib import Path

from torch import nn

from ..images.by_name import check_reading, find_images, make_backbone, with_fitting_labels
from ..look.page import Picture, Table
from ..measure.benchmark import benchmark
from ..measure.sweep import each_size, plot_sweep
from ..measure.table import three_digits
from ..models.checkpoint import load
from ..models.model import AdaptiveViT, adapt, is_adaptive
from .adapting import calibrate_on, check_budgets, check_form
from .options import BY_NAME, FOLDERS, READING, TIMING, Unset, chosen, command
from .output import print_once, report_benchmark, results

__all__ = ['adapted', 'baseline', 'bench']

CALIBRATED_ON = 256  # images


def baseline(
    args:argparse.Namespace,     # Options backbone and pretrained
    models:dict[str, nn.Module], # Models of --model, by name
) -> tuple[str, nn.Module]:      # Name and dense timm ViT
    "The model that the others are compared with; raises ValueError if none is named"
    if args.backbone: return args.backbone, make_backbone(args.backbone, args.pretrained)
    if not models: raise ValueError('there is no model: name a checkpoint, --model DIR, or timm model, --backbone NAME')
    for name, model in models.items():
        if not is_adaptive(model): return name, model
    first, model = next(iter(models.items()))
    return f'{first}, every token', model.vit


def adapted(
    args:argparse.Namespace, # Options methods, budgets, backbone, and those of the images
    dense:nn.Module,         # Baseline, a timm ViT
) -> dict[str, AdaptiveViT]: # Adaptive models by name; none where nothing asks for them
    "The baseline made adaptive without training; calibrated on images that are not measured, if there are others"
    if not (args.budgets or args.methods or args.backbone): return {}
    models = {}
    for form in args.methods or ['as-vit']:
        for budget in check_budgets(args.budgets or [.65]):
            models[f'{form} {budget:g}'] = adapt(dense, check_form(form), budget)
    reading = dict(batch_size=args.batch_size, **chosen(args, *READING))
    if args.images == 'digits': loader = find_images('digits', dense, 'train', CALIBRATED_ON, **reading)
    else: loader = find_images(args.images, dense, args.split, CALIBRATED_ON, skip=args.n, **reading)
    if not len(loader.dataset):
        warnings.warn(f'{args.images} has no more than {args.n} images: the method is aimed at those that are measured',
                      stacklevel=2)
        loader = find_images(args.images, dense, args.split, args.n, **reading)
    for model in models.values(): calibrate_on(model, loader, args)
    return models


@command(
    'Measure models side by side on the same images: accuracy, multiply-adds, images per second, latency.\n'
    'Models named by --model are measured as they are. With --methods or --budgets, or with --backbone, the\n'
    'baseline is also made adaptive, without training, by each method at each budget.',
    'adaptive-tokens bench --model runs/dense/best runs/as-vit/best',
    'adaptive-tokens bench --backbone deit_tiny_patch16_224 --pretrained --methods as-vit:merge tome '
    '--budgets 0.8 0.65 --images photos/',
    many=('model', 'methods', 'budgets'),
    model=Unset('none'), backbone=Unset('the first dense --model'), pretrained=False,
    methods=Unset('none, or as-vit'), budgets=Unset('none, or 0.65'),
    images='digits', reader=FOLDERS, split='validation', class_map=BY_NAME, n=512,
    native=False, compiled=False, fall_back=False, sweep=False, allow_noise=False,
    batch_size=16, repeats=10, threads=Unset("torch's choice"), workers=0, out=Unset('only the table is printed'))
def bench(
    args:argparse.Namespace, # Parsed options
):
    "Prints the table, and writes it as json and csv, figure and page if asked"
    with results(args.out) as folder:
        models = {where: load(where) for where in args.model or []}
        name, dense = baseline(args, models)
        if args.images != 'digits': check_reading({name: dense, **models})
        reading = dict(batch_size=args.batch_size, **chosen(args, *READING))
        loader = find_images(args.images, dense, args.split, args.n, **reading)
        models = {name: dense, **models, **adapted(args, dense)}
        images, labels = with_fitting_labels(loader, dense.num_classes)
        how = chosen(args, 'native', 'compiled', 'fall_back', 'allow_noise', *TIMING)
        how |= dict(dense=name, progress=sys.stderr.isatty())
        table = benchmark(models, images, labels, **how)
        print_once(table)
        interrupted, more = table.meta['interrupted'], {}
        if args.sweep and not interrupted: more, interrupted = _swept(models, images, how, folder)
        lead = f'Measured on {len(images)} images of {args.images}.'
        if folder: report_benchmark(folder, 'Benchmark', lead, table, **more)
    if args.out: print_once(f"\nThe same as a page: {Path(args.out)/'index.html'}")
    if interrupted: raise KeyboardInterrupt


def _swept(models, images, how, folder):
    "Table and picture of the speed-up at every batch size, and whether control-C came; batch_N.json hold all of it"
    benches, interrupted = {}, False
    how = {key: value for key, value in how.items() if key != 'batch_size'}
    try:
        for size, one in each_size(models, images, out=folder, **how): benches[size] = one
    except KeyboardInterrupt: interrupted = True
    if not benches: return {}, interrupted
    cells = _speedups(benches)
    title = 'Speed-up over dense by batch size'
    print_once(f'\n{title}')
    for line in _aligned(cells): print_once(line)
    picture = Picture(
        'sweep.png', plot_sweep(benches),
        'Two panels, speed-up over dense and images per second, against the batch size, with a line for each model.',
        'The same models from one image to the largest batch.')
    return dict(tables=[Table(title, cells, 'Medians over repeats.')], pictures=[picture]), interrupted


def _speedups(benches):
    "A head, and a row for each model: its speed-up at each batch size"
    cells = [['model', *(f'batch {size}' for size in benches)]]
    for rows in zip(*(one.rows for one in benches.values())):  # rows of one model
        cells.append([rows[0]['name'], *(three_digits(row['speedup']) for row in rows)])
    return cells


def _aligned(cells):
    "Lines of a table in plain text"
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
