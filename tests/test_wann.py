"WANN against hand examples, a slow exact reference, and its own invariants"
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks

from noisynb.core import NoisynbError
from noisynb.methods.base import load
from noisynb.methods.wann import ANN, KNN, WANN, Corrected, FilteredLDA, adaptive_sizes
from reference_wann import predict, sizes

quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def no_clamp_warnings():
    with warnings.catch_warnings():
        for message in 'k_max is lowered', '.*fewer than half of k_min': warnings.filterwarnings('ignore', message=message)
        yield

def column(*x): return np.array(x, float)[:, None]

# --- hand examples (one dimension) ---

toys = dict(
    A=((0, 1, 2.5, 10, 11, 12.5), (0, 0, 1, 1, 1, 1), 1, 3, (1, 1, 3, 1, 1, 1), [(2.2, 0, 0), (.4, 0, 0), (10.4, 1, 1)]),
    A4=((0, 1, 2.5, 10, 11, 12.5), (0, 0, 1, 1, 1, 1), 1, 4, (1, 1, 4, 1, 1, 1), [(2.2, 0, 0)]),
    A5=((0, 1, 2.5, 10, 11, 12.5), (0, 0, 1, 1, 1, 1), 1, 5, (1, 1, 5, 1, 1, 1), [(2.2, 1, 1)]),
    B=((-.5, 0, .9, 2.2, 3, 3.4, 20, 21, 22.5), (0, 0, 1, 1, 0, 0, 1, 1, 1), 1, 3, (1, 1, 3, 3, 1, 1, 1, 1, 1), [(1.4, 0, 1), (2.5, 0, 0), (21.2, 1, 1)]),
    C=((0, .8, 2, -5, -5.1, -5.2, 30, 30.1, 30.3), (2, 1, 0, 2, 2, 2, 0, 0, 0), 3, 3, (3,)*9, [(.1, 2, 0)]),
    D=((0, 0, 0, 5, 5, 5), (0, 0, 1, 1, 1, 1), 1, 5, (1, 1, 5, 1, 1, 1), []),
    E=((0, 1, 2, 3), (7, 7, 7, 7), 1, 3, (1, 1, 1, 1), [(1.2, 7, 7)]),
    F=((0, 1, 2.2, 9), (0, 0, 0, 1), 1, 3, (1, 1, 1, 3), [(8.9, 0, 0)]),
    G=((0, 1, 2, 3, 4, 5), (0, 0, 0, 1, 1, 1), 11, 51, (5,)*6, [(.2, 0, 0), (4.9, 1, 1)]),
)

@pytest.mark.parametrize('name', toys)
def test_toy(name):
    x, y, k_min, k_max, k_star, queries = toys[name]
    wann, ann = (cls(k_min, k_max).fit(column(*x), y) for cls in (WANN, ANN))
    assert wann.k_star_.tolist() == list(k_star)
    assert wann.reliability_ == pytest.approx(1/np.array(k_star))
    for q, weighted, counted in queries: assert (wann.predict(column(q))[0], ann.predict(column(q))[0]) == (weighted, counted)

def test_toys_of_plain_knn():
    x, y, *_ = toys['A']; assert KNN(1).fit(column(*x), y).predict(column(2.2)) == 1
    x, y, *_ = toys['B']; assert KNN(3).fit(column(*x), y).predict(column(1.4)) == 1
    x, y, *_ = toys['C']; assert KNN(3).fit(column(*x), y).predict(column(.1)) == 0
    x, y, *_ = toys['F']; assert KNN(1).fit(column(*x), y).predict(column(8.9)) == 1

def test_toy_d_drop_rank_zero():
    "Row 2 loses row 0 and votes for itself"
    x, y, k_min, k_max, *_ = toys['D']
    model = WANN(k_min, k_max, self_rule='rank').fit(column(*x), y)
    assert model.k_star_.tolist() == sizes(column(*x), y, k_min, k_max, 'rank').tolist()
    assert model.k_star_[2] == 3

def test_grid_of_sizes():
    "k_max itself is never voted on: unanimous strangers give every size below it a chance and no more"
    votes, y = np.tile(np.r_[np.zeros(30), np.ones(60)].astype(int), (2, 1)), np.array([1, 0])
    assert adaptive_sizes(votes, y, 2, 11, 51).tolist() == [51, 11]
    assert adaptive_sizes(votes, y, 2, 11, 62).tolist() == [61, 11]
    assert adaptive_sizes(votes, y, 2, 11, 61).tolist() == [61, 11] # as the fallback

# --- against the slow exact reference ---

problems = st.tuples(st.integers(12, 40), st.integers(1, 3), st.integers(2, 4), st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 6), st.booleans())

def problem(n, d, c, seed, grid):
    rng = np.random.default_rng(seed)
    draw = (lambda m: rng.integers(0, 4, (m, d)).astype(float)) if grid else (lambda m: rng.normal(size=(m, d)))
    return draw(n), rng.integers(0, c, n), draw(8)

@quick
@given(problems)
def test_agrees_with_the_reference(p):
    n, d, c, seed, k_min, more, grid = p
    X, y, Q = problem(n, d, c, seed, grid)
    k_max = min(k_min + more, n - 1)
    for cls, weighted in ((WANN, True), (ANN, False)):
        model = cls(k_min, k_max).fit(X, y)
        k_star = sizes(X, y, k_min, k_max)
        assert model.k_star_.tolist() == k_star.tolist()
        expected = [predict(X, y, q, k_star, weighted) for q in Q]
        assert model.predict(Q).tolist() == [e[0] for e in expected]
        proba = model.predict_proba(Q)
        for row, (_, scores) in zip(proba, expected):
            total = sum(scores.values())
            assert row == pytest.approx([float(scores.get(c, 0)/total) for c in model.classes_])

@quick
@given(problems)
def test_rank_rule_agrees_with_the_reference(p):
    n, d, c, seed, k_min, more, grid = p
    X, y, _ = problem(n, d, c, seed, True)
    k_max = min(k_min + more, n - 1)
    assert WANN(k_min, k_max, self_rule='rank').fit(X, y).k_star_.tolist() == sizes(X, y, k_min, k_max, 'rank').tolist()

# --- invariants ---

@pytest.fixture(scope='module')
def blobs():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, 300)
    X = rng.normal(size=(300, 5)).astype(np.float32) + 3*np.eye(5, dtype=np.float32)[truth]
    y = np.where(rng.random(300) < .3, rng.integers(0, 4, 300), truth)
    return X, y, rng.normal(size=(40, 5)).astype(np.float32), truth

def test_sizes_lie_on_the_grid(blobs):
    X, y, *_ = blobs
    assert set(WANN().fit(X, y).k_star_) <= {*range(11, 51, 2), 51}

def test_a_larger_k_max_keeps_the_confirmed(blobs):
    X, y, *_ = blobs
    small, large = (WANN(11, k).fit(X, y).k_star_ for k in (31, 51))
    assert (large[small < 31] == small[small < 31]).all() and (large[small == 31] >= 31).all()

def test_scaling_by_a_power_of_two_changes_nothing(blobs):
    X, y, Q, _ = blobs
    a, b = WANN().fit(X, y), WANN().fit(4*X, y)
    assert (a.k_star_ == b.k_star_).all() and (a.predict_proba(Q) == b.predict_proba(4*Q)).all()
    assert (a.label_quality_ == b.label_quality_).all()

def test_order_of_rows_does_not_matter(blobs):
    X, y, Q, _ = blobs
    order = np.random.default_rng(0).permutation(len(X))
    a, b = WANN().fit(X, y), WANN().fit(X[order], y[order])
    assert (a.k_star_[order] == b.k_star_).all() and (a.predict(Q) == b.predict(Q)).all()
    a, b = (WANN(quality='graph').fit(*p) for p in ((X, y), (X[order], y[order])))
    assert a.label_quality_[order] == pytest.approx(b.label_quality_, abs=1e-4)

def test_increasing_relabelling_maps_through(blobs):
    X, y, Q, _ = blobs
    names = np.array(['ant', 'bee', 'cat', 'dog'])
    a, b = WANN().fit(X, y), WANN().fit(X, names[y])
    assert (names[a.predict(Q)] == b.predict(Q)).all() and (names[a.corrected_labels_] == b.corrected_labels_).all()

def test_one_size_is_plain_knn(blobs):
    X, y, Q, _ = blobs
    assert (ANN(15, 15).fit(X, y).predict(Q) == KNN(15).fit(X, y).predict(Q)).all()

def test_one_class(blobs):
    X, _, Q, _ = blobs
    model = WANN().fit(X, np.full(len(X), 3))
    assert (model.k_star_ == 11).all() and (model.predict(Q) == 3).all() and model.predict_proba(Q).shape == (len(Q), 1)
    assert len(model.suspects()) == 0

def test_lone_example_of_a_class_is_never_confirmed(blobs):
    X, y, *_ = blobs
    y = y.copy(); y[7] = 9
    assert WANN().fit(X, y).k_star_[7] == 51

def test_a_class_too_small_for_its_neighbourhoods_is_named(blobs):
    X, y, *_ = blobs
    keep = np.r_[np.flatnonzero(y == 0)[:3], np.flatnonzero(y == 1)]
    with pytest.warns(UserWarning, match='class 0 has 3 examples, fewer than half of k_min = 11'): WANN().fit(X[keep], y[keep])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        WANN(k_min=5).fit(X[keep], y[keep])

def test_quality_contract(blobs):
    X, y, _, truth = blobs
    for model in (WANN(), ANN(), KNN(), Corrected(), WANN(quality='reliability')):
        model.fit(X, y)
        q, s = model.label_quality_, model.suspects()
        assert q.shape == y.shape and (q >= 0).all() and (q <= 1).all()
        assert set(s) == set(np.flatnonzero(q < model.quality_threshold_)) and (np.diff(q[s]) >= 0).all()
        assert q[y == truth].mean() > q[y != truth].mean() + .2
        assert (model.corrected_labels_ == truth).mean() > (y == truth).mean() + .1
        if model.quality == 'embedding': assert len(np.unique(q[q < 1])) == (q < 1).sum() # ties only among the certain

def test_inputs_are_not_changed_and_any_layout_will_do(blobs):
    X, y, Q, _ = blobs
    a = WANN().fit(X, y).predict_proba(Q)
    wide = np.zeros((len(X), 10)); wide[:, ::2] = X
    frozen = wide[:, ::2]; frozen.flags.writeable = False
    before, state = X.copy(), np.random.get_state()[1].copy()
    assert (WANN().fit(frozen, y).predict_proba(Q.astype(np.float64)) == a).all()
    assert (X == before).all() and (np.random.get_state()[1] == state).all()
    half = X.astype(np.float16)
    assert (WANN().fit(half, y).k_star_ == WANN().fit(half.astype(np.float64), y).k_star_).all()

def test_blocks_do_not_matter(blobs, monkeypatch):
    import noisynb.methods.wann as room
    X, y, Q, _ = blobs
    a = WANN().fit(X, y)
    plain = room._blocks
    monkeypatch.setattr(room, '_blocks', lambda n, size, budget=0: plain(n, 1, 7))
    b = WANN().fit(X, y)
    assert (a.k_star_ == b.k_star_).all() and (a.predict_proba(Q) == b.predict_proba(Q)).all()

# --- bad input ---

@pytest.mark.parametrize('args, words', [
    (dict(k_min=0), 'k_min is 0'), (dict(k_min=5, k_max=3), 'below k_min'), (dict(k_max=9.5), '9.5'), (dict(small='raise'), "small='clamp'"),
    (dict(reduce='ldaa'), "did you mean 'lda'"), (dict(self_rule='indx'), "did you mean 'index'")])
def test_bad_parameters(args, words):
    with pytest.raises(NoisynbError, match=words): WANN(**args).fit(np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 2)

def test_bad_data(blobs):
    X, y, Q, _ = blobs
    bad = X.copy(); bad[12, 3] = np.inf
    with pytest.raises(NoisynbError, match='inf at row 12, column 3'): WANN().fit(bad, y)
    with pytest.raises(NoisynbError, match='embeddings'): WANN().fit(np.zeros((30, 8, 8, 1), np.uint8), y[:30])
    model = WANN().fit(X, y)
    with pytest.raises(ValueError, match='5'): model.predict(Q[:, :4])
    with pytest.raises(NoisynbError, match='NaN at row 0'): model.predict(np.full((1, 5), np.nan))
    for call in (lambda: model.relabel([1, 2], [0]), lambda: model.relabel([1], [300]), lambda: model.remove([-1]), lambda: model.add(Q, [1])):
        with pytest.raises(NoisynbError): call()
    with pytest.raises(NoisynbError, match='k is 0'): KNN(0).fit(X, y)
    assert model.predict(Q[:0]).shape == (0,) and model.predict_proba(Q[:0]).shape == (0, 4)

def test_single_example():
    model = WANN().fit([[1., 2.]], ['only'])
    assert model.k_star_.tolist() == [1] and model.predict([[5., 5.]]).tolist() == ['only'] and model.suspects().size == 0

def test_a_foreign_graph_is_refused(blobs):
    X, y, *_ = blobs
    graph = WANN().neighbor_graph(X)
    assert (WANN().fit(X, y, graph=graph).k_star_ == WANN().fit(X, y).k_star_).all()
    for Z, labels in ((X[::-1].copy(), y), (X[:-1], y[:-1]), (X[:, :4], y)):
        with pytest.raises(NoisynbError, match='graph'): WANN().fit(Z, labels, graph=graph)
    with pytest.raises(NoisynbError, match='graph'): WANN(k_max=61).fit(X, y, graph=graph)

def test_explain_agrees_with_predict(blobs):
    X, y, Q, _ = blobs
    for model in (WANN(), ANN(), KNN(), Corrected(), WANN(metric='cosine'), WANN(reduce='flda')):
        model.fit(X, np.array(['a', 'b', 'c', 'd'])[y])
        stories = [model.explain(q) for q in Q]
        assert [s.prediction for s in stories] == model.predict(Q).tolist()
        top = np.sort(model.predict_proba(Q))
        assert [s.margin for s in stories] == pytest.approx(top[:, -1] - top[:, -2], abs=1e-6)
        assert all(abs(sum(r['share'] for r in s.rows) - 1) < 1e-5 and len(s.rows) == s.size for s in stories)

def test_standardize_is_zscore_and_spares_constants(blobs):
    X, y, Q, _ = blobs
    X, Q = np.c_[X, np.full(len(X), .1)], np.c_[Q, np.full(len(Q), .101)]
    std = np.where(X.std(0) > 1e-9, X.std(0), 1)
    by_hand = WANN().fit(((X - X.mean(0))/std).astype(X.dtype), y).predict(((Q - X.mean(0))/std).astype(X.dtype))
    assert (WANN(standardize=True).fit(X, y).predict(Q) == by_hand).all()

# --- changes in place ---

def same(a, b, Q):
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ('classes_', 'codes_', 'k_star_', 'label_quality_')) and np.array_equal(a.predict_proba(Q), b.predict_proba(Q))

@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6), st.lists(st.sampled_from(['add', 'remove', 'relabel']), min_size=1, max_size=4), st.booleans())
def test_edits_equal_a_fresh_fit(seed, edits, grid):
    rng = np.random.default_rng(seed)
    draw = (lambda m: rng.integers(0, 5, (m, 3)).astype(np.float32)) if grid else (lambda m: rng.normal(size=(m, 3)).astype(np.float32))
    X, y, Q = draw(40), rng.integers(0, 3, 40), draw(6)
    new_model = lambda: WANN(3, 9, quality='reliability') # the probability also sees the last digits of distances
    model = new_model().fit(X, y)
    for edit in edits:
        if edit == 'add':
            new, labels = draw(4), rng.integers(0, 4, 4)
            model.add(new, labels); X, y = np.concatenate([X, new]), np.concatenate([y, labels])
        elif edit == 'remove':
            rows = rng.choice(len(X), 5, replace=False)
            model.remove(rows); X, y = np.delete(X, rows, 0), np.delete(y, rows)
        else:
            rows = rng.choice(len(X), 6, replace=False); y = y.copy(); y[rows] = rng.integers(0, 3, 6)
            model.relabel(y[rows], rows)
        assert same(model, new_model().fit(X, y), Q)

def test_quality_after_edits_is_that_of_a_fresh_fit(blobs):
    X, y, Q, _ = blobs
    model = WANN().fit(X[:280], y[:280]).add(X[280:], y[280:]).remove(np.arange(10))
    fresh = WANN().fit(X[10:], y[10:])
    assert model.label_quality_ == pytest.approx(fresh.label_quality_, abs=.02) and (model.corrected_labels_ == fresh.corrected_labels_).all()

@pytest.mark.parametrize('make', [WANN, KNN, Corrected])
def test_edits_within_the_neighbourhoods_make_no_new_search(blobs, make, monkeypatch):
    X, y, Q, _ = blobs
    model = make().fit(X[:200], y[:200])
    monkeypatch.setattr(make, '_search', None)
    model.relabel(y[:3], [5, 6, 7]).add(X[200:220], y[200:220]).remove([0, 210])

@pytest.mark.parametrize('make', [WANN, KNN, Corrected])
@pytest.mark.parametrize('before, after', [(8, 40), (40, 80), (30, 29), (60, 20), (9, 1)])
def test_edits_that_change_the_size_of_neighbourhoods(blobs, make, before, after):
    X, y, Q, _ = blobs
    model = make().fit(X[:before], y[:before])
    model.add(X[before:after], y[before:after]) if after > before else model.remove(np.arange(after, before))
    assert same(model, make().fit(X[:after], y[:after]), Q)

def test_a_refused_edit_changes_nothing(blobs):
    X, y, Q, _ = blobs
    model, fresh = (WANN(small='raise').fit(X[:60], y[:60]) for _ in range(2))
    for call in (lambda: model.relabel(['dog'], [0]), lambda: model.add(Q[:1], ['dog']), lambda: model.remove(np.arange(20)), lambda: model.fit(X, ['dog', 1]), lambda: model.fit(X[:, :2], y[:5])):
        with pytest.raises(NoisynbError): call()
        assert same(model, fresh, Q) and model.classes_.dtype == y.dtype
    alone = WANN().fit(X[:1], y[:1])
    for call in (lambda: alone.add(X, y), lambda: alone.explain(Q[0])):
        with pytest.raises(NoisynbError, match='fitted on one example'): call()

def test_a_graph_for_others_leaves_the_model_alone(blobs):
    X, y, Q, _ = blobs
    model = WANN(standardize=True).fit(X, y)
    before = model.predict_proba(Q)
    model.neighbor_graph(5*Q)
    assert (model.predict_proba(Q) == before).all()
    fresh = WANN()
    fresh.neighbor_graph(X)
    with pytest.raises(NotFittedError): fresh.predict(Q)

def test_relabel_all(blobs):
    X, y, Q, truth = blobs
    assert same(WANN().fit(X, y).relabel(truth), WANN().fit(X, truth), Q)

# --- reductions ---

def test_filtered_lda_is_lda_of_the_confirmed(blobs):
    X, y, Q, _ = blobs
    keep = WANN().fit(X, y).k_star_ < 51
    ours, theirs = FilteredLDA().fit(X, y).transform(Q), LinearDiscriminantAnalysis().fit(X[keep], y[keep]).transform(Q)
    assert ours.shape == (40, 3) and ours == pytest.approx(theirs, abs=1e-4)

def test_filtered_lda_keeps_a_class_nobody_confirms(blobs):
    X, y, *_ = blobs
    y = y.copy(); y[:8] = 9
    with pytest.warns(UserWarning, match='9'): flda = FilteredLDA().fit(X, y)
    assert 2 <= flda.kept_[:8].sum() <= 8 and flda.transform(X).shape == (300, 4)
    assert not FilteredLDA(keep_classes=False).fit(X, y).kept_[:8].any()

def test_filtered_lda_asks_the_neighbours_of_its_method(blobs):
    X, y, Q, _ = blobs
    model = WANN(metric='cosine', reduce='flda')
    assert same(model.fit(X, y), WANN(metric='cosine', reduce='flda').fit(X, y, graph=model.neighbor_graph(X)), Q)
    with pytest.raises(NoisynbError, match='other rows'): FilteredLDA().fit(X, y, WANN().neighbor_graph(X + 1))

@pytest.mark.parametrize('reduce, d', [('pca', 5), ('lda', 3), ('flda', 3)])
def test_reduced_methods(blobs, reduce, d):
    X, y, Q, truth = blobs
    model = WANN(reduce=reduce).fit(X, y)
    assert model.projection_.shape == (5, d) and (model.corrected_labels_ == truth).mean() > .75
    with pytest.raises(NoisynbError, match='fit again'): model.remove([0])

# --- files ---

def test_save_and_load(blobs, tmp_path):
    X, y, Q, _ = blobs
    for model in (WANN(standardize=True), ANN(reduce='flda'), KNN(5), Corrected(), WANN(metric='cosine')):
        model.fit(X, np.array(['a', 'b', 'c', 'd'])[y])
        again = load(model.save(tmp_path/'model.safetensors'))
        assert type(again) is type(model) and again.get_params() == model.get_params()
        assert (again.predict_proba(Q) == model.predict_proba(Q)).all() and (again.label_quality_ == model.label_quality_).all()
        assert (again.suspects() == model.suspects()).all() and again.explain(Q[0]).rows == model.explain(Q[0]).rows
        if not model.reduce: assert same(again.remove([3]), model.remove([3]), Q)
    assert [p.name for p in tmp_path.iterdir()] == ['model.safetensors']

def test_options_from_numpy_are_saved(blobs, tmp_path):
    X, y, Q, _ = blobs
    model = WANN(k_max=np.int64(21), standardize=np.bool_(True)).fit(X, y)
    assert same(load(model.save(tmp_path/'m.safetensors')), model, Q)

@pytest.mark.parametrize('labels, words', [([0, 'a'], 'integers or strings'), (['a', None], 'None at row 1'), (np.array(['a', np.nan], object), 'nan at row 1'), ([0., np.nan], 'nan at row 1'), ([1, None], 'None at row 1')])
def test_labels_that_cannot_be_classes(labels, words):
    with pytest.raises(NoisynbError, match=words): KNN(1).fit([[0.], [1.]], labels)

def test_a_pickle_is_not_a_model(tmp_path):
    import pickle
    (tmp_path/'m').write_bytes(pickle.dumps(dict(a=1)))
    with pytest.raises(NoisynbError, match='not a readable model'): load(tmp_path/'m')

# --- scikit-learn, and the figures of the specification ---

@parametrize_with_checks([WANN(), ANN(), KNN(), Corrected(), WANN(reduce='flda'), FilteredLDA()])
def test_sklearn(estimator, check): check(estimator)

digits_table = { # k-NN 11, k-NN 51, ANN, WANN; split seed 0, z-scored, count-based symmetric noise
    0: (95.56, None, 95.00, 95.00), .2: (96.11, None, 95.00, 94.81), .4: (93.89, None, 92.59, 93.15), .6: (82.04, None, 90.00, 90.19)}

@pytest.mark.parametrize('rate', digits_table)
def test_digits_figures(rate):
    "Accuracy to the last digit image of a brute-force reference that was compared with the public code"
    from noisynb.noise import corrupt
    X, y = load_digits(return_X_y=True)
    X, Q, y, target = train_test_split(X, y, test_size=.3, stratify=y, random_state=0)
    given_labels = corrupt(y, 'symmetric', rate, seed=0, scheme='wann', n_classes=10).given
    models = KNN(11, standardize=True), ANN(standardize=True), WANN(standardize=True)
    got = [round(100*m.fit(X, given_labels).score(Q, target), 2) for m in models]
    assert got == [v for v in digits_table[rate] if v is not None]

@pytest.mark.parametrize('kind', [np.float64, np.float32])
def test_filtered_lda_on_columns_that_are_constant_among_the_kept(kind):
    "z-scored pixels that vary by rounding alone; scikit-learn's LDA would divide by that"
    from sklearn.datasets import load_digits
    from noisynb.noise import corrupt
    X, y = load_digits(return_X_y=True)
    for seed in range(4):
        model = WANN(standardize=True, reduce='flda').fit(X[:1200].astype(kind), corrupt(y[:1200], 'symmetric', .4, seed).given)
        assert model.score(X[1200:].astype(kind), y[1200:]) > .85
