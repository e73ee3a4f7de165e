"""`python -m textcraftor`, as launchers call it."""

from textcraftor.cli import main

main()
