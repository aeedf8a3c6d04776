//! Where member clusters' objects come from.
