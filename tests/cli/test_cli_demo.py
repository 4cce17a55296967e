"`demo`: numbers, pictures and a page, whole or absent."
import pytest
from command_line import FEW, PAGE, check_page, full, stop
from PIL import Image

from adaptive_tokens.cli import demo
from adaptive_tokens.measure.result import Benchmark
from adaptive_tokens.models import checkpoint


def test_demo_writes_numbers_pictures_and_a_page(run, small_demo, out):
    code, text, err = run('demo', '--out', out, *FEW)
    assert code == 0 and err == '' and 'as-vit' in text and str(out/'index.html') in text
    methods, kinds = ('as-vit', 'a-vit', 'adavit'), ('easy', 'medium', 'hard', 'tokens')
    pictures = {f'{method}-{kind}.png' for method in methods for kind in kinds}
    pictures |= {'as-vit-heads.png', 'adavit-gates.png'}
    assert {f.name for f in out.iterdir()} == PAGE | pictures | {'explorer.html'}
    assert list(out.parent.iterdir()) == [out]
    for name in pictures: Image.open(out/name).verify()
    page = check_page(out, 15)
    assert len(page.all('a')) == 1 and '"a-vit"' in (out/'explorer.html').read_text()
    assert len(page.all('table')) == 4
    assert all(word in page.text for word in ('difficulty', 'easy', 'hard', 'beside it', 'speed-up'))
    assert [row['name'] for row in Benchmark.load(out/'benchmark.json').rows] == ['dense', 'a-vit', 'adavit', 'as-vit']


def test_demo_renews_its_own_folder_and_spares_the_rest(run, small_demo, out):
    out.mkdir()
    (out/'notes.txt').write_text('mine')
    (out/'index.html').write_text('old')
    assert run('demo', '--out', out, *FEW, '--n', '2')[0] == 0
    assert (out/'notes.txt').read_text() == 'mine' and (out/'index.html').read_text() != 'old'
    assert len(check_page(out, 12).all('tr')) == 5 + 3 + 3 + 3  # two images are easy and medium


def test_demo_says_that_its_models_are_missing(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, 'files', lambda package: tmp_path)
    refused(['holds no dense model', 'install'], 'demo', *FEW)


@pytest.mark.parametrize('what', ['benchmark', 'report_benchmark', 'pictures'])
@pytest.mark.parametrize('how, code', [(stop, 130), (full, 2)])
def test_what_fails_half_way_leaves_nothing(run, small_demo, out, monkeypatch, what, how, code):
    monkeypatch.setattr(demo, what, how)
    ended, _, err = run('demo', '--out', out, *FEW)
    assert ended == code and 'Traceback' not in err and err.count('\n') == 1 and list(out.parent.iterdir()) == []


def test_what_fails_half_way_leaves_old_results_alone(run, small_demo, out, monkeypatch):
    out.mkdir()
    (out/'index.html').write_text('old')
    monkeypatch.setattr(Benchmark, 'plot', full)
    assert run('demo', '--out', out, *FEW)[0] == 2
    assert [f.name for f in out.iterdir()] == ['index.html'] and (out/'index.html').read_text() == 'old'
