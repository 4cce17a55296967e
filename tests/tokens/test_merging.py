"Tokens that join others: the mean of means is the mean of all, and the nearest is the nearest."
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tables import B, N, P, edge_counts, tables

from adaptive_tokens.tokens.masked import MaskedTokens
from adaptive_tokens.tokens.merging import _padded_match, fold_masked, nearest_packed


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
    sizes = [len(m) for _, m in sorted(members.items())]
    if T.size is not None: assert T.size.tolist() == sizes == M.size[M.active].tolist()


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
    stay = (torch.rand(on.shape) < .5) | (torch.arange(N) < P)
    f = torch.nn.functional.normalize(torch.randn(4, N, 5), dim=-1)
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
