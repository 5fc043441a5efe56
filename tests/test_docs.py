"Docstrings as `help` shows them: complete, in step with signatures and fitted attributes, and their examples run"
import doctest, importlib.util, inspect, re, warnings

import numpy as np
import pytest

from noisynb import audit, datasets, embeddings, experiment, metrics, noise, record, sweeps
from noisynb.core import allowed, doc_entries, doc_sections, documented, option
from noisynb.embeddings import extract
from noisynb.methods import load, make, method_class, methods
from noisynb.methods.base import NoisyLabelClassifier
from noisynb.methods.echoalign.controlnet import ControlNet
from noisynb.methods.echoalign.echomod import Diffusion, EchoMod
from noisynb.methods.echoalign.echoselect import EchoSelect
from noisynb.methods.images import ImageMethod
from noisynb.methods.wann import WANN, FilteredLDA
from noisynb.neighbors import NeighborGraph

registered = {name: method_class(name) for name in methods}
estimators = {c.__name__: c for c in [*registered.values(), FilteredLDA, NeighborGraph, EchoSelect, Diffusion, ControlNet, ImageMethod]}
classes = estimators | {c.__name__: c for c in (NoisyLabelClassifier, EchoMod, experiment.Config, audit.AuditConfig)}
functions = [datasets.load, datasets.available, noise.corrupt, noise.subsample, noise.long_tail, noise.transition, embeddings.embed,
    embeddings.extract, embeddings.embed_images, make, method_class, load, metrics.label_errors, metrics.classification, metrics.correction,
    experiment.run, *(getattr(experiment.Config, m) for m in ('check', 'estimator', 'run', 'words', 'command', 'place', 'of')), audit.audit, audit.Audit.write,
    sweeps.sweep, sweeps.survey, record.read_result, NoisyLabelClassifier.suspects, NoisyLabelClassifier.save,
    WANN.explain, WANN.relabel, WANN.add, WANN.remove]
name_of = lambda f: f'{f.__module__.removeprefix("noisynb.")}.{f.__qualname__}'
sections = 'Parameters Attributes Returns Raises Notes References Examples'.split()


def parameters(f): return {n: p for n, p in inspect.signature(f).parameters.items() if n not in ('self', 'cls')}

def check_form(thing):
    parts = doc_sections(thing.__doc__)
    assert parts[''] and not parts[''].split('\n')[0].endswith('.'), 'the first line says what it does, without a full stop'
    assert [s for s in parts if s] == [s for s in sections if s in parts], 'sections in the order of numpydoc'
    assert max(map(len, inspect.cleandoc(thing.__doc__).split('\n'))) <= 100
    for s in ('Parameters', 'Attributes'):
        for name, (kind, said) in doc_entries(parts.get(s, '')).items(): assert said and (kind or name[0] == '*'), f'{name}: {kind}: {said}'
    return parts

def run_examples(thing, name):
    "The examples of a docstring, in a namespace that has what the module of the thing has"
    test = doctest.DocTestParser().get_doctest(inspect.cleandoc(thing.__doc__), dict(vars(inspect.getmodule(thing))), name, None, 0)
    assert test.examples
    said = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False).run(test, out=said.append)
    assert not said, ''.join(said)

@pytest.mark.parametrize('name', classes)
def test_a_class_says_what_it_takes(name):
    kind = classes[name]
    parts, given = check_form(kind), parameters(kind)
    told = doc_entries(parts.get('Parameters', ''))
    assert list(told) == list(given)
    for n, p in given.items(): assert told[n][0].endswith(f'default {p.default!r}'), (n, told[n])
    if hasattr(kind, 'get_params') and not inspect.isabstract(kind): assert set(told) == set(kind().get_params(deep=False))
    if name in estimators: assert {'Parameters', 'Attributes', 'Raises', 'Examples'} <= set(parts)
    if kind in registered.values() and name not in ('KNN', 'Corrected'): assert 'References' in parts # the others are of this library

@pytest.mark.parametrize('f', functions, ids=name_of)
def test_a_function_says_what_it_takes(f):
    parts, given = check_form(f), parameters(f)
    told = doc_entries(parts.get('Parameters', ''))
    stars = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'} if (p := inspect.Parameter) else {}
    assert [n.lstrip('*') for n in told] == list(given) and [n for n in told if n[0] == '*'] == [stars[p.kind] + n for n, p in given.items() if p.kind in stars]
    for n, p in given.items():
        if p.default is not p.empty: assert told[n][0].endswith(f'default {getattr(p.default, "__name__", repr(p.default))}'), (n, told[n], p.default)
    assert {'Returns', 'Examples'} <= set(parts)
    if f.__qualname__ not in ('Config.words', 'Config.command', 'Config.place'): assert 'Raises' in parts

@pytest.mark.parametrize('thing', [*classes.values(), *functions], ids=name_of)
def test_examples_run(thing, monkeypatch, tmp_path):
    monkeypatch.setenv('NOISYNB_CACHE', str(tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)
    if 'Examples' in doc_sections(thing.__doc__): run_examples(thing, name_of(thing))
    else: assert thing in (EchoMod,)


# fitted attributes

@pytest.fixture(scope='session')
def digits():
    part = datasets.load('digits').train
    part = part.take(np.random.default_rng(0).permutation(len(part))[:60])
    return part.images, noise.corrupt(part, 'symmetric', .3, seed=0, n_classes=10).given

def check_attributes(model, **sizes):
    "What is fitted is told, with its shape; what is told is there, unless it starts with Only or Missing"
    told = doc_entries(doc_sections(type(model).__doc__)['Attributes'])
    there = {n: v for n, v in vars(model).items() if n.endswith('_') and n[0] != '_'}
    assert set(there) <= set(told), set(there) - set(told)
    assert {n for n, (_, said) in told.items() if not said.startswith('Only ')} <= set(there), set(told) - set(there)
    for n, value in there.items():
        shape = re.search(r'ndarray of shape \(([^)]*)\)', told[n][0])
        assert bool(shape) or not isinstance(value, np.ndarray), (n, told[n])
        if not isinstance(value, np.ndarray): continue
        names = [s.strip() for s in shape[1].split(',') if s.strip()]
        assert len(names) == value.ndim, (n, names, value.shape)
        for name, length in zip(names, value.shape): assert int(name if name.isdigit() else sizes.setdefault(name, length)) == length, (n, names, value.shape)

more = dict(echoalign=[dict(echo_epochs=1), dict(echomod='identity', per_class=True)], wann=[{}, dict(standardize=True), dict(reduce='pca', n_components=5)],
    coteaching=[dict(forget_rate=.2)], dividemix=[dict(warmup=1)], promix=[dict(warmup=1, rho=.5)], consensus=[dict(members=('knn', 'wann'))])

@pytest.mark.parametrize('method', methods)
def test_fitted_attributes_are_told(method, digits):
    if method == 'cleanlab' and not importlib.util.find_spec('cleanlab'): pytest.skip('needs cleanlab')
    X, given = digits
    n, images = len(X), method_class(method).input == 'images'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for options in more.get(method, [{}]):
            model = make(method, **(dict(epochs=2, verbose=False) if images else {}) | options).fit(X if images else extract(X, 'raw'), given)
            check_attributes(model, n_samples=n, n_classes=10, n_features=64, n_channels=1)

def test_fitted_attributes_of_parts_are_told(digits):
    X, given = digits
    Z, sizes = extract(X, 'raw'), dict(n_samples=60, n_classes=10, n_features=64)
    check_attributes(NeighborGraph(5).fit(Z), n_neighbors=5, **sizes)
    check_attributes(FilteredLDA(3, k_min=3, k_max=7).fit(Z, given), n_components=3, **sizes)
    check_attributes(EchoSelect(per_class=True).fit(Z, Z[::-1], given), **sizes)
    check_attributes(EchoSelect().fit(Z, Z[::-1]), **sizes)
    check_attributes(Diffusion(epochs=1, verbose=False).fit(X, given, 10))


# how docstrings are made

def test_a_docstring_is_completed_by_bases():
    class Base:
        """First

        Parameters
        ----------
        a : int
            What a is.
        gone : int
            Not taken by all.

        Attributes
        ----------
        a_ : int
            Fitted.
        """
        def __init__(self, a=1, gone=0): pass

    @documented
    class Kind(Base):
        """Second

        Parameters
        ----------
        b : str
            What b is,
            in two lines.

        Notes
        -----
        Of its own.
        """
        def __init__(self, b, a=2): pass

    @documented
    class Again(Kind): "Third"

    assert doc_entries(doc_sections(Kind.__doc__)['Parameters']) == dict(b=('str', 'What b is, in two lines.'), a=('int, default 2', 'What a is.'))
    assert list(doc_sections(Kind.__doc__)) == ['', 'Parameters', 'Attributes', 'Notes'] and 'a_ : int\n    Fitted.' in Kind.__doc__
    assert Again.__doc__.startswith('Third\n') and 'Notes' not in Again.__doc__ and doc_sections(Again.__doc__)['Parameters'] == doc_sections(Kind.__doc__)['Parameters']

@pytest.mark.parametrize('kind, asked, words', [(int, dict(low=1, whole=True), 'int, 1 or more'), (float | str, dict(free=('auto',), high=1), "float or 'auto', 0 to 1"),
    (str, dict(choices=('a', 'b')), "{'a', 'b'}"), (float | None, dict(above=True, free=(None,)), 'float, above 0'), (dict | None, {}, 'dict'), (bool | str, {}, 'bool or str')])
def test_values_in_words(kind, asked, words): assert allowed(kind, option(None, 'x', **asked).metadata['rule']) == words

def test_nothing_is_lost_without_docstrings():
    class Bare: pass
    assert documented(Bare) is Bare and Bare.__doc__ is None
