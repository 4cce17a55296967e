"""Notebooks to modules and README, without Quarto: `python tools/notebooks.py export | check [FOLDER]`, `run NB ...`.

`run` executes notebooks from the top in a fresh kernel and stores what they show; cells whose flag this machine lacks
keep the outputs they have.
`export` runs nbdev_export and nbdev_clean, strips widget state, and writes README.md from nbs/index.ipynb.
`check` does the same in a copy and exits 1, showing the difference, where the checkout is not what it gives.
"""
import argparse
import base64
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDGET = 'application/vnd.jupyter.widget-view+json'
PROFILER = re.compile(r'^[A-Z]+:\d{4}-\d\d-\d\d .*\.cpp:\d+\].*\n?', re.M)
HIDDEN = re.compile(r'^#\|\s*(hide|default_exp|exporti)\b', re.M)
IMAGES = {'image/png': 'png', 'image/jpeg': 'jpg', 'image/svg+xml': 'svg'}
PARTS = ['settings.ini', 'pyproject.toml', 'README.md', 'nbs', 'adaptive_tokens', 'docs/images']
SKIPPED = shutil.ignore_patterns('__pycache__', '.*')


def notebooks(root):
    "Notebooks that nbdev reads, in order."
    found = sorted((root/'nbs').rglob('*.ipynb'))
    return [p for p in found if not any(o[0] in '._' for o in p.relative_to(root).parts)]


def strip(path):
    "Remove widget state (large, new at each run, upsets viewers) and what torch's profiler logs."
    nb = json.loads(path.read_text(encoding='utf-8'))
    nb['metadata'].pop('widgets', None)
    for cell in nb['cells']:
        for out in cell.get('outputs', []):
            out.get('data', {}).pop(WIDGET, None)
            if out.get('name') == 'stderr': out['text'] = PROFILER.sub('', ''.join(out['text'])).lstrip('\n')
        cell['source'] = ''.join(cell['source'])  # as nbdev writes it, whoever wrote it last
        if 'outputs' not in cell: continue
        cell['outputs'] = [o for o in cell['outputs'] if o.get('data') != {} and o.get('text') != '']
    write(path, json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n')


def write(path, text):
    "Write only what differs, so that time stamps mean something."
    if not path.exists() or path.read_text(encoding='utf-8') != text: path.write_text(text, encoding='utf-8')


def relink(text):
    "Links are relative to nbs/ in the notebook and to the root in README.md."
    def move(m):
        if re.match(r'[a-z]+:|#|/', m[2]): return m[0]
        return m[1] + os.path.normpath(os.path.join('nbs', m[2])).replace(os.sep, '/')
    prose = re.split(r'(^```.*?^```|`[^`\n]+`)', text, flags=re.M | re.S)  # code at odd places stays as it is
    prose[::2] = [re.sub(r'(\]\(|\b(?:src|href)=")([^)"\s]+)', move, o) for o in prose[::2]]
    return ''.join(prose)


def fence(text, lang=''):
    "Fenced block; longer than any fence inside."
    ticks = '`' * max([3] + [len(o) + 1 for o in re.findall(r'`{3,}', text)])
    return f'{ticks}{lang}\n{text.rstrip()}\n{ticks}'


def picture(data, kind, meta, cell, n, folder):
    "Write one picture beside the README; return the tag that shows it."
    raw, name = ''.join(data[kind]), f"index-{cell['id']}-{n}.{IMAGES[kind]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder/name).write_bytes(raw.encode() if kind == 'image/svg+xml' else base64.b64decode(raw))
    alt = cell['metadata'].get('mystnb', {}).get('image', {}).get('alt', '').replace('"', '&quot;')
    width = meta.get(kind, {}).get('width')
    return f'<img src="docs/images/{name}" alt="{alt}"' + (f' width="{width}"' if width else '') + '>'


def output(out, cell, n, folder):
    "Markdown for one stored output: table, picture or text; empty where there is nothing to read."
    if out['output_type'] == 'stream': return fence(''.join(out['text'])) if out['name'] == 'stdout' else ''
    data = {k: ''.join(v) for k, v in out.get('data', {}).items()}
    if 'text/markdown' in data: return relink(data['text/markdown'].strip())
    for kind in IMAGES:
        if kind in data: return picture(data, kind, out.get('metadata', {}), cell, n, folder)
    if '<table' in data.get('text/html', ''):
        return re.sub(r'\n\s*\n', '\n', re.sub(r'<style.*?</style>', '', data['text/html'], flags=re.S)).strip()
    return fence(data['text/plain']) if 'text/plain' in data else ''


def readme(root):
    "Write README.md and its pictures from nbs/index.ipynb."
    folder = root/'docs'/'images'
    for old in folder.glob('index-*'): old.unlink()
    parts = ['<!-- Generated from nbs/index.ipynb by `make readme`: edit that. -->']
    for cell in json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': parts.append(relink(source.strip()))
        if cell['cell_type'] != 'code' or HIDDEN.search(source): continue
        shown = not re.search(r'^#\|\s*echo:\s*false', source, re.M)
        code = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()
        if code and shown: parts.append(fence(code, 'python'))
        parts += [output(o, cell, n, folder) for n, o in enumerate(cell['outputs'])]
    write(root/'README.md', '\n\n'.join(filter(None, parts)) + '\n')


def rewrap(path):
    "nbdev breaks the list of a module's names where it likes: at 120 columns it fits the rule for all lines."
    text = path.read_text(encoding='utf-8')
    found = re.search(r"^__all__ = \[(.*?)\]", text, re.M | re.S)
    if not found or 'AUTOGENERATED' not in text[:2000]: return
    names = ', '.join(re.findall(r"'\w+'", found[1]))
    lines = textwrap.wrap(names, 120 - len('__all__ = ['), break_on_hyphens=False)
    listed = ('\n' + ' ' * len('__all__ = [')).join(lines)
    write(path, text.replace(found[0], f'__all__ = [{listed}]', 1))


def export(root):
    "Modules, clean notebooks and README from the notebooks of `root`."
    from nbdev.clean import nbdev_clean
    from nbdev.doclinks import nbdev_export
    os.environ.pop('IN_TEST', None)  # nbdev_export does nothing while it is set
    os.chdir(root)
    nbdev_export()
    for path in (root/'adaptive_tokens').rglob('*.py'): rewrap(path)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)  # nbdev_clean only warns about a notebook that it cannot read
        nbdev_clean()
    for path in notebooks(root): strip(path)
    readme(root)


def read_all(root):
    "Every generated or cleaned file of `root` by name."
    files = [p for part in PARTS for p in ([root/part] if (root/part).is_file() else (root/part).rglob('*'))]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(files)
            if p.is_file() and not any(o == '__pycache__' or o[0] == '.' for o in p.relative_to(root).parts)}


def show(name, old, new):
    "The first lines in which a file differs."
    if old is None or new is None: return f'{name}: ' + ('missing' if old is None else 'no notebook gives this file')
    texts = [o.decode('utf-8', 'replace').splitlines() for o in (old, new)]
    diff = difflib.unified_diff(*texts, f'checkout/{name}', f'exported/{name}', lineterm='', n=1)
    return '\n'.join(line[:160] for line, _ in zip(diff, range(30)))


def check(root):
    "Export in a copy, from the notebooks alone, and compare; the checkout stays as it is."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp).resolve()/root.name
        for part in filter(lambda o: (root/o).exists(), PARTS):
            (copy/part).parent.mkdir(parents=True, exist_ok=True)
            if (root/part).is_dir(): shutil.copytree(root/part, copy/part, ignore=SKIPPED)
            else: shutil.copy2(root/part, copy/part)
        for p in (copy/'adaptive_tokens').rglob('*.py'):
            if 'AUTOGENERATED' in p.read_text(encoding='utf-8')[:2000]: p.unlink()
        subprocess.run([sys.executable, __file__, 'export', str(copy)], check=True)
        old, new = read_all(root), read_all(copy)
    stale = [o for o in sorted(old | new) if old.get(o) != new.get(o)]
    for name in stale: print(show(name, old.get(name), new.get(name)), end='\n\n')
    if stale: sys.exit(f'{len(stale)} files are not what the notebooks give: run `make export` and commit the result.')
    print(f'{len(new)} files are what the notebooks give.')


def lacking():
    "Flags of cells that this machine cannot run."
    import torch
    flags = [] if torch.cuda.is_available() else ['gpu']
    if not (os.environ.get('HF_HOME') and os.environ.get('ADAPTIVE_TOKENS_IMAGES')): flags.append('hub')
    if not (shutil.which('g++') or shutil.which('clang++') or os.environ.get('CXX')): flags.append('compiler')
    return [*flags, 'eval: false']


def run(path):
    "Execute a notebook in a fresh kernel, in its folder, and store its outputs; at an error nothing is stored."
    import nbformat
    from nbclient import NotebookClient
    nb, left_out = nbformat.read(path, as_version=4), lacking()
    whole = nb.cells
    nb.cells = [c for c in whole if not any(re.search(rf'^#\|\s*{flag}\b', c.source, re.M) for flag in left_out)]
    os.environ.setdefault('MPLBACKEND', 'module://matplotlib_inline.backend_inline')
    os.environ['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
    place = dict(metadata=dict(path=str(path.parent)))
    NotebookClient(nb, timeout=1800, kernel_name='python3', resources=place).execute()
    nb.cells = whole
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.execution_count = None
        for out in cell.get('outputs', []):
            if 'execution_count' in out: out['execution_count'] = None
        cell.metadata.pop('execution', None)
    nb.metadata = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    nbformat.write(nb, path)
    strip(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = dict(export=export, readme=readme, check=check)
    parser.add_argument('verb', choices=[*verbs, 'run'])
    parser.add_argument('paths', nargs='*', type=Path, help='folder of the project; for run: notebooks (default: all)')
    args = parser.parse_args()
    if args.verb != 'run': return verbs[args.verb]((args.paths or [ROOT])[0].resolve())
    for path in args.paths or notebooks(ROOT):
        print(path, flush=True)
        run(path.resolve())


if __name__ == '__main__': main()
