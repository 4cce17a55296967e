"Timings go in by hand where arithmetic is tested, so no test depends on how fast this machine is."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from small_models import adaptive, fail_above, quick, small
from torch.utils.data import DataLoader, TensorDataset

from adaptive_tokens import devices
from adaptive_tokens.images.by_name import gather
from adaptive_tokens.measure import benchmark as bench, timing
from adaptive_tokens.measure.benchmark import (benchmark, check_pictures, copies_on_device, count_and_answer, halving,
                                               neighbour_correlation)
from adaptive_tokens.models.cost import macs


def test_rows_from_injected_seconds(monkeypatch, models, images):
    calls = []
    def clock(model, x):
        calls.append(1)
        each = 3. if hasattr(model, 'blocks') else 2.
        return len(x) * each * (1 + len(calls) // 6)  # six calls a pass, each slower
    monkeypatch.setattr(timing, 'seconds', clock)
    made = benchmark(models, images, **{**quick, 'repeats': 4})
    dense, ours = made.rows
    assert ours['speedup'] == pytest.approx(1.5, rel=.2) and dense['speedup'] == 1
    assert ours['realised'] == ours['speedup'] * ours['macs_share']
    assert len(made.timings['ours']['passes']) == 4 and len(made.timings['ours']['singles']) == 4
    median = torch.tensor(made.timings['ours']['passes']).quantile(.5).item()
    assert ours['images_per_s'] == pytest.approx(7 / median, rel=.2)


def test_latency_uses_single_images_spread_over_all(monkeypatch, models, images):
    seen = []
    monkeypatch.setattr(timing, 'seconds', lambda model, x: seen.append(x) or 1.)
    benchmark(models, images[:6], **quick)
    singles = [x[0] for x in seen if len(x) == 1]
    assert [next(i for i, y in enumerate(images) if torch.equal(x, y)) for x in singles] == [0, 0, 1, 1, 3, 3, 4, 4]
    seen.clear()
    benchmark(models, images[:1], **quick)
    assert len(seen) == 2 * 2 + 2 * 4  # two passes over one batch, four times the only image, two models each


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
    lambda x, y: ([(x[:3], y[:3]), (x[3:], y[3:])], None), lambda x, y: (x, y.tolist()),
    lambda x, y: (list(x.split(2)), y)])
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
    def seconds(model, x):
        seen.add((x.dtype, model(x).dtype, torch.get_num_threads()))
        return 1.
    monkeypatch.setattr(timing, 'seconds', seconds)
    made = benchmark(models, images, **quick, dtype='bfloat16', threads=other)
    assert seen == {(torch.bfloat16, torch.bfloat16, other)} and torch.get_num_threads() == before
    assert made.meta['dtype'] == 'bfloat16' and made.meta['threads'] == other


def test_shared_weights_stay_shared_and_layout_stays(models, images, monkeypatch):
    copies = copies_on_device(models, torch.device('cpu'), torch.float32)
    assert copies['dense'] is copies['ours'].vit and copies['dense'] is not models['dense']
    seen = []
    monkeypatch.setattr(timing, 'seconds', lambda model, x: seen.append(x) or 1.)
    benchmark(models, images.to(memory_format=torch.channels_last), **{**quick, 'batch_size': 7})
    whole = next(x for x in seen if len(x) == 7)
    assert whole.is_contiguous(memory_format=torch.channels_last) and not whole.is_contiguous()


def test_baseline_and_rows_keep_their_names_and_order(vit, images):
    models = {'ours': adaptive(vit), 'vit': vit, 'all': adaptive(vit, budget=1., theta=None)}
    made = benchmark(models, images, dense='vit', **quick)
    assert [r['name'] for r in made.rows] == ['ours', 'vit', 'all']
    assert [r['method'] for r in made.rows] == ['as-vit', 'dense', 'as-vit']
    assert made.rows[1]['speedup'] == 1 and made.rows[2]['macs_ratio'] == pytest.approx(1)
    assert made.meta['dense'] == 'vit' and made.meta['n'] == 7 and made.meta['image_size'] == [64, 64]


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
    with pytest.raises(ValueError, match=r'look like noise: neighbouring pixels correlate by -?0\.0'):
        benchmark(models, images, **unless)
    benchmark({'dense': vit}, images, **unless)
    some = torch.cat([images[:3], images[3:].cumsum(-1) / 8])
    check_pictures(some)
    benchmark(models, some, **unless)


@pytest.mark.parametrize('error', [
    torch.OutOfMemoryError('CUDA out of memory'), MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")])
def test_a_batch_that_does_not_fit_is_halved(vit, images, monkeypatch, error):
    def counted(model, batches):
        if any(len(x) > 3 for x in batches): raise error
        return count_and_answer(model, batches)
    monkeypatch.setattr(bench, 'count_and_answer', counted)
    with pytest.warns(UserWarning) as said: made = benchmark({'dense': vit}, images, **{**quick, 'batch_size': 7})
    assert [str(w.message) for w in said] == ['out of memory at batch size 7: going on with 3']
    assert made.meta['batch_size'] == 3


def test_what_halving_cannot_help_is_raised():
    def never(size): raise torch.OutOfMemoryError('CUDA out of memory')
    with pytest.warns(UserWarning), pytest.raises(torch.OutOfMemoryError): halving(never, 4)
    def bug(size): raise RuntimeError('shapes differ')
    with pytest.raises(RuntimeError, match='shapes differ'): halving(bug, 4)


def test_compiled_baseline_is_one_more_row(models, images, monkeypatch):
    monkeypatch.setattr(torch, 'compile', lambda model, **options: model)
    made = benchmark(models, images, **quick, compiled=True)
    assert [row['name'] for row in made.rows] == ['dense', 'dense, compiled', 'ours']
    assert made.rows[1]['method'] == 'dense'


@pytest.mark.usefixtures('traced')
def test_what_is_compiled_costs_and_answers_the_same(models, images, monkeypatch):
    "Through torch.compile itself, though without a compiler"
    monkeypatch.setattr(devices.shutil, 'which', lambda name: name)
    made = benchmark(models, images, torch.arange(7), **quick, compiled=True)
    dense, compiled, ours = made.rows
    assert [row['name'] for row in made.rows] == ['dense', 'dense, compiled', 'ours']
    assert compiled['method'] == 'dense' and compiled['gmacs'] == dense['gmacs'] and compiled['top1'] == dense['top1']
    assert compiled['memory_mb'] is None and ours['memory_mb'] is None and dense['memory_mb'] > 0


def test_no_compiler_is_named(models, images, monkeypatch):
    monkeypatch.setattr(devices.shutil, 'which', lambda name: None)
    monkeypatch.setenv('CXX', 'some++')
    with pytest.raises(ValueError, match=r"C\+\+ compiler 'some\+\+'.*CXX"):
        benchmark(models, images, **quick, compiled=True)


def test_a_compiler_that_fails_is_named(models, images, monkeypatch):
    def broken(x): raise RuntimeError('no header\nand more')
    monkeypatch.setattr(devices.shutil, 'which', lambda name: name)
    monkeypatch.setattr(torch, 'compile', lambda model, **options: broken)
    with pytest.raises(ValueError, match='torch.compile failed on cpu: no header; leave'):
        benchmark(models, images, **quick, compiled=True)


@pytest.mark.parametrize('after, kept', [(5, 0), (8, 1), (12, 2)])
def test_an_interruption_keeps_whole_passes(monkeypatch, models, images, after, kept):
    calls = []
    def seconds(model, x):
        calls.append(1)
        if len(calls) > 8 + after: raise KeyboardInterrupt  # after the single images
        return 1.
    monkeypatch.setattr(timing, 'seconds', seconds)
    if not kept:
        with pytest.raises(KeyboardInterrupt): benchmark(models, images, **{**quick, 'repeats': 4})
        return
    with pytest.warns(UserWarning, match=f'after {kept} of 4 passes'):
        made = benchmark(models, images, **{**quick, 'repeats': 4})
    assert made.meta['repeats'] == kept and made.meta['interrupted'] and len(made.timings['ours']['passes']) == kept


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
    (dict(latency_repeats=-1), 'latency_repeats is -1'),
    (dict(threads=-2), 'threads is -2'), (dict(threads=0), 'threads is 0'),
    (dict(device='tpu'), "device 'tpu'"),
    (dict(device='mps' if torch.cuda.is_available() else 'cuda'), 'not available on this machine'),
    (dict(dtype='float61'), "dtype 'float61'"), (dict(allow_noise=False), 'look like noise'),
])
def test_bad_input_is_named(models, images, monkeypatch, change, message):
    monkeypatch.setattr(timing, 'seconds', lambda *args: pytest.fail('timed before the input was checked'))
    given = {**dict(models=models, images=images, **quick), **change}
    with pytest.raises(ValueError, match=message): benchmark(given.pop('models'), given.pop('images'), **given)


def test_models_that_cannot_be_compared_are_named(vit, images):
    other = small(num_classes=7)
    for models, message in [({'dense': vit, 'other': other}, r"number of classes: {'dense': 10, 'other': 7}"),
                            ({'dense': adaptive(vit)}, "'dense' is adaptive"),
                            ({'dense': torch.nn.Linear(2, 2)}, 'Linear is not understood')]:
        with pytest.raises(ValueError, match=message): benchmark(models, images, **quick)


def test_an_unfused_baseline_is_refused(vit, images):
    vit.blocks[1].attn.fused_attn = False
    with pytest.raises(ValueError, match='without fused attention'): benchmark({'dense': vit}, images, **quick)


def test_logits_that_are_no_numbers_are_named(vit, images):
    with torch.no_grad(): vit.head.bias[0] = float('inf')
    with pytest.raises(ValueError, match='logits in float32 hold NaN or infinity'):
        benchmark({'dense': vit}, images, **quick)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_on_cuda(models, images, dtype):
    made = benchmark(models, images, torch.arange(7), **{**quick, 'device': 'cuda'}, dtype=dtype)
    assert made.meta['device'] == 'cuda' and made.meta['gpu']
    assert next(models['dense'].parameters()).device.type == 'cpu'
    dense, ours = made.rows
    assert dense['gmacs'] == macs(models['dense']) / 1e9 and ours['gmacs_max'] <= dense['gmacs'] * 1.01


def test_a_batch_is_no_larger_than_the_images(models, images, monkeypatch):
    assert benchmark(models, images[:3], **{**quick, 'batch_size': 16}).meta['batch_size'] == 3
    fail_above(1, torch.OutOfMemoryError('CUDA out of memory'), monkeypatch)
    with pytest.warns(UserWarning) as told: made = benchmark(models, images[:3], **{**quick, 'batch_size': 16})
    assert made.meta['batch_size'] == 1 and ['at batch size 3' in str(w.message) for w in told] == [True]
