"Two processes with half of the batch each train as one with the whole of it."
import multiprocessing
import os
import socket

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from small_runs import lacking_fork
from torch.nn.parallel import DistributedDataParallel

from adaptive_tokens.devices import mean_over_ranks
from adaptive_tokens.images.digits import digits_loader, digits_vit
from adaptive_tokens.models.model import adapt, calibrate
from adaptive_tokens.training import fit as training_fit, resume
from adaptive_tokens.training.fit import fit
from adaptive_tokens.training.losses import frozen, loss_terms

LACKING = lacking_fork() or ('' if dist.is_available() and dist.is_gloo_available() else 'no gloo')
pytestmark = pytest.mark.skipif(bool(LACKING), reason=LACKING)
METHODS = ['dense', 'as-vit', 'a-vit', 'adavit']


def make(method):
    torch.manual_seed(0)
    vit = digits_vit(img_size=32, depth=3)
    if method == 'dense': return vit
    model = adapt(vit, method, budget=.7)
    if method != 'adavit': calibrate(model, [batch()[0]])
    return model.train()


def batch(dtype=torch.float32):
    images, labels = next(iter(digits_loader('train', batch_size=16, size=64, image_size=32)))
    return images.to(dtype), labels


def in_two(work, *args):
    "What `work(rank, *args)` returns in each of two processes that know each other"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    fork = multiprocessing.get_context('fork')
    queue = fork.Queue()
    processes = [fork.Process(target=as_rank, args=(rank, port, queue, work, args)) for rank in (0, 1)]
    for p in processes: p.start()
    try: results = dict(queue.get(timeout=300) for _ in processes)  # one that died would never answer
    finally:
        for p in processes:
            p.join(10)
            p.kill()
    for value in results.values():
        if isinstance(value, Exception): raise value
    return results[0], results[1]


def as_rank(rank, port, queue, work, args):
    if torch.get_num_threads() != 1: torch.set_num_threads(1)  # torch 2.5 may hang where a fork sets what is set
    AcceleratorState._reset_state(True)  # of the process that was forked
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
                       MASTER_PORT=str(port))
    try: queue.put((rank, work(rank, *args)))
    except Exception as e: queue.put((rank, RuntimeError(f'rank {rank}: {e!r}')))


def gradients(model): return {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}


def certain(): torch.rand_like = lambda m: torch.full_like(m, .5)  # no noise: it differs between processes


def half(rank, method, part, dtype):
    certain()
    dist.init_process_group('gloo')
    model, teacher = make(method).to(dtype), frozen(make('dense')).to(dtype)
    images, labels = (z[part[rank]] for z in batch(dtype))
    whole = DistributedDataParallel(model)
    terms, *_ = loss_terms(model, images, labels, teacher(images), whole)
    terms['loss'].backward()
    values = {name: mean_over_ranks(v.detach()).item() for name, v in terms.items()}
    dist.destroy_process_group()
    return values, gradients(model)


# Sums of 8 + 8 and of 16 differ in float32's last bits.
@pytest.mark.parametrize('dtype, within', [(torch.float64, 1e-6), (torch.float32, 4e-6)])
@pytest.mark.parametrize('method', METHODS)
def test_half_batches_give_the_loss_and_gradient_of_the_whole(method, dtype, within, monkeypatch):
    (values, grads), (_, others) = in_two(half, method, [slice(0, 8), slice(8, 16)], dtype)
    monkeypatch.setattr(torch, 'rand_like', lambda m: torch.full_like(m, .5))
    model, teacher, (images, labels) = make(method).to(dtype), frozen(make('dense')).to(dtype), batch(dtype)
    terms, *_ = loss_terms(model, images, labels, teacher(images))
    terms['loss'].backward()
    whole = gradients(model)
    assert whole.keys() == grads.keys() == others.keys()
    for name, value in terms.items(): assert abs(values[name] - value.item()) < 1e-6 * max(1, abs(value.item())), name
    for name, g in whole.items():
        assert abs(grads[name] - g).max() < within * max(abs(g).max(), 1), name
        assert (grads[name] == others[name]).all(), name


def trained(rank, method, size):
    certain()
    model = make(method)
    loader = digits_loader('train', batch_size=size, size=64, image_size=32)
    val = digits_loader('test', batch_size=size, size=32, image_size=32)
    # A start from data reads four batches, which are half as large in two processes.
    if method != 'dense': model.method.init_from_data = lambda vit, batches: None
    # Adam would make steps of rounding errors.
    rows = fit(model, loader, val, epochs=2, lr=.02, opt='sgd', device='cpu', progress=False)
    return {n: p.detach().numpy() for n, p in model.state_dict().items()}, [row['top1'] for row in rows], rows[-1]['n']


@pytest.mark.parametrize('method', METHODS)
def test_fit_on_two_processes_ends_where_one_does(method, monkeypatch):
    (weights, top1, n), (others, *_) = in_two(trained, method, 8)
    monkeypatch.setattr(torch, 'rand_like', lambda m: torch.full_like(m, .5))
    alone, top1_alone, n_alone = trained(0, method, 16)
    assert n == n_alone == 32 and top1 == top1_alone
    for name, w in alone.items():
        assert (weights[name] == others[name]).all(), name
        assert abs(weights[name] - w).max() < 1e-5, name


def stopped_and_resumed(rank, method, out):
    "With the noise of the gates, of which each process has its own"
    loader = lambda: digits_loader('train', batch_size=8, size=64, image_size=32)
    recipe = dict(epochs=2, lr=1e-3, device='cpu', progress=False, every=1)
    whole = make(method)
    fit(whole, loader(), out=f'{out}/whole', **recipe)
    keep_state = resume.keep_state
    def once(run):
        keep_state(run)
        if run.steps == 3: raise KeyboardInterrupt
    training_fit.keep_state = resume.keep_state = once
    with pytest.raises(KeyboardInterrupt): fit(make(method), loader(), out=f'{out}/torn', **recipe)
    training_fit.keep_state = resume.keep_state = keep_state
    again = make(method)
    fit(again, loader(), out=f'{out}/torn', resume=True, **recipe)
    pairs = zip(whole.state_dict().values(), again.state_dict().values())
    return all(torch.equal(a, b) for a, b in pairs), torch.rand(()).item()


def test_two_processes_go_on_where_they_were(tmp_path):
    (same, chance), (same_there, chance_there) = in_two(stopped_and_resumed, 'adavit', str(tmp_path))
    assert same and same_there and chance != chance_there


def mean_of(rank, values):
    dist.init_process_group('gloo')
    x = torch.tensor(values[rank], requires_grad=True)
    mean = mean_over_ranks(x.mean())
    mean.backward()
    dist.destroy_process_group()
    return mean.item(), x.grad.tolist()


def test_a_mean_over_ranks_has_the_value_of_all_and_the_gradient_of_its_own():
    (a, grad_a), (b, grad_b) = in_two(mean_of, [[1., 2.], [3., 6.]])
    assert a == b == 3 and grad_a == grad_b == [.5, .5]
    assert mean_over_ranks(torch.tensor(2.)) == 2


def revived(rank, nothing_left):
    dist.init_process_group('gloo')
    torch.manual_seed(0)
    model = adapt(digits_vit(img_size=32, depth=4), 'as-vit', .7, places=(1, 2), theta=(.01, .9), patience=1).train()
    if nothing_left and rank == 0: model.method.theta.data[0] = .95  # its second stage sees no patch at all
    images, _ = batch()
    model.method.theta.grad = torch.tensor([1., 0.])
    *_, trace = model(images[8 * rank:8 * rank + 8], return_trace=True)
    model.method.after_backward(trace, model.vit)
    dist.destroy_process_group()
    return model.method.theta[1].item()


@pytest.mark.filterwarnings('ignore:threshold after block 2')
@pytest.mark.parametrize('nothing_left', [False, True])
def test_a_dead_threshold_gets_the_same_line_in_every_process(nothing_left):
    first, second = in_two(revived, nothing_left)
    assert first == second and 0 < first < .5
