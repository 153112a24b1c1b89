//! A folder to banks, nothing in it believed.

use std::path::Path;
use std::sync::Arc;

use mnemex_core::work::Work;
use mnemex_core::{Bank, Config};

use crate::decode::read_rows;
use crate::error::Result;
use crate::folder::{DataFile, Folder};
use crate::interrupt::Interrupt;
use crate::manifest::{self, BankEntry, Kind, Manifest};
use crate::publish::bank_name;
use crate::table::{self, schema_or_default};

/// What was saved.
pub struct Opened {
    /// One bank, or a memory.
    pub kind: Kind,
    /// The JSON that was saved along.
    pub metadata: String,
    /// Banks that answer with the bits of those that were saved.
    pub banks: Vec<Bank>,
}

/// Reads a save.
///
/// # Errors
/// [`Error::NotFound`](crate::Error::NotFound) where nothing is, [`Error::Format`](crate::Error::Format) where anything
/// is not as it was saved, [`Error::Os`](crate::Error::Os) where the system refuses,
/// [`Error::Core`](crate::Error::Core) where memory is short or the caller interrupts.
pub fn open(path: &Path, work: &Work) -> Result<Opened> {
    let interrupt = Interrupt::new(work);
    let folder = Folder::open(path)?;
    let mut file = folder.file(manifest::NAME)?;
    let bytes = if file.bytes > manifest::MAX_BYTES { None } else { file.read(0, file.bytes)? };
    let bytes = bytes.ok_or_else(|| file.fail("is too long to be a manifest"))?;
    let manifest = Manifest::unseal(&bytes).map_err(|message| file.fail(message))?;
    if !manifest.kind.holds(manifest.banks.len()) {
        return Err(file.fail(format!("has {} banks where one is due", manifest.banks.len())));
    }
    let banks = manifest.banks.iter().enumerate();
    let banks = banks.map(|(at, bank)| open_bank(&folder, &file, at, bank, &interrupt)).collect::<Result<_>>()?;
    Ok(Opened { kind: manifest.kind, metadata: manifest.metadata.get().to_owned(), banks })
}

fn open_bank(
    folder: &Folder,
    manifest: &DataFile,
    at: usize,
    entry: &BankEntry,
    interrupt: &Interrupt,
) -> Result<Bank> {
    let config = check_entry(at, entry).map_err(|message| manifest.fail(format!("bank {at}: {message}")))?;
    let schema = entry.codecs.as_ref().map(|codecs| codecs.schema(&config)).transpose();
    let schema = schema.map_err(|message| manifest.fail(format!("bank {at}: {message}")))?;
    let mut file = folder.file(&entry.file.name)?;
    if file.bytes != entry.file.bytes {
        return Err(file.fail(format!(
            "has {} bytes, and the manifest says {}: truncated, or of another save; restore it from a copy",
            file.bytes, entry.file.bytes
        )));
    }
    if file.sha256(interrupt)? != entry.file.sha256 {
        return Err(file.fail("was altered, or is of another save: its checksum does not hold; restore it from a copy"));
    }
    let stored = read_rows(&mut file, (&schema_or_default(&config, schema), &config.columns), entry, interrupt)?;
    let rows = entry.rows.iter().map(|&row| Arc::clone(&stored[row as usize])).collect();
    Ok(Bank::from_rows(config, rows, schema, entry.number.unwrap_or(0))?)
}

/// What can be said against an entry without its file.
fn check_entry(at: usize, entry: &BankEntry) -> Result<Config, String> {
    let config = entry.config.config()?;
    config.check(entry.rows.len().max(entry.stored.len())).map_err(|error| error.message)?;
    if entry.number.is_some() != config.tracks() || entry.number.is_some_and(|number| number > table::MAX_NUMBER) {
        return Err("its policies and the number of its version do not go together".into());
    }
    if entry.file.name != bank_name(at) {
        return Err(format!("its file is {:?} and must be {:?}", entry.file.name, bank_name(at)));
    }
    if entry.rows.iter().any(|&row| row as usize >= entry.stored.len()) {
        return Err("a row is said to be stored that is not".into());
    }
    let bytes = if entry.codecs.is_some() { entry.file.bytes } else { 0 };
    let most = |head: usize| config.capacity.as_ref().map_or(u64::MAX, |capacity| capacity.of(head)).min(bytes);
    for row in &entry.stored {
        if row.counts.len() != config.heads {
            return Err(format!("a row has {} lanes, and the bank {} heads", row.counts.len(), config.heads));
        }
        if let Some((head, count)) = row.counts.iter().enumerate().find(|&(head, &count)| count > most(head)) {
            return Err(format!("a lane has {count} entries where at most {} can be", most(head)));
        }
    }
    Ok(config)
}
