"""Accuracy against multiply-adds without training: DeiT-Tiny on real images, adaptive forms and fixed-rate baselines.

    HF_HOME=... ADAPTIVE_TOKENS_IMAGES=FOLDER python tools/measure_merging.py
    python tools/measure_merging.py --images FOLDER --methods tome as-vit:merge --gmacs 0.85 --out runs/merging.json

FOLDER holds imagenet_val_1300.tar (evaluated), imagenet_sample_1000.tar (sets the thresholds) and imagenet_wnids.txt.
Writes merging.json, which nbs/tutorials/baselines.ipynb shows. Each row is written when it is finished, and a second
call continues where the first was stopped; delete the file to begin anew.
"""
import argparse
import json
import os
from datetime import datetime, timezone
from pathlib import Path

import timm
import torch

import adaptive_tokens as at
from adaptive_tokens.backbones.backbone import timm_model
from adaptive_tokens.measure.benchmark import count_and_answer
from adaptive_tokens.measure.provenance import hardware
from adaptive_tokens.measure.statistics import paired
from adaptive_tokens.models.cost import head_macs
from adaptive_tokens.models.files import write_text

ROOT = Path(__file__).resolve().parent.parent
BACKBONE, SEED = 'deit_tiny_patch16_224', 0
METHODS = ['as-vit:merge', 'tome', 'as-vit', 'evit', 'fixed-rate', 'as-vit:fuse', 'random', 'lowest']


def load(vit, folder, name, step=1):
    "All images of a tar, squashed to the backbone's size, in batches of 50; every step-th one where not all are wanted"
    reader = at.image_loader(f'{folder}/{name}.tar', vit, 50, class_map=f'{folder}/imagenet_wnids.txt',
                             crop_mode='squash', crop_pct=1.)
    images, labels = (torch.cat(z)[::step] for z in zip(*reader))
    return list(zip(images.split(50), labels.split(50)))


@torch.no_grad()
def answers(model, batches):
    "Which answers are right, and the GMACs of each image without the classifier"
    images, labels = zip(*batches)
    spent, guess = count_and_answer(model, images)
    return guess == torch.cat(labels), (spent - head_macs(timm_model(model))) / 1e9


def adapted(vit, name, gmacs, calibration):
    "A method at a cost, its thresholds from the calibration images"
    model = at.adapt(vit, name).eval()
    at.calibrate(model, calibration, (1e9 * gmacs + head_macs(vit)) / at.macs(vit))
    return model


def row_of(name, gmacs, model, batches, right_of):
    "One row of the table, and what was right"
    right, spent = answers(model, batches)
    row = dict(name=name, method=model.method.name, target=gmacs, gmacs=spent.mean().item(),
               gmacs_std=spent.std(correction=0).item(), top1=100 * right.double().mean().item(),
               over_dense=paired(right, right_of['dense']))
    return row, right


def beside_tome(row, right_of):
    "The row with its difference from token merging at the same cost, where that is measured"
    mine, tome = (right_of.get(f'{name} {row["target"]}') for name in (row['name'], 'tome'))
    return row if tome is None or row['name'] == 'tome' else row | dict(over_tome=paired(mine, tome))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--images', default=os.environ.get('ADAPTIVE_TOKENS_IMAGES'),
                   help='folder of the tars; default: $ADAPTIVE_TOKENS_IMAGES')
    p.add_argument('--methods', nargs='+', default=METHODS)
    p.add_argument('--gmacs', nargs='+', type=float, default=[1., .85, .73, .62], help='blocks and patch embedding')
    p.add_argument('--step', type=int, default=1, help='thresholds from every n-th of the 1,000 images')
    p.add_argument('--out', type=Path, default=ROOT/'benchmarks'/'merging.json')
    args = p.parse_args()
    if not args.images: p.error('name the folder of images by --images or ADAPTIVE_TOKENS_IMAGES')
    vit = timm.create_model(BACKBONE, pretrained=True).eval()
    batches = load(vit, args.images, 'imagenet_val_1300')
    calibration = [x for x, _ in load(vit, args.images, 'imagenet_sample_1000', args.step)]
    table = json.loads(args.out.read_text()) if args.out.exists() else dict(rows=[], right={})
    right_of = {k: torch.tensor([int(c) for c in v]).bool() for k, v in table['right'].items()}
    if 'dense' not in right_of: right_of['dense'] = answers(vit, batches)[0]
    dense = dict(name='dense', method='dense', gmacs=(at.macs(vit) - head_macs(vit)) / 1e9,
                 top1=100 * right_of['dense'].double().mean().item())
    meta = dict(backbone=BACKBONE, weights='DeiT-Tiny (community dump)', n=len(right_of['dense']), seed=SEED,
                calibration=sum(map(len, calibration)))
    for name in args.methods:
        for gmacs in args.gmacs:
            key = f'{name} {gmacs}'
            if key in right_of: continue
            try: model = adapted(vit, name, gmacs, calibration)
            except ValueError as e:
                print(key, e)
                continue
            row, right_of[key] = row_of(name, gmacs, model, batches, right_of)
            now = datetime.now(timezone.utc).isoformat(timespec='seconds')
            table = dict(meta=dict(meta, date=now, **hardware()), dense=dense,
                         rows=[beside_tome(r, right_of) for r in (*table['rows'], row)],
                         right={k: ''.join(str(int(r)) for r in v) for k, v in right_of.items()})
            write_text(args.out, json.dumps(table, indent=1) + '\n')
            over = row['over_dense']
            print(f"{key}: {row['gmacs']:.3f} GMACs, {row['top1']:.2f} %, "
                  f"over dense {over['mean']:+.2f} ± {over['error']:.2f}", flush=True)


if __name__ == '__main__': main()
