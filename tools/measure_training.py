"""Time and memory of a training step of each method beside a dense step, DeiT-S.

    python tools/measure_training.py                                        # CPU
    python tools/measure_training.py --device cuda --dtype bfloat16 --batch-size 128 --out runs/gpu/training.json

Writes benchmarks/training.json. Images are noise: a training step computes every token whatever it shows.
"""
import argparse
import copy
import json
from pathlib import Path

import timm
import torch

import adaptive_tokens as at
from adaptive_tokens.devices import resolve_device
from adaptive_tokens.measure.provenance import hardware
from adaptive_tokens.models.files import write_text
from adaptive_tokens.training.step_costs import step_costs

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backbone', default='deit_small_patch16_224')
    parser.add_argument('--budget', type=float, default=.65)
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--out', type=Path, default=ROOT/'benchmarks'/'training.json')
    args = parser.parse_args()
    device = resolve_device(args.device)
    torch.manual_seed(0)
    vit = timm.create_model(args.backbone)
    images, targets = torch.randn(args.batch_size, 3, 224, 224), torch.arange(args.batch_size)
    models = {'dense': vit}
    for method in ('as-vit', 'a-vit', 'adavit'):
        model = models[method] = at.adapt(copy.deepcopy(vit), method, args.budget)
        if method != 'adavit': at.calibrate(model, [images])  # AdaViT's gates toss coins at the target
    models = {name: model.to(device) for name, model in models.items()}
    rows = step_costs(models, images.to(device), targets.to(device), args.repeats, args.dtype)
    table = dict(rows=rows, backbone=args.backbone, budget=args.budget, batch_size=args.batch_size,
                 repeats=args.repeats, dtype=args.dtype, seed=0, hardware=hardware())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(table, indent=1) + '\n')
    for row in rows:
        low, high = row['seconds_iqr']
        print(f"{row['name']:8} {row['seconds']:.2f} s [{low:.2f}, {high:.2f}]  time {row['time']:.2f}  "
              f"memory {row['memory']:.2f}")


if __name__ == '__main__': main()
