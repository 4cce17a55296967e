"Faults of built pages: pictures without alt text, frames without title, links to nowhere, parts from another host."
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {'src', 'href', 'data', 'poster'}  # attributes by which a page loads a part or names another page
STYLED = re.compile(r'(?:url\(|@import)\s*["\']?((?:https?:)?//[^"\')\s]+)')


class Page(HTMLParser):
    "What a page names, and what it lacks."

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.faults = set(), set(), []
        self.parts = set(STYLED.findall(text))
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = {k: v or '' for k, v in attrs}
        self.ids |= {attrs[k] for k in ('id', 'name') if k in attrs}
        alt, src = attrs.get('alt', '').strip(), attrs.get('src', '')
        if tag == 'img' and (not alt or Path(alt).name == Path(src).name):
            self.faults.append(f'picture without alt text: {src[:80]}')
        if tag == 'iframe' and not attrs.get('title'): self.faults.append('frame without title')
        (self.links if tag == 'a' else self.parts).update(attrs[k] for k in FETCHED & attrs.keys())
        self.parts.update(o.split()[0] for o in attrs.get('srcset', '').split(',') if o.strip())
        if 'srcdoc' in attrs:
            inner = Page(attrs['srcdoc'])
            self.parts |= inner.parts
            self.faults += inner.faults


def faults(folder):
    "One line for each fault in the pages and style sheets of `folder`."
    pages = {p: Page(p.read_text(encoding='utf-8')) for p in sorted(folder.rglob('*.html'))}
    found = [(p, fault) for p, page in pages.items() for fault in page.faults]
    sheets = [(p, STYLED.findall(p.read_text(encoding='utf-8'))) for p in sorted(folder.rglob('*.css'))]
    for p, parts in [*((p, page.parts) for p, page in pages.items()), *sheets]:
        found += [(p, f'from another host: {o}') for o in sorted(parts) if urlsplit(o).netloc]
    for p, page in pages.items():
        for link in sorted(page.links | page.parts):
            scheme, host, path, _, mark = urlsplit(link)
            if scheme or host: continue
            target = (p.parent/unquote(path)).resolve() if path else p
            if not target.is_file(): found.append((p, f'link to nowhere: {link}'))
            elif mark and target in pages and unquote(mark) not in pages[target].ids:
                found.append((p, f'no such place: {link}'))
    return [f'{p.relative_to(folder).as_posix()}: {fault}' for p, fault in found]
