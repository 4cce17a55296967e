"Benchmarks at one batch size after the other, until images or memory end."
import pytest
import torch
from small_models import fail_above

from adaptive_tokens.measure.result import Benchmark
from adaptive_tokens.measure.sweep import plot_sweep, sweep

once = dict(repeats=1, latency_repeats=1, device='cpu', progress=False, allow_noise=True)


def test_a_sweep_keeps_each_size(models, images, tmp_path):
    options = dict(repeats=2, latency_repeats=1, device='cpu', progress=False, allow_noise=True, least=3)
    benches = sweep(models, images, out=tmp_path, **options)
    assert list(benches) == [1, 2, 4] and [b.meta['n'] for b in benches.values()] == [3, 2, 4]  # whole batches
    assert {size: Benchmark.load(tmp_path/f'batch_{size}.json') for size in benches} == benches
    for ax, key in zip(plot_sweep(benches).axes, ('speedup', 'images_per_s')):
        drawn = [line for line in ax.lines if len(line.get_xdata()) == 3 and line.get_linestyle() != 'None']
        lines = [line.get_ydata().tolist() for line in drawn]
        assert [[b.rows[i][key] for b in benches.values()] for i in (0, 1)] == lines


@pytest.mark.parametrize('most, kept', [(1, [1]), (2, [1, 2])])
def test_a_sweep_ends_where_memory_does(models, images, monkeypatch, tmp_path, most, kept):
    fail_above(most, torch.OutOfMemoryError('CUDA out of memory'), monkeypatch)
    with pytest.warns(UserWarning, match=f'out of memory at batch size {2 * most}: going on with {most}'):
        benches = sweep(models, images, out=tmp_path, **once)
    assert list(benches) == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == [f'batch_{size}.json' for size in kept]


def test_an_interrupted_sweep_has_what_was_finished(models, images, monkeypatch):
    fail_above(2, KeyboardInterrupt(), monkeypatch)
    with pytest.warns(UserWarning, match='nothing beyond batch size 2'):
        assert list(sweep(models, images, **once)) == [1, 2]
    fail_above(0, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt): sweep(models, images, **once)


@pytest.mark.parametrize('sizes, message', [
    ((), 'give each once'), ((4, 2), 'the smallest first'), ((8,), 'needs as many images, and there are 7'),
    ((-1,), 'whole number from 1')])
def test_sweeps_that_cannot_be(models, images, sizes, message):
    with pytest.raises(ValueError, match=message): sweep(models, images, batch_sizes=sizes, allow_noise=True)
