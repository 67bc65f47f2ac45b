//! Toy models, laws and tolerances for tests.
