"Readers: every format from tiny files, every refusal, downloads, and bombs that must not go off"
import dataclasses, gzip, hashlib, http.server, io, os, pickle, struct, tarfile, threading, warnings, zipfile
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from noisynb.core import NoisynbError
from noisynb import datasets as D
from noisynb.datasets import available, load, standard
from noisynb.datasets.formats import Source, read_arrays, read_human, read_idx, read_pickle

rng = np.random.default_rng(0)
quick = settings(max_examples=40, deadline=None)

# ---- tiny files in the official formats

def idx(a): return bytes([0, 0, 8, a.ndim]) + struct.pack(f'>{a.ndim}I', *a.shape) + a.astype(np.uint8).tobytes()

def write_idx_set(folder, n=12, m=5, pack=gzip.compress, suffix='.gz'):
    folder.mkdir(parents=True, exist_ok=True)
    r = np.random.default_rng(1)
    x, y = r.integers(0, 256, (n + m, 28, 28), np.uint8), np.arange(n + m) % 10
    for part, s in (('train', slice(n)), ('t10k', slice(n, None))):
        (folder/f'{part}-images-idx3-ubyte{suffix}').write_bytes(pack(idx(x[s])))
        (folder/f'{part}-labels-idx1-ubyte{suffix}').write_bytes(pack(idx(y[s])))
    return x, y

def python2(record):
    "A pickle as Python 2 and NumPy 1 wrote the official batches: protocol 2, byte strings"
    text = lambda b: b'U' + bytes([len(b)]) + b
    def value(v):
        if isinstance(v, np.ndarray):
            return (b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85' + text(b'b') + b'\x87R(K\x01' + b''.join(b'M' + struct.pack('<H', d) for d in v.shape) + b'\x86'
                + b'cnumpy\ndtype\n' + text(b'u1') + b'K\x00K\x01\x87R(K\x03' + text(b'|') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T' + struct.pack('<i', v.nbytes) + v.tobytes() + b'tb')
        return b'](' + b''.join(b'K' + bytes([i]) for i in v) + b'e' if isinstance(v, list) else text(v)
    return b'\x80\x02}(' + b''.join(text(k) + value(v) for k, v in record.items()) + b'u.'

def batch(n, seed, key=b'labels', classes=10):
    r = np.random.default_rng(seed)
    record = {b'batch_label': b'x', key: r.integers(0, classes, n).tolist(), b'data': r.integers(0, 256, (n, 3072), np.uint8)}
    record[key][:2] = [0, 1]
    return record | ({b'coarse_labels': [standard._families[c] for c in record[key]]} if key == b'fine_labels' else {})

def write_cifar(folder, kind=10, dump=python2):
    "The unpacked folder; returns the records, training part first"
    names, key, top = (standard._batches10, b'labels', 'cifar-10-batches-py') if kind == 10 else (standard._batches100, b'fine_labels', 'cifar-100-python')
    records = [batch(4, i, key, kind) for i in range(len(names))]
    (folder/top).mkdir(parents=True, exist_ok=True)
    for n, r in zip(names, records): (folder/top/n).write_bytes(dump(r))
    return records, folder/top

def pack(folder, path):
    with tarfile.open(path, 'w:gz') as tar: tar.add(folder, folder.name)

def write_pt(path, **vectors):
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr('archive/data.pkl', pickle.dumps({k: np.asarray(v) for k, v in vectors.items()}, 2))
        z.writestr('archive/version', '3')

def truth(records, key=b'labels'):
    *train, test = records
    image = lambda r: r[b'data'].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.concatenate([image(r) for r in train]), np.concatenate([r[key] for r in train]), image(test), np.array(test[key])

def assert_same(data, records, key=b'labels'):
    for got, want in zip((data.train.images, data.train.labels, data.test.images, data.test.labels), truth(records, key)): np.testing.assert_array_equal(got, want)

class Explode:
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return os.mkdir, (self.marker,)

@pytest.fixture
def bomb(tmp_path):
    "A pickle that makes a folder when it is run; afterwards, that it was not"
    marker = tmp_path/'marker'
    data = pickle.dumps({b'data': Explode(marker), b'labels': [0, 1]}, 2)
    pickle.loads(data); assert marker.is_dir(); marker.rmdir() # it does go off in a reader that trusts
    yield data
    assert not marker.exists()

# ---- idx

@pytest.mark.parametrize('name, place', [('mnist', 'mnist'), ('mnist', 'MNIST/raw'), ('fashion-mnist', 'fashion-mnist'), ('fashion-mnist', 'FashionMNIST/raw')])
@pytest.mark.parametrize('form', [dict(), dict(pack=bytes, suffix=''), dict(pack=bytes, suffix='.gz')])
def test_idx_sets(tmp_path, monkeypatch, name, place, form):
    ours = tuple(dataclasses.replace(s, places=tuple(p for p in s.places if not p.startswith('/'))) for s in D.datasets[name].sources)
    monkeypatch.setitem(D.datasets, name, dataclasses.replace(D.datasets[name], sources=ours))
    assert not available(name, tmp_path)
    x, y = write_idx_set(tmp_path/place, **form)
    assert available(name, tmp_path)
    d = load(name, tmp_path)
    np.testing.assert_array_equal(np.concatenate([d.train.images, d.test.images])[..., 0], x)
    assert d.train.labels.tolist() + d.test.labels.tolist() == y.tolist() and (len(d.train), len(d.test)) == (12, 5)
    assert d.train.images.flags.writeable

def test_idx_is_also_looked_for_where_debian_puts_it(tmp_path):
    for s in D.datasets['fashion-mnist'].sources: assert f'/usr/share/datasets/fashion-mnist/{s.url.rsplit("/", 1)[1]}' in s.places
    (tmp_path/'f').write_bytes(b'')
    assert Source('', '', (str(tmp_path/'f'), 'g')).find('/elsewhere') == tmp_path/'f'

@pytest.mark.parametrize('spoil, says', [
    (lambda b: b[:-1], 'promises 784 values and holds 783'),
    (lambda b: b + b'\0', 'holds more'),
    (lambda b: b[:9], 'idx'),
    (lambda b: b'', 'starts with 0x,'),
    (lambda b: b'\0\0\x08\x01' + b[4:], '0x00000801'),
    (lambda b: b'\0\0\x0d\x03' + b[4:], '0x00000d03'),
    (lambda b: gzip.compress(b)[:-9], 'damaged'),
    (lambda b: gzip.compress(b)[:40] + b'junk' + gzip.compress(b)[44:], 'damaged'),
    (lambda b: b[:4] + b'\xff'*12 + b[16:], 'idx'),
])
def test_idx_refuses(tmp_path, spoil, says):
    (tmp_path/'idx').write_bytes(spoil(idx(rng.integers(0, 256, (1, 28, 28)))))
    with pytest.raises(NoisynbError) as e: read_idx(tmp_path/'idx', 3)
    assert says in str(e.value) and str(tmp_path/'idx') in str(e.value)

def test_idx_labels_must_fit(tmp_path):
    write_idx_set(tmp_path/'mnist')
    labels = tmp_path/'mnist'/'train-labels-idx1-ubyte.gz'
    labels.write_bytes(idx(np.arange(11) % 10))
    with pytest.raises(NoisynbError, match='train-labels.*12 images and 11'): load('mnist', tmp_path)
    labels.write_bytes(idx(np.arange(12)))
    with pytest.raises(NoisynbError, match='hold 10 at row 10'): load('mnist', tmp_path)
    labels.write_bytes(idx(np.ones(12)))
    with pytest.raises(NoisynbError, match='two classes'): load('mnist', tmp_path)

# ---- CIFAR

def test_python2_helper_is_a_real_pickle():
    r = batch(4, 0)
    back = pickle.loads(python2(r), encoding='bytes')
    assert back[b'labels'] == r[b'labels'] and (back[b'data'] == r[b'data']).all()

@pytest.mark.parametrize('dump', [python2, lambda r: pickle.dumps(r, 2), lambda r: pickle.dumps(r, 5)])
def test_cifar10_folder_and_archive(tmp_path, dump):
    records, folder = write_cifar(tmp_path/'a', dump=dump)
    d = load('cifar10', tmp_path/'a')
    assert_same(d, records)
    assert d.classes[9] == 'truck' and d.superclasses is None and d.train.images.flags.c_contiguous and d.train.images.flags.writeable
    (tmp_path/'b').mkdir(); pack(folder, tmp_path/'b'/'cifar-10-python.tar.gz')
    assert load('cifar10', tmp_path/'b').fingerprint == d.fingerprint
    assert [p.name for p in (tmp_path/'b').iterdir()] == ['cifar-10-python.tar.gz'] # nothing is unpacked

def test_cifar100(tmp_path):
    records, folder = write_cifar(tmp_path/'a', kind=100)
    d = load('cifar100', tmp_path/'a')
    assert_same(d, records, b'fine_labels')
    assert d.n_classes == 100 and [d.superclasses[c] for c in d.train.labels] == records[0][b'coarse_labels']

def test_a_half_unpacked_folder_gives_way_to_the_archive(tmp_path):
    records, folder = write_cifar(tmp_path)
    pack(folder, tmp_path/'cifar-10-python.tar.gz')
    (folder/'data_batch_3').unlink()
    assert_same(load('cifar10', tmp_path), records)
    (tmp_path/'cifar-10-python.tar.gz').unlink()
    assert not available('cifar10', tmp_path)
    with pytest.raises(NoisynbError, match='data_batch_3'): load('cifar10', tmp_path)

@pytest.mark.parametrize('content, says', [
    (lambda r: python2(r)[:-50], 'damaged'),
    (lambda r: b'', 'damaged'),
    (lambda r: b'not a pickle', 'damaged'),
    (lambda r: pickle.dumps([1, 2]), 'holds a list'),
    (lambda r: pickle.dumps({b'data': r[b'data']}), "no 'labels' in it"),
    (lambda r: pickle.dumps(r | {b'data': r[b'data'][:, :100]}), '(4, 100)'),
    (lambda r: pickle.dumps(r | {b'data': r[b'data']/255}), 'float64'),
    (lambda r: pickle.dumps(r | {b'data': 'x'}), 'str'),
    (lambda r: pickle.dumps(r | {b'labels': r[b'labels'][:3]}), '4 images and 3'),
    (lambda r: pickle.dumps(r | {b'labels': ['cat']*4}), 'whole numbers'),
    (lambda r: pickle.dumps(r | {b'labels': [0, 1, 2, 1.5]}), 'whole numbers'),
    (lambda r: pickle.dumps(r | {b'labels': [0, 1, 2, 10]}), 'hold 10'),
    (lambda r: pickle.dumps(r | {b'labels': 7}), 'shape ()'),
])
def test_cifar_refuses(tmp_path, content, says):
    records, folder = write_cifar(tmp_path)
    (folder/'data_batch_2').write_bytes(content(records[1]))
    with pytest.raises(NoisynbError) as e: load('cifar10', tmp_path)
    assert says in str(e.value) and (str(folder/'data_batch_2') in str(e.value) or 'hold 10' in says)

def test_bomb_in_place_of_a_batch(tmp_path, bomb):
    _, folder = write_cifar(tmp_path)
    (folder/'data_batch_4').write_bytes(bomb)
    with pytest.raises(NoisynbError, match=r'data_batch_4: it asks to call (posix|nt)\.mkdir.*nothing was run'): load('cifar10', tmp_path)
    pack(folder, tmp_path/'cifar-10-python.tar.gz')
    for f in folder.iterdir(): f.unlink()
    with pytest.raises(NoisynbError, match='data_batch_4: it asks to call'): load('cifar10', tmp_path)

@pytest.mark.parametrize('content', [b'no archive', gzip.compress(b'no archive'), None])
def test_archive_refuses(tmp_path, content):
    _, folder = write_cifar(tmp_path/'a')
    path = tmp_path/'cifar-10-python.tar.gz'
    pack(folder, path)
    path.write_bytes(path.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(NoisynbError, match='cifar-10-python.tar.gz'): load('cifar10', tmp_path)

def test_archive_with_links_and_foreign_paths_writes_nothing(tmp_path):
    records, folder = write_cifar(tmp_path/'a')
    (tmp_path/'b').mkdir()
    with tarfile.open(tmp_path/'b'/'cifar-10-python.tar.gz', 'w:gz') as tar:
        for name in ('../escaped', str(tmp_path/'absolute'), 'cifar-10-batches-py/extra'):
            member = tarfile.TarInfo(name); member.size = 3
            tar.addfile(member, io.BytesIO(b'abc'))
        link = tarfile.TarInfo('cifar-10-batches-py/data_batch_1'); link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(link)
        tar.add(folder, './cifar-10-batches-py')
    assert_same(load('cifar10', tmp_path/'b'), records)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'b'] and len(list((tmp_path/'b').iterdir())) == 1

# ---- CIFAR-N

def ten(clean): return dict(clean_label=clean, aggre_label=clean, random_label1=(clean + 1) % 10, random_label2=clean, random_label3=clean, worse_label=(clean + 1) % 10)

@pytest.mark.parametrize('place', ['CIFAR-10_human.pt', 'cifarn/CIFAR-10_human.pt'])
def test_cifar10n(tmp_path, place):
    records, _ = write_cifar(tmp_path)
    clean = truth(records)[1]
    (tmp_path/place).parent.mkdir(exist_ok=True)
    write_pt(tmp_path/place, **ten(clean))
    d = load('cifar10n', tmp_path)
    assert_same(d, records)
    assert tuple(d.train.human) == D.datasets['cifar10n'].human and not d.test.human
    assert (d.train.human['worst'] == (clean + 1) % 10).all() and (d.train.human['aggre'] == clean).all()
    assert d.fingerprint != load('cifar10', tmp_path).fingerprint

def test_human_labels_as_torch_saves_them(tmp_path):
    import torch
    torch.save(dict(clean_label=np.arange(5), noisy_label=np.arange(5)[::-1], noisy_coarse_label=[1, 2, 3]), tmp_path/'x.pt')
    assert read_human(tmp_path/'x.pt', {'human': 'noisy_label'}, np.arange(5))['human'].tolist() == [4, 3, 2, 1, 0]
    torch.save(dict(clean_label=torch.arange(5), noisy_label=torch.arange(5)), tmp_path/'y.pt') # tensors: not the authors' file
    with pytest.raises(NoisynbError, match='y.pt'): read_human(tmp_path/'y.pt', {'human': 'noisy_label'}, np.arange(5))

def test_cifar100n(tmp_path):
    records, _ = write_cifar(tmp_path, kind=100)
    clean = truth(records, b'fine_labels')[1]
    write_pt(tmp_path/'CIFAR-100_human.pt', clean_label=clean, noisy_label=99 - clean)
    d = load('cifar100n', tmp_path)
    assert (d.train.human['human'] == 99 - clean).all() and len(d.superclasses) == 100

def test_human_labels_must_belong_to_the_images(tmp_path, bomb):
    clean = np.arange(20) % 10
    def refused(says, images=clean, **vectors):
        write_pt(tmp_path/'x.pt', **vectors)
        with pytest.raises(NoisynbError) as e: read_human(tmp_path/'x.pt', {'worst': 'worse_label'}, images)
        assert says in str(e.value) and str(tmp_path/'x.pt') in str(e.value)
    refused('image 3 is 3, the image\'s is 9 (2 differ)', images=np.r_[clean[:3], 9, 9, clean[5:]], clean_label=clean, worse_label=clean)
    refused('labels 20 images and the data set has 19', images=clean[:19], clean_label=clean, worse_label=clean)
    refused("no 'worse_label'", clean_label=clean, noisy_label=clean)
    refused("no 'clean_label'", worse_label=clean)
    refused('nan at row 0', clean_label=clean, worse_label=clean*np.nan)
    refused('(20, 2)', clean_label=clean, worse_label=np.c_[clean, clean])
    write_pt(tmp_path/'x.pt', clean_label=clean, worse_label=clean)
    whole = (tmp_path/'x.pt').read_bytes()
    with zipfile.ZipFile(tmp_path/'z', 'w') as z: z.writestr('archive/data.pkl', bomb)
    with zipfile.ZipFile(tmp_path/'e', 'w') as z: z.writestr('other', 'x')
    for content in (whole[:-30], whole[:200], b'', bomb, (tmp_path/'z').read_bytes(), (tmp_path/'e').read_bytes()):
        (tmp_path/'x.pt').write_bytes(content)
        with pytest.raises(NoisynbError, match='x.pt'): read_human(tmp_path/'x.pt', {'worst': 'worse_label'}, clean)

# ---- the unpickler

plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=5),
    lambda s: st.lists(s, max_size=3) | st.tuples(s, s) | st.dictionaries(st.text(max_size=3), s, max_size=3), max_leaves=8)
numbers = hnp.arrays(st.sampled_from(['u1', 'i1', '<i8', '>i4', '<f4', '>f8', '?', '<U3', 'S4', '<f2']), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))

@quick
@given(a=numbers, v=plain, protocol=st.integers(0, 5), fortran=st.booleans())
def test_unpickler_reads_what_data_need(a, v, protocol, fortran):
    a = np.asfortranarray(a) if fortran else a
    back = read_pickle(pickle.dumps({'a': a, 'v': v}, protocol))
    np.testing.assert_array_equal(back['a'], a); assert back['a'].dtype == a.dtype
    assert back['v'] == v

@pytest.mark.parametrize('protocol', range(6))
def test_unpickler_keeps_the_order_of_axes(protocol):
    a = np.arange(24).reshape(2, 3, 4)
    for b in (np.asfortranarray(a), a.transpose(1, 0, 2), a[:, ::-1, ::2]):
        np.testing.assert_array_equal(read_pickle(pickle.dumps({'a': b}, protocol))['a'], b)

def hostile(module, name, *args): return b'\x80\x02}U\x01dc' + f'{module}\n{name}\n'.encode() + pickle.dumps(args, 2)[2:-1] + b'Rs.'

@pytest.mark.parametrize('module, name, args', [
    ('os', 'system', ('true',)), ('posix', 'system', ('true',)), ('builtins', 'eval', ('1',)), ('__builtin__', 'getattr', ('', 'join')), ('builtins', 'exec', ('1',)),
    ('functools', 'partial', (1,)), ('numpy', 'load', ('x',)), ('numpy', 'fromfile', ('x',)), ('copyreg', '_reconstructor', (1,)), ('torch._utils', '_rebuild_tensor_v2', ()),
    ('numpy.core.multiarray', 'scalar', ()), ('numpy.core', 'multiarray._reconstruct.__globals__', ()), ('collections', 'OrderedDict.fromkeys', ()), ('_codecs', 'decode', ('a', 'latin1')),
    ('noisynb.datasets.formats', 'read_human', ()), ('builtins', 'bytearray', (10**9,)),
])
def test_unpickler_looks_up_nothing_else(module, name, args):
    with pytest.raises(pickle.UnpicklingError, match='asks to call'): read_pickle(hostile(module, name, *args))

def test_unpickler_has_no_side_doors():
    for data in (hostile('_codecs', 'encode', 'aa', 'zlib'), hostile('_codecs', 'encode', 'aa', 'utf8'), hostile('__builtin__', 'bytes', 10**12), hostile('__builtin__', 'bytes', [10**9]), hostile('numpy', 'ndarray', (10**12,)), hostile('numpy', 'dtype', 'O8'), hostile('numpy', 'dtype', 'V8'),
            pickle.dumps({'a': np.array([{}, 1], object)}), pickle.dumps({'a': np.zeros(2, [('x', 'i4')])}), pickle.dumps({'a': np.zeros(2, 'M8[s]')}),
            pickle.dumps({'a': np.float64(1)}), b'\x80\x02}U\x01dU\x03keyQs.'):
        with pytest.raises(Exception) as e: read_pickle(data)
        assert not isinstance(e.value, MemoryError)

def test_a_dtype_cannot_hide_pointers():
    "NumPy believes this state, which calls eight bytes of an object pointer plain; we must not"
    state = b'(K\x03U\x01|NU\x01f\x85}U\x01fcnumpy\ndtype\nU\x02O8K\x00K\x01\x87RK\x00\x86sK\x08K\x01K\x00tb'
    lie = b'cnumpy\ndtype\nU\x02%sK\x00K\x01\x87R' + state
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        believed = pickle.loads(b'\x80\x02' + lie % b'V8' + b'.', encoding='latin1')
    assert believed['f'] == np.dtype('O') and not believed.hasobject
    for code in (b'V8', b'u8'):
        with pytest.raises(pickle.UnpicklingError, match='array of type'): read_pickle(b'\x80\x02}U\x01d' + lie % code + b's.')

# ---- npz

def test_bomb_in_place_of_an_npz(tmp_path, bomb):
    path, images, labels = tmp_path/'own.npz', np.zeros((10, 6, 6), np.uint8), np.arange(10) % 3
    arrays = dict(train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    np.savez(path, **arrays | dict(train_labels=np.array([Explode(tmp_path/'marker')]*10)))
    with pytest.raises(NoisynbError, match='train_labels.*Python objects'): read_arrays(path)
    np.savez(path, **arrays)
    good = path.read_bytes()
    for content in (bomb, b'', good[:-40], good[:300], idx(np.zeros(3))):
        path.write_bytes(content)
        with pytest.raises(NoisynbError, match='own.npz'): read_arrays(path)
    np.save(tmp_path/'one.npy', np.zeros(3)); os.replace(tmp_path/'one.npy', path)
    with pytest.raises(NoisynbError, match='np.savez'): read_arrays(path)
    with zipfile.ZipFile(path, 'w') as z: # a pickle as a member that calls itself an array
        for k in arrays: z.writestr(f'{k}.npy', bomb)
    with pytest.raises(NoisynbError, match='own.npz'): read_arrays(path)
    path.write_bytes(good)
    assert all((read_arrays(path)[k] == v).all() for k, v in arrays.items())

# ---- downloads

@pytest.fixture
def remote(tmp_path, monkeypatch):
    "CIFAR-10N on a server (file: addresses), with right checksums"
    far = tmp_path/'far'
    records, folder = write_cifar(far)
    pack(folder, far/'cifar-10-python.tar.gz')
    write_pt(far/'CIFAR-10_human.pt', **ten(truth(records)[1]))
    spec = D.datasets['cifar10n']
    sources = tuple(dataclasses.replace(s, url=p.as_uri(), sha256=hashlib.sha256(p.read_bytes()).hexdigest()) for s in spec.sources for p in [far/s.places[-1]])
    monkeypatch.setitem(D.datasets, 'cifar10n', dataclasses.replace(spec, sources=sources))
    return far, records, sources

def test_download(tmp_path, remote):
    far, records, _ = remote
    near = tmp_path/'near'
    with pytest.raises(NoisynbError, match='download=True'): load('cifar10n', near)
    assert not near.exists()
    d = load('cifar10n', near, download=True)
    assert_same(d, records)
    assert sorted(p.name for p in near.iterdir()) == ['CIFAR-10_human.pt', 'cifar-10-python.tar.gz']
    for p in far.iterdir(): p.unlink() if p.is_file() else None
    assert load('cifar10n', near, download=True).fingerprint == d.fingerprint # nothing is fetched twice
    (near/'CIFAR-10_human.pt').unlink()
    with pytest.raises(NoisynbError, match='cannot reach .*CIFAR-10_human.pt'): load('cifar10n', near, download=True)

def test_download_with_another_checksum_leaves_nothing(tmp_path, remote):
    far, _, sources = remote
    (far/'CIFAR-10_human.pt').write_bytes(b'changed')
    with pytest.raises(NoisynbError, match='SHA-256.*nothing was kept'): load('cifar10n', tmp_path/'near', download=True)
    assert [p.name for p in (tmp_path/'near').iterdir()] == ['cifar-10-python.tar.gz']
    (tmp_path/'wall').write_text('a file where a folder should be')
    with pytest.raises(NoisynbError, match='cannot write'): load('cifar10n', tmp_path/'wall', download=True)

class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        whole = self.path == '/whole'
        self.send_response(200 if whole or self.path == '/short' else 404)
        self.send_header('Content-Length', 3_000_000); self.end_headers()
        self.wfile.write(b'x'*(3_000_000 if whole else 1_500_000))
    def log_message(self, *_): pass

def test_download_over_http(tmp_path):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = lambda path: Source(f'http://127.0.0.1:{server.server_port}/{path}', hashlib.sha256(b'x'*3_000_000).hexdigest(), (f'sets/{path}',))
    try:
        assert source('whole').fetch(tmp_path).stat().st_size == 3_000_000
        with pytest.raises(NoisynbError, match='broke off'): source('short').fetch(tmp_path)
        with pytest.raises(NoisynbError, match='cannot reach.*404.*put it at'): source('absent').fetch(tmp_path)
    finally: server.shutdown(); server.server_close()
    assert [p.name for p in (tmp_path/'sets').iterdir()] == ['whole']
