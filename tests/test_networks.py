"Networks: parameter counts of the specification, the blocks written out again, torchvision, streams and averages"
import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noisynb.core import NoisynbError, load_torchvision
from noisynb.networks import EMA, BasicBlock, PreActBlock, cost, default_network, make_network, networks

small = [('preact-resnet18-narrow', 3, 32, {}), ('preact-resnet18', 3, 8, dict(width=8)), ('resnet18', 3, 8, dict(width=8)), ('resnet34', 1, 8, dict(width=8)), ('vgg19-bn', 3, 32, dict(hidden=16)),
         ('small-cnn', 1, 8, {}), ('small-cnn', 3, 28, {})]
cases = pytest.mark.parametrize('name, channels, size, options', small, ids=lambda v: str(v) if not isinstance(v, dict) else '')


def shaken(module, seed=0):
    "The module with normalisation layers that do something"
    g = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low, high in (m.weight, .5, 1.5), (m.bias, -.5, .5), (m.running_mean, -.5, .5), (m.running_var, .5, 2): t.data.copy_(torch.rand(t.shape, generator=g)*(high - low) + low)
    return module

def images(*shape, seed=0): return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

# PyTorch's layers written out

def conv(x, weight, stride, padding):
    "By unfolding: one matrix product"
    b, k = len(x), weight.shape[-1]
    out = (x.shape[-1] + 2*padding - k)//stride + 1
    return (weight.flatten(1) @ F.unfold(x, k, padding=padding, stride=stride)).reshape(b, -1, out, out)

def norm(x, m, train):
    mean, var = (x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)) if train else (m.running_mean, m.running_var)
    shape = 1, -1, 1, 1
    return (x - mean.reshape(shape))/(var.reshape(shape) + 1e-5).sqrt()*m.weight.reshape(shape) + m.bias.reshape(shape)

def preact(block, x, stride, train):
    h = norm(x, block.norm1, train).clamp(min=0)
    skip = h if isinstance(block.shortcut, nn.Identity) else conv(h, block.shortcut.weight, stride, 0)
    h = conv(h, block.conv1.weight, stride, 1)
    return conv(norm(h, block.norm2, train).clamp(min=0), block.conv2.weight, 1, 1) + skip

def basic(block, x, stride, train):
    h = norm(conv(x, block.conv1.weight, stride, 1), block.norm1, train).clamp(min=0)
    h = norm(conv(h, block.conv2.weight, 1, 1), block.norm2, train)
    skip = x if isinstance(block.shortcut, nn.Identity) else norm(conv(x, block.shortcut[0].weight, stride, 0), block.shortcut[1], train)
    return (h + skip).clamp(min=0)

@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('inside, outside, stride', [(4, 4, 1), (4, 6, 1), (4, 8, 2), (4, 4, 2)])
@pytest.mark.parametrize('kind, naive', [(PreActBlock, preact), (BasicBlock, basic)])
def test_blocks_written_out(kind, naive, inside, outside, stride, train):
    block, x = shaken(kind(inside, outside, stride)).double().train(train), images(3, inside, 8, 8).double()
    expected = naive(copy.deepcopy(block), x, stride, train)
    torch.testing.assert_close(block(x), expected)

@pytest.mark.parametrize('name, naive', [('preact-resnet18-narrow', preact), ('resnet18', basic)])
def test_a_network_written_out(name, naive):
    net, x = shaken(make_network(name, 7, size=16, width=8)).double().eval(), images(2, 3, 16, 16).double()
    h = norm(conv(x, net.stem[0].weight, 1, 1), net.stem[1], False).clamp(min=0)
    for i, stage in enumerate(net.stages):
        for j, block in enumerate(stage): h = naive(block, h, 2 if i and not j else 1, False)
    assert [len(s) for s in net.stages] == [2, 2, 2, 2] and h.shape == (2, 64, 2, 2)
    h = h.mean((2, 3))
    torch.testing.assert_close(net.features(x), h)
    torch.testing.assert_close(net(x), h @ net.head.weight.T + net.head.bias)


# counts, and torchvision

def counted(name, *args, **options): return sum(p.numel() for p in make_network(name, *args, **options).parameters())

def test_parameters_and_operations():
    assert cost(make_network('preact-resnet18', 10)) == dict(parameters=11_171_274, gflop=pytest.approx(1.1108, abs=5e-5))
    both = cost(make_network('resnet18', 10, pseudo_head=True))
    assert both == dict(parameters=11_179_092, gflop=pytest.approx(1.1108, abs=5e-5))
    narrow = cost(make_network('preact-resnet18-narrow', 10))
    assert narrow == dict(parameters=pytest.approx(.70e6, rel=.01), gflop=pytest.approx(.0701, abs=5e-5))
    assert cost(make_network('small-cnn', 10, 1, 8)) == dict(parameters=56_554, gflop=pytest.approx(.0036, abs=5e-5))
    assert cost(make_network('small-cnn', 10, 1, 28)) == dict(parameters=98_682, gflop=pytest.approx(.005168, abs=5e-7))
    assert cost(make_network('small-cnn', 10, 3, 32, widths=(32, 64, 128))) == dict(parameters=pytest.approx(95e3, rel=.01), gflop=pytest.approx(.0206, abs=5e-5))

def test_parameters_by_classes_and_channels():
    assert counted('preact-resnet18', 100) == 11_171_274 + 90*513
    assert counted('preact-resnet18', 10, 1) == 11_171_274 - 2*9*64

@pytest.mark.parametrize('name', ['resnet18', 'resnet34'])
def test_resnets_for_photos_are_those_of_torchvision(name):
    load_torchvision()
    from torchvision import models
    ours, theirs = make_network(name, 10, size=96), getattr(models, name)(num_classes=10)
    shapes = lambda net: [tuple(v.shape) for v in net.state_dict().values()]
    assert shapes(ours) == shapes(theirs)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), shaken(ours).state_dict().values())))
    x = images(2, 3, 96, 96)
    with torch.no_grad(): torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))

def test_resnet34_for_small_images_differs_in_the_stem_alone():
    load_torchvision()
    from torchvision import models
    with torch.device('meta'): theirs = models.resnet34(num_classes=10)
    ours = make_network('resnet34', 10)
    assert [p.shape for p in ours.parameters()][1:] == [p.shape for p in theirs.parameters()][1:]
    assert ours.stem[0].weight.shape == (64, 3, 3, 3) and ours.stages(ours.stem(torch.zeros(1, 3, 32, 32))).shape == (1, 512, 4, 4)

def test_vgg_is_that_of_torchvision():
    load_torchvision()
    from torchvision import models
    net = make_network('vgg19-bn', 10, size=64, hidden=16)
    theirs = models.vgg.make_layers(models.vgg.cfgs['E'], batch_norm=True)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), (v for k, v in shaken(net).trunk.state_dict().items()))))
    x = images(1, 3, 64, 64)
    with torch.no_grad(): torch.testing.assert_close(net.eval().trunk(x), theirs.eval()(x).flatten(1))
    with torch.device('meta'): whole = models.vgg19_bn(num_classes=10)
    from noisynb.networks import VGG19
    with torch.device('meta'): assert [p.shape for p in VGG19(10, 3, 224).parameters()] == [p.shape for p in whole.parameters()]
    with torch.device('meta'): assert VGG19(10, 3, 64).hidden[0].weight.shape == (4096, 2048)

def test_starts():
    preact, post = make_network('preact-resnet18', 10), make_network('resnet18', 10)
    for net in preact, post:
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)
    w = preact.stages[3][1].conv2.weight # uniform within 1/sqrt(fan in)
    assert w.abs().max().item() == pytest.approx((512*9)**-.5, rel=1e-3) and w.std().item() == pytest.approx((3*512*9)**-.5, rel=.01)
    w = post.stages[3][0].conv1.weight # normal, variance 2/fan out; 256 channels come in
    assert w.std().item() == pytest.approx((2/(512*9))**.5, rel=.01) and w.abs().max() > 4*w.std()
    assert make_network('vgg19-bn', 10, size=32, hidden=64).head.bias.eq(0).all()


# what all have in common

@cases
def test_features_and_head(name, channels, size, options):
    net, x = make_network(name, 5, channels, size, **options).eval(), images(3, channels, size, size)
    with torch.no_grad():
        f = net.features(x)
        assert f.shape == (3, net.head.in_features) and torch.equal(net(x), net.head(f)) and net(x).shape == (3, 5)

@cases
def test_examples_are_judged_alone_in_evaluation(name, channels, size, options):
    net, x = shaken(make_network(name, 5, channels, size, **options)).eval(), images(4, channels, size, size)
    with torch.no_grad(): torch.testing.assert_close(net(x)[[2, 0]], net(x[[2, 0]]))

@cases
def test_channels_last_is_kept_to_the_end(name, channels, size, options):
    net, x = shaken(make_network(name, 5, channels, size, **options)).eval(), images(2, channels, size, size)
    lasting, seen = copy.deepcopy(net).to(memory_format=torch.channels_last), []
    def look(module, args, out): seen.append(out.is_contiguous(memory_format=torch.channels_last))
    for m in lasting.modules():
        if isinstance(m, nn.Conv2d | nn.BatchNorm2d): m.register_forward_hook(look)
    with torch.no_grad(): torch.testing.assert_close(lasting(x.contiguous(memory_format=torch.channels_last)), net(x), rtol=1e-4, atol=1e-4)
    assert seen and all(seen)

@cases
def test_every_weight_learns(name, channels, size, options):
    net = make_network(name, 5, channels, size, **options)
    F.cross_entropy(net(images(4, channels, size, size)), torch.tensor([0, 1, 2, 3])).backward()
    assert [k for k, p in net.named_parameters() if p.grad is None] == []

@cases
def test_weights_come_from_their_own_stream(name, channels, size, options):
    before = torch.get_rng_state()
    make = lambda **more: nn.utils.parameters_to_vector(make_network(name, 5, channels, size, **options, **more).parameters())
    first = make()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(make(), first)
    assert torch.equal(make(purpose='network', seed=np.int64(0)), first)
    assert not torch.equal(make(seed=1), first) and not torch.equal(make(purpose='network B'), first)

def test_a_second_head_leaves_the_rest_as_it_was():
    one, two = (make_network('small-cnn', 5, 1, 8, pseudo_head=p) for p in (False, True))
    assert two.pseudo_head.weight.shape == one.head.weight.shape and not torch.equal(two.pseudo_head.weight, two.head.weight)
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())

def test_names_and_options():
    assert {n for n, *_ in small} == set(networks) - {'timm:MODEL'} and all(networks.values())
    for wrong, say in ((dict(name='resnet-18'), "did you mean 'resnet18'"), (dict(name='small-cnn', width=3), "did you mean 'widths'"), (dict(name='resnet18', n_classes=0), 'n_classes is 0'),
                       (dict(name='resnet18', size=31.5), 'size is 31.5'), (dict(name='vgg19-bn', size=31), 'at least 32'), (dict(name='small-cnn', size=3), 'at least 4')):
        with pytest.raises(NoisynbError, match=say): make_network(**dict(n_classes=10) | wrong)

def test_default_by_size():
    assert [default_network(s) for s in (8, 28, 32, 64, 224)] == ['small-cnn']*2 + ['preact-resnet18-narrow']*3
    assert [default_network(s, device='cuda') for s in (8, 28, 32, 64, 224)] == ['small-cnn', 'preact-resnet18', 'preact-resnet18', 'vgg19-bn', 'resnet34']
    assert default_network(28, 1, 'cuda') == 'small-cnn' and default_network(32, 3, 'cuda:1') == 'preact-resnet18'
    for s in 4, 8, 28, 32, 64, 224:
        for device in 'cpu', 'cuda': assert default_network(s, 3, device) in networks

def test_timm():
    pytest.importorskip('timm')
    net, x = make_network('timm:test_resnet', 5, 1, 64, seed=3).eval(), images(2, 1, 64, 64)
    assert net(x).shape == (2, 5) and torch.equal(net(x), make_network('timm:test_resnet', 5, 1, 64, seed=3).eval()(x))
    with pytest.raises(NoisynbError, match="did you mean 'resnet50'"): make_network('timm:resnet5o', 5)
    with pytest.raises(NoisynbError, match="did you mean 'pretrained'"): make_network('timm:test_resnet', 5, pretraind=True)

def test_compiled_code_is_possible():
    "torch.export refuses what depends on the data"
    net = make_network('preact-resnet18-narrow', 5, size=8).eval()
    x = images(2, 3, 8, 8)
    with torch.no_grad(): torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), net(x))

def test_the_light_rooms_do_not_load_it():
    code = 'import sys, noisynb, noisynb.core, noisynb.datasets, noisynb.noise, noisynb.selection; assert "torch" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)


# averages

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)

def filled(net, value):
    with torch.no_grad():
        for p in net.parameters(): p.fill_(value)
        net.norm.running_mean.fill_(10*value), net.norm.running_var.fill_(value + 1), net.norm.num_batches_tracked.fill_(int(value*100))

def test_average_by_hand():
    net = Tiny()
    filled(net, 0.)
    ema, expected = EMA(net, .9), 0.
    for value in 1., 2., -3.:
        filled(net, value)
        ema.update()
        expected = .9*expected + .1*value
    assert all(p.eq(p.flatten()[0]).all() and p.flatten()[0].item() == pytest.approx(expected, abs=1e-6) for p in ema.module.parameters())
    norm = ema.module.norm
    assert norm.running_mean[0].item() == pytest.approx(10*expected, abs=1e-5) and norm.running_var[0].item() == pytest.approx(expected + 1, abs=1e-6)
    assert norm.num_batches_tracked.item() == -300 and norm.num_batches_tracked.dtype == torch.int64 and ema.updates == 3
    assert net.linear.weight[0, 0] == -3 and net.linear.weight.requires_grad and net.training

def test_average_that_warms_up():
    net = Tiny()
    filled(net, 0.)
    ema, expected = EMA(net, .25, warmup=True), 0.
    for step in range(1, 4):
        filled(net, 1.)
        ema.update()
        keep = min(.25, (1 + step)/(10 + step))
        expected = keep*expected + 1 - keep
        assert ema.module.linear.bias[0].item() == pytest.approx(expected, abs=1e-6)
    assert (1 + 1)/(10 + 1) < .25 < (1 + 3)/(10 + 3) # both rules were met

@pytest.mark.parametrize('decay, index', [(0., -1), (1., 0)])
def test_average_that_keeps_nothing_or_everything(decay, index):
    net = make_network('small-cnn', 3, 1, 8)
    ema, seen = EMA(net, decay), [copy.deepcopy(net.state_dict())]
    for step in range(3):
        with torch.no_grad():
            for p in net.parameters(): p.add_(1)
        ema.update()
        seen.append(copy.deepcopy(net.state_dict()))
    for k, v in ema.module.state_dict().items(): torch.testing.assert_close(v, seen[index][k])

def test_average_of_itself_is_itself():
    net = make_network('small-cnn', 3, 1, 8)
    net(images(4, 1, 8, 8)) # moves the statistics of normalisation
    ema = EMA(net, .7)
    before = copy.deepcopy(ema.module.state_dict())
    ema.update()
    assert all(torch.equal(v, before[k]) for k, v in ema.module.state_dict().items())
    assert not ema.module.training and not any(p.requires_grad for p in ema.module.parameters())

def test_average_goes_on_where_it_stopped():
    def run(stop):
        net = make_network('small-cnn', 3, 1, 8)
        ema = EMA(net, .9, warmup=True)
        for step in range(6):
            if step == stop:
                state = copy.deepcopy(ema.state_dict())
                ema = EMA(net, .9, warmup=True)
                ema.load_state_dict(state)
            with torch.no_grad():
                for p in net.parameters(): p.mul_(1.1)
            ema.update()
        return nn.utils.parameters_to_vector(ema.module.parameters())
    assert torch.equal(run(3), run(None))
    with pytest.raises(NoisynbError, match='decay is 1.5'): EMA(nn.Linear(1, 1), 1.5)
