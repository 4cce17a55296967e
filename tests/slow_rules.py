"One image, a list of tokens, no batch, no table: what each paper says about dropping or merging, word by word."
import torch

from adaptive_tokens.backbones.backbone import backbone_of


def attention_by_hand(block, x, size):
    "Update [n, D], attention [H, n, n], keys [n, H, Dh], lengths of contexts [n, H]; a key counts by its size"
    n, attn = len(x), block.attn
    q, k, v = attn.qkv(block.norm1(x)).view(n, 3, attn.num_heads, attn.head_dim).unbind(1)
    q, k = attn.q_norm(q), attn.k_norm(k)
    weight = (torch.einsum('ihd,jhd->hij', q, k) * attn.head_dim**-.5).exp() * torch.tensor(size, dtype=x.dtype)
    A = weight / weight.sum(-1, keepdim=True)
    context = torch.einsum('hij,jhd->ihd', A, v)
    return block.ls1(attn.proj(context.flatten(1))), A, k, context.norm(dim=-1)


def by_hand(vit, image, inside=None, between=None, scored=None):
    "Logits of one image and the tokens that enter each block; rules change lists of rows, names and sizes"
    x, entered = backbone_of(vit).embed(image[None])[0].double(), []
    names, size = list(range(len(x))), [1.] * len(x)
    for l, block in enumerate(vit.double().blocks, 1):
        entered.append(list(names))
        update, A, k, H = attention_by_hand(block, x, size)
        x = x + update
        if scored: x, names, size = scored(l, x, names, size, A, k, H)
        if inside: x, names, size = inside(l, x, names, size, A, k)
        x = x + block.ls2(block.mlp(block.norm2(x)))
        if between: x, names, size = between(l, x, names, size)
    logits = vit.forward_head(vit.norm(x)[None])[0].float()
    vit.float()
    return logits, entered


def only(rows, x, names, size): return x[rows], [names[i] for i in rows], [size[i] for i in rows]


def check_rule(vit, images, model, **rule):
    "Assert that a model does with each image what a rule says, token by token, and answers the same"
    with torch.no_grad():
        logits, trace = model(images, return_trace=True)
        for i, image in enumerate(images):
            want, entered = by_hand(vit, image, **rule)
            assert [row.nonzero()[:, 0].tolist() for row in trace.active[i]] == list(map(sorted, entered))
            torch.testing.assert_close(logits[i], want, atol=2e-5, rtol=0)
