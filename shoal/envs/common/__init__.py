"""What suites of environments are built from; not a suite."""
