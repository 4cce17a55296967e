"""Measure the methods at the size of DeiT, on digits of 224 pixels: throughput of DeiT-S, single images of DeiT-T, and
each kind of AdaViT's gates alone and together, opened at fixed random rates.

    python tools/measure_deit.py
    python tools/measure_deit.py --device cuda --dtype bfloat16 --batch-size 256 --images 1024 --out runs/gpu

Writes deit_small.json, deit_tiny.json and gates.json, which nbs/tutorials/speed.ipynb and nbs/methods/02_adavit.ipynb
show. Weights are random, so accuracy is not measured; speed does not depend on it. On the CPU packed tables loop over
their images in C++, which is compiled first. Let nothing else run meanwhile.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import timm
import torch

import adaptive_tokens as at
from adaptive_tokens.backbones.backbone import backbone_of, run_block
from adaptive_tokens.backbones.heads import FORMS
from adaptive_tokens.images.digits import ClutteredDigits
from adaptive_tokens.measure.benchmark import benchmark
from adaptive_tokens.methods.adavit import KINDS, AdaViT
from adaptive_tokens.models.model import AdaptiveViT
from adaptive_tokens.tokens.packed import PackedTokens

ROOT = Path(__file__).resolve().parent.parent
JOBS = ['deit_small', 'deit_tiny', 'gates']


def digits_of_224(n):
    "The first digits of the test set, in 224 pixels [n, 3, 224, 224]"
    data = ClutteredDigits('test', image_size=224)
    return torch.stack([data[i][0] for i in range(n)])


def channel_spread(vit, images):
    "Deviation of the halting channel over tokens, averaged over blocks"
    backbone, spread = backbone_of(vit), []
    t = PackedTokens(backbone.embed(images), backbone.num_prefix_tokens)
    for block in backbone.blocks:
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
    models = {'dense': vit, 'budget 1': at.adapt(vit, 'as-vit', budget=1.),
              'scored, none dropped': at.adapt(vit, 'as-vit')}
    for name in ('as-vit', 'a-vit'):
        for budget in budgets: models[f'{name} {budget}'] = calibrated(vit, name, budget, images)
    return models


class RandomGates(AdaViT):
    """As many gates of each kind open in every image as its target says, in places drawn at random.

    What the gate layers say is computed, because it takes time, and not used.
    """
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.rates, self.draws = self.targets, {}

    def decide(self, l, t, H):
        gates, score = super().decide(l, t, H)
        key = t.N, t.x.device
        if key not in self.draws or len(self.draws[key][0]) < t.B:
            units = zip(KINDS, (t.N, H, 2))
            self.draws[key] = [self.draw(kind, max(256, t.B), n).to(t.x.device) for kind, n in units]
        patches, heads, sublayers = (drawn[:t.B, l] for drawn in self.draws[key])  # by the place in the batch
        rows = patches.reshape(t.is_prefix.shape) | t.is_prefix
        return replace(gates, rows=rows, heads=heads, sublayers=sublayers), score

    def draw(self, kind, images, n):
        "Gates of a kind [images, L, n], open ones spread over blocks and units"
        first, L = self.first(kind), self.first(self.kinds[0]) + len(self.layers[self.kinds[0]])
        if kind not in self.kinds: return torch.ones(images, L, n, dtype=torch.bool)
        units = (L - first) * n
        generator = torch.Generator().manual_seed(KINDS.index(kind))
        order = torch.rand(images, units, generator=generator).argsort(1).argsort(1)
        drawn = (order < round(self.rates[kind] * units)).view(images, L - first, n)
        return torch.cat([drawn.new_ones(images, first, n), drawn], 1)


def gated(vit):
    "The dense model; half of each kind alone; all three at half of the dense multiply-adds, in both forms of heads"
    alone = {f'{kind} at half': RandomGates(vit, .9, (kind,), targets={kind: .5}) for kind in KINDS}
    together = {f'all kinds, {form} heads': RandomGates(vit, .5, form=form) for form in FORMS}
    partial = {'heads at half, partial form': RandomGates(vit, .9, ('heads',), 'partial', dict(heads=.5))}
    methods = alone | partial | together
    return {'dense': vit} | {name: AdaptiveViT(vit, method).eval() for name, method in methods.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--models', nargs='+', choices=JOBS, default=JOBS)
    p.add_argument('--device', default='cpu')
    p.add_argument('--dtype', default='float32')
    p.add_argument('--batch-size', type=int, default=16, help='of DeiT-S; DeiT-T takes one image at a time')
    p.add_argument('--images', type=int, default=48, help='of DeiT-S; DeiT-T sees 16')
    p.add_argument('--repeats', type=int, default=10)
    p.add_argument('--out', type=Path, default=ROOT/'benchmarks')
    args = p.parse_args()
    digits = digits_of_224(args.images)
    for job in args.models:
        torch.manual_seed(0)
        backbone = 'deit_tiny' if job == 'deit_tiny' else 'deit_small'
        images, batch_size = (digits[:16], 1) if job == 'deit_tiny' else (digits, args.batch_size)
        vit = timm.create_model(f'{backbone}_patch16_224', num_classes=10).eval()
        if job == 'gates': models = gated(vit)
        else: models = candidates(vit, (.65,) if job == 'deit_tiny' else (.65, .5), digits[-16:])
        table = benchmark(models, images, batch_size=batch_size, repeats=args.repeats, device=args.device,
                          dtype=args.dtype, native=True)
        if table.meta['interrupted']: raise KeyboardInterrupt
        table.save(args.out/f'{job}.json')
        print(table)


if __name__ == '__main__': main()
