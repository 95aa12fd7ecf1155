"""Commands of `shoal` that have a file of their own: each reads its options and calls the library."""
