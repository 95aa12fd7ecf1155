"""Network modules: what algorithms are built from."""
