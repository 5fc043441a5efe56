"Label quality against brute force, refits, finite differences and what it promises"
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from noisynb.neighbors import NeighborGraph
from noisynb.noise import corrupt
from noisynb.quality import Correction, KernelVotes, LabelQuality, local_votes, restore, state, transition_matrix

quick = settings(max_examples=20, deadline=None)


@pytest.fixture(scope='module')
def digits():
    X, truth = load_digits(return_X_y=True)
    X = (X/16).astype(np.float32)
    return X, truth, corrupt(truth, 'pair', .4, seed=0, n_classes=10).given, NeighborGraph(51).fit(X)

@quick
@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 5), st.integers(0, 10**6))
def test_votes_are_weighted_shares(n, k, c, seed):
    rng = np.random.default_rng(seed)
    near, d, y = rng.integers(0, n, (n, k)), np.sort(rng.random((n, k)), 1), rng.integers(0, c, n)
    scale = np.maximum(d[:, min(7, k) - 1], 1e-12)
    expected = np.zeros((n, c))
    for i in range(n):
        for j in range(k): expected[i, y[near[i, j]]] += np.exp(-2*d[i, j]**2/(scale[i]*scale[near[i, j]])) + 1e-6
    assert local_votes(near, d, y, c) == pytest.approx(expected/expected.sum(1, keepdims=True), rel=1e-3, abs=1e-5)

def test_kernel_votes_are_those_of_a_fit_without_the_row():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(0, 3, 50)
    model = KernelVotes().fit(X, y, 3)
    Z = model._kernel(X).astype(float) - model.center_
    def without(i, ridge):
        keep = np.arange(50) != i
        mean, target = Z[keep].mean(0), np.eye(3)[y[keep]]
        A = Z[keep] - mean
        return (Z[i] - mean) @ np.linalg.solve(A.T @ A + ridge*np.eye(A.shape[1]), A.T @ (target - target.mean(0))) + target.mean(0)
    A = Z - Z.mean(0)
    ridges = np.logspace(-7, 0, 8)*(A*A).sum()
    answers = {r: np.array([without(i, r) for i in range(50)]) for r in ridges}
    best = min(ridges, key=lambda r: ((np.eye(3)[y] - answers[r])**2).sum())
    assert model.votes_ == pytest.approx(np.maximum(answers[best], 0), abs=2e-3)

def test_gradient_of_the_correction(digits):
    X, truth, y, graph = digits
    votes, model = local_votes(graph.indices_, graph.distances_, y, 10), Correction()
    import scipy.optimize
    original, point, step, seen = scipy.optimize.minimize, np.random.default_rng(0).normal(size=111)*.1, 3e-3*np.eye(111), []
    def minimize(f, x, **options):
        seen.append((f(point)[1], np.array([(f(point + s)[0] - f(point - s)[0])/6e-3 for s in step])))
        return original(f, x, **options)
    scipy.optimize.minimize = minimize
    try: model.fit(votes, y, rounds=1)
    finally: scipy.optimize.minimize = original
    assert seen[0][0] == pytest.approx(seen[0][1], abs=1e-4)

def test_relabelling_the_kernel_is_a_new_fit(digits):
    X, truth, y, graph = digits
    kernel = KernelVotes().fit(X, truth, 10).relabel(X, y, 10)
    fresh = KernelVotes().fit(X, y, 10)
    assert (kernel.votes_ == fresh.votes_).all() and (kernel.predict(X) == fresh.predict(X)).all()
    for other in (y, (y + 1) % 10): # once with the leverages kept, once more
        assert (kernel.relabel(X, other, 10).votes_ == KernelVotes().fit(X, other, 10).votes_).all()

@quick
@given(st.integers(2, 6), st.integers(5, 60), st.integers(0, 10**6))
def test_transition_rows_are_distributions(c, n, seed):
    rng = np.random.default_rng(seed)
    T = transition_matrix(rng.dirichlet(np.ones(c), n), rng.integers(0, c, n))
    assert T.shape == (c, c) and (T > 0).all() and T.sum(1) == pytest.approx(np.ones(c))

def test_posterior_is_bayes_rule(digits):
    X, truth, y, graph = digits
    found = LabelQuality().fit(y, 10, graph.indices_, graph.distances_, X)
    p = found.predict_proba(graph.indices_, graph.distances_, X)
    assert p.sum(1) == pytest.approx(np.ones(len(y)))
    alone = LabelQuality().fit(y, 10, graph.indices_, graph.distances_)
    joint = np.exp(alone.correction_.log_proba(local_votes(graph.indices_, graph.distances_, y, 10)))*alone.transition_[:, y].T
    assert alone.quality_ == pytest.approx((joint/joint.sum(1, keepdims=True))[np.arange(len(y)), y], abs=1e-9)
    assert alone.posterior_.sum(1) == pytest.approx(np.ones(len(y)))

@pytest.mark.parametrize('kind', ['symmetric', 'pair'])
def test_ranks_wrong_labels_better_than_the_share_of_neighbours(digits, kind):
    X, truth, _, graph = digits
    y = corrupt(truth, kind, .4, seed=1, n_classes=10).given
    share = (y[graph.indices_] == y[:, None]).mean(1)
    for witness in (None, X):
        found = LabelQuality().fit(y, 10, graph.indices_, graph.distances_, witness)
        assert roc_auc_score(y == truth, found.quality_) > max(.99, roc_auc_score(y == truth, share))

def test_clean_labels_are_left_alone(digits):
    X, truth, _, graph = digits
    assert (LabelQuality().fit(truth, 10, graph.indices_, graph.distances_, X).quality_ < .5).mean() < .02

def test_state_and_back(digits):
    X, truth, y, graph = digits
    found = LabelQuality().fit(y, 10, graph.indices_, graph.distances_, X)
    args = graph.indices_[:20], graph.distances_[:20], X[:20]
    assert (restore(state(found)).predict_proba(*args) == found.predict_proba(*args)).all()

def test_bits_do_not_depend_on_threads():
    code = '''import numpy as np
from noisynb.disk import fingerprint
from noisynb.methods import WANN
rng = np.random.default_rng(0); c = rng.integers(5, size=5000)
X = (rng.normal(size=(5000, 32)) + np.eye(32)[c]*3).astype(np.float32)
m = WANN().fit(X, np.where(rng.random(5000) < .4, (c + 1) % 5, c))
print(fingerprint(m.label_quality_, m.k_star_, m.predict_proba(X[:200])))'''
    said = {subprocess.run([sys.executable, '-c', code], env=os.environ | {k: n for k in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}, capture_output=True, text=True, check=True).stdout for n in '12'}
    assert len(said) == 1
