"Attention of both tables is plain softmax among the tokens that are left, and no image sees another."
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tables import DH, B, H, N, P, edge_counts, random_on, reference_attention, reference_class_row, tables

from adaptive_tokens.methods.tome import match_pairs
from adaptive_tokens.tokens.attention import (attention_mask, choose_kernel, find_runs, masked_attention,
                                              masked_softmax, packed_class_attention, ragged_attention)
from adaptive_tokens.tokens.masked import MaskedTokens
from adaptive_tokens.tokens.merging import nearest_masked, nearest_packed
from adaptive_tokens.tokens.packed import PackedTokens


@settings(deadline=None, max_examples=40)
@given(edge_counts, st.integers(0, 999))
def test_both_tables_attend_like_plain_softmax(counts, seed):
    torch.manual_seed(seed)
    on, (q, k, v) = random_on(seed, counts), torch.randn(3, len(counts), N, H, DH)
    want = reference_attention(q, k, v, on)[on].float()
    packed = PackedTokens(torch.randn(len(counts), N, 4), P).keep(on.flatten())
    masked = MaskedTokens(torch.randn(len(counts), N, 4), P).keep(on)
    learned = MaskedTokens(torch.randn(len(counts), N, 4), P).keep(on.float().requires_grad_())
    for got in (packed.attend(q[on], k[on], v[on]), masked.attend(q, k, v)[on], learned.attend(q, k, v)[on]):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(edge_counts, st.integers(0, 999))
def test_class_rows_agree(counts, seed):
    torch.manual_seed(seed)
    on, (q, k) = random_on(seed, counts), torch.randn(2, len(counts), N, H, DH)
    T = PackedTokens(torch.randn(len(counts), N, 4), P).keep(on.flatten())
    rows = packed_class_attention(q[on], k[on], T.image, T.offsets)
    torch.testing.assert_close(rows, reference_class_row(q[on], k[on], T.lengths), atol=1e-6, rtol=1e-5)
    for m in (on, on.float().requires_grad_()):
        got = MaskedTokens(torch.randn(len(counts), N, 4), P).keep(m).class_attention(q, k)[on]
        torch.testing.assert_close(got, rows, atol=1e-6, rtol=1e-5)
    total = torch.zeros(len(counts), H).index_add(0, T.image, rows)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_dropped_token_reaches_no_survivor(dtype):
    "Perturbing what was dropped changes no surviving bit"
    on = random_on(3, [2, 0, 4])
    q, k, v = torch.randn(3, B, N, H, DH).to(dtype)
    noise = torch.where(on[..., None, None], 0., 1e3).to(dtype)
    for mask in (on, on.float().requires_grad_()):
        M = MaskedTokens(torch.randn(B, N, 4), P).keep(mask)
        assert torch.equal(M.attend(q, k, v)[on], M.attend(q, k + noise, v + noise)[on])
        assert torch.equal(M.class_attention(q, k)[on], M.class_attention(q, k + noise)[on])


def test_an_image_does_not_depend_on_its_neighbours():
    q, k, v = torch.randn(3, B, N, H, DH)
    for counts in ([2, 5, 0], [2, 0, 5], [2, 1, 1]):
        on = random_on(5, counts)
        on[0] = random_on(7, [2])[0]
        T = PackedTokens(torch.zeros(B, N, 4), P).keep(on.flatten())
        got = T.attend(q[on], k[on], v[on])[T.image == 0]
        alone = ragged_attention(*(z[0, on[0]] for z in (q, k, v)), find_runs([int(on[0].sum())]))
        torch.testing.assert_close(got, alone, atol=1e-6, rtol=1e-5)


def test_gradient_of_masked_softmax_is_the_derivative():
    logits = torch.randn(1, 2, 3, 5, dtype=torch.float64)
    mask = torch.tensor([[[[1., 0, 1, 1, 0]]]], dtype=torch.float64)

    def plain(m):
        e = logits.exp() * m
        return e / e.sum(-1, keepdim=True)
    m1, m2 = mask.clone().requires_grad_(), mask.clone().requires_grad_()
    w = torch.randn(1, 2, 3, 5)
    (masked_softmax(logits, m1) * w).sum().backward()
    (plain(m2) * w).sum().backward()
    torch.testing.assert_close(m1.grad, m2.grad, atol=1e-5, rtol=1e-4)


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=N, max_size=N), min_size=1, max_size=3), st.floats(.1, 8),
       st.integers(0, 99))
def test_a_mask_has_the_slope_of_the_explicit_softmax(alive, scale, seed):
    noise = torch.Generator().manual_seed(seed)
    q, k, v, weight = torch.randn(4, len(alive), N, H, DH, generator=noise)
    q, mask = q * scale, torch.tensor(alive, dtype=torch.float32)

    def explicit(q, k, v, m):
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        return (masked_softmax(q @ k.mT * DH**-.5, attention_mask(m)) @ v).transpose(1, 2)
    both = []
    for attend in (masked_attention, explicit):
        leaves = [z.clone().requires_grad_() for z in (q, k, v, mask)]
        context = attend(*leaves)
        both.append([context, *torch.autograd.grad((context * weight).sum(), leaves)])
    for ours, theirs in zip(*both): torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


def test_a_slope_in_half_precision_is_close_and_finite():
    torch.manual_seed(0)
    q, k, v, weight = torch.randn(4, 2, N, H, DH)
    mask = (torch.rand(2, N) > .5).float()
    slopes = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        m = mask.clone().requires_grad_()
        context = masked_attention(*(z.to(dtype) for z in (q, k, v)), m)
        slopes.append(torch.autograd.grad((context.float() * weight).sum(), m)[0])
    for slope, bound in zip(slopes[1:], (.1, .03)):  # 8 and 11 bits; worst of 200 seeds: .056 and .014
        assert (slope - slopes[0]).abs().max() < bound * slopes[0].abs().max()


def test_masked_softmax_survives_extreme_logits():
    logits = torch.tensor([[[[900., -900., 0.]]]])
    a = masked_softmax(logits, torch.tensor([[[[0., 1., 1.]]]], requires_grad=True))
    assert torch.isfinite(a).all() and a[0, 0, 0].tolist() == [0, 0, 1]


def test_dropout_belongs_to_training():
    T = PackedTokens(torch.zeros(1, N, 4), P)
    with pytest.raises(ValueError, match='attention dropout 0.1'): T.attend(*torch.zeros(3, N, H, DH), dropout=.1)
    q, k, v = torch.randn(3, 1, N, H, DH)
    assert not torch.equal(masked_attention(q, k, v, None, .5), masked_attention(q, k, v, None, 0.))


def test_route_on_cpu():
    q = torch.zeros(4, H, DH)
    assert choose_kernel(q, find_runs([2, 2])) == 'plain'
    assert choose_kernel(q[:0].bfloat16(), []) == 'plain' == choose_kernel(q[:0].bfloat16(), find_runs([0, 0]))
    assert choose_kernel(q.bfloat16(), find_runs([1, 3])) == 'runs'


@settings(deadline=None, max_examples=30)
@given(edge_counts, st.integers(0, 999))
def test_a_token_of_size_s_counts_as_s_copies(counts, seed):
    T, M, on = tables(counts, seed)
    q, k, v = torch.randn(3, len(counts), N, H, DH)
    size = torch.randint(1, 4, on.shape).float()
    T, M = T.replace(size=size[on]), M.replace(size=size)
    row = T.class_attention(q[on], k[on])
    torch.testing.assert_close(row, reference_class_row(q[on], k[on], T.lengths, T.size), atol=1e-6, rtol=1e-5)
    learned = M.replace(mask=on.float().requires_grad_())
    for got in (T.attend(q[on], k[on], v[on]), M.attend(q, k, v)[on], learned.attend(q, k, v)[on]):
        for b in range(len(counts)):
            rows = on[b].nonzero()[:, 0]
            copies = rows.repeat_interleave(size[b, rows].long())
            a = torch.einsum('qhd,khd->hqk', q[b, rows], k[b, copies]) / DH**.5
            want = torch.einsum('hqk,khd->qhd', a.softmax(-1), v[b, copies])
            torch.testing.assert_close(got[T.image == b], want, atol=1e-5, rtol=1e-4)
    for table in (M, learned): torch.testing.assert_close(table.class_attention(q, k)[on], row, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(T.patch_mean(), M.patch_mean(), atol=1e-5, rtol=1e-4)


def test_a_bias_has_no_place_in_varlen():
    q = torch.zeros(4, H, DH).bfloat16()
    assert choose_kernel(q, find_runs([1, 3]), True) == 'runs' and choose_kernel(q, find_runs([2, 2]), True) == 'plain'


@pytest.mark.gpu
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_varlen_route_equals_plain_softmax(dtype, tolerance):
    on = torch.rand(8, 197) < torch.linspace(.05, 1, 8)[:, None]
    on[:, 0] = True
    q, k, v = torch.randn(3, 8, 197, 6, 64).to(dtype)
    T = PackedTokens(torch.zeros(8, 197, 1).cuda()).keep(on.flatten().cuda())
    picked = [z[on].cuda() for z in (q, k, v)]
    assert choose_kernel(picked[0], T.runs) == ('runs' if dtype == torch.float32 else 'varlen')
    want = reference_attention(q, k, v, on)[on]
    torch.testing.assert_close(T.attend(*picked).cpu().double(), want, atol=tolerance, rtol=tolerance)
    row = T.class_attention(*picked[:2]).cpu()
    want = reference_class_row(*(z.cpu() for z in picked[:2]), T.lengths)
    torch.testing.assert_close(row, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('mask', [None, torch.bool, torch.float32])
def test_scores_and_partners_do_not_know_autocast(mask):
    torch.manual_seed(0)
    on, (q, k), f = random_on(0, [5, 3, 1]), torch.randn(2, B, N, H, DH), torch.randn(B, N, 16)
    masked = MaskedTokens(torch.randn(B, N, 4), P)
    if mask is not None: masked = masked.keep(on.to(mask))
    packed = PackedTokens(torch.randn(B, N, 4), P)
    kept, gone = packed.split(on.flatten())
    patches = f[:, 1:] / f[:, 1:].norm(dim=-1, keepdim=True)

    def answers():
        return (masked.class_attention(q, k), packed.class_attention(q.flatten(0, 1), k.flatten(0, 1)),
                nearest_masked(masked, on, f), nearest_packed(packed, kept, gone, f.flatten(0, 1)),
                *match_pairs(patches, 2))
    plain = answers()
    with torch.autocast('cpu', torch.bfloat16): cast = answers()
    for a, b in zip(plain, cast): assert torch.equal(a, b)
