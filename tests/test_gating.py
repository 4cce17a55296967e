"AdaViT: gates, usage, heads and sub-layers that are really left out, cost, calibration, what is refused."
import copy

import pytest
import timm
import torch
from hypothesis import given, settings, strategies as st
from torch.utils.flop_counter import FlopCounterMode

import adaptive_tokens as at
from adaptive_tokens import tokens
from adaptive_tokens.backbones.timm_vit import embed, read_out
from adaptive_tokens.models.cost import macs
from adaptive_tokens.methods.adavit import (FORMS, KINDS, biases, gate, gated_block, gated_block_macs, gated_heads,
    heads_by_head, importance, match_usage, mean_usage, share_at, usage, usage_loss)
from adaptive_tokens.models.trace import Gates
from adaptive_tokens.training.losses import losses
from adaptive_tokens.tokens.attention import attention_mask, masked_softmax
from adaptive_tokens.tokens.masked import MaskedTokens
from adaptive_tokens.tokens.packed import PackedTokens

FAMILIES = [dict(), dict(reg_tokens=3), dict(qk_norm=True), dict(init_values=1e-1), dict(qkv_bias=False),
            dict(model_name='deit_tiny_distilled_patch16_224')]


def build(images=6, **kw):
    torch.manual_seed(0)
    vit = timm.create_model(**{'model_name': 'vit_tiny_patch16_224', 'img_size': 64, 'patch_size': 8, 'embed_dim': 48,
                               'depth': 6, 'num_heads': 3, 'num_classes': 7, **kw}).eval()
    with torch.no_grad():
        for p in vit.parameters(): p.mul_(1.5)
    return vit, torch.randn(images, 3, *vit.patch_embed.img_size)


def scattered(vit, images, budget=.6, **options):
    "An AdaViT whose gates differ from block to block and image to image"
    model = at.adapt(vit, 'adavit', **options)
    with torch.no_grad():
        for b in biases(model.method): b.add_(torch.randn_like(b))
        for kind in model.method.kinds:
            for layer in model.method.layers[kind]: layer.weight.mul_(20)
    at.calibrate(model, [images], budget)
    return model


def drawn(vit, images, rate):
    N, P, B = 64 + vit.num_prefix_tokens, vit.num_prefix_tokens, len(images)
    rows = [(torch.rand(B, N) < rate).index_fill(1, torch.arange(P), True) for _ in vit.blocks]
    return [Gates(r, torch.rand(B, 3) < rate, torch.rand(B, 2) < rate) for r in rows]


def run(vit, images, every, table, form):
    t = table(embed(vit, images), vit.num_prefix_tokens)
    for block, g in zip(vit.blocks, every):
        t = gated_block(block, t, Gates(g.rows.flatten() if table is PackedTokens else g.rows, g.heads, g.sublayers), form)
    return t


@settings(deadline=None, max_examples=30)
@given(st.floats(-4, 4, width=32), st.floats(.1, 20))
def test_sample_rate_is_the_sigmoid_for_every_temperature(m, tau):
    torch.manual_seed(0)
    M = gate(torch.full((40_000,), m), tau, True)
    assert set(M.unique().tolist()) <= {0., 1.}
    assert abs(M.mean().item() - torch.tensor(m).sigmoid().item()) < .012
    assert gate(torch.tensor([m]), tau, False).item() == (torch.tensor(m) > 0)


def test_the_slope_is_that_of_the_soft_gate():
    m = torch.linspace(-3, 3, 50, requires_grad=True)
    torch.manual_seed(1)
    gate(m, 2., True).sum().backward()
    torch.manual_seed(1)
    u = torch.rand_like(m).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((m.detach() + u.log() - (-u).log1p()) / 2)
    torch.testing.assert_close(m.grad, soft * (1 - soft) / 2)


@pytest.mark.parametrize('target', [.05, .5, .95])
@pytest.mark.parametrize('kind', KINDS)
def test_usage_loss_alone_drives_each_kind_to_its_target(kind, target):
    vit, images = build(images=32, img_size=16, depth=3)
    model = at.adapt(vit, 'adavit', budget=.9, kinds=(kind,), targets={kind: target}).train()
    optimizer, means = torch.optim.Adam(model.method.parameters(), lr=.05, betas=(.9, .95)), []
    for step in range(250):
        mean = usage(model.method, model(images, return_trace=True)[1], vit)[kind]
        optimizer.zero_grad()
        usage_loss(mean, target).backward()
        optimizer.step()
        optimizer.param_groups[0]['lr'] *= .99
        if step >= 200: means.append(mean.item())
    assert abs(sum(means) / len(means) - target) < .02


@pytest.mark.parametrize('kw', FAMILIES, ids=str)
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('rate', [0., .1, .5, .9, 1.])
def test_packed_equals_masked_for_random_gates(kw, form, rate):
    vit, images = build(**kw)
    every = drawn(vit, images, rate)
    with torch.no_grad():
        masked, packed = (read_out(vit, run(vit, images, every, table, form)) for table in (MaskedTokens, PackedTokens))
        torch.testing.assert_close(packed, masked, atol=1e-5, rtol=0)
        if rate == 1: torch.testing.assert_close(packed, vit(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize('table', [MaskedTokens, PackedTokens])
def test_a_shut_head_is_a_head_that_was_deleted(table):
    vit, images = build()
    block, t = vit.blocks[0], table(embed(vit, images))
    deleted = copy.deepcopy(block)
    with torch.no_grad():
        deleted.attn.proj.weight[:, 16:32] = 0
        shut = gated_heads(block, t, torch.tensor([[True, False, True]]).expand(6, -1), 'full')
        all_open = gated_heads(deleted, t, torch.ones(6, 3, dtype=torch.bool), 'full')
        torch.testing.assert_close(shut, all_open, atol=1e-6, rtol=0)


def without_head(attn, h):
    "Attention whose q, k, v rows and projection columns of one head are gone, written out by hand"
    Dh, H = attn.head_dim, attn.num_heads
    left = [i for i in range(H * Dh) if i // Dh != h]
    rows = [part * H * Dh + i for part in range(3) for i in left]
    def attend(x):
        q, k, v = (x @ attn.qkv.weight[rows].mT + attn.qkv.bias[rows]).view(len(x), -1, 3, H - 1, Dh).permute(2, 0, 3, 1, 4)
        a = (q @ k.mT * Dh**-.5).softmax(-1)
        return (a @ v).transpose(1, 2).flatten(2) @ attn.proj.weight[:, left].mT + attn.proj.bias
    return attend


@pytest.mark.parametrize('table', [MaskedTokens, PackedTokens])
@pytest.mark.parametrize('h', [0, 1, 2])
def test_a_shut_head_is_rows_and_columns_deleted(table, h):
    vit, images = build()
    block, t = vit.blocks[0], table(embed(vit, images))
    heads = (torch.arange(3) != h).expand(6, -1)
    with torch.no_grad():
        expected = without_head(block.attn, h)(block.norm1(embed(vit, images)))
        shut = gated_heads(block, t, heads if table is PackedTokens else heads.float(), 'full').view(6, 65, 48)
        torch.testing.assert_close(shut, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize('kw', FAMILIES, ids=str)
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('rate', [0., .4, 1.])
def test_head_by_head_is_image_by_image(kw, form, rate):
    vit, images = build(**kw)
    g = drawn(vit, images, rate)[0]
    t = PackedTokens(embed(vit, images), vit.num_prefix_tokens).keep(g.rows.flatten())
    block = vit.blocks[0]
    with torch.no_grad():
        update = block.ls1(heads_by_head(block.attn, block.norm1(t.x), t, g.heads, form))
        torch.testing.assert_close(update, gated_heads(block, t, g.heads, form), atol=1e-5, rtol=0)


@pytest.mark.parametrize('table', [MaskedTokens, PackedTokens])
@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_partial_form_gives_each_token_its_own_value(table, mode):
    vit, images = build()
    block, t = getattr(vit, mode)().blocks[0] if mode == 'train' else vit.blocks[0], table(embed(vit, images))
    with torch.no_grad():
        given = gated_heads(block, t, torch.zeros(6, 3, dtype=torch.bool), 'partial')
        v = block.attn.qkv(block.norm1(t.x))[..., 96:]
        torch.testing.assert_close(given, block.attn.proj(v), atol=1e-6, rtol=0)


@pytest.mark.parametrize('table', [MaskedTokens, PackedTokens])
def test_what_is_off_is_an_exact_identity_and_may_return(table):
    vit, images = build()
    before = table(embed(vit, images))
    flat = lambda rows: rows.flatten() if table is PackedTokens else rows
    rows = (torch.rand(6, 65) < .5).index_fill(1, torch.tensor([0]), True)
    sublayers = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1], [0, 0], [1, 1]]).bool()
    with torch.no_grad():
        after = gated_block(vit.blocks[0], before, Gates(flat(rows), torch.ones(6, 3).bool(), sublayers))
        x, y = (t.x.view(6, 65, 48) for t in (before, after))
        assert torch.equal(x[~rows], y[~rows]) and torch.equal(x[[0, 4]], y[[0, 4]])
        assert not torch.equal(x[1], y[1])
        again = gated_block(vit.blocks[1], after, Gates(flat(~rows | rows), torch.ones(6, 3).bool(), torch.ones(6, 2).bool()))
        assert (again.x.view(6, 65, 48)[~rows] != y[~rows]).any()


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('table', [MaskedTokens, PackedTokens])
def test_rows_change_in_place_only_where_they_may(table, grad):
    vit, images = build()
    rows, heads, sublayers = drawn(vit, images, .6)[0].rows, torch.ones(6, 3).bool(), torch.tensor([[1, 0], [0, 1], [1, 1]] * 2).bool()
    gates = Gates(rows.flatten() if table is PackedTokens else rows, heads, sublayers)
    with torch.no_grad(): before = table(embed(vit, images))
    x = before.x.clone()
    with torch.set_grad_enabled(grad):
        kept = gated_block(vit.blocks[0], before, gates)
        assert torch.equal(before.x, x)
        given = gated_block(vit.blocks[0], before, gates, own=True)
    assert torch.equal(kept.x, given.x)
    assert (given.x is before.x) == (table is PackedTokens and not grad)


@pytest.mark.parametrize('form', FORMS)
def test_cost_is_what_the_operator_counter_says(form):
    vit, images = build()
    for g in drawn(vit, images, .6):
        t = PackedTokens(embed(vit, images))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            gated_block(vit.blocks[0], t, Gates(g.rows.flatten(), g.heads, g.sublayers), form)
        ours = gated_block_macs(vit.blocks[0], g.rows.sum(1).float(), g.heads.float(), g.sublayers.float(), form).sum()
        assert counter.get_total_flops() / 2 == pytest.approx(ours.item(), rel=1e-6)


def test_all_heads_shut_still_costs_the_mlp_and_nothing_open_costs_nothing():
    vit, _ = build()
    n, none = torch.tensor([65.]), torch.zeros(1, 3)
    assert gated_block_macs(vit.blocks[0], n, none, torch.ones(1, 2), 'full') == 65 * 2 * 48 * 192
    assert gated_block_macs(vit.blocks[0], n, none + 1, torch.zeros(1, 2), 'full') == 0


@pytest.mark.parametrize('kw', FAMILIES, ids=str)
@pytest.mark.parametrize('options', [dict(), dict(form='partial'), dict(kinds=('patches',)), dict(kinds=('heads', 'sublayers')),
                                     dict(mask_mlp=True)], ids=str)
def test_the_model_is_the_same_masked_packed_alone_and_shuffled(kw, options):
    vit, images = build(**kw)
    model, out = scattered(vit, images, budget=.75, **options), {}
    for model.execution in ('packed', 'masked'):
        with torch.no_grad(): out[model.execution] = model(images, return_trace=True)
    (logits, trace), (masked, masked_trace) = out['packed'], out['masked']
    torch.testing.assert_close(logits, masked, atol=1e-5, rtol=0)
    for name in ('active', 'heads', 'sublayers', 'macs'): assert torch.equal(getattr(trace, name), getattr(masked_trace, name))
    model.execution, order = 'auto', torch.randperm(len(images))
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([model(i[None]) for i in images]), logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(model(images[order]), logits[order], atol=1e-5, rtol=0)


def test_at_budget_one_it_is_the_timm_model():
    vit, images = build()
    model = at.adapt(vit, 'adavit', budget=1.)
    with torch.no_grad(): logits, trace = model(images, return_trace=True)
    assert torch.equal(logits, vit(images)) and (trace.macs == macs(vit)).all()


@pytest.mark.parametrize('kinds', [KINDS, ('patches',), ('heads',), ('sublayers',)])
def test_every_gate_hears_from_the_task_and_from_the_usage_loss(kinds):
    vit, images = build()
    model = at.adapt(vit, 'adavit', budget=.9, kinds=kinds).train()
    model.method.start(vit, [images])
    logits, trace = model(images, return_trace=True)
    terms = losses(model, logits, torch.arange(6), trace)
    for loss in (terms['task'], sum(v for k, v in terms.items() if 'usage' in k)):
        model.method.zero_grad()
        loss.backward(retain_graph=True)
        assert all(layer.weight.grad.any() for kind in kinds for layer in model.method.layers[kind])


def test_budgets_become_targets_and_gates_start_there():
    vit, images = build()
    model = at.adapt(vit, 'adavit', budget=.6)
    target = model.method.targets['patches']
    assert share_at(model.method, vit, target) == pytest.approx(.6, abs=1e-3)
    model.method.start(vit, [images])
    with torch.no_grad(): opened = usage(model.method, model(images, return_trace=True)[1], vit)
    assert all(abs(mean.item() - target) < .1 for mean in opened.values())  # lines were drawn where nothing is shut yet
    assert at.adapt(vit, 'adavit', targets=dict(patches=.3, heads=.5, sublayers=.9)).method.targets['sublayers'] == pytest.approx(.9)


def soft_attention(q, k, v, mask, *_):
    "Attention in which a mask counts as much as it says, between 0 and 1 too"
    q, k, v = (z.transpose(1, 2) for z in (q, k, v))
    if mask is None: mask = torch.ones(len(q), q.shape[2])
    return (masked_softmax(q @ k.mT * q.shape[-1]**-.5, attention_mask(mask.float())) @ v).transpose(1, 2)


def test_importance_is_the_slope_of_the_margin(monkeypatch):
    vit, images = build(images=2, depth=3)
    _, I = importance(vit, images, 'full')
    monkeypatch.setattr(tokens, 'masked_attention', soft_attention)  # a step of a mask shows where it is not rounded
    assert [tuple(v.shape) for v in I[1].values()] == [(2, 64, 1), (2, 3), (2, 2)]
    step = 1e-2
    def margin(M):  # attention of block 2 multiplied by M
        every = [Gates(torch.ones(2, 65), torch.ones(2, 3), torch.ones(2, 2)) for _ in range(3)]
        every[1].sublayers[:, 0] = M
        z = read_out(vit, run(vit, images, every, MaskedTokens, 'full'))
        return (z.gather(1, vit(images).argmax(1, keepdim=True))[:, 0] - z.mean(1)).detach()
    slope = (margin(1 + step) - margin(1 - step)) / (2 * step)
    torch.testing.assert_close(I[1]['sublayers'][:, 0], slope.abs(), atol=1e-3, rtol=2e-2)


def test_targets_of_a_budget_follow_the_cost_and_given_ones_stay():
    vit, images = build()
    for targets in (None, dict.fromkeys(KINDS, .8)):
        model = at.adapt(vit, 'adavit', budget=.5, targets=targets, anneal=.5).train()
        model.method.start(vit, [images])
        before, trace = model.method.target.clone(), model(images, return_trace=True)[1]
        model.method.after_backward(trace, vit)
        missing = .5 - trace.macs.mean().item() / macs(vit)
        torch.testing.assert_close(model.method.target - before, torch.full((3,), 0. if targets else .02 * missing))
        assert model.method.tau == 2.5


def test_balance_gives_each_kind_its_own_usage():
    vit, images = build(images=32)
    targets = dict(patches=.6, heads=.8, sublayers=.7)
    model = at.adapt(vit, 'adavit', budget=.5, targets=targets).eval()
    model.method.start(vit, [images])
    with torch.no_grad():
        for b in biases(model.method): b.sub_(6)
        before = mean_usage(model.method, vit, [images])
        match_usage(model.method, vit, [images], rounds=10)
        after = mean_usage(model.method, vit, [images])
    assert (before - model.method.target).abs().min() > .1 and (after - model.method.target).abs().max() < .05


def test_calibrate_save_and_load(tmp_path):
    vit, images = build()
    for budget in (.9, .5):
        model = scattered(vit, images, budget)
        with torch.no_grad(): spent = model(images, return_trace=True)[1].macs.mean().item() / macs(vit)
        assert spent == pytest.approx(budget, abs=.05)  # six images of a random net: cost jumps
    model.save_pretrained(tmp_path/'m')
    again = at.AdaptiveViT.from_pretrained(tmp_path/'m')
    with torch.no_grad(): assert torch.equal(again(images), model(images))
    assert again.method.targets == pytest.approx(model.method.targets)


def test_it_trains():
    vit, images = build(images=8)
    model = at.adapt(vit, 'adavit', budget=.6)
    data = torch.utils.data.TensorDataset(images, torch.arange(8) % 7)
    rows = at.fit(model, torch.utils.data.DataLoader(data, 4), epochs=2, lr=1e-3, progress=False, device='cpu')
    assert {f'usage of {kind}' for kind in KINDS} <= rows[-1].keys() and .4 < rows[-1]['train_macs_share'] < .8


@pytest.mark.parametrize('options, message', [
    (dict(tau=0.), 'tau is 0.0; it must be above 0'), (dict(tau=-1.), 'tau is -1.0'), (dict(form='half'), 'full'),
    (dict(kinds=('patch',)), 'patches'), (dict(kinds=()), 'kinds is empty'), (dict(targets=dict(patches=.5)), 'targets are for'),
    (dict(targets=dict(patches=.5, heads=-.1, sublayers=.5)), 'target for heads is -0.1'),
    (dict(budget=.3, kinds=('heads',)), 'out of reach.*remain')])
def test_what_cannot_work_is_refused(options, message):
    vit, _ = build()
    with pytest.raises(ValueError, match=message): at.adapt(vit, 'adavit', **options)


def test_what_gates_cannot_reach_leaves_the_model_as_it_was():
    vit, images = build()
    model = scattered(vit, images)
    own = [b.clone() for b in biases(model.method)]
    with pytest.raises(ValueError, match='budget 0.01 is out of reach'): at.calibrate(model, [images], .01)
    assert all(torch.equal(a, b) for a, b in zip(own, biases(model.method))) and model.budget == .6


def test_a_fresh_model_whose_calibration_fails_is_as_fresh_as_before():
    vit, images = build()
    model = at.adapt(vit, 'adavit', .6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match='budget 0.01 is out of reach'): at.calibrate(model, [images], .01)
    assert model.budget == .6 and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert at.calibrate(model, [images]) == pytest.approx(.6, abs=.02)


def test_a_backbone_without_class_token_is_refused():
    with pytest.raises(ValueError, match='class token'): at.adapt(build(class_token=False, global_pool='avg')[0], 'adavit')


def test_a_norm_over_all_heads_is_refused():
    with pytest.raises(ValueError, match='norm over all heads'): at.adapt(build(scale_attn_norm=True)[0], 'adavit')
