"Networks to beat: against naive loops and hand values, and what every method on images promises"
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.nn import functional as F

from noisynb.core import NoisynbError, processor_threads, torch_generator
from noisynb.datasets import load as load_data
from noisynb.experiment import run
from noisynb.datasets.files import Files
from noisynb.methods import make
from noisynb.methods.base import load
from noisynb.methods.baselines import Cleanlab, CoTeaching, CrossEntropy, ELR
from noisynb.networks import make_network
from noisynb.noise import corrupt
from noisynb.training import ImageSet, batches, evaluate

names = ['ce', 'elr', 'coteaching']
brief = dict(epochs=2, batch_size=16, verbose=False)

@pytest.fixture(scope='module')
def stripes():
    "48 images of three classes, told apart by a bright column; a few labels are wrong"
    rng = np.random.default_rng(0)
    truth = np.arange(48) % 3
    X = rng.integers(0, 150, (48, 8, 8, 1), dtype=np.uint8)
    X[np.arange(48), :, 2*truth + 1] = 255
    given = truth.copy()
    given[:6] = (given[:6] + 1) % 3
    return X, given, truth

@pytest.fixture(scope='module')
def fitted(stripes):
    X, y, _ = stripes
    return {n: make(n, **brief).fit(X, y) for n in names}


# --- what they compute ---

@pytest.mark.parametrize('n_networks', [1, 2])
def test_cross_entropy_is_a_plain_loop(stripes, n_networks):
    X, y, _ = stripes
    model, codes, means = CrossEntropy(n_networks=n_networks, learning_rate=.1, random_state=4, **brief).fit(X, y), torch.from_numpy(y), 0.
    for i, name in enumerate('AB'[:n_networks]):
        with processor_threads(1):
            net, g, images = make_network('small-cnn', 3, 1, 8, 4, f'network {name}'), torch_generator(4, f'order {name}'), ImageSet(X, flip=False)
            optimiser = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9, weight_decay=5e-4)
            for epoch in range(2):
                for j, b in enumerate(batches(48, 16, g)):
                    optimiser.param_groups[0]['lr'] = .1*(1 + np.cos(np.pi*(epoch + j/3)/2))/2
                    loss = F.cross_entropy(net.train()(images.weak(b, g)), codes[b])
                    optimiser.zero_grad(); loss.backward(); optimiser.step()
                means = means + evaluate(net, images).softmax(1)/n_networks/2
        for k, v in net.state_dict().items(): np.testing.assert_allclose(model.weights_[str(i)][k], v, rtol=1e-3, atol=1e-4)
    own = means[torch.arange(48), codes]
    best = means.scatter(1, codes[:, None], -1.).amax(1)
    np.testing.assert_allclose(model.label_quality_, own/(own + best), rtol=1e-3, atol=1e-4)

@pytest.mark.parametrize('forget', [0., .25, .9])
def test_coteaching_exchanges_small_losses(stripes, forget):
    X, y, _ = stripes
    options = dict(learning_rate=.1, batch_size=16, epochs=3, ramp=2/3, forget_rate=forget, verbose=False)
    model, codes = CoTeaching(**options).fit(X, y), torch.from_numpy(y)
    with processor_threads(1):
        nets, g, images = [make_network('small-cnn', 3, 1, 8, 0, f'network {n}') for n in 'AB'], torch_generator(0, 'order A'), ImageSet(X, flip=False)
        optimisers = [torch.optim.SGD(n.parameters(), lr=.1, momentum=.9, weight_decay=5e-4) for n in nets]
        for epoch, share in enumerate([1, 1 - forget/2, 1 - forget]):
            for j, b in enumerate(batches(48, 16, g)):
                x, most = images.weak(b, g), max(1, round(16*share))
                losses = [F.cross_entropy(n.train()(x), codes[b], reduction='none') for n in nets]
                picks = [sorted(range(16), key=lambda r: losses[k][r].item())[:most] for k in (0, 1)]
                for k in 0, 1:
                    optimisers[k].param_groups[0]['lr'] = .1*(1 + np.cos(np.pi*(epoch + j/3)/3))/2
                    optimisers[k].zero_grad(); losses[k][picks[1 - k]].mean().backward(); optimisers[k].step()
    for i, net in enumerate(nets):
        for k, v in net.state_dict().items(): np.testing.assert_allclose(model.weights_[str(i)][k], v, rtol=1e-3, atol=2e-4)
    assert [r['n_clean'] for r in model.history_] == [48, 3*round(16*(1 - forget/2)), 3*max(1, round(16*(1 - forget)))]

def test_the_forget_rate_is_what_the_mean_opinion_speaks_against(stripes):
    X, y, _ = stripes
    means = []
    def watch(model):
        means.append(float((model._state.seen.argmax(1) != model._codes).double().mean()))
        return {}
    model = CoTeaching(epochs=8, batch_size=16, ramp=.5, verbose=False).fit(X, y, watch=watch)
    rates = [r['forget_rate'] for r in model.history_]
    assert rates[:4] == means[:4] and set(rates[4:]) == {means[3]} and len(set(means)) > 1
    means.clear()
    model = CoTeaching(epochs=3, batch_size=16, ramp=0, verbose=False).fit(X, y, watch=watch)   # no way there: what the first epoch shows
    assert [r['forget_rate'] for r in model.history_] == means[:1]*3 and means[0] > 0
    assert len(CoTeaching(epochs=1, verbose=False).fit(X, y, watch=lambda model: None).history_) == 1

def test_elr_remembers_by_row_and_each_network_for_itself(stripes):
    X, y, _ = stripes
    targets = {}
    def watch(model):
        targets.update(enumerate(loss.targets.clone() for loss in model._state.losses))
        return {}
    model = ELR(n_networks=2, **brief | dict(epochs=1)).fit(X, y, watch=watch)
    assert targets[0].shape == (48, 3) and not torch.equal(targets[0], targets[1]) and model.loss == 'elr'
    torch.testing.assert_close(targets[0].sum(1), torch.full((48,), .3), rtol=1e-3, atol=1e-3) # (1 - beta) times one, from nothing

def test_other_losses_go_in(stripes):
    X, y, _ = stripes
    plain, gce = (make('ce', loss=name, loss_options=o, **brief).fit(X, y) for name, o in (('ce', None), ('gce', {'q': .5})))
    assert plain.history_[0]['loss'] != gce.history_[0]['loss']
    with pytest.raises(NoisynbError, match="did you mean 'gce'"): make('ce', loss='gcee').fit(X, y)
    with pytest.raises(NoisynbError, match="did you mean 'q'"): make('ce', loss='gce', loss_options={'Q': 1}).fit(X, y)

def test_judging_by_hand():
    model = CrossEntropy()
    model.classes_, model._codes = np.array(['a', 'b', 'c']), torch.tensor([0, 0, 2, 1])
    model._judge(torch.tensor([[.6, .3, .1], [.2, .6, .2], [.4, .2, .4], [0., 0, 0]]))
    np.testing.assert_allclose(model.label_quality_, [.6/.9, .2/.8, .5, 0], atol=1e-6)
    assert model.corrected_labels_[:3].tolist() == ['a', 'b', 'c'] and model.suspects().tolist() == [3, 1]


# --- what they promise ---

@pytest.mark.parametrize('name', names)
def test_contract(name, fitted, stripes, tmp_path):
    model, (X, y, _) = fitted[name], stripes
    proba = model.predict_proba(X[:9])
    assert proba.shape == (9, 3) and np.allclose(proba.sum(1), 1) and (model.predict(X[:9]) == model.classes_[proba.argmax(1)]).all()
    q = model.label_quality_
    assert q.shape == (48,) and ((0 <= q) & (q <= 1)).all() and model.quality_threshold_ == .5
    assert ((model.corrected_labels_ != y) == (q < .5)).all() and set(model.suspects()) == set(np.flatnonzero(q < .5))
    assert len(model.history_) == 2 and {'epoch', 'loss', 'agreement', 'learning_rate', 'seconds', 'images_per_second'} <= set(model.history_[0])
    json.dumps(model.history_)
    again = load(model.save(tmp_path/'m.safetensors'))
    assert (again.predict_proba(X[:9]) == proba).all() and (again.label_quality_ == q).all() and again.get_params() == model.get_params() and again.history_ == model.history_
    same, other = clone(model).fit(X, y), clone(model).set_params(random_state=1).fit(X, y)
    assert (same.label_quality_ == q).all() and (other.label_quality_ != q).any() and (same.predict_proba(X[:9]) == proba).all()
    assert {v for v in vars(model) if not v.endswith('_') and v not in model.get_params()} <= {'_networks'}

@pytest.mark.parametrize('name', names)
def test_the_number_of_threads_outside_does_not_matter(name, fitted, stripes):
    X, y, _ = stripes
    with processor_threads(2):
        two = make(name, **brief).fit(X, y)
        assert torch.get_num_threads() == 2 and (two.label_quality_ == fitted[name].label_quality_).all()

def test_inputs_and_global_generators_stay_as_they_are(stripes):
    X, y, _ = (a.copy() for a in stripes)
    X.setflags(write=False); y.setflags(write=False)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    make('ce', **brief).fit(X, y).predict(X)
    assert torch.equal(torch.get_rng_state(), before) and (np.random.get_state()[1] == numbers).all()

@pytest.mark.parametrize('name', names)
def test_small_sets_and_any_labels(name, stripes):
    X, *_ = stripes
    model = make(name, epochs=1, verbose=False).fit(X[:2], ['cat', 'dog'])
    assert set(model.predict(X[:5])) <= {'cat', 'dog'} and len(model.predict(X[:0])) == 0 and len(model.label_quality_) == 2
    assert make(name, epochs=1, verbose=False).fit(X[:7], np.array([-5, 3, 9, 3, 3, -5, 9])).classes_.tolist() == [-5, 3, 9]

def test_colour_and_odd_shapes(stripes):
    X = np.random.default_rng(0).integers(0, 256, (6, 9, 12, 3), dtype=np.uint8)
    model = make('ce', **brief).fit(X, [0, 1]*3)
    assert model.predict(X).shape == (6,) and model.architecture_['in_channels'] == 3 and model.n_features_in_ == 9*12*3

def test_files_in_place_of_an_array(stripes, tmp_path):
    from PIL import Image
    X = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    for i, picture in enumerate(X): Image.fromarray(picture).save(tmp_path/f'{i:02}.png')
    files = Files([f'{i:02}.png' for i in range(20)], size=8, root=tmp_path)
    y = np.arange(20) % 2
    one, two = (make('ce', epochs=1, batch_size=8, verbose=False, checkpoint=str(tmp_path/f'{n}.pt')).fit(x, y) for n, x in (('a', files), ('b', X)))
    assert (one.label_quality_ == two.label_quality_).all() and (one.predict_proba(files) == two.predict_proba(X)).all()

@pytest.mark.parametrize('change,words', [
    (lambda X: X.reshape(48, -1), 'looks like embeddings.*linear'), (lambda X: X[..., 0], r'give X\[\.\.\., None\]'), (lambda X: X/255., 'X is float64.*astype'),
    (lambda X: np.moveaxis(X, 3, 1), r'np.moveaxis\(X, 1, 3\)'), (lambda X: np.repeat(X, 5, 3), '1 or 3 channels'), (lambda X: X[:1], 'at least two'), (lambda X: X[:9], 'y has shape')])
def test_wrong_images(change, words, stripes):
    with pytest.raises(NoisynbError, match=words): make('ce').fit(change(stripes[0]), stripes[1][:1] if 'two' in words else stripes[1])

def test_wrong_images_later_and_one_class(fitted, stripes):
    X, y, _ = stripes
    with pytest.raises(NoisynbError, match=r'fitted on \(8, 8, 1\)'): fitted['ce'].predict(X[:, :7])
    with pytest.raises(NoisynbError, match='one class only'): make('ce').fit(X, y*0)

@pytest.mark.parametrize('options,words', [
    (dict(epochs=0), 'epochs is 0'), (dict(epochs=2.5), 'whole number'), (dict(batch_size=0), 'batch_size is 0'), (dict(learning_rate=0), 'above 0'),
    (dict(learning_rate=float('nan')), 'learning_rate is nan'), (dict(momentum=1.), 'from 0 to 0.9999'), (dict(weight_decay=-1), 'weight_decay'), (dict(time_budget=0), 'above 0'),
    (dict(schedule='cosin'), "did you mean 'cosine'"), (dict(flip='yes'), "flip is 'yes'"), (dict(network='resnet19'), "did you mean 'resnet18'"), (dict(n_networks=3), 'give 1 or 2'),
    (dict(network_options={'width': 3}), 'no option of small-cnn'), (dict(threads=0), 'threads is 0'), (dict(checkpoint=Path('a.pt')), 'as text'), (dict(device='gpu'), "device is 'gpu'")])
def test_wrong_options(options, words, stripes):
    X, y, _ = stripes
    model = make('ce', **options)
    with pytest.raises(NoisynbError, match=words): model.fit(X, y)
    assert not [k for k in vars(model) if k.endswith('_') or k.startswith('_')]

def test_wrong_options_of_coteaching(stripes):
    X, y, _ = stripes
    for options, words in (dict(forget_rate=1.), 'forget_rate is 1.0'), (dict(forget_rate='some'), "'auto'"), (dict(ramp=2), 'ramp is 2'), (dict(n_networks=1), 'takes 2'), (dict(loss='elr'), 'remembers'):
        with pytest.raises(NoisynbError, match=words): CoTeaching(**options).fit(X, y)

def test_a_checkpoint_knows_its_data_and_its_options(stripes, tmp_path):
    X, y, _ = stripes
    options = dict(brief, checkpoint=str(tmp_path/'a.pt'))
    model = make('ce', **options).fit(X, y)
    again = make('ce', **options).fit(X, y)
    assert again.history_ == model.history_ and (again.label_quality_ == model.label_quality_).all(), 'it was finished'
    for other, words in (make('ce', **options, learning_rate=.01), 'learning_rate was 0.05 and is 0.01'), (make('elr', **options), 'loss was'):
        with pytest.raises(NoisynbError, match=words): other.fit(X, y)
    with pytest.raises(NoisynbError, match='data was'): make('ce', **options).fit(X, y[::-1])

def test_an_interrupted_fit_is_no_fit(stripes):
    X, y, _ = stripes
    def stop(model): raise KeyboardInterrupt
    model = make('ce', **brief)
    with pytest.raises(KeyboardInterrupt): model.fit(X, y, watch=stop)
    assert not [k for k in vars(model) if k.endswith('_') and not k.startswith('_')]
    assert len(model.fit(X, y).history_) == 2

def test_watching_changes_nothing(stripes, fitted):
    X, y, truth = stripes
    watched = make('elr', **brief).fit(X, y, watch=lambda model: dict(test_accuracy=model.score(X, truth)))
    assert (watched.label_quality_ == fitted['elr'].label_quality_).all()
    assert watched.history_[-1]['test_accuracy'] == watched.score(X, truth)


# --- whole runs ---

def test_run_takes_them_to_a_record():
    done = run('ce', 'digits', noise_type='symmetric', noise_rate=.5, epochs=3, n_train=300, options=dict(batch_size=32, verbose=False))
    assert done.result['epochs'] == 3 and done.result['embedding'] is None and done.result['test_accuracy'] > .15 and done.result['label_error_auroc'] > .5

@pytest.fixture(scope='module')
def half_wrong():
    data = load_data('digits')
    return data, corrupt(data.train, 'symmetric', .4, seed=0, n_classes=10)

def test_elr_does_not_learn_by_heart(half_wrong):
    data, noisy = half_wrong
    X, y = data.train.images[:200], noisy.given[:200]
    ce, elr = (make(n, epochs=25, batch_size=32, verbose=False).fit(X, y).history_[-1]['agreement'] for n in ('ce', 'elr'))
    assert elr < .75 < ce, (ce, elr)


# --- cleanlab ---

@parametrize_with_checks([Cleanlab()])
def test_cleanlab_keeps_the_rules_of_scikit_learn(estimator, check):
    pytest.importorskip('cleanlab')
    check(estimator)

def test_cleanlab_is_what_the_package_says(half_wrong, tmp_path):
    pytest.importorskip('cleanlab')
    from cleanlab.filter import find_label_issues
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    data, noisy = half_wrong
    X, y = data.train.images.reshape(len(noisy.given), -1)/255, noisy.given
    model = Cleanlab().fit(X, y)
    pipe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    proba = cross_val_predict(pipe, X, y, cv=StratifiedKFold(5, shuffle=True, random_state=0), method='predict_proba')
    wrong = find_label_issues(y, proba, n_jobs=1)
    assert ((model.label_quality_ < .5) == wrong).all() and (model.corrected_labels_ == np.where(wrong, proba.argmax(1), y)).all()
    for group in wrong, ~wrong: assert (np.argsort(model.label_quality_[group], kind='stable') == np.argsort(proba[np.arange(len(y)), y][group], kind='stable')).all()
    np.testing.assert_allclose(model.predict_proba(X), pipe.fit(X[~wrong], y[~wrong]).predict_proba(X), atol=1e-6)
    assert (load(model.save(tmp_path/'m.safetensors')).predict_proba(X[:5]) == model.predict_proba(X[:5])).all()

def test_cleanlab_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'cleanlab', None)
    with pytest.raises(ImportError, match='noisynb\\[compare\\]'): Cleanlab().fit(np.eye(4), [0, 0, 1, 1])

def test_dropout_has_a_stream_of_its_own():
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), np.arange(12) % 2
    fit = lambda: CrossEntropy(network='vgg19-bn', network_options=dict(hidden=8), epochs=1, batch_size=6, verbose=False).fit(X, y)
    torch.manual_seed(1); before = torch.get_rng_state(); a = fit()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert (a.predict_proba(X) == fit().predict_proba(X)).all()
