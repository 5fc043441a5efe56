"One run, from names to a record"
import json, re, shlex
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup

from noisynb import experiment, published, record
from noisynb.reports import printing, run_page
from noisynb.core import NoisynbError
from noisynb.datasets import Dataset, Split, datasets, load
from noisynb.experiment import Config, add_noise, prepare, run
from noisynb.disk import portable
from noisynb.methods import make
from noisynb.published import published_for

small = dict(n_train=240, seed=3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path/'cache'))


@pytest.fixture(scope='module')
def wann(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('NOISYNB_CACHE', str(tmp_path_factory.mktemp('cache')))
        return run(**small)


def numbers(result):
    "What must not change from run to run"
    return {k: v for k, v in result.items() if not k.endswith(('seconds', 'cached', 'mib')) and k != 'provenance'}


@pytest.mark.parametrize('wrong, message', [
    (dict(method='wan'), "no method 'wan'; did you mean 'wann'"),
    (dict(dataset='digit'), "did you mean 'digits'"),
    (dict(dataset='nowhere.npz'), 'nowhere.npz'),
    (dict(noise_type='symetric'), "did you mean 'symmetric'"),
    (dict(noise_type='worst'), 'kind of noise for digits'),
    (dict(noise_type='matrix'), 'kind of noise for digits'),
    (dict(noise_rate=1.5), 'noise_rate is 1.5'), (dict(noise_rate=True), 'noise_rate is True'), (dict(noise_rate=None), 'noise_rate is None'), (dict(noise_rate='0.4'), "noise_rate is '0.4'"), (dict(noise_rate=float('nan')), 'noise_rate'),
    (dict(options={'kmin': 5}), "did you mean 'k_min'"), (dict(options=[1]), 'give a dict'),
    (dict(epochs=3), 'does not train in epochs'), (dict(time_budget=3), 'does not train in epochs'),
    (dict(n_train=0), 'n_train is 0'), (dict(n_train=1.5), 'n_train is 1.5'), (dict(n_train=99_999), '1,257 training images'),
    (dict(imbalance=0), 'imbalance is 0'), (dict(imbalance=2), 'imbalance is 2'),
    (dict(device='cud'), "device is 'cud'"), (dict(seed=-1), 'seed'), (dict(seed='x'), 'seed'), (dict(embedding='rawr'), 'embedding'),
])
def test_mistakes_are_refused_in_words(wrong, message):
    with pytest.raises(NoisynbError, match=re.escape(message)): run(**small | wrong)


def test_names_are_checked_before_data_is_read(monkeypatch):
    monkeypatch.setattr(experiment, 'load', lambda *a, **k: pytest.fail('read the data first'))
    for wrong in (dict(method='wan'), dict(noise_type='x'), dict(options={'x': 1}), dict(noise_rate=7), dict(embedding='rawr')):
        with pytest.raises(NoisynbError): run(**wrong)


def test_numbers_against_scikit_learn(wann):
    from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, f1_score, precision_score, recall_score, roc_auc_score
    from sklearn.neighbors import KNeighborsClassifier
    data, noisy, model, r = wann.data, wann.noisy, wann.model, wann.result
    wrong = noisy.given != data.train.labels
    flagged = model.label_quality_ < model.quality_threshold_
    predicted = model.predict(wann.embedded.test)
    expected = dict(noise_rate_realised=wrong.mean(), test_accuracy=accuracy_score(data.test.labels, predicted), test_balanced_accuracy=balanced_accuracy_score(data.test.labels, predicted),
        test_macro_f1=f1_score(data.test.labels, predicted, average='macro'), label_error_auroc=roc_auc_score(wrong, -model.label_quality_), label_error_f1=f1_score(wrong, flagged),
        label_error_average_precision=average_precision_score(wrong, -model.label_quality_), label_error_precision=precision_score(wrong, flagged), label_error_recall=recall_score(wrong, flagged),
        n_flagged=flagged.sum(), correction_accuracy=(model.corrected_labels_ == data.train.labels).mean(), n_train=240, n_test=540, n_classes=10)
    assert {k: r[k] for k in expected} == pytest.approx(expected)
    for k in (11, 51):   # the baselines are plain votes on the same labels
        plain = KNeighborsClassifier(k, algorithm='brute').fit(wann.embedded.train, noisy.given)
        assert r['baseline_accuracy'][f'knn-{k}'] == pytest.approx(plain.score(wann.embedded.test, data.test.labels), abs=1.5/540)


def test_same_seed_same_record_other_seed_other_labels(wann):
    again, other = run(**small), run(**small | dict(seed=4))
    assert numbers(again.result) == numbers(wann.result) and (again.noisy.given == wann.noisy.given).all()
    assert numbers(other.result) != numbers(wann.result)


def test_global_random_state_and_inputs_are_left_alone(wann):
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    run(**small)
    assert (np.random.get_state()[1] == before).all()


def test_labels_do_not_depend_on_method_or_embedding(wann):
    other = run(method='knn', embedding='pca:8', options={'k': 3}, **small)
    assert (other.noisy.given == wann.noisy.given).all() and (other.data.train.images == wann.data.train.images).all()
    assert other.result['embedding'] == 'pca:8' and other.result['options'] == {'k': 3} and set(other.result['baseline_accuracy']) == {'knn-11', 'knn-51'}


def test_a_method_is_not_its_own_baseline(): assert set(run(method='knn', **small).result['baseline_accuracy']) == {'knn-51'}


@pytest.mark.parametrize('options', [{}, {'standardize': True}, {'metric': 'cosine'}])
def test_graph_is_searched_once_and_its_seconds_are_kept(options, monkeypatch, tmp_path):
    first = run(options=options, **small)
    monkeypatch.setattr('noisynb.neighbors.NeighborGraph.fit', lambda *a: pytest.fail('searched again'))
    second = run(options=options, **small)
    a, b = first.result, second.result
    assert (a['graph_cached'], b['graph_cached']) == (False, True) and numbers(a) == numbers(b)
    assert a['graph_seconds'] == b['graph_seconds'] > 0 and a['fit_seconds'] > a['graph_seconds'] and b['fit_seconds'] > b['graph_seconds']
    assert all(m.graph_ is second.graph for m in (second.model, *second.baselines.values()))


@pytest.mark.parametrize('damage', ['indices.npy', 'graph.json', 'seconds'])
def test_damaged_graph_is_made_again(damage, tmp_path):
    first = run(**small)
    path, = (tmp_path/'cache').rglob(damage)
    path.write_bytes(path.read_bytes()[:-20] + b'x'*20)
    again = run(**small)
    assert not again.result['graph_cached'] and (again.graph.indices_ == first.graph.indices_).all() and run(**small).result['graph_cached']


def test_unwritable_cache_is_a_note(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path/'file'))
    this = run(**small)
    assert this.result['graph_cached'] is False and any('not kept' in note for note in this.notes)


def test_a_disk_without_locks_is_a_note(monkeypatch):
    from noisynb import experiment
    def acquire(self, *a, **k): raise NotImplementedError
    monkeypatch.setattr(experiment.FileLock, 'acquire', acquire)
    first, again = run(**small), run(**small)
    assert again.result['graph_cached'] and all(sum('NOISYNB_CACHE' in note for note in this.notes) == 1 for this in (first, again))


def test_scaling_of_the_method_is_that_of_the_baselines():
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler
    this = run(options={'standardize': True, 'k_max': 61}, **small)
    assert all(m.standardize for m in this.baselines.values()) and this.graph.indices_.shape == (240, 61)
    scaler = StandardScaler().fit(this.embedded.train)
    plain = KNeighborsClassifier(11, algorithm='brute').fit(scaler.transform(this.embedded.train), this.noisy.given)
    assert this.result['baseline_accuracy']['knn-11'] == pytest.approx(plain.score(scaler.transform(this.embedded.test), this.data.test.labels), abs=1.5/540)


def test_few_examples(tmp_path):
    "Fewer examples than neighbours: said once, not printed with folders"
    this = run(n_train=30, seed=0)
    assert this.result['n_train'] == 30 and this.notes and len(this.notes) == len(set(this.notes))
    assert set(this.result['baseline_accuracy']) == {'knn-11', 'knn-29'}   # named by how many could vote
    assert set(run(n_train=10, seed=0).result['baseline_accuracy']) == {'knn-9'}


def test_warnings_of_arithmetic_are_notes():
    with experiment.noted() as notes:
        np.log(np.zeros(2)), np.log(np.zeros(2))
    assert len(notes) == 1 and 'divide by zero' in notes[0]


def test_prepare_thins_the_training_part_only():
    whole, data, rows = prepare('digits', n_train=100, imbalance=.1, seed=1)
    assert (whole.train.images[rows] == data.train.images).all() and (whole.train.labels[rows] == data.train.labels).all() and data.test is whole.test
    sizes = np.bincount(data.train.labels, minlength=10)
    assert sizes.sum() == 100 and sizes[0] > 5*sizes[9] > 0
    same, plain, every = prepare('digits')
    assert same is plain and (every == np.arange(1257)).all()


def test_ready_arrays_are_taken_row_by_row(tmp_path):
    data = load('digits')
    features = [split.images.reshape(len(split), -1).astype(np.float32) for split in (data.train, data.test)]
    np.savez(tmp_path/'mine.npz', train=features[0], test=features[1])
    this = run(embedding=str(tmp_path/'mine.npz'), **small)
    assert (this.embedded.train == this.data.train.images.reshape(240, -1)).all() and this.result['embedding'] == 'mine.npz'
    assert str(tmp_path) not in json.dumps(this.result)


def tiny(n=60, human=True):
    "Twelve-pixel images of three classes, labelled by people too"
    g = np.random.default_rng(0)
    y = np.arange(n) % 3
    images = (g.integers(0, 60, (n, 2, 6, 1)) + 80*y[:, None, None, None]).astype(np.uint8)
    return Dataset('tiny', Split(images, y, {'worst': np.where(np.arange(n) < n//4, (y + 1) % 3, y)} if human else {}), Split(images[:9], y[:9]), ('a', 'b', '<i>c</i>'))


def test_human_labels_have_their_own_rate():
    noisy = add_noise(tiny(), 'worst', .9)
    assert noisy.rate == .25 and noisy.rate_nominal is None


def test_human_labels_in_the_record(monkeypatch):
    data = tiny()
    monkeypatch.setattr(experiment, 'load', lambda *a: data)
    monkeypatch.setattr(experiment, 'available', lambda *a: True)
    monkeypatch.setitem(datasets, 'tiny', SimpleNamespace(human=('worst',), asymmetric=None, mirrored=True))
    r = run(dataset='tiny', noise_type='worst', noise_rate=.9, options={'k_min': 3, 'k_max': 7}).result
    assert r['noise_rate'] is None and r['noise_rate_realised'] == .25 and 'noise_rate' not in r['provenance']['command']


def test_asymmetric_uses_the_map_of_the_data_set():
    data = tiny(human=False)
    noisy = add_noise(data, 'asymmetric', .5)
    assert (noisy.given[noisy.flipped] == (data.train.labels[noisy.flipped] + 1) % 3).all() and noisy.kind == 'asymmetric'


def test_no_noise():
    r = run(noise_type='none', **small).result
    assert r['noise_rate'] == 0 and r['noise_rate_realised'] is None and r['correction_accuracy'] is None and r['n_flagged'] >= 0
    assert all(v is None for k, v in r.items() if k.startswith('label_error_'))


other = dict(method='ce', dataset='svhn', noise_type='matrix', noise_rate=.33, n_train=1234, n_test=99, epochs=17, device='cpu', embedding='clip.npz', imbalance=.1, options=dict(recipe='fast'))

@pytest.mark.parametrize('figure', published.published, ids=lambda f: '-'.join(str(f.where[k]) for k in ('method', 'dataset', 'noise_type', 'noise_rate')))
def test_a_figure_is_found_by_its_setting_and_by_no_other(figure):
    assert published_for(figure.where | dict(seed=4)) == (figure.accuracy, figure.told)
    assert set(figure.where) <= set(other) and {'method', 'dataset', 'noise_type', 'noise_rate', 'n_train', 'n_test', 'embedding', 'imbalance', 'options'} <= set(figure.where)
    for key in figure.where:
        assert published_for(figure.where | {key: other[key]}) == (None, None) == published_for({k: v for k, v in figure.where.items() if k != key}), key
    assert published_for(figure.where | dict(options=figure.where['options'] | dict(learning_rate=.5))) == (None, None)

def test_figures_are_fractions_of_settings_that_can_be_run():
    assert all(0 < x < 1 for f in published.published for x in (f.accuracy, f.best, f.deviation) if x is not None)
    assert all(f.source and f.epoch in ('', 'last', 'best') and (f.best is None or f.best >= f.accuracy) for f in published.published)
    for f in published.published:
        w, model, spec = f.where, make(f.where['method'], **f.where['options']), datasets[f.where['dataset']]
        assert w['noise_type'] in ('none', *experiment.noise_with_rate, *spec.human) and (w['noise_rate'] is None) == (w['noise_type'] in spec.human)
        if recipe := w['options'].get('recipe'): assert model.recipes[recipe]['epochs'] == w['epochs'] and w['options'].get('setting') in (None, *model.settings)
    assert len({json.dumps(f.where, sort_keys=True) for f in published.published}) == len(published.published)

@pytest.mark.parametrize('where, numbers', [
    (('promix', 'cifar10', 'symmetric-included', .8, 'published'), (.9505, .9549, None)), (('promix', 'cifar100', 'symmetric-included', .2, 'published'), (.8239, .8264, None)),
    (('promix', 'cifar10', 'asymmetric', .4, 'published'), (.9651, .9659, None)), (('promix', 'cifar10n', 'worst', None, 'published'), (.9634, None, .0023)),
    (('promix', 'cifar100n', 'human', None, 'lmnl'), (.7339, None, .0005)), (('dividemix', 'cifar10', 'symmetric-included', .9, 'published'), (.754, .760, None)),
    (('dividemix', 'cifar10', 'asymmetric', .4, 'published'), (.921, .934, None)), (('dividemix', 'cifar100', 'symmetric-included', .8, 'published'), (.602, .602, None)),
    (('dividemix', 'cifar10n', 'random2', None, 'published'), (.9523, None, .0007)), (('dividemix', 'clothing1m', 'none', 0, 'clothing1m'), (.7476, None, None)),
    (('wann', 'cifar10', 'asymmetric', .4, None), (.907, None, .022)), (('ann', 'dermamnist', 'symmetric', .6, None), (.640, None, .008)), (('echoalign', 'cifar10', 'instance', .5, 'cifar10'), (.7666, None, None))])
def test_figures_digit_by_digit(where, numbers):
    "A sample, from the tables of papers and repositories"
    f = next(f for f in published.published if (*(f.where[k] for k in ('method', 'dataset', 'noise_type', 'noise_rate')), f.where['options'].get('recipe')) == where)
    assert (f.accuracy, f.best, f.deviation) == numbers

def of(method, dataset, kind, rate=None, **more):
    "A record of a network on all of CIFAR"
    return dict(method=method, dataset=dataset, noise_type=kind, noise_rate=rate, n_train=50_000, n_test=10_000, imbalance=None, embedding=None, device='cuda', epochs=300, seed=0) | more

def test_figures_stand_beside_the_published_recipe_and_no_other():
    mix = of('dividemix', 'cifar10', 'symmetric-included', .5)
    told = 'Li et al. 2020, arXiv:2002.07394, Table 1, last epoch'
    assert published_for(mix | dict(options=dict(recipe='published', setting='cifar10-symmetric-50'))) == (.944, told)
    assert published_for(mix | dict(options=dict(recipe='published'), device='cuda:1')) == (.944, f'{told}, there with values chosen for this noise')
    for options in ({}, dict(recipe='fast'), dict(recipe='published', setting='cifar10-symmetric-20'), dict(recipe='published', epochs=300)): assert published_for(mix | dict(options=options)) == (None, None)
    human = of('promix', 'cifar10n', 'worst')
    assert published_for(human | dict(options=dict(recipe='published', setting='cifar10n'), epochs=600))[0] == .9634
    assert published_for(human | dict(options=dict(recipe='lmnl', setting='cifar10n'), epochs=420))[0] == .9616
    assert published_for(of('promix', 'cifar100n', 'human', options=dict(recipe='published'), epochs=600))[0] == .7379
    assert published_for(of('smr', 'cifar10', 'symmetric-included', .5, options=dict(recipe='published'))) == (None, None)
    assert published_for(of('dividemix', 'cifar100', 'symmetric-included', .8, options=dict(recipe='published')))[1].startswith(f'{told[:-10]}best epoch')

def test_the_figure_of_a_run_is_in_its_record(monkeypatch):
    r = run(**small).result
    figure = published.Figure({k: r[k] for k in ('method', 'dataset', 'n_train', 'options')}, .5, 'A. Author', 'last')
    monkeypatch.setattr(published, 'published', [figure])
    assert r['published_accuracy'] is None and run(**small).result['published_source'] == 'A. Author, last epoch'


def test_command_makes_the_same_run(wann):
    from noisynb.reports.notebook import declared, find_notebook, read_parameters
    words = shlex.split(wann.result['provenance']['command'])
    asked = read_parameters(words[2], [(words[i + 1], words[i + 2]) for i in range(3, len(words), 3)], declared(find_notebook()))
    assert words[:3] == ['noisynb', 'run', 'wann'] and numbers(run(**asked).result) == numbers(wann.result)


@pytest.mark.parametrize('name, safe', [('digits', 'digits'), ('pca:64', 'pca:64'), ('data/x.npz', 'data/x.npz'), ('/home/me/x.npz', 'x.npz'), ('~/x.npz', 'x.npz'), ('../../x.npz', 'x.npz'),
    ('timm:vit.a?weights=/home/me/w.pth&size=64', 'timm:vit.a?weights=w.pth&size=64'), ('timm:vit?weights=%2Fhome%2Fme%2Fw.pth', 'timm:vit?weights=w.pth'), ('timm:hf_hub:timm/vit', 'timm:hf_hub:timm/vit'),
    ('onnx:../net.onnx?size=64', 'onnx:net.onnx?size=64'), ('/home/me/features', 'features')])
def test_of_a_path_that_leads_out_only_the_name_is_kept(name, safe): assert portable(name) == safe


def test_corrected_votes_have_a_page_like_the_others():
    r = run(method='corrected', **small).result
    assert r['test_accuracy'] > .5 and r['label_error_auroc'] > .6 and set(r['baseline_accuracy']) == {'knn-11', 'knn-51'}
    assert repr(run_page.title(r)).startswith('Corrected votes on digits')


def test_data_dir_may_name_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv('NOISYNB_DATA', str(tmp_path))
    with pytest.raises(NoisynbError, match=re.escape(str(tmp_path))): run(dataset='cifar10', data_dir='$NOISYNB_DATA')


def test_command_names_no_folder_and_quotes():
    line = Config('wann', '/home/me/a b.npz', '/home/me', 'onnx:/home/me/net.onnx?size=64', 'worst', seed=1, options={'k_max': 31}).command()
    assert '/home' not in line and shlex.split(line.replace('$NOISYNB_DATA', 'D')) == ['noisynb', 'run', 'wann', '-p', 'dataset', 'a b.npz', '-p', 'embedding', 'onnx:net.onnx?size=64',
        '-p', 'noise_type', 'worst', '-p', 'seed', '1', '-p', 'options', '{"k_max": 31}', '-p', 'data_dir', 'D']


def test_notebook_from_papermill_to_page(tmp_path):
    "The whole way, on a data set of the user's own whose class names are HTML"
    from papermill import execute_notebook
    from noisynb.reports.notebook import find_notebook
    data, evil = tiny(), ['<script>alert(1)</script>', 'b', 'c']
    np.savez(tmp_path/'mine.npz', train_images=data.train.images, train_labels=data.train.labels, test_images=data.test.images, test_labels=data.test.labels, class_names=evil)
    out = tmp_path/'out.ipynb'
    execute_notebook(str(find_notebook()), str(out), dict(dataset=str(tmp_path/'mine.npz'), noise_type='symmetric', noise_rate=.3, options={'k_min': 3, 'k_max': 9}), progress_bar=False)
    assert json.loads(record.write_json(out).read_text()) == record.read_result(out)
    page = BeautifulSoup(printing.write_page(out).read_text(), 'html.parser')
    headings = [h.get_text() for h in page.find_all(['h1', 'h2'])]
    assert headings[0] == 'WANN on mine, 30\u202f% symmetric noise, seed 0' and headings[1:] == ['The data', 'Label quality', 'The most suspicious labels', 'What it cost', 'Where the numbers come from', 'The record']
    assert not page.find_all('script') and 'given: <script>alert(1)</script>' in page.get_text() and page.find_all('img') and all(img['alt'] for img in page.find_all('img'))
    assert out.with_suffix('.html').stat().st_size < 300_000 and str(tmp_path) not in page.get_text()
    errors = [o for c in nbformat.read(out, 4).cells for o in c.get('outputs', []) if o.output_type in ('error', 'stream')]
    assert not errors


def test_page_of_labels_that_nobody_checked(tmp_path):
    "No added noise and no test part: nothing is claimed that is not known, and nothing is a row of dashes"
    from noisynb.reports.notebook import execute, find_notebook
    data = tiny()
    np.savez(tmp_path/'mine.npz', train_images=data.train.images, train_labels=data.train.human['worst'], test_images=data.test.images[:0], test_labels=data.test.labels[:0])
    page, out = execute(find_notebook(), tmp_path/'o/x.ipynb', dict(dataset=str(tmp_path/'mine.npz'), noise_type='none', options={'k_min': 3, 'k_max': 9}), [printing.write_page])
    page, r = BeautifulSoup(page.read_text(), 'html.parser'), record.read_result(out)
    text = page.get_text()
    assert r['n_test'] == 0 and r['noise_rate_realised'] is None and 0 < r['n_flagged'] < 60
    assert 'never saw' not in text and 'Test accuracy' not in text and 'tested' not in text and '–' not in text and 'it was' not in text
    assert len(page.select('.gallery figure')) == min(20, r['n_flagged']) and str(tmp_path) not in out.read_text()


def test_symmetric_noise_that_may_draw_the_true_class():
    from noisynb.noise import corrupt
    data, noisy = tiny(), add_noise(tiny(), 'symmetric-included', .5, 3)
    assert (noisy.given == corrupt(data.train, 'symmetric', .5, 3, n_classes=data.n_classes, include_true=True).given).all() and noisy.kind == 'symmetric-included'
    asked = dict(small, noise_type='symmetric-included', noise_rate=.5)
    r, plain = run(**asked).result, run(**dict(asked, noise_type='symmetric')).result
    assert (r['noise_type'], r['noise_rate']) == ('symmetric-included', .5) and r['noise_rate_realised'] == pytest.approx(.45, abs=.01) and plain['noise_rate_realised'] == pytest.approx(.5, abs=.01)
    assert '-p noise_type symmetric-included -p noise_rate 0.5' in r['provenance']['command'] and 'true class included' in run_page.describe(r)
    assert 'Labels drawn anew' in repr(run_page.data_facts(r)) and 'Labels drawn anew' not in repr(run_page.data_facts(plain))
    assert Config(**dict(asked, method='wann', dataset='digits')).place().parent.as_posix() == 'reports/digits/symmetric-included-0.5'
    with pytest.raises(NoisynbError, match='1.5'): run(**dict(asked, noise_rate=1.5))

def test_the_control_of_a_method_stands_beside_it():
    "EchoAlign is always shown with the same pipeline without echoes; the control has none of its own"
    few = dict(method='echoalign', dataset='digits', n_train=200, epochs=2, seed=1)
    this, alone = run(**few, options=dict(echomod='identity')), run(**few, options=dict(echomod='identity', mode='control'))
    assert this.result['baseline_accuracy'] == {'control': alone.result['test_accuracy']} and alone.result['baseline_accuracy'] == {}
    assert this.baselines['control'].mode == 'control' and this.model.mode != 'control'
