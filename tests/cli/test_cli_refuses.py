"Every way to give a command what cannot be: one line with value and remedy, exit code 2, and nothing left on disk."
import json

import pytest
import timm
import torch
from command_line import FEW, SHORT
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import adaptive_tokens as at
from adaptive_tokens.cli import bench, calibrate, demo, train
from adaptive_tokens.cli.main import COMMANDS
from adaptive_tokens.images.digits import digits_vit
from adaptive_tokens.models.checkpoint import save_dense

each_command = pytest.mark.parametrize('words', [['bench', '--model'], ['calibrate', '--model'], ['train', '--init']],
                                       ids=lambda o: o[0])


@pytest.mark.parametrize('budget', ['0', '1.5', '-1', 'nan'])
@pytest.mark.parametrize('command', ['train', 'bench', 'calibrate'])
def test_budget_out_of_range(refused, dense, command, budget):
    model = ['--init', dense, '--method', 'as-vit'] if command == 'train' else ['--model', dense]
    option = '--budgets' if command == 'bench' else '--budget'
    refused([f'budget is {float(budget)}', 'above 0, at most 1'], command, *model, f'{option}={budget}')


@pytest.mark.parametrize('words, parts', [
    (['train', '--method', 'as-vot'], ["'as-vot'", 'as-vit']),
    (['train', '--method', 'desne'], ["'desne'", 'dense']),
    (['bench', '--backbone', 'digits', '--methods', 'asvit'], ["'asvit'", 'as-vit']),
    (['bench', '--backbone', 'digits', '--methods', 'as-vit:mrge'], ["'mrge'", 'merge']),
    (['bench', '--backbone', 'digits', '--methods', 'a-vit:merge'], ['only as-vit folds', 'as-vit:merge']),
    (['bench', '--backbone', 'digits', '--budgets', '0.5', '0.8'], ['0.5 0.8', 'as in 0.8 0.5']),
    (['bench', '--backbone', 'digits', '--budgets', '0.8', '0.8'], ['0.8 0.8', 'as in 0.8']),
    (['bench', '--backbone', 'digits', '--methods', 'fixed-rate', '--budgets', '0.01'], ['0.01 is out of reach']),
    (['calibrate', '--backbone', 'deit_smal_patch16_224'], ["'deit_smal_patch16_224'", 'deit_small_patch16_224']),
    (['train', '--backbone', 'digit'], ["'digit'", 'digits']),
    (['train', '--backbone', 'digits', '--pretrained'], ['pretrained', 'digits']),
    (['calibrate', '--backbone', 'test_resnet'], ['ResNet', 'What works']),
    (['bench'], ['--model', '--backbone']),
    (['calibrate'], ['--model', '--backbone']),
    (['bench', '--model', 'runs/nowhere'], ['runs/nowhere is no folder', 'train or calibrate']),
    (['calibrate', '--backbone', 'local-dir:./nowhere'], ['local-dir:./nowhere']),
    (['train', '--init', './nowhere'], ['nowhere', 'missing']),
    (['bench', '--backbone', 'digits', '--images', './nowhere'], ['nowhere', 'no folder']),
    (['bench', '--backbone', 'digits', '--images', '.', '--reader', 'torch/nothing'], ['torch/nothing', 'nothing']),
    (['train', '--lr', '-1'], ['lr is -1', 'above 0']),
    (['train', '--init', 'x', '--backbone', 'digits'], ['--init x brings its own backbone', 'leave --backbone out']),
    (['train', '--init', 'x', '--drop-path', '0.1'], ['--drop-path']),
    (['calibrate', '--backbone', 'deit_tiny_patch16_224.no_such_tag'], ['deit_tiny_patch16_224.no_such_tag']),
    (['train', '--warmup', '1'], ['warmup is 1', 'below 1']),
    (['train', '--dtype', 'float16', '--device', 'cpu'], ['float16', 'bfloat16']),
], ids=lambda o: ' '.join(o) if '--' in o[-1] or o[0] in COMMANDS else '')
def test_names_and_numbers_that_cannot_be(refused, words, parts): refused(parts, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
@each_command
def test_device_that_is_not_here(refused, dense, words):
    refused(["'cuda'", 'here: ', 'cpu'], *words, dense, '--device', 'cuda')


@each_command
def test_channels_that_a_model_cannot_take(refused, tmp_path, words):
    save_dense(digits_vit(img_size=32, embed_dim=32, depth=2, in_chans=1), tmp_path/'grey')
    refused(['[', '3, 32, 32]', 'wants [B, 1, height, width]'], *words, tmp_path/'grey')


@each_command
def test_unreadable_and_missing_images(refused, dense, photos, words):
    words = [*words, dense, '--data' if words[0] == 'train' else '--images']
    picture = photos/'train'/'class1'/'2.png'
    picture.write_bytes(picture.read_bytes()[:60])
    refused(['class1', '2.png', 'replace or remove'], *words, photos/'train', '--n', '8')
    (photos/'empty').mkdir()
    refused(['no image', 'empty', '.png'], *words, photos/'empty')


def damaged(folder, how):
    "Damage a checkpoint; what the message must hold."
    weights, config = folder/'model.safetensors', folder/'config.json'
    if how == 'cut off': weights.write_bytes(weights.read_bytes()[:-2000])
    if how == 'empty': weights.write_bytes(b'')
    if how == 'no weights': weights.unlink()
    if how == 'no config': config.unlink()
    if how == 'half a config': config.write_text(config.read_text()[:50])
    if how == 'another config': config.write_text('{"model_type": "bert"}')
    if how == 'another architecture':
        save_file({k: torch.cat([v, v]) if v.ndim > 1 else v for k, v in load_file(weights).items()}, weights)
    return {'cut off': [weights, 'damaged or cut off'], 'empty': [weights, 'damaged or cut off'],
            'no weights': [weights, 'missing'], 'no config': [config, 'missing'], 'half a config': [config, 'damaged'],
            'another config': ['config.json', folder], 'another architecture': [weights, 'another architecture']}[how]


@pytest.mark.parametrize('how', ['cut off', 'empty', 'no weights', 'no config', 'half a config', 'another config',
                                 'another architecture'])
@pytest.mark.parametrize('kind', ['dense', 'as-vit', 'a-vit'])
def test_damaged_checkpoints(refused, copied, kind, how):
    folder = copied(kind)
    parts = [str(part) for part in damaged(folder, how)]
    for command in ('bench', 'calibrate'): refused(parts, command, '--model', folder)
    if kind == 'dense': refused(parts, 'train', '--init', folder)


def test_nan_in_images(refused, copied, photos):
    folder = copied('dense')
    config = json.loads((folder/'config.json').read_text())
    config['pretrained_cfg']['mean'] = [float('nan')] * 3  # what a broken normalisation does to every image
    (folder/'config.json').write_text(json.dumps(config))
    for words in (['bench', '--images', photos/'val', '--model'], ['calibrate', '--images', photos/'val', '--model'],
                  ['train', '--data', photos, '--init']): refused(['NaN'], *words, folder)


def test_nan_in_weights(refused, copied):
    folder = copied('dense')
    weights = load_file(folder/'model.safetensors')
    weights['head.weight'].fill_(float('nan'))
    save_file(weights, folder/'model.safetensors')
    refused(['NaN', 'weights'], 'bench', '--model', folder, *FEW)
    refused(['nan', 'step 1', 'lower lr'], 'train', '--init', folder, *SHORT)


@pytest.mark.parametrize('command', ['demo', 'bench', 'calibrate', 'train'])
@pytest.mark.parametrize('below', ['', 'deeper'])
def test_a_file_in_the_way_is_seen_before_any_work(run, tmp_path, monkeypatch, command, below):
    works = {demo: ('benchmark', 'shipped'), bench: ('benchmark', 'load', 'make_backbone'), train: ('fit', 'build_run'),
             calibrate: ('load', 'make_backbone')}
    for module, names in works.items():
        for name in names: monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail('work was done'))
    (tmp_path/'taken').write_text('mine')
    model = dict(demo=[], train=['--init', 'x']).get(command, ['--model', 'x'])
    code, _, err = run(command, *model, '--out', tmp_path/'taken'/below)
    assert code == 2 and f"{tmp_path/'taken'} is a file" in err and '--out' in err
    assert [f.name for f in tmp_path.iterdir()] == ['taken'] and (tmp_path/'taken').read_text() == 'mine'


def test_models_that_want_other_photographs_are_not_looked_at_together(refused, copied, photos):
    first, second = copied('dense', 'first'), copied('dense', 'second')
    config = json.loads((second/'config.json').read_text())
    config['pretrained_cfg']['mean'] = [.1, .2, .3]
    (second/'config.json').write_text(json.dumps(config))
    parts = [str(first), str(second), '(0.1, 0.2, 0.3)', 'one by one']
    words = ['--model', first, second, '--images', photos, '--split', 'val']
    for command in ('bench', 'explore'): refused(parts, command, *words)


@pytest.mark.parametrize('command', ['bench', 'explore'])
def test_a_checkpoint_that_is_no_transformer_is_refused(refused, tmp_path, command):
    save_for_hf(timm.create_model('test_resnet'), tmp_path/'resnet', safe_serialization=True)
    refused(['ResNet', 'What works'], command, '--model', tmp_path/'resnet')


def test_a_hub_that_does_not_answer_is_named(refused, monkeypatch):
    def gone(*_, **__): raise OSError('no route to host')
    monkeypatch.setattr(at.AdaptiveViT, 'from_pretrained', gone)
    refused(["the hub did not give 'someone/nothing'", 'no route'], 'bench', '--model', 'hf-hub:someone/nothing')
