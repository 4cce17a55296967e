"""Every method at the same multiply-adds on the same engine: batches of several sizes, with a profile of where the time goes.

    python tools/measure_speed.py                                  # DeiT-S, batch 32, on the CPU
    python tools/measure_speed.py --python-loops --out benchmarks/speed_cpu_python.json
    make bench-gpu                                                 # DeiT-S, batches of 1, 256 and 1,024, on CUDA

Writes benchmarks/speed_cpu.json (or speed_cuda.json): one benchmark per backbone and batch size, which nbs/60_bench.ipynb
shows; what is finished is kept, and a second call goes on there (delete the file to begin anew). Images are digits of 224
pixels, weights are random, so accuracy is not measured; speed does not know that. On the CPU packed tables loop over their images
in C++, which is compiled first. Let nothing else run meanwhile.
"""
import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import timm
import torch
from measure_deit import RandomGates, calibrated

import adaptive_tokens as at
from adaptive_tokens.measure.benchmark import benchmark, copies_on_device, with_compiled
from adaptive_tokens.measure.execution import choose_execution
from adaptive_tokens.measure.profile import where_time_goes
from adaptive_tokens.measure.provenance import provenance
from adaptive_tokens.images.digits import ClutteredDigits
from adaptive_tokens.devices import resolve_device, resolve_dtype
from adaptive_tokens.methods.adavit import KINDS
from adaptive_tokens.models.model import AdaptiveViT
from adaptive_tokens.tokens.cpp_loop import cpp_loops
from adaptive_tokens.models.files import write_text

ROOT = Path(__file__).resolve().parent.parent
FIXED = ('fixed-rate', 'evit', 'tome', 'dynamicvit')
OURS = ('as-vit', 'as-vit:fuse', 'as-vit:merge', 'a-vit', 'adavit', 'adavit:no-heads')


def adapted(vit, form, budget, images):
    "A method at a budget; AdaViT's gates open at random, at the rates of their targets, with or without those of heads"
    method, _, fold = form.partition(':')
    if method == 'adavit': return AdaptiveViT(vit, RandomGates(vit, budget, ('patches', 'sublayers') if fold else KINDS)).eval()
    if not fold: return calibrated(vit, method, budget, images)
    model = at.adapt(vit, method, budget, fold=fold).eval()
    at.calibrate(model, [images])
    return model


def candidates(vit, forms, budgets, images):
    return {'dense': vit} | {f'{form} {budget:g}': adapted(vit, form, budget, images) for budget in budgets for form in forms}


def profiles(models, images, args):
    "Where the time goes in each model at the middle budget"
    device, dtype = resolve_device(args.device), resolve_dtype(args.dtype)
    middle = sorted(args.budgets)[len(args.budgets) // 2]
    models = {name: model for name, model in models.items() if name == 'dense' or name.endswith(f' {middle:g}')}
    models, images = copies_on_device(models, device, dtype), images.to(device, dtype)
    if args.compiled: models = with_compiled(models, 'dense', images[:1])
    if args.fall_back:
        for model in models.values():
            if isinstance(model, AdaptiveViT): choose_execution(model, images, [len(images)])
    return {name: where_time_goes(model, images) for name, model in models.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--backbones', nargs='+', default=['deit_small'])
    p.add_argument('--methods', nargs='+', default=[*FIXED, *OURS])
    p.add_argument('--budgets', nargs='+', type=float, default=[.85, .65, .5])
    p.add_argument('--batch-sizes', nargs='+', type=int, default=[32])
    p.add_argument('--images', type=int, default=32, help='of each measurement; a batch where that is more')
    p.add_argument('--repeats', type=int, default=60)
    p.add_argument('--compiled', action='store_true', help='a compiled dense baseline, and compiled parts of the methods')
    p.add_argument('--fall-back', action='store_true', help='let each model take the masked form where it is faster')
    p.add_argument('--python-loops', action='store_true', help='on a CPU, leave the loops over images in Python')
    p.add_argument('--device', default='cpu')
    p.add_argument('--dtype', default='float32')
    p.add_argument('--out', type=Path, help='default: benchmarks/speed_DEVICE.json')
    args = p.parse_args()
    try: kind = resolve_device(args.device).type
    except ValueError as e: p.error(e)
    out = args.out or ROOT/'benchmarks'/f'speed_{kind}.json'
    tables = json.loads(out.read_text()) if out.exists() else {}
    settings = {name: getattr(args, name) for name in ('methods', 'budgets', 'images', 'repeats', 'compiled', 'fall_back', 'dtype')}
    native = settings['native'] = kind == 'cpu' and not args.python_loops
    here = {k: v for k, v in provenance(torch.device(kind), resolve_dtype(args.dtype)).items() if k in ('cpu', 'gpu', 'threads', 'torch')}
    for key, table in tables.items():
        made = dict(table['meta']['settings'], **{k: table['meta'][k] for k in here})
        if made != settings | here: p.error(f"{key} in {out} was made otherwise ({made}): delete the file, or name another --out")
    most = max(args.images, *args.batch_sizes)
    digits = torch.stack([ClutteredDigits('test', image_size=224)[i][0] for i in range(most)])
    for backbone in args.backbones:
        torch.manual_seed(0)
        vit = timm.create_model(f'{backbone}_patch16_224', num_classes=10).eval()
        with torch.no_grad(): models = candidates(vit, args.methods, args.budgets, digits[-32:])
        for size in args.batch_sizes:
            key, start = f'{backbone}, batch {size}', time.time()
            if key in tables and 'profile' in tables[key]['meta']: continue
            table = benchmark(models, digits[:max(args.images, size)], batch_size=size, repeats=args.repeats, latency_repeats=1, device=args.device,
                              dtype=args.dtype, native=native, compiled=args.compiled, fall_back=args.fall_back)
            if table.meta['interrupted']: raise KeyboardInterrupt
            fitted = table.meta['batch_size']
            if fitted < size: key = f'{backbone}, batch {fitted}'  # memory ended
            if fitted < size and key in tables: break
            tables[key] = asdict(table)
            tables[key]['meta']['settings'] = settings
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, json.dumps(tables, indent=1) + '\n')
            with cpp_loops(native): tables[key]['meta']['profile'] = profiles(models, digits[:table.meta['batch_size']], args)
            write_text(out, json.dumps(tables, indent=1) + '\n')
            print(f'{key}, {time.time() - start:.0f} s\n{table}', flush=True)


if __name__ == '__main__': main()
