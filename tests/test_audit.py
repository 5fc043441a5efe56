"Audits of folders, tables and arrays, from the command and from Python"
import base64, csv, inspect, io, json, os, re, shutil, signal, subprocess, sys, textwrap
from pathlib import Path

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings, strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score, precision_score, roc_auc_score

from noisynb import audit as a, cli, embeddings
from noisynb.disk import portable
from noisynb.reports import audit_page as view, notebook
from noisynb.core import NoisynbError
from noisynb.datasets import Dataset, Split
from noisynb.embeddings.extractors import Extractor
from noisynb.datasets.files import Files
from noisynb.methods import methods
from noisynb.methods.registry import Entry
from noisynb.methods.base import NoisyLabelClassifier

root = Path(__file__).parent.parent
nasty = '<script>alert(1)<!--'


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    "Cache, data and hub of this test alone"
    for name in 'NOISYNB_CACHE', 'NOISYNB_DATA', 'HF_HOME': monkeypatch.setenv(name, str(tmp_path/f'.{name.lower()}'))
    monkeypatch.delenv('HF_HUB_CACHE', raising=False)

def picture(kind, rng, size=20):
    "A noisy image of one of two kinds: bright above, or bright below"
    x = rng.integers(0, 90, (size, size, 3))
    x[:size//2] += 150*(kind == 0); x[size//2:] += 150*(kind == 1)
    return x.astype(np.uint8)

def arrays(n=60, wrong=(), seed=0, kinds=2):
    "Images of two kinds, their kinds, and the labels given"
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % kinds
    given = truth.copy(); given[list(wrong)] = 1 - given[list(wrong)]
    return np.stack([picture(k, rng) for k in truth]), truth, given

def folder(place, names=('up', 'down'), **kw):
    "The same as files, in a folder for each given label"
    images, truth, given = arrays(**kw)
    for i, (image, label) in enumerate(zip(images, given)):
        (place/names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place/names[label]/f'{i:03}.png')
    return truth, given

def state(place): return {p.relative_to(place).as_posix(): (p.lstat().st_mtime_ns, p.lstat().st_size, p.lstat().st_mode) for p in place.rglob('*')}

def table(path):
    with open(path, newline='', encoding='utf-8') as f: return list(csv.DictReader(f))

def dataset(images, labels, classes=('up', 'down'), name='toy'):
    split = Split(images, labels)
    return Dataset(name, split, split.take([]), classes)


# the command, end to end

def test_a_folder_by_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth, given = folder(tmp_path/'photos', wrong=(3, 10, 41))
    (tmp_path/'photos/up/cut.png').write_bytes((tmp_path/'photos/up/000.png').read_bytes()[:200])
    (tmp_path/'photos/up/empty.jpg').touch()
    (tmp_path/'photos/down/text.png').write_text('no image')
    before = state(tmp_path/'photos')
    assert cli.main(['audit', 'photos', '--corrected', '-o', 'out']) == 0
    assert state(tmp_path/'photos') == before
    said = capsys.readouterr().out
    assert 'pca:64' in said and '60 checked, 3 flagged' in said
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['audit.html', 'audit.ipynb', 'audit.json', 'labels_corrected.csv', 'suspects.csv']
    rows = table('out/suspects.csv')
    assert len(rows) == 63 and {int(Path(r['path']).stem) for r in rows[:3]} == {3, 10, 41}
    assert [r['flagged'] for r in rows] == ['yes']*3 + ['no']*57 + ['']*3 and all((tmp_path/'photos'/r['path']).is_file() for r in rows)
    assert all(r['given'] != r['suggested'] for r in rows[:3]) and [float(r['quality']) for r in rows[:60]] == sorted(float(r['quality']) for r in rows[:60])
    assert {Path(r['path']).name: r['problem'].partition(' (')[0] for r in rows[60:]} == {'cut.png': 'corrupt', 'empty.jpg': 'empty', 'text.png': 'not an image'}
    new = table('out/labels_corrected.csv')
    assert [(int(Path(r['path']).stem), r['label']) for r in new] == sorted(((i, ('up', 'down')[t]) for i, t in enumerate(truth)), key=lambda x: (('up', 'down')[given[x[0]]], x[0]))
    assert {int(Path(r['path']).stem) for r in new if r['changed'] == 'yes'} == {3, 10, 41}
    page = Path('out/audit.html').read_text()
    soup = BeautifulSoup(page, 'html.parser')
    assert '3 of 60 labels are flagged' in soup.h1.text and 'cut.png' in soup.text and 'text.png' in soup.text and len(soup.select('.cards article')) == 3
    assert not soup.find_all('script') and not re.search(r'(src|href)=["\'](?!data:)', page) and len(page) < 200_000
    record = json.loads(Path('out/audit.json').read_text())
    assert (record['n_labels'], record['n_flagged'], record['n_unused'], record['embedding']) == (60, 3, 3, 'pca:60')
    for name in 'audit.html', 'audit.ipynb', 'audit.json', 'suspects.csv': assert str(tmp_path) not in Path('out', name).read_text()
    assert 'noisynb audit photos' in page

def test_a_table_by_command_with_hostile_names(tmp_path, monkeypatch):
    "Commas, quotes, line breaks, formulas and HTML in names of files and classes"
    monkeypatch.chdir(tmp_path)
    images, truth, given = arrays(n=40, wrong=(4, 7))
    stems = {0: '=cmd|calc', 1: 'a,"b"', 2: 'two\nlines', 4: nasty.replace('/', ''), 7: '-x', 9: '@y', 11: '\u202eevil', 13: 'é 猫'}
    classes = (nasty, '=HYPERLINK("http://x")')
    (tmp_path/'set/img').mkdir(parents=True)
    names = [f'img/{stems.get(i, i)}.png' for i in range(40)]
    for n, image in zip(names, images): Image.fromarray(image).save(tmp_path/'set'/n)
    with open('set/labels.csv', 'w', newline='') as f:
        w = csv.writer(f); w.writerow(['what', 'which'])
        for n, g in zip(names, given): w.writerow([n, classes[g]])
        w.writerow(['img/gone.png', classes[0]])
    before = state(tmp_path/'set')
    assert cli.main(['audit', 'set/labels.csv', '-o', 'out', '-p', 'path_column', 'what', '-p', 'label_column', 'which', '--embedding', 'pca:8', '--corrected']) == 0
    assert state(tmp_path/'set') == before
    rows = table('out/suspects.csv')
    assert {r['path'] for r in rows} == {*names, 'img/gone.png'} and {r['path'] for r in rows[:2]} == {names[4], names[7]}
    assert {r['given'] for r in rows[:-1]} == {nasty, "'" + classes[1]} and rows[-1]['problem'].startswith('missing')
    page = Path('out/audit.html').read_text()
    assert '<script' not in page and '&lt;script&gt;alert(1)' in page
    nbformat.validate(nbformat.read('out/audit.ipynb', 4))

def test_arrays_by_command_with_known_truth(tmp_path, monkeypatch):
    "Precision and the other numbers of the record against scikit-learn"
    monkeypatch.chdir(tmp_path)
    images, truth, _ = arrays(n=240)
    np.savez('toy.npz', train_images=images, train_labels=truth, test_images=images[:2], test_labels=truth[:2])
    assert cli.main(['audit', 'toy.npz', '-p', 'noise_type', 'symmetric', '-p', 'noise_rate', '0.1', '-p', 'seed', '3', '--embedding', 'pca:3', '--method', 'knn']) == 0
    place = Path('reports/audit/toy-symmetric-0.1')
    rows, record = table(place/'suspects.csv'), json.loads((place/'audit.json').read_text())
    wrong = np.array([r['given'] != r['true'] for r in rows])
    assert {int(r['index']): r['true'] for r in rows} == {i: str(t) for i, t in enumerate(truth)} and wrong.sum() == 24 and record['noise_rate_realised'] == pytest.approx(.1)
    first = np.arange(240) < 100
    assert record['precision_100'] == pytest.approx(precision_score(wrong, first)) and record['precision_1000'] is None
    quality = [float(r['quality']) for r in rows]
    assert record['label_error_auroc'] == pytest.approx(roc_auc_score(~wrong, quality)) and record['label_error_average_precision'] == pytest.approx(average_precision_score(wrong, -np.array(quality)))
    assert record['label_error_precision'] == pytest.approx(precision_score(wrong, [r['flagged'] == 'yes' for r in rows]))
    page = (place/'audit.html').read_text()
    assert 'Wrong among the first 100' in page and f'{wrong[:100].sum()}</dd>' in page and '✓ it was wrong' in page

def test_a_parquet_table_by_command(tmp_path, monkeypatch, capsys):
    "Other names of columns, whole numbers as labels, a path that leads nowhere and one without a label"
    pd = pytest.importorskip('pandas')
    pytest.importorskip('pyarrow')
    monkeypatch.chdir(tmp_path)
    truth, given = folder(tmp_path/'set/img', wrong=(3, 10, 41))
    names = [next((tmp_path/'set/img').rglob(f'{i:03}.png')).relative_to(tmp_path/'set').as_posix() for i in range(60)]
    pd.DataFrame(dict(photo=[*names, 'img/gone.png', names[0]], kind=pd.array([*(7 + given), 7, None], dtype='Int64'), seen=0.)).to_parquet('set/list.parquet')
    before = state(tmp_path/'set')
    assert cli.main(['audit', 'set/list.parquet', '-p', 'path_column', 'photo', '-p', 'label_column', 'kind', '--corrected']) == 0
    assert state(tmp_path/'set') == before and '60 checked, 3 flagged' in capsys.readouterr().out
    place = Path('reports/audit/list')
    rows, new = table(place/'suspects.csv'), table(place/'labels_corrected.csv')
    assert len(rows) == 62 and {r['path'] for r in rows[:3]} == {names[i] for i in (3, 10, 41)} and {(r['given'], r['suggested']) for r in rows[:3]} <= {('7', '8'), ('8', '7')}
    assert [r['problem'] for r in rows[:60]] == ['']*60 and sorted(r['path'] for r in rows[60:]) == sorted([names[0], 'img/gone.png']) and all(r['problem'] for r in rows[60:])
    assert {r['path']: r['label'] for r in new} == {n: str(7 + t) for n, t in zip(names, truth)}
    record = json.loads((place/'audit.json').read_text())
    assert (record['n_labels'], record['n_listed'], record['n_classes']) == (60, 62, 2) and 'list.parquet' in record['provenance']['command']
    assert '3 of 60 labels are flagged' in BeautifulSoup((place/'audit.html').read_text(), 'html.parser').h1.text

def test_two_inputs_of_one_name_do_not_share_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images, truth, given = arrays(n=30, wrong=(3,))
    for place, labels in dict(a=given, b=truth).items():
        (tmp_path/place).mkdir()
        np.savez(tmp_path/place/'toy.npz', train_images=images, train_labels=labels, test_images=images[:2], test_labels=truth[:2])
    assert cli.main(['audit', 'a/toy.npz', '--embedding', 'raw']) == 0
    first = {p.name: p.read_bytes() for p in Path('reports/audit/toy').iterdir()}
    capsys.readouterr()
    assert cli.main(['audit', 'b/toy.npz', '--embedding', 'raw']) == 2
    said = capsys.readouterr().err
    assert 'holds the audit of a/toy.npz' in said and '-o' in said and said.count('\n') == 1
    assert {p.name: p.read_bytes() for p in Path('reports/audit/toy').iterdir()} == first
    assert cli.main(['audit', 'b/toy.npz', '--embedding', 'raw', '-o', 'mine']) == 0 and Path('mine/audit.html').exists()
    for again in 'a/toy.npz', './a/../a/toy.npz', str(tmp_path/'a/toy.npz'): assert a.AuditConfig(again).place() == Path('reports/audit/toy')
    for absolute in tmp_path/'a/toy.npz', tmp_path/'a/../a/toy.npz':   # what is kept does not say where it lies, and knows it again
        assert cli.main(['audit', str(absolute), '--embedding', 'raw']) == 0 and str(tmp_path) not in Path('reports/audit/toy/audit.ipynb').read_text()
    assert cli.main(['audit', str(tmp_path/'b/toy.npz'), '--embedding', 'raw']) == 2
    for damage in '', '{}', '{"metadata": {"papermill": 1}}', '[]':
        Path('reports/audit/toy/audit.ipynb').write_text(damage)
        assert a.AuditConfig('b/toy.npz').place() == Path('reports/audit/toy')

@pytest.mark.parametrize('args, words', [
    (['nowhere'], "no folder, table or data set 'nowhere'"),
    (['nothing.npz'], 'nothing.npz'),
    (['photos', '--method', 'wan'], "did you mean 'wann'"),
    (['photos', '--embedding', 'rwa'], "did you mean 'raw'"),
    (['photos', '--embedding', 'mine.npz'], 'mine.npz'),
    (['photos', '-p', 'n_show', '3'], "did you mean 'n_shown'"),
    (['photos', '-p', 'out', 'x'], "no parameter 'out'"),
    (['photos', '-p', 'n_shown', '-1'], 'n_shown is -1'),
    (['photos', '-p', 'options', '{k_mim: 5}'], "did you mean 'k_min'"),
    (['photos', '-p', 'noise_type', 'symmetric'], 'audited as they are'),
    (['photos', '-p', 'noise_type', 'none', '-o', 'photos'], 'only read'),
    (['photos', '-o', 'photos/up/report'], 'only read'),
    (['photos', '-o', 'link'], 'only read'),
    (['labels.csv', '-o', 'photos/up'], 'only read'),
    (['suspects.csv', '-o', '.'], 'only read'),
    (['labels.csv', '-p', 'label_column', 'lable'], "'lable'"),
    (['digits', '-p', 'noise_type', 'worst'], "no kind of noise for digits 'worst'"),
    (['bare'], 'no pictures in class folders'),
    ([], 'path')])
def test_mistakes_are_one_line_and_nothing_runs(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path/'photos', n=4)
    (tmp_path/'bare').mkdir(); (tmp_path/'link').symlink_to('photos/up')
    Path('labels.csv').write_text('path,label\nphotos/up/000.png,a\nphotos/down/001.png,b\n')
    shutil.copy('labels.csv', 'suspects.csv')
    monkeypatch.setattr('papermill.execute_notebook', lambda *a, **k: pytest.fail('it ran'))
    before = state(tmp_path)
    try: status = cli.main(['audit', *args])
    except SystemExit as e: status = e.code
    out, err = capsys.readouterr()
    assert status == 2 and err.startswith('noisynb: ') and words in err and err.count('\n') == 1 and out == ''
    assert {k: v for k, v in state(tmp_path).items() if not k.startswith('.')} == {k: v for k, v in before.items() if not k.startswith('.')}

def test_the_cache_may_not_lie_in_the_input(tmp_path, monkeypatch):
    folder(tmp_path/'photos', n=4)
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path/'photos/cache'))
    with pytest.raises(NoisynbError, match='NOISYNB_CACHE'): a.audit(tmp_path/'photos')
    assert not (tmp_path/'photos/cache').exists()

def test_a_set_may_be_called_like_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path/'digits', n=4)
    assert len(a.subject('digits')) == 1257 and len(a.subject('./digits')) == 4


# small and odd inputs

@pytest.mark.parametrize('n', [1, 2, 3])
def test_hardly_any_images(n, tmp_path):
    folder(tmp_path/'few', n=n)
    found = a.audit(tmp_path/'few', embedding='pca:4')
    assert len(found.quality) == n and np.isfinite(found.quality).all()
    for block in (view.title, view.headline, view.audit_facts, view.suspect_cards, view.conflicts, view.unreadable, view.by_class, view.by_pair): assert repr(block(found)) is not None
    assert len(table(found.write(tmp_path/'out')[0])) == n

def test_one_class_only(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path/'one/up').mkdir(parents=True)
    for i in range(20): Image.fromarray(picture(0, rng)).save(tmp_path/f'one/up/{i}.png')
    found = a.audit(tmp_path/'one', embedding='pca:4')
    assert (found.quality == 1).all() and not found.flagged.any() and found.near.shape == (20, 19)
    assert 'No label is flagged' in view.suspect_cards(found).markup

def test_nothing_can_be_read(tmp_path):
    for c in 'ab':
        (tmp_path/'bad'/c).mkdir(parents=True)
        (tmp_path/'bad'/c/'x.png').write_bytes(b'x')
    with pytest.raises(NoisynbError, match='none of the 2 images'): a.audit(tmp_path/'bad')

def test_parts_of_a_folder_are_audited_together(tmp_path):
    for part, seed in dict(train=0, test=1).items(): folder(tmp_path/'set'/part, n=30, wrong=(2,), seed=seed)
    found = a.audit(tmp_path/'set', embedding='pca:4')
    assert len(found.quality) == 60 and sorted(found.subject.parts[found.ranking[:2]]) == ['test', 'train']
    assert table(found.write(tmp_path/'out')[0])[0]['part'] in ('train', 'test')

def test_absolute_paths_stay_out_of_the_page(tmp_path):
    truth, given = folder(tmp_path/'far/photos', n=30, wrong=(3,))
    paths = sorted((tmp_path/'far/photos').rglob('*.png'))
    (tmp_path/'near').mkdir()
    (tmp_path/'near/list.csv').write_text('path,label\n' + ''.join(f'{p},{p.parent.name}\n' for p in paths))
    found = a.audit(tmp_path/'near/list.csv', embedding='pca:4')
    assert 'photos' not in view.suspect_cards(found).markup and str(tmp_path) not in view.suspect_cards(found).markup and '003.png' in view.suspect_cards(found).markup
    assert {r['path'] for r in table(found.write(tmp_path/'out')[0])} == set(map(str, paths)) # as the reader's own table has them


# methods, neighbours, embeddings

@pytest.mark.parametrize('method', ['knn', 'ann', 'wann', 'corrected', 'linear'])
def test_any_method_gives_what_it_gives_by_itself(method):
    images, truth, labels = arrays(n=80, wrong=(3, 50))
    found = a.audit(dataset(images, labels), embedding='raw', method=method)
    model = a.estimator(method).fit(images.reshape(80, -1).astype(np.float32)/255, labels)
    np.testing.assert_allclose(found.quality, model.label_quality_, atol=1e-6)
    assert (found.suggested == model.corrected_labels_).all() and set(found.ranking[:2]) == {3, 50}

class Loner(NoisyLabelClassifier):
    "A method without neighbours, for images"
    input, quality_threshold_ = 'images', .5
    def fit(self, X, y):
        assert X.dtype == np.uint8 and X.ndim == 4
        self.label_quality_ = 1 - (X.mean((1, 2, 3)) % 1)
        self.corrected_labels_ = np.zeros_like(y)
        return self

def test_a_method_without_graph_still_shows_neighbours(monkeypatch):
    monkeypatch.setitem(methods, 'loner', Entry('test_audit:Loner', 'Loner', 'for this test'))
    monkeypatch.setitem(sys.modules, 'test_audit', sys.modules[__name__])
    images, _, labels = arrays(n=40)
    found = a.audit(dataset(images, labels), embedding='raw', method='loner')
    assert found.flagged.sum() > 5 and found.near.shape == (40, 39) and 'against' in view.suspect_cards(found).markup

def test_neighbours_for_and_against_are_the_nearest_of_each_side():
    images, _, labels = arrays(n=50, wrong=(6,))
    found = a.audit(dataset(images, labels), embedding='raw')
    x = images.reshape(50, -1).astype(float)
    d = ((x - x[6])**2).sum(1); d[6] = np.inf
    order = d.argsort()
    against, favor = view.against_and_for(found, 6)
    assert list(against) == [i for i in order if labels[i] != labels[6]][:3] and list(favor) == [i for i in order if labels[i] == labels[6]][:3]

def test_ready_made_features_are_matched_by_position(tmp_path):
    "Also where a file between them can't be read"
    folder(tmp_path/'set', n=40, wrong=(5,))
    paths = list(a.subject(tmp_path/'set').images.paths)
    spot = 11
    (tmp_path/'set'/paths[spot]).write_bytes(b'')
    rng = np.random.default_rng(0)
    features = np.array([[int(Path(p).stem) % 2, *.1*rng.random(2)] for p in paths])
    np.savez(tmp_path/'f.npz', train=features)
    found = a.audit(tmp_path/'set', embedding=str(tmp_path/'f.npz'))
    assert len(found.quality) == 39 and found.subject.label(found.ranking[0]).endswith('005.png') and found.record['embedding'] == 'f.npz'
    np.savez(tmp_path/'f.npz', train=features[:-1])
    with pytest.raises(NoisynbError, match='39 rows'): a.audit(tmp_path/'set', embedding=str(tmp_path/'f.npz'))

def test_auto_takes_the_best_there_is(tmp_path, monkeypatch):
    big, small = np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 8, 8, 1), np.uint8)
    data, hub = tmp_path/'data', tmp_path/'.hf_home/hub'
    data.mkdir()
    name, why = embeddings.choose(big, data)
    assert name == 'pca:64' and 'no .onnx' in why
    with monkeypatch.context() as m:
        m.setattr(embeddings, 'find_spec', lambda name: None)
        assert 'timm and onnxruntime not installed' in embeddings.choose(big, data)[1]
    monkeypatch.setenv('HF_HOME', str(hub.parent))
    for file, size in dict(a=10, b=30, c=20).items(): (data/f'{file}.onnx').write_bytes(b'x'*size)
    assert embeddings.choose(big, data)[0] == 'onnx:b.onnx' and 'largest of 3' in embeddings.choose(big, data)[1]
    weights = hub/'models--timm--vit_small_patch14_dinov2.lvd142m/snapshots/1 2+3/model.safetensors'
    weights.parent.mkdir(parents=True); weights.touch()
    name, why = embeddings.choose(big, data)
    assert embeddings.parse(name)[1:] == ('vit_small_patch14_dinov2.lvd142m', dict(weights=str(weights), size=224)) and str(hub) not in portable(name) + why
    assert embeddings.choose(small, data)[0] == 'pca:64' and embeddings.embed_images(big, 'raw')[3] == 'it was asked for'

def test_auto_survives_a_file_that_is_no_network(tmp_path):
    folder(tmp_path/'set', n=20, wrong=(3,))
    (tmp_path/'data').mkdir(); (tmp_path/'data/junk.onnx').write_bytes(b'junk')
    found = a.audit(tmp_path/'set', data_dir=tmp_path/'data')
    assert found.record['embedding'] == 'pca:20' and 'junk.onnx, which was there, could not be used' in found.record['embedding_why'] and str(tmp_path) not in json.dumps(found.record)
    with pytest.raises(NoisynbError, match='damaged or no ONNX'): a.audit(tmp_path/'set', embedding='onnx:junk.onnx', data_dir=tmp_path/'data')


# near-duplicates

def closure(keys, D, limit):
    "Groups by brute force: merge until nothing changes"
    group = list(range(len(keys)))
    changed = True
    while changed:
        changed = False
        for i in range(len(keys)):
            for j in range(len(keys)):
                if i != j and (keys[i] == keys[j] or D[i, j] <= limit) and group[i] != group[j]:
                    group[i] = group[j] = min(group[i], group[j]); changed = True
    return {frozenset(i for i in range(len(keys)) if group[i] == g) for g in group if group.count(g) > 1}

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 12)), min_size=2, max_size=14))
def test_near_duplicates_are_those_of_brute_force(points):
    x, keys = np.array([p[0]/10 for p in points]), np.array([str(p[1]) for p in points])
    D = abs(x[:, None] - x)
    near = np.argsort(D + 1e9*np.eye(len(x)), 1, kind='stable')[:, :-1]
    group, limit = a.near_duplicates(keys, near, np.take_along_axis(D, near, 1), close=.3)
    apart = [min((D[i, j] for j in range(len(x)) if D[i, j] > 0), default=np.inf) for i in range(len(x))]
    apart = [v for v in apart if np.isfinite(v)]
    assert limit == pytest.approx(.3*np.median(apart) if apart else 0)
    assert {frozenset(np.flatnonzero(group == g)) for g in set(group) - {-1}} == closure(keys, D, limit)
    named = [g for g in group if g >= 0]
    assert list(dict.fromkeys(named)) == list(range(len(set(named)))) # numbered as they come

def test_copies_with_two_labels_are_found(tmp_path):
    "An equal file, and one stored again in another format"
    folder(tmp_path/'set', n=30)
    shutil.copy(tmp_path/'set/up/000.png', tmp_path/'set/down/copy.png')
    Image.open(tmp_path/'set/down/001.png').save(tmp_path/'set/up/again.bmp')
    shutil.copy(tmp_path/'set/up/002.png', tmp_path/'set/up/same label.png')
    found = a.audit(tmp_path/'set', embedding='pca:16')
    pairs = [{found.subject.label(i) for i in g} for g in found.conflicts()]
    assert pairs == [{'up/000.png', 'down/copy.png'}, {'down/001.png', 'up/again.bmp'}] and found.record['n_conflicts'] == 2 and found.record['n_twins'] == 6
    text = BeautifulSoup(view.conflicts(found).markup, 'html.parser').text
    assert 'nearly equal' not in text.split('again')[0] and 'nearly equal' in text
    rows = {r['path']: r['twins'] for r in table(found.write(tmp_path/'out')[0])}
    assert rows['up/000.png'] == rows['down/copy.png'] != '' and rows['up/002.png'] == rows['up/same label.png'] != rows['up/000.png'] and rows['up/004.png'] == ''


# the table and the page

@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.characters(codec='utf-8') | st.sampled_from('=+-@\t\r\n",;\'')), min_size=1, max_size=4))
def test_cells_come_back_and_are_no_formulas(tmp_path_factory, cells):
    place = tmp_path_factory.mktemp('cells')/'x.csv'
    a._write_csv(place, [[a._safe_path(c) for c in cells], cells])
    with open(place, newline='', encoding='utf-8') as f: paths, texts = csv.reader(f)
    for cell, path, text in zip(cells, paths, texts):
        assert path in (cell, './' + cell) and text in (cell, "'" + cell)
        for shown in path, text: assert not re.match(r'\s*[=+@\-]', shown) or re.fullmatch(r'[+-]?\d+(\.\d+)?', shown)

def test_names_are_escaped_everywhere(tmp_path):
    images, _, labels = arrays(n=40, wrong=(3, 8))
    found = a.audit(dataset(images, labels, (nasty, '<b>"\'&\x00\u2028</b>'), name=nasty), embedding='raw')
    found.notes.append(nasty)
    for block in (view.title, view.headline, view.audit_facts, view.suspect_cards): assert '<script' not in block(found).markup and '<b>"' not in block(found).markup and '\x00' not in block(found).markup
    for t in (view.by_class(found), view.by_pair(found)): assert '<script' not in t._repr_html_() and '&lt;script' in t._repr_html_()

def test_counts_by_class_and_pair():
    images, truth, labels = arrays(n=90, wrong=(3, 8, 20, 41), kinds=2)
    found = a.audit(dataset(images, labels), embedding='raw')
    flagged = found.flagged
    assert {r['given class']: (r['labels'], r['flagged']) for r in view.by_class(found).rows} == {c: (int((labels == k).sum()), int((flagged & (labels == k)).sum())) for k, c in enumerate(('up', 'down'))}
    assert {(r['given'], r['suggested']): r['labels'] for r in view.by_pair(found).rows} == {p: n for p in (('up', 'down'), ('down', 'up')) if (n := int((flagged & (labels == ('up', 'down').index(p[0])) & (found.suggested == ('up', 'down').index(p[1]))).sum()))}

def test_pictures_are_small_and_true():
    for image in (np.random.default_rng(0).integers(0, 256, (300, 200, 3)).astype(np.uint8), np.full((28, 28, 1), 90, np.uint8), np.full((9, 9, 4), 90, np.uint8)):
        kind, data = view.thumbnail(image, 64).split(';base64,')
        back = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == 'data:image/webp' and max(back.size) <= 64 and back.width*image.shape[0] == pytest.approx(back.height*image.shape[1], rel=.05) and len(data) < 6000
        assert np.asarray(back).mean() == pytest.approx(image[..., :3].mean(), abs=6)

def test_the_page_of_large_photographs_is_small(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        (tmp_path/f'set/{i % 2}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (300, 400, 3)).astype(np.uint8)).save(tmp_path/f'set/{i % 2}/{i}.png')
    found = a.audit(tmp_path/'set', embedding='raw')
    found.flagged[:] = True # noise is the worst that an image file can be made to hold
    assert len(view.suspect_cards(found).markup) + len(view.conflicts(found).markup) < 550_000

def test_a_graph_of_the_page_needs_no_more_than_it_shows(tmp_path, monkeypatch):
    "Nothing decodes all images at once"
    folder(tmp_path/'set', n=60, wrong=(3,))
    def whole(self, *_, **__): raise AssertionError('all images were decoded at once')
    monkeypatch.setattr(Files, '__array__', whole)
    tiny = Extractor('tiny', '1', 'none', lambda b: b.reshape(len(b), -1)[:, ::997], batch_size=16)
    found = a.audit(tmp_path/'set', embedding=tiny)
    assert len(view.suspect_cards(found).markup) > 500 and found.write(tmp_path/'out')


# going on after an interruption

def test_files_are_looked_at_once(tmp_path, monkeypatch):
    folder(tmp_path/'set', n=30)
    files, calls = a.subject(tmp_path/'set').images, []
    def scan(part):
        calls.append(len(part))
        if len(calls) == 3: raise KeyboardInterrupt
        return real(part)
    real = a.scan
    monkeypatch.setattr(a, 'scan', scan)
    with pytest.raises(KeyboardInterrupt): a.scanned(files, step=10)
    assert len(a.scanned(files, step=10)) == 30 and calls == [10, 10, 10, 10] and a.scanned(files, step=10) and len(calls) == 4
    Image.fromarray(picture(0, np.random.default_rng(5), 21)).save(tmp_path/'set'/files.paths[0])
    a.scanned(a.subject(tmp_path/'set').images, step=10)
    assert calls[4:] == [10] # only the lot with the changed file
    for place in (tmp_path/'.noisynb_cache/scans').iterdir(): place.write_text('[]')
    assert len(a.scanned(files, step=10)) == 30 and calls[5:] == [10, 10, 10] # what is damaged is done again

def test_a_killed_audit_goes_on(tmp_path, monkeypatch):
    "SIGKILL in the middle of the embedding; the second run computes the rest only and finds what an undisturbed one finds"
    folder(tmp_path/'set', n=60, wrong=(3, 10))
    code = textwrap.dedent(f'''
        import time
        from noisynb.audit import audit
        from noisynb.embeddings.extractors import Extractor
        def run(batch):
            print(len(batch), flush=True)
            time.sleep(.15)
            return batch.reshape(len(batch), -1)[:, ::331]
        audit({str(tmp_path/'set')!r}, embedding=Extractor('every331', '0', 'none', run, batch_size=5)).write({str(tmp_path/'out')!r})
    ''')
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'), cwd=root)
    for _ in range(5): p.stdout.readline()
    p.send_signal(signal.SIGKILL); p.wait(); p.stdout.close()
    assert not (tmp_path/'out').exists() and list(Path(os.environ['NOISYNB_CACHE']).rglob('*.partial'))
    seen = []
    every = Extractor('every331', '0', 'none', lambda b: (seen.append(len(b)), b.reshape(len(b), -1)[:, ::331])[1], batch_size=5)
    resumed, computed = a.audit(tmp_path/'set', embedding=every).write(tmp_path/'out')[0].read_bytes(), sum(seen)
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path/'other'))
    whole = a.audit(tmp_path/'set', embedding=every).write(tmp_path/'out')[0].read_bytes()
    assert 0 < computed <= 60 - 4*5 and sum(seen) - computed == 60 and resumed == whole

def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    images, _, labels = arrays(n=20)
    found = a.audit(dataset(images, labels), embedding='raw')
    (tmp_path/'suspects.csv').write_text('old')
    monkeypatch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(NoisynbError, match='No space left'): found.write(tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir() if p.is_file()] == [('suspects.csv', 'old')]

def test_the_declared_parameters_are_those_of_the_check():
    known = notebook.declared(root/'nbs/audit_labels.ipynb')
    assert set(known) == set(inspect.signature(a.AuditConfig).parameters) and all(p['help'] for p in known.values())
