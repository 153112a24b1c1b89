//! A call that is interrupted, after any number of polls, leaves no trace; asked again it does its work.

use mnemex_core::bias::Bias;
use std::cell::Cell;

use mnemex_core::config::Values;
use mnemex_core::input::Input;
use mnemex_core::labels::OnDuplicate;
use mnemex_core::stage::{StagedIds, Tokens};
use mnemex_core::work::Work;
use mnemex_core::{Bank, Codec, Config, Kind, Metric, Result};
use mnemex_kernels::{Isa, Kernels};
use ndarray::Array4;

use crate::data::{Data, Random};
use crate::lanes::{ask, attend, config, everything, tokens, write};

/// Calls `call` with terms that interrupt it at the first poll, then at the second, and so on until it gets through.
fn until_it_gets_through<T>(bank: &Bank, call: impl Fn(&Work) -> Result<T>) -> T {
    let before = everything(bank);
    for n in 0.. {
        let polls = Cell::new(0);
        let interrupted = || polls.replace(polls.get() + 1) == n;
        match call(&Work { interrupted: &interrupted, ..Work::ALONE }) {
            Ok(answer) => {
                assert!(n > 0, "the call is too short to be interrupted: make it longer");
                return answer;
            }
            Err(error) => assert_eq!(error.kind, Kind::Interrupted),
        }
        assert_eq!(polls.get(), n + 1, "nobody asks again after a yes");
        assert!(before == everything(bank), "an interrupted call left a trace");
    }
    unreachable!()
}

fn slow(config: Config) -> Bank {
    Bank::with_kernels(config, 1, Kernels::of(Isa::Portable).unwrap()).unwrap()
}

#[test]
fn reading() {
    let mut random = Random::new(1);
    let keys = Data::Gaussian.array(&mut random, [1, 1, 8000, 64]);
    let bank = slow(config(Metric::Dot, 64, Values::Key));
    write(&bank, &keys, None, [8000]);
    let queries = Data::Gaussian.array(&mut random, [1, 1, 384, 64]);
    let snapshot = bank.snapshot();
    let found = until_it_gets_through(&bank, |work| snapshot.search(&ask(&queries), 5, work));
    assert_eq!(found, snapshot.search(&ask(&queries), 5, &Work::ALONE).unwrap());
    for k in [Some(5), None] {
        let logit = mnemex_kernels::softmax::Logit { scale: 0.5, softcap: None };
        let attention =
            mnemex_core::attend::Attention { k: k.map(Into::into), logit, bias: Bias::None, with_hits: false };
        let attended = until_it_gets_through(&bank, |work| snapshot.attend(&ask(&queries), &attention, work));
        assert_eq!(attended, attend(&snapshot, &ask(&queries), k, &Work::ALONE));
    }
}

/// Whether a call that is interrupted at its first poll, if it lasts that long, fails; it leaves no trace then.
fn is_interrupted<T>(bank: &Bank, call: impl Fn(&Work) -> Result<T>) -> bool {
    let before = everything(bank).nbytes;
    let interrupted = is_interrupted_though_it_learns(bank, call);
    assert!(!interrupted || before == everything(bank).nbytes, "an interrupted call left memory behind");
    interrupted
}

/// The same of a call that may keep what it has learned of the labels that are there.
fn is_interrupted_though_it_learns<T>(bank: &Bank, call: impl Fn(&Work) -> Result<T>) -> bool {
    let before = everything(bank);
    let Err(error) = call(&Work { interrupted: &|| true, ..Work::ALONE }) else { return false };
    assert_eq!(error.kind, Kind::Interrupted);
    let mut after = everything(bank);
    after.nbytes = before.nbytes;
    assert!(before == after, "an interrupted call left a trace");
    true
}

const HEADS: usize = 32;
const DIM: usize = 64;

/// A bank of two entries.
fn written_to(heads: usize) -> Bank {
    let config = Config { heads, key_codec: Some(Codec::F16), ..config(Metric::Cos, DIM, Values::None) };
    let bank = slow(config);
    write(&bank, &Array4::from_elem((1, heads, 2, DIM), 1.0f32), None, [2]);
    bank
}

/// Calls `call` with `n` tokens that take no memory before they are stored.
fn with_tokens<T>(bank: &Bank, n: usize, call: impl Fn(&Tokens) -> T) -> T {
    let one = Array4::from_elem((1, 1, 1, DIM), 0.5f32);
    let none = Array4::zeros((0, 0, 0, 0));
    let keys = Input::F32(one.broadcast((1, bank.config().heads, n, DIM)).unwrap());
    call(&Tokens { keys, ..tokens(&none, None) })
}

fn stage(bank: &Bank, n: usize, work: &Work) -> Result<StagedIds> {
    with_tokens(bank, n, |tokens| bank.stage(tokens, work))
}

#[test]
fn staging() {
    let lasts = |n: usize| {
        let bank = written_to(HEADS);
        stage(&bank, 3, &Work::ALONE).unwrap();
        let interrupted = is_interrupted(&bank, |work| stage(&bank, n, work));
        assert!(!interrupted || stage(&bank, 2, &Work::ALONE).unwrap().ids == [5, 6], "the ids are as if never tried");
        interrupted
    };
    assert!((10..18).map(|power| 1 << power).any(lasts), "staging asks nobody whether to stop");
}

#[test]
fn publishing() {
    // One lane alone, however long, is not done in one go either.
    for heads in [HEADS, 1] {
        let lasts = |tokens: usize| {
            let bank = written_to(heads);
            for _ in 0..2 {
                stage(&bank, tokens / heads / 2, &Work::ALONE).unwrap();
            }
            let interrupted = is_interrupted(&bank, |work| bank.commit(work));
            if interrupted {
                let receipt = bank.commit(&Work::ALONE).unwrap();
                assert_eq!(receipt.ids.len(), 2, "everything stayed staged");
                assert_eq!(bank.snapshot().lengths(), [vec![2 + tokens / heads; heads]]);
            }
            interrupted
        };
        assert!((15..23).map(|power| 1 << power).any(lasts), "commit asks nobody whether to stop");
    }
}

#[test]
fn writing() {
    let lasts = |tokens: usize| {
        let bank = written_to(HEADS);
        let earlier = stage(&bank, tokens / HEADS, &Work::ALONE).unwrap();
        // Staging three tokens is too short to be interrupted, and publishing what was staged before is not.
        let interrupted = is_interrupted(&bank, |work| with_tokens(&bank, 3, |tokens| bank.write(tokens, work)));
        if interrupted {
            let receipt = bank.commit(&Work::ALONE).unwrap();
            assert_eq!(receipt.ids, [earlier], "what was staged before stayed staged, and nothing else");
            assert_eq!(bank.snapshot().lengths(), [vec![2 + tokens / HEADS; HEADS]]);
        }
        interrupted
    };
    assert!((15..23).map(|power| 1 << power).any(lasts), "write asks nobody whether to stop");
}

#[test]
fn a_write_into_an_empty_bank_decides_nothing_before_it_is_through() {
    let wide = Config { heads: HEADS, ..config(Metric::Dot, DIM, Values::None) };
    let lasts = |n: usize| {
        let bank = slow(wide.clone());
        let interrupted =
            is_interrupted(&bank, |work| with_tokens(&bank, n / HEADS, |tokens| bank.write(tokens, work)));
        if interrupted {
            let half = Array4::from_elem((1, HEADS, 1, DIM), 0u16);
            let none = Array4::zeros((0, 0, 0, 0));
            let halves = Tokens { keys: Input::F16(half.view()), ..tokens(&none, None) };
            assert_eq!(bank.write(&halves, &Work::ALONE).unwrap().ids[0].ids, [0], "the first write decides the codec");
        }
        interrupted
    };
    assert!((15..23).map(|power| 1 << power).any(lasts), "write asks nobody whether to stop");
}

#[test]
fn work_with_labels() {
    let lasts = |n: i64| {
        let labels: Vec<i64> = (0..n).collect();
        let bank = slow(config(Metric::Dot, 1, Values::None));
        let keys = Array4::from_elem((1, 1, labels.len(), 1), 0.5f32);
        bank.write(&Tokens { labels: Some(&labels), ..tokens(&keys, None) }, &Work::ALONE).unwrap();
        // One token alone takes no time: what takes long is to learn the labels that are there.
        let one = Array4::from_elem((1, 1, 1, 1), 0.5f32);
        let again = Tokens { labels: Some(&[3]), on_duplicate: Some(OnDuplicate::Skip), ..tokens(&one, None) };
        let staging = is_interrupted_though_it_learns(&bank, |work| bank.stage(&again, work));
        assert_eq!(bank.stage(&again, &Work::ALONE).unwrap().ids, [-1], "what was learned is right");
        let deletion = is_interrupted_though_it_learns(&bank, |work| bank.delete_named(&[], &labels, None, work));
        bank.delete_named(&[], &labels, None, &Work::ALONE).unwrap();
        assert_eq!(bank.snapshot().lengths(), [[0]]);
        staging && deletion
    };
    assert!((17..23).map(|power| 1 << power).any(lasts), "on_duplicate or delete asks nobody");
}
