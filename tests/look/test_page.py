"Pages: whatever comes from outside is text, and pictures are inside."
from html.parser import HTMLParser

import matplotlib.pyplot as plt
from command_line import HOSTILE, Page
from PIL import Image

from adaptive_tokens.look.page import Picture, Table, as_figure, as_page, as_table, report


def test_every_part_of_the_page_escapes():
    table = as_table(HOSTILE, [[HOSTILE, HOSTILE], [HOSTILE, HOSTILE]], HOSTILE)
    text = as_page(HOSTILE, HOSTILE, [table, as_figure(b'png', (1, 1), HOSTILE + '"', HOSTILE)])
    assert HOSTILE not in text
    page = HTMLParser()
    tags, data = [], []
    page.handle_starttag, page.handle_data = lambda tag, attrs: tags.append((tag, dict(attrs))), data.append
    page.feed(text)
    images = [attrs for tag, attrs in tags if tag == 'img']
    assert len(images) == 1 and images[0]['alt'] == HOSTILE + '"' and images[0]['src'].startswith('data:')
    assert ''.join(data).count(HOSTILE) == 10


def test_a_report_writes_each_picture_and_one_page_that_holds_all(tmp_path):
    figure = plt.figure(figsize=(2, 1))
    tables = [Table('First', [['model', 'top-1 %'], ['a', 97.1]]), Table('Second', [['model'], ['b']], 'a note')]
    report(tmp_path, 'Title', 'Lead', tables, [Picture('one.png', figure, 'an alt text', 'a caption')], '<p>end</p>')
    assert {f.name for f in tmp_path.iterdir()} == {'one.png', 'index.html'} and not plt.fignum_exists(figure.number)
    assert Image.open(tmp_path/'one.png').size == (300, 150)
    page = Page(tmp_path/'index.html')
    assert len(page.all('table')) == 2 and page.all('img')[0]['alt'] == 'an alt text'
    assert page.all('img')[0]['width'] == '192' and page.text.rstrip().endswith('end')
    assert all(word in page.text for word in ('Title', 'Lead', 'First', '97.1', 'a note', 'a caption'))
