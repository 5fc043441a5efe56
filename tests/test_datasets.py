"Data sets: every format from tiny files, every refusal, and bombs that must not go off"
import dataclasses, gzip, hashlib, http.server, io, os, pickle, struct, subprocess, sys, tarfile, threading, warnings, zipfile
from pathlib import Path
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from noisynb.core import NoisynbError
from noisynb import datasets as D
from noisynb.datasets import Dataset, Source, Split, available, load, read_human, read_idx, read_npz, read_pickle

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
    return record | ({b'coarse_labels': [D._families[c] for c in record[key]]} if key == b'fine_labels' else {})

def write_cifar(folder, kind=10, dump=python2):
    "The unpacked folder; returns the records, training part first"
    names, key, top = (D._batches10, b'labels', 'cifar-10-batches-py') if kind == 10 else (D._batches100, b'fine_labels', 'cifar-100-python')
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

def arrays(n=10, m=4, **changes):
    a = dict(train_images=rng.integers(0, 256, (n, 6, 6), np.uint8), train_labels=np.arange(n)[:, None] % 3, test_images=rng.integers(0, 256, (m, 6, 6), np.uint8), test_labels=np.arange(m)[:, None] % 3)
    return {k: v for k, v in (a | changes).items() if v is not None}

def npz(folder, **changes):
    np.savez(folder/'own.npz', **arrays(**changes))
    return folder/'own.npz'

# ---- Split and Dataset

def small(n=6, c=3, **kw): return Split(rng.integers(0, 256, (n, 4, 4, 1), np.uint8), np.arange(n) % c, **kw)

@quick
@given(st.lists(st.integers(-6, 5), max_size=8))
def test_take_selects_everything_alike(rows):
    s = small(human={'tired': [2, 1, 0, 2, 1, 0]})
    t = s.take(rows)
    assert len(t) == len(rows) and t.images.shape == (len(rows), 4, 4, 1)
    for i, r in enumerate(rows): assert (t.images[i] == s.images[r]).all() and t.labels[i] == s.labels[r] and t.human['tired'][i] == s.human['tired'][r]

def test_split_brings_arrays_to_one_form():
    s = Split(np.zeros((3, 5, 7), np.uint8)[:, ::-1], np.array([[2], [0], [1]], np.uint8), {'a': [0, 1, 2]})
    assert s.images.shape == (3, 5, 7, 1) and s.labels.dtype == np.int64 and s.labels.tolist() == [2, 0, 1] and s.human['a'].dtype == np.int64
    with pytest.raises(dataclasses.FrozenInstanceError): s.labels = s.labels

@pytest.mark.parametrize('images, labels, human, says', [
    (np.zeros((2, 4, 4)), [0, 1], {}, 'uint8'),
    (np.full((2, 4, 4), np.nan, np.float16), [0, 1], {}, 'nan'),
    (np.zeros((2, 3, 8, 8), np.uint8), [0, 1], {}, 'transpose'),
    (np.zeros((2, 16), np.uint8), [0, 1], {}, '(2, 16)'),
    (np.zeros((2, 0, 4), np.uint8), [0, 1], {}, '(2, 0, 4, 1)'),
    (np.zeros((2, 4, 4), np.uint8), [0, 1, 1], {}, '2 images and 3'),
    (np.zeros((2, 4, 4), np.uint8), ['cat', 'dog'], {}, 'return_inverse'),
    (np.zeros((2, 4, 4), np.uint8), [0, None], {}, 'text or objects'),
    (np.zeros((2, 4, 4), np.uint8), [0, np.nan], {}, 'nan at row 1'),
    (np.zeros((2, 4, 4), np.uint8), [0., 1.], {}, 'float64'),
    (np.zeros((2, 4, 4), np.uint8), [True, False], {}, 'bool'),
    (np.zeros((2, 4, 4), np.uint8), np.zeros((2, 14), int), {}, '(2, 14)'),
    (np.zeros((2, 4, 4), np.uint8), [0, 1], {'tired': [0]}, 'tired'),
    (np.zeros((2, 4, 4), np.uint8), [0, 1], {'tired': [0, np.inf]}, 'inf'),
])
def test_split_refuses(images, labels, human, says):
    with pytest.raises(NoisynbError) as e: Split(images, labels, human)
    assert says in str(e.value)

@pytest.mark.parametrize('rows', [[6], [-7], np.ones(5, bool), [.5], 'abc'])
def test_take_refuses(rows):
    with pytest.raises(NoisynbError, match='there are 6'): small().take(rows)

def test_dataset_refuses():
    ok = small()
    def bad(says, **kw):
        with pytest.raises(NoisynbError, match=says): Dataset(**{**dict(name='x', train=ok, test=ok, classes='abc'), **kw})
    bad('train .labels. hold 2 at row 2; with 2 classes they go from 0 to 1', classes='ab')
    bad('test .labels. hold -1 at row 1', test=Split(ok.images[:2], [0, -1]))
    bad("train .tired. hold 9 at row 0", train=small(human={'tired': [9]*6}))
    bad('all 2 training labels are 1', train=Split(ok.images[:2], [1, 1]))
    bad('training part is empty', train=ok.take([]))
    bad('bring them to one size', test=Split(np.zeros((2, 5, 5), np.uint8), [0, 1]))
    bad('2 superclasses for 3 classes', superclasses=(0, 1))

def test_the_test_part_may_be_empty():
    d = Dataset('x', small(), small().take([]), 'abc')
    assert len(d.test) == 0 and d.test.images.shape == (0, 4, 4, 1) and len(d.fingerprint) == 16 and 'test: 0 images' in repr(d)

def test_fingerprint_sees_every_part_and_nothing_else():
    train, test = small(human={'a': [0, 1, 2, 0, 1, 2]}), small(3)
    base = Dataset('x', train, test, 'abc')
    flip = train.images.copy(); flip[-1, -1, -1] ^= 1
    others = [Dataset('x', Split(flip, train.labels, train.human), test, 'abc'), Dataset('x', Split(train.images, train.labels[::-1], train.human), test, 'abc'),
        Dataset('x', Split(train.images, train.labels, {'a': train.labels[::-1]}), test, 'abc'), Dataset('x', Split(train.images, train.labels, {'b': train.human['a']}), test, 'abc'),
        Dataset('x', train, test.take([0, 1]), 'abc'), Dataset('x', train, test, 'abd'), Dataset('x', train, test, 'abc', val=test)]
    assert len({d.fingerprint for d in [base, *others]}) == 8
    assert Dataset('other name', train, test, 'abc', source='elsewhere').fingerprint == base.fingerprint

def test_names_are_shown_as_text():
    d = Dataset('<b>x</b>', small(), small(), ['<script>alert(1)</script>', 'b', 'c'])
    assert '<script>' in repr(d) and not hasattr(d, '_repr_html_') and not hasattr(d.train, '_repr_html_')

# ---- digits, registry

def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    X, y = load_digits(return_X_y=True)
    xa, xb, ya, yb = train_test_split(X, y, test_size=.3, stratify=y, random_state=0)
    d = load('digits')
    assert d.classes == tuple('0123456789') and d.train.images.dtype == np.uint8
    for s, x, t in ((d.train, xa, ya), (d.test, xb, yb)):
        np.testing.assert_array_equal(s.images.reshape(len(s), -1)/15, x)
        np.testing.assert_array_equal(s.labels, t)
    assert d.fingerprint == load('digits').fingerprint

def test_registry_is_light_and_complete(tmp_path):
    code = "import sys; from noisynb.datasets import available, datasets; available('digits'); print([m for m in ('torch', 'sklearn', 'scipy', 'pandas', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
    assert list(D.datasets.own) == ['digits', 'mnist', 'fashion-mnist', 'cifar10', 'cifar100', 'cifar10n', 'cifar100n']
    assert available('digits', tmp_path) and not any(available(n, tmp_path) for n in ('mnist', 'cifar10', 'cifar100', 'cifar10n', 'cifar100n'))
    assert D.datasets['cifar10n'].human == ('aggre', 'random1', 'random2', 'random3', 'worst')
    for s in D.datasets.own.values(): assert len(set(s.classes)) == len(s.classes) and all(len(f.sha256) == 64 and f.url.startswith('https://') for f in s.sources)

def test_official_names_and_families():
    from noisynb.core import load_torchvision
    load_torchvision()
    from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST
    assert list(D.datasets['fashion-mnist'].classes) == FashionMNIST.classes
    for cls, source in ((CIFAR10, D._tar10), (CIFAR100, D._tar100)): # the same files under the same names
        assert source.url == cls.url and source.places == (cls.base_folder, cls.filename) and source.inside == tuple(n for n, _ in cls.train_list + cls.test_list)
    names, families = D.datasets['cifar100'].classes, D.datasets['cifar100'].superclasses
    assert list(names) == sorted(names) and np.bincount(families).tolist() == [5]*20
    of = lambda *cs: {families[names.index(c)] for c in cs}
    assert len(of('maple_tree', 'oak_tree', 'palm_tree', 'pine_tree', 'willow_tree')) == len(of('baby', 'boy', 'girl', 'man', 'woman')) == len(of('bed', 'chair', 'couch', 'table', 'wardrobe')) == 1
    assert of('lawn_mower', 'rocket', 'streetcar', 'tank', 'tractor') == {19} and of('bicycle', 'bus', 'motorcycle', 'pickup_truck', 'train') == {18}

def test_unknown_and_missing_are_answered(tmp_path):
    with pytest.raises(NoisynbError, match="did you mean 'fashion-mnist'"): load('fashion_mnist')
    with pytest.raises(NoisynbError, match="did you mean 'cifar10n'"): available('cifar10-n')
    with pytest.raises(NoisynbError, match='no file .nothing.npz'): load('nothing.npz', tmp_path)
    with pytest.raises(NoisynbError) as e: load('cifar10n', tmp_path)
    for part in ('cifar-10-python.tar.gz', 'cifar-10-batches-py', 'data_batch_3', 'CIFAR-10_human.pt', 'https://www.cs.toronto.edu/~kriz/', 'download=True', str(tmp_path)): assert part in str(e.value)

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
    ('noisynb.datasets', '_fetch', ()), ('builtins', 'bytearray', (10**9,)),
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

def test_npz_in_medmnists_layout(tmp_path):
    a = arrays(val_images=rng.integers(0, 256, (3, 6, 6), np.uint8), val_labels=np.array([[0], [1], [3]], np.uint8))
    np.savez_compressed(tmp_path/'beans.npz', **a)
    d = load(tmp_path/'beans.npz')
    assert (d.name, d.source, d.classes) == ('beans', 'beans.npz', ('0', '1', '2', '3')) and list(d.parts) == ['train', 'val', 'test']
    np.testing.assert_array_equal(d.val.images[..., 0], a['val_images'])
    assert d.val.labels.tolist() == [0, 1, 3] and d.train.labels.tolist() == a['train_labels'][:, 0].tolist()
    assert available('beans.npz', tmp_path) and load('beans.npz', tmp_path).fingerprint == d.fingerprint and load(str(tmp_path/'beans.npz')).name == 'beans'

@pytest.mark.parametrize('names', [np.array(['a', 'é', '<i>']), np.array([b'a', 'é'.encode(), b'<i>'])])
def test_npz_class_names(tmp_path, names): assert read_npz(npz(tmp_path, class_names=names)).classes == ('a', 'é', '<i>')

@pytest.mark.parametrize('images, labels', [(np.zeros((0, 6, 6), np.uint8), np.zeros((0, 1), int)), ([], []), (np.zeros((0, 6, 6)), [])])
def test_npz_without_test_images(tmp_path, images, labels):
    d = read_npz(npz(tmp_path, test_images=images, test_labels=labels))
    assert len(d.test) == 0 and d.test.images.shape == (0, 6, 6, 1) and len(d.train) == 10

@pytest.mark.parametrize('changes, says', [
    (dict(train_labels=None), "no 'train_labels'"),
    (dict(test_images=None), "no 'test_images'"),
    (dict(val_images=np.zeros((2, 6, 6), np.uint8)), "no 'val_labels'"),
    (dict(train_images=np.full((10, 6, 6), np.nan)), 'train: images hold nan'),
    (dict(train_images=np.zeros((10, 6, 6))), 'float64'),
    (dict(train_images=np.zeros((10, 28, 28, 28), np.uint8)), '28, 28, 28'),
    (dict(train_labels=np.arange(9)), '10 images and 9'),
    (dict(train_labels=np.zeros((10, 14), int)), '(10, 14)'),
    (dict(train_labels=np.array(['a', 'b']*5)), 'return_inverse'),
    (dict(train_labels=np.full(10, np.nan)), 'nan at row 0'),
    (dict(train_labels=np.zeros(10, int)), 'two classes'),
    (dict(train_labels=-(np.arange(10) % 3)), 'hold -1 at row 1'),
    (dict(test_labels=np.array([0, 1, 2, 10**6])), '1000000'),
    (dict(class_names=np.array(['a', 'b'])), 'hold 2 at row 2; with 2 classes'),
    (dict(class_names=np.zeros(3)), 'class_names are float64'),
    (dict(class_names=np.array(['a', 'b', None])), 'Python objects'),
    (dict(test_images=np.zeros((4, 7, 6), np.uint8)), 'one size'),
    (dict(train_images=np.zeros((0, 6, 6), np.uint8), train_labels=np.zeros(0, int)), 'training part is empty'),
])
def test_npz_refuses(tmp_path, changes, says):
    path = npz(tmp_path, **changes)
    with pytest.raises(NoisynbError) as e: load(path)
    assert says in str(e.value) and str(path) in str(e.value)

def test_bomb_in_place_of_an_npz(tmp_path, bomb):
    path = npz(tmp_path, train_labels=np.array([Explode(tmp_path/'marker')]*10))
    with pytest.raises(NoisynbError, match='train_labels.*Python objects'): load(path)
    good = npz(tmp_path).read_bytes()
    for content in (bomb, b'', good[:-40], good[:300], idx(np.zeros(3))):
        path.write_bytes(content)
        with pytest.raises(NoisynbError, match='own.npz'): load(path)
    np.save(tmp_path/'one.npy', np.zeros(3)); os.replace(tmp_path/'one.npy', path)
    with pytest.raises(NoisynbError, match='np.savez'): load(path)
    with zipfile.ZipFile(path, 'w') as z: # a pickle as a member that calls itself an array
        for k in arrays(): z.writestr(f'{k}.npy', bomb)
    with pytest.raises(NoisynbError, match='own.npz'): load(path)

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
        assert D._fetch(source('whole'), tmp_path).stat().st_size == 3_000_000
        with pytest.raises(NoisynbError, match='broke off'): D._fetch(source('short'), tmp_path)
        with pytest.raises(NoisynbError, match='cannot reach.*404.*put it at'): D._fetch(source('absent'), tmp_path)
    finally: server.shutdown(); server.server_close()
    assert [p.name for p in (tmp_path/'sets').iterdir()] == ['whole']
