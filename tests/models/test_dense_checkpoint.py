"A dense checkpoint comes back as it was, or is refused by name."
import copy
import os
from pathlib import Path

import pytest
import timm
import torch
from small_runs import CLASSES, logits, swin, tiny

from adaptive_tokens.models.checkpoint import load_dense, save_dense


@pytest.mark.parametrize('changes', [
    dict(), dict(init_values=.1, reg_tokens=2), dict(qk_norm=True, global_pool='avg'), dict(num_heads=4),
    dict(class_token=False, global_pool='avg', in_chans=1, num_classes=7)])
def test_dense_checkpoints_round_trip(tmp_path, changes):
    vit = tiny(**changes).eval()
    folder = tmp_path/'deep'/'er'
    save_dense(vit, folder)
    again, by_timm = load_dense(folder), timm.create_model(f'local-dir:{folder}', pretrained=True)
    x = torch.randn(2, vit.patch_embed.proj.in_channels, 32, 32)
    assert not again.training and torch.equal(again(x), vit(x)) and torch.equal(by_timm.eval()(x), vit(x))
    save_dense(again, tmp_path/'twice')
    assert (tmp_path/'twice'/'config.json').read_text() == (folder/'config.json').read_text()


def test_a_half_precision_checkpoint_loads(tmp_path):
    vit = tiny()
    save_dense(copy.deepcopy(vit).half(), tmp_path)
    torch.testing.assert_close(logits(load_dense(tmp_path)), logits(vit), rtol=0, atol=1e-2)


def test_a_model_that_cannot_be_rebuilt_is_not_saved(tmp_path):
    vit = tiny()
    vit.head = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, CLASSES))
    with pytest.raises(ValueError, match='does not rebuild this model.*head'): save_dense(vit, tmp_path/'new')
    with pytest.raises(ValueError, match='SwinTransformer'):
        save_dense(swin(), tmp_path/'new')
    assert not (tmp_path/'new').exists()


def cut(file): file.write_bytes(file.read_bytes()[:900])


def swap(file): os.replace(file.parent.parent/'other'/file.name, file)


@pytest.mark.parametrize('name, spoil, error, match', [
    ('config.json', Path.unlink, FileNotFoundError, 'config.json is missing'),
    ('model.safetensors', Path.unlink, FileNotFoundError, 'model.safetensors is missing'),
    ('config.json', lambda f: f.write_text('{"archi'), ValueError, 'config.json is damaged'),
    ('config.json', lambda f: f.write_text('{"architecture": "vit_of_old"}'), ValueError, 'timm model.*vit_of_old'),
    ('config.json', lambda f: f.write_text('{}'), ValueError, 'does not describe a timm model'),
    ('model.safetensors', cut, ValueError, 'damaged or cut off'),
    ('model.safetensors', swap, ValueError, 'another architecture'),
])
def test_damaged_dense_checkpoints_are_named(tmp_path, name, spoil, error, match):
    save_dense(tiny(), tmp_path/'one')
    save_dense(tiny(num_classes=9), tmp_path/'other')
    spoil(tmp_path/'one'/name)
    with pytest.raises(error, match=match): load_dense(tmp_path/'one')


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='config.json is missing'): load_dense(tmp_path/'nowhere')
