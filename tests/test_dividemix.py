"DivideMix and SMR: the hand values of the specification, what may not change the answer, and the ends of the range"
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.mixture import GaussianMixture
from torch.nn import functional as F

from noisynb import augment
from noisynb.augment import mix, mixup
from noisynb.core import NoisynbError, torch_generator
from noisynb.methods import dividemix as module, make, methods
from noisynb.methods.base import load
from noisynb.methods.dividemix import (DivideMix, advise_options, co_guess, co_refine, divide, epoch_kind, mixup_loss, negative_entropy,
                                       noise_seen, prior_gap, ramp, recipes, semi_supervised_loss, settings as table, sharpen)
from noisynb.methods.smr import SMR
from noisynb.selection import min_max, split, two_component
from noisynb.training import Rate, Schedule
from toys import Untrained, gone_on, stripes

few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10**6)
tensor = lambda rows: torch.tensor(rows, dtype=torch.float64)
near = lambda a, b, tolerance=1e-6: torch.testing.assert_close(a, tensor(b), rtol=0, atol=tolerance)

y, w = torch.arange(3), tensor([.9, .6, .75])
first, second = tensor([[.7, .2, .1], [.5, .3, .2], [.1, .1, .8]]), tensor([[.5, .4, .1], [.6, .3, .1], [.2, .2, .6]])
own = tensor([[[2, 0, 0], [0, 1, 0], [0, 0, 0]], [[1, 0, 0], [0, 2, 0], [0, 0, 1]]]).softmax(-1)
peer = tensor([[[2, 1, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [0, 1, 0], [1, 0, 0]]]).softmax(-1)
x_logits, u_logits = tensor([[1, 0, -1], [0, .5, 0], [-.5, 0, 2]]), tensor([[.3, 0, -.3], [0, 1, 0], [.2, .2, .2]])
permutation = torch.tensor([2, 0, 1])

def rows_of(seed, n=7, C=5):
    return torch.rand(n, C, dtype=torch.float64, generator=torch_generator(seed, 'rows')).add(1e-3).log().mul(3).softmax(1)


# hand values

def test_d1_losses_to_split():
    losses = [.05, .10, .02, .08, 2.50, 2.20, .06, 2.90, .12, 2.40]
    w = two_component(min_max(losses))
    assert w == pytest.approx([1, 1, 1, 1, 0, 0, 1, 0, 1, 0], abs=1e-6)
    assert split(w, losses).nonzero()[0].tolist() == [0, 1, 2, 3, 6, 8]

def test_d2_co_refine():
    mean = (first + second)/2
    near(co_refine(y, w, mean, 1), [[.96, .03, .01], [.22, .72, .06], [.0375, .0375, .925]])
    near(co_refine(y, w, mean), [[.998916, .000976, .000108], [.084853, .908836, .006311], [.001638, .001638, .996724]])
    near(co_refine(y, torch.ones(3), mean), np.eye(3).tolist(), 0)
    near(co_refine(y, torch.zeros(3), mean), sharpen(mean).tolist(), 0)

def test_d3_co_guess():
    near(co_guess(*own, *peer, temperature=1), [[.590419, .224128, .185453], [.171438, .590385, .238177], [.363681, .272637, .363681]])
    near(co_guess(*own, *peer), [[.804659, .115953, .079389], [.067616, .801876, .130508], [.390321, .219357, .390321]])

def test_d4_mixed_targets():
    near(mix(co_refine(y, w, (first + second)/2), .8, permutation),
         [[.799461, .001108, .199431], [.267665, .727264, .005071], [.018281, .183078, .798641]])

def test_d5_losses():
    logits, targets = torch.cat([x_logits, u_logits]), torch.cat([co_refine(y, w, (first + second)/2), co_guess(*own, *peer)])
    near(logits.softmax(1).mean(0), [.33146, .340127, .328413])
    total, parts = semi_supervised_loss(logits, targets, 3, 25*ramp(14, 10))
    near(parts, [.484288, .033563, .00011026])
    near(total, .694166)

@pytest.mark.parametrize('time, value', [(5, 0), (10, 0), (10.5, .78125), (14, 6.25), (18, 12.5), (26, 25), (40, 25)])
def test_d5_ramp(time, value): assert 25*ramp(time, 10) == value

def test_d6_negative_entropy():
    near(negative_entropy(x_logits), [-.832396, -1.068445, -.587629])
    near(negative_entropy(x_logits).mean(), -.829490)

def test_d7_and_s1_warm_up():
    near(F.cross_entropy(x_logits, y, reduction='none'), [.407606, .794377, .196734])
    near(mixup_loss(x_logits, y, permutation, 1.), .466239)
    near(mixup_loss(x_logits, y, permutation, 0.), 1.966239)
    near(mixup_loss(x_logits, y, permutation, .7), .916239)
    soft = .7*F.one_hot(y, 3) + .3*F.one_hot(y[permutation], 3)
    torch.testing.assert_close(mixup_loss(x_logits, y, permutation, .7), F.cross_entropy(x_logits, soft.double()))

@pytest.mark.parametrize('warmup, every, epochs', [(10, 30, [29, 59, 89, 119, 149, 179, 209, 239, 269, 299]), (30, 30, [59, 89, 119, 149, 179, 209, 239, 269, 299]),
                                                   (30, 15, [44, 59, 74, 89, 104, 119, 134, 149, 164, 179, 194])])
def test_s2_recalibration_epochs(warmup, every, epochs):
    last = 301 if every == 30 else 200
    assert [e for e in range(last) if epoch_kind(e, warmup, every) == 'recalibration'] == epochs

def test_s2_kinds():
    assert [epoch_kind(e, 10, 30) for e in (9, 10, 29, 30, 299, 300)] == ['warm-up', 'divide', 'recalibration', 'divide', 'recalibration', 'divide']
    assert not any(epoch_kind(e, 10) == 'recalibration' for e in range(301))
    assert epoch_kind(299, 10, 30, until=299) == 'divide' # a run of 300 epochs does not end on all labels
    assert epoch_kind(10, 10, 11) == 'divide' # nor does the first epoch after the warm-up recalibrate

def test_s3_mean_of_the_larger_share():
    "The share of a row's own label in its mixed target is lam: from `mixup` itself, over many draws"
    g, eye = torch_generator(0, 'mixup'), torch.eye(9, dtype=torch.float64)
    draws = [float(mixup(eye, eye, g, 4.)[1].diagonal().min()) for _ in range(4000)]
    assert np.mean(draws) == pytest.approx(1/2 + math.comb(8, 4)/2**9, abs=5*np.std(draws)/4000**.5)


# what has to hold for any numbers

@few
@given(seeds, st.floats(.05, 3))
def test_targets_are_distributions(seed, temperature):
    p, q, r = (rows_of(seed + i) for i in range(3))
    labels, trust = torch.arange(7) % 5, rows_of(seed + 3)[:, 0]
    refined, guessed = co_refine(labels, trust, p, temperature), co_guess(p, q, r, temperature=temperature)
    _, mixed = mixup(p, refined, torch_generator(seed, 'mix'))
    for t in (sharpen(p, temperature), refined, guessed, mixed):
        assert (t >= 0).all()
        torch.testing.assert_close(t.sum(1), torch.ones(7, dtype=torch.float64))
    assert (sharpen(p, temperature).argmax(1) == p.argmax(1)).all()
    torch.testing.assert_close(sharpen(p, 1), p)

@few
@given(seeds)
def test_order_of_views_and_networks(seed):
    a, b, c, d = (rows_of(seed + i) for i in range(4))
    torch.testing.assert_close(co_guess(a, b, c, d), co_guess(c, d, b, a))
    labels, trust = torch.arange(7) % 5, d[:, 0]
    torch.testing.assert_close(co_refine(labels, trust, (a + b)/2), co_refine(labels, trust, (b + a)/2), rtol=0, atol=0)
    torch.testing.assert_close(mix(a, 1., torch.randperm(7, generator=torch_generator(seed, 'order'))), a, rtol=0, atol=0)

def test_sharpening_survives_small_temperatures_in_single_precision():
    q = torch.full((1, 1000), 1e-3)
    q[0, 7] = 1.1e-3
    assert sharpen(q, .01)[0, 7] > .9
    with pytest.raises(NoisynbError, match='temperature is 0'): sharpen(q, 0)

@few
@given(seeds)
def test_w_does_not_depend_on_scale_and_order(seed):
    rng = np.random.default_rng(seed)
    losses = np.where(rng.random(40) < .5, rng.gamma(2, .1, 40), rng.gamma(6, .3, 40))
    order, w = rng.permutation(40), two_component(min_max(losses))
    assert two_component(min_max(3.7*losses + 2)) == pytest.approx(w, abs=1e-7)
    assert two_component(min_max(losses[order])) == pytest.approx(w[order], abs=1e-7)

def test_losses_are_finite_where_probabilities_vanish():
    "Trap: log 0 in the penalty and in the prior term"
    logits = torch.tensor([[200., -200, 0], [200, -200, 0]], requires_grad=True)
    total, parts = semi_supervised_loss(logits, torch.eye(3)[:2], 1, 25.)
    (total + negative_entropy(logits).mean()).backward()
    assert parts.isfinite().all() and logits.grad.isfinite().all()
    assert semi_supervised_loss(logits.bfloat16(), torch.eye(3)[:2], 1, 1.)[0].dtype == torch.float32

def test_prior():
    log_p = x_logits.log_softmax(1)
    share = log_p.exp().mean(0)
    near(prior_gap(log_p), float(sum(1/3*math.log(1/3/s) for s in share.tolist())))
    near(prior_gap(torch.full((2, 3), 1/3, dtype=torch.float64).log()), 0.)

def test_loss_of_labelled_rows_alone():
    "Where the unlabelled rows have no weight they can be left out"
    total, parts = semi_supervised_loss(x_logits, torch.eye(3, dtype=torch.float64), 3, 25.)
    assert parts[1] == 0
    near(total, float(F.cross_entropy(x_logits, y) + prior_gap(x_logits.log_softmax(1))))


# what is seen of the noise

def test_noise_seen_by_hand():
    y, predicted = [0, 1, 2, 1, 1, 2, 0, 3], [0, 0, 0, 0, 1, 2, 3, 3] # of four with prediction 0: wrong labels 1, 2, 1; of two with 3: wrong label 0
    rate, spread = noise_seen(y, np.eye(4)[predicted])
    assert rate == 4/8 and spread == (6/2 - 1)/2
    assert noise_seen([0, 1, 1, 0], np.eye(2)[[0, 1, 0, 1]]) == (.5, 1.) # with two classes there is nothing to spread over
    assert noise_seen([0, 1, 2], np.eye(3)) == (0., 1.)
    halves = np.array([[.9, .1, 0], [.8, .2, 0], [.2, .45, .35], [.3, .3, .4]])
    assert noise_seen([0, 1, 2, 2], halves)[0] == 1/2 and noise_seen([0, 1, 2, 2], halves, sure=1.)[0] == 2/4

@few
@given(seeds)
def test_spread_tells_pair_from_symmetric_noise(seed):
    rng, C = np.random.default_rng(seed), 10
    true, wrong = rng.integers(0, C, 3000), rng.random(3000) < .45
    symmetric, pair = ((true + wrong*rng.integers(1, C, 3000)) % C, (true + wrong) % C)
    seen = [noise_seen(y, np.eye(C)[true]) for y in (symmetric, pair)]
    assert seen[0][1] > .9 and seen[1][1] == 0
    assert [advise_options(*s, C)['lambda_u'] for s in seen] == [10, 0]

@pytest.mark.parametrize('name, C, rate, spread', [('cifar10-symmetric-20', 10, .18, 1), ('cifar10-symmetric-50', 10, .45, 1), ('cifar10-symmetric-80', 10, .72, 1), ('cifar10-symmetric-90', 10, .81, 1),
    ('cifar10-asymmetric-40', 10, .2, 0), ('cifar100-symmetric-50', 100, .495, 1), ('cifar100-symmetric-90', 100, .891, 1)])
def test_advice_and_the_table_agree_where_lambda_is_zero_and_on_the_threshold(name, C, rate, spread):
    weight, threshold = table[name]['lambda_u'], table[name]['p_threshold']
    advice = advise_options(rate, spread, C)
    assert (advice['lambda_u'] > 0) == (weight > 0) and advice['lambda_u'] <= weight and advice['p_threshold'] == threshold
    assert advise_options(rate, .1, C)['lambda_u'] == 0 and advise_options(.1, spread, C)['lambda_u'] == 0


# the methods

def small(cls=DivideMix, **options):
    return cls(**dict(network='small-cnn', network_options=dict(widths=(4, 8)), epochs=4, batch_size=8, device='cpu') | options)

class Bench(Untrained, DivideMix): pass

def bench(X, y, **options):
    "State, options, images and codes of a method before its first epoch"
    parts = small(Bench, **dict(warmup=1) | options).fit(X, y).parts
    parts[0].settled = dict(lambda_u=5., p_threshold=.5)
    return parts

def weights(network): return {k: v.clone() for k, v in network.state_dict().items()}

def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)

rate = Rate(Schedule(.02, 'constant'), 0., .1, 10)

def one_epoch(parts, k, mask):
    sides = torch.linspace(.2, 1, len(mask)), mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
    return module.mixmatch_epoch(*parts, k, sides, None, lambda done: 2.5, rate)

def test_the_peer_does_not_change():
    X, y, _ = stripes()
    parts, mask = bench(X, y, recipe='published'), torch.arange(48) % 3 > 0
    before = [weights(n) for n in parts[0].networks]
    one_epoch(parts, 0, mask)
    after = [weights(n) for n in parts[0].networks]
    assert same(before[1], after[1]) and not same(before[0], after[0])
    assert after[0]['trunk.1.num_batches_tracked'] == 5*4 # guessing in training mode moves the statistics: four views and the mixed batch, four steps

def test_networks_and_splits_swapped():
    X, y, _ = stripes()
    mask = torch.arange(48) % 3 > 0
    a, b = bench(X, y, recipe='published'), bench(X, y, recipe='published')
    for name in ('networks', 'optimizers', 'generators'): getattr(b[0], name).reverse()
    rows = one_epoch(a, 0, mask), one_epoch(b, 1, mask)
    assert rows[0] == rows[1] and same(weights(a[0].networks[0]), weights(b[0].networks[1]))

def test_each_network_gets_the_split_of_the_other(monkeypatch):
    X, y, _ = stripes()
    parts, got = bench(X, y, recipe='published', loss_epochs=2), {}
    losses = [torch.linspace(0, 1, 48)**2, torch.linspace(1, 0, 48)**3] # of network A and of network B
    monkeypatch.setattr(module, 'losses_and_proba', lambda *a: (losses[a[4]], torch.full((48, 3), 1/3)))
    monkeypatch.setattr(module, 'mixmatch_epoch', lambda *a: got.update({a[4]: a[5]}) or dict(loss=0., images=1))
    for _ in range(3): row = module.divided_epoch(*parts, lambda done: 0., rate)
    for k in (0, 1):
        w, right = divide(losses[1 - k].numpy(), [])
        assert got[k][0].tolist() == pytest.approx(w, abs=1e-6)
        assert got[k][1].tolist() == right.nonzero()[0].tolist() and sorted([*got[k][1].tolist(), *got[k][2].tolist()]) == list(range(48))
    assert [len(h) for h in parts[0].histories] == [2, 2] and row['n_clean'] == (len(got[0][1]) + len(got[1][1]))/2
    assert got[0][1].tolist() != got[1][1].tolist()

@pytest.mark.parametrize('right, wrong, size', [(30, 18, 8), (33, 3, 8), (2, 46, 8), (46, 2, 64), (16, 16, 16)])
def test_steps_and_rows_of_an_epoch(monkeypatch, right, wrong, size):
    "As many steps as labelled batches; fewer unlabelled ones than a batch come round again"
    X, y, _ = stripes(right + wrong)
    parts, seen = bench(X, y, recipe='published', batch_size=size), []
    real = module.semi_supervised_loss
    monkeypatch.setattr(module, 'semi_supervised_loss', lambda logits, t, n, *rest: seen.append((len(logits), n)) or real(logits, t, n, *rest))
    one_epoch(parts, 0, torch.arange(right + wrong) < right)
    assert len(seen) == math.ceil(right/size)
    assert [n for _, n in seen] == [2*min(size, right - i*size) for i in range(len(seen))]
    assert all(n < rows <= n + 2*size for rows, n in seen)

def test_a_step_against_a_plain_rebuild(monkeypatch):
    "One epoch in published mode, written once more without the module's parts, from the same views, shares and orders"
    X, y, _ = stripes()
    parts, mask, steps = bench(X, y, recipe='published', weight_decay=5e-4), torch.arange(48) % 3 > 0, []
    s, _, images, codes = parts
    real_views, real_mixup = augment.weak, module.mixup
    def views(*a): steps.append([real_views(*a)]); return steps[-1][0]
    def mixing(x, t, g, alpha):
        state = g.get_state()
        out = real_mixup(x, t, g, alpha)
        ids, _ = real_mixup(torch.eye(len(x), dtype=torch.float64), t, g.set_state(state), alpha) # row i: lam at i, 1 - lam at its partner
        steps[-1].append(ids.float())
        return out
    monkeypatch.setattr(augment, 'weak', views)
    monkeypatch.setattr(module, 'mixup', mixing)
    import copy
    net, peer = (copy.deepcopy(n) for n in s.networks)
    real_batches, rows = module.batches, []
    monkeypatch.setattr(module, 'batches', lambda *a, **k: rows.append(real_batches(*a, **k)) or rows[-1])
    one_epoch(parts, 0, mask)
    labelled, unlabelled = rows[0], [b for found in rows[1:] for b in found]
    w, velocity = torch.linspace(.2, 1, 48), {}
    for (pixels, mixing), x_rows, u_rows in zip(steps, labelled, unlabelled):
        v, b, u = images.float(pixels), len(x_rows), len(u_rows)
        x1, x2, u1, u2 = v[:b], v[b:2*b], v[2*b:2*b + u], v[2*b + u:]
        net.train(), peer.eval()
        with torch.no_grad():
            q_u = (net(u1).softmax(1) + net(u2).softmax(1) + peer(u1).softmax(1) + peer(u2).softmax(1))/4
            q_x = (net(x1).softmax(1) + net(x2).softmax(1))/2
            q_x = w[x_rows, None]*torch.eye(3)[codes[x_rows]] + (1 - w[x_rows, None])*q_x
            t_x, t_u = (q**2/(q**2).sum(1, keepdim=True) for q in (q_x, q_u))
            t = mixing @ torch.cat([t_x, t_x, t_u, t_u])
            x = (mixing @ v.flatten(1)).view_as(v)
        p = net(x).softmax(1)
        loss_x = -(t[:2*b]*p[:2*b].log()).sum(1).mean()
        loss_u = ((p[2*b:] - t[2*b:])**2).mean()
        gap = (1/3*(1/3/p.mean(0)).log()).sum()
        for name, g in zip(dict(net.named_parameters()), torch.autograd.grad(loss_x + 2.5*loss_u + gap, list(net.parameters()))):
            q = dict(net.named_parameters())[name]
            g = g + 5e-4*q.detach()
            velocity[name] = g if name not in velocity else .9*velocity[name] + g
            with torch.no_grad(): q -= .02*velocity[name]
    assert len(steps) == 4
    for (name, ours), theirs in zip(weights(s.networks[0]).items(), weights(net).values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)

@pytest.mark.parametrize('cls', [DivideMix, SMR])
@pytest.mark.parametrize('options', [{}, dict(recipe='published', warmup=1, ramp=2), dict(guess_mode='eval', lambda_u=10, warmup_loss='penalty'), dict(loss_epochs=5, drop_last=True)])
def test_contract(cls, options, tmp_path):
    X, y, _ = stripes()
    model = small(cls, **options)
    params, kept = model.get_params(), X.copy()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model.fit(X, y)
    assert str(model.get_params()) == str(params) and (X == kept).all()
    assert model.label_quality_.shape == (48,) and ((0 <= model.label_quality_) & (model.label_quality_ <= 1)).all()
    assert model.quality_threshold_ in (.5, .6) and set(model.corrected_labels_) <= set(model.classes_)
    assert [row['epoch'] for row in model.history_] == [1, 2, 3, 4] and model.history_[0]['kind'] == 'warm-up' and model.history_[-1]['kind'] == 'divide'
    assert all(math.isfinite(v) for row in model.history_ for v in row.values() if not isinstance(v, str))
    again = load(model.save(tmp_path/'model.safetensors'))
    assert (again.predict_proba(X) == model.predict_proba(X)).all() and again.options_['recipe'] == model.options_['recipe']

@pytest.mark.parametrize('cls', [DivideMix, SMR])
def test_wrong_labels_are_found(cls):
    X, y, true = stripes(150, wrong=.4, seed=3)
    model = cls(epochs=10, batch_size=8, warmup=.3, device='cpu').fit(X, y)
    X_new, _, new = stripes(60, seed=4)
    assert model.score(X_new, new) > .95 and (model.corrected_labels_ == true).mean() > .9
    flagged = model.label_quality_ < model.quality_threshold_
    assert (flagged == (y != true)).mean() > .75 and set(model.suspects()) == set(flagged.nonzero()[0])

def test_same_seed_same_bits_and_nothing_global():
    X, y, _ = stripes()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    a, b, c = small().fit(X, y), small().fit(X, y), small(random_state=1).fit(X, y)
    assert (a.label_quality_ == b.label_quality_).all() and (a.predict_proba(X) == b.predict_proba(X)).all()
    assert (a.predict_proba(X) != c.predict_proba(X)).any()
    assert torch.equal(torch_state, torch.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()

@pytest.mark.parametrize('cls, stop', [(DivideMix, 1), (DivideMix, 3), (SMR, 3)])
def test_going_on_after_a_stop(cls, stop, tmp_path):
    "Everything that training changes is in the checkpoint: same history, same weights as without the stop"
    gone_on(partial(small, cls, epochs=6, loss_epochs=3, recalibrate=3), stop, str(tmp_path/'run'))

def test_clean_labels_never_go_in():
    "What is learnt depends on images and given labels alone, and strings will do"
    X, y, _ = stripes()
    names = np.array(['ant', 'bee', 'cat'])
    a, b = small().fit(X, y), small().fit(X, names[y])
    assert (names[a.predict(X)] == b.predict(X)).all() and (a.label_quality_ == b.label_quality_).all()

@pytest.mark.parametrize('n, C, wrong', [(12, 2, .3), (48, 3, 0.), (48, 3, 1.), (4, 2, 0.)])
def test_ends_of_the_range(n, C, wrong):
    "Two classes, fewer images than a batch, no wrong labels, wrong labels only"
    X, y, _ = stripes(n, C, wrong)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = small(epochs=3, batch_size=64).fit(X, y)
    assert np.isfinite(model.label_quality_).all() and len(model.history_) == 3

def test_signs_of_failure():
    X, y, _ = stripes()
    codes, rows = torch.from_numpy(y), torch.arange(48)
    proba = [torch.eye(3)[torch.where(codes == 2, 1, codes)], torch.eye(3)[codes]] # one network never says 2
    lost = module.signs_of_failure(codes, [proba[0], proba[0]], [rows, rows[codes == 0]])
    assert lost['least_predicted'] == 0 and lost['purity_proxy'] == pytest.approx((float((codes != 2).float().mean()) + 1)/2)
    assert module.signs_of_failure(codes, [proba[1], proba[1]], [rows, rows]) == dict(purity_proxy=1., least_predicted=1.)

def test_equal_losses_fill_the_empty_side():
    "Traps: all losses equal is no error, and a side without examples gets some"
    with pytest.warns(UserWarning, match='largest loss are taken for wrong'): w, right = divide(np.full(20, .7), [])
    assert (w == 1).all() and 2 <= (~right).sum() <= 4

def test_a_loss_that_is_no_number_is_an_error():
    X, y, _ = stripes()
    parts = bench(X, y)
    with torch.no_grad(): parts[0].networks[1].head.bias[0] = math.nan
    with pytest.raises(NoisynbError, match='losses.* is nan'): module.divided_epoch(*parts, lambda done: 0., rate)

def test_a_class_of_large_losses_keeps_its_right_labels():
    "Each class by itself, against scikit-learn's mixture of that class; a class of few examples goes with all"
    rng = np.random.default_rng(0)
    means, sizes = [(.1, .8), (1.2, 2.), (.1, 2.)], [(60, 40), (60, 40), (6, 4)] # right labels of the second class lie above wrong ones of the first
    losses = np.concatenate([rng.normal(m, .05, n) for pair in zip(means, sizes) for m, n in zip(*pair)])
    y, right = np.repeat([0, 1, 2], [100, 100, 10]), np.concatenate([np.repeat([True, False], pair) for pair in sizes])
    together, apart = divide(losses, []), divide(losses, [], y=y)
    assert not together[1][y == 1][:60].any() and (apart[1] == right).all()
    values, few = min_max(losses), y == 2
    for c in 0, 1:
        v = values[y == c, None]
        mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, means_init=[v.min(0), v.max(0)]).fit(v)
        assert (apart[0][y == c] > .5).tolist() == (mixture.predict(v) == mixture.means_.argmin()).tolist()
    assert (apart[0][few] == together[0][few]).all()

def test_by_class_is_what_the_method_does(monkeypatch):
    X, y, _ = stripes()
    real, seen = module.divide, []
    monkeypatch.setattr(module, 'divide', lambda *args: seen.append(args[5]) or real(*args))
    small(by_class=True).fit(X, y)
    assert seen and all((codes == y).all() for codes in seen)
    seen.clear()
    small(by_class=False).fit(X, y)
    assert seen and all(codes is None for codes in seen)

def test_lean_epochs_leave_unlabelled_rows_out(monkeypatch):
    X, y, _ = stripes()
    real, seen = module.semi_supervised_loss, []
    monkeypatch.setattr(module, 'semi_supervised_loss', lambda logits, t, n, *rest: seen.append(len(logits) - n) or real(logits, t, n, *rest))
    small(lambda_u=0.).fit(X, y)
    assert seen and not any(seen)
    small(lambda_u=0., skip_unweighted=False).fit(X, y)
    assert seen[-1]

def test_subset_is_even():
    X, y, _ = stripes(60)
    y = np.r_[np.zeros(40, int), np.ones(15, int), np.full(5, 2)]
    rows = module.rows_of_epoch(torch.from_numpy(y), torch_generator(0, 'rows'), 30)
    assert np.bincount(y[rows]).tolist() == [10, 10, 5]
    assert small(guess_mode='eval', subset=30).fit(X, y).label_quality_.shape == (60,)

def test_smr_kinds_of_epochs():
    X, y, _ = stripes()
    kinds = [row['kind'][0] for row in small(SMR, epochs=10, recipe='small', warmup=2, recalibrate=3).fit(X, y).history_]
    assert ''.join(kinds) == 'wwdddrddrd' # epochs 6 and 9; the last is never one
    assert small(SMR, epochs=9, warmup=2, recalibrate=3).fit(X, y).history_[-1]['kind'] == 'divide'
    assert {r['kind'] for r in small(epochs=9).fit(X, y).history_} == {'warm-up', 'divide'}

def test_options():
    model = small(setting='cifar10-symmetric-90', recipe='published', epochs=None, batch_size=None)
    options = model._resolve(100)
    assert (options['epochs'], options['batch_size'], options['warmup'], options['lambda_u'], options['p_threshold']) == (300, 64, 10, 50., .6)
    assert [DivideMix()._resolve(n)['recipe'] for n in (4_999, 5_000, 19_999, 20_000)] == ['small', 'medium', 'medium', 'fast']
    assert options['loss_epochs'] == 5 and DivideMix(setting='cifar100-asymmetric-40')._resolve(100)['warmup_loss'] == 'penalty' and SMR(setting='cifar100-asymmetric-40')._resolve(100)['warmup_loss'] == 'mixup'
    assert SMR(recipe='published')._resolve(10)['batch_size'] == 128 and SMR(recipe='published')._resolve(10)['recalibrate'] == 30
    assert all(set(r) == set(recipes['published']) for r in [*recipes.values(), *SMR.recipes.values()])
    assert {'dividemix', 'smr'} <= set(methods) and isinstance(make('smr', recipe='fast'), SMR)

@pytest.mark.parametrize('wrong, message', [(dict(recipe='smal'), "did you mean 'small'"), (dict(setting='cifar10'), 'no setting'), (dict(guess_mode='often'), 'no guess_mode'), (dict(warmup_loss='mix'), 'no warmup_loss'),
    (dict(lambda_u=-1), 'lambda_u is -1'), (dict(p_threshold='much'), 'p_threshold'), (dict(warmup=4), 'of which 4 are warm-up'), (dict(subset=10), 'subset'), (dict(warmup=-.1), 'warmup is'), (dict(temperature=0), 'temperature is 0'),
    (dict(alpha=0), 'alpha is 0'), (dict(loss_epochs='auto'), "loss_epochs is 'auto'"), (dict(loss_epochs=1.5), 'loss_epochs is 1.5'), (dict(schedule_options=dict(warmpu=.1)), "did you mean 'warmup'")])
def test_mistakes(wrong, message):
    X, y, _ = stripes()
    model = small(**wrong)
    params = str(model.get_params())
    with pytest.raises(NoisynbError, match=message): model.fit(X, y)
    assert str(model.get_params()) == params

def test_embeddings_are_refused():
    with pytest.raises(NoisynbError, match='embeddings'): small().fit(np.zeros((10, 4), np.float32), np.arange(10) % 2)

@pytest.mark.parametrize('cls, recipe, options', [(SMR, 'animal10n', dict(epochs=5, recalibrate=3)), (SMR, 'animal10n', {}),
    (DivideMix, 'clothing1m', dict(subset=12, resize=36, crop=28)), (SMR, 'clothing1m', dict(subset=12, recalibrate=3)), (DivideMix, 'webvision50', {}), (SMR, 'webvision50', dict(recalibrate=3))])
def test_recipes_of_large_sets_on_a_folder(tmp_path, cls, recipe, options):
    "Images in files, colour, 32 pixels: the recipes with a small network"
    from PIL import Image
    from noisynb.datasets import load as load_data
    rng = np.random.default_rng(0)
    for name, channel in ('bee', 0), ('cat', 2):
        (tmp_path/name).mkdir()
        for i in range(12):
            picture = rng.integers(0, 80, (32, 32, 3), dtype=np.uint8)
            picture[..., channel] += 120
            Image.fromarray(picture).save(tmp_path/name/f'{i}.png')
    split = load_data(str(tmp_path), size=32).train
    wanted = dict(network='small-cnn', network_options=dict(widths=(4, 8)), epochs=4, warmup=1, batch_size=8, device='cpu', resize=0, crop=0) | options
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = cls(recipe=recipe, **wanted).fit(split.images, split.labels)
    kinds = [row['kind'] for row in model.history_]
    assert kinds[0] == 'warm-up' and kinds[-1] == 'divide' and ('recalibration' in kinds) == (cls is SMR and 'recalibrate' in options)
    assert model.label_quality_.shape == (24,) and model.predict(split.images.rows(slice(3))).shape == (3,)
    assert model.options_['learning_rate'] == cls.recipes[recipe]['learning_rate']
    assert model.architecture_['size'] == options.get('crop', 32) and tuple(model.image_shape_) == (options.get('resize', 32),)*2 + (3,)

@pytest.mark.parametrize('recipe, sides', [('clothing1m', (256, 224)), ('webvision50', (320, 299)), ('published', (0, 0))])
def test_sides_of_large_photographs(recipe, sides): assert all((r[recipe]['resize'], r[recipe]['crop']) == sides for r in (DivideMix.recipes, SMR.recipes))
