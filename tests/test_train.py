"Training on models of two or three blocks and a few dozen images; what is drawn at random is seeded."
import copy
import json
import math
import os
import shutil
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader, TensorDataset

from adaptive_tokens import devices, train
from adaptive_tokens.models.cost import macs
from adaptive_tokens.models.model import AdaptiveViT, adapt, calibrate
from adaptive_tokens.training.losses import losses
from adaptive_tokens.training.recipe import Recipe, make_optimizer, make_scheduler, parameter_groups, smoothed
from adaptive_tokens.models.checkpoint import load_dense, save_dense
from adaptive_tokens.models.files import staged, write_text
from adaptive_tokens.training.evaluate import check_targets, evaluate
from adaptive_tokens.training.fit import fit
from adaptive_tokens.training.losses import loss_terms
from adaptive_tokens.training.resume import best_epoch

CLASSES = 4


def tiny(**changes):
    torch.manual_seed(0)
    small = dict(img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2, num_classes=CLASSES)
    return timm.create_model('vit_tiny_patch16_224', **{**small, **changes})


def swin(): return timm.create_model('swin_tiny_patch4_window7_224', depths=(1,))
def sparse(vit=None, budget=.7, **options):
    return adapt(vit or tiny(), 'as-vit', budget=budget, places=(1, 2), **options)


def make(kind): return tiny() if kind == 'dense' else sparse()


def pictures(n=40, seed=1):
    "Images whose class is the quarter that is bright"
    noise = torch.Generator().manual_seed(seed)
    x, y = .3 * torch.randn(n, 3, 32, 32, generator=noise), torch.arange(n) % CLASSES
    for image, label in zip(x, y.tolist()): image[:, label // 2 * 16:][:, :16, label % 2 * 16:][..., :16] += 1
    return x, y


def loader(x=None, y=None, shuffle=True, batch=16):
    if x is None: x, y = pictures()
    return DataLoader(TensorDataset(x, y), batch, shuffle=shuffle, generator=torch.Generator())


def weights(model): return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


@torch.no_grad()
def logits(model): return model.eval()(pictures()[0])


def load(kind, folder): return load_dense(folder) if kind == 'dense' else AdaptiveViT.from_pretrained(folder)


quick = dict(device='cpu', progress=False)
both = pytest.mark.parametrize('kind', ['dense', 'as-vit'])


# what a run does

@pytest.fixture(scope='module')
def learned():
    vit = tiny()
    fit(vit, loader(), epochs=20, lr=1e-2, **quick)
    return vit


def test_a_dense_model_learns_and_a_student_learns_to_do_with_less(learned):
    assert not learned.training and evaluate(learned, loader(), device='cpu')['top1'] > 95
    student = sparse(copy.deepcopy(learned))
    rows = fit(student, loader(), loader(shuffle=False), epochs=10, lr=3e-3, teacher=learned, **quick)
    assert rows[-1]['loss'] < rows[0]['loss'] and rows[-1]['top1'] > 90 and not student.training
    assert rows[-1]['macs_share'] == pytest.approx(.7, rel=.05)


@both
def test_same_seed_same_weights_even_with_the_same_loader(kind):
    data, start = loader(), make(kind)
    runs = [copy.deepcopy(start) for _ in range(3)]
    for model, seed in zip(runs, (3, 3, 4)): fit(model, data, epochs=2, seed=seed, **quick)
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


@both
def test_terms_are_finite_and_sum_to_the_loss(kind):
    model, (x, y), teacher = make(kind).train(), pictures(), tiny().eval()
    for opinion in (None, teacher(x).detach()):
        terms, answer, trace = loss_terms(model, x, y, opinion)
        names = {'task'} | ({'distill'} if opinion is not None else set()) | ({'budget'} if kind == 'as-vit' else set())
        assert set(terms) == names | {'loss'} and answer.shape == (len(x), CLASSES)
        assert (trace is None) == (kind == 'dense')
        torch.testing.assert_close(terms['loss'], sum(terms[name] for name in names))
        assert all(term.isfinite() for term in terms.values())


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
    monkeypatch.setattr(train, 'judge_all', lambda *args: dict(top1=next(top1), macs_share=1., n=1, gmacs=1., gmacs_spread=0.))
    monkeypatch.setattr(train, 'save', lambda model, folder: kept.append(folder.name) or folder.mkdir(exist_ok=True))
    fit(tiny(), loader(), loader(), epochs=3, out=tmp_path, **quick)
    assert kept == ['last', 'best', 'last', 'best', 'last']


@pytest.mark.parametrize('rows, budget, best', [
    ([(80, .66), (90, .75)], .65, 0), ([(80, .75), (90, .7)], .65, 1), ([(80, .64), (90, .65), (90, .65)], .65, 1),
    ([(80, 1), (70, 1)], None, 0), ([(90, .9), (70, .65), (60, .65)], .65, 1)])
def test_only_epochs_within_two_percent_of_the_budget_compete(rows, budget, best):
    assert best_epoch([dict(top1=t, macs_share=s) for t, s in rows], budget) == best


def test_without_validation_the_last_epoch_is_best(): assert best_epoch([dict(epoch=1), dict(epoch=2)], .65) == 1


def test_progress_bar_tells_accuracy_and_macs_and_stays_out_of_tests(monkeypatch):
    bars, last = [], []
    class Bar(train.tqdm):
        def __init__(self, *args, **kwargs):
            bars.append(kwargs)
            super().__init__(*args, **kwargs)
        def set_postfix(self, values, **kwargs): last.append(values)
    monkeypatch.setattr(train, 'tqdm', Bar)
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


# targets, teacher, schedule

def test_smoothing_equals_torch_and_passes_through():
    x, y = torch.randn(6, CLASSES), torch.tensor([0, 1, 2, 3, 0, 1])
    for s in (0., .1, .5):
        expected = F.cross_entropy(x, y, label_smoothing=s)
        torch.testing.assert_close(F.cross_entropy(x, smoothed(y, CLASSES, s)), expected)
    assert smoothed(y, CLASSES, 0.) is y


def test_label_smoothing_reaches_the_loss():
    x, y = pictures()
    model = sparse(theta=(-1e9, -1e9), budget=1.)
    expected = F.cross_entropy(model.vit.train()(x), y, label_smoothing=.2).item()
    row, = fit(model, [(x, y)], label_smoothing=.2, **quick)
    assert row['task'] == pytest.approx(expected, rel=1e-5)


@both
def test_soft_targets_that_are_hard_train_the_same(kind):
    x, y = pictures()
    hard, soft = make(kind), make(kind)
    targets = y, F.one_hot(y, CLASSES).float()
    rows = [fit(model, [(x, t)], epochs=2, **quick)[-1] for model, t in zip((hard, soft), targets)]
    torch.testing.assert_close(weights(hard), weights(soft), rtol=1e-4, atol=1e-5)
    assert rows[0]['train_top1'] == rows[1]['train_top1']


def test_the_teacher_is_a_frozen_copy_that_sees_everything(monkeypatch):
    made, ready = [], train.ready_teacher
    monkeypatch.setattr(train, 'ready_teacher', lambda *args: made.append(ready(*args)) or made[-1])
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


def test_what_decays():
    model = sparse()
    groups = parameter_groups(model, .1)
    still, decaying, own = ({id(p) for p in group['params']} for group in groups)
    named = dict(model.named_parameters())
    assert {id(named[n]) for n in ('vit.pos_embed', 'vit.cls_token', 'vit.norm.weight', 'vit.head.bias')} <= still
    assert {id(named[n]) for n in ('vit.head.weight', 'vit.blocks.0.mlp.fc1.weight')} <= decaying
    assert own == {id(model.method.theta)} and groups[2]['lr_scale'] == model.method.lr_scale < 1
    assert [group['weight_decay'] for group in groups] == [0, .1, 0]
    assert len(still) + len(decaying) + len(own) == len(named)
    assert still | decaying | own == {id(p) for p in named.values()}
    assert len(parameter_groups(tiny(), .1)) == 2 and len(parameter_groups(tiny(), 0.)) == 1


def test_frozen_parameters_stay_and_thresholds_move_at_their_own_rate():
    model = sparse()
    model.vit.requires_grad_(False)
    calibrate(model, [pictures()[0]])
    before, theta = weights(model.vit), model.method.theta.detach().clone()
    fit(model, [pictures()], lr=1e-2, warmup=0, clip=0, **quick)
    moved = (model.method.theta - theta).abs()
    assert torch.equal(weights(model.vit), before)
    assert (moved > 0).all() and moved.max() <= 1.01e-2 * model.method.lr_scale


def test_schedule_climbs_then_falls_by_steps():
    recipe = Recipe(epochs=4, lr=.1, warmup=.25)
    optimizer = make_optimizer(tiny(), recipe)
    schedule, lr = make_scheduler(optimizer, recipe, 10), []
    for step in range(41):
        schedule.step_update(step)
        lr.append(optimizer.param_groups[0]['lr'])
    assert lr[0] == pytest.approx(.001) and lr[:10] == sorted(lr[:10]) and lr[10:] == sorted(lr[10:], reverse=True)
    assert max(lr) > .08 and lr[-1] == pytest.approx(.001)


# thresholds

def test_thresholds_get_gradient_from_task_and_from_budget():
    model, (x, y) = sparse(budget=.8), pictures()
    calibrate(model, [x])
    model.method.budget = .7
    for name in ('task', 'budget'):
        answer, trace = model.train()(x, return_trace=True)
        grad, = torch.autograd.grad(losses(model, answer, y, trace)[name], model.method.theta)
        assert (grad != 0).all(), name


@pytest.mark.parametrize('start, budget', [(.95, .6), (.95, .8), (.7, .95)])
def test_budget_loss_alone_reaches_the_budget_within_two_percent_in_200_steps(learned, start, budget):
    model, (x, y) = sparse(copy.deepcopy(learned), T=1e3), pictures(64)
    calibrate(model, [x], start)
    model.method.budget = budget
    model.vit.requires_grad_(False)
    recipe = Recipe(lr=1e-3 / model.method.lr_scale, warmup=0)
    optimizer = make_optimizer(model, recipe)
    schedule = make_scheduler(optimizer, recipe, 200)
    for step in range(200):
        answer, trace = model.train()(x, return_trace=True)
        losses(model, answer, y, trace)['budget'].backward()
        schedule.step_update(step)
        optimizer.step()
        optimizer.zero_grad()
    assert evaluate(model, [(x, y)], device='cpu')['macs_share'] == pytest.approx(budget, rel=.02)


def test_a_dead_threshold_is_revived_by_fit():
    model = sparse(theta=(.9, .95), patience=2)
    with pytest.warns(UserWarning, match='exactly zero gradient'): row = fit(model, loader(), epochs=4, **quick)[-1]
    assert max(row['theta']) < .5 and row['theta'] == pytest.approx(model.method.theta.tolist())
    assert row['train_macs_share'] > 1.1 * evaluate(sparse(theta=(.9, .95)), loader(), device='cpu')['macs_share']


def test_thresholds_start_from_the_data_without_dropout():
    data = loader(shuffle=False)
    model = sparse(tiny(attn_drop_rate=.5, proj_drop_rate=.5))
    other = copy.deepcopy(model)
    calibrate(other, [x for x, _ in data])
    fit(model, data, lr=1e-12, **quick)
    torch.testing.assert_close(model.method.theta, other.method.theta, rtol=1e-5, atol=0)


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


# evaluate

@both
def test_evaluate_means_are_over_images(kind):
    model, (x, y) = make(kind), pictures(21)
    if kind == 'as-vit': calibrate(model, [x])
    found = evaluate(model.train(), loader(x, y, shuffle=False, batch=8), device='cpu')
    assert model.training and found['n'] == 21
    assert found['top1'] == pytest.approx(100 * (model.eval()(x).argmax(1) == y).float().mean().item())
    vit = getattr(model, 'vit', model)
    spent = model(x, return_trace=True)[1].macs.double() if kind == 'as-vit' else torch.full((21,), float(macs(vit)))
    assert found['gmacs'] == pytest.approx(spent.mean().item() / 1e9)
    assert found['gmacs_spread'] == pytest.approx(spent.std(correction=0).item() / 1e9, abs=1e-12)
    assert found['macs_share'] == pytest.approx(spent.mean().item() / macs(vit))


@both
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_evaluate_in_lower_precision(kind, dtype):
    model, seen = make(kind), set()
    getattr(model, 'vit', model).blocks[0].mlp.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    assert evaluate(model, loader(), device='cpu', dtype=dtype)['n'] == 40
    assert seen == {getattr(torch, dtype)}


def test_evaluate_counts_the_image_at_hand():
    vit = tiny(dynamic_img_size=True)
    x = torch.randn(3, 3, 64, 48)
    found = evaluate(vit, [(x, torch.tensor([0, 1, 2]))], device='cpu')
    assert found['gmacs'] == pytest.approx(macs(vit, None, 48) / 1e9)


def test_evaluate_names_what_is_wrong():
    with pytest.raises(ValueError, match='no batch to evaluate'): evaluate(tiny(), [], device='cpu')
    with pytest.raises(ValueError, match='label 7 does not fit a head of 4'):
        evaluate(tiny(), [(pictures(2)[0], torch.tensor([1, 7]))], device='cpu')
    with pytest.raises(ValueError, match='NaN'):
        evaluate(tiny(), [(torch.full((1, 3, 32, 32), math.nan), torch.tensor([0]))], device='cpu')
    with pytest.raises(ValueError, match='16x16'):
        evaluate(sparse(), [(torch.zeros(1, 3, 16, 16), torch.tensor([0]))], device='cpu')


# checkpoints

@pytest.mark.parametrize('changes', [
    dict(), dict(init_values=.1, reg_tokens=2), dict(qk_norm=True, global_pool='avg'), dict(num_heads=4),
    dict(class_token=False, global_pool='avg', in_chans=1, num_classes=7)])
def test_dense_checkpoints_round_trip(tmp_path, changes):
    vit = tiny(**changes).eval()
    folder = tmp_path/'deep'/'er'
    save_dense(vit, folder)
    again, by_timm = load_dense(folder), timm.create_model(f'local-dir:{folder}', pretrained=True)
    x = torch.randn(2, vit.patch_embed.proj.in_channels, 32, 32)
    assert not again.training and torch.equal(again(x), vit(x)) and torch.equal(by_timm.eval()(x), vit(x))
    save_dense(again, tmp_path/'twice')
    assert (tmp_path/'twice'/'config.json').read_text() == (folder/'config.json').read_text()


def test_a_half_precision_checkpoint_loads(tmp_path):
    vit = tiny()
    save_dense(copy.deepcopy(vit).half(), tmp_path)
    torch.testing.assert_close(logits(load_dense(tmp_path)), logits(vit), rtol=0, atol=1e-2)


def test_a_model_that_cannot_be_rebuilt_is_not_saved(tmp_path):
    vit = tiny()
    vit.head = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, CLASSES))
    with pytest.raises(ValueError, match='does not rebuild this model.*head'): save_dense(vit, tmp_path/'new')
    with pytest.raises(ValueError, match='SwinTransformer'):
        save_dense(swin(), tmp_path/'new')
    assert not (tmp_path/'new').exists()


def cut(file): file.write_bytes(file.read_bytes()[:900])
def swap(file): os.replace(file.parent.parent/'other'/file.name, file)


@pytest.mark.parametrize('name, spoil, error, match', [
    ('config.json', Path.unlink, FileNotFoundError, 'config.json is missing'),
    ('model.safetensors', Path.unlink, FileNotFoundError, 'model.safetensors is missing'),
    ('config.json', lambda f: f.write_text('{"archi'), ValueError, 'config.json is damaged'),
    ('config.json', lambda f: f.write_text('{"architecture": "vit_of_old"}'), ValueError, 'timm model.*vit_of_old'),
    ('config.json', lambda f: f.write_text('{}'), ValueError, 'does not describe a timm model'),
    ('model.safetensors', cut, ValueError, 'damaged or cut off'),
    ('model.safetensors', swap, ValueError, 'another architecture'),
])
def test_damaged_dense_checkpoints_are_named(tmp_path, name, spoil, error, match):
    save_dense(tiny(), tmp_path/'one')
    save_dense(tiny(num_classes=9), tmp_path/'other')
    spoil(tmp_path/'one'/name)
    with pytest.raises(error, match=match): load_dense(tmp_path/'one')


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='config.json is missing'): load_dense(tmp_path/'nowhere')


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
        writer = {'dense': 'timm.models._hub.safetensors.torch.save_file', 'as-vit': 'safetensors.torch.save_model'}
        m.setattr('os.replace' if broken == 'renaming' else writer[kind], full)
        with pytest.raises(ValueError, match='no space.* stopped at step 3, it has no state yet'): fit(model, loader(), lr=.1, out=tmp_path, **quick)
    assert torch.equal(logits(load(kind, tmp_path/'last')), old) and not torch.equal(logits(model), old)
    assert {f.name for f in tmp_path.iterdir()} == {'best', 'last', 'log.jsonl'}
    assert (tmp_path/'log.jsonl').read_text() == log


def test_staged_files_appear_together_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), staged(tmp_path/'new') as folder:
        (folder/'a').write_text('a')
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with staged(tmp_path/'new') as folder:
        for name in 'ab': (folder/name).write_text(name)
        assert not (tmp_path/'new').exists()
    assert sorted(f.name for f in (tmp_path/'new').iterdir()) == ['a', 'b']


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_text(tmp_path/'log', 'old')
    with pytest.raises(UnicodeEncodeError): write_text(tmp_path/'log', 'half a \ud800')
    assert (tmp_path/'log').read_text() == 'old' and [f.name for f in tmp_path.iterdir()] == ['log']


# bad input

class Watched(list):
    "Batches that count how often they were asked for"
    asked = 0
    def __iter__(self):
        self.asked += 1
        return super().__iter__()


@pytest.mark.parametrize('changes, match', [
    (dict(epochs=0), 'epochs is 0; it must be a whole number, at least 1'), (dict(epochs=1.5), 'epochs is 1.5'),
    (dict(lr=0.), 'lr is 0.0; it must be above 0'), (dict(lr=-1e-3), 'lr is -0.001'), (dict(lr=math.nan), 'lr is nan'),
    (dict(weight_decay=-1.), 'weight_decay is -1.0'), (dict(warmup=1.), 'warmup is 1.0; it must be a share'),
    (dict(clip=-1.), 'clip is -1.0'), (dict(label_smoothing=1.), 'label_smoothing is 1.0'),
    (dict(opt='adamv'), "no optimiser 'adamv'.*adam"), (dict(device='cdua'), "'cdua'.*cuda"),
    (dict(dtype='float61'), "'float61'.*float16"),
    (dict(dtype='float16'), 'float16 .* bfloat16 or float32 on the CPU'),
])
def test_numbers_and_names_are_refused_before_any_image_is_asked_for(changes, match, tmp_path):
    batches = Watched([pictures()])
    with pytest.raises(ValueError, match=match): fit(tiny(), batches, out=tmp_path/'out', **{**quick, **changes})
    assert batches.asked == 0 and not (tmp_path/'out').exists()


@both
@pytest.mark.parametrize('batches, match', [
    (lambda x, y: [], 'train_loader has no batch'),
    (lambda x, y: [(x, y + 1)], 'label 4 does not fit a head of 4 classes'),
    (lambda x, y: [(x, y - 1)], 'label -1 does not fit'),
    (lambda x, y: [(x[:, :1], y)], r'wants \[B, 3'),
    (lambda x, y: [(x[..., :16, :16], y)], 'images are 16x16'),
    (lambda x, y: [(x * math.nan, y)], 'NaN'),
    (lambda x, y: [(x, y.float())], r'targets are torch.float32 \[40\]'),
    (lambda x, y: [(x, torch.ones(40, 3))], r'targets are torch.float32 \[40, 3\]'),
])
def test_batches_that_do_not_fit_are_refused_before_the_first_step(kind, batches, match, tmp_path):
    model = make(kind)
    before = weights(model)
    with pytest.raises(ValueError, match=match): fit(model, batches(*pictures()), out=tmp_path/'out', **quick)
    assert torch.equal(weights(model), before) and not (tmp_path/'out').exists()


def test_a_loader_that_drops_its_only_batch_is_empty():
    data = DataLoader(TensorDataset(*pictures(8)), 16, drop_last=True)
    with pytest.raises(ValueError, match='train_loader has no batch.*drop_last'): fit(tiny(), data, **quick)
    with pytest.raises(ValueError, match='val_loader has no batch'): fit(tiny(), loader(), [], **quick)


def test_a_loader_without_length_is_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(zip(*pictures()))
    with pytest.raises(ValueError, match='train_loader has no length'): fit(tiny(), DataLoader(Stream(), 16), **quick)


def test_all_labels_are_looked_at_where_the_data_set_lists_them():
    data = TensorDataset(*pictures(80))
    data.targets = pictures(80)[1].tolist()[:-1] + [9]
    with pytest.raises(ValueError, match='label 9'): fit(tiny(), DataLoader(data, 8), **quick)


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
def test_a_teacher_of_other_classes_or_size_is_refused(kind, tmp_path):
    model = make(kind)
    with pytest.raises(ValueError, match='the teacher has 7 classes and the model 4'):
        fit(model, loader(), teacher=tiny(num_classes=7), out=tmp_path/'out', **quick)
    with pytest.raises(ValueError, match='the teacher cannot take the images: images are 32x32; this backbone wants 64x64'):
        fit(model, loader(), teacher=tiny(img_size=64), out=tmp_path/'out', **quick)
    assert not (tmp_path/'out').exists()


def test_an_out_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path/'file').write_text('')
    model = tiny()
    before = weights(model)
    for out in (tmp_path/'file', tmp_path/'file'/'below'):
        with pytest.raises(ValueError, match='cannot write to out=.*file'): fit(model, loader(), out=out, **quick)
    assert torch.equal(weights(model), before)


def test_a_backbone_that_is_not_understood_is_refused_by_name():
    with pytest.raises(ValueError, match='SwinTransformer'):
        fit(swin(), loader(), **quick)


@pytest.mark.parametrize('targets', [torch.tensor([0, 4]), torch.tensor([-1, 0]), torch.tensor([.5, 1.]),
                                     torch.zeros(2, 5)])
def test_check_targets(targets):
    check_targets(targets.abs().long().clamp(max=3).reshape(-1), CLASSES)
    with pytest.raises(ValueError, match='head of 4 classes'): check_targets(targets, CLASSES)


# loss that is not a number

@both
def test_a_loss_that_is_not_finite_stops_at_once(kind, tmp_path):
    model = make(kind)
    with torch.no_grad(): getattr(model, 'vit', model).head.bias[1] = math.nan
    with pytest.raises(ValueError, match="loss term 'task' is nan in step 1 "):
        fit(model, loader(), out=tmp_path, **quick)
    assert not list(tmp_path.iterdir())


def test_a_bad_step_is_neither_taken_nor_saved(tmp_path, monkeypatch):
    calls, terms_of = [], train.loss_terms
    def spoiled(*args):
        calls.append(weights(args[0]))
        terms, *rest = terms_of(*args)
        if len(calls) == 5: terms['budget'] = terms['budget'] * math.inf
        return terms, *rest
    monkeypatch.setattr(train, 'loss_terms', spoiled)
    model = sparse()
    with pytest.raises(ValueError, match="loss term 'budget' is inf in step 5"):
        fit(model, loader(), epochs=3, out=tmp_path, **quick)
    assert torch.equal(weights(model), calls[4]) and not model.training
    assert len((tmp_path/'log.jsonl').read_text().splitlines()) == 1
    first = AdaptiveViT.from_pretrained(tmp_path/'last')  # an epoch has three steps
    assert torch.equal(weights(first), calls[3])


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    model = tiny()
    model.head.weight.register_hook(lambda grad: grad * math.nan)
    before = weights(model)
    for clip in (1., 0.):
        with pytest.raises(ValueError, match='norm of the gradient is nan in step 1'):
            fit(model, loader(), clip=clip, **quick)
    assert torch.equal(weights(model), before)


# with a GPU

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


@pytest.mark.parametrize('n, accumulate', [(40, 1), (40, 2), (40, 3), (33, 5)])
def test_accumulated_gradients_are_those_of_the_batches_together(n, accumulate):
    "Batches of 8, the last smaller: a step's gradient is the mean of its batches' gradients, also in the last, shorter group"
    x, y = pictures(n)
    batches = [(x[i:i + 8], y[i:i + 8]) for i in range(0, n, 8)]
    model, by_hand = tiny(), tiny()
    rows = fit(model, batches, epochs=1, lr=.1, opt='sgd', warmup=0., floor=1., clip=0., weight_decay=0., accumulate=accumulate, **quick)
    optimizer = make_optimizer(by_hand.train(), Recipe(lr=.1, opt='sgd', weight_decay=0.))
    for k in range(0, len(batches), accumulate):
        group = batches[k:k + accumulate]
        sum(F.cross_entropy(by_hand(images), labels) / len(group) for images, labels in group).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-6, rtol=1e-5)
    assert rows[0]['step'] == -(-len(batches) // accumulate)


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


@pytest.mark.parametrize('n', [33, 34])
def test_mixed_images_train_also_where_one_has_no_partner(n):
    x, y = pictures(n)
    batches = [(x[:n // 2], y[:n // 2]), (x[n // 2:], y[n // 2:])]
    before = [images.clone() for images, _ in batches]
    rows = fit(tiny(), batches, epochs=2, mixup=.8, cutmix=1., **quick)
    assert all(torch.equal(images, old) for (images, _), old in zip(batches, before)) and math.isfinite(rows[-1]['loss'])
    soft = [(images, F.one_hot(labels, CLASSES).float()) for images, labels in batches]
    with pytest.raises(ValueError, match='soft targets.*mixup=0'): fit(tiny(), soft, mixup=.8, **quick)


def test_a_recipe_for_another_method_or_budget_is_refused():
    with pytest.raises(ValueError, match="for 'as-vit' and the model is dense"): fit(tiny(), loader(), recipe='as-vit/deit-s-0.65')
    with pytest.raises(ValueError, match='budget 0.65 and the model has 0.7'): fit(sparse(), loader(), recipe='as-vit/deit-s-0.65')
    with pytest.raises(ValueError, match="no recipe 'as-vit/deit-s'; nearest"): fit(sparse(), loader(), recipe='as-vit/deit-s')
    with pytest.raises(ValueError, match='budget 0.5 and the model has 0.7'): fit(sparse(), loader(), budget=.5)
    with pytest.raises(ValueError, match='T=10000.0 and the model has 5.0'): fit(sparse(budget=.65, T=5.), loader(), recipe='as-vit/deit-s-0.65')


def test_a_card_tells_the_method_budget_and_batch_that_were_used(tmp_path):
    fit(sparse(), loader(batch=20), out=tmp_path, **quick)
    card = (tmp_path/'last'/'README.md').read_text()
    assert 'method: as-vit' in card and 'budget: 0.7' in card and 'batches of 20, 1 process' in card and 'validated on nothing' in card


def test_a_card_tells_what_part_of_the_data_was_used(tmp_path):
    x, y = pictures()
    part = DataLoader(torch.utils.data.Subset(TensorDataset(x, y), range(24)), 8)
    fit(tiny(), part, out=tmp_path, **quick)
    assert 'Trained on TensorDataset, 24 of 40 images' in (tmp_path/'last'/'README.md').read_text()


def test_a_model_that_could_not_be_saved_is_refused_before_it_is_trained(tmp_path):
    vit = tiny(qkv_bias=False)
    before = weights(vit)
    with pytest.raises(ValueError, match='does not rebuild this model'): fit(vit, loader(), out=tmp_path/'out', **quick)
    assert torch.equal(weights(vit), before) and not (tmp_path/'out').exists()


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


def test_soft_targets_cannot_be_validated_on():
    x, y = pictures()
    soft = loader(x, F.one_hot(y, CLASSES).float())
    with pytest.raises(ValueError, match=r'give class numbers \[B\]$'): fit(tiny(), loader(), soft, **quick)
    with pytest.raises(ValueError, match=r'give class numbers \[B\]$'): evaluate(tiny(), soft, device='cpu')


def test_batches_that_are_no_pairs_are_refused():
    x, y = pictures()
    with pytest.raises(ValueError, match='train_loader gives batches of type dict'): fit(tiny(), [dict(image=x, label=y)], **quick)
    with pytest.raises(ValueError, match='val_loader gives batches of type Tensor'): fit(tiny(), loader(), [x], **quick)


def test_a_gradient_that_is_not_finite_in_the_method_alone_stops_the_run():
    model = sparse()
    model.vit.requires_grad_(False)
    model.method.theta.register_hook(lambda g: g * float('nan'))
    with pytest.raises(ValueError, match="the norm of the method's gradient is nan in step 1"): fit(model, loader(), **quick)


@pytest.mark.parametrize('names, match', [('tensorbored', "no tracker 'tensorbored'; nearest: tensorboard"), (['wandb'], 'pip install wandb')])
def test_trackers_that_are_not_there_are_refused(names, match, tmp_path, monkeypatch):
    monkeypatch.setattr(train, 'get_available_trackers', lambda: [])
    with pytest.raises(ValueError, match=match): fit(tiny(), loader(), trackers=names, out=tmp_path, **quick)


def test_tensorboard_is_told_of_every_epoch(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    with pytest.raises(ValueError, match='give out='): fit(tiny(), loader(), trackers='tensorboard', **quick)
    rows = fit(tiny(), loader(), epochs=2, trackers='tensorboard', out=tmp_path, **quick)
    told = EventAccumulator(str(next(tmp_path.rglob('events.out.*')).parent)).Reload()
    assert [e.value for e in told.Scalars('loss')] == pytest.approx([row['loss'] for row in rows])


def test_a_penalty_without_gradient_and_a_cost_that_stands_still_are_announced_once():
    model = sparse()
    watch, said = train.StallMonitor(patience=3), []
    run = type('Run', (), dict(model=model, steps=7))
    model.method.theta.grad = torch.zeros(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(8): watch(run, .9)
        said = [str(w.message) for w in caught]
    assert len(said) == 2 and 'theta of as-vit has had exactly zero gradient for 3 steps (step 7)' in said[0]
    assert 'stood at 0.900' in said[1] and 'the budget is 0.7' in said[1]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        watch, model.method.theta.grad = train.StallMonitor(patience=3), torch.ones(2)
        for share in (.9, .8, .7, .7, .7, .7): watch(run, share)


def test_the_card_says_data_recipe_versions_result_and_licence(tmp_path):
    model = sparse()
    fit(model, loader(), loader(shuffle=False), epochs=2, teacher=tiny(), out=tmp_path, **quick)
    card = (tmp_path/'last'/'README.md').read_text()
    for part in ('as-vit, budget 0.7', 'TensorDataset, 40 images', 'epochs: 2', torch.__version__, timm.__version__, 'licence: ', 'seed 0'):
        assert part in card, part
    result = evaluate(model, loader(shuffle=False))
    assert f"| this model | {result['top1']:.2f} | 40 |" in card and '| teacher, dense |' in card and '| this model, every token |' in card
    assert (tmp_path/'best'/'README.md').exists()
    from huggingface_hub import ModelCard
    assert ModelCard(card).data.library_name == 'adaptive_tokens'


def test_a_log_is_drawn_from_its_folder_file_or_rows(tmp_path):
    rows = fit(sparse(), loader(), loader(shuffle=False), epochs=2, out=tmp_path, **quick)
    for log in (tmp_path, tmp_path/'log.jsonl', rows):
        labels = [ax.get_ylabel() for ax in train.plot_log(log).axes]
        assert labels == ['loss', 'penalties', 'top-1, %', 'share of dense multiply-adds', 'learning rate', 'thresholds']
    with pytest.raises(FileNotFoundError, match='no log'): train.plot_log(tmp_path/'nowhere')
    with pytest.raises(ValueError, match='no epoch yet'): train.plot_log([])


@pytest.mark.parametrize('method', ['as-vit', 'a-vit', 'adavit'])
def test_half_precision_keeps_what_decides_in_float32_and_finite(method):
    model = adapt(tiny(), method, budget=.7).train()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast('cpu', dtype): terms, _, trace = loss_terms(model, *pictures(8))
        terms['loss'].backward()
        kept = [trace.macs, *model.method.buffers(), *model.method.parameters(), *(v for v in terms.values())]
        assert all(v.dtype == torch.float32 for v in kept if v.is_floating_point())
        assert trace.score.dtype == torch.float32
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_memory_of_a_masked_step_is_close_to_a_dense_one():
    vit = tiny(img_size=64, depth=6)
    models = dict(dense=vit, **{name: adapt(copy.deepcopy(vit), name, budget=.7) for name in ('as-vit', 'a-vit', 'adavit')})
    x = torch.randn(8, 3, 64, 64)
    calibrate(models['as-vit'], [x])
    rows = {row['name']: row for row in train.step_costs(models, x, torch.arange(8) % CLASSES, repeats=1)}
    assert rows['dense']['memory'] == rows['dense']['time'] == 1
    assert all(row['memory'] < 1.6 and row['time'] > 0 for row in rows.values())  # narrow: 16 wide; DeiT-S is measured apart


# --- torch.compile

@pytest.mark.parametrize('kind', ['dense', 'sparse'])
def test_a_compiled_run_is_the_same_run(kind, traced):
    runs = {}
    for compiled in (False, True):
        model = make(kind)
        runs[compiled] = fit(model, loader(), loader(shuffle=False), epochs=1, lr=1e-3, device='cpu', progress=False, compiled=compiled)[0]
    assert counters['stats']['unique_graphs'] > 0
    for name in ('loss', 'macs_share', 'top1'): assert runs[True][name] == pytest.approx(runs[False][name], rel=1e-4), name
    before = counters['stats']['unique_graphs']
    logits(model)
    assert counters['stats']['unique_graphs'] == before  # the model comes back as it was given


def test_fit_names_the_missing_compiler(monkeypatch):
    monkeypatch.setattr(devices.shutil, 'which', lambda name: None)
    monkeypatch.setenv('CXX', 'some++')
    model = tiny()
    before = weights(model)
    with pytest.raises(ValueError, match=r"C\+\+ compiler 'some\+\+'"): fit(model, loader(), device='cpu', compiled=True)
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize('teacher, tokens', [(tiny, True), (lambda: tiny(embed_dim=32), False), (lambda: tiny(patch_size=16), False)])
def test_a_teacher_lends_its_tokens_where_they_fit(teacher, tokens):
    row = fit(adapt(tiny(), 'dynamicvit', budget=.7, places=(1,)), loader(), epochs=1, lr=1e-3, teacher=teacher(), device='cpu', progress=False)[0]
    assert ('tokens' in row) == tokens and 'distill' in row and math.isfinite(row['loss'])


def test_no_tokens_are_asked_for_where_the_method_has_no_use_for_them():
    assert 'tokens' not in fit(sparse(), loader(), epochs=1, lr=1e-3, teacher=tiny(), device='cpu', progress=False)[0]
