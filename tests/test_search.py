"The search against plain sorts of all distances, whatever the engine, the numbers and the ties"
import copy, warnings
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from noisynb.neighbors import NeighborGraph, search
from noisynb.neighbors.search import Search
from reference_neighbors import agrees, brute, clusters, gauss, grids

both = pytest.mark.parametrize('engine', ['faiss', 'torch'])
some = settings(max_examples=25, deadline=None)

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

class Rough(search._Faiss):
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
    found = Search(X, 'faiss', 'cpu', 10, .99, 0).nearest(X, 10, np.arange(300), Rough(X, product, difference, lie))[1]
    assert (found == brute(X, 10)[0]).all() == (lie is None)

@pytest.mark.parametrize('d', [1, 8, 127, 131, 384, 1000])
def test_engines_err_no_more_than_they_say(d):
    X, Q, I = gauss(200, d), gauss(50, d, 1), np.tile(np.arange(200), (50, 1))
    V = ((Q[:, None].astype(float) - X)**2).sum(-1)
    for engine in (search._Faiss(X), search._Torch(X, 'cpu')): assert (np.abs(engine.direct(Q, I) - V) <= engine.error*V).all()
    assert search._Faiss(X).error <= 140*search.U or d == 131

def test_many_copies_need_no_search_of_all_rows(monkeypatch):
    X, most, block = np.zeros((2000, 3)), [], Search._block
    monkeypatch.setattr(Search, '_block', lambda self, engine, Q, K, k, own: (most.append(K), block(self, engine, Q, K, k, own))[1])
    graph = NeighborGraph(4).fit(X)
    assert max(most) < 200
    np.testing.assert_array_equal(graph.indices_[[0, 2, 4, 5]], [[1, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 3], [0, 1, 2, 3]])

def test_copies_are_looked_up_only_where_they_suffice():
    X, k = np.repeat([[1.], [2.], [3.], [4.]], [3, 4, 5, 6], axis=0), 4
    I, D = np.full((18, k), -1), np.full((18, k), -1.)
    left = search._copied(X, X, np.arange(18), k, np.arange(18), I, D)
    np.testing.assert_array_equal(left, np.arange(7))
    np.testing.assert_array_equal(I[7:], brute(X, k)[0][7:])
    np.testing.assert_array_equal(D[7:], 0)

def test_torch_shortlists_in_blocks():
    X, Q = clusters(400, 10), clusters(130, 10, 1)
    engine = search._Torch(X, 'cpu')
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
        assert search._Torch(X, 'cpu').loose > 0
        with torch.autocast('cpu', dtype=torch.bfloat16): graph = NeighborGraph(15, engine='torch').fit(X)
    finally: torch.backends.mkldnn.matmul.fp32_precision = before
    assert search._Torch(X, 'cpu').loose == 0
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
