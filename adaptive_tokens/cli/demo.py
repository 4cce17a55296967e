"""The command `demo`: what the shipped models do with embedded images, in a table and a page."""
import argparse
import sys
from itertools import islice
from pathlib import Path

from ..backbones.backbone import backbone_of
from ..devices import resolve_device
from ..images.digits import ClutteredDigits, normalize
from ..images.drawing import MEAN, STD
from ..look.by_level import by_level, pictures
from ..look.explorer import MAX_MODELS, explore
from ..look.page import Table
from ..measure.benchmark import benchmark
from ..models.checkpoint import shipped
from .options import TIMING, Unset, chosen, command
from .output import print_once, report_benchmark, results

__all__ = ['demo']

TITLE = 'Compute where an image needs it'
LEAD = ('Cluttered Digits: name the one whole digit among fragments of others, under noise. The dense model looks at '
        'every patch in every block; an adaptive one lets patches go on its way. How many, on which images, and what '
        'that is worth in time, is measured here. The network is tiny, 33 million multiply-adds, so that in small '
        'batches bookkeeping eats what it saves; at the size of DeiT-S the saving arrives in full (see the benchmark '
        'notebook).')
MEANS = 'Means over the images of the row. By chance, a patch on the digit and one beside it would run as many blocks.'
LINK = ('<p><a href="explorer.html">Look into the models</a>, patch by patch and block by block, '
        'with twelve of the images.</p>')


@command(
    'Show what the shipped models do: benchmark them on embedded test images (a minute or two on a laptop).\n'
    'Prints the table and writes a page with table and pictures, the pictures, the numbers as json, and the explorer.',
    'adaptive-tokens demo', 'adaptive-tokens demo --n 3000 --repeats 10 --out /tmp/demo',
    n=900, batch_size=16, repeats=5, threads=Unset("torch's choice"), out='demo')
def demo(
    args:argparse.Namespace, # Parsed options
):
    "Writes benchmark.json and .csv, pictures, explorer.html and index.html"
    with results(args.out) as folder:
        models, tables, drawn = shipped(), [], []
        dense = backbone_of(models['dense'])
        digits = ClutteredDigits('test', args.n, None, dense.image_size[0], dense.patch_size[0], args.seed)
        table = benchmark(models, digits, progress=sys.stderr.isatty(), **chosen(args, *TIMING))
        print_once(table)
        if table.meta['interrupted']: raise KeyboardInterrupt
        for name, model in islice(models.items(), 1, None):  # all but the dense one
            cells, tokens, level = by_level(model.to(resolve_device(args.device)), digits, batch_size=64)
            tables.append(Table(f'{name}: what an image gets, by difficulty', cells, MEANS))
            drawn += pictures(name, model, digits, tokens, level)
        dozen = digits.batch(range(min(len(digits), 12)))
        shown = dict(islice(models.items(), MAX_MODELS))
        explore(shown, normalize(dozen.images), dozen.labels, mean=MEAN, std=STD).save(folder/'explorer.html')
        report_benchmark(folder, TITLE, LEAD, table, tables, drawn, LINK)
    print_once(f"\nTable and pictures: open {Path(args.out)/'index.html'} in a browser; "
               'to look into the models, explorer.html')
