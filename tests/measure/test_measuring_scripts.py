"The scripts that measure: results are kept by batch size, whole or not at all."
import json
import sys
from pathlib import Path

import pytest
import torch

import adaptive_tokens as at
from adaptive_tokens.images.digits import ClutteredDigits, digits_vit, normalize
from adaptive_tokens.measure import benchmark as bench, timing
from adaptive_tokens.measure.result import Benchmark
from adaptive_tokens.models.cost import macs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def measure_speed(monkeypatch):
    "The script, called with words in this process"
    monkeypatch.syspath_prepend(str(ROOT/'tools'))
    script = __import__('measure_speed')
    def call(*words):
        monkeypatch.setattr(sys, 'argv', ['measure_speed.py', *map(str, words)])
        script.main()
    return call


def test_speed_is_measured_and_kept_by_batch_size(measure_speed, tmp_path, capsys):
    out = tmp_path/'speed.json'
    words = ['--backbones', 'deit_tiny', '--methods', 'as-vit:merge', 'adavit', '--budgets', 0.65, '--images', 2,
             '--repeats', 1, '--out', out]
    measure_speed(*words, '--batch-sizes', 2)
    first = json.loads(out.read_text())
    assert list(first) == ['deit_tiny, batch 2']
    made = Benchmark(**first['deit_tiny, batch 2'])
    assert [row['name'] for row in made.rows] == ['dense', 'as-vit:merge 0.65', 'adavit 0.65']
    assert all(abs(row['macs_share'] - .65) < .06 for row in made.rows[1:])
    assert list(made.meta['profile']) == [row['name'] for row in made.rows]
    measure_speed(*words, '--batch-sizes', 2, 1)
    second = json.loads(out.read_text())
    assert list(second) == [*first, 'deit_tiny, batch 1']
    assert second['deit_tiny, batch 2'] == first['deit_tiny, batch 2']
    with pytest.raises(SystemExit): measure_speed(*words, '--batch-sizes', 2, '--fall-back')
    assert 'was made otherwise' in capsys.readouterr().err and json.loads(out.read_text()) == second
    with pytest.raises(SystemExit): measure_speed(*words, '--batch-sizes', 3, '--repeats', 2)
    assert 'was made otherwise' in capsys.readouterr().err and json.loads(out.read_text()) == second


def test_an_interrupted_measurement_is_not_kept(measure_speed, tmp_path, monkeypatch):
    out, calls, seconds = tmp_path/'speed.json', [], timing.seconds
    def until(model, x):
        calls.append(1)
        if len(calls) > 12: raise KeyboardInterrupt
        return seconds(model, x)
    words = ['--backbones', 'deit_tiny', '--methods', 'as-vit', '--budgets', 0.65, '--images', 1, '--batch-sizes', 1,
             '--repeats', 20, '--out', out]
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match='interrupted'):
        m.setattr(timing, 'seconds', until)
        measure_speed(*words)
    assert not out.exists()


def test_a_batch_that_was_halved_is_filed_as_what_it_was(measure_speed, tmp_path, monkeypatch):
    measure = bench.measure
    def small_memory(models, images, size, *rest):
        if size > 1: raise torch.OutOfMemoryError('CUDA out of memory')
        return measure(models, images, size, *rest)
    monkeypatch.setattr(bench, 'measure', small_memory)
    out = tmp_path/'speed.json'
    with pytest.warns(UserWarning, match='going on with 1'):
        measure_speed('--backbones', 'deit_tiny', '--methods', 'as-vit', '--budgets', 0.65, '--images', 2,
                      '--batch-sizes', 2, '--repeats', 1, '--out', out)
    assert list(json.loads(out.read_text())) == ['deit_tiny, batch 1']


def test_random_gates_open_as_many_for_every_image(measure_speed):
    "A batch of one costs what a large batch costs on average"
    vit = digits_vit()
    method = __import__('measure_deit').RandomGates(vit, .5)
    model = at.AdaptiveViT(vit, method).eval()
    images = normalize(ClutteredDigits('test').batch(range(8)).images)
    with torch.no_grad(): whole, alone = (model(x, return_trace=True)[1] for x in (images, images[:1]))
    for kind in ('heads', 'sublayers'):
        opened = torch.stack([getattr(g, kind).sum(1) for g in whole.gates]).sum(0)
        assert (opened == opened[0]).all()
    shares = whole.macs / macs(vit)
    assert alone.macs[0] == whole.macs[0]
    assert (shares - shares.mean()).abs().max() < .05 and abs(shares.mean() - .5) < .03


def test_a_device_that_is_absent_is_named(measure_speed, capsys):
    with pytest.raises(SystemExit) as end: measure_speed('--device', 'cdua')
    assert end.value.code == 2 and 'cdua' in capsys.readouterr().err
