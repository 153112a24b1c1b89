//! An Arrow file to rows. Its checksum held; it may still have been made to harm, so every number is checked.

use std::iter::Peekable;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice::Iter;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Int32Type, Int64Type};
use arrow_ipc::convert::fb_to_schema;
use arrow_ipc::reader::{FileDecoder, read_footer_length};
use arrow_ipc::{Block, root_as_footer};
use arrow_schema::{ArrowError, SchemaRef};
use mnemex_core::block::Schema;
use mnemex_core::cells::Declared;
use mnemex_core::restore::{Entries, RowBuilder, Together};
use mnemex_core::version::Row;

use crate::error::{Error, Result};
use crate::folder::DataFile;
use crate::interrupt::Interrupt;
use crate::manifest::{BankEntry, RowEntry};
use crate::table;

/// Length and magic number at the end of a file.
const TRAILER_BYTES: usize = 10;

/// Reads the stored rows of a bank.
pub(crate) fn read_rows(
    file: &mut DataFile,
    (schema, own): (&Schema, &[Declared]),
    bank: &BankEntry,
    interrupt: &Interrupt,
) -> Result<Vec<Arc<Row>>> {
    let columns = match bank.number {
        Some(_) => table::columns_with_use(schema, own),
        None => table::columns(schema, own),
    };
    let (decoder, blocks) = read_footer(file, &columns)?;
    let all_finite = bank.file.all_finite;
    let counts = bank.stored.iter().flat_map(|row| &row.counts);
    let entries = counts.fold(0usize, |sum, &count| sum.saturating_add(usize::try_from(count).unwrap_or(usize::MAX)));
    let (blocks, together) = (blocks.iter().peekable(), Arc::new(Together::of(entries)));
    let number = bank.number;
    let mut reader = Reader { file, decoder, schema, own, number, all_finite, interrupt, blocks, together };
    let rows = bank.stored.iter().enumerate().map(|(at, row)| reader.row(at, row)).collect::<Result<Vec<_>>>()?;
    match reader.blocks.peek() {
        None => Ok(rows),
        Some(_) => Err(file.fail("holds more entries than the manifest says")),
    }
}

/// The answer of the Arrow reader, which returns an error, or panics, at what it does not like.
fn guarded<T>(file: &DataFile, read: impl FnOnce() -> Result<T, ArrowError>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => Err(file.fail(format!("is not an Arrow file of mnemex: {error}"))),
        Err(_) => Err(file.fail("is not an Arrow file of mnemex: it does not fit together")),
    }
}

/// Checks the types and lists the record batches.
fn read_footer(file: &mut DataFile, columns: &SchemaRef) -> Result<(FileDecoder, Vec<Block>)> {
    let short = |file: &DataFile| file.fail("is too short to be an Arrow file");
    let end = file.bytes.checked_sub(TRAILER_BYTES as u64).ok_or_else(|| short(file))?;
    let trailer = file.read(end, TRAILER_BYTES as u64)?.ok_or_else(|| short(file))?;
    let len = guarded(file, || {
        let trailer: [u8; TRAILER_BYTES] =
            trailer.as_slice().try_into().map_err(|_| ArrowError::IpcError("no trailer".into()))?;
        read_footer_length(trailer)
    })?;
    let start = end.checked_sub(len as u64).ok_or_else(|| short(file))?;
    let bytes = file.read(start, len as u64)?.ok_or_else(|| short(file))?;
    let (found, version, blocks) = guarded(file, || {
        let footer = root_as_footer(&bytes).map_err(|error| ArrowError::IpcError(error.to_string()))?;
        let schema = footer.schema().ok_or_else(|| ArrowError::IpcError("no schema".into()))?;
        if !schema.endianness().equals_to_target_endianness() {
            return Err(ArrowError::IpcError("the bytes of its numbers are in the order of another machine".into()));
        }
        let blocks: Vec<Block> = footer.recordBatches().iter().flatten().copied().collect();
        Ok((fb_to_schema(schema), footer.version(), blocks))
    })?;
    if found.fields() != columns.fields() {
        return Err(file.fail("does not have the columns that its manifest says"));
    }
    Ok((FileDecoder::new(Arc::clone(columns), version), blocks))
}

struct Reader<'a> {
    file: &'a mut DataFile,
    decoder: FileDecoder,
    schema: &'a Schema,
    own: &'a [Declared],
    /// Of the version, where the file says how entries were used.
    number: Option<u64>,
    all_finite: bool,
    interrupt: &'a Interrupt<'a>,
    blocks: Peekable<Iter<'a, Block>>,
    together: Arc<Together>,
}

impl Reader<'_> {
    fn row(&mut self, at: usize, row: &RowEntry) -> Result<Arc<Row>> {
        let refused = |file: &DataFile, error: mnemex_core::Error| match error.kind {
            mnemex_core::Kind::Resource => Error::Core(error),
            _ => file.fail(format!("row {at}: {error}")),
        };
        let schema = self.schema;
        let mut builder = RowBuilder::new(schema, row.counts.len(), row.next_id)
            .map_err(|error| refused(self.file, error))?
            .beside(&self.together);
        let mut numbers = Vec::new();
        for (head, &count) in row.counts.iter().enumerate() {
            let mut lane = Vec::new();
            let mut left = usize::try_from(count).map_err(|_| self.file.fail("holds more than memory can"))?;
            let expected = left;
            while left > 0 {
                let batch = self.batch()?;
                let n = batch.num_rows();
                let entries = self.entries(&batch, at, head)?;
                if n == 0 || n > left {
                    return Err(self.file.fail(format!("row {at}, head {head} does not have {count} entries")));
                }
                builder.append(head, expected, &entries).map_err(|error| refused(self.file, error))?;
                for (at, declared) in self.own.iter().enumerate() {
                    let array = batch.columns().get(table::first_own(schema) + at);
                    let cells = array.and_then(|array| table::cells(declared.dtype, array));
                    let cells = cells.ok_or_else(|| self.file.fail("holds nulls in a column"))?;
                    let column = builder.column(head, entries.ids, (self.own, at), cells.view());
                    column.map_err(|error| refused(self.file, error))?;
                }
                if let Some(number) = self.number {
                    let uses = table::uses(batch.columns(), table::first_own(schema) + self.own.len());
                    let uses = uses.ok_or_else(|| self.file.fail("holds no counts of use where some are due"))?;
                    let used = builder.used(head, entries.ids, &uses, number);
                    used.map_err(|error| refused(self.file, error))?;
                }
                let known = self.numbers(&batch, row, entries.ids, &mut lane);
                known.ok_or_else(|| self.file.fail(format!("row {at} has labels or positions that were not given")))?;
                left -= n;
            }
            numbers = join(numbers, lane).ok_or_else(|| {
                self.file.fail(format!("row {at} has different labels or positions of one id: heads must agree"))
            })?;
        }
        if row.has_labels {
            builder.labels(numbers.iter().map(|numbers| (numbers.id, numbers.label)));
        }
        if row.has_positions {
            builder.positions(numbers.iter().map(|numbers| (numbers.id, numbers.position)));
        }
        if let Some(paged) = &row.paged {
            builder.paged(paged.paged());
        }
        Ok(builder.finish())
    }

    /// The next record batch.
    fn batch(&mut self) -> Result<RecordBatch> {
        self.interrupt.poll()?;
        let block = self.blocks.next().ok_or_else(|| self.file.fail("holds fewer entries than the manifest says"))?;
        let part = |n: i64| u64::try_from(n).ok();
        let place = part(block.offset()).zip(part(block.bodyLength()).zip(part(block.metaDataLength().into())));
        let place = place.and_then(|(offset, (body, metadata))| Some((offset, body.checked_add(metadata)?)));
        let (offset, len) = place.ok_or_else(|| self.file.fail("names a record batch that cannot be"))?;
        let bytes = self.file.read(offset, len)?.ok_or_else(|| self.file.fail("is shorter than its record batches"))?;
        let batch = guarded(self.file, || self.decoder.read_record_batch(block, &bytes))?;
        batch.ok_or_else(|| self.file.fail("holds something that is not a record batch"))
    }

    /// The entries of a record batch of that row and head.
    fn entries<'b>(&self, batch: &'b RecordBatch, at: usize, head: usize) -> Result<Entries<'b>> {
        let all = |column: usize, number: usize| {
            integers::<Int32Type>(batch, column)
                .is_some_and(|numbers| numbers.iter().all(|&n| usize::try_from(n) == Ok(number)))
        };
        if !all(0, at) || !all(1, head) {
            return Err(self.file.fail(format!("does not have row {at}, head {head} where it is due")));
        }
        let vectors = |column: usize, layout| batch.columns().get(column).and_then(|c| table::bytes_of(layout, c));
        let keys = vectors(5, &self.schema.key);
        let values = self.schema.value.as_ref().map_or(Some([].as_slice()), |layout| vectors(6, layout));
        let (Some(ids), Some(keys), Some(values)) = (integers::<Int64Type>(batch, 2), keys, values) else {
            return Err(self.file.fail("holds nulls, or lists of the wrong length"));
        };
        let value_codec = self.schema.value.map_or(self.schema.key.codec, |layout| layout.codec);
        let finite = table::all_finite(self.schema.key.codec, keys) && table::all_finite(value_codec, values);
        if self.all_finite && !finite {
            return Err(self.file.fail("holds NaN or infinity, and the manifest says that it does not"));
        }
        Ok(Entries { ids, keys, values })
    }

    /// Adds the labels and positions of a batch to a lane's; None where there are any that were not given.
    fn numbers(&self, batch: &RecordBatch, row: &RowEntry, ids: &[i64], lane: &mut Vec<Numbers>) -> Option<()> {
        let (labels, positions) = (integers::<Int64Type>(batch, 3)?, integers::<Int64Type>(batch, 4)?);
        let known =
            (row.has_labels || labels.iter().all(|&label| label == -1)) && (row.has_positions || positions == ids);
        if row.has_labels || row.has_positions {
            let numbers = ids.iter().zip(labels).zip(positions);
            lane.extend(numbers.map(|((&id, &label), &position)| Numbers { id, label, position }));
        }
        known.then_some(())
    }
}

/// A column of integers without nulls.
fn integers<T: ArrowPrimitiveType>(batch: &RecordBatch, column: usize) -> Option<&[T::Native]> {
    let array = batch.columns().get(column)?;
    let array = array.as_primitive_opt::<T>().filter(|array| arrow_array::Array::null_count(array) == 0)?;
    Some(array.values())
}

/// What the heads of a row share of an entry.
#[derive(Clone, Copy, PartialEq)]
struct Numbers {
    id: i64,
    label: i64,
    position: i64,
}

/// The entries of either lane, ids ascending; None where the two disagree about one.
fn join(a: Vec<Numbers>, b: Vec<Numbers>) -> Option<Vec<Numbers>> {
    if a == b || b.is_empty() {
        return Some(a);
    }
    let mut joined = Vec::with_capacity(a.len().max(b.len()));
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    loop {
        let next = match (a.peek(), b.peek()) {
            (Some(x), Some(y)) if x.id == y.id && x != y => return None,
            (Some(x), Some(y)) if x.id == y.id => {
                b.next();
                a.next()
            }
            (Some(x), Some(y)) if y.id < x.id => b.next(),
            (Some(_), _) => a.next(),
            (None, _) => b.next(),
        };
        match next {
            Some(next) => joined.push(next),
            None => return Some(joined),
        }
    }
}
