//! From desired state to ordered map writes.
