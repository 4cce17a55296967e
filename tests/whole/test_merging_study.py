"The stored comparison of dropping and merging without training: figures of the file are those of its answers."
import importlib.util
import json
import os
from pathlib import Path

import pytest
import timm
import torch

import adaptive_tokens as at

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def merging():
    "tools/measure_merging.py as a module"
    spec = importlib.util.spec_from_file_location('measure_merging', ROOT/'tools'/'measure_merging.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def stored(): return json.loads((ROOT/'benchmarks'/'merging.json').read_text())


def test_stored_figures_are_those_of_the_stored_answers(merging, stored):
    right = {name: torch.tensor([int(c) for c in said]).bool() for name, said in stored['right'].items()}
    assert {len(r) for r in right.values()} == {stored['meta']['n']} == {1300}
    assert stored['dense']['top1'] == pytest.approx(100 * right['dense'].double().mean().item())
    for row in stored['rows']:
        own = right[f'{row["name"]} {row["target"]}']
        assert row['top1'] == pytest.approx(100 * own.double().mean().item())
        assert abs(row['gmacs'] - row['target']) < .015
        for over, other in (('over_dense', 'dense'), ('over_tome', f'tome {row["target"]}')):
            if over not in row: continue
            want, flat = merging.paired(own, right[other]), lambda d: [d['mean'], d['error'], *d['interval']]
            # the file's ranks of 2.5 and 97.5 % were rounded to float32
            assert flat(row[over]) == pytest.approx(flat(want), abs=1e-4)


@pytest.mark.parametrize('gmacs, least', [(1., 80.2), (.85, 79.9), (.73, 78.9), (.62, 77.5)])
def test_adaptive_merging_stands_where_it_must(stored, gmacs, least):
    row, = (r for r in stored['rows'] if (r['name'], r['target']) == ('as-vit:merge', gmacs))
    tome, = (r for r in stored['rows'] if (r['name'], r['target']) == ('tome', gmacs))
    assert row['top1'] >= least and row['gmacs'] <= gmacs and row['top1'] > tome['top1']


def test_paired_differences_by_hand(merging):
    a, b = torch.tensor([1, 1, 1, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool()
    assert merging.paired(a, a) == dict(mean=0, error=0, interval=[0, 0])
    d = merging.paired(a, b)
    assert d['mean'] == 25 and d['error'] == 25 and d['interval'] == [0, 75]


def test_measuring_needs_a_folder(merging, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['measure_merging.py'])
    monkeypatch.delenv('ADAPTIVE_TOKENS_IMAGES', raising=False)
    with pytest.raises(SystemExit): merging.main()
    assert 'name the folder of images' in capsys.readouterr().err


@pytest.mark.hub
def test_stored_answers_come_again(merging, stored):
    "Token merging on the first fifty validation images, as stored"
    vit = timm.create_model(merging.BACKBONE, pretrained=True).eval()
    folder = os.environ['ADAPTIVE_TOKENS_IMAGES']
    reader = at.image_loader(f'{folder}/imagenet_val_1300.tar', vit, 50, class_map=f'{folder}/imagenet_wnids.txt',
                             crop_mode='squash',
                             crop_pct=1.)
    x, y = next(iter(reader))
    right, spent = merging.answers(merging.adapted(vit, 'tome', .62, [x]), [(x, y)])
    told = torch.tensor([int(c) for c in stored['right']['tome 0.62'][:50]]).bool()
    assert (right == told).sum() >= 49 and spent.mean().item() == pytest.approx(.62, abs=.005)
