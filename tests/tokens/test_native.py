"Loops over images in C++ answer what the loops in Python answer, and step aside where they do not fit."
import os
import shutil

import pytest
import torch
from builders import spread_vit
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptive_tokens as at
from adaptive_tokens.measure.benchmark import benchmark
from adaptive_tokens.measure.operators import OperatorCounter
from adaptive_tokens.measure.timing import thread_count
from adaptive_tokens.backbones.backbone import backbone_of
from adaptive_tokens.backbones.heads import gated_heads
from adaptive_tokens.tokens.native import SCHEMAS, compile_loops, cpp_loops, prepare
from adaptive_tokens.tokens.attention import CPP_LOOPS, cpp_loop, find_runs, ragged_attention
from adaptive_tokens.tokens.merging import nearest_packed
from adaptive_tokens.tokens.packed import PackedTokens

pytestmark = pytest.mark.compiler
LENGTHS = st.lists(st.integers(0, 9) | st.integers(10, 200), min_size=1, max_size=9)
THREADS = st.sampled_from([1, 2])


def both(work):
    "What the loops in Python and in C++ give"
    with cpp_loops(False):
        compile_loops(False)
        python = work()
        compile_loops()
        return python, work()


def same(cpp, python, threads):
    "On one thread to the bit; beside another, small products may come from another kernel, 2e-16 apart in float64"
    if threads == 1: assert torch.equal(cpp, python)
    else: torch.testing.assert_close(cpp, python)


def adapted(method, options, **vit):
    vit, images = spread_vit(**vit)
    model = at.adapt(vit, method, .65, **options).eval()
    at.calibrate(model, [images])
    return model, images


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@given(lengths=LENGTHS, heads=st.integers(1, 4), biased=st.booleans(), threads=THREADS,
       dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
@settings(deadline=None)
def test_attention_is_the_same(lengths, heads, biased, threads, dtype):
    T = sum(lengths)
    q, k, v = torch.randn(T, 3, heads, 8, dtype=dtype).unbind(1)
    bias = torch.randint(1, 9, (T,)).float().log() if biased else None
    apart = [(start, stop, 1, n) for start, stop, g, n in find_runs([m for n in lengths for m in (n, 0)])]
    with thread_count(threads): python, cpp = both(lambda: ragged_attention(q, k, v, apart, bias))
    same(cpp, python, threads)


def test_attention_with_more_images_than_cores_take_by_heads(threads):
    lengths = torch.randint(1, 40, (5 * threads,)).tolist()
    q, k, v = torch.randn(sum(lengths), 3, 6, 16).unbind(1)
    python, cpp = both(lambda: ragged_attention(q, k, v, find_runs(lengths)))
    same(cpp, python, threads)


@given(B=st.integers(2, 6), n=st.integers(1, 6), qkv_bias=st.booleans(), seed=st.integers(0, 99), threads=THREADS)
@settings(deadline=None, max_examples=30)
def test_open_heads_are_the_same_in_spans(B, n, qkv_bias, seed, threads):
    vit, _ = spread_vit(seed, qkv_bias=qkv_bias, depth=1)
    block = backbone_of(vit).blocks[0]
    H = block.num_heads
    t, heads = PackedTokens(torch.randn(B, n, vit.embed_dim)), torch.rand(B, H) < .5
    t = t.keep(torch.rand(B * n) < .7)
    with torch.no_grad(), thread_count(threads): python, cpp = both(lambda: gated_heads(block, t, heads, 'full'))
    torch.testing.assert_close(cpp, python, rtol=1e-5, atol=1e-5)


@given(B=st.integers(1, 6), N=st.integers(1, 12), P=st.integers(0, 2), seed=st.integers(0, 999), threads=THREADS,
       dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@settings(deadline=None)
def test_the_nearest_are_the_same(B, N, P, seed, threads, dtype):
    torch.manual_seed(seed)
    t = PackedTokens(torch.randn(B, P + N, 8, dtype=dtype), P)
    kept, gone = t.split((torch.rand(B, P + N) < torch.rand(B, 1)).index_fill(1, torch.arange(P), True).flatten())
    with thread_count(threads): python, cpp = both(lambda: nearest_packed(t, kept, gone, t.x))
    assert torch.equal(cpp, python)


@pytest.mark.parametrize('method, options', [('as-vit', dict(fold='merge')), ('as-vit', {}), ('a-vit', {}),
                                             ('adavit', {}), ('adavit', dict(form='partial'))])
@pytest.mark.parametrize('qk_norm', [False, True])
def test_models_answer_the_same(method, options, qk_norm, threads):
    model, images = adapted(method, options, qk_norm=qk_norm)
    def run():
        with torch.no_grad(): return model(images, return_trace=True)
    (python, spent), (cpp, spent_cpp) = both(run)
    torch.testing.assert_close(cpp, python, rtol=1e-4, atol=1e-5)
    assert torch.equal(spent.macs, spent_cpp.macs)


@pytest.mark.parametrize('method, options', [('as-vit', dict(fold='merge')), ('adavit', {})])
def test_operations_are_counted(method, options, threads):
    model, images = adapted(method, options)
    def counted():
        with torch.no_grad(), OperatorCounter() as counter: model(images)
        return counter.get_total_flops()
    python, cpp = both(counted)
    assert python == cpp > 0


def test_where_they_do_not_fit_python_goes_on():
    x = torch.randn(3, 2, 8)
    with cpp_loops(True):
        assert cpp_loop('attend', x) is CPP_LOOPS['attend']
        assert cpp_loop('attend', x, x.clone().requires_grad_()) is None
        with torch.no_grad(): assert cpp_loop('attend', x.clone().requires_grad_())
        with torch.autocast('cpu', torch.bfloat16): assert cpp_loop('attend', x) is None
        assert cpp_loop('attend', x.to('meta')) is None
    q, k, v = (torch.randn(5, 2, 8, requires_grad=True) for _ in range(3))
    with cpp_loops(True): ragged_attention(q, k, v, find_runs([2, 3])).sum().backward()
    assert q.grad.shape == q.shape


@pytest.mark.parametrize('name', ['qkv.weight', 'qkv.bias', 'proj.weight', 'proj.bias'])
def test_gradient_of_some_weights_alone_is_wanted(name):
    vit, _ = spread_vit(depth=1)
    wanted = vit.requires_grad_(False).blocks[0].attn.get_parameter(name).requires_grad_()
    t = PackedTokens(torch.randn(4, 3, vit.embed_dim)).keep(torch.tensor([1, 1, 0] * 4).bool())
    block, heads = backbone_of(vit).blocks[0], torch.tensor([[1, 0, 1]] * 4).bool()
    with cpp_loops(True): gated_heads(block, t, heads, 'full').sum().backward()
    assert wanted.grad.abs().sum() > 0


def test_gradient_of_the_sizes_alone_is_wanted():
    q, k, v = torch.randn(3, 5, 2, 8).unbind(0)
    size = torch.ones(5, requires_grad=True)
    with cpp_loops(True): ragged_attention(q, k, v, find_runs([2, 3]), size.log()).square().sum().backward()
    assert size.grad.abs().sum() > 0


def test_on_and_off():
    with cpp_loops(False):
        compile_loops()
        assert set(CPP_LOOPS) == set(SCHEMAS)
        compile_loops(False)
        assert not CPP_LOOPS


def test_cpp_loops_leaves_things_as_they_were():
    with cpp_loops(False):
        compile_loops(False)
        with pytest.raises(ZeroDivisionError), cpp_loops(True): 1 / 0
        assert not CPP_LOOPS


def test_wrong_lengths_are_refused():
    with cpp_loops(True):
        q = torch.randn(5, 2, 8)
        with pytest.raises(RuntimeError, match='lengths add up to 4; there are 5 rows'):
            CPP_LOOPS['attend'](q, q, q, [2, 2], None)
        x, W, P = torch.randn(5, 8), torch.randn(2, 3, 4, 8), torch.randn(2, 4, 8)
        with pytest.raises(RuntimeError, match=r'gates are \[3, 2\]; there are 2 images and 2 heads'):
            CPP_LOOPS['open_heads'](x, W, None, P, None, [2, 3], torch.ones(3, 2, dtype=torch.bool))


def test_what_is_prepared_may_be_prepared_again(): prepare.__wrapped__()


@pytest.mark.parametrize('missing, said', [
    (('g++', 'clang++'), r'compile_loops on the CPU needs the C\+\+ compiler'),
    (('ninja',), 'compile_loops needs ninja: pip install')])
def test_what_is_missing_is_named(missing, said, monkeypatch):
    monkeypatch.delenv('CXX', raising=False)
    which, path = shutil.which, os.environ['PATH']
    monkeypatch.setattr(shutil, 'which', lambda name, *more: None if name in missing else which(name, *more))
    with pytest.raises(ValueError, match=said): prepare.__wrapped__()
    assert os.environ['PATH'] == path


def test_a_benchmark_says_which_loops_it_used():
    model, images = adapted('as-vit', {})
    how = dict(batch_size=4, repeats=1, latency_repeats=1, device='cpu', allow_noise=True, progress=False)
    for on in (False, True):
        with cpp_loops(False):
            compile_loops(False)
            table = benchmark({'dense': model.vit, 'as-vit': model}, images, native=on, **how)
            assert not CPP_LOOPS
        assert table.meta['native'] is on and ('loops in C++' in str(table)) is on
