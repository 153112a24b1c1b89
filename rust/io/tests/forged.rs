//! Saves made to harm: every checksum holds, and the numbers do not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should say where")]

mod fixture;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type, Int64Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, Int32Array, Int64Array, RecordBatch,
};
use arrow_ipc::reader::FileReader;
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, Field, Schema};
use fixture::{Scratch, config, everything, numbers, open, put, save};
use mnemex_core::Config;
use mnemex_io::{Error, Opened, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One row, two heads, 7 entries each, labels.
fn saved(scratch: &Scratch) -> PathBuf {
    let bank = everything(Config { heads: 2, key_dim: 2, ..config() });
    bank.reorder(&[0]).unwrap();
    bank.delete(&(0..67).collect::<Vec<_>>(), None).unwrap();
    save(&scratch.at("save"), &[bank.snapshot()]).unwrap();
    scratch.at("save")
}

/// Changes the body of a manifest and puts the right checksum on it.
fn reseal(save: &Path, change: impl Fn(&mut Value)) {
    let path = save.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest["body"]);
    let body = manifest["body"].to_string();
    put(&path, format!("{{\"checksum\":\"{}\",\"body\":{body}}}\n", sha256(body.as_bytes())).as_bytes());
}

/// Replaces the data file, and has the manifest agree with it.
fn replace(save: &Path, bytes: &[u8]) {
    put(&save.join("bank-0.arrow"), bytes);
    reseal(save, |body| {
        body["banks"][0]["file"]["sha256"] = sha256(bytes).into();
        body["banks"][0]["file"]["bytes"] = bytes.len().into();
    });
}

fn refused(result: Result<Opened>, case: &str) {
    match result {
        Err(Error::Format(_) | Error::Core(_)) => {}
        Err(error) => panic!("{case}: {error}"),
        Ok(_) => panic!("{case}: opened"),
    }
}

#[test]
fn manifests_that_lie_are_refused() {
    let scratch = Scratch::new();
    let save = saved(&scratch);
    let whole = fs::read(save.join("manifest.json")).unwrap();
    reseal(&save, |_| {});
    open(&save).unwrap();
    let huge = u64::MAX;
    for (pointer, value) in [
        ("/format", json!("other")),
        ("/version", json!(2)),
        ("/kind", json!("index")),
        ("/banks", json!([])),
        ("/extra", json!(1)),
        ("/banks/0/config/heads", json!(0)),
        ("/banks/0/config/heads", json!(1)),
        ("/banks/0/config/heads", json!(huge)),
        ("/banks/0/config/key_dim", json!(0)),
        ("/banks/0/config/key_dim", json!(3)),
        ("/banks/0/config/key_dim", json!(huge)),
        ("/banks/0/config/key_dim", json!(-1)),
        ("/banks/0/config/key_dim", json!(1 << 16)),
        ("/banks/0/config/values", json!("key")),
        ("/banks/0/config/values", json!({"dim": 1u64 << 40})),
        ("/banks/0/config/capacity", json!(0)),
        ("/banks/0/config/capacity", json!(6)),
        ("/banks/0/config/metric", json!("hamming")),
        ("/banks/0/config/key_codec", json!("f16")),
        ("/banks/0/config/key_codec", json!("pq8")),
        ("/banks/0/config/scan_codec", json!("int4")),
        ("/banks/0/config/columns", json!([])),
        ("/banks/0/config/columns/0/name", json!("page")),
        ("/banks/0/config/columns/0/name", json!("other")),
        ("/banks/0/config/columns/0/name", json!("label")),
        ("/banks/0/config/columns/0/name", json!("")),
        ("/banks/0/config/columns/0/dtype", json!("int64")),
        ("/banks/0/config/columns/0/dtype", json!("float64")),
        ("/banks/0/codecs", json!(null)),
        ("/banks/0/codecs/key", json!("f16")),
        ("/banks/0/codecs/value", json!(null)),
        ("/banks/0/rows", json!([1])),
        ("/banks/0/rows", json!([-1])),
        ("/banks/0/rows", json!([4_294_967_296u64])),
        ("/banks/0/stored", json!([])),
        ("/banks/0/stored/0/next_id", json!(-1)),
        ("/banks/0/stored/0/next_id", json!(74)),
        ("/banks/0/stored/0/next_id", json!(i64::MAX)),
        ("/banks/0/stored/0/has_labels", json!(false)),
        ("/banks/0/stored/0/has_positions", json!(false)),
        ("/banks/0/stored/0/counts", json!([7, 7, 0])),
        ("/banks/0/stored/0/counts", json!([6, 7])),
        ("/banks/0/stored/0/counts", json!([8, 7])),
        ("/banks/0/stored/0/counts", json!([7, 8])),
        ("/banks/0/stored/0/counts", json!([7, 6])),
        ("/banks/0/stored/0/counts", json!([huge, huge])),
        ("/banks/0/file/name", json!("../save/bank-0.arrow")),
        ("/banks/0/file/name", json!("manifest.json")),
        ("/banks/0/file/name", json!("/etc/passwd")),
        ("/banks/0/file/bytes", json!(huge)),
        ("/banks/0/file/sha256", json!("")),
    ] {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        reseal(&save, |body| match body.pointer_mut(parent).unwrap() {
            Value::Array(values) => values[key.parse::<usize>().unwrap()] = value.clone(),
            parent => parent[key] = value.clone(),
        });
        refused(open(&save), &format!("{pointer} = {value}"));
        put(&save.join("manifest.json"), &whole);
    }
    open(&save).unwrap();
}

fn batches(bytes: &[u8]) -> Vec<RecordBatch> {
    FileReader::try_new(std::io::Cursor::new(bytes), None).unwrap().map(|batch| batch.unwrap()).collect()
}

fn file(batches: &[RecordBatch]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = FileWriter::try_new(&mut bytes, &batches[0].schema()).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
    drop(writer);
    bytes
}

/// A batch with one column replaced; its field follows the new type.
fn with_column(batch: &RecordBatch, at: usize, column: ArrayRef, nullable: bool) -> RecordBatch {
    let mut fields: Vec<_> = batch.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    fields[at] = Field::new(fields[at].name(), column.data_type().clone(), nullable);
    let mut columns = batch.columns().to_vec();
    columns[at] = column;
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// Changes integers of a column of the first lane.
fn with_i64(batch: &RecordBatch, at: usize, change: impl Fn(&mut Vec<i64>)) -> RecordBatch {
    let mut numbers = batch.column(at).as_primitive::<Int64Type>().values().to_vec();
    change(&mut numbers);
    with_column(batch, at, Arc::new(Int64Array::from(numbers)), false)
}

#[test]
fn data_files_that_lie_are_refused() {
    let scratch = Scratch::new();
    let save = saved(&scratch);
    let whole = fs::read(save.join("bank-0.arrow")).unwrap();
    let parts = batches(&whole);
    let [a, b] = <[RecordBatch; 2]>::try_from(parts.clone()).unwrap();
    replace(&save, &file(&parts));
    open(&save).unwrap();

    let i32s = |at: usize, value: i32| {
        let numbers = a.column(at).as_primitive::<Int32Type>().values().iter().map(|_| value);
        with_column(&a, at, Arc::new(numbers.collect::<Int32Array>()), false)
    };
    let keys = a.column(5).as_fixed_size_list();
    let mut floats = keys.values().as_primitive::<Float32Type>().values().to_vec();
    floats[3] = f32::NAN;
    let DataType::FixedSizeList(item, _) = keys.data_type().clone() else { panic!("not a list") };
    let list = |dim, floats: Vec<f32>| {
        let items = Arc::new(Float32Array::from(floats));
        Arc::new(FixedSizeListArray::try_new(Arc::clone(&item), dim, items, None).unwrap())
    };
    let labels = a.column(3).as_primitive::<Int64Type>().iter().enumerate();
    let with_null: Int64Array = labels.map(|(i, label)| label.filter(|_| i != 2)).collect();
    let unseen: BooleanArray = (0..a.num_rows()).map(|i| (i != 2).then_some(false)).collect();
    let heads: Int32Array = (0..a.num_rows() as i32).map(|i| i / 4).collect();
    for (case, batches) in [
        ("no entries of head 1", vec![a.clone()]),
        ("a lane twice", vec![a.clone(), a.clone()]),
        ("lanes swapped", vec![b.clone(), a.clone()]),
        ("a lane too many", vec![a.clone(), b.clone(), b.clone()]),
        ("an empty batch", vec![a.slice(0, 0), a.clone(), b.clone()]),
        ("another row", vec![i32s(0, 1), b.clone()]),
        ("a row of -1", vec![i32s(0, -1), b.clone()]),
        ("another head", vec![i32s(1, 7), b.clone()]),
        ("two heads in one batch", vec![with_column(&a, 1, Arc::new(heads), false), b.clone()]),
        ("ids that fall", vec![with_i64(&a, 2, |ids| ids.swap(0, 1)), b.clone()]),
        ("an id twice", vec![with_i64(&a, 2, |ids| ids[1] = ids[0]), b.clone()]),
        ("a negative id", vec![with_i64(&a, 2, |ids| ids[0] = -1), b.clone()]),
        ("an id to come", vec![with_i64(&a, 2, |ids| ids[6] = 75), b.clone()]),
        ("labels that differ by head", vec![with_i64(&a, 3, |labels| labels[0] = 99), b.clone()]),
        ("positions that differ by head", vec![a.clone(), with_i64(&b, 4, |positions| positions[0] = 99)]),
        (
            "labels with nulls",
            vec![with_column(&a, 3, Arc::new(with_null), true), with_column(&b, 3, Arc::clone(b.column(3)), true)],
        ),
        ("a column that differs by head", vec![a.clone(), with_i64(&b, 8, |page| page[2] = 99)]),
        (
            "a column with nulls",
            vec![with_column(&a, 9, Arc::new(unseen), true), with_column(&b, 9, Arc::clone(b.column(9)), true)],
        ),
        ("keys that are not finite", vec![with_column(&a, 5, list(2, floats.clone()), false), b.clone()]),
        ("keys of another length", vec![with_column(&a, 5, list(1, floats[..7].to_vec()), false)]),
        ("keys that are no lists", vec![with_column(&a, 5, Arc::new(Float32Array::from(floats[..7].to_vec())), false)]),
        ("a column too few", vec![a.project(&[0, 1, 2, 3, 4, 5]).unwrap()]),
        ("columns in another order", vec![a.project(&[1, 0, 2, 3, 4, 5, 6]).unwrap()]),
    ] {
        replace(&save, &file(&batches));
        refused(open(&save), case);
    }
}

#[test]
fn data_files_with_any_byte_changed_never_do_more_than_hold_other_numbers() {
    let scratch = Scratch::new();
    let save = saved(&scratch);
    let whole = fs::read(save.join("bank-0.arrow")).unwrap();
    let mut opened = 0;
    for at in 0..whole.len() {
        for byte in [whole[at] ^ 1, whole[at] ^ 0x80, 0xFF] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            replace(&save, &bytes);
            match open(&save) {
                Ok(save) => {
                    opened += 1;
                    let bank = save.banks[0].snapshot();
                    assert_eq!(bank.lengths(), [[7, 7]]);
                    let queries = numbers(5, [1, 2, 1, 2]);
                    let query = mnemex_core::query::Query::of(mnemex_core::input::Input::F32(queries.view()));
                    bank.search(&query, 3, &mnemex_core::work::Work::ALONE).unwrap();
                }
                Err(Error::Format(_)) => {}
                Err(error) => panic!("byte {at}: {error}"),
            }
        }
    }
    assert!(opened > 0);
    for len in 0..whole.len() {
        replace(&save, &whole[..len]);
        refused(open(&save), "a short file");
    }
}
