"""Measure the methods at the size of DeiT, on digits of 224 pixels: throughput of DeiT-S, single images of DeiT-T, and
each kind of AdaViT's gates alone and together, opened at fixed random rates.

    python tools/measure_deit.py
    python tools/measure_deit.py --device cuda --dtype bfloat16 --batch-size 256 --images 1024 --out runs/gpu

Writes deit_small.json, deit_tiny.json and gates.json, which nbs/60_bench.ipynb and nbs/20_gating.ipynb show. Weights are
random, so accuracy is not measured; speed does not know that. On the CPU packed tables loop over their images in C++, which
is compiled first. Let nothing else run meanwhile.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import timm
import torch

import adaptive_tokens as at
from adaptive_tokens.measure.benchmark import benchmark
from adaptive_tokens.backbones.timm_vit import embed, run_block
from adaptive_tokens.images.digits import ClutteredDigits
from adaptive_tokens.methods.adavit import AdaViT, FORMS, KINDS
from adaptive_tokens.models.model import AdaptiveViT
from adaptive_tokens.tokens.packed import PackedTokens

ROOT = Path(__file__).resolve().parent.parent


def channel_spread(vit, images):
    "Deviation of the halting channel over tokens, averaged over blocks"
    t, spread = PackedTokens(embed(vit, images), vit.num_prefix_tokens), []
    for block in vit.blocks:
        t = run_block(block, t)
        spread.append(t.x[:, 0].std().item())
    return sum(spread) / len(spread)


@torch.no_grad()
def calibrated(vit, method, budget, images):
    "An untrained model at a budget; with random weights A-ViT's scale makes up for a channel that hardly varies"
    options = dict(gamma=5 / channel_spread(vit, images)) if method == 'a-vit' else {}
    model = at.adapt(vit, method, budget=budget, **options).eval()
    at.calibrate(model, [images])
    return model


def candidates(vit, budgets, images):
    "The dense model, every method at every budget, and what the machinery costs where nothing is dropped"
    models = {'dense': vit, 'budget 1': at.adapt(vit, 'as-vit', budget=1.), 'scored, none dropped': at.adapt(vit, 'as-vit')}
    return models | {f'{name} {f}': calibrated(vit, name, f, images) for name in ('as-vit', 'a-vit') for f in budgets}


class RandomGates(AdaViT):
    "Of each kind as many gates open in every image as its target says, in places drawn at random; what the layers say is computed and not heard"
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.rates, self.draws = self.targets, {}

    def decide(self, l, t, normed):
        (gates, score), key = super().decide(l, t, normed), (t.N, t.x.device)
        if key not in self.draws or len(self.draws[key][0]) < t.B:
            self.draws[key] = [self.draw(kind, max(256, t.B), n).to(t.x.device) for kind, n in zip(KINDS, (t.N, self.num_heads, 2))]
        patches, heads, sublayers = (drawn[:t.B, l] for drawn in self.draws[key])  # by the place in the batch
        return replace(gates, rows=patches.reshape(t.is_prefix.shape) | t.is_prefix, heads=heads, sublayers=sublayers), score

    def draw(self, kind, images, n):
        "Gates of a kind [images, L, n], open ones spread over blocks and units"
        first, L = self.first(kind), self.first(self.kinds[0]) + len(self.layers[self.kinds[0]])
        if kind not in self.kinds: return torch.ones(images, L, n, dtype=torch.bool)
        units = (L - first) * n
        order = torch.rand(images, units, generator=torch.Generator().manual_seed(KINDS.index(kind))).argsort(1).argsort(1)
        drawn = (order < round(self.rates[kind] * units)).view(images, L - first, n)
        return torch.cat([drawn.new_ones(images, first, n), drawn], 1)


def gated(vit):
    "The dense model; half of each kind alone; all three kinds at half of the dense multiply-adds, in both forms of heads"
    alone = {f'{kind} at half': RandomGates(vit, .9, (kind,), targets={kind: .5}) for kind in KINDS}
    together = {f'all kinds, {form} heads': RandomGates(vit, .5, form=form) for form in FORMS}
    partial = {'heads at half, partial form': RandomGates(vit, .9, ('heads',), 'partial', dict(heads=.5))}
    return {'dense': vit} | {name: AdaptiveViT(vit, method).eval() for name, method in (alone | partial | together).items()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--models', nargs='+', default=['deit_small', 'deit_tiny', 'gates'])
    p.add_argument('--device', default='cpu')
    p.add_argument('--dtype', default='float32')
    p.add_argument('--batch-size', type=int, default=16, help='of DeiT-S; DeiT-T takes one image at a time')
    p.add_argument('--images', type=int, default=48, help='of DeiT-S; DeiT-T sees 16')
    p.add_argument('--repeats', type=int, default=10)
    p.add_argument('--out', type=Path, default=ROOT/'benchmarks')
    args = p.parse_args()
    digits = torch.stack([ClutteredDigits('test', image_size=224)[i][0] for i in range(args.images)])
    how = dict(repeats=args.repeats, device=args.device, dtype=args.dtype, native=True)
    jobs = dict(deit_small=('deit_small', lambda vit: candidates(vit, (.65, .5), digits[-16:]), digits, args.batch_size),
                deit_tiny=('deit_tiny', lambda vit: candidates(vit, (.65,), digits[-16:]), digits[:16], 1),
                gates=('deit_small', gated, digits, args.batch_size))
    for job in args.models:
        torch.manual_seed(0)
        name, models, images, batch = jobs[job]
        vit = timm.create_model(f'{name}_patch16_224', num_classes=10).eval()
        table = benchmark(models(vit), images, batch_size=batch, **how)
        if table.meta['interrupted']: raise KeyboardInterrupt
        table.save(args.out/f'{job}.json')
        print(table)


if __name__ == '__main__': main()
