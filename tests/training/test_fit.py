"What a run does, from one call: log, checkpoints, seeds, precision, compilation."
import copy
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_runs import CLASSES, both, load, loader, logits, make, pictures, quick, sparse, tiny, weights
from torch._dynamo.utils import counters

from adaptive_tokens import devices
from adaptive_tokens.models.checkpoint import load_dense
from adaptive_tokens.models.model import calibrate
from adaptive_tokens.training import prepare, progress, resume
from adaptive_tokens.training.evaluate import evaluate
from adaptive_tokens.training.fit import fit
from adaptive_tokens.training.run import Run


@both
def test_same_seed_same_weights_even_with_the_same_loader(kind):
    data, start = loader(), make(kind)
    runs = [copy.deepcopy(start) for _ in range(3)]
    for model, seed in zip(runs, (3, 3, 4)): fit(model, data, epochs=2, seed=seed, **quick)
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


@both
def test_log_has_a_line_per_epoch_that_parses(kind, tmp_path):
    rows = fit(make(kind), loader(), loader(shuffle=False), epochs=3, out=tmp_path, teacher=tiny(), **quick)
    assert [json.loads(line) for line in (tmp_path/'log.jsonl').read_text().splitlines()] == rows
    assert [row['epoch'] for row in rows] == [1, 2, 3] and [row['step'] for row in rows] == [3, 6, 9]
    terms = ['task', 'distill'] + ['budget'] * (kind == 'as-vit')
    for row in rows:
        assert row['loss'] == pytest.approx(sum(row[name] for name in terms), rel=1e-5)
        assert 0 <= row['train_top1'] <= 100 and 0 <= row['top1'] <= 100 and row['n'] == 40 and row['seconds'] > 0
        assert 0 < row['train_macs_share'] <= 1.001 and 0 < row['macs_share'] <= 1.001
    assert rows[-1]['lr'] == pytest.approx(1e-5)
    assert ('theta' in rows[0]) == (kind == 'as-vit')


def test_epoch_means_weigh_a_small_last_batch_by_its_images():
    x, y = pictures(24)
    run = dict(epochs=1, lr=1e-9, warmup=0, **quick)
    whole, = fit(tiny(), loader(x, y, batch=24), **run)
    parts, = fit(tiny(), loader(x, y, batch=16), **run)
    assert parts['task'] == pytest.approx(whole['task'], rel=1e-5)
    assert parts['train_top1'] == pytest.approx(whole['train_top1'], abs=1e-4)


@both
def test_best_and_last_load_back_to_the_same_logits(kind, tmp_path):
    model = make(kind)
    fit(model, loader(), epochs=2, out=tmp_path, **quick)
    for name in ('best', 'last'):
        torch.testing.assert_close(logits(load(kind, tmp_path/name)), logits(model), rtol=0, atol=0)
    assert {f.name for f in tmp_path.iterdir()} == {'best', 'last', 'log.jsonl', 'states'}


def test_best_is_the_most_accurate_epoch(tmp_path, monkeypatch):
    top1 = iter([50., 70., 60., 60.])  # the last for the model card
    kept = []
    row = dict(macs_share=1., n=1, gmacs=1., gmacs_spread=0.)
    monkeypatch.setattr(Run, 'judge', lambda run, model: dict(row, top1=next(top1)))
    def save(model, folder):
        kept.append(folder.name)
        folder.mkdir(exist_ok=True)
    monkeypatch.setattr(resume, 'save', save)
    fit(tiny(), loader(), loader(), epochs=3, out=tmp_path, **quick)
    assert kept == ['last', 'best', 'last', 'best', 'last']


def test_progress_bar_tells_accuracy_and_macs_and_stays_out_of_tests(monkeypatch):
    bars, last = [], []
    class Bar(progress.tqdm):
        def __init__(self, *args, **kwargs):
            bars.append(kwargs)
            super().__init__(*args, **kwargs)
        def set_postfix(self, values, **kwargs): last.append(values)
    monkeypatch.setattr(progress, 'tqdm', Bar)
    monkeypatch.delenv('IN_TEST', raising=False)
    row, = fit(sparse(), loader(), device='cpu')
    assert bars[0]['desc'] == 'epoch 1/1' and not bars[0]['disable']
    assert last[-1] == dict(top1=f'{row["train_top1"]:.1f}', macs=f'{row["train_macs_share"]:.0%}')
    fit(sparse(), loader(), **quick)
    monkeypatch.setenv('IN_TEST', '1')
    fit(sparse(), loader(), device='cpu')
    assert [bar['disable'] for bar in bars] == [False, True, True]


def test_lists_of_batches_will_do():
    x, y = pictures()
    rows = fit(tiny(), [(x[:16], y[:16], 'more'), (x[16:], y[16:], 'more')], [(x, y)], **quick)
    assert rows[0]['step'] == 2 and rows[0]['n'] == 40


def test_batches_beyond_the_length_are_left_out():
    class Long(list):
        def __len__(self): return 2
    x, y = pictures(48)
    batches = list(zip(x.split(16), y.split(16)))
    one, other = tiny(), tiny()
    row, = fit(one, Long(batches), **quick)
    fit(other, batches[:2], **quick)
    assert row['step'] == 2 and torch.equal(weights(one), weights(other))


def test_labels_of_any_whole_number_train_alike():
    x, y = pictures()
    one, other = tiny(), tiny()
    fit(one, loader(x, y.int(), shuffle=False), **quick)
    fit(other, loader(x, y, shuffle=False), **quick)
    assert torch.equal(weights(one), weights(other))


@both
def test_soft_targets_that_are_hard_train_the_same(kind):
    x, y = pictures()
    hard, soft = make(kind), make(kind)
    targets = y, F.one_hot(y, CLASSES).float()
    rows = [fit(model, [(x, t)], epochs=2, **quick)[-1] for model, t in zip((hard, soft), targets)]
    torch.testing.assert_close(weights(hard), weights(soft), rtol=1e-4, atol=1e-5)
    assert rows[0]['train_top1'] == rows[1]['train_top1']


def test_label_smoothing_reaches_the_loss():
    x, y = pictures()
    model = sparse(theta=(-1e9, -1e9), budget=1.)
    expected = F.cross_entropy(model.vit.train()(x), y, label_smoothing=.2).item()
    row, = fit(model, [(x, y)], label_smoothing=.2, **quick)
    assert row['task'] == pytest.approx(expected, rel=1e-5)


def test_the_teacher_is_a_frozen_copy_that_sees_everything(monkeypatch):
    made, ready = [], prepare.ready_teacher
    monkeypatch.setattr(prepare, 'ready_teacher', lambda *args: made.append(ready(*args)) or made[-1])
    vit = tiny(proj_drop_rate=.5)
    model, before = sparse(vit, budget=1.), weights(vit)
    fit(model, loader(), teacher=vit, lr=1e-2, **quick)
    teacher, = made
    assert teacher is not vit and not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert not torch.equal(weights(vit), before) and torch.equal(weights(teacher), before)


@both
def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it(kind):
    vit = tiny()
    model = vit if kind == 'dense' else sparse(vit, budget=1.)
    row, = fit(model, [pictures()], teacher=vit, **quick)
    assert row['distill'] == pytest.approx(0, abs=1e-6)


def test_frozen_parameters_stay_and_thresholds_move_at_their_own_rate():
    model = sparse()
    model.vit.requires_grad_(False)
    calibrate(model, [pictures()[0]])
    before, theta = weights(model.vit), model.method.theta.detach().clone()
    fit(model, [pictures()], lr=1e-2, warmup=0, clip=0, **quick)
    moved = (model.method.theta - theta).abs()
    assert torch.equal(weights(model.vit), before)
    assert (moved > 0).all() and moved.max() <= 1.01e-2 * model.method.lr_scale


def test_thresholds_start_from_the_data_without_dropout():
    data = loader(shuffle=False)
    model = sparse(tiny(attn_drop_rate=.5, proj_drop_rate=.5))
    other = copy.deepcopy(model)
    calibrate(other, [x for x, _ in data])
    fit(model, data, lr=1e-12, **quick)
    torch.testing.assert_close(model.method.theta, other.method.theta, rtol=1e-5, atol=0)


def test_the_moving_average_is_what_is_judged_kept_and_given_back(tmp_path):
    plain, averaged = tiny(), tiny()
    fit(plain, loader(), epochs=3, **quick)
    rows = fit(averaged, loader(), loader(shuffle=False), epochs=3, ema=.9, out=tmp_path, **quick)
    assert not torch.equal(weights(plain), weights(averaged))
    assert torch.equal(logits(load_dense(tmp_path/'last')), logits(averaged))
    assert evaluate(averaged, loader(shuffle=False))['top1'] == rows[-1]['top1']
    tracked = tiny()
    fit(tracked, loader(), epochs=3, ema=1e-9, **quick)  # an average that forgets at once
    torch.testing.assert_close(weights(tracked), weights(plain), atol=1e-6, rtol=1e-5)


def test_bfloat16_keeps_thresholds_macs_and_losses_in_float32():
    model, seen, widths = sparse(), [], []
    model.method.after_backward = lambda trace, vit: seen.append((trace.macs.dtype, trace.score.dtype,
                                                                  vit.pos_embed.dtype))
    hook = model.vit.blocks[0].mlp.register_forward_hook(lambda m, i, o: widths.append((m.training, o.dtype)))
    rows = fit(model, loader(), loader(), dtype='bfloat16', **quick)
    hook.remove()
    assert model.method.theta.dtype == torch.float32 and set(seen) == {(torch.float32,) * 3}
    assert {dtype for training, dtype in widths if training} == {torch.bfloat16}
    assert all(math.isfinite(v) for v in rows[0].values() if isinstance(v, float))


def test_runs_of_different_precision_follow_each_other_and_leave_no_trace():
    model, kinds = tiny(), []
    hook = model.head.register_forward_hook(lambda m, i, o: kinds.append(o.dtype))
    for dtype in ('bfloat16', 'float32', 'bfloat16'):
        kinds.clear()
        fit(model, loader(), dtype=dtype, **quick)
        assert set(kinds) == {getattr(torch, dtype)}
        assert not {'forward', '_original_forward', '_is_accelerate_prepared'} & set(vars(model))
    hook.remove()
    assert logits(model).dtype == torch.float32


@pytest.mark.parametrize('kind', ['dense', 'sparse'])
def test_a_compiled_run_is_the_same_run(kind, traced):
    runs = {}
    for compiled in (False, True):
        model = make(kind)
        runs[compiled], = fit(model, loader(), loader(shuffle=False), lr=1e-3, compiled=compiled, **quick)
    assert counters['stats']['unique_graphs'] > 0
    for name in ('loss', 'macs_share', 'top1'):
        assert runs[True][name] == pytest.approx(runs[False][name], rel=1e-4), name
    before = counters['stats']['unique_graphs']
    logits(model)
    assert counters['stats']['unique_graphs'] == before  # the model comes back as it was given


def test_fit_names_the_missing_compiler(monkeypatch):
    monkeypatch.setattr(devices.shutil, 'which', lambda name: None)
    monkeypatch.setenv('CXX', 'some++')
    model = tiny()
    before = weights(model)
    with pytest.raises(ValueError, match=r"C\+\+ compiler 'some\+\+'"):
        fit(model, loader(), device='cpu', compiled=True)
    assert torch.equal(weights(model), before)


def test_tensorboard_is_told_of_every_epoch(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    with pytest.raises(ValueError, match='give out='): fit(tiny(), loader(), trackers='tensorboard', **quick)
    rows = fit(tiny(), loader(), epochs=2, trackers='tensorboard', out=tmp_path, **quick)
    told = EventAccumulator(str(next(tmp_path.rglob('events.out.*')).parent)).Reload()
    assert [e.value for e in told.Scalars('loss')] == pytest.approx([row['loss'] for row in rows])


def test_a_label_or_image_deep_in_the_data_stops_the_run_and_keeps_earlier_epochs(tmp_path):
    x, y = pictures(80)
    fit(tiny(), loader(x, y, shuffle=False, batch=8), out=tmp_path, **quick)
    log = (tmp_path/'log.jsonl').read_text()
    shutil.rmtree(tmp_path/'states')  # new runs may use the folder
    bad = x.clone()
    bad[75] = math.inf
    for images, labels, match in ((x, y + 5 * (torch.arange(80) == 70), 'label 7'), (bad, y, 'NaN or infinity')):
        with pytest.raises(ValueError, match=match):
            fit(tiny(), loader(images, labels, shuffle=False, batch=8), out=tmp_path, **quick)
        assert (tmp_path/'log.jsonl').read_text() == log and load_dense(tmp_path/'last')


@both
@pytest.mark.parametrize('broken', ['writing', 'renaming'])
def test_an_interrupted_save_leaves_the_old_checkpoint(kind, broken, tmp_path, monkeypatch):
    model = make(kind)
    fit(model, loader(), out=tmp_path, **quick)
    old, log = logits(model), (tmp_path/'log.jsonl').read_text()
    shutil.rmtree(tmp_path/'states')  # a new run may use the folder
    with monkeypatch.context() as m:
        def full(what, path, **kwargs):
            if broken == 'writing': Path(path).write_bytes(b'half a file')
            raise OSError('no space left on device')
        writers = ['safetensors.torch.save_model', 'huggingface_hub.hub_mixin.save_model_as_safetensor']  # by version
        if kind == 'dense': writers = ['timm.models._hub.safetensors.torch.save_file']
        for name in ['os.replace'] if broken == 'renaming' else writers: m.setattr(name, full, raising=False)
        with pytest.raises(ValueError, match='no space.* stopped at step 3, it has no state yet'):
            fit(model, loader(), lr=.1, out=tmp_path, **quick)
    assert torch.equal(logits(load(kind, tmp_path/'last')), old) and not torch.equal(logits(model), old)
    assert {f.name for f in tmp_path.iterdir()} == {'best', 'last', 'log.jsonl'}
    assert (tmp_path/'log.jsonl').read_text() == log


@pytest.mark.gpu
@both
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_fit_on_cuda(kind, dtype, tmp_path):
    model = make(kind)
    run = dict(device='cuda', dtype=dtype, teacher=tiny(), out=tmp_path, progress=False)
    rows = fit(model, loader(), loader(), epochs=3, **run)
    assert all(p.is_cuda and p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert rows[-1]['n'] == 40 and all(math.isfinite(v) for v in rows[-1].values() if isinstance(v, float))
    torch.testing.assert_close(logits(load(kind, tmp_path/'last')), logits(model.cpu()), rtol=1e-4, atol=1e-4)
