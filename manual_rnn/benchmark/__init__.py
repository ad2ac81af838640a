r"""How fast, beside whom: `python -m manual_rnn.benchmark`."""
