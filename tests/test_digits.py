"What the package ships: small, trained, and doing what the pages say."
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch

import adaptive_tokens as at
from adaptive_tokens.data import LEVELS
from adaptive_tokens.train import load_dense

SHIPPED = files('adaptive_tokens')/'checkpoints'
STORED = Path(__file__).parent.parent/'benchmarks'/'digits.json'
N = 1500


@pytest.fixture(scope='module')
def seen():
    "Dense and adaptive answers, and the trace, on the first test images"
    data, out = at.ClutteredDigits('test', size=N), []
    dense, model = load_dense(SHIPPED/'dense').eval(), at.AdaptiveViT.from_pretrained(SHIPPED/'as-vit')
    with torch.inference_mode():
        for start in range(0, N, 250):
            index = range(start, start + 250)
            x, b = torch.stack([image for image, _ in data.__getitems__(index)]), data.batch(index)
            logits, trace = model(x, return_trace=True)
            out.append((dense(x).argmax(1) == b.labels, logits.argmax(1) == b.labels, trace.active, trace.macs, b.evidence, b.levels))
    right, pruned, active, macs, evidence, levels = map(torch.cat, zip(*out))
    return dict(right=right, pruned=pruned, active=active, share=macs / at.macs(dense), evidence=evidence, levels=levels)


def test_checkpoints_are_small():
    weights = list(Path(str(SHIPPED)).rglob('*.safetensors'))
    assert len(weights) == 2 and sum(f.stat().st_size for f in weights) < 3e6


def test_adaptive_keeps_the_dense_accuracy_within_budget(seen):
    assert seen['right'].float().mean() > .9
    difference = seen['pruned'].float() - seen['right'].float()  # paired: only images on which the models disagree count
    assert difference.mean() > -.005 - 2 * difference.std() / len(difference)**.5
    assert abs(seen['share'].mean() / .65 - 1) < .03


def test_kept_tokens_lie_on_the_evidence(seen):
    last = seen['active'][:, -1, 1:]
    on_evidence = (last & seen['evidence']).sum(1) / seen['evidence'].sum(1)
    assert on_evidence.mean() >= 2 * last.float().mean()


def test_harder_images_keep_more(seen):
    blocks = seen['active'][:, :, 1:].sum(1).float().mean(1)
    easy, medium, hard = (blocks[seen['levels'] == v].mean() for v in range(len(LEVELS)))
    assert easy < medium < hard


def test_stored_results_are_about_what_is_shipped(seen):
    stored = json.loads(STORED.read_text())
    stored = next(row for row in stored['results'] if row['seed'] == stored['shipped'])
    assert abs(stored['dense']['top1'] / 100 - seen['right'].float().mean()) < .02
    assert abs(stored['as-vit']['top1'] / 100 - seen['pruned'].float().mean()) < .02
    theta = at.AdaptiveViT.from_pretrained(SHIPPED/'as-vit').method.theta
    assert theta.tolist() == pytest.approx(stored['as-vit']['theta'], rel=1e-6)


def test_stored_results_hold_the_budget_and_the_accuracy_over_seeds():
    results = json.loads(STORED.read_text())['results']
    assert len({row['seed'] for row in results}) >= 3
    assert sum(row['as-vit']['top1'] - row['dense']['top1'] for row in results) / len(results) >= -.5
    kept, chance = (sum(row['as-vit'][name] for row in results) for name in ('evidence_kept', 'kept_by_chance'))
    assert kept >= 2 * chance
    for row in results:
        assert abs(row['as-vit']['macs_share'] / .65 - 1) < .02
        blocks = row['as-vit']['blocks_per_patch']
        assert blocks['easy'] < blocks['hard']
