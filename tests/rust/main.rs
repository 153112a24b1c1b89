//! Tests that belong to no single crate, in one binary.
mod tidy;
