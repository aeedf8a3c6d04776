//! Plans, applied step by step to a simulated machine.
