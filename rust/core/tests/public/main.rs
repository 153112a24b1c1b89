//! What a bank promises, tried through its public calls alone: exact on any data, the same bits on any number of
//! threads and in any blocks, unharmed by interruption and by wrong calls.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod attention;
mod data;
mod exactness;
mod filters;
mod interruption;
mod lanes;
mod nonfinite;
mod product;
mod refusals;
mod threads;
mod upkeep;
