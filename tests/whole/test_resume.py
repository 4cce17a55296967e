"A run that is killed, at any moment, ends as one that was not."
import functools
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import time
import warnings

import pytest
import torch
from small_runs import lacking_fork

from adaptive_tokens.images.digits import digits_loader, digits_vit
from adaptive_tokens.models.model import adapt
from adaptive_tokens.training import resume, state, step
from adaptive_tokens.training.fit import fit
from adaptive_tokens.training.log import read_log
from adaptive_tokens.training.state import states

needs_fork = pytest.mark.skipif(bool(lacking_fork()), reason=lacking_fork())
fork = multiprocessing.get_context('fork') if hasattr(os, 'fork') else None
METHODS = ['dense', 'as-vit', 'a-vit', 'adavit']
quick = dict(progress=False, device='cpu')
RECIPE = dict(epochs=2, lr=3e-3, ema=.9, mixup=.4, label_smoothing=.1, layer_decay=.8, accumulate=2)


def make(method):
    torch.manual_seed(0)
    vit = digits_vit(img_size=32, depth=3, drop_path_rate=.2)
    options = dict(adavit=dict(anneal=.99)).get(method, {})
    return vit if method == 'dense' else adapt(vit, method, budget=.7, **options)


def digits(split='train', size=112, **options):
    return digits_loader(split, batch_size=16, size=size, image_size=32, level='easy', **options)


def run(method, out, **changes):
    model = make(method)
    recipe = RECIPE | (dict(mixup=0.) if method == 'a-vit' else {}) | changes
    rows = fit(model, digits(), digits('test', 32), teacher=make('dense'), out=out, every=1, **quick, **recipe)
    return model, rows


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Runs that nobody disturbed: folder, model and log by method, each trained once"
    @functools.cache
    def of(method):
        out = tmp_path_factory.mktemp(method)
        return out, *run(method, out)
    return of


def assert_same(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values()): assert torch.equal(a, b), name


def without_time(rows): return [{k: v for k, v in row.items() if k != 'seconds'} for row in rows]


class Pulled(BaseException): pass


def stop_before(monkeypatch, number):
    "Tear the run down before the update of that number, counted from 1"
    update, count = step.update, itertools.count(1)
    def torn(*args):
        if next(count) == number: raise Pulled
        return update(*args)
    monkeypatch.setattr(step, 'update', torn)


@pytest.mark.parametrize('method, step', [('adavit', 1), ('adavit', 4), ('adavit', 8), ('dense', 2), ('as-vit', 6),
                                          ('a-vit', 5)])
def test_a_run_that_is_torn_and_goes_on_ends_bit_identical(method, step, tmp_path, monkeypatch, whole):
    out, undisturbed, rows = whole(method)  # 4 steps an epoch, the last of a single batch
    with monkeypatch.context() as m, pytest.raises(Pulled):
        stop_before(m, step)
        run(method, tmp_path/'torn')
    assert len(states(tmp_path/'torn')) == min(step - 1, 2)
    again, more = run(method, tmp_path/'torn', resume=True)
    assert_same(again, undisturbed)
    assert without_time(more) == without_time(rows)
    logs = [without_time(read_log(where)) for where in (out, tmp_path/'torn')]
    assert logs[0] == logs[1] == without_time(rows)
    for name in ('best', 'last'):
        files = [(where/name/'model.safetensors').read_bytes() for where in (out, tmp_path/'torn')]
        assert files[0] == files[1]


def test_a_finished_run_that_goes_on_has_nothing_left_to_do(whole):
    out, first, rows = whole('as-vit')
    again, same = run('as-vit', out, resume=True)
    assert_same(again, first)
    assert same == rows


@pytest.mark.parametrize('workers, step', [(1, 9), (0, 9), (0, 2), (0, 3)])
def test_workers_and_augmentation_are_drawn_again_as_they_were(workers, step, tmp_path, monkeypatch):
    "Without a worker images and gates draw from one generator, and Accelerate reads an image before it is wanted"
    class Noisy(torch.utils.data.Dataset):
        def __len__(self): return 48
        def __getitem__(self, i): return torch.randn(3, 32, 32) + i / 48, i % 10
    def go(out, **more):
        model = make('adavit')
        loader = torch.utils.data.DataLoader(Noisy(), 8, shuffle=True, num_workers=workers, generator=torch.Generator())
        return model, fit(model, loader, epochs=2, out=out, every=1, progress=False, device='cpu', **more)
    whole, rows = go(tmp_path/'whole')
    with monkeypatch.context() as m, pytest.raises(Pulled):
        stop_before(m, step)
        go(tmp_path/'torn')
    again, more = go(tmp_path/'torn', resume=True)
    assert_same(again, whole)
    assert without_time(more) == without_time(rows)


def child(out):
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        run('adavit', out, resume=True)


@pytest.mark.slow
@needs_fork
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path, whole):
    "SIGKILL in the middle of steps and of writing; every step writes a state, so about half of the time is writing"
    _, undisturbed, rows = whole('adavit')
    moments, kills, compared = random.Random(0), 0, False
    start = time.perf_counter()
    timed = fork.Process(target=child, args=(tmp_path/'timed',))
    timed.start()
    timed.join()
    duration = time.perf_counter() - start
    while kills < 20:
        process = fork.Process(target=child, args=(tmp_path/'killed',))
        process.start()
        process.join(moments.uniform(.05, .5) * duration)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if process.exitcode == 0:  # got to its end: compare, then begin anew
            compare(tmp_path, undisturbed, rows)
            shutil.rmtree(tmp_path/'killed')
            compared = True
        else: assert process.exitcode == -signal.SIGKILL
    if not (tmp_path/'killed').exists() or not states(tmp_path/'killed'):
        assert compared
        return
    run('adavit', tmp_path/'killed', resume=True)
    compare(tmp_path, undisturbed, rows)


def compare(tmp_path, undisturbed, rows):
    again, same = run('adavit', tmp_path/'killed', resume=True)
    assert_same(again, undisturbed)
    assert without_time(same) == without_time(rows)
    assert {p.name for p in (tmp_path/'killed').iterdir()} == {'best', 'last', 'log.jsonl', 'states'}


def dying(call, out, few):
    "A run that dies at the n-th rename, tensor file or removal, without a chance to clean up"
    torch.set_num_threads(1)
    count = itertools.count(1)
    def mortal(function):
        def call_or_die(*args, **kwargs):
            if next(count) == call: os._exit(9)
            return function(*args, **kwargs)
        return call_or_die
    os.replace, state.save_file, shutil.rmtree = map(mortal, (os.replace, state.save_file, shutil.rmtree))
    run('as-vit', out, **few)


@needs_fork
def test_a_kill_at_any_file_operation_of_a_run(tmp_path):
    "What is there when the process dies is enough to go on"
    few = dict(epochs=1, accumulate=4)  # two steps
    whole, _ = run('as-vit', tmp_path/'whole', **few)
    for call in itertools.count(1):
        out = tmp_path/str(call)
        process = fork.Process(target=dying, args=(call, out, few))
        process.start()
        process.join()
        assert process.exitcode in (0, 9)
        if process.exitcode == 0: break
        again, _ = run('as-vit', out, resume=True, **few)
        assert_same(again, whole)
        assert {p.name for p in out.iterdir()} == {'best', 'last', 'log.jsonl', 'states'}
        shutil.rmtree(out)
    assert call > 8  # states, last, best, log and cards were all hit


def damage(where, how):
    file = where/'state.safetensors'
    data = bytearray(file.read_bytes())
    if how == 'cut': file.write_bytes(data[:len(data) // 2])
    elif how == 'flipped':
        data[-5] ^= 1
        file.write_bytes(data)
    elif how == 'gone': file.unlink()
    elif how == 'no json': (where/'state.json').write_text('{"step": 3,')
    else: (where/'state.json').unlink()


@pytest.mark.parametrize('how', ['cut', 'flipped', 'gone', 'no json', 'json gone'])
def test_a_damaged_state_is_recognised_and_the_one_before_it_used(how, tmp_path, whole):
    out, undisturbed, _ = whole('as-vit')
    shutil.copytree(out, tmp_path/'copy')
    newest = states(tmp_path/'copy')[-1]
    damage(newest, how)
    with pytest.warns(UserWarning, match=f'{newest.name} is damaged .*the state before it is used'):
        again, _ = run('as-vit', tmp_path/'copy', resume=True)
    assert_same(again, undisturbed)
    for where in states(tmp_path/'copy'): damage(where, how)
    with pytest.raises(ValueError, match='none of the 2 states'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        run('as-vit', tmp_path/'copy', resume=True)


@pytest.mark.parametrize('changes, match', [
    (dict(lr=.1), 'whose lr is 0.003, and here it is 0.1'), (dict(epochs=3), 'epochs is 2, and here it is 3'),
    (dict(seed=5), 'seed is 0, and here it is 5'), (dict(accumulate=1), 'accumulate is 2')])
def test_the_run_of_another_recipe_is_not_gone_on_with(changes, match, whole):
    out, *_ = whole('as-vit')
    before = {p: p.stat().st_mtime_ns for p in out.rglob('*')}
    with pytest.raises(ValueError, match=match): run('as-vit', out, resume=True, **changes)
    assert {p: p.stat().st_mtime_ns for p in out.rglob('*')} == before


def test_another_method_backbone_or_data_is_another_run(whole):
    tmp_path, *_ = whole('as-vit')
    with pytest.raises(ValueError, match='whose method is .*as-vit.*, and here it is .*a-vit'):
        run('a-vit', tmp_path, resume=True, mixup=.4)
    model = adapt(digits_vit(img_size=32, depth=3, mlp_ratio=3), 'as-vit', budget=.7)
    with pytest.raises(ValueError, match='whose backbone is'):
        fit(model, digits(), out=tmp_path, resume=True, progress=False, **RECIPE)
    with pytest.raises(ValueError, match='whose batches is 7, and here it is 4'):
        fit(make('as-vit'), digits(size=64), out=tmp_path, resume=True, progress=False, device='cpu', **RECIPE)


def test_another_teacher_validation_or_part_of_the_data_is_another_run(whole):
    out, *_ = whole('as-vit')
    def go(loader=None, val=True, teacher=None):
        val_loader = digits('test', 32) if val else None
        fit(make('as-vit'), loader or digits(), val_loader, teacher=teacher, out=out, resume=True, every=1, **quick,
            **RECIPE)
    with pytest.raises(ValueError, match='whose teacher is .*, and here it is None'): go()
    with pytest.raises(ValueError, match='whose teacher is '): go(teacher=digits_vit(img_size=32, depth=2))
    with pytest.raises(ValueError, match='whose validation is ClutteredDigits.*, and here it is nothing'):
        go(val=False, teacher=make('dense'))
    with pytest.raises(ValueError, match='whose data is .*112 images, and here it is .*111 images'):
        go(digits(size=111), teacher=make('dense'))


def test_the_epoch_that_samplers_are_told_goes_on(tmp_path, monkeypatch):
    told = []
    class Told(torch.utils.data.Dataset):
        def set_epoch(self, epoch): told.append(epoch)
        def __len__(self): return 32
        def __getitem__(self, i): return torch.full((3, 32, 32), i / 32), i % 10
    def go(**more):
        fit(make('dense'), torch.utils.data.DataLoader(Told(), 16), epochs=3, out=tmp_path, **quick, **more)
    with monkeypatch.context() as m, pytest.raises(Pulled):
        stop_before(m, 5)
        go()
    assert told == [0, 1, 2]
    go(resume=True)
    assert told[3:] == [2]


def test_a_folder_with_a_run_is_not_written_over(whole):
    out, *_ = whole('as-vit')
    with pytest.raises(ValueError, match='holds a run already: go on with it .resume=True.'): run('as-vit', out)
    with pytest.raises(ValueError, match='resume=True needs out='): fit(make('dense'), digits(), resume=True)


def test_resume_of_nothing_starts_at_the_beginning(tmp_path, whole):
    _, undisturbed, rows = whole('dense')
    other, same = run('dense', tmp_path/'other', resume=True)
    assert_same(undisturbed, other)
    assert without_time(same) == without_time(rows)


def test_a_full_disk_is_said_and_the_state_before_it_stays(tmp_path, monkeypatch, whole):
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    save_state_of, count = resume.save_state, itertools.count(1)
    monkeypatch.setattr(resume, 'save_state', lambda *args: full() if next(count) == 3 else save_state_of(*args))
    says = 'No space left on device.* stopped at step 3, its state after step 2 is whole'
    with pytest.raises(ValueError, match=says):
        run('as-vit', tmp_path)
    monkeypatch.undo()
    again, _ = run('as-vit', tmp_path, resume=True)
    assert_same(again, whole('as-vit')[1])
