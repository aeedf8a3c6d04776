//! How much of a service's traffic each region gets.
