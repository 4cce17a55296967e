"""Train what the package ships: a dense model, AS-ViT, A-ViT and AdaViT on Cluttered Digits, for several seeds.

    python tools/train_checkpoints.py --seeds 0 1 2

Writes adaptive_tokens/checkpoints/ (in half precision, of the seed whose adaptive models do best on training scenes
that no model has seen) and benchmarks/digits.json (all seeds, on test images, which no choice looks at; for the first
seed, what each kind of AdaViT's gates buys).
A model that an earlier run has left in --out is not trained again, so seeds may be trained side by side first.
"""
import argparse
import copy
import json
from itertools import combinations
from pathlib import Path

import torch

import adaptive_tokens as at
from adaptive_tokens.images.digits import ClutteredDigits, digits_loader, digits_vit
from adaptive_tokens.images.drawing import LEVELS
from adaptive_tokens.measure.provenance import hardware
from adaptive_tokens.methods.adavit import KINDS, usage
from adaptive_tokens.methods.avit import budget_depth
from adaptive_tokens.methods.asvit import common_share, rank_stages
from adaptive_tokens.models.checkpoint import load_dense, save_dense
from adaptive_tokens.models.files import write_text
from adaptive_tokens.training.evaluate import evaluate
from adaptive_tokens.training.fit import fit

ROOT = Path(__file__).resolve().parent.parent
ADAPTIVE = {'as-vit': dict(budget=.65, lr=6e-4), 'a-vit': dict(budget=.65, lr=5e-4), 'adavit': dict(budget=.5, lr=5e-4)}
CONTROL_LR = 3e-4  # twice as much ends alike: 96.7 and 96.75 after 20,000 images of seed 0


def dense_run(seed, folder, args):
    "A dense model from scratch, or the one that an earlier run has left in the folder"
    if (folder/'last').is_dir(): return load_dense(folder/'last').eval()
    torch.manual_seed(seed)
    vit = digits_vit()
    loader = digits_loader('train', 128, seed=seed, size=args.size)
    fit(vit, loader, epochs=args.epochs, lr=2e-3, out=folder, seed=seed)
    return vit.eval()


def unlabelled():
    "Training images of other scenes, to choose stages and to aim at budgets by"
    return digits_loader('train', 128, size=512, image_seed=1, shuffle=False)


def choose_stages(dense, budget, least=.3, most=.45):
    """The pair of stages after which the untrained model stays closest to the dense one, on scenes of another seed.

    Pairs that end with more than a share `most` of the patches are left out: they hardly tell digit from clutter. So
    are those that end with fewer than `least`: they drop late and hard, which hurts little at first and is not made
    good by training."""
    images = [x for x, _ in unlabelled()]
    pairs = [dict(places=p, ramp=r) for p in combinations(range(2, 9), 2) for r in (1., 2.5)]
    ends = [common_share(dense, pair['places'], budget, pair['ramp'])**(1 + pair['ramp']) for pair in pairs]
    return rank_stages(dense, images, [pair for pair, end in zip(pairs, ends) if least <= end <= most], budget)[0][1]


def method_options(name, dense, args):
    "Options beside the budget; at budget 1 AS-ViT needs none"
    if name == 'adavit': return {}
    if name == 'a-vit': return dict(sigma=3.)  # wide, so that tokens may differ in depth
    return dict(budget_weight=args.budget_weight, **choose_stages(dense, ADAPTIVE[name]['budget']))


def tuned_run(name, dense, seed, folder, size, lr, **options):
    "Fine-tune a copy of a dense model, which is its teacher; calibrate methods whose losses only steer the cost"
    if not (folder/'last').is_dir():
        model = at.adapt(copy.deepcopy(dense), name, **options)
        loader = digits_loader('train', 128, seed=100 + seed, size=size)
        fit(model, loader, epochs=1, lr=lr, teacher=dense, out=folder, seed=seed)
    model = at.AdaptiveViT.from_pretrained(folder/'last')
    if name != 'as-vit': at.calibrate(model, unlabelled())
    return model


def mean_over(values, where): return (values * where).sum(1) / where.sum(1)


@torch.inference_mode()
def on_evidence(model, n=3000):
    "Blocks per patch by level, on the digit and beside it, and what of each the last block still sees"
    data, rows = ClutteredDigits('test', size=n), []
    for start in range(0, n, 250):
        index = range(start, min(start + 250, n))
        b, batch = data.batch(index), torch.stack([x for x, _ in data.__getitems__(index)])
        trace = model(batch, return_trace=True)[1]
        depth, last, on = trace.depth[:, 1:].float(), trace.active[:, -1, 1:].float(), b.evidence
        rows.append(torch.stack([depth.mean(1), mean_over(depth, on), mean_over(depth, ~on), mean_over(last, on),
                                 last.mean(1), trace.depth.float().mean(1)]))
    blocks, on, beside, kept, chance, all_tokens = torch.cat(rows, 1)
    levels = torch.arange(n) % len(LEVELS)
    return dict(evidence_kept=kept.mean().item(), kept_by_chance=chance.mean().item(),
                blocks_on_evidence=on.mean().item(), blocks_beside=beside.mean().item(),
                blocks_by_chance=blocks.mean().item(), blocks_per_token=all_tokens.mean().item(),
                blocks_per_patch={name: blocks[levels == v].mean().item() for v, name in enumerate(LEVELS)})


@torch.inference_mode()
def gates_open(model, n=3000):
    "Usage of each kind of gate on test images, and what it was trained towards"
    means = []
    for images, _ in digits_loader('test', 250, size=n, shuffle=False):
        means.append(usage(model.method, model(images, return_trace=True)[1], model.vit))
    used = {kind: torch.stack([m[kind] for m in means]).mean().item() for kind in means[0]}
    return dict(usage=used, targets=model.method.targets)


def ablation(dense, seed, folder, size, budget=.8):
    "AdaViT with gates of one kind, and of all, at one budget: without training, and tuned for as long each"
    rows, test = [], digits_loader('test', 250, size=3000)
    for kinds in (*((kind,) for kind in KINDS), KINDS):
        start = at.adapt(dense, 'adavit', budget, kinds=kinds)
        at.calibrate(start, unlabelled())
        where = folder/f'adavit-{"-".join(kinds)}-{seed}'
        tuned = tuned_run('adavit', dense, seed, where, size, ADAPTIVE['adavit']['lr'], budget=budget, kinds=kinds)
        measured = {name: evaluate(model, test) for name, model in dict(start=start, tuned=tuned).items()}
        rows.append(dict(kinds=list(kinds), **measured, **gates_open(tuned)))
    return dict(budget=budget, size=size, seed=seed, rows=rows)


def one_seed(seed, args, folder):
    models = {'dense': dense_run(seed, folder/f'dense-{seed}', args)}
    for name, how in ADAPTIVE.items():
        where = folder/f'{name}-{seed}'
        options = {} if (where/'last').is_dir() else method_options(name, models['dense'], args)
        models[name] = tuned_run(name, models['dense'], seed, where, args.tune_size, **how, **options)
    if args.control:
        where = folder/f'control-{seed}'
        models['dense, tuned as long'] = tuned_run('as-vit', models['dense'], seed, where, args.tune_size, CONTROL_LR,
                                                   budget=1.)
    test, unseen = digits_loader('test', 250), digits_loader('train', 250, shuffle=False, size=4000, image_seed=7)
    row = {name: evaluate(model, test, progress=True) for name, model in models.items()}
    for name, model in models.items(): row[name]['top1_training_digits_unseen_scenes'] = evaluate(model, unseen)['top1']
    for name in ADAPTIVE: row[name] |= on_evidence(models[name]) | models[name].method.options()
    row['as-vit']['theta'] = models['as-vit'].method.theta.tolist()
    row['a-vit'] |= dict(beta=models['a-vit'].method.beta.tolist(),
                         target_depth=budget_depth(models['dense'], models['a-vit'].budget))
    row['adavit'] |= gates_open(models['adavit'])
    return models, dict(seed=seed, **row)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--size', type=int, default=60_000, help='training images of an epoch')
    p.add_argument('--epochs', type=int, default=3, help='epochs of the dense model')
    p.add_argument('--tune-size', type=int, default=80_000, help='training images of the fine-tuning epoch')
    p.add_argument('--budget-weight', type=float, default=1., help='of the budget loss while fine-tuning')
    p.add_argument('--ablation-size', type=int, default=10_000, help='training images of each row of the ablation')
    p.add_argument('--control', action='store_true', help='also tune the dense model as long as AS-ViT')
    p.add_argument('--out', type=Path, default=ROOT/'runs'/'digits', help='folder of logs and full checkpoints')
    args = p.parse_args()
    runs = {seed: one_seed(seed, args, args.out) for seed in sorted(args.seeds)}  # models, row of results
    def unseen(seed): return sum(runs[seed][1][name]['top1_training_digits_unseen_scenes'] for name in ADAPTIVE)
    shipped = max(runs, key=unseen)
    models = runs[shipped][0]
    recipe = {k: v for k, v in vars(args).items() if k not in ('out', 'seeds')} | dict(adaptive=ADAPTIVE)
    first = min(runs)
    what_gates_buy = ablation(runs[first][0]['dense'], first, args.out, args.ablation_size)
    table = dict(recipe=recipe, hardware=hardware(), shipped=shipped, ablation=what_gates_buy,
                 results=[row for _, row in runs.values()])
    write_text(ROOT/'benchmarks'/'digits.json', json.dumps(table, indent=1) + '\n')
    save_dense(models['dense'].half(), ROOT/'adaptive_tokens'/'checkpoints'/'dense')
    for name in ADAPTIVE: models[name].half().save_pretrained(ROOT/'adaptive_tokens'/'checkpoints'/name)


if __name__ == '__main__': main()
