"""Every method at the same multiply-adds on the same engine, in batches of several sizes, with a profile of the time.

    python tools/measure_speed.py                                  # DeiT-S, batch 32, on the CPU
    python tools/measure_speed.py --python-loops --out benchmarks/speed_cpu_python.json
    make bench-gpu                                                 # DeiT-S, batches of 1, 256 and 1,024, on CUDA

Writes benchmarks/speed_cpu.json (or speed_cuda.json): one benchmark per backbone and batch size, which
nbs/tutorials/speed.ipynb shows. What is finished is kept, and a second call continues there; delete the file to begin
anew. Images are digits of 224 pixels, weights are random, so accuracy is not measured; speed does not depend on it. On
the CPU packed tables loop over their images in C++, which is compiled first. Let nothing else run meanwhile.
"""
import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import timm
import torch
from measure_deit import RandomGates, calibrated, digits_of_224

from adaptive_tokens.devices import resolve_device, resolve_dtype
from adaptive_tokens.measure.benchmark import benchmark, copies_on_device, with_compiled
from adaptive_tokens.measure.execution import choose_execution
from adaptive_tokens.measure.profile import where_time_goes
from adaptive_tokens.measure.provenance import provenance
from adaptive_tokens.methods.adavit import KINDS
from adaptive_tokens.models.files import write_text
from adaptive_tokens.models.model import AdaptiveViT, is_adaptive
from adaptive_tokens.tokens.native import cpp_loops

ROOT = Path(__file__).resolve().parent.parent
FIXED = ('fixed-rate', 'evit', 'tome', 'dynamicvit')
OURS = ('as-vit', 'as-vit:fuse', 'as-vit:merge', 'a-vit', 'adavit', 'adavit:no-heads')


def adapted(vit, form, budget, images):
    "A method at a budget; AdaViT's gates open at random, at the rates of their targets, with or without those of heads"
    kinds = {'adavit': KINDS, 'adavit:no-heads': ('patches', 'sublayers')}
    if form in kinds: return AdaptiveViT(vit, RandomGates(vit, budget, kinds[form])).eval()
    return calibrated(vit, form, budget, images)


@torch.no_grad()
def candidates(vit, forms, budgets, images):
    "The dense model, and every method at every budget, by names such as 'as-vit 0.65'"
    models = {'dense': vit}
    for budget in budgets:
        for form in forms: models[f'{form} {budget:g}'] = adapted(vit, form, budget, images)
    return models


def profiles(models, images, args):
    "Where the time goes in each model at the middle budget"
    device, dtype = resolve_device(args.device), resolve_dtype(args.dtype)
    middle = sorted(args.budgets)[len(args.budgets) // 2]
    models = {name: model for name, model in models.items() if name == 'dense' or name.endswith(f' {middle:g}')}
    models, images = copies_on_device(models, device, dtype), images.to(device, dtype)
    if args.compiled: models = with_compiled(models, 'dense', images[:1])
    if args.fall_back:
        for model in filter(is_adaptive, models.values()): choose_execution(model, images, [len(images)])
    return {name: where_time_goes(model, images) for name, model in models.items()}


def settings_of(args, kind):
    "What a table depends on beside the machine"
    names = ('methods', 'budgets', 'images', 'repeats', 'compiled', 'fall_back', 'dtype')
    return {name: getattr(args, name) for name in names} | dict(native=kind == 'cpu' and not args.python_loops)


def made_otherwise(tables, settings, kind, dtype):
    "Name of the first table that was made with other settings or on another machine, and how; None: there is none"
    now = provenance(torch.device(kind), resolve_dtype(dtype))
    here = {name: now[name] for name in ('cpu', 'gpu', 'threads', 'torch')}
    for key, table in tables.items():
        made = dict(table['meta']['settings'], **{name: table['meta'][name] for name in here})
        if made != settings | here: return key, made


def keep(out, tables):
    "Write the tables, whole or not at all"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(tables, indent=1) + '\n')


def measure(models, digits, size, args, native):
    "A benchmark of batches of one size; KeyboardInterrupt unless it is whole"
    table = benchmark(models, digits[:max(args.images, size)], batch_size=size, repeats=args.repeats,
                      latency_repeats=1, device=args.device, dtype=args.dtype, native=native, compiled=args.compiled,
                      fall_back=args.fall_back)
    if table.meta['interrupted']: raise KeyboardInterrupt
    return table


def measure_sizes(models, digits, backbone, tables, settings, out, args):
    "Add to the tables, and keep, a benchmark and a profile for each batch size that is not there, until memory ends"
    for size in args.batch_sizes:
        key, start = f'{backbone}, batch {size}', time.time()
        if key in tables and 'profile' in tables[key]['meta']: continue
        table = measure(models, digits, size, args, settings['native'])
        fitted = table.meta['batch_size']
        if fitted < size:  # memory ended
            key = f'{backbone}, batch {fitted}'
            if key in tables: return
        tables[key] = asdict(table)
        tables[key]['meta']['settings'] = settings
        keep(out, tables)
        with cpp_loops(settings['native']): tables[key]['meta']['profile'] = profiles(models, digits[:fitted], args)
        keep(out, tables)
        print(f'{key}, {time.time() - start:.0f} s\n{table}', flush=True)


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--backbones', nargs='+', default=['deit_small'])
    p.add_argument('--methods', nargs='+', default=[*FIXED, *OURS])
    p.add_argument('--budgets', nargs='+', type=float, default=[.85, .65, .5])
    p.add_argument('--batch-sizes', nargs='+', type=int, default=[32])
    p.add_argument('--images', type=int, default=32, help='of each measurement; a batch where that is more')
    p.add_argument('--repeats', type=int, default=60)
    p.add_argument('--compiled', action='store_true',
                   help='a compiled dense baseline, and compiled parts of the methods')
    p.add_argument('--fall-back', action='store_true', help='let each model take the masked form where it is faster')
    p.add_argument('--python-loops', action='store_true', help='on a CPU, leave the loops over images in Python')
    p.add_argument('--device', default='cpu')
    p.add_argument('--dtype', default='float32')
    p.add_argument('--out', type=Path, help='default: benchmarks/speed_DEVICE.json')
    return p, p.parse_args()


def main():
    p, args = parse()
    try: kind = resolve_device(args.device).type
    except ValueError as e: p.error(e)
    out = args.out or ROOT/'benchmarks'/f'speed_{kind}.json'
    tables = json.loads(out.read_text()) if out.exists() else {}
    settings = settings_of(args, kind)
    if odd := made_otherwise(tables, settings, kind, args.dtype):
        p.error(f'{odd[0]} in {out} was made otherwise ({odd[1]}): delete the file, or name another --out')
    digits = digits_of_224(max(args.images, *args.batch_sizes))
    for backbone in args.backbones:
        torch.manual_seed(0)
        vit = timm.create_model(f'{backbone}_patch16_224', num_classes=10).eval()
        models = candidates(vit, args.methods, args.budgets, digits[-32:])
        measure_sizes(models, digits, backbone, tables, settings, out, args)


if __name__ == '__main__': main()
