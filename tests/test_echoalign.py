"EchoAlign: the hand values of the specification, what must not change the answer, and the ends of the range"
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from hypothesis import given, settings as hypothesis, strategies as st

from noisynb.core import NoisynbError
from noisynb.methods.echoalign.echomod import EchoMod
from noisynb.datasets.files import Files
from noisynb.methods import echoalign as module, make
from noisynb.methods.base import load
from noisynb.methods.echoalign import EchoAlign, TwoPhases, as_quality, group_weights, modes, near_votes, recipes, trusted
from noisynb.training import Schedule
from toys import stripes

few = hypothesis(max_examples=30, deadline=None)
seeds = st.integers(0, 10**6)


# hand values

@pytest.mark.parametrize('originals, echoes, weights', [(2, 4, (2/3, 1/3)), (5181, 45000, (.896754, .103246)), (17996, 45000, (.714331, .285669)), (28345, 45000, (.613539, .386461))])
def test_2_weights(originals, echoes, weights):
    own, edited = group_weights(originals, echoes)
    assert (own, edited) == pytest.approx(weights, abs=1e-6)
    n = originals + echoes
    assert originals*own == pytest.approx(echoes*edited)
    assert (originals*own + echoes*edited)/n == pytest.approx(2*originals*echoes/n**2)
    own, edited = group_weights(originals, echoes, scale=True)
    assert originals*own + echoes*edited == pytest.approx(n)

def test_2_mean_of_a_batch():
    own, edited = group_weights(2, 4)
    assert (2*own + 4*edited)/6 == pytest.approx(4/9)

def test_9_weights_of_an_empty_group():
    assert group_weights(0, 7) == (1., 1.) and group_weights(7, 0) == (1., 1.)

def test_schedule_is_the_published_one():
    rate = TwoPhases(Schedule(.1, 'step', at=recipes['cifar10']['milestones']), 1 - recipes['cifar10']['finetune'])
    assert recipes['cifar10']['epochs'] == 240
    published = [.1]*100 + [.01]*50 + [.001]*90
    assert [rate(e/240) for e in range(240)] == pytest.approx(published)

def test_recipes():
    assert [recipes[k]['threshold'] for k in ('cifar10', 'cifar100', 'cifar10n', 'clothing1m')] == [.52, .52, .43, .45]
    assert [recipes[k]['network'] for k in ('cifar10', 'cifar100', 'cifar10n', 'clothing1m')] == ['resnet18', 'resnet34', 'resnet18', 'timm:resnet50']
    known = {f.name for f in dataclasses.fields(EchoAlign)}
    assert all(set(row) == set(recipes['small']) and set(row) <= known and row['mode'] in modes for row in recipes.values())

@few
@given(seeds, st.floats(-1.5, 1.5))
def test_quality_keeps_order_and_side(seed, tau):
    s = np.sort(np.random.default_rng(seed).uniform(-1, 1, 20))
    q = as_quality(s, tau)
    assert ((q >= 0) & (q <= 1)).all() and (np.diff(q) > 0).all()
    assert ((q > .5) == (s > tau)).all()


# whom to believe

@few
@given(seeds)
def test_votes_agree_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    f, codes, voters, k = rng.normal(size=(25, 3)).astype(np.float32), rng.integers(0, 4, 25), rng.random(25) < .6, 5
    voters[:6] = True
    votes = near_votes(f, codes, 4, voters, k)
    for i in range(25):
        far = np.where(voters & (np.arange(25) != i), ((f - f[i])**2).sum(1), np.inf)
        near = far.argsort()[:min(k, voters.sum() - 1) + (not voters[i])] # a row that does not vote itself hears one more
        assert votes[i] == pytest.approx(np.bincount(codes[near], minlength=4)/len(near))

def test_no_class_is_lost_and_minorities_are_not_believed():
    codes = np.repeat([0, 1, 2], 20)
    votes = np.zeros((60, 3))
    votes[:, 0] = 1. # everyone is taken for class 0
    believed = trusted(votes, codes, np.arange(60.))
    assert [believed[codes == c].sum() for c in range(3)] == [10, 2, 2]
    assert believed[:10].all() and believed[20:22].all() # the smaller losses
    assert trusted(votes, codes, np.zeros(60), share=1.)[:20].all()


# the method

@dataclasses.dataclass(eq=False, repr=False)
class Painter(EchoMod):
    "Darkens all stripes and paints that of the label"
    epochs: int = 20
    time_budget: float | None = None
    edited = 0

    def _edit(self, images, labels, rows):
        Painter.edited += len(rows)
        out = images.copy()
        out[out > 100] -= 150
        out[np.arange(len(out)), :, 2*labels + 1] += 150
        return out

@pytest.fixture
def painter(monkeypatch):
    "In place of the identity"
    monkeypatch.setattr(module, 'make_echomod', lambda name, real=module.make_echomod, **options: (Painter(**options) if name == 'identity' else real(name, **options)))
    Painter.edited = 0
    return Painter

def small(**options):
    return EchoAlign(**dict(network='small-cnn', network_options=dict(widths=(4, 8)), echomod='identity', epochs=4, early_epochs=6, batch_size=8, device='cpu', verbose=False, features='raw') | options)

def same(a, b):
    assert (a.score_ == b.score_).all() and (a.kept_ == b.kept_).all() and (a.label_quality_ == b.label_quality_).all()
    assert all((a.weights_['0'][k] == b.weights_['0'][k]).all() for k in a.weights_['0'])

@pytest.mark.parametrize('mode, rows', [('replace', lambda kept: 48), ('official', lambda kept: 48 + kept), ('select_only', lambda kept: kept)])
def test_modes(painter, mode, rows):
    X, y, true = stripes()
    model = small(mode=mode, threshold='otsu').fit(X, y)
    assert (model.kept_ == (y == true)).all()
    assert model.history_[-1]['images_per_second'] > 0 and [r['kind'] for r in model.history_] == [mode]*4
    seen = small(mode=mode, threshold='otsu')
    counted = []
    module_one_pass = module.one_pass
    try:
        module.one_pass = lambda *a: counted.append(len(a[-1]) if a[-1] is not None else 48) or module_one_pass(*a)
        seen.fit(X, y)
    finally: module.one_pass = module_one_pass
    assert counted[-1] == rows(model.kept_.sum())
    assert len(model.suspects()) == (~model.kept_).sum() and set(model.suspects()) == set(np.flatnonzero(~model.kept_))
    assert (model.corrected_labels_[model.kept_] == y[model.kept_]).all()

def test_what_is_learnt_from(painter):
    "Rows n and beyond are echoes, with the label of their original"
    X, y, true = stripes()
    model, found = small(mode='official', threshold='otsu', scale_weights=False), {}
    class Look(EchoAlign):
        def _build(self):
            super()._build()
            pool, rows, _, weights = self._parts
            found.update(pixels=pool.raw().numpy(), rows=rows.numpy(), weights=weights.numpy(), kept=self.kept_)
    Look(**model.get_params()).fit(X, y)
    own = int((y == true).sum())
    assert (found['pixels'][:48] == np.moveaxis(X, 3, 1)).all()
    stripe = found['pixels'][48:, 0].mean(1)[:, [1, 3, 5]].argmax(1)
    assert (stripe == y).all()
    assert sorted(found['rows']) == sorted([*np.flatnonzero(y == true), *range(48, 96)])
    assert found['weights'][0] == pytest.approx(48/(48 + own)) and found['weights'][-1] == pytest.approx(own/(48 + own))

def test_fine_tuning_is_on_originals(painter):
    X, y, true = stripes()
    model = small(mode='official', threshold='otsu', finetune=.5).fit(X, y)
    assert [r['kind'] for r in model.history_] == ['official']*2 + ['fine-tuning']*2
    assert model.history_[-1]['learning_rate'] == pytest.approx(.01*.05)

def test_control_and_rounds():
    X, y, true = stripes(96)
    model = small(threshold='otsu', epochs=15).control()
    assert model.mode == 'control' and model.fit(X, y).mode == 'control'
    assert (model.believed_ & (y == true)).sum() >= .9*model.believed_.sum() > 20
    assert ((model.label_quality_ < model.quality_threshold_) == ~model.kept_).all()
    assert small(mode='control', rounds=0).fit(X, y).believed_.all()
    assert model.kept_.sum() > 20 and (y == true)[model.kept_].mean() > .9

def test_small_loss_selection():
    X, y, true = stripes(96)
    model = small(select='loss', mode='select_only', noise_rate=.3, early_epochs=10, learning_rate=.02).fit(X, y)
    for c in range(3):
        own = y == c
        assert model.kept_[own].sum() == pytest.approx(.63*own.sum(), abs=1)
        assert model.score_[own & model.kept_].min() > model.score_[own & ~model.kept_].max()
    assert (y == true)[model.kept_].mean() > (y == true).mean()
    with pytest.raises(NoisynbError, match='does not know'): small(select='loss').fit(X, y)

def test_7_identity_backend_keeps_everything():
    X, y, _ = stripes()
    for threshold in ('mixture', 'otsu', .9999):
        model = small(threshold=threshold, features='early', epochs=1, early_epochs=1, rounds=1).fit(X, y)
        assert model.score_ == pytest.approx(1, abs=1e-6) and model.kept_.all() and not len(model.suspects())
    assert small(mode='official', epochs=1).fit(X, y).kept_.all() # all kept is fine

def test_9_nothing_kept():
    X, y, _ = stripes()
    for mode in ('official', 'replace'):
        with pytest.warns(UserWarning, match='learns from echoes alone'): model = small(mode=mode, threshold=1., finetune=.5).fit(X, y)
        assert model.history_[0]['loss'] > .1 and len(model.suspects()) == 48 and {r['kind'] for r in model.history_} == {mode}
    with pytest.raises(NoisynbError, match='no original is kept'): small(mode='select_only', threshold=1.).fit(X, y)

@pytest.mark.parametrize('shape', [(30, 9, 7, 3), (5, 8, 8, 1)])
def test_10_odd_shapes_and_small_sets(shape):
    "Fewer images than a batch, sides that do not halve, a class with one image"
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, shape, dtype=np.uint8)
    y = np.array(['b', 'a'])[(np.arange(len(X)) > 0).astype(int)]
    model = small(batch_size=64, features='early', echomod='diffusion', echomod_options=dict(epochs=1, widths=(8,), steps=2), epochs=1, early_epochs=1).fit(X, y)
    assert np.isfinite(model.label_quality_).all() and set(model.predict(X)) <= {'a', 'b'}

def test_11_no_leak(painter):
    "Nothing but images and given labels goes in: fit has no way to see others, and does not depend on the names of the labels"
    X, y, _ = stripes()
    a, b = small(threshold='otsu').fit(X, y), small(threshold='otsu').fit(X, np.array(['x', 'y', 'z'])[y])
    same(a, b)
    assert list(__import__('inspect').signature(EchoAlign.fit).parameters) == ['self', 'X', 'y', 'watch']

def test_determinism_and_global_state(painter):
    X, y, _ = stripes()
    before, images = torch.random.get_rng_state(), X.copy()
    a = small(features='early').fit(X, y)
    np.random.seed(5)
    b = small(features='early').fit(X, y, watch=lambda m: dict(accuracy=m.score(X, y)))
    same(a, b)
    assert (torch.random.get_rng_state() == before).all() and (X == images).all()
    other = small(features='early', random_state=1).fit(X, y)
    assert not (other.weights_['0']['head.weight'] == a.weights_['0']['head.weight']).all()
    assert a.recipe == 'auto' and a.mode is None and a.options_['mode'] == 'replace' and a.options_['recipe'] == 'small'

class Stopped(Exception): pass

def test_resume_after_a_stop(painter, tmp_path):
    X, y, _ = stripes()
    whole = small(features='early', mode='official', finetune=.3).fit(X, y)
    options = dict(features='early', mode='official', finetune=.3, checkpoint=str(tmp_path/'run.pt'))
    Painter.edited = 0
    def stop(model):
        stop.seen += 1
        if stop.seen == 2: raise Stopped
        return {}
    stop.seen = 0
    with pytest.raises(Stopped): small(**options).fit(X, y, watch=stop)
    assert Painter.edited == 48
    again = small(**options).fit(X, y)
    assert Painter.edited == 48 # the echoes are those of the first run
    same(whole, again)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['run.pt', 'run.pt.early', 'run.pt.echoes', 'run.pt.selection']
    with pytest.raises(NoisynbError, match='another run'): small(**options | dict(random_state=3)).fit(X, y)

def test_resume_while_echoes_are_made(painter, tmp_path, monkeypatch):
    X, y, _ = stripes()
    whole = small().fit(X, y)
    monkeypatch.setattr(module, 'echo_cache', lambda *a, real=module.echo_cache, **k: real(*a, batch_size=10, **k))
    real, options = Painter._edit, dict(checkpoint=str(tmp_path/'run.pt'))
    def dies(self, images, labels, rows):
        if rows[0] >= 20: raise Stopped
        return real(self, images, labels, rows)
    monkeypatch.setattr(Painter, '_edit', dies)
    with pytest.raises(Stopped): small(**options).fit(X, y)
    monkeypatch.setattr(Painter, '_edit', real)
    Painter.edited = 0
    same(whole, small(**options).fit(X, y))
    assert Painter.edited == 28 # only what was missing

def test_echoes_of_other_labels_are_refused(painter, tmp_path):
    X, y, _ = stripes()
    assert not small(echoes=str(tmp_path/'echoes'), epochs=1).fit(X, y).kept_.all()
    with pytest.raises(NoisynbError, match='other'): small(echoes=str(tmp_path/'echoes'), epochs=1).fit(X, (y + 1) % 3)
    other = small(echoes=str(tmp_path/'echoes'), epochs=1, threshold='quantile:0') # another threshold takes effect though the echoes are there
    assert other.fit(X, y).kept_.all()

def test_save_and_load(painter, tmp_path):
    X, y, _ = stripes()
    for options in (dict(), dict(per_class=True, threshold='otsu')):
        model = small(**options).fit(X, y)
        again = load(model.save(tmp_path/'model.safetensors'))
        assert (again.predict_proba(X) == model.predict_proba(X)).all() and (again.suspects() == model.suspects()).all() and (again.kept_ == model.kept_).all()

def test_files_are_read_as_they_are_needed(painter, tmp_path, monkeypatch):
    "Images in files give the same as arrays; their echoes go to the cache folder"
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path/'cache'))
    X, y, true = stripes(24)
    X = X.repeat(3, 3)
    for i, image in enumerate(X): Image.fromarray(image).save(tmp_path/f'{i:02}.png')
    files = Files([f'{i:02}.png' for i in range(24)], size=8, root=tmp_path)
    assert (np.asarray(files) == X).all()
    for mode in ('replace', 'select_only'):
        options = dict(mode=mode, threshold='otsu', epochs=2, early_epochs=2, features='early')
        same(small(**options).fit(files, y), small(**options).fit(X, y))
    assert len(list((tmp_path/'cache'/'echoes').glob('*/echoes.npy'))) == 1
    both = module._Both(files, X[::-1])
    assert (both[np.array([0, 47, 23, 24])] == X[[0, 0, 23, 23]]).all() and len(both) == 48 and both.shape == (48, 8, 8, 3)

def test_budgets(painter, monkeypatch):
    "The generator gets a third of the time and no more epochs than the network"
    X, y, _ = stripes()
    seen = []
    monkeypatch.setattr(Painter, '_fit', lambda self, *a: seen.append((self.epochs, self.time_budget)))
    small(epochs=2).fit(X, y)
    small(epochs=30, time_budget=.002).fit(X, y)
    small(epochs=2, echomod_options=dict(epochs=7, time_budget=9.)).fit(X, y)
    small(epochs=4, echo_epochs=3).fit(X, y)
    small(recipe='fast', epochs=30, time_budget=.002).fit(X, y)
    assert seen == [(2, None), (20, pytest.approx(.002/3)), (7, 9.), (3, None), (10, pytest.approx(.002/3))]

def test_what_was_prepared_is_paid_for_once(painter, tmp_path, monkeypatch):
    "A run that is stopped after its preparation leaves its network the time that it would have had"
    X, y, _ = stripes()
    left = []
    def stopped(state, epoch, schedule, epochs, minutes, *rest): left.append(minutes); raise KeyboardInterrupt
    monkeypatch.setattr('noisynb.methods.images.train', stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt): small(checkpoint=str(tmp_path/'run'), time_budget=5.).fit(X, y)
    assert left[0] == left[1] < 5

@pytest.mark.parametrize('options, message', [(dict(mode='replaced'), "did you mean 'replace'"), (dict(recipe='cifar'), 'recipe'), (dict(echomod='difusion'), "did you mean 'diffusion'"),
    (dict(threshold='quantile:7'), 'share from 0 to 1'), (dict(finetune=1.), 'finetune is 1.0'), (dict(early_epochs=2.5), 'early_epochs is 2.5'), (dict(class_names=['a']), '1 class names'),
    (dict(echomod_options=dict(stps=3)), 'stps'), (dict(rounds=-1), 'rounds is -1'), (dict(rounds=1.5), 'rounds is 1.5'), (dict(noise_rate=40), 'noise_rate is 40'), (dict(echo_epochs=-3), 'echo_epochs is -3'), (dict(loss='cee'), 'loss')])
def test_mistakes_are_refused(options, message):
    X, y, _ = stripes()
    with pytest.raises(NoisynbError, match=message): small(**options).fit(X, y)

def test_registry():
    assert isinstance(make('echoalign', mode='control'), EchoAlign)
    with pytest.raises(NoisynbError, match='echomod'): make('echoalign', ecomod='identity')


# the whole

def test_12_digits():
    "A small share of the digits, symmetric noise: echoes tell right labels from wrong ones"
    from noisynb.datasets import load as load_data
    from noisynb.noise import corrupt
    from sklearn.metrics import roc_auc_score
    data = load_data('digits')
    part = data.train.take(np.arange(250))
    noisy = corrupt(part, 'symmetric', .4, seed=0)
    model = EchoAlign(early_epochs=8, epochs=6, echomod_options=dict(epochs=25, steps=5), device='cpu', verbose=False).fit(part.images, noisy.given)
    assert roc_auc_score(~noisy.flipped, model.score_) > .8
    assert model.score(data.test.images, data.test.labels) > .6
