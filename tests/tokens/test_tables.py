"Both tables answer alike, at every edge."
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tables import DH, B, H, N, P, edge_counts, random_on, tables

from adaptive_tokens.tokens.masked import MaskedTokens
from adaptive_tokens.tokens.packed import PackedTokens


@settings(deadline=None, max_examples=40)
@given(edge_counts, st.integers(0, 999))
def test_bookkeeping_round_trips(counts, seed):
    on, x = random_on(seed, counts), torch.randn(len(counts), N, 4)
    T, M = PackedTokens(x, P).keep(on.flatten()), MaskedTokens(x, P).keep(on)
    assert T.counts().tolist() == M.counts().tolist() == [P + n for n in counts]
    assert torch.equal(T.active, on) and torch.equal(M.active, on)
    assert torch.equal(T.x, x[on]) and torch.equal(T.prefix(), x[:, :P])
    back = T.to_full_grid(T.x, float('nan'))
    assert torch.equal(back[on], x[on]) and back[~on].isnan().all()
    torch.testing.assert_close(T.patch_mean(), M.patch_mean())


@settings(deadline=None, max_examples=30)
@given(edge_counts, st.integers(0, 999), st.floats(0, 1))
def test_lent_rows_come_back_and_others_are_untouched(counts, seed, rate):
    torch.manual_seed(seed)
    on, x = random_on(seed, counts), torch.randn(len(counts), N, 4)
    lend = torch.rand(len(counts), N) < rate
    T, M = PackedTokens(x, P).keep(on.flatten()), MaskedTokens(x, P).keep(on)
    lent = T.select(lend[on])
    back = T.write_back(lent + lent.x)
    assert torch.equal(back.x[~lend[on]], T.x[~lend[on]]) and torch.equal(back.index, T.index)
    for mask in (lend, lend.float()):
        borrowed = M.select(mask)
        masked = M.write_back(borrowed + borrowed.x)
        assert torch.equal(masked.x[on], back.x) and torch.equal(masked.x[~(lend & on)], x[~(lend & on)])


def test_keep_twice_is_keep_both():
    x, first, second = torch.randn(B, N, 4), random_on(0, [3, 5, 1]), random_on(1, [2, 4, 5])
    T = PackedTokens(x, P).keep(first.flatten())
    T = T.keep(second[first])
    assert torch.equal(T.active, MaskedTokens(x, P).keep(first).keep(second).active)
    assert torch.equal(T.x, x[first & second])


def test_a_table_is_never_changed_in_place():
    x = torch.randn(B, N, 4)
    T = PackedTokens(x.clone(), P)
    before = T.x.clone()
    T.keep(random_on(0, [1, 2, 3]).flatten()) + 1.
    assert torch.equal(T.x, before) and T.lengths == [N] * B


def test_nothing_dropped_copies_nothing():
    T = PackedTokens(torch.randn(B, N, 4), P)
    assert T.keep(torch.ones(B * N, dtype=torch.bool)).x.data_ptr() == T.x.data_ptr()


def test_emptied_images_leave_and_say_so():
    on = torch.ones(B, N, dtype=torch.bool)
    on[1] = False
    T = PackedTokens(torch.randn(B, N, 4), P).keep(on.flatten())
    assert T.lengths == [N, 0, N] and T.runs == [(0, N, 1, N), (N, 2 * N, 1, N)]
    with pytest.raises(ValueError, match=r'images \[1\] have left'): T.prefix()
    none = T.keep(torch.zeros(2 * N, dtype=torch.bool))
    assert none.attend(*torch.zeros(3, 0, H, DH)).shape == (0, H, DH)
    assert none.class_attention(*torch.zeros(2, 0, H, DH)).shape == (0, H)
    assert torch.equal(none.patch_mean(), torch.zeros(B, 4))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(0, 999), st.booleans())
def test_equal_counts_pick_and_merge_alike(r, seed, weighted):
    T, M, on = tables([5, 5, 5], seed)
    order = torch.stack([torch.randperm(5) for _ in range(3)]) + P
    src, dst = order[:, :r], order[:, r:r + 1].expand(-1, r)
    w = torch.rand(3, N) + .1
    after = T.merge(src, dst, w[on] if weighted else None), M.merge(src, dst, w if weighted else None)
    torch.testing.assert_close(after[0].x, after[1].x[after[1].active], atol=1e-6, rtol=1e-5)
    weight = w if weighted else torch.ones(3, N)
    for b in range(3):
        parts = [int(dst[b, 0]), *src[b].tolist()]
        want = (weight[b, parts, None] * M.x[b, parts]).sum(0) / weight[b, parts].sum()
        torch.testing.assert_close(after[1].x[b, parts[0]], want, atol=1e-5, rtol=1e-4)
    assert after[0].lengths == [N - r] * 3 and len(after[0].runs) == 1 and (after[0].size is None) == weighted
    at = torch.cat([torch.arange(P).expand(3, -1), order[:, :2].sort(1).values], 1)
    picked = T.take_columns(at), M.take_columns(at)
    assert torch.equal(picked[0].x, picked[1].x[picked[1].active])
    assert torch.equal(picked[0].as_grid(picked[0].index), at)


@settings(deadline=None, max_examples=30)
@given(edge_counts, st.integers(0, 999))
def test_top_is_the_highest_of_each_image(counts, seed):
    T, M, on = tables(counts, seed)
    values, among = torch.randint(0, 4, on.shape).float(), (torch.rand(on.shape) < .6) & on
    packed, masked = T.argmax_per_image(values[on], among[on]), M.argmax_per_image(values, among)
    for b in range(len(counts)):
        rows = among[b].nonzero()[:, 0].tolist()
        want = max(rows, key=lambda n: values[b, n]) if rows else -1
        assert set(masked[b].tolist()) == {want}
        row = ((T.image == b) & (T.index == want)).nonzero()[0, 0].item() if rows else -1
        assert set(packed[T.image == b].tolist()) == {row}


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 4e-3),
                                              (torch.float16, 5e-4)])
def test_patch_means_are_as_precise_as_their_rows(dtype, tolerance):
    torch.manual_seed(0)
    x, on = torch.randn(2, 577, 4, dtype=torch.float64) + 1, torch.rand(2, 577) < .8
    on[:, 0] = True
    want = torch.stack([x_i[1:][on_i[1:]].mean(0) for x_i, on_i in zip(x.to(dtype).double(), on)])
    for table in (MaskedTokens(x.to(dtype)).keep(on), PackedTokens(x.to(dtype)).keep(on.flatten())):
        mean = table.patch_mean()
        assert mean.dtype == dtype
        torch.testing.assert_close(mean.double(), want, atol=tolerance, rtol=tolerance)
