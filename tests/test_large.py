"Larger collections: every official layout from tiny files, what is wrong with it said, pixels left on the disk"
import dataclasses, hashlib, re
from pathlib import Path
import numpy as np, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from noisynb.datasets import large as A
from noisynb import datasets as D
from noisynb.core import NoisynbError
from noisynb.datasets import available, load
from noisynb.datasets.files import Files

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "No files of this machine's own, and no network"
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.delenv('NOISYNB_DATA', raising=False)
    monkeypatch.setattr('urllib.request.urlopen', lambda *a, **k: pytest.fail('it tried to download'))

def picture(path, shade=0, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (shade, 0, 255 - shade)).save(path, quality=95) if path.suffix == '.jpg' else Image.new('RGB', size, (shade, 0, 255 - shade)).save(path)

def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{r}\n' for r in rows), encoding='utf-8')

def refused(says, call, where=None):
    with pytest.raises(NoisynbError) as e: call()
    assert says in str(e.value), str(e.value)
    if where is not None: assert str(where) in str(e.value)

def shades(images): return [int(np.median(x[..., 0])) for x in images]

# ---- Animal-10N

def write_raw(place, train=('9_10.jpg', '0_2.jpg', '4_1.jpg', '0_11.jpg'), test=('5_1.jpg', '6_2.jpg')):
    for part, names in (('training', train), ('testing', test)):
        for n in names: picture(place/part/n, int(n[0])*20)
    return place

def records(labels, seed=0, order='>u4'):
    rows = np.zeros(len(labels), A._record)
    rows['pixels'] = np.random.default_rng(seed).integers(0, 256, rows['pixels'].shape, np.uint8)
    rows['id'] = np.arange(len(labels), dtype=order).view(np.uint8).reshape(-1, 4)
    rows['label'] = np.array(labels, order).view(np.uint8).reshape(-1, 4)
    return rows

def write_binary(place, train=(4, 5, 9, 0), test=(1, 2), name='data_batch_1.bin', order='>u4'):
    place.mkdir(parents=True, exist_ok=True)
    rows = records(train, 0, order), records(test, 1, order)
    for r, n in zip(rows, (name, 'test_batch.bin')): r.tofile(place/n)
    return rows

@pytest.mark.parametrize('place', ['animal10n', 'ANIMAL-10N', 'animal-10n', 'animal10n/raw_image'])
def test_animal10n_raw(tmp_path, place):
    assert not available('animal10n', tmp_path)
    write_raw(tmp_path/place)
    (tmp_path/place/'training'/'.DS_Store').write_bytes(b'x')
    assert available('animal10n', tmp_path)
    d = load('animal10n', tmp_path)
    assert d.train.labels.tolist() == [0, 0, 4, 9] and d.test.labels.tolist() == [5, 6] and d.val is None
    assert [Path(p).name for p in d.train.images.paths] == ['0_11.jpg', '0_2.jpg', '4_1.jpg', '9_10.jpg'] # by name, as WANN's code
    assert isinstance(d.train.images, Files) and d.train.images.shape == (4, 64, 64, 3)
    np.testing.assert_allclose(shades(d.train.images[:]), [0, 0, 80, 180], atol=4)
    assert (d.classes[0], d.classes[4], d.classes[5], d.classes[9]) == ('cat', 'cheetah', 'jaguar', 'guinea pig')

def test_nothing_is_decoded_before_it_is_asked_for(tmp_path):
    write_raw(tmp_path/'animal10n')
    (tmp_path/'animal10n/training/0_11.jpg').write_bytes(b'not an image')
    d = load('animal10n', tmp_path)
    assert shades(d.train.images[1:2])[0] < 5
    refused('0_11.jpg', lambda: d.train.images[0])

@pytest.mark.parametrize('name', ['lynx.jpg', '10_1.jpg', 'a_1.jpg', '12.jpg', 'Thumbs.db'])
def test_animal10n_file_without_a_label(tmp_path, name):
    place = write_raw(tmp_path/'animal10n')
    (place/'testing'/name).write_bytes(b'')
    refused('does not begin with a label', lambda: load('animal10n', tmp_path), place/'testing'/name)

def test_animal10n_empty_folder(tmp_path):
    place = write_raw(tmp_path/'animal10n', test=())
    (place/'testing').mkdir()
    refused('there is no image', lambda: load('animal10n', tmp_path), place/'testing')

@pytest.mark.parametrize('form', [dict(), dict(order='<u4'), dict(name='train_batch.bin')])
def test_animal10n_binary(tmp_path, form):
    train, test = write_binary(tmp_path/'animal10n', **form)
    d = load('animal10n', tmp_path)
    assert d.train.labels.tolist() == [4, 5, 9, 0] and d.test.labels.tolist() == [1, 2] and d.train.labels.dtype == np.int64
    for s, r in ((d.train, train), (d.test, test)): np.testing.assert_array_equal(s.images, r['pixels'].transpose(0, 2, 3, 1))
    base = d.train.images
    while base.base is not None and not isinstance(base, np.memmap): base = base.base
    assert isinstance(base, np.memmap) # not read whole

@settings(max_examples=15, deadline=None)
@given(labels=st.lists(st.integers(0, 9), min_size=1, max_size=6), order=st.sampled_from(['>u4', '<u4']))
def test_records_come_back(tmp_path_factory, labels, order):
    path = tmp_path_factory.mktemp('r')/'data_batch_1.bin'
    rows = records(labels, order=order)
    rows.tofile(path)
    s = A.read_records(path)
    assert s.labels.tolist() == labels
    for i in range(len(labels)): assert (s.images[i, 3, 7] == rows['pixels'][i, :, 3, 7]).all()

@pytest.mark.parametrize('spoil, says', [
    (lambda b: b[:-1], 'bytes long'), (lambda b: b + b'\0', 'bytes long'), (lambda b: b'', '0 bytes long'),
    (lambda b: b[:7] + b'\x0a' + b[8:], 'record 0 has no label'), (lambda b: b[:4] + b'\1\1\1\1' + b[8:], 'record 0 has no label'),
    (lambda b: b[:12296 + 4] + b'\7' + b[12296 + 5:], 'record 1 has no label'), (lambda b: b[:12296 + 5] + b'\1' + b[12296 + 6:], 'record 1 has no label'), (lambda b: np.random.default_rng(0).bytes(12296*3), 'has no label'),
])
def test_records_refuse(tmp_path, spoil, says):
    path = tmp_path/'test_batch.bin'
    path.write_bytes(spoil(records([4, 5]).tobytes()))
    refused(says, lambda: A.read_records(path), path)

# ---- lists

good = st.lists(st.tuples(st.text('ab/é ,._-', min_size=1, max_size=8).map(str.strip).filter(lambda n: n and not n.startswith('/') and '..' not in n.split('/')), st.integers(0, 13)), min_size=1, max_size=8, unique_by=lambda r: r[0])

@quick
@given(rows=good, end=st.sampled_from(['\n', '\r\n', '\r', ' \n', '\n\n']), gap=st.sampled_from([' ', '\t', '  ']), bom=st.booleans())
def test_lists_come_back(tmp_path, rows, end, gap, bom):
    path = tmp_path/'l.txt'
    path.write_bytes(b'\xef\xbb\xbf'*bom + ''.join(f'{n}{gap}{c}{end}' for n, c in rows).encode())
    names, labels = A.read_list(path, 14)
    assert list(zip(names, labels.tolist())) == rows and labels.dtype == np.int64
    few = [r for r in rows if r[1] < 7]
    if few: assert A.read_list(path, 14, keep=7)[0] == [n for n, _ in few]
    assert A.look_up({n: i for i, (n, _) in enumerate(rows)} | {'absent': len(rows)}, path, 14).tolist() == [c for _, c in rows] + [-1]

@quick
@given(st.binary(max_size=60) | st.lists(st.sampled_from([b'a.jpg', b' ', b'3', b'\n', b'..', b'/', b'-1', b'99', b'\xff', b'\0', b'\xc2\xa0', b'1e3', b'\\']), max_size=12).map(b''.join))
def test_lists_never_fail_from_inside(tmp_path, content):
    path = tmp_path/'l.txt'
    path.write_bytes(content)
    for read in (lambda: A.read_list(path, 14), lambda: A.read_keys(path), lambda: A.look_up({'a.jpg': 0}, path, 14)):
        try: got = read()
        except NoisynbError as e: assert str(path) in str(e)
        else:
            names = got[0] if isinstance(got, tuple) else list(got) if isinstance(got, dict) else []
            assert not any(n.startswith('/') or '..' in n.split('/') or '\0' in n for n in names)

@pytest.mark.parametrize('row, says', [
    ('b.jpg', "'b.jpg' is not a name and a label"), ('7', "'7' is not"), ('b.jpg x', 'is not a name'), ('b.jpg -1', 'is not a name'), ('b.jpg 1.0', 'is not a name'), ('b.jpg ٣', 'is not a name'),
    ('b.jpg 14', 'label 14; with 14 classes they go from 0 to 13'), ('b.jpg ' + '9'*5000, 'with 14 classes'), ('a.jpg 1', 'a.jpg is in the list already'),
    ('/etc/b.jpg 1', 'no name below the folder'), ('x/../../b.jpg 1', 'no name below'), ('x\\b.jpg 1', 'no name below'), ('b\x1b[2J.jpg 1', 'no name below'),
])
def test_wrong_lines_are_named(tmp_path, row, says):
    lines(tmp_path/'l.txt', 'a.jpg 0', row)
    refused(says, lambda: A.read_list(tmp_path/'l.txt', 14), f'{tmp_path/"l.txt"}, line 2')

def test_lists_that_are_empty_or_absent(tmp_path):
    lines(tmp_path/'l.txt', 'a.jpg 60', '')
    refused('there is no image in it', lambda: A.read_list(tmp_path/'l.txt', 1000, 50), tmp_path/'l.txt')
    refused('there is no image in it', lambda: (lines(tmp_path/'k.txt'), A.read_keys(tmp_path/'k.txt')), tmp_path/'k.txt')
    refused('No such file', lambda: A.read_list(tmp_path/'absent.txt', 14), tmp_path/'absent.txt')
    (tmp_path/'l.txt').write_bytes(b'caf\xe9.jpg 1\n')
    refused('damaged', lambda: A.read_list(tmp_path/'l.txt', 14), tmp_path/'l.txt')

def test_keys(tmp_path):
    lines(tmp_path/'k.txt', 'images/0/3,7.jpg', '', 'images/1/a b.jpg')
    assert A.read_keys(tmp_path/'k.txt') == {'images/0/3,7.jpg': 0, 'images/1/a b.jpg': 1}
    lines(tmp_path/'k.txt', 'a.jpg', 'b.jpg', 'a.jpg')
    refused('line 3: a.jpg is in the list already', lambda: A.read_keys(tmp_path/'k.txt'))
    lines(tmp_path/'kv.txt', 'a.jpg 1', 'a.jpg 1', 'z.jpg 9')
    assert A.look_up({'b.jpg': 0, 'a.jpg': 1}, tmp_path/'kv.txt', 14).tolist() == [-1, 1]
    lines(tmp_path/'kv.txt', 'a.jpg 1', 'a.jpg 2')
    refused('line 2: a.jpg has label 1 further up', lambda: A.look_up({'a.jpg': 0}, tmp_path/'kv.txt', 14))

# ---- WebVision

def write_webvision(place):
    rows = [('google/q0002/b.jpg', 1), ('google/q0001/a.jpg', 0), ('google/q1631/z.jpg', 999), ('google/q0050/c.jpg', 49), ('google/q0051/d.jpg', 50)]
    lines(place/'info/train_filelist_google.txt', *(f'{n} {c}' for n, c in rows))
    lines(place/'info/val_filelist.txt', 'val000001.jpg 48', 'val000002.jpg 50', 'val000003.jpg 0')
    for i, (n, c) in enumerate(rows):
        if c < 50: picture(place/n, 40*i, (256, 300))
    for i in (1, 3): picture(place/f'val_images_256/val00000{i}.jpg', 60*i, (400, 256))
    return place

def write_imagenet(place, name=lambda c: A._synsets[c]):
    for c in range(50):
        for i in range(1 + (c == 7)): picture(place/name(c)/f'ILSVRC2012_val_{c:04}{i}.JPEG', c, (30, 20))
    return place

@pytest.mark.parametrize('place', ['webvision', 'WebVision'])
def test_webvision50(tmp_path, place):
    write_webvision(tmp_path/place)
    d = load('webvision50', tmp_path)
    assert d.train.labels.tolist() == [1, 0, 49] and list(d.train.images.paths) == ['google/q0002/b.jpg', 'google/q0001/a.jpg', 'google/q0050/c.jpg']
    assert d.test.labels.tolist() == [48, 0] and d.n_classes == 50 and d.train.images.shape == (3, 224, 224, 3)
    np.testing.assert_allclose(shades(d.train.images[:]) + shades(d.test.images[:]), [0, 40, 120, 60, 180], atol=4)
    assert len(d.fingerprint) == 16 and d.fingerprint == load('webvision50', tmp_path).fingerprint
    assert d.train.take([2, 0]).labels.tolist() == [49, 1]

@pytest.mark.parametrize('name', [lambda c: A._synsets[c], str])
def test_webvision50_tested_on_imagenet(tmp_path, name):
    write_webvision(tmp_path/'webvision')
    assert not available('webvision50-imagenet', tmp_path)
    refused('imagenet/val', lambda: load('webvision50-imagenet', tmp_path))
    place = write_imagenet(tmp_path/'imagenet/val', name)
    (place/'n09999999').mkdir()
    d = load('webvision50-imagenet', tmp_path)
    assert d.test.labels.tolist() == [*range(8), *range(7, 50)] and d.train.labels.tolist() == [1, 0, 49]
    assert shades(d.test.images[[0]])[0] < 8 and abs(shades(d.test.images[[50]])[0] - 49) < 8
    for f in (place/name(12)).iterdir(): f.unlink()
    refused('no images of class 12 (house finch)', lambda: load('webvision50-imagenet', tmp_path), place)

def test_webvision_images_that_were_not_unpacked(tmp_path):
    place = write_webvision(tmp_path/'webvision')
    (place/'val_images_256/val000003.jpg').unlink()
    refused('val000003.jpg is in the list and not on the disk; unpack val_images_256.tar', lambda: load('webvision50', tmp_path), place/'val_images_256')
    (place/'google/q0001/a.jpg').unlink()
    refused('q0001/a.jpg is in the list and not on the disk; unpack google_resized_256.tar', lambda: load('webvision50', tmp_path), place)
    lines(place/'info/train_filelist_google.txt', f'google/{"x"*300}.jpg 1')
    refused('too long', lambda: load('webvision50', tmp_path), place)

@pytest.mark.parametrize('file', ['train_filelist_google.txt', 'val_filelist.txt'])
def test_webvision_with_a_wrong_list(tmp_path, file):
    place = write_webvision(tmp_path/'webvision')
    (place/'info'/file).write_text('val000001.jpg 3\nval000002.jpg 1000\n')
    refused('line 2: label 1000; with 1,000 classes', lambda: load('webvision50', tmp_path), place/'info'/file)

def test_first_50_classes_are_imagenets():
    "Against timm's tables, read without importing it"
    from importlib.util import find_spec
    if find_spec('timm') is None: pytest.skip('timm is not installed')
    info = Path(find_spec('timm').origin).parent/'data/_info'
    synsets = (info/'imagenet_synsets.txt').read_text().split()
    names = dict(row.split('\t') for row in (info/'imagenet_synset_to_lemma.txt').read_text().splitlines())
    assert synsets[:50] == A._synsets and [names[s].split(',')[0] for s in synsets[:50]] == list(A._first50)

# ---- Clothing1M

def key(i): return f'images/{i % 10}/{i:02}/{i}1,{i}2.jpg'

noisy = {0: 0, 1: 1, 2: 13, 3: 2, 4: 4, 5: 5, 6: 1, 8: 2}   # 0-2 the million; 3 and 4 of clean_train, 6 of val, 8 of test have both
clean = {3: 3, 4: 4, 5: 6, 6: 6, 7: 7, 8: 8, 9: 9, 10: 0}
parts = dict(noisy_train=(2, 0, 1), clean_train=(10, 4, 3), clean_val=(6, 7), clean_test=(9, 8))

def write_clothing(place, info='.'):
    for i in range(11): picture(place/key(i), 20*i, (70, 50))
    for part, rows in parts.items(): lines(place/info/f'{part}_key_list.txt', *map(key, rows))
    for kind, labels in dict(noisy=noisy, clean=clean).items(): lines(place/info/f'{kind}_label_kv.txt', *(f'{key(i)} {c}' for i, c in labels.items()))
    return place

@pytest.mark.parametrize('place, info', [('clothing1m', '.'), ('Clothing1M', 'annotations')])
def test_clothing1m(tmp_path, place, info):
    write_clothing(tmp_path/place, info)
    d = load('clothing1m', tmp_path)
    assert d.train.labels.tolist() == [13, 0, 1] and d.val.labels.tolist() == [6, 7] and d.test.labels.tolist() == [9, 8] and not d.train.human
    np.testing.assert_allclose(shades(d.train.images[:]) + shades(d.val.images[:]) + shades(d.test.images[:]), [40, 0, 20, 120, 140, 180, 160], atol=4)
    assert d.classes[0] == 'T-Shirt' and d.classes[8] == 'Down Coat' and d.n_classes == 14
    assert not D.datasets['clothing1m'].truth and D.datasets['clothing1m-both'].truth

def test_clothing1m_with_both_labels(tmp_path):
    from noisynb.noise import corrupt
    write_clothing(tmp_path/'clothing1m')
    d = load('clothing1m-both', tmp_path)
    assert d.train.labels.tolist() == [4, 3] and d.train.human['web'].tolist() == [4, 2] and list(d.train.images.paths) == [key(4), key(3)] # 10 has no label from the web
    assert d.val.labels.tolist() == [6, 7] and d.test.labels.tolist() == [9, 8]
    seen = corrupt(d.train, 'web', n_classes=d.n_classes)
    assert seen.flipped.tolist() == [False, True] and seen.rate == .5

def test_clothing1m_refuses(tmp_path):
    place = write_clothing(tmp_path/'clothing1m')
    def bad(says, name, file, *rows, where=None):
        old = (place/file).read_bytes()
        lines(place/file, *rows)
        refused(says, lambda: load(name, tmp_path), where or place/file)
        (place/file).write_bytes(old)
    bad('has no label in noisy_label_kv.txt', 'clothing1m', 'noisy_train_key_list.txt', key(0), key(9))
    bad('has no label in clean_label_kv.txt', 'clothing1m', 'clean_test_key_list.txt', key(0))
    bad('line 2: label 14; with 14 classes', 'clothing1m', 'clean_label_kv.txt', f'{key(8)} 3', f'{key(9)} 14')
    bad('line 1', 'clothing1m', 'noisy_label_kv.txt', key(0))
    bad('already', 'clothing1m', 'clean_val_key_list.txt', key(6), key(6))
    bad('no image', 'clothing1m', 'noisy_train_key_list.txt', '')
    (place/key(1)).unlink()
    bad(f'{key(1)} is in the list and not on the disk; unpack', 'clothing1m', 'noisy_train_key_list.txt', key(0), key(1), key(2), where=place)
    bad('none of its images is in both', 'clothing1m-both', 'clean_train_key_list.txt', key(10), where=place/'clean_train_key_list.txt')
    (place/'clean_val_key_list.txt').unlink()
    assert not available('clothing1m', tmp_path)
    refused('clean_val_key_list.txt or annotations/clean_val_key_list.txt', lambda: load('clothing1m', tmp_path))

# ---- MedMNIST

def med(name, size=28, n=(7, 3, 4), classes=None, **changes):
    r = np.random.default_rng(len(name))
    C = classes or len(A._medmnist[name][2].split('|'))
    a = {}
    for part, m in zip(('train', 'val', 'test'), n):
        a[f'{part}_images'] = r.integers(0, 256, (m, size, size) + (3,)*(name in ('pathmnist', 'dermamnist', 'retinamnist', 'bloodmnist')), np.uint8)
        a[f'{part}_labels'] = (np.arange(m)[:, None] % C).astype(np.uint8)
    return a | changes

@pytest.mark.parametrize('name', A._medmnist)
def test_medmnist(tmp_path, name):
    np.savez_compressed(tmp_path/f'{name}.npz', **(a := med(name)))
    d = load(name, tmp_path)
    assert (d.name, d.source, list(d.parts)) == (name, 'https://medmnist.com', ['train', 'val', 'test'])
    for p, s in d.parts.items():
        np.testing.assert_array_equal(s.images.reshape(a[f'{p}_images'].shape), a[f'{p}_images'])
        assert s.labels.tolist() == a[f'{p}_labels'][:, 0].tolist()
    assert d.classes == D.find_set(name).classes and D.find_set(name).truth

@pytest.mark.parametrize('size', [64, 128, 224])
def test_medmnist_in_other_sizes_and_places(tmp_path, size):
    name, home = f'breastmnist_{size}', tmp_path/'home/.medmnist'
    home.mkdir(parents=True)
    assert D.find_set(name) and name not in D.datasets and not available(name, tmp_path)
    np.savez(home/f'{name}.npz', **med('breastmnist', size))
    assert available(name, tmp_path) and not available('breastmnist', tmp_path)
    d = load(name, tmp_path)
    assert d.train.images.shape == (7, size, size, 1) and d.classes == ('malignant', 'normal, benign')

@pytest.mark.parametrize('changes, says', [
    (dict(size=64), 'its images are 64x64, not 28x28'), (dict(classes=3), 'hold 2 at row 2; with 2 classes'),
    (dict(train_labels=np.zeros((7, 14), int)), 'several labels per image'), (dict(train_images=np.zeros((7, 28, 28, 28), np.uint8)), '28, 28, 28'), (dict(val_labels=np.arange(2)), '3 images and 2'),
])
def test_medmnist_refuses(tmp_path, changes, says):
    np.savez(tmp_path/'pneumoniamnist.npz', **med('pneumoniamnist', **changes))
    refused(says, lambda: load('pneumoniamnist', tmp_path), tmp_path)

@pytest.mark.parametrize('content', [b'', b'<html>not found</html>', b'PK\x03\x04 cut'])
def test_medmnist_damaged(tmp_path, content):
    (tmp_path/'dermamnist.npz').write_bytes(content)
    refused('dermamnist.npz', lambda: load('dermamnist', tmp_path))

@pytest.mark.parametrize('name, says', [('chestmnist', '14 findings'), ('chestmnist_224', '14 findings'), ('organmnist3d', 'volumes'), ('nodulemnist3d_64', 'volumes')])
def test_medmnist_that_does_not_fit(tmp_path, name, says):
    np.savez(tmp_path/f'{name}.npz', **med('pneumoniamnist'))
    for ask in (load, available): refused(says, lambda: ask(name, tmp_path))

def test_a_folder_of_ones_own_may_have_nearly_the_name_of_a_set_that_is_refused(tmp_path):
    for c in 'ab': picture(tmp_path/f'chestmnist_mine/{c}/1.png')
    assert load('chestmnist_mine', tmp_path).classes == ('a', 'b')

@pytest.mark.parametrize('name', ['dermamnist_28', 'dermamnist_65', 'dermamnist_', 'dermamnist_64_', 'mnist_64', 'animal-10n', 'webvision', 'clothing'])
def test_names_that_are_nearly_right(name):
    assert D.find_set(name) is None
    refused("did you mean '", lambda: load(name))

def test_medmnist_download(tmp_path, monkeypatch):
    import io
    np.savez_compressed(tmp_path/'far.npz', **med('bloodmnist'))
    content = (tmp_path/'far.npz').read_bytes()
    spec = D.datasets['bloodmnist']
    class Response(io.BytesIO): headers = {'Content-Length': str(len(content))}
    monkeypatch.setattr('urllib.request.urlopen', lambda url, timeout: Response(content) if url == spec.sources[0].url else pytest.fail(url))
    refused('has MD5', lambda: load('bloodmnist', tmp_path/'near', download=True))
    assert list((tmp_path/'near').iterdir()) == []
    known = dataclasses.replace(spec.sources[0], md5=hashlib.md5(content).hexdigest())
    monkeypatch.setitem(D.datasets, 'bloodmnist', dataclasses.replace(spec, sources=(known,)))
    assert len(load('bloodmnist', tmp_path/'near', download=True).val) == 3
    assert [p.name for p in (tmp_path/'near').iterdir()] == ['bloodmnist.npz']

def test_what_is_missing_of_a_folder_is_told_from_what_is_there(tmp_path):
    place = write_clothing(tmp_path/'Clothing1M')
    (place/'clean_label_kv.txt').unlink()
    with pytest.raises(NoisynbError) as e: load('clothing1m', tmp_path)
    rows = {r.split(' or ')[0].split(',')[0].strip(): r.endswith('which is there') for r in str(e.value).splitlines()[2:]}
    assert str(place) in str(e.value) and rows == {'images': True, **{n: n != 'clean_label_kv.txt' for n in A._clothing_files}}

# ---- registry

def test_archives_are_registered():
    assert list(D.datasets)[:7] == ['digits', 'mnist', 'fashion-mnist', 'cifar10', 'cifar100', 'cifar10n', 'cifar100n'] and list(D.datasets)[7:] == list(A.large_sets)
    sums = [A._med(n, s).sources[0].md5 for n in A._medmnist for s in A._sizes]
    assert len(set(sums)) == 44 and all(re.fullmatch('[0-9a-f]{32}', s) for s in sums)
    assert [len(A.large_sets[n].classes) for n in A._medmnist] == [9, 7, 4, 2, 5, 2, 8, 8, 11, 11, 11]
    for s in A.large_sets.values():
        assert len(set(s.classes)) == len(s.classes) and all(c == c.strip() and '\n' not in c for c in s.classes) and s.home.startswith('https://')
    assert {n for n, s in A.large_sets.items() if not s.truth} == {'animal10n', 'webvision50', 'webvision50-imagenet', 'clothing1m'}

def test_usual_asymmetric_maps(tmp_path):
    from noisynb.noise import targets
    assert targets(A.large_sets['animal10n'].asymmetric, 10).tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8]
    assert targets(D.find_set('dermamnist_224').asymmetric, 7).tolist() == [1, 2, 3, 4, 5, 6, 0]
    assert {n for n, s in A.large_sets.items() if s.asymmetric} == {'animal10n', 'dermamnist'}

def test_ones_own_file_may_have_the_name_of_a_set_that_is_refused(tmp_path):
    from noisynb.experiment import add_noise
    from noisynb.reports.run_page import data_name
    np.savez(tmp_path/'chestmnist.npz', **med('pneumoniamnist'))
    data = load(tmp_path/'chestmnist.npz')
    assert data.name == data_name(data.name) == 'chestmnist' and add_noise(data, 'pair', .5).rate > 0

@pytest.mark.parametrize('name, parts', [
    ('animal10n', ('animal10n', 'training or data_batch_1.bin', 'testing or test_batch.bin', 'https://dm.kaist.ac.kr')),
    ('webvision50', ('webvision', 'info/train_filelist_google.txt', 'val_images_256', 'https://data.vision.ee.ethz.ch')),
    ('webvision50-imagenet', ('webvision', 'imagenet/val', 'n01440764', 'https://image-net.org')),
    ('clothing1m', ('clothing1m', 'images', 'noisy_label_kv.txt', 'https://github.com/Cysu/noisy_label')),
    ('clothing1m-both', ('clothing1m', 'clean_train_key_list.txt')),
    ('organamnist_128', ('organamnist_128.npz', '~/.medmnist', 'https://zenodo.org/records/10519652/', 'download=True')),
])
def test_missing_sets_are_answered_with_their_layout(tmp_path, name, parts):
    assert not available(name, tmp_path)
    for part in (*parts, str(tmp_path)): refused(part, lambda: load(name, tmp_path))
    if 'mnist' not in name: refused('cannot fetch it', lambda: load(name, tmp_path, download=True)) # and nothing was asked of the network

def test_a_set_with_wrong_labels_of_its_own_in_an_experiment(tmp_path):
    "Labels as they are: test accuracy has a value, figures that need the truth have none"
    from noisynb.experiment import run
    train, test = write_binary(tmp_path/'animal10n', train=[0, 1]*10, test=[0, 1, 0])
    r = run('knn', 'animal10n', data_dir=str(tmp_path), noise_type='none', options={'k': 3}).result
    assert (r['n_train'], r['n_test'], r['n_classes']) == (20, 3, 10) and r['test_accuracy'] is not None
    assert {r[k] for k in ('label_error_auroc', 'label_error_f1', 'correction_accuracy', 'noise_rate_realised')} == {None}

def test_labels_of_the_web_in_an_experiment(tmp_path):
    from noisynb.experiment import run
    write_clothing(tmp_path/'clothing1m')
    for part, rows in dict(clean_train=(3, 4, 5, 6, 8)).items(): lines(tmp_path/f'clothing1m/{part}_key_list.txt', *map(key, rows))
    r = run('knn', 'clothing1m-both', data_dir=str(tmp_path), noise_type='web', options={'k': 2}).result
    assert r['n_train'] == 5 and r['noise_rate_realised'] == .8 and r['label_error_auroc'] is not None
