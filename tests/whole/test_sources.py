"Notebooks and the modules exported from them keep the rules that CONTRIBUTING.md names."
import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NBS = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if not any(o[0] in '._' for o in p.relative_to(ROOT).parts)]
LIB = ROOT/'adaptive_tokens'
MODULES = [p for p in sorted(LIB.rglob('*.py')) if p.name not in ('__init__.py', '__main__.py', '_modidx.py')]
# Modules without a page: dense mechanism without a story, written by hand. All others come from a notebook.
PLAIN = {
    '': 'devices errors patching train'.split(),
    'backbones': 'compile'.split(),
    'models': 'budget files'.split(),
    'images': 'by_name'.split(),
    'look': 'by_level encoding forms labels page panels patches'.split(),
    'measure': 'checks operators table'.split(),
    'training': 'accelerator card checks prepare progress rules run signature stall'.split(),
    'cli': 'adapting bench build calibrate demo explore main options output train'.split(),
}
FLAGS = re.compile(r'^#\|\s*(slow|gpu|hub|compiler|eval:\s*false)\b', re.M)
MACHINE = re.compile(r'(?<![\w.:/])/(?:home|root|work|Users|tmp|private|mnt|opt)/[\w.]')

each_notebook = pytest.mark.parametrize('path', NBS, ids=lambda p: p.relative_to(ROOT/'nbs').with_suffix('').as_posix())


def name_of(path): return '.'.join(path.relative_to(LIB).with_suffix('').parts)


each_module = pytest.mark.parametrize('path', MODULES, ids=name_of)


def code_cells(path):
    return [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']


def names(cell):
    "Names that a cell binds at its top level, and names that it reads."
    code = re.sub(r'^\s*[%!].*$', '', ''.join(cell['source']), flags=re.M)
    nodes = list(ast.walk(ast.parse(code)))
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    bound |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    imported = [a for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names]
    bound |= {a.asname or a.name.split('.')[0] for a in imported}
    return bound, {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def leaks(cells):
    "Names that an unflagged cell reads although only flagged cells before it have made them."
    made, flagged, found = set(), set(), []
    for cell in cells:
        bound, read = names(cell)
        if FLAGS.search(''.join(cell['source'])): flagged |= bound
        else:
            made |= bound
            found += sorted((read & flagged) - made)
    return found


@pytest.mark.parametrize('flag', ['slow', 'gpu', 'hub', 'compiler', 'eval: false'])
def test_leaks_finds_a_name_from_a_flagged_cell(flag):
    cells = [dict(source=s) for s in ('import torch', f'#| {flag}\ny = torch.ones(2)', 'y + 1')]
    assert leaks(cells) == ['y']
    assert leaks([*cells[:2], dict(source='y = 1\ny + 1')]) == []


@each_notebook
def test_unflagged_cells_need_no_flagged_ones(path):
    assert leaks(code_cells(path)) == []


@each_notebook
def test_stored_outputs_hold_no_error_and_no_path_of_a_machine(path):
    for cell in code_cells(path):
        for out in cell['outputs']:
            assert out['output_type'] != 'error', f"cell {cell['id']}: {out['ename']}: {out['evalue']}"
            data = {k: v for k, v in out.get('data', {}).items() if not k.startswith('image/')}
            shown = (''.join(v) for v in data.values() if isinstance(v, (str, list)))
            text = ''.join(out.get('text', [])) + ''.join(shown)
            text = re.sub(r'base64,[\w+/=]+', '', text)
            assert not (found := MACHINE.search(text)), f"cell {cell['id']}: {text[found.start():found.end() + 60]!r}"


@each_notebook
def test_every_picture_has_an_alt_text(path):
    for cell in code_cells(path):
        if any(k.startswith('image/') for out in cell['outputs'] for k in out.get('data', {})):
            assert cell['metadata'].get('mystnb', {}).get('image', {}).get('alt', '').strip(), f"cell {cell['id']}"
    every = json.loads(path.read_text(encoding='utf-8'))['cells']
    prose = [''.join(c['source']) for c in every if c['cell_type'] == 'markdown']
    assert not [m for s in prose for m in re.findall(r'!\[\s*\]\([^)]*\)|<img(?![^>]*\balt="[^"])[^>]*>', s)]


@each_notebook
def test_only_flagged_cells_look_for_weights_or_images(path):
    for cell in code_cells(path):
        code = ''.join(cell['source'])
        if re.match(r'#\|\s*export', code) or 'local-dir:' in code: continue
        if re.search(r'\bpretrained\s*=\s*True|ADAPTIVE_TOKENS_IMAGES', code):
            flagged = re.search(r'^#\|\s*(hub|eval:\s*false)\b', code, re.M)
            assert flagged, f"cell {cell['id']} reads the hub without the flag"


@each_module
def test_modules_come_from_the_notebook_of_their_name_or_are_named_as_plain(path):
    text = path.read_text(encoding='utf-8')
    found = re.search(r'^# AUTOGENERATED! DO NOT EDIT! File to edit: (\S+)\.$', text, re.M)
    plain = path.stem in PLAIN.get('.'.join(path.relative_to(LIB).parts[:-1]), ())
    assert bool(found) != plain, f'{name_of(path)} was not exported' if not found else f'{name_of(path)} is not plain'
    if not found: return
    page = (path.parent/found[1]).resolve()
    assert page.is_file(), f'{found[1]} does not exist'
    assert page.parent == ROOT/'nbs'/path.parent.relative_to(LIB) and re.fullmatch(rf'\d\d_{path.stem}', page.stem)


def test_every_plain_module_is_there():
    named = [LIB/room/f'{name}.py' for room, names in PLAIN.items() for name in names]
    assert [name_of(p) for p in named if not p.is_file()] == []


@pytest.mark.parametrize('path', [*MODULES, *sorted(LIB.rglob('__*__.py'))], ids=name_of)
def test_library_imports_neither_nbdev_nor_fastcore(path):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        used = [a.name for a in node.names] if isinstance(node, ast.Import) else \
            [node.module or ''] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not {'nbdev', 'fastcore', 'execnb'} & {o.split('.')[0] for o in used}, f'line {node.lineno}'
