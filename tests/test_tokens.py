"Both tables answer alike, at every edge, and no image sees another."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from adaptive_tokens.methods.tome import match_pairs
from adaptive_tokens.tokens.attention import (ragged_attention, attention_mask, choose_kernel, find_runs,
    masked_attention, masked_softmax, packed_class_attention)
from adaptive_tokens.tokens.masked import MaskedTokens
from adaptive_tokens.tokens.merging import _padded_match, fold_masked, nearest_masked, nearest_packed
from adaptive_tokens.tokens.packed import PackedTokens

B, N, P, H, DH = 3, 7, 2, 2, 8


def reference_attention(q, k, v, on):
    "Plain softmax, one image and one head at a time, in float64"
    out = torch.zeros_like(v, dtype=torch.float64)
    for b in range(len(q)):
        rows = on[b].nonzero()[:, 0]
        for h in range(q.shape[2]):
            a = (q[b, rows, h].double() @ k[b, rows, h].double().T / q.shape[-1]**.5).softmax(-1)
            out[b, rows, h] = a @ v[b, rows, h].double()
    return out


def reference_class_row(q, k, lengths, size=None):
    "How the first row of each image attends to all of its rows, in float64; a row of size s counts as s rows"
    size = torch.ones(len(q)) if size is None else size
    out = [(s.double().log()[:, None] + (k_i.double() * q_i[:1].double()).sum(-1) / q.shape[-1]**.5).softmax(0)
           for q_i, k_i, s in zip(q.split(lengths), k.split(lengths), size.split(lengths))]
    return torch.cat(out).float()


def random_on(seed, counts):
    "Prefix tokens and the given number of patches of each image, at random places"
    g, on = torch.Generator().manual_seed(seed), torch.zeros(len(counts), N, dtype=torch.bool)
    on[:, :P] = True
    for b, n in enumerate(counts): on[b, P + torch.randperm(N - P, generator=g)[:n]] = True
    return on


edge_counts = st.lists(st.sampled_from([0, 1, N - P - 1, N - P]), min_size=1, max_size=4)


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


def test_gradient_of_masked_softmax_is_the_derivative():
    logits, mask = torch.randn(1, 2, 3, 5, dtype=torch.float64), torch.tensor([[[[1., 0, 1, 1, 0]]]], dtype=torch.float64)

    def plain(m):
        e = logits.exp() * m
        return e / e.sum(-1, keepdim=True)
    m1, m2 = mask.clone().requires_grad_(), mask.clone().requires_grad_()
    w = torch.randn(1, 2, 3, 5)
    (masked_softmax(logits, m1) * w).sum().backward()
    (plain(m2) * w).sum().backward()
    torch.testing.assert_close(m1.grad, m2.grad, atol=1e-5, rtol=1e-4)


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=N, max_size=N), min_size=1, max_size=3), st.floats(.1, 8), st.integers(0, 99))
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


def tables(counts, seed, on=None):
    "Both tables with the same living tokens, and their mask"
    torch.manual_seed(seed)
    on, x = random_on(seed, counts) if on is None else on, torch.randn(len(counts), N, 4)
    return PackedTokens(x, P).keep(on.flatten()), MaskedTokens(x, P).keep(on), on


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


@settings(deadline=None, max_examples=40)
@given(edge_counts, st.integers(0, 999), st.floats(0, 1))
def test_absorbed_tokens_are_means_of_all_that_went_in(counts, seed, rate):
    "Three rounds against a loop that keeps lists of members"
    T, M, on = tables(counts, seed)
    x, members = M.x.double(), {(b, n): [n] for b, n in on.nonzero().tolist()}
    for _ in range(3):
        f = torch.nn.functional.normalize(torch.randn(len(counts), N, 5), dim=-1)
        stay = (torch.rand(on.shape) < rate) | (torch.arange(N) < P)
        for (b, n), went in sorted(members.items()):
            if stay[b, n]: continue
            near = [(float(f[b, n] @ f[b, m]), m) for c, m in members if c == b and m >= P and stay[b, m]]
            if near: members[b, max(near)[1]] += went
        members = {key: m for key, m in members.items() if stay[key]}
        T, M = T.merge_dropped(stay[T.image, T.index], f[T.image, T.index]), M.merge_dropped(stay, f)
    want = torch.stack([x[b, m].mean(0) for (b, _), m in sorted(members.items())]).float()
    assert list(zip(T.image.tolist(), T.index.tolist())) == sorted(members)
    torch.testing.assert_close(T.x, want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(M.x[M.active], want, atol=1e-5, rtol=1e-4)
    if T.size is not None: assert T.size.tolist() == [len(m) for _, m in sorted(members.items())] == M.size[M.active].tolist()


def test_who_takes_nobody_in_keeps_every_bit():
    T, M, on = tables([5, 5, 3], 1)
    stay, f = on.clone(), torch.nn.functional.normalize(torch.randn(B, N, 5), dim=-1)
    stay[:, -1] = False
    after, masked = T.merge_dropped(stay[on], f[on]), M.merge_dropped(stay, f)
    same = after.size == 1
    assert same.any() and not same.all()
    assert torch.equal(after.x[same], T.x[stay[on]][same])
    alone = masked.size == 1
    assert torch.equal(masked.x[alone], M.x[alone])


def test_with_nobody_left_the_dropped_are_lost():
    T, M, on = tables([3, 5], 2)
    stay, f = (torch.arange(N) < P).expand(2, -1), torch.ones(2, N, 1)
    after, masked = T.merge_dropped(stay[on], f[on]), M.merge_dropped(stay, f)
    assert torch.equal(after.x, T.x[T.is_prefix]) and torch.equal(masked.x[masked.active], after.x)
    assert after.size.tolist() == [1] * 2 * P


def test_the_nearest_is_of_the_same_image_and_stays():
    T, _, on = tables([5, 2, 0, 4], 3)
    stay, f = (torch.rand(on.shape) < .5) | (torch.arange(N) < P), torch.nn.functional.normalize(torch.randn(4, N, 5), dim=-1)
    kept, gone = T.split(stay[on])
    f, stay, want = f[on], stay[on], []
    for g in gone.tolist():
        hosts = [r for r in range(len(T.x)) if stay[r] and T.image[r] == T.image[g] and not T.is_prefix[r]]
        want.append(max(hosts, key=lambda r: (f[r] @ f[g]).item()) if hosts else -1)
    leave = [n - m for n, m in zip(T.lengths, kept.lengths)]
    at = _padded_match(kept, f[gone], f[kept.rows], T.image[gone], leave)
    padded = torch.where(at < 0, -1, kept.rows[(kept.offsets[T.image[gone]] + at).clamp(0, len(kept.x) - 1)])
    assert len(want) and nearest_packed(T, kept, gone, f).tolist() == padded.tolist() == want


def test_fold_tells_a_kept_token_what_leaving_would_change():
    "The derivative by the decision of a token that stays: its share of the way from the one that would take it in"
    x, to = torch.randn(1, 4, 3), torch.tensor([[-1, 2, 3, 2]])
    on = torch.ones(1, 4).requires_grad_()
    M = fold_masked(MaskedTokens(x, 1), on, to)
    g, = torch.autograd.grad(M.x[0, 2].sum(), on)
    torch.testing.assert_close(g[0, 1], -(x[0, 1] - x[0, 2]).sum())
    torch.testing.assert_close(g[0, 0], torch.tensor(0.))


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
    assert torch.equal(picked[0].x, picked[1].x[picked[1].active]) and torch.equal(picked[0].as_grid(picked[0].index), at)


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
        assert set(packed[T.image == b].tolist()) == {((T.image == b) & (T.index == want)).nonzero()[0, 0].item() if rows else -1}


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
    torch.testing.assert_close(row, reference_class_row(*(z.cpu() for z in picked[:2]), T.lengths), atol=1e-5, rtol=1e-4)


# --- precision

@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_patch_means_are_as_precise_as_their_rows(dtype, tolerance):
    torch.manual_seed(0)
    x, on = torch.randn(2, 577, 4, dtype=torch.float64) + 1, torch.rand(2, 577) < .8
    on[:, 0] = True
    want = torch.stack([x_i[1:][on_i[1:]].mean(0) for x_i, on_i in zip(x.to(dtype).double(), on)])
    for table in (MaskedTokens(x.to(dtype)).keep(on), PackedTokens(x.to(dtype)).keep(on.flatten())):
        mean = table.patch_mean()
        assert mean.dtype == dtype
        torch.testing.assert_close(mean.double(), want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize('mask', [None, torch.bool, torch.float32])
def test_scores_and_partners_do_not_know_autocast(mask):
    torch.manual_seed(0)
    on, (q, k), f = random_on(0, [5, 3, 1]), torch.randn(2, B, N, H, DH), torch.randn(B, N, 16)
    masked = MaskedTokens(torch.randn(B, N, 4), P) if mask is None else MaskedTokens(torch.randn(B, N, 4), P).keep(on.to(mask))
    packed = PackedTokens(torch.randn(B, N, 4), P)
    kept, gone = packed.split(on.flatten())
    def answers():
        return (masked.class_attention(q, k), packed.class_attention(q.flatten(0, 1), k.flatten(0, 1)), nearest_masked(masked, on, f),
                nearest_packed(packed, kept, gone, f.flatten(0, 1)), *match_pairs(f[:, 1:] / f[:, 1:].norm(dim=-1, keepdim=True), 2))
    plain = answers()
    with torch.autocast('cpu', torch.bfloat16): cast = answers()
    for a, b in zip(plain, cast): assert torch.equal(a, b)
