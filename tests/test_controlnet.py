"Echoes by ControlNet: edges by brute force, the loop against the library's own, and every file that can be missing"
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from noisynb.methods.echoalign import controlnet
from noisynb.methods.echoalign.controlnet import ControlNet, canny, pipeline, prompts, random_pipeline, throughput
from noisynb.core import MissingExtra, NoisynbError, require, torch_generator
from noisynb.methods.echoalign.controlnet import make_echomod
from noisynb.methods.echoalign.echomod import echo_cache

needs_extra = pytest.mark.skipif(not all(map(find_spec, ('diffusers', 'transformers', 'accelerate'))), reason='the extra echo is not installed')
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
labels, rows, classes = np.arange(7) % 3, np.arange(7) + 10, ('cat', 'dog', 'red_deer')


tiny = cache(random_pipeline)

def fitted(base=None, x=images, **options):
    options = dict(size=16, device='cpu', base=base or tiny()) | options
    return ControlNet(**options).fit(x, labels[:len(x)], 3, classes)


# edges

def slow_canny(grey, low, high, sigma):
    "One image, pixel by pixel"
    r = max(1, round(3*sigma))
    k = np.exp(-np.arange(-r, r + 1)**2/(2*sigma**2))
    for axis in 0, 1: grey = ndimage.correlate1d(grey, k/k.sum(), axis, mode='nearest')
    kernel = np.array([[-1., 0, 1], [-2, 0, 2], [-1, 0, 1]])
    gx, gy = ndimage.correlate(grey, kernel, mode='nearest'), ndimage.correlate(grey, kernel.T, mode='nearest')
    m = np.pad(np.hypot(gx, gy), 1)
    ridge = np.zeros_like(grey)
    for y in range(grey.shape[0]):
        for x in range(grey.shape[1]):
            turned = np.degrees(np.arctan2(gy[y, x], gx[y, x])) % 180
            dy, dx = [(0, 1), (1, 1), (1, 0), (1, -1)][int((turned + 22.5)//45) % 4]
            here, one, other = m[y+1, x+1], m[y+1+dy, x+1+dx], m[y+1-dy, x+1-dx]
            if here > one and here >= other: ridge[y, x] = here
    parts, n = ndimage.label(ridge >= max(low*ridge.max(), 1e-4), np.ones((3, 3)))
    kept = [i for i in range(1, n + 1) if ridge[parts == i].max() >= high*ridge.max()]
    return np.isin(parts, kept)

@pytest.mark.parametrize('low, high, sigma', [(.1, .2, 1.4), (.05, .6, 1.), (.3, .9, 2.)])
def test_edges_are_those_of_the_definition(low, high, sigma):
    x = ndimage.zoom(rng.random((5, 9, 12)), (1, 4, 4), order=3).clip(0, 1)
    ours = canny(torch.tensor(x)[:, None], low, high, sigma)[:, 0].bool().numpy()
    theirs = np.stack([slow_canny(g, low, high, sigma) for g in x])
    assert theirs.any((1, 2)).all() and (ours != theirs).mean() < .002 # ties and the last bits of float32

def test_a_long_weak_edge_is_followed_from_its_strong_end():
    ramp = torch.zeros(1, 1, 8, 300)
    ramp[:, :, 4:] = torch.linspace(1, .3, 300)
    assert canny(ramp, .2, .95, 1.).amax((1, 2))[0].sum() > 290
    assert canny(ramp, .5, .95, 1.).amax((1, 2))[0].sum() < 250

def test_an_image_has_the_same_edges_alone_and_in_a_batch():
    x = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    x[1] = .3 # nothing to see
    both = canny(x)
    assert all(torch.equal(canny(x[i:i+1]), both[i:i+1]) for i in range(4)) and not both[1].any() and both[0].any()


# prompts

def test_prompts():
    assert prompts(('cat', 'red_deer'), 'one {}, alone') == ['one cat, alone', 'one red deer, alone']
    assert prompts(('a', 'b'), {'b': 'B', 'a': 'A'}) == ['A', 'B']

@pytest.mark.parametrize('names, template, says', [(None, '{}', 'classes='), (('a',), 'photo', 'same for all'), (('a', 'b'), {'a': 'A'}, "'b'")])
def test_prompts_that_say_nothing_are_refused(names, template, says):
    with pytest.raises(NoisynbError, match=says): prompts(names, template)


# files

@pytest.mark.parametrize('hidden', ['diffusers', 'transformers', 'accelerate'])
def test_without_the_extra_its_name_is_in_the_error(monkeypatch, hidden):
    monkeypatch.setattr(controlnet, 'require', lambda module, extra: require(f'{module}_absent', extra) if module == hidden else None)
    with pytest.raises(MissingExtra, match=rf'{hidden}_absent is not installed.*noisynb\[echo\]'): ControlNet(device='cpu').fit(images, labels, 3, classes)

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp('weights')
    tiny().save_pretrained(where)
    return where

@needs_extra
def test_saved_and_loaded_is_the_same_generator(folder):
    saved, kept = fitted(folder), fitted()
    assert saved.fingerprint == kept.fingerprint != fitted(tiny(seed=1)).fingerprint
    assert (saved.edit(images, labels, rows) == kept.edit(images, labels, rows)).all()
    assert all(p.suffix != '.bin' for p in folder.rglob('*'))

@needs_extra
@pytest.mark.parametrize('gone', ['unet/diffusion_pytorch_model.safetensors', 'unet/config.json', 'text_encoder/model.safetensors', 'scheduler/scheduler_config.json', 'controlnet/config.json', 'vae/diffusion_pytorch_model.safetensors'])
def test_a_missing_file_is_named(folder, gone):
    away = folder/'away'
    (folder/gone).rename(away)
    try:
        with pytest.raises(NoisynbError) as e: pipeline(folder)
    finally: away.rename(folder/gone)
    assert (gone.replace('diffusion_pytorch_model', '*').replace('text_encoder/model', 'text_encoder/*') if gone[0] != 'c' else 'config.json') in str(e.value)

@needs_extra
def test_a_damaged_file_is_an_error_that_names_the_folder(folder):
    f = folder/'unet/diffusion_pytorch_model.safetensors'
    whole = f.read_bytes()
    f.write_bytes(whole[:100])
    try:
        with pytest.raises(NoisynbError, match='cannot be read'): pipeline(folder)
    finally: f.write_bytes(whole)

@needs_extra
def test_weights_that_cannot_be_fetched_are_named_with_a_way_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    owner, revision = controlnet.sources['canny'].split('@')
    with pytest.raises(NoisynbError, match=f'hf download {owner} --revision {revision}'): make_echomod('controlnet', device='cpu').fit(images, labels, 3, classes)

@pytest.mark.parametrize('name', ['lcn', 'a/b/c', './nowhere/at-all', '/nowhere/at-all'])
def test_a_name_that_is_neither_folder_nor_repository(name):
    with pytest.raises(NoisynbError, match='lcm, sd15'): controlnet._found(name, {})

def test_public_weights_are_pinned():
    assert all(len(s.split('@')[1]) == 40 for s in controlnet.sources.values())


# echoes

@needs_extra
@pytest.mark.parametrize('options', [{}, dict(scheduler='unipc', steps=3, strength=.5), dict(strength=.6, scheduler='ddim', steps=2)], ids=str)
def test_a_row_has_one_echo(options):
    m = fitted(**options)
    all_at_once, back = m.edit(images, labels, rows), np.arange(7)[::-1]
    assert all_at_once.shape == images.shape and all_at_once.dtype == np.uint8 and all_at_once.std() > 5
    for some in back, np.array([3]), np.array([5, 2, 2]): assert (m.edit(images[some], labels[some], rows[some]) == all_at_once[some]).all()
    for size in 1, 2, 7:
        m.batch_size = size
        assert (m.edit(images, labels, rows) == all_at_once).all()
    assert m.edit(images[:0], labels[:0], rows[:0]).shape == (0, 16, 16, 3)

@needs_extra
def test_an_echo_depends_on_row_label_edges_and_seed():
    m = fitted()
    first = m.edit(images, labels, rows)
    for other in (images, labels, rows + 7), (images, (labels + 1) % 3, rows), (images[::-1], labels, rows): assert (m.edit(*other) != first).any()
    assert (fitted(random_state=1).edit(images, labels, rows) != first).any()

@needs_extra
@pytest.mark.parametrize('distilled', [True, False])
@pytest.mark.parametrize('name, steps, w', [('lcm', 4, 8.), ('ddim', 4, 7.5), ('ddim', 3, 1.), ('unipc', 5, 3.)])
def test_the_loop_gives_what_the_pipeline_of_diffusers_gives(distilled, name, steps, w):
    import diffusers
    pipe = tiny(distilled=distilled)
    m = fitted(pipe, scheduler=name, steps=steps, guidance=w)
    streams = lambda: [torch_generator(0, f'echo {r}') for r in rows]
    x = torch.tensor(images).permute(0, 3, 1, 2).float()/255
    ours = (m._denoised(x, torch.tensor(labels), streams())/2 + .5).clamp(0, 1)
    scheduler = controlnet._scheduler(pipe.scheduler.config, name, steps, 1., 'cpu')[0]
    library = diffusers.StableDiffusionControlNetPipeline(**pipe.components | dict(scheduler=scheduler), requires_safety_checker=False)
    library.set_progress_bar_config(disable=True)
    theirs = library([m.prompts_[i] for i in labels], canny(x).expand(-1, 3, -1, -1), num_inference_steps=steps, guidance_scale=w, negative_prompt=[''] * 7 if w > 1 else None, generator=streams(), output_type='pt').images
    assert (ours - theirs).abs().max() < 1e-5 and theirs.std() > .05

@needs_extra
@pytest.mark.parametrize('distilled, w, passes', [(True, 8., 1), (False, 1., 1), (False, 6., 2), (False, 0., 2)])
def test_guidance(distilled, w, passes):
    "1 + w (3 - 1) from a network that says 1 without a prompt and 3 with one, and no second pass where it changes nothing"
    m, seen, said = fitted(tiny(distilled=distilled), guidance=w, steps=1, scheduler='ddim', negative='not this'), [], []
    control, unet, vae = m._nets
    def told(z, t, words, **_):
        seen.append(len(z))
        return torch.where((words == m.words_[-1]).flatten(1).all(1), 1., 3.).view(-1, 1, 1, 1).expand_as(z),
    told.config = unet.config
    class Step:
        def step(self, eps, t, z, return_dict): said.append(eps.unique().tolist()); return (z,)
    original, controlnet._scheduler = controlnet._scheduler, lambda *a: (Step(), torch.tensor([500]))
    try:
        m._nets = control, told, vae
        m._denoised(torch.rand(7, 3, 16, 16), torch.tensor(labels), [torch_generator(0, str(r)) for r in rows])
    finally: controlnet._scheduler = original
    assert seen == [7*passes] and said == [[3. if distilled or w == 1 else 1 + 2*w]]

@needs_extra
@pytest.mark.parametrize('steps, strength', [(4, 1.), (3, .5), (1, .9), (4, .2)])
@pytest.mark.parametrize('name', ['lcm', 'ddim', 'unipc'])
def test_all_steps_are_made_at_any_strength(name, steps, strength):
    times = controlnet._scheduler(tiny().scheduler.config, name, steps, strength, 'cpu')[1].tolist()
    assert len(times) == steps and times == sorted(set(times), reverse=True) and abs(times[0] - 1000*strength) <= 120

@needs_extra
def test_no_strength_no_edit():
    assert (fitted(strength=0.).edit(images, labels, rows) == images).all()

@needs_extra
def test_less_strength_starts_from_the_image(monkeypatch):
    "With networks and a scheduler that do nothing, what comes out is the image in latents with the noise of the first step"
    m, x = fitted(strength=.3), torch.tensor(images).permute(0, 3, 1, 2).float()/255
    half = lambda x: torch.nn.functional.avg_pool2d(x, 2)[:, [0, 1, 2, 0]]
    s, times = controlnet._scheduler(m.pipe_.scheduler.config, 'lcm', 4, .3, 'cpu')
    a = s.alphas_cumprod[times[0]]
    monkeypatch.setattr(s, 'step', lambda eps, t, z, return_dict: (z,))
    monkeypatch.setattr(controlnet, '_scheduler', lambda *_: (s, times))
    vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=.5), encode=lambda x: SimpleNamespace(latents=half(x)), decode=lambda z, return_dict: (z,))
    m._nets = [*m._nets[:2], vae]
    streams = lambda: [torch_generator(0, f'echo {r}') for r in rows]
    out = m._denoised(x, torch.tensor(labels), streams())*.5
    noise = torch.cat([torch.randn((1, 4, 8, 8), generator=g) for g in streams()])
    assert torch.allclose(out, a.sqrt()*half(2*x - 1)*.5 + (1 - a).sqrt()*noise, atol=1e-5)

@needs_extra
def test_labels_and_trust_teach_it_nothing():
    a, b = fitted(), ControlNet(base=tiny(), size=16, device='cpu').fit(images, labels[::-1].copy(), 3, classes, trust=np.zeros(7, bool))
    assert (a.edit(images, labels, rows) == b.edit(images, labels, rows)).all()

@needs_extra
@pytest.mark.parametrize('shape', [(16, 16, 1), (20, 12, 3), (9, 31, 1), (32, 32, 3)])
def test_the_shape_is_kept(shape):
    x = rng.integers(0, 256, (3, *shape), dtype=np.uint8)
    assert fitted(x=x).edit(x, labels[:3], rows[:3]).shape == x.shape

@needs_extra
@pytest.mark.parametrize('options', [dict(vae='vae'), {}], ids=str)
def test_the_small_decoder(options, folder, tmp_path):
    random_pipeline(small_vae=True).vae.save_pretrained(tmp_path)
    m = fitted(folder, vae=str(tmp_path), strength=.5) if options else fitted(random_pipeline(small_vae=True))
    assert type(m.pipe_.vae).__name__ == 'AutoencoderTiny' and m.edit(images, labels, rows).std() > 1

@needs_extra
def test_options_that_change_echoes_change_the_fingerprint(folder):
    base = fitted().fingerprint
    others = dict(steps=3), dict(guidance=2.), dict(prompt='{}'), dict(random_state=1), dict(size=24), dict(strength=.5), dict(base=folder, dtype='bfloat16')
    assert len({base} | {fitted(**o).fingerprint for o in others}) == 8
    assert fitted(batch_size=2).fingerprint == base == fitted(folder).fingerprint

@needs_extra
@pytest.mark.parametrize('options, says', [(dict(size=20), 'multiple of 8'), (dict(strength=1.5), 'strength'), (dict(scheduler='lmc'), "'lcm'"), (dict(steps=0), 'steps'), (dict(steps=60), 'steps=60'),
    (dict(dtype='float16'), 'bfloat16'), (dict(prompt='very '*80 + '{}'), 'tokens'), (dict(negative='very '*80), 'tokens')], ids=lambda v: str(v)[:30])
def test_options_that_make_no_sense(options, says):
    with pytest.raises(NoisynbError, match=says): fitted(**options)

@needs_extra
def test_images_with_alpha_and_numbers_that_are_none():
    with pytest.raises(NoisynbError, match='alpha'): fitted(x=np.zeros((2, 16, 16, 4), np.uint8))
    m = fitted(random_pipeline())
    with torch.no_grad(): m.pipe_.vae.decoder.conv_out.bias += float('nan')
    with pytest.raises(NoisynbError, match='NaN'): m.edit(images, labels, rows)

@needs_extra
def test_echoes_are_cached(tmp_path):
    m = fitted()
    kept = echo_cache(tmp_path, m, images, labels, batch_size=3, verbose=False)
    assert (np.asarray(kept) == m.edit(images, labels, np.arange(7))).all()

@needs_extra
def test_speed_is_measured():
    r = throughput(batches=2, batch_size=2, shape='tiny', device='cpu', size=16)
    assert r['images_per_second'] > 0 and r['minutes_for_50000'] == pytest.approx(50_000/60/r['images_per_second']) and r['steps'] == 4
