"EchoMod: the values of the specification, one echo whatever the batch, and a cache that survives a kill"
import json, os, signal, subprocess, sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from noisynb.core import NoisynbError
from noisynb.methods.echoalign.diffusion import UNet, guided, move, signal_shares, travel
from noisynb.methods.echoalign.early import EarlyNetwork, believe, cosine, neighbor_trust, separation
from noisynb.methods.echoalign.controlnet import echomods, make_echomod
from noisynb.methods.echoalign.echomod import Diffusion, EchoMod, Identity, echo_cache, own_share, proxies

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10**6)

def pictures(n=48, shape=(8, 8, 1), seed=0):
    "Bars, upright (class 0) or lying (class 1), somewhere, with some noise"
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, n)
    images = rng.integers(0, 40, (n, *shape))
    for image, c, at in zip(images, classes, rng.integers(1, min(shape[:2]) - 2, n)):
        if c: image[at:at + 2] += 180
        else: image[:, at:at + 2] += 180
    return images.astype(np.uint8), classes

def small(**options): return make_echomod('diffusion', **dict(widths=(8, 16), epochs=2, batch_size=16, steps=2, verbose=False, device='cpu', boot=0.) | options)

images, codes = pictures()
rows = np.arange(len(images))

@pytest.fixture(scope='module')
def fitted(): return small().fit(images, codes, 2)


# the arithmetic of diffusion

@pytest.mark.parametrize('level, share', [(100, .9716), (300, .7856), (500, .4923), (700, .2019), (900, .0236)])
def test_levels(level, share): assert float(signal_shares()[level]) == pytest.approx(share, abs=1e-4)

def test_levels_fall_and_never_reach_zero():
    shares = signal_shares()
    assert len(shares) == 1000 and (shares.diff() < 0).all() and 0 < shares[-1] < 1e-8 and shares[0] > .9999

@pytest.mark.parametrize('weight, noise, passes', [(0, 1, 1), (1, 3, 1), (6, 13, 2)])
def test_guidance(weight, noise, passes):
    asked = []
    def network(x, time, label): asked.append(label.tolist()); return torch.where(label == 9, 1., 3.)
    assert guided(network, None, None, torch.tensor([4]), 9, weight).tolist() == [noise]
    assert len(asked) == passes

@few
@given(seeds, st.integers(1, 998), st.integers(1, 998))
def test_a_step_keeps_image_and_noise(seed, now, then):
    g, s = torch.Generator().manual_seed(seed), signal_shares()
    image, noise = torch.rand(2, 1, 4, 4, generator=g, dtype=torch.float64)*2 - 1, torch.randn(2, 1, 4, 4, generator=g, dtype=torch.float64)
    at = lambda t: s[t]**.5*image + (1 - s[t])**.5*noise
    torch.testing.assert_close(move(at(now), noise, s[now], s[then], 1.01), at(then), rtol=0, atol=1e-5)

def test_a_step_out_of_range_takes_the_noise_that_belongs_to_the_clipped_image():
    assert move(torch.tensor([2.]), torch.tensor([0.]), .25, .64, 1.).tolist() == pytest.approx([.8 + .6*(2 - .5)/.75**.5])

def test_a_path_there_and_back():
    s, net = signal_shares(), lambda x, time, label: torch.full_like(x, .5)
    x, label, path = torch.linspace(-.9, .9, 4).reshape(1, 1, 2, 2).double(), torch.tensor([0]), [0, 300, 600]
    up = travel(net, x, label, 0, path, s, limit=9.)
    assert (up - x).abs().max() > .1
    torch.testing.assert_close(travel(net, up, label, 0, path[::-1], s, limit=9.), x, rtol=0, atol=1e-6)

def test_network_of_any_depth():
    for widths, blocks, shape in ((8,), 1, (1, 3, 5)), ((8, 16), 2, (3, 6, 4)), ((8, 8, 24), 1, (1, 8, 12)):
        net, x = UNet(3, shape[0], widths, blocks), torch.zeros(2, *shape)
        assert net(x, torch.tensor([0, 999]), torch.tensor([0, 3])).shape == x.shape


# early networks

def test_trust_of_four_points():
    line = np.array([[0.], [1.], [2.], [10.]])
    assert neighbor_trust(line, [0, 0, 1, 1], k=2).tolist() == [.5, .5, 0, .5]
    by_loss = neighbor_trust(line, [0, 0, 1, 1], [3., 1., 2., 4.], k=2)
    assert by_loss.argsort()[::-1].tolist() == [1, 0, 3, 2] and (by_loss >= 0).all() and (by_loss <= 1).all()

@few
@given(seeds, st.integers(1, 60), st.integers(2, 5), st.sampled_from([.25, .5, 1.]))
def test_believe_takes_the_best_of_each_class(seed, n, C, share):
    rng = np.random.default_rng(seed)
    given, trust = rng.integers(0, C, n), rng.random(n)
    kept = believe(trust, given, C, share)
    for c in np.unique(given):
        mine = trust[given == c]
        assert kept[given == c].sum() == int(np.ceil(share*len(mine))) or share == 0
        assert (np.sort(trust[(given == c) & kept])[::-1] == np.sort(mine)[::-1][:kept[given == c].sum()]).all()

def test_cosine():
    assert cosine([[1, 0], [3, 4], [0, 0]], [[1, 1], [3, 4], [1, 0]]) == pytest.approx([.70710678, 1, 0], abs=1e-6)

def test_separation():
    rng = np.random.default_rng(0)
    assert separation(np.ones(5)) == 0
    assert separation(np.r_[rng.normal(0, .1, 99), rng.normal(1, .1, 99)]) > 5 > 3 > separation(rng.normal(0, 1, 200))

def test_early_network_learns_and_is_reproducible():
    a, b = (EarlyNetwork(8, device='cpu').fit(images, codes, 2) for _ in range(2))
    assert (a.proba(images).argmax(1) == codes).mean() > .9
    assert (a.features(images) == b.features(images)).all() and a.features(images).shape == (len(images), 64)
    assert a.losses(images, codes) == pytest.approx(-np.log(a.proba(images)[rows, codes]), abs=1e-5)

def test_layers_that_draw_leave_the_stream_of_others_alone():
    "Dropout has a stream of its own, by the seed"
    before = torch.random.get_rng_state()
    big = np.zeros((4, 32, 32, 1), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]*60
    fits = []
    for outside in 1, 2:
        torch.manual_seed(outside)
        state = torch.random.get_rng_state()
        fits.append(EarlyNetwork(1, network='vgg19-bn', network_options=dict(hidden=8), device='cpu').fit(big, np.arange(4) % 2, 2).features(big))
        assert torch.equal(torch.random.get_rng_state(), state)
    torch.random.set_rng_state(before)
    assert (fits[0] == fits[1]).all()


# the interface

def test_registry():
    assert list(echomods) == ['diffusion', 'controlnet', 'identity']
    assert isinstance(make_echomod('identity'), EchoMod) and make_echomod('diffusion', strength=.5).strength == .5
    with pytest.raises(NoisynbError, match="did you mean 'diffusion'"): make_echomod('difusion')
    with pytest.raises(NoisynbError, match="no option of diffusion 'strenght'; did you mean 'strength'"): make_echomod('diffusion', strenght=1)

def test_identity_changes_nothing():
    mod = Identity().fit(images, codes, 2)
    echoes = mod.edit(images, codes, rows)
    assert (echoes == images).all() and echoes is not images
    assert cosine(images.reshape(len(images), -1), echoes.reshape(len(images), -1)) == pytest.approx(1)

bad = [(dict(images=images/255.), 'bytes'), (dict(images=images[..., 0]), 'bytes'), (dict(given=codes[1:]), '48 images and 47 entries in given'), (dict(given=codes/1.), 'type float64'), (dict(given=codes + 1), 'go from 0 to 1'),
       (dict(given=codes - 1), r'given\[\d+\] is -1'), (dict(classes=['a']), '1 names'), (dict(trust=[1.]), 'trust'), (dict(images=images[:0], given=codes[:0]), 'no images')]
@pytest.mark.parametrize('wrong, why', bad, ids=[w for _, w in bad])
def test_fit_refuses(wrong, why):
    with pytest.raises(NoisynbError, match=why): Identity().fit(**dict(images=images, given=codes, n_classes=2) | wrong)

def test_edit_refuses(fitted):
    for call in (lambda: Identity().edit(images, codes, rows), lambda: Diffusion().reconstruct(images), lambda: EarlyNetwork().features(images)):
        with pytest.raises(NoisynbError, match='not fitted'): call()
    for wrong in dict(epochs=0), dict(epochs=2.5), dict(batch_size=0), dict(learning_rate=0), dict(flip='no'):
        with pytest.raises(NoisynbError, match=next(iter(wrong))): EarlyNetwork(**wrong).fit(images, codes, 2)
    with pytest.raises(NoisynbError, match='go from 0 to 1'): fitted.edit(images, codes + 2, rows)
    with pytest.raises(NoisynbError, match='row number'): fitted.edit(images, codes, rows[1:])
    with pytest.raises(NoisynbError, match='fitted on'): fitted.edit(images[:, :4], codes, rows)
    assert fitted.edit(images[:0], codes[:0], rows[:0]).shape == (0, 8, 8, 1)

@pytest.mark.parametrize('option', [dict(strength=1.5), dict(guidance=-1), dict(steps=0), dict(start='sideways'), dict(widths=(7,)), dict(boot=2.), dict(epochs=0), dict(epochs=2.5), dict(blocks=-1), dict(time_budget=-1), dict(flip='no'), dict(learning_rate=-1.)], ids=str)
def test_options_that_make_no_sense(option):
    with pytest.raises(NoisynbError, match=next(iter(option))): small(**option).fit(images, codes, 2)


# echoes of the diffusion model

def test_strength_zero_changes_no_bit(fitted): assert (fitted.adjusted(strength=0).edit(images, 1 - codes, rows) == images).all()

@pytest.mark.parametrize('start', ['inversion', 'noise'])
def test_one_echo_whatever_the_batch(fitted, start):
    mod = fitted.adjusted(start=start)
    images, labels = pictures(150, seed=5) # more than one batch of 64
    rows = np.arange(150)
    whole, order = mod.edit(images, labels, rows), np.random.default_rng(0).permutation(150)
    assert (mod.edit(images, labels, rows) == whole).all()
    assert (mod.edit(images[order], labels[order], rows[order]) == whole[order]).all()
    assert (mod.edit(images[97:98], labels[97:98], rows[97:98]) == whole[97:98]).all()
    assert (mod.edit(images, labels, rows + 150) == whole).all() == (start == 'inversion') # only noise needs chance
    assert (mod.edit(images, 1 - labels, rows) != whole).any() and whole.dtype == np.uint8 and whole.shape == images.shape

def test_the_same_fit_the_same_echoes(fitted):
    again = small().fit(images, codes, 2)
    assert again.fingerprint == fitted.fingerprint and (again.edit(images, codes, rows) == fitted.edit(images, codes, rows)).all()

def test_the_fingerprint_knows_everything(fitted):
    others = [small(random_state=1).fit(images, codes, 2), small().fit(images, 1 - codes, 2), small().fit(images[::-1], codes, 2), small().fit(images, codes, 2, classes='ab'), fitted.adjusted(guidance=2.), fitted.adjusted(steps=3), Identity().fit(images, codes, 2)]
    assert len({m.fingerprint for m in [fitted, *others]}) == len(others) + 1
    assert fitted.adjusted().fingerprint == fitted.fingerprint

def test_adjusted_shares_the_weights_and_refuses_options_of_training(fitted):
    assert fitted.adjusted(strength=.3).network_ is fitted.network_ and fitted.strength == .9
    with pytest.raises(NoisynbError, match='option of editing'): fitted.adjusted(epochs=3)

@pytest.mark.parametrize('shape', [(8, 8, 1), (9, 7, 1), (10, 12, 3)], ids=str)
def test_images_of_any_size(shape):
    images, codes = pictures(10, shape)
    mod = small(widths=(8, 8, 16), epochs=1).fit(images, codes, 2) # fewer images than a batch
    assert mod.edit(images, codes, np.arange(10)).shape == images.shape and mod.reconstruct(images).shape == images.shape

def test_a_class_without_examples_is_like_no_label():
    mod = small(epochs=3).fit(images, codes, 3)
    echoes = mod.edit(images, np.full(len(images), 2), rows)
    assert (echoes == mod.reconstruct(images)).mean() > .99 and (np.abs(echoes.astype(int) - mod.reconstruct(images)) <= 1).all()
    assert (mod.edit(images, codes, rows) != echoes).any()

def test_trust_decides_what_is_believed():
    trust = np.linspace(0, 1, len(images))
    assert (small(epochs=1).fit(images, codes, 2, trust=trust > .3).believed_ == (trust > .3)).all()
    assert (small(epochs=1).fit(images, codes, 2, trust=trust).believed_ == believe(trust, codes, 2)).all()
    assert small(epochs=1).fit(images, codes, 2).believed_.all() # boot=0
    booted = small(epochs=1, boot=.5).fit(images, codes, 2)
    assert booted.believed_.sum() == sum(-(-np.bincount(codes)//2)) and isinstance(booted.early_, EarlyNetwork)

def test_labels_that_are_not_believed_change_nothing():
    trust = rows < 24
    changed = np.where(trust, codes, 1 - codes)
    a, b = (small().fit(images, labels, 2, trust=trust) for labels in (codes, changed))
    assert all((x == y).all() for x, y in zip(a._state()[1::2], b._state()[1::2]))

def test_it_works():
    "Bars with 30 % wrong labels become bars of the other direction where the label is wrong, and stay where it is right"
    images, truth = pictures(160, seed=1)
    given = np.where(np.random.default_rng(2).random(160) < .3, 1 - truth, truth)
    mod = small(widths=(16, 32), epochs=30, batch_size=32, boot=.5, steps=5).fit(images, given, 2)
    def shown(x): return (x.astype(float).mean((2, 3)).var(1) > x.astype(float).mean((1, 3)).var(1)).astype(int)
    assert (shown(images) == truth).all()
    right = shown(mod.edit(images, given, np.arange(160))) == given
    assert right[given != truth].mean() > .9 and right[given == truth].mean() > .97
    assert (shown(mod.reconstruct(images)) == truth).mean() > .9 # without label hardly any is turned

def test_callers_keep_their_threads_and_their_chance(fitted):
    torch.manual_seed(3)
    state, threads, held = torch.get_rng_state(), torch.get_num_threads(), images.copy()
    fitted.edit(images, codes, rows)
    small(epochs=1).fit(images, codes, 2)
    assert (torch.get_rng_state() == state).all() and torch.get_num_threads() == threads and (images == held).all()


# settings without true labels

def test_own_share_by_hand():
    "Two images of one label and one of another: kept, exchanged, all alike, and nobody to compare with"
    x, label = np.array([[9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0]], np.uint8).reshape(3, 2, 2, 1), np.array([0, 0, 1])
    assert own_share(x, x, label) == 1 and own_share(x, x[[1, 0, 2]], label) == 0
    assert own_share(x, x[[0, 0, 2]], label) == 0 # equals are no success
    assert np.isnan(own_share(x, x, np.arange(3)))

def test_proxies(fitted):
    early = EarlyNetwork(8, device='cpu').fit(images, codes, 2)
    kept, found = proxies(Identity().fit(images, codes, 2), images, codes, early), proxies(fitted.adjusted(strength=0), images, codes, early, np.arange(10, 40))
    assert kept['own'] == 1 and kept['separation'] == 0 and kept['reconstruction'] is None
    assert kept['reached'] == pytest.approx((early.proba(images).argmax(1) == codes).mean())
    assert found['own'] == 1 and found['reconstruction'] == 0


# going on with training

def test_training_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    options, path = dict(epochs=3), str(tmp_path/'echo.pt')
    whole, epoch = small(**options).fit(images, codes, 2), Diffusion._epoch
    def stop(self, *a):
        if self.stops == 0: raise KeyboardInterrupt
        self.stops -= 1
        return epoch(self, *a)
    monkeypatch.setattr(Diffusion, '_epoch', stop)
    mod = small(**options, checkpoint=path)
    mod.stops = 2
    with pytest.raises(KeyboardInterrupt): mod.fit(images, codes, 2)
    mod = small(**options, checkpoint=path)
    mod.stops = 3
    assert mod.fit(images, codes, 2).fingerprint == whole.fingerprint and mod.stops >= 1
    mod = small(**options, checkpoint=path)
    mod.stops = 0 # a finished one is not trained any more
    assert mod.fit(images, codes, 2).fingerprint == whole.fingerprint
    with pytest.raises(NoisynbError, match='another run'): small(**options, checkpoint=path).fit(images, 1 - codes, 2)
    with pytest.raises(NoisynbError, match='another run'): small(epochs=4, checkpoint=path).fit(images, codes, 2)

def test_a_time_budget_ends_training_for_good(tmp_path):
    options = dict(epochs=10**6, time_budget=.002, checkpoint=str(tmp_path/'echo.pt'))
    a, b = (small(**options).fit(images, codes, 2) for _ in range(2))
    assert 0 < len(a.history_) == len(b.history_) and a.fingerprint == b.fingerprint


def test_the_labels_believed_are_those_of_the_checkpoint(tmp_path, monkeypatch):
    "though an early network that is trained again may believe others"
    options, hidden, epoch = dict(epochs=2, null_share=0., checkpoint=str(tmp_path/'echo.pt')), [], Diffusion._epoch
    def watched(self, state, *rest):
        if len(hidden) == 1: hidden.append(None); raise KeyboardInterrupt   # in the second epoch of the first run
        labels = []
        hook = state.network.register_forward_pre_hook(lambda net, inputs: labels.extend(inputs[2].tolist()))
        row = epoch(self, state, *rest)
        hook.remove()
        hidden.append(labels.count(2))
        return row
    monkeypatch.setattr(Diffusion, '_epoch', watched)
    half = np.arange(len(codes)) % 2 == 0
    monkeypatch.setattr(Diffusion, '_believed', lambda self, *rest: half if not hidden else np.zeros(len(codes), bool))
    with pytest.raises(KeyboardInterrupt): small(**options).fit(images, codes, 2)
    small(**options).fit(images, codes, 2)
    assert hidden == [(~half).sum(), None, (~half).sum()]


# the cache

@dataclass(eq=False, repr=False)
class Upside(EchoMod):
    "Inverts images, remembers for whom, and stops in front of a row"
    gain: int = 1
    def _fit(self, *a): self.asked, self.stop = [], None
    def _edit(self, images, labels, rows):
        if self.stop is not None and self.stop in rows: raise KeyboardInterrupt
        self.asked += rows.tolist()
        return 255 - images + labels[:, None, None, None].astype(np.uint8)

def upside(**options): return Upside(**options).fit(images, codes, 2)
expected = 255 - images + codes[:, None, None, None].astype(np.uint8)

def test_cache_once_and_never_again(tmp_path):
    mod = upside()
    first = echo_cache(tmp_path/'new'/'folder', mod, images, codes, 10)
    assert isinstance(first, np.memmap) and (first == expected).all() and mod.asked == rows.tolist()
    second = echo_cache(tmp_path/'new'/'folder', mod, images, codes, 7)
    assert (second == expected).all() and len(mod.asked) == len(rows)
    second[0] = 0 # the file is safe
    assert (echo_cache(tmp_path/'new'/'folder', mod, images, codes) == expected).all()
    assert (np.load(tmp_path/'new'/'folder'/'echoes.npy') == expected).all()

@few
@given(st.integers(1, 48), st.lists(st.integers(1, 20), min_size=3, max_size=3), st.lists(st.integers(0, 47), max_size=2), st.booleans())
def test_cache_goes_on_after_any_stop(n, sizes, stops, scribble):
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        mod = upside()
        for size, stop in zip(sizes, stops):
            mod.stop = stop
            try: echo_cache(folder, mod, images[:n], codes[:n], size, verbose=False)
            except KeyboardInterrupt: pass
            partial = os.path.join(folder, 'echoes.npy.partial')
            if scribble and os.path.exists(partial):
                with open(partial, 'ab') as f: f.write(b'written, but not recorded')
        mod.stop = None
        assert (echo_cache(folder, mod, images[:n], codes[:n], sizes[2], verbose=False) == expected[:n]).all()
        assert sorted(mod.asked) == list(range(n)) # nothing is computed twice: only the batch that was stopped is lost

killed = '''
import os, signal, sys
import numpy as np
sys.path.insert(0, {tests!r})
import test_echomod as t
assert 'diffusers' not in sys.modules # it takes seconds to import
class Upside(t.Upside):
    def _edit(self, images, labels, rows):
        if 30 in rows: os.kill(os.getpid(), signal.SIGKILL)
        return super()._edit(images, labels, rows)
t.echo_cache({folder!r}, Upside().fit(t.images, t.codes, 2), t.images, t.codes, 8)
'''

def test_cache_goes_on_after_a_kill(tmp_path):
    if not hasattr(signal, 'SIGKILL'): pytest.skip('no SIGKILL here')
    done = subprocess.run([sys.executable, '-c', killed.format(tests=os.path.dirname(__file__), folder=str(tmp_path))], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    mod = upside()
    assert (echo_cache(tmp_path, mod, images, codes, 8) == expected).all() and mod.asked == list(range(24, 48))

@pytest.mark.parametrize('whole', [True, False], ids=['finished', 'begun'])
def test_cache_refuses_what_is_not_its_own(tmp_path, whole):
    mod = upside()
    mod.stop = None if whole else 20
    try: echo_cache(tmp_path, mod, images, codes, 8)
    except KeyboardInterrupt: assert not whole
    mod.stop = None
    other = images.copy()
    other[-1, -1, -1, -1] ^= 1
    for what, arguments in dict(mod=(upside(gain=2), images, codes), images=(mod, other, codes), labels=(mod, images, 1 - codes)).items():
        with pytest.raises(NoisynbError, match=f'{what} is .* delete'): echo_cache(tmp_path, *arguments)
    assert (echo_cache(tmp_path, mod, images, codes) == expected).all()

@pytest.mark.parametrize('whole', [True, False], ids=['finished', 'begun'])
@pytest.mark.parametrize('harm', ['bytes', 'length', 'record', 'missing'])
def test_cache_refuses_damage(tmp_path, harm, whole):
    mod = upside()
    mod.stop = None if whole else 20
    try: echo_cache(tmp_path, mod, images, codes, 8)
    except KeyboardInterrupt: assert not whole
    mod.stop, data, record = None, next(tmp_path.glob('echoes.npy*')), tmp_path/'echoes.json'
    content = data.read_bytes()
    if harm == 'bytes': data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if harm == 'length': data.write_bytes(content[:-5])
    if harm == 'record': record.write_text(record.read_text()[:40])
    if harm == 'missing': record.unlink()
    if harm == 'missing' and not whole: # nothing says what is there, so it begins anew
        assert (echo_cache(tmp_path, mod, images, codes) == expected).all()
        return
    with pytest.raises(NoisynbError, match='delete .* computed again'): echo_cache(tmp_path, mod, images, codes)

def test_cache_in_a_place_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(NoisynbError, match='choose another folder'): echo_cache(tmp_path/'file', upside(), images, codes)

def test_cache_of_a_diffusion_model_equals_its_edits(tmp_path, fitted):
    assert (echo_cache(tmp_path, fitted, images, codes, 5, verbose=False) == fitted.edit(images, codes, rows)).all()
    assert json.loads((tmp_path/'echoes.json').read_text())['mod'] == fitted.fingerprint
