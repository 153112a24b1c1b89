//! A bank's live entries as an Arrow file: lane after lane, ids ascending, each shared row once.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::{ArrayRef, Int32Array, Int64Array, RecordBatch};
use arrow_buffer::MutableBuffer;
use arrow_ipc::writer::FileWriter;
use arrow_schema::{ArrowError, SchemaRef};
use arrow_select::concat::concat;
use mnemex_core::Snapshot;
use mnemex_core::block::Schema;
use mnemex_core::cells::Declared;
use mnemex_core::lane::Lane;
use mnemex_core::list::Ref;
use mnemex_core::usage::Use;
use mnemex_core::version::Row;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::manifest::hex;
use crate::table;

/// Counts and hashes what passes through.
pub(crate) struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    pub(crate) fn new(inner: W) -> Self {
        Hashing { inner, hash: Sha256::new(), bytes: 0 }
    }

    /// What was written through, its length and its SHA-256.
    pub(crate) fn finish(self) -> (W, u64, String) {
        (self.inner, self.bytes, hex(&self.hash.finalize()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The different rows of a snapshot, and for each bank row which of them it is.
pub(crate) fn stored_rows(snapshot: &Snapshot) -> (Vec<&Arc<Row>>, Vec<u32>) {
    let mut stored = Vec::new();
    let mut known = HashMap::new();
    let rows = snapshot.version().rows.iter().map(|row| {
        *known.entry(Arc::as_ptr(row)).or_insert_with(|| {
            stored.push(row);
            stored.len() as u32 - 1
        })
    });
    let rows = rows.collect();
    (stored, rows)
}

/// Writes rows; whether all their numbers are finite. `failed` words what the operating system answers.
pub(crate) fn write_rows(
    out: &mut impl Write,
    (schema, own): (&Schema, &[Declared]),
    rows: &[&Arc<Row>],
    with_use: bool,
    interrupt: &Interrupt,
    failed: impl Fn(io::Error) -> Error,
) -> Result<bool> {
    let failed = |error| failed(io_error(error));
    let columns = if with_use { table::columns_with_use(schema, own) } else { table::columns(schema, own) };
    let mut writer = FileWriter::try_new(out, &columns).map_err(&failed)?;
    let mut all_finite = true;
    for (at, row) in rows.iter().enumerate() {
        for (head, lane) in row.lanes().iter().enumerate() {
            for entries in entries(lane).chunks(table::batch_rows(schema)) {
                interrupt.poll()?;
                let run = [(at as i32, &***row, entries.len())];
                let heads = Int32Array::from_value(head as i32, entries.len());
                let used = entries.iter().map(|(r, slot)| lane.used(r.id(*slot)));
                let used: Vec<Use> = if with_use { used.collect() } else { Vec::new() };
                let used = with_use.then_some(&*used);
                let (batch, finite) = batch(&columns, (schema, own), &run, heads, (entries, used)).map_err(&failed)?;
                all_finite &= finite;
                writer.write(&batch).map_err(&failed)?;
            }
        }
    }
    writer.finish().map_err(&failed)?;
    Ok(all_finite)
}

/// The operating system's answer, as far as it was one.
fn io_error(error: ArrowError) -> io::Error {
    match error {
        ArrowError::IoError(_, error) => error,
        other => io::Error::other(other),
    }
}

/// The live entries of a lane, ids ascending.
fn entries(lane: &Lane) -> Vec<(&Ref, usize)> {
    let mut entries = Vec::with_capacity(lane.len());
    for r in lane.lists().iter().flat_map(|list| list.refs()) {
        entries.extend((0..r.block.len()).filter(|slot| r.live >> slot & 1 == 1).map(|slot| (r, slot)));
    }
    if lane.lists().len() > 1 {
        entries.sort_unstable_by_key(|(r, slot)| r.id(*slot));
    }
    entries
}

/// A record batch of entries, with the head of each and, if wanted, how it was used; and whether all its numbers are
/// finite. `runs` are the rows that they are of, one after the other: number, row, and how many entries.
pub(crate) fn batch(
    columns: &SchemaRef,
    (schema, own): (&Schema, &[Declared]),
    runs: &[(i32, &Row, usize)],
    heads: Int32Array,
    (entries, used): (&[(&Ref, usize)], Option<&[Use]>),
) -> Result<(RecordBatch, bool), ArrowError> {
    let ids: Vec<i64> = entries.iter().map(|(r, slot)| r.id(*slot)).collect();
    let mut rest = ids.as_slice();
    let mut of_rows = Vec::with_capacity(runs.len());
    let (mut rows, mut labels, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    for &(at, row, n) in runs {
        let (ids, later) = rest.split_at(n);
        rows.resize(rows.len() + n, at);
        labels.extend(ids.iter().map(|&id| row.label(id)));
        positions.extend(ids.iter().map(|&id| row.position(id)));
        of_rows.push((row, ids));
        rest = later;
    }
    let mut arrays: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(rows)),
        Arc::new(heads),
        Arc::new(Int64Array::from(ids.clone())),
        Arc::new(Int64Array::from(labels)),
        Arc::new(Int64Array::from(positions)),
    ];
    let mut finite = true;
    let layouts = [Some((schema.key, false)), schema.value.map(|layout| (layout, true))];
    for (layout, is_value) in layouts.into_iter().flatten() {
        let n = layout.vector_bytes();
        let mut bytes = MutableBuffer::with_capacity(n * entries.len());
        for (r, slot) in entries {
            let stored = if is_value { r.block.value(schema, *slot) } else { Some(r.block.key(schema, *slot)) };
            let at = bytes.len();
            bytes.resize(at + n, 0);
            stored.into_iter().for_each(|vector| vector.copy_to(&mut bytes[at..]));
        }
        finite &= table::all_finite(layout.codec, &bytes);
        arrays.push(table::vectors(&layout, bytes.into())?);
    }
    for at in 0..own.len() {
        let parts: Vec<ArrayRef> = of_rows.iter().map(|(row, ids)| table::array(row.cells(own, at, ids))).collect();
        arrays.push(concat(&parts.iter().map(AsRef::as_ref).collect::<Vec<_>>())?);
    }
    arrays.extend(used.into_iter().flat_map(table::use_arrays));
    Ok((RecordBatch::try_new(Arc::clone(columns), arrays)?, finite))
}
