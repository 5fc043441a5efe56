"Dilution: the hand values of the specification, what may not change the answer, and the sparse form against a dense one"
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from noisynb.core import NoisynbError
from noisynb.methods.lend.dilution import affinity, centred, dilute, dilute_set, factor, sparse_factor, suited_k
from noisynb.neighbors import NeighborGraph

few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10**6)
tensor = lambda rows: torch.tensor(rows, dtype=torch.float64)
near = lambda a, b, tolerance=1e-6: torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b, dtype=torch.float64), rtol=0, atol=tolerance)
onehot = lambda y, C=2: torch.eye(C, dtype=torch.float64)[y]

def graph(v, k, coupling='out', **more):
    B, u = factor(affinity(v, k, **more), coupling)
    return B @ B.T, u

def plain(v, k, gamma, include_self, coupling):
    "S once more, in loops, from the words of the specification"
    b, v = len(v), np.asarray(v)
    A = np.zeros((b, b))
    for i in range(b):
        others = sorted((j for j in range(b) if j != i), key=lambda j: ((v[i] - v[j])**2).sum())
        for j in others[:k - include_self]: A[i, j] = max(v[i] @ v[j]/b, 0)**gamma
    W = A @ A.T if coupling == 'out' else A.T @ A
    d = W.sum(1)
    root = np.array([x**-.5 if x > 0 else 0. for x in d])
    return root[:, None]*W*root, d

def rows_of(seed, b=12, d=4):
    rng = np.random.default_rng(seed)
    return tensor(rng.standard_normal((b, d)) + .5), rng


# hand values

def test_t1_complete_graph():
    S, u = graph(tensor([[2, 0]]*4), 4)
    near(S, (2*np.ones((4, 4)) + np.eye(4))/9)
    near(torch.linalg.eigvalsh(S), [1/9, 1/9, 1/9, 1])
    near(u, [.5]*4)
    Z0 = onehot([0, 0, 0, 1])
    Z = dilute(S, Z0)
    near(Z, [[75.280899, 24.719101]]*3 + [[74.157303, 25.842697]])
    assert Z.argmax(1).tolist() == [0]*4
    assert float(Z.softmax(1)[3, 1]) == pytest.approx(np.exp(-48.31), rel=.01)
    for T, row in (1, (.66, .34)), (2, (.7392, .2608)), (10, (.75, .25)): near(dilute(S, Z0, steps=T, anchor=False)[3], row, 1e-8)
    for T, row in (1, (.66, .34)), (2, (.7326, .2674)), (1000, (.741573, .258427)): near(dilute(S, Z0, steps=T)[3], row)
    near(dilute(S, Z0, steps=3000), .01*Z)

def test_t2_mutual_pairs():
    v, Z0 = tensor([[2, 0], [2.2, 0], [0, 2], [0, 2.2]]), onehot([0, 1, 1, 1])
    A = affinity(v, 2)
    assert [A[i].argmax().item() for i in range(4)] == [1, 0, 3, 2] and (A > 0).sum() == 4
    near(A[0, 1]*(v @ v.T).max()**3/4**3, 1.331)
    S, _ = graph(v, 2)
    near(S, np.eye(4), 1e-12)
    near(dilute(S, Z0), 100*Z0, 1e-9)
    near(dilute(S, Z0).softmax(1), Z0, 1e-9)

v3 = tensor([[2, 0], [2, .2], [2, -.4], [1, 1]])

def test_t3_coupling():
    A = affinity(v3, 3)
    near(A/A[0, 1], [[0, 1, 1, 0], [1, 0, .941192, 0], [1, .941192, 0, 0], [.125, .166375, 0, 0]])
    A = A/A[0, 1]
    near((A @ A.T).sum(1), [4.0488, 3.9520, 4.1086, .6163], 1e-4)
    S, _ = graph(v3, 3)
    near(S[3, [3, 0]], [.070270, .105327])
    Z = dilute(S, onehot([0, 0, 1, 1]))
    near(Z, [[63.745954, 43.872746], [62.976607, 43.346138], [62.869750, 45.589315], [24.349134, 18.269919]], 1e-5)
    near(Z.softmax(1)[3], [.997715, .002285])
    S, u = graph(v3, 3, 'in')
    Z = dilute(S, onehot([0, 0, 1, 1]))
    near(Z, [[67.7019, 32.8684], [67.3032, 32.7178], [65.5863, 33.8154], [0, 1]], 1e-4)
    assert u[3] == 0

def test_t4_a_row_without_degree_does_not_stop_the_others():
    v, Z0 = tensor([[1, 0], [1, .1], [1, -.1], [-1, 0]]), onehot([0, 0, 1, 1])
    S, _ = graph(v, 3)
    assert S.isfinite().all() and (S[3] == 0).all()
    Z = dilute(S, Z0)
    near(Z[3], [0, 1], 0)
    near(Z.softmax(1)[3, 1], .731059)
    assert Z[:3].argmax(1).tolist() == [0, 0, 0] and Z[2, 0] > 10
    near(dilute(S, Z0, steps=500, anchor=False)[3], [0, 1], 0)


# against plain loops

@few
@given(seeds, st.integers(1, 14), st.booleans(), st.sampled_from(['out', 'in']), st.sampled_from([1., 2., 3.]))
def test_the_graph_and_its_dilution(seed, k, include_self, coupling, gamma):
    v, rng = rows_of(seed)
    S, d = plain(v, k, gamma, include_self, coupling)
    ours, u = graph(v, k, coupling, gamma=gamma, include_self=include_self)
    near(ours, S, 1e-9)
    near(u, np.sqrt(d/max(d.sum(), 1e-300)), 1e-9)
    Z0 = onehot(rng.integers(0, 3, 12), 3)
    near(dilute(ours, Z0), np.linalg.inv(np.eye(12) - .99*S) @ Z0.numpy(), 1e-6)

@few
@given(seeds, st.integers(1, 11), st.sampled_from(['out', 'in']), st.sampled_from([.5, .97, .99]))
def test_the_sparse_form(seed, k, coupling, c):
    v, rng = rows_of(seed)
    X, Z0 = v.numpy(), np.eye(3)[rng.integers(0, 3, 12)]
    B, u = sparse_factor(X, NeighborGraph(k, device='cpu').fit(X).indices_, 2., coupling)
    S, d = plain(v, k, 2., False, coupling)
    near((B @ B.T).toarray(), S, 1e-9)
    near(u, np.sqrt(d/max(d.sum(), 1e-300)), 1e-9)
    near(dilute_set(B, Z0, c, tolerance=1e-10), np.linalg.inv(np.eye(12) - c*S) @ Z0, 1e-5)
    for anchor in (True, False): near(dilute_set(B, Z0, c, 4, anchor), dilute(tensor(S), tensor(Z0), c, 4, anchor), 1e-9)

def test_the_sparse_form_stays_sparse():
    X = np.random.default_rng(0).random((3000, 5)).astype(np.float32)
    B, _ = sparse_factor(X, NeighborGraph(6, device='cpu').fit(X).indices_)
    assert B.nnz <= 6*3000 and B.shape == (3000, 3000)


# what has to hold for any numbers

@few
@given(seeds, st.integers(3, 14), st.sampled_from(['out', 'in']), st.sampled_from(['euclidean', 'inner', 'cosine']))
def test_invariants(seed, k, coupling, metric):
    v, rng = rows_of(seed)
    S, u = graph(v, k, coupling, metric=metric)
    values = torch.linalg.eigvalsh(S)
    near(S, S.T, 1e-12)
    assert values.min() > -1e-9 and values.max() < 1 + 1e-9
    if (u > 0).any():
        near(values.max(), 1., 1e-9)
        near(S @ u, u, 1e-9)
    near(graph(7.3*v, k, coupling, metric=metric)[0], S, 1e-9)
    Z0 = onehot(rng.integers(0, 3, 12), 3)
    Z = dilute(S, Z0)
    p, q = torch.from_numpy(rng.permutation(12)), torch.from_numpy(rng.permutation(3))
    near(dilute(graph(v[p], k, coupling, metric=metric)[0], Z0[p]), Z[p], 1e-6)
    near(dilute(S, Z0[:, q]), Z[:, q], 1e-8)
    near(dilute(S, Z0, 0.), Z0, 1e-12)
    near(dilute(S, Z0, 0., 3), Z0, 1e-12)
    assert (dilute(S, onehot([1]*12, 3)).argmax(1) == 1).all()
    near(u @ centred(Z, u), [0]*3, 1e-7)
    near(centred(Z.numpy(), u.numpy()), centred(Z, u), 1e-9)

def test_centring_takes_out_what_all_rows_share():
    "Unanchored, all rows end alike; what is left after centring still tells them apart"
    v = torch.cat([tensor([[3, .5]]), tensor([[.5, 3]])]).repeat_interleave(20, 0) + .3*torch.from_numpy(np.random.default_rng(0).standard_normal((40, 2)))
    v = torch.cat([v, tensor([[1.8, 1.8]]*3) + .2*tensor([[0, 1], [1, 0], [0, 0]])]) # a bridge
    S, u = graph(v, 12)
    y = torch.tensor([0]*20 + [1]*23)
    Z = dilute(S, onehot(y), steps=30_000, anchor=False)
    assert len(set(Z.argmax(1).tolist())) == 1
    assert (centred(dilute(S, onehot(y), .99), u).argmax(1)[:40] == y[:40]).all()

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_precision(dtype):
    v, _ = rows_of(0, 30, 8)
    v = v.to(dtype)
    A = affinity(v, 6)
    assert A.dtype == torch.float32
    S, _ = graph(v, 6)
    exact, _ = graph(v.double(), 6)
    torch.testing.assert_close(dilute(S, onehot([0, 1]*15).float()).double(), dilute(exact, onehot([0, 1]*15)), rtol=2e-3, atol=2e-2)

def test_huge_and_tiny_embeddings():
    v = rows_of(0)[0].float()
    for scale in (1e-12, 1e12): torch.testing.assert_close(graph(v*scale, 5)[0], graph(v, 5)[0])

def test_no_gradient():
    v = rows_of(0)[0].requires_grad_()
    assert not affinity(v, 4).requires_grad

@pytest.mark.parametrize('b', [1, 2, 3, 5])
def test_small_batches(b):
    "B < K, B = K, and a row on its own"
    for k in (1, 2, 5, 9):
        S, u = graph(rows_of(b, b)[0].abs(), k)
        Z = dilute(S, onehot([0]*b))
        assert Z.isfinite().all() and u.isfinite().all() and (Z.argmax(1) == 0).all()
        assert (S == 0).all() if b == 1 or k == 1 else (S.diagonal() > 0).all()

def test_duplicates():
    "A copy is a neighbour like any other, and the row itself never is"
    v = tensor([[1, 1]]*5 + [[3, .1]])
    A = affinity(v, 3)
    assert (A.diagonal() == 0).all() and ((A > 0).sum(1) == 2).all()
    assert dilute(graph(v, 3)[0], onehot([0, 0, 0, 0, 1, 1])).isfinite().all()

def test_suited_k():
    assert [suited_k(*x) for x in ((128, 10), (256, 10), (256, 100), (64, 100), (2, 2), (10**6, 10))] == [5, 10, 3, 3, 3, 10]

@pytest.mark.parametrize('call, message', [(lambda: affinity(v3, 3, metric='euclid'), "did you mean 'euclidean'"), (lambda: factor(affinity(v3, 3), 'inn'), "did you mean 'in'"),
    (lambda: sparse_factor(v3.numpy(), np.zeros((4, 1), int), coupling='both'), 'no coupling')])
def test_mistakes(call, message):
    with pytest.raises(NoisynbError, match=message): call()
