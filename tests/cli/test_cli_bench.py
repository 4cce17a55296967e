"`bench`: checkpoints, backbones and methods side by side, on digits and on real images."
import csv
import os
import tarfile
from pathlib import Path

import pytest
import torch
from command_line import FEW, HOSTILE, PAGE, SHORT, check_page, stop
from PIL import Image

import adaptive_tokens as at
from adaptive_tokens.cli import adapting
from adaptive_tokens.images.digits import digits_vit
from adaptive_tokens.measure import benchmark as benchmark_module
from adaptive_tokens.measure import timing
from adaptive_tokens.measure.result import Benchmark
from adaptive_tokens.measure.table import three_digits
from adaptive_tokens.models.checkpoint import save_dense


def test_bench_of_checkpoints(run, dense, adaptive, out):
    code, text, err = run('bench', '--model', adaptive, dense, *FEW, '--threads', '2', '--out', out)
    assert code == 0 and err == '' and str(out/'index.html') in text
    bench = Benchmark.load(out/'benchmark.json')
    assert [row['name'] for row in bench.rows] == [dense, adaptive] and str(bench) in text
    assert bench.meta['n'] == 6 and bench.meta['threads'] == 2
    assert {f.name for f in out.iterdir()} == PAGE and list(out.parent.iterdir()) == [out]
    page = check_page(out, 1)
    assert dense in page.text and 'device cpu' in page.text


def test_bench_sweeps_over_batch_sizes_and_chooses_the_form(run, dense, adaptive, out):
    code, text, err = run('bench', '--model', dense, adaptive, *FEW, '--sweep', '--fall-back', '--out', out)
    assert code == 0 and err == '' and 'Speed-up over dense by batch size' in text
    assert {f.name for f in out.iterdir()} == PAGE | {'sweep.png', 'batch_1.json', 'batch_2.json', 'batch_4.json'}
    benches = {size: Benchmark.load(out/f'batch_{size}.json') for size in (1, 2, 4)}
    for size, bench in benches.items():
        assert bench.meta['batch_size'] == size and bench.meta['n'] == 6 // size * size
        assert {form.split(' at ')[1] for form in bench.rows[1]['execution'].split(', ')} == {'1', str(size)}
    line = next(line for line in text.splitlines()[::-1] if line.startswith(adaptive)).split()
    assert line[1:] == [three_digits(b.rows[1]['speedup']) for b in benches.values()]
    check_page(out, 2)


def test_an_interrupted_sweep_writes_what_was_finished(run, dense, adaptive, out, monkeypatch):
    real = benchmark_module.measure
    def measure(models, images, size, *rest):
        if size == 2: raise KeyboardInterrupt
        return real(models, images, size, *rest)
    monkeypatch.setattr(benchmark_module, 'measure', measure)
    code, text, err = run('bench', '--model', dense, adaptive, *FEW, '--batch-size', 6, '--sweep', '--out', out)
    assert code == 130 and 'batch 1' in text
    assert {f.name for f in out.iterdir()} == PAGE | {'sweep.png', 'batch_1.json'}


def test_bench_without_dense_checkpoint_takes_the_backbone(run, adaptive):
    code, text, _ = run('bench', '--model', adaptive, *FEW)
    assert code == 0 and f'{adaptive}, every token' in text


@pytest.mark.parametrize('method', ['as-vit', 'a-vit', 'as-vit:merge'])
def test_bench_makes_the_dense_model_adaptive(run, dense, out, method):
    words = ['--methods', method, '--budgets', '0.9', '0.8', *FEW, '--n', '24', '--out', out]
    code, text, _ = run('bench', '--model', dense, *words)
    assert code == 0
    rows = {row['name']: row['macs_share'] for row in Benchmark.load(out/'benchmark.json').rows}
    assert list(rows) == [dense, f'{method} 0.9', f'{method} 0.8']
    assert rows[f'{method} 0.8'] < rows[f'{method} 0.9'] < rows[dense] == 1
    assert abs(rows[f'{method} 0.8'] - .8) < .1
    saved = list(csv.DictReader((out/'benchmark.csv').read_text().splitlines()))
    assert [row['name'] for row in saved] == list(rows) and saved[2]['method'] == method
    assert [float(row['macs_share']) for row in saved] == list(rows.values())
    assert saved[1]['over_dense_low'] and not saved[0]['over_dense_low']


def test_bench_of_a_backbone_by_name(run):
    code, text, _ = run('bench', '--backbone', 'digits', *FEW, '--n', '3')
    assert code == 0 and 'digits' in text and 'as-vit 0.65' in text


@pytest.mark.parametrize('form', ['folder', 'tar'])
def test_bench_on_real_images(run, dense, photos, tmp_path, form):
    root = photos/'train'
    if form == 'tar':
        root = tmp_path/'photos.tar'
        with tarfile.open(root, 'w') as archive: archive.add(photos/'train', arcname='.')
    code, text, err = run('bench', '--model', dense, '--images', root, '--budgets', '0.9', *FEW)
    assert code == 0 and 'images 6' in text
    assert err.count('\n') == 1 and 'come in 2 classes and the model has 10' in err and '--class-map' in err
    names = tmp_path/'names.txt'
    names.write_text('\n'.join(f'class{k}' for k in range(10)))
    code, text, err = run('bench', '--model', dense, '--images', root, '--class-map', names, *FEW)
    assert code == 0 and err == '' and 'top-1' in text


def test_bench_says_when_no_other_images_are_there_to_calibrate_on(run, dense, photos):
    code, _, err = run('bench', '--model', dense, '--images', photos/'train', '--budgets', '0.9', *FEW, '--n', '8')
    assert code == 0 and 'has no more than 8 images: the method is aimed at those' in err


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_other_precision(run, adaptive, dtype, monkeypatch):
    seen, forward = [], at.AdaptiveViT.forward
    def seeing(self, x, **more): return seen.append(x.dtype) or forward(self, x, **more)
    monkeypatch.setattr(at.AdaptiveViT, 'forward', seeing)
    assert run('bench', '--model', adaptive, *FEW, '--dtype', dtype)[0] == 0 and getattr(torch, dtype) in seen
    turn = adapting.calibrate
    def turned(*args): return seen.append(torch.is_autocast_enabled('cpu')) or turn(*args)
    monkeypatch.setattr(adapting, 'calibrate', turned)
    words = ['--n', '8', '--device', 'cpu', '--dtype', dtype]
    assert run('calibrate', '--model', adaptive, *words)[0] == 0 and seen[-1] is True


@pytest.mark.gpu
def test_commands_on_cuda(run, dense, adaptive, out):
    on = ['--device', 'cuda', '--dtype', 'bfloat16']
    code, text, _ = run('bench', '--model', dense, adaptive, *FEW, *on)
    assert code == 0 and 'device cuda' in text
    assert run('calibrate', '--model', adaptive, '--n', '32', *on, '--out', out/'calibrated')[0] == 0
    words = ['--method', 'as-vit', '--budget', '0.8', '--init', dense, *SHORT, *on, '--out', out/'trained']
    code, _, _ = run('train', *words)
    assert code == 0 and at.AdaptiveViT.from_pretrained(out/'trained'/'best').budget == .8


@pytest.mark.slow
@pytest.mark.hub
def test_pretrained_backbone_on_real_images(run, out):
    place = Path(os.environ['ADAPTIVE_TOKENS_IMAGES'])
    images = ['--images', place/'imagenet_val_1300.tar', '--class-map', place/'imagenet_wnids.txt', '--n', '24']
    model = ['--backbone', 'deit_tiny_patch16_224', '--pretrained', '--methods', 'as-vit:merge', '--budgets', '0.8']
    code, text, err = run('bench', *model, *FEW, *images, '--out', out)
    rows = Benchmark.load(out/'benchmark.json').rows
    assert code == 0 and err == '' and rows[0]['top1'] > 50 and abs(rows[1]['macs_share'] - .8) < .05


def test_names_are_shown_as_text(run, copied, photos, out):
    folder = copied('dense', HOSTILE)
    (photos/'val'/'class0').rename(photos/'val'/'<script>alert(1)<')
    root = photos.rename(photos.with_name(HOSTILE + '"'))
    code, text, _ = run('bench', '--model', folder, '--images', root/'val', *FEW, '--out', out)
    assert code == 0 and str(folder) in text
    page = check_page(out, 1)
    assert str(folder) in page.text and HOSTILE + '"' in page.text


def test_image_size_that_a_model_cannot_take(refused, adaptive, tmp_path):
    save_dense(digits_vit(embed_dim=32, depth=2), tmp_path/'larger')
    refused(['64x64', '32x32'], 'bench', '--model', tmp_path/'larger', adaptive, *FEW)


def test_interrupted_benchmark_keeps_finished_passes(run, dense, adaptive, out, monkeypatch):
    calls, seconds = [], timing.seconds
    def until(model, x):
        calls.append(1)
        done = 60 + 2 * 2 * 3 + 1  # singles of two models, three passes, one call
        return stop() if len(calls) > done else seconds(model, x)
    monkeypatch.setattr(timing, 'seconds', until)
    code, text, err = run('bench', '--model', dense, adaptive, *FEW, '--repeats', '9', '--out', out)
    first, second = err.splitlines()[:2]
    assert code == 130 and first.endswith('after 3 of 9 passes: the rows stand on those') and 'interrupted' in second
    kept = Benchmark.load(out/'benchmark.json')
    assert len(kept.rows) == 2 and kept.meta['repeats'] == 3 and {f.name for f in out.iterdir()} == PAGE
    assert all(len(told['passes']) == 3 for told in kept.timings.values())


def test_noise_is_not_timed_unless_asked_for(run, refused, dense, adaptive, tmp_path):
    (tmp_path/'noise'/'class').mkdir(parents=True)
    for i in range(6): Image.effect_noise((40, 40), 80).save(tmp_path/'noise'/'class'/f'{i}.png')
    words = ['bench', '--model', dense, adaptive, '--images', tmp_path/'noise', *FEW]
    refused(['look like noise'], *words)
    assert run(*words, '--allow-noise')[0] == 0


def test_folder_in_which_no_image_can_be_read(refused, dense, tmp_path):
    (tmp_path/'broken'/'class').mkdir(parents=True)
    for i in range(3): (tmp_path/'broken'/'class'/f'{i}.png').write_bytes(b'no picture')
    words = ['bench', '--model', dense, '--images', tmp_path/'broken', *FEW]
    refused(['cannot read image', '.png', 'replace or remove'], *words)
