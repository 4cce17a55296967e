"`train`: a dense model, a method from it, its teacher and its images; and what an interrupted run keeps."
import json

import pytest
from command_line import SHORT, stop

import adaptive_tokens as at
from adaptive_tokens.models.checkpoint import load_dense
from adaptive_tokens.training import fit


def test_train_dense_and_then_a_method_from_it(run, dense, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = [*SHORT, '--epochs', '2']
    code, text, _ = run('train', '--init', dense, *short)
    assert code == 0 and 'runs/dense/best' in text.replace('\\', '/') and 'of 2: top-1' in text
    assert {f.name for f in (tmp_path/'runs'/'dense').iterdir()} == {'best', 'last', 'log.jsonl', 'log.png', 'states'}
    code, text, _ = run('train', '--method', 'as-vit', '--budget', '0.8', '--init', 'runs/dense/best', *short)
    rows = [json.loads(line) for line in (tmp_path/'runs'/'as-vit'/'log.jsonl').read_text().splitlines()]
    assert code == 0 and len(rows) == 2 and all(row['distill'] > 0 and 'top1' in row for row in rows)
    assert at.AdaptiveViT.from_pretrained(tmp_path/'runs'/'as-vit'/'last').budget == .8
    code, _, err = run('train', '--init', dense, *short)
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
    words = ['train', '--init', dense, '--data', photos, *SHORT]
    refused(["'class1' is number 0", 'and 1 of those', '--class-map'], *words)


@pytest.mark.parametrize('seeds, same', [((1, 1), True), ((1, 2), False)])
def test_seed_decides_a_run(run, dense, out, seeds, same):
    logs = []
    for k, seed in enumerate(seeds):
        run('train', '--init', dense, *SHORT, '--seed', seed, '--out', out/str(k))
        logs.append(json.loads((out/str(k)/'log.jsonl').read_text())['loss'])
    assert (logs[0] == logs[1]) == same


def test_interrupted_training_keeps_what_was_finished(run, dense, out, monkeypatch):
    words = ['train', '--init', dense, *SHORT, '--epochs', '3', '--out']
    calls, train_epoch = [], fit.train_epoch
    def second_time(run):
        calls.append(1)
        return stop() if len(calls) > 1 else train_epoch(run)
    monkeypatch.setattr(fit, 'train_epoch', second_time)
    assert run(*words, out)[0] == 130
    assert {f.name for f in out.iterdir()} == {'best', 'last', 'log.jsonl', 'states'}
    assert load_dense(out/'last').num_classes == 10
    assert run(*words, out.with_name('second'))[0] == 130 and not out.with_name('second').exists()


def test_a_batch_that_cannot_be_shared_out_is_refused(refused, dense, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '3')
    refused(['batch size 8', '3 processes', '9 can'], 'train', '--init', dense, *SHORT)
