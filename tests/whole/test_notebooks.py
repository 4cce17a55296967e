"Every notebook runs from the top, each in a process of its own; cells whose flag this machine lacks are left out."
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NBS = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if not any(o[0] in '._' for o in p.relative_to(ROOT).parts)]
RUN = '''
import sys
from pathlib import Path
from nbdev.test import test_nb as run_notebook
root, path, *flags = sys.argv[1:]
passed, _ = run_notebook(Path(path), skip_flags=flags, basepath=root)
sys.exit(not passed)
'''


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


def run_apart(path, flags, home):
    "Run a notebook less the cells under `flags`, in a process of its own that writes its settings to `home`."
    env = os.environ | dict(MPLBACKEND='Agg', IPYTHONDIR=str(home), PYTHONFAULTHANDLER='1')
    return subprocess.run([sys.executable, '-c', RUN, ROOT, path, *flags], cwd=path.parent, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_notebook(path, pytestconfig, tmp_path):
    lacking = {f: why for f, why in pytestconfig.lacking.items() if why}
    for f, n in flagged(path).items():
        if f in lacking: warnings.warn(f'{path.name}: {n} cells flagged {f} left out: {lacking[f]}', stacklevel=1)
    done = run_apart(path, lacking, tmp_path)
    assert done.returncode == 0, f'{path.name} ended with {done.returncode}:\n{done.stdout[-8000:]}'


@pytest.mark.parametrize('flags, code', [(['gpu'], 0), ([], 1)])
def test_flags_leave_cells_out_and_an_error_shows_where(tmp_path, flags, code):
    cells = [dict(cell_type='code', id=f'c{n}', metadata={}, outputs=[], execution_count=None, source=source)
             for n, source in enumerate(['import adaptive_tokens', "#| gpu\nassert False, 'a cell for the device'"])]
    path = tmp_path/'made.ipynb'
    kernel = dict(name='python3', display_name='python3', language='python')
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))
    done = run_apart(path, flags, tmp_path)
    assert done.returncode == code
    shown = 'AssertionError: a cell for the device' in done.stdout and 'Cell #2' in done.stdout
    assert shown == bool(code), done.stdout
