"Export, clean and README: nothing of a run's own stays behind, and doing it twice changes nothing."
import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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
    metadata = dict(kernelspec=kernel, **metadata)
    path.write_text(json.dumps(dict(cells=cells, metadata=metadata, nbformat=4, nbformat_minor=5)))


@pytest.fixture
def project(tmp_path):
    "A checkout with one module and an index that holds a picture, a widget, a table and links."
    (tmp_path/'nbs').mkdir()
    (tmp_path/'adaptive_tokens').mkdir()
    for name in ('settings.ini', 'pyproject.toml'): shutil.copy(ROOT/name, tmp_path)
    shutil.copytree(ROOT/'tools', tmp_path/'tools', ignore=shutil.ignore_patterns('__pycache__'))
    write(tmp_path/'nbs'/'00_small.ipynb', cell('a1', '#| default_exp small'), text('a2', '# Small\n> One line.'),
          cell('a3', '#| export\ndef twice(x): return 2*x'))
    title = '# Title\n\n[small](00_small.ipynb) [site](https://a.org) `f[0](x)`'
    picture = shown({'image/png': dict(width=40)}, **{'image/png': DOT + '\n', 'text/plain': '<Figure>'})
    table = shown(**{'text/html': '<style>td {}</style>\n<table>\n\n<tr></tr></table>', 'text/plain': 'x'})
    write(tmp_path/'nbs'/'index.ipynb', text('b1', title),
          cell('b2', '#| hide\nsecret = 1'),
          cell('b3', '#| slow\nplot()', picture, mystnb=dict(image=dict(alt='A "red" dot'))),
          cell('b4', 'w', shown(**{WIDGET: dict(model_id='f00'), 'text/plain': '<W object at 0x7f00>'}),
               shown(**{WIDGET: dict(model_id='f01')}), collapsed=True),
          cell('b5', 'table', table),
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
    tag = '<img src="docs/images/index-b3-0.png" alt="A &quot;red&quot; dot" width="40">'
    assert f'```python\nplot()\n```\n\n{tag}' in readme
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


def test_pages_in_a_folder_make_a_package(project):
    (project/'nbs'/'room').mkdir()
    (project/'adaptive_tokens'/'room').mkdir()
    write(project/'nbs'/'room'/'01_more.ipynb', cell('c1', '#| default_exp room.more'),
          text('c2', '# More\n> One line.'),
          cell('c3', '#| export\nfrom adaptive_tokens.small import twice\ndef four(x): return twice(twice(x))'))
    assert tool(project, 'export').returncode == 0
    module = (project/'adaptive_tokens'/'room'/'more.py').read_text()
    assert 'from ..small import twice' in module and 'def four' in module
    assert tool(project, 'check').returncode == 0
    (project/'nbs'/'room'/'01_more.ipynb').unlink()
    done = tool(project, 'check')
    assert done.returncode == 1 and 'adaptive_tokens/room/more.py: no notebook gives this file' in done.stdout


def test_a_notebook_that_is_not_json_is_an_error(project):
    tool(project, 'export')
    (project/'nbs'/'00_small.ipynb').write_text('{"cells": [')
    assert tool(project, 'export').returncode
