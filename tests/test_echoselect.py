"EchoSelect: the hand values of the specification, thresholds against brute force, and features of all kinds"
import numpy as np
import pytest
import torch
from hypothesis import given, settings as hypothesis, strategies as st

from noisynb.core import NoisynbError
from noisynb.methods.echoalign.echoselect import EchoSelect, cut, cut_by_class, keep_share, network_features, retained, thresholds
from noisynb.methods import make
from noisynb.methods.baselines import CrossEntropy

few = hypothesis(max_examples=30, deadline=None)
seeds = st.integers(0, 10**6)


# hand values

def test_1_cosine_and_strict_threshold():
    before, after = np.array([[1., 0], [3, 4]]), np.array([[1., 1], [3, 4]])
    found = EchoSelect(threshold=.52).fit(before, after)
    assert found.similarity_ == pytest.approx([.70710678, 1.], abs=1e-7) and found.keep_.all()
    assert EchoSelect(threshold=.71).fit(before, after).keep_.tolist() == [False, True]
    assert not EchoSelect(threshold=1.).fit(before, after).keep_.any()
    assert not EchoSelect(threshold=1).fit(before, before).keep_.any()

@pytest.mark.parametrize('rate, share', [(0, .9), (.2, .72), (.3, .63), (.4, .52), (.5, .40), (.8, .04), (.85, 0), (1, 0)])
def test_3_share_that_is_kept(rate, share): assert keep_share(rate) == pytest.approx(share, abs=1e-12)

def test_3_refused():
    with pytest.raises(NoisynbError, match='noise rate is 1.5'): keep_share(1.5)

@pytest.mark.parametrize('threshold', [*(t for t in thresholds if t[0] in 'mo'), 'quantile:0', .999999, -.5])
def test_7_equal_scores_keep_everything(threshold):
    rows = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    assert EchoSelect(threshold=threshold).fit(rows, rows).keep_.all()
    assert cut([.3], threshold) < .3 or threshold == .999999

def test_retained_by_hand():
    right = np.array([1, 1, 0, 1, 1, 0], bool)
    score = [.9, .8, .7, .6, .5, .4]
    assert [retained(score, right, a) for a in (1, .8, .7, .6, 0)] == [2, 5, 5, 6, 6]
    assert retained(score, ~right, .99) == 0
    assert retained([.9, .8, .8, .6, .5, .4], right, 1) == 1 # equal scores together
    assert retained(np.zeros(6), right, .5) == 6 and retained(np.zeros(6), right, .7) == 0


# thresholds

def between(s, t): return (s <= t).sum()*(s > t).sum()*(s[s <= t].mean() - s[s > t].mean())**2

def brute_otsu(s):
    return max(sorted(set(s))[:-1], key=lambda t: between(s, t))

@few
@given(seeds)
def test_otsu_agrees_with_brute_force(seed):
    s = np.random.default_rng(seed).integers(0, 12, 30)/12
    if np.ptp(s):
        t, best = cut(s, 'otsu'), brute_otsu(s)
        assert t == pytest.approx(best) or t in s and between(s, t) == pytest.approx(between(s, best), rel=1e-9)   # two cuts may be equally good

@few
@given(seeds, st.sampled_from(['mixture', 'otsu', 'quantile:0.4']))
def test_order_changes_nothing_and_features_are_cut_alike(seed, threshold):
    rng = np.random.default_rng(seed)
    s = np.where(rng.random(60) < .6, rng.normal(.9, .03, 60), rng.normal(.5, .15, 60)).clip(-1, 1)
    assert cut(rng.permutation(s), threshold) == pytest.approx(cut(s, threshold), abs=1e-9)
    kept = s > cut(s, threshold)
    assert kept.any() and (threshold == 'mixture' or not kept.all())
    on_a_circle = np.c_[s, np.sqrt(1 - s**2)]   # rows whose cosine with (1, 0) is s
    assert (EchoSelect(threshold=threshold).fit(on_a_circle, np.tile([1., 0.], (60, 1))).keep_ == kept).mean() > .98

def test_two_heaps_are_told_apart():
    rng = np.random.default_rng(0)
    clean = np.arange(300) < 200
    s = np.where(clean, rng.normal(.95, .02, 300), rng.normal(.5, .1, 300))
    for threshold in ('mixture', 'otsu', 'quantile:0.333334'): assert ((s > cut(s, threshold)) == clean).mean() > .98, threshold

def test_quantile_keeps_the_rest():
    s = np.random.default_rng(0).permutation(10)/10
    assert [(s > cut(s, f'quantile:{q}')).sum() for q in (0, .3, .5, 1)] == [10, 7, 5, 0]
    assert cut([.2, .9, .9, .9], 'quantile:0.5') == .2 # equals are kept

@pytest.mark.parametrize('threshold, message', [('gmm', 'no threshold'), ('quantile:2', 'share from 0 to 1'), ('quantile', 'share from 0 to 1'), (None, 'no threshold'), (True, 'no threshold')])
def test_bad_thresholds(threshold, message):
    with pytest.raises(NoisynbError, match=message): cut([0., 1.], threshold)

def test_a_threshold_for_each_class():
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1, 3], 40)
    clean = rng.random(120) < .6
    s = np.where(clean, .9, .6) - .3*(codes == 1) + rng.normal(0, .01, 120)
    found = cut_by_class(s, codes, 4, 'otsu')
    assert ((s > found[codes]) == clean).all() and found[2] == -1
    rows, turned = np.tile([1., 0], (120, 1)), np.c_[s, np.sqrt(1 - s**2)]
    select = EchoSelect(threshold='otsu', per_class=True).fit(rows, turned, np.array(list('abxd'))[codes])
    assert (select.keep_ == clean).all() and select.classes_.tolist() == ['a', 'b', 'd'] and len(select.threshold_) == 3
    with pytest.raises(NoisynbError, match='needs the given labels'): EchoSelect(per_class=True).fit(rows, turned)


# features

def test_features_of_all_kinds(tmp_path):
    X, y = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 1), dtype=np.uint8), np.arange(48) % 3
    echoes = np.roll(X, 1, 2)
    model = CrossEntropy(network='small-cnn', network_options=dict(widths=(4, 8)), epochs=1, device='cpu', verbose=False).fit(X, y)
    flat = lambda images: images.reshape(len(images), -1).astype(np.float32)
    found = {name: EchoSelect(f).fit(X, echoes).similarity_ for name, f in dict(raw='raw', function=flat, network=model, pca='pca:4').items()}
    assert found['raw'] == pytest.approx(found['function'], abs=1e-5)
    network = model._trained()[0]
    looks = network_features(network, tuple(map(tuple, model.statistics_.tolist())))
    with torch.no_grad():
        x = (torch.from_numpy(np.moveaxis(X, 3, 1).copy()).float()/255 - torch.tensor(model.statistics_[0]).float()[:, None, None])/torch.tensor(model.statistics_[1]).float()[:, None, None]
        by_hand = network.eval().features(x).numpy()
    assert looks(X) == pytest.approx(by_hand, abs=1e-4)
    a, b = looks(X).astype(float), looks(echoes).astype(float)
    assert found['network'] == pytest.approx((a*b).sum(1)/np.linalg.norm(a, axis=1)/np.linalg.norm(b, axis=1), abs=1e-5)
    assert EchoSelect('pca:4').fit(X, X).similarity_ == pytest.approx(1, abs=1e-6) # the same components for both
    np.save(tmp_path/'echoes.npy', echoes)
    assert (EchoSelect(model).fit(X, np.load(tmp_path/'echoes.npy', mmap_mode='r')).similarity_ == found['network']).all()

def test_networks_see_what_they_were_trained_on():
    "Windows of the side of training, and all networks of a pair"
    X, y = np.random.default_rng(0).integers(0, 256, (24, 12, 12, 1), dtype=np.uint8), np.arange(24) % 3
    options = dict(network='small-cnn', network_options=dict(widths=(4, 8)), epochs=1, device='cpu', verbose=False)
    model = CrossEntropy(crop=8, **options).fit(X, y)
    edges = X.copy()
    edges[:, [0, -1]] = 0
    assert EchoSelect(model).fit(X, edges).similarity_ == pytest.approx(1, abs=1e-6)
    pair = make('promix', batch_size=8, **options | dict(epochs=2)).fit(X, y)
    assert EchoSelect(pair).fit(X, X[::-1]).similarity_.min() < .9999

@pytest.mark.parametrize('features, originals, echoes, words', [(None, np.zeros((3, 4, 4, 1), np.uint8), np.zeros((3, 4, 4, 1), np.uint8), 'features='), (None, np.eye(3), np.ones((3, 2)), 'one length'),
    (None, np.eye(3), np.array([[1., 0, 0], [np.nan, 1, 1], [0, 0, 1]]), 'echoes hold NaN or infinity at row 1'), (None, np.eye(3)[:0], np.eye(3)[:0], 'no originals'),
    (CrossEntropy(), np.zeros((3, 4, 4, 1), np.uint8), np.zeros((3, 4, 4, 1), np.uint8), 'not fitted')])
def test_what_cannot_be_compared(features, originals, echoes, words):
    with pytest.raises(NoisynbError, match=words): EchoSelect(features).fit(originals, echoes)

def test_numbers_have_to_agree():
    with pytest.raises(NoisynbError, match='3 originals and 2 echoes'): EchoSelect().fit(np.eye(3), np.eye(3)[:2])
