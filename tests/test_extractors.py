"What makes features: pixels and components against plain algebra, ONNX against NumPy, timm against timm"
import sys
from pathlib import Path
import numpy as np
import pytest
from noisynb.embeddings import extractors
from noisynb.core import NoisynbError
from noisynb.embeddings import extract, make_extractor
from noisynb.embeddings.extractors import backbones, pca, pixels


def colour(n, side=8, seed=0, channels=3): return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('NOISYNB_DATA', str(tmp_path/'data'))


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
    for name, words in ((f'{path}?size=9', '8x8'), (f'{path}?mean=a', 'grey levels'), (f'{path}?std=0', 'above 0'), (f'{path}?mean=1,2', 'three'), (f'{path}?size=0', 'size is 0'),
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
    (tmp_path/'m.onnx.txt').write_bytes(b'a note that the model does not name')
    assert make_extractor(f'onnx:{tmp_path/"m.onnx"}').weights == a.weights

def test_onnx_weights_in_a_file_beside(tmp_path):
    "They count under whatever name the model gives them"
    onnx = pytest.importorskip('onnx')
    model, marks, x = onnx.load(tiny_onnx(tmp_path/'whole.onnx')), [], colour(3)
    for factor in 1, 2:
        for t in model.graph.initializer:
            if t.name == 'w': t.CopyFrom(onnx.numpy_helper.from_array(factor*W, 'w'))
        onnx.save(model, tmp_path/'m.onnx', save_as_external_data=True, location='weights.bin', size_threshold=0)
        model = onnx.load(tmp_path/'m.onnx')
        e = make_extractor(f'onnx:{tmp_path/"m.onnx"}?size=8')
        marks.append((e.weights, e(x)))
        (tmp_path/'weights.bin').unlink()
    assert marks[0][0] != marks[1][0] and marks[1][1] == pytest.approx(2*marks[0][1], rel=1e-5)


# timm


@pytest.fixture(scope='module')
def timm():
    extractors.load_torchvision()
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


class Bomb:
    def __reduce__(self): return open, ('went-off', 'w')


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
    with pytest.raises(ImportError, match=r'noisynb\[backbones\]'): extractors._session('x', 'cpu')
