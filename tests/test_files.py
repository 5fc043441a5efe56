"Pictures in files, folders and tables: every kind of pixel, every way to be broken, and nothing lost without a word"
import csv, hashlib, io, json, os, pickle, struct, sys, zlib
from pathlib import Path
import numpy as np, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from noisynb.embeddings import extractors as E
from noisynb.datasets import files as F
from noisynb.core import MissingExtra, NoisynbError
from noisynb.disk import fingerprint
from noisynb.datasets import Dataset, Split, available, load
from noisynb.embeddings import embed, extract, stored
from noisynb.embeddings.extractors import Extractor, pca, pixels
from noisynb.datasets.files import Files, scan
from noisynb.datasets.folders import read_folder, read_table
from noisynb.disk import _batches

rng = np.random.default_rng(0)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
reasons = {'missing', 'empty', 'unreadable', 'not a file', 'not an image', 'not supported', 'too many pixels', 'corrupt'}

def noise(h=24, w=24, c=3): return rng.integers(0, 256, (h, w, c)[:3 if c > 1 else 2], np.uint8)

def smooth(h=24, w=24):
    "Something that a JPEG keeps"
    y, x = np.mgrid[:h, :w]
    return np.stack([x*255//max(w - 1, 1), y*255//max(h - 1, 1), (x + y)*255//(h + w)], -1).astype(np.uint8)

def save(path, a, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    (a if isinstance(a, Image.Image) else Image.fromarray(a)).save(path, **kw)
    return path

def one(path, size): return Files([path], size=size)[0]

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
def png(w, h, bits=8, colour=2, rows=b'', extra=b''):
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, bits, colour, 0, 0, 0)) + extra + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')

def snapshot(folder): return {str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in sorted(folder.rglob('*'))}

@pytest.fixture
def looked(monkeypatch):
    "Names of the files that are decoded"
    seen, look = [], F._look
    monkeypatch.setattr(F, '_look', lambda path, *a, **kw: seen.append(Path(path).name) or look(path, *a, **kw))
    return seen

@pytest.fixture
def photos(tmp_path):
    "A folder with 7 cats, 5 dogs"
    for k, (name, n) in enumerate(dict(cat=7, dog=5).items()):
        for i in range(n): save(tmp_path/'photos'/name/f'{i}.png', np.clip(noise(20, 30)//2 + 100*k, 0, 255).astype(np.uint8))
    return tmp_path/'photos'

# ---- pixels

@pytest.mark.parametrize('name, kw', [('x.png', {}), ('x.bmp', {}), ('x.tif', {}), ('x.tiff', dict(compression='tiff_lzw')), ('x.webp', dict(lossless=True)), ('x.ppm', {}), ('X.PNG', {})])
def test_lossless_formats_come_back_as_they_are(tmp_path, name, kw):
    a = noise()
    np.testing.assert_array_equal(one(save(tmp_path/name, a, **kw), 24), a)

@pytest.mark.parametrize('h, w', [(64, 96), (96, 64), (64, 64)])
def test_shorter_side_then_centre(tmp_path, h, w):
    im = Image.fromarray(smooth(h, w))
    whole = np.asarray(im.resize((w//2, h//2), Image.Resampling.BICUBIC))
    top, left = (h//2 - 32)//2, (w//2 - 32)//2
    np.testing.assert_array_equal(one(save(tmp_path/'x.png', im), 32), whole[top:top+32, left:left+32])

def test_small_and_thin_pictures(tmp_path):
    assert (one(save(tmp_path/'dot.png', np.full((1, 1, 3), [9, 8, 7], np.uint8)), 5) == [9, 8, 7]).all()
    thin = np.zeros((2, 30000, 3), np.uint8); thin[:, 14990:15010] = [200, 100, 50]
    assert (one(save(tmp_path/'thin.png', thin), 64)[:, 32] == [200, 100, 50]).all()

@pytest.mark.parametrize('name, kw', [('x.png', {}), ('x.tif', {}), ('x.tif', dict(compression='tiff_deflate')), ('x.pgm', {})])
def test_sixteen_bits(tmp_path, name, kw):
    a = np.linspace(0, 65535, 24*24).round().astype(np.uint16).reshape(24, 24)
    np.testing.assert_array_equal(one(save(tmp_path/name, a, **kw), 24), np.floor(a/257 + .5).astype(np.uint8)[..., None].repeat(3, -1))

def test_sixteen_bits_big_endian_and_colour(tmp_path):
    a = rng.integers(0, 65536, (4, 4), np.uint16)
    (tmp_path/'grey.png').write_bytes(png(4, 4, 16, 0, b''.join(b'\0' + r.astype('>u2').tobytes() for r in a)))
    np.testing.assert_array_equal(one(tmp_path/'grey.png', 4)[..., 1], np.floor(a/257 + .5))
    c = rng.integers(0, 65536, (4, 4, 3), np.uint16)
    (tmp_path/'colour.png').write_bytes(png(4, 4, 16, 2, b''.join(b'\0' + r.astype('>u2').tobytes() for r in c)))
    assert np.abs(one(tmp_path/'colour.png', 4).astype(int) - c/257).max() <= 1

@pytest.mark.parametrize('a', [np.float32([[-1, 0], [.5, 3]]), np.int32([[-100, 0], [50, 300]])*1000, np.int32([[0, 70000], [7, 140000]])])
def test_grey_levels_without_a_range_are_stretched(tmp_path, a):
    got = one(save(tmp_path/'x.tif', a), 2)[..., 0]
    want = (a - a.min())/(float(a.max()) - a.min())*255
    assert np.abs(got - want).max() <= 1 and got.min() == 0 and got.max() == 255

def test_floating_point_that_is_none(tmp_path):
    save(tmp_path/'x.tif', np.float32([[0, np.nan], [1, 2]])); save(tmp_path/'flat.tif', np.full((2, 2), np.float32(7)))
    assert scan(Files([tmp_path/'x.tif']))[0]['reason'] == 'corrupt'
    assert (one(tmp_path/'flat.tif', 2) == 0).all()

def over_white(rgb, alpha): return rgb*(alpha[..., None]/255) + 255*(1 - alpha[..., None]/255)

def test_alpha_is_laid_on_white(tmp_path):
    rgb, alpha = noise(), noise(c=1)
    assert np.abs(one(save(tmp_path/'rgba.png', np.dstack([rgb, alpha])), 24) - over_white(rgb, alpha)).max() <= 1
    grey = rgb[..., 0]
    assert np.abs(one(save(tmp_path/'la.png', np.dstack([grey, alpha])), 24) - over_white(grey[..., None].repeat(3, -1), alpha)).max() <= 1
    key = tuple(int(v) for v in rgb[3, 4]) # a colour that stands for transparency
    got = one(save(tmp_path/'key.png', rgb, transparency=key), 24)
    np.testing.assert_array_equal(got, np.where((rgb == key).all(-1, keepdims=True), 255, rgb))
    got = one(save(tmp_path/'greykey.png', grey, transparency=int(grey[0, 0])), 24)
    np.testing.assert_array_equal(got[..., 2], np.where(grey == grey[0, 0], 255, grey))

@pytest.mark.parametrize('transparency', [None, 2, bytes([0, 255, 128, 255])])
def test_palettes(tmp_path, transparency):
    colours = np.array([[250, 10, 0], [0, 200, 30], [5, 5, 120], [77, 88, 99]], np.uint8)
    index = rng.integers(0, 4, (8, 8), np.uint8)
    im = Image.frombytes('P', (8, 8), index.tobytes()); im.putpalette(colours.tobytes())
    alpha = np.full(4, 255)
    if transparency == 2: alpha[2] = 0
    elif transparency: alpha = np.array(list(transparency))
    got = one(save(tmp_path/'x.png', im, **({} if transparency is None else dict(transparency=transparency))), 8)
    assert np.abs(got - over_white(colours[index].astype(float), alpha[index])).max() <= 1

def test_one_bit(tmp_path):
    a = rng.integers(0, 2, (8, 8)).astype(bool)
    np.testing.assert_array_equal(one(save(tmp_path/'x.png', Image.fromarray(a)), 8)[..., 0], a*255)

def test_cmyk_jpeg(tmp_path):
    cmyk = np.full((16, 16, 4), [40, 100, 200, 60], np.uint8)
    got = one(save(tmp_path/'x.jpg', Image.frombytes('CMYK', (16, 16), cmyk.tobytes()), quality=100), 16)
    want = (255 - cmyk[0, 0, :3].astype(float))*(255 - 60)/255
    assert np.abs(got - want).max() <= 3

@pytest.mark.parametrize('name, kw', [('x.png', {}), ('x.tif', {}), ('x.tif', dict(compression='tiff_lzw')), ('x.webp', dict(lossless=True)), ('x.jpg', dict(quality=100, subsampling=0))])
@pytest.mark.parametrize('entry, stored', [ # how the upright picture must be stored under each entry (EXIF 2.3, tag 274)
    (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (4, lambda a: a[::-1]), (5, lambda a: a.transpose(1, 0, 2)),
    (6, lambda a: np.rot90(a)), (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)), (8, lambda a: np.rot90(a, -1)), (99, lambda a: a)])
def test_orientation(tmp_path, name, kw, entry, stored):
    if (name, entry) == ('x.tif', 99): pytest.skip('libtiff does not write this')
    a, exif = smooth(16, 23), Image.Exif()
    exif[274] = entry
    got = one(save(tmp_path/name, np.ascontiguousarray(stored(a)), exif=exif, **kw), 16)
    assert np.abs(got.astype(int) - a[:, 3:19]).max() <= (12 if name.endswith('jpg') else 0)

def test_broken_exif_is_no_obstacle(tmp_path):
    a = smooth()
    for exif in (b'Exif\0\0garbage', b'Exif\0\0II*\0\xff\xff\xff\xff', b'Exif\0\0MM\0*\0\0\0\x08\xff\xff'):
        assert np.abs(one(save(tmp_path/'x.jpg', a, quality=100, exif=exif), 24).astype(int) - a).max() < 20

@pytest.mark.parametrize('name', ['x.gif', 'x.webp', 'x.png', 'x.tif'])
def test_first_frame(tmp_path, name):
    frames = [Image.new('RGB', (8, 8), c) for c in ('red', 'blue', 'lime')]
    save(tmp_path/name, frames[0], save_all=True, append_images=frames[1:], **(dict(lossless=True) if name == 'x.webp' else {}))
    assert (one(tmp_path/name, 8) == [255, 0, 0]).all()

def test_large_jpegs_are_reduced_early_and_look_the_same(tmp_path):
    y, x = np.mgrid[:900, :1200]
    a = np.stack([128 + 100*np.sin(x/40), 128 + 100*np.cos(y/30), 128 + 100*np.sin((x + y)/35)], -1).astype(np.uint8)
    path = save(tmp_path/'x.jpg', a, quality=95)
    plain = np.asarray(Image.fromarray(a).crop((150, 0, 1050, 900)).resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(one(path, 64) - plain).mean() < 1 and np.abs(one(path, 64) - plain).max() < 16
    with Image.open(path) as im:
        im.draft(None, (128, 128))
        assert im.size[0] < 1200/3 # what one() decodes

@pytest.mark.parametrize('entry', range(1, 9))
def test_reduced_jpegs_are_cut_in_the_same_place_whichever_way_they_lie(tmp_path, entry):
    y, x = np.mgrid[:301, :406]
    a = np.stack([128 + 100*np.sin(x/25), 128 + 100*np.cos(y/20), 128 + 100*np.sin((x + y)/35)], -1).astype(np.uint8)
    stored = [None, lambda a: a, lambda a: a[:, ::-1], lambda a: a[::-1, ::-1], lambda a: a[::-1], lambda a: a.transpose(1, 0, 2), lambda a: np.rot90(a), lambda a: a[::-1, ::-1].transpose(1, 0, 2), lambda a: np.rot90(a, -1)][entry]
    exif = Image.Exif(); exif[274] = entry
    got = one(save(tmp_path/'x.jpg', np.ascontiguousarray(stored(a)), exif=exif, quality=95), 32)
    want = np.asarray(Image.fromarray(a).crop((52, 0, 353, 301)).resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(got - want).mean() < 1 # a cut two pixels off makes 3 of it

def test_other_containers(tmp_path):
    save(tmp_path/'x.mpo', Image.fromarray(smooth()), save_all=True, append_images=[Image.new('RGB', (24, 24))], quality=100)
    (tmp_path/'x.mpo').rename(tmp_path/'stereo.jpg') # what some phones write
    assert np.abs(one(tmp_path/'stereo.jpg', 24).astype(int) - smooth()).max() < 20
    from PIL import features
    if features.check('avif'): assert np.abs(one(save(tmp_path/'x.avif', smooth(), quality=100), 24).astype(int) - smooth()).max() < 20

# ---- like an array

def test_indexing_agrees_with_the_array(tmp_path):
    a = np.stack([noise(6, 6) for _ in range(9)])
    for i, x in enumerate(a): save(tmp_path/f'{i}.png', x)
    f = Files([f'{i}.png' for i in range(9)], 6, tmp_path)
    assert f.shape == a.shape and f.dtype == a.dtype and f.ndim == 4 and len(f) == 9 and f.nbytes == a.nbytes
    np.testing.assert_array_equal(np.asarray(f), a)
    np.testing.assert_array_equal(np.asarray(f, np.float32), a.astype(np.float32))
    with pytest.raises(ValueError): np.asarray(f, copy=False)
    mask = np.arange(9) % 2 == 0
    for key in (3, -1, np.int64(2), np.array(4), slice(2, 7), slice(None, None, -2), slice(20, 30), [0, 0, 8, -9], np.array([5], np.uint8), [], mask, list(mask), np.zeros(9, bool)):
        want = a[np.asarray(key, int) if np.size(key) == 0 else key]
        np.testing.assert_array_equal(f[key], want)
        np.testing.assert_array_equal(np.asarray(f.rows(key)), want.reshape(-1, 6, 6, 3))
    np.testing.assert_array_equal(list(f), a)
    for key in (9, -10, [3, 9], mask[:5], .5, 'a', [.5], (0, 1), None, [[0, 1]]):
        with pytest.raises((IndexError, ValueError)): f[key]
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(f))), a)

@pytest.mark.parametrize('call', [lambda: Files('photos'), lambda: Files(Path('photos')), lambda: Files([], size=0), lambda: Files([], size=2.5), lambda: Files([], size=True)])
def test_files_refuses(call):
    with pytest.raises(NoisynbError): call()

def test_names(tmp_path):
    a = noise(6, 6)
    names = ['a b.png', 'ä,"ö"\n.png', "it's;.png", '日本/猫.png', ' lead.png', 'tab\t.png', '%s{x}.png']
    for n in names: save(tmp_path/n, a)
    np.testing.assert_array_equal(np.asarray(Files(names, 6, tmp_path)), np.stack([a]*len(names)))
    with pytest.raises(NoisynbError, match=r'no\\nsuch.png'): Files(['no\nsuch.png'], 6, tmp_path)[0]

def test_fingerprint(tmp_path):
    for i in range(4): save(tmp_path/'a'/f'{i}.png', noise(6, 6))
    names = [f'{i}.png' for i in range(4)]
    mark = Files(names, 6, tmp_path/'a').fingerprint
    assert mark == Files(names, 6, tmp_path/'a').fingerprint
    (tmp_path/'a').rename(tmp_path/'b')
    f = Files(names, 6, tmp_path/'b')
    assert f.fingerprint == mark
    marks = [x.fingerprint for x in (f, f.at(7), f.rows([1, 0, 2, 3]), f.rows([0, 1, 2]), Files([*names, 'gone.png'], 6, tmp_path/'b'), f.rows([]))]
    os.utime(tmp_path/'b/2.png', ns=(1, 1))
    assert Files(names, 6, tmp_path/'b').fingerprint == mark
    (tmp_path/'b/2.png').write_bytes(b''); os.utime(tmp_path/'b/2.png', ns=(1, 1))
    marks.append(Files(names, 6, tmp_path/'b').fingerprint)
    assert marks[0] == mark and len(set(marks)) == len(marks) == 7 and all(len(m) == 16 for m in marks)
    assert Files([], 6).fingerprint == f.rows([]).fingerprint
    assert fingerprint('images', f) == fingerprint('images', f.fingerprint) != fingerprint('images', f.at(7))

def test_two_folders_with_equal_names_sizes_and_times(tmp_path, monkeypatch):
    "Content decides: neither scans nor features of the one are those of the other"
    from noisynb import audit
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path/'cache'))
    sides = {}
    for side in 'ab':
        for i in range(4):
            path = save(tmp_path/side/f'{i}.bmp', noise(6, 6))
            os.utime(path, ns=(0, 0))
        sides[side] = Files([f'{i}.bmp' for i in range(4)], 32, tmp_path/side)
    a, b = (s.fingerprint for s in sides.values())
    assert a != b
    keys = {side: [f['sha256'] for f in audit.scanned(files)] for side, files in sides.items()}
    assert all(keys[side] == [hashlib.sha256((tmp_path/side/f'{i}.bmp').read_bytes()).hexdigest() for i in range(4)] for side in 'ab')
    brightness = Extractor('mean', '0', '', lambda x: x.mean((1, 2)))
    rows = {side: stored(dict(train=files), brightness)['train'] for side, files in sides.items()}
    assert not np.array_equal(rows['a'], rows['b']) and np.allclose(rows['b'], np.asarray(sides['b']).mean((1, 2)))

def test_digests_are_read_again_only_if_a_file_may_have_changed(tmp_path, monkeypatch):
    from noisynb import disk
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path/'cache'))
    paths = [save(tmp_path/f'{i}.png', noise(6, 6)) for i in range(3)]
    opened, real = [], disk.hashlib.file_digest
    monkeypatch.setattr(disk.hashlib, 'file_digest', lambda f, kind: opened.append(Path(f.name).name) or real(f, kind))
    first = disk.file_digests(paths, settled=-1)
    assert sorted(opened) == ['0.png', '1.png', '2.png']
    again = disk.file_digests(paths, settled=-1)
    assert len(opened) == 3 and (first == again).all()
    old = paths[1].stat()
    paths[1].write_bytes(paths[1].read_bytes()[::-1]); os.utime(paths[1], ns=(old.st_atime_ns, old.st_mtime_ns))
    changed = disk.file_digests(paths, settled=-1)
    assert opened[3:] == ['1.png'] and (changed != first).any(1).tolist() == [False, True, False]
    disk.file_digests(paths[:1]); disk.file_digests([save(tmp_path/'new.png', noise(6, 6))]); disk.file_digests([tmp_path/'new.png'])
    assert opened[4:] == ['new.png']*2   # just written, so not kept
    (tmp_path/'cache/digests.sqlite').write_bytes(b'no database')
    assert (disk.file_digests(paths) == changed).all() and len(opened) == 9

# ---- what can be wrong

def test_scan(tmp_path):
    good = save(tmp_path/'good.png', noise(5, 7))
    jpeg = save(tmp_path/'whole.jpg', smooth(), quality=90).read_bytes()
    wrong = {
        'empty.png': (b'', 'empty'), 'text.jpg': (b'<html>', 'not an image'), 'zeros.png': (b'\0'*500, 'not an image'), 'cut.jpg': (jpeg[:len(jpeg)//2], 'corrupt'), 'head.jpg': (jpeg[:3], 'corrupt'),
        'cut.png': (good.read_bytes()[:-40], 'corrupt'), 'magic.png': (b'\x89PNG\r\n\x1a\n', 'corrupt'), 'bomb.png': (png(60000, 60000), 'too many pixels'), 'large.png': (png(10000, 9000), 'too many pixels'),
        'zip.png': (b'PK\3\4' + b'x'*40, 'not an image'), 'page.ps': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not an image'), 'drawing.svg': (b'<svg/>', 'not an image'),
        'nothing.png': (png(4, 4), 'corrupt'), 'zero.png': (png(0, 4), 'corrupt'),
        'text bomb.png': (png(4, 4, rows=b'\0' + b'\0'*12, extra=chunk(b'zTXt', b'x\0\0' + zlib.compress(b'\0'*80_000_000, 9))), 'corrupt')}
    for n, (data, _) in wrong.items(): (tmp_path/n).write_bytes(data)
    (tmp_path/'folder.png').mkdir(); os.mkfifo(tmp_path/'pipe.png'); os.symlink('loop.png', tmp_path/'loop.png'); os.symlink('nowhere', tmp_path/'dangling.png')
    more = {'folder.png': 'not a file', 'pipe.png': 'not a file', 'loop.png': 'unreadable', 'dangling.png': 'missing', 'gone.png': 'missing', 'good.png/x.png': 'missing', 'nul\0.png': 'missing', 'x'*300 + '.png': 'unreadable'}
    names = ['good.png', *wrong, *more]
    f = Files(names, 6, tmp_path)
    before = snapshot(tmp_path)
    facts = scan(f)
    assert snapshot(tmp_path) == before
    assert [x['path'] for x in facts] == names and json.loads(json.dumps(facts)) == facts
    assert {x['path']: x['reason'] for x in facts} == {'good.png': '', **{n: r for n, (_, r) in wrong.items()}, **more} and set(more.values()) | {r for _, r in wrong.values()} == reasons - {'not supported'}
    assert [x['ok'] for x in facts] == [True] + [False]*(len(names) - 1)
    first = facts[0]
    import hashlib
    assert (first['width'], first['height'], first['mode'], first['bytes'], first['sha256']) == (7, 5, 'RGB', good.stat().st_size, hashlib.sha256(good.read_bytes()).hexdigest())
    assert next(x for x in facts if x['path'] == 'large.png')['width'] == 10000
    for x, n in zip(facts[1:], names[1:]):
        assert x['reason'] in reasons and x['detail'] and str(tmp_path) not in x['detail']
        if x['reason'] in ('corrupt', 'too many pixels', 'not an image', 'not supported'): assert len(x['sha256']) == 64
        with pytest.raises(NoisynbError) as e: f.rows([names.index(n)])[0]
        assert x['reason'] in str(e.value) and n.encode('unicode_escape').decode()[:200] in str(e.value)
    assert scan(f.rows([])) == []

def test_a_mode_that_has_no_way_to_rgb(tmp_path, monkeypatch):
    path = save(tmp_path/'x.png', noise())
    monkeypatch.setattr(F, 'Image', type('Other', (), {**vars(Image), 'open': lambda *a, **kw: Image.new('La', (4, 4))}))
    fact, = scan(Files([path], 4))
    assert fact['reason'] == 'not supported' and 'La' in fact['detail']

@pytest.mark.parametrize('error, reason', [(PermissionError(13, 'Permission denied'), 'unreadable'), (OSError(5, 'Input/output error'), 'unreadable'), (MemoryError(), 'corrupt'), (RecursionError('deep'), 'corrupt')])
def test_files_that_the_system_refuses(tmp_path, monkeypatch, error, reason):
    path = save(tmp_path/'x.png', noise())
    def refuse(*a, **kw): raise error
    monkeypatch.setattr(F, 'open', refuse, raising=False)
    fact, = scan(Files([path]))
    assert (fact['ok'], fact['reason']) == (False, reason) and fact['detail']

seeds = {}
for kind, kw in dict(PNG={}, JPEG=dict(quality=80, exif=b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0'), GIF=dict(save_all=True, append_images=[Image.new('RGB', (9, 7))]), TIFF={}, WEBP={}, BMP={}, PPM={}).items():
    Image.fromarray(smooth(11, 13)).save(b := io.BytesIO(), kind, **kw); seeds[kind] = b.getvalue()
Image.fromarray(smooth(11, 13)[..., 0].astype(np.uint16)*257).save(b := io.BytesIO(), 'PNG'); seeds['PNG16'] = b.getvalue()

@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(seeds)), cut=st.none() | st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), max_size=6), tail=st.binary(max_size=8))
def test_damaged_bytes_are_decoded_or_listed(tmp_path, kind, cut, flips, tail):
    data = bytearray(seeds[kind])
    for place, bits in flips: data[place % len(data)] ^= bits
    path = tmp_path/'x.png'
    path.write_bytes(bytes(data[:cut]) + tail if cut is not None else bytes(data))
    fact, = scan(Files([path], 8))
    assert fact['ok'] == (fact['reason'] == '') and (fact['ok'] or fact['reason'] in reasons)
    if fact['ok']: assert one(path, 8).shape == (8, 8, 3)
    else:
        with pytest.raises(NoisynbError, match='x.png'): one(path, 8)
    if not flips and cut is None: assert fact['ok']

@quick
@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_listed(tmp_path, data):
    (tmp_path/'x.png').write_bytes(data)
    assert scan(Files([tmp_path/'x.png'], 8))[0]['reason'] in reasons | {''}

# ---- folders

def test_folder(photos, looked):
    save(photos/'dog/deep/er/9.JPG', smooth()); (photos/'dog/Thumbs.db').write_bytes(b'x'); (photos/'dog/.hidden.png').write_bytes(b'x'); (photos/'.git').mkdir(); save(photos/'.git/x/1.png', noise())
    save(photos/'__MACOSX/cat/1.png', noise()); (photos/'cat/notes.txt').write_text('x'); save(photos/'stray.png', noise()); (photos/'dog/real.png').mkdir(); save(photos/'dog/real.png/1.png', noise())
    (photos/'empty class').mkdir(); os.mkfifo(photos/'cat/pipe.png')
    before = snapshot_names(photos)
    c = read_folder(photos, size=16)
    assert c.classes == ('cat', 'dog') and c.parts is None and c.files.size == 16 and c.labels.dtype == np.int64
    assert c.files.paths == (*(f'cat/{i}.png' for i in range(7)), *(f'dog/{i}.png' for i in range(5)), 'dog/deep/er/9.JPG', 'dog/real.png/1.png')
    assert c.labels.tolist() == [0]*7 + [1]*7
    assert {s['path']: s['reason'] for s in c.skipped} == {'cat/notes.txt': 'no picture by its name', 'stray.png': 'in no class folder', 'cat/pipe.png': 'not a file'}
    assert looked == [] and snapshot_names(photos) == before and '14 images' in repr(c) and '3 passed over' in repr(c)

def snapshot_names(folder): return sorted((str(p), p.lstat().st_mtime_ns) for p in folder.rglob('*'))

def test_links(photos, tmp_path):
    outside = save(tmp_path/'secret/1.png', noise())
    os.symlink(outside, photos/'cat/out.png'); os.symlink('../cat/0.png', photos/'dog/in.png'); os.symlink(tmp_path/'secret', photos/'cow'); os.symlink('..', photos/'dog/up'); os.symlink('nowhere', photos/'dog/nowhere.png')
    (tmp_path/'photos-too').mkdir(); os.symlink(save(tmp_path/'photos-too/x.png', noise()), photos/'cat/near.png') # a neighbour whose name begins alike
    c = read_folder(photos)
    assert 'dog/in.png' in c.files.paths and len(c.files) == 13
    assert {s['path']: s['reason'] for s in c.skipped} == {'cat/out.png': 'a link out of the folder', 'cat/near.png': 'a link out of the folder', 'cow': 'a link to a folder', 'dog/up': 'a link to a folder', 'dog/nowhere.png': 'not a file'}
    c = read_folder(photos, links=True)
    assert c.classes == ('cat', 'cow', 'dog') and {'cat/out.png', 'cow/1.png', 'dog/in.png'} < set(c.files.paths) and not any('up/' in p for p in c.files.paths)
    os.symlink(photos, tmp_path/'link')
    assert read_folder(tmp_path/'link').files.paths == read_folder(photos).files.paths and np.asarray(read_folder(tmp_path/'link', 4).files).shape[1:] == (4, 4, 3)

def test_names_that_are_no_text_and_folders_that_cannot_be_read(photos, monkeypatch):
    try: (os.fsencode(photos/'cat') + b'/\xff.png', open(os.fsencode(photos/'cat') + b'/\xff.png', 'wb').close())
    except OSError: pytest.skip('this file system takes text only')
    c = read_folder(photos)
    assert c.skipped == [dict(path='cat/\\xff.png', reason='its name is not UTF-8', row=None)] and len(c.files) == 12
    scandir = os.scandir
    def refuse(path):
        if str(path).endswith('dog'): raise PermissionError(13, 'Permission denied', path)
        return scandir(path)
    monkeypatch.setattr(os, 'scandir', refuse)
    assert dict(path='dog', reason='unreadable', row=None) in read_folder(photos).skipped

@pytest.mark.parametrize('layout, classes, parts', [
    ('train/a/1 train/b/1 test/a/1', 'ab', ['train', 'train', 'test']), ('train/a/1 train/b/1 val/b/1 test/a/1', 'ab', None), ('Training/a/1 Testing/b/1 validation/c/1', 'abc', None),
    ('train/a/1 train/b/x/2', 'ab', ['train', 'train']), ('train/1 car/1 bus/1', ['bus', 'car', 'train'], False), ('10/1 9/1 -1/1', ['-1', '9', '10'], False), ('b/1 A/1', ['A', 'b'], False), ('1/1 1.0/1 2/1', ['1', '2'], False)])
def test_layouts(tmp_path, layout, classes, parts):
    for p in layout.split(): save(tmp_path/f'{p}.png', noise(4, 4))
    c = read_folder(tmp_path)
    assert c.classes == tuple(classes)
    assert (c.parts is None) == (parts is False) and (not parts or sorted(c.parts) == sorted(parts))
    if parts is None: assert {c.parts[i] for i, p in enumerate(c.files.paths) if p.startswith(('val', 'Val'))} == {'val'}
    if len(classes) > 1 and (c.parts is None or (c.parts == 'train').sum() > 1):
        d = c.dataset('x')
        assert sum(map(len, d.parts.values())) == len(c.files) and d.classes == c.classes

def test_folder_refuses(tmp_path):
    with pytest.raises(NoisynbError, match='no folder'): read_folder(tmp_path/'nowhere')
    with pytest.raises(NoisynbError, match='no pictures in class folders'): read_folder(tmp_path)
    (tmp_path/'a').mkdir(); (tmp_path/'a/x.heic').write_bytes(b'x')
    with pytest.raises(NoisynbError, match=r'a/x.heic \(no picture by its name\)'): read_folder(tmp_path)
    save(tmp_path/'train/1.png', noise(4, 4)); save(tmp_path/'test/1.png', noise(4, 4))
    with pytest.raises(NoisynbError, match='train/CLASS'): read_folder(tmp_path)
    save(tmp_path/'train/x/1.png', noise(4, 4)); save(tmp_path/'extra/x/1.png', noise(4, 4))
    assert {s['path']: s['reason'] for s in read_folder(tmp_path).skipped} == {'a/x.heic': 'no picture by its name', 'train/1.png': 'in no class folder', 'test/1.png': 'in no class folder', 'extra/x/1.png': 'beside the parts'}

# ---- tables

def table(folder, text, name='list.csv', encoding='utf-8'):
    (folder/name).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return folder/name

@pytest.mark.parametrize('sep', [',', ';', '\t', '|'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_csv_dialects(photos, sep, encoding, end):
    save(photos/'cat/Größe 1,5;|x.png', noise())
    rows = [['File Name', 'note', 'Class'], ['cat/0.png', 'a "quoted", thing', 'Katze'], ['dog/1.png', '', 'Hund'], ['cat/Größe 1,5;|x.png', 'two\nlines', 'Kätzchen']]
    out = io.StringIO(newline='')
    csv.writer(out, delimiter=sep, lineterminator=end).writerows(rows)
    c = read_table(table(photos, out.getvalue(), encoding=encoding))
    assert read_table(photos/'list.csv', path_column='File Name').files.paths == c.files.paths
    assert c.files.paths == ('cat/0.png', 'dog/1.png', 'cat/Größe 1,5;|x.png') and [c.classes[i] for i in c.labels] == ['Katze', 'Hund', 'Kätzchen'] and c.classes == ('Hund', 'Katze', 'Kätzchen') and not c.skipped

name_text = st.text(st.characters(blacklist_characters='/\0', blacklist_categories=['Cs']), min_size=1, max_size=12).filter(lambda s: s not in ('.', '..') and '\\' not in s and len(s.encode()) < 200)
@quick
@given(rows=st.dictionaries(name_text, st.text(st.characters(blacklist_categories=['Cs', 'Cc']), min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=5), sep=st.sampled_from(',;\t|'))
def test_any_name_and_label_that_csv_can_hold(tmp_path_factory, rows, sep):
    folder = tmp_path_factory.mktemp('n')
    (folder/'d').mkdir()
    for n in rows: (folder/'d'/n).write_bytes(b'')
    with open(folder/'list.csv', 'w', newline='', encoding='utf-8') as f: csv.writer(f, delimiter=sep).writerows([['path', 'label'], *((f'd/{n}', l) for n, l in rows.items())])
    c = read_table(folder/'list.csv')
    assert c.files.paths == tuple(f'd/{n}' for n in rows) and c.skipped == []
    if not all(l.strip().lstrip('-').replace('.', '').isdigit() for l in rows.values()): assert [c.classes[i] for i in c.labels] == [l.strip() for l in rows.values()]

@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda s: s.encode('utf-8', 'surrogatepass')),
    st.lists(st.lists(st.sampled_from(['path', 'label', 'split', 'cat/0.png', 'dog/1.png', 'gone.png', '', '"', 'a"b', '"x', '\0', '1', '1.0', 'NA', 'é', ' ', 'train', '../x', '/', 'cat', 'x'*3000]), max_size=4), max_size=6)
        .map(lambda rows: '\n'.join(','.join(r) for r in [['path', 'label'], *rows]).encode())))
def test_any_table_is_read_or_refused(photos, data):
    try: c = read_table(table(photos, data))
    except NoisynbError as e: assert 'list.csv' in str(e); return
    assert len(c.files) == len(c.labels) > 0 and c.labels.max() < len(c.classes) and all(s['reason'] and s['row'] for s in c.skipped)
    assert all((photos/p).is_file() for p in c.files.paths)

def test_nothing_is_lost(photos):
    text = '''path,label
cat/0.png,cat
./cat/0.png,dog
cat/0.png,cat
cat/gone.png,cat
,cat
cat/1.png,
cat,cat
cat\\2.png,NA
 dog/1.png ,  dog

http://example.com/x.png,dog
dog/2.png,dog,extra
dog/3.png
dog/4.png,dog,
'''
    c = read_table(table(photos, text))
    assert [(p, c.classes[l]) for p, l in zip(c.files.paths, c.labels)] == [('cat/0.png', 'cat'), ('cat/2.png', 'NA'), ('dog/1.png', 'dog'), ('dog/4.png', 'dog')]
    assert [(s['row'], s['path'], s['reason']) for s in c.skipped] == [(2, './cat/0.png', "in row 1 already, as 'cat'"), (3, 'cat/0.png', 'in row 1 already'), (4, 'cat/gone.png', 'missing'), (5, '', 'no path'), (6, 'cat/1.png', 'no label'),
        (7, 'cat', 'not a file'), (10, 'http://example.com/x.png', 'missing'), (11, '', 'wrong number of fields'), (12, '', 'wrong number of fields')]

@pytest.mark.parametrize('labels, classes, index', [(['2', '10', '9'], ('2', '9', '10'), [0, 2, 1]), (['1.0', '0.0', '1'], ('0', '1'), [1, 0, 1]), (['01', '1', '1'], ('01', '1'), [0, 1, 1]), (['NA', 'nan', 'None'], ('NA', 'None', 'nan'), [0, 2, 1]), (['0.5', '1', '2'], ('0.5', '1', '2'), [0, 1, 2]), (['b', 'a', '10'], ('10', 'a', 'b'), [2, 1, 0])])
def test_labels_are_numbers_or_text(photos, labels, classes, index):
    c = read_table(table(photos, 'path,label\n' + ''.join(f'cat/{i}.png,{l}\n' for i, l in enumerate(labels))))
    assert c.classes == classes and c.labels.tolist() == index

@pytest.mark.parametrize('header, path, label', [('path,label', 0, 1), ('Label,File_Path', 1, 0), ('id,IMAGE,x,Target', 1, 3), ('filename,file_name_old,class_name', 0, 2), ('img-path,y', 0, 1), ('label,class,path', 2, 0)])
def test_usual_columns(photos, header, path, label):
    row = ['?']*len(header.split(','))
    row[path], row[label] = 'cat/0.png', 'cat'
    c = read_table(table(photos, f'{header}\n{",".join(row)}\n'))
    assert c.files.paths == ('cat/0.png',) and c.classes == ('cat',)

@pytest.mark.parametrize('text, options, says', [
    ('fichier,animal\ncat/0.png,cat\n', {}, "there are: 'fichier', 'animal'. Give path_column="), ('path,animal\ncat/0.png,cat\n', {}, 'Give label_column='), ('cat/0.png,cat\n', {}, "there are: 'cat/0.png', 'cat'"),
    ('path,label\ncat/0.png,cat\n', dict(label_column='breed'), "no column 'breed' for the label; there are: 'path', 'label'"), ('path,Label,label\ncat/0.png,a,b\n', {}, "2 columns can be the label: 'Label', 'label'"),
    ('path,label,label\ncat/0.png,a,b\n', dict(label_column='label'), '2 columns'), ('', {}, 'no column'), ('path,label\n', {}, 'no row names a file and a label'), ('path,label\nx.png,cat\n', {}, 'row 1, x.png: missing'),
    ('path,label\n"cat/0.png,cat\ncat/1.png,cat\n', {}, 'line 3'), ('path,label\n"cat"/0.png,cat\n', {}, 'line 2'), (b'path,label\n\xe4.png,cat\n', {}, 'save it as "CSV UTF-8"'), (b'\xff\xfep\0a', {}, 'UTF-16'),
    ('path,label,split\ncat/0.png,cat,left\n', {}, "row 1 has 'left' as its part"), ('path,label\n' + ','.join(['x'*200000, 'y']) + '\n', {}, 'field larger')])
def test_table_refuses(photos, text, options, says):
    with pytest.raises(NoisynbError) as e: read_table(table(photos, text), **options)
    assert says in str(e.value) and 'list.csv' in str(e.value)

def test_wrong_column_of_labels(photos):
    for i in range(30): save(photos/f'{i}.png', noise(2, 2))
    with pytest.raises(NoisynbError, match='30 files have 30 different labels'): read_table(table(photos, 'path,label\n' + ''.join(f'{i}.png,{i/7}\n' for i in range(30))))
    for bad in ('nowhere.csv', '.'):
        with pytest.raises(NoisynbError): read_table(photos/bad)

def test_absolute_paths_and_other_roots(photos, tmp_path):
    far = save(tmp_path/'far.png', noise())
    c = read_table(table(photos, f'path,label\n{photos}/cat/0.png,a\n{far},b\n../far.png,c\n'))
    assert c.files.paths == ('cat/0.png', str(far), '../far.png') and c.files[:].shape == (3, 224, 224, 3)
    c = read_table(table(tmp_path, 'path,label\n0.png,a\n'), root=photos/'cat')
    assert c.files.root == photos/'cat' and c.files.paths == ('0.png',)

def test_parts_of_a_table(photos):
    text = 'path,label,Split\ncat/0.png,cat,train\ndog/0.png,dog,Training\ncat/1.png,cat,test\ndog/1.png,dog,validation\n'
    c = read_table(table(photos, text))
    assert c.parts.tolist() == ['train', 'train', 'test', 'val']
    d = c.dataset('x')
    assert (len(d.train), len(d.val), len(d.test)) == (2, 1, 1) and d.test.images.paths == ('cat/1.png',) and d.val.labels.tolist() == [1]
    assert read_table(photos/'list.csv', split_column=False).parts is None
    assert read_table(table(photos, text.replace('Split', 'where')), split_column='where').parts.tolist() == c.parts.tolist()

def test_parquet(photos):
    pa = pytest.importorskip('pyarrow'); pq = pytest.importorskip('pyarrow.parquet')
    names = ['cat/0.png', 'dog/0.png', 'gone.png', None, 'cat/1.png', 'dog/1.png', 'cat/0.png']
    def write(**columns): pq.write_table(pa.table(columns), photos/'list.parquet', row_group_size=2); return photos/'list.parquet'
    for labels, classes in (([1, 0, 1, 1, None, 0, 1], ('0', '1')), ([1., 0., 1., 1., float('nan'), 0., 1.], ('0', '1')), (['b', 'a', 'b', 'b', '', 'a', 'a'], ('a', 'b')), (pa.array(['b', 'a', 'b', 'b', None, 'a', 'b']).dictionary_encode(), ('a', 'b'))):
        c = read_table(write(junk=[{'x': 1}]*7, file_name=names, label=labels))
        assert c.files.paths == ('cat/0.png', 'dog/0.png', 'dog/1.png') and c.classes == classes and c.labels.tolist() == [1, 0, 0]
        assert [(s['row'], s['reason'].split(',')[0]) for s in c.skipped] == [(3, 'missing'), (4, 'no path'), (5, 'no label'), (7, 'in row 1 already')]
    assert read_table(write(label=['x', 'y'], path=names[:2], split=['train', 'test'])).parts.tolist() == ['train', 'test']
    for column in ([{'bytes': b'x', 'path': 'x.png'}], [b'x'], [['a', 'b']]):
        with pytest.raises(NoisynbError, match='list.parquet.*pictures inside the table'): read_table(write(image=column, label=['a']))
    with pytest.raises(NoisynbError, match="'animal'"): read_table(write(path=['cat/0.png'], animal=['a']))
    whole = photos/'list.parquet'
    for data in (b'', b'PAR1', whole.read_bytes()[:-9], b'x'*200):
        whole.write_bytes(data)
        with pytest.raises(NoisynbError, match='list.parquet'): read_table(whole)

def test_parquet_without_pyarrow(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(MissingExtra, match=r'noisynb\[parquet\]'): read_table(photos/'list.parquet')
    with pytest.raises(MissingExtra, match=r'noisynb\[parquet\]'): load(table(photos, b'', 'x.parquet'))

# ---- as a data set

def test_load(photos, looked):
    before = snapshot(photos)
    d = load(photos, size=16)
    assert (d.name, d.source, d.classes, len(d.train), len(d.test), d.val) == ('photos', 'photos', ('cat', 'dog'), 12, 0, None)
    few = d.train.take(d.train.labels == 1)
    assert few.images.paths == tuple(f'dog/{i}.png' for i in range(5)) and few.images.root == photos
    assert isinstance(d.train.take([]).images, Files) and d.fingerprint == load(str(photos), size=16).fingerprint != load(photos).fingerprint
    assert '12 images of 16x16x3' in repr(d) and looked == [] # nothing so far has opened a picture
    with pytest.raises(NoisynbError, match='there are 12'): d.train.take([12])
    assert d.train.images[3].shape == (16, 16, 3) and looked == ['3.png']
    assert snapshot(photos) == before

def test_load_finds_things_below_the_data_folder_and_takes_options(photos, tmp_path, monkeypatch):
    table(photos, 'where,what\ncat/0.png,a\ndog/0.png,b\n', 'List.CSV')
    monkeypatch.chdir(tmp_path/'..')
    assert load('photos', tmp_path).fingerprint == load(photos).fingerprint and available('photos', tmp_path) and not available('photos/nothing.csv', tmp_path)
    d = load('photos/List.CSV', tmp_path, path_column='where', label_column='what', size=8)
    assert d.name == 'List' and d.train.images[:].shape == (2, 8, 8, 3) and available('photos/List.CSV', tmp_path)
    for call, says in ((lambda: load('photos', tmp_path, sice=8), 'size'), (lambda: load('photos/gone.csv', tmp_path), 'there is no file'), (lambda: load('fotos', tmp_path), 'path of a folder'), (lambda: load('digits', size=3), 'options are for'), (lambda: load('', tmp_path), 'no data set')):
        with pytest.raises(NoisynbError) as e: call()
        assert says in str(e.value)
    monkeypatch.chdir(photos)
    assert load('.').name == 'photos'

def test_what_is_left_out_is_announced(photos):
    (photos/'cat/readme.txt').write_text('x')
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load(photos)
    save(photos/'stray.png', noise())
    with pytest.warns(UserWarning, match=r'photos: 1 left out \(1 in no class folder\).*read_folder'): load(photos)
    with pytest.warns(UserWarning, match=r'3 left out \(2 in row above, 1 missing\)'): load(table(photos, 'path,label\ncat/0.png,a\ndog/0.png,b\ncat/0.png,b\ncat/0.png,b\nx,b\n'))

def test_one_class_only(photos):
    with pytest.raises(NoisynbError, match='list.csv.*two classes'): load(table(photos, 'path,label\ncat/0.png,a\ncat/1.png,a\n'))

# ---- embeddings

@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path/'cache'))

def test_embedding_files_is_embedding_their_pixels(photos, store, looked):
    table(photos, 'path,label,split\n' + ''.join(f'cat/{i}.png,cat,train\ndog/{i % 5}.png,dog,train\n' for i in range(5)) + 'cat/5.png,cat,test\ncat/6.png,cat,val\n')
    data = load(photos/'list.csv', size=12)
    held = Dataset('held', *(Split(np.asarray(s.images), s.labels) for s in (data.train, data.test)), data.classes, val=Split(np.asarray(data.val.images), data.val.labels))
    looked.clear()
    mean = Extractor('mean', '0', 'none', lambda b: b.mean((1, 2)), batch_size=4)
    for name in (mean, 'raw', 'pca:3'):
        looked.clear()
        a, b = embed(data, name), embed(held, name)
        for x, y in ((a.train, b.train), (a.test, b.test), (a.val, b.val)): np.testing.assert_array_equal(x, y)
        assert sorted(looked) == sorted(Path(p).name for s in data.parts.values() for p in s.images.paths) # each once
    assert a.about['transform'] == '12 px RGB' and 'transform' not in b.about
    looked.clear()
    embed(data, mean)
    assert looked == [] # kept
    np.testing.assert_array_equal(extract(data.train.images, 'raw'), pixels(held.train.images))
    assert extract(data.train.images.at(50), 'raw').shape == (10, 32*32*3)

def test_a_bad_file_stops_an_embedding_by_name_and_it_goes_on_after(photos, store, looked):
    data, before = load(photos, size=8), (photos/'dog/2.png').read_bytes()
    state = (photos/'dog/2.png').stat()
    (photos/'dog/2.png').write_bytes(b'x'*len(before)); os.utime(photos/'dog/2.png', ns=(state.st_atime_ns, state.st_mtime_ns))
    mean = Extractor('mean', '0', 'none', lambda b: b.mean((1, 2)), batch_size=3)
    with pytest.raises(NoisynbError, match='dog/2.png: not an image'): embed(data, mean)
    (photos/'dog/2.png').write_bytes(before); os.utime(photos/'dog/2.png', ns=(state.st_atime_ns, state.st_mtime_ns))
    looked.clear()
    np.testing.assert_allclose(embed(data, mean).train, np.asarray(data.train.images).mean((1, 2)), rtol=1e-6)
    assert len(looked) == 3 + 12 and looked.count('0.png') == 2 # the last batch, and twelve for the comparison: nine rows were kept
    with pytest.raises(NoisynbError, match='dog/2.png'):
        (photos/'dog/2.png').write_bytes(b''); embed(load(photos, size=8), 'pca:2')

def test_more_pictures_than_fit(photos, store, monkeypatch):
    data = load(photos, size=2)
    whole = embed(data, 'pca:4')
    monkeypatch.setattr(E, '_held', 50); monkeypatch.setattr(E, '_block', 5)
    sizes, look = [], Files.__getitem__
    monkeypatch.setattr(Files, '__getitem__', lambda self, key: sizes.append(len(got := look(self, key))) or got)
    parts = embed(data, 'pca:4')
    np.testing.assert_allclose(parts.train, whole.train, atol=1e-5)
    assert parts.about == whole.about and sizes == [5, 5, 2]*2
    with pytest.raises(NoisynbError, match='pca:64'): embed(data, 'raw')

@settings(max_examples=15, deadline=None)
@given(n=st.integers(64, 3000), seed=st.integers(0, 9), extreme=st.booleans())
def test_sums_of_pixels_are_exact(n, seed, extreme):
    r = np.random.default_rng(seed)
    x = (r.integers(0, 2, (n, 4, 4, 2))*255).astype(np.uint8) if extreme else r.integers(0, 256, (n, 4, 4, 2), np.uint8)
    whole = x.reshape(n, 32).astype(np.int64) - 128
    total, products = 0, 0
    for _, b in E._blocks(x, ''): total, products = total + b.sum(0, dtype=np.float64), products + (b.T @ b).astype(np.float64)
    np.testing.assert_array_equal(total, whole.sum(0)); np.testing.assert_array_equal(products, whole.T @ whole)
    (z,), kept = pca(5, x)
    from sklearn.decomposition import PCA
    ref = PCA(5, svd_solver='full').fit(x.reshape(n, 32)/255)
    np.testing.assert_allclose(z, ref.transform(x.reshape(n, 32)/255), atol=1e-3)
    assert kept == pytest.approx(ref.explained_variance_ratio_.sum(), abs=1e-6)
    for a, b in zip(E._from_sums(x, 5), E._from_sums(x[r.permutation(n)], 5)): np.testing.assert_array_equal(a, b)

def test_batches_come_in_order_and_one_ahead():
    class Slow:
        asked = []
        def __getitem__(self, rows): self.asked.append(rows.start); return rows.start
    s, seen = Slow(), []
    for batch in _batches(s, range(0, 60, 5), 5):
        assert len(s.asked) <= len(seen) + 2
        seen.append(batch)
    assert seen == s.asked == list(range(0, 60, 5))

def test_a_run_on_a_folder(photos, store):
    from noisynb.experiment import Config, run
    Config(dataset=str(photos), noise_type='none').check()
    this = run(dataset=str(photos), embedding='pca:4', noise_type='symmetric', noise_rate=.2, method='knn', options=dict(k=3), device='cpu')
    assert this.result['dataset'] == 'photos' and len(this.noisy.given) == 12
