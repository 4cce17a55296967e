"""Train on real images: DeiT-Tiny on Caltech-101 by all methods, and gates and thresholds on ImageNet images without labels.

    python tools/train_real.py --images FOLDER            # reduced where there is no GPU: about 15 minutes on two cores
    python tools/train_real.py --images FOLDER --full     # everything; minutes on one GPU

FOLDER holds caltech101_train.tar, caltech101_test.tar, imagenet_sample_1000.tar, imagenet_val_1300.tar, imagenet_wnids.txt.
Writes benchmarks/real.json (or real_reduced.json) with curves, and the gates and thresholds for ImageNet, which are a few
kilobytes, to benchmarks/weights/. Runs are kept in --out and gone on with if the script is started again.
"""
import argparse
import copy
import json
import os
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Subset, TensorDataset

import adaptive_tokens as at
from adaptive_tokens.bench import paired
from adaptive_tokens.cost import macs
from adaptive_tokens.data import image_loader
from adaptive_tokens.devices import hardware, resolve_device
from adaptive_tokens.saving import load_dense, write_text
from adaptive_tokens.train import fit

ROOT = Path(__file__).resolve().parent.parent
METHODS, BUDGETS, BACKBONE = ('as-vit', 'a-vit', 'adavit'), (.65, .5), 'deit_tiny_patch16_224'
AMOUNTS = {  # images per class, epochs of the dense model and of all after it, images of ImageNet, batches to aim at budgets by
    'full': dict(per_class=50, test_per_class=25, dense_epochs=5, epochs=5, tune_epochs=3, sample=1000, val=1300, budgets=BUDGETS, aim=32, timed=16),
    'reduced': dict(per_class=4, test_per_class=2, dense_epochs=2, epochs=1, tune_epochs=1, sample=96, val=300, budgets=BUDGETS[:1], aim=3, timed=1)}
OPTIONS = {'a-vit': dict(sigma=3.)}
RATES = {'full': (1e-4, 5e-5), 'reduced': (5e-4, 2e-4)}  # of the dense model and of all after it, per step of 32 images
TUNING = {'as-vit': .01, 'adavit': 1e-3}  # the backbone is frozen, so the rates are those of thresholds (times .02) and gates


def few_per_class(loader, n, batch_size, training, seed=0):
    "The first n images of each class of a loader"
    data = loader.dataset
    taken, chosen = {}, []
    for i, label in enumerate(data.data.reader.targets.tolist()):
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= n: chosen.append(i)
    return DataLoader(Subset(data, chosen), batch_size, training, num_workers=loader.num_workers, generator=torch.Generator().manual_seed(seed))


def caltech(args, amounts, vit):
    read = lambda part, training: image_loader(args.images/f'caltech101_{part}.tar', vit, args.batch_size, training=training,
                                               num_workers=args.workers)
    return (few_per_class(read('train', True), amounts['per_class'], args.batch_size, True),
            few_per_class(read('test', False), amounts['test_per_class'], args.batch_size, False))


@torch.no_grad()
def answers(model, loader, device):
    "Right or not, and share of the dense multiply-adds, of each image"
    model, vit = model.to(device).eval(), getattr(model, 'vit', model)
    right, spent = [], []
    for images, labels in loader:
        adaptive = isinstance(model, at.AdaptiveViT)
        logits, trace = model(images.to(device), return_trace=True) if adaptive else (model(images.to(device)), None)
        right.append(logits.argmax(1).cpu() == labels)
        spent.append(trace.macs.cpu() / macs(vit) if adaptive else torch.ones(len(labels)))
    return torch.cat(right), torch.cat(spent)


def trained(name, model, loaders, args, epochs, teacher, lr):
    "A model after `fit`, and its log; gone on with where an earlier start of the script left it"
    rows = fit(model, *loaders, epochs=epochs, lr=lr, label_smoothing=.1, teacher=teacher, out=args.out/name, resume=True, every=20,
               device=args.device, dtype=args.dtype, batch_size=args.batch_size)
    print(name, {k: round(v, 3) for k, v in rows[-1].items() if k in ('loss', 'train_top1', 'top1', 'macs_share')}, flush=True)
    return model, rows


def on_caltech(args, amounts, device):
    torch.manual_seed(0)
    vit = timm.create_model(BACKBONE, pretrained=True, num_classes=101)
    loaders = caltech(args, amounts, vit)
    dense, curve = trained('dense', vit, loaders, args, amounts['dense_epochs'], None, RATES[args.amount][0])
    runs = {'dense': (dense, curve)}
    start = copy.deepcopy(dense)
    runs['control'] = trained('control', copy.deepcopy(start), loaders, args, amounts['epochs'], start, RATES[args.amount][1])
    for budget in amounts['budgets']:
        for method in METHODS:
            model = at.adapt(copy.deepcopy(start), method, budget, **OPTIONS.get(method, {}))
            name = f'{method} {budget:g}'
            model, curve = trained(name, model, loaders, args, amounts['epochs'], start, RATES[args.amount][1])
            if method != 'as-vit':
                at.calibrate(model.to(device), aim(loaders, device, amounts['aim']))
            runs[name] = model, curve
    said = {name: answers(model, loaders[1], device) for name, (model, _) in runs.items()}
    rows = {name: dict(top1=100 * right.double().mean().item(), n=len(right), macs_share=spent.mean().item(),
                       gmacs=spent.mean().item() * macs(dense) / 1e9, over_control=paired(right, said['control'][0]),
                       curve=runs[name][1]) for name, (right, spent) in said.items()}
    models = {name: model.to('cpu') for name, (model, _) in runs.items() if name != 'control'}
    images = torch.cat([x for (x, _), _ in zip(loaders[1], range(amounts['timed']))])
    bench = at.benchmark(models, images, device=args.device, dtype=args.dtype, batch_size=args.batch_size, repeats=5)
    for row in bench.rows: rows[row['name']] |= dict(speedup=row['speedup'], speedup_iqr=row['speedup_iqr'])
    return rows


def aim(loaders, device, n):
    "Training images to meet the budget on, where the losses only steer towards it"
    return [x.to(device) for (x, _), _ in zip(loaders[0], range(n))]


def on_imagenet(args, amounts, device):
    "Thresholds and gates, tuned on images without labels towards the dense model's answers, the backbone frozen"
    vit = timm.create_model(BACKBONE, pretrained=True).eval().to(device)
    squash = dict(class_map=str(args.images/'imagenet_wnids.txt'), crop_mode='squash', crop_pct=1.)
    read = lambda part, n: [b for b, _ in zip(image_loader(args.images/f'{part}.tar', vit, args.batch_size, **squash), range(-(-n // args.batch_size)))]
    sample, val = read('imagenet_sample_1000', amounts['sample']), read('imagenet_val_1300', amounts['val'])
    with torch.no_grad(): beliefs = [vit(x.to(device)).softmax(1).cpu() for x, _ in sample]
    data = TensorDataset(torch.cat([x for x, _ in sample]), torch.cat(beliefs))
    dense, _ = answers(vit, val, device)
    rows = {'dense': dict(top1=100 * dense.double().mean().item(), n=len(dense))}
    for budget in amounts['budgets']:
        for method in METHODS:
            model = at.adapt(copy.deepcopy(vit), method, budget).to(device)
            at.calibrate(model, [x.to(device) for x, _ in sample])
            untrained, spent = answers(model, val, device)
            row = rows[f'{method} {budget:g}'] = dict(untrained=dict(top1=100 * untrained.double().mean().item(), macs_share=spent.mean().item(),
                                                                     over_dense=paired(untrained, dense)))
            print(f'{method} {budget:g} untrained', row['untrained']['top1'], flush=True)
            if method not in TUNING: continue  # A-ViT reads a channel of the backbone: nothing of its own is left to learn
            model.vit.requires_grad_(False)
            loader = DataLoader(data, args.batch_size, True, generator=torch.Generator())
            _, curve = trained(f'imagenet {method} {budget:g}', model, (loader, None), args, amounts['tune_epochs'], None, TUNING[method])
            at.calibrate(model, [x.to(device) for x, _ in sample])
            tuned, spent = answers(model, val, device)
            row['tuned'] = dict(top1=100 * tuned.double().mean().item(), macs_share=spent.mean().item(), over_dense=paired(tuned, dense),
                                over_untrained=paired(tuned, untrained), curve=curve)
            keep_weights(model, f'{method}-{budget:g}', args)
    return rows


def keep_weights(model, name, args):
    if args.amount == 'reduced': return
    folder = ROOT/'benchmarks'/'weights'
    folder.mkdir(exist_ok=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in model.method.state_dict().items()}, folder/f'imagenet-{BACKBONE}-{name}.safetensors')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=Path, default=os.environ.get('ADAPTIVE_TOKENS_IMAGES'), help='folder with the tar files')
    parser.add_argument('--out', type=Path, default=None, help='folder for the runs (default: runs/real, or runs/real_reduced)')
    parser.add_argument('--full', action='store_true', help='everything, also without a GPU, where it takes hours')
    parser.add_argument('--parts', nargs='+', default=['caltech', 'imagenet'], choices=['caltech', 'imagenet'])
    parser.add_argument('--device', default='auto')
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--workers', type=int, default=0)
    args = parser.parse_args()
    if args.images is None or not Path(args.images).is_dir(): parser.error('give --images, the folder with the tar files')
    args.images, device = Path(args.images), resolve_device(args.device)
    args.amount = 'full' if args.full or device.type == 'cuda' else 'reduced'
    args.out = args.out or ROOT/'runs'/('real' if args.amount == 'full' else 'real_reduced')
    amounts, target = AMOUNTS[args.amount], ROOT/'benchmarks'/('real.json' if args.amount == 'full' else 'real_reduced.json')
    stored = json.loads(target.read_text()) if target.exists() else {}
    for part, run in dict(caltech=on_caltech, imagenet=on_imagenet).items():
        if part in args.parts:
            stored[part] = run(args, amounts, device)
            stored |= dict(amounts=amounts, backbone=BACKBONE, batch_size=args.batch_size, dtype=args.dtype, rates=RATES[args.amount], seed=0, hardware=hardware())
            write_text(target, json.dumps(stored, indent=1) + '\n')
    print(target)


if __name__ == '__main__': main()
