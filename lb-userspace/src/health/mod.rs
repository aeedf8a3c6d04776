//! Which backends are usable.
