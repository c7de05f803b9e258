"""`python -m llamaprobe` is the program."""

from ._commands import main

main()
