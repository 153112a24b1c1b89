//! Proof of the storage seam: parts that no user has yet, and one state machine over all of them.
//!
//! Flat and Pages (a list per block of time), Append and Consolidate (search, then merge or replace), eviction, fork,
//! reorder, labels, snapshots and copies go through random histories beside plain vectors; every read must agree after every
//! step. Pages and Consolidate become public parts in work of their own; here they show that the edits suffice.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod agree;
mod consolidate;
mod machine;
mod pages;
mod plain;
mod proofs;
