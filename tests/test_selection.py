"Selection: the hand values of the specifications, scikit-learn, brute force, and what may not change the answer"
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from sklearn.mixture import GaussianMixture

from noisynb.core import NoisynbError
from noisynb.selection import Mixture, agreement, class_quotas, fit_mixture, matched_confidence, min_max, recent_mean, small_loss, split, two_component

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10**6)
apart = [.05, .10, .02, .08, 2.50, 2.20, .06, 2.90, .12, 2.40]
overlapping = [.1, .2, .3, .35, .5, .55, .9, 1., 1.2, 1.4]


def losses_of(seed, n=60):
    "Two overlapping heaps of losses"
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < rng.uniform(.2, .8), rng.gamma(2, .1, n), rng.gamma(6, .3, n))

def reference(values, **options):
    "scikit-learn as DivideMix calls it, and the posterior of the smaller mean"
    model = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, **options)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model.fit(np.reshape(values, (-1, 1)))
    return model, model.predict_proba(np.reshape(values, (-1, 1)))[:, model.means_.argmin()]


# the mixture

def test_min_max_and_mixture_of_losses_that_lie_apart():
    scaled = min_max(apart)
    assert scaled == pytest.approx([.010417, .027778, 0, .020833, .861111, .756944, .013889, 1, .034722, .826389], abs=1e-6)
    mixture = fit_mixture(scaled)
    assert mixture.means == pytest.approx([.01794, .861111], abs=1e-6)
    assert mixture.variances == pytest.approx([.00063028, .00833661], abs=1e-8)
    assert mixture.weights == pytest.approx([.6, .4], abs=1e-6) and mixture.steps == 2
    assert two_component(scaled) == pytest.approx([1, 1, 1, 1, 0, 0, 1, 0, 1, 0], abs=1e-6)

def test_mixture_of_losses_that_overlap():
    mixture = fit_mixture(min_max(overlapping))
    assert mixture.means == pytest.approx([.179296, .785599], abs=1e-6)
    assert mixture.variances == pytest.approx([.0153, .02359], abs=1e-6)
    assert mixture.weights == pytest.approx([.597922, .402078], abs=1e-6)
    assert two_component(min_max(overlapping)) == pytest.approx([.999997, .999982, .999883, .999687, .992721, .978045, .006777, .000408, .000001, 0], abs=1e-6)

@pytest.mark.parametrize('losses', [apart, overlapping])
def test_mixture_is_that_of_scikit_learn(losses):
    values = min_max(losses)
    model, w = reference(values, random_state=0)
    low_first, mixture = model.means_.ravel().argsort(), fit_mixture(values)
    assert two_component(values) == pytest.approx(w, abs=1e-6) and mixture.steps == model.n_iter_
    for ours, theirs in (mixture.means, model.means_), (mixture.variances, model.covariances_), (mixture.weights, model.weights_):
        assert ours == pytest.approx(theirs.ravel()[low_first], abs=1e-6)

@few
@given(seeds)
def test_em_is_that_of_scikit_learn_from_the_same_start(seed):
    values = min_max(losses_of(seed))
    high = values > values.mean()
    while True: # two means by Lloyd's rule, each value to the nearer mean
        a, b = values[~high].mean(), values[high].mean()
        new = abs(values - b) < abs(values - a)
        if (new == high).all(): break
        high = new
    start = [values[~high], values[high]]
    model, w = reference(values, weights_init=[len(s)/len(values) for s in start], means_init=[[s.mean()] for s in start], precisions_init=[[[1/(s.var() + 5e-4)]] for s in start])
    mixture = fit_mixture(values)
    assume(abs(values[high].min() - (a + b)/2) > 1e-9)
    first = fit_mixture(values, steps=0)
    assume(first.means == pytest.approx([a, b])) # from the extremes Lloyd's rule may end elsewhere
    assert mixture.steps == model.n_iter_
    assert mixture.means == pytest.approx(np.sort(model.means_.ravel()), abs=1e-6)
    assert two_component(values) == pytest.approx(w, abs=1e-6)

@few
@given(seeds, st.floats(.01, 100), st.floats(-10, 10))
def test_scale_and_shift_of_the_losses_do_not_matter(seed, scale, shift):
    losses = losses_of(seed)
    assert two_component(min_max(scale*losses + shift)) == pytest.approx(two_component(min_max(losses)), abs=1e-6)

@few
@given(seeds)
def test_small_differences_count_where_losses_are_small(seed):
    losses = losses_of(seed)
    assert two_component(min_max(1e-12*losses)) == pytest.approx(two_component(min_max(losses)), abs=1e-6)

@few
@given(seeds)
def test_order_does_not_matter(seed):
    losses = losses_of(seed)
    order = np.random.default_rng(seed).permutation(len(losses))
    assert two_component(min_max(losses[order])) == pytest.approx(two_component(min_max(losses))[order], abs=1e-6)

def test_posterior_that_rises_again_and_its_guard():
    mixture, at = Mixture(np.array([.5, .5]), np.array([.2, .4]), np.array([.15**2, .05**2])), np.array([.3, .35, .4, .5, .55, .7])
    assert mixture.posterior(at) == pytest.approx([.6636, .25, .1205, .25, .6636, .99999], abs=1e-4)
    assert mixture.posterior(at, guard=True) == pytest.approx([.6636, .25, 0, 0, 0, 0], abs=1e-4)

@few
@given(st.floats(.05, .95), st.floats(0, .5), st.floats(.01, .5), st.floats(.02, .4), st.floats(.02, .4))
def test_guarded_posterior_never_rises(weight, mean, gap, sd0, sd1):
    mixture = Mixture(np.array([weight, 1 - weight]), np.array([mean, mean + gap]), np.array([sd0, sd1])**2)
    at = np.linspace(-1, 2, 301)
    guarded, plain = mixture.posterior(at, guard=True), mixture.posterior(at)
    assert (np.diff(guarded) <= 1e-12).all()
    between = (at >= mean) & (at < mean + gap)
    assert (guarded == plain)[between].all()

@pytest.mark.parametrize('losses', [[2.], [.7]*9, [0, 0], [1e9, 1e9 + 1, 1e9], np.full(100, math.log(10), np.float32) + np.float32(1e-7)*(np.arange(100, dtype=np.float32) % 5)])
def test_equal_losses_are_all_right(losses):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert (two_component(min_max(losses)) == 1).all() and (two_component(losses) == 1).all()
    with pytest.raises(NoisynbError, match='nothing to tell apart'): fit_mixture(losses)

def test_two_losses_are_two_components():
    assert two_component([0, 1]) == pytest.approx([1, 0])

@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('function', [min_max, two_component, fit_mixture, lambda v: small_loss(v, [0]*4, [2]), lambda v: split(v, [1.]*4), lambda v: split([1.]*4, v)])
def test_what_is_no_number_is_named(function, bad):
    with pytest.raises(NoisynbError, match=r'\[2\] is'): function([.1, .2, bad, .3])

@pytest.mark.parametrize('bad', [[], [[1., 2.]], 3.])
def test_what_is_no_vector_is_refused(bad):
    with pytest.raises(NoisynbError, match='one number for each'): min_max(bad)

def test_inputs_are_left_alone():
    losses, y = np.array(overlapping), np.array([0, 1]*5)
    w = two_component(min_max(losses, quantile=.5))
    split(w, losses), small_loss(losses, y, class_quotas(y, 2, .5))
    assert (losses == overlapping).all() and (y == [0, 1]*5).all()

def test_quantile_clips_the_largest():
    losses = np.r_[np.linspace(0, 1, 100), 1e6]
    assert (two_component(min_max(losses)) > .5).sum() == 100
    clipped = min_max(losses, quantile=.99)
    assert clipped == pytest.approx(np.minimum(losses, 1)) and (min_max([1, 1, 1, 5], quantile=.5) == 0).all()

def test_mean_of_the_last_epochs():
    history = [np.array([9., 9.]), np.array([0., 1.]), np.array([1., 0.])]
    assert recent_mean(history, 1).tolist() == [1, 0] and recent_mean(history, 2).tolist() == [.5, .5]
    assert recent_mean(history).tolist() == pytest.approx([10/3, 10/3])
    with pytest.raises(NoisynbError): recent_mean([])


# splits

def test_split_is_strict():
    assert split([.5, .51, .2, .9], [1, 1, 1, 1.]).tolist() == [False, True, False, True]

@pytest.mark.parametrize('w, taken', [(np.zeros(20), [0, 1]), (np.eye(20)[7], [0, 1]), (np.ones(20), range(18)), (1 - np.eye(20)[3], range(18))])
def test_an_empty_side_is_filled_by_rank(w, taken):
    losses = np.arange(20.)
    with pytest.warns(UserWarning, match='of 20 labels'): mask = split(w, losses)
    assert mask.nonzero()[0].tolist() == list(taken)
    with pytest.warns(UserWarning): assert split(w, -losses).sum() == len(taken)

@few
@given(seeds, st.integers(4, 30), st.floats(0, 1), st.floats(0, 1), st.integers(1, 2))
def test_both_sides_have_enough(seed, n, threshold, share, least):
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        mask = split(rng.random(n), rng.random(n), threshold, least, share)
    assert least <= mask.sum() <= n - least

@pytest.mark.parametrize('n', [1, 2, 3])
def test_too_few_to_split(n):
    with pytest.raises(NoisynbError, match='at least 4'): split(np.ones(n), np.ones(n))


# classes

def test_quotas_and_small_losses_of_promix():
    y, losses = [0]*5 + [1]*6 + [2], [.9, .1, .5, .3, .7, .2, .8, .4, .6, .05, 1, .95]
    quotas = class_quotas(y, 3, .5)
    assert quotas.tolist() == [2, 2, 1] and small_loss(losses, y, quotas).nonzero()[0].tolist() == [1, 3, 5, 9, 11]
    assert (class_quotas(np.repeat(range(10), 5000), 10, .7) == 3500).all()
    assert (class_quotas(np.repeat(range(100), 500), 100, .5) == 250).all()

def test_quotas_are_whole_numbers():
    assert math.ceil(50000/10*.07) == 351 # what floating point makes of it
    assert (class_quotas(np.repeat(range(10), 5000), 10, .07) == 350).all()
    assert (class_quotas(np.repeat(range(10), 5000), 10, .2 + .4*10/50) == 1400).all()
    assert (class_quotas(np.repeat(range(10), 5000), 10, .07, balanced=False) == 350).all()

def test_quotas_of_unequal_classes():
    y = np.repeat([0, 1, 3], [90, 9, 1])
    assert class_quotas(y, 4, .5).tolist() == [13, 9, 0, 1]
    assert class_quotas(y, 4, .5, balanced=False).tolist() == [45, 5, 0, 1]
    assert class_quotas(y, 4, 1).tolist() == [25, 9, 0, 1] and class_quotas(y, 4, 0).tolist() == [1, 1, 0, 1]
    for bad in -.1, 1.1, np.nan:
        with pytest.raises(NoisynbError, match='from 0 to 1'): class_quotas(y, 4, bad)

@few
@given(seeds, st.integers(1, 40), st.integers(1, 6))
def test_small_losses_by_brute_force(seed, n, c):
    rng = np.random.default_rng(seed)
    y, losses, quotas = rng.integers(0, c, n), rng.integers(0, 5, n)/4, rng.integers(0, n + 1, c)
    expected = np.zeros(n, bool)
    for j in range(c): expected[sorted(np.flatnonzero(y == j), key=lambda i: (losses[i], i))[:quotas[j]]] = True
    assert (small_loss(losses, y, quotas) == expected).all()

@few
@given(seeds, st.floats(0, 1))
def test_classes_and_examples_have_no_order(seed, share):
    rng = np.random.default_rng(seed)
    y, losses, rename, order = rng.integers(0, 5, 60), rng.random(60), rng.permutation(5), rng.permutation(60)
    mask = small_loss(losses, y, class_quotas(y, 5, share))
    assert (small_loss(losses, rename[y], class_quotas(rename[y], 5, share)) == mask).all()
    assert (small_loss(losses[order], y[order], class_quotas(y[order], 5, share)) == mask[order]).all()
    assert len(np.unique(y[mask])) == len(np.unique(y)) and mask.sum() <= 60*share + 5 + 1e-6


# inside a batch

both = pytest.mark.parametrize('array', [np.array, torch.tensor], ids=['numpy', 'torch'])

@both
def test_matched_confidence_is_strict(array):
    proba, y = array([[.995, .004, .001], [.005, .99, .005], [.02, .005, .975], [.3, .3, .4]]), array([0, 1, 2, 2])
    assert matched_confidence(proba, y, .99).tolist() == [True, False, False, False]
    assert matched_confidence(proba, y, .95).tolist() == [True, True, True, False]
    assert type(matched_confidence(proba, y)) is type(proba)

def promix(match=(True,)*4, flags=6):
    "The batch of the specification: flags, and predictions of two networks in two classes (three where they don't match)"
    one, two = np.r_[[.5]*6, .995, .999, .992, .9999], np.r_[[.5]*6, .995, .993, .9999, .999]
    first = np.stack([one, 1 - one, 0*one], 1)
    second = np.stack([two, 1 - two, 0*two], 1)
    for i, same in enumerate(match): second[6 + i] = second[6 + i] if same else second[6 + i][::-1]
    return np.arange(10) < flags, first, second

@both
@pytest.mark.parametrize('batch, added', [(promix(), [7, 8, 9]), (promix((True, True, True, False)), [6, 7, 8]), (promix(flags=9), []), (promix(flags=10), []), (promix((False,)*4), [])])
def test_agreement_of_promix(array, batch, added):
    chosen, first, second = map(array, batch)
    got = agreement(chosen, first, second, .99, .9)
    assert np.flatnonzero(got & ~chosen).tolist() == added and (got & chosen == chosen).all()
    assert (agreement(chosen, second, first, .99, .9) == got).all() and type(got) is type(chosen)
    assert (chosen == array(batch[0])).all()

def test_cap_of_a_batch():
    sure = np.stack([np.full(256, .999), np.full(256, .001)], 1)
    assert agreement(np.zeros(256, bool), sure, sure).sum() == 230 and agreement(np.zeros(256, bool), sure, sure)[:230].all()
    assert agreement(np.zeros(100, bool), sure[:100], sure[:100], cap=.29).sum() == 29 # 28 in floating point
    assert agreement(np.arange(256) < 240, sure, sure).sum() == 240

@few
@given(seeds, st.integers(1, 30), st.floats(.34, .6), st.floats(.5, 1))
def test_agreement_by_brute_force(seed, n, threshold, cap):
    rng = np.random.default_rng(seed)
    a, b, chosen = rng.dirichlet([1]*3, n), rng.dirichlet([1]*3, n), rng.random(n) < .3
    b[::3] = a[::3]
    cap = round(cap, 3)
    fits = [i for i in range(n) if not chosen[i] and min(a[i].max(), b[i].max()) > threshold and a[i].argmax() == b[i].argmax()]
    room = max(round(cap*1000)*n//1000 - chosen.sum(), 0)
    expected = chosen.copy()
    expected[sorted(fits, key=lambda i: (-(a[i].max() + b[i].max()), i))[:room]] = True
    assert (agreement(chosen, a, b, threshold, cap) == expected).all()

def test_a_threshold_of_one_takes_nothing():
    sure = np.eye(3)
    assert not matched_confidence(sure, np.arange(3), 1).any() and not agreement(np.zeros(3, bool), sure, sure, 1).any()
