"Everything that describes the package stands in settings.ini; this file only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_namespace_packages, setup

ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_path']
minors = range(*(int(cfg[k].split('.')[1]) for k in ('min_python', 'max_python')))
extras = {key.removeprefix('extra_'): value.split() for key, value in cfg.items() if key.startswith('extra_')}
setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], license='Apache-2.0',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    classifiers=['Development Status :: 3 - Alpha', f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}", 'Programming Language :: Python :: 3',
                 *(f'Programming Language :: Python :: 3.{m}' for m in [*minors, minors.stop])],
    # folders of data count as namespace packages: named here, setuptools does not warn of them
    packages=find_namespace_packages(include=[lib, f'{lib}.*'], exclude=['*.__pycache__', '*.__pycache__.*']),
    package_data={lib: ['static/*', 'checkpoints/**']},
    python_requires=f">={cfg['min_python']}", install_requires=cfg['requirements'].split(),
    extras_require=dict(dev=cfg['dev_requirements'].split(), **extras),
    entry_points=dict(console_scripts=cfg['console_scripts'].split()), zip_safe=False)
