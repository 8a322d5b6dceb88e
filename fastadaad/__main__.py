"""`python -m fastadaad` is the command `fastadaad`."""

from fastadaad.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
