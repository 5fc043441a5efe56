"Comparing methods: which records, which tests, what the page says"
import json, math

import numpy as np
import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings, strategies as st
from scipy import stats

from noisynb import cli
from noisynb.reports import compare
from noisynb.core import NoisynbError
from noisynb.record import Result, pack, unpack
from noisynb.experiment import run

random = np.random.default_rng


def record(method='wann', seed=0, errors=None, flagged=None, wrong=None, n=200, **changes):
    "A record whose test errors and flags are given"
    r = dict(schema=1, method=method, dataset='digits', embedding='raw', noise_type='instance', noise_rate=.4, noise_rate_realised=.4, seed=seed, n_train=n, n_test=n, n_classes=10, imbalance=None,
             epochs=None, options={}, test_accuracy=.9, test_balanced_accuracy=.9, label_error_auroc=.9, label_error_average_precision=.8, label_error_f1=.7, correction_accuracy=.9, fit_seconds=1. + seed,
             predict_seconds=.1, peak_memory_mib=400., device='cpu', published_accuracy=None, published_source=None,
             provenance=dict(noisynb='0.1.0', commit=None, dirty=None, python='3.11', versions={}, hardware='Some CPU', threads=2, data='d', command='noisynb run', created='2026-01-01T00:00:00+00:00'))
    if errors is not None:
        flagged = np.zeros(n, bool) if flagged is None else flagged
        wrong = np.zeros(n, bool) if wrong is None else wrong
        r |= dict(test_accuracy=float(1 - errors.mean()), samples=dict(given=f'labels{seed}', flagged=pack(flagged), mistaken=pack(flagged ^ wrong), test_errors=pack(errors)))
    return Result(r | changes).check()


def keep(folder, *records):
    folder.mkdir(parents=True, exist_ok=True)
    for i, r in enumerate(records): (folder/f'{r["method"]}-{r["seed"]}-{i}.json').write_text(json.dumps(r))
    return folder


def rows(table): return [{k: str(v) for k, v in row.items()} for row in table.rows]


# one bit per example

@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), max_size=70))
def test_bits_come_back(mask): assert unpack(pack(mask), len(mask)).tolist() == mask

def test_bits_of_another_number_are_refused():
    with pytest.raises(NoisynbError, match='2 bytes do not hold one bit for each of 8 '): unpack(pack([True]*9), 8)

def test_record_of_a_run_holds_what_it_did():
    r = run('knn', noise_rate=.3, n_train=200)
    s, flagged = r.result['samples'], r.model.label_quality_ < r.model.quality_threshold_
    assert (unpack(s['flagged'], 200) == flagged).all() and (unpack(s['mistaken'], 200) == (flagged != r.noisy.flipped)).all()
    assert unpack(s['test_errors'], 540).mean() == pytest.approx(1 - r.result['test_accuracy']) and r.result['learning_curve'] == {}
    assert len(json.dumps(s)) < 300 and 'samples' not in r.result._repr_mimebundle_()['text/html']   # no bits among what people read
    clean = run('knn', noise_type='none', n_train=200).result['samples']
    assert clean['mistaken'] is None and clean['given'] != s['given']

def test_learning_curve_of_a_run():
    curve = run('ce', epochs=2, n_train=64).result
    assert len(curve['learning_curve']['test_accuracy']) == 2 and curve['learning_curve']['test_accuracy'][-1] == pytest.approx(curve['test_accuracy'], abs=1e-5)


# which records

def test_select(tmp_path):
    for kind in 'instance', 'pair': keep(tmp_path/kind, *(record(m, s, noise_type=kind, test_accuracy=a) for m, a in (('knn', .8), ('wann', .9)) for s in (0, 1)))
    (tmp_path/'pair/audit.json').write_text('{}')
    two = compare.select(str(tmp_path))
    assert [list(s.runs) for s in two] == [['WANN', 'k-NN']]*2 and [len(s.paths) for s in two] == [4, 4]
    assert [s.name for s in compare.select([tmp_path/'pair'])] == ['digits, 40\u202f% pair-flip noise']
    assert [list(s.runs) for s in compare.select(f'{tmp_path}/p*/*.json', method='knn', seed=[1, 2])] == [['k-NN']]
    assert two[0].seeds('WANN', 'k-NN') == [0, 1]
    with pytest.raises(NoisynbError, match='neither a record'): compare.select(str(tmp_path/'none'))
    with pytest.raises(NoisynbError, match='method knn, wann'): compare.select(str(tmp_path), method='promix')

def test_names_say_what_differs(tmp_path):
    (s,) = compare.select(str(keep(tmp_path, record(), record(embedding='b0.npz'), record(options={'k_max': 31}), record('ce', embedding=None))))
    assert sorted(s.runs) == ['Cross entropy', 'WANN (k_max 31) on raw', 'WANN on b0.npz', 'WANN on raw']


# tests of difference

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5))
def test_sign_flip_of_ones_is_mcnemar(plus, minus, ties):
    p = compare.sign_flip([1]*plus + [-1]*minus + [0]*ties)
    assert p == pytest.approx(stats.binomtest(plus, plus + minus).pvalue if plus + minus else 1.)

@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_sign_flip_by_counting(d):
    signs = np.array(np.meshgrid(*[[-1, 1]]*len(d))).reshape(len(d), -1)
    sums = signs.T @ np.array(d, int)
    assert compare.sign_flip(d) == pytest.approx((abs(sums) >= abs(sum(d))).mean())

def test_sign_flip_agrees_with_scipy_on_many():
    d = random(0).integers(-2, 3, 400) + (random(1).random(400) < .08)
    p = stats.permutation_test((d,), np.sum, permutation_type='samples', n_resamples=4000, rng=random(2)).pvalue
    assert compare.sign_flip(d) == pytest.approx(p, abs=.03) and .001 < p < .5

def test_large_differences_stay_exact():
    assert compare.sign_flip([1]*900 + [-1]*1100) == pytest.approx(stats.binomtest(900, 2000).pvalue, rel=1e-6)
    assert 0 <= compare.sign_flip([3]*20_000) < 1e-12

@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm(p):
    adjusted = compare.holm(p)
    assert all(a >= v - 1e-12 for a, v in zip(adjusted, p)) and max(adjusted) <= 1 and min(adjusted) == pytest.approx(min(1, len(p)*min(p)))
    assert [adjusted[i] for i in np.argsort(p, kind='stable')] == sorted(adjusted)

def noisy_pair(tmp_path, gain, seeds=3, n=200, base=.3):
    "Two methods whose errors share most images; b errs on `gain` more"
    g, made = random(0), []
    for s in range(seeds):
        hard = g.random(n) < base
        a, b = hard ^ (g.random(n) < .03), hard ^ (g.random(n) < .03)
        b[:gain] = True; a[:gain] = False
        made += [record('wann', s, a, n=n), record('knn', s, b, n=n)]
    (found,) = compare.select(str(keep(tmp_path, *made)))
    return found

def test_pairs_by_hand(tmp_path):
    s = noisy_pair(tmp_path, 40)
    (p,) = compare.differences(s)
    e = {m: np.array([compare.bits(r, 'test_errors') for r in runs.values()]) for m, runs in s.runs.items()}
    d = e['k-NN'].mean(1) - e['WANN'].mean(1)
    assert (p.a, p.b, p.n, p.wins) == ('WANN', 'k-NN', 3, 3) and p.difference == pytest.approx(d.mean())
    t = stats.ttest_rel(1 - e['WANN'].mean(1), 1 - e['k-NN'].mean(1))
    assert p.p_seeds == pytest.approx(t.pvalue) and p.interval == pytest.approx(tuple(t.confidence_interval(.95)))
    assert p.p_images == compare.sign_flip(e['WANN'].astype(int).sum(0) - e['k-NN'].astype(int).sum(0)) < 1e-6 and p.verdict() == 'better'
    assert p.p_labels == 1. and [row[k] for row, k in zip(compare.order_table(s, [p]).rows, '21')] == ['▲', '▼']
    p.p_seeds = .2
    assert p.verdict() == 'better (images)' and [row[k] for row, k in zip(compare.order_table(s, [p]).rows, '21')] == ['△', '▽']

def test_a_table_is_corrected_for_what_it_compares(tmp_path):
    made = lambda m, p: compare.Difference('a' if m != 'bc' else 'b', m[-1], 3, .1, 3, (0., .2), p, p, None, False)
    found = [made('ab', .02), made('ac', .03), made('bc', .012)]
    assert [p.p_images for p in compare.holm_corrected(found)] == pytest.approx([.04, .04, .036])
    s = compare.Setting('x', dict.fromkeys('abc', {}), [])
    assert [row['p, images'] for row in compare.difference_table(s, found).rows] == ['0.040', '0.040']
    assert [row['3'] for row in compare.order_table(s, found).rows] == ['▲', '▲', ''] and found[0].p_images == .02
    found[0].p_images, found[1].p_seeds = None, .5
    assert [row[k] for row, k in zip(compare.order_table(s, found).rows, '231')] == ['△', '▲', '▽']   # one test alone

def test_chance_is_not_progress(tmp_path):
    (p,) = compare.differences(noisy_pair(tmp_path, 0))
    assert p.verdict() == 'not told apart' and p.p_images > .05 and abs(p.difference) > 0   # one is ahead, and that means nothing

def test_false_alarms_are_as_rare_as_promised():
    "Two methods that err on other images but equally often: at 5 %, at most about 5 % alarms"
    g = random(0)
    alarms = [compare.sign_flip(((g.random((3, 150)) < .2).astype(int) - (g.random((3, 150)) < .2)).sum(0)) < .05 for _ in range(400)]
    assert np.mean(alarms) < .08

def test_repeated_answers_are_not_more_evidence(tmp_path):
    "Three copies of one run: the image is the unit, so p stays that of one run, and no test is made of seeds"
    a, b = random(0).random(200) < .2, random(0).random(200) < .25
    one = compare.differences(compare.select(str(keep(tmp_path/'one', record('wann', 0, a), record('knn', 0, b))))[0])[0]
    three = compare.differences(compare.select(str(keep(tmp_path/'three', *(record(m, s, e) | dict(samples=record(m, 0, e)['samples']) for m, e in (('wann', a), ('knn', b)) for s in range(3)))))[0])[0]
    assert three.p_images == pytest.approx(one.p_images) and three.copies and not one.copies and three.p_seeds is None and three.interval is None

def test_what_cannot_be_paired_is_not(tmp_path):
    "Other data, other seeds, records of old: no test over images"
    e, other = random(0).random(200) < .2, dict(record()['provenance'], data='other')
    (s,) = compare.select(str(keep(tmp_path/'data', record('wann', 0, e), record('knn', 0, e, provenance=other))))
    assert compare.differences(s) == [] and compare.difference_table(s, []).rows == [] and compare.order_table(s, []).rows[0]['2'] == '–'
    (s,) = compare.select(str(keep(tmp_path/'old', *(record(m, k, test_accuracy=a + .01*k) for m, a in (('wann', .9), ('knn', .8)) for k in range(3)))))
    (p,) = compare.differences(s)
    assert p.p_images is None and p.p_labels is None and p.verdict() == 'not told apart' and p.difference == pytest.approx(.1)   # equal differences: no spread to test with
    assert compare.overlap_figure(s) is compare.votes_table(s) is None and 'hold no single answers' in compare.errors_sentence(s) and compare.hardest(s) == []
    (s,) = compare.select(str(keep(tmp_path/'labels', record('wann', 0, e), record('knn', 0, e) | dict(samples=record('knn', 1, e)['samples']))))
    (p,) = compare.differences(s)
    assert p.p_images == 1. and p.p_labels is None


# where methods agree

def test_votes_by_hand(tmp_path):
    wrong = np.arange(200) < 50
    flags = [np.arange(200) < 40, np.arange(200) < 60, np.zeros(200, bool)]
    errors = [np.isin(np.arange(200), k) for k in ([1, 2, 3], [2, 3], [3, 4])]
    (s,) = compare.select(str(keep(tmp_path, *(record(m, 0, e, f, wrong) for m, e, f in zip(('wann', 'knn', 'ann'), errors, flags)))))
    assert [(r['Labels'], r['of which wrong']) for r in rows(compare.votes_table(s))] == [('140', '0'), ('20', '10'), ('40', '40'), ('0', '0')]
    assert 'always k-NN' in rows(compare.votes_table(s))[1]['Flagged by']
    told = compare.errors_sentence(s)
    assert '4 of 200 test images are mistaken by at least one method, 1 by all' in told and 'single method mistakes 2' in told
    assert 'share most' in compare.overlap_figure(s).alt

def test_overlap(): assert np.allclose(compare.jaccard([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]), [[1, 1/3, 0], [1/3, 1, 0], [0, 0, 0]])

def test_costs_of_different_hardware_stay_apart(tmp_path):
    gpu = dict(record()['provenance'], hardware='Some GPU')
    (s,) = compare.select(str(keep(tmp_path, record('wann', 0), record('wann', 1), record('wann', 2, provenance=gpu, device='cuda'))))
    assert [(r['Hardware'], r['Runs'], r['Fit'].replace('\u00a0', ' ').replace('\u202f', ' ')) for r in rows(compare.cost_table(s))] == [('Some CPU, 2 threads', '2', '1.5 s ± 0.71 s'), ('Some GPU', '1', '3.0 s')]

def test_published_figures_stand_beside_ours(tmp_path):
    (s,) = compare.select(str(keep(tmp_path, record(published_accuracy=.93, published_source='A. Author'), record('knn', test_accuracy=.8))))
    assert [(r['Published'], r['Source']) for r in rows(compare.accuracy_table(s))] == [('93.0\u202f%', 'A. Author'), ('–', '–')]
    assert 'Published' not in rows(compare.accuracy_table(compare.select(str(tmp_path), method='knn')[0]))[0]

def test_untested_runs(tmp_path):
    (s,) = compare.select(str(keep(tmp_path, *(record(m, 0, test_accuracy=None, test_balanced_accuracy=None, n_test=0, predict_seconds=None) for m in ('wann', 'knn')))))
    (p,) = compare.differences(s)
    assert math.isnan(p.difference) and p.verdict() == 'not told apart'
    with pytest.raises(NoisynbError, match='no run on'): compare.accuracy_figure(s)


# the page

def test_page_from_the_command(tmp_path, capsys, monkeypatch):
    "Two methods on real data, one old record among them; the page alone is kept"
    monkeypatch.chdir(tmp_path)
    made = [run(m, seed=s, n_train=300).result for m in ('knn', 'wann') for s in (0, 1)]
    keep(tmp_path/'r/d', *made, record('ce', embedding=None, n_train=300, n_test=540, provenance=dict(made[0]['provenance']), noise_rate_realised=made[0]['noise_rate_realised']))
    assert cli.main(['compare', 'r']) == 0
    assert capsys.readouterr().out == 'page      r/d/compare.html\n' and sorted(p.suffix for p in (tmp_path/'r/d').iterdir()) == ['.html'] + ['.json']*5
    text = (tmp_path/'r/d/compare.html').read_text()
    page = BeautifulSoup(text, 'html.parser')
    assert page.h1.get_text() == 'Methods compared: digits, 40\u202f% instance-dependent noise, 300 images' and len(text) < 300_000 and not page.find('script')
    said = page.get_text(' ')
    assert 'k-NN' in said and 'Cross entropy' in said and 'p, images' in said and 'test images that all 2 methods mistake' in said and str(tmp_path) not in text
    assert all(th.get_text(strip=True) for th in page.find_all('th')) and all(len(i['alt']) > 5 for i in page.find_all('img')) and len(page.find_all('img')) >= 3
    assert 'Traceback' not in text and not page.select('.stderr')

def test_names_on_the_page_are_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nasty = '<meta http-equiv="refresh" content="0;url=http://x"><style>main{display:none}</style>a*b*'
    e = random(0).random(200) < .2
    keep(tmp_path/'r', *(record(m, 0, e, dataset=nasty) for m in ('wann', 'knn')))
    assert cli.main(['compare', 'r', '-o', 'c.html']) == 0
    page = BeautifulSoup((tmp_path/'c.html').read_text(), 'html.parser')
    assert not page.body.find_all('meta') and any(nasty in h.get_text() for h in page.find_all('h2')) and not any('display:none' in s.get_text() for s in page.find_all('style'))

def test_mistakes_of_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, message in ((['nowhere'], 'neither a record'), ([str(keep(tmp_path/'x', record())), '-o', 'page.txt'], 'ends in .html'), (['x', '-p', 'metod', 'knn'], "did you mean 'method'")):
        assert cli.main(['compare', *words]) == 2 and message in capsys.readouterr().err
