import errno, hashlib, inspect, json, math, os, pickle, random, shutil, signal, subprocess, sys, tempfile, time, tracemalloc
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from noisynb import embeddings as emb
from noisynb.core import NoisynbError
from noisynb.datasets import Dataset, Split
from noisynb.embeddings import Extractor, Store, backbones, embed, extract, make_extractor, parse, pca, pixels, ready, stored


def numbered(n, start=0):
    "Images (n, 2, 2, 1) whose four bytes are their row number"
    return np.arange(start, start + n, dtype='<u4').view(np.uint8).reshape(n, 2, 2, 1)


def formula(images):
    "Three features of a numbered image, none of them trivial"
    i = np.ascontiguousarray(images).reshape(len(images), 4).view('<u4')
    return np.sin(i * np.array([1., .1, .01]))


def extractor(run=formula, batch_size=8, **kw): return Extractor(**{**dict(name='fake', weights='w', transform='t', run=run, batch_size=batch_size), **kw})


def counting(calls, run=formula):
    def f(images):
        calls.append(len(images))
        return run(images)
    return f


def colour(n, side=8, seed=0, channels=3): return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def dataset(train=30, test=10, val=None, **kw):
    split = lambda n, s: Split(colour(n, seed=s, **kw), np.arange(n) % 3)
    return Dataset('toy', split(train, 0), split(test, 1), ('a', 'b', 'c'), val=split(val, 2) if val is not None else None)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('NOISYNB_DATA', str(tmp_path/'data'))


@pytest.fixture
def quick(monkeypatch): monkeypatch.setattr(emb, 'versions', lambda: {})


def only(folder, pattern='*'):
    found = list(Path(folder).glob(pattern))
    assert len(found) == 1
    return found[0]


# pixels and principal components

def test_pixels():
    x = colour(5)
    p = pixels(x)
    assert p.dtype == np.float32 and p.shape == (5, 192) and pixels(x[:0]).shape == (0, 192)
    np.testing.assert_allclose(p, x.reshape(5, -1) / 255, rtol=1e-6)


@pytest.mark.parametrize('n, side, k', [(300, 4, 7), (20, 8, 20), (20, 8, 5)])
def test_pca_agrees_with_svd(n, side, k):
    x, q = colour(n, side), colour(9, side, seed=1)
    (z, zq), kept = pca(k, x, q)
    X, Q = x.reshape(n, -1) / 255, q.reshape(9, -1) / 255
    mean = X.mean(0)
    _, s, vt = np.linalg.svd(X - mean, full_matrices=False)
    vt *= np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(1)])[:, None] # the documented sign
    real = s[:k] > 1e-8 # with n <= d the last direction is empty
    for a, b in ((z, X), (zq, Q)):
        assert a.dtype == np.float32 and a.shape == (len(b), k)
        np.testing.assert_allclose(a[:, real], ((b - mean) @ vt[:k].T)[:, real], atol=2e-4)
    assert kept == pytest.approx((s[:k]**2).sum() / (s**2).sum(), abs=1e-5)


def test_pca_of_long_rows_is_sampled_and_repeatable():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 40, (520, 3)) @ rng.integers(0, 2, (3, 600))
    x = np.clip(low, 0, 255).astype(np.uint8).reshape(520, 20, 10, 3)
    (a,), kept = pca(3, x)
    assert kept > 0.999
    np.testing.assert_array_equal(a, pca(3, x)[0][0])


def test_pca_dims_are_cut_with_a_note_and_no_warning(recwarn):
    e = embed(dataset(train=12), 'pca:64')
    assert e.train.shape == (12, 12) and e.name == 'pca:12' and '64' in e.about['note']
    same = np.full((5, 4, 4, 1), 7, np.uint8)
    assert np.isfinite(extract(same, 'pca:2')).all() and not (extract(same, 'pca:2')).any()
    assert not recwarn.list


# the one door

def test_embed_raw_parts_and_label_independence():
    data = dataset(val=6)
    e = embed(data)
    assert e.name == 'raw' and e.train.shape == (30, 192) and e.test.shape == (10, 192) and e.val.shape == (6, 192)
    np.testing.assert_array_equal(e.val, pixels(data.val.images))
    relabelled = replace(data, train=Split(data.train.images, data.train.labels[::-1]))
    assert embed(relabelled).fingerprint == e.fingerprint
    changed = data.train.images.copy()
    changed[3, 0, 0, 0] ^= 1
    assert embed(replace(data, train=Split(changed, data.train.labels))).fingerprint != e.fingerprint


@pytest.mark.parametrize('name', ['raw', 'pca:4', 'store'])
def test_empty_test_part(name, quick):
    e = embed(dataset(test=0), extractor(lambda b: pixels(b)[:, :4]) if name == 'store' else name)
    assert e.test.shape == (0, e.train.shape[1]) and e.test.dtype == np.float32


def test_pca_is_fitted_on_train_only():
    data = dataset(val=5)
    other = replace(data, test=Split(colour(4, seed=9), np.zeros(4, int)))
    np.testing.assert_array_equal(embed(data, 'pca:5').train, embed(other, 'pca:5').train)


def test_labels_are_no_part_of_the_key(quick):
    data, calls = dataset(), []
    e = extractor(counting(calls, lambda b: pixels(b)[:, :3]))
    embed(data, e)
    embed(replace(data, train=Split(data.train.images, data.train.labels[::-1], {'worst': data.train.labels})), e)
    assert len(calls) == 4 + 2
    with pytest.raises(NoisynbError, match='uint8'): extract(np.zeros((3, 2, 2)), e)


@pytest.mark.parametrize('name, words', [
    ('rwa', "did you mean 'raw'"), ('pca:0', 'components'), ('pca:x', 'components'), ('raw?size=3', 'no options'), ('timm:', 'no embedding'),
    ('onnx:nowhere.onnx', 'nowhere.onnx'), ('nowhere.npz', 'nowhere.npz'), ('onnx:x?size', 'options of'),
    ('timm:test_vit?sise=3', "did you mean 'size'"), ('timm:test_vitt', 'test_vit'), ('timm:test_vit.r16', "r160_in1k"), ('timm:test_vit?pretrained=0&dtype=half', 'float32'),
    ('timm:test_vit?pretrained=0&size=big', 'whole number')])
def test_mistakes(name, words):
    with pytest.raises(NoisynbError, match=words): extract(colour(5), name)


def test_no_images():
    with pytest.raises(NoisynbError, match='no images'): extract(colour(0))


@given(st.dictionaries(st.sampled_from(['size', 'mean', 'std', 'weights']), st.one_of(st.integers(1, 999), st.floats(.5, 300).map(lambda x: round(x, 3)),
       st.tuples(st.integers(1, 9), st.integers(1, 9)), st.sampled_from(['a.pth', 'my file.safetensors']))))
@settings(max_examples=30, deadline=None)
def test_parse_reads_what_is_written(options):
    text = '&'.join(f'{k}={",".join(map(str, v)) if isinstance(v, tuple) else v}' for k, v in options.items())
    assert parse('onnx:some/dir/m.onnx' + ('?' + text if text else '')) == ('onnx', 'some/dir/m.onnx', options)


def test_import_is_light():
    code = "import sys, noisynb.embeddings as e; e.backbones; print([m for m in ('torch', 'sklearn', 'timm', 'onnxruntime', 'matplotlib', 'scipy', 'PIL', 'filelock') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# the store

def test_store_files_and_values(tmp_path, quick):
    parts = dict(train=numbered(20), test=numbered(5, 100))
    out = stored(parts, extractor(), tmp_path/'s')
    for p, x in parts.items(): np.testing.assert_array_equal(out[p], formula(x).astype(np.float32))
    folder = only(tmp_path/'s')
    record = json.loads((folder/'embedding.json').read_text())
    for p in parts:
        data = (folder/f'{p}.npy').read_bytes()
        assert record['parts'][p]['sha256'] == hashlib.sha256(data).hexdigest() and record['parts'][p]['bytes'] == len(data)
        np.testing.assert_array_equal(np.load(folder/f'{p}.npy'), out[p])
    assert record['name'] == 'fake' and record['weights'] == 'w' and record['transform'] == 't' and record['arithmetic'] == 'float32'
    assert not list(folder.glob('*.partial'))
    out['train'][:] = 0 # a private copy
    np.testing.assert_array_equal(stored(parts, extractor(), tmp_path/'s')['train'], formula(parts['train']).astype(np.float32))


def test_leftovers_of_a_killed_process_are_swept(tmp_path, quick):
    stored(dict(train=numbered(20)), extractor(), tmp_path)
    folder = only(tmp_path)
    (folder/'.embedding.123-abcdef.json').write_text('{"half')
    (folder/'train.npy').unlink()
    stored(dict(train=numbered(20)), extractor(), tmp_path)
    assert {f.name for f in folder.iterdir()} <= {'train.npy', 'embedding.json', 'lock'}


def test_other_data_weights_transform_name_go_elsewhere(tmp_path, quick):
    calls = []
    base = extractor(counting(calls))
    for e in (base, replace(base, weights='v'), replace(base, transform='u'), replace(base, name='other'), base):
        stored(dict(train=numbered(8)), e, tmp_path)
    stored(dict(train=numbered(8, 1)), base, tmp_path)
    assert len(calls) == 5 and len(list(tmp_path.glob('*-*'))) == 5


@given(n=st.integers(1, 40), first=st.integers(1, 12), second=st.integers(1, 12), stop=st.integers(0, 8))
@settings(max_examples=25, deadline=None)
def test_any_interruption_and_batch_size_gives_the_same_bytes(tmp_path_factory, n, first, second, stop):
    tmp, calls = tmp_path_factory.mktemp('store'), []
    parts = dict(train=numbered(n))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(emb, 'versions', lambda: {})
        def until(images):
            if len(calls) == stop: raise KeyboardInterrupt
            return counting(calls)(images)
        try: stored(parts, extractor(until), tmp/'a', first)
        except KeyboardInterrupt: pass
        done = sum(calls)
        calls.clear()
        stored(parts, extractor(counting(calls)), tmp/'a', second)
        stored(parts, extractor(), tmp/'b')
    assert sum(calls) == n - done
    assert only(tmp/'a', '*/train.npy').read_bytes() == only(tmp/'b', '*/train.npy').read_bytes()


class Crash(BaseException): "The process is gone"


@pytest.mark.parametrize('after', [False, True])
def test_a_crash_at_every_step_on_the_disk(tmp_path, monkeypatch, quick, after):
    parts = dict(train=numbered(18), test=numbered(9, 500))
    whole = stored(parts, extractor(), tmp_path/'whole')
    step = dict(now=0, at=-1)
    def faulty(real):
        def f(*a, **kw):
            here, step['now'] = step['now'] == step['at'], step['now'] + 1
            if here and not after: raise Crash
            out = real(*a, **kw)
            if here: raise Crash
            return out
        return f
    for name in ('fsync', 'replace', 'truncate'): monkeypatch.setattr(os, name, faulty(getattr(os, name)))
    stored(parts, extractor(), tmp_path/'count')
    steps = step['now']
    assert steps == 3*(3 + 2) + 2 # an append, a synced sidecar and its renaming for each batch; a renaming for each part
    for at in range(steps):
        store, calls = tmp_path/f'{at}', []
        step.update(now=0, at=at)
        with pytest.raises(Crash): stored(parts, extractor(), store)
        step.update(at=-1)
        folder = only(store)
        saved = json.loads((folder/'embedding.json').read_text())['parts'] if (folder/'embedding.json').exists() else {}
        finished = sum(math.ceil(p['rows'] / 8) for p in saved.values())
        for p in parts:
            if (folder/f'{p}.npy').exists(): np.testing.assert_array_equal(np.load(folder/f'{p}.npy'), whole[p])
        out = stored(parts, extractor(counting(calls)), store)
        assert len(calls) == 5 - finished and (at < 3 or finished)
        for p in parts: np.testing.assert_array_equal(out[p], whole[p])
        assert not [f for f in folder.iterdir() if f.suffix == '.partial' or f.name.startswith('.embedding')]


def test_half_a_batch_on_the_disk_is_cut_off(tmp_path, monkeypatch, quick):
    parts, real = dict(train=numbered(26)), emb._append
    for at in range(4):
        left = [at]
        def torn(path, data):
            if left[0] == 0:
                real(path, data[:len(data)//2])
                raise Crash
            left[0] -= 1
            real(path, data)
        monkeypatch.setattr(emb, '_append', torn)
        with pytest.raises(Crash): stored(parts, extractor(), tmp_path/f'{at}')
        monkeypatch.setattr(emb, '_append', real)
        np.testing.assert_array_equal(stored(parts, extractor(), tmp_path/f'{at}')['train'], formula(parts['train']).astype(np.float32))


job = """
import os, sys, time
sys.path.insert(0, {root!r})
import numpy as np
from noisynb import embeddings as emb
{functions}
def slow(images):
    with open('calls', 'a') as f: f.write(f'{{int.from_bytes(images[0].tobytes(), "little")}}\\n')
    time.sleep({delay})
    return formula(images)
emb.versions = dict
{before}
try: emb.stored(dict(train=numbered(240), test=numbered(40, 1000)), extractor(slow), 'store')
except emb.NoisynbError as e: print('refused:', e)
"""


def start(cwd, delay=.01, before=''):
    functions = '\n'.join(map(inspect.getsource, (numbered, formula, extractor))).replace('Extractor(', 'emb.Extractor(')
    code = job.format(root=str(Path(__file__).resolve().parent.parent), functions=functions, delay=delay, before=before)
    return subprocess.Popen([sys.executable, '-c', code], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def logged(cwd): return [int(l) for l in (cwd/'calls').read_text().split()] if (cwd/'calls').exists() else []


def reference(tmp_path):
    stored(dict(train=numbered(240), test=numbered(40, 1000)), extractor(), tmp_path/'reference')
    return {p: only(tmp_path/'reference', f'*/{p}.npy').read_bytes() for p in ('train', 'test')}


def test_killed_at_random_moments(tmp_path):
    whole, rng = reference(tmp_path), random.Random(0)
    for _ in range(4):
        seen, p = len(logged(tmp_path)), start(tmp_path)
        while len(logged(tmp_path)) == seen and p.poll() is None: time.sleep(.002)
        time.sleep(rng.uniform(0, .06))
        p.send_signal(signal.SIGKILL)
        p.communicate()
        assert p.returncode == -signal.SIGKILL
        side = list((tmp_path/'store').glob('*/embedding.json'))
        parts = json.loads(side[0].read_text())['parts'] if side else {}
        rows = parts.get('train', {}).get('rows', 0)
        expected = rows if rows < 240 else 1000 + parts.get('test', {}).get('rows', 0)
        for f in (tmp_path/'store').glob('*/*.npy'): assert f.read_bytes() == whole[f.stem]
        seen, p = len(logged(tmp_path)), start(tmp_path, before='emb.atomic_write = lambda *a: os._exit(3)')
        p.communicate()
        assert p.returncode == 3
        assert logged(tmp_path)[seen:] == [expected] # the first batch computed is the first one that was not recorded
    p = start(tmp_path)
    p.communicate()
    folder = only(tmp_path/'store')
    assert p.returncode == 0 and {q: (folder/f'{q}.npy').read_bytes() for q in whole} == whole
    assert {f.name for f in folder.iterdir()} <= {'train.npy', 'test.npy', 'embedding.json', 'lock'}


def test_processes_at_once_share_the_work(tmp_path):
    whole = reference(tmp_path)
    running = [start(tmp_path, delay=.02) for _ in range(3)]
    errors = [p.communicate()[1] for p in running]
    assert [p.returncode for p in running] == [0, 0, 0], errors
    assert sorted(logged(tmp_path)) == [*range(0, 240, 8), *range(1000, 1040, 8)]
    assert {q: only(tmp_path/'store', f'*/{q}.npy').read_bytes() for q in whole} == whole


def test_a_full_disk(tmp_path):
    whole = reference(tmp_path)
    p = start(tmp_path, delay=0, before='import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))')
    out, err = p.communicate()
    assert p.returncode == 0 and out.startswith('refused:') and 'train.npy.partial' in out and 'run the same again' in out, err
    folder, done = only(tmp_path/'store'), logged(tmp_path)
    assert not (folder/'train.npy').exists() and (folder/'train.npy.partial').exists()
    start(tmp_path, delay=0).communicate()
    assert logged(tmp_path)[len(done):] == [*range(done[-1], 240, 8), *range(1000, 1040, 8)] # only the batch that did not fit is repeated
    assert {q: (folder/f'{q}.npy').read_bytes() for q in whole} == whole


def test_no_space_left(tmp_path, monkeypatch, quick):
    def full(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as m:
        m.setattr(os, 'fsync', full)
        with pytest.raises(NoisynbError, match='train.npy.partial: No space left'): stored(dict(train=numbered(20)), extractor(), tmp_path)
    with monkeypatch.context() as m:
        m.setattr(emb.shutil, 'disk_usage', lambda p: type('', (), dict(free=100)))
        with pytest.raises(NoisynbError, match='MiB free'): stored(dict(train=numbered(20, 7)), extractor(), tmp_path)
    assert not list(tmp_path.glob('*/train.npy'))
    stored(dict(train=numbered(20)), extractor(), tmp_path)


def test_unwritable_folder(tmp_path, quick):
    (tmp_path/'file').write_text('')
    with pytest.raises(NoisynbError, match='store='): stored(dict(train=numbered(20)), extractor(), tmp_path/'file'/'store')


def test_a_store_that_may_only_be_read(quick):
    import filelock # while there are rights to read it
    root, parts, me = Path(tempfile.mkdtemp()), dict(train=numbered(20)), os.geteuid()
    try:
        stored(parts, extractor(), root/'s')
        folder = only(root/'s')
        (folder/'lock').unlink(missing_ok=True)
        for p in (root, root/'s', folder): p.chmod(0o555)
        if me == 0: os.seteuid(65534)
        np.testing.assert_array_equal(stored(parts, extractor(), root/'s')['train'], formula(parts['train']).astype(np.float32))
        with pytest.raises(NoisynbError, match='Permission denied.*store='): stored(dict(train=numbered(9)), extractor(), root/'s')
    finally:
        if me == 0: os.seteuid(0)
        for p in (root, root/'s', folder): p.chmod(0o755)
        shutil.rmtree(root)


def flip(path, at=-3):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


damage = {
    'flipped byte': ('train.npy', flip), 'truncated': ('train.npy', lambda p: os.truncate(p, p.stat().st_size - 5)), 'longer': ('train.npy', lambda p: p.write_bytes(p.read_bytes() + b'x')),
    'header': ('train.npy', lambda p: flip(p, 70)), 'emptied': ('train.npy', lambda p: p.write_bytes(b'')),
    **{f'sidecar {t[:20]}': ('embedding.json', lambda p, t=t: p.write_text(t)) for t in ('', '[]', '{}', 'null', '{"schema": 1, "parts": []}', '{"schema": 1, "parts": {"train": 3}}',
        '{"schema": 1, "parts": {"train": {"shape": [20], "rows": 20, "bytes": 3, "sha256": ""}}}')},
    **{f'other {k}': ('embedding.json', lambda p, k=k: p.write_text(json.dumps({**json.loads(p.read_text()), k: 'x'}))) for k in ('data', 'weights', 'name', 'transform', 'schema')},
    'no sidecar': ('embedding.json', lambda p: p.unlink())}


@pytest.mark.parametrize('what', damage)
def test_damage_and_mismatch_are_refused_by_name(tmp_path, quick, what):
    parts, (name, harm) = dict(train=numbered(20)), damage[what]
    stored(parts, extractor(), tmp_path)
    path = only(tmp_path, f'*/{name}')
    harm(path)
    with pytest.raises(NoisynbError, match='delete') as e: stored(parts, extractor(), tmp_path)
    assert str(path) in str(e.value) and ('missing' in str(e.value) or what not in ('truncated', 'emptied'))
    target = str(e.value).split('delete ')[1].split(' to have')[0]
    shutil.rmtree(target) if Path(target).is_dir() else os.unlink(target) # the advice works
    np.testing.assert_array_equal(stored(parts, extractor(), tmp_path)['train'], formula(parts['train']).astype(np.float32))


@pytest.mark.parametrize('harm', [flip, lambda p: os.truncate(p, 150)])
def test_damage_to_an_unfinished_part_is_refused(tmp_path, quick, harm):
    parts, calls = dict(train=numbered(40)), []
    def stops(images):
        if len(calls) == 3: raise Crash
        return counting(calls)(images)
    with pytest.raises(Crash): stored(parts, extractor(stops), tmp_path)
    harm(only(tmp_path, '*/*.partial'))
    with pytest.raises(NoisynbError, match='partial.*delete'): stored(parts, extractor(), tmp_path)
    only(tmp_path, '*/*.partial').unlink()
    np.testing.assert_array_equal(stored(parts, extractor(), tmp_path)['train'], formula(parts['train']).astype(np.float32))


def test_an_unfinished_part_is_not_mixed(tmp_path, quick):
    parts, calls = dict(train=numbered(40)), []
    def stops(images):
        if len(calls) == 3: raise Crash
        return counting(calls)(images)
    with pytest.raises(Crash): stored(parts, extractor(stops), tmp_path)
    with pytest.raises(NoisynbError, match='bfloat16'): stored(parts, extractor(arithmetic='bfloat16 autocast'), tmp_path)
    with pytest.raises(NoisynbError, match='wide'): stored(parts, extractor(lambda b: formula(b)[:, :2]), tmp_path)


@pytest.mark.parametrize('run, words', [(lambda b: formula(b)[1:], 'shape'), (lambda b: np.zeros(len(b)), 'shape'), (lambda b: formula(b) / 0 * 0, 'NaN')])
def test_bad_features_are_refused(tmp_path, quick, run, words):
    with np.errstate(all='ignore'), pytest.raises(NoisynbError, match=words): stored(dict(train=numbered(20)), extractor(run), tmp_path)
    assert not list(tmp_path.glob('*/train.npy'))


@pytest.mark.parametrize('size', [0, -1, 2.5, True])
def test_batch_size(tmp_path, size, quick):
    with pytest.raises(NoisynbError, match='batch_size' ): stored(dict(train=numbered(20)), extractor(), tmp_path, size)


def test_memory_stays_small(tmp_path, quick):
    images = numbered(20_000)
    tracemalloc.start()
    try:
        out = stored(dict(train=images), extractor(lambda b: np.full((len(b), 500), 1., np.float32), 500), tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert out['train'].nbytes == 40_000_000 and peak < 10_000_000


# ready-made arrays

def test_ready_npz(tmp_path):
    data = dataset(val=4)
    rng = np.random.default_rng(0)
    a = {p: rng.normal(size=(len(s), 7)) for p, s in data.parts.items()}
    np.savez(tmp_path/'short.npz', **a, mean=np.zeros(3))
    np.savez_compressed(tmp_path/'long.npz', **{f'{p}_embeddings': v.astype(np.float16) for p, v in a.items()}, train_labels=data.train.labels)
    for name, tol in (('short', 1e-6), ('long', 2e-2)):
        e = embed(data, tmp_path/f'{name}.npz')
        assert e.name == f'{name}.npz'
        for p in a:
            assert getattr(e, p).dtype == np.float32
            np.testing.assert_allclose(getattr(e, p), a[p], atol=tol)
    (tmp_path/'data').mkdir()
    (tmp_path/'short.npz').rename(tmp_path/'data'/'moved.npz')
    assert embed(data, 'moved.npz').test.shape == (10, 7) # found in the data folder


class Bomb:
    def __reduce__(self): return open, ('went-off', 'w')


def bad(path, kind):
    good = dict(train=np.zeros((30, 3)), test=np.zeros((10, 3)))
    nan = np.zeros((10, 3))
    nan[4, 1] = np.nan
    if kind == 'bytes': return path.write_bytes(b'no zip at all')
    if kind == 'pickle': return path.write_bytes(pickle.dumps(Bomb()))
    if kind == 'cut':
        np.savez(path, **good)
        return os.truncate(path, path.stat().st_size // 2)
    np.savez(path, **{'rows': {**good, 'test': np.zeros((9, 3))}, 'missing': dict(train=good['train']), 'objects': {**good, 'test': np.array([[Bomb()]*3]*10)},
                      'flat': {**good, 'test': np.zeros(10)}, 'text': {**good, 'test': np.full((10, 3), 'x')}, 'nan': {**good, 'test': nan}, 'width': {**good, 'test': np.zeros((10, 4))}}[kind])


@pytest.mark.parametrize('kind, words', [('rows', '9 rows.*10 images'), ('missing', "no 'test'"), ('objects', 'cannot be read'), ('flat', r'shape \(10,\)'), ('text', 'numbers'),
    ('nan', 'row 4'), ('width', '4 wide'), ('bytes', 'cannot be read'), ('pickle', 'cannot be read'), ('cut', 'cannot be read')])
def test_bad_ready_arrays(tmp_path, monkeypatch, kind, words):
    monkeypatch.chdir(tmp_path)
    bad(tmp_path/'x.npz', kind)
    with pytest.raises(NoisynbError, match=words) as e: embed(dataset(), 'x.npz')
    assert 'x.npz' in str(e.value) and not (tmp_path/'went-off').exists()


def test_a_store_by_its_folder(tmp_path, quick):
    data = dataset()
    e = embed(data, extractor(lambda b: pixels(b)[:, :4]), store=tmp_path)
    folder = only(tmp_path, 'fake-*')
    again = embed(data, str(folder))
    assert again.fingerprint == e.fingerprint
    with pytest.raises(NoisynbError, match='data is'): embed(dataset(train=31), folder)
    flip(folder/'test.npy')
    with pytest.raises(NoisynbError, match='test.npy'): embed(data, folder)
    with pytest.raises(NoisynbError, match='embedding.json'): embed(data, tmp_path)


# ONNX

W = np.random.default_rng(5).normal(size=(3, 6)).astype(np.float32)


def tiny_onnx(path, shape=('b', 3, 'h', 'w'), weights=W, pooled=True, rank3=False):
    "Mean over height and width, then a matrix: (b, 3, h, w) -> (b, 6); without `pooled`, a ReLU map (b, 3, h, w)"
    onnx = pytest.importorskip('onnx')
    from onnx import helper, numpy_helper
    node = helper.make_node
    nodes = [node('GlobalAveragePool', ['x'], ['m']), node('Flatten', ['m'], ['v']), node('MatMul', ['v', 'w'], ['f'])] if pooled else [node('Relu', ['x'], ['f'])]
    if rank3: nodes[-1:] = [node('MatMul', ['v', 'w'], ['g']), node('Unsqueeze', ['g', 'axis'], ['f'])]
    out = ['b', 1, weights.shape[1]] if rank3 else ['b', weights.shape[1]] if pooled else [*shape]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, 'g', [info('x', 1, [*shape])], [info('f', 1, None if rank3 else out)],
        [numpy_helper.from_array(weights, 'w'), numpy_helper.from_array(np.array([1]), 'axis')])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8), path)
    return path


def by_hand(x, mean, std): return ((x.astype(np.float64) - mean) / std).mean((1, 2)) @ W


def test_onnx_against_numpy(tmp_path):
    path, x = tiny_onnx(tmp_path/'tiny.onnx'), colour(11)
    f = extract(x, f'onnx:{path}?size=8&mean=10,20,30&std=50,60,70', batch_size=4)
    np.testing.assert_allclose(f, by_hand(x, [10, 20, 30], [50, 60, 70]), atol=1e-4)
    np.testing.assert_array_equal(f, extract(x, f'onnx:{path}', batch_size=4, size=8, mean=(10, 20, 30), std=[50, 60, 70]))
    assert only(tmp_path/'cache'/'embeddings').name.startswith('onnx-tiny.onnx')
    grey = colour(5, channels=1)
    np.testing.assert_allclose(extract(grey, f'onnx:{path}?size=8'), by_hand(grey.repeat(3, -1), 127, 128), atol=1e-4)


@pytest.mark.parametrize('side, size', [(8, 24), (8, 5)])
def test_onnx_resizes_by_torch_bicubic(tmp_path, side, size):
    import torch
    path, x = tiny_onnx(tmp_path/'tiny.onnx'), colour(6, side)
    t = torch.nn.functional.interpolate(torch.from_numpy(x).permute(0, 3, 1, 2).float(), size=(size, size), mode='bicubic', align_corners=False, antialias=size < side).clamp(0, 255)
    np.testing.assert_allclose(extract(x, f'onnx:{path}?size={size}'), by_hand(t.permute(0, 2, 3, 1).numpy(), 127, 128), atol=1e-4)


def test_onnx_fixed_shapes_and_maps(tmp_path):
    x = colour(7)
    for batch in (1, 3):
        f = extract(x, f'onnx:{tiny_onnx(tmp_path/f"{batch}.onnx", (batch, 3, 8, 8))}') # the size is the model's own
        np.testing.assert_allclose(f, by_hand(x, 127, 128), atol=1e-4)
    f = extract(x, f'onnx:{tiny_onnx(tmp_path/"map.onnx", pooled=False)}?size=8')
    np.testing.assert_allclose(f, np.maximum((x.astype(float) - 127) / 128, 0).mean((1, 2)), atol=1e-5)
    f = extract(colour(7, channels=1), f'onnx:{tiny_onnx(tmp_path/"grey.onnx", ("b", 1, 8, 8), pooled=False)}')
    assert f.shape == (7, 1)


def test_onnx_mistakes(tmp_path):
    path = tiny_onnx(tmp_path/'m.onnx', ('b', 3, 8, 8))
    (tmp_path/'bad.onnx').write_bytes(b'not a model')
    tiny_onnx(tmp_path/'rank3.onnx', rank3=True)
    for name, words in ((f'{path}?size=9', '8x8'), (f'{path}?mean=a', 'grey levels'), (f'{path}?std=0', 'above 0'), (f'{path}?mean=1,2', 'three'), (f'{path}?size=0', 'no ONNX|whole|8x8'),
                        (tmp_path/'bad.onnx', 'cannot load'), (f'{tmp_path/"rank3.onnx"}?size=8', 'one row of features')):
        with pytest.raises(NoisynbError, match=words): extract(colour(3), f'onnx:{name}')
    with pytest.raises(NoisynbError, match='4 channels'): extract(colour(3, channels=4), f'onnx:{path}')
    import onnxruntime
    if 'CUDAExecutionProvider' not in onnxruntime.get_available_providers():
        with pytest.raises(NoisynbError, match='no CUDA'): extract(colour(3), f'onnx:{path}', device='cuda')


def test_onnx_weights_and_place(tmp_path):
    a = make_extractor(f'onnx:{tiny_onnx(tmp_path/"m.onnx")}?std=1&size=8')
    assert a.name == 'onnx:m.onnx?size=8&std=1' # no folders, options in order
    (tmp_path/'data').mkdir()
    tiny_onnx(tmp_path/'data'/'m.onnx', weights=2*W)
    b = make_extractor('onnx:m.onnx?size=8&std=1')
    assert b.name == a.name and b.weights != a.weights and b.transform == a.transform
    (tmp_path/'m.onnx.data').write_bytes(b'weights beside the graph')
    assert make_extractor(f'onnx:{tmp_path/"m.onnx"}').weights != a.weights


# timm

@pytest.fixture(scope='module')
def timm():
    emb.load_torchvision()
    return pytest.importorskip('timm')


def direct(timm, model, x, **kw):
    "Features by calling timm, image by image"
    import torch
    from PIL import Image
    net = timm.create_model(model, num_classes=0, **kw).eval()
    return net, lambda net: net(torch.stack([timm.data.create_transform(**timm.data.resolve_model_data_config(net))(Image.fromarray(i)) for i in x])).detach().numpy()


@pytest.mark.parametrize('model', ['test_vit.r160_in1k', 'test_resnet.r160_in1k'])
def test_timm_against_timm(timm, tmp_path, model):
    import torch
    from safetensors.torch import save_file
    x = colour(6, 20)
    net, features = direct(timm, model, x)
    save_file(net.state_dict(), tmp_path/'w.safetensors')
    torch.save(net.state_dict(), tmp_path/'w.pth')
    want = features(net)
    for file in ('w.safetensors', 'w.pth'):
        f = extract(x, f'timm:{model}?weights={tmp_path/file}', device='cpu', batch_size=4)
        assert f.dtype == np.float32 and f.shape == want.shape
        np.testing.assert_allclose(f, want, rtol=1e-4, atol=1e-5)
    a, b = (make_extractor(f'timm:{model}?weights={tmp_path/w}', 'cpu') for w in ('w.safetensors', 'w.pth'))
    assert a.weights == b.weights and a.name == f'timm:{model}?weights=w.safetensors'


def test_timm_random_weights(timm):
    import torch
    state, x = torch.get_rng_state(), colour(3, 20)
    a, b, c = (make_extractor(f'timm:test_vit?pretrained=0&seed={s}', 'cpu') for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert a.weights == b.weights != c.weights and a.arithmetic == 'float32'
    np.testing.assert_array_equal(a(x), b(x))
    assert np.abs(a(x) - c(x)).max() > .01
    low = make_extractor('timm:test_vit?pretrained=0&dtype=bfloat16', 'cpu')
    diff = np.abs(low(x) - a(x)).max() / np.abs(a(x)).max()
    assert low.arithmetic == 'bfloat16 autocast' and 0 < diff < .05
    grey = colour(3, 20, channels=1)
    np.testing.assert_array_equal(a(grey), a(grey.repeat(3, -1)))


@pytest.mark.parametrize('model', ['test_vit', 'test_resnet'])
def test_timm_size(timm, model):
    e = make_extractor(f'timm:{model}?pretrained=0&size=64', 'cpu')
    assert 'input_size (3, 64, 64)' in e.transform and e(colour(2, 20)).shape[0] == 2
    assert 'input_size (3, 160, 160)' in make_extractor(f'timm:{model}?pretrained=0', 'cpu').transform


def test_timm_without_network(timm, monkeypatch):
    def offline(*a, **kw): raise OSError('no route to huggingface.co')
    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(NoisynbError, match=r'no route.*weights=FILE.*pretrained=0'): extract(colour(2), 'timm:test_vit.r160_in1k')


def test_timm_bad_weights(timm, tmp_path, monkeypatch):
    import torch
    monkeypatch.chdir(tmp_path)
    torch.save({'x': torch.zeros(3)}, 'other.pth')
    torch.save(Bomb(), 'bomb.pth')
    Path('junk.safetensors').write_bytes(b'junk')
    for f in ('other.pth', 'bomb.pth', 'junk.safetensors', 'missing.pth'):
        with pytest.raises(NoisynbError, match=f): extract(colour(2), f'timm:test_vit?weights={f}', device='cpu')
    assert not Path('went-off').exists()
    torch.save({k: v for k, v in timm.create_model('test_vit').state_dict().items() if 'blocks.1' not in k}, 'part.pth')
    with pytest.raises(NoisynbError, match='does not fill'): extract(colour(2), 'timm:test_vit?weights=part.pth', device='cpu')


def test_listed_backbones_exist_and_are_as_wide_as_said(timm):
    import torch
    listed = {k[5:]: v for k, v in backbones.items() if k.startswith('timm:')}
    assert len(listed) > 10 and set(listed) <= set(timm.list_models(pretrained=True))
    for model, line in listed.items():
        with torch.device('meta'): net = timm.create_model(model, num_classes=0)
        assert line.startswith(f'{net.num_features} dims') and f'{net.pretrained_cfg["input_size"][-1]} px' in line


def test_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r'noisynb\[backbones\]'): emb._session('x', 'cpu')
