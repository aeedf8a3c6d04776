//! The kernel side: loading, pinning, attaching, and the maps.
