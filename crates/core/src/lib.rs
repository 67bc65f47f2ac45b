//! Tokens, passes, cache table, plans, role traits and events: the vocabulary every other crate speaks.
