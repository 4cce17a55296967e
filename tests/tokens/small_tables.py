"Small tables with any numbers of tokens, and what attention on them has to give."
import torch
from hypothesis import strategies as st

from adaptive_tokens.tokens.masked import MaskedTokens
from adaptive_tokens.tokens.packed import PackedTokens

B, N, P, H, DH = 3, 7, 2, 2, 8
edge_counts = st.lists(st.sampled_from([0, 1, N - P - 1, N - P]), min_size=1, max_size=4)


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


def tables(counts, seed, on=None):
    "Both tables with the same living tokens, and their mask"
    torch.manual_seed(seed)
    on, x = random_on(seed, counts) if on is None else on, torch.randn(len(counts), N, 4)
    return PackedTokens(x, P).keep(on.flatten()), MaskedTokens(x, P).keep(on), on
