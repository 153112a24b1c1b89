//! What a filter shows where the heads of a row do not hold the same entries, and ids lie far apart.

use mnemex_core::cells::{ColumnType, Declared, Numbers};
use mnemex_core::config::Values;
use mnemex_core::predicate::{Op, Predicate, Value};
use mnemex_core::query::{Bitmaps, Query};
use mnemex_core::restore::{Entries, RowBuilder};
use mnemex_core::work::Work;
use mnemex_core::{Bank, Codec, Config, Metric};
use ndarray::Array4;

use crate::lanes::{ask, config};

const HEADS: [&[i64]; 2] = [&[1, 2, 9, 700, 1 << 50], &[2, 4, 700, 5000]];

/// One row whose heads parted, as policies leave it; a column holds each id's last digit.
fn parted() -> Bank {
    let columns = vec![Declared { name: "digit".into(), dtype: ColumnType::I64 }];
    let config = Config { heads: 2, columns, ..config(Metric::Dot, 1, Values::None) };
    let schema = mnemex_core::block::Schema::of(&config, Codec::F32, Codec::F32);
    let mut row = RowBuilder::new(&schema, 2, 1 << 51).unwrap();
    for (head, ids) in HEADS.into_iter().enumerate() {
        let keys = vec![0; 4 * ids.len()];
        row.append(head, ids.len(), &Entries { ids, keys: &keys, values: &[] }).unwrap();
        let digits: Vec<i64> = ids.iter().map(|id| id % 10).collect();
        row.column(head, ids, (&config.columns, 0), Numbers::I64(&digits)).unwrap();
        let lie = row.column(1, &[2], (&config.columns, 0), Numbers::I64(&[3]));
        assert!(lie.is_err(), "the first head has this id with another number");
    }
    Bank::from_rows(config, vec![row.finish()], Some(schema), 0).unwrap()
}

#[test]
fn each_head_shows_what_it_holds_and_find_what_any_holds() {
    let bank = parted();
    let queries = Array4::zeros((2, 2, 1, 1));
    let few = [true, false, true, false, true];
    let each: Vec<bool> = (0..2 * 701).map(|i| i >= 701 || i == 2 || i == 700).collect();
    let all = |_: usize, _: i64| true;
    type Sees<'a> = &'a dyn Fn(usize, i64) -> bool;
    for (column, op, value, allowed, sees) in [
        ("id", Op::AtLeast, Value::I64(&[3]), None, &(|_: usize, id: i64| id >= 3) as Sees),
        ("id", Op::Unequal, Value::I64(&[700]), None, &|_, id| id != 700),
        ("id", Op::In, Value::F64(&[2.0, 2.5, 5000.0, -1.0]), None, &|_, id| id == 2 || id == 5000),
        ("digit", Op::Equal, Value::F64(&[0.0]), None, &|_, id| id % 10 == 0),
        ("position", Op::Less, Value::F64(&[700.5]), None, &|_, id| id <= 700),
        ("label", Op::Equal, Value::I64(&[-1]), Some(Bitmaps { bits: &few, rows: 1, ids: 5 }), &|_, id| {
            id == 2 || id == 4
        }),
        ("digit", Op::AtMost, Value::I64(&[9]), Some(Bitmaps { bits: &each, rows: 2, ids: 701 }), &|row, id| {
            id < 701 && (row == 1 || id == 2 || id == 700)
        }),
        ("id", Op::Less, Value::F64(&[f64::INFINITY]), None, &all),
    ] {
        let condition = [Predicate { column, op, value }];
        let rows = Some([0, 0].as_slice());
        let hits =
            bank.snapshot().search(&Query { rows, allowed, predicates: &condition, ..ask(&queries) }, 5, &Work::ALONE);
        let hits = hits.unwrap();
        let found = bank.snapshot().find(&condition, allowed, rows, &Work::ALONE).unwrap();
        for (row, found) in found.into_iter().enumerate() {
            let shown = HEADS.map(|ids| ids.iter().copied().filter(|&id| sees(row, id)).collect::<Vec<_>>());
            for (head, ids) in shown.iter().enumerate() {
                let hits: Vec<i64> =
                    hits.ids[(row * 2 + head) * 5..][..5].iter().copied().filter(|&id| id >= 0).collect();
                assert_eq!(&hits, ids, "{column} {op:?} {value:?}, row {row}, head {head}");
            }
            let mut any = shown.concat();
            any.sort_unstable();
            any.dedup();
            assert_eq!(found, any, "{column} {op:?} {value:?}, row {row}");
        }
    }
}
