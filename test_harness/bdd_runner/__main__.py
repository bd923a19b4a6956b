"""`python -m bdd_runner`: the same command where nothing is installed as a script."""

from bdd_runner.main import main

main()
