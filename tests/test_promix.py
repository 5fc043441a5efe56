"ProMix: the hand values of the specification, what has to hold for any numbers, and the ends of the range"
import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from noisynb.augment import low_frequency, mix, region
from noisynb.core import NoisynbError, torch_generator
from noisynb.methods import make, methods, promix as module
from noisynb.methods.base import load
from noisynb.methods.promix import (Pair, ProMix, advise, debias, follow, guess, negative_entropy, ramp, recipes,
                                    rest_weight, select, soft_cross_entropy, target_codes)
from noisynb.selection import class_quotas, small_loss
from noisynb.training import Rate, Schedule
from toys import Untrained, gone_on, stripes

few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10**6)
tensor = lambda rows: torch.tensor(rows, dtype=torch.float64)
near = lambda a, b, tolerance=1e-6: torch.testing.assert_close(torch.as_tensor(a, dtype=torch.float64), tensor(b), rtol=0, atol=tolerance)

pi, z, y = tensor([.5, .3, .2]), tensor([[1, 0, -1], [0, .5, 0], [2, 2, 0]]), torch.arange(3)
eye, permutation = torch.eye(3, dtype=torch.float64), torch.tensor([2, 0, 1])
flags = lambda *on, n=10: torch.tensor([i in on for i in range(n)])

def drawn(seed, n=9, C=4):
    return 4*torch.randn(n, C, dtype=torch.float64, generator=torch_generator(seed, 'logits'))


# hand values

def test_p1_chosen_by_loss():
    labels = np.array([0]*5 + [1]*6 + [2])
    losses = [.9, .1, .5, .3, .7, .2, .8, .4, .6, .05, 1, .95]
    assert np.flatnonzero(small_loss(losses, labels, class_quotas(labels, 3, .5))).tolist() == [1, 3, 5, 9, 11]
    for C, rho, quota in (10, .7, 3500), (100, .5, 250), (10, .07, 350): # the last is 351 in floating point (trap 9)
        assert set(class_quotas(np.arange(50_000) % C, C, rho)) == {quota}

def test_p2_shifted_logits():
    near(debias(z, pi, .8), [[.445482, -.963178, -2.28755], [-.554518, -.463178, -1.28755], [1.445482, 1.036822, -1.28755]])
    near(guess(z, pi), [[.544879, .301637, .153484], [.179779, .446032, .374189], [.358875, .540035, .10109]])
    assert z.argmax(1).tolist() == [0, 1, 0] and guess(z, pi).argmax(1).tolist() == [0, 1, 1]
    near(soft_cross_entropy(z, eye), [.407606, .794377, 2.758624])
    near(soft_cross_entropy(debias(z, pi, .8), eye), [.26964, .854934, 3.280901])

def test_p3_matched_confidence():
    p = tensor([[.995, .004, .001], [.005, .99, .005], [.02, .005, .975], [.3, .3, .4]])
    labels = torch.tensor([0, 1, 2, 2])
    stage = lambda tau: select([flags(n=4)]*2, [p, p], labels, tau)[0].tolist()
    assert stage(.99) == [2, 0, 0, 0] and stage(.95) == [2, 2, 2, 0] # strictly above

@pytest.mark.parametrize('base, other, added', [(range(6), None, [7, 8, 9]), (range(6), 9, [6, 7, 8]), (range(9), None, [])])
def test_p4_agreement(base, other, added):
    first, second = torch.full((10,), .5), torch.full((10,), .5)
    first[6:], second[6:] = torch.tensor([.995, .999, .992, .9999]), torch.tensor([.995, .993, .9999, .999])
    rows = lambda best, where: torch.stack([torch.where(torch.tensor(where) == c, best, (1 - best)/2) for c in range(3)], 1).double()
    p, q = rows(first, [0]*10), rows(second, [1 if i == other else 0 for i in range(10)])
    stages = select([flags(*base)]*2, [p, q], torch.full((10,), 2), .99, .9)
    for stage in stages: assert (stage == 3).nonzero()[:, 0].tolist() == added

def test_p4_cap_of_a_full_batch():
    sure = torch.cat([torch.full((256, 1), .9999), torch.full((256, 1), .0001)], 1).double()
    stage, _ = select([flags(n=256)]*2, [sure, sure], torch.ones(256, dtype=int), .99, .9)
    assert (stage == 3).sum() == 230

def test_p5_target_codes():
    shares = torch.eye(3)[[1, 2, 0]]
    assert target_codes(y, torch.tensor([1, 0, 2]), shares).tolist() == [0, 2, 2]
    assert target_codes(y, torch.tensor([3, 3, 3]), shares).tolist() == [1, 2, 0] # agreement brings a guess, not the given label

def test_p6_sharpened():
    near(guess(z, pi, .8, .5), [[.721603, .22114, .057256], [.087051, .53583, .377119], [.299063, .677207, .02373]])

def test_p7_marginals():
    near(z.softmax(1).mean(0), [.469207, .388301, .142493])
    after = follow(torch.full((3,), 1/3, dtype=torch.float64), z.softmax(1))
    near(after, [.33334692, .33333883, .33331425], 1e-8)
    assert float(after.sum()) == pytest.approx(1, abs=1e-12)

def test_p8_schedules():
    assert [ramp(e, 50) for e in (0, 10, 25, 50, 300)] == [0, .2, .5, 1, 1]
    assert [rest_weight(e) for e in (10, 50, 99, 100, 599)] == pytest.approx([.01, .05, .099, 0, 0])
    assert rest_weight(5, alpha_p=0) == rest_weight(500, alpha_p=0) == 1 and rest_weight(100, after=.1) == .1
    model = ProMix(recipe='published')
    vars(model).update(model._options(100))
    rates = [model._schedule()(e/600) for e in (0, 150, 300, 450, 600)]
    assert rates == pytest.approx([.05, .04268499, .025025, .00736501, .00005], abs=1e-8)

def test_p9_fmix():
    t = mix(eye, .3, permutation)
    near(soft_cross_entropy(z, eye[permutation]).mean(), 1.486869)
    near(soft_cross_entropy(z, t).mean(), 1.436869)
    near(soft_cross_entropy(debias(z, pi, .8), eye[permutation]).mean(), 1.635158)
    near(soft_cross_entropy(debias(z, pi, .8), t).mean(), 1.585158)
    assert region(tensor([[[.1, .9], [.4, .3]]]), 2).int().tolist() == [[[0, 1], [1, 0]]]
    for seed in range(8): assert region(low_frequency((32, 32), torch_generator(seed, 'mask')), 307).sum() == 307

def test_p10_mixup():
    rows = soft_cross_entropy(debias(z, pi, .8), mix(eye, .7, permutation))
    near(rows, [1.089549, .882335, 2.583589])
    near(rows.mean(), 1.518491)

def test_p11_penalty():
    near(negative_entropy(z).mean(), -.928741)
    clamped = z.clamp(min=1e-12) # the public code cuts logits where it means chances (trap 6)
    near((clamped.softmax(1)*clamped.log_softmax(1)).sum(1).mean(), -.976385)

def test_p12_sum_of_views():
    "Four views with the losses of the specification, as `_loss` adds them up"
    model = bench(recipe='published', heads=1)
    model._state.marginals[0, 0] = pi
    model.alpha_o = .8
    strong = tensor([[[.6, .2, -.4], [.1, .9, -.2], [.3, .8, .5]]]).float()
    cr = soft_cross_entropy(debias(strong[0], pi, .8), torch.eye(3)).mean()
    model._heads = lambda network, x: strong
    model._mixed = lambda *a: [(z[None].float(), mix(eye, .7, permutation).float()), (z[None].float(), mix(eye, .3, permutation).float())]
    value = model._loss(0, z[None].float(), torch.zeros(3), torch.zeros(3), flags(0, 1, 2, n=3), y, .2, 0., 1.)
    near(value - .2*(cr - 1.20523), 2.330267, 1e-5)


# what has to hold for any numbers

@few
@given(seeds, st.floats(.3, 1.1), st.sampled_from([None, .5, .9, 1.]))
def test_the_choice_grows(seed, tau, cap):
    p, q = drawn(seed).softmax(1), drawn(seed + 1).softmax(1)
    labels, base = torch.arange(9) % 4, [drawn(seed + 2)[:, 0] > 2, drawn(seed + 3)[:, 0] > 2]
    stages = select(base, [p, q], labels, tau, cap)
    for b, chances, stage in zip(base, (p, q), stages):
        matched = (chances.gather(1, labels[:, None])[:, 0] > tau) & ~b
        assert torch.equal(stage == 1, b) and torch.equal(stage == 2, matched)
        both = (stage == 3).nonzero()[:, 0]
        assert (p[both].argmax(1) == q[both].argmax(1)).all() and (p[both].amax(1) > tau).all() and (q[both].amax(1) > tau).all()
        room = 0 if cap is None else max(0, int(cap*9 + 1e-9) - int((b | matched).sum()))
        assert len(both) <= room
        if tau >= 1: assert not (stage > 1).any()

@few
@given(seeds)
def test_agreement_is_symmetric(seed):
    p, q = drawn(seed).softmax(1), drawn(seed + 1).softmax(1)
    p[:5] = q[:5]
    labels = (p + q).argmin(1) # of little chance: none is matched
    base = [flags(8, n=9)]*2
    a, b = select(base, [p, q], labels, .5, 1.), select(base, [q, p], labels, .5, 1.)
    assert torch.equal(a[0], b[0]) and torch.equal(a[0], a[1])

@few
@given(seeds)
def test_classes_in_another_order(seed):
    order = torch.randperm(4, generator=torch_generator(seed, 'order'))
    back, labels, marginal = order.argsort(), torch.arange(9) % 4, drawn(seed)[0].softmax(0)
    p, q = drawn(seed).softmax(1), drawn(seed + 1).softmax(1)
    torch.testing.assert_close(guess(drawn(seed)[:, order], marginal[order]), guess(drawn(seed), marginal)[:, order])
    a = select([flags(n=9)]*2, [p, q], labels, .6, .9)
    b = select([flags(n=9)]*2, [p[:, order], q[:, order]], back[labels], .6, .9)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert torch.equal(back[target_codes(labels, a[0], p)], target_codes(back[labels], b[0], p[:, order]))
    rng = np.random.default_rng(seed)
    losses, given = rng.random(40), rng.integers(0, 4, 40)
    moved = back.numpy()[given]
    assert (small_loss(losses, given, class_quotas(given, 4, .4)) == small_loss(losses, moved, class_quotas(moved, 4, .4))).all()

@few
@given(seeds, st.floats(0, 1))
def test_quotas(seed, rho):
    rng = np.random.default_rng(seed)
    given = rng.integers(0, 5, 60)
    given[given == 3] = 4 # a class that is never given
    for balanced in (True, False):
        quotas = class_quotas(given, 5, rho, balanced)
        chosen = small_loss(rng.random(60), given, quotas)
        sizes = np.bincount(given, minlength=5)
        assert (np.bincount(given[chosen], minlength=5) == quotas).all() and quotas[3] == 0
        assert (quotas[sizes > 0] >= 1).all() and (quotas <= sizes).all() and chosen.sum() <= 60*rho + 5

@few
@given(seeds, st.floats(0, 1.5))
def test_shifts(seed, strength):
    logits, marginal = drawn(seed), drawn(seed + 1)[0].softmax(0)
    torch.testing.assert_close(guess(logits, marginal, strength).sum(1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(guess(logits + 7.5, marginal, strength), guess(logits, marginal, strength))
    even = torch.full((4,), .25, dtype=torch.float64)
    torch.testing.assert_close(guess(logits, even, strength), logits.softmax(1))
    torch.testing.assert_close(soft_cross_entropy(debias(logits, even, strength), torch.eye(4)[torch.arange(9) % 4]), F.cross_entropy(logits, torch.arange(9) % 4, reduction='none'))
    torch.testing.assert_close(debias(debias(logits, marginal, strength), marginal, -strength), logits)

def test_marginals_stay_chances():
    "Trap 1: no row leaves them as they are; trap 14: a class of no chance shifts by a finite amount"
    marginal = torch.full((4,), .25, dtype=torch.float64)
    for seed in range(300): marginal = follow(marginal, drawn(seed)[:seed % 4].softmax(1), .9)
    assert (marginal > 0).all() and float(marginal.sum()) == pytest.approx(1)
    assert follow(marginal, torch.empty(0, 4)) is marginal
    assert debias(torch.zeros(1, 2), tensor([1., 0.]), 5.).isfinite().all()

def test_agreement_takes_the_shifted_guess():
    "Trap 13: networks agree on one class, and the example is trained as another"
    p = tensor([[.55, .45]])
    stage, _ = select([flags(n=1)]*2, [p, p], torch.tensor([1]), .5, 1.)
    assert stage.tolist() == [3] and target_codes(torch.tensor([1]), stage, guess(p.log(), tensor([.9, .1]))).tolist() == [1]
    assert target_codes(torch.tensor([1]), stage, guess(p.log(), tensor([.5, .5]))).tolist() == [0]


# how much is right

def test_advice():
    assert [advise(r) for r in (.05, .5, 1.)] == pytest.approx([.1, .45, .7])
    assert [advise(r, caution=False) for r in (.05, .5, 1.)] == pytest.approx([.1, .5, 1.])

def test_a_confidence_of_its_own_for_guesses():
    p, labels = tensor([[.8, .2], [.6, .4], [.3, .7]]), torch.tensor([0, 1, 0])
    stages = lambda tau, other=None: select([flags(n=3)]*2, [p, p], labels, tau, 1., other)[0].tolist()
    assert stages(.75) == [2, 0, 0] and stages(.65) == [2, 0, 3] and stages(1., .65) == [3, 0, 3] and stages(.75, .55) == [2, 3, 3]


# the method

def small(cls=ProMix, **options):
    return cls(**dict(network='small-cnn', network_options=dict(widths=(4, 8)), epochs=4, batch_size=8, device='cpu', verbose=False) | options)

class Bench(Untrained, ProMix): pass

def bench(n=48, wrong=.3, **options):
    X, y, _ = stripes(n, wrong=wrong)
    model = small(Bench, **dict(warmup=1) | options)
    chosen = model._options(len(X))
    model.fit(X, y)
    vars(model).update(chosen | model.kept)
    return model

def weights(network): return {k: v.clone() for k, v in network.state_dict().items()}

def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)

rate = Rate(Schedule(.02, 'constant'), 0., .1, 10)

@pytest.mark.parametrize('heads', [1, 2])
def test_networks_learn_apart_until_they_agree(heads):
    "Without agreement the second network has no influence on the first; with it, it has"
    def after(cap, spoil):
        model = bench(recipe='fast', heads=heads, tau=.3, ramp=0)
        model._state.base[:, ::3] = True
        second = model._state.networks[0].networks[1]
        if spoil:
            with torch.no_grad(): second.head.bias += torch.tensor([9., 0, 0])
        model._grow(rate, 1., .1, cap, .9)
        return weights(model._state.networks[0].networks[0])
    assert same(after(None, False), after(None, True))
    assert not same(after(1., False), after(1., True))

@pytest.mark.parametrize('share', [True, False])
@pytest.mark.parametrize('heads', [1, 2])
def test_the_loss_against_a_plain_rebuild(heads, share, monkeypatch):
    "One network's loss, written once more row by row, with mixing that both do alike"
    model = bench(recipe='published', heads=heads, share_mixes=share, alpha_o=.8, alpha_p=.8)
    s, g, calls = model._state, torch_generator(0, 'rebuild'), []
    flip = lambda x, t, lam: calls.append(len(x)) or (lam*x + (1 - lam)*x.flip(0), lam*t + (1 - lam)*t.flip(0))
    monkeypatch.setattr(module, 'mixup', lambda x, t, g, alpha: flip(x, t, .7))
    monkeypatch.setattr(module, 'fmix', lambda x, t, g, quirk: flip(x, t, .4))
    s.marginals[0] = torch.stack([pi, pi.flip(0)])
    rows = torch.arange(8)
    xw, xs, known = model._set.weak(rows, g), model._set.strong(rows, g), flags(0, 1, 3, 4, 6, n=8)
    network, targets, w, beta = s.networks[0].networks[0], torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), .6, .05
    net = copy.deepcopy(network)
    weak = model._heads(network, xw)
    loss = model._loss(0, weak, xw, xs, known, targets, w, beta, .9)
    assert calls == [5]*(2 if share else 2*heads)

    def logits(x):
        f = net.features(x)
        return [h(f).detach() for h in (net.head, getattr(net, 'pseudo_head', None)) if h]
    ce = lambda logit, t, m: -sum(t*(logit.detach() + .8*m.log().float()).log_softmax(0))
    views, t = {'weak': logits(xw), 'strong': logits(xs)}, torch.eye(3)[targets[known]]
    total = 0.
    for h in range(heads):
        for name, share_of in ('weak', 1.), ('strong', w): total += share_of*np.mean([float(ce(v, u, pi)) for v, u in zip(views[name][h][known], t)])
        for lam in .7, .4:
            x, u = lam*xw[known] + (1 - lam)*xw[known].flip(0), lam*t + (1 - lam)*t.flip(0)
            total += w*np.mean([float(ce(v, r, pi)) for v, r in zip(logits(x)[h], u)])
    if heads == 2:
        q = ((views['weak'][0][~known].log_softmax(1) - .8*pi.flip(0).log().float())*2).softmax(1)
        for name, share_of in ('weak', 1.), ('strong', w):
            total += beta*share_of*np.mean([float(ce(v, u, pi.flip(0))) for v, u in zip(views[name][1][~known], q)])
    assert loss.item() == pytest.approx(float(total), rel=1e-4)
    p = views['weak'][0].softmax(1).double()
    near(s.marginals[0], (.9*torch.stack([pi, pi.flip(0)]) + .1*torch.stack([p[known].mean(0), p[~known].mean(0)])).tolist(), 1e-5)

def test_the_second_head_waits_and_then_moves_the_trunk():
    model = bench(recipe='published')
    net = model._state.networks[0].networks[0]
    before = weights(net)
    model._warm(rate)
    assert torch.equal(before['pseudo_head.weight'], net.pseudo_head.weight) and not torch.equal(before['head.weight'], net.head.weight)
    model._grow(rate, 1., .1, None, .9) # nothing is chosen by loss or, in training mode, by confidence: only the rest has an influence
    assert (model._state.stages == 0).all() and not torch.equal(before['pseudo_head.weight'], net.pseudo_head.weight)

@pytest.mark.parametrize('known, beta', [([], 0.), ([], .1), ([2], 0.), ([2], .1), (range(8), 0.), (range(8), .1)])
@pytest.mark.parametrize('lean', [False, True])
def test_nothing_or_everything_chosen(known, beta, lean):
    "Trap 1: no mean over nothing, neither in the loss nor in the marginals; trap 16: one image is not mixed with itself"
    model = bench(recipe='published', lean=lean)
    s, g, rows = model._state, torch_generator(0, 'edges'), torch.arange(8)
    xw, xs = model._set.weak(rows, g), model._set.strong(rows, g)
    weak = model._heads(s.networks[0].networks[0], xw)
    loss = model._loss(0, weak, xw, xs, flags(*known, n=8), torch.zeros(8, dtype=int), 1., beta, .9)
    loss.backward()
    assert loss.isfinite() and s.marginals.isfinite().all() and all(p.grad.isfinite().all() for p in s.networks[0].networks[0].parameters())
    assert (loss.item() > 0) == (len(known) > 0 or beta > 0)

@pytest.mark.parametrize('rho', ['auto', 'seen'])
def test_the_share_that_is_seen(rho, monkeypatch):
    "Mean over both networks of the labels they predict, the largest so far; it sets rho"
    model = bench(recipe='published', rho=rho)
    y, answers = model._codes, []
    monkeypatch.setattr(module, 'evaluate', lambda *a: answers.pop(0))
    def scan(*right): # the first so many labels are predicted by either network
        for n in right: answers.append(torch.where(torch.arange(48) < n, y, (y + 1) % 3).eq(torch.arange(3)[:, None]).T.float()*5)
        model._scan(0.)
        return model._state.clean, model._state.rho
    kept = (lambda v: max(.1, min(.9*v, .7))) if rho == 'auto' else (lambda v: max(.1, v))
    for right, seen in (((0, 4), 2/48), ((24, 36), 30/48), ((12, 12), 30/48), ((48, 48), 1.)):
        assert scan(*right) == pytest.approx((seen, kept(seen)))

@pytest.mark.parametrize('seen, low, rho', [(16, 32, .6), (16, 20, 20/48), (30, 40, 30/48)])
def test_six_tenths_within_two_estimates(monkeypatch, seen, low, rho):
    "0.6, but no less than what is predicted, nor more than what a mixture takes for right"
    model = bench(recipe='published', rho='median')
    y, row, z = model._codes, torch.arange(48), torch.zeros(48, 3)
    z[row, y] = .05
    z[row, (y + 1) % 3] = torch.where(row < seen, -.1, torch.where(row < low, .1, 9.)) # predicted, narrowly lost, lost by far
    monkeypatch.setattr(module, 'evaluate', lambda *a: z)
    model._scan(0.)
    assert (model._state.clean, model._state.rho) == pytest.approx((seen/48, rho))

def test_scan_by_hand():
    model = bench(recipe='published', rho=.5)
    model._scan(0.)
    from noisynb.training import evaluate
    y = model._codes.numpy()
    for net, base in zip(model._state.networks[0].networks, model._state.base.numpy()):
        losses = -evaluate(net, model._set).log_softmax(1).numpy()[np.arange(48), y]
        for c in range(3):
            mine = np.flatnonzero(y == c)
            wanted = mine[losses[mine].argsort(kind='stable')][:min(8, len(mine))]
            assert set(np.flatnonzero(base & (y == c))) == set(wanted)
    model.rho_end = 1.
    model._scan(1.)
    assert (model._state.base.sum(1) == sum(min(16, (y == c).sum()) for c in range(3))).all()
    model._scan(.5)
    assert (model._state.base.sum(1) == sum(min(12, (y == c).sum()) for c in range(3))).all()

@pytest.mark.parametrize('guesses', ['own', 'both'])
def test_whose_guesses(guesses):
    "New labels from the network's own prediction or from the mean of both, which are the same for both networks then"
    model = bench(recipe='published', guesses=guesses, tau=1.)
    model._grow(rate, 0., 0., None, 1.)
    a, b = model._state.targets
    assert (model._state.stages == 0).all() and torch.equal(a, b) == (guesses == 'both')

def test_without_regions(monkeypatch):
    monkeypatch.setattr(module, 'fmix', None)
    X, y, _ = stripes()
    small(regions=False).fit(X, y)
    with pytest.raises(TypeError): small(ramp=0).fit(X, y)

def test_when_it_scans_and_agrees(monkeypatch):
    X, y, _ = stripes()
    scans, caps = [], []
    real_scan, real_grow = ProMix._scan, ProMix._grow
    monkeypatch.setattr(ProMix, '_scan', lambda self, share: scans.append(len(caps)) or real_scan(self, share))
    monkeypatch.setattr(ProMix, '_grow', lambda self, rate, w, beta, cap, memory: caps.append((w, beta, cap)) or real_grow(self, rate, w, beta, cap, memory))
    small(epochs=10, warmup=2, ramp=4, agree=3, scan_every=3, cap=.8, beta=.1, beta_ramp=5, beta_after_ramp=0., heads=2).fit(X, y)
    assert scans == [0, 3, 6] and [c[2] for c in caps] == [None]*6 + [.8]*2 # epochs 8 and 9: later than 10 - 3
    assert [c[0] for c in caps] == [.5, .75] + [1]*6 and [c[1] for c in caps] == pytest.approx([.04, .06, .08] + [0]*5)
    assert [e for e in range(601) if e > 600 - recipes['published']['agree']] == list(range(351, 601))

def test_pair_is_the_mean_of_logits():
    X, y, _ = stripes()
    model = small().fit(X, y)
    assert isinstance(model._networks[0], Pair)
    from noisynb.training import ImageSet, evaluate
    images = ImageSet(X, statistics=tuple(map(tuple, model.statistics_.tolist())))
    a, b = (evaluate(n, images) for n in model._networks[0].networks)
    torch.testing.assert_close(torch.from_numpy(model.predict_proba(X)).float(), ((a + b)/2).softmax(1))
    assert not torch.equal(a, b) and model.predict_proba(X[:0]).shape == (0, 3)

@pytest.mark.parametrize('options', [{}, dict(recipe='published', warmup=1, ramp=2, agree=2, tau=.4), dict(recipe='lmnl', warmup=1, agree=2), dict(quotas='size', beta_after_ramp=.1, lean=False),
    dict(alpha_o=0., alpha_p=0.), dict(rho=1., tau=1.), dict(rho=.3, rho_end=.6, penalty=True, quirk=True), dict(warmup=0)])
def test_contract(options, tmp_path):
    X, y, _ = stripes()
    model = small(**options)
    params, kept = model.get_params(), X.copy()
    model.fit(X, y)
    assert str(model.get_params()) == str(params) and (X == kept).all()
    assert model.label_quality_.shape == (48,) and ((0 <= model.label_quality_) & (model.label_quality_ <= 1)).all() and model.quality_threshold_ == .5
    proba = model.predict_proba(X)
    assert (model.corrected_labels_ == proba.argmax(1)).all() and ((model.label_quality_ < .5) == (proba.argmax(1) != y)).mean() > .97 # flagged where the prediction is another
    assert [row['epoch'] for row in model.history_] == [1, 2, 3, 4] and model.history_[-1]['kind'] == 'select' and model.history_[0]['kind'] == ('select' if options.get('warmup') == 0 else 'warm-up')
    assert all(math.isfinite(v) for row in model.history_ for v in row.values() if not isinstance(v, str))
    assert model.stages_.shape == model.targets_.shape == (2, 48) and set(model.stages_.ravel()) <= {0, 1, 2, 3}
    given = np.broadcast_to(y, (2, 48))
    assert (model.targets_[(model.stages_ == 1) | (model.stages_ == 2)] == given[(model.stages_ == 1) | (model.stages_ == 2)]).all()
    again = load(model.save(tmp_path/'model.safetensors'))
    assert (again.predict_proba(X) == proba).all() and again.options_['recipe'] == model.options_['recipe'] and (again.stages_ == model.stages_).all()

def test_wrong_labels_are_found():
    X, y, true = stripes(120, wrong=.4, seed=3)
    model = ProMix(epochs=9, batch_size=8, warmup=.2, tau=.9, device='cpu', verbose=False).fit(X, y)
    X_new, _, new = stripes(60, seed=4)
    assert model.score(X_new, new) > .95 and (model.corrected_labels_ == true).mean() > .9
    assert abs(model.clean_rate_ - (y == true).mean()) < .2

def test_same_seed_same_bits_and_nothing_global():
    "Trap 7: nothing is drawn from the global states"
    X, y, _ = stripes()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    a, b, c = small().fit(X, y), small().fit(X, y), small(random_state=1).fit(X, y)
    assert (a.label_quality_ == b.label_quality_).all() and (a.predict_proba(X) == b.predict_proba(X)).all()
    assert (a.predict_proba(X) != c.predict_proba(X)).any()
    assert torch.equal(torch_state, torch.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()

@pytest.mark.parametrize('recipe, stop', [('small', 1), ('small', 2), ('published', 4)])
def test_going_on_after_a_stop(recipe, stop, tmp_path):
    "Everything that training changes is in the checkpoint: same history, same weights as without the stop"
    make = partial(small, epochs=5, recipe=recipe, network='small-cnn', warmup=1, scan_every=2, agree=3, tau=.5, memory=.9, beta_after_ramp=.1)
    whole, model = gone_on(make, stop, path := str(tmp_path/'run'))
    assert (model.stages_ == whole.stages_).all() and (model.marginals_ == whole.marginals_).all()
    done = make(checkpoint=path).fit(*stripes()[:2]) # nothing left to do
    assert (done.stages_ == whole.stages_).all() and done.rho_ == whole.rho_

def test_clean_labels_never_go_in():
    "What is learnt depends on images and given labels alone, and strings will do"
    X, y, _ = stripes()
    names = np.array(['ant', 'bee', 'cat'])
    a, b = small().fit(X, y), small().fit(X, names[y])
    assert (names[a.predict(X)] == b.predict(X)).all() and (a.label_quality_ == b.label_quality_).all()

@pytest.mark.parametrize('n, C, wrong', [(12, 2, .3), (48, 3, 0.), (48, 3, 1.), (4, 2, 0.), (2, 2, 0.)])
@pytest.mark.parametrize('recipe', ['small', 'medium', 'published', 'lmnl'])
def test_ends_of_the_range(n, C, wrong, recipe):
    "Two classes, fewer images than a batch, no wrong labels, wrong labels only"
    X, y, _ = stripes(n, C, wrong)
    y[:C] = np.arange(C)
    model = small(recipe=recipe, network='small-cnn', epochs=4, batch_size=64, warmup=1, ramp=2, agree=2, tau=.6).fit(X, y)
    assert np.isfinite(model.label_quality_).all() and len(model.history_) == 4 and np.isfinite(model.marginals_).all()

def test_one_by_one_at_the_end_of_a_deep_network():
    "Batch norm over one pixel of one image is refused by PyTorch; no step needs it"
    X, y, _ = stripes(17)
    model = small(recipe='published', network='preact-resnet18-narrow', network_options=dict(width=4), epochs=3, warmup=1, lean=True, rho=.05, tau=1.).fit(X, y)
    assert np.isfinite(model.label_quality_).all()

def test_options():
    model = small(setting='cifar100n', recipe='published', epochs=None, batch_size=None)
    options = model._options(100)
    assert [options[k] for k in ('epochs', 'batch_size', 'warmup', 'rho', 'tau', 'alpha_o', 'alpha_p')] == [600, 256, 30, .5, .95, .5, .5]
    assert ProMix(setting='cifar100n', recipe='lmnl')._options(100)['alpha_o'] == 0
    assert [ProMix()._options(n)['recipe'] for n in (4999, 5000, 19_999, 20_000)] == ['small', 'medium', 'medium', 'fast']
    assert all(set(r) == set(recipes['published']) for r in recipes.values())
    assert 'promix' in methods and isinstance(make('promix', recipe='lmnl'), ProMix)

@pytest.mark.parametrize('wrong, message', [(dict(recipe='smal'), "did you mean 'small'"), (dict(setting='cifar10'), 'no setting'), (dict(quotas='equl'), "did you mean 'equal'"), (dict(heads=3), 'heads is 3'),
    (dict(rho=1.5), 'rho is 1.5'), (dict(rho='much'), 'rho is'), (dict(warmup=4), 'of which 4 are warm-up'), (dict(temperature=0), 'temperature is 0'), (dict(scan_every=.5), 'scan_every is'), (dict(tau=-1), 'tau is -1'),
    (dict(cap='all'), 'cap is'), (dict(tau_agree='high'), 'tau_agree is'), (dict(guesses='bth'), "did you mean 'both'"), (dict(beta_after_ramp=-.1), 'beta_after_ramp')])
def test_mistakes(wrong, message):
    X, y, _ = stripes()
    model = small(**wrong)
    params = str(model.get_params())
    with pytest.raises(NoisynbError, match=message): model.fit(X, y)
    assert str(model.get_params()) == params

def test_embeddings_are_refused():
    with pytest.raises(NoisynbError, match='embeddings'): small().fit(np.zeros((10, 4), np.float32), np.arange(10) % 2)


def test_files_do_as_arrays(tmp_path):
    "Images in files, colour"
    from PIL import Image
    from noisynb.datasets import load as load_data
    rng = np.random.default_rng(0)
    for name, channel in ('bee', 0), ('cat', 2):
        (tmp_path/name).mkdir()
        for i in range(12):
            picture = rng.integers(0, 80, (16, 16, 3), dtype=np.uint8)
            picture[..., channel] += 120
            Image.fromarray(picture).save(tmp_path/name/f'{i}.png')
    split = load_data(str(tmp_path), size=16).train
    a = small(warmup=1).fit(split.images, split.labels)
    b = small(warmup=1).fit(np.stack([split.images[i] for i in range(24)]), split.labels)
    assert (a.stages_ == b.stages_).all() and a.label_quality_ == pytest.approx(b.label_quality_, abs=1e-3)
