//! CPU arithmetic: quantised and float products, attention, norms and rotary positions, with runtime dispatch.
