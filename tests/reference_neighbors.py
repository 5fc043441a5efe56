"What the graph and the search are measured by: plain sorts of all distances, and rows full of ties"
import numpy as np
from hypothesis import strategies as st

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
