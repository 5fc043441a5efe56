"What holds for all tests"
import importlib, os, signal

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)   # where a shell started them in the background it had Ctrl-C ignored, and so would they and what they start


if os.environ.get('NOISYNB_EXTRAS'):   # where all extras are installed, a test that skips for want of one has failed
    pytest.importorskip = lambda name, *rest, **more: importlib.import_module(name)


@pytest.fixture(autouse=True, scope='session')
def own_cache(tmp_path_factory):
    "A cache folder of their own: what earlier code has kept cannot hide what is broken"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('NOISYNB_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield
