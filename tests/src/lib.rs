//! Starts real programs on free ports for the tests in `tests/`.
