"What the package ships: small, trained, and doing what the pages say."
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch

import adaptive_tokens as at
from adaptive_tokens.images.drawing import LEVELS
from adaptive_tokens.methods.avit import budget_depth
from adaptive_tokens.models.checkpoint import load_dense

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = files('adaptive_tokens')/'checkpoints'
STORED = json.loads((ROOT/'benchmarks'/'digits.json').read_text())
SLACK = {'as-vit': .5, 'a-vit': 1., 'adavit': 1.5}  # points of accuracy below dense
BUDGET = {'as-vit': .65, 'a-vit': .65, 'adavit': .5}
N = 1500


@pytest.fixture(scope='module')
def test_set():
    "The first test images, and whether the dense model is right about them"
    data, dense = at.ClutteredDigits('test', size=N), load_dense(SHIPPED/'dense').eval()
    x, b = torch.stack([image for image, _ in data.__getitems__(range(N))]), data.batch(range(N))
    with torch.inference_mode(): right = torch.cat([dense(part).argmax(1) for part in x.split(250)]) == b.labels
    return dict(x=x, b=b, right=right, macs=at.macs(dense), depth=budget_depth(dense, .65))


@pytest.fixture(scope='module', params=list(SLACK))
def seen(request, test_set):
    "What a shipped adaptive model makes of the same images"
    model, out = at.AdaptiveViT.from_pretrained(SHIPPED/request.param), []
    with torch.inference_mode():
        for part in test_set['x'].split(250):
            logits, trace = model(part, return_trace=True)
            out.append((logits.argmax(1), trace.active, trace.macs))
    said, active, macs = map(torch.cat, zip(*out))
    return dict(method=request.param, model=model, right=said == test_set['b'].labels, active=active,
                share=macs / test_set['macs'], blocks=active.sum(1).float())


def test_checkpoints_are_small():
    weights = list(Path(str(SHIPPED)).rglob('*.safetensors'))
    assert len(weights) == 1 + len(SLACK) and all(f.stat().st_size < 1e6 for f in weights)


def test_adaptive_keeps_the_dense_accuracy_within_budget(seen, test_set):
    assert test_set['right'].float().mean() > .9
    # paired: only images on which the models disagree count
    difference = seen['right'].float() - test_set['right'].float()
    assert difference.mean() > -SLACK[seen['method']] / 100 - 2 * difference.std() / len(difference)**.5
    assert abs(seen['share'].mean() / BUDGET[seen['method']] - 1) < .03


def test_compute_lies_on_the_evidence(seen, test_set):
    blocks, on = seen['blocks'][:, 1:], test_set['b'].evidence
    assert (blocks * on).sum() / on.sum() > 1.1 * blocks.mean()  # chance: the same
    if seen['method'] != 'as-vit': return  # others leave and return, or leave with their image
    last = seen['active'][:, -1, 1:]
    assert ((last & on).sum(1) / on.sum(1)).mean() >= 2 * last.float().mean()


def test_harder_images_get_more(seen, test_set):
    easy, medium, hard = (seen['blocks'][test_set['b'].levels == v, 1:].mean() for v in range(len(LEVELS)))
    assert easy < medium < hard


@pytest.mark.parametrize('seen', ['a-vit'], indirect=True)
def test_a_vit_halts_at_the_depth_of_its_budget(seen, test_set):
    assert abs(seen['blocks'].mean() - test_set['depth']) < .5


def test_gates_that_foresee_what_matters_need_no_training(test_set):
    dense, images = load_dense(SHIPPED/'dense').eval().float(), next(iter(at.digits_loader('train', 256)))[0]
    right = {}
    for start in ('from data', 'blind'):
        torch.manual_seed(0)
        model = at.adapt(dense, 'adavit', budget=.5)
        if start == 'blind':  # biases that are set already are left alone
            for b in model.method.biases(): b.data.fill_(.1)
        spent = at.calibrate(model, [images])
        assert abs(spent - .5) < .02
        parts = test_set['x'][:500].split(250)
        with torch.inference_mode(): said = torch.cat([model(part).argmax(1) for part in parts])
        right[start] = (said == test_set['b'].labels[:500]).float().mean()
    assert right['from data'] > max(test_set['right'][:500].float().mean() - .1, right['blind'] + .15), right


def test_stored_results_are_about_what_is_shipped(seen, test_set):
    stored = next(row for row in STORED['results'] if row['seed'] == STORED['shipped'])
    assert abs(stored['dense']['top1'] / 100 - test_set['right'].float().mean()) < .02
    assert abs(stored[seen['method']]['top1'] / 100 - seen['right'].float().mean()) < .02
    name = {'as-vit': 'theta', 'a-vit': 'beta', 'adavit': 'targets'}[seen['method']]
    own = getattr(seen['model'].method, name)
    assert (own if isinstance(own, dict) else own.tolist()) == pytest.approx(stored[seen['method']][name], rel=1e-6)


@pytest.mark.parametrize('method', list(SLACK))
def test_stored_results_hold_budget_and_accuracy_over_seeds(method):
    rows = [(row['dense'], row[method]) for row in STORED['results']]
    assert len({row['seed'] for row in STORED['results']}) >= 3
    assert sum(own['top1'] - dense['top1'] for dense, own in rows) / len(rows) >= -SLACK[method]
    for _, own in rows:
        assert abs(own['macs_share'] / BUDGET[method] - 1) < .02
        assert own['blocks_per_patch']['easy'] < own['blocks_per_patch']['hard']
        assert own['blocks_on_evidence'] > own['blocks_by_chance']
        if method == 'as-vit': assert own['evidence_kept'] >= 2 * own['kept_by_chance']
        if method == 'adavit':
            assert all(abs(own['usage'][kind] - target) < .02 for kind, target in own['targets'].items())
        if method == 'a-vit': assert abs(own['blocks_per_token'] - own['target_depth']) < .5
