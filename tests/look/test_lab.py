"The explorer alive in JupyterLab: keys stay with it, Python and the page hear each other, a budget is calibrated."
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CELLS = ["""import torch, adaptive_tokens as at
from adaptive_tokens.images.digits import ClutteredDigits, normalize
from adaptive_tokens.models.checkpoint import shipped
b = ClutteredDigits('test').batch(range(3))
explorer = at.explore({k: v for k, v in shipped().items() if k in ('dense', 'as-vit')}, normalize(b.images), b.labels)
explorer""", "print('heard', explorer.layer, explorer.token, explorer.image)", "explorer.layer = 11"]


PATIENCE = 240  # seconds; other tests run beside this one


def wait_for(ready, seconds=PATIENCE):
    "Ask until it is so."
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(.2)


def answers(url):
    try: return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError: return False


@pytest.fixture
def lab(tmp_path):
    "Address of a server whose only notebook holds CELLS."
    if not find_spec('jupyterlab'): pytest.skip('jupyterlab is not installed')
    empty = dict(cell_type='code', metadata={}, outputs=[], execution_count=None)
    cells = [dict(empty, id=f'cell{k}', source=source) for k, source in enumerate(CELLS)]
    kernel = dict(display_name='Python 3', language='python', name='python3')
    notebook = dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    (tmp_path/'x.ipynb').write_text(json.dumps(notebook))
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    words = ['--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--IdentityProvider.token=',
             '--LabApp.expose_app_in_browser=True']
    own = {name: str(tmp_path/'.jupyter') for name in ('JUPYTER_CONFIG_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR')}
    server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *words], cwd=tmp_path, env=os.environ | own,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: answers(f'http://127.0.0.1:{port}/api/status'))
        yield f'http://127.0.0.1:{port}/lab/tree/x.ipynb?reset'
    finally:
        server.terminate()
        try: server.wait(PATIENCE)
        except subprocess.TimeoutExpired: server.kill()


@pytest.fixture
def page(lab, browser):
    page = browser.new_page(viewport=dict(width=1300, height=1400))
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(lab)
    page.locator('.jp-Notebook').wait_for()
    page.get_by_text('| Idle').wait_for()  # before, a command would ask which kernel
    yield page
    page.close()


def do(page, command): page.evaluate(f"void jupyterapp.commands.execute('{command}')")


def heard(page):
    "What Python knows: block, patch, image."
    page.locator('.jp-Cell').nth(1).locator('.jp-InputArea').click()
    before = page.locator('.jp-Cell').nth(1).locator('.jp-InputPrompt').inner_text()
    do(page, 'notebook:run-cell')
    prompt = page.locator('.jp-Cell').nth(1).locator('.jp-InputPrompt')
    wait_for(lambda: re.match(r'\[\d+\]', prompt.inner_text()) and prompt.inner_text() != before)
    text = page.locator('.jp-Cell').nth(1).locator('.jp-OutputArea-output').inner_text()
    return [int(n) for n in re.findall(r'-?\d+', text)]


def test_the_explorer_lives_in_jupyterlab(page):
    do(page, 'runmenu:run-all')
    live, slider = page.locator('.at-live'), page.locator('label:has-text("Block") input')
    live.wait_for()
    wait_for(lambda: 'block 11' in live.inner_text())  # Python moved it
    slider.focus()
    for key in ('Home', 'ArrowRight', 'ArrowRight', 'ArrowRight', 'ArrowUp'): page.keyboard.press(key)
    assert 'block 5' in live.inner_text()              # the notebook did not take the keys
    page.locator('.at-grid').first.focus()
    for key in ('ArrowDown', 'ArrowDown', 'ArrowRight', 'Enter'): page.keyboard.press(key)
    assert page.locator('.at-card p').first.inner_text() == 'Patch 17 (row 2, column 1), kept'
    page.locator('.at-thumb[data-image="2"]').click()
    assert heard(page) == [5, 17, 2]

    budget, facts = page.locator('label:has-text("Budget") input'), page.locator('.at-models .at-facts').nth(2)
    assert budget.count() == 1
    before = facts.inner_text()
    budget.focus()
    for _ in range(3): page.keyboard.press('ArrowLeft')
    said = page.locator('[role=status]')
    wait_for(lambda: re.search('as-vit spends (4|50)', said.inner_text()))  # each press is answered, in turn
    assert facts.inner_text() != before
    assert budget.get_attribute('aria-label') == 'Budget of as-vit' and budget.get_attribute('aria-valuetext') == '50 %'
    page.keyboard.press('Home')
    wait_for(lambda: 'out of reach' in page.locator('[role=status]').inner_text())
    assert budget.input_value() == '0.5' and budget.get_attribute('aria-valuetext') == '50 %'  # what is in force
