"LEND: history, weights and loss by hand, its three graphs, and the form for embeddings"
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.nn import functional as F

from noisynb.core import NoisynbError, torch_generator
from noisynb.experiment import timed_fit as train
from noisynb.methods import lend as module, make
from noisynb.methods.base import load
from noisynb.methods.images import Options, warming
from noisynb.methods.lend import LEND, LENDGraph, label_weights, recipes, remember, soft_labels, start_labels, stratified_batches, weighted_loss
from noisynb.neighbors import NeighborGraph
from noisynb.training import State
from toys import gone_on, stripes

tensor = lambda rows: torch.tensor(rows, dtype=torch.float64)
near = lambda a, b, tolerance=1e-6: torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b, dtype=torch.float64), rtol=0, atol=tolerance)


# by hand

def test_t5_history():
    y, P = torch.tensor([1]), tensor([[.8, .2]])
    near(start_labels(y, P, .9), [[.08, .92]])
    near(start_labels(y, P, 1.), [[0, 1]])
    near(start_labels(y, torch.zeros_like(P), .9), [[0, 1]]) # not visited: the given label alone
    near(remember(tensor([[.5, .5]]), P, .9), [[.77, .23]])
    near(remember(tensor([[.5, .5]]), torch.zeros_like(P), .9), [[.5, .5]])

@pytest.mark.parametrize('history, start, shares', [('input', 10, [1., 1., .9, .9]), ('output', 0, [1.]*4), ('none', 0, [1.]*4)])
def test_t5_epochs(history, start, shares):
    o = Options(dict(history=history, history_start=start, beta=.9))
    assert [module.history_share(o, 'input', e) for e in (0, 9, 10, 11)] == shares
    assert [module.history_share(o, 'output', e) for e in (0, 9)] == [.9*(history == 'output')]*2

def test_t6_loss():
    "Divided by the batch, not by the sum of the weights"
    logits = torch.tensor([[math.log(math.expm1(v)), 0] for v in (2., 7., 4.)], requires_grad=True) # cross-entropies 2, 7, 4 with label 1
    y, w = torch.tensor([1, 1, 1]), torch.tensor([1, 0, .5], requires_grad=True)
    near(F.cross_entropy(logits, y, reduction='none').detach().double(), [2, 7, 4], 1e-5)
    loss = weighted_loss(logits, y, w)
    assert float(loss.detach()) == pytest.approx(4/3, abs=1e-6)
    loss.backward()
    assert w.grad is None and (logits.grad[1] == 0).all() and (logits.grad[0] != 0).all()

def test_weights():
    Z, y = tensor([[2, 1, -1], [0, 3, 3.5], [-1, -2, -3]]), torch.tensor([1, 2, 0])
    near(soft_labels(Z), Z.softmax(1))
    near(label_weights(soft_labels(Z), y), Z.softmax(1)[[0, 1, 2], y])
    q = soft_labels(Z, 'agree')
    near(q, [[2/3, 1/3, 0], [0, 3/6.5, 3.5/6.5], [1/3]*3]) # nothing above zero: undecided
    near(label_weights(q, y, 'agree'), [0, 1, 1])


# the network

def small(**options):
    return LEND(**dict(network='small-cnn', network_options=dict(widths=(4, 8)), epochs=4, batch_size=8, device='cpu', verbose=False) | options)

kinds = [{}, dict(recipe='code', history_start=1), dict(recipe='paper'), dict(recipe='code', graph='bank', bank=20, stratified=True),
         dict(graph='bank', bank=20), dict(recipe='paper', graph='set'), dict(weighting='softmax', history='none', steps=3)]

@pytest.mark.parametrize('options', kinds)
def test_contract(options, tmp_path):
    X, y, _ = stripes()
    model = small(**options)
    params, kept = str(model.get_params()), X.copy()
    model.fit(X, y)
    assert str(model.get_params()) == params and (X == kept).all()
    assert model.label_quality_.shape == (48,) and ((0 <= model.label_quality_) & (model.label_quality_ <= 1)).all()
    flagged = model.label_quality_ < model.quality_threshold_
    assert model.quality_threshold_ == .5 and set(model.suspects()) == set(flagged.nonzero()[0])
    assert (flagged <= (model.corrected_labels_ != y)).all() # who is flagged gets another label
    assert [row['epoch'] for row in model.history_] == [1, 2, 3, 4] and all(math.isfinite(v) for row in model.history_ for v in row.values())
    again = load(model.save(tmp_path/'model.safetensors'))
    assert (again.predict_proba(X) == model.predict_proba(X)).all() and {k: again.options_[k] for k in ['recipe', *recipes['ours']]} == {k: model.options_[k] for k in ['recipe', *recipes['ours']]}

def test_recipes():
    "What the table of the specification says"
    code, paper = recipes['code'], recipes['paper']
    assert (code['include_self'], code['coupling'], code['steps'], code['history'], code['history_start'], code['beta'], code['weighting']) == (True, 'out', 0, 'input', 10, .9, 'softmax')
    assert (paper['include_self'], paper['coupling'], paper['history'], paper['history_start'], paper['beta'], paper['weighting']) == (False, 'in', 'output', 0, .9, 'agree') and paper['steps'] > 0
    for p in (code, paper): assert (p['propagation'], p['batch_size'], p['epochs'], p['gamma'], p['graph'], p['warmup'], p['center']) == (.99, 256, 200, 3., 'batch', 0, False)
    X, y, _ = stripes()
    model = small(recipe='code').fit(X, y)
    assert model.options_ == model.get_params() | dict(code, recipe='code', epochs=4, batch_size=8)

def test_a_batch_against_a_plain_rebuild(monkeypatch):
    "One epoch of `code`, written once more from the specification"
    X, y, _ = stripes()
    steps, real = [], module.dilute_batch
    def spy(s, o, codes, v, rows, epoch):
        before = s.table[rows].clone()
        real(s, o, codes, v, rows, epoch)
        steps.append((v.double().numpy(), codes[rows].numpy(), before.numpy(), s.table[rows].numpy(), epoch, label_weights(s.table[rows], codes[rows]).numpy()))
    monkeypatch.setattr(module, 'dilute_batch', spy)
    small(recipe='code', k=4, batch_size=16, history_start=2).fit(X, y)
    assert len(steps) == 4*3
    for v, codes, before, after, epoch, w in steps:
        b, A = len(v), np.zeros((len(v), len(v)))
        D = ((v[:, None] - v)**2).sum(2)
        np.fill_diagonal(D, -1)
        for i in range(b):
            for j in np.argsort(D[i])[:4]:
                if j != i: A[i, j] = max(v[i] @ v[j]/b, 0)**3
        W = A @ A.T
        root = np.array([d**-.5 if d > 0 else 0 for d in W.sum(1)])
        Z0 = np.eye(3)[codes] if epoch < 2 else .9*np.eye(3)[codes] + .1*before
        Z = np.linalg.inv(np.eye(b) - .99*root[:, None]*W*root) @ Z0
        q = np.exp(Z - Z.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
        assert after == pytest.approx(q, abs=5e-3) and w == pytest.approx(q[np.arange(b), codes], abs=5e-3)
        assert after.sum(1) == pytest.approx(1, abs=1e-5)

def test_wrong_labels_are_found():
    X, y, true = stripes(150, wrong=.4, seed=3)
    model = small(epochs=20, learning_rate=.1).fit(X, y)
    X_new, _, new = stripes(60, seed=4)
    assert model.score(X_new, new) > .95 and (model.corrected_labels_ == true).mean() > .9
    assert ((model.label_quality_ < .5) == (y != true)).mean() > .85

@pytest.mark.parametrize('warmup, lengths, warm', [(.2, (10, 10, 10, 40, 40), 2), (3, (4,)*5, 3), (0, (4, 4), 0), (.01, (9, 9), 1)])
def test_a_warmup_that_is_over_stays_over(warmup, lengths, warm):
    "also where a time budget turns out to allow for more epochs than it seemed"
    s = State(start=None)
    assert [warming(s, warmup, e, n) for e, n in enumerate(lengths)] == [e < warm for e in range(len(lengths))]
    assert s.start == warm   # from which ramps count

@pytest.mark.parametrize('options', kinds)
@pytest.mark.parametrize('stop', [1, 3])
def test_going_on_after_a_stop(options, stop, tmp_path):
    "Everything that training changes is in the checkpoint: same history, same weights as without the stop"
    whole, model = gone_on(partial(small, **options), stop, str(tmp_path/'run'))
    assert (model.corrected_labels_ == whole.corrected_labels_).all()

def test_clean_labels_replaced_by_garbage_change_nothing():
    "The true labels are read by who watches, and nothing that is learnt depends on them"
    X, y, true = stripes()
    garbage = np.random.default_rng(5).integers(0, 3, len(y))
    seen = []
    def fit(truth):
        model, _ = train(small(), X, y, watch=lambda m: seen.append((m.corrected_labels_ == truth).mean()) or dict(right=seen[-1]))
        return model
    a, b = fit(true), fit(garbage)
    assert seen[:4] != seen[4:] and (a.label_quality_ == b.label_quality_).all() and (a.predict_proba(X) == b.predict_proba(X)).all()
    names = np.array(['ant', 'bee', 'cat'])
    c = small().fit(X, names[y])
    assert (names[a.predict(X)] == c.predict(X)).all() and (names[a.corrected_labels_] == c.corrected_labels_).all()

def test_same_seed_same_bits_and_nothing_global():
    X, y, _ = stripes()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    a, b, c = small().fit(X, y), small().fit(X, y), small(random_state=1).fit(X, y)
    assert (a.label_quality_ == b.label_quality_).all() and (a.predict_proba(X) == b.predict_proba(X)).all()
    assert (a.predict_proba(X) != c.predict_proba(X)).any()
    assert torch.equal(torch_state, torch.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()

def test_the_bank_holds_the_last_rows_once(monkeypatch):
    X, y, _ = stripes()
    sizes, rows, again, real = [], [], [], module.dilute_batch
    def spy(s, o, codes, v, b, epoch):
        real(s, o, codes, v, b, epoch)
        again.append(bool(set(rows) & set(b.tolist())))
        rows[:] = [*b.tolist(), *(r for r in rows if r not in b)][:20]
        sizes.append(len(s.bank))
        assert s.bank_rows.tolist() == rows and len(s.bank) == len(rows)
    monkeypatch.setattr(module, 'dilute_batch', spy)
    small(recipe='code', graph='bank', bank=20).fit(X, y)
    assert sizes[:4] == [8, 16, 20, 20] and any(again) # at the turn of an epoch, rows come back while they are in the bank

def test_warm_up_uses_all_labels():
    X, y, _ = stripes()
    model = small(epochs=4, warmup=.5).fit(X, y)
    assert [row['weight'] == 1 and row['kept'] == 1 for row in model.history_] == [True, True, False, False]

def test_stratified_batches():
    codes = torch.from_numpy(np.repeat([0, 1, 2], [60, 30, 10]))
    found = stratified_batches(codes, 20, torch_generator(0, 'order'))
    assert sorted(torch.cat(found).tolist()) == list(range(100))
    for b in found: assert np.abs(np.bincount(codes[b], minlength=3) - [12, 6, 2]).max() <= 1
    assert torch.cat(found).tolist() != torch.cat(stratified_batches(codes, 20, torch_generator(1, 'order'))).tolist()

@pytest.mark.parametrize('n, C, wrong', [(12, 2, .3), (48, 3, 0.), (48, 3, 1.), (4, 2, 0.)])
@pytest.mark.parametrize('recipe', recipes)
def test_ends_of_the_range(n, C, wrong, recipe):
    "Two classes, fewer images than a batch or than K, no wrong labels, wrong labels only"
    X, y, _ = stripes(n, C, wrong)
    model = small(recipe=recipe, epochs=3, batch_size=64).fit(X, y)
    assert np.isfinite(model.label_quality_).all() and len(model.history_) == 3

@pytest.mark.parametrize('wrong, message', [(dict(recipe='cod'), "did you mean 'code'"), (dict(graph='sett'), "did you mean 'set'"), (dict(weighting='soft'), 'weighting'), (dict(k=0), 'k is 0'),
    (dict(propagation=1.), 'propagation is 1'), (dict(beta=-1), 'beta is -1'), (dict(graph='bank'), 'give the number of rows'), (dict(history='both'), 'no history'),
    (dict(k=7.5), 'k is 7.5'), (dict(steps=2.5), 'steps is 2.5'), (dict(bank=100.5), 'bank is 100.5')])
def test_mistakes(wrong, message):
    X, y, _ = stripes()
    model = small(**wrong)
    params = str(model.get_params())
    with pytest.raises(NoisynbError, match=message): model.fit(X, y)
    assert str(model.get_params()) == params

def test_embeddings_are_refused():
    with pytest.raises(NoisynbError, match='embeddings'): small().fit(np.zeros((10, 4), np.float32), np.arange(10) % 2)


# embeddings

@parametrize_with_checks([LENDGraph(), LENDGraph(k=3, coupling='in', steps=5, standardize=True)])
def test_sklearn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        check(estimator)

def clusters(n=300, seed=0, wrong=.4):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, n)
    X = 3*np.eye(3, 5)[true] + .4*rng.standard_normal((n, 5))
    return X.astype(np.float32), np.where(rng.random(n) < wrong, rng.integers(0, 3, n), true), true

@pytest.mark.parametrize('options', [{}, dict(metric='cosine'), dict(steps=20), dict(center=False, coupling='in'), dict(standardize=True)])
def test_clusters(options):
    X, y, true = clusters()
    model = make('lend-graph', **options).fit(X, y)
    new, _, target = clusters(seed=1)
    assert (model.corrected_labels_ == true).mean() > .98 and model.score(new, target) > .98
    assert ((model.label_quality_ < .5) == (y != true)).mean() > .98

def test_against_the_dense_form():
    X, y, _ = clusters(80)
    rows = X.astype(float)/np.linalg.norm(X.astype(float), axis=1, keepdims=True)
    P = rows @ rows.T
    np.fill_diagonal(P, -9)
    A = np.zeros((80, 80))
    for i in range(80):
        for j in np.argsort(-P[i])[:6]: A[i, j] = max(P[i, j], 0)**3
    W = A @ A.T
    d = W.sum(1)
    Z = np.linalg.inv(np.eye(80) - .97*W/np.sqrt(np.outer(d, d))) @ np.eye(3)[y]
    u = np.sqrt(d/d.sum())
    q = np.maximum(Z - np.outer(u, u @ Z), 0)
    assert LENDGraph(k=6, metric='cosine').fit(X, y).diluted_ == pytest.approx(q/q.sum(1, keepdims=True), abs=1e-4)

def test_a_graph_that_is_there_serves():
    X, y, _ = clusters()
    graph = NeighborGraph(k=20, device='cpu').fit(X)
    a, b = LENDGraph().fit(X, y, graph=graph), LENDGraph().fit(X, y)
    assert (a.label_quality_ == b.label_quality_).all() and (a.predict_proba(X) == b.predict_proba(X)).all()
    with pytest.raises(NoisynbError, match='neighbours'): LENDGraph(k=30).fit(X, y, graph=graph)

def test_order_and_names_of_classes():
    X, y, _ = clusters()
    names = np.array(['c', 'a', 'b'])
    a, b = LENDGraph().fit(X, y), LENDGraph().fit(X, names[y])
    assert (names[a.corrected_labels_] == b.corrected_labels_).all() and a.label_quality_ == pytest.approx(b.label_quality_, abs=1e-9)
    p = np.random.default_rng(0).permutation(len(X))
    assert LENDGraph().fit(X[p], y[p]).label_quality_ == pytest.approx(a.label_quality_[p], abs=1e-3)

def test_a_class_that_dilution_leaves_out(tmp_path):
    "One label that all its neighbours speak against: its class is never predicted, and the model still loads"
    X, y, true = clusters(wrong=0)
    y = true.copy()
    y[true == 2] = 1
    y[np.flatnonzero(true == 0)[0]] = 2
    model = LENDGraph(center=False).fit(X, y)
    assert model.classes_.tolist() == [0, 1, 2] and set(model.corrected_labels_) == {0, 1}
    P = model.predict_proba(X)
    assert (P[:, 2] == 0).all() and P.sum(1) == pytest.approx(1) and (model.predict(X) == np.where(true == 0, 0, 1)).all()
    again = load(model.save(tmp_path/'model.safetensors'))
    assert (again.predict_proba(X) == P).all()

@pytest.mark.parametrize('wrong, message', [(dict(coupling='on'), 'no coupling'), (dict(k=0), 'k is 0'), (dict(propagation=1), 'propagation is 1'), (dict(C=0), 'C is 0'), (dict(metric='manhattan'), 'no metric'), (dict(gamma=-1), 'gamma is -1'), (dict(steps=0), 'steps is 0')])
def test_mistakes_with_embeddings(wrong, message):
    X, y, _ = clusters()
    with pytest.raises(NoisynbError, match=message): LENDGraph(**wrong).fit(X, y)
    with pytest.raises(NoisynbError, match='looks like images'): LENDGraph().fit(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2)
