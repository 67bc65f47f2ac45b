//! Norms, rotary positions, activations and reductions over rows.
