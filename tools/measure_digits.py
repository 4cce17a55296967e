"""Accuracy, multiply-adds and time of the shipped models on Cluttered Digits, at their own budgets and at others.

Thresholds of other budgets come from training images without labels. All models take turns.

    python tools/measure_digits.py
    python tools/measure_digits.py --images 10000 --repeats 20 --out runs/digits_budgets.json

Writes benchmarks/digits_budgets.json, which nbs/look/02_figures.ipynb and nbs/tutorials/which_one.ipynb show. Packed
tables loop over their images in C++, which is compiled first. Let nothing else run meanwhile.
"""
import argparse
import copy
from pathlib import Path

import adaptive_tokens as at
from adaptive_tokens.images.digits import ClutteredDigits, digits_loader
from adaptive_tokens.models.checkpoint import shipped

ROOT = Path(__file__).resolve().parent.parent


def at_budgets(models, budgets, images):
    "The dense model, and every method as it was tuned and calibrated to other budgets"
    made = {'dense': models['dense']}
    for name, model in list(models.items())[1:]:
        for budget in sorted({model.budget, *budgets}):
            made[f'{name} {budget}'] = twin = copy.deepcopy(model)
            if budget != model.budget: at.calibrate(twin, [images], budget)
    return made


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--budgets', type=float, nargs='+', default=[.5, .65, .8])
    p.add_argument('--images', type=int, default=600)
    p.add_argument('--repeats', type=int, default=6)
    p.add_argument('--batch-size', type=int, default=50)
    p.add_argument('--threads', type=int, default=1, help='so small a model gains nothing from more')
    p.add_argument('--out', type=Path, default=ROOT/'benchmarks'/'digits_budgets.json')
    args = p.parse_args()
    models = at_budgets(shipped(), args.budgets, next(iter(digits_loader('train', 256)))[0])
    table = at.benchmark(models, ClutteredDigits('test', size=args.images), batch_size=args.batch_size,
                         repeats=args.repeats, threads=args.threads, native=True)
    if table.meta['interrupted']: raise KeyboardInterrupt
    table.save(args.out)
    print(table)


if __name__ == '__main__': main()
