"What is written beside a measurement, and nothing about the machine's folders."
import json
import subprocess

import torch

from adaptive_tokens.measure import provenance as provenance_module
from adaptive_tokens.measure.provenance import cpu_name, git_commit, hardware, provenance


def test_hardware_is_plain_and_names_no_folder():
    found = hardware()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {'cpu', 'cores', 'threads', 'gpu', 'torch', 'timm', 'python', 'adaptive_tokens', 'commit'}
    assert found['cpu'] and found['cores'] >= 1 and found['threads'] == torch.get_num_threads()
    assert not [v for v in found.values() if isinstance(v, str) and v.startswith('/')]


def test_cpu_name_without_cpuinfo_and_sysctl(monkeypatch):
    monkeypatch.setattr(provenance_module.Path, 'exists', lambda path: False)
    monkeypatch.setattr(provenance_module, '_first_line', lambda *command: '')
    assert cpu_name()


def test_commit_of_a_checkout_and_of_none(tmp_path):
    assert git_commit(tmp_path) is None
    def git(*words):
        who = ['-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'commit.gpgsign=false']
        done = subprocess.run(['git', '-C', tmp_path, *who, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()
    git('init', '-q')
    assert git_commit(tmp_path) is None
    (tmp_path/'file').write_text('one')
    git('add', 'file')
    git('commit', '-q', '-m', 'first')
    assert git_commit(tmp_path) == git('rev-parse', '--short', 'HEAD')
    (tmp_path/'file').write_text('two')
    assert git_commit(tmp_path) == git('rev-parse', '--short', 'HEAD') + '*'


def test_no_git_at_hand(tmp_path, monkeypatch):
    (tmp_path/'.git').mkdir()
    monkeypatch.setattr(provenance_module.shutil, 'which', lambda name: None)
    assert git_commit(tmp_path) is None


def test_circumstances_are_fit_for_json():
    meta = provenance(torch.device('cpu'), torch.float32, batch_size=3)
    assert json.loads(json.dumps(meta)) == meta
    told = {'date', 'cpu', 'threads', 'device', 'dtype', 'torch', 'timm', 'python', 'adaptive_tokens', 'commit'}
    assert told <= set(meta)
