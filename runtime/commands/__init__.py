"""The commands of the command line, one file for each noun; `cli.py` puts them together."""
