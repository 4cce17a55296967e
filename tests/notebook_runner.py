"Runs one notebook in a process of its own, forked from one that has imported the libraries where that is safe."
import multiprocessing
import os
import sys
from pathlib import Path

LIBRARIES = ['torch', 'torch.utils.flop_counter', 'torch.profiler', 'timm', 'matplotlib.pyplot', 'sklearn.datasets',
             'IPython', 'nbdev.test', 'fastcore.test', 'accelerate', 'anywidget', 'huggingface_hub']


def context():
    "A fork server that has the libraries, on Linux; fresh interpreters elsewhere."
    if sys.platform != 'linux': return multiprocessing.get_context('spawn')
    server = multiprocessing.get_context('forkserver')
    server.set_forkserver_preload(LIBRARIES)
    return server


def run(path, flags, home, out, root):
    "In the child: run a notebook less the cells under `flags`; what it prints goes to `out`."
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2): os.dup2(file, stream)
    os.environ |= dict(MPLBACKEND='Agg', IPYTHONDIR=str(home), PYTHONFAULTHANDLER='1')
    os.chdir(Path(path).parent)
    sys.path[:0] = [root]
    import matplotlib
    import torch
    matplotlib.use('Agg')
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', torch.get_num_threads())))
    from nbdev.test import test_nb as run_notebook
    passed, _ = run_notebook(Path(path), skip_flags=list(flags), basepath=root)
    sys.stdout.flush()
    os._exit(not passed)


def run_apart(path, flags, home, root):
    "Exit status of a notebook, and what it printed."
    out = Path(home)/'printed.txt'
    process = context().Process(target=run, args=(str(path), list(flags), str(home), str(out), str(root)))
    process.start()
    process.join()
    return process.exitcode, out.read_text(encoding='utf-8', errors='replace') if out.exists() else ''
