"Every notebook runs from the top, each in a process of its own; cells whose flag this machine lacks are left out."
import json
import re
import warnings
from pathlib import Path

import pytest
from notebook_runner import run_apart

ROOT = Path(__file__).resolve().parents[2]
NBS = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if not any(o[0] in '._' for o in p.relative_to(ROOT).parts)]


def flagged(path):
    "Number of cells under each flag."
    every = json.loads(path.read_text(encoding='utf-8'))['cells']
    cells = [''.join(c['source']) for c in every if c['cell_type'] == 'code']
    def count(flag): return sum(bool(re.search(rf'^#\|\s*{flag}\b', c, re.M)) for c in cells)
    return {flag: n for flag in ('slow', 'gpu', 'hub', 'compiler') if (n := count(flag))}


def pytest_generate_tests(metafunc):
    "`-m gpu` chooses the notebooks with gpu cells; without a CUDA device they run as all others do, less those cells."
    if 'path' not in metafunc.fixturenames: return
    cuda = not metafunc.config.lacking['gpu']
    metafunc.parametrize('path', [
        pytest.param(p, id=p.relative_to(ROOT/'nbs').with_suffix('').as_posix(),
                     marks=[pytest.mark.gpu] if cuda and 'gpu' in flagged(p) else []) for p in NBS])


def test_notebook(path, pytestconfig, tmp_path):
    lacking = {f: why for f, why in pytestconfig.lacking.items() if why}
    for f, n in flagged(path).items():
        if f in lacking: warnings.warn(f'{path.name}: {n} cells flagged {f} left out: {lacking[f]}', stacklevel=1)
    status, printed = run_apart(path, lacking, tmp_path, ROOT)
    assert status == 0, f'{path.name} ended with {status}:\n{printed[-8000:]}'


@pytest.mark.parametrize('flags, code', [(['gpu'], 0), ([], 1)])
def test_flags_leave_cells_out_and_an_error_shows_where(tmp_path, flags, code):
    cells = [dict(cell_type='code', id=f'c{n}', metadata={}, outputs=[], execution_count=None, source=source)
             for n, source in enumerate(['import adaptive_tokens', "#| gpu\nassert False, 'a cell for the device'"])]
    path = tmp_path/'made.ipynb'
    kernel = dict(name='python3', display_name='python3', language='python')
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))
    status, printed = run_apart(path, flags, tmp_path, ROOT)
    assert status == code
    shown = 'AssertionError: a cell for the device' in printed and 'Cell #2' in printed
    assert shown == bool(code), printed
