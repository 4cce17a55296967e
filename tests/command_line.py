"Small checkpoints, images and ways to run a command, for several files of tests; the package is imported when used."
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

FEW = ['--n', '6', '--repeats', '2', '--batch-size', '3', '--device', 'cpu']
SHORT = ['--epochs', '1', '--n', '16', '--val-n', '8', '--batch-size', '8', '--device', 'cpu']
PAGE = {'benchmark.json', 'benchmark.csv', 'benchmark.png', 'index.html'}
HOSTILE = '<img src=x onerror=alert(1)>&quot; $x_$'


@pytest.fixture(scope='session')
def kept(tmp_path_factory):
    "Small checkpoints, `dense` and one of each method, for 32-pixel digits."
    import adaptive_tokens as at
    from adaptive_tokens.images.digits import ClutteredDigits, digits_vit, normalize
    from adaptive_tokens.models.checkpoint import save_dense
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
    from adaptive_tokens.cli.main import main
    def run(*words):
        try: code = main([str(word) for word in words])
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


@pytest.fixture
def small_demo(monkeypatch, kept):
    "The demo with the small models in place of the shipped ones."
    from adaptive_tokens.models import checkpoint
    monkeypatch.setattr(checkpoint, 'files', lambda package: kept.parent)
    monkeypatch.setattr(checkpoint, 'CHECKPOINTS', kept.name)


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


def stop(*_, **__): raise KeyboardInterrupt


def full(*_, **__): raise OSError(28, 'No space left on device')
