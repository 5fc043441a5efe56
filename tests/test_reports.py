"Pages, records and the figures in them"
import base64, json, re
from io import BytesIO

import matplotlib
import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings, strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from noisynb.reports import plots
from noisynb import record, show
from noisynb.reports import gather, printing, run_page
from noisynb.core import NoisynbError
from noisynb.record import Result

nasty = '<script>alert(1)</script>&"\'<img src=x onerror=alert(2)>'


def result(**changes):
    "A record with made-up numbers"
    made = '2026-01-01T00:00:00+00:00'
    r = dict(schema=1, method='wann', dataset='digits', embedding='raw', noise_type='instance', noise_rate=.4, noise_rate_realised=.39, seed=0, n_train=100, n_test=50, n_classes=3,
             imbalance=None, epochs=None, options={}, test_accuracy=.9, test_balanced_accuracy=.89, test_macro_f1=.88, test_calibration_error=.05, test_accuracy_last5=None,
             baseline_accuracy={'knn-11': .8, 'knn-51': .85}, label_error_auroc=.95, label_error_average_precision=.92, label_error_precision=.8, label_error_recall=.7,
             label_error_f1=.75, n_flagged=34, correction_accuracy=.87, fit_seconds=.04, graph_seconds=.03, graph_cached=False, predict_seconds=.01, peak_memory_mib=400.,
             device='cpu', published_accuracy=None, published_source=None,
             provenance=dict(noisynb='0.1.0', commit=None, dirty=None, python='3.11', versions={'numpy': '2'}, hardware='Some CPU', threads=2, data='0'*16, command='noisynb run wann', created=made))
    if 'created' in changes: r['provenance'] = r['provenance'] | dict(created=changes.pop('created'))
    return Result(r | changes).check()


def shown(value, *tags):
    "A code cell that shows `value` as a kernel would"
    bundle = value._repr_mimebundle_() if hasattr(value, '_repr_mimebundle_') else {'text/html': value._repr_html_(), 'text/plain': repr(value)}
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    return new_code_cell('value', metadata={'tags': list(tags)}, outputs=[new_output('execute_result', data=data, metadata=metadata, execution_count=1)])


def notebook(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture
def full(tmp_path):
    "A notebook with one of every block, and names that are HTML"
    g, flipped = np.random.default_rng(0), np.arange(100) < 39
    r = result(dataset=nasty, options={'metric': nasty})
    images, labels = g.integers(0, 256, (100, 8, 8, 3)).astype(np.uint8), g.integers(0, 3, 100)
    names, score = [nasty, '$x^2$', '猫'], np.where(flipped, .3, .7) + g.uniform(-.3, .3, 100)
    return notebook(tmp_path/'a & b.ipynb', shown(run_page.title(r)), shown(run_page.headline(r), 'remove-input'), shown(run_page.remarks(r, [nasty])),
        new_code_cell('seed = 1', metadata={'tags': ['parameters']}), new_code_cell('secret = 2', metadata={'tags': ['injected-parameters']}),
        new_markdown_cell('## Data\n\n| a | b |\n| --- | --- |\n| 1 | 2 |'), shown(run_page.data_facts(r)), shown(plots.transition(np.eye(3), names)), shown(plots.quality(score, flipped, .5)),
        new_markdown_cell('## Labels'), shown(plots.ranking({nasty: score}, flipped)), shown(plots.suspect_gallery(images, range(20), labels, labels[::-1], names, truth=labels)),
        new_markdown_cell('### Cost'), shown(run_page.cost_facts(r)), shown(run_page.provenance_facts(r)), shown(run_page.comparison({nasty: r})), shown(r))


def test_page_needs_nothing_else_and_runs_nothing(full):
    text = printing.write_page(full).read_text()
    page = BeautifulSoup(text, 'html.parser')
    assert not page.find_all(['script', 'iframe', 'object', 'link'], src=True) and not page.find_all('script')
    assert {a for tag in page.find_all(True) for a in tag.attrs if a.startswith('on')} == set()
    sources = [tag[a] for tag in page.find_all(True) for a in ('src', 'href', 'srcset') if tag.has_attr(a)]
    assert sources and all(s.startswith(('data:', '#')) for s in sources) and 'url(' not in text and '@import' not in text
    assert "default-src 'none'" in page.find('meta', attrs={'http-equiv': 'Content-Security-Policy'})['content']
    assert len(text) < 300_000


def test_what_comes_from_data_is_text(full):
    page = BeautifulSoup(printing.write_page(full).read_text(), 'html.parser')
    assert page.get_text().count('<script>alert(1)</script>') > 10   # title, tables, captions: shown, and not run
    assert nasty in page.title.string and any(nasty in img['alt'] for img in page.find_all('img', alt=re.compile('^Training image')))


def test_page_can_be_read_by_everyone(full):
    page = BeautifulSoup(printing.write_page(full).read_text(), 'html.parser')
    levels = [int(h.name[1]) for h in page.find_all(re.compile('^h[1-6]$'))]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    assert page.html['lang'] == 'en' and page.find('meta', attrs={'name': 'viewport'}) and page.main
    assert len(page.find_all('img')) == 22 and all(len(img['alt']) > 10 for img in page.find_all('img'))
    assert page.find_all('th') and all(th['scope'] in ('col', 'row') for th in page.find_all('th'))
    assert all(table.find('th') and table.parent['tabindex'] == '0' for table in page.find_all('table'))
    assert page.find('details') and 'secret' not in page.get_text() and 'seed = 1' not in page.get_text()


def luminance(colour):
    channels = [int(colour[i:i + 2], 16)/255 for i in (1, 3, 5)]
    return sum(w*(c/12.92 if c <= .04045 else ((c + .055)/1.055)**2.4) for w, c in zip((.2126, .7152, .0722), channels))


def test_contrast_in_light_and_dark(full):
    style = printing.write_page(full).read_text()
    for block in re.findall(r':root \{([^}]*--ink[^}]*)\}', style):
        colour = {k: v if len(v) == 7 else '#' + ''.join(2*c for c in v[1:]) for k, v in re.findall(r'--(\w+): (#[0-9a-f]+)', block)}
        for ink in ('ink', 'dim', 'accent', 'warm'):
            for paper in ('paper', 'wash'):
                a, b = sorted((luminance(colour[ink]), luminance(colour[paper])))
                assert (b + .05)/(a + .05) >= 4.5, (ink, paper, colour)
    assert len(re.findall(r':root \{[^}]*--ink', style)) == 3


def test_page_of_another_notebook(tmp_path):
    "Scripts, widgets and references in outputs don't survive; text does"
    out = new_output('display_data', data={'text/html': f'<p>kept</p><a href="javascript:alert(3)">link</a><a href="https://arxiv.org">paper</a><iframe src="https://x"></iframe>{nasty}',
                                           'application/javascript': 'alert(4)'})
    stream = new_output('stream', name='stderr', text='a <b>warning</b>')
    text = printing.write_page(notebook(tmp_path/'x.ipynb', new_markdown_cell('# Hi'), new_code_cell('f()', outputs=[out, stream]), new_code_cell(''))).read_text()
    assert 'kept' in text and 'alert' not in text and 'iframe' not in text and 'javascript' not in text and 'href="https://arxiv.org"' in text
    assert 'a &lt;b&gt;warning&lt;/b&gt;' in text and text.count('<details') == 1


def test_page_is_replaced_whole_or_not_at_all(tmp_path, full, monkeypatch):
    page = printing.write_page(full)
    before = page.read_text()
    def full_disk(src, dst): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.replace', full_disk)
    with pytest.raises(NoisynbError, match='No space left'): printing.write_page(full)
    assert page.read_text() == before and {p.name for p in tmp_path.iterdir()} == {full.name, page.name}


@pytest.mark.parametrize('content', ['', '{', '[]', '{"cells": 3}', '\x00'])
def test_what_is_no_notebook_is_refused(tmp_path, content):
    path = tmp_path/'x.ipynb'
    path.write_text(content)
    for use in (record.read_result, printing.write_page, record.write_json):
        with pytest.raises(NoisynbError, match='x.ipynb'): use(path)
    assert [p.name for p in tmp_path.iterdir()] == ['x.ipynb']


def test_record_round_trip(tmp_path):
    first, last = result(), result(seed=7)
    path = notebook(tmp_path/'run.ipynb', shown(first), shown(Result(sorted(last.items()))))
    assert json.loads(record.write_json(path).read_text()) == last == record.read_result(path) == record.read_result(tmp_path/'run.json')
    assert list(record.read_result(path))[:3] == ['schema', 'method', 'dataset'] == list(json.loads((tmp_path/'run.json').read_text()))[:3]


@pytest.mark.parametrize('change, where', [(dict(test_accuracy=89.3), 'test_accuracy'), (dict(seed=None), 'seed'), (dict(surprise=1), 'surprise'), (dict(schema=2), 'schema')])
def test_record_that_does_not_fit_is_refused(tmp_path, change, where):
    (tmp_path/'bad.json').write_text(json.dumps(dict(result()) | change))
    for use in (lambda: record.read_result(tmp_path/'bad.json'), lambda: gather.gather(tmp_path)):
        with pytest.raises(NoisynbError, match=f'bad.json.*{where}'): use()


def test_missing_result_and_missing_file(tmp_path):
    with pytest.raises(NoisynbError, match='no Result'): record.read_result(notebook(tmp_path/'x.ipynb', new_markdown_cell('hi')))
    with pytest.raises(NoisynbError, match='there is no file'): record.read_result(tmp_path/'y.json')


def test_gathered_runs_count_once_and_keep_settings_apart(tmp_path):
    def write(name, **changes): (tmp_path/f'{name}.json').write_text(json.dumps(result(**changes)))
    write('old', test_accuracy=.1, created='2025-01-01T00:00:00+00:00')
    write('new', test_accuracy=.9, created='2026-02-01T00:00:00+00:00')
    write('options', options={'k_max': 31}, seed=2)
    write('features', embedding='onnx:net.onnx')
    write('smaller', n_train=50)
    (tmp_path/'.hidden').mkdir(); (tmp_path/'.hidden/x.json').write_text('no record'); (tmp_path/'audit.json').write_text('{"examples": 3}')
    found = gather.gather(tmp_path)
    assert sorted(sorted((p.stem for runs in entries.values() for p, _ in runs)) for entries in found.values()) == [['features', 'new', 'options'], ['smaller']]
    assert gather.gather([tmp_path/'new.json', tmp_path/'old.json']).keys() == {gather.setting(result())}
    assert [gather.entry_name(r) for entries in gather.gather([tmp_path/'options.json']).values() for runs in entries.values() for _, r in runs] == ['WANN (k_max 31)']
    with pytest.raises(NoisynbError, match='there is no file'): gather.gather([tmp_path/'none.json'])

def test_spread_by_hand():
    assert [gather.spread(v) for v in ([], [None], [.5], [.5, None], [.90, .91, .95])] == ['–', '–', '50.0\u202f%', '50.0\u202f%', '92.0\u202f% ± 2.6\u202f%']

def test_page_beside_a_record(tmp_path):
    record, places = tmp_path/'a.json', []
    for ending in '.json', '.ipynb', '.html':
        record.with_suffix(ending).write_text('')
        places.append(gather.page_of(record).suffix)
    assert places == ['.json', '.ipynb', '.html']

def test_every_table_of_a_page_has_a_name_of_its_own(full):
    page = BeautifulSoup(printing.write_page(full).read_text(), 'html.parser')
    names = [region['aria-label'] for region in page.find_all(role='region')]
    assert len(names) == len(set(names)) == len(page.find_all('table')) > 3 and any(n.startswith('Table: Cost') for n in names) and names.count('Table: Data') == 1


@pytest.mark.parametrize('t, text', [(None, '–'), (0, '0 µs'), (.00004, '40 µs'), (.0999, '0.10 s'), (9.96, '10.0 s'), (59.96, '1 min 0 s'), (3599.6, '1 h 0 min')])
def test_seconds(t, text): assert show.seconds(t).replace('\u202f', ' ') == text


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1e6))
def test_seconds_are_near(t):
    "What is shown is within the digits shown"
    text = show.seconds(t).replace('\u202f', ' ')
    value = sum(float(n)*{'µs': 1e-6, 'ms': 1e-3, 's': 1, 'min': 60, 'h': 3600}[u] for n, u in re.findall(r'([\d.]+) (µs|ms|s|min|h)\b', text))
    assert abs(value - t) <= max(.51e-6, .06*t) and (t < 60 or abs(value - t) <= max(.51, .02*t))


def test_headline_of_odd_runs():
    "No noise, no test part, nothing flagged: dashes and no division by zero"
    clean = result(noise_type='none', noise_rate=0., noise_rate_realised=None, label_error_auroc=None, label_error_average_precision=None, label_error_precision=None,
                   label_error_recall=None, label_error_f1=None, n_flagged=7, correction_accuracy=None)
    assert 'Wrong labels found' not in repr(run_page.headline(clean)) and 'no added noise' in repr(run_page.title(clean)) and 'labels as they are' in repr(run_page.title(clean)) and 'not known' in repr(run_page.data_facts(clean))
    assert 'Labels flagged: 7 (7.0\u202f% of 100' in repr(run_page.headline(clean)) and 'right labels' not in repr(run_page.title(clean)) + repr(run_page.data_facts(clean))
    assert repr(run_page.comparison({'a': clean})).startswith('Method  Test accuracy\n')
    assert 'it flags none' in repr(run_page.headline(result(label_error_precision=None, label_error_recall=0., n_flagged=0)))
    beside = repr(run_page.headline(result(baseline_accuracy={'control': .5})))
    assert 'The same without echoes: 50.0' in beside and 'k-NN' not in beside
    empty = result(n_test=0, test_accuracy=None, test_balanced_accuracy=None, predict_seconds=None, noise_rate_realised=None, label_error_recall=None, label_error_auroc=None)
    for block in (run_page.title, run_page.headline, run_page.data_facts, run_page.cost_facts, run_page.provenance_facts): assert block(empty).markup
    assert 'Test accuracy' not in repr(run_page.headline(empty)) and 'tested' not in repr(run_page.title(empty)) and 'test images' not in repr(run_page.cost_facts(empty)).lower()


def test_pictures_keep_every_pixel_of_the_notebook(tmp_path):
    picture = plots.ranking([.1, .2, .3, .4], [True, False, True, False])
    data, metadata = picture._repr_mimebundle_()
    cell = new_code_cell('f()', outputs=[new_output('display_data', data, metadata=metadata)])
    img = BeautifulSoup(printing.write_page(notebook(tmp_path/'x.ipynb', cell)).read_text(), 'html.parser').img
    kind, content = img['src'].split(';base64,')
    here, there = (np.asarray(Image.open(BytesIO(b)).convert('RGB')) for b in (base64.b64decode(content), picture.png))
    assert kind == 'data:image/webp' and (here == there).all() and len(content) < .9*len(data['image/png'])
    assert img['alt'] == picture.alt and int(img['width']) == metadata['image/png']['width']


def test_tiles_stand_in_a_viewer_that_floats_terms():
    page = BeautifulSoup(run_page.headline(result()).markup, 'html.parser')
    assert page.find_all('dt') and all('float:none;width:auto;display:block' in tag['style'] for tag in page.find_all(['dt', 'dd']))


def test_figures_leave_the_settings_of_others_alone():
    before = dict(matplotlib.rcParams)
    g = np.random.default_rng(0)
    with matplotlib.rc_context({'axes.facecolor': 'red', 'font.size': 30}):
        made = [plots.transition(np.eye(100)), plots.quality(g.random(50)), plots.ranking(g.random(50), g.random(50) < .5), plots.history([dict(epoch=1, loss=2.)]), plots.curves([1, 2], {'a': [1, 2]})]
        for picture in made:
            image = Image.open(BytesIO(picture.png)).convert('RGB')
            assert len(picture.png) < 40_000 and len(picture.alt) > 20 and (255, 0, 0) not in {colour for _, colour in image.getcolors(10**6)}
            data, metadata = picture._repr_mimebundle_()
            assert base64.b64decode(data['image/png']) == picture.png and metadata['image/png']['alt'] == picture.alt
            assert metadata['image/png']['width'] <= 576 and metadata['image/png']['width']*128 == pytest.approx(96*image.width, abs=128)
        assert matplotlib.rcParams['axes.facecolor'] == 'red'
    assert dict(matplotlib.rcParams) == before and 'matplotlib.pyplot' not in plots.__dict__


def test_transition_puts_numbers_where_they_belong():
    cells = lambda T, names: [[td.get_text() for td in row.select('td')] for row in BeautifulSoup(plots.transition(T, names)._repr_html_(), 'html.parser').select('tbody tr')]
    assert cells(np.array([[.75, .25], [.004, .996]]), 'ab') == [['75', '25'], ['', '100']]   # a column is a label given
    assert plots.transition(np.eye(2), ['<b>', 'a & b'])._repr_html_().count('&lt;b&gt;') == 2   # column and row
    with pytest.raises(NoisynbError, match='class names'): plots.transition(np.eye(3), 'ab')
    assert repr(plots.transition(np.array([[.75, .25, 0], [0, 1, 0], [0, 0, 0]]), 'abc')).endswith('Between 75\u202f% and 100\u202f% of a class keep the right label; class a keeps least.')   # nobody is of class c
    assert plots.transition(np.eye(13)).alt.startswith('Heat map of the transition matrix of 13 classes.')


def test_ranking_matches_hand_count():
    "Four labels, least trusted first: wrong, right, wrong, right"
    picture = plots.ranking([.1, .2, .3, .4], [True, False, True, False], flagged=[True, True, False, False])
    curve, dot = picture.figure.axes[0].lines[0], picture.figure.axes[0].lines[1]
    points = np.column_stack(curve.get_data())
    assert all(np.isclose(points, p).all(1).any() for p in [(50, 100), (50, 50), (100, 200/3)])
    assert [list(v) for v in dot.get_data()] == [[50.], [50.]] and f'{(1 + 2/3)/2:.3f}' in picture.alt


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), st.sampled_from([None, 1, 2, 3, 4]))
def test_images_of_any_shape_become_small_pictures(h, w, c):
    image = np.random.default_rng(0).integers(0, 256, (h, w) if c is None else (h, w, c)).astype(np.uint8)
    kind, data = re.fullmatch(r'data:image/(webp);base64,(.*)', plots.data_uri(image)).groups()
    picture = Image.open(BytesIO(base64.b64decode(data)))
    assert max(picture.size) <= 88 and picture.format.lower() == kind and len(data) < 12_000
    if max(h, w) <= 32:
        assert picture.size == (w, h)
        if c in (None, 1): assert (np.asarray(picture.convert('L')) == (image.squeeze(-1) if c == 1 else image)).all()


def test_small_colour_images_keep_their_colours():
    y, x = np.mgrid[:32, :32]
    image = np.stack([8*x, 8*y, np.full_like(x, 90)], -1).astype(np.uint8)
    seen = np.asarray(Image.open(BytesIO(base64.b64decode(plots.data_uri(image).partition(',')[2]))).convert('RGB')).astype(int)
    assert seen.shape == image.shape and np.abs(seen - image).mean() < 4


def test_history_and_curves():
    with pytest.raises(NoisynbError, match='history without numbers'): plots.history([dict(epoch=1, note='x')])
    with pytest.raises(NoisynbError, match='3 values for 2 positions'): plots.curves([1, 2], {'a': [1, 2, 3]})
    axes = plots.curves([1, 2], {'a': [[1., 2], [3, 6]], 'b': [1., 2]}).figure.axes[0]
    assert axes.lines[0].get_ydata().tolist() == [2, 4] and len(axes.collections) == 1   # one seed has no band
    assert np.allclose(axes.collections[0].get_paths()[0].vertices[:, 1].max(), 4 + 8**.5)

def test_seeds_that_stopped_at_different_epochs_are_one_entry():
    from noisynb.reports.gather import entry as _entry
    r = lambda epochs, command='noisynb run linear': dict(method='linear', embedding='raw', options={}, epochs=epochs, provenance=dict(command=command))
    assert _entry(r(10)) == _entry(r(14)) != _entry(r(14, 'noisynb run linear -p epochs 14'))
