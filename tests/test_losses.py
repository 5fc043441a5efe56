"Losses against the formulas in plain NumPy, finite differences and what symmetry promises"
import copy
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from noisynb.core import NoisynbError
from noisynb.losses import losses, make_loss, presets, published

quick = settings(max_examples=25, deadline=None)
devices = ['cpu'] + ['cuda']*torch.cuda.is_available()
symmetric = {'mae': lambda C: C - 1, 'nce': lambda C: 1, 'nfl': lambda C: 1, 'nnce': lambda C: C - 1, 'nnfl': lambda C: C - 1,
             'rce': lambda C: (C - 1)*math.log(1e4), 'nce+mae': lambda C: C, 'anl-ce': lambda C: 5*C, 'anl-fl': lambda C: 5*C}
stopped = {'fl', 'nfl', 'nfl+rce', 'nnfl', 'anl-fl', 'elr'} # a gradient is stopped somewhere in them


# the formulas once more, in float64, row by row

def softmax(z):
    e = np.exp(z - z.max())
    return e/e.sum()

def reference(name, z, y, at=None, t=None, **h):
    "The loss of one row of logits; what gets no gradient is computed at the logits `at`"
    p, still = softmax(z), softmax(z if at is None else at)
    logs = z - z.max() - np.log(np.exp(z - z.max()).sum())
    C, onehot = len(z), np.eye(len(z))[y]
    def part(name):
        if name == 'ce': return -logs[y]
        if name == 'mae': return 1 - p[y]
        if name == 'rce': return -(np.maximum(p, 1e-7)*np.log(np.maximum(onehot, 1e-4))).sum()
        if name == 'gce': return (1 - max(p[y], 1e-7)**h['q'])/h['q']
        if name == 'fl': return -(1 - still[y])**h['gamma']*logs[y]
        if name == 'nce': return logs[y]/logs.sum()
        if name == 'nfl':
            f = -(1 - still)**h['gamma']*logs
            return f[y]/f.sum()
        if name == 'agce': return ((h['a'] + 1)**h['q'] - (h['a'] + p[y])**h['q'])/h['q']
        if name == 'aul': return ((h['a'] - p[y])**h['q'] - (h['a'] - 1)**h['q'])/h['q']
        if name == 'ael': return np.exp(-p[y]/h['a'])
        if name in ('nnce', 'nnce-er'):
            gap = np.log(np.clip(p, h['p_min'], 1 if name == 'nnce' else 1 - h['p_min'])) - np.log(h['p_min'])
            return 1 - gap[y]/gap.sum()
        if name == 'nnfl':
            cut, weight = np.maximum(logs, np.log(h['p_min'])), (1 - np.maximum(still, h['p_min']))**h['gamma']
            A = -(1 - h['p_min'])**h['gamma']*np.log(h['p_min'])
            return 1 - (A + weight[y]*cut[y])/(C*A + (weight*cut).sum())
        if name == 'elr': return -logs[y] + h['lam']*np.log(1 - t @ np.clip(p, 1e-4, 1 - 1e-4))
        raise KeyError(name)
    parts = {'sce': 'ce+rce', 'anl-ce': 'nce+nnce', 'anl-fl': 'nfl+nnfl', 'anl-ce-er': 'nce+nnce-er'}.get(name, name).split('+')
    return part(*parts) if len(parts) == 1 else h['alpha']*part(parts[0]) + h['beta']*part(parts[1])

def target(z, old, beta):
    p = np.clip(softmax(z), 1e-4, 1 - 1e-4)
    return beta*old + (1 - beta)*p/p.sum()

def some(n, C, spread, seed):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(n, C))*spread), torch.tensor(rng.integers(0, C, n))

def made(name, C, n=8, **h):
    "The loss with the first preset that has values"
    preset = next((p for p, v in zip(presets, published.get(name, ('', *presets))[1:]) if v), 'cifar10')
    return make_loss(name, C, preset, n_samples=n, **h)

def call(loss, z, y):
    "With rows, so that ELR works, too, from an empty memory"
    loss = copy.deepcopy(loss)
    return loss(z, y, torch.arange(len(z)))


# values

vector = '''
ce                   0.407606  2.407606
mae                  0.334759  0.909969
rce                  3.083245  8.381128
gce q=.7             0.354614  1.163737
fl gamma=.5          0.235834  2.296671
nce                  0.096525  0.570142
nfl gamma=.5         0.062792  0.611499
nnce                 0.644007  0.689326
nnfl gamma=.5        0.643883  0.690092
agce a=6 q=1.5       0.875014  2.327526
aul a=6.3 q=1.5      0.782717  2.182406
ael a=5              0.875423  0.982155
sce alpha=.1 beta=1  3.124005  8.621889
sce alpha=6 beta=.1  2.753960  15.283749
nce+rce alpha=1 beta=1     3.179769  8.951270
nce+rce alpha=10 beta=.1   1.273571  6.539533
nfl+rce alpha=1 beta=1     3.146037  8.992627
nce+agce alpha=1 beta=4    3.596581  9.880247
anl-ce alpha=5 beta=5      3.702659  6.297341
anl-fl alpha=5 beta=5      3.533376  6.507956
anl-ce alpha=10 beta=1     1.609253  6.390747
elr beta=.7 lam=3    -0.091135  1.908865'''.strip().splitlines()

@pytest.mark.parametrize('line', vector, ids=lambda line: line.rsplit(None, 2)[0])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('device', devices)
def test_known_values(line, dtype, device):
    name, *hyper, first, last = line.split()
    z, y = torch.tensor([[2, 1, 0]]*2, dtype=dtype, device=device), torch.tensor([0, 2], device=device)
    loss = make_loss(name, 3, n_samples=2, **{k: float(v) for k, v in (h.split('=') for h in hyper)})
    values = loss(z, y, torch.arange(2, device=device))
    assert values.dtype == dtype and values.tolist() == pytest.approx([float(first), float(last)], abs=6e-7 if dtype == torch.float64 else 3e-6)

@pytest.mark.parametrize('name', losses)
@quick
@given(C=st.integers(2, 12), spread=st.floats(.01, 30), seed=st.integers(0, 10**6))
def test_values_are_those_of_the_formulas(name, C, spread, seed):
    z, y = some(5, C, spread, seed)
    loss = made(name, C)
    t = [target(row, np.zeros(C), loss.hyper['beta']) if name == 'elr' else None for row in z.numpy()]
    expected = [reference(name, row, int(k), t=m, **loss.hyper) for row, k, m in zip(z.numpy(), y, t)]
    assert call(loss, z, y).numpy() == pytest.approx(np.array(expected), rel=1e-6, abs=1e-9)
    assert call(loss, z.float(), y).numpy() == pytest.approx(np.array(expected), rel=1e-4, abs=1e-4)

@pytest.mark.parametrize('preset', presets[1:])
@pytest.mark.parametrize('name', published)
def test_presets_and_a_thousand_classes(name, preset):
    z, y = some(4, 1000, 3, 0)
    if published[name][1 + presets.index(preset)] is None:
        with pytest.raises(NoisynbError, match=f'{name.replace("+", ".")} are published for {preset}; give .*cifar10'): make_loss(name, 1000, preset, n_samples=4)
        return
    loss = make_loss(name, 1000, preset, n_samples=4)
    t = [target(row, np.zeros(1000), loss.hyper['beta']) if name == 'elr' else None for row in z.numpy()]
    expected = [reference(name, row, int(k), t=m, **loss.hyper) for row, k, m in zip(z.numpy(), y, t)]
    assert call(loss, z.float(), y).numpy() == pytest.approx(np.array(expected), rel=2e-5)

@quick
@given(C=st.integers(2, 1000), spread=st.floats(0, 1e4), seed=st.integers(0, 10**6))
def test_cross_entropy_is_that_of_torch(C, spread, seed):
    z, y = some(6, C, spread, seed)
    assert torch.equal(make_loss('ce', C)(z, y), torch.nn.functional.cross_entropy(z, y, reduction='none'))

def test_limits_of_generalised_losses():
    z, y = some(20, 5, 2, 0)
    value = lambda name, **h: make_loss(name, 5, **h)(z, y)
    assert torch.allclose(value('gce', q=1), value('mae')) and torch.allclose(value('gce', q=1e-6), value('ce'), rtol=1e-4)
    assert torch.allclose(value('fl', gamma=0), value('ce')) and torch.allclose(value('nfl', gamma=0), value('nce')) and torch.allclose(value('nnfl', gamma=0), value('nnce'))
    assert torch.allclose(value('agce', a=3, q=1), value('mae')) and torch.allclose(value('aul', a=3, q=1), value('mae'))
    assert torch.allclose(value('rce'), math.log(1e4)*value('mae'), atol=1e-4)


# symmetry

@pytest.mark.parametrize('name', symmetric)
@quick
@given(C=st.integers(2, 50), spread=st.floats(0, 10), seed=st.integers(0, 10**6))
def test_sum_over_the_labels_is_constant(name, C, spread, seed):
    z, _ = some(1, C, spread, seed)
    total = make_loss(name, C)(z.expand(C, -1), torch.arange(C)).sum().item()
    assert total == pytest.approx(symmetric[name](C), rel=1e-6 + 2e-7*C*('rce' in name)) # the cut adds up to 1e-7 per class

@pytest.mark.parametrize('name', ['ce', 'fl', 'gce', 'sce', 'agce', 'aul', 'ael'])
def test_the_others_are_not_symmetric(name):
    total = [make_loss(name, 4)(torch.tensor([[s, 0, 0, 0.]]*4), torch.arange(4)).sum().item() for s in (0., 4)]
    assert abs(total[1]/total[0] - 1) > 1e-3

@pytest.mark.parametrize('name', losses)
@quick
@given(C=st.integers(2, 8), shift=st.floats(-50, 50), seed=st.integers(0, 10**6))
def test_classes_and_rows_have_no_order_and_logits_no_zero(name, C, shift, seed):
    z, y = some(6, C, 3, seed)
    rng = np.random.default_rng(seed)
    classes, order = torch.tensor(rng.permutation(C)), torch.tensor(rng.permutation(6))
    loss = made(name, C)
    plain = call(loss, z, y)
    renamed = torch.empty_like(z)
    renamed[:, classes] = z
    assert torch.allclose(call(loss, renamed, classes[y]), plain)
    assert torch.allclose(call(loss, z + shift, y), plain)
    assert torch.allclose(copy.deepcopy(loss)(z[order], y[order], order), plain[order]) # each row stands for itself
    assert torch.allclose(call(loss, z[:3], y[:3]), plain[:3], rtol=1e-12)


# gradients

@pytest.mark.parametrize('name', [n for n in losses if n not in stopped])
@pytest.mark.parametrize('C', [2, 5])
def test_gradients_are_those_of_autograd_check(name, C):
    z, y = some(4, C, 2, 1)
    assert torch.autograd.gradcheck(lambda z: made(name, C)(z, y), z.requires_grad_())

@pytest.mark.parametrize('name', losses)
@pytest.mark.parametrize('C', [2, 6])
def test_gradients_are_those_of_the_formulas(name, C):
    "Finite differences of the NumPy formulas, with weight and target held still"
    z, y = some(4, C, 2, 2)
    loss = made(name, C)
    z.requires_grad_()
    found, = torch.autograd.grad(call(loss, z, y).sum(), z)
    z, eps = z.detach().numpy(), 1e-6
    for i, row in enumerate(z):
        t = target(row, np.zeros(C), loss.hyper['beta']) if name == 'elr' else None
        f = lambda step: reference(name, row + step, int(y[i]), at=row, t=t, **loss.hyper)
        assert found[i].numpy() == pytest.approx(np.array([(f(e) - f(-e))/(2*eps) for e in np.eye(C)*eps]), rel=1e-5, abs=1e-7)

@pytest.mark.parametrize('name', sorted(stopped))
def test_stopped_gradients_are_stopped(name):
    "With weight and target moving along, differences disagree with the gradient"
    z, y = some(1, 4, 1, 3)
    loss = made(name, 4)
    z.requires_grad_()
    found, = torch.autograd.grad(call(loss, z, y).sum(), z)
    step = torch.zeros_like(z).index_fill_(1, y, 1e-6)
    full = (call(loss, z + step, y) - call(loss, z - step, y)).item()/2e-6
    assert abs(found[0, y].item() - full) > 1e-4*abs(full)

def test_focal_gradient_by_hand():
    z = torch.tensor([[2., 1, 0]], dtype=torch.float64, requires_grad=True)
    make_loss('fl', 3, gamma=2)(z, [1]).sum().backward()
    p = softmax(np.array([2, 1, 0]))
    assert z.grad[0].numpy() == pytest.approx((1 - p[1])**2*(p - [0, 1, 0]))

def test_what_is_cut_gets_no_gradient():
    def gradient(name, *logits, y=1):
        z = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
        values = make_loss(name, len(logits))(z, [y])
        values.sum().backward()
        return values.item(), z.grad[0]
    value, g = gradient('gce', 20., 0, 0)
    assert value == pytest.approx((1 - 1e-7**.7)/.7) and not g.any()
    assert gradient('gce', 15., 0, 0)[1].any()
    value, g = gradient('nnce', 2., 1, -20)
    assert g[:2].any() and value == pytest.approx(1 - (math.log(1e7) + math.log(softmax(np.array([2, 1]))[1]))/(2*math.log(1e7) + np.log(softmax(np.array([2, 1]))).sum()), rel=1e-6)
    for name in ('nnce', 'nnfl'):
        value, g = gradient(name, 0., 0, -40, y=2)
        assert value == 1 and g.abs().max() < 1e-12 # the label is out of reach
    assert gradient('rce', 0., 0, -20, y=0)[0] == pytest.approx(math.log(1e4)*(.5 + 1e-7), rel=1e-6)


# arithmetic

@pytest.mark.parametrize('device', devices)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize('C', [2, 3, 1000])
@pytest.mark.parametrize('name', losses)
def test_extreme_logits(name, C, dtype, device):
    rows = [[1e4, -1e4], [-1e4, 1e4], [1e4, 0], [0, 1e4], [0, 0], [88, 0], [0, 88], [1e-4, 0], [-104, 104], [1e4, 1e4]]
    z = torch.zeros(len(rows), C)
    z[:, [0, -1]] = torch.tensor(rows)
    z = z.to(device, dtype).requires_grad_()
    loss = made(name, C, n=len(rows))
    for y in (0, C - 1, C//2):
        labels = torch.full((len(rows),), y, device=device)
        for _ in range(3):
            values = loss(z, labels, torch.arange(len(rows)))
            total = values.sum() + loss.batch(z)
            g, = torch.autograd.grad(total, z)
            assert values.shape == (len(rows),) and values.isfinite().all() and g.isfinite().all() and torch.as_tensor(total).isfinite()
            assert g.dtype == dtype and values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

@pytest.mark.parametrize('name', losses)
def test_half_precision_is_cast_up(name):
    z, y = some(8, 10, 4, 5)
    z = z.bfloat16()
    loss = made(name, 10)
    assert torch.equal(call(loss, z, y), call(loss, z.float(), y))
    with torch.autocast('cpu', torch.bfloat16): assert torch.equal(call(loss, z, y), call(loss, z.float(), y))

@pytest.mark.parametrize('name', ['mae', 'gce', 'agce', 'aul'])
def test_no_digits_are_lost_near_certainty(name):
    z, y = torch.tensor([[12., 0, 0]]), torch.tensor([0])
    exact = make_loss(name, 3)(z.double(), y).item()
    assert make_loss(name, 3)(z, y).item() == pytest.approx(exact, rel=1e-2) and 0 < exact < 1e-3 # float32 knows log p to one part in a hundred here

@pytest.mark.parametrize('name', losses)
def test_empty_batch_and_masks(name):
    loss = made(name, 3)
    empty = loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert empty.shape == (0,) and loss.batch(torch.zeros(0, 3)) == 0
    z, y = some(6, 3, 2, 0)
    mask = torch.tensor([1, 0, 1, 1, 0, 0], dtype=torch.bool)
    z.requires_grad_()
    g, = torch.autograd.grad(call(loss, z, y)[mask].sum(), z)
    assert g[mask].any() and not g[~mask].any()

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type(dtype):
    z, y = some(6, 3, 2, 0)
    assert torch.equal(make_loss('gce', 3)(z, y.to(dtype)), make_loss('gce', 3)(z, y.tolist()))

def test_inputs_and_random_state_are_left_alone():
    z, y = some(6, 3, 2, 0)
    before, state = (z.clone(), y.clone()), torch.get_rng_state()
    for name in losses: call(made(name, 3), z, y)
    assert torch.equal(z, before[0]) and torch.equal(y, before[1]) and torch.equal(torch.get_rng_state(), state)


# terms beside the examples

def test_l1_penalty():
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad(): layer.weight.copy_(torch.tensor([[1., -2], [0, 3]])); layer.bias.copy_(torch.tensor([-.5, .5]))
    found = make_loss('anl-ce', 3, delta=.1).penalty(layer.parameters())
    found.backward()
    assert found.item() == pytest.approx(.7) and torch.allclose(layer.weight.grad, .1*torch.tensor([[1., -1], [0, 1]])) and torch.allclose(layer.bias.grad, .1*torch.tensor([-1., 1]))
    assert {n for n in losses if not isinstance(made(n, 3).penalty(layer.parameters()), float)} == {'anl-ce', 'anl-fl', 'anl-ce-er'}
    assert make_loss('anl-ce', 3, delta=0).penalty(layer.parameters()) == 0

def test_batch_term():
    loss = make_loss('anl-ce-er', 4)
    assert loss.batch(torch.eye(4)*30).item() == pytest.approx(0, abs=1e-5) # each class once
    assert loss.batch(torch.zeros(3, 4)).item() == pytest.approx(0, abs=1e-5)
    assert loss.batch(torch.tensor([[30., 0, 0, 0]]*3)).item() == pytest.approx(2*math.log(4), rel=1e-4)
    z, _ = some(5, 4, 2, 0)
    m = np.mean([softmax(row) for row in z.numpy()], 0)
    assert loss.batch(z).item() == pytest.approx(2*(math.log(4) + (m*np.log(m)).sum()), rel=1e-5)
    assert torch.autograd.gradcheck(loss.batch, z.requires_grad_())
    assert {n for n in losses if not isinstance(made(n, 4).batch(z), float)} == {'anl-ce-er'}

def test_batch_term_cuts_at_both_ends():
    "Visible with a p_min that is far too large"
    z, loss = np.array([[5., 0, 0], [5, 0, 0], [4, 1, -9]]), make_loss('anl-ce-er', 3, p_min=.1)
    p = np.clip([softmax(row) for row in z], .1, .9)
    m = np.clip(p.sum(0)/p.sum(), .1, .9)
    assert loss.batch(torch.tensor(z)).item() == pytest.approx(2*(math.log(3) + (m*np.log(m)).sum()))

@quick
@given(C=st.integers(2, 6), p_min=st.floats(1e-7, .15), spread=st.floats(0, 20), seed=st.integers(0, 10**6))
def test_a_cut_near_one_changes_nothing_in_nnce(C, p_min, spread, seed):
    "The public code has it in ANL-CE-ER; the formulas here have it, the loss has not"
    z, y = some(4, C, spread, seed)
    loss = make_loss('anl-ce-er', C, p_min=p_min)
    assert loss(z, y).numpy() == pytest.approx(np.array([reference('anl-ce-er', row, int(k), **loss.hyper) for row, k in zip(z.numpy(), y)]), abs=1e-9)


# ELR

def test_elr_in_two_steps_by_hand():
    loss = make_loss('elr', 3, n_samples=4)
    y, row = torch.tensor([2]), torch.tensor([1])
    assert loss(torch.tensor([[2., 1, 0]]), y, row).item() == pytest.approx(1.908865, abs=2e-6)
    first = .3*np.array([.665241, .244728, .090031])
    assert loss.targets[1].numpy() == pytest.approx(first, abs=1e-6) and not loss.targets[[0, 2, 3]].any()
    # second step, other logits: t = .7 * first + .3 * (1/3, 1/3, 1/3); <t, p> = sum(t) / 3 = .51 / 3 = .17
    assert loss(torch.zeros(1, 3), y, row).item() == pytest.approx(math.log(3) + 3*math.log(1 - .17), abs=2e-6)
    assert loss.targets[1].numpy() == pytest.approx(.7*first + .1, abs=1e-6) and not loss.targets.requires_grad

def test_elr_remembers_by_row_and_goes_on_from_a_checkpoint(tmp_path):
    z, y = some(6, 3, 2, 0)
    z, loss, other = z.float(), make_loss('elr', 3, n_samples=6), make_loss('elr', 3, n_samples=6)
    assert loss.state_dict() == {}
    loss(z, y, torch.arange(6))
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    for part in order.split(2): other(z[part], y[part], part)
    assert torch.equal(loss.targets, other.targets)
    torch.save(loss.state_dict(), tmp_path/'state.pt')
    kept = loss.state_dict()
    fresh = make_loss('elr', 3, n_samples=6)
    fresh.load_state_dict(torch.load(tmp_path/'state.pt', weights_only=True))
    after = loss(z, y, torch.arange(6))
    assert torch.equal(kept['targets'], fresh.targets) # a copy, which later steps leave alone
    assert torch.equal(fresh(z, y, torch.arange(6)), after) and torch.equal(fresh.targets, loss.targets)
    assert torch.equal(pickle.loads(pickle.dumps(loss)).targets, loss.targets)
    fresh.load_state_dict({})
    assert fresh.targets is None

def test_elr_validates_by_cross_entropy_and_refuses_to_train_blindly():
    z, y = some(6, 3, 2, 0)
    loss = make_loss('elr', 3, n_samples=6)
    assert torch.equal(loss(z, y), make_loss('ce', 3)(z, y)) and loss.targets is None
    with pytest.raises(NoisynbError, match='give rows'): loss(z.requires_grad_(), y)
    for rows in ([0, 1, 2, 3, 4, 6], [-1, 1, 2, 3, 4, 5], [0, 1], [0., 1, 2, 3, 4, 5]):
        with pytest.raises(NoisynbError, match='rows'): loss(z, y, torch.tensor(rows))
    for state in ({'targets': torch.zeros(5, 3)}, {'other': torch.zeros(6, 3)}):
        with pytest.raises(NoisynbError, match=r'needs targets \(6, 3\)'): loss.load_state_dict(state)
    with pytest.raises(NoisynbError, match='remembers nothing'): make_loss('ce', 3).load_state_dict({'targets': z})

def test_elr_resists_a_wrong_label():
    "A sure model is held to its opinion: the pull toward the label turns round"
    loss, pulls = make_loss('elr', 3, n_samples=1), []
    for _ in range(30):
        z = torch.tensor([[4., 0, 0]], requires_grad=True)
        loss(z, [1], [0]).sum().backward()
        pulls.append(z.grad[0].tolist())
    assert pulls[0][1] < 0 and pulls[-1][0] < 0


# names and numbers

def test_the_table_is_that_of_the_configuration_files():
    expected = '''gce q=.7 | q=.7 | q=.7
fl gamma=.5 | gamma=.5 | gamma=.5
sce alpha=.1 beta=1 | alpha=6 beta=.1 | alpha=.01 beta=1
nce+mae alpha=1 beta=1 | alpha=10 beta=.1 | alpha=1 beta=10
nce+rce alpha=1 beta=1 | alpha=10 beta=.1 | alpha=1 beta=10
nfl+rce alpha=1 beta=1 gamma=.5 | alpha=10 beta=.1 gamma=.5 | alpha=1 beta=10 gamma=.5
nce+agce alpha=1 beta=4 a=6 q=1.5 | alpha=10 beta=.1 a=1.8 q=3 | alpha=0 beta=1 a=4 q=.2
nce+aul alpha=1 beta=4 a=6.3 q=1.5 | alpha=10 beta=.015 a=6 q=3 | alpha=0 beta=1 a=3 q=.1
nce+ael alpha=1 beta=4 a=5 | alpha=10 beta=.1 a=1.5 | alpha=0 beta=1 a=3.5
anl-ce alpha=5 beta=5 delta=5e-5 p_min=1e-7 | alpha=10 beta=1 delta=5e-7 p_min=1e-7 | alpha=1 beta=1 delta=1e-6 p_min=1e-7
anl-fl alpha=5 beta=5 delta=5e-5 gamma=.5 p_min=1e-7 | alpha=10 beta=1 delta=5e-7 gamma=.5 p_min=1e-7 | alpha=1 beta=1 delta=1e-6 gamma=.5 p_min=1e-7
anl-ce-er alpha=5 beta=5 delta=5e-5 lam=2 p_min=1e-7 | alpha=10 beta=1 delta=5e-7 lam=.01 p_min=1e-7
elr beta=.7 lam=3 | beta=.9 lam=7'''
    for line in expected.splitlines():
        name, rest = line.split(' ', 1)
        for preset, words in zip(presets, rest.split('|')):
            assert make_loss(name, 10, preset, n_samples=1).hyper == {k: float(v) for k, v in (w.split('=') for w in words.split())}, (name, preset)
    web = {n: make_loss(n, 50, 'webvision').hyper for n in ('sce', 'gce', 'nce+rce', 'nce+agce', 'anl-ce')}
    assert web == {'sce': dict(alpha=10, beta=1), 'gce': dict(q=.7), 'nce+rce': dict(alpha=50, beta=.1), 'nce+agce': dict(alpha=50, beta=.1, a=2.5, q=3), 'anl-ce': dict(alpha=20, beta=1, delta=5e-6, p_min=1e-7)}

@pytest.mark.parametrize('name, options, message', [
    ('nce_rce', {}, "did you mean 'nce[+]rce'"), ('anl_ce', {}, "did you mean 'anl-ce'"), ('', {}, 'There are: ce, mae'), (None, {}, 'no loss None'),
    ('gce', dict(preset='cifar'), "no preset 'cifar'; did you mean 'cifar10'"), ('ce', dict(preset='x'), 'no preset'),
    ('anl-ce', dict(detla=1), "no hyper-parameter of anl-ce 'detla'; did you mean 'delta'"), ('mae', dict(q=1), 'mae has no hyper-parameters; leave out q'), ('elr', {'lambda': 1}, "did you mean 'lam'"),
    ('gce', dict(q=0), 'q=0 .*above 0'), ('gce', dict(q=math.nan), 'q=nan'), ('gce', dict(q=math.inf), 'q=inf'), ('gce', dict(q=None), 'q=None'), ('gce', dict(q='much'), "q='much'"), ('gce', dict(q=[1]), 'q='),
    ('aul', dict(a=1), 'above 1'), ('nce+aul', dict(a=.5), 'above 1'), ('agce', dict(a=0), 'above 0'), ('fl', dict(gamma=-1), 'at least 0'), ('sce', dict(alpha=-1), 'at least 0'),
    ('nnce', dict(p_min=.2), 'below 0.2'), ('nnce', dict(p_min=0), 'above 0'), ('elr', dict(beta=1), 'below 1'), ('elr', dict(n_samples=None), 'number of training examples'), ('elr', dict(n_samples=0), 'n_samples is 0'),
    ('ce', dict(n_classes=1), 'at least two'), ('ce', dict(n_classes=3.), 'n_classes is 3.0'), ('elr', dict(preset='mnist'), 'give beta, lam, or one of the presets cifar10, cifar100')])
def test_mistakes_are_named(name, options, message):
    with pytest.raises(NoisynbError, match=message): make_loss(name, **dict(n_classes=5, n_samples=3) | options)

def test_all_values_by_hand_need_no_preset():
    assert make_loss('elr', 3, 'mnist', 5, beta='.5', lam=np.float32(2)).hyper == dict(beta=.5, lam=2)

@pytest.mark.parametrize('z, y, message', [((3,), [0], 'logits of shape'), ((2, 4), [0, 1], r'logits of shape \(2, 4\) for 3 classes'), ((2, 3), [0], 'labels of shape'), ((2, 3), [[0], [1]], 'labels of shape'),
    ((2, 3), [0, 3], 'labels run from 0 to 3'), ((2, 3), [-1, 0], 'labels run from -1'), ((2, 3), [0., 1.], 'torch.float32'), ((2, 3), [True, False], 'torch.bool')])
@pytest.mark.parametrize('name', ['ce', 'elr'])
def test_mistakes_in_a_batch_are_named(name, z, y, message):
    with pytest.raises(NoisynbError, match=message): make_loss(name, 3, n_samples=9)(torch.zeros(z), torch.tensor(y), torch.arange(len(y)))

def test_shows_itself_and_is_copied():
    assert repr(make_loss('sce', 3)) == 'sce(alpha=0.1, beta=1)' and repr(make_loss('ce', 3)) == 'ce()'
    z, y = some(4, 3, 2, 0)
    for name in losses: assert torch.equal(call(pickle.loads(pickle.dumps(made(name, 3))), z, y), call(made(name, 3), z, y))

def test_the_import_is_light():
    code = 'import sys, noisynb.losses as l; assert len(l.losses) == 23; sys.exit("torch" in sys.modules or "matplotlib" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0

def test_each_loss_learns():
    "A linear layer on three clouds, a third of the labels wrong"
    rng = np.random.default_rng(0)
    truth = np.arange(150) % 3
    X = torch.tensor(rng.normal(size=(150, 2)) + 4*np.array([[0, 1], [1, -1], [-1, -1]])[truth], dtype=torch.float32)
    y = torch.tensor(np.where(rng.random(150) < .33, rng.integers(0, 3, 150), truth))
    for name in losses:
        loss, layer = made(name, 3, n=150), torch.nn.Linear(2, 3)
        with torch.no_grad(): layer.weight.zero_(); layer.bias.zero_()
        optimiser = torch.optim.Adam(layer.parameters(), .1)
        for _ in range(40):
            z = layer(X)
            (loss(z, y, torch.arange(150)).mean() + loss.penalty(layer.parameters()) + loss.batch(z)).backward()
            optimiser.step(); optimiser.zero_grad()
        assert (layer(X).argmax(1).numpy() == truth).mean() > .9, name
