"AdaViT: gates, usage, what is off, cost, calibration, what is refused."
import pytest
import torch
from hypothesis import given, settings, strategies as st

import adaptive_tokens as at
from adaptive_tokens.backbones.backbone import backbone_of
from adaptive_tokens.backbones.heads import FORMS
from adaptive_tokens.measure.operators import OperatorCounter
from adaptive_tokens.methods.adavit import KINDS, gate, gated_block, gated_block_macs, importance, usage, usage_loss
from adaptive_tokens.models.cost import macs
from adaptive_tokens.models.method import run_method
from adaptive_tokens.models.trace import Gates
from adaptive_tokens.tokens import masked as masked_table
from adaptive_tokens.tokens.attention import attention_mask, masked_softmax
from adaptive_tokens.tokens.masked import MaskedTokens
from adaptive_tokens.tokens.packed import PackedTokens
from adaptive_tokens.training.losses import losses
from gated_models import FAMILIES, build, drawn, rows_of, scattered


def in_table(rows, table): return rows.flatten() if table is PackedTokens else rows


def run(vit, images, every, table, form):
    "The table after all blocks, each with its gates"
    t = table(rows_of(vit, images), vit.num_prefix_tokens)
    for block, g in zip(backbone_of(vit).blocks, every):
        t = gated_block(block, t, Gates(in_table(g.rows, table), g.heads, g.sublayers), form)
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
    every, read_out = drawn(vit, images, rate), backbone_of(vit).read_out
    with torch.no_grad():
        masked, packed = (read_out(run(vit, images, every, table, form)) for table in (MaskedTokens, PackedTokens))
        torch.testing.assert_close(packed, masked, atol=1e-5, rtol=0)
        if rate == 1: torch.testing.assert_close(packed, vit(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize('table', [MaskedTokens, PackedTokens])
def test_what_is_off_is_an_exact_identity_and_may_return(table):
    vit, images = build()
    before, blocks = table(rows_of(vit, images)), backbone_of(vit).blocks
    rows = (torch.rand(6, 65) < .5).index_fill(1, torch.tensor([0]), True)
    sublayers = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1], [0, 0], [1, 1]]).bool()
    heads, both = torch.ones(6, 3).bool(), torch.ones(6, 2).bool()
    with torch.no_grad():
        after = gated_block(blocks[0], before, Gates(in_table(rows, table), heads, sublayers))
        x, y = (t.x.view(6, 65, 48) for t in (before, after))
        assert torch.equal(x[~rows], y[~rows]) and torch.equal(x[[0, 4]], y[[0, 4]])
        assert not torch.equal(x[1], y[1])
        again = gated_block(blocks[1], after, Gates(in_table(~rows | rows, table), heads, both))
        assert (again.x.view(6, 65, 48)[~rows] != y[~rows]).any()


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('table', [MaskedTokens, PackedTokens])
def test_rows_change_in_place_only_where_they_may(table, grad):
    vit, images = build()
    rows, heads = drawn(vit, images, .6)[0].rows, torch.ones(6, 3).bool()
    sublayers = torch.tensor([[1, 0], [0, 1], [1, 1]] * 2).bool()
    gates, block = Gates(in_table(rows, table), heads, sublayers), backbone_of(vit).blocks[0]
    with torch.no_grad(): before = table(rows_of(vit, images))
    x = before.x.clone()
    with torch.set_grad_enabled(grad):
        kept = gated_block(block, before, gates)  # rows that came from outside
        assert torch.equal(before.x, x)
        given = gated_block(block, before.replace(fresh=True), gates)
    assert torch.equal(kept.x, given.x)
    assert (given.x is before.x) == (table is PackedTokens and not grad)


@pytest.mark.parametrize('grad', [False, True])
def test_rows_that_a_block_made_are_fresh_and_rows_from_outside_are_not(grad):
    vit, images = build()
    gates, block = drawn(vit, images, .6)[0], backbone_of(vit).blocks[0]
    gates = Gates(gates.rows.flatten(), torch.ones(6, 3).bool(), torch.tensor([[1, 0], [0, 1], [1, 1]] * 2).bool())
    with torch.set_grad_enabled(grad):
        before = PackedTokens(rows_of(vit, images))
        after = gated_block(block, before, gates)
        assert (before.fresh, after.fresh) == (False, True)
        again = gated_block(block, after, gates)
    assert (again.x is after.x) == (not grad)


@pytest.mark.parametrize('form', FORMS)
def test_cost_is_what_the_operator_counter_says(form):
    vit, images = build()
    block = backbone_of(vit).blocks[0]
    for g in drawn(vit, images, .6):
        t = PackedTokens(rows_of(vit, images))
        with torch.no_grad(), OperatorCounter() as counter:
            gated_block(block, t, Gates(g.rows.flatten(), g.heads, g.sublayers), form)
        ours = gated_block_macs(block, g.rows.sum(1).float(), g.heads.float(), g.sublayers.float(), form).sum()
        assert counter.get_total_flops() / 2 == pytest.approx(ours.item(), rel=1e-6)


def test_all_heads_shut_still_costs_the_mlp_and_nothing_open_costs_nothing():
    block = backbone_of(build()[0]).blocks[0]
    n, none = torch.tensor([65.]), torch.zeros(1, 3)
    assert gated_block_macs(block, n, none, torch.ones(1, 2), 'full') == 65 * 2 * 48 * 192
    assert gated_block_macs(block, n, none + 1, torch.zeros(1, 2), 'full') == 0


@pytest.mark.parametrize('kw', FAMILIES, ids=str)
@pytest.mark.parametrize('options', [dict(), dict(form='partial'), dict(kinds=('patches',)),
                                     dict(kinds=('heads', 'sublayers')), dict(mask_mlp=True)], ids=str)
def test_the_model_is_the_same_masked_packed_alone_and_shuffled(kw, options):
    vit, images = build(**kw)
    model, out = scattered(vit, images, budget=.75, **options), {}
    for model.execution in ('packed', 'masked'):
        with torch.no_grad(): out[model.execution] = model(images, return_trace=True)
    (logits, trace), (masked, masked_trace) = out['packed'], out['masked']
    torch.testing.assert_close(logits, masked, atol=1e-5, rtol=0)
    for name in ('active', 'heads', 'sublayers', 'macs'):
        assert torch.equal(getattr(trace, name), getattr(masked_trace, name))
    model.execution, order = 'auto', torch.randperm(len(images))
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([model(i[None]) for i in images]), logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(model(images[order]), logits[order], atol=1e-5, rtol=0)


def test_at_budget_one_it_is_the_timm_model():
    vit, images = build()
    model = at.adapt(vit, 'adavit', budget=1.)
    with torch.no_grad(): logits, trace = model(images, return_trace=True)
    assert torch.equal(logits, vit(images)) and (trace.macs == macs(vit)).all()


def test_at_budget_one_training_leaves_the_gates_alone():
    vit, images = build()
    model = at.adapt(vit, 'adavit', budget=1.).train()
    before = {name: value.clone() for name, value in model.method.state_dict().items()}
    model.method.init_from_data(vit, [images])
    logits, trace = model(images, return_trace=True)
    assert list(losses(model, logits, torch.arange(6), trace)) == ['loss', 'task']
    model.method.after_backward(trace, vit)
    assert all(torch.equal(value, before[name]) for name, value in model.method.state_dict().items())


@pytest.mark.parametrize('kinds', [KINDS, ('patches',), ('heads',), ('sublayers',)])
def test_every_gate_hears_from_the_task_and_from_the_usage_loss(kinds):
    vit, images = build()
    model = at.adapt(vit, 'adavit', budget=.9, kinds=kinds).train()
    model.method.init_from_data(vit, [images])
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
    assert model.method.share_at(vit, target) == pytest.approx(.6, abs=1e-3)
    model.method.init_from_data(vit, [images])
    with torch.no_grad(): opened = usage(model.method, model(images, return_trace=True)[1], vit)
    assert all(abs(mean.item() - target) < .1 for mean in opened.values())  # lines were drawn where nothing is shut yet
    given = at.adapt(vit, 'adavit', targets=dict(patches=.3, heads=.5, sublayers=.9)).method
    assert given.targets['sublayers'] == pytest.approx(.9)


def soft_attention(q, k, v, mask, *_):
    "Attention in which a mask counts as much as it says, between 0 and 1 as well"
    q, k, v = (z.transpose(1, 2) for z in (q, k, v))
    if mask is None: mask = torch.ones(len(q), q.shape[2])
    return (masked_softmax(q @ k.mT * q.shape[-1]**-.5, attention_mask(mask.float())) @ v).transpose(1, 2)


def test_importance_is_the_slope_of_the_margin(monkeypatch):
    vit, images = build(images=2, depth=3)
    _, I = importance(vit, images, 'full')
    # a step of a mask shows where it is not rounded
    monkeypatch.setattr(masked_table, 'masked_attention', soft_attention)
    assert [tuple(v.shape) for v in I[1].values()] == [(2, 64, 1), (2, 3), (2, 2)]
    step = 1e-2

    def margin(M):  # attention of block 2 multiplied by M
        every = [Gates(torch.ones(2, 65), torch.ones(2, 3), torch.ones(2, 2)) for _ in range(3)]
        every[1].sublayers[:, 0] = M
        z = backbone_of(vit).read_out(run(vit, images, every, MaskedTokens, 'full'))
        return (z.gather(1, vit(images).argmax(1, keepdim=True))[:, 0] - z.mean(1)).detach()
    slope = (margin(1 + step) - margin(1 - step)) / (2 * step)
    torch.testing.assert_close(I[1]['sublayers'][:, 0], slope.abs(), atol=1e-3, rtol=2e-2)


def test_targets_of_a_budget_follow_the_cost_and_given_ones_stay():
    vit, images = build()
    for targets in (None, dict.fromkeys(KINDS, .8)):
        model = at.adapt(vit, 'adavit', budget=.5, targets=targets, anneal=.5).train()
        model.method.init_from_data(vit, [images])
        before, trace = model.method.target.clone(), model(images, return_trace=True)[1]
        model.method.after_backward(trace, vit)
        missing = .5 - trace.macs.mean().item() / macs(vit)
        torch.testing.assert_close(model.method.target - before, torch.full((3,), 0. if targets else .02 * missing))
        assert model.method.tau == 2.5


def mean_usage(method, vit, images):
    means = usage(method, run_method(method, vit, images), vit)
    return torch.stack(list(means.values()))


def test_match_usage_gives_each_kind_its_own_usage():
    vit, images = build(images=32)
    targets = dict(patches=.6, heads=.8, sublayers=.7)
    method = at.adapt(vit, 'adavit', budget=.5, targets=targets).eval().method
    method.init_from_data(vit, [images])
    with torch.no_grad():
        for b in method.biases(): b.sub_(6)
        before = mean_usage(method, vit, images)
        method.match_usage(vit, [images], rounds=10)
        after = mean_usage(method, vit, images)
    assert (before - method.target).abs().min() > .1 and (after - method.target).abs().max() < .05


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
    (dict(kinds=('patch',)), 'patches'), (dict(kinds=()), 'kinds is empty'),
    (dict(targets=dict(patches=.5)), 'targets are for'),
    (dict(targets=dict(patches=.5, heads=-.1, sublayers=.5)), 'target for heads is -0.1'),
    (dict(budget=.3, kinds=('heads',)), 'out of reach.*remain')])
def test_what_cannot_work_is_refused(options, message):
    vit, _ = build()
    with pytest.raises(ValueError, match=message): at.adapt(vit, 'adavit', **options)


def test_what_gates_cannot_reach_leaves_the_model_as_it_was():
    vit, images = build()
    model = scattered(vit, images)
    own = [b.clone() for b in model.method.biases()]
    with pytest.raises(ValueError, match='budget 0.01 is out of reach'): at.calibrate(model, [images], .01)
    assert all(torch.equal(a, b) for a, b in zip(own, model.method.biases())) and model.budget == .6


def test_a_fresh_model_whose_calibration_fails_is_as_fresh_as_before():
    vit, images = build()
    model = at.adapt(vit, 'adavit', .6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match='budget 0.01 is out of reach'): at.calibrate(model, [images], .01)
    assert model.budget == .6 and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert at.calibrate(model, [images]) == pytest.approx(.6, abs=.02)


def test_a_backbone_without_class_token_is_refused():
    vit, _ = build(class_token=False, global_pool='avg')
    with pytest.raises(ValueError, match='class token'): at.adapt(vit, 'adavit')


def test_a_norm_over_all_heads_is_refused():
    with pytest.raises(ValueError, match='norm over all heads'): at.adapt(build(scale_attn_norm=True)[0], 'adavit')
