"An adaptive model comes back as it was, or is refused by name."
import json
import os

import pytest
import torch
from small_vits import THETA, small
from timm.data import resolve_model_data_config
from torch import nn

import adaptive_tokens as at
from adaptive_tokens.models.checkpoint import timm_arguments

FAMILIES = [
    dict(), dict(qk_norm=True), dict(reg_tokens=4), dict(global_pool='avg'), dict(in_chans=1),
    dict(dynamic_img_size=True), dict(model_name='deit_tiny_distilled_patch16_224'),
    dict(model_name='deit3_small_patch16_224'), dict(mlp_ratio=2.5, no_embed_class=True)]


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
    options = dict(places=(2,))
    model = at.create_model('as-vit', 'vit_tiny_patch16_224', budget=.5, options=options, depth=3, num_classes=5)
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

    def die(self, folder):
        (folder/'model.safetensors').write_bytes(b'half')
        raise OSError('disk full')
    monkeypatch.setattr(at.AdaptiveViT, '_save_pretrained', die)
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
    (_no_weights, FileNotFoundError, 'model.safetensors is missing'),
    (_cut_config, ValueError, 'config.json is damaged'),
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


def test_a_checkpoint_knows_how_its_images_were_prepared(vit, tmp_path):
    own = dict(mean=(.1, .2, .3), std=(.4, .5, .6), crop_pct=.8, interpolation='bilinear')
    vit.pretrained_cfg = dict(vit.pretrained_cfg, **own)
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
