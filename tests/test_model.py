"Adapting, executing, tracing, saving and loading."
import json
import os

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

import adaptive_tokens as at
from adaptive_tokens.models.method import METHODS
from adaptive_tokens.models.model import timm_arguments

THETA = (.008, .012, .014)


def small(**kw): return timm.create_model(**{'model_name': 'vit_tiny_patch16_224', 'img_size': 64, 'patch_size': 8,
                                             'embed_dim': 48, 'depth': 6, 'num_heads': 3, 'num_classes': 7, **kw}).eval()


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return small()


@pytest.fixture
def model(vit): return at.adapt(vit, 'as-vit', theta=THETA)


@pytest.fixture
def images(): return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_adapt_shares_weights_and_mode(vit):
    assert at.adapt(vit).vit is vit and not at.adapt(vit).training
    assert at.adapt(vit.train()).training


def test_a_method_instance_is_taken_as_it_is(vit):
    method = at.ASViT(vit, budget=.5)
    assert at.adapt(vit, method).method is method and at.adapt(vit, method).budget == .5


def test_uncalibrated_model_answers_like_the_dense_one(vit, images):
    with torch.no_grad(): torch.testing.assert_close(at.adapt(vit)(images), vit(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize('call, says', [
    (lambda v: at.adapt(v, 'asvit'), "no method 'asvit'; nearest: as-vit"),
    (lambda v: at.adapt(v, budget=0), 'budget is 0'),
    (lambda v: at.adapt(v, budget=1.5), 'budget is 1.5'),
    (lambda v: at.adapt(v, budget=float('nan')), 'budget is nan'),
    (lambda v: at.adapt(nn.Linear(2, 2)), 'Linear is not understood'),
    (lambda v: at.create_model('as-vit', 'deit_smal_patch16_224'), 'nearest: deit_small_patch16_224'),
    (lambda v: at.create_model('as-vti', 'deit_tiny_patch16_224'), 'nearest: as-vit'),
    (lambda v: at.adapt(v, 'as-vit', places=(6,)), 'from 1 to 5'),
    (lambda v: at.adapt(v, 'as-vit', theta=(.1,)), '1 thresholds for 3 places')])
def test_wrong_arguments(vit, call, says):
    with pytest.raises(ValueError) as e: call(vit)
    assert says in str(e.value)


def test_execution_is_checked(model, images):
    model.execution = 'paked'
    with pytest.raises(ValueError, match='nearest: packed'): model(images)
    model.execution = 'packed'
    with pytest.raises(ValueError, match='call model.eval()'): model.train()(images)


@pytest.mark.parametrize('execution', ['packed', 'masked'])
def test_trace(model, images, execution):
    model.execution = execution
    with torch.no_grad():
        logits, trace = model(images, return_trace=True)
        torch.testing.assert_close(logits, model(images), atol=1e-6, rtol=0)
    B, L, N, H = 4, 6, 65, 3
    assert trace.active.shape == trace.score.shape == (B, L, N) and trace.active.dtype == torch.bool
    assert trace.heads.shape == (B, L, H) and trace.sublayers.shape == (B, L, 2) and trace.heads.all()
    assert trace.active[:, :, 0].all() and trace.active[:, 0].all()
    assert (trace.active[:, 1:] <= trace.active[:, :-1]).all(), 'a dropped token came back'
    scored = [p - 1 for p in model.method.places]
    assert torch.equal(~trace.score[:, scored].isnan(), trace.active[:, scored])
    assert trace.score[:, [l for l in range(L) if l not in scored]].isnan().all()
    assert torch.equal(trace.depth, trace.active.sum(1)) and 'GMACs per image' in repr(trace)


def test_traces_of_both_executions_agree(model, images):
    out = []
    for model.execution in ('packed', 'masked'):
        with torch.no_grad(): out.append(model(images, return_trace=True)[1])
    assert torch.equal(out[0].active, out[1].active) and torch.equal(out[0].macs, out[1].macs)
    torch.testing.assert_close(out[0].score, out[1].score, atol=1e-6, rtol=1e-5, equal_nan=True)


FAMILIES = [dict(), dict(qk_norm=True), dict(reg_tokens=4), dict(global_pool='avg'), dict(in_chans=1), dict(dynamic_img_size=True),
            dict(model_name='deit_tiny_distilled_patch16_224'), dict(model_name='deit3_small_patch16_224'),
            dict(mlp_ratio=2.5, no_embed_class=True)]


@pytest.mark.parametrize('kw', FAMILIES, ids=str)
def test_checkpoint_round_trip(kw, tmp_path):
    vit = small(**kw)
    images = torch.randn(2, vit.patch_embed.proj.in_channels, 64, 64)
    model = at.adapt(vit, 'as-vit', budget=.7, theta=THETA)
    model.save_pretrained(tmp_path/'m')
    again = at.AdaptiveViT.from_pretrained(tmp_path/'m')
    assert not again.training and again.budget == .7 and again.method.options() == model.method.options()
    with torch.no_grad():
        (a, ta), (b, tb) = model(images, return_trace=True), again(images, return_trace=True)
    assert torch.equal(a, b) and torch.equal(ta.active, tb.active)
    assert {f.name for f in (tmp_path/'m').iterdir()} == {'config.json', 'model.safetensors', 'README.md'}


def test_created_model_remembers_its_arguments(tmp_path):
    model = at.create_model('as-vit', 'vit_tiny_patch16_224', budget=.5, options=dict(places=(2,)), depth=3, num_classes=5)
    model.save_pretrained(tmp_path/'m')
    config = json.loads((tmp_path/'m'/'config.json').read_text())
    assert config['backbone'] == dict(model_name='vit_tiny_patch16_224', depth=3, num_classes=5)
    assert at.AdaptiveViT.from_pretrained(tmp_path/'m').method.places == (2,)


def test_a_backbone_that_cannot_be_described_is_not_saved(tmp_path):
    model = at.adapt(small(act_layer=nn.ReLU))
    with pytest.raises(ValueError, match='does not rebuild this backbone'): model.save_pretrained(tmp_path/'m')
    assert not list(tmp_path.iterdir())
    model.backbone = dict(timm_arguments(model.vit), act_layer='relu')
    model.save_pretrained(tmp_path/'m')
    at.AdaptiveViT.from_pretrained(tmp_path/'m')


def test_interrupted_saving_leaves_the_old_checkpoint(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path/'m')
    before = {f.name: f.read_bytes() for f in (tmp_path/'m').iterdir()}
    monkeypatch.setattr(at.AdaptiveViT, '_save_pretrained', lambda self, folder: (folder/'model.safetensors').write_bytes(b'half')
                        and (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'): model.save_pretrained(tmp_path/'m')
    assert {f.name: f.read_bytes() for f in (tmp_path/'m').iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ['m']


def _truncate(folder): (folder/'model.safetensors').write_bytes((folder/'model.safetensors').read_bytes()[:500])
def _no_config(folder): (folder/'config.json').unlink()
def _no_weights(folder): (folder/'model.safetensors').unlink()
def _cut_config(folder): (folder/'config.json').write_text('{"backbone": {')
def _edit(**changes):
    def edit(folder):
        config = json.loads((folder/'config.json').read_text())
        for part, change in changes.items(): config[part].update(change)
        (folder/'config.json').write_text(json.dumps(config))
    return edit


@pytest.mark.parametrize('damage, error, says', [
    (_truncate, ValueError, 'damaged or cut off'), (_no_config, FileNotFoundError, 'config.json is missing'),
    (_no_weights, FileNotFoundError, 'model.safetensors is missing'), (_cut_config, ValueError, 'config.json is damaged'),
    (_edit(backbone=dict(embed_dim=96)), ValueError, 'another architecture'),
    (_edit(backbone=dict(model_name='deit_tiny_patch17_224')), ValueError, 'nearest: deit_tiny_patch16_224'),
    (_edit(backbone=dict(model_name='swin_tiny_patch4_window7_224')), ValueError, 'swin'),
    (_edit(method=dict(name='as-vot')), ValueError, 'nearest: as-vit'),
    (_edit(method=dict(budget=2)), ValueError, 'budget is 2'),
    (lambda f: (f/'config.json').write_text('{}'), ValueError, "lacks 'backbone'")])
def test_damaged_checkpoints(model, tmp_path, damage, error, says):
    model.save_pretrained(tmp_path/'m')
    damage(tmp_path/'m')
    with pytest.raises(error) as e: at.AdaptiveViT.from_pretrained(tmp_path/'m')
    assert says.lower() in str(e.value).lower()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='is no folder'): at.AdaptiveViT.from_pretrained(tmp_path/'nowhere')


def test_push_to_hub_uploads_a_complete_checkpoint(model, monkeypatch):
    seen = {}

    class Api:
        def __init__(self, **kw): pass
        def create_repo(self, repo_id, **kw): return type('Url', (), dict(repo_id=repo_id))
        def upload_folder(self, folder_path, **kw): seen.update(files=sorted(os.listdir(folder_path)), **kw)
    monkeypatch.setattr('huggingface_hub.hub_mixin.HfApi', Api)
    model.push_to_hub('someone/as-vit-digits')
    assert seen['repo_id'] == 'someone/as-vit-digits'
    assert seen['files'] == ['README.md', 'config.json', 'model.safetensors']


def test_calibrate_checks_its_input(model, images):
    for bad, says in (([], 'no batches'), ([images * float('nan')], 'NaN'), ([images[:, :1]], 'wants')):
        with pytest.raises(ValueError, match=says): at.calibrate(model, bad)
    with pytest.raises(ValueError, match='budget is 0'): at.calibrate(model, [images], 0)


def test_registered_names():
    assert METHODS['as-vit'] is at.ASViT


def test_half_precision_leaves_thresholds_alone(model):
    before = model.method.theta.detach().clone()
    assert torch.equal(model.bfloat16().method.theta, before) and model.vit.head.weight.dtype == torch.bfloat16


def test_an_option_that_a_method_does_not_have_is_named():
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    with pytest.raises(ValueError, match="no option of as-vit 'plases'; nearest: places"): at.adapt(vit, 'as-vit', plases=(1,))
    with pytest.raises(ValueError, match="no option of a-vit 'budget_weight'"): at.adapt(vit, 'a-vit', budget_weight=1.)


@pytest.mark.parametrize('name', ['as-vit', 'a-vit', 'adavit', 'tome'])
def test_batches_of_two_sizes_are_not_calibrated_on(name):
    model = at.adapt(small(dynamic_img_size=True), name)
    with pytest.raises(ValueError, match='images of 64x64 and of 96x96: calibrate on one size'):
        at.calibrate(model, [torch.randn(2, 3, 64, 64), torch.randn(2, 3, 96, 96)], .7)


def test_a_checkpoint_knows_how_its_images_were_prepared(vit, tmp_path):
    vit.pretrained_cfg = dict(vit.pretrained_cfg, mean=(.1, .2, .3), std=(.4, .5, .6), crop_pct=.8, interpolation='bilinear')
    model = at.adapt(vit, 'as-vit', theta=THETA)
    for turn in (1, 2):
        model.save_pretrained(tmp_path/str(turn))
        model = at.AdaptiveViT.from_pretrained(tmp_path/str(turn))
        how = resolve_model_data_config(model.vit)
        assert [list(how[k]) for k in ('mean', 'std')] == [[.1, .2, .3], [.4, .5, .6]]
        assert how['crop_pct'] == .8 and how['interpolation'] == 'bilinear'
    assert (tmp_path/'1'/'config.json').read_text() == (tmp_path/'2'/'config.json').read_text()
    at.adapt(small(), 'as-vit', theta=THETA).save_pretrained(tmp_path/'usual')
    assert 'overlay' not in (tmp_path/'usual'/'config.json').read_text()
