"The linear probe against scikit-learn, a naive loop, hand-made stopping, and what it promises about held-out rows"
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.exceptions import NotFittedError

from noisynb.core import NoisynbError, processor_threads
from noisynb.losses import losses, make_loss
from noisynb.methods import linear, make
from noisynb.methods.base import load
from noisynb.methods.linear import LinearProbe, recipes, stratified_places, train_probes, validation_rows
from noisynb.noise import corrupt

quick = settings(max_examples=30, deadline=None)


def ones(X): return torch.from_numpy(np.c_[X, np.ones(len(X))].astype(np.float32))

def everybody(n, models=1): return torch.ones(models, n, dtype=torch.bool)

def problem(n=300, d=6, c=3, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, c, n)
    X = rng.normal(size=(n, d)) + 1.2*np.eye(c, d)[truth]
    return X.astype(np.float32), np.where(rng.random(n) < .2, rng.integers(0, c, n), truth)

@pytest.fixture(scope='module')
def digits():
    X, y = load_digits(return_X_y=True)
    X, Q, truth, target = train_test_split((X/16).astype(np.float32), y, test_size=.3, stratify=y, random_state=0)
    return X, corrupt(truth, 'symmetric', .4, seed=0, n_classes=10), Q, target, truth


# --- who sees which label ---

labels = st.lists(st.integers(0, 4), min_size=1, max_size=120).map(lambda y: np.unique(y, return_inverse=True)[1])

@quick
@given(labels, st.integers(0, 99))
def test_validation_takes_an_even_share_of_each_class(codes, seed):
    held = validation_rows(codes, seed)
    for c, size in enumerate(np.bincount(codes)):
        taken = held[codes == c].sum()
        assert taken == 0 if size == 1 else abs(taken - .15*size) < 1 + 1e-9
    assert abs(held.sum() - .15*len(codes)) <= 1 + (np.bincount(codes) == 1).sum()

@quick
@given(labels, st.integers(0, 99), st.integers(2, 6))
def test_folds_are_even_in_each_class(codes, seed, k):
    places = stratified_places(codes, seed, 'folds')
    assert sorted(places) == list(range(len(codes)))
    for c in range(codes.max() + 1):
        sizes = np.bincount(places[codes == c] % k, minlength=k)
        assert sizes.max() - sizes.min() <= 1

def test_splits_differ_by_seed_and_purpose():
    codes = np.repeat([0, 1], 50)
    assert (validation_rows(codes, 0) == validation_rows(codes, 0)).all()
    assert (validation_rows(codes, 0) != validation_rows(codes, 1)).any()
    assert (stratified_places(codes, 0, 'folds') != stratified_places(codes, 0, 'validation')).any()


# --- training ---

def naive(X, y, learns, n_classes, name, lr, batch, epochs, rng):
    "One `torch.nn.Linear`, one `Adam`, one batch after the other"
    layer = torch.nn.Linear(X.shape[1], n_classes)
    torch.nn.init.zeros_(layer.weight); torch.nn.init.zeros_(layer.bias)
    adam, loss, X, y = torch.optim.Adam(layer.parameters(), lr=lr), make_loss(name, n_classes, n_samples=len(X)), torch.from_numpy(X), torch.from_numpy(y)
    for _ in range(epochs):
        order = rng.permutation(len(X))
        for a in range(0, len(X), batch):
            rows = torch.tensor([int(i) for i in order[a:a + batch] if learns[i]])
            z = layer(X[rows])
            total = loss(z, y[rows], rows).mean() + loss.penalty(list(layer.parameters())) + loss.batch(z)
            adam.zero_grad(); total.backward(); adam.step()
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()

@pytest.mark.parametrize('name', ['ce', 'nce+rce', 'elr', 'anl-ce', 'anl-ce-er'])
def test_a_naive_loop_gives_the_same_weights(name):
    X, y = problem()
    looks = everybody(300, 3)
    looks[1, :100] = looks[2, 150:] = False
    weights = train_probes(ones(X), torch.from_numpy(y), looks, 300, 3, make_loss(name, 3, n_samples=900), .01, 64, 5, 9, np.random.default_rng(3))[0].numpy()
    for m in range(3):
        coef, bias = naive(X, y, looks[m], 3, name, .01, 64, 5, np.random.default_rng(3))
        assert weights[m, :, :-1] == pytest.approx(coef, abs=2e-5) and weights[m, :, -1] == pytest.approx(bias, abs=2e-5)

@pytest.mark.parametrize('name', ['ce', 'gce'])
@pytest.mark.parametrize('models, hidden', [(1, 0), (2, 0), (1, 40), (2, 40)])
def test_weights_are_the_same_however_many_models_and_rows_they_see(name, models, hidden):
    X, y = problem()
    looks = everybody(300, models)
    looks[-1, :hidden] = False
    weights, history, *_ = train_probes(ones(X), torch.from_numpy(y), looks, 300, 3, make_loss(name, 3), .01, 64, 3, 9, np.random.default_rng(3)) # 64 does not divide 300
    coef, bias = naive(X, y, looks[-1], 3, name, .01, 64, 3, np.random.default_rng(3))
    assert weights[-1, :, :-1].numpy() == pytest.approx(coef, abs=2e-5) and weights[-1, :, -1].numpy() == pytest.approx(bias, abs=2e-5)
    alone = train_probes(ones(X), torch.from_numpy(y), looks[:1], 300, 3, make_loss(name, 3), .01, 64, 3, 9, np.random.default_rng(3))[1]
    assert [h['loss'] for h in history] == pytest.approx([h['loss'] for h in alone], rel=1e-5)

def test_long_training_reaches_the_optimum_of_logistic_regression():
    X, y = problem(400)
    weights, history, *_ = train_probes(ones(X), torch.from_numpy(y), everybody(400), 400, 3, make_loss('ce', 3), .03, 400, 1500, 1500)
    best = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(X, y)
    z = (ones(X) @ weights[0].T).double()
    loss = float(torch.nn.functional.cross_entropy(z, torch.from_numpy(y)))
    expected = -best.predict_log_proba(X)[np.arange(400), y].mean()
    assert expected <= loss + 1e-6 < expected + 1e-4
    assert torch.softmax(z, 1).numpy() == pytest.approx(best.predict_proba(X), abs=3e-3)
    assert history[-1]['loss'] == pytest.approx(loss, abs=1e-5)

def scripted(monkeypatch, *models):
    "Let the validation accuracies of each model be these"
    rounds = iter(np.array(models).T)
    monkeypatch.setattr(linear, 'validate', lambda *_: dict(accuracy=(now := next(rounds)), loss=-now))

def test_early_stopping_by_hand(monkeypatch):
    X, y = problem()
    def run(epochs, patience): return train_probes(ones(X), torch.from_numpy(y), everybody(300, 2), 250, 3, make_loss('ce', 3), .01, 64, epochs, patience, np.random.default_rng(0))
    scripted(monkeypatch, [.5, .6, .6, .55, .6, .9, .9, .9], [.1, .2, .3, .2, .31, .1, .1, .1])
    weights, history, best, ended = run(100, 3)
    assert best.tolist() == [2, 5] and ended == 'patience' and [h['epoch'] for h in history] == [1, 2, 3, 4, 5]
    assert [h['validation_accuracy'] for h in history] == [.5, .6, .6, .55, .6]
    for m, epoch in enumerate([2, 5]):
        scripted(monkeypatch, [.1*i for i in range(9)], [.1*i for i in range(9)])
        assert (run(epoch, 3)[0][m] == weights[m]).all()
    scripted(monkeypatch, [.5, .4, .4, .4], [.5, .4, .4, .4])
    assert run(3, 3)[3] == 'epochs'

def test_without_rows_to_stop_by_the_last_epoch_counts():
    X, y = problem()
    args = torch.from_numpy(y), everybody(300), 300, 3, make_loss('ce', 3), .01, 64
    _, history, best, ended = train_probes(ones(X), *args, 12, 2)
    assert best.tolist() == [12] and len(history) == 12 and ended == 'epochs' and set(history[0]) == {'epoch', 'loss'}

def test_no_model_learns_from_validation_rows(monkeypatch):
    X, y = problem()
    def run(y):
        scripted(monkeypatch, [.1, .2, .3, .4])
        return train_probes(ones(X), torch.from_numpy(y), everybody(300), 250, 3, make_loss('ce', 3), .01, 64, 4, 9, np.random.default_rng(0))[0]
    learns, stops = y.copy(), y.copy()
    learns[249], stops[250:] = (y[249] + 1) % 3, (y[250:] + 1) % 3
    assert (run(y) == run(stops)).all() and (run(y) != run(learns)).any()


# --- held-out answers ---

@pytest.mark.parametrize('name', ['ce', 'elr', 'anl-ce-er'])
def test_a_label_does_not_reach_its_own_held_out_answer(monkeypatch, name):
    X, y = problem(200)
    monkeypatch.setattr(linear, 'stratified_places', lambda codes, seed, purpose: np.random.default_rng(len(purpose)).permutation(len(codes))) # splits that don't follow labels
    fit = lambda y: LinearProbe(name, epochs=8, batch_size=32).fit(X, y)
    before = fit(y)
    for i in (int(np.flatnonzero(validation_rows(y, 0))[0]), int(np.flatnonzero(~validation_rows(y, 0))[0])): # one to stop by, one to learn from
        garbage = y.copy(); garbage[i] = (y[i] + 1) % 3
        after = fit(garbage)
        mates = before.folds_ == before.folds_[i]
        assert (after.held_out_proba_[mates] == before.held_out_proba_[mates]).all()
        if not validation_rows(y, 0)[i]: assert (after.held_out_proba_[~mates] != before.held_out_proba_[~mates]).any(1).all()

def test_pure_noise_earns_no_trust(monkeypatch):
    "With more dimensions than the labels can resist, a model believes what it has seen; held-out answers are at chance"
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(400, 300)).astype(np.float32), rng.integers(0, 2, 400)
    monkeypatch.setattr(linear, 'validation_rows', lambda codes, seed: np.zeros(400, bool)) # nothing to stop by
    model = LinearProbe(learning_rate=.01).fit(X, y)
    assert model.predict_proba(X)[np.arange(400), y].mean() > .8
    assert abs((model.held_out_proba_.argmax(1) == y).mean() - .5) < .08

def test_held_out_answers_are_those_of_a_model_without_the_fold(digits):
    X, noisy, *_ = digits
    model = LinearProbe(epochs=3).fit(X, noisy.given)
    Z = ((X - model.mean_)/model.std_).astype(np.float32)
    held = validation_rows(noisy.given, 0)
    rows = np.argsort(held, kind='stable')
    looks = torch.from_numpy(model.folds_[rows] != 2)[None]
    from noisynb.core import generator
    weights = train_probes(ones(Z[rows]), torch.from_numpy(noisy.given[rows]), looks, (~held).sum(), 10, make_loss('ce', 10),
        **recipes['fast'] | dict(epochs=3), rng=generator(0, 'batches'))[0][0]
    fold = model.folds_ == 2
    assert model.held_out_proba_[fold] == pytest.approx(torch.softmax(ones(Z[fold]) @ weights.T, 1).numpy(), abs=1e-4)


# --- the estimator ---

def test_digits(digits):
    X, noisy, Q, target, truth = digits
    model = LinearProbe().fit(X, noisy.given)
    assert model.score(Q, target) > .87
    assert roc_auc_score(~noisy.flipped, model.label_quality_) > .97
    assert (model.corrected_labels_ == truth).mean() > .88
    flagged = model.label_quality_ < model.quality_threshold_
    assert noisy.flipped[flagged].mean() > .85 and flagged[noisy.flipped].mean() > .85
    assert set(model.suspects()) == set(np.flatnonzero(flagged))

@pytest.mark.parametrize('name', sorted(losses))
def test_every_loss_learns(digits, name):
    X, noisy, Q, target, _ = digits
    model = LinearProbe(name, epochs=40, steps=1, cross_fit=2).fit(X, noisy.given)
    assert model.score(Q, target) > .75 and np.isfinite(model.label_quality_).all()
    assert model.held_out_proba_.sum(1) == pytest.approx(1, abs=1e-5)

def test_options_reach_the_loss(digits):
    X, noisy, *_ = digits
    fit = lambda **o: LinearProbe('gce', epochs=2, **o).fit(X, noisy.given).coef_
    assert (fit() != fit(loss_options=dict(q=.3))).any() and (fit() == fit(loss_options=dict(q=.7))).all()

def test_the_published_recipe(digits):
    X, noisy, *_ = digits
    assert recipes['published'] == dict(learning_rate=1e-4, batch_size=128, epochs=100, patience=5, stop_by='accuracy', steps=1)
    a, b = LinearProbe(recipe='published').fit(X, noisy.given), LinearProbe(**recipes['published']).fit(X, noisy.given)
    assert (a.coef_ == b.coef_).all() and (a.coef_ != LinearProbe().fit(X, noisy.given).coef_).any()
    assert len(a.validation_) == pytest.approx(.15*len(X), abs=1)

def test_what_is_kept(digits):
    X, noisy, Q, *_ = digits
    model = LinearProbe().fit(X, noisy.given)
    learned = np.setdiff1d(np.arange(len(X)), model.validation_)
    assert model.mean_ == pytest.approx(X[learned].mean(0, dtype=float)) and (model.std_[X[learned].std(0) == 0] == 1).all()
    assert model.std_[model.std_ != 1] == pytest.approx(X[learned].std(0, dtype=float)[model.std_ != 1])
    best = model.history_[model.best_epoch_ - 1]
    assert best['validation_loss'] == min(h['validation_loss'] for h in model.history_)
    assert best['validation_accuracy'] == pytest.approx((model.predict(X[model.validation_]) == noisy.given[model.validation_]).mean())
    assert model.stopped_ == 'patience' and len(model.history_) == model.best_epoch_ + 5 or model.stopped_ == 'epochs'
    z = (Q - model.mean_)/model.std_ @ model.coef_.T + model.intercept_
    assert (z.argmax(1) == model.predict(Q)).all()

def test_scale_and_shift_of_columns_change_nothing(digits):
    X, noisy, Q, *_ = digits
    a, b = LinearProbe(epochs=5).fit(X, noisy.given), LinearProbe(epochs=5).fit(3*X.astype(float) + 7, noisy.given)
    assert a.predict_proba(Q) == pytest.approx(b.predict_proba(3*Q.astype(float) + 7), abs=1e-4)

def test_increasing_relabelling_maps_through(digits):
    X, noisy, Q, *_ = digits
    names = np.array(list('abcdefghij'))
    a, b = LinearProbe(epochs=5).fit(X, noisy.given), LinearProbe(epochs=5).fit(X, names[noisy.given])
    assert (names[a.predict(Q)] == b.predict(Q)).all() and (names[a.corrected_labels_] == b.corrected_labels_).all()
    assert (a.label_quality_ == b.label_quality_).all()

def test_the_same_bits_whatever_the_number_of_threads():
    code = textwrap.dedent('''
        import numpy as np
        from noisynb.disk import fingerprint
        from noisynb.methods import LinearProbe
        rng = np.random.default_rng(0)
        X, y = rng.normal(size=(60_000, 12)).astype(np.float32), rng.integers(0, 3, 60_000) # sums over more rows than one thread takes
        m = LinearProbe(epochs=2, cross_fit=2).fit(X, y)
        print(fingerprint(m.coef_, m.held_out_proba_, m.label_quality_, m.mean_, m.std_, repr(m.history_)))''')
    run = lambda k: subprocess.run([sys.executable, '-c', code], env=os.environ | dict(OMP_NUM_THREADS=str(k)), capture_output=True, text=True, check=True).stdout
    assert run(1) == run(2) != ''

def test_leaves_no_trace(digits):
    X, noisy, *_ = digits
    X, y = X.copy(), noisy.given.copy()
    X.flags.writeable = y.flags.writeable = False
    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    with processor_threads(2):
        LinearProbe(epochs=2).fit(X, y)
        train_probes(ones(X), torch.from_numpy(y.copy()), everybody(len(X)), 1000, 10, make_loss('ce', 10), epochs=1)
        assert torch.get_num_threads() == 2
    assert (np.random.get_state()[1] == states[0]).all() and (torch.get_rng_state() == states[1]).all()

def test_time_budget(digits):
    X, noisy, *_ = digits
    model = LinearProbe(time_budget=1e-9).fit(X, noisy.given)
    assert model.stopped_ == 'time' and len(model.history_) == 1 and len(model.label_quality_) == len(X)

def test_interrupted_is_not_fitted(digits, monkeypatch):
    X, noisy, Q, *_ = digits
    model, calls, threads = LinearProbe().fit(X, noisy.given), [], torch.get_num_threads()
    def validate(*_):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return dict(accuracy=np.full(6, .5), loss=np.full(6, .5))
    monkeypatch.setattr(linear, 'validate', validate)
    with pytest.raises(KeyboardInterrupt): model.fit(X, noisy.given)
    with pytest.raises(NotFittedError): model.predict(Q)
    with pytest.raises(NotFittedError): model.suspects()
    assert torch.get_num_threads() == threads
    monkeypatch.undo()
    assert (model.fit(X, noisy.given).coef_ == LinearProbe().fit(X, noisy.given).coef_).all()

def test_one_class_and_few_rows():
    X = np.random.default_rng(0).normal(size=(9, 4))
    one = LinearProbe().fit(X, ['a']*9)
    assert (one.predict(X) == 'a').all() and (one.predict_proba(X) == 1).all() and (one.label_quality_ == 1).all() and not len(one.suspects())
    for n in (2, 3, 9):
        few = LinearProbe(epochs=3).fit(X[:n], np.arange(n) % 2)
        assert few.label_quality_.shape == (n,) and np.isfinite(few.label_quality_).all() and few.predict_proba(X).shape == (9, 2)

def test_a_class_of_one_row(digits):
    X, noisy, *_ = digits
    y = noisy.given.copy(); y[7] = 99
    model = LinearProbe().fit(X, y)
    assert 7 not in model.validation_ and len(model.classes_) == 11 and model.label_quality_[7] < .5
    assert model.corrected_labels_[7] != 99

def test_save_and_load(digits, tmp_path):
    X, noisy, Q, *_ = digits
    for y in (noisy.given, np.array(list('abcdefghij'))[noisy.given], np.zeros(len(X), int)):
        model = LinearProbe('gce', loss_options=dict(q=.5), epochs=2).fit(X, y)
        again = load(model.save(tmp_path/'m.safetensors'))
        assert again.get_params() == model.get_params() and again.history_ == model.history_
        assert (again.predict_proba(Q) == model.predict_proba(Q)).all() and (again.predict(Q) == model.predict(Q)).all()
        assert (again.suspects() == model.suspects()).all() and (again.validation_ == model.validation_).all()

@pytest.mark.parametrize('options, message', [
    (dict(loss='cee'), "did you mean 'ce'"), (dict(recipe='publshed'), "did you mean 'published'"), (dict(preset='cifar11'), 'cifar10'),
    (dict(loss='gce', loss_options=dict(p=.7)), 'q'), (dict(epochs=0), 'epochs is 0'), (dict(batch_size=1.5), 'batch_size'), (dict(learning_rate=-1), 'learning_rate'),
    (dict(learning_rate=float('nan')), 'learning_rate'), (dict(patience=True), 'patience'), (dict(cross_fit=1), 'cross_fit'), (dict(time_budget=0), 'time_budget'),
    (dict(random_state=None), 'seed'), (dict(device='gpu'), 'device')])
def test_options_that_cannot_be(options, message):
    X, y = problem(60)
    with pytest.raises(NoisynbError, match=message): LinearProbe(**options).fit(X, y)

def test_data_that_cannot_be():
    X, y = problem(60)
    bad = X.copy(); bad[3, 2] = np.nan
    with pytest.raises(NoisynbError, match='row 3, column 2'): LinearProbe().fit(bad, y)
    with pytest.raises(NoisynbError, match='looks like images'): LinearProbe().fit(np.zeros((4, 8, 8, 1)), [0, 1, 0, 1])
    with pytest.raises(NoisynbError, match='give one label'): LinearProbe().fit(X, y[:-1])
    with pytest.raises(NoisynbError, match='no option'): make('linear', lr=1)
    with pytest.raises(NotFittedError): LinearProbe().predict(X)

def test_clone_keeps_the_options():
    model = make('linear', loss='sce', epochs=7)
    assert clone(model).get_params() == model.get_params() and isinstance(model, LinearProbe)

@parametrize_with_checks([LinearProbe(epochs=20, steps=1), LinearProbe('gce', recipe='published', cross_fit=2)])
def test_sklearn(estimator, check): check(estimator)
