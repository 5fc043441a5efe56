"`python -m noisynb`: the command, by the Python that one names"
from .cli import main

if __name__ == '__main__': raise SystemExit(main())
