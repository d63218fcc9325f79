"""``python -m rayrec``, as jobs on a cluster run it."""

from rayrec.cli import main

if __name__ == "__main__":
    main()
