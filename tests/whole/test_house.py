"The house rules that CONTRIBUTING names: rooms, sizes, docstrings, parameters, and pages that show what they export."
import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIB = ROOT/'adaptive_tokens'
# A module imports only from its own room and from those before it.
ROOMS = ['errors', 'devices', 'patching', 'tokens', 'backbones', 'models', 'methods', 'images', 'look', 'measure',
         'training', 'cli', 'train']
MODULES = [p for p in sorted(LIB.rglob('*.py')) if p.name not in ('__init__.py', '__main__.py', '_modidx.py')]
PAGES = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if not any(o[0] in '._' for o in p.relative_to(ROOT).parts)]


def name_of(path): return '.'.join(path.relative_to(LIB).with_suffix('').parts)


each_module = pytest.mark.parametrize('path', MODULES, ids=name_of)
each_page = pytest.mark.parametrize('path', PAGES, ids=lambda p: p.relative_to(ROOT/'nbs').with_suffix('').as_posix())


def imports(path):
    "Modules of the package that a module imports when it is loaded or later, by their dotted names."
    room, found = name_of(path).split('.')[:-1], set()
    if path.name == '__init__.py': room = list(path.relative_to(LIB).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(node, ast.ImportFrom): continue
        if node.level: base = room[:len(room) + 1 - node.level]
        elif (node.module or '').split('.')[0] == LIB.name: base = []
        else: continue
        module = (node.module or '').removeprefix(LIB.name).strip('.')
        if module: found.add('.'.join([*base, module]))
        else: found |= {'.'.join([*base, alias.name]) for alias in node.names}
    return found


@each_module
def test_imports_point_to_rooms_before(path):
    own = ROOMS.index(name_of(path).split('.')[0])
    later = [o for o in imports(path) if o.split('.')[0] in ROOMS and ROOMS.index(o.split('.')[0]) > own]
    if name_of(path) != 'train': assert not later, f'imports from a later room: {later}'


def test_no_imports_go_round():
    graph, done = {name_of(p): imports(p) for p in MODULES}, set()

    def visit(module, path):
        assert module not in path, f"imports go round: {' -> '.join([*path[path.index(module):], module])}"
        if module in done or module not in graph: return
        for other in graph[module]: visit(other, [*path, module])
        done.add(module)
    for module in graph: visit(module, [])


def test_no_method_imports_another():
    files = (LIB/'methods').glob('[a-z]*.py')
    assert {name_of(p): o for p in files for o in imports(p) if o.startswith('methods')} == {}


@each_module
def test_modules_are_short(path):
    lines = [o for o in path.read_text(encoding='utf-8').splitlines() if o.strip() and not o.startswith('# %%')]
    assert len(lines) <= 300, f'{len(lines)} lines: which subject can leave?'


def public(path):
    "Functions, classes and methods that a module offers, with the name of the class in front of a method."
    tree = ast.parse(path.read_text(encoding='utf-8'))
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__']
    offered = ast.literal_eval(lists[0]) if lists else []
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in offered: continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name[0] != '_': yield f'{node.name}.{inner.name}', inner


@each_module
def test_what_is_public_has_a_docstring(path):
    inherited = {'forward', 'options', 'macs', 'extra_losses', 'calibrate', 'init_from_data', 'after_backward',
                 'set_budget', 'threshold_lines', 'compared_scores'}  # told by Method
    contracts = {'Tokens', 'Backbone', 'BackboneBlock'}  # each operation is told once, where it is declared
    answering = {node.name for _, node in public(path) if isinstance(node, ast.ClassDef)
                 and contracts & {base.id for base in node.bases if isinstance(base, ast.Name)}}
    missing = [name for name, node in public(path) if not ast.get_docstring(node)
               and name.split('.')[-1] not in inherited and ('.' not in name or name.split('.')[0] not in answering)]
    assert not missing, f'without a docstring: {missing}'


@each_module
def test_parameters_of_what_is_public_are_described(path):
    text = path.read_text(encoding='utf-8')
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    beside = {t.start[0]: t.string[1:].strip() for t in tokens if t.type == tokenize.COMMENT}
    missing, odd = [], []
    for name, node in public(path):
        if '.' in name or not isinstance(node, ast.FunctionDef): continue
        arguments = [a for a in ast.walk(node.args) if isinstance(a, ast.arg)]
        for a in arguments:
            said = beside.get(a.lineno, '') if a.lineno > node.lineno else ''
            if not said: missing.append(f'{name}({a.arg})')
            elif re.match(r'[a-z]', said): odd.append(f'{name}({a.arg}): {said}')
    assert not missing, f'not described: {missing}'
    assert not odd, f'a description stands alone and begins with a capital letter: {odd}'


def parts(path):
    "(kind, lines) of the code cells of a page: 'export', 'lesson', or 'other' for what is hidden or only imports."
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] != 'code': continue
        source = ''.join(cell['source'])
        lines = [o for o in source.splitlines() if o.strip() and not o.startswith('#|')]
        code = re.sub(r'^\s*[%!].*$', 'pass', source, flags=re.M)
        body = ast.parse(code).body
        if not body or all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body): kind = 'other'
        elif re.search(r'^#\|\s*exporti?\b', source, re.M): kind = 'export'
        else: kind = 'other' if re.search(r'^#\|\s*hide\b', source, re.M) else 'lesson'
        yield kind, len(lines)


@each_page
def test_exported_cells_fit_on_a_screen(path):
    assert max((n for kind, n in parts(path) if kind == 'export'), default=0) <= 40


@each_page
def test_no_long_stretch_of_code_without_a_lesson(path):
    longest = here = 0
    for kind, n in parts(path):
        if kind == 'lesson': here = 0
        if kind == 'export': here += n
        longest = max(longest, here)
    assert longest <= 60, f'{longest} exported lines without a lesson cell between them'


@each_page
def test_a_page_teaches_at_least_a_third_of_what_it_exports(path):
    exported, lesson = (sum(n for kind, n in parts(path) if kind == k) for k in ('export', 'lesson'))
    assert exported <= 3 * lesson, f'{exported} exported lines, {lesson} lesson lines'
