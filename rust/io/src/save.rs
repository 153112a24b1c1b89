//! Versions of banks to a folder.

use std::io::Write;
use std::path::Path;

use mnemex_core::Snapshot;
use mnemex_core::work::Work;
use serde_json::value::RawValue;

use crate::encode::{stored_rows, write_rows};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::manifest::{self, BankEntry, Codecs, ConfigEntry, FileEntry, Kind, Manifest, RowEntry};
use crate::pages::PagedEntry;
use crate::publish::{Draft, bank_name};
use crate::table::{self, schema_or_default};

/// What to save.
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    /// One bank, or a memory of any number.
    pub kind: Kind,
    /// The versions to save, in the order in which they will be opened.
    pub banks: &'a [Snapshot],
    /// Any JSON; it comes back as it is.
    pub metadata: &'a str,
}

/// Makes the folder `path`, whole or not at all.
///
/// # Errors
/// [`Error::Exists`] where something is there already: unless `overwrite`, and then unless it is a save itself.
/// [`Error::Os`] where the system refuses. [`Error::Core`] where the metadata is not JSON, the kind does not go with the
/// number of banks, or the caller interrupts. Nothing was changed then, and nothing is left behind.
pub fn save(path: &Path, contents: &Contents, overwrite: bool, work: &Work) -> Result<()> {
    let metadata = RawValue::from_string(contents.metadata.to_owned())
        .map_err(|error| Error::argument(format!("metadata are not JSON: {error}")))?;
    if !contents.kind.holds(contents.banks.len()) {
        return Err(Error::argument(format!("a bank is one bank, and {} were given", contents.banks.len())));
    }
    let interrupt = Interrupt::new(work);
    let draft = Draft::start(path, overwrite)?;
    let banks = contents.banks.iter().enumerate();
    let banks = banks.map(|(at, bank)| save_bank(&draft, bank_name(at), bank, &interrupt)).collect::<Result<_>>()?;
    let manifest = Manifest::new(contents.kind, banks, metadata)
        .seal()
        .map_err(|error| Error::argument(format!("the manifest cannot be written: {error}")))?;
    draft.file(manifest::NAME, |out, failed| out.write_all(&manifest).map_err(failed))?;
    draft.publish()
}

fn save_bank(draft: &Draft, name: String, bank: &Snapshot, interrupt: &Interrupt) -> Result<BankEntry> {
    let schema = schema_or_default(bank.config(), bank.version().schema);
    let (stored, rows) = stored_rows(bank);
    let tracks = bank.config().tracks();
    let (all_finite, bytes, sha256) = draft.file(&name, |out, failed| {
        write_rows(out, (&schema, &bank.config().columns), &stored, tracks, interrupt, failed)
    })?;
    let entry = |row: &std::sync::Arc<mnemex_core::version::Row>| RowEntry {
        next_id: row.next_id(),
        has_labels: row.has_labels(),
        has_positions: row.has_positions(),
        counts: row.lanes().iter().map(|lane| lane.len() as u64).collect(),
        paged: row.paged().map(PagedEntry::of),
    };
    Ok(BankEntry {
        config: ConfigEntry::of(bank.config()),
        codecs: bank.version().schema.as_ref().map(Codecs::of),
        rows,
        stored: stored.into_iter().map(entry).collect(),
        number: tracks.then_some(bank.version().number.min(table::MAX_NUMBER)),
        file: FileEntry { name, bytes, sha256, all_finite },
    })
}
