"""Every method that is known by name keeps the promises that `Method` and `AdaptiveViT` make.

A method is tested by being registered.
"""
import copy
import json

import pytest
import torch
from builders import spread_vit

from adaptive_tokens.look.style import style_of
from adaptive_tokens.models.checkpoint import load
from adaptive_tokens.models.cost import macs
from adaptive_tokens.models.method import METHODS, Method, known_methods, mean_share, method_name
from adaptive_tokens.models.model import adapt, calibrate

NAMES = list(known_methods())
each_method = pytest.mark.parametrize('name', NAMES)
BUDGET = .65


@pytest.fixture(scope='module')
def dense(): return spread_vit(depth=6)


@pytest.fixture
def images(dense): return dense[1]


@pytest.fixture
def model(name, dense):
    "A calibrated model, without gradients"
    torch.manual_seed(0)
    model = adapt(copy.deepcopy(dense[0]), name, BUDGET).eval()
    calibrate(model, [dense[1]])
    with torch.no_grad(): yield model


def state_of(method):
    "All that decides what a method does"
    plain = {name: copy.deepcopy(getattr(method, name)) for name in method.resume_attributes}
    return {name: z.clone() for name, z in method.state_dict().items()}, plain, method.budget, repr(method.options())


def same(ours, theirs):
    assert ours[1:] == theirs[1:] and ours[0].keys() == theirs[0].keys()
    for name, value in ours[0].items(): assert torch.equal(value, theirs[0][name]), name


@each_method
def test_facts_are_there(name, model):
    method = model.method
    assert method_name(model) == method.full_name == name and isinstance(method, Method)
    colour, marker = style_of(name)
    assert colour.startswith('#') and len(colour) == 7 and isinstance(marker, str)
    assert set(method.colours) == set(method.markers) <= {'', *method.forms}
    assert len(method.score_words) == 2 and all(isinstance(words, str) for words in method.score_words)
    assert method.distill_weight >= 0 and method.token_weight >= 0 and method.lr_scale > 0
    for own in method.keep_float32: assert getattr(method, own).dtype == torch.float32
    for own in method.resume_attributes: assert hasattr(method, own)
    for form in method.forms: assert f'{method.name}:{form}' in METHODS
    assert type(method).__doc__ and type(method).__doc__ != Method.__doc__


@each_method
def test_masked_equals_packed(model, images):
    out = []
    for model.execution in ('masked', 'packed'): out.append(model(images, return_trace=True))
    (masked, by_mask), (packed, by_rows) = out
    torch.testing.assert_close(masked, packed, atol=1e-5, rtol=1e-5)
    assert torch.equal(by_mask.active, by_rows.active)
    torch.testing.assert_close(by_mask.macs, by_rows.macs)
    torch.testing.assert_close(by_mask.score, by_rows.score, atol=1e-5, rtol=1e-4, equal_nan=True)
    torch.testing.assert_close(model(images), packed, atol=1e-6, rtol=0)


@each_method
def test_an_image_alone_is_answered_as_in_company(model, images):
    together, trace = model(images, return_trace=True)
    for i in range(len(images)):
        alone, own = model(images[i:i + 1], return_trace=True)
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)
        assert torch.equal(own.active[0], trace.active[i]) and own.macs[0] == trace.macs[i]


@each_method
@torch.no_grad()
def test_budget_one_is_the_dense_model(name, dense, images):
    vit = dense[0]
    model = adapt(vit, name, 1.)
    assert torch.equal(model(images), vit(images))
    logits, trace = model(images, return_trace=True)
    torch.testing.assert_close(logits, vit(images), atol=1e-5, rtol=1e-5)
    assert trace.macs.tolist() == [macs(vit)] * len(images) and trace.share.tolist() == [1.] * len(images)
    assert trace.active.all() and trace.score.isnan().all()
    later = adapt(vit, name, BUDGET)
    assert calibrate(later, [images], 1.) == later.budget == 1 and torch.equal(later(images), vit(images))


@each_method
def test_options_rebuild_it(name, model, images):
    options = json.loads(json.dumps(model.method.options()))  # as in a config
    again = adapt(model.vit, model.method.name, model.budget, **options)
    again.method.load_state_dict(model.method.state_dict())
    assert again.method.options() == model.method.options() and again.method.full_name == name
    assert torch.equal(again(images), model(images))


@each_method
def test_it_is_saved_and_loaded(name, model, images, tmp_path):
    model.save_pretrained(tmp_path/'checkpoint')
    again = load(str(tmp_path/'checkpoint'))
    assert torch.equal(again(images), model(images)) and method_name(again) == name
    same(state_of(again.method), state_of(model.method))


@each_method
def test_the_trace_costs_what_the_method_says(model, images):
    trace, gates = model(images, return_trace=True)[1], ()
    B, counts = len(images), trace.counts.float()
    if trace.gates:
        counts = torch.stack([gate.rows.view(B, -1).sum(1) for gate in trace.gates], 1).float()
        gates = [torch.stack([getattr(gate, kind).float() for gate in trace.gates], 1)
                 for kind in ('heads', 'sublayers')]
    spent = model.method.macs(model.vit, counts, trace.active.shape[2] - model.vit.num_prefix_tokens, *gates)
    torch.testing.assert_close(trace.macs, spent.expand(B), atol=0, rtol=1e-6)
    assert trace.dense == macs(model.vit) and (trace.share < 1).all()
    if not trace.gates: assert (trace.active[:, 1:] <= trace.active[:, :-1]).all(), 'a dropped token came back'


@each_method
@pytest.mark.parametrize('budget', [.5, .8])
def test_calibration_meets_a_budget(model, images, budget):
    spent = calibrate(model, [images, images[:2]], budget)
    assert abs(spent - budget) < .03 and model.budget == budget and not model.training
    assert mean_share(model.method, model.vit, [images, images[:2]]) == pytest.approx(spent, abs=1e-4)


@each_method
def test_a_calibration_that_fails_leaves_everything_as_it_was(model, images, monkeypatch):
    plain, calls, stop = model.method.macs, [], [0]

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == stop[0]: raise KeyboardInterrupt
        return plain(*args, **kwargs)
    monkeypatch.setattr(model.method, 'macs', counted)
    calibrate(model, [images], .5)
    last = len(calls)
    calibrate(model, [images], BUDGET)
    before, own = state_of(model.method), model(images)
    for stop[0] in (1, last):
        calls.clear()
        with pytest.raises(KeyboardInterrupt): calibrate(model.train(), [images], .5)
        stop[0] = 0
        same(state_of(model.method), before)
        assert model.training and torch.equal(model.eval()(images), own)


@each_method
def test_figures_get_a_line_for_every_block(model, images):
    trace = model(images, return_trace=True)[1]
    lines = model.method.threshold_lines(6)
    assert len(lines) == 6 and all(line is None or isinstance(line, float) for line in lines)
    assert model.method.compared_scores(trace).shape == trace.score.shape


@each_method
def test_it_trains(name, dense, images):
    torch.manual_seed(0)
    model = adapt(copy.deepcopy(dense[0]), name, BUDGET).train()
    model.method.init_from_data(model.vit, [images])
    logits, trace = model(images, return_trace=True)
    extra = model.method.extra_losses(trace, model.vit)
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(images))) + sum(extra.values())
    loss.backward()
    model.method.after_backward(trace, model.vit)
    assert loss.ndim == 0 and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model.vit.blocks[0].mlp.fc1.weight.grad.abs().sum() > 0
    if model.method.token_weight: assert trace.final[0].shape[:2] == trace.final[1].shape


@each_method
@pytest.mark.parametrize('kw', [dict(reg_tokens=2), dict(global_pool='avg'),
                                dict(class_token=False, global_pool='avg')], ids=str)
def test_another_backbone_runs_or_is_refused(name, kw):
    vit, images = spread_vit(depth=4, images=2, **kw)
    try: model = adapt(vit, name, BUDGET)
    except ValueError as e:
        assert 'class token' in str(e) and kw.get('global_pool') == 'avg'
        return
    calibrate(model, [images])
    with torch.no_grad():
        packed = model(images)
        model.execution = 'masked'
        torch.testing.assert_close(model(images), packed, atol=1e-5, rtol=1e-4)
