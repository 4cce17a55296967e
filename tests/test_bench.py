"Timings go in by hand where arithmetic is tested, so no test depends on how fast this machine is."
import json
import os
from itertools import combinations

import pytest
import timm
import torch
from hypothesis import given, settings, strategies as st
from matplotlib.text import Text
from torch.utils.data import DataLoader, TensorDataset

from adaptive_tokens import bench, devices
from adaptive_tokens.images.by_name import gather
from adaptive_tokens.measure.benchmark import (benchmark, check_pictures, count_and_answer, halving,
    neighbour_correlation)
from adaptive_tokens.measure.execution import choose_execution
from adaptive_tokens.measure.memory import peak_memory
from adaptive_tokens.measure.profile import kind_of, where_time_goes
from adaptive_tokens.measure.provenance import provenance
from adaptive_tokens.measure.result import Benchmark
from adaptive_tokens.measure.statistics import Measured, compare, paired, quartiles
from adaptive_tokens.measure.sweep import plot_sweep, sweep
from adaptive_tokens.measure.timing import take_turns
from adaptive_tokens.models.cost import macs
from adaptive_tokens.models.model import adapt, calibrate


def small(**changes):
    torch.manual_seed(0)
    return timm.create_model('test_vit', **{**dict(img_size=64, num_classes=10, depth=3), **changes}).eval()


def adaptive(vit, budget=.65, theta=(.055, .06)):
    return adapt(vit, 'as-vit', budget=budget, places=(1, 2), theta=theta).eval()


@pytest.fixture
def vit(): return small()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(7, 3, 64, 64)


@pytest.fixture
def models(vit): return {'dense': vit, 'ours': adaptive(vit)}


quick = dict(batch_size=3, repeats=2, latency_repeats=4, device='cpu', progress=False, allow_noise=True)


# --- arithmetic

def test_quartiles_by_hand():
    assert quartiles([3, 1, 2]) == (1.5, 2, 2.5)
    assert quartiles([4.]) == (4, 4, 4)


def test_compare_by_hand():
    dense = Measured(torch.tensor([10e9, 10e9]).double(), torch.tensor([10., 12., 20.]), torch.tensor([1., 3.]), 50.)
    own = Measured(torch.tensor([4e9, 8e9]).double(), torch.tensor([5., 8., 8.]), torch.tensor([1., 2.]), 40., 'as-vit')
    row = compare(own, dense)
    assert (row['method'], row['n'], row['top1']) == ('as-vit', 2, 40.)
    assert [row[k] for k in ('gmacs', 'gmacs_std', 'gmacs_min', 'gmacs_max')] == [6, 2, 4, 8]
    assert row['macs_share'] == pytest.approx(.6) and row['macs_ratio'] == pytest.approx(10 / 6)
    assert row['images_per_s'] == pytest.approx(2 / 8) and row['images_per_s_iqr'] == pytest.approx([2 / 8, (2/5 + 2/8) / 2])
    assert row['speedup'] == pytest.approx(2) and row['speedup_iqr'] == pytest.approx([1.75, 2.25])  # of 2, 1.5, 2.5
    assert row['latency_ms'] == pytest.approx(1500) and row['latency_ms_iqr'] == pytest.approx([1250, 1750])
    assert row['latency_speedup'] == pytest.approx(1.25)  # of 1 and 1.5
    assert row['realised'] == pytest.approx(2 * .6)
    assert row['saved_time_share'] == pytest.approx((1 - 1/2) / (1 - .6))


def test_a_saving_of_nothing_has_no_share():
    dense = Measured(torch.ones(2).double(), torch.tensor([1., 2.]), torch.tensor([1.]))
    row = compare(dense, dense)
    assert row['saved_time_share'] is None and row['speedup'] == row['realised'] == row['macs_ratio'] == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(.1, 10), st.floats(.01, 100)), min_size=1, max_size=9), st.floats(.5, 3))
def test_a_machine_that_slows_both_down_alike_changes_no_ratio(passes, s):
    own = torch.tensor([t * slow for t, slow in passes], dtype=torch.float64)
    row = compare(Measured(torch.ones(3), own, own), Measured(torch.ones(3) * 2, own * s, own * s))
    assert row['speedup'] == pytest.approx(s) and row['speedup_iqr'] == pytest.approx([s, s])
    assert row['latency_speedup'] == pytest.approx(s) and row['realised'] == pytest.approx(s / 2)


# --- who runs when

class Recorded:
    "Stands in for a model; notes each call"
    def __init__(self, name, notes): self.name, self.notes = name, notes
    def __call__(self, x): self.notes.append((self.name, int(x)))


def test_models_take_turns_and_each_comes_first_as_often(monkeypatch):
    notes, timed = [], []
    models = {name: Recorded(name, notes) for name in 'abc'}
    monkeypatch.setattr(bench, 'seconds', lambda model, x: timed.append((model.name, int(x))) or float(len(timed)))
    spent = take_turns(models, [torch.tensor(0), torch.tensor(1)], 2)
    assert notes == [(name, b) for name in 'abc' for b in (0, 1)]  # the warm-up, before the first timed call
    order = [''.join(name for name, _ in timed[i:i + 3]) for i in range(0, 12, 3)]
    assert order == ['abc', 'cba', 'cba', 'abc'] and [b for _, b in timed] == [0]*3 + [1]*3 + [0]*3 + [1]*3
    assert spent['a'].tolist() == [[1, 6], [9, 10]] and spent['b'].tolist() == [[2, 5], [8, 11]]


def test_seconds_waits_before_and_after(monkeypatch):
    notes = []
    monkeypatch.setattr(bench, 'wait_for', lambda device: notes.append('wait'))
    monkeypatch.setattr(bench.time, 'perf_counter', lambda: notes.append('clock') or float(len(notes)))
    assert bench.seconds(lambda x: notes.append('call'), torch.zeros(1)) == 3
    assert notes == ['wait', 'clock', 'call', 'wait', 'clock']


def test_rows_from_injected_seconds(monkeypatch, models, images):
    calls = []
    def clock(model, x):
        calls.append(1)
        return len(x) * (3. if hasattr(model, 'blocks') else 2.) * (1 + len(calls) // 6)  # six calls a pass, each slower
    monkeypatch.setattr(bench, 'seconds', clock)
    made = benchmark(models, images, **{**quick, 'repeats': 4})
    dense, ours = made.rows
    assert ours['speedup'] == pytest.approx(1.5, rel=.2) and dense['speedup'] == 1
    assert ours['realised'] == ours['speedup'] * ours['macs_share']
    assert len(made.timings['ours']['passes']) == 4 and len(made.timings['ours']['singles']) == 4
    assert ours['images_per_s'] == pytest.approx(7 / torch.tensor(made.timings['ours']['passes']).quantile(.5).item(), rel=.2)


def test_latency_uses_single_images_spread_over_all(monkeypatch, models, images):
    seen = []
    monkeypatch.setattr(bench, 'seconds', lambda model, x: seen.append(x) or 1.)
    benchmark(models, images[:6], **quick)
    singles = [x[0] for x in seen if len(x) == 1]
    assert [next(i for i, y in enumerate(images) if torch.equal(x, y)) for x in singles] == [0, 0, 1, 1, 3, 3, 4, 4]
    seen.clear()
    benchmark(models, images[:1], **quick)
    assert len(seen) == 2 * 2 + 2 * 4  # two passes over one batch, four times the only image, two models each


# --- what is counted

def test_macs_are_those_of_cost_and_trace(models, vit, images):
    made = benchmark(models, images, **quick)
    with torch.no_grad(): _, trace = models['ours'](images, return_trace=True)
    dense, ours = made.rows
    assert dense['gmacs'] == macs(vit) / 1e9 and dense['gmacs_std'] == 0 and dense['macs_share'] == 1
    assert len(trace.macs.unique()) > 1  # or the test below says little
    exact = trace.macs.double() / 1e9
    assert [ours[k] for k in ('gmacs', 'gmacs_std', 'gmacs_min', 'gmacs_max')] == pytest.approx(
        [exact.mean().item(), exact.std(correction=0).item(), exact.min().item(), exact.max().item()], rel=1e-9)
    assert ours['macs_share'] == pytest.approx(exact.mean().item() * 1e9 / macs(vit), rel=1e-9)


def test_dense_macs_follow_the_size_of_the_image():
    vit, x = small(dynamic_img_size=True), torch.randn(2, 3, 32, 96)
    assert count_and_answer(vit, [x])[0].tolist() == [macs(vit, None, 2 * 6)] * 2


def test_accuracy_of_these_very_images(models, images):
    with torch.no_grad(): guess = {name: m(images).argmax(1) for name, m in models.items()}
    labels = guess['ours'].clone()
    labels[:2] = (labels[:2] + 1) % 10
    made = benchmark(models, images, labels, **quick)
    assert made.rows[1]['top1'] == pytest.approx(100 * 5 / 7)
    assert made.rows[0]['top1'] == pytest.approx(100 * (guess['dense'] == labels).double().mean().item())


@pytest.mark.parametrize('wrap', [
    lambda x, y: (TensorDataset(x, y), None), lambda x, y: (DataLoader(TensorDataset(x, y), 2), None),
    lambda x, y: ([(x[:3], y[:3]), (x[3:], y[3:])], None), lambda x, y: (x, y.tolist()), lambda x, y: (list(x.split(2)), y)])
def test_images_come_as_tensor_data_set_or_loader(wrap, images):
    labels = torch.arange(7)
    x, y = gather(*wrap(images, labels))
    assert torch.equal(x, images) and torch.equal(y, labels)


def test_no_labels_is_no_accuracy(models, images):
    assert gather(images)[1] is None
    assert gather(TensorDataset(images, torch.full((7,), -1)))[1] is None
    made = benchmark(models, images, **quick)
    assert [r['top1'] for r in made.rows] == [None, None]


def test_models_and_threads_are_left_as_they_were(vit, images):
    models = {'dense': vit.train(), 'ours': adaptive(vit).train()}
    before, threads = {k: v.clone() for k, v in models['ours'].state_dict().items()}, torch.get_num_threads()
    benchmark(models, images, **quick, dtype='bfloat16', threads=1)
    assert vit.training and models['ours'].training and torch.get_num_threads() == threads
    after = models['ours'].state_dict()
    assert all(after[k].dtype == v.dtype and torch.equal(after[k], v) for k, v in before.items())


def test_a_benchmark_runs_as_it_says(models, images, monkeypatch):
    seen, before = set(), torch.get_num_threads()
    other = 1 if before > 1 else 2
    monkeypatch.setattr(bench, 'seconds', lambda model, x: seen.add((x.dtype, model(x).dtype, torch.get_num_threads())) or 1.)
    made = benchmark(models, images, **quick, dtype='bfloat16', threads=other)
    assert seen == {(torch.bfloat16, torch.bfloat16, other)} and torch.get_num_threads() == before
    assert made.meta['dtype'] == 'bfloat16' and made.meta['threads'] == other


def test_another_number_of_threads_only_inside():
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    with pytest.raises(KeyError), bench.thread_count(other):
        assert torch.get_num_threads() == other
        raise KeyError
    assert torch.get_num_threads() == before
    with bench.thread_count(None): assert torch.get_num_threads() == before


def test_shared_weights_stay_shared_and_layout_stays(models, images, monkeypatch):
    copies = bench.copies_on_device(models, torch.device('cpu'), torch.float32)
    assert copies['dense'] is copies['ours'].vit and copies['dense'] is not models['dense']
    seen = []
    monkeypatch.setattr(bench, 'seconds', lambda model, x: seen.append(x) or 1.)
    benchmark(models, images.to(memory_format=torch.channels_last), **{**quick, 'batch_size': 7})
    whole = next(x for x in seen if len(x) == 7)
    assert whole.is_contiguous(memory_format=torch.channels_last) and not whole.is_contiguous()


def test_baseline_and_rows_keep_their_names_and_order(vit, images):
    made = benchmark({'ours': adaptive(vit), 'vit': vit, 'all': adaptive(vit, budget=1., theta=None)}, images, dense='vit', **quick)
    assert [r['name'] for r in made.rows] == ['ours', 'vit', 'all']
    assert [r['method'] for r in made.rows] == ['as-vit', 'dense', 'as-vit']
    assert made.rows[1]['speedup'] == 1 and made.rows[2]['macs_ratio'] == pytest.approx(1)
    assert made.meta['dense'] == 'vit' and made.meta['n'] == 7 and made.meta['image_size'] == [64, 64]


# --- the same images

@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.integers(0, 5))
def test_paired_against_a_slow_bootstrap(pairs, seed):
    right, other = (torch.tensor(o) for o in zip(*pairs))
    d = [100 * (a - b) for a, b in pairs]
    said = paired(right, other, draws=200, seed=seed)
    generator, n = torch.Generator().manual_seed(seed), len(d)
    means = sorted(sum(d[i] for i in torch.randint(n, (n,), generator=generator).tolist()) / n for _ in range(200))
    assert said['mean'] == pytest.approx(sum(d) / n)
    assert said['interval'] == pytest.approx([means[4] + .975 * (means[5] - means[4]), means[194] + .025 * (means[195] - means[194])])
    assert said == paired(right, other, draws=200, seed=seed) and said['interval'][0] <= said['interval'][1]
    back = paired(other, right, draws=200, seed=seed)
    assert back['mean'] == -said['mean'] and back['error'] == pytest.approx(said['error'])


def test_pairs_by_hand_and_no_pairs():
    right = torch.tensor([True, True, False, True])
    assert paired(right, right) == dict(mean=0, error=0, interval=[0, 0])
    assert paired(right, ~right)['mean'] == 50 and paired(right[:1], ~right[:1])['error'] == 0
    with pytest.raises(ValueError, match='answers to 4 and to 3 images'): paired(right, right[:3])


def test_differences_of_rows_need_answers(models, images):
    made = benchmark(models, images, torch.arange(7), **quick)
    assert made.difference('ours', 'dense') == made.rows[1]['over_dense']
    assert [len(told['gmacs']) for told in made.timings.values()] == [7, 7]
    assert sum(made.timings['ours']['gmacs']) / 7 == pytest.approx(made.rows[1]['gmacs'])
    with pytest.raises(ValueError, match="no answers of 'dense' and 'ours' are kept"):
        benchmark(models, images, **quick).difference('dense', 'ours')


# --- noise

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_neighbours_tell_noise_from_pictures(images, dtype):
    slope = torch.linspace(-1, 1, 64).repeat(2, 3, 64, 1).to(dtype)
    assert neighbour_correlation(images.to(dtype)).abs().max() < .05 and neighbour_correlation(slope).min() > .9
    assert neighbour_correlation(torch.full((2, 3, 8, 8), 5.).to(dtype)).tolist() == [1, 1]
    chess = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2. - 1
    assert neighbour_correlation(chess.expand(1, 1, 8, 8)).item() == pytest.approx(-1)


@settings(max_examples=20, deadline=None)
@given(st.floats(.01, 100), st.floats(-100, 100))
def test_contrast_and_brightness_do_not_matter(contrast, brightness):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16).cumsum(-1)
    assert torch.allclose(neighbour_correlation(contrast * x + brightness), neighbour_correlation(x), atol=.01)


def test_noise_is_refused_for_adaptive_models_only(vit, models, images):
    unless = {**quick, 'allow_noise': False}
    with pytest.raises(ValueError, match=r'look like noise: neighbouring pixels correlate by -?0\.0'): benchmark(models, images, **unless)
    benchmark({'dense': vit}, images, **unless)
    some = torch.cat([images[:3], images[3:].cumsum(-1) / 8])
    check_pictures(some)
    benchmark(models, some, **unless)


# --- memory

def test_memory_of_a_call_by_hand(vit):
    x = torch.zeros(2**18)  # 1 MiB
    def chain(x):
        for _ in range(5): x = x + 1
        return x
    assert peak_memory(chain, x) == 2 * 2**20  # the old one and the new
    assert peak_memory(lambda x: x.view(-1, 2).mul_(1), x) == 0  # views and work in place make nothing new
    assert peak_memory(lambda x: [x + i for i in range(4)], x) == 4 * 2**20
    with torch.inference_mode(): few, many = (peak_memory(vit, torch.zeros(n, 3, 64, 64)) for n in (2, 8))
    assert many == pytest.approx(4 * few, rel=.1)


@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory'), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")])
def test_a_batch_that_does_not_fit_is_halved(vit, images, monkeypatch, error):
    def forward(x, whole=vit.forward):
        if len(x) > 3: raise error
        return whole(x)
    monkeypatch.setattr(bench, 'account', lambda model, batches, account=count_and_answer: [forward(x) for x in batches] and count_and_answer(model, batches))
    with pytest.warns(UserWarning) as said: made = benchmark({'dense': vit}, images, **{**quick, 'batch_size': 7})
    assert [str(w.message) for w in said] == ['out of memory at batch size 7: going on with 3'] and made.meta['batch_size'] == 3


def test_what_halving_cannot_help_is_raised():
    def never(size): raise torch.OutOfMemoryError('CUDA out of memory')
    with pytest.warns(UserWarning), pytest.raises(torch.OutOfMemoryError): halving(never, 4)
    def bug(size): raise RuntimeError('shapes differ')
    with pytest.raises(RuntimeError, match='shapes differ'): halving(bug, 4)


# --- compiled, interrupted

def test_compiled_baseline_is_one_more_row(models, images, monkeypatch):
    monkeypatch.setattr(torch, 'compile', lambda model, **options: model)
    made = benchmark(models, images, **quick, compiled=True)
    assert [row['name'] for row in made.rows] == ['dense', 'dense, compiled', 'ours'] and made.rows[1]['method'] == 'dense'


def test_no_compiler_is_named(models, images, monkeypatch):
    monkeypatch.setattr(devices.shutil, 'which', lambda name: None)
    monkeypatch.setenv('CXX', 'some++')
    with pytest.raises(ValueError, match=r"C\+\+ compiler 'some\+\+'.*CXX"): benchmark(models, images, **quick, compiled=True)


def test_a_compiler_that_fails_is_named(models, images, monkeypatch):
    def broken(x): raise RuntimeError('no header\nand more')
    monkeypatch.setattr(devices.shutil, 'which', lambda name: name)
    monkeypatch.setattr(torch, 'compile', lambda model, **options: broken)
    with pytest.raises(ValueError, match='torch.compile failed on cpu: no header; leave'): benchmark(models, images, **quick, compiled=True)


@pytest.mark.parametrize('after, kept', [(5, 0), (8, 1), (12, 2)])
def test_an_interruption_keeps_whole_passes(monkeypatch, models, images, after, kept):
    calls = []
    def seconds(model, x):
        calls.append(1)
        if len(calls) > 8 + after: raise KeyboardInterrupt  # after the single images
        return 1.
    monkeypatch.setattr(bench, 'seconds', seconds)
    if not kept:
        with pytest.raises(KeyboardInterrupt): benchmark(models, images, **{**quick, 'repeats': 4})
        return
    with pytest.warns(UserWarning, match=f'after {kept} of 4 passes'): made = benchmark(models, images, **{**quick, 'repeats': 4})
    assert made.meta['repeats'] == kept and made.meta['interrupted'] and len(made.timings['ours']['passes']) == kept


# --- kept and shown

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


@pytest.mark.parametrize('text', ['{"rows": [', '[]', '{"rows": []}', '{"rows": [], "meta": {}, "timings": {}, "more": 1}', '3'])
def test_loading_names_the_file_that_is_no_benchmark(tmp_path, text):
    path = tmp_path/'bench.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=r'bench\.json is not a saved benchmark'): Benchmark.load(path)
    with pytest.raises(FileNotFoundError, match=r'none\.json is no file'): Benchmark.load(tmp_path/'none.json')


def test_table_in_markdown_and_text(made):
    made.rows[1]['name'] = 'ours|2'
    lines = made._repr_markdown_().split('\n')
    assert lines[0].startswith('| model | top-1 % | over dense, points | GMACs |') and r'ours\|2' in lines[3]
    assert {line.replace(r'\|', '').count('|') for line in lines[:4]} == {len(bench.COLUMNS)}  # no form was chosen
    text = str(made).split('\n')
    assert len(text) == 4 and text[2].startswith('ours|2') and 'batch 3' in text[3] and 'images 7' in text[3]
    made.rows = [r | dict(top1=None) for r in made.rows]
    assert 'top-1' not in str(made) and len(made.cells()[0]) == len(bench.COLUMNS) - 2
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
    assert bench.plt.get_fignums() == []


def test_names_in_the_figure_lie_apart(made):
    "Three methods at three budgets on a frontier, and two models that are one and the same."
    costs = {f'{method} {budget}': (method, budget + .04 * k) for k, method in enumerate(('as-vit', 'a-vit', 'adavit'))
             for budget in (.5, .65, .8)}
    def row(name, method, cost): return dict(made.rows[0], name=name, method=method, gmacs=cost, gmacs_std=.05, top1=80 + 10 * cost,
                                             images_per_s=100 / cost, images_per_s_iqr=[95 / cost, 106 / cost])
    rows = [row('dense', 'dense', 1.), *(row(name, *how) for name, how in costs.items())]
    fig = bench.Benchmark([*rows, dict(rows[1], name='again')], made.meta, {}).plot()
    fig.canvas.draw()
    for ax in fig.axes:
        boxes = {name.get_text(): Text.get_window_extent(name) for name in ax.texts}
        assert all(name.arrow_patch.get_visible() == (abs(name.get_position()[1]) > 14) for name in ax.texts)  # a line to names far off
        assert len(boxes) == 11 and [(a, b) for a, b in combinations(boxes, 2) if boxes[a].overlaps(boxes[b])] == []
        assert len(ax.containers) == 4 and all(c.has_xerr and c.has_yerr for c in ax.containers)  # a line with error bars for each method
        edge = ax.get_window_extent()
        assert all(edge.x0 <= box.x0 and box.x1 <= edge.x1 for box in boxes.values())


@pytest.mark.parametrize('count', [1, 2])
def test_figure_without_labels_shows_speed_up(models, images, count):
    fig = benchmark(dict(list(models.items())[:count]), images, **quick).plot()
    fig.canvas.draw()
    assert 'speed-up' in fig.axes[0].get_ylabel()


def test_circumstances_are_fit_for_json():
    meta = provenance(torch.device('cpu'), torch.float32, batch_size=3)
    assert json.loads(json.dumps(meta)) == meta
    assert {'date', 'cpu', 'threads', 'device', 'dtype', 'torch', 'timm', 'python', 'adaptive_tokens', 'commit'} <= set(meta)


# --- what is refused

@pytest.mark.parametrize('change, message', [
    (dict(models={}), 'no models to compare'),
    (dict(dense='vit'), "no model is called 'vit'"),
    (dict(images=torch.zeros(0, 3, 64, 64)), 'no images to measure on'),
    (dict(images=[]), 'no images to measure on'),
    (dict(images='photos/'), 'images are a str'),
    (dict(images=5), 'images are a int'),
    (dict(images=torch.zeros(2, 3, 64, 64, dtype=torch.uint8)), 'images are uint8'),
    (dict(images=torch.full((2, 3, 64, 64), float('nan'))), 'NaN or infinity'),
    (dict(images=torch.zeros(2, 3, 40, 64)), 'images are 40x64'),
    (dict(images=torch.zeros(2, 1, 64, 64)), r'wants \[B, 3, height, width\]'),
    (dict(images=torch.zeros(3, 64, 64)), 'wants'),
    (dict(labels=[0, 1]), r'shape \[2\] for 7 images'),
    (dict(labels=torch.arange(7) + 4), 'labels go from 4 to 10'),
    (dict(labels=[0, 1, 2, -1, 3, 4, 5]), 'labels go from -1 to 5'),
    (dict(batch_size=0), 'batch_size is 0'), (dict(repeats=0), 'repeats is 0'), (dict(repeats=1.5), 'repeats is 1.5'),
    (dict(latency_repeats=-1), 'latency_repeats is -1'), (dict(threads=-2), 'threads is -2'), (dict(threads=0), 'threads is 0'),
    (dict(device='tpu'), "device 'tpu'"),
    (dict(device='mps' if torch.cuda.is_available() else 'cuda'), 'not available on this machine'),
    (dict(dtype='float61'), "dtype 'float61'"), (dict(allow_noise=False), 'look like noise'),
])
def test_bad_input_is_named(models, images, monkeypatch, change, message):
    monkeypatch.setattr(bench, 'seconds', lambda *args: pytest.fail('timed before the input was checked'))
    given = {**dict(models=models, images=images, **quick), **change}
    with pytest.raises(ValueError, match=message): benchmark(given.pop('models'), given.pop('images'), **given)


def test_models_that_cannot_be_compared_are_named(vit, images):
    for models, message in [({'dense': vit, 'other': small(num_classes=7)}, r"number of classes: {'dense': 10, 'other': 7}"),
                            ({'dense': adaptive(vit)}, "'dense' is adaptive"),
                            ({'dense': torch.nn.Linear(2, 2)}, 'Linear is not understood')]:
        with pytest.raises(ValueError, match=message): benchmark(models, images, **quick)


def test_an_unfused_baseline_is_refused(vit, images):
    vit.blocks[1].attn.fused_attn = False
    with pytest.raises(ValueError, match='without fused attention'): benchmark({'dense': vit}, images, **quick)


def test_logits_that_are_no_numbers_are_named(vit, images):
    with torch.no_grad(): vit.head.bias[0] = float('inf')
    with pytest.raises(ValueError, match='logits in float32 hold NaN or infinity'): benchmark({'dense': vit}, images, **quick)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_on_cuda(models, images, dtype):
    made = benchmark(models, images, torch.arange(7), **{**quick, 'device': 'cuda'}, dtype=dtype)
    assert made.meta['device'] == 'cuda' and made.meta['gpu'] and next(models['dense'].parameters()).device.type == 'cpu'
    assert made.rows[0]['gmacs'] == macs(models['dense']) / 1e9 and made.rows[1]['gmacs_max'] <= made.rows[0]['gmacs'] * 1.01


# --- packed or masked

def clock(model, cost):
    "Seconds as given for each form and batch size, one after the other; the call is made, too"
    told = {key: iter(values) for key, values in cost.items()}
    def seconds(call, x):
        call(x)
        return next(told[model.execution, len(x)])
    return seconds


def test_the_faster_form_is_taken_at_each_size(monkeypatch, vit, images):
    model = adaptive(vit)
    monkeypatch.setattr(bench, 'seconds', clock(model, {('packed', 1): [3., 3.3, 3.6], ('masked', 1): [2., 3., 3.],
                                                        ('packed', 4): [5., 5., 5.], ('masked', 4): [9., 9., 9.]}))
    told = choose_execution(model, images, (4, 1), repeats=3)
    assert told[1] == dict(execution='masked', packed_over_masked=pytest.approx([1.15, 1.2, 1.35]))
    assert told[4] == dict(execution='packed', packed_over_masked=pytest.approx([5/9] * 3))
    assert model.faster == {1: 'masked', 4: 'packed'} and model.execution == 'auto'
    assert [model.packs(B) for B in (1, 3, 4, 100)] == [False, False, True, True]


def test_packed_where_quartiles_do_not_tell_them_apart(monkeypatch, vit, images):
    model = adaptive(vit)
    monkeypatch.setattr(bench, 'seconds', clock(model, {('packed', 2): [9., 9., 9., 9.], ('masked', 2): [9.1, 9.1, 2., 2.]}))
    told = choose_execution(model, images, (2,), repeats=4)
    assert told[2]['packed_over_masked'][1] > 1 and model.faster == {2: 'packed'}


@pytest.mark.parametrize('faster', [{}, {1: 'masked'}, {1: 'packed', 4: 'masked'}])
def test_answers_do_not_depend_on_the_form_that_was_chosen(vit, images, faster):
    model = adaptive(vit)
    with torch.inference_mode():
        packed, trace = model(images, return_trace=True)
        model.faster = faster
        chosen, other = model(images, return_trace=True)
    torch.testing.assert_close(chosen, packed, atol=1e-5, rtol=1e-5)
    assert torch.equal(trace.active, other.active) and torch.equal(trace.macs, other.macs)


@pytest.mark.parametrize('execution', ['auto', 'masked'])
def test_a_model_that_fails_is_left_as_it_was(vit, images, execution):
    model = adaptive(vit)
    model.execution = execution
    with pytest.raises(ValueError, match='NaN'): choose_execution(model, images / 0, (1,))
    assert model.execution == execution and model.faster == {}


def test_control_c_is_no_measurement(monkeypatch, vit, images):
    model, count = adaptive(vit), []
    def seconds(call, x):
        if len(count) == 5: raise KeyboardInterrupt
        return count.append(call(x)) or 1.
    monkeypatch.setattr(bench, 'seconds', seconds)
    with pytest.raises(KeyboardInterrupt): choose_execution(model, images, (1,))
    assert model.execution == 'auto' and model.faster == {}


def test_a_choice_holds_for_its_budget_and_its_place(models, images):
    ours = models['ours']
    ours.faster = {1: 'masked'}
    made = benchmark(models, images, **quick)
    assert made.rows[1]['execution'] is None and ours.faster == {1: 'masked'}  # copies forget it, as they may run elsewhere
    calibrate(ours, [images], .7)
    assert ours.faster == {}


def test_numbers_that_are_none_are_refused_in_both_forms(vit, images):
    model = adaptive(vit)
    model.faster = {1: 'masked'}
    with pytest.raises(ValueError, match='NaN'): model(images[:1] / 0)


@pytest.mark.parametrize('sizes, message', [((), 'there are 7 images'), ((8,), r'sizes are \[8\] and there are 7 images'), ((0,), 'whole number from 1'),
                                            ((2.5,), 'whole number from 1')])
def test_sizes_that_cannot_be_timed(vit, images, sizes, message):
    with pytest.raises(ValueError, match=message): choose_execution(adaptive(vit), images, sizes)


def test_training_has_no_choice(vit, images):
    with pytest.raises(ValueError, match='in training'): choose_execution(adaptive(vit).train(), images, (1,))


def test_rows_say_which_form_was_taken(models, images, tmp_path):
    made = benchmark(models, images, **quick, fall_back=True)
    assert made.rows[0]['execution'] is None
    assert set(made.rows[1]['execution'].replace(' at', '').split(', ')) <= {f'{form} {size}' for form in ('packed', 'masked') for size in (1, 3)}
    assert 'form' in made.cells()[0] and 'form' not in benchmark(models, images, **quick).cells()[0]
    made.save(tmp_path/'b.json')
    assert Benchmark.load(tmp_path/'b.json') == made


# --- where the time goes

@pytest.mark.parametrize('name, kind', [
    ('aten::addmm', 'matrix products'), ('aten::_scaled_dot_product_flash_attention_for_cpu', 'attention'), ('aten::gelu', 'norms, activations, sums'),
    ('aten::_softmax', 'attention'), ('aten::index_select', 'moving rows'), ('aten::cat', 'moving rows'), ('aten::gt', 'deciding'),
    ('aten::cumsum', 'deciding'), ('aten::native_layer_norm', 'norms, activations, sums'), ('aten::mkldnn_convolution', 'matrix products'),
    ('aten::view', 'other'), ('_flash_attn_varlen_forward', 'attention'), ('triton_poi_fused_addmm_gelu_0', 'fused by torch.compile'),
    ('aten::expand', 'other'), ('aten::exp', 'norms, activations, sums'), ('aten::sum', 'norms, activations, sums')])
def test_operators_by_kind_of_work(name, kind): assert kind_of(name) == kind


def test_where_time_goes(models, images):
    dense, ours = (where_time_goes(model, images, calls=2) for model in models.values())
    for told in (dense, ours):
        assert sum(told['shares'].values()) == pytest.approx(1) and min(told['shares'].values()) >= 0
        assert set(told) == {'shares', 'operators'}
    assert dense['shares']['matrix products'] > 0 and ours['operators'] > dense['operators']


def test_the_clock_does_not_run_under_the_profiler(monkeypatch, models, images):
    under = []
    monkeypatch.setattr(bench, 'seconds', lambda model, x: (model(x), under.append(torch.autograd._profiler_enabled()), 1.)[-1])
    where_time_goes(models['ours'], images, calls=2)
    assert under == [False, False, True, True]


def test_a_batch_is_no_larger_than_the_images(models, images, monkeypatch):
    assert benchmark(models, images[:3], **{**quick, 'batch_size': 16}).meta['batch_size'] == 3
    fail_above(1, torch.OutOfMemoryError('CUDA out of memory'), monkeypatch)
    with pytest.warns(UserWarning) as told: made = benchmark(models, images[:3], **{**quick, 'batch_size': 16})
    assert made.meta['batch_size'] == 1 and ['at batch size 3' in str(w.message) for w in told] == [True]


# --- batch sizes

def test_a_sweep_keeps_each_size(models, images, tmp_path):
    options = dict(repeats=2, latency_repeats=1, device='cpu', progress=False, allow_noise=True, least=3)
    benches = sweep(models, images, out=tmp_path, **options)
    assert list(benches) == [1, 2, 4] and [b.meta['n'] for b in benches.values()] == [3, 2, 4]  # whole batches
    assert {size: Benchmark.load(tmp_path/f'batch_{size}.json') for size in benches} == benches
    for ax, key in zip(plot_sweep(benches).axes, ('speedup', 'images_per_s')):
        lines = [line.get_ydata().tolist() for line in ax.lines if len(line.get_xdata()) == 3 and line.get_linestyle() != 'None']
        assert [[b.rows[i][key] for b in benches.values()] for i in (0, 1)] == lines


def fail_above(most, error, monkeypatch):
    real = bench.measure
    def measure(models, images, size, *rest):
        if size > most: raise error
        return real(models, images, size, *rest)
    monkeypatch.setattr(bench, 'measure', measure)


@pytest.mark.parametrize('most, kept', [(1, [1]), (2, [1, 2])])
def test_a_sweep_ends_where_memory_does(models, images, monkeypatch, tmp_path, most, kept):
    fail_above(most, torch.OutOfMemoryError('CUDA out of memory'), monkeypatch)
    with pytest.warns(UserWarning, match=f'out of memory at batch size {2 * most}: going on with {most}'):
        benches = sweep(models, images, out=tmp_path, repeats=1, latency_repeats=1, device='cpu', progress=False, allow_noise=True)
    assert list(benches) == kept and sorted(p.name for p in tmp_path.iterdir()) == [f'batch_{size}.json' for size in kept]


def test_an_interrupted_sweep_has_what_was_finished(models, images, monkeypatch):
    fail_above(2, KeyboardInterrupt(), monkeypatch)
    options = dict(repeats=1, latency_repeats=1, device='cpu', progress=False, allow_noise=True)
    with pytest.warns(UserWarning, match='nothing beyond batch size 2'): assert list(sweep(models, images, **options)) == [1, 2]
    fail_above(0, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt): sweep(models, images, **options)


@pytest.mark.parametrize('sizes, message', [((), 'give each once'), ((4, 2), 'the smallest first'), ((8,), 'needs as many images, and there are 7'),
                                            ((-1,), 'whole number from 1')])
def test_sweeps_that_cannot_be(models, images, sizes, message):
    with pytest.raises(ValueError, match=message): sweep(models, images, batch_sizes=sizes, allow_noise=True)


@pytest.mark.gpu
def test_where_time_goes_on_cuda(models, images):
    for model in models.values():
        told = where_time_goes(model.cuda(), images.cuda())  # device time and wall time are of different calls
        assert 0 < told['busy'] < 1.1 and sum(told['shares'].values()) == pytest.approx(1)
    masked = models['ours']
    masked.execution = 'masked'
    assert told['waits'] > where_time_goes(masked, images.cuda())['waits']
