"Tables, files and figures of a benchmark."
import json
import os
from itertools import combinations

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.text import Text
from small_models import quick

from adaptive_tokens.measure.benchmark import benchmark
from adaptive_tokens.measure.result import Benchmark
from adaptive_tokens.measure.table import COLUMNS


@pytest.fixture
def made(models, images): return benchmark(models, images, torch.arange(7), **quick)


def test_saved_and_loaded_is_the_same(made, tmp_path):
    path = tmp_path/'new'/'bench.json'
    made.save(path)
    assert Benchmark.load(path) == made and Benchmark.load(str(path)) == made
    assert [p.name for p in path.parent.iterdir()] == ['bench.json']
    assert set(json.loads(path.read_text())) == {'rows', 'meta', 'timings'}
    assert made.rows[0]['over_dense'] is None and made.rows[1]['over_dense']['mean'] == pytest.approx(
        made.rows[1]['top1'] - made.rows[0]['top1'])


def test_an_interrupted_save_leaves_the_old_file(made, tmp_path, monkeypatch):
    path = tmp_path/'bench.json'
    path.write_text('old')
    def interrupted(*args): raise KeyboardInterrupt
    monkeypatch.setattr(os, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt): made.save(path)
    assert path.read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['bench.json']


def test_nothing_is_written_of_what_json_cannot_hold(made, tmp_path):
    made.rows[0]['speedup'] = float('nan')
    with pytest.raises(ValueError): made.save(tmp_path/'bench.json')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('text', [
    '{"rows": [', '[]', '{"rows": []}', '{"rows": [], "meta": {}, "timings": {}, "more": 1}', '3'])
def test_loading_names_the_file_that_is_no_benchmark(tmp_path, text):
    path = tmp_path/'bench.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=r'bench\.json is not a saved benchmark'): Benchmark.load(path)
    with pytest.raises(FileNotFoundError, match=r'none\.json is no file'): Benchmark.load(tmp_path/'none.json')


def test_table_in_markdown_and_text(made):
    made.rows[1]['name'] = 'ours|2'
    lines = made._repr_markdown_().split('\n')
    assert lines[0].startswith('| model | top-1 % | over dense, points | GMACs |') and r'ours\|2' in lines[3]
    assert {line.replace(r'\|', '').count('|') for line in lines[:4]} == {len(COLUMNS)}  # no form was chosen
    text = str(made).split('\n')
    assert len(text) == 4 and text[2].startswith('ours|2') and 'batch 3' in text[3] and 'images 7' in text[3]
    made.rows = [r | dict(top1=None) for r in made.rows]
    assert 'top-1' not in str(made) and len(made.cells()[0]) == len(COLUMNS) - 2
    start = text[0].index('GMACs')
    assert [line[start - 2:start] for line in text[:3]] == ['  '] * 3


def test_figure_has_axes_with_units_and_all_points(made):
    made.rows[1]['name'] = 'costs $5 and $_{'
    fig = made.plot()
    fig.canvas.draw()
    left, right = fig.axes
    assert 'GMACs' in left.get_xlabel() and '%' in left.get_ylabel() and 'images per second' in right.get_xlabel()
    assert [len(ax.containers) for ax in fig.axes] == [2, 2]
    xs = [float(c[0].get_xdata()[0]) for c in left.containers]
    assert sorted(xs) == pytest.approx(sorted(r['gmacs'] for r in made.rows))
    assert plt.get_fignums() == []


def test_names_in_the_figure_lie_apart(made):
    "Three methods at three budgets on a frontier, and two models that are one and the same."
    costs = {f'{method} {budget}': (method, budget + .04 * k) for k, method in enumerate(('as-vit', 'a-vit', 'adavit'))
             for budget in (.5, .65, .8)}
    def row(name, method, cost):
        return dict(made.rows[0], name=name, method=method, gmacs=cost, gmacs_std=.05, top1=80 + 10 * cost,
                    images_per_s=100 / cost, images_per_s_iqr=[95 / cost, 106 / cost])
    rows = [row('dense', 'dense', 1.), *(row(name, *how) for name, how in costs.items())]
    fig = Benchmark([*rows, dict(rows[1], name='again')], made.meta, {}).plot()
    fig.canvas.draw()
    for ax in fig.axes:
        boxes = {name.get_text(): Text.get_window_extent(name) for name in ax.texts}
        for name in ax.texts:  # a line to names far off
            assert name.arrow_patch.get_visible() == (abs(name.get_position()[1]) > 14)
        assert len(boxes) == 11 and [(a, b) for a, b in combinations(boxes, 2) if boxes[a].overlaps(boxes[b])] == []
        assert len(ax.containers) == 4  # a line with error bars for each method
        assert all(c.has_xerr and c.has_yerr for c in ax.containers)
        edge = ax.get_window_extent()
        assert all(edge.x0 <= box.x0 and box.x1 <= edge.x1 for box in boxes.values())


@pytest.mark.parametrize('count', [1, 2])
def test_figure_without_labels_shows_speed_up(models, images, count):
    fig = benchmark(dict(list(models.items())[:count]), images, **quick).plot()
    fig.canvas.draw()
    assert 'speed-up' in fig.axes[0].get_ylabel()


def test_differences_of_rows_need_answers(models, images):
    made = benchmark(models, images, torch.arange(7), **quick)
    assert made.difference('ours', 'dense') == made.rows[1]['over_dense']
    assert [len(told['gmacs']) for told in made.timings.values()] == [7, 7]
    assert sum(made.timings['ours']['gmacs']) / 7 == pytest.approx(made.rows[1]['gmacs'])
    with pytest.raises(ValueError, match="no answers of 'dense' and 'ours' are kept"):
        benchmark(models, images, **quick).difference('dense', 'ours')
