"Augmentation: the bytes of PIL, draws from one generator, mixing by hand"
import math
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scipy import stats

from noisynb import augment as A
from noisynb.core import NoisynbError, load_torchvision, torch_generator
from noisynb.datasets import datasets

quick = settings(max_examples=25, deadline=None)
affine = lambda *which: lambda i, v: i.transform(i.size, Image.Transform.AFFINE, [v*{'w': i.width, 'h': i.height}.get(k, 1) if isinstance(k, str) else k for k in which])
pil = { # operation -> what PIL does, smallest and largest magnitude
    'identity': (lambda i, v: i, 0, 1), 'invert': (lambda i, v: ImageOps.invert(i), 0, 1),
    'autocontrast': (lambda i, v: ImageOps.autocontrast(i), 0, 1), 'equalize': (lambda i, v: ImageOps.equalize(i), 0, 1),
    'posterize': (lambda i, v: ImageOps.posterize(i, max(1, int(v))), 0, 8), 'solarize': (ImageOps.solarize, 0, 256),
    'brightness': (lambda i, v: ImageEnhance.Brightness(i).enhance(v), 0, 3), 'contrast': (lambda i, v: ImageEnhance.Contrast(i).enhance(v), 0, 3),
    'colour': (lambda i, v: ImageEnhance.Color(i).enhance(v), 0, 3), 'sharpness': (lambda i, v: ImageEnhance.Sharpness(i).enhance(v), 0, 3),
    'rotate': (lambda i, v: i.rotate(v), -360, 360), 'shear_x': (affine(1, 'v', 0, 0, 1, 0), -2, 2), 'shear_y': (affine(1, 0, 0, 'v', 1, 0), -2, 2),
    'translate_x': (affine(1, 0, 'w', 0, 1, 0), -1.2, 1.2), 'translate_y': (affine(1, 0, 0, 0, 1, 'h'), -1.2, 1.2)}

def to_pil(x): return [Image.fromarray(i[0].numpy() if len(i) == 1 else i.permute(1, 2, 0).contiguous().numpy()) for i in x]

def from_pil(images): return torch.stack([torch.from_numpy(np.array(i)).reshape(i.height, i.width, -1).permute(2, 0, 1) for i in images])

def by_pil(x, name, magnitudes): return from_pil([pil[name][0](i, float(v)) for i, v in zip(to_pil(x), magnitudes)])

def draw(shape, seed, kind='noise'):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    if kind == 'levels': x = rng.choice(rng.integers(0, 256, 3, dtype=np.uint8), shape)
    if kind == 'constant': x[:] = x.flat[0]
    if kind == 'narrow': x = x//16 + 90
    if kind == 'dark': x = np.where(rng.random(shape) < .9, 0, x)
    return torch.from_numpy(np.ascontiguousarray(x, np.uint8))

sides = st.sampled_from([(8, 8), (28, 28), (32, 32), (17, 30), (3, 5), (2, 2), (1, 7), (64, 64)])
images = st.builds(lambda n, c, side, seed, kind: draw((n, c, *side), seed, kind), st.integers(1, 4), st.sampled_from([1, 3]), sides, st.integers(0, 2**32 - 1),
                   st.sampled_from(['noise', 'levels', 'constant', 'narrow', 'dark']))
seeds = st.integers(0, 2**31)


# against PIL

def test_every_operation_has_a_counterpart(): assert set(pil) == set(A.operations) >= set(A.promix_ranges)

@pytest.mark.parametrize('name', pil)
@settings(max_examples=40, deadline=None)
@given(x=images, data=st.data())
def test_operations_are_those_of_pil(name, x, data):
    _, low, high = pil[name]
    v = data.draw(st.lists(st.floats(low, high) | st.integers(math.ceil(low), math.floor(high)).map(float), min_size=len(x), max_size=len(x)))
    before = x.clone()
    out = A.operations[name](x, torch.tensor(v, dtype=torch.float64))
    assert out.dtype == torch.uint8 and out.is_contiguous()
    assert torch.equal(out, by_pil(x, name, v))
    assert torch.equal(x, before)

@pytest.mark.parametrize('name', pil)
def test_large_images_and_one_magnitude_for_all(name):
    x, v = draw((2, 3, 224, 224), 0), .3*pil[name][2] + .7*pil[name][1]
    assert torch.equal(A.operations[name](x, v), by_pil(x, name, [v, v]))

@pytest.mark.parametrize('angle', [-450, -90, 0, 90, 180, 270, 360, 720, 45, 30])
@pytest.mark.parametrize('side', [(8, 8), (9, 9), (8, 12)])
def test_right_angles(angle, side):
    x = draw((1, 3, *side), 1)
    assert torch.equal(A.rotate(x, angle), by_pil(x, 'rotate', [angle]))

@pytest.mark.parametrize('name, v', [('solarize', 256), ('solarize', 0), ('solarize', 255), ('solarize', 254.5), ('posterize', 8), ('posterize', 0)])
def test_the_ends_of_the_scale(name, v):
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(A.operations[name](x, v), by_pil(x, name, [v]))

@quick
@given(images, st.data())
def test_windows(x, data):
    n, c, h, w = x.shape
    top, left = (torch.tensor(data.draw(st.lists(st.integers(-s - 1, s + 1), min_size=n, max_size=n))) for s in (h, w))
    mirrored, size = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))), data.draw(st.none() | st.integers(1, 40))
    expected = [i.crop((l, t, l + (size or w), t + (size or h))) for i, t, l in zip(to_pil(x), top.tolist(), left.tolist())]
    expected = from_pil([ImageOps.mirror(i) if m else i for i, m in zip(expected, mirrored)])
    assert torch.equal(A.crop(x, top, left, mirrored, size), expected)
    assert torch.equal(A.crop(x.float(), top, left, mirrored, size), expected.float())

@quick
@given(seeds, st.sampled_from([8, 28, 32]), st.data())
def test_reflected_edges(seed, side, data):
    x, pad = draw((3, 3, side, side), seed), data.draw(st.integers(0, side - 1))
    top, left = torch.tensor(data.draw(st.lists(st.tuples(st.integers(-pad, pad), st.integers(-pad, pad)), min_size=3, max_size=3))).T
    wide = np.pad(x.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode='reflect')
    expected = np.stack([i[:, pad + t:pad + t + side, pad + l:pad + l + side] for i, t, l in zip(wide, top, left)])
    assert np.array_equal(A.crop(x, top, left, padding='reflect'), expected)

@quick
@given(images, seeds)
def test_squares(x, seed):
    n, c, h, w = x.shape
    side, across, down = np.random.default_rng(seed).random((3, n))*np.array([[w*.8], [w], [h]])
    side[::3] = 0
    expected = []
    for i, v, cx, cy in zip(to_pil(x), side, across, down):
        if v > 0:
            x0, y0 = int(max(0, cx - v/2)), int(max(0, cy - v/2))
            ImageDraw.Draw(i).rectangle((x0, y0, min(w, x0 + v), min(h, y0 + v)), (125, 123, 114) if c == 3 else 123)
        expected.append(i)
    assert torch.equal(A.cut(x, *map(torch.tensor, (side, across, down))), from_pil(expected))
    assert Image.new('RGB', (1, 1), (125, 123, 114)).convert('L').getpixel((0, 0)) == 123


# whole views

@pytest.mark.parametrize('shape', [(40, 1, 8, 8), (40, 3, 32, 32), (10, 1, 28, 28)])
def test_strong_view_is_pil_image_by_image(shape):
    "The same draws from a twin generator, then everything by PIL"
    x, twin = draw(shape, 2), torch_generator(0, 'twin')
    (n, c, h, w), names = shape, list(A.promix_ranges)
    uniform = lambda *size: torch.rand(size, generator=twin, dtype=torch.float64).numpy()
    which, strength = (uniform(3, n)*14).astype(int), uniform(3, n)
    u, place = uniform(3, n), uniform(3, n)
    expected = []
    for k, i in enumerate(to_pil(x)):
        for op, s in zip(which[:, k], strength[:, k]):
            low, high = A.promix_ranges[names[op]]
            i = pil[names[op]][0](i, low + (high - low)*s)
        side = u[0, k]*.5*w
        x0, y0 = int(max(0, u[1, k]*w - side/2)), int(max(0, u[2, k]*h - side/2))
        i = i.copy()
        ImageDraw.Draw(i).rectangle((x0, y0, min(w, x0 + side), min(h, y0 + side)), (125, 123, 114) if c == 3 else 123)
        pad = h//8
        top, left = (int(place[r, k]*(2*pad + 1)) - pad for r in (0, 1))
        i = i.crop((left, top, left + w, top + h))
        expected.append(ImageOps.mirror(i) if place[2, k] < .5 else i)
    assert torch.equal(A.strong(x, torch_generator(0, 'twin')), from_pil(expected))

def test_promix_list():
    assert len(A.promix_ranges) == 14 and 'invert' not in A.promix_ranges
    assert {A.promix_ranges[k] for k in ('brightness', 'colour', 'contrast', 'sharpness')} == {(.05, .95)}
    assert A.promix_ranges['posterize'] == (4, 8) and A.promix_ranges['rotate'] == (-30, 30) and A.promix_ranges['solarize'] == (0, 256)
    assert {A.promix_ranges[k] for k in ('shear_x', 'shear_y', 'translate_x', 'translate_y')} == {(-.3, .3)}

def test_offsets_and_flips_are_even():
    marks = torch.zeros(20_000, 1, 9, 9, dtype=torch.uint8); marks[:, :, 4, 3] = 1
    views = A.weak(marks, torch_generator(0, 'even'), pad=2)
    row, col = views.flatten(1).argmax(1)//9, views.flatten(1).argmax(1) % 9
    assert views.flatten(1).sum(1).eq(1).all()
    assert stats.chisquare(row.bincount()[2:7]).pvalue > 1e-4 and row.min() == 2 and row.max() == 6
    expected = torch.zeros(9); expected[1:6] += .1; expected[3:8] += .1
    assert (col.bincount(minlength=9)/20_000 - expected).abs().max() < .02
    unflipped = A.weak(marks, torch_generator(0, 'even'), pad=2, flip=False)
    assert torch.equal(unflipped.sum(3), views.sum(3)) # the crops don't depend on the flips
    mirrored = (views != unflipped).flatten(1).any(1)
    assert torch.equal(views[mirrored], unflipped[mirrored].flip(3)) and .38 < mirrored.float().mean() < .42 # a mark in the middle stays

def test_sizes():
    x = draw((4, 3, 64, 64), 0)
    assert A.weak(x, torch_generator(0, 'a'), pad=0, size=56).shape == (4, 3, 56, 56)
    assert A.strong(x, torch_generator(0, 'a'), size=56).shape == (4, 3, 56, 56)
    assert torch.equal(A.weak(x, torch_generator(0, 'a'), pad=0, flip=False), x)
    for side, pad in ((8, 1), (28, 3), (32, 4), (64, 8), (224, 28)): # the default padding is an eighth
        x = draw((1, 1, side, side), 0)
        assert torch.equal(A.weak(x, torch_generator(1, 'a')), A.weak(x, torch_generator(1, 'a'), pad=pad))

makers = {'weak': lambda x, t, g: A.weak(x, g), 'strong': lambda x, t, g: A.strong(x, g), 'rand_augment': lambda x, t, g: A.rand_augment(x, g), 'cutout': lambda x, t, g: A.cutout(x, g),
          'mixup': lambda x, t, g: torch.cat([a.flatten() for a in A.mixup(x.float(), t, g)]), 'fmix': lambda x, t, g: torch.cat([a.flatten() for a in A.fmix(x.float(), t, g)]),
          'fmix with quirk': lambda x, t, g: torch.cat([a.flatten() for a in A.fmix(x.float(), t, g, quirk=True)])}

@pytest.mark.parametrize('name', makers)
def test_chance_comes_from_the_generator_alone(name):
    make, x, t = makers[name], draw((16, 3, 32, 32), 3), torch.eye(16)
    states, before = [], x.clone()
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        generator = torch_generator(0, name)
        states.append(make(x, t, generator))
        assert torch.equal(torch.get_rng_state(), state)
        states.append(make(x, t, generator))
    assert torch.equal(states[0], states[2]) and torch.equal(states[1], states[3])
    assert not torch.equal(states[0], states[1])
    assert torch.equal(x, before)

@pytest.mark.parametrize('name', ['weak', 'strong'])
def test_images_have_draws_of_their_own(name):
    same = draw((1, 3, 32, 32), 4).expand(50, -1, -1, -1)
    assert len(makers[name](same, None, torch_generator(0, 'own')).flatten(1).unique(dim=0)) > 30

def test_no_images():
    none = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
    for name in A.operations: assert A.operations[name](none, .5).shape == none.shape
    assert A.strong(none, torch_generator(0, 'none')).shape == none.shape

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA here')
def test_a_host_generator_gives_the_same_views_on_the_gpu():
    x, t = draw((64, 3, 32, 32), 5), torch.eye(64)
    for name in 'weak', 'strong': assert torch.equal(makers[name](x.cuda(), t, torch_generator(0, 'gpu')).cpu(), makers[name](x, t, torch_generator(0, 'gpu')))
    assert torch.allclose(makers['mixup'](x.cuda(), t.cuda(), torch_generator(0, 'gpu')).cpu(), makers['mixup'](x, t, torch_generator(0, 'gpu')), atol=1e-4)
    for make in makers.values(): assert make(x.cuda(), t.cuda(), torch_generator(0, 'gpu', 'cuda')).is_cuda


# mixing

def test_mixed_targets_by_hand():
    t = torch.tensor([[.998916, .000976, .000108], [.084853, .908836, .006311], [.001638, .001638, .996724]], dtype=torch.float64)
    expected = torch.tensor([[.799461, .001108, .199431], [.267665, .727264, .005071], [.018281, .183078, .798641]], dtype=torch.float64)
    assert torch.allclose(A.mix(t, .8, torch.tensor([2, 0, 1])), expected, atol=2e-6)
    assert torch.equal(A.mix(t, 1., torch.tensor([2, 0, 1])), t)

@quick
@given(seeds, st.sampled_from([.2, .5, 1., 4.]), st.booleans())
def test_mixup(seed, alpha, larger):
    n = 9
    x, t = torch.arange(float(n)).view(n, 1, 1, 1).expand(n, 1, 2, 2).double(), torch.eye(n, dtype=torch.float64)
    mixed, targets = A.mixup(x, t, torch_generator(seed, 'mixup'), alpha, larger)
    assert torch.allclose(targets.sum(1), torch.ones(n, dtype=torch.float64)) and (targets >= 0).all()
    assert torch.allclose(mixed[:, 0, 0, 0], targets @ torch.arange(n, dtype=torch.float64)) # images and targets are mixed alike
    own = targets.diagonal()
    assert not larger or (own >= .5).all()
    assert len(own[own < 1].unique()) <= 1 # one lambda for the batch

@pytest.mark.parametrize('alpha', [.2, 1., 4., 32.])
def test_beta(alpha):
    generator = torch_generator(0, 'beta')
    draws = torch.stack([A.beta(alpha, generator) for _ in range(2000)]).numpy()
    assert stats.kstest(draws, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    if alpha == 4: assert np.maximum(draws, 1 - draws).mean() == pytest.approx(.5 + math.comb(8, 4)/2**9, abs=.01)

def test_region_by_hand():
    assert A.region(torch.tensor([[[.1, .9], [.4, .3]]]), 2).tolist() == [[[False, True], [True, False]]]
    field = A.low_frequency((32, 32), torch_generator(0, 'region'), 3)
    assert A.region(field, torch.tensor([307, 0, 1024])).sum((1, 2)).tolist() == [307, 0, 1024]
    assert (field[0][A.region(field, 307)[0]].min() >= field[0][~A.region(field, 307)[0]].max())

def test_fmix_takes_each_pixel_from_one_of_two():
    n, areas = 7, set()
    x = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 32, 32)
    for seed in range(40):
        mixed, t = A.fmix(x, torch.eye(n, dtype=torch.float64), torch_generator(seed, 'fmix'))
        own = mixed == x
        lam, moved = t.diagonal().min(), t.diagonal() < 1
        assert torch.allclose(t.sum(1), torch.ones(n, dtype=torch.float64)) and len(mixed.flatten(1).unique()) <= n
        assert (own[moved] == own[moved][:1]).all() # one mask for the batch and the channels
        count = own[moved][0, 0].sum().item()
        assert count in (math.floor(lam*1024), math.ceil(lam*1024))
        partner = t.clone(); partner.fill_diagonal_(0)
        assert torch.equal(mixed[moved].flatten(1).max(1).values.long(), torch.maximum(partner.argmax(1), torch.arange(n))[moved])
        areas.add(count - math.floor(lam*1024))
    assert areas == {0, 1} # rounded both ways

def test_fmix_loss_by_hand():
    "The loss on mixed targets is the mixture of the losses"
    z, one_hot, permutation = torch.tensor([[1, 0, -1], [0, .5, 0], [2, 2, 0]], dtype=torch.float64), torch.eye(3, dtype=torch.float64), torch.tensor([2, 0, 1])
    loss = torch.nn.functional.cross_entropy(z, A.mix(one_hot, .3, permutation))
    assert loss.item() == pytest.approx(1.436869, abs=1e-6)

@pytest.mark.parametrize('quirk', [False, True])
@pytest.mark.parametrize('size', [(32, 32), (8, 8), (28, 28), (12, 9), (9, 14)])
def test_spectrum(quirk, size):
    "A field from the same noise by NumPy, frequency by frequency"
    h, w = size
    noise = torch.randn((1, h, w//2 + 1, 2), generator=torch_generator(0, 'field')).double().numpy()[0]
    frequency = np.sqrt(np.fft.fftfreq(h)[:, None]**2 + np.arange(w//2 + 1)**2/w**2)
    parts = noise/np.maximum(frequency, 1/max(h, w))[..., None]**3
    field = np.fft.irfftn(parts[0] + 1j*parts[1] if quirk else parts[..., 0] + 1j*parts[..., 1], size, axes=(0, 1))
    field = (field - field.min())/(field.max() - field.min())
    got = A.low_frequency(size, torch_generator(0, 'field'), quirk=quirk)[0]
    assert got.min() == 0 and got.max() == 1
    assert np.abs(got.numpy() - field).max() < 1e-4

@pytest.mark.parametrize('quirk, expected', [(False, (.46, .51, .02)), (True, (.19, .81, 0))])
def test_energy_by_horizontal_frequency(quirk, expected):
    fields = A.low_frequency((32, 32), torch_generator(0, 'energy'), 2000, quirk=quirk)
    power = torch.fft.rfft2(fields - fields.mean((1, 2), keepdim=True)).abs().square().sum((0, 1))
    share = power/power.sum()
    assert (share[0].item(), share[1].item(), share[2:].sum().item()) == pytest.approx(expected, abs=.02)


# normalising, and what is refused

def test_normalise_is_that_of_torchvision():
    load_torchvision()
    from torchvision import transforms as T
    x, (mean, deviation) = draw((5, 3, 32, 32), 6), A.published['cifar10']
    expected = torch.stack([T.Compose([T.ToTensor(), T.Normalize(mean, deviation)])(i) for i in to_pil(x)])
    assert torch.allclose(A.normalize(x, mean, deviation), expected, atol=2e-6)
    assert A.normalize(x, mean, deviation, torch.bfloat16).dtype == torch.bfloat16
    last = x.to(memory_format=torch.channels_last)
    assert A.normalize(last, mean, deviation).is_contiguous(memory_format=torch.channels_last)

@quick
@given(images)
def test_statistics(x):
    mean, deviation = A.statistics(x)
    values = x.numpy()/255
    assert mean == pytest.approx(values.mean((0, 2, 3)), abs=1e-9)
    spread = values.std((0, 2, 3))
    assert deviation == pytest.approx(np.where(spread > 1e-9, spread, 1), abs=1e-6)
    assert A.normalize(x, mean, deviation).isfinite().all()

def test_published_statistics():
    x = draw((2, 3, 4, 4), 0)
    assert A.statistics(x, 'cifar10') == ((.4914, .4822, .4465), (.2023, .1994, .2010)) == A.statistics(x, 'cifar10n')
    assert A.statistics(x, 'cifar100')[1] == (.267, .256, .276)
    assert set(A.published) - {'cifar10-promix'} <= set(datasets)
    assert A.statistics(x, 'my pictures') == A.statistics(x)

x = draw((2, 3, 8, 8), 0)
@pytest.mark.parametrize('wrong, words', [
    (lambda g: A.weak(x, None), 'give a torch.Generator'), (lambda g: A.weak(x, 0), 'give a torch.Generator'),
    (lambda g: A.weak(x[0], g), r'\(3, 8, 8\)'), (lambda g: A.weak(x, g, pad=-1), 'pad=-1'), (lambda g: A.weak(x, g, pad=1, size=11), 'side 11 in images of 8x8'),
    (lambda g: A.weak(x, g, pad=8, padding='reflect'), 'pad=8'), (lambda g: A.weak(x, g, padding='zero'), "did you mean 'zeros'"),
    (lambda g: A.strong(x.float(), g), 'float32'), (lambda g: A.equalize(x[:, :2]), '2 channels'), (lambda g: A.rotate(x.double(), 3), 'float64'),
    (lambda g: A.rand_augment(x, g, ranges={'rotat': (0, 1)}), "did you mean 'rotate'"), (lambda g: A.cutout(x.float(), g), 'float32'),
    (lambda g: A.mixup(x, torch.eye(2), g), 'uint8'), (lambda g: A.mixup(x.float(), torch.arange(2), g), 'int64'), (lambda g: A.mixup(x.float(), torch.eye(2), g, alpha=0), 'alpha is 0'),
    (lambda g: A.fmix(x, torch.arange(2), g), 'int64'), (lambda g: A.low_frequency((8, 8), None), 'give a torch.Generator'), (lambda g: A.beta(1., 3), 'give a torch.Generator'),
    (lambda g: A.normalize(x.float(), (0,)*3, (1,)*3), 'float32'), (lambda g: A.normalize(x, (0,), (1,)), '1 means for 3 channels'), (lambda g: A.statistics(x[:0]), 'at least one')])
def test_mistakes(wrong, words):
    with pytest.raises(NoisynbError, match=words): wrong(torch_generator(0, 'mistakes'))
