"Export, clean and README: nothing of a run's own stays behind, and doing it twice changes nothing."
import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import adaptive_tokens as at
from adaptive_tokens import bench
from adaptive_tokens.measure.result import Benchmark
from adaptive_tokens.models.cost import macs
from adaptive_tokens.images.digits import ClutteredDigits, digits_vit, normalize

ROOT = Path(__file__).resolve().parent.parent
DOT = ('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')
LOGGED = 'USDT:2026-11-21 18:35:13 29896:29896 SyncActivityProfilerHandler.cpp:39] profiler_start\n'
WIDGET = 'application/vnd.jupyter.widget-view+json'


def cell(id, source, *outputs, **metadata):
    return dict(cell_type='code', id=id, source=source, outputs=list(outputs), execution_count=7, metadata=metadata)


def shown(metadata=None, **data):
    return dict(output_type='display_data', data=data, metadata=metadata or {})


def text(id, source): return dict(cell_type='markdown', id=id, source=source, metadata={})


def write(path, *cells, **metadata):
    kernel = dict(name='python3', display_name='Python 3 (here)', language='python')
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel, **metadata), nbformat=4, nbformat_minor=5)))


@pytest.fixture
def project(tmp_path):
    "A checkout with one module and an index that holds a picture, a widget, a table and links."
    (tmp_path/'nbs').mkdir()
    (tmp_path/'adaptive_tokens').mkdir()
    for name in ('settings.ini', 'pyproject.toml'): shutil.copy(ROOT/name, tmp_path)
    shutil.copytree(ROOT/'tools', tmp_path/'tools', ignore=shutil.ignore_patterns('__pycache__'))
    write(tmp_path/'nbs'/'00_small.ipynb', cell('a1', '#| default_exp small'), text('a2', '# Small\n> One line.'),
          cell('a3', '#| export\ndef twice(x): return 2*x'))
    write(tmp_path/'nbs'/'index.ipynb', text('b1', '# Title\n\n[small](00_small.ipynb) [site](https://a.org) `f[0](x)`'),
          cell('b2', '#| hide\nsecret = 1'),
          cell('b3', '#| slow\nplot()', shown({'image/png': dict(width=40)}, **{'image/png': DOT + '\n', 'text/plain': '<Figure>'}),
               mystnb=dict(image=dict(alt='A "red" dot'))),
          cell('b4', 'w', shown(**{WIDGET: dict(model_id='f00'), 'text/plain': '<W object at 0x7f00>'}),
               shown(**{WIDGET: dict(model_id='f01')}), collapsed=True),
          cell('b5', 'table', shown(**{'text/html': '<style>td {}</style>\n<table>\n\n<tr></tr></table>', 'text/plain': 'x'})),
          cell('b6', '#| echo: false\nprint(3)', dict(output_type='stream', name='stdout', text=['3\n'])),
          cell('b7', 'profile()', dict(output_type='stream', name='stderr', text=[LOGGED, '\n'])),
          cell('b8', 'warn()', dict(output_type='stream', name='stderr', text=['a warning\n', LOGGED])),
          widgets={'state': {}})
    return tmp_path


def tool(project, verb):
    return subprocess.run([sys.executable, project/'tools'/'notebooks.py', verb], text=True, capture_output=True)


def contents(project):
    return {p.relative_to(project).as_posix(): p.read_bytes() for p in project.rglob('*')
            if p.is_file() and '__pycache__' not in p.parts}


def test_export_cleans_writes_and_repeats(project):
    assert tool(project, 'export').returncode == 0
    first = contents(project)
    nb = json.loads(first['nbs/index.ipynb'])
    assert nb['metadata'] == dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    cells = {c['id']: c for c in nb['cells']}
    assert cells['b3']['metadata'] == dict(mystnb=dict(image=dict(alt='A "red" dot')))
    assert cells['b4']['outputs'] == [shown(**{'text/plain': '<W object>'})] and not cells['b4']['metadata']
    assert cells['b7']['outputs'] == [] and [o['text'] for o in cells['b8']['outputs']] == ['a warning\n']
    assert b'def twice' in first['adaptive_tokens/small.py']
    tool(project, 'export')
    assert contents(project) == first


def test_readme_shows_code_pictures_tables_and_moved_links(project):
    tool(project, 'export')
    readme = (project/'README.md').read_text()
    assert (project/'docs'/'images'/'index-b3-0.png').read_bytes() == base64.b64decode(DOT)
    assert '[small](nbs/00_small.ipynb) [site](https://a.org) `f[0](x)`' in readme
    assert '```python\nplot()\n```\n\n<img src="docs/images/index-b3-0.png" alt="A &quot;red&quot; dot" width="40">' in readme
    assert '```python\ntable\n```\n\n<table>\n<tr></tr></table>' in readme
    assert '```\n3\n```' in readme and 'print' not in readme and 'secret' not in readme


@pytest.mark.parametrize('name, old, new', [
    ('adaptive_tokens/small.py', '2*x', '3*x'), ('README.md', '# Title', '# Other'),
    ('nbs/index.ipynb', '"execution_count": null', '"execution_count": 4')])
def test_check_finds_what_was_changed_by_hand_and_leaves_it(project, name, old, new):
    tool(project, 'export')
    assert tool(project, 'check').returncode == 0
    changed = (project/name).read_text().replace(old, new, 1)
    (project/name).write_text(changed)
    done = tool(project, 'check')
    assert done.returncode == 1 and name in done.stdout and 'make export' in done.stderr
    assert (project/name).read_text() == changed


def test_check_finds_a_module_whose_notebook_is_gone(project):
    tool(project, 'export')
    (project/'nbs'/'00_small.ipynb').unlink()
    done = tool(project, 'check')
    assert done.returncode == 1 and 'adaptive_tokens/small.py: no notebook gives this file' in done.stdout


def test_a_notebook_that_is_not_json_is_an_error(project):
    tool(project, 'export')
    (project/'nbs'/'00_small.ipynb').write_text('{"cells": [')
    assert tool(project, 'export').returncode


# --- measurements

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
    words = ['--backbones', 'deit_tiny', '--methods', 'as-vit:merge', 'adavit', '--budgets', 0.65, '--images', 2, '--repeats', 1, '--out', out]
    measure_speed(*words, '--batch-sizes', 2)
    first = json.loads(out.read_text())
    assert list(first) == ['deit_tiny, batch 2']
    made = Benchmark(**first['deit_tiny, batch 2'])
    assert [row['name'] for row in made.rows] == ['dense', 'as-vit:merge 0.65', 'adavit 0.65']
    assert all(abs(row['macs_share'] - .65) < .06 for row in made.rows[1:])
    assert list(made.meta['profile']) == [row['name'] for row in made.rows]
    measure_speed(*words, '--batch-sizes', 2, 1)
    second = json.loads(out.read_text())
    assert list(second) == [*first, 'deit_tiny, batch 1'] and second['deit_tiny, batch 2'] == first['deit_tiny, batch 2']
    with pytest.raises(SystemExit): measure_speed(*words, '--batch-sizes', 2, '--fall-back')
    assert 'was made otherwise' in capsys.readouterr().err and json.loads(out.read_text()) == second
    with pytest.raises(SystemExit): measure_speed(*words, '--batch-sizes', 3, '--repeats', 2)
    assert 'was made otherwise' in capsys.readouterr().err and json.loads(out.read_text()) == second


def test_an_interrupted_measurement_is_not_kept(measure_speed, tmp_path, monkeypatch):
    out, calls, seconds = tmp_path/'speed.json', [], bench.seconds
    def until(model, x):
        calls.append(1)
        if len(calls) > 12: raise KeyboardInterrupt
        return seconds(model, x)
    words = ['--backbones', 'deit_tiny', '--methods', 'as-vit', '--budgets', 0.65, '--images', 1, '--batch-sizes', 1, '--repeats', 20, '--out', out]
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match='interrupted'):
        m.setattr(bench, 'seconds', until)
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
        measure_speed('--backbones', 'deit_tiny', '--methods', 'as-vit', '--budgets', 0.65, '--images', 2, '--batch-sizes', 2, '--repeats', 1, '--out', out)
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
    assert alone.macs[0] == whole.macs[0] and (shares - shares.mean()).abs().max() < .05 and abs(shares.mean() - .5) < .03


def test_a_device_that_is_absent_is_named(measure_speed, capsys):
    with pytest.raises(SystemExit) as end: measure_speed('--device', 'cdua')
    assert end.value.code == 2 and 'cdua' in capsys.readouterr().err
