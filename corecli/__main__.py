"""`python -m corecli`: what worker processes run."""

from corecli.cli import main

main()
