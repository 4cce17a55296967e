"What a machine lacks is skipped by mark, with the reason; the report's header says the same in one line per mark."
import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
import pytest
import torch
from torch._dynamo.utils import counters

from adaptive_tokens.backbones.compile import compiled_part
from adaptive_tokens.devices import check_compiler

pytest_plugins = ['command_line']
WEIGHTS, IMAGES = 'timm/deit_tiny_patch16_224.fb_in1k', 'imagenet_val_1300.tar'


def lacking_hub():
    "Why real weights and images are out of reach; empty if they are not."
    folder = os.environ.get('ADAPTIVE_TOKENS_IMAGES')
    if not folder: return 'ADAPTIVE_TOKENS_IMAGES names no folder of real images'
    if not (Path(folder)/IMAGES).is_file(): return f'no {IMAGES} in ADAPTIVE_TOKENS_IMAGES={folder}'
    if not isinstance(huggingface_hub.try_to_load_from_cache(WEIGHTS, 'model.safetensors'), str):
        return f'no {WEIGHTS} in the hub cache {huggingface_hub.constants.HF_HUB_CACHE} (HF_HOME names another)'
    return ''


def chromium():
    "Path of a browser without a window; None if there is none."
    return shutil.which('chromium-headless-shell') or shutil.which('chromium')


def lacking_browser():
    "Why nothing can be shown; empty if it can."
    if not find_spec('playwright'): return 'playwright is not installed'
    lacking = 'no chromium-headless-shell or chromium on PATH (Debian: apt-get install chromium-headless-shell)'
    return '' if chromium() else lacking


@pytest.fixture
def traced(monkeypatch):
    "torch.compile without a compiler: programs are traced, counted and differentiated, and run operator by operator."
    compiler = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **options: compiler(f, **{**options, 'backend': 'aot_eager'}))
    for empty in (torch._dynamo.reset, counters.clear, compiled_part.cache_clear): empty()
    yield
    compiled_part.cache_clear()


@pytest.fixture(scope='session')
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    "Open a file in a browser that reads only those of `site`; afterwards nothing must be missed or complained about."
    said, contexts = [], []

    def visit(path, site=None, **options):
        context = browser.new_context(**{**dict(viewport=dict(width=1000, height=900)), **options})
        contexts.append(context)
        page, own = context.new_page(), path.as_uri()
        def known(url): return url == own or site is not None and url.startswith(site.as_uri() + '/')
        def answer(route):
            if known(route.request.url): return route.continue_()
            said.append(route.request.url)
            route.abort()
        def listen(message):
            if message.type in ('error', 'warning'): said.append(message.text)
        page.route('**/*', answer)
        page.on('console', listen)
        page.on('pageerror', lambda error: said.append(str(error)))
        page.on('dialog', lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.goto(own)
        return page
    yield visit
    for context in contexts: context.close()
    assert said == []


def lacking_compiler():
    "Why nothing can be compiled; empty if it can."
    try: check_compiler('cpu')
    except ValueError as e: return str(e)
    found = shutil.which('ninja') or shutil.which('ninja', path=sysconfig.get_path('scripts'))
    return '' if found else 'ninja is not installed'


def pytest_addoption(parser):
    parser.addoption('--fast', action='store_true', help='leave out what takes more than about 20 s (mark slow)')


def pytest_configure(config):
    torch.set_num_threads(1)  # small models make threads wait for each other
    if 'PYTEST_XDIST_WORKER' in os.environ: os.environ['OMP_NUM_THREADS'] = '1'  # tests start processes beside others
    config.lacking = dict(slow='--fast was given' if config.getoption('--fast') else '',
                          gpu='' if torch.cuda.is_available() else 'no CUDA device', hub=lacking_hub(),
                          browser=lacking_browser(), compiler=lacking_compiler())


def pytest_report_header(config):
    return [f"{flag}: {'skipped: ' + why if why else 'runs'}" for flag, why in config.lacking.items()]


def turn(item):
    "The notebook that takes longest, with real images, comes first, the others last: so processes end together."
    if item.path.stem != 'test_notebooks': return 1
    return 0 if 'methods/03_asvit' in item.name else 2


def pytest_collection_modifyitems(config, items):
    items.sort(key=turn)
    for item in items:
        for flag, why in config.lacking.items():
            if why and item.get_closest_marker(flag): item.add_marker(pytest.mark.skip(reason=f'{flag}: {why}'))
