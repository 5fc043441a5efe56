"Corrupted labels: the published generators label for label, and what must hold for any labels, kind, scheme and seed"
import random, subprocess, sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from noisynb.core import NoisynbError
from noisynb.noise import corrupt, instance_probabilities, kinds, long_tail, maps, schemes, subsample, targets, transition

few = settings(max_examples=40, deadline=None)
cycle = np.arange(50_000) % 10


def split(labels, images=None, **human):
    labels = np.asarray(labels)
    return SimpleNamespace(images=np.zeros((len(labels), 2, 2, 1), np.uint8) if images is None else images, labels=labels,
                           human={k: np.asarray(v) for k, v in human.items()})


# --- the published generators, written out once more, example by example ---

def counted(y, T, r):
    out = y.copy()
    for c in range(len(T)):
        left = [i for i in range(len(y)) if y[i] == c]
        n = len(left)
        for t in range(len(T)):
            m = int(T[c, t]*n)
            if t == c or m == 0: continue
            moved = r.choice(left, m, replace=False)
            left = sorted(set(left) - set(moved))
            for i in moved: out[i] = t
    return out


def by_instance(X, y, rate, r, C):
    q = stats.truncnorm((0-rate)/.1, (1-rate)/.1, loc=rate, scale=.1).rvs(len(y), random_state=r)
    W = r.standard_normal((C, X.shape[1], C))
    P = []
    for x, c, flip in zip(X, y, q):
        a = x @ W[c]
        a[c] = -np.inf
        e = np.exp(a - a.max())
        p = flip*e/e.sum()
        p[c] += 1 - flip
        P.append(p)
    return np.array([r.choice(C, p=p) for p in P]), np.array(P), q


# --- WANN ---

@pytest.mark.parametrize('seed', [0, 1, 42])
@pytest.mark.parametrize('kind,mapping', [('symmetric', None), ('pair', None), ('asymmetric', 'mnist'), ('asymmetric', 'cifar10')])
def test_wann_counts_label_for_label(kind, mapping, seed):
    y = np.random.default_rng(seed).integers(0, 10, 700)
    T = transition(kind, .43, 10, mapping=mapping)
    ours = corrupt(y, kind, .43, seed=seed, scheme='wann', mapping=mapping)
    assert (ours.given == counted(y, T, np.random.RandomState(seed))).all() and ours.flipped.any()


@pytest.mark.parametrize('C,n,percent', [(10, 5000, (19.98, 39.96, 59.94, 79.92)), (10, 500, (19.8, 39.6, 59.4, 79.2)), (10, 100, (18, 36, 54, 72)),
    (10, 50, (18, 36, 54, 72)), (10, 25, (0, 36, 36, 72)), (10, 10, (0, 0, 0, 0)), (100, 100, (0, 0, 0, 0)), (100, 50, (0, 0, 0, 0))])
def test_wann_floor_defect_and_exact_without_it(C, n, percent):
    y = np.repeat(np.arange(C), n)
    for rate, p in zip((.2, .4, .6, .8), percent):
        assert 100*corrupt(y, 'symmetric', rate, scheme='wann').rate == pytest.approx(p)
        assert corrupt(y, 'symmetric', rate).rate == pytest.approx(round(rate*n)/n)


def test_realised_rates_on_digits_as_measured():
    X, y = load_digits(return_X_y=True)
    y = train_test_split(X, y, test_size=.3, stratify=y, random_state=0)[2]
    percent = lambda *a, **k: round(100*corrupt(y, *a, **k).rate, 2)
    assert [percent('symmetric', r, scheme='wann') for r in (.2, .4, .6)] == [14.32, 35.8, 57.28]
    assert [percent('symmetric', r) for r in (.2, .4, .6)] == [19.89, 40.10, 59.90]
    assert percent('asymmetric', .4, scheme='wann', mapping='mnist') == 19.89


@pytest.mark.parametrize('scheme', ['wann', 'echoalign'])
def test_instance_noise_label_for_label(scheme):
    X, y = load_digits(return_X_y=True)
    X, y = X[:300]/16, y[:300]
    given, P, q = by_instance(X, y, .4, np.random.RandomState(7), 10)
    ours = corrupt(y, 'instance', .4, seed=7, scheme=scheme, features=X)
    assert (ours.given == given).all()
    p = instance_probabilities(X, y, .4, 10, np.random.RandomState(7))
    assert np.allclose(p, P, atol=1e-12) and np.allclose(p.sum(1), 1)
    assert (p[np.arange(300), y] == 1-q).all()


def test_instance_noise_takes_pixels_in_0_1_and_can_standardise_them():
    images = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 1), dtype=np.uint8)
    y = np.arange(200) % 5
    flat = images.reshape(200, -1)/255
    assert (corrupt(split(y, images), 'instance', .4).given == corrupt(y, 'instance', .4, features=flat).given).all()
    z = (flat - flat.mean(0))/flat.std(0)
    standard = corrupt(split(y, images), 'instance', .4, standardize=True).given
    assert (standard == corrupt(y, 'instance', .4, features=z).given).all() and (standard != corrupt(y, 'instance', .4, features=flat).given).any()


def test_expected_rates_of_instance_noise():
    for rate, mean in {.1: .1288, .2: .2055, .3: .3004, .4: .4, .5: .5}.items():
        noisy = corrupt(cycle[:20_000], 'instance', rate, features=np.ones((20_000, 1)))
        assert noisy.rates_expected == pytest.approx([mean]*10, abs=5e-5) and noisy.rate == pytest.approx(mean, abs=.015)


# --- DivideMix, SMR, ProMix ---

def test_dividemix_reference_labels():
    ours = corrupt(np.arange(20) % 10, 'symmetric', .5, seed=123, scheme='dividemix')
    assert ours.given.tolist() == [0, 1, 2, 3, 2, 0, 6, 6, 8, 1, 9, 6, 1, 3, 0, 5, 6, 5, 8, 9]
    first = corrupt(cycle, 'pair', 5/50_000, seed=123, scheme='dividemix').flipped
    assert set(np.flatnonzero(first)) == {38712, 34233, 25555, 46929, 30485}


def test_dividemix_reference_rates():
    assert corrupt(cycle, 'symmetric', .5, seed=123, scheme='dividemix').rate == pytest.approx(.44976, abs=1e-9)
    ours = corrupt(cycle, 'asymmetric', .4, seed=123, scheme='dividemix', mapping='cifar10')
    assert ours.rate == pytest.approx(.19968, abs=1e-9)
    assert {(a, b): int(((cycle == a) & (ours.given == b)).sum()) for a, b in maps['cifar10'].items()} == {
        (2, 0): 2014, (3, 5): 1923, (4, 7): 2014, (5, 3): 2027, (9, 1): 2006}
    assert corrupt(cycle, 'pair', .29, seed=123, scheme='dividemix').flipped.sum() == 14499  # 0.29 * 50000 is 14499.999...


@pytest.mark.parametrize('rate,C,wrong', [(.2, 10, .18), (.9, 10, .81), (.2, 100, .198), (.9, 100, .891)])
def test_including_the_true_class_lowers_the_rate(rate, C, wrong):
    y = np.arange(20_000) % C
    for noisy in (corrupt(y, 'symmetric', rate, scheme='dividemix'), corrupt(y, 'symmetric', rate, include_true=True), corrupt(y, 'symmetric', rate, scheme='iid', include_true=True)):
        assert noisy.rates_expected == pytest.approx([wrong]*C) and noisy.rate_nominal == rate
        assert noisy.rate == pytest.approx(wrong, abs=.015)


# --- LEND, EchoAlign, the benchmark against other tools ---

def test_lend_reaches_the_rate_although_it_draws_from_all_classes():
    y = np.arange(200_000) % 10
    noisy = corrupt(y, 'symmetric', .4, scheme='lend')
    assert noisy.rate == pytest.approx(.4, abs=.004)
    pair = corrupt(y, 'pair', .4, scheme='lend')
    assert pair.rate == pytest.approx(.4, abs=.004) and (pair.given[pair.flipped] == (y[pair.flipped]+1) % 10).all()


@pytest.mark.parametrize('kind', ['symmetric', 'pair'])
def test_echoalign_label_for_label(kind):
    y = np.random.default_rng(3).integers(0, 10, 500)
    P, r = np.eye(10)*(1-.35), np.random.RandomState(5)
    for i in range(10):
        if kind == 'pair': P[i, (i+1) % 10] = .35
        else: P[i, [j for j in range(10) if j != i]] = .35/9
    expected = [int(np.where(r.multinomial(1, P[c], 1)[0] == 1)[0][0]) for c in y]
    assert corrupt(y, kind, .35, seed=5, scheme='echoalign').given.tolist() == expected


@pytest.mark.parametrize('scheme', ['exact', 'iid', 'wann', 'dividemix', 'lend', 'echoalign'])
def test_pair_noise_at_rate_one(scheme):
    assert corrupt([0, 1, 2], 'pair', 1, scheme=scheme).given.tolist() == [1, 2, 0]


@pytest.mark.parametrize('seed', [0, 1000])
def test_independent_draws_as_in_the_benchmark(seed):
    y = np.random.default_rng(9).integers(0, 10, 3000)
    for rate in (.2, .4):
        g = np.random.default_rng(seed)
        flip = g.random(len(y)) < rate
        other = (y + g.integers(1, 10, len(y))) % 10
        for s in (seed, np.random.default_rng(seed)):
            assert (corrupt(y, 'symmetric', rate, seed=s, scheme='iid').given == np.where(flip, other, y)).all()
        assert (corrupt(y, 'pair', rate, seed=seed, scheme='iid').given == np.where(flip, (y+1) % 10, y)).all()


# --- maps and matrices ---

def test_published_maps():
    assert maps['cifar10'] == {9: 1, 2: 0, 3: 5, 5: 3, 4: 7} and maps['mnist'] == {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
    assert [targets('cifar100-block', 100)[5*b+j] for b in range(20) for j in range(5)] == [5*b + (j+1) % 5 for b in range(20) for j in range(5)]
    assert targets('dermamnist', 7).tolist() == [1, 2, 3, 4, 5, 6, 0]
    assert targets('dermamnist', 10).tolist() == [1, 2, 3, 4, 5, 6, 0, 7, 8, 9]


def test_superclass_map_stays_within_superclasses():
    coarse = np.random.default_rng(0).permutation(100) % 20
    to = targets('cifar100-superclass', 100, coarse)
    assert (coarse[to] == coarse).all() and (to != np.arange(100)).all() and sorted(to) == list(range(100))
    noisy = corrupt(np.arange(1000) % 100, 'asymmetric', .4, mapping='cifar100-superclass', superclasses=tuple(coarse))
    assert noisy.rate == pytest.approx(.4) and (coarse[noisy.given] == coarse[np.arange(1000) % 100]).all()


def test_any_matrix():
    T = np.array([[.5, .5, 0], [0, 1, 0], [.1, .2, .7]])
    y = np.arange(3000) % 3
    for scheme in ('exact', 'iid', 'wann', 'echoalign'):
        noisy = corrupt(y, 'matrix', matrix=T, scheme=scheme)
        assert np.abs(noisy.transition - T).max() < .06 and noisy.rates[1] == 0
        assert noisy.rate_nominal == pytest.approx(.8/3)
    assert corrupt(y, 'matrix', matrix=T).rates == pytest.approx([.5, 0, .3])


# --- what holds for everything ---

labels = st.integers(2, 6).flatmap(lambda C: st.tuples(st.just(C), st.lists(st.integers(0, C-1), min_size=1, max_size=60)))
drawn = ('symmetric', 'asymmetric', 'pair', 'matrix')


@st.composite
def cases(draw):
    C, y = draw(labels)
    kind, scheme = draw(st.sampled_from(drawn + ('instance',))), draw(st.sampled_from(sorted(schemes)))
    if kind == 'matrix' and scheme in ('dividemix', 'lend') or kind == 'instance' and scheme not in ('iid', 'wann', 'echoalign'): scheme = 'iid'
    more = dict(asymmetric=dict(mapping={0: C-1}), matrix=dict(matrix=np.eye(C)*.25 + .75/C), instance=dict(features=np.arange(2.*len(y)).reshape(-1, 2) % 7)).get(kind, {})
    return np.array(y), dict(kind=kind, scheme=scheme, rate=draw(st.floats(0, .5)), seed=draw(st.integers(0, 2**32-1)), n_classes=C, **more)


@few
@given(cases())
def test_record_and_reproducibility(case):
    y, ask = case
    kept, state, py = y.copy(), np.random.get_state()[1].copy(), random.getstate()
    noisy, again = corrupt(y, **ask), corrupt(split(y), **ask)
    C = ask['n_classes']
    assert (noisy.given == again.given).all() and (y == kept).all()
    assert (np.random.get_state()[1] == state).all() and random.getstate() == py
    assert noisy.given.dtype == np.int64 and noisy.given.min() >= 0 and noisy.given.max() < C
    assert (noisy.flipped == (noisy.given != y)).all() and noisy.rate == (noisy.given != y).mean()
    for c in range(C):
        n = (y == c).sum()
        assert noisy.counts[c] == n and noisy.transition[c].sum() == pytest.approx(int(n > 0))
        assert noisy.rates[c] == pytest.approx((noisy.given[y == c] != c).mean() if n else 0)
        for t in range(C): assert noisy.transition[c, t]*n == pytest.approx(((y == c) & (noisy.given == t)).sum())


@few
@given(labels, st.floats(0, 1), st.booleans(), st.integers(0, 5))
def test_matrices_are_stochastic_and_exact_counts_are_exact(case, rate, include_true, seed):
    C, y = case
    y = np.array(y)
    for kind, more in [('symmetric', dict(include_true=include_true)), ('pair', {}), ('asymmetric', dict(mapping={0: 1}))]:
        T = transition(kind, rate, C, **more)
        assert T.sum(1) == pytest.approx(np.ones(C)) and (T >= 0).all()
        noisy = corrupt(y, kind, rate, seed=seed, n_classes=C, **more)
        for c in range(C): assert noisy.flipped[y == c].sum() == pytest.approx((1-T[c, c])*(y == c).sum(), abs=.5+1e-6)
        assert not noisy.flipped[np.isin(y, np.flatnonzero(T.diagonal() == 1))].any()


@pytest.mark.parametrize('scheme', sorted(schemes))
def test_no_noise_is_the_identity(scheme):
    for kind in ('symmetric', 'pair'): assert not corrupt(cycle[:500], kind, 0., scheme=scheme).flipped.any()
    assert not corrupt(cycle[:500], 'asymmetric', 0., scheme=scheme, mapping='mnist').flipped.any()
    if scheme in ('iid', 'wann', 'echoalign'): assert not corrupt(cycle[:500], 'instance', 0., scheme=scheme, features=np.ones((500, 2))).flipped.any()


@few
@given(labels, st.floats(0, 1), st.integers(0, 9))
def test_wann_flips_the_sum_of_the_floors(case, rate, seed):
    C, y = case
    y, T = np.array(y), transition('symmetric', rate, C)
    floors = sum(int(T[c, t]*(y == c).sum()) for c in range(C) for t in range(C) if t != c)
    assert corrupt(y, 'symmetric', rate, seed=seed, scheme='wann', n_classes=C).flipped.sum() == floors


@pytest.mark.parametrize('scheme', sorted(schemes))
def test_seeds_differ(scheme):
    draws = [corrupt(cycle[:400], 'symmetric', .4, seed=s, scheme=scheme).given for s in (0, 1)]
    assert (draws[0] != draws[1]).any()


def test_one_stream_for_several_draws():
    r = np.random.RandomState(42)
    rows = long_tail(cycle, .1, seed=r, scheme='wann')
    noisy = corrupt(cycle[rows], 'symmetric', .4, seed=r, scheme='wann')
    s = np.random.RandomState(42)
    base = [np.flatnonzero(cycle == c)[s.choice(5000, n, replace=False)] for c, n in enumerate((5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500))]
    assert (rows == np.concatenate(base)).all()
    assert (noisy.given == counted(cycle[rows], transition('symmetric', .4, 10), s)).all()


# --- human labels ---

def test_human_labels():
    part = split([0, 1, 2, 2], worst=[0, 1, 1, 3], mine=[1, 1, 2, 2])
    noisy = corrupt(part, 'worst', rate=.9)
    assert noisy.given.tolist() == [0, 1, 1, 3] and noisy.flipped.tolist() == [False, False, True, True]
    noisy.given[:] = 0
    assert part.human['worst'].tolist() == [0, 1, 1, 3]  # a copy
    assert noisy.rate_nominal is None and noisy.rates_expected is None and noisy.rates.tolist() == [0, 0, 1, 0]
    assert corrupt(part, 'mine').rate == .25 and [r['expected'] for r in noisy.table().rows] == [None]*4
    assert {'worst', 'aggre', 'random1', 'random2', 'random3', 'human'} <= set(kinds)


def test_the_record_is_an_array_of_the_given_labels():
    noisy = corrupt(cycle[:100], 'pair', .2)
    assert (np.asarray(noisy) == noisy.given).all() and len(noisy) == 100 and np.asarray(noisy, dtype=float).dtype == float
    assert '20.0 % wrong' in repr(noisy) and noisy.table(classes=list('abcdefghij')).rows[0] == {'class': 'a', 'examples': 10, 'expected': pytest.approx(.2), 'realised': pytest.approx(.2)}


# --- mistakes ---

T_bad = [[.5, .6], [0, 1]]
@pytest.mark.parametrize('y,ask,words', [
    (cycle[:9], dict(kind='symmetric', rate=1.1), ('1.1', '0 to 1')), (cycle[:9], dict(kind='symmetric', rate=float('nan')), ('nan',)),
    (cycle[:9], dict(kind='symmetric', rate='a lot'), ('a lot',)), (cycle[:9], dict(kind='symetric', rate=.1), ("'symmetric'",)),
    (cycle[:9], dict(kind='pair', rate=.1, scheme='dividmix'), ("'dividemix'",)), (cycle[:9], dict(kind='asymmetric', rate=.1), ('mapping', 'pair')),
    (cycle[:9], dict(kind='asymmetric', rate=.1, mapping='cifar'), ("'cifar10'",)), (cycle[:5], dict(kind='asymmetric', rate=.1, mapping='cifar10'), ('0 to 4',)),
    (cycle[:9], dict(kind='asymmetric', rate=.1, mapping='cifar100-superclass'), ('data.superclasses',)),
    ([0, 1], dict(kind='matrix', matrix=T_bad), ('row 0', '1.1')), ([0, 1], dict(kind='matrix'), ('matrix=',)), ([0, 2], dict(kind='matrix', matrix=np.eye(2)), ('labels[1] is 2',)),
    ([0, 1], dict(kind='matrix', matrix=[[1, 0]]), ('square',)), ([0, 1], dict(kind='matrix', matrix=[[np.nan, 1], [0, 1]]), ('row 0',)),
    ([0, -1], dict(kind='pair', rate=.1), ('labels[1] is -1',)), ([0, 5], dict(kind='pair', rate=.1, n_classes=3), ('labels[1] is 5', 'n_classes')),
    ([0, .5], dict(kind='pair', rate=.1), ('class numbers',)), (['cat', 'dog'], dict(kind='pair', rate=.1), ('numpy.unique',)), ([], dict(kind='pair', rate=.1), ('shape',)),
    ([[0, 1]], dict(kind='pair', rate=.1), ('shape',)), ([0, 0], dict(kind='symmetric', rate=.1), ('one class',)), ([0, 0], dict(kind='instance', rate=.1, features=np.ones((2, 1))), ('one class',)),
    ([0, 1], dict(kind='instance', rate=.1), ('features=',)), ([0, 1], dict(kind='instance', rate=.1, features=np.ones((3, 2))), ('3 rows',)),
    ([0, 1], dict(kind='instance', rate=.1, features=[[1.], [np.inf]]), ('row 1',)), ([0, 1], dict(kind='instance', rate=.1, features=[['a'], ['b']]), ('numbers',)),
    ([0, 1], dict(kind='instance', rate=.1, features=np.ones((2, 1)), scheme='exact'), ("'exact'", 'symmetric')), ([0, 1], dict(kind='matrix', matrix=np.eye(2), scheme='lend'), ("'lend'",)),
    ([0, 1], dict(kind='worst'), ("'worst'", 'cifar10n')), ([0, 1], dict(kind='pair', rate=.1, seed=-1), ('-1',)), ([0, 1], dict(kind='pair', rate=.1, seed='0'), ("'0'",)),
    ([0, 1], dict(kind='pair', rate=.1, seed=np.random.default_rng(0), scheme='wann'), ('RandomState',)), (cycle[:10], dict(kind='symmetric', rate=.95, scheme='lend'), ('0.9', 'iid')),
    (SimpleNamespace(train=1), dict(kind='pair', rate=.1), ('data.train',))])
def test_mistakes_are_explained(y, ask, words):
    with pytest.raises(NoisynbError) as e: corrupt(y, **ask)
    for w in words: assert w in str(e.value)


def test_human_labels_out_of_range():
    with pytest.raises(NoisynbError, match=r"human\['worst'\]\[1\] is 7"): corrupt(split([0, 1], worst=[0, 7]), 'worst', n_classes=2)


# --- subsampling and the long tail ---

@few
@given(labels, st.integers(0, 3), st.data())
def test_subsample_is_stratified(case, seed, data):
    y = np.array(case[1])
    n = data.draw(st.integers(1, len(y)))
    rows = subsample(y, n, seed)
    assert len(rows) == n and (np.diff(rows) > 0).all() and (rows == subsample(split(y), n, seed)).all()
    assert (np.abs(np.bincount(y[rows], minlength=6) - np.bincount(y, minlength=6)*n/len(y)) < 1).all()


def test_subsample_as_the_public_code_does():
    X, y = load_digits(return_X_y=True)
    kept = train_test_split(X, y, train_size=250, stratify=y, random_state=42)
    rows = subsample(y, 250, seed=42, scheme='wann')
    assert (X[rows] == kept[0]).all() and (y[rows] == kept[2]).all()
    for n in (len(y), len(y)-3):
        with pytest.raises(NoisynbError, match='leave scheme out'): subsample(y, n, scheme='wann')
        assert len(subsample(y, n)) == n


@pytest.mark.parametrize('C,ratio,ends,total', [(10, .01, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], 12406),
    (10, .1, [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500], 20431), (100, .01, [500, 477, 5, 5], 10847), (100, .1, [500, 488, 51, 50], 19573), (10, 1, [5000]*10, 50000)])
def test_long_tail_counts(C, ratio, ends, total):
    y = np.arange(50_000) % C
    for scheme in (None, 'wann'):
        rows = long_tail(y, ratio, seed=1, scheme=scheme)
        counts = np.bincount(y[rows]).tolist()
        assert (counts if C == 10 else counts[:2] + counts[-2:]) == ends and len(rows) == len(set(rows)) == total
    assert (np.diff(long_tail(y, ratio)) > 0).all()


def test_long_tail_of_a_class_that_is_short_already():
    y = np.r_[np.zeros(2, int), np.ones(18, int)]
    assert np.bincount(y[long_tail(y, .5)]).tolist() == [2, 5]
    with pytest.raises(NoisynbError, match='class 0 has 2'): long_tail(y, .5, scheme='wann')


@pytest.mark.parametrize('f,arg,words', [(subsample, 0, '1 to 20'), (subsample, 21, '1 to 20'), (subsample, 2.5, '2.5'), (long_tail, 0, 'above 0'), (long_tail, 1.5, 'ratio is 1.5'), (long_tail, float('nan'), 'ratio is nan')])
def test_bad_sizes(f, arg, words):
    with pytest.raises(NoisynbError, match=words): f(np.arange(20) % 2, arg)
    with pytest.raises(NoisynbError, match="'wann'"): f(np.arange(20) % 2, 1, scheme='wan')


@pytest.mark.parametrize('kind, rate, more', [('symmetric', .6, {}), ('pair', .45, {}), ('asymmetric', .3, dict(mapping='cifar10')), ('symmetric', .2, dict(include_true=True))])
def test_what_the_wann_scheme_lets_expect_is_what_comes_out(kind, rate, more):
    noisy = corrupt(np.arange(997) % 10, kind, rate, scheme='wann', **more)
    assert noisy.rates == pytest.approx(noisy.rates_expected) and noisy.rate > 0
    assert corrupt(np.arange(300) % 100, 'symmetric', .6, scheme='wann').rates_expected.tolist() == [0]*100   # 60 % of three, spread over 99 classes

@pytest.mark.parametrize('kind, more, word', [('symmetric', dict(matrix=np.eye(10)), 'matrix'), ('pair', dict(mapping='cifar10'), 'mapping'), ('pair', dict(include_true=True), 'include_true'),
    ('symmetric', dict(features=np.zeros((5, 2))), 'features'), ('asymmetric', dict(mapping='cifar10', standardize=True), 'standardize')])
def test_what_a_kind_does_not_use_is_refused(kind, more, word):
    with pytest.raises(NoisynbError, match=f'{kind} noise takes no {word}'): corrupt(np.arange(50) % 10, kind, .4, **more)


def test_no_class_vanishes_and_none_is_made_up():
    with pytest.raises(NoisynbError, match='leaves class 9 without examples; give 0.005 or more'): long_tail(np.arange(2000) % 10, .004)
    assert np.bincount(long_tail(np.arange(2000) % 10, .005) % 10).min() == 1
    for y, words in ((np.arange(30) % 3 + 5, 'there is no 0'), ([0, 10, 20], 'there is no 1')):
        with pytest.raises(NoisynbError, match=words): corrupt(y, 'symmetric', .4)
    assert corrupt([0, 2], 'symmetric', 1., n_classes=3).flipped.all()
    with pytest.raises(NoisynbError, match='rate is None'): corrupt(np.arange(30) % 3, 'symmetric')


def test_long_tail_of_one_class():
    with pytest.raises(NoisynbError, match='two classes'): long_tail(np.zeros(5, int), .5)


def test_importing_the_room_is_light():
    heavy = "import sys, noisynb.noise, noisynb.metrics; print([m for m in ('torch', 'sklearn', 'scipy', 'matplotlib', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', heavy], capture_output=True, text=True, check=True).stdout.strip() == '[]'

def test_instance_noise_of_files_looks_at_thumbnails(tmp_path):
    from PIL import Image
    from noisynb.datasets import Split
    from noisynb.datasets.files import Files
    rng = np.random.default_rng(0)
    for i in range(12): Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path/f'{i}.png')
    files, y = Files([f'{i}.png' for i in range(12)], 40, tmp_path), np.arange(12) % 3
    small = corrupt(Split(np.asarray(files.at(32)), y), 'instance', .4, seed=0, n_classes=3)
    assert (corrupt(Split(files, y), 'instance', .4, seed=0, n_classes=3).given == small.given).all()


@pytest.mark.parametrize('scheme', ['exact', 'iid', 'wann', 'echoalign', 'dividemix', None])
def test_the_true_class_included_by_name(scheme):
    y = np.arange(2000) % 10
    named, asked = corrupt(y, 'symmetric-included', .5, seed=4, scheme=scheme), corrupt(y, 'symmetric', .5, seed=4, scheme=scheme, include_true=True)
    assert (named.given == asked.given).all() and named.kind == 'symmetric-included' and named.rate == pytest.approx(.45, abs=.04)
    if scheme in ('exact', None): assert named.flipped.sum() == 900


def test_lend_has_no_such_choice():
    with pytest.raises(NoisynbError, match='include_true'): corrupt(np.arange(20) % 10, 'symmetric-included', .2, scheme='lend')
