//! Maglev rings.
