"""The fast tests with the oldest and with the newest version of everything that is declared: `make versions`.

`oldest` takes each lower bound of settings.ini on the oldest Python, `newest` whatever pip finds on the newest.
Real weights and images are used where HF_HOME and ADAPTIVE_TOKENS_IMAGES name them; without them those parts skip.
"""
from configparser import ConfigParser
from pathlib import Path

import nox

ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = ini['DEFAULT']
LOWER = [requirement.replace('>=', '==') for requirement in cfg['requirements'].split() if '>=' in requirement]
NAMES = ['torch', 'timm', 'accelerate', 'huggingface_hub', 'safetensors', 'matplotlib', 'scikit-learn', 'anywidget']
TOLD = f'''import platform
from importlib.metadata import version
print('Python', platform.python_version(), *(f'{{name}} {{version(name)}}' for name in {NAMES}), sep=', ')'''
nox.options.error_on_missing_interpreters = True


def fast_tests(session, *pins):
    "Install with pins, tell the versions, run the fast suite."
    session.install(*pins, '--editable', '.[dev]')
    session.run('python', '-c', TOLD)
    session.run('python', '-m', 'pytest', '--fast', '-n', 'logical', '--dist', 'worksteal', *session.posargs)


@nox.session(python=cfg['min_python'])
def oldest(session):
    "The lower bound of every requirement that has one"
    fast_tests(session, *LOWER)


@nox.session(python=cfg['max_python'])
def newest(session):
    "What pip takes of its own accord"
    fast_tests(session)
