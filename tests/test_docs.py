"The site: complete, readable without pictures, in need of no other host; and what its build refuses."
import inspect
import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

import adaptive_tokens as at

ROOT = Path(__file__).resolve().parent.parent
DOT = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
NBS = [p for p in sorted((ROOT/'nbs').glob('*.ipynb')) if p.name[0] not in '._']
sys.path.append(str(ROOT/'tools'))
from pages import Page, faults  # noqa: E402


def build(source, out):
    options = ['-W', '--keep-going', '-q', '-c', ROOT/'docs', '-d', out/'doctrees']
    command = [sys.executable, '-m', 'sphinx', *options, source, out/'html']
    return subprocess.run(command, env=os.environ | dict(OMP_NUM_THREADS='1'), text=True, capture_output=True)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Pages by name, and their folder."
    out = tmp_path_factory.mktemp('site')
    done, folder = build(ROOT, out), out/'html'
    assert done.returncode == 0, done.stderr[-4000:]
    return {p.relative_to(folder).as_posix(): p.read_text(encoding='utf-8') for p in folder.rglob('*.html')}, folder


def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']


@pytest.mark.slow
def test_every_lesson_is_a_page_and_listed_in_order(site):
    pages, _ = site
    assert {f'nbs/{p.stem}.html' for p in NBS} | {'docs/api.html', 'CONTRIBUTING.html', 'index.html'} <= pages.keys()
    listed = re.findall(r'class="toctree-l1[^>]*><a[^>]*href="(\d[^"]*)\.html"', pages['nbs/index.html'])
    assert listed == [p.stem for p in NBS if p.stem != 'index']
    assert not [name for name, page in pages.items() if '| default_exp' in page or '| hide' in page]


@pytest.mark.slow
def test_pages_have_no_faults_and_the_alt_texts_of_the_notebooks(site):
    pages, folder = site
    assert faults(folder) == []
    for path in NBS:
        alts = set(map(unescape, re.findall(r'<img[^>]* alt="([^"]*)"', pages[f'nbs/{path.stem}.html'])))
        for cell in cells(path):
            if any('image/png' in o.get('data', {}) for o in cell.get('outputs', [])):
                assert cell['metadata']['mystnb']['image']['alt'] in alts, f"{path.name}, cell {cell['id']}"


@pytest.mark.slow
def test_formulas_are_rendered_and_explorers_are_alive(site):
    pages, _ = site
    for path in NBS:
        page = pages[f'nbs/{path.stem}.html']
        prose = ''.join(''.join(c['source']) for c in cells(path) if c['cell_type'] == 'markdown')
        assert page.count('<div class="math"><math') == len(re.findall(r'\$\$.+?\$\$', prose, re.S)), path.name
        shown = re.sub(r'<pre.*?</pre>|<code.*?</code>', '', page, flags=re.S)
        assert not re.search(r'\\(?:frac|sum|mathcal|text)\b', shown), path.name
        outputs = [o.get('data', {}) for c in cells(path) for o in c.get('outputs', [])]
        frames = sum('srcdoc' in ''.join(o.get('text/html', '')) for o in outputs)
        assert len(re.findall(r'<iframe[^>]* srcdoc=', page)) == frames, path.name
    assert '<math' in pages['nbs/10_halting.html']


@pytest.mark.slow
def test_interface_names_what_is_public_and_each_parameter(site):
    page = site[0]['docs/api.html']
    assert [name for name in at.__all__ if f'id="adaptive_tokens.{name}"' not in page] == []
    for name in ('adapt', 'calibrate', 'benchmark', 'fit', 'explore'):
        entry = page.split(f'id="adaptive_tokens.{name}"')[1].split('id="adaptive_tokens.')[0]
        told = re.findall(r'<li><p><strong>(\w+)</strong>.*? – \S', entry)
        assert told == list(inspect.signature(getattr(at, name)).parameters), name


@pytest.mark.parametrize('image, fault', [({}, True), (dict(alt=''), True), (dict(alt='A dot'), False)])
def test_build_refuses_a_picture_without_alt_text(tmp_path, image, fault):
    for name in ('docs/api.md', 'CONTRIBUTING.md', 'CHANGELOG.md'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text('# Title\n')
    shown = dict(output_type='display_data', data={'image/png': DOT}, metadata={})
    plot = dict(cell_type='code', id='plot', source='plot()', outputs=[shown], execution_count=None,
                metadata=dict(mystnb=dict(image=image)))
    nb = dict(cells=[dict(cell_type='markdown', id='text', metadata={}, source='# Title'), plot],
              metadata=dict(language_info=dict(name='python')), nbformat=4, nbformat_minor=5)
    (tmp_path/'nbs').mkdir()
    for name in ('index', '00_first'): (tmp_path/'nbs'/f'{name}.ipynb').write_text(json.dumps(nb))
    done = build(tmp_path, tmp_path/'out')
    assert bool(done.returncode) == fault, done.stderr
    assert done.stderr.count('picture without alt text') == 2 * fault


def test_faults_are_found_inside_frames_and_style_sheets(tmp_path):
    (tmp_path/'a.html').write_text(
        '<h1 id="top">A</h1><a href="#top"></a><a href="#bottom"></a><a href="b.html"></a><a href="https://a.org"></a>'
        '<script src="https://a.org/x.js"></script><link href="s.css">'
        '<iframe title="T" srcdoc="&lt;img src=//b.org/x.png&gt;"></iframe>')
    (tmp_path/'s.css').write_text('p { background: url("https://c.org/x.png") }')
    assert faults(tmp_path) == [
        'a.html: picture without alt text: //b.org/x.png', 'a.html: from another host: //b.org/x.png',
        'a.html: from another host: https://a.org/x.js', 's.css: from another host: https://c.org/x.png',
        'a.html: no such place: #bottom', 'a.html: link to nowhere: b.html']
    assert Page('<img src=x alt=x>').faults and not Page('<img src=x alt="A dot">').faults
