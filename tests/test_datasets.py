"Data sets: one form for all arrays, every refusal, the registry, and a reader's own .npz"
import dataclasses, subprocess, sys
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from noisynb.core import NoisynbError
from noisynb import datasets as D
from noisynb.datasets import Dataset, Split, available, load, standard
from noisynb.datasets.base import next_in_group
from noisynb.datasets.formats import read_npz

rng = np.random.default_rng(0)
quick = settings(max_examples=40, deadline=None)

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
    assert {'digits', 'mnist', 'fashion-mnist', 'cifar10', 'cifar100', 'cifar10n', 'cifar100n'} <= set(standard.standard_sets)
    assert available('digits', tmp_path) and not any(available(n, tmp_path) for n in ('mnist', 'cifar10', 'cifar100', 'cifar10n', 'cifar100n'))
    assert D.datasets['cifar10n'].human == ('aggre', 'random1', 'random2', 'random3', 'worst')
    for s in standard.standard_sets.values(): assert len(set(s.classes)) == len(s.classes) and all(len(f.sha256) == 64 and f.url.startswith('https://') for f in s.sources)

def test_official_names_and_families():
    from noisynb.core import load_torchvision
    load_torchvision()
    from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST
    assert list(D.datasets['fashion-mnist'].classes) == FashionMNIST.classes
    for cls, source in ((CIFAR10, standard._tar10), (CIFAR100, standard._tar100)): # the same files under the same names
        assert source.url == cls.url and source.places == (cls.base_folder, cls.filename) and source.inside == tuple(n for n, _ in cls.train_list + cls.test_list)
    names, families = D.datasets['cifar100'].classes, D.datasets['cifar100'].superclasses
    assert list(names) == sorted(names) and np.bincount(families).tolist() == [5]*20
    of = lambda *cs: {families[names.index(c)] for c in cs}
    assert len(of('maple_tree', 'oak_tree', 'palm_tree', 'pine_tree', 'willow_tree')) == len(of('baby', 'boy', 'girl', 'man', 'woman')) == len(of('bed', 'chair', 'couch', 'table', 'wardrobe')) == 1
    assert of('lawn_mower', 'rocket', 'streetcar', 'tank', 'tractor') == {19} and of('bicycle', 'bus', 'motorcycle', 'pickup_truck', 'train') == {18}

def test_every_entry_is_whole():
    sets = D.datasets | {n: D.find_set(n) for n in ('dermamnist_64', 'organamnist_224')}
    assert len({s.title for s in sets.values()}) == len(sets)
    for name, s in sets.items():
        plain = lambda text: text.split(' (')[0].lower().replace('-', '')
        assert plain(s.title) == plain(name.replace('-imagenet', '').replace('-both', '').split('_')[0]), 'as its authors write it, but its name'
        classes = set(range(len(s.classes)))
        assert s.asymmetric is None or set(s.asymmetric) | set(s.asymmetric.values()) <= classes and all(a != b for a, b in s.asymmetric.items())
        assert s.superclasses is None or len(s.superclasses) == len(classes)

@pytest.mark.parametrize('name, title', [('organsmnist', 'OrganSMNIST'), ('octmnist_128', 'OCTMNIST (128x128)'), ('cifar100n', 'CIFAR-100N'), ('fashion-mnist', 'Fashion-MNIST')])
def test_a_set_is_written_as_its_authors_write_it(name, title): assert D.find_set(name).title == title

@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_the_next_in_a_group_goes_round(groups):
    to = next_in_group(groups)
    assert sorted(to) == sorted(to.values()) == list(range(len(groups))) and all(groups[a] == groups[b] for a, b in to.items())
    for c in to:
        path = [c]
        while to[path[-1]] != c: path.append(to[path[-1]])
        assert len(path) == groups.count(groups[c])

def test_networks_mirror_images_that_keep_their_class():
    from noisynb.experiment import estimator
    assert [estimator('ce', dataset=d).flip for d in ('digits', 'mnist', 'organsmnist_224', 'cifar10', 'bloodmnist')] == [False]*3 + [True]*2
    assert estimator('ce', dataset='a folder of mine').flip == estimator('ce').flip and estimator('ce', dict(flip=True), dataset='digits').flip is True

def test_unknown_and_missing_are_answered(tmp_path):
    with pytest.raises(NoisynbError, match="did you mean 'fashion-mnist'"): load('fashion_mnist')
    with pytest.raises(NoisynbError, match="did you mean 'cifar10n'"): available('cifar10-n')
    with pytest.raises(NoisynbError, match='no file .nothing.npz'): load('nothing.npz', tmp_path)
    with pytest.raises(NoisynbError) as e: load('cifar10n', tmp_path)
    for part in ('cifar-10-python.tar.gz', 'cifar-10-batches-py', 'data_batch_3', 'CIFAR-10_human.pt', 'https://www.cs.toronto.edu/~kriz/', 'download=True', str(tmp_path)): assert part in str(e.value)

# ---- npz

def arrays(n=10, m=4, **changes):
    a = dict(train_images=rng.integers(0, 256, (n, 6, 6), np.uint8), train_labels=np.arange(n)[:, None] % 3, test_images=rng.integers(0, 256, (m, 6, 6), np.uint8), test_labels=np.arange(m)[:, None] % 3)
    return {k: v for k, v in (a | changes).items() if v is not None}

def npz(folder, **changes):
    np.savez(folder/'own.npz', **arrays(**changes))
    return folder/'own.npz'

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
