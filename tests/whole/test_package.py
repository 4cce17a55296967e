"Wheel and source archive hold what the package needs and work in an environment where the checkout is out of sight."
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIB = 'adaptive_tokens'
NOT_SOURCE = shutil.ignore_patterns('.git', '.venv', 'build', 'dist', '*.egg-info', 'demo', '.*_cache', '__pycache__',
                                    '.ipynb_checkpoints', '.hypothesis')


def run(*command, cwd):
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
    done = subprocess.run([str(o) for o in command], cwd=cwd, env=env, text=True, capture_output=True)
    said = f'{done.stdout[-4000:]}\n{done.stderr[-4000:]}'
    assert done.returncode == 0, f'{command} ended with {done.returncode}:\n{said}'
    return done.stdout


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "Wheel and source archive, built from a copy so that the checkout gets no build folder."
    tmp = tmp_path_factory.mktemp('built')
    shutil.copytree(ROOT, tmp/'source', ignore=NOT_SOURCE)
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp/'dist', cwd=tmp/'source')
    wheel, = (tmp/'dist').glob('*.whl')
    sdist, = (tmp/'dist').glob('*.tar.gz')
    return dict(wheel=wheel, sdist=sdist)


@pytest.fixture(scope='module', params=['wheel', 'sdist'])
def installed(request, built, tmp_path_factory):
    "Folder of an environment with the package, and of this one only the dependencies, less the development tools."
    venv = tmp_path_factory.mktemp(request.param)/'venv'
    run(sys.executable, '-m', 'venv', '--without-pip', venv, cwd=venv.parent)
    python = venv/'bin'/'python'
    site = Path(run(python, '-c', "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=venv).strip())
    # A folder named in a .pth file is searched, but .pth files in it are not read: the editable install stays unseen.
    here = dict.fromkeys(sysconfig.get_paths()[k] for k in ('purelib', 'platlib'))
    site.joinpath('dependencies.pth').write_text('\n'.join(here) + '\n')
    pip = ['-m', 'pip', '--python', python, 'install', '--quiet', '--no-index', '--no-deps', '--no-build-isolation']
    run(sys.executable, *pip, built[request.param], cwd=venv)
    site.joinpath('no_development_tools.pth').write_text(
        "import sys; sys.modules.update(dict.fromkeys(['nbdev', 'fastcore', 'execnb', 'ghapi']))\n")
    return venv


def wanted():
    "Modules and data files of the package, by their names in the checkout."
    files = {p.relative_to(ROOT) for p in (ROOT/LIB).rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    return {p.as_posix() for p in files if not any(o.startswith('.') for o in p.parts)}


def test_wheel_holds_modules_data_and_licence(built):
    names = set(zipfile.ZipFile(built['wheel']).namelist())
    assert wanted() <= names
    assert any(o.endswith('dist-info/licenses/LICENSE') for o in names)
    assert {o.split('/')[0] for o in names if 'dist-info' not in o} == {LIB}


def test_sdist_holds_the_sources_too(built):
    with tarfile.open(built['sdist']) as archive: names = {o.name.partition('/')[2] for o in archive.getmembers()}
    pages = {p.relative_to(ROOT) for p in (ROOT/'nbs').rglob('*.ipynb')}
    notebooks = {p.as_posix() for p in pages if '.ipynb_checkpoints' not in p.parts}
    assert wanted() | notebooks | {'LICENSE', 'README.md', 'settings.ini', 'setup.py', 'pyproject.toml'} <= names


@pytest.fixture(scope='module')
def told(installed):
    "What one process says that has imported the installed package and all of its modules"
    files = [p.relative_to(ROOT).with_suffix('') for p in sorted((ROOT/LIB).rglob('*.py')) if p.stem[0] != '_']
    modules = ['.'.join(p.parts) for p in files]
    show = f"""
import importlib, json, sys, importlib.metadata as m, {LIB} as at
tools = [sys.modules['nbdev'], sys.modules['fastcore']]
files = [importlib.import_module(name).__file__ for name in {modules}]
names = {{name: getattr(at, name).__module__ for name in at.__all__}}
versions = [at.__version__, m.version('adaptive-tokens')]
print(json.dumps(dict(file=at.__file__, versions=versions, tools=tools, files=files, names=names)))"""
    return installed, modules, json.loads(run(installed/'bin'/'python', '-c', show, cwd=installed))


def test_installed_package_imports_without_the_development_tools(told):
    installed, _, said = told
    assert Path(said['file']).is_relative_to(installed)
    ini = ConfigParser(interpolation=None)
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    assert said['versions'] == [ini['DEFAULT']['version']] * 2
    assert said['tools'] == [None, None]


def test_every_installed_module_imports(told):
    installed, modules, said = told
    assert len(said['files']) == len(modules) and all(Path(o).is_relative_to(installed) for o in said['files'])


def test_every_public_name_is_there(told):
    names = told[2]['names']
    assert names and all(o.startswith(f'{LIB}.') for o in names.values())


def test_command_line_answers(installed):
    assert 'demo' in run(installed/'bin'/'adaptive-tokens', '--help', cwd=installed)


@pytest.mark.slow
@pytest.mark.parametrize('installed', ['wheel'], indirect=True)
def test_demo_runs_from_the_wheel(installed, tmp_path):
    assert 'dense' in run(installed/'bin'/'adaptive-tokens', 'demo', '--n', '90', '--repeats', '1', cwd=tmp_path)
    made = {p.suffix for p in (tmp_path/'demo').rglob('*')}
    assert {'.json', '.png', '.html'} <= made


def test_requirements_leave_the_development_tools_out(built):
    with zipfile.ZipFile(built['wheel']) as wheel:
        name, = (o for o in wheel.namelist() if o.endswith('dist-info/METADATA'))
        lines = wheel.read(name).decode().splitlines()
    needs = [o.partition(': ')[2] for o in lines if o.startswith('Requires-Dist')]
    runtime = [o for o in needs if 'extra ==' not in o]
    assert any(o.startswith('torch') for o in runtime) and any(o.startswith('timm') for o in runtime)
    assert not [o for o in runtime if o.startswith(('nbdev', 'fastcore', 'execnb', 'ghapi', 'fastprogress'))]
    assert 'Provides-Extra: dev' in lines and any(o.startswith('nbdev==2.4.14') for o in needs)
