"The site: complete, readable without pictures, in need of no other host; and what its build refuses."
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
import timm
import torch

import adaptive_tokens as at

ROOT = Path(__file__).resolve().parents[2]
DOT = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
NBS = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if not any(o[0] in '._' for o in p.relative_to(ROOT).parts)]
ROOMS = dict(tokens='Tokens', backbones='Backbones', models='Models', methods='Methods', images='Images', look='Look',
             measure='Measure', training='Train', cli='Command line', tutorials='Tutorials')
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


def page_of(path): return path.relative_to(ROOT).with_suffix('.html').as_posix()


def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']


@pytest.mark.slow
def test_every_lesson_is_a_page_and_listed_in_order(site):
    pages, _ = site
    assert set(map(page_of, NBS)) | {'docs/api.html', 'CONTRIBUTING.html', 'index.html'} <= pages.keys()
    listed = re.findall(r'class="toctree-l1[^>]*><a[^>]*href="([a-z]+/[^"]*)\.html"', pages['nbs/index.html'])
    lessons = [f'nbs/{name}.html' for name in listed if name.split('/')[0] != 'tutorials']
    numbered = [p for room in ROOMS for p in NBS if p.parent.name == room != 'tutorials']
    assert lessons == [page_of(p) for p in numbered] and all(p.stem[0].isdigit() for p in numbered)
    assert listed[len(lessons):] == [name for name in listed if name.split('/')[0] == 'tutorials']  # they come last
    assert {f'nbs/{name}.html' for name in listed} == {page_of(p) for p in NBS if p.stem != 'index'}
    captions = re.findall(r'<p class="caption"[^>]*><span class="caption-text">([^<]*)', pages['nbs/index.html'])
    assert captions == [*ROOMS.values(), 'Reference']
    assert not [name for name, page in pages.items() if '| default_exp' in page or '| hide' in page]
    assert not [name for name, page in pages.items() if name.startswith('nbs/') and '#| export' in page]


@pytest.mark.slow
def test_lessons_open_with_their_question_and_fold_imports_away(site):
    pages, _ = site
    for path in NBS:
        page = pages[page_of(path)]
        below_title = re.search(r'<h1>.*?</h1>\s*<(\w+)', page, re.S)
        assert below_title[1] == 'blockquote', f'{path.name}: the question comes first'
        code = re.sub(r'<details class="[^"]*hide.*?</details>', '', page, flags=re.S)
        blocks = re.findall(r'<div class="highlight-python[^>]*>(.*?)</pre>', code, re.S)
        lines = [unescape(re.sub(r'<[^>]*>', '', block)).strip().splitlines() for block in blocks]
        assert not [o for o in lines if o and all(re.match(r'(import|from) ', line) for line in o)], path.name


def code(source): return dict(cell_type='code', id='c', source=source, outputs=[], execution_count=None, metadata={})


def test_cells_for_nbdev_are_left_out_and_imports_folded_into_one():
    for_readers = runpy.run_path(str(ROOT/'docs'/'conf.py'))['for_readers']
    sources = ['#| default_exp a.b', '#| export\nimport a\nfrom b import (c,\n    d)', 'import e', '#| hide\nx',
               '#| export', '#| exporti\ndef f(): pass', 'import g\ng.h()', '#| echo: false\nf()', '#| gpu\nf()',
               'import late', '%matplotlib inline']
    cells = for_readers(list(map(code, sources)))
    assert [(c['source'], *c['metadata'].get('tags', [])) for c in cells] == [
        ('import a\nfrom b import (c,\n    d)\nimport e', 'hide-input'), ('def f(): pass',), ('import g\ng.h()',),
        ('#| echo: false\nf()', 'remove-input'), ('#| gpu\nf()',), ('import late', 'hide-input'),
        ('%matplotlib inline',)]


@pytest.mark.slow
def test_pages_have_no_faults_and_the_alt_texts_of_the_notebooks(site):
    pages, folder = site
    assert faults(folder) == []
    for path in NBS:
        alts = set(map(unescape, re.findall(r'<img[^>]* alt="([^"]*)"', pages[page_of(path)])))
        for cell in cells(path):
            if any('image/png' in o.get('data', {}) for o in cell.get('outputs', [])):
                assert cell['metadata']['mystnb']['image']['alt'] in alts, f"{path.name}, cell {cell['id']}"


@pytest.mark.slow
def test_formulas_are_rendered_and_explorers_are_alive(site):
    pages, _ = site
    for path in NBS:
        page = pages[page_of(path)]
        prose = ''.join(''.join(c['source']) for c in cells(path) if c['cell_type'] == 'markdown')
        assert page.count('<div class="math"><math') == len(re.findall(r'\$\$.+?\$\$', prose, re.S)), path.name
        shown = re.sub(r'<pre.*?</pre>|<code.*?</code>', '', page, flags=re.S)
        assert not re.search(r'\\(?:frac|sum|mathcal|text)\b', shown), path.name
        outputs = [o.get('data', {}) for c in cells(path) for o in c.get('outputs', [])]
        frames = sum('srcdoc' in ''.join(o.get('text/html', '')) for o in outputs)
        assert len(re.findall(r'<iframe[^>]* srcdoc=', page)) == frames, path.name
    assert '<math' in pages['nbs/methods/01_avit.html']


SCREENS = [{}, dict(color_scheme='dark'), dict(viewport=dict(width=320, height=640))]
ALIVE = [p for p in NBS if 'srcdoc=' in p.read_text(encoding='utf-8')]


def explored(page):
    "The first explorer of a page, after arrow keys moved it from its first block to its fourth and over its patches."
    frame = page.frame_locator('iframe').first
    page.locator('iframe').first.scroll_into_view_if_needed()
    live, slider = frame.locator('output.at-live'), frame.locator('label:has-text("Block") input')
    live.wait_for()
    slider.focus()
    page.keyboard.press('Home')
    before = live.inner_text()
    for _ in range(3): page.keyboard.press('ArrowRight')
    assert 'block 1' in before and 'block 4' in live.inner_text()
    frame.locator('.at-grid').first.focus()
    page.keyboard.press('Home')
    column = frame.locator('.at-card p').first.inner_text()
    page.keyboard.press('ArrowRight')
    assert 'column 0)' in column and 'column 1)' in frame.locator('.at-card p').first.inner_text()
    explorer = frame.locator('.at-explorer')
    twice = 'requestAnimationFrame(() => requestAnimationFrame(done))'  # frames follow their content
    explorer.evaluate(f'() => new Promise(done => {twice})')
    whole = 'document.documentElement'
    inner = explorer.evaluate(f'() => [{whole}.scrollHeight, {whole}.scrollWidth, innerWidth]')
    outer = page.locator('iframe').first.bounding_box()
    assert outer['height'] >= inner[0] - 1 and inner[1] <= inner[2]
    assert page.evaluate('document.documentElement.scrollWidth') <= page.viewport_size['width']
    return frame


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize('path, options', [(p, {}) for p in ALIVE] + [(ALIVE[-1], o) for o in SCREENS[1:]],
                         ids=lambda v: v.stem if isinstance(v, Path) else '-'.join(v))
def test_explorers_answer_keys_on_the_pages(site, visit, path, options):
    folder = site[1]
    frame = explored(visit(folder/page_of(path), folder, **options))
    ground = frame.locator('.at-explorer').evaluate('e => getComputedStyle(e).backgroundColor')
    assert (max(map(int, re.findall(r'\d+', ground)[:3])) < 60) == ('color_scheme' in options)


@pytest.mark.slow
def test_interface_names_what_is_public_and_each_parameter(site):
    page = site[0]['docs/api.html']
    assert [name for name in at.__all__ if f'id="adaptive_tokens.{name}"' not in page] == []
    for name in ('adapt', 'calibrate', 'benchmark', 'fit', 'explore'):
        entry = page.split(f'id="adaptive_tokens.{name}"')[1].split('id="adaptive_tokens.')[0]
        told = re.findall(r'<li><p><strong>(\w+)</strong>.*? – \S', entry)
        assert told == list(inspect.signature(getattr(at, name)).parameters), name


def small_site(tmp_path, *cells):
    "Build a site of two pages with these cells."
    for name in ('docs/api.md', 'CONTRIBUTING.md', 'CHANGELOG.md'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text('# Title\n')
    nb = dict(cells=[dict(cell_type='markdown', id='text', metadata={}, source='# Title'), *cells],
              metadata=dict(language_info=dict(name='python')), nbformat=4, nbformat_minor=5)
    (tmp_path/'nbs'/'tokens').mkdir(parents=True)
    for name in ('index', 'tokens/01_first'): (tmp_path/'nbs'/f'{name}.ipynb').write_text(json.dumps(nb))
    return build(tmp_path, tmp_path/'out')


def output(data, **metadata):
    shown = dict(output_type='display_data', data=data, metadata={})
    return dict(cell_type='code', id='shown', source='show()', outputs=[shown], execution_count=None, metadata=metadata)


@pytest.mark.parametrize('image, fault', [({}, True), (dict(alt=''), True), (dict(alt='A dot'), False)])
def test_build_refuses_a_picture_without_alt_text(tmp_path, image, fault):
    done = small_site(tmp_path, output({'image/png': DOT}, mystnb=dict(image=image)))
    assert bool(done.returncode) == fault, done.stderr
    assert done.stderr.count('picture without alt text') == 2 * fault


@pytest.mark.browser
def test_hostile_names_on_a_page_of_the_site_are_text(tmp_path, visit):
    hostile = '</script><script>alert(1)</script><img src=x onerror=alert(2)>"\'&amp;'
    vit = timm.create_model('test_vit', img_size=64, num_classes=2, depth=4).eval()
    explorer = at.explore({hostile: vit}, torch.randn(2, 3, 64, 64), [0, 1], [hostile] * 2)
    data = {k: v for k, v in explorer._repr_mimebundle_()[0].items() if k.startswith('text/')}
    done = small_site(tmp_path, output(data))
    assert done.returncode == 0, done.stderr
    for options in SCREENS:
        page = tmp_path/'out'/'html'/'nbs'/'tokens'/'01_first.html'
        frame = explored(visit(page, tmp_path/'out'/'html', **options))
        for place in ('figcaption', '.at-facts', '.at-picked'):
            assert hostile in frame.locator(place).first.inner_text()
        assert frame.locator('img[src=x]').count() == 0


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
