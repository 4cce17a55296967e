"The site: the notebooks with their stored outputs, and the interface from its docstrings and comments."
import ast
import inspect
import json
import re
import sys
import textwrap
import tokenize
from configparser import ConfigParser
from dataclasses import is_dataclass
from io import StringIO
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT/'tools')]
from pages import faults

ini = ConfigParser(interpolation=None)
ini.read(ROOT/'settings.ini', encoding='utf-8')
project, author, version = (ini['DEFAULT'][k] for k in ('title', 'author', 'version'))
copyright = ini['DEFAULT']['copyright']

extensions = ['myst_nb', 'sphinx.ext.autodoc']
root_doc = 'nbs/index'
include_patterns = ['nbs/**.ipynb', 'docs/*.md', 'CHANGELOG.md', 'CONTRIBUTING.md']
exclude_patterns = ['.venv', 'build', 'dist', 'docs/_build', '**/.*', '**/_*']

nb_execution_mode = 'off'
nb_ipywidgets_js = {}  # these would come from another host
nb_render_markdown_format = 'myst'
nb_mime_priority_overrides = [('html', 'application/vnd.jupyter.widget-view+json', None)]
myst_enable_extensions = ['amsmath', 'dollarmath']
myst_heading_anchors = 4

smartquotes_action = 'D'  # dashes only: quotes in the comments are Python's
default_role = 'code'  # one backtick in a docstring means what it means in Markdown
autodoc_inherit_docstrings = False
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
add_module_names = False
toc_object_entries_show_parents = 'hide'

html_theme = 'furo'
html_title = project
pygments_dark_style = 'github-dark'
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_math_renderer = 'mathml'
html_static_path = ['site.css']
html_css_files = ['site.css']
html_extra_path = ['index.html']  # leads to the index in nbs/

nb_code_prompt_show, nb_code_prompt_hide = 'Show imports', 'Hide imports'  # nothing else is folded away

# Rooms in the order of reading, and the order of pages in a room that does not number them.
ROOMS = dict(tokens='Tokens', backbones='Backbones', models='Models', methods='Methods', images='Images', look='Look',
             measure='Measure', training='Train', cli='Command line', tutorials='Tutorials')
FIRST = dict(tutorials=['which_one', 'real_images', 'baselines', 'pruning_imagenet', 'speed'])
REFERENCE = ['docs/api', 'docs/glossary', 'CONTRIBUTING', 'CHANGELOG']


def contents(folder):
    "The table of contents at the end of the first page: the rooms that there are, then the reference."
    groups = {}
    for room, caption in ROOMS.items():
        there = sorted(page.stem for page in (folder/room).glob('*.ipynb'))
        names = [*(name for name in FIRST.get(room, []) if name in there), *there]
        groups[caption] = [f'{room}/{name}' for name in dict.fromkeys(names)]
    groups['Reference'] = [f'../{name}' for name in REFERENCE if (folder.parent/f'{name}.md').exists()]
    return '\n'.join(f'```{{toctree}}\n:hidden:\n:caption: {caption}\n' + '\n'.join(pages) + '\n```'
                     for caption, pages in groups.items() if pages)


def steers(text):
    "Whether a cell is there for nbdev alone: hidden, or empty without the lines that say where code goes."
    return bool(re.search(r'^#\|\s*hide\b', text, re.M)) or not without_exports(text).strip()


def without_exports(text):
    "The code of a cell, less the lines that say where it goes."
    return re.sub(r'^#\|\s*(default_exp|exporti?)\b.*\n?', '', text, flags=re.M)


SEEDS = re.compile(r'(_ = )?torch\.(manual_seed|set_printoptions|set_grad_enabled)\(')


def only_imports(text):
    "Whether a cell does nothing but import, seed and set how numbers are printed."
    try: body = ast.parse(text).body
    except SyntaxError: return False  # a command of the notebook, such as %matplotlib
    def quiet(node): return isinstance(node, (ast.Import, ast.ImportFrom)) or SEEDS.match(ast.unparse(node))
    return bool(body) and all(map(quiet, body))


def for_readers(cells):
    "Cells as readers see them: anchors spelt as Sphinx spells them, nothing for nbdev, imports folded away."
    shown = []
    for cell in cells:
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            cell['source'] = re.sub(r'(\]\([^)\s:]*#)([^)\s]+)', lambda m: m[1] + m[2].lower(), text)
        elif cell['cell_type'] == 'code':
            if steers(text): continue
            cell['source'] = without_exports(text)
            if re.search(r'^#\|\s*echo:\s*false', text, re.M): cell['metadata']['tags'] = ['remove-input']
            elif only_imports(text):
                cell['metadata']['tags'] = ['hide-input']
                if shown and shown[-1]['metadata'].get('tags') == ['hide-input']:
                    shown[-1]['source'] = shown[-1]['source'].rstrip() + '\n' + cell['source']
                    continue
        shown.append(cell)
    return shown


def prepare(app, name, source):
    "A notebook as readers see it; the first page gets the table of contents."
    if not app.env.doc2path(name).name.endswith('.ipynb'): return
    nb = json.loads(source[0])
    nb['cells'] = for_readers(nb['cells'])
    if name == app.config.root_doc:
        text = contents(Path(app.srcdir)/'nbs')
        nb['cells'].append(dict(cell_type='markdown', id='contents', metadata={}, source=text))
    source[0] = json.dumps(nb)


def comments(thing):
    "What the comments beside the parameters of a function, or the fields of a data class, say of each."
    if inspect.isclass(thing) and not is_dataclass(thing): thing = thing.__init__
    text = textwrap.dedent(inspect.getsource(thing))
    tree, tokens = ast.parse(text).body[0], tokenize.generate_tokens(StringIO(text).readline)
    beside = {t.start[0]: t.string[1:].strip() for t in tokens if t.type == tokenize.COMMENT}
    if isinstance(tree, ast.ClassDef):
        lines = {o.target.id: o.lineno for o in tree.body if isinstance(o, ast.AnnAssign)}
    else:
        lines = {o.arg: o.lineno for o in ast.walk(tree.args) if isinstance(o, ast.arg)}
        if tree.returns: lines['return'] = tree.returns.lineno
    return {name: beside[line] for name, line in lines.items() if line in beside and line > tree.lineno}


def described(thing):
    "The function that holds docstring and comments: a method of one line may hand its work to one below the class."
    call = inspect.isfunction(thing) and re.search(r'\): return (\w+)\(self[,)]', inspect.getsource(thing))
    return thing.__globals__[call[1]] if call else thing


def plain(text):
    "Markup characters outside of backticks stand for themselves."
    return re.sub(r'([*_|\\])(?=[^`]*(?:`[^`]*`[^`]*)*$)', r'\\\1', text)


def describe(app, what, name, thing, options, lines):
    "Docstring, where it is derived, and a line for each commented parameter."
    if what not in ('class', 'method', 'function') or not hasattr(thing, '__module__'): return
    thing = described(inspect.unwrap(getattr(thing, '__func__', thing)))
    lines[:] = [plain(o) for o in inspect.cleandoc(thing.__doc__ or '\n'.join(lines)).splitlines()]
    *_, room, module = thing.__module__.split('.')
    lesson = next((ROOT/'nbs'/room).glob(f'[0-9]*_{module}.ipynb'), None)
    if what != 'method' and lesson: lines += ['', f'Lesson: :doc:`/nbs/{room}/{lesson.stem}`']
    lines.append('')
    for key, text in comments(thing).items():
        lines.append((':returns: ' if key == 'return' else f':param {key}: ') + plain(text))


def leave_out(app, what, name, thing, skip, options):
    "A method without a docstring is shown where the function that does its work has one."
    return False if skip and name[0] != '_' and inspect.isfunction(thing) and described(thing).__doc__ else None


def formula(writer, node):
    "MathML: browsers show it without a script or a font from elsewhere."
    block = isinstance(node, nodes.math_block)
    try: text = tex2mathml(node.astext(), as_block=block)
    except Exception as e:
        logging.getLogger(__name__).warning('formula %r: %s', node.astext(), e, location=node)
        text = ''
    # docutils sets the words below a brace beside it
    text = re.sub(r'^( *)<msub>\n(\1  <munder>.*?)^\1</msub>', r'\1<munder>\n\2\1</munder>', text, flags=re.M | re.S)
    writer.body.append(f'<div class="math">{text}</div>' if block else text)
    raise nodes.SkipNode


def inspect_pages(app, error):
    "The build fails for what readers would miss and Sphinx does not see."
    if error is None and app.builder.format == 'html' and (found := faults(Path(app.outdir))):
        raise ExtensionError('\n'.join([f'{len(found)} faults of the pages:', *found]))


def setup(app):
    app.connect('source-read', prepare)
    app.connect('autodoc-process-docstring', describe)
    app.connect('autodoc-skip-member', leave_out)
    app.connect('build-finished', inspect_pages)
    app.add_html_math_renderer('mathml', (formula, None), (formula, None))
