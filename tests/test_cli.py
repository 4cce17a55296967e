"Every command on small models, every way to refuse input, and what is left on disk afterwards."
import argparse
import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import adaptive_tokens as at
from adaptive_tokens import cli
from adaptive_tokens import bench as bench_module
from adaptive_tokens.measure.result import Benchmark, three_digits
from adaptive_tokens.images.digits import ClutteredDigits, digits_vit, normalize
from adaptive_tokens.models.checkpoint import load_dense, save_dense

FEW = ['--n', '6', '--repeats', '2', '--batch-size', '3', '--device', 'cpu']
SHORT = ['--epochs', '1', '--n', '16', '--val-n', '8', '--batch-size', '8', '--device', 'cpu']
PAGE = {'benchmark.json', 'benchmark.csv', 'benchmark.png', 'index.html'}
HOSTILE = '<img src=x onerror=alert(1)>&quot; $x_$'


@pytest.fixture(scope='session')
def kept(tmp_path_factory):
    "Small checkpoints, `dense` and one of each method, for 32-pixel digits."
    folder = tmp_path_factory.mktemp('kept')
    torch.manual_seed(0)
    vit = digits_vit(img_size=32, embed_dim=32, depth=3).eval()
    save_dense(vit, folder/'dense')
    for name in ('a-vit', 'adavit', 'as-vit'):
        model = at.adapt(vit, name, .8)
        at.calibrate(model, [normalize(ClutteredDigits('train', image_size=32).batch(range(16)).images)])
        model.save_pretrained(folder/name)
    return folder


@pytest.fixture
def dense(kept): return str(kept/'dense')


@pytest.fixture
def adaptive(kept): return str(kept/'as-vit')


@pytest.fixture
def copied(kept, tmp_path):
    "A copy of a checkpoint, to be damaged, outside of the folder where commands write."
    def copy(kind, name='copy'):
        target = tmp_path/'copies'/name
        target.mkdir(parents=True)
        for file in (kept/kind).iterdir(): (target/file.name).write_bytes(file.read_bytes())
        return target
    return copy


@pytest.fixture
def photos(tmp_path):
    "Real files: two classes, train and val."
    for split, n in (('train', 4), ('val', 2)):
        for k, colour in enumerate(('red', 'blue')):
            (folder := tmp_path/'photos'/split/f'class{k}').mkdir(parents=True)
            for i in range(n): Image.new('RGB', (50, 40 + i), colour).save(folder/f'{i}.png')
    return tmp_path/'photos'


@pytest.fixture
def out(tmp_path):
    "A folder that does not exist yet, in one that holds nothing else."
    (tmp_path/'here').mkdir()
    return tmp_path/'here'/'out'


@pytest.fixture
def run(capsys):
    "Run a command: exit code, what it printed, what it said on stderr."
    def run(*words):
        try: code = cli.main([str(word) for word in words])
        except SystemExit as e: code = e.code
        said = capsys.readouterr()
        return code, said.out, said.err
    return run


@pytest.fixture
def refused(run, out):
    "Run a command that must be refused: one line that holds `parts`, exit code 2, and nothing left on disk."
    def refused(parts, *words, writes=True):
        code, _, err = run(*words, *(['--out', out] if writes else []))
        errors = [line for line in err.splitlines() if not line.startswith('adaptive-tokens: note:')]
        assert code == 2 and len(errors) == 1 and errors[0].startswith('adaptive-tokens: error: '), err
        for part in parts: assert part in errors[0], errors[0]
        assert list(out.parent.iterdir()) == []
        return errors[0]
    return refused


class Page(HTMLParser):
    "Tags with their attributes, and the text of a page."
    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ''
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.text += data
    def all(self, tag): return [attrs for name, attrs in self.tags if name == tag]


def check_page(folder, pictures):
    "The page is whole, holds its pictures itself, describes them, and asks nothing from elsewhere."
    page = Page(folder/'index.html')
    assert len(page.all('img')) == pictures
    assert all(len(a['alt']) > 20 and a['src'].startswith('data:image/png;base64,') for a in page.all('img'))
    assert not {'script', 'link', 'iframe', 'object'} & {tag for tag, _ in page.tags}
    assert all(a['href'] == 'explorer.html' and (folder/'explorer.html').is_file() for a in page.all('a'))
    assert not [a for _, a in page.tags if any(name.startswith('on') for name in a)]
    assert page.all('html')[0]['lang'] == 'en' and len(page.all('title')) == len(page.all('h1')) == 1
    metas = page.all('meta')
    assert any("default-src 'none'" in m.get('content', '') for m in metas)
    assert any(m.get('name') == 'viewport' for m in metas)
    assert 'http' not in (folder/'index.html').read_text().replace('http-equiv', '')
    return page


# --- help

@pytest.mark.parametrize('name', cli.COMMANDS)
def test_help_says_what_each_option_means_and_what_happens_without(name, run):
    code, text, _ = run(name, '--help')
    assert code == 0 and cli.COMMANDS[name]['description'].split('\n')[0] in text and 'examples:' in text
    sub = next(a for a in cli.make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices[name]
    for option in (o for o in sub._actions if o.dest != 'help'):
        assert option.option_strings[0] in text and '(default: ' in option.help and len(option.help) > 30
        assert 'None' not in option.help and not option.help.split('(default')[0].endswith('. ')
        assert option.nargs == 0 or 'e.g. ' in option.help
    assert {'--device', '--dtype', '--seed', '--debug'} <= {o.option_strings[-1] for o in sub._actions}


@pytest.mark.parametrize('line', [line for c in cli.COMMANDS.values() for line in c['examples']])
def test_examples_are_complete_command_lines(line):
    program, *words = shlex.split(line)
    assert program == 'adaptive-tokens' and cli.make_parser().parse_args(words).command == words[0]


def test_help_and_version_of_the_whole(run):
    code, text, _ = run('--help')
    assert code == 0 and all(f'    {name}' in text for name in ('demo', 'train', 'bench', 'calibrate', 'explore'))
    assert run('--version')[:2] == (0, f'{at.__version__}\n')


def test_module_runs_as_a_program(tmp_path):
    words = [sys.executable, '-m', 'adaptive_tokens', 'bench', '--model', 'nowhere']
    done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 2 and done.stdout == '' and 'Traceback' not in done.stderr
    assert done.stderr.count('\n') == 1 and "nowhere" in done.stderr


def test_table_for_a_terminal_that_knows_ascii_only(dense):
    words = [sys.executable, '-m', 'adaptive_tokens', 'bench', '--model', dense, *FEW]
    done = subprocess.run(words, env=os.environ | dict(PYTHONIOENCODING='ascii'), capture_output=True)
    assert done.returncode == 0 and b' ? ' in done.stdout and done.stderr == b''


def test_results_are_kept_when_nobody_reads_the_table(dense, out):
    words = [sys.executable, '-u', '-m', 'adaptive_tokens', 'bench', '--model', dense, *FEW, '--out', str(out)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(300) == 0 and err == b'' and {f.name for f in out.iterdir()} == PAGE


# --- commands

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
    real = bench_module.measure
    def measure(models, images, size, *rest):
        if size == 2: raise KeyboardInterrupt
        return real(models, images, size, *rest)
    monkeypatch.setattr(bench_module, 'measure', measure)
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
    assert [float(row['macs_share']) for row in saved] == list(rows.values()) and saved[1]['over_dense_low'] and not saved[0]['over_dense_low']


def test_bench_of_a_backbone_by_name(run):
    code, text, _ = run('bench', '--backbone', 'digits', *FEW, '--n', '3')
    assert code == 0 and 'digits' in text and 'as-vit 0.65' in text


@pytest.mark.parametrize('kind, words, budget', [('dense', ['--budget', '0.9'], .9), ('dense', [], .65),
                                                 ('as-vit', [], .8), ('as-vit', ['--budget', '0.9'], .9),
                                                 ('a-vit', [], .8), ('a-vit', ['--budget', '0.7'], .7)])
def test_calibrate(run, kept, out, kind, words, budget):
    code, text, _ = run('calibrate', '--model', kept/kind, *words, '--n', '64', '--device', 'cpu', '--out', out)
    assert code == 0 and str(out) in text
    model = at.AdaptiveViT.from_pretrained(out)
    assert model.budget == budget and abs(float(text.split()[2]) / budget - 1) < .03
    images = normalize(ClutteredDigits('train', size=64, image_size=32).batch(range(64)).images)
    with torch.no_grad(): spent = model(images, return_trace=True)[1].macs.mean().item() / at.macs(model.vit)
    assert abs(spent - float(text.split()[2])) < 2e-3


def test_calibrate_may_only_look(run, adaptive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = run('calibrate', '--model', adaptive, '--n', '16', '--device', 'cpu')
    assert code == 0 and 'saved' not in text and list(tmp_path.iterdir()) == []


def test_train_dense_and_then_a_method_from_it(run, dense, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    three_digits = [*SHORT, '--epochs', '2']
    code, text, _ = run('train', '--init', dense, *three_digits)
    assert code == 0 and 'runs/dense/best' in text.replace('\\', '/') and 'of 2: top-1' in text
    assert {f.name for f in (tmp_path/'runs'/'dense').iterdir()} == {'best', 'last', 'log.jsonl', 'log.png', 'states'}
    code, text, _ = run('train', '--method', 'as-vit', '--budget', '0.8', '--init', 'runs/dense/best', *three_digits)
    rows = [json.loads(line) for line in (tmp_path/'runs'/'as-vit'/'log.jsonl').read_text().splitlines()]
    assert code == 0 and len(rows) == 2 and all(row['distill'] > 0 and 'top1' in row for row in rows)
    assert at.AdaptiveViT.from_pretrained(tmp_path/'runs'/'as-vit'/'last').budget == .8
    code, _, err = run('train', '--init', dense, *three_digits)
    assert code == 2 and 'holds a run already' in err


@pytest.mark.parametrize('method', ['as-vit', 'a-vit', 'adavit'])
@pytest.mark.parametrize('words, distills', [([], True), (['--teacher', 'none'], False)])
def test_teacher_of_a_method(run, dense, out, method, words, distills):
    code, _, _ = run('train', '--method', method, '--init', dense, '--budget', '0.8', *SHORT, '--out', out, *words)
    assert code == 0 and ('distill' in json.loads((out/'log.jsonl').read_text())) == distills


def test_train_on_real_images_counts_classes_and_finds_validation(run, dense, photos, out):
    code, text, _ = run('train', '--init', dense, '--data', photos, *SHORT, '--out', out)
    row = json.loads((out/'log.jsonl').read_text())
    assert code == 0 and load_dense(out/'best').num_classes == 2 and row['n'] == 4
    words = ['--data', photos/'train', *SHORT, '--classes', '5', '--out', out/'other']
    code, text, _ = run('train', '--init', dense, *words)
    assert code == 0 and 'not validated' in text and load_dense(out/'other'/'last').num_classes == 5


def test_a_dense_model_may_have_a_teacher_when_one_is_named(run, dense, out):
    code, _, _ = run('train', '--init', dense, '--teacher', dense, *SHORT, '--out', out)
    assert code == 0 and 'distill' in json.loads((out/'log.jsonl').read_text())


def test_a_recipe_file_changes_what_stands_in_the_help(run, dense, out, tmp_path):
    (tmp_path/'mine.yaml').write_text('lr: 3e-4\nmethod: as-vit\noptions:\n  T: 1e3\n')
    code, text, _ = run('train', '--recipe', tmp_path/'mine.yaml', '--init', dense, *SHORT, '--out', out)
    assert code == 0 and 'budget: 0.65' in text and 'T: 1000.0' in text and "backbone: ''" in text
    assert at.AdaptiveViT.from_pretrained(out/'last').budget == .65


def test_validation_images_by_another_name_are_found_or_missed_aloud(run, refused, dense, photos, out):
    (photos/'val').rename(photos/'holdout')
    words = ['train', '--init', dense, '--data', photos, *SHORT, '--val-split']
    refused(["no folder 'held'", '--val-data'], *words, 'held')
    code, _, _ = run(*words, 'holdout', '--out', out)
    assert code == 0 and 'top1' in json.loads((out/'log.jsonl').read_text())


def test_class_folders_that_are_numbered_otherwise_are_refused(refused, dense, photos):
    (photos/'val'/'class0').rename(photos/'val'/'klass')
    refused(["'class1' is number 0", 'and 1 of those', '--class-map'], 'train', '--init', dense, '--data', photos, *SHORT)


def test_calibrate_does_not_change_the_method_of_a_checkpoint(refused, adaptive):
    refused(['runs as-vit, not a-vit'], 'calibrate', '--model', adaptive, '--method', 'a-vit')


@pytest.mark.parametrize('seeds, same', [((1, 1), True), ((1, 2), False)])
def test_seed_decides_a_run(run, dense, out, seeds, same):
    logs = []
    for k, seed in enumerate(seeds):
        run('train', '--init', dense, *SHORT, '--seed', seed, '--out', out/str(k))
        logs.append(json.loads((out/str(k)/'log.jsonl').read_text())['loss'])
    assert (logs[0] == logs[1]) == same


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


def test_images_to_calibrate_on_are_not_those_measured(dense, photos):
    args = cli.make_parser().parse_args(['bench', '--model', dense, '--images', str(photos/'train'), '--n', '5'])
    vit = load_dense(dense)
    measured, others = (cli.find_images(args, vit, args.images, args.split, n, skip).dataset.indices
                        for n, skip in ((5, 0), (9, 5)))
    assert sorted(measured + others) == list(range(8)) and len(measured) == 5


def test_bench_says_when_no_other_images_are_there_to_calibrate_on(run, dense, photos):
    code, _, err = run('bench', '--model', dense, '--images', photos/'train', '--budgets', '0.9', *FEW, '--n', '8')
    assert code == 0 and 'has no more than 8 images: the method is aimed at those' in err


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_other_precision(run, adaptive, dtype, monkeypatch):
    seen, forward = [], at.AdaptiveViT.forward
    monkeypatch.setattr(at.AdaptiveViT, 'forward', lambda self, x, **more: seen.append(x.dtype) or forward(self, x, **more))
    assert run('bench', '--model', adaptive, *FEW, '--dtype', dtype)[0] == 0 and getattr(torch, dtype) in seen
    turn = cli.turn_knob
    monkeypatch.setattr(cli, 'turn_knob', lambda *args: seen.append(torch.is_autocast_enabled('cpu')) or turn(*args))
    assert run('calibrate', '--model', adaptive, '--n', '8', '--device', 'cpu', '--dtype', dtype)[0] == 0 and seen[-1] is True


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


# --- demo

@pytest.fixture
def small_demo(monkeypatch, kept):
    "The demo with the small models in place of the shipped ones."
    monkeypatch.setattr(cli, 'files', lambda package: kept.parent)
    monkeypatch.setattr(cli, 'CHECKPOINTS', kept.name)


def test_demo_writes_numbers_pictures_and_a_page(run, small_demo, out):
    code, text, err = run('demo', '--out', out, *FEW)
    assert code == 0 and err == '' and 'as-vit' in text and str(out/'index.html') in text
    pictures = {f'{method}-{name}.png' for method in ('as-vit', 'a-vit', 'adavit') for name in ('easy', 'medium', 'hard', 'tokens')}
    pictures |= {'as-vit-heads.png', 'adavit-gates.png'}
    assert {f.name for f in out.iterdir()} == PAGE | pictures | {'explorer.html'} and list(out.parent.iterdir()) == [out]
    for name in pictures: Image.open(out/name).verify()
    page = check_page(out, 15)
    assert len(page.all('a')) == 1 and '"a-vit"' in (out/'explorer.html').read_text()
    assert len(page.all('table')) == 4
    assert all(word in page.text for word in ('difficulty', 'easy', 'hard', 'beside it', 'speed-up'))
    assert [row['name'] for row in Benchmark.load(out/'benchmark.json').rows] == ['dense', 'a-vit', 'adavit', 'as-vit']


def test_demo_renews_its_own_folder_and_spares_the_rest(run, small_demo, out):
    out.mkdir()
    (out/'notes.txt').write_text('mine')
    (out/'index.html').write_text('old')
    assert run('demo', '--out', out, *FEW, '--n', '2')[0] == 0
    assert (out/'notes.txt').read_text() == 'mine' and (out/'index.html').read_text() != 'old'
    assert len(check_page(out, 12).all('tr')) == 5 + 3 + 3 + 3  # two images are easy and medium


def test_by_level_counts_blocks_on_the_digit_and_beside_it():
    class Everything(at.Method):
        name = 'everything'
        def forward(self, blocks, t, record):
            from adaptive_tokens.backbones.timm_vit import run_block
            for block in blocks: record(t); t = run_block(block, t)
            return t
    vit, digits = digits_vit(img_size=32, embed_dim=32, depth=2).eval(), ClutteredDigits('test', size=12, image_size=32)
    cells, tokens, level = cli.by_level(at.adapt(vit, Everything(vit)), digits, 5)
    head, *rows = cells
    assert [row[0] for row in rows] == ['easy', 'medium', 'hard'] and all(row[1] == 4 for row in rows)
    assert all(row[head.index(name)] == '2.0' for name in ('blocks per patch', 'on the digit', 'beside it') for row in rows)
    assert tokens.tolist() == [17.] * 12 and level.tolist() == [0, 1, 2] * 4


def test_demo_says_that_its_models_are_missing(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, 'files', lambda package: tmp_path)
    refused(['holds no dense model', 'install'], 'demo', *FEW)


# --- explore

def test_explore_writes_a_page(run, small_demo, out):
    code, text, err = run('explore', '--n', '5', '--device', 'cpu', '--out', out/'page.html')
    assert code == 0 and err == '' and 'image 0 of 5, of class' in text and f"Open {out/'page.html'}" in text
    assert all(f'\n{name} ' in text for name in ('dense', 'a-vit', 'adavit', 'as-vit'))
    assert [f.name for f in out.iterdir()] == ['page.html'] and '"mount' not in (out/'page.html').read_text()[:100]


def test_explore_shows_photos_with_the_names_of_their_folders(run, kept, copied, photos, out, adaptive):
    code, text, err = run('explore', '--model', adaptive, '--images', photos, '--n', '3', '--device', 'cpu', '--out', out/'page.html')
    assert code == 0 and 'no accuracy' in err and 'of class' not in text  # two folders, ten classes
    classes = photos.parent/'classes.txt'
    classes.write_text('\n'.join([*(f'other{k}' for k in range(8)), 'class0', 'class1']))
    words = ['--model', adaptive, '--images', photos, '--class-map', classes, '--device', 'cpu', '--out', out/'page.html']
    code, text, err = run('explore', *words)
    assert code == 0 and err == '' and 'of class class' in text
    assert 'data:image/png' in (out/'page.html').read_text()


def test_explore_refuses_what_it_cannot_write_or_show(run, refused, adaptive, dense, tmp_path):
    refused([str(tmp_path), 'is a folder', '--out'], 'explore', '--model', adaptive, '--out', tmp_path, writes=False)
    (tmp_path/'taken').write_text('mine')
    refused([f"{tmp_path/'taken'} is a file", '--out'], 'explore', '--model', 'x', '--out', tmp_path/'taken'/'page.html', writes=False)
    refused(['6 models', '1 to 5'], 'explore', '--model', *(f'{dense}{"/" * k}' for k in range(6)), '--out', tmp_path/'page.html', writes=False)
    assert not (tmp_path/'page.html').exists() and (tmp_path/'taken').read_text() == 'mine'


# --- hostile names

def test_names_are_shown_as_text(run, copied, photos, out):
    folder = copied('dense', HOSTILE)
    (photos/'val'/'class0').rename(photos/'val'/'<script>alert(1)<')
    root = photos.rename(photos.with_name(HOSTILE + '"'))
    code, text, _ = run('bench', '--model', folder, '--images', root/'val', *FEW, '--out', out)
    assert code == 0 and str(folder) in text
    page = check_page(out, 1)
    assert str(folder) in page.text and HOSTILE + '"' in page.text


def test_every_part_of_the_page_escapes():
    table = cli.as_table(HOSTILE, [[HOSTILE, HOSTILE], [HOSTILE, HOSTILE]], HOSTILE)
    text = cli.as_page(HOSTILE, HOSTILE, [table, cli.as_figure(b'png', (1, 1), HOSTILE + '"', HOSTILE)])
    assert HOSTILE not in text
    page = HTMLParser()
    tags, data = [], []
    page.handle_starttag, page.handle_data = lambda tag, attrs: tags.append((tag, dict(attrs))), data.append
    page.feed(text)
    images = [attrs for tag, attrs in tags if tag == 'img']
    assert len(images) == 1 and images[0]['alt'] == HOSTILE + '"' and images[0]['src'].startswith('data:')
    assert ''.join(data).count(HOSTILE) == 10


# --- refused

each_command = pytest.mark.parametrize('words', [['bench', '--model'], ['calibrate', '--model'], ['train', '--init']],
                                       ids=lambda o: o[0])


@pytest.mark.parametrize('budget', ['0', '1.5', '-1', 'nan'])
@pytest.mark.parametrize('command', ['train', 'bench', 'calibrate'])
def test_budget_out_of_range(refused, dense, command, budget):
    model = ['--init', dense, '--method', 'as-vit'] if command == 'train' else ['--model', dense]
    refused([f'budget is {float(budget)}', 'above 0, at most 1'], command, *model, f"--budget{'s' * (command == 'bench')}={budget}")


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
], ids=lambda o: ' '.join(o) if '--' in o[-1] or o[0] in cli.COMMANDS else '')
def test_names_and_numbers_that_cannot_be(refused, words, parts): refused(parts, *words)


@pytest.mark.parametrize('words, part', [
    (['bench', '--n', '0'], "'0'"), (['demo', '--repeats', 'many'], "'many'"), (['train', '--epochs', '2.5'], "'2.5'"),
    (['calibrate', '--seed', '-1'], '--seed'), (['train', '--seed', str(2**32)], str(2**32)),
    (['bench', '--budgets'], '--budgets'), (['bench', '--budgets', 'half'], "'half'"),
    (['demo', '--device', 'gpu'], 'cuda'), (['bench', '--dtype', 'float8'], 'bfloat16'),
    (['bench', '--modle', 'x'], '--modle'), (['bench', '--mod', 'x'], '--mod')])
def test_words_that_argparse_refuses(refused, words, part): refused([part, 'see adaptive-tokens', '--help'], *words)


def test_commands_that_do_not_exist(refused):
    refused(["'trian'", 'train'], 'trian', writes=False)
    refused(['COMMAND'], writes=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
@each_command
def test_device_that_is_not_here(refused, dense, words):
    refused(["'cuda'", 'here: ', 'cpu'], *words, dense, '--device', 'cuda')


def test_image_size_that_a_model_cannot_take(refused, adaptive, tmp_path):
    save_dense(digits_vit(embed_dim=32, depth=2), tmp_path/'larger')
    refused(['64x64', '32x32'], 'bench', '--model', tmp_path/'larger', adaptive, *FEW)


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
    for work in ('benchmark', 'load', 'load_dense', 'make_backbone', 'fit'):
        monkeypatch.setattr(cli, work, lambda *_, **__: pytest.fail('work was done'))
    (tmp_path/'taken').write_text('mine')
    model = dict(demo=[], train=['--init', 'x']).get(command, ['--model', 'x'])
    code, _, err = run(command, *model, '--out', tmp_path/'taken'/below)
    assert code == 2 and f"{tmp_path/'taken'} is a file" in err and '--out' in err
    assert [f.name for f in tmp_path.iterdir()] == ['taken'] and (tmp_path/'taken').read_text() == 'mine'


# --- interrupted

def stop(*_, **__): raise KeyboardInterrupt


def full(*_, **__): raise OSError(28, 'No space left on device')


@pytest.mark.parametrize('what', ['benchmark', 'report', 'pictures'])
@pytest.mark.parametrize('how, code', [(stop, 130), (full, 2)])
def test_what_fails_half_way_leaves_nothing(run, small_demo, out, monkeypatch, what, how, code):
    monkeypatch.setattr(cli, what, how)
    ended, _, err = run('demo', '--out', out, *FEW)
    assert ended == code and 'Traceback' not in err and err.count('\n') == 1 and list(out.parent.iterdir()) == []


def test_what_fails_half_way_leaves_old_results_alone(run, small_demo, out, monkeypatch):
    out.mkdir()
    (out/'index.html').write_text('old')
    monkeypatch.setattr(cli.Benchmark, 'plot', full)
    assert run('demo', '--out', out, *FEW)[0] == 2
    assert [f.name for f in out.iterdir()] == ['index.html'] and (out/'index.html').read_text() == 'old'


def test_interrupted_training_keeps_what_was_finished(run, dense, out, monkeypatch):
    from adaptive_tokens import train
    words = ['train', '--init', dense, *SHORT, '--epochs', '3', '--out']
    calls, train_epoch = [], train.train_epoch
    def second_time(run):
        calls.append(1)
        return stop() if len(calls) > 1 else train_epoch(run)
    monkeypatch.setattr(train, 'train_epoch', second_time)
    assert run(*words, out)[0] == 130
    assert {f.name for f in out.iterdir()} == {'best', 'last', 'log.jsonl', 'states'} and load_dense(out/'last').num_classes == 10
    assert run(*words, out.with_name('second'))[0] == 130 and not out.with_name('second').exists()


def test_control_c(dense, out):
    words = ['bench', '--model', dense, '--n', '64', '--repeats', '100000', '--device', 'cpu', '--out', out]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores control-C
    with subprocess.Popen([sys.executable, '-m', 'adaptive_tokens', *map(str, words)], text=True, preexec_fn=heard,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            patience = time.monotonic() + 60
            while not list(out.parent.iterdir()) and process.poll() is None and time.monotonic() < patience: time.sleep(.1)
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally: process.kill()
    notes, last = err.splitlines()[:-1], err.splitlines()[-1]
    assert process.returncode == 130 and last.startswith('adaptive-tokens: interrupted') and 'Traceback' not in err
    assert list(out.parent.iterdir()) == ([out] if notes else []) and all('of 100000 passes' in note for note in notes)


def test_interrupted_benchmark_keeps_finished_passes(run, dense, adaptive, out, monkeypatch):
    from adaptive_tokens import bench
    calls, seconds = [], bench.seconds
    def until(model, x):
        calls.append(1)
        return stop() if len(calls) > 60 + 2 * 2 * 3 + 1 else seconds(model, x)  # singles of two models, three passes, one call
    monkeypatch.setattr(bench, 'seconds', until)
    code, text, err = run('bench', '--model', dense, adaptive, *FEW, '--repeats', '9', '--out', out)
    assert code == 130 and err.splitlines()[0].endswith('after 3 of 9 passes: the rows stand on those') and 'interrupted' in err.splitlines()[1]
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
    refused(['cannot read image', '.png', 'replace or remove'], 'bench', '--model', dense, '--images', tmp_path/'broken', *FEW)


def test_debug_shows_the_error_and_a_bug_is_never_hidden(dense, monkeypatch):
    with pytest.raises(ValueError, match='budget is 2.0'):
        cli.main(['bench', '--model', dense, '--budgets', '2', '--debug'])
    def bug(args): raise RuntimeError('index out of range in self')
    monkeypatch.setitem(cli.COMMANDS['bench'], 'run', bug)
    with pytest.raises(RuntimeError): cli.main(['bench'])


# --- what does not go together

def test_models_that_want_other_photographs_are_not_looked_at_together(refused, copied, photos):
    first, second = copied('dense', 'first'), copied('dense', 'second')
    config = json.loads((second/'config.json').read_text())
    config['pretrained_cfg']['mean'] = [.1, .2, .3]
    (second/'config.json').write_text(json.dumps(config))
    parts = [str(first), str(second), '(0.1, 0.2, 0.3)', 'one by one']
    for command in ('bench', 'explore'): refused(parts, command, '--model', first, second, '--images', photos, '--split', 'val')


@pytest.mark.parametrize('command', ['bench', 'explore'])
def test_a_checkpoint_that_is_no_transformer_is_refused(refused, tmp_path, command):
    save_for_hf(timm.create_model('test_resnet'), tmp_path/'resnet', safe_serialization=True)
    refused(['ResNet', 'What works'], command, '--model', tmp_path/'resnet')


@pytest.mark.parametrize('command, module, option', [('explore', 'look_into', '--n'), ('bench', 'benchmark', '--batch-size')])
def test_memory_that_ends_names_an_option_that_there_is(refused, dense, monkeypatch, command, module, option):
    def ended(*_, **__): raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(cli, module, ended)
    refused([f'try a smaller {option}'], command, '--model', dense)


def test_a_batch_that_cannot_be_shared_out_is_refused(refused, dense, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '3')
    refused(['batch size 8', '3 processes', '9 can'], 'train', '--init', dense, *SHORT)


def test_a_hub_that_does_not_answer_is_named(refused, monkeypatch):
    def gone(*_, **__): raise OSError('no route to host')
    monkeypatch.setattr(at.AdaptiveViT, 'from_pretrained', gone)
    refused(["the hub did not give 'someone/nothing'", 'no route'], 'bench', '--model', 'hf-hub:someone/nothing')
