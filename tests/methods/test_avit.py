"A-ViT: halting distribution, ponder and prior loss, both tables, calibration, what is refused."
import pytest
import timm
import torch
from hypothesis import given, settings, strategies as st

import adaptive_tokens as at
from adaptive_tokens.backbones.backbone import backbone_of
from adaptive_tokens.methods.avit import (budget_depth, channel_values, depth_prior, halting_distribution,
    halting_score, ponder_loss, prior_loss, released_prior, released_prior_loss, shifts_for_mean_score)
from adaptive_tokens.models.cost import macs
from adaptive_tokens.models.trace import Recorder
from adaptive_tokens.tokens.masked import MaskedTokens
from adaptive_tokens.tokens.packed import PackedTokens
from adaptive_tokens.training.losses import losses

FAMILIES = [dict(), dict(reg_tokens=3), dict(qk_norm=True), dict(init_values=1e-1),
            dict(model_name='deit_tiny_distilled_patch16_224')]


def build(images=8, **kw):
    torch.manual_seed(0)
    vit = timm.create_model(**{'model_name': 'vit_tiny_patch16_224', 'img_size': 64, 'patch_size': 8, 'embed_dim': 48,
                               'depth': 8, 'num_heads': 3, 'num_classes': 7, **kw}).eval()
    with torch.no_grad():
        for p in vit.parameters(): p.mul_(1.5)  # at initialisation the channels of all tokens are nearly alike
    return vit, torch.randn(images, 3, *vit.patch_embed.img_size)


def act(h, eps=.01):
    "Graves's loop for one token: p, and the number of steps."
    c, p = 0., [0.] * len(h)
    for l, h_l in enumerate(h):
        if l == len(h) - 1 or c + h_l >= 1 - eps:
            p[l] = 1 - c
            return p, l + 1
        p[l], c = h_l, c + h_l


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(0, 999), st.floats(0, 1))
def test_halting_distribution_is_the_loop_of_act(L, seed, size):
    torch.manual_seed(seed)
    h = (torch.rand(2, L, 3) * size).double()
    loops = [[act(h[b, :, k].tolist()) for k in range(3)] for b in range(2)]
    N_k = torch.tensor([[n for _, n in row] for row in loops])
    p, r = halting_distribution(torch.arange(L)[:, None] < N_k[:, None], h)
    torch.testing.assert_close(p, torch.tensor([[q for q, _ in row] for row in loops]).double().mT)
    torch.testing.assert_close(p.sum(1), torch.ones(2, 3).double(), atol=1e-6, rtol=0)
    assert (p >= 0).all() and (N_k >= 1).all() and (N_k <= L).all()
    torch.testing.assert_close(ponder_loss(N_k, r), (N_k + r).mean())


def test_ponder_gradient_is_minus_one_over_K_before_halting_and_nothing_after():
    h = torch.full((1, 6, 4), .3, requires_grad=True)
    depth = torch.tensor([4, 4, 1, 6])
    _, r = halting_distribution((torch.arange(6)[:, None] < depth)[None], h)
    ponder_loss(depth, r).backward()
    assert torch.equal(h.grad[0], torch.where(torch.arange(6)[:, None] < depth - 1, -.25, 0.))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 24), st.floats(-2, 30), st.floats(.1, 5))
def test_prior_sums_to_one_and_is_matched_by_itself_alone(L, centre, sigma):
    prior = depth_prior(L, centre, sigma)
    torch.testing.assert_close(prior.sum(), torch.tensor(1.), atol=1e-6, rtol=0)
    assert prior_loss(prior.view(1, L, 1), prior).abs() < 1e-5
    if L > 1: assert prior_loss(torch.full((1, L, 1), 1 / L), depth_prior(L, 1., .5)) > .01


def test_prior_loss_is_finite_for_one_image_and_blind_to_the_order_of_images():
    torch.manual_seed(0)
    p = torch.rand(5, 8, 9).softmax(1)
    prior = depth_prior(8, 4.)
    assert torch.isfinite(prior_loss(p[:1], prior)) and prior_loss(p[:1], prior) >= 0
    torch.testing.assert_close(prior_loss(p.flip(0), prior), prior_loss(p, prior))
    sure = torch.zeros(1, 8, 1).index_fill(1, torch.tensor([3]), 1.).requires_grad_()
    prior_loss(sure, prior).backward()
    assert torch.isfinite(sure.grad).all()


@pytest.mark.parametrize('kw', FAMILIES, ids=str)
def test_without_halting_it_is_the_timm_model(kw):
    vit, images = build(**kw)
    for model in (at.adapt(vit, 'a-vit', budget=1.), at.adapt(vit, 'a-vit', budget=.5)):  # beta is unset: nobody halts
        for model.execution in ('packed', 'masked'):
            with torch.no_grad(): torch.testing.assert_close(model(images), vit(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize('kw', FAMILIES, ids=str)
@pytest.mark.parametrize('budget', [.3, .6, .9])
def test_packed_equals_masked_and_an_image_is_the_same_in_any_company(kw, budget):
    vit, images = build(**kw)
    model, out = at.adapt(vit, 'a-vit'), {}
    spent = at.calibrate(model, images.split(4), budget)
    for model.execution in ('packed', 'masked'):
        with torch.no_grad(): out[model.execution] = model(images, return_trace=True)
    trace = out['packed'][1]
    assert torch.equal(trace.active, out['masked'][1].active)
    torch.testing.assert_close(out['packed'][0], out['masked'][0], atol=1e-5, rtol=0)
    assert trace.macs.mean().item() / macs(vit) == pytest.approx(spent, rel=1e-5)
    model.execution, order = 'auto', torch.randperm(len(images))
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([model(i[None]) for i in images]), out['packed'][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(model(images[order]), out['packed'][0][order], atol=1e-5, rtol=0)


def test_image_exit_changes_no_answer():
    vit, images = build()
    model = at.adapt(vit, 'a-vit')
    at.calibrate(model, [images], .5)

    class Stays(PackedTokens):
        def image_alive(self, on, R): return torch.ones_like(on)

    record = Recorder()
    with torch.no_grad():
        logits, trace = model(images, return_trace=True)
        table = model.method(backbone_of(vit).blocks, Stays(backbone_of(vit).embed(images), 1), record)
        torch.testing.assert_close(vit.forward_head(vit.norm(table.x)), logits, atol=1e-5, rtol=0)
    gone = ~trace.active[..., :1]  # blocks after the one in which the class token halted
    assert gone.any() and not (trace.active & gone).any()
    assert record.trace(vit, model.method, 64).macs.mean() > trace.macs.mean()


def test_a_class_token_that_halts_at_once_answers_with_its_first_state():
    vit, images = build()
    model = at.adapt(vit, 'a-vit', beta=1e4)
    with torch.no_grad():
        logits, trace = model(images, return_trace=True)
        first = vit.blocks[0](backbone_of(vit).embed(images))
        torch.testing.assert_close(logits, vit.forward_head(vit.norm(first)), atol=1e-6, rtol=0)
    assert (trace.depth == 1).all()


def test_scores_and_their_sums_are_in_the_trace():
    vit, images = build()
    model = at.adapt(vit, 'a-vit', gamma=5., beta=-3.)
    with torch.no_grad(): trace = model(images, return_trace=True)[1]
    assert torch.equal(trace.score.isnan(), ~trace.active) and torch.equal(trace.cumulative.isnan(), ~trace.active)
    x = backbone_of(vit).embed(images)
    score = halting_score(vit.blocks[0](x), 5., torch.tensor(-3.))
    torch.testing.assert_close(trace.score[:, 0], score, atol=1e-6, rtol=0)
    stopped = trace.depth < 8
    last = trace.cumulative.gather(1, (trace.depth - 1)[:, None])[:, 0]
    gone_early = stopped & (trace.depth < trace.depth[:, :1])  # before the class token, so by their own sum
    assert (last[gone_early] >= .99).all()


def test_gradient_to_the_states_of_a_halted_token_is_zero():
    vit, images = build(images=2)
    model = at.adapt(vit, 'a-vit').train()
    at.calibrate(model, [images], .6)
    states = []
    hooks = [block.register_forward_hook(lambda m, i, o: states.append(o)) for block in [b.mlp for b in vit.blocks]]
    logits, trace = model(images, return_trace=True)
    for s in states: s.retain_grad()
    losses(model, logits, torch.tensor([1, 2]), trace)['loss'].backward()
    for hook in hooks: hook.remove()
    assert (~trace.active).any()
    for l, s in enumerate(states):
        gone = ~trace.active[:, l]
        assert s.grad is None or (s.grad[gone] == 0).all()


def test_loss_is_finite_in_training_and_every_term_is_named():
    vit, images = build()
    model = at.adapt(vit, 'a-vit').train()
    at.calibrate(model, [images], .6)
    for x in (images, images[:1]):
        logits, trace = model(x, return_trace=True)
        terms = losses(model, logits, torch.zeros(len(x), dtype=torch.long), trace)
        assert {'loss', 'task', 'ponder', 'prior'} <= terms.keys() and all(torch.isfinite(v) for v in terms.values())


def test_save_and_load_keep_shifts_and_answers(tmp_path):
    vit, images = build()
    model = at.adapt(vit, 'a-vit')
    at.calibrate(model, [images], .6)
    model.save_pretrained(tmp_path/'m')
    again = at.AdaptiveViT.from_pretrained(tmp_path/'m')
    with torch.no_grad(): assert torch.equal(again(images), model(images))
    assert torch.equal(again.method.beta, model.method.beta) and again.half().method.beta.dtype == torch.float32


def test_out_of_reach_leaves_the_model_as_it_was():
    vit, images = build()
    model = at.adapt(vit, 'a-vit', beta=-2.)
    with pytest.raises(ValueError, match='budget 0.1 is out of reach'): at.calibrate(model, [images], .1)
    assert (model.method.beta == -2).all() and model.budget == .65


@pytest.mark.parametrize('options, message', [
    (dict(gamma=0.), 'gamma is 0.0; it must be above 0'), (dict(gamma=-1.), 'gamma is -1.0'),
    (dict(eps=0.), 'eps is 0.0; it must be between 0 and 1'), (dict(eps=1.), 'eps is 1.0'),
    (dict(centre=0.), 'centre is 0.0; it is a block of this network, from 1 to 8'), (dict(centre=9.), 'centre is 9.0'),
    (dict(beta=float('nan')), 'beta is nan'), (dict(steer=-1.), 'steer is -1.0'),
    (dict(prior_weight=-1.), 'prior_weight is -1'), (dict(sigma=0.), 'sigma is 0.0'), (dict(T=-1.), 'T is -1.0'),
    (dict(prior='gausian'), "gaussian"), (dict(budget=.05), 'target depth of')])
def test_numbers_that_cannot_work_are_refused(options, message):
    vit, _ = build()
    with pytest.raises(ValueError, match=message): at.adapt(vit, 'a-vit', **options)


@pytest.mark.parametrize('kw, others', [(dict(class_token=False, global_pool='avg'), 'they, too, ask the class token'),
                                        (dict(global_pool='avg'), "'as-vit' and 'adavit' pool as the backbone does")],
                         ids=str)
def test_a_backbone_without_one_token_to_read_is_refused(kw, others):
    vit, images = build(**kw)
    with pytest.raises(ValueError, match=f'averaged over the blocks it ran.*{others}'): at.adapt(vit, 'a-vit')
    for name in ('as-vit', 'adavit'):  # what the message says of them
        if not vit.has_class_token:
            with pytest.raises(ValueError, match='class token'): at.adapt(vit, name)
            continue
        with torch.no_grad(): assert at.adapt(vit, name)(images).shape == (8, 7)


def test_budget_depth_is_what_the_cost_says():
    vit, _ = build()
    assert budget_depth(vit, 1.) == pytest.approx(8)
    counts = torch.tensor([65.] * 4 + [0.] * 4)
    assert budget_depth(vit, macs(vit, counts).item() / macs(vit)) == pytest.approx(4)


def test_the_prior_follows_the_cost_within_the_network():
    vit, images = build()
    model = at.adapt(vit, 'a-vit', budget=.6)
    with torch.no_grad(): dear = model(images, return_trace=True)[1]  # shifts are unset: dense
    before = model.method.centre.item()
    model.method.after_backward(dear, vit)
    assert model.method.centre < before
    model.method.beta.fill_(1e4)
    with torch.no_grad(): cheap = model(images, return_trace=True)[1]
    for _ in range(2000): model.method.after_backward(cheap, vit)
    assert model.method.centre == 8
    for _ in range(2000): model.method.after_backward(dear, vit)
    assert model.method.centre == 1


def test_it_trains():
    vit, images = build()
    model = at.adapt(vit, 'a-vit', budget=.6)
    data = torch.utils.data.TensorDataset(images, torch.arange(8) % 7)
    before = vit.blocks[0].mlp.fc2.weight[0].clone()
    rows = at.fit(model, torch.utils.data.DataLoader(data, 4), epochs=12, lr=2e-3, progress=False, device='cpu')
    assert {'ponder', 'prior'} <= rows[-1].keys()
    assert rows[0]['train_macs_share'] > .95 and rows[-1]['train_macs_share'] < .8
    assert not torch.equal(vit.blocks[0].mlp.fc2.weight[0], before) and torch.isfinite(model.method.beta).all()


@pytest.mark.parametrize('kw', FAMILIES, ids=str)
@pytest.mark.parametrize('offset, who', [(-4., 'all'), (0., 'all'), (9., 'all'), (4., 'class token')])
def test_fine_tuning_starts_near_the_dense_model_wherever_the_channel_lies(kw, offset, who):
    vit, images = build(**kw)
    with torch.no_grad(): (vit.blocks[2].mlp.fc2.bias if who == 'all' else vit.cls_token[0, 0])[0] += offset
    model, fixed = at.adapt(vit, 'a-vit'), at.adapt(vit, 'a-vit', beta=-10.)
    model.method.init_from_data(vit, [images])
    with torch.no_grad():
        dense, (logits, trace), far = vit(images), model(images, return_trace=True), fixed(images)
    assert trace.macs.mean() > .95 * macs(vit)
    assert (logits - dense).abs().mean() < .1 * dense.std()
    if offset == 9: assert (far - dense).abs().mean() > 3 * (logits - dense).abs().mean()
    before = model.method.beta.clone()
    model.method.init_from_data(vit, [images * 2])  # what is set stays
    assert torch.equal(model.method.beta, before)


def test_even_shifts_give_every_block_the_same_mean_score():
    vit, images = build()
    z = 5 * channel_values(vit, images.split(3))
    assert z.shape == (8, 8, 65)
    z = z.flatten(1)
    means = torch.sigmoid(z + shifts_for_mean_score(z, .02)[:, None]).mean(1)
    torch.testing.assert_close(means, torch.full((8,), .02), atol=1e-4, rtol=0)


def test_a_trained_model_keeps_its_own_shifts_when_aimed_anew():
    vit, images = build()
    model = at.adapt(vit, 'a-vit')
    model.method.beta.copy_(torch.linspace(-9, -2, 8))
    for budget in (.8, .5):
        spent = at.calibrate(model, images.split(4), budget)
        assert spent == pytest.approx(budget, rel=.03) and model.budget == budget
        torch.testing.assert_close(model.method.beta.diff(), torch.full((7,), 1.), atol=1e-4, rtol=0)


def test_the_released_prior_is_the_one_measured_in_the_official_code():
    target = released_prior(12, 9.)
    assert target[:8].sum() == pytest.approx(.98, abs=1e-3) and target.sum() == pytest.approx(3.261, abs=1e-3)
    torch.testing.assert_close(target[4:9], torch.tensor([.0004, .0145, .176, .789, 1.301]), atol=1e-3, rtol=0)
    best = (target / target.sum()).view(1, 12, 1)
    assert released_prior_loss(best, target) == pytest.approx(.321, abs=.02)  # a floor where 0 should be
    assert torch.isfinite(released_prior_loss(best, released_prior(12, 1.)))
    assert released_prior(40, 30.).isfinite().all()


def test_the_released_prior_has_no_jumps():
    masses = torch.stack([released_prior(12, centre).sum() for centre in torch.linspace(1, 12, 1200)])
    assert (masses[:-1] / masses[1:]).log().abs().max() < .1


def test_a_centre_by_hand_stays_and_is_saved(tmp_path):
    vit, images = build()
    model, free = at.adapt(vit, 'a-vit', centre=6.), at.adapt(vit, 'a-vit')
    with torch.no_grad(): trace = model(images, return_trace=True)[1]
    for m in (model, free): m.method.after_backward(trace, vit)
    assert model.method.centre == 6
    for name, m in dict(model=model, free=free).items():
        m.save_pretrained(tmp_path/name)
        again = at.AdaptiveViT.from_pretrained(tmp_path/name)
        assert again.method.centre == m.method.centre and again.method.fixed_centre == m.method.fixed_centre


@pytest.mark.parametrize('options', [dict(gamma=100.), dict(beta=-75.), dict(beta=-1000.), dict(beta=100.),
                                     dict(gamma=.01)], ids=str)
def test_calibration_finds_the_budget_from_any_scale(options):
    vit, images = build()
    model = at.adapt(vit, 'a-vit', **options)
    # eight images of a random net: cost jumps
    assert at.calibrate(model, images.split(4), .6) == pytest.approx(.6, abs=.03)


def test_what_interrupts_calibration_leaves_the_model_as_it_was(monkeypatch):
    vit, images = build()
    model = at.adapt(vit, 'a-vit', beta=-2.)
    monkeypatch.setattr('adaptive_tokens.methods.avit.mean_share', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError): at.calibrate(model, [images], .5)
    assert (model.method.beta == -2).all() and model.budget == .65


def test_double_precision():
    vit, images = build()
    model = at.adapt(vit, 'a-vit')
    at.calibrate(model, [images], .6)
    with torch.no_grad(): assert model.double()(images.double()).dtype == torch.float64


def test_the_released_prior_trains_and_is_saved(tmp_path):
    vit, images = build()
    model = at.adapt(vit, 'a-vit', prior='released', gamma=10., beta=-30., centre=7.).train()
    logits, trace = model(images, return_trace=True)
    terms = losses(model, logits, torch.zeros(8, dtype=torch.long), trace)
    terms['loss'].backward()
    assert terms['prior'] > 0 and torch.isfinite(terms['loss'])
    model.eval().save_pretrained(tmp_path/'m')
    assert at.AdaptiveViT.from_pretrained(tmp_path/'m').method.prior == 'released'


def pull_of_the_task(model, images):
    "Gradient of the task alone to the scores of the patches, block by block"
    scores, backbone = [], backbone_of(model)

    def record(t, score): scores.append(score); score.retain_grad()
    table = model.method(backbone.blocks, MaskedTokens(backbone.embed(images), 1), record)
    backbone.read_out(table).logsumexp(1).sum().backward()
    return [h.grad[:, 1:] for h in scores[:-1]]


def test_the_task_reaches_the_scores_of_patches_through_the_slope_alone():
    vit, images = build()
    for T, reached in ((0., False), (5., True)):
        model = at.adapt(vit, 'a-vit', T=T)
        at.calibrate(model, [images], .6)
        assert any(pull.any() for pull in pull_of_the_task(model.train(), images)) == reached


def test_the_slope_changes_no_answer():
    vit, images = build()
    model = at.adapt(vit, 'a-vit')
    at.calibrate(model, [images], .6)
    served, trained = model(images), model.train()(images)
    torch.testing.assert_close(served, trained, atol=1e-5, rtol=0)


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_packed_equals_masked_in_any_precision(device, dtype):
    vit, images = build(images=32)
    model, images, out = at.adapt(vit, 'a-vit').to(device), images.to(device), {}
    at.calibrate(model, [images], .6)
    model, images = model.to(dtype), images.to(dtype)
    for model.execution in ('packed', 'masked'):
        with torch.no_grad(): out[model.execution] = model(images, return_trace=True)
    (a, ta), (b, tb) = out['packed'], out['masked']
    same = (ta.active == tb.active).flatten(1).all(1)
    # In bf16 two kernels round differently and a sum on the line may fall to either side;
    # images with the same decisions must agree.
    assert a.dtype == dtype and same.float().mean() > (.999 if dtype == torch.float32 else .3)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(a[same], b[same], atol=tolerance, rtol=0 if dtype == torch.float32 else tolerance)


@pytest.mark.parametrize('budget', [.5, .7])
def test_training_drives_the_mean_depth_to_its_target(budget):
    vit, images = build()
    model = at.adapt(vit, 'a-vit', budget=budget)
    data = torch.utils.data.TensorDataset(images, torch.arange(8) % 7)
    at.fit(model, torch.utils.data.DataLoader(data, 8), epochs=60, lr=2e-3, progress=False, device='cpu')
    with torch.no_grad(): trace = model(images, return_trace=True)[1]
    assert abs(trace.depth.float().mean().item() - budget_depth(vit, budget)) < .5


def test_the_centre_follows_a_budget_that_is_calibrated():
    vit, images = build()
    model = at.adapt(vit, 'a-vit', 1.)
    at.calibrate(model, [images], .5)
    assert model.method.centre.item() == pytest.approx(budget_depth(vit, .5), abs=1e-4)
    model.method.centre += .3  # training has moved it
    at.calibrate(model, [images], .6)
    assert model.method.centre.item() == pytest.approx(budget_depth(vit, .6) + .3, abs=1e-4)
    given = at.adapt(vit, 'a-vit', centre=3.)
    at.calibrate(given, [images], .6)
    assert given.method.centre == 3
