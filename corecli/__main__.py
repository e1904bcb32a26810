"""`python -m corecli`: what worker processes run."""

from corecli.cli.app import main

main()
