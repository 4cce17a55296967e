"The command line as a process: exit codes, one line for what went wrong, control-C, and no bug hidden."
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from command_line import FEW, PAGE

from adaptive_tokens.cli import bench, explore
from adaptive_tokens.cli.main import COMMANDS, main


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


def test_control_c(dense, out):
    words = ['bench', '--model', dense, '--n', '64', '--repeats', '100000', '--device', 'cpu', '--out', out]
    def heard(): signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores control-C
    with subprocess.Popen([sys.executable, '-m', 'adaptive_tokens', *map(str, words)], text=True, preexec_fn=heard,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            patience = time.monotonic() + 60
            while not list(out.parent.iterdir()) and process.poll() is None and time.monotonic() < patience:
                time.sleep(.1)
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally: process.kill()
    notes, last = err.splitlines()[:-1], err.splitlines()[-1]
    assert process.returncode == 130 and last.startswith('adaptive-tokens: interrupted') and 'Traceback' not in err
    assert list(out.parent.iterdir()) == ([out] if notes else []) and all('of 100000 passes' in note for note in notes)


def test_debug_shows_the_error_and_a_bug_is_never_hidden(dense, monkeypatch):
    with pytest.raises(ValueError, match='budget is 2.0'):
        main(['bench', '--model', dense, '--budgets', '2', '--debug'])
    def bug(args): raise RuntimeError('index out of range in self')
    monkeypatch.setattr(COMMANDS['bench'], 'run', bug)
    with pytest.raises(RuntimeError): main(['bench'])


@pytest.mark.parametrize('module, name, option', [(explore, 'look_into', '--n'), (bench, 'benchmark', '--batch-size')])
def test_memory_that_ends_names_an_option_that_there_is(refused, dense, monkeypatch, module, name, option):
    def ended(*_, **__): raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(module, name, ended)
    refused([f'try a smaller {option}'], module.__name__.split('.')[-1], '--model', dense)
