"The graph: duplicates, mistakes, rows that come and go, and what is kept on disk"
import copy, os, pickle, warnings
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from noisynb.core import NoisynbError
from noisynb.neighbors import NeighborGraph
from noisynb.neighbors.search import Search, engines
from reference_neighbors import agrees, brute, clusters, gauss, grids

both = pytest.mark.parametrize('engine', ['faiss', 'torch'])
some = settings(max_examples=25, deadline=None)

def test_duplicates_stay_and_the_row_goes():
    graph = NeighborGraph(3).fit(np.zeros((5, 2)))
    np.testing.assert_array_equal(graph.indices_, [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]])
    D, I = graph.query(np.zeros((1, 2)), 5)
    np.testing.assert_array_equal(I, [[0, 1, 2, 3, 4]])
    assert (D == 0).all()

def test_cosine():
    X = gauss(200, 6)
    graph, unit = NeighborGraph(9, metric='cosine').fit(X), X/np.linalg.norm(X.astype(float), axis=1, keepdims=True)
    I, D = brute(unit, 9)
    assert (graph.indices_ == I).mean() > .999
    np.testing.assert_allclose(graph.distances_, D*D/2, rtol=1e-3)
    np.testing.assert_array_equal(NeighborGraph(9, metric='cosine').fit(X*np.exp2(np.arange(200)%7)[:, None]).indices_, graph.indices_)
    with pytest.raises(NoisynbError, match='row 5 is all zeros'): NeighborGraph(9, metric='cosine').fit(np.r_[X[:5], np.zeros((1, 6))])

@pytest.mark.parametrize('call, says', [
    (lambda: NeighborGraph(5).fit(gauss(5, 2)), 'k is 5, .* 4; use k=4'),
    (lambda: NeighborGraph(1).fit(gauss(1, 2)), 'at least two rows'),
    (lambda: NeighborGraph(1).fit(np.zeros((0, 2))), 'at least two rows'),
    (lambda: NeighborGraph(0).fit(gauss(5, 2)), 'k is 0'),
    (lambda: NeighborGraph(2.).fit(gauss(5, 2)), 'k is 2.0'),
    (lambda: NeighborGraph(2).fit(gauss(5, 2)[0]), r'shape \(2,\)'),
    (lambda: NeighborGraph(2).fit(np.zeros((5, 0))), r'shape \(5, 0\)'),
    (lambda: NeighborGraph(2).fit([['a', 'b']]*5), 'give numbers'),
    (lambda: NeighborGraph(2).fit(np.where(np.arange(10).reshape(5, 2) == 7, np.nan, 1)), 'row 3 holds NaN'),
    (lambda: NeighborGraph(2).fit(np.where(np.arange(10).reshape(5, 2) == 4, -np.inf, 1)), 'row 2 holds'),
    (lambda: NeighborGraph(2).fit(gauss(5, 2)).query([[1, np.inf]]), 'Q: row 0'),
    (lambda: NeighborGraph(2).fit(gauss(5, 2)).query(gauss(3, 4)), '4 columns, but .* 2'),
    (lambda: NeighborGraph(2).fit(gauss(5, 2)).query(gauss(3, 2), 6), 'k is 6, .* 5'),
    (lambda: NeighborGraph(2).fit(gauss(5, 2)).query(gauss(3, 2), 0), 'k is 0'),
    (lambda: NeighborGraph(2).fit(gauss(5, 2)).add(gauss(3, 4)), '4 columns, but .* 2'),
    (lambda: NeighborGraph(2).fit(gauss(5, 2)).remove([5]), 'from 0 to 4'),
    (lambda: NeighborGraph(2).fit(gauss(5, 2)).remove([0, 1, 2]), 'k is 2, .* 1'),
    (lambda: NeighborGraph(2).fit(gauss(5, 2)).check(gauss(5, 2) + 1, 2), 'other rows'),
    (lambda: NeighborGraph(2).fit(gauss(5, 2)).check(gauss(5, 2), 3), 'fit it with k=3'),
    (lambda: NeighborGraph(2, engine='fais').fit(gauss(5, 2)), "did you mean 'faiss'"),
    (lambda: NeighborGraph(2, metric='cosinus').fit(gauss(5, 2)), "did you mean 'cosine'"),
    (lambda: NeighborGraph(2, target_recall=99).fit(gauss(5, 2)), 'target_recall is 99'),
])
def test_mistakes_are_named(call, says):
    with pytest.raises(NoisynbError, match=says): call()

@pytest.mark.parametrize('engine', engines)
def test_no_queries_no_answers(engine):
    D, I = NeighborGraph(2, engine=engine).fit(gauss(50, 3)).query(np.zeros((0, 3)))
    assert D.shape == I.shape == (0, 2) and D.dtype == np.float32 and I.dtype == np.int32

@both
@some
@given(X=grids(8), data=st.data())
def test_add_and_remove_equal_a_fresh_fit(engine, X, data):
    k, metric = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(['euclidean', 'cosine']))
    if metric == 'cosine': X = X[np.abs(X).sum(1) > 0]
    if len(X) < 8: return
    cut, options = data.draw(st.integers(k + 1, len(X) - 1)), dict(metric=metric, engine=engine)
    graph = NeighborGraph(k, **options).fit(X[:cut])
    old, kept = graph.indices_.copy(), np.arange(len(X))
    grown = graph.add(X[cut:])
    np.testing.assert_array_equal(graph.indices_, old)
    for step in ('add', 'remove', 'remove'):
        if step == 'remove':
            gone = data.draw(st.lists(st.integers(0, len(kept) - 1), max_size=max(0, len(kept) - k - 1)))
            grown, kept = grown.remove(gone), np.delete(kept, gone)
        fresh = NeighborGraph(k, **options).fit(X[kept])
        np.testing.assert_array_equal(grown.indices_, fresh.indices_)
        np.testing.assert_allclose(grown.distances_, fresh.distances_, rtol=1e-3)
        np.testing.assert_array_equal(grown.query(X[:3])[1], fresh.query(X[:3])[1])

def test_add_and_remove_on_embeddings():
    X = clusters(2000, 48)
    grown = NeighborGraph(20).fit(X[:1500]).add(X[1500:1501]).add(X[1501:]).remove(np.arange(0, 2000, 7))
    fresh = NeighborGraph(20).fit(np.delete(X, np.arange(0, 2000, 7), 0))
    np.testing.assert_array_equal(grown.indices_, fresh.indices_)
    np.testing.assert_allclose(grown.distances_, fresh.distances_, rtol=1e-5)
    same = grown.add(X[:0]).remove([])
    np.testing.assert_array_equal(same.indices_, fresh.indices_)

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path))
    return tmp_path

def no_search(monkeypatch):
    def refuse(*args): raise AssertionError('searched')
    monkeypatch.setattr(Search, '__init__', refuse)

def test_cache_spares_the_search(cache, monkeypatch):
    X = clusters(300, 8)
    first = NeighborGraph.cached(X, 20, engine='faiss')
    for k in 0, -1, '5', 300:
        with pytest.raises(NoisynbError, match=f'k is {k!r}'): NeighborGraph.cached(X, k, engine='faiss')
    with monkeypatch.context() as m:
        no_search(m)
        for k, kind in ((20, 'faiss'), (7, 'torch'), (20, 'auto')):
            again = NeighborGraph.cached(X, k, engine=kind)
            np.testing.assert_array_equal(again.indices_, first.indices_[:, :k])
            np.testing.assert_array_equal(again.distances_, first.distances_[:, :k])
            assert again.k == k
        for other in (lambda: NeighborGraph.cached(X, 21), lambda: NeighborGraph.cached(X, 20, metric='cosine'), lambda: NeighborGraph.cached(X, 20, engine='ivf'), lambda: NeighborGraph.cached(X[:-1], 20)):
            with pytest.raises(AssertionError, match='searched'): other()
    np.testing.assert_array_equal(again.query(X[:5])[1], first.query(X[:5])[1])
    agrees(NeighborGraph.cached(X, 21), X)

@pytest.mark.parametrize('harm', [lambda p: p.write_bytes(p.read_bytes()[:-40]), lambda p: p.write_bytes(p.read_bytes()[:-1] + b'x'), lambda p: p.write_bytes(b''), lambda p: p.unlink()])
@pytest.mark.parametrize('name', ['indices.npy', 'distances.npy', 'graph.json'])
def test_a_damaged_cache_is_not_believed(cache, harm, name):
    X = clusters(100, 8)
    NeighborGraph.cached(X, 9)
    path, = cache.rglob(name)
    harm(path)
    if path.exists() or name != 'graph.json':
        with pytest.warns(UserWarning, match='searching again'): graph = NeighborGraph.cached(X, 9)
    else: graph = NeighborGraph.cached(X, 9)
    agrees(graph, X)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        agrees(NeighborGraph.cached(X, 9), X)
    assert not [p for p in cache.rglob('.*')]

def test_a_pickle_in_the_cache_is_not_run(cache):
    X = clusters(100, 8)
    NeighborGraph.cached(X, 9)
    path, = cache.rglob('indices.npy')
    class Bomb:
        def __reduce__(self): return os.mkdir, (str(cache/'boom'),)
    np.save(path, np.array([Bomb()], object), allow_pickle=True)
    with pytest.warns(UserWarning, match='searching again'): agrees(NeighborGraph.cached(X, 9), X)
    assert not (cache/'boom').exists()

def test_an_unwritable_cache_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path/'file'))
    X = clusters(60, 4)
    with pytest.warns(UserWarning, match='is not kept: cannot write'): agrees(NeighborGraph.cached(X, 5), X)

@pytest.mark.parametrize('options', [dict(), dict(metric='cosine'), dict(engine='torch'), dict(engine='hnsw'), dict(engine='ivf', seed=3)])
def test_saved_graphs_come_back(tmp_path, options):
    X, Q = clusters(300, 8), clusters(40, 8, 1)
    graph = NeighborGraph(9, **options).fit(X)
    there = [NeighborGraph.load(graph.save(tmp_path/'a')), NeighborGraph.load(graph.save(tmp_path/'b', rows=False), X), NeighborGraph.from_state(graph.state()), pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph)]
    assert not (tmp_path/'b'/'rows.npy').exists()
    for other in there:
        assert repr(other) == repr(graph)
        np.testing.assert_array_equal(other.indices_, graph.indices_)
        np.testing.assert_array_equal(other.distances_, graph.distances_)
        np.testing.assert_array_equal(other.query(Q)[1], graph.query(Q)[1])
        other.check(X, 9)
    with pytest.raises(NoisynbError, match='not those that were saved'): NeighborGraph.load(tmp_path/'b', X + 1)
    with pytest.raises(NoisynbError, match='no readable neighbour graph'): NeighborGraph.load(tmp_path/'c')
    with pytest.raises(NoisynbError, match='no readable neighbour graph'): NeighborGraph.load(tmp_path/'b')

def test_a_state_that_does_not_fit_together_is_refused():
    state = NeighborGraph(3).fit(gauss(20, 2)).state()
    for harm in (dict(indices=state['indices'] + 10), dict(indices=state['indices'] - 5), dict(rows=state['rows'][:-1]), dict(distances=state['distances'][:, 1:])):
        with pytest.raises(NoisynbError, match='do not fit together'): NeighborGraph.from_state(state | harm)

def test_imports_stay_light():
    import subprocess, sys
    code = 'import sys; import noisynb.neighbors; print([m for m in ("torch", "faiss", "sklearn", "pandas", "matplotlib") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
