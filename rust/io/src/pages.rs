//! How pages stand in a manifest: the policy that makes them, and what the next token of a row has to know.

use mnemex_core::config::{Boundaries, Paging, Representatives};
use mnemex_core::write::pages::Paged;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(remote = "Paging", deny_unknown_fields)]
pub(crate) struct PagingEntry {
    #[serde(with = "BoundariesEntry")]
    boundaries: Boundaries,
    shortest: u64,
    longest: u64,
    #[serde(with = "RepresentativesEntry")]
    representatives: Representatives,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Boundaries", rename_all = "lowercase", deny_unknown_fields)]
enum BoundariesEntry {
    Size,
    Column,
    Surprise { gamma: f64, window: u64 },
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Representatives", rename_all = "lowercase")]
enum RepresentativesEntry {
    Mean,
    Last,
    Best(u64),
}

/// What the next token of a row has to know.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PagedEntry {
    page: Option<i64>,
    /// The surprises of the last tokens as their bits, which no way of writing numbers rounds.
    recent: Vec<u32>,
}

impl PagedEntry {
    pub(crate) fn of(paged: &Paged) -> PagedEntry {
        PagedEntry { page: paged.page, recent: paged.recent.iter().map(|x| x.to_bits()).collect() }
    }

    pub(crate) fn paged(&self) -> Paged {
        Paged { page: self.page, recent: self.recent.iter().map(|&bits| f32::from_bits(bits)).collect() }
    }
}
