//! Wrong calls: each is refused with the fitting kind, says something, and changes nothing.

use mnemex_core::attend::Attention;
use mnemex_core::bias::Bias;
use mnemex_core::block::Schema;
use mnemex_core::cells::{ColumnType, Declared, MAX_COLUMNS, Numbers};
use mnemex_core::config::{Evict, MAX_DIM, MAX_LANES, NonFinite, Values};
use mnemex_core::gather::Wanted;
use mnemex_core::input::Input;
use mnemex_core::predicate::{Op, Predicate, Value};
use mnemex_core::query::{Bitmaps, Query};
use mnemex_core::restore::{Entries, RowBuilder};
use mnemex_core::stage::Tokens;
use mnemex_core::usage::Use;
use mnemex_core::work::Work;
use mnemex_core::{Bank, Codec, Config, Kind, Metric, Result};
use mnemex_kernels::softmax::Logit;
use ndarray::{Array4, ArrayView4};

use crate::lanes::{ask, config, everything, tokens, write};

const HEADS: usize = 2;
const DIM: usize = 5;
const VALUE_DIM: usize = 3;

fn setting() -> Config {
    let columns = vec![Declared { name: "prior".into(), dtype: ColumnType::F32 }];
    Config { heads: HEADS, columns, ..config(Metric::Dot, DIM, Values::Dim(VALUE_DIM)) }
}

/// Two rows of four entries.
fn filled(config: Config) -> Bank {
    let values = Array4::from_elem((2, config.heads, 4, VALUE_DIM), 1.0f32);
    let with_values = matches!(config.values, Values::Dim(_)).then_some(&values);
    let keys = Array4::from_elem((2, config.heads, 4, config.key_dim), 1.0f32);
    let bank = Bank::new(config, 2).unwrap();
    write(&bank, &keys, with_values, [4]);
    bank
}

#[track_caller]
fn refused<T>(kind: Kind, result: Result<T>) {
    let error = result.err().expect("the call is refused");
    assert_eq!(error.kind, kind, "{error}");
    assert!(error.message.len() > 20, "{error}");
}

/// The call is refused and the bank, and what is staged in it, stay as they were.
#[track_caller]
fn harmless<T>(bank: &Bank, kind: Kind, call: impl FnOnce(&Bank) -> Result<T>) {
    let before = everything(bank);
    refused(kind, call(bank));
    assert!(before == everything(bank), "the refused call changed something");
}

#[test]
fn banks_that_cannot_be() {
    let lanes = Config { heads: MAX_LANES / 4 + 1, ..setting() };
    for (config, rows) in [
        (Config { key_dim: 0, ..setting() }, 1),
        (Config { key_dim: MAX_DIM + 1, ..setting() }, 1),
        (Config { values: Values::Dim(0), ..setting() }, 1),
        (Config { values: Values::Dim(usize::MAX), ..setting() }, 1),
        (Config { heads: 0, ..setting() }, 1),
        (Config { capacity: Some(0.into()), ..setting() }, 1),
        (lanes, 4),
        (setting(), usize::MAX),
    ] {
        refused(Kind::Argument, Bank::new(config, rows));
    }
}

#[test]
fn rows_that_do_not_fit_their_bank() {
    let schema = Schema::of(&setting(), Codec::F32, Codec::F32);
    let row = |heads| RowBuilder::new(&schema, heads, 9).unwrap().finish();
    let other = Schema { metric: Metric::Cos, ..schema };
    refused(Kind::Shape, Bank::from_rows(setting(), vec![row(HEADS + 1)], Some(schema), 0));
    refused(Kind::Shape, Bank::from_rows(setting(), vec![row(HEADS)], Some(other), 0));
    let held = std::sync::Arc::clone(&filled(setting()).snapshot().version().rows[0]);
    refused(Kind::Shape, Bank::from_rows(setting(), vec![held], None, 0));
    let mut used = RowBuilder::new(&schema, 1, 9).unwrap();
    let (number, fits) =
        (7, Use { hits: 3, mass: 0.5, heat: 0.5, last: 7, born: 2, updated: 4, count: 2, ..Use::default() });
    used.used(0, &[1], &[fits], number).unwrap();
    for forged in [
        Use { last: 8, ..fits },
        Use { updated: 1, ..fits },
        Use { updated: 8, ..fits },
        Use { mass: f64::INFINITY, ..fits },
        Use { heat: f64::NAN, ..fits },
        Use { heat: -1.0, ..fits },
        Use { count: u64::MAX, ..fits },
        Use { before: f64::NAN, ..fits },
        Use { before: -1.0, ..fits },
        Use { member: 1, ..fits },
        Use { member: 2, count: 0, ..fits },
        Use { member: u64::MAX, count: 0, ..fits },
    ] {
        refused(Kind::Argument, used.used(0, &[1], &[forged], number));
    }
    refused(Kind::Argument, used.used(0, &[1, 2], &[fits], number));
    refused(Kind::Argument, RowBuilder::new(&schema, 1, -1));
    refused(Kind::Argument, RowBuilder::new(&schema, 1, i64::MAX));
    let mut row = RowBuilder::new(&schema, 1, 9).unwrap();
    let (keys, values) = (vec![0; 2 * 4 * DIM], vec![0; 2 * 4 * VALUE_DIM]);
    for ids in [[3, 3], [3, 2], [-1, 0], [8, 9]] {
        refused(Kind::Argument, row.append(0, 2, &Entries { ids: &ids, keys: &keys, values: &values }));
    }
    refused(Kind::Argument, row.append(1, 2, &Entries { ids: &[0, 1], keys: &keys, values: &values }));
    refused(Kind::Shape, row.append(0, 2, &Entries { ids: &[0, 1], keys: &keys[1..], values: &values }));
}

#[test]
fn tokens_of_the_wrong_shape() {
    let bank = filled(setting());
    let keys = |r, h, t, d| Array4::from_elem((r, h, t, d), 1.0f32);
    for (k, v) in [
        (keys(3, HEADS, 2, DIM), keys(3, HEADS, 2, VALUE_DIM)),
        (keys(2, 1, 2, DIM), keys(2, 1, 2, VALUE_DIM)),
        (keys(2, HEADS, 2, 4), keys(2, HEADS, 2, VALUE_DIM)),
        (keys(2, HEADS, 2, DIM), keys(2, HEADS, 3, VALUE_DIM)),
        (keys(2, HEADS, 2, DIM), keys(2, HEADS, 2, DIM)),
        (keys(2, HEADS, 2, DIM), keys(1, HEADS, 2, VALUE_DIM)),
        (keys(0, 0, 0, 0), keys(0, 0, 0, 0)),
    ] {
        harmless(&bank, Kind::Shape, |bank| bank.stage(&tokens(&k, Some(&v)), &Work::ALONE));
    }
    let (k, v) = (keys(2, HEADS, 2, DIM), keys(2, HEADS, 2, VALUE_DIM));
    let good = || tokens(&k, Some(&v));
    for bad in [
        Tokens { mask: Some(&[true; 3]), ..good() },
        Tokens { labels: Some(&[1; 5]), ..good() },
        Tokens { positions: Some(&[]), ..good() },
        Tokens { rows: Some(&[0]), ..good() },
    ] {
        harmless(&bank, Kind::Shape, |bank| bank.stage(&bad, &Work::ALONE));
    }
    let rows = |rows: &'static [usize]| Tokens { rows: Some(rows), ..tokens(&k, Some(&v)) };
    harmless(&bank, Kind::Row, |bank| bank.stage(&rows(&[0, 2]), &Work::ALONE));
    harmless(&bank, Kind::Argument, |bank| bank.stage(&rows(&[1, 1]), &Work::ALONE));
    harmless(&bank, Kind::Argument, |bank| bank.stage(&tokens(&k, None), &Work::ALONE));
    for values in [Values::None, Values::Key] {
        let bank = filled(Config { values, ..setting() });
        harmless(&bank, Kind::Argument, |bank| bank.stage(&tokens(&k, Some(&v)), &Work::ALONE));
    }
}

#[test]
fn numbers_that_a_bank_cannot_hold() {
    let (mut k, v) =
        (Array4::from_elem((2, HEADS, 3, DIM), 1.0f32), Array4::from_elem((2, HEADS, 3, VALUE_DIM), 1.0f32));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let bank = filled(setting());
        bank.stage(&tokens(&k, Some(&v)), &Work::ALONE).unwrap();
        let mut value = v.clone();
        value[[1, 1, 2, 0]] = bad;
        harmless(&bank, Kind::NonFinite, |bank| bank.stage(&tokens(&k, Some(&value)), &Work::ALONE));
        let mut key = k.clone();
        key[[0, 0, 0, DIM - 1]] = bad;
        harmless(&bank, Kind::NonFinite, |bank| bank.stage(&tokens(&key, Some(&v)), &Work::ALONE));
        let masked: Vec<bool> = (0..6).map(|at| at != 0).collect();
        let ids = bank.stage(&Tokens { mask: Some(&masked), ..tokens(&key, Some(&v)) }, &Work::ALONE).unwrap();
        assert_eq!(ids.ids, [-1, 7, 8, 7, 8, 9], "a masked token may hold anything");
        let mut query = ask(&key);
        query.nonfinite = Some(NonFinite::Raise);
        harmless(&bank, Kind::NonFinite, |bank| bank.snapshot().search(&query, 1, &Work::ALONE));
    }
    let halves = filled(Config { key_codec: Some(Codec::F16), value_codec: Some(Codec::F16), ..setting() });
    let large = v.mapv(|x| x * 7e4);
    harmless(&halves, Kind::NonFinite, |bank| bank.stage(&tokens(&k, Some(&large)), &Work::ALONE));
    k[[1, 1, 2, 2]] = -7e4;
    harmless(&halves, Kind::NonFinite, |bank| bank.stage(&tokens(&k, Some(&v)), &Work::ALONE));
}

#[test]
fn types_that_would_lose_bits() {
    let bits = vec![0u16; HEADS * 2 * DIM];
    let halves = ArrayView4::from_shape((1, HEADS, 2, DIM), &bits).unwrap();
    let wide = Array4::from_elem((1, HEADS, 2, DIM), 1.0f32);
    let bank = Bank::new(Config { values: Values::None, ..setting() }, 1).unwrap();
    let of = |keys| Tokens { keys, ..tokens(&wide, None) };
    let none = Array4::zeros((1, HEADS, 0, DIM));
    bank.stage(&tokens(&none, None), &Work::ALONE).unwrap();
    bank.stage(&of(Input::Bf16(halves)), &Work::ALONE).expect("a call that writes nothing decides no type");
    harmless(&bank, Kind::Dtype, |bank| bank.stage(&of(Input::F32(wide.view())), &Work::ALONE));
    bank.commit(&Work::ALONE).unwrap();
    harmless(&bank, Kind::Dtype, |bank| bank.stage(&of(Input::F16(halves)), &Work::ALONE));
    assert_eq!(bank.snapshot().version().schema.map(|schema| schema.key.codec), Some(Codec::Bf16));
}

#[test]
fn more_than_the_capacity_where_nothing_may_go() {
    let bank = filled(Config { capacity: Some(6.into()), evict: Evict::Error, ..setting() });
    let k = Array4::from_elem((2, HEADS, 2, DIM), 1.0f32);
    let v = Array4::from_elem((2, HEADS, 2, VALUE_DIM), 1.0f32);
    bank.stage(&tokens(&k, Some(&v)), &Work::ALONE).unwrap();
    harmless(&bank, Kind::Capacity, |bank| bank.stage(&tokens(&k, Some(&v)), &Work::ALONE));
    let masked = Tokens { mask: Some(&[false; 4]), ..tokens(&k, Some(&v)) };
    bank.stage(&masked, &Work::ALONE).expect("masked tokens need no room");
    assert_eq!(bank.commit(&Work::ALONE).unwrap().evicted, 0);
    bank.delete(&[0, 1], None).unwrap();
    bank.stage(&tokens(&k, Some(&v)), &Work::ALONE).expect("deleting makes room");
}

#[test]
fn changes_that_cannot_be() {
    let bank = filled(setting());
    harmless(&bank, Kind::Row, |bank| bank.delete(&[0], Some(&[0, 2])));
    harmless(&bank, Kind::Row, |bank| bank.truncate(0, Some(&[2])));
    harmless(&bank, Kind::Row, |bank| bank.truncate_each(&[0, 0], Some(&[0, 2])));
    harmless(&bank, Kind::Shape, |bank| bank.truncate_each(&[0], None));
    harmless(&bank, Kind::Shape, |bank| bank.truncate_each(&[0, 0], Some(&[1])));
    harmless(&bank, Kind::Row, |bank| bank.reset(Some(&[7])));
    harmless(&bank, Kind::Row, |bank| bank.reorder(&[0, 1, 2]));
    harmless(&bank, Kind::Argument, |bank| bank.reorder(&vec![0; MAX_LANES / HEADS + 1]));
    harmless(&bank, Kind::Argument, |bank| bank.fork(0));
    harmless(&bank, Kind::Argument, |bank| bank.fork(usize::MAX));

    let k = Array4::from_elem((2, HEADS, 1, DIM), 1.0f32);
    let v = Array4::from_elem((2, HEADS, 1, VALUE_DIM), 1.0f32);
    bank.stage(&tokens(&k, Some(&v)), &Work::ALONE).unwrap();
    harmless(&bank, Kind::State, |bank| bank.truncate(0, None));
    harmless(&bank, Kind::State, |bank| bank.truncate_each(&[0, 0], None));
    harmless(&bank, Kind::State, |bank| bank.reset(None));
    harmless(&bank, Kind::State, |bank| bank.reorder(&[1, 0]));
    harmless(&bank, Kind::State, |bank| bank.fork(2));
    bank.delete(&[0, 77, -1, i64::MIN, i64::MAX], None).expect("unknown ids are passed over, and staged tokens stay");
    assert_eq!(bank.commit(&Work::ALONE).unwrap().ids[0].ids, [4, 4]);
    assert_eq!(bank.snapshot().lengths(), [[4, 4], [4, 4]]);
    bank.truncate(i64::MIN, None).unwrap();
    assert_eq!(bank.snapshot().lengths(), [[0, 0], [0, 0]]);
}

#[test]
fn questions_that_cannot_be_answered() {
    let bank = filled(setting());
    let ones = |r, h, d| Array4::from_elem((r, h, 2, d), 1.0f32);
    let search = |query: &Query, k| bank.snapshot().search(query, k, &Work::ALONE);
    let good = ones(2, 4, DIM);
    for bad in [ones(2, HEADS, DIM + 1), ones(2, 3, DIM), ones(2, 0, DIM), ones(1, HEADS, DIM), ones(3, HEADS, DIM)] {
        harmless(&bank, Kind::Shape, |_| search(&ask(&bad), 1));
    }
    harmless(&bank, Kind::Row, |_| search(&Query { rows: Some(&[0, 2]), ..ask(&good) }, 1));
    harmless(&bank, Kind::Shape, |_| search(&Query { rows: Some(&[0]), ..ask(&good) }, 1));
    let bitmaps = Bitmaps { bits: &[true; 12], rows: 3, ids: 4 };
    harmless(&bank, Kind::Shape, |_| search(&Query { allowed: Some(bitmaps), ..ask(&good) }, 1));
    for k in [0, 1 << 40, usize::MAX] {
        harmless(&bank, Kind::Argument, |_| search(&ask(&good), k));
    }

    let attend = |bank: &Bank, k: Option<usize>, scale, softcap| {
        let attention =
            Attention { k: k.map(Into::into), logit: Logit { scale, softcap }, bias: Bias::None, with_hits: false };
        bank.snapshot().attend(&ask(&good), &attention, &Work::ALONE)
    };
    attend(&bank, Some(usize::MAX), 1.0, None).expect("attend clamps k to the longest lane");
    harmless(&bank, Kind::Argument, |bank| attend(bank, Some(0), 1.0, None));
    for (scale, softcap) in [(f32::NAN, None), (f32::INFINITY, None), (1.0, Some(0.0)), (1.0, Some(f32::NAN))] {
        harmless(&bank, Kind::Argument, |bank| attend(bank, None, scale, softcap));
    }
    let searched = filled(Config { values: Values::None, ..setting() });
    harmless(&searched, Kind::State, |bank| attend(bank, None, 1.0, None));

    let gather = |bank: &Bank, rows: &[usize], heads: &[usize], ids: &[i64]| {
        bank.snapshot().gather(&Wanted { rows, heads, ids }, &Work::ALONE)
    };
    for id in [4, -2, i64::MAX, i64::MIN] {
        harmless(&bank, Kind::Id, |bank| gather(bank, &[0, 0], &[0, 1], &[0, id]));
    }
    harmless(&bank, Kind::Row, |bank| gather(bank, &[2], &[0], &[0]));
    harmless(&bank, Kind::Argument, |bank| gather(bank, &[0], &[HEADS], &[0]));
    harmless(&bank, Kind::Shape, |bank| gather(bank, &[0], &[0], &[0, 1]));
    harmless(&bank, Kind::Shape, |bank| gather(bank, &[0, 0], &[0], &[0, 1]));
}

#[test]
fn columns_and_conditions_that_cannot_be() {
    let declared = |name: &str| Declared { name: name.into(), dtype: ColumnType::Bool };
    for names in [vec![""], vec!["id"], vec!["value"], vec!["a", "b", "a"], vec!["a"; MAX_COLUMNS + 1]] {
        let columns = names.into_iter().map(declared).collect();
        refused(Kind::Argument, Bank::new(Config { columns, ..setting() }, 1));
    }
    let bank = filled(setting());
    let k = Array4::from_elem((2, HEADS, 2, DIM), 1.0f32);
    let v = Array4::from_elem((2, HEADS, 2, VALUE_DIM), 1.0f32);
    let prior = ("prior", Numbers::F32(&[0.5; 4]));
    for (kind, columns) in [
        (Kind::Argument, vec![("nobody", Numbers::F32(&[0.5; 4]))]),
        (Kind::Argument, vec![prior, prior]),
        (Kind::Dtype, vec![("prior", Numbers::I64(&[1; 4]))]),
        (Kind::Shape, vec![("prior", Numbers::F32(&[0.5; 3]))]),
    ] {
        let bad = Tokens { columns: &columns, ..tokens(&k, Some(&v)) };
        harmless(&bank, kind, |bank| bank.stage(&bad, &Work::ALONE));
        harmless(&bank, kind, |bank| bank.write(&bad, &Work::ALONE));
    }
    let queries = Array4::from_elem((2, HEADS, 2, DIM), 1.0f32);
    for (kind, column, op, value) in [
        (Kind::Argument, "nobody", Op::Less, Value::I64(&[1])),
        (Kind::Argument, "id", Op::Less, Value::I64(&[])),
        (Kind::Argument, "prior", Op::Equal, Value::F64(&[1.0, 2.0])),
        (Kind::Dtype, "prior", Op::In, Value::Bool(&[true])),
        (Kind::Dtype, "label", Op::Equal, Value::Bool(&[true])),
    ] {
        let condition = [Predicate { column, op, value }];
        let query = Query { predicates: &condition, ..ask(&queries) };
        harmless(&bank, kind, |bank| bank.snapshot().search(&query, 1, &Work::ALONE));
        harmless(&bank, kind, |bank| bank.snapshot().find(&condition, None, None, &Work::ALONE));
    }
    harmless(&bank, Kind::Row, |bank| bank.snapshot().find(&[], None, Some(&[2]), &Work::ALONE));
    harmless(&bank, Kind::Argument, |bank| bank.snapshot().column("nobody", &[0], &[0]));
    harmless(&bank, Kind::Row, |bank| bank.snapshot().column("id", &[2], &[0]));
    harmless(&bank, Kind::Shape, |bank| bank.snapshot().column("id", &[0, 1], &[0]));
}
