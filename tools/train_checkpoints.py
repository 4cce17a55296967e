"""Train what the package ships: a dense model and AS-ViT on Cluttered Digits, for several seeds.

    python tools/train_checkpoints.py --seeds 0 1 2

Writes adaptive_tokens/checkpoints/ (in half precision, of the seed whose AS-ViT does best on training scenes that no model
has seen) and benchmarks/digits.json (all seeds, on test images, which no choice looks at).
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
from adaptive_tokens.pruning import rank_stages
from adaptive_tokens.train import evaluate, fit, load_dense, save_dense

ROOT = Path(__file__).resolve().parent.parent


def dense_run(seed, folder, args):
    "A dense model from scratch, or the one that an earlier run has left in the folder"
    if (folder/'last').is_dir(): return load_dense(folder/'last').eval()
    torch.manual_seed(seed)
    vit = digits_vit()
    loader = digits_loader('train', 128, seed=seed, size=args.size)
    fit(vit, loader, epochs=args.epochs, lr=2e-3, out=folder, seed=seed)
    return vit.eval()


def choose_stages(dense, budget, n=512):
    "The pair of stages after which the untrained model stays closest to the dense one, on training scenes of another seed"
    images = [x for x, _ in digits_loader('train', 128, size=n, image_seed=1, shuffle=False)]
    pairs = [dict(places=p, ramp=r) for p in combinations(range(2, 9), 2) for r in (1., 2.5)]
    return rank_stages(dense, images, pairs, budget)[0][1]


def tuned_run(dense, budget, seed, folder, args):
    "Fine-tune a copy of a dense model as AS-ViT, taught by the dense model; at budget 1 that is the dense control"
    if (folder/'last').is_dir(): return at.AdaptiveViT.from_pretrained(folder/'last')
    stages = choose_stages(dense, budget) if budget < 1 else {}
    model = at.adapt(copy.deepcopy(dense), 'as-vit', budget=budget, budget_weight=args.budget_weight, **stages)
    loader = digits_loader('train', 128, seed=100 + seed, size=args.tune_size)
    fit(model, loader, epochs=1, lr=args.tune_lr, teacher=dense, out=folder, seed=seed)
    return model.eval()


@torch.inference_mode()
def on_evidence(model, n=3000):
    "Tokens kept by level, and how often the last stage keeps tokens on evidence compared with tokens at large"
    data, kept, on, base = ClutteredDigits('test', size=n), [], [], []
    for start in range(0, n, 250):
        b = data.batch(range(start, min(start + 250, n)))
        batch = torch.stack([x for x, _ in data.__getitems__(range(start, min(start + 250, n)))])
        trace = model(batch, return_trace=True)[1]
        last = trace.active[:, -1, 1:]
        on.append((last & b.evidence).sum(1) / b.evidence.sum(1))
        base.append(last.float().mean(1))
        kept.append(trace.depth[:, 1:].float().mean(1))
    kept, levels = torch.cat(kept), torch.arange(n) % len(LEVELS)
    return dict(evidence_kept=torch.cat(on).mean().item(), kept_by_chance=torch.cat(base).mean().item(),
                blocks_per_patch={name: kept[levels == v].mean().item() for v, name in enumerate(LEVELS)})


def one_seed(seed, args, folder):
    dense = dense_run(seed, folder/f'dense-{seed}', args)
    adaptive = tuned_run(dense, args.budget, seed, folder/f'as-vit-{seed}', args)
    rows = {'dense': dense, 'as-vit': adaptive}
    if args.control: rows['dense, tuned as long'] = tuned_run(dense, 1., seed, folder/f'control-{seed}', args)
    test, unseen = digits_loader('test', 250), digits_loader('train', 250, shuffle=False, size=4000, image_seed=7)
    row = {name: evaluate(model, test, progress=True) for name, model in rows.items()}
    for name, model in rows.items(): row[name]['top1_training_digits_unseen_scenes'] = evaluate(model, unseen)['top1']
    row['as-vit'] |= on_evidence(adaptive) | adaptive.method.options() | dict(theta=adaptive.method.theta.tolist())
    return dense, adaptive, dict(seed=seed, **row)


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
    p.add_argument('--tune-lr', type=float, default=3e-4)
    p.add_argument('--budget-weight', type=float, default=1., help='of the budget loss while fine-tuning')
    p.add_argument('--budget', type=float, default=.65)
    p.add_argument('--control', action='store_true', help='also tune the dense model as long as AS-ViT')
    p.add_argument('--out', type=Path, default=ROOT/'runs'/'digits', help='folder of logs and full checkpoints')
    args, results = p.parse_args(), []
    for seed in args.seeds:
        dense, adaptive, row = one_seed(seed, args, args.out)
        results.append(row)
        recipe = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != 'out'}
        shipped = max(results, key=lambda r: r['as-vit']['top1_training_digits_unseen_scenes'])['seed']
        write_json(ROOT/'benchmarks'/'digits.json',
                   dict(recipe=recipe, hardware=hardware(), shipped=shipped, results=results))
        if shipped == seed:
            save_dense(dense.half(), ROOT/'adaptive_tokens'/'checkpoints'/'dense')
            adaptive.half().save_pretrained(ROOT/'adaptive_tokens'/'checkpoints'/'as-vit')
        print(json.dumps(row, indent=1))


if __name__ == '__main__': main()
