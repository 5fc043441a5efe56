"The book: built once from the notebooks as they are, and looked at as a browser and a screen reader would"
import ast, re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from noisynb.reports.book import book, dead_links, book_link, entries, formula
from noisynb.core import NoisynbError

root = Path(__file__).parent.parent
modules = [p for p in sorted((root/'noisynb').rglob('*.py')) if '__all__ = [' in p.read_text()]


class Reader(HTMLParser):
    "Title, language, headings, pictures, and tables' heads of a page"
    void = set('area base br col hr img input link meta source wbr'.split())
    def __init__(self, text):
        super().__init__()
        self.lang = self.title = ''
        self.images, self.levels, self.heads, self.open, self.names, self.scripts, self.crossed = [], [], [], [], [], 0, []
        self.feed(text); self.close()
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == 'html': self.lang = attrs.get('lang', '')
        if tag == 'img': self.images.append(attrs)
        if tag == 'script': self.scripts += 1
        if tag == 'th': self.heads.append(attrs.get('scope'))
        if re.fullmatch('h[1-6]', tag): self.levels.append(int(tag[1]))
        if tag in ('nav',): self.names.append(attrs.get('aria-label'))
        if tag not in self.void: self.open.append(tag)
    def handle_endtag(self, tag):
        if tag in self.void: return
        if self.open and self.open[-1] == tag: self.open.pop()
        elif tag not in ('p', 'li'): self.crossed.append(tag)
    def handle_data(self, data):
        if self.open[-1:] == ['title'] and 'svg' not in self.open: self.title += data


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')/'_book'
    assert book(folder, root) == folder/'index.html'
    return folder

@pytest.fixture(scope='session')
def pages(site): return {p.name: p.read_text() for p in site.glob('*.html')}

@pytest.fixture(scope='session')
def read(pages): return {name: Reader(text) for name, text in pages.items()}

def test_no_link_is_dead(site): assert dead_links(site) == []

def test_every_notebook_is_a_page_in_the_contents(pages):
    index = set(re.findall(r'href="([^"#]+)"', pages['index.html'].split('id="Contents"')[1]))
    assert {f'{p.stem}.html' for p in (root/'nbs').glob('*.ipynb')} <= index & pages.keys()

def test_previous_and_next_pass_every_chapter_once(pages):
    turn = lambda text, rel: (re.findall(rf'rel="{rel}" href="([^"]+)"', text) or [None])[0]
    walked, at = [], 'index.html'
    while at and at not in walked:
        walked.append(at)
        after = turn(pages[at], 'next')
        assert after is None or turn(pages[after], 'prev') == at
        at = after
    assert at is None and {f'{p.stem}.html' for p in (root/'nbs').glob('*.ipynb')} <= set(walked)
    numbered = [n.removesuffix('.html') for n in walked if n[:2].isdigit()]
    assert numbered == sorted(numbered)

@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_every_public_name_is_in_the_reference(path, pages):
    module = '.'.join(path.relative_to(root).with_suffix('').parts).removesuffix('.__init__')
    listed = next(n.value for n in ast.parse(path.read_text()).body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__')
    page = pages[f'api.{module}.html']
    for name in ast.literal_eval(listed):
        assert f'id="{name}"' in page and f'href="api.{module}.html#{name}"' in pages['api.html'], name

def test_a_name_is_described_as_its_source_does(pages):
    page = pages['api.noisynb.noise.html'].split('id="corrupt"')[1].split('<h2')[0]
    assert re.search(r'<code>rate</code></th><td><code>float</code></td><td><code>None</code></td><td>\w', page)
    assert re.search(r'returns</th><td><code>Noisy</code>', page) and re.search(r'href="04_noise\.html#\w+"', page)
    assert 'id="NoisyLabelClassifier.suspects"' in pages['api.noisynb.methods.base.html']

def test_pages_can_be_read_by_everyone(pages, read):
    for name, page in read.items():
        assert page.lang == 'en' and len(page.title.strip()) > 3, name
        assert page.levels.count(1) == 1 and page.levels[0] == 1, (name, page.levels)
        assert [i for i in page.images if not i.get('alt', '').strip()] == [], f'{name}: a picture without words'
        assert None not in page.heads, f'{name}: a table head without scope'
        assert not re.search(r'<th\b[^>]*>\s*</th>', pages[name]), f'{name}: a table head that says nothing'
        assert all(page.names) and len(set(page.names)) == len(page.names), name
        assert not page.open and not page.crossed, (name, page.open, page.crossed)
    assert len({p.title for p in read.values()}) == len(read)

def test_pages_fetch_nothing(pages, read):
    for name, text in pages.items():
        assert not read[name].scripts and not re.search(r'<(link|img|iframe|object|embed|form)\b[^>]*(href|src|action)="(?!data:)', text), name
        assert "default-src 'none'" in text and 'name="viewport"' in text

def test_directives_and_hidden_cells_are_gone(pages):
    assert [n for n, text in pages.items() if re.search(r'>#\|\s*(export|hide|default_exp|slow)|fastcore', re.sub(r'<span[^>]*>|</span>', '', text)) and n not in ('37_book.html', 'CONTRIBUTING.html', 'CHANGELOG.html', 'howto_add_a_method.html', 'howto_add_a_data_set.html')] == []

def test_every_formula_can_be_read(pages):
    broken = {n for n, text in pages.items() if '<code class="tex">' in text}
    assert broken == set()
    assert '<math' in pages['14_methods.10_wann.html'] and not re.search(r'\$\$|\\frac', re.sub(r'(?s)<pre.*?</pre>|<code.*?</code>|alttext="[^"]*"', '', pages['14_methods.10_wann.html']))

def test_the_size(site): assert sum(p.stat().st_size for p in site.rglob('*')) < 60_000_000 and max(p.stat().st_size for p in site.glob('*.html')) < 2_000_000


# parts

def test_a_book_replaces_a_book_and_nothing_else(tmp_path):
    (tmp_path/'nbs').mkdir(); (tmp_path/'noisynb').mkdir()
    import nbformat
    from nbformat.v4 import new_markdown_cell, new_notebook
    write = lambda name, text: nbformat.write(new_notebook(cells=[new_markdown_cell(text)]), tmp_path/'nbs'/f'{name}.ipynb')
    write('index', '# Small\n\n> A small book\n\n[one](01_one.ipynb), [lost](02_lost.ipynb)'); write('01_one', '# One\n\n## Part\n\n[back](index.ipynb#Contents) [no](index.ipynb#nowhere)')
    out = tmp_path/'out'
    book(out, tmp_path)
    assert dead_links(out) == ['01_one.html: index.html#nowhere (there is no #nowhere)', 'index.html: 02_lost.ipynb']
    (tmp_path/'nbs/01_one.ipynb').rename(tmp_path/'nbs/02_lost.ipynb')
    book(out, tmp_path)
    assert not (out/'01_one.html').exists() and dead_links(out) == ['02_lost.html: index.html#nowhere (there is no #nowhere)', 'index.html: 01_one.ipynb']
    other = tmp_path/'other'; other.mkdir(); (other/'thesis.txt').write_text('mine')
    with pytest.raises(NoisynbError, match='not empty'): book(other, tmp_path)
    with pytest.raises(NoisynbError, match='root of a checkout'): book(tmp_path/'x', tmp_path/'nbs')
    assert (other/'thesis.txt').read_text() == 'mine' and not (tmp_path/'x').exists() and not list(tmp_path.glob('.noisynb-*'))

def test_the_checker_sees_what_is_fetched_and_what_is_there_twice(tmp_path):
    (tmp_path/'sub').mkdir()
    (tmp_path/'a.html').write_text('<p id="x"></p><p id="x"></p><img src="gone.png"><link href="//cdn.org/a.css"><a href="sub/b.html#y">b</a><a href="mailto:a@b.c">m</a>')
    (tmp_path/'sub/b.html').write_text('<a href="../a.html#x">a</a><a href="../a.html#%78">a</a><a href="#top">t</a><script>var s = \'<a href="no.html">\'</script>')
    assert dead_links(tmp_path) == ['a.html: 2 elements are called x', 'a.html: gone.png', 'a.html: <link> loads //cdn.org/a.css', 'a.html: sub/b.html#y (there is no #y)', 'sub/b.html: #top (there is no #top)']

def test_links_stay_in_the_project(tmp_path):
    taken = set()
    (tmp_path/'root').mkdir(); (tmp_path/'secret').write_text(''); (tmp_path/'root/a b.csv').write_text('')
    assert book_link('../../secret', 'nbs/x.ipynb', {}, tmp_path/'root', taken) == '../../secret' and not taken
    assert book_link('../a%20b.csv', 'nbs/x.ipynb', {}, tmp_path/'root', taken) == 'a b.csv' and taken == {'a b.csv'}

def test_comments_that_look_like_code(tmp_path):
    (tmp_path/'m.py').write_text('__all__ = ["f", "g", "h", "a", "b"]\ndef f(x=":", # a colon: in text\n      y={1: 2}, # two\n      ):\n    "F" # not this\n    return 1\nasync def g(): pass\ndef h(a, b, # both\n      c): # back\n    pass\na, b = 1, 2\n')
    chapter, _, (f, g, h, a, b) = entries(tmp_path/'m.py')
    assert chapter == '' and f.rows == [('x', '', "':'", 'a colon: in text'), ('y', '', '{1: 2}', 'two')] and f.returns == ('', '') and f.doc == 'F'
    assert (g.signature, a.name, b.name, a.signature) == ('g()', 'a', 'b', 'a, b = 1, 2') and h.returns == ('', 'back')
    assert [r[3] for r in h.rows] == ['', 'both', '']

def test_a_formula_keeps_its_tex():
    assert 'alttext="a &lt; b"' in formula('a &lt; b') and '<math' in formula(r'\arg\max_c x') and formula(r'\left( <b>') == r'<code class="tex">\left( &lt;b&gt;</code>'
