"The store: any interruption, crash, damage or neighbour process gives the same bytes or a named refusal"
import errno, hashlib, inspect, json, math, os, random, shutil, signal, subprocess, sys, tempfile, time, tracemalloc
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from noisynb import disk as store
from noisynb.core import NoisynbError
from noisynb.embeddings.extractors import Extractor
from noisynb.embeddings import stored


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


@pytest.fixture
def quick(monkeypatch): monkeypatch.setattr(store, 'versions', lambda: {})


def only(folder, pattern='*'):
    found = list(Path(folder).glob(pattern))
    assert len(found) == 1
    return found[0]


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
        m.setattr(store, 'versions', lambda: {})
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
    parts, real = dict(train=numbered(26)), store._append
    for at in range(4):
        left = [at]
        def torn(path, data):
            if left[0] == 0:
                real(path, data[:len(data)//2])
                raise Crash
            left[0] -= 1
            real(path, data)
        monkeypatch.setattr(store, '_append', torn)
        with pytest.raises(Crash): stored(parts, extractor(), tmp_path/f'{at}')
        monkeypatch.setattr(store, '_append', real)
        np.testing.assert_array_equal(stored(parts, extractor(), tmp_path/f'{at}')['train'], formula(parts['train']).astype(np.float32))


job = """
import os, sys, time
sys.path.insert(0, {root!r})
import numpy as np
from noisynb import disk as store
from noisynb.core import NoisynbError
from noisynb.embeddings import stored
from noisynb.embeddings.extractors import Extractor
{functions}
def slow(images):
    with open('calls', 'a') as f: f.write(f'{{int.from_bytes(images[0].tobytes(), "little")}}\\n')
    time.sleep({delay})
    return formula(images)
store.versions = dict
{before}
try: stored(dict(train=numbered(240), test=numbered(40, 1000)), extractor(slow), 'store')
except NoisynbError as e: print('refused:', e)
"""


def start(cwd, delay=.01, before=''):
    functions = '\n'.join(map(inspect.getsource, (numbered, formula, extractor)))
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
        seen, p = len(logged(tmp_path)), start(tmp_path, before='store.atomic_write = lambda *a: os._exit(3)')
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
        m.setattr(store.shutil, 'disk_usage', lambda p: type('', (), dict(free=100)))
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
        try:
            if me == 0: os.seteuid(65534)
        except OSError: pytest.skip('root without another user')
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
    with pytest.raises(NoisynbError, match='of shape'): stored(parts, extractor(lambda b: formula(b)[:, :2]), tmp_path)


def test_a_second_part_is_not_computed_in_another_arithmetic(tmp_path, quick):
    parts = dict(train=numbered(20), test=numbered(9))
    def stops(images):
        if images[0, 0, 0, 0] == 0 and done: raise Crash   # the first image of the second part
        done.append(1)
        return formula(images)
    done = []
    with pytest.raises(Crash): stored(parts, extractor(stops, arithmetic='bfloat16 autocast', batch_size=10), tmp_path)
    assert only(tmp_path, '*/train.npy') and not list(tmp_path.glob('*/test.npy'))
    with pytest.raises(NoisynbError, match='begun in bfloat16 autocast, and this is in float32'): stored(parts, extractor(), tmp_path)


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
