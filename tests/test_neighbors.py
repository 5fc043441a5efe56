"The graph against plain sorts of all distances, whatever the engine, the numbers and the ties"
import copy, json, os, pickle, warnings
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from noisynb import neighbors as nb
from noisynb.core import NoisynbError
from noisynb.neighbors import NeighborGraph, engines

both = pytest.mark.parametrize('engine', ['faiss', 'torch'])
some = settings(max_examples=25, deadline=None)

def brute(X, k, Q=None):
    "Indices and distances by sorting (distance, index) of all pairs in float64, one query at a time"
    X = np.asarray(X).astype(np.float64)
    lists = []
    for i, q in enumerate(X if Q is None else np.asarray(Q).astype(np.float64)):
        d = sum((X[:, t] - q[t])**2 for t in range(X.shape[1])) if X.shape[1] < 8 else ((X - q)**2).sum(1)
        order = sorted((float(v), j) for j, v in enumerate(d) if Q is not None or j != i)[:k]
        lists.append(order)
    return np.array([[j for _, j in l] for l in lists]), np.sqrt([[v for v, _ in l] for l in lists])

def agrees(graph, X, k=None):
    I, D = brute(X, k or graph.k)
    np.testing.assert_array_equal(graph.indices_, I)
    np.testing.assert_allclose(graph.distances_, D, rtol=2e-3, atol=1e-37)
    assert graph.indices_.dtype == np.int32 and graph.distances_.dtype == np.float32

def gauss(n, d, seed=0): return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)

def clusters(n, d, seed=0):
    g = np.random.default_rng(seed)
    return (gauss(n, d, seed) + 1.5*g.standard_normal((20, d))[g.integers(20, size=n)]).astype(np.float32)

@st.composite
def grids(draw, least=2, most=40):
    "Rows on a coarse grid, so that ties and duplicates abound, anywhere and of any size"
    n, d = draw(st.integers(least, most)), draw(st.integers(1, 5))
    rows = np.random.default_rng(draw(st.integers(0, 999))).integers(-draw(st.integers(0, 3)), 3, (n, d))
    far, fine, kind = draw(st.sampled_from([0, 3, 1000, 2**19])), draw(st.sampled_from([1, .25, 2.**-40])), draw(st.sampled_from(['f4', 'f8']))
    return (rows*fine + (far if fine > 1e-3 else 0)).astype(kind)

@both
@some
@given(X=grids(), data=st.data())
def test_graph_and_queries_agree_with_a_plain_sort(engine, X, data):
    k = data.draw(st.integers(1, len(X) - 1))
    graph = NeighborGraph(k, engine=engine).fit(X)
    agrees(graph, X)
    Q, k = X[::2] + data.draw(st.sampled_from([0, .25])), data.draw(st.integers(1, len(X)))
    D, I = graph.query(Q, k)
    np.testing.assert_array_equal(I, brute(X, k, Q)[0])

def wild():
    g = np.random.default_rng(3)
    return {'gaussian': gauss(500, 40), 'clusters': clusters(500, 30), 'far, float32': gauss(300, 20) + 1e4, 'far, float64': g.standard_normal((300, 20)) + 1e9,
        'far grid': g.integers(0, 3, (300, 6)) + 1e12, 'all equal': np.ones((200, 7)), 'copies': np.repeat(gauss(10, 8), 30, 0), 'near copies': 1 + 1e-9*g.standard_normal((200, 5)),
        'one-hot': np.eye(200), 'float16': gauss(200, 9).astype('f2'), 'bytes': g.integers(0, 4, (300, 16)).astype('u1'), 'tiny': gauss(200, 9)*np.float32(1e-30), 'huge': gauss(200, 9)*np.float32(1e14),
        'all sizes': g.standard_normal((200, 9))*10.**g.integers(-30, 14, (200, 1)), 'outliers': np.r_[gauss(200, 5), np.full((1, 5), 1e10), np.full((2, 5), -1e8)],
        'constant columns': np.c_[gauss(200, 3), np.full((200, 2), 1e6)], 'prime d': gauss(200, 67), 'few values': np.float32([5, 1, 4, 5, 4, 5, 2, 2, 4, 3, 1, 4, 5, 5, 3, 1, 1, 3, 1])[:, None], 'near twins': np.tile(gauss(50, 5), (2, 1)) + 1e-9*g.standard_normal((100, 5)),
        'tight groups': np.repeat(g.standard_normal((8, 6)), 30, 0) + 1e-5*g.standard_normal((240, 6)), 'one column': g.standard_normal((200, 1))}

@both
@pytest.mark.parametrize('name', list(wild()))
def test_wild_data(engine, name):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        agrees(NeighborGraph(15, engine=engine).fit(wild()[name]), wild()[name])

def test_a_plain_float32_search_would_not_do():
    import faiss
    X = np.round(gauss(600, 384)) + np.float32(3000)
    assert (faiss.knn(X, X, 16)[1][:, 1:] != brute(X, 15)[0]).mean() > .1
    agrees(NeighborGraph(15, engine='faiss').fit(X), X)

class Rough(nb._Faiss):
    "An engine that errs as much as it says, or as much as it doesn't say"
    def __init__(self, S, product, difference, lie):
        super().__init__(S)
        self.g, self.by = np.random.default_rng(0), (product, difference)
        self.loose, self.error = product*(lie != 'product'), difference*(lie != 'difference')

    def shortlist(self, Q, K):
        D = ((Q[:, None].astype(float) - self.S)**2).sum(-1)
        D += self.g.choice([-.99, .99], D.shape)*self.by[0]*(np.linalg.norm(Q, axis=1)[:, None] + np.linalg.norm(self.S, axis=1))**2
        I = np.argsort(D, 1)[:, :K]
        return I, np.take_along_axis(D, I, 1)[:, -1].astype(np.float32)

    def direct(self, Q, I):
        V = super().direct(Q, I)
        return V*(1 + self.g.choice([-.99, .99], V.shape)*self.by[1])

@pytest.mark.parametrize('product, difference, lie', [(2.**-5, 0., None), (2.**-5, 0., 'product'), (1e-3, .05, None), (1e-3, .05, 'difference')])
def test_proofs_hold_for_engines_that_err_as_they_say(product, difference, lie):
    X = gauss(300, 12)
    found = nb._Search(X, 'faiss', 'cpu', 10, .99, 0).nearest(X, 10, np.arange(300), Rough(X, product, difference, lie))[1]
    assert (found == brute(X, 10)[0]).all() == (lie is None)

@pytest.mark.parametrize('d', [1, 8, 127, 131, 384, 1000])
def test_engines_err_no_more_than_they_say(d):
    X, Q, I = gauss(200, d), gauss(50, d, 1), np.tile(np.arange(200), (50, 1))
    V = ((Q[:, None].astype(float) - X)**2).sum(-1)
    for engine in (nb._Faiss(X), nb._Torch(X, 'cpu')): assert (np.abs(engine.direct(Q, I) - V) <= engine.error*V).all()
    assert nb._Faiss(X).error <= 140*nb.U or d == 131

def test_many_copies_need_no_search_of_all_rows(monkeypatch):
    X, most, block = np.zeros((2000, 3)), [], nb._Search._block
    monkeypatch.setattr(nb._Search, '_block', lambda self, engine, Q, K, k, own: (most.append(K), block(self, engine, Q, K, k, own))[1])
    graph = NeighborGraph(4).fit(X)
    assert max(most) < 200
    np.testing.assert_array_equal(graph.indices_[[0, 2, 4, 5]], [[1, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 3], [0, 1, 2, 3]])

def test_copies_are_looked_up_only_where_they_suffice():
    X, k = np.repeat([[1.], [2.], [3.], [4.]], [3, 4, 5, 6], axis=0), 4
    I, D = np.full((18, k), -1), np.full((18, k), -1.)
    left = nb._copied(X, X, np.arange(18), k, np.arange(18), I, D)
    np.testing.assert_array_equal(left, np.arange(7))
    np.testing.assert_array_equal(I[7:], brute(X, k)[0][7:])
    np.testing.assert_array_equal(D[7:], 0)

def test_torch_shortlists_in_blocks():
    X, Q = clusters(400, 10), clusters(130, 10, 1)
    engine = nb._Torch(X, 'cpu')
    engine.rows, engine.cells = 50, 3000
    I, L = engine.shortlist(Q, 30)
    T, D = brute(X, 30, Q)
    np.testing.assert_array_equal(np.sort(I, 1), np.sort(T, 1))
    np.testing.assert_allclose(L, D[:, -1]**2, rtol=1e-4)

def test_torch_under_coarser_products():
    import torch
    X, before = gauss(300, 30), torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = 'bf16'
    try:
        assert nb._Torch(X, 'cpu').loose > 0
        with torch.autocast('cpu', dtype=torch.bfloat16): graph = NeighborGraph(15, engine='torch').fit(X)
    finally: torch.backends.mkldnn.matmul.fp32_precision = before
    assert nb._Torch(X, 'cpu').loose == 0
    agrees(graph, X)

@pytest.mark.parametrize('engine', ['faiss', 'hnsw', 'ivf'])
def test_threads_change_nothing(engine):
    import faiss
    X, before, graphs = clusters(3000, 48), faiss.omp_get_max_threads(), []
    for n in (1, 2, 3):
        faiss.omp_set_num_threads(n)
        try:
            graphs.append(NeighborGraph(20, engine=engine).fit(X))
            assert faiss.omp_get_max_threads() == n
        finally: faiss.omp_set_num_threads(before)
        np.testing.assert_array_equal(graphs[-1].indices_, graphs[0].indices_)
        np.testing.assert_array_equal(graphs[-1].query(X[:99] + 1)[1], graphs[0].query(X[:99] + 1)[1])

def test_any_layout_is_taken_and_left_alone(tmp_path):
    base = np.round(gauss(120, 12)*8)/8
    np.save(tmp_path/'x.npy', base)
    wide = np.zeros((240, 24), np.float32); wide[::2, ::2] = base
    frozen = base.copy(); frozen.flags.writeable = False
    ways = dict(fortran=np.asfortranarray(base), strided=wide[::2, ::2], read_only=frozen, mapped=np.load(tmp_path/'x.npy', mmap_mode='r'), half=base.astype('f2'), double=base.astype('f8'), big_endian=base.astype('>f4'), nested=base.tolist())
    for name, X in ways.items():
        for engine in ('faiss', 'torch'):
            before = copy.deepcopy(np.asarray(X))
            with warnings.catch_warnings():
                warnings.simplefilter('error')
                graph = NeighborGraph(7, engine=engine).fit(X)
                agrees(graph, base)
                graph.query(X)
            np.testing.assert_array_equal(np.asarray(X), before, err_msg=name)
    assert NeighborGraph(7).fit(base).rows_ is base

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

@pytest.mark.parametrize('engine', ['hnsw', 'ivf'])
def test_approximate_engines_find_nearly_all_and_know_how_many(engine):
    X = clusters(5000, 24)
    before = np.random.get_state()[1].copy()
    graph = NeighborGraph(51, engine=engine).fit(X)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    true = NeighborGraph(51, engine='faiss').fit(X)
    share = np.mean([len(np.intersect1d(a, b))/51 for a, b in zip(graph.indices_, true.indices_)])
    assert share >= .99 and abs(graph.recall(5000) - share) < 1e-9 and abs(graph.recall() - share) < .01
    assert not (graph.indices_ == np.arange(5000)[:, None]).any()
    assert all(len(set(r)) == 51 for r in graph.indices_[:500].tolist())
    D, I = graph.query(X[:50])
    np.testing.assert_array_equal(I[:, 0], np.arange(50))
    assert (np.diff(D, axis=1) >= 0).all()

@pytest.mark.parametrize('engine', ['hnsw', 'ivf'])
def test_approximate_engines_cope_with_few_rows_and_copies(engine):
    for X in (gauss(3, 2), np.zeros((100, 3)), np.repeat(gauss(4, 3), 50, 0)):
        graph = NeighborGraph(2, engine=engine).fit(X)
        assert (graph.indices_ != np.arange(len(X))[:, None]).all()
        np.testing.assert_allclose(graph.distances_, brute(X, 2)[1], rtol=1e-3)

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
    monkeypatch.setattr(nb._Search, '__init__', refuse)

def test_cache_spares_the_search(cache, monkeypatch):
    X = clusters(300, 8)
    first = NeighborGraph.cached(X, 20, engine='faiss')
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
