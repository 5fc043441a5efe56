"The door: parts, names, mistakes, and arrays that were made elsewhere"
import os, pickle, subprocess, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from noisynb import disk as store
from noisynb.core import NoisynbError
from noisynb.datasets import Dataset, Split
from noisynb.embeddings import embed, extract, parse
from noisynb.embeddings.extractors import Extractor, pixels


def extractor(run, batch_size=8, **kw): return Extractor(**{**dict(name='fake', weights='w', transform='t', run=run, batch_size=batch_size), **kw})


def counting(calls, run):
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
def quick(monkeypatch): monkeypatch.setattr(store, 'versions', lambda: {})


def only(folder, pattern='*'):
    found = list(Path(folder).glob(pattern))
    assert len(found) == 1
    return found[0]


# the one door


def test_pca_dims_are_cut_with_a_note_and_no_warning(recwarn):
    e = embed(dataset(train=12), 'pca:64')
    assert e.train.shape == (12, 12) and e.name == 'pca:12' and '64' in e.about['note']
    same = np.full((5, 4, 4, 1), 7, np.uint8)
    assert np.isfinite(extract(same, 'pca:2')).all() and not (extract(same, 'pca:2')).any()
    assert not recwarn.list


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
    code = "import sys, noisynb.embeddings as e; e.backbones; print([m for m in ('torch', 'sklearn', 'timm', 'onnxruntime', 'matplotlib', 'scipy', 'filelock') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


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


def flip(path, at=-3):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def test_a_store_by_its_folder(tmp_path, quick):
    data = dataset()
    e = embed(data, extractor(lambda b: pixels(b)[:, :4]), store=tmp_path)
    folder = only(tmp_path, 'fake-*')
    again = embed(data, str(folder))
    assert again.fingerprint == e.fingerprint
    with pytest.raises(NoisynbError, match='features of other images'): embed(dataset(train=31), folder)
    flip(folder/'test.npy')
    with pytest.raises(NoisynbError, match='test.npy'): embed(data, folder)
    with pytest.raises(NoisynbError, match='embedding.json'): embed(data, tmp_path)
