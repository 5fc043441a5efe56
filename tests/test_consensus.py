"Consensus: what it learns from ranks alone, and the contract of an estimator"
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from noisynb.core import NoisynbError
from noisynb.methods import make
from noisynb.methods.base import load
from noisynb.methods.consensus import Consensus, calibrate, rank_average, _limit

light = dict(members=('knn', 'lend-graph'))


@pytest.fixture(scope='module')
def blobs():
    g = np.random.default_rng(0)
    X, true = make_blobs(400, centers=4, n_features=8, cluster_std=2.5, random_state=0)
    y = np.where(wrong := g.random(400) < .3, (true + g.integers(1, 4, 400)) % 4, true)
    return X.astype(np.float32), true, y, wrong


@parametrize_with_checks([Consensus(**light)])
def test_scikit_learn_contract(estimator, check): check(estimator)


def test_rank_average_by_hand():
    assert np.allclose(rank_average([[.1, .9, .5, .5], [3, 1, 2, 0]]), [(1 + 4)/8, (4 + 2)/8, (2.5 + 3)/8, (2.5 + 1)/8])

@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(.05, .6), st.integers(2, 4))
def test_only_the_order_counts(seed, share, m):
    Q = np.random.default_rng(seed).normal(size=(m, 300))
    assert np.allclose(calibrate(Q, share), calibrate([np.exp(q) for q in Q], share)) and np.allclose(rank_average(Q), rank_average(3*Q - 7))
    order = np.random.default_rng(1).permutation(300)
    assert np.allclose(calibrate(Q[:, order], share), calibrate(Q, share)[order]) and np.allclose(calibrate(Q[::-1], share), calibrate(Q, share))
    p = calibrate(Q, share)
    assert ((p >= 0) & (p <= 1)).all()

@pytest.mark.parametrize('seed', range(3))
def test_better_than_each_judge_and_deaf_to_one_that_guesses(seed):
    g = np.random.default_rng(seed)
    right = g.random(4000) > .3
    Q = np.array([g.normal(size=4000) + 1.5*right, g.normal(size=4000) + 1.5*right, g.normal(size=4000), g.normal(size=4000)])
    auroc = lambda q: roc_auc_score(right, q)
    assert auroc(calibrate(Q, .3)) > max(auroc(q) for q in (*Q, rank_average(Q))) and auroc(calibrate(Q, .3)) > auroc(calibrate(Q[:2], .3)) - .01

def test_chances_are_chances():
    g = np.random.default_rng(0)
    right = g.random(20_000) > .3
    p = calibrate([g.normal(size=20_000) + 1.5*right for _ in range(3)], .3)
    for low in np.arange(0, 1, .2):
        here = (p >= low) & (p < low + .2)
        assert abs(right[here].mean() - p[here].mean()) < .06

def test_few_labels_and_no_wrong_ones():
    assert calibrate([[.1, .2], [.3, .1]], 0.).shape == (2,) and np.isfinite(calibrate(np.ones((2, 30)), 0.)).all() and np.isfinite(calibrate(np.random.default_rng(0).random((2, 30)), 1.)).all()


def test_it_finds_what_its_members_find(blobs):
    X, true, y, wrong = blobs
    model = Consensus(**light).fit(X, y)
    auroc = lambda m: roc_auc_score(wrong, -m.label_quality_)
    assert auroc(model) > min(map(auroc, model.members_.values())) and auroc(model) > .85
    share = np.mean([m.label_quality_ < m.quality_threshold_ for m in model.members_.values()])
    assert len(model.suspects()) == pytest.approx(400*share, abs=2)   # as many as the members flag on average
    kept = model.label_quality_ >= model.quality_threshold_
    assert (model.corrected_labels_[kept] == y[kept]).all() and (model.corrected_labels_ == true).mean() > (y == true).mean() + .1
    assert np.allclose(model.predict_proba(X), np.mean([m.predict_proba(X) for m in model.members_.values()], 0)) and model.score(X, true) > .85

def test_members_are_the_methods_themselves(blobs):
    X, _, y, _ = blobs
    graph = make('knn', k=51).neighbor_graph(X)
    model = Consensus(members={'knn': {'k': 21}, 'lend-graph': {}}).fit(X, y, graph)
    alone = make('knn', k=21).fit(X, y)
    assert (model.members_['knn'].label_quality_ == alone.label_quality_).all() and model.members_['knn'].k == 21

def test_rank_option(blobs):
    X, _, y, _ = blobs
    model = Consensus(combine='rank', **light).fit(X, y)
    assert np.allclose(model.label_quality_, np.mean([rankdata(m.label_quality_) for m in model.members_.values()], 0)/400)

def test_same_seed_same_bits_and_names_of_classes(blobs):
    X, _, y, _ = blobs
    names = np.array(['a', 'b', 'c', 'd'])
    a, b = Consensus(**light).fit(X, y), Consensus(**light).fit(X, names[y])
    assert (a.label_quality_ == b.label_quality_).all() and (names[a.corrected_labels_] == b.corrected_labels_).all() and (names[a.predict(X)] == b.predict(X)).all()

@pytest.mark.parametrize('quality, few, below', [([.1, .2, .3, .4], 2, 2), ([.1, .1, .1, .9], 2, 3), ([.1, .1, .1, .9], 1, 0), ([.1, .2, .2, .2, .9], 2, 1), ([.5]*4, 1, 0), ([.5]*4, 4, 0), ([.1, .9], 0, 0), ([.1, .9], 2, 1)])
def test_equals_across_the_threshold_go_to_the_nearer_side(quality, few, below):
    assert sum(np.array(quality) < _limit(np.array(quality), few)) == below

def test_few_wrong_labels_among_many_are_doubted():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 10, 1000)
    X, y = rng.normal(size=(1000, 16)) + 8*np.eye(10, 16)[true], true.copy()
    wrong = rng.choice(1000, 10, replace=False)
    y[wrong] = (y[wrong] + 1) % 10
    assert set(Consensus().fit(X, y).suspects()) >= set(wrong)

def test_saved_and_loaded(blobs, tmp_path):
    X, _, y, _ = blobs
    model = Consensus(**light).fit(X, y)
    again = load(model.save(tmp_path/'model.safetensors'))
    assert (again.predict_proba(X) == model.predict_proba(X)).all() and (again.label_quality_ == model.label_quality_).all() and (again.suspects() == model.suspects()).all()

@pytest.mark.parametrize('options, message', [(dict(combine='mean'), 'combine'), (dict(parts=1), 'parts'), (dict(members=('knn',)), 'two methods'), (dict(members=('knn', 'ce')), 'works on images'),
                                              (dict(members=('knn', 'wan')), "did you mean 'wann'"), (dict(members={'knn': {'kk': 3}, 'wann': {}}), "option of knn")])
def test_mistakes_are_refused(blobs, options, message):
    with pytest.raises(NoisynbError, match=message): clone(Consensus(**options)).fit(*blobs[:3:2])
