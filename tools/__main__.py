"""`python -m ringmain.tools` is the `ringmain` command."""

from .cli import main

if __name__ == "__main__":
    main()
