//! The agent: what `kanmon run` does from start to end.
