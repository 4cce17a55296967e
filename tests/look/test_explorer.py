"The explorer without a browser: what it is told about a trace, its three forms, its traits, and what it refuses."
import base64
import html
import json
import re

import numpy as np
import pytest
import timm
import torch
import traitlets
from torch import nn

import adaptive_tokens as at
from adaptive_tokens.backbones.backbone import UnsupportedBackbone
from adaptive_tokens.models.checkpoint import shipped
from adaptive_tokens.images.digits import ClutteredDigits, normalize
from adaptive_tokens.look.encoding import data_url
from adaptive_tokens.look.explorer import observe, thresholds_of
from adaptive_tokens.look.forms import SCRIPT, STYLE, as_frame, as_page
from adaptive_tokens.look.heads import head_terms

HOSTILE = '</script><img src=x onerror=alert(1)>"\'&amp;<!--\ud800'
METHODS = ['a-vit', 'adavit', 'as-vit']


def small(depth=4, size=64, **changes):
    torch.manual_seed(0)
    return timm.create_model('test_vit', img_size=size, num_classes=10, depth=depth, **changes).eval()


@pytest.fixture(scope='module')
def images(): return normalize(ClutteredDigits('test').batch(range(5)).images)


@pytest.fixture(scope='module')
def models(images):
    dense = small()
    made = {'dense': dense, **{name: at.adapt(dense, name, .7) for name in METHODS}}
    for name in METHODS: at.calibrate(made[name], [images])
    return made


@pytest.fixture
def explorer(models, images): return at.explore(models, images, [0, 1, 2, 3, 4])


def unpack(text, shape):
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))
    assert 0 <= len(bits) - np.prod(shape) < 8
    return bits[:np.prod(shape)].reshape(shape).astype(bool)


def scores_in(run, shape):
    levels = np.frombuffer(base64.b64decode(run['scores']['levels']), np.uint8).reshape(shape)
    low, high = (np.array(run['scores'][k])[:, None] for k in ('low', 'high'))
    return np.where(levels == 255, np.nan, low + (high - low) * levels / 254), (high - low) / 254


# --- what the page is told

@pytest.mark.parametrize('name', ['dense', *METHODS])
def test_a_run_holds_the_trace(explorer, models, images, name):
    run = next(r for r in explorer.runs if r['name'] == name)
    logits, trace = observe(models[name], images)
    P, (B, L, N), H = models['dense'].num_prefix_tokens, trace.active.shape, trace.heads.shape[2]
    active = unpack(run['active'], (B, L, N - P))
    assert (active == trace.active[..., P:].numpy()).all()
    assert (active.sum(1) == trace.depth[:, P:].numpy()).all()
    assert (unpack(run['heads'], (B, L, H)) == trace.heads.numpy()).all() and run['heads_per_block'] == H
    assert (unpack(run['sublayers'], (B, L, 2)) == trace.sublayers.numpy()).all()
    assert run['macs'] == trace.macs.tolist() and run['dense'] == at.macs(models['dense'])
    assert run['guess'] == [str(c) for c in logits.argmax(1).tolist()]
    assert run['right'] == (logits.argmax(1) == torch.arange(5)).tolist()
    assert run['probability'] == pytest.approx(logits.softmax(1).amax(1).tolist())


@pytest.mark.parametrize('name', METHODS)
def test_scores_within_half_a_step_and_on_their_side(explorer, models, images, name):
    run, P = next(r for r in explorer.runs if r['name'] == name), models['dense'].num_prefix_tokens
    trace = observe(models[name], images)[1]
    wanted = (trace.cumulative if name == 'a-vit' else trace.score)[..., P:].double().numpy()
    back, step = scores_in(run, wanted.shape)
    assert (np.isnan(back) == np.isnan(wanted)).all() and not np.isnan(wanted).all()
    near = [abs(wanted[:, l] - line) < step[l] if line is not None else np.zeros_like(wanted[:, l], bool)
            for l, line in enumerate(run['lines'])]  # within a step of the line the side counts, not the half step
    off = np.abs(back - wanted) / step
    assert np.nanmax(np.where(np.stack(near, 1), 0, off)) <= .5 + 1e-6 and np.nanmax(off) <= 1.5
    for l, line in enumerate(run['lines']):
        if line is not None: assert ((back[:, l] >= line) == (wanted[:, l] >= line))[~np.isnan(wanted[:, l])].all()


def test_votes_are_those_of_the_heads(explorer, models, images):
    runs = {run['name']: run for run in explorer.runs}
    assert all(runs[name]['votes'] is None for name in ('dense', 'a-vit', 'adavit'))
    votes, H = runs['as-vit']['votes'], models['dense'].blocks[0].attn.num_heads
    method = models['as-vit'].method
    stages = dict(zip(method.places, method.theta.tolist()))
    assert votes['blocks'] == list(stages)
    levels = np.frombuffer(base64.b64decode(votes['levels']), np.uint8).reshape(5, len(stages), H, -1) / 255
    for i, image in enumerate(images):
        for s, (l, (terms, _)) in enumerate(head_terms(models['as-vit'], image).items()):
            wanted = (terms / terms.nan_to_num(0).amax(0)).nan_to_num(0).T.numpy()
            assert np.abs(levels[i, s] - wanted).max() <= .51 / 255, l
            anybody = (~terms.isnan()).any().item()
            assert abs(sum(votes['weights'][i][s]) - 100 * anybody) <= H / 2
    whole = at.explore(at.adapt(models['dense'], 'as-vit', 1.), images[:1]).runs[0]
    assert whole['votes'] is None
    nobody = at.adapt(models['dense'], 'as-vit', places=(1, 2, 3), theta=(9., 9., 9.)).eval()
    assert at.explore(nobody, images[:1]).runs[0]['votes']['weights'][0][1:] == [[0] * H] * 2


def test_lines_are_those_of_the_methods(models):
    assert thresholds_of(models['dense']) == [None] * 4
    assert thresholds_of(models['a-vit']) == [.99] * 4 and thresholds_of(models['adavit']) == [.5] * 4
    method = models['as-vit'].method
    stages = dict(zip(method.places, method.theta.tolist()))
    drawn = [l for l, line in enumerate(thresholds_of(models['as-vit']), 1) if line is not None]
    assert drawn == [l for l, t in stages.items() if t >= 0]
    for name in METHODS: assert thresholds_of(at.adapt(models['dense'], name, 1.)) == [None] * 4
    assert thresholds_of(at.adapt(models['dense'], 'adavit', .9, kinds=('heads',))) == [None] * 4


def test_a_method_of_ones_own_is_shown(images):
    class Half(at.Method):
        name = 'half'
        def forward(self, blocks, t, record):
            from adaptive_tokens.backbones.backbone import run_block
            for l, block in enumerate(blocks):
                record(t)
                t = run_block(block, t)
                if l != 1: continue
                grid = torch.arange(t.N)[None].expand(t.B, -1)
                t = t.keep((grid if t.x.ndim == 3 else torch.arange(len(t.x)) % t.N) < t.N // 2)
            return t
    vit = small()
    run = at.explore(at.AdaptiveViT(vit, Half(vit)).eval(), images[:1]).runs[0]
    assert run['name'] == 'half' and run['lines'] == [None] * 4 and run['colour'] == '#666666'
    counts = unpack(run['active'], (4, 64 // 16 * 64 // 16)).sum(1)
    assert counts[0] == 16 and counts[2] < 16


# --- forms

def test_the_object_has_three_forms(explorer):
    data, _ = explorer._repr_mimebundle_()
    assert set(data) >= {'application/vnd.jupyter.widget-view+json', 'text/html', 'text/plain'}
    assert data['text/html'].startswith('<iframe title="Token explorer"')
    inner = html.unescape(re.search('srcdoc="([^"]*)"', data['text/html'])[1])
    assert inner == explorer.page() and data['text/plain'] == repr(explorer)


def test_the_page_holds_what_the_traits_hold(explorer):
    explorer.layer, explorer.token, explorer.image = 3, 7, 1
    state = json.loads(re.search('<script type="application/json">(.*?)</script>', explorer.page(), re.S)[1])
    assert (state['layer'], state['token'], state['image']) == (3, 7, 1)
    assert state['runs'] == json.loads(json.dumps(explorer.runs)) and len(state['data']['pictures']) == 5
    assert len(state['data']['palette']) == 5 and state['data']['labels'] == list('01234')


def test_the_page_asks_for_nothing(explorer):
    page = explorer.page().replace('http://www.w3.org/2000/svg', '')
    assert not re.search(r'https?:|@import|\bfetch\(|XMLHttpRequest|url\(|import\s', page)
    assert "default-src 'none'" in page
    assert ' id=' not in page and 'innerHTML' not in SCRIPT and '</script' not in SCRIPT and '</style' not in STYLE


def test_styles_stay_inside():
    rules = re.sub(r'@media[^{]*\{(.*?\})\s*\}', r'\1', STYLE, flags=re.S)
    for selector in re.findall(r'([^{}]+)\{', rules):
        assert all(part.strip().startswith('.at-explorer') for part in re.split(r',(?![^(]*\))', selector)), selector


def test_text_counts_patches(explorer, models, images):
    explorer.image = 2
    text = repr(explorer)
    trace = observe(models['as-vit'], images)[1]
    counts = ' '.join(str(n - models['dense'].num_prefix_tokens) for n in trace.counts[2].tolist())
    line, = [line for line in text.splitlines() if line.startswith('as-vit')]
    assert line.endswith(counts) and f'{trace.macs[2] / 1e9:#.3g}' in line
    assert text.startswith('Token explorer: image 2 of 5, of class 2, 64x64 pixels, 4x4 patches')
    assert len(text.splitlines()) == 2 + len(models)


def test_saving_writes_the_page(explorer, tmp_path):
    explorer.save(tmp_path/'new'/'page.html')
    assert (tmp_path/'new'/'page.html').read_text(encoding='utf-8') == explorer.page()
    assert [p.name for p in (tmp_path/'new').iterdir()] == ['page.html']


def test_hostile_names_are_data(models, images):
    explorer = at.explore({HOSTILE: models['as-vit']}, images[:1], [0], [HOSTILE] * 10)
    page = explorer.page()
    assert page.count('</script>') == 2 and '<img' not in page.replace(SCRIPT, '') and '<!--' not in page
    state = json.loads(re.search('<script type="application/json">(.*?)</script>', page, re.S)[1])
    assert state['runs'][0]['name'] == HOSTILE == state['runs'][0]['guess'][0] == state['data']['labels'][0]
    frame = as_frame(page)
    assert frame.count('<') == 2 and len(re.findall('srcdoc="[^"]*"', frame)) == 1
    page.encode('utf-8')


def test_sizes():
    vit = timm.create_model('test_vit', img_size=224, num_classes=10, depth=12).eval()
    models = {name: at.adapt(vit, name, .7) for name in METHODS}
    torch.manual_seed(0)
    images = nn.functional.interpolate(torch.randn(24, 3, 56, 56), 224, mode='bicubic')
    for model in models.values(): at.calibrate(model, [images[:4]])
    assert len(at.explore(models, images[:1]).page()) < 200_000
    assert len(at.explore(models, images).page()) < 1_500_000
    assert len(data_url(np.random.default_rng(0).random((900, 600, 3)))) < 200_000


# --- traits and budget

def test_traits_refuse_what_is_not_there(explorer):
    for name, low, high in [('layer', 1, 4), ('token', -1, 15), ('image', 0, 4)]:
        for value in (low, high): setattr(explorer, name, value)
        for value in (low - 1, high + 1):
            with pytest.raises(traitlets.TraitError, match=f'{name} is {value}; it must be from {low} to {high}'):
                setattr(explorer, name, value)
        assert getattr(explorer, name) == high
    assert {'data', 'runs', 'layer', 'token', 'image', '_esm', '_css'} <= set(explorer.keys)


@pytest.mark.parametrize('name', METHODS)
def test_another_budget_leaves_the_model_alone(explorer, models, images, name):
    before = {k: v.clone() for k, v in models[name].state_dict().items()}
    old = {run['name']: run for run in explorer.runs}
    explorer._handle_custom_msg(dict(kind='budget', run=list(models).index(name), budget=.9), [])
    new = {run['name']: run for run in explorer.runs}
    assert new[name]['budget'] == .9 and sum(new[name]['macs']) > sum(old[name]['macs'])
    assert all(new[k] is old[k] or new[k] == old[k] for k in new if k != name)
    assert models[name].budget == .7 and not models[name].training
    assert all(torch.equal(v, before[k]) for k, v in models[name].state_dict().items())
    assert explorer.notice.startswith(f'{name} spends')


def test_a_budget_out_of_reach_is_said(explorer):
    old, told = explorer.runs, []
    explorer.observe(lambda change: told.append(change['new']), 'notice')
    for _ in range(2):
        explorer._handle_custom_msg(dict(kind='budget', run=1, budget=.01), [])
        assert 'out of reach' in explorer.notice and explorer.runs == old
    assert told == ['Calibrating', explorer.notice] * 2  # the same answer is heard again, and nothing is blank between
    explorer._handle_custom_msg(dict(kind='something else'), [])
    with pytest.raises(ValueError, match='dense is dense'): explorer.set_budget('dense', .5)


def test_mode_and_device_of_the_models_stay(images):
    model = at.adapt(small().train(), 'as-vit', .7)
    at.calibrate(model, [images])
    at.explore(model, images).set_budget('as-vit', .8)
    assert model.training and model.vit.training


# --- input

def test_one_model_needs_no_name(models, images):
    assert [run['name'] for run in at.explore(models['a-vit'], images).runs] == ['a-vit']
    assert [run['name'] for run in at.explore(models['dense'], images).runs] == ['dense']
    assert at.explore(models['dense'], images).data['labels'] is None


def test_images_need_not_be_square(images):
    vit = timm.create_model('test_vit', img_size=(32, 64), num_classes=10).eval()
    explorer = at.explore(vit, images[:2, :, :32])
    assert explorer.data['grid'] == (2, 4) and explorer.data['size'] == (32, 64)


def test_names_of_classes(models, images):
    explorer = at.explore(models['dense'], images[:1], torch.tensor([3]), ['a', 'b', 'c'])
    assert explorer.data['labels'] == ['3'] and explorer.runs[0]['guess'][0] in ('a', 'b', 'c', *map(str, range(3, 10)))


@pytest.mark.parametrize('change, message', [
    (lambda m, x: (dict.fromkeys('abcdef', m['dense']), x), '6 models: give 1 to 5'),
    (lambda m, x: ({}, x), '0 models: give 1 to 5'),
    (lambda m, x: (m, x[:, :, :40, :40]), 'images are 40x40; sides must be multiples of the patch'),
    (lambda m, x: (m, x.to(torch.uint8)), 'images are uint8; normalise them'),
    (lambda m, x: (m, x[0]), 'images have shape'),
    (lambda m, x: (m, x[:0]), 'there are no images'),
    (lambda m, x: (m, x * float('nan')), 'NaN or infinity'),
    (lambda m, x: (m, x, [1, 2]), '2 labels for 5 images'),
    (lambda m, x: ({'dense': m['dense'], 'deep': small(5)}, x),
     r"models differ in rows of patches, columns, or blocks: .*'deep': \(4, 4, 5\)"),
    (lambda m, x: ({'dense': m['dense'], 'fine': small(patch_size=8)}, x), r"'fine': \(8, 8, 4\)")])
def test_what_cannot_be_shown_is_refused(models, images, change, message):
    with pytest.raises(ValueError, match=message): at.explore(*change(models, images))


def test_answers_that_are_no_numbers_are_refused(images):
    vit = small()
    vit.head.bias.data[0] = float('nan')
    with pytest.raises(ValueError, match='dense answers with NaN'): at.explore(vit, images)


def test_page_refuses_nan():
    with pytest.raises(ValueError): as_page(dict(x=float('nan')))


def test_shipped_models_fit():
    models = shipped()
    explorer = at.explore(models, normalize(ClutteredDigits('test').batch(range(2)).images))
    assert [run['name'] for run in explorer.runs] == list(models) and {'dense', *METHODS} <= set(models)


def test_memory_that_ends_is_said(explorer, monkeypatch):
    def ended(*_): raise torch.OutOfMemoryError('memory ended')
    monkeypatch.setattr('adaptive_tokens.look.explorer.calibrate', ended)
    explorer._handle_custom_msg(dict(kind='budget', run=1, budget=.5), [])
    assert explorer.notice == 'memory ended'


def test_another_architecture_is_refused(images):
    with pytest.raises(UnsupportedBackbone, match='ResNet'): at.explore(timm.create_model('test_resnet'), images)
