"The training floor against naive loops and hand values, and a run that is killed against one that is not"
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch.nn import functional as F

from noisynb import training
from noisynb.augment import weak
from noisynb.core import NoisynbError, processor_threads, torch_generator
from noisynb.datasets.files import Files
from noisynb.losses import make_loss
from noisynb.networks import make_network
from noisynb.training import (FileSet, ImageSet, Rate, Schedule, State, batches, evaluate, one_pass, read_checkpoint, schedules, sgd,
                              train, write_checkpoint)

quick = settings(max_examples=40, deadline=None)


def pictures(n=40, side=8, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)

def small(seed=0, channels=1): return make_network('small-cnn', 3, channels, 8, seed=seed).to(memory_format=torch.channels_last)

def labels(n=40, seed=0): return torch.from_numpy(np.random.default_rng(seed).integers(0, 3, n))

@pytest.fixture(autouse=True)
def one_thread():
    with processor_threads(1): yield


# --- batches ---

@quick
@given(st.integers(0, 60), st.integers(1, 20), st.booleans(), st.one_of(st.none(), st.integers(0, 9)))
def test_each_row_comes_once(n, size, drop_last, seed):
    found = batches(n, size, None if seed is None else torch_generator(seed, 'order'), drop_last)
    rows = torch.cat(found).tolist() if found else []
    assert all(len(b) == size for b in found[:-1]) and len(set(rows)) == len(rows) and set(rows) <= set(range(n))
    assert len(rows) == (n - n % size if drop_last and n > size else n)
    if seed is None: assert rows == sorted(rows)

def test_the_order_is_that_of_the_generator():
    rows = torch.arange(100, 150)
    one, two, other = (torch.cat(batches(rows, 7, torch_generator(s, 'order'))).tolist() for s in (0, 0, 1))
    assert one == two != other and sorted(one) == rows.tolist() != one


# --- images ---

def test_views_are_what_the_augmentations_give():
    X = pictures(channels=3)
    images, rows = ImageSet(X, flip=True), torch.tensor([5, 0, 5])
    mean, deviation = (torch.tensor(s).view(-1, 1, 1) for s in images.statistics)
    by_hand = (torch.from_numpy(X[[5, 0, 5]]).permute(0, 3, 1, 2)/255 - mean)/deviation
    torch.testing.assert_close(images.plain(rows), by_hand, rtol=1e-5, atol=1e-5)
    assert images.plain(rows).is_contiguous(memory_format=torch.channels_last) and images.plain().shape == (40, 3, 8, 8)
    assert abs(images.plain().mean()) < 1e-4 and abs(images.plain().std(unbiased=False) - 1) < 1e-3
    expected = images.float(weak(images.raw(rows), torch_generator(1, 'views'), None, True))
    assert torch.equal(images.weak(rows, torch_generator(1, 'views')), expected)
    assert not torch.equal(images.strong(rows, torch_generator(1, 'views')), expected)

def test_statistics_given_are_not_measured():
    assert ImageSet(pictures(), statistics=((.5,), (.25,))).plain().min() >= -2

def test_windows_of_large_images():
    X = np.random.default_rng(0).integers(0, 256, (40, 12, 15, 3), dtype=np.uint8)
    images = ImageSet(X, size=8, statistics=((0.,)*3, (1/255,)*3))
    assert images.shape == (3, 8, 8)
    pixels = lambda x: x.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert (pixels(images.plain(torch.tensor([3, 1]))) == X[[3, 1], 2:10, 3:11]).all() # the middle
    rows, places = torch.arange(40).repeat(10), set()
    for i, view in zip(rows.tolist(), pixels(images.weak(rows, torch_generator(0, 'views')))):
        found = [(top, left, flip) for top in range(5) for left in range(8) for flip in (1, -1) if (X[i, top:top + 8, left:left + 8][:, ::flip] == view).all()]
        places.update(found)
        assert len(found) == 1 # inside the image, without a border
    assert len(places) > 70 # of 80
    assert images.strong(rows[:4], torch_generator(0, 'views')).shape == (4, 3, 8, 8)
    with pytest.raises(NoisynbError, match='no windows of side 13'): ImageSet(X, size=13)

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    place, X = tmp_path_factory.mktemp('pictures'), pictures(30, 8, 3)
    for i, picture in enumerate(X): Image.fromarray(picture).save(place/f'{i:02}.png')
    return Files([f'{i:02}.png' for i in range(30)], size=8, root=place), X

def test_files_are_the_same_set(folder):
    files, X = folder
    lazy, resident = FileSet(files), ImageSet(X)
    assert lazy.statistics == resident.statistics and len(lazy) == len(resident) and lazy.shape == resident.shape
    rows = torch.tensor([3, 29, 3])
    for view in 'raw', 'plain': assert torch.equal(getattr(lazy, view)(rows), getattr(resident, view)(rows))
    assert torch.equal(lazy.weak(rows, torch_generator(0, 'v')), resident.weak(rows, torch_generator(0, 'v')))
    ends = []
    for images in lazy, resident:
        net = small(channels=3)
        loss = one_pass(net, sgd(net, .1), images, labels(30), make_loss('ce', 3), 7, torch_generator(0, 'order'))
        ends.append((loss, evaluate(net, images, size=7)))
    assert ends[0][0] == ends[1][0] and torch.equal(ends[0][1], ends[1][1])

def test_files_are_decoded_once_and_one_batch_ahead(folder):
    files, _ = folder
    class Counting:
        shape, decoded = files.shape, []
        def __len__(self): return len(files)
        def __getitem__(self, rows):
            self.decoded.append(list(rows))
            return files[rows]
    images, seen = FileSet(Counting(), statistics=((.5,)*3, (.5,)*3)), []
    for b in images.follow(batches(30, 8)):
        if len(seen) < 24: images._pool.submit(lambda: None).result() # what was asked for so far is done
        seen += b.tolist()
        assert len(Counting.decoded) == min(4, len(seen)//8 + 1 if len(seen) < 30 else 4), 'the next batch is being decoded while this one is at work'
        images.weak(b, torch_generator(0, 'a')); images.weak(b, torch_generator(0, 'b'))
    assert seen == list(range(30)) and [len(d) for d in Counting.decoded] == [8, 8, 8, 6]


# --- a pass, and an evaluation ---

@pytest.mark.parametrize('name', ['ce', 'gce', 'elr', 'anl-ce', 'anl-ce-er'])
def test_a_pass_is_a_plain_loop(name):
    X, y = pictures(), labels()
    images, schedule = ImageSet(X, flip=False), Schedule(.1, 'cosine')
    rate = Rate(schedule, 0., .5, 2)
    ours, theirs = small(), small()
    ours_loss, theirs_loss = (make_loss(name, 3, n_samples=40) for _ in 'ab')
    mean = one_pass(ours, sgd(ours, .1, .9, 1e-3), images, y, ours_loss, 16, torch_generator(3, 'order'), rate)
    g, momenta, total = torch_generator(3, 'order'), [torch.zeros_like(p) for p in theirs.parameters()], 0.
    order = torch.randperm(40, generator=g)
    for i, rows in enumerate([order[:16], order[16:32], order[32:]]):
        x = torch.from_numpy(np.moveaxis(X, 3, 1).copy())[rows]
        x = (weak(x, g, None, False).float()/255 - images.statistics[0][0])/images.statistics[1][0]
        logits = theirs(x)
        values = F.cross_entropy(logits, y[rows], reduction='none') if name == 'ce' else theirs_loss(logits, y[rows], rows)
        loss = values.mean() + theirs_loss.batch(logits) + theirs_loss.penalty(theirs.parameters())
        lr, gradients = .1*(1 + math.cos(math.pi*i/6))/2, torch.autograd.grad(loss, list(theirs.parameters()))
        with torch.no_grad():
            for p, gradient, m in zip(theirs.parameters(), gradients, momenta):
                m.mul_(.9).add_(gradient + 1e-3*p)
                p.sub_(lr*m)
        total += float(values.detach().sum())
    assert mean == pytest.approx(total/40, rel=1e-4)
    for (k, a), b in zip(ours.state_dict().items(), theirs.state_dict().values()): torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=k)

def test_a_pass_over_some_rows_leaves_the_others_alone():
    net, images, seen = small(), ImageSet(pictures()), []
    rows = torch.tensor([1, 4, 9, 16])
    one_pass(net, sgd(net, .1), images, labels(), make_loss('ce', 3), 3, torch_generator(0, 'o'), rows=rows, seen=lambda b, z: seen.append((b, z)))
    assert sorted(torch.cat([b for b, _ in seen]).tolist()) == rows.tolist() and not seen[0][1].requires_grad and [len(z) for _, z in seen] == [3, 1]

def test_evaluation_changes_nothing_and_keeps_the_order():
    net, images = small(), ImageSet(pictures())
    net.trunk[1].eval()
    before, modes = {k: v.clone() for k, v in net.state_dict().items()}, [m.training for m in net.modules()]
    found = evaluate(net, images, size=7)
    assert [m.training for m in net.modules()] == modes and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net.eval()
    with torch.no_grad(): torch.testing.assert_close(found, net(images.plain()), rtol=1e-4, atol=1e-5)
    rows = torch.tensor([30, 2])
    torch.testing.assert_close(evaluate(net, images, rows), found[rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(evaluate(net, images, view=lambda b: torch.zeros_like(images.plain(b)))[0], net(torch.zeros(1, 1, 8, 8))[0].detach(), rtol=1e-4, atol=1e-5)
    assert evaluate(net, images, torch.empty(0, dtype=torch.long)).shape == (0, 3) and not found.requires_grad

def test_modes_come_back_after_an_error():
    net = small()
    with pytest.raises(ZeroDivisionError): evaluate(net, ImageSet(pictures()), view=lambda b: 1/0)
    assert net.training


# --- schedules ---

def test_schedules_by_hand():
    at = lambda kind, *ps, **o: [Schedule(2., kind, **o)(p) for p in ps]
    assert at('constant', 0, .7, 1) == [2, 2, 2]
    assert at('step', 0, .49, .5, 1) == pytest.approx([2, 2, .2, .2])
    assert at('step', .3, .7, .9, at=(.4, .8), factor=.5) == [2, 1, .5]
    assert at('cosine', 0, 1/3, .5, 1) == pytest.approx([2, 1.5, 1, 0]) and at('cosine', 1, final=.1) == pytest.approx([.1])
    assert at('linear', 0, .25, 1) == [2, 1.5, 0]
    assert at('triangle', 0, .025, .05, .525, 1) == pytest.approx([0, 1, 2, 1, 0])
    with pytest.raises(NoisynbError, match="did you mean 'cosine'"): Schedule(1., 'cosinus')

@quick
@given(st.sampled_from(list(schedules)), st.floats(0, 1), st.floats(0, 1), st.sampled_from([None, 0., .3]))
def test_a_rate_stays_between_its_ends(kind, p, q, warmup):
    s = Schedule(.1, kind, warmup=warmup)
    assert 0 <= s(p) <= .1 + 1e-12
    if min(p, q) >= .3: assert s(max(p, q)) <= s(min(p, q)) + 1e-12


# --- state and checkpoints ---

def things():
    net = small()
    return State(networks=[net], optimizer=sgd(net, .1), generator=torch_generator(0, 'a'), draws=np.random.default_rng(0), loss=make_loss('elr', 3, n_samples=40),
                 history=[], table=torch.zeros(3), array=np.zeros(2), best=None, nested={'a': [1, 'two', None, True]})

def used():
    s = things()
    one_pass(s.networks[0], s.optimizer, ImageSet(pictures()), labels(), s.loss, 16, s.generator)
    s.draws.random(7)
    s.history += [np.arange(3.), np.arange(2)]
    s.table, s.array, s.best = torch.arange(10.)[2:5], np.array([True, False]), np.float64(.5)
    s.nested['b'] = {'c': torch.ones(1)}
    return s

def test_a_state_survives_a_file(tmp_path):
    one, two = used(), things()
    write_checkpoint(tmp_path/'a.pt', dict(identity={'a': '1'}, state=one.state_dict()))
    network = two.networks[0]
    two.load_state_dict(read_checkpoint(tmp_path/'a.pt', {'a': '1'})['state'])
    assert two.networks[0] is network and two.optimizer.param_groups[0]['params'][0] is next(network.parameters())
    for s in one, two: one_pass(s.networks[0], s.optimizer, ImageSet(pictures()), labels(), s.loss, 16, s.generator)
    assert all(torch.equal(a, b) for a, b in zip(one.networks[0].state_dict().values(), network.state_dict().values()))
    assert torch.equal(one.loss.targets, two.loss.targets) and one.draws.random() == two.draws.random()
    assert [a.tolist() for a in two.history] == [[0, 1, 2], [0, 1]] and two.history[1].dtype == np.arange(2).dtype
    assert two.table.tolist() == [2, 3, 4] and two.table.untyped_storage().nbytes() == 12 and two.array.dtype == bool
    assert two.best == .5 and two.nested == {'a': [1, 'two', None, True], 'b': {'c': torch.ones(1)}}

def test_a_state_does_not_change_with_training():
    s = used()
    before = s.state_dict()
    copy = before['table'].clone()
    s.table += 1
    s.array[:] = True
    assert torch.equal(before['table'], copy) and before['array']['an array'].tolist() == [True, False]

def test_what_cannot_be_kept_is_refused():
    with pytest.raises(NoisynbError, match='thing is a function'): State(thing=len and (lambda: 0)).state_dict()
    with pytest.raises(NoisynbError, match='has a, and this method keeps b'): State(b=1).load_state_dict({'a': 1})

class Evil:
    def __reduce__(self): return print, ('this ran',)

@pytest.mark.parametrize('content', [b'', b'rubbish', b'PK\x03\x04 cut short', 'evil', 'other', 'half'])
def test_checkpoints_that_are_none(tmp_path, content, capsys):
    path = tmp_path/'a.pt'
    if content == 'evil': torch.save(dict(format='noisynb-checkpoint-1', identity={}, state=Evil()), path)
    elif content == 'other': torch.save([1], path)
    elif content == 'half':
        write_checkpoint(path, dict(identity={}, state=used().state_dict()))
        path.write_bytes(path.read_bytes()[:5000])
    else: path.write_bytes(content)
    with pytest.raises(NoisynbError, match='give another path'): read_checkpoint(path)
    assert capsys.readouterr().out == ''

def test_a_bit_that_has_changed_is_noticed(tmp_path):
    path = tmp_path/'a.pt'
    write_checkpoint(path, dict(identity={}, weights=torch.arange(4000.)))
    whole = path.read_bytes()
    at = whole.index(torch.arange(100., 110.).numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    with pytest.raises(NoisynbError, match='no readable checkpoint .*have changed'): read_checkpoint(path)
    path.write_bytes(whole)
    assert (read_checkpoint(path)['weights'] == torch.arange(4000.)).all()

def test_no_checkpoint_is_no_error(tmp_path): assert read_checkpoint(tmp_path/'none.pt') is None

def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    write_checkpoint(tmp_path/'a.pt', dict(identity={'seed': '0', 'data': 'x'}))
    with pytest.raises(NoisynbError, match=r'data was x and is y \(seed differ'): read_checkpoint(tmp_path/'a.pt', {'seed': '1', 'data': 'y'})

def test_an_error_while_writing_leaves_the_old_one(tmp_path, monkeypatch):
    write_checkpoint(tmp_path/'a.pt', dict(identity={}, n=1))
    def fail(content, path):
        Path(path).write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(NoisynbError, match='No space left'): write_checkpoint(tmp_path/'a.pt', dict(identity={}, n=2))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path/'a.pt')['n'] == 1 and [p.name for p in tmp_path.iterdir()] == ['a.pt']


# --- the loop ---

class Clock:
    def __init__(self): self.now = 0.
    def perf_counter(self): return self.now

@pytest.fixture
def clock(monkeypatch):
    c = Clock()
    monkeypatch.setattr(training, 'time', c)
    return c

def test_progress_without_a_budget_is_the_share_of_epochs():
    spans = []
    history = train(State(), lambda epoch, rate: spans.append((epoch, rate.start, rate.end, rate.epochs)) or dict(loss=1., images=10), Schedule(1., 'linear'), 4)
    assert spans == [(0, 0, .25, 4), (1, .25, .5, 4), (2, .5, .75, 4), (3, .75, 1, 4)]
    assert [r['epoch'] for r in history] == [1, 2, 3, 4] and [r['learning_rate'] for r in history] == [1, .75, .5, .25]
    assert list(history[0]) == ['epoch', 'loss', 'learning_rate', 'seconds', 'images_per_second']

def test_a_budget_sets_the_number_of_epochs(clock):
    ends = []
    def epoch(e, rate):
        clock.now += 6
        ends.append(rate.end)
        return dict(loss=1., images=12)
    history = train(State(), epoch, Schedule(1.), 1000, minutes=1)
    assert len(history) == 10 and ends[-1] == pytest.approx(1) and ends[0] == .001 and np.allclose(np.diff(ends), (1 - .001)/9)
    assert history[3]['seconds'] == 6 and history[3]['images_per_second'] == 2 and clock.now == 60

def test_a_budget_that_is_ample_changes_nothing(clock):
    ends = []
    def epoch(e, rate):
        clock.now += 1
        ends.append(rate.end)
        return dict(loss=1.)
    assert len(train(State(), epoch, Schedule(1.), 5, minutes=9)) == 5 and ends == pytest.approx([.2, .4, .6, .8, 1])

@quick
@given(st.lists(st.floats(.5, 30), min_size=80, max_size=80), st.floats(.05, 2))
def test_a_budget_is_kept_within_an_epoch(lengths, minutes):
    with pytest.MonkeyPatch.context() as patch:
        clock, ends = Clock(), []
        patch.setattr(training, 'time', clock)
        def epoch(e, rate):
            clock.now += lengths[e]
            ends.append(rate.end)
            return dict(loss=1.)
        history = train(State(), epoch, Schedule(1.), 80, minutes=minutes)
    assert clock.now - lengths[len(history) - 1] <= 60*minutes or len(history) == 1, 'the last epoch began within the budget'
    assert ends == sorted(ends) and ends[-1] <= 1 + 1e-9

def test_the_budget_counts_what_was_spent_before_a_stop(clock, tmp_path):
    def epoch(e, rate):
        clock.now += 6
        return dict(loss=1.)
    def stop():
        if clock.now > 30: raise KeyboardInterrupt
        return {}
    with pytest.raises(KeyboardInterrupt): train(State(), epoch, Schedule(1.), 1000, 1, tmp_path/'a.pt', watch=stop)
    clock.now = 5000.
    assert len(train(State(), epoch, Schedule(1.), 1000, 1, tmp_path/'a.pt')) == 10

def test_a_spent_budget_stays_spent(clock, tmp_path, monkeypatch):
    def epoch(e, rate):
        clock.now += 6
        return dict(loss=1.)
    def slow(*a):
        clock.now += 4 # the run stops for the time that writing took, which a checkpoint can't know of
        write_checkpoint(*a)
    monkeypatch.setattr(training, 'write_checkpoint', slow)
    first = train(State(), epoch, Schedule(1.), 1000, .15, tmp_path/'a.pt')
    assert len(first) == 1 and train(State(), epoch, Schedule(1.), 1000, .15, tmp_path/'a.pt') == first
    assert len(train(State(), epoch, Schedule(1.), 1000, .4, tmp_path/'a.pt')) == 3

def test_watch_joins_the_row_and_costs_no_training_time(clock):
    def watch():
        clock.now += 100
        return dict(test_accuracy=.5)
    assert train(State(), lambda e, r: dict(loss=1.), Schedule(1.), 1, watch=watch)[0] == dict(epoch=1, loss=1., learning_rate=1., seconds=0., test_accuracy=.5)

@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_divergence_is_told(loss):
    with pytest.raises(NoisynbError, match='epoch 1 is (nan|inf).*smaller learning_rate'): train(State(), lambda e, r: dict(loss=loss), Schedule(1.), 3)

def test_an_interrupt_says_how_to_go_on(tmp_path):
    def epoch(e, rate):
        if e == 2: raise KeyboardInterrupt
        return dict(loss=1.)
    with pytest.raises(KeyboardInterrupt) as told: train(State(), epoch, Schedule(1.), 5)
    assert 'Stopped in epoch 3' in told.value.__notes__[0] and 'give checkpoint=path' in told.value.__notes__[0]
    with pytest.raises(KeyboardInterrupt) as told: train(State(), epoch, Schedule(1.), 5, checkpoint=tmp_path/'a.pt')
    assert 'goes on from there' in told.value.__notes__[0]

def test_a_finished_run_is_not_run_again(tmp_path):
    count = []
    for _ in range(2): history = train(State(), lambda e, r: count.append(e) or dict(loss=1.), Schedule(1.), 3, checkpoint=tmp_path/'a.pt')
    assert count == [0, 1, 2] and len(history) == 3

def test_a_finished_run_is_not_made_longer(tmp_path):
    path, epoch = tmp_path/'a.pt', lambda e, rate: dict(loss=1.)
    train(State(), epoch, Schedule(1.), 4, checkpoint=path)
    with pytest.raises(NoisynbError, match='holds 4 epochs of a shorter run'): train(State(), epoch, Schedule(1.), 8, checkpoint=path)

def test_writing_takes_no_more_than_a_tenth_of_the_time(clock, tmp_path, monkeypatch):
    written = []
    def write(path, content):
        clock.now += 3
        written.append(len(content['history']))
    monkeypatch.setattr(training, 'write_checkpoint', write)
    def epoch(e, rate):
        clock.now += 1
        return dict(loss=1.)
    train(State(), epoch, Schedule(1.), 100, checkpoint=tmp_path/'a.pt')
    assert written[0] == 1 and written[-1] == 100 and 3 <= len(written) <= 6

def test_the_global_generators_and_threads_are_left_alone():
    torch.manual_seed(5); np.random.seed(5)
    before, threads = (torch.get_rng_state(), np.random.get_state()[1].copy()), torch.get_num_threads()
    used()
    with pytest.raises(ZeroDivisionError), processor_threads(3): 1/0
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all() and torch.get_num_threads() == threads


# --- kill -9 ---

def test_killed_at_any_moment_and_resumed_gives_the_same_bits(tmp_path):
    "One process imports, forks a child that is killed up to three times before it may end, and compares it with a child that is left alone"
    program = textwrap.dedent('''
        import os, random, signal, time, warnings
        import numpy as np, torch
        from noisynb.methods.baselines import CoTeaching, ELR
        warnings.simplefilter('ignore')
        torch.set_num_threads(1)
        rng = np.random.default_rng(0)
        X, y = rng.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8), rng.integers(0, 4, 64)
        X[np.arange(64), 2*y] = 255
        def child(cls, path, end):
            pid = os.fork()
            if pid: return pid
            model = cls(epochs=16, batch_size=32, checkpoint=path, verbose=False).fit(X, y)
            torch.save([[{k: v for k, v in r.items() if 'second' not in k} for r in model.history_], model.label_quality_.tolist(),
                        {f'{i}{k}': torch.from_numpy(v.copy()) for i, w in model.weights_.items() for k, v in w.items()},
                        sum(r['seconds'] for r in model.history_)], end)
            os._exit(0)
        def progressed(path, pid, start):
            "Wait until the child has come further; False if it has ended"
            while not os.path.exists(path) or os.stat(path).st_mtime_ns == start:
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT): return False
                time.sleep(.001)
            return True
        for cls, kills in (ELR, 1), (CoTeaching, 3):
            os.waitpid(child(cls, None, 'straight'), 0)
            h, q, w, seconds = torch.load('straight', weights_only=True)
            came_to = []
            while True:
                start = os.stat('run.pt').st_mtime_ns if os.path.exists('run.pt') else 0
                pid = child(cls, 'run.pt', 'resumed')
                if len(came_to) < kills and progressed('run.pt', pid, start):
                    time.sleep(random.uniform(0, seconds/8))
                    os.kill(pid, signal.SIGKILL)
                if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]): break
                came_to.append(torch.load('run.pt', weights_only=True)['history'][-1]['epoch'])
            h2, q2, w2, _ = torch.load('resumed', weights_only=True)
            assert came_to and 0 < came_to[0] < 16 and came_to == sorted(set(came_to)) and len(h) == 16, came_to
            assert h == h2 and q == q2
            assert w.keys() == w2.keys() and all(torch.equal(w[k], w2[k]) for k in w)
            for f in 'straight', 'resumed', 'run.pt': os.remove(f)
            print(cls.__name__, came_to)
        print('same bits')
    ''')
    done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.stdout.endswith('same bits\n'), done.stdout + done.stderr
    print(done.stdout)

@pytest.mark.parametrize('change', [lambda c: {'format': c['format']}, lambda c: c | {'identity': []}, lambda c: {k: v for k, v in c.items() if k != 'state'}, lambda c: c | {'state': []},
    lambda c: c | {'state': {**c['state'], 'networks': [{}]}}, lambda c: {k: v for k, v in c.items() if k != 'history'}])
def test_a_checkpoint_that_is_not_whole_is_named(tmp_path, change):
    path = tmp_path/'a.pt'
    state = lambda: State(networks=[torch.nn.Linear(2, 2)], start=None)
    go = lambda: train(state(), lambda epoch, rate: dict(loss=0.), Schedule(.1), 1, checkpoint=str(path), verbose=False)
    go()
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(NoisynbError, match='a.pt is (not a whole|no|not a) checkpoint|the state has'): go()

def test_training_needs_no_ipython():
    "Methods on images train where a terminal is all there is"
    code = '''import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('IPython', 'papermill', 'nbformat', 'matplotlib'): raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Gone())
import numpy as np
from noisynb.methods import make
X, y = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 1), dtype=np.uint8), np.arange(40) % 2
print(len(make('ce', epochs=2).fit(X, y).history_))'''
    import subprocess, sys
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '2'
