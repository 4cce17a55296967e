"""Train on real images: DeiT-Tiny on Caltech-101 by all methods; gates and thresholds on ImageNet without labels.

    python tools/train_real.py --images FOLDER                  # everything on a GPU; reduced where there is none
    python tools/train_real.py --images FOLDER --amount half    # two to three hours on two cores

FOLDER holds caltech101_train.tar, caltech101_test.tar, imagenet_sample_1000.tar, imagenet_val_1300.tar and
imagenet_wnids.txt. Writes benchmarks/real_full.json (or real_half.json, real_reduced.json) with curves, row by row, and
but for reduced the gates and thresholds for ImageNet, which are a few kilobytes, to benchmarks/weights/. Runs are kept
in --out and gone on with if the script is started again.
"""
import argparse
import copy
import json
import os
from functools import partial
from itertools import islice
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import adaptive_tokens as at
from adaptive_tokens.devices import resolve_device
from adaptive_tokens.images.real import image_loader
from adaptive_tokens.measure.provenance import hardware
from adaptive_tokens.measure.statistics import paired
from adaptive_tokens.models.cost import macs
from adaptive_tokens.models.files import write_text
from adaptive_tokens.training.evaluate import judge
from adaptive_tokens.training.fit import fit

ROOT = Path(__file__).resolve().parent.parent
METHODS, BACKBONE = ('as-vit', 'as-vit:merge', 'a-vit', 'adavit'), 'deit_tiny_patch16_224'
# Of Caltech-101: classes, images of each, epochs of the dense model and of all after it, learning rates of both,
# budgets, batches to calibrate on, batches timed. Of ImageNet: budgets, images to tune on and to judge by, epochs.
AMOUNTS = {
    'full': dict(classes=101, per_class=50, test_per_class=25, dense_epochs=5, epochs=5, batch_size=32,
                 rates=(1e-4, 5e-5), budgets=(.65, .5), aim=32, timed=16, tuned=(.65, .5), sample=1000, val=1300,
                 tune_epochs=3),
    'half': dict(classes=101, per_class=15, test_per_class=15, dense_epochs=3, epochs=2, batch_size=16,
                 rates=(2e-4, 1e-4), budgets=(.65, .5), aim=16, timed=8, tuned=(.65,), sample=1000, val=1300,
                 tune_epochs=1),
    'reduced': dict(classes=25, per_class=16, test_per_class=8, dense_epochs=2, epochs=1, batch_size=8,
                    rates=(2e-4, 1e-4), budgets=(.65,), aim=8, timed=2, tuned=(.65,), sample=96, val=200,
                    tune_epochs=1)}
AIMED = 4  # batches of 50 ImageNet images that budgets are met on
OPTIONS = {'a-vit': dict(sigma=3.), 'as-vit:merge': dict(fold='merge')}
# The backbone is frozen: learning rates of thresholds (times .02), shifts, gates.
TUNING = {'as-vit': .01, 'a-vit': .01, 'adavit': 1e-3}


def few_per_class(loader, n, classes, batch_size, training, seed=0):
    "The first n images of each of the first classes of a loader"
    data = loader.dataset
    taken, chosen = {}, []
    for i, label in enumerate(data.data.reader.targets.tolist()):
        taken[label] = taken.get(label, 0) + 1
        if label < classes and taken[label] <= n: chosen.append(i)
    order = torch.Generator().manual_seed(seed)
    return DataLoader(Subset(data, chosen), batch_size, training, num_workers=loader.num_workers, generator=order)


def caltech(args, amounts, vit):
    def read(part, per_class, training):
        loader = image_loader(args.images/f'caltech101_{part}.tar', vit, training=training, num_workers=args.workers)
        return few_per_class(loader, per_class, amounts['classes'], amounts['batch_size'], training)
    return read('train', amounts['per_class'], True), read('test', amounts['test_per_class'], False)


def adapted(vit, form, budget):
    "A method by the word that tables have for it, as in as-vit:merge"
    return at.adapt(copy.deepcopy(vit), form.partition(':')[0], budget, **OPTIONS.get(form, {}))


def answers(model, loader, device):
    "Right or not, and share of the dense multiply-adds, of each image"
    right, _, share = judge(model.to(device), loader, device).cpu().unbind(1)
    return right.bool(), share


def trained(name, model, loaders, args, epochs, teacher, lr):
    "A model after `fit`, and its log; gone on with where an earlier start of the script left it"
    rows = fit(model, *loaders, epochs=epochs, lr=lr, label_smoothing=.1, teacher=teacher,
               out=args.out/name.replace(':', '-'), resume=True, every=20, device=args.device, dtype=args.dtype,
               batch_size=loaders[0].batch_size)
    told = {k: round(rows[-1][k], 3) for k in ('loss', 'train_top1', 'top1', 'macs_share') if k in rows[-1]}
    print(name, told, flush=True)
    return model, rows


def on_caltech(args, amounts, device, store):
    torch.manual_seed(0)
    vit = timm.create_model(BACKBONE, pretrained=True, num_classes=amounts['classes'])
    loaders, (first, later), rows, models = caltech(args, amounts, vit), amounts['rates'], {}, {}
    dense, curve = trained('dense', vit, loaders, args, amounts['dense_epochs'], None, first)
    right = {'dense': answers(dense, loaders[1], device)}
    start = copy.deepcopy(dense)
    control, control_curve = trained('control', copy.deepcopy(start), loaders, args, amounts['epochs'], start, later)
    right['control'] = answers(control, loaders[1], device)
    def note(name, model, curve):
        hits, spent = right[name]
        rows[name] = dict(top1=100 * hits.double().mean().item(), n=len(hits), macs_share=spent.mean().item(),
                          gmacs=spent.mean().item() * macs(dense) / 1e9, curve=curve,
                          over_control=paired(hits, right['control'][0]))
        if name != 'control': models[name] = model.to('cpu')
        store(rows)
    note('dense', dense, curve)
    note('control', control, control_curve)
    for budget in amounts['budgets']:
        for form in ('as-vit', 'as-vit:merge'):  # which may do without training of their own
            name, model = f'{form} {budget:g} on control', adapted(control, form, budget).to(device)
            at.calibrate(model, aim(loaders, device, amounts['aim']))
            right[name] = answers(model, loaders[1], device)
            note(name, model, [])
        for form in METHODS:
            name = f'{form} {budget:g}'
            model, curve = trained(name, adapted(start, form, budget), loaders, args, amounts['epochs'], start, later)
            if model.method.name != 'as-vit': at.calibrate(model.to(device), aim(loaders, device, amounts['aim']))
            right[name] = answers(model, loaders[1], device)
            note(name, model, curve)
    images = torch.cat([x for (x, _), _ in zip(loaders[1], range(amounts['timed']))])
    bench = at.benchmark(models, images, device=args.device, dtype=args.dtype, batch_size=loaders[1].batch_size,
                         repeats=5)
    for row in bench.rows: rows[row['name']] |= dict(speedup=row['speedup'], speedup_iqr=row['speedup_iqr'])
    store(rows)


def aim(loaders, device, n):
    "Training images to meet the budget on, where the losses only steer towards it"
    return [x.to(device) for (x, _), _ in zip(loaders[0], range(n))]


def on_imagenet(args, amounts, device, store):
    "Thresholds and gates, tuned on images without labels towards the dense model's answers, the backbone frozen"
    vit = timm.create_model(BACKBONE, pretrained=True).eval().to(device)
    squash = dict(class_map=str(args.images/'imagenet_wnids.txt'), crop_mode='squash', crop_pct=1.)
    def read(part, n): return list(islice(image_loader(args.images/f'{part}.tar', vit, 50, **squash), -(-n // 50)))
    sample, val = read('imagenet_sample_1000', amounts['sample']), read('imagenet_val_1300', amounts['val'])
    with torch.no_grad(): beliefs = [vit(x.to(device)).softmax(1).cpu() for x, _ in sample]
    aimed = [x.to(device) for x, _ in sample[:AIMED]]
    data = TensorDataset(torch.cat([x for x, _ in sample]), torch.cat(beliefs))
    dense, _ = answers(vit, val, device)
    rows = {'dense': dict(top1=100 * dense.double().mean().item(), n=len(dense))}
    def told(model, **others):
        right, spent = answers(model, val, device)
        over = {f'over_{name}': paired(right, other) for name, other in dict(dense=dense, **others).items()}
        return right, dict(top1=100 * right.double().mean().item(), macs_share=spent.mean().item(), **over)
    for budget in amounts['tuned']:
        for form in TUNING:
            name = f'{form} {budget:g}'
            model = adapted(vit, form, budget).to(device)
            at.calibrate(model, aimed)
            untrained, row = told(model)
            rows[name] = dict(untrained=row)
            print(name, 'untrained', row['top1'], flush=True)
            model.vit.requires_grad_(False)
            if form == 'a-vit': learn_shifts(model.method)
            loader = DataLoader(data, amounts['batch_size'], True, generator=torch.Generator())
            _, curve = trained(f'imagenet {name}', model, (loader, None), args, amounts['tune_epochs'], None,
                               TUNING[form])
            if model.method.name != 'as-vit':  # whose learned thresholds it would replace
                at.calibrate(model, aimed)
            rows[name]['tuned'] = told(model, untrained=untrained)[1] | dict(curve=curve)
            if args.amount != 'reduced': keep_weights(model, name)
            store(rows)


def learn_shifts(method):
    "A-ViT reads a channel of the frozen backbone; what it can learn is where on it the line lies, block by block"
    shifts = method.beta
    del method.beta
    method.beta = nn.Parameter(shifts)


def keep_weights(model, name):
    folder = ROOT/'benchmarks'/'weights'
    folder.mkdir(exist_ok=True)
    name = name.translate(str.maketrans(': ', '--'))
    weights = {k: v.detach().cpu().contiguous() for k, v in model.method.state_dict().items()}
    save_file(weights, folder/f'imagenet-{BACKBONE}-{name}.safetensors')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=Path, default=os.environ.get('ADAPTIVE_TOKENS_IMAGES'),
                        help='folder with the tar files')
    parser.add_argument('--out', type=Path, help='folder for the runs (default: runs/real_AMOUNT)')
    parser.add_argument('--amount', choices=AMOUNTS, help='how much of it (default: full on a GPU, else reduced)')
    parser.add_argument('--parts', nargs='+', default=['caltech', 'imagenet'], choices=['caltech', 'imagenet'])
    parser.add_argument('--device', default='auto')
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--workers', type=int,
                        help='processes that read images (default: one per core but one on a GPU, else 0)')
    args = parser.parse_args()
    if args.images is None or not Path(args.images).is_dir():
        parser.error('give --images, the folder with the tar files')
    args.images, device = Path(args.images), resolve_device(args.device)
    args.amount = args.amount or ('full' if device.type == 'cuda' else 'reduced')
    if args.workers is None: args.workers = (os.cpu_count() or 1) - 1 if device.type == 'cuda' else 0
    args.out = args.out or ROOT/'runs'/f'real_{args.amount}'
    amounts, target = AMOUNTS[args.amount], ROOT/'benchmarks'/f'real_{args.amount}.json'
    stored = json.loads(target.read_text()) if target.exists() else {}
    facts = dict(amounts=amounts, backbone=BACKBONE, dtype=args.dtype, seed=0, hardware=hardware())
    def store(part, rows):
        stored.update(facts | {part: rows})
        write_text(target, json.dumps(stored, indent=1) + '\n')
    for part, run in dict(caltech=on_caltech, imagenet=on_imagenet).items():
        if part not in args.parts: continue
        run(args, amounts, device, partial(store, part))
    print(target)


if __name__ == '__main__': main()
