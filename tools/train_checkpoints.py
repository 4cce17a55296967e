"""Train what the package ships: a dense model, AS-ViT and A-ViT on Cluttered Digits, for several seeds.

    python tools/train_checkpoints.py --seeds 0 1 2

Writes adaptive_tokens/checkpoints/ (in half precision, of the seed whose adaptive models do best on training scenes that no
model has seen) and benchmarks/digits.json (all seeds, on test images, which no choice looks at).
A model that an earlier run has left in --out is not trained again, so seeds may be trained side by side first.
"""
import argparse
import copy
import json
import os
from itertools import combinations
from pathlib import Path

import torch

import adaptive_tokens as at
from adaptive_tokens.data import LEVELS, ClutteredDigits, digits_loader, digits_vit
from adaptive_tokens.devices import hardware
from adaptive_tokens.halting import budget_depth
from adaptive_tokens.pruning import common_share, rank_stages
from adaptive_tokens.train import evaluate, fit, load_dense, save_dense

ROOT = Path(__file__).resolve().parent.parent
ADAPTIVE = {'as-vit': 3e-4, 'a-vit': 5e-4}  # learning rate of the fine-tuning


def dense_run(seed, folder, args):
    "A dense model from scratch, or the one that an earlier run has left in the folder"
    if (folder/'last').is_dir(): return load_dense(folder/'last').eval()
    torch.manual_seed(seed)
    vit = digits_vit()
    loader = digits_loader('train', 128, seed=seed, size=args.size)
    fit(vit, loader, epochs=args.epochs, lr=2e-3, out=folder, seed=seed)
    return vit.eval()


def choose_stages(dense, budget, most=.45, n=512):
    """The pair of stages after which the untrained model stays closest to the dense one, on training scenes of another seed.
    Pairs that end with more than a share `most` of the patches are left out: they hardly tell digit from clutter."""
    images = [x for x, _ in digits_loader('train', 128, size=n, image_seed=1, shuffle=False)]
    pairs = [dict(places=p, ramp=r) for p in combinations(range(2, 9), 2) for r in (1., 2.5)]
    ends = [common_share(dense, pair['places'], budget, pair['ramp'])**(1 + pair['ramp']) for pair in pairs]
    return rank_stages(dense, images, [pair for pair, end in zip(pairs, ends) if end <= most], budget)[0][1]


def method_options(name, dense, args):
    "Options beside the budget; at budget 1 AS-ViT needs none"
    if name == 'a-vit': return dict(sigma=3.)  # wide, so that tokens may differ in depth
    return dict(budget_weight=args.budget_weight, **choose_stages(dense, args.budget))


def tuned_run(name, dense, seed, folder, args, **options):
    "Fine-tune a copy of a dense model by a method, taught by the dense model; aim A-ViT, whose prior only steers the cost"
    if not (folder/'last').is_dir():
        model = at.adapt(copy.deepcopy(dense), name, **options)
        loader = digits_loader('train', 128, seed=100 + seed, size=args.tune_size)
        fit(model, loader, epochs=1, lr=ADAPTIVE[name], teacher=dense, out=folder, seed=seed)
    model = at.AdaptiveViT.from_pretrained(folder/'last')
    if name == 'a-vit': at.calibrate(model, digits_loader('train', 128, size=512, image_seed=1, shuffle=False))
    return model


@torch.inference_mode()
def on_evidence(model, n=3000):
    "Blocks per patch by level, on the digit and beside it, and what of each the last block still sees"
    data, rows = ClutteredDigits('test', size=n), []
    for start in range(0, n, 250):
        index = range(start, min(start + 250, n))
        b, batch = data.batch(index), torch.stack([x for x, _ in data.__getitems__(index)])
        trace = model(batch, return_trace=True)[1]
        depth, last, on = trace.depth[:, 1:].float(), trace.active[:, -1, 1:].float(), b.evidence
        mean_over = lambda values, where: (values * where).sum(1) / where.sum(1)
        rows.append(torch.stack([depth.mean(1), mean_over(depth, on), mean_over(depth, ~on), mean_over(last, on), last.mean(1),
                                 trace.depth.float().mean(1)]))
    blocks, on, beside, kept, chance, all_tokens = torch.cat(rows, 1)
    levels = torch.arange(n) % len(LEVELS)
    return dict(evidence_kept=kept.mean().item(), kept_by_chance=chance.mean().item(), blocks_on_evidence=on.mean().item(),
                blocks_beside=beside.mean().item(), blocks_by_chance=blocks.mean().item(),
                blocks_per_token=all_tokens.mean().item(),
                blocks_per_patch={name: blocks[levels == v].mean().item() for v, name in enumerate(LEVELS)})


def one_seed(seed, args, folder):
    models = {'dense': dense_run(seed, folder/f'dense-{seed}', args)}
    for name in ADAPTIVE:
        where = folder/f'{name}-{seed}'
        options = {} if (where/'last').is_dir() else method_options(name, models['dense'], args)
        models[name] = tuned_run(name, models['dense'], seed, where, args, budget=args.budget, **options)
    if args.control:
        models['dense, tuned as long'] = tuned_run('as-vit', models['dense'], seed, folder/f'control-{seed}', args, budget=1.)
    test, unseen = digits_loader('test', 250), digits_loader('train', 250, shuffle=False, size=4000, image_seed=7)
    row = {name: evaluate(model, test, progress=True) for name, model in models.items()}
    for name, model in models.items(): row[name]['top1_training_digits_unseen_scenes'] = evaluate(model, unseen)['top1']
    for name in ADAPTIVE: row[name] |= on_evidence(models[name]) | models[name].method.options()
    row['as-vit']['theta'] = models['as-vit'].method.theta.tolist()
    row['a-vit'] |= dict(beta=models['a-vit'].method.beta.tolist(), target_depth=budget_depth(models['dense'], args.budget))
    return models, dict(seed=seed, **row)


def write_json(path, value):
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix('.new')
    fresh.write_text(json.dumps(value, indent=1) + '\n')
    os.replace(fresh, path)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--size', type=int, default=60_000, help='training images of an epoch')
    p.add_argument('--epochs', type=int, default=3, help='epochs of the dense model')
    p.add_argument('--tune-size', type=int, default=80_000, help='training images of the fine-tuning epoch')
    p.add_argument('--budget-weight', type=float, default=1., help='of the budget loss while fine-tuning')
    p.add_argument('--budget', type=float, default=.65)
    p.add_argument('--control', action='store_true', help='also tune the dense model as long as AS-ViT')
    p.add_argument('--out', type=Path, default=ROOT/'runs'/'digits', help='folder of logs and full checkpoints')
    args, results = p.parse_args(), []
    for seed in args.seeds:
        models, row = one_seed(seed, args, args.out)
        results = sorted([*results, row], key=lambda r: r['seed'])
        recipe = {k: v for k, v in vars(args).items() if k not in ('out', 'seeds')} | dict(tune_lr=ADAPTIVE)
        shipped = max(results, key=lambda r: sum(r[name]['top1_training_digits_unseen_scenes'] for name in ADAPTIVE))['seed']
        write_json(ROOT/'benchmarks'/'digits.json',
                   dict(recipe=recipe, hardware=hardware(), shipped=shipped, results=results))
        if shipped == seed:
            save_dense(models['dense'].half(), ROOT/'adaptive_tokens'/'checkpoints'/'dense')
            for name in ADAPTIVE: models[name].half().save_pretrained(ROOT/'adaptive_tokens'/'checkpoints'/name)
        print(json.dumps(row, indent=1))


if __name__ == '__main__': main()
