"""Every table answers every operation that `Tokens` declares as a plain loop over images and tokens does.

A table is tested by being there: a subclass of `Tokens` that `adaptive_tokens.tokens` imports. Nothing here knows how a
table lays out its rows: `expand_to_rows` and `index` tell whose they are, `to_full_grid` reads them.
"""
import pytest
import torch

import adaptive_tokens.tokens  # noqa: F401, makes the tables known
from adaptive_tokens.tokens.table import Tokens

B, N, P, D, H, DH = 3, 7, 2, 4, 2, 8
SHARED = {'size', 'normed', 'replace', 'is_prefix', 'at_least_float32'}  # what `Tokens` itself answers
DECLARED = {name for name in vars(Tokens) if not name.startswith('_')} - SHARED
COUNTS = [(0, 1, N - P), (N - P,) * 3, (0, 0, 0), (1, 1, 1), (1, -P, 3)]  # living patches; -P: not even prefix tokens
EVEN = [counts for counts in COUNTS if len(set(counts)) == 1]
CHECKS, EVEN_CHECKS = {}, {}


def tables(cls=Tokens):
    own = [cls] if cls is not Tokens and cls.__module__.startswith('adaptive_tokens') else []
    return own + [table for sub in cls.__subclasses__() for table in tables(sub)]


def check(function):
    CHECKS[function.__name__] = function
    return function


def even_check(function):
    "For an operation of images that all have the same number of rows"
    EVEN_CHECKS[function.__name__] = function
    return function


def rows(t, full):
    "Values [B, N, ...] in the shape of the rows of a table"
    return full[t.expand_to_rows(torch.arange(t.B)), t.index]


def full(t, values, fill=0): return t.to_full_grid(values, fill)


def living(counts, seed=0):
    "Prefix tokens and so many patches of each image, at random places [B, N]"
    g, on = torch.Generator().manual_seed(seed), torch.zeros(len(counts), N, dtype=torch.bool)
    for b, n in enumerate(counts):
        if n < 0: continue
        on[b, :P] = True
        on[b, P + torch.randperm(N - P, generator=g)[:n]] = True
    return on


def close(ours, theirs, dtype=None):
    tolerance = 2e-2 if torch.bfloat16 in (ours.dtype, dtype) else 1e-5
    torch.testing.assert_close(ours.double(), theirs.double(), atol=tolerance, rtol=tolerance)


def variants(t):
    "The table as it is, and with rows that stand for 1 to 3 tokens; each with the sizes [B, N]"
    sizes = torch.randint(1, 4, (B, N)).float()
    return (t, torch.ones(B, N)), (t.replace(size=rows(t, sizes)), sizes)


def heads(dtype): return torch.randn(3, B, N, H, DH).to(dtype)


def tokens(on): return [(b, n) for b, n in on.nonzero().tolist()]


@check
def active(t, on, x): assert torch.equal(t.active, on)


@check
def row_ids(t, on, x):
    assert t.row_ids.shape == t.index.shape
    for b in range(B): assert len(set(full(t, t.row_ids, -1)[b, on[b]].tolist())) == on[b].sum()


@check
def counts(t, on, x): assert t.counts().tolist() == on.sum(1).tolist() and t.counts().is_floating_point()


@check
def keep(t, on, x):
    stay, values = torch.rand(B, N) < .5, torch.randn(B, N, 2)
    for decision in (stay, stay.float()):
        kept, carried = t.keep(rows(t, decision), rows(t, values))
        assert torch.equal(kept.active, on & stay) and torch.equal(t.active, on)
        assert torch.equal(full(kept, kept.x), x * (on & stay)[..., None])
        assert torch.equal(full(kept, carried), values * (on & stay)[..., None])
        assert torch.equal(t.keep(rows(t, decision)).active, on & stay)
        assert torch.equal(kept.is_prefix, kept.index < P)


@check
def attend(t, on, x):
    q, k, v = heads(x.dtype)
    for t, sizes in variants(t):
        ours = full(t, t.attend(rows(t, q), rows(t, k), rows(t, v)))
        theirs = torch.zeros(B, N, H, DH, dtype=torch.float64)
        for b, n in tokens(on):
            alive = on[b]
            logits = torch.einsum('hd,mhd->hm', q[b, n].double(), k[b, alive].double()) / DH**.5 + sizes[b, alive].log()
            theirs[b, n] = torch.einsum('hm,mhd->hd', logits.softmax(-1), v[b, alive].double())
        close(ours, theirs)


@check
def class_attention(t, on, x):
    q, k, _ = heads(x.dtype)
    for t, sizes in variants(t):
        ours = full(t, t.class_attention(rows(t, q), rows(t, k)))
        theirs = torch.zeros(B, N, H, dtype=torch.float64)
        for b in range(B):
            alive = on[b]
            logits = (k[b, alive].double() * q[b, 0].double()).sum(-1) / DH**.5 + sizes[b, alive, None].log()
            theirs[b, alive] = logits.softmax(0)
        close(ours, theirs)
        assert ours.dtype == torch.float32


@check
def select(t, on, x):
    lend, normed = torch.rand(B, N) < .5, torch.randn(B, N, D).to(x.dtype)
    for decision in (lend, lend.float()):
        lent = t.replace(normed=rows(t, normed)).select(rows(t, decision))
        assert torch.equal(lent.active, on & lend)
        assert torch.equal(full(lent, lent.normed), normed * (on & lend)[..., None])
        assert torch.equal(full(lent, lent.x), x * (on & lend)[..., None])
        assert torch.equal(full(t.select(rows(t, decision)), lent.x), full(lent, lent.x))


@check
def write_back(t, on, x):
    lend = torch.rand(B, N) < .5
    lent = t.select(rows(t, lend))
    back = t.write_back(lent + lent.x)
    assert torch.equal(full(back, back.x), x * on[..., None] * (1 + lend.to(x.dtype))[..., None])
    assert torch.equal(back.active, on) and torch.equal(full(t, t.x), x * on[..., None])


@check
def add_rows(t, on, x):
    lend, normed = torch.rand(B, N) < .5, torch.randn(B, N, D).to(x.dtype)
    for t in (t, t.replace(normed=rows(t, normed))):
        lent = t.select(rows(t, lend))
        back = t.add_rows(lent, 2 * rows(lent, x))
        assert torch.equal(full(back, back.x), full(t, t.write_back(lent + 2 * lent.x).x))
        assert back.normed is None and torch.equal(full(t, t.x), x * on[..., None])


@check
def prefix(t, on, x):
    if on[:, 0].all(): assert torch.equal(t.prefix(), x[:, :P])
    kept = t.keep(rows(t, on))
    if on[:, 0].all(): assert torch.equal(kept.prefix(), x[:, :P])


@check
def patch_mean(t, on, x):
    for t, sizes in variants(t):
        mean = torch.zeros(B, D, dtype=torch.float64)
        for b in range(B):
            alive = on[b, P:]
            if alive.any(): mean[b] = (x[b, P:] * sizes[b, P:, None])[alive].double().sum(0) / sizes[b, P:][alive].sum()
        close(t.patch_mean(), mean)
        assert t.patch_mean().dtype == x.dtype


@check
def to_full_grid(t, on, x):
    grid = t.to_full_grid(t.x, float('nan'))
    assert torch.equal(grid[on], x[on]) and grid[~on].isnan().all()


@check
def expand_to_rows(t, on, x):
    values = torch.randn(B, 2)
    assert torch.equal(full(t, t.expand_to_rows(values)), values[:, None] * on[..., None])


def mean_of(members, x, weight):
    "The weighted mean of tokens of an image"
    return sum(weight[m] * x[m].double() for m in members) / sum(weight[m] for m in members)


@check
def fold(t, on, x):
    stay = (torch.rand(B, N) < .5) | (torch.arange(N) < P)
    weights = torch.rand(B, N) + .1
    ids, into = full(t, t.row_ids, -1), torch.full((B, N), -1)
    for b, n in tokens(on & ~stay):
        hosts = (on & stay)[b, P:].nonzero()[:, 0] + P
        if len(hosts): into[b, n] = hosts[n % len(hosts)]
    to = torch.where(into < 0, -1, ids.gather(1, into.clamp(min=0)))
    for t, sizes in variants(t):
        for w in (None, weights):
            folded = t.fold(rows(t, stay), rows(t, to), None if w is None else rows(t, w))
            assert torch.equal(folded.active, on & stay)
            grid, weight = full(folded, folded.x), sizes if w is None else w
            for b, n in tokens(on & stay):
                members = [n, *(m for m in range(N) if on[b, m] and into[b, m] == n)]
                close(grid[b, n], mean_of(members, x[b], weight[b].double()), x.dtype)
                if w is None and folded.size is not None:
                    assert full(folded, folded.size)[b, n] == sum(sizes[b, m] for m in members)


@check
def merge_dropped(t, on, x):
    stay, f = (torch.rand(B, N) < .5) | (torch.arange(N) < P), torch.randn(B, N, 5)
    merged, unit = t.merge_dropped(rows(t, stay), rows(t, f)), torch.nn.functional.normalize(f, dim=-1)
    assert torch.equal(merged.active, on & stay)
    members = {token: [token[1]] for token in tokens(on & stay)}
    for b, n in tokens(on & ~stay):
        hosts = [m for m in range(P, N) if (on & stay)[b, m]]
        if hosts: members[b, max(hosts, key=lambda m: (unit[b, n] @ unit[b, m]).item())].append(n)
    for (b, n), inside in members.items():
        close(full(merged, merged.x)[b, n], mean_of(inside, x[b], torch.ones(N)), x.dtype)


@check
def argmax_per_image(t, on, x):
    values, among = torch.rand(B, N), torch.rand(B, N) < .5
    best, ids = full(t, t.argmax_per_image(rows(t, values), rows(t, among)), -9), full(t, t.row_ids, -1)
    for b, n in tokens(on):
        candidates = [m for m in range(N) if (on & among)[b, m]]
        assert best[b, n] == (ids[b, max(candidates, key=lambda m: values[b, m])] if candidates else -1)


@check
def image_alive(t, on, x):
    going = torch.rand(B, N) < .4
    alive = full(t, t.image_alive(rows(t, going), P), False)
    for b, n in tokens(on): assert alive[b, n] == (going & on)[b, :P].any()


@check
def accumulate(t, on, x):
    account, w = torch.randn(B, P, D), torch.rand(B, N)
    close(t.accumulate(account, rows(t, w)), account + ((w * on)[..., None] * x.float())[:, :P], x.dtype)


@even_check
def as_grid(t, on, x): assert torch.equal(t.as_grid(t.x), x[on].view(B, -1, D))


@even_check
def take_columns(t, on, x):
    n = int(on[0].sum())
    at = torch.stack([torch.cat([torch.arange(P), P + torch.randperm(n - P)[:(n - P) // 2].sort().values])
                      for _ in range(B)])
    left = t.take_columns(at)
    assert torch.equal(left.as_grid(left.x), torch.stack([x[b, on[b]][at[b]] for b in range(B)]))
    assert left.counts().tolist() == [at.shape[1]] * B


@even_check
def merge(t, on, x):
    n = int(on[0].sum())
    order = torch.stack([torch.randperm(n - P) for _ in range(B)]) + P
    r, weights = max((n - P) // 2, 0), torch.rand(B, N) + .1
    src, dst = order[:, :r], order[:, r:r + 1].expand(-1, r)
    for t, sizes in variants(t):
        for w in (None, weights):
            merged = t.merge(src, dst, None if w is None else rows(t, w))
            weight = (sizes if w is None else w).double()
            assert merged.counts().tolist() == [n - r] * B
            for b in range(B):
                columns = on[b].nonzero()[:, 0]
                if not r: continue
                members = columns[[int(dst[b, 0]), *src[b].tolist()]].tolist()
                close(full(merged, merged.x)[b, members[0]], mean_of(members, x[b], weight[b]), x.dtype)
                assert not merged.active[b, members[1:]].any()


def start(table, counts, dtype):
    torch.manual_seed(0)
    on, x = living(counts), torch.randn(B, N, D).to(dtype)
    t = table(x, P)
    return t if on.all() else t.keep(rows(t, on)), on, x


each_table = pytest.mark.parametrize('table', tables(), ids=lambda table: table.__name__)
each_dtype = pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])


def test_every_operation_is_checked():
    assert set(CHECKS) | set(EVEN_CHECKS) == DECLARED and not set(CHECKS) & set(EVEN_CHECKS)
    assert len(tables()) >= 2


@each_table
def test_a_table_answers_itself(table):
    assert not [name for name in DECLARED if getattr(table, name) is getattr(Tokens, name)]


@each_table
@each_dtype
@pytest.mark.parametrize('counts', COUNTS, ids=str)
@pytest.mark.parametrize('operation', CHECKS)
def test_operation(operation, table, counts, dtype): CHECKS[operation](*start(table, counts, dtype))


@each_table
@each_dtype
@pytest.mark.parametrize('counts', EVEN, ids=str)
@pytest.mark.parametrize('operation', EVEN_CHECKS)
def test_operation_on_equal_counts(operation, table, counts, dtype):
    EVEN_CHECKS[operation](*start(table, counts, dtype))


@each_table
def test_what_all_tables_share(table):
    t, on, x = start(table, (0, 1, N - P), torch.bfloat16)
    assert torch.equal(full(t, (t + t.x).x), 2 * x * on[..., None])
    assert t.at_least_float32().dtype == torch.float32 and table.__name__ in repr(t)
    normed = t.replace(normed=t.x)
    assert normed.normed is t.x and (normed + 1.).normed is None and t.normed is None
