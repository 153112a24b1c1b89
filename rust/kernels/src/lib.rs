//! "Here are slices, give me numbers, fast": the arithmetic of mnemex, and nothing else.
//!
//! No lane, id or policy is known here, and nothing is allocated but the list of passing scores and a query in whole
//! numbers.
//! Each operation is written once ([`tile`], [`select`], [`single`], [`codes`], [`many`], `few`, `weigh`, [`softmax`],
//! [`canonical`]) over the small [`lanes::Lanes`] trait, and instantiated once per instruction set by the [`table::kernel_table`] macro: one file per set holds its vectors and
//! its table. `Kernels::best()` chooses at run time; tests walk `Isa::available()`, so no path can be fast and untested.
//!
//! What the first passes compute in float32 is a filter with a proven bound ([`bound`]); what a caller sees is
//! [`canonical`]: float64 in one fixed order, the same bits everywhere.

pub mod isa;
pub mod table;

pub mod bound;
pub mod canonical;
pub mod codes;
pub mod convert;
pub mod halves;
pub mod kth;
pub mod many;
pub mod prefetch;
pub mod product;
pub mod rounding;
pub mod select;
pub mod short;
pub mod single;
pub mod softmax;
pub mod tile;

mod few;
mod lanes;
mod portable;
mod weigh;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
#[cfg(target_arch = "x86_64")]
mod coding;
#[cfg(target_arch = "x86_64")]
mod halves_best;
#[cfg(target_arch = "x86_64")]
mod halves_coding;
#[cfg(target_arch = "x86_64")]
mod halves_vnni;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub use isa::{Isa, IsaError};
pub use table::Kernels;
pub use tile::{Keys, PANEL, Pass, Rule};
