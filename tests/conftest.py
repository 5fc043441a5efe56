"Where a shell started the tests in the background it had Ctrl-C ignored, and so would they and what they start"

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
