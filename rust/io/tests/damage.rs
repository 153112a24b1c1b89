//! A truncated, altered, mixed or foreign save is refused, with an error that says what is wrong.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should say where")]

mod fixture;

use std::fs;
use std::path::Path;

use fixture::{Scratch, config, everything, names, open, put, save};
use mnemex_core::{Bank, Config};
use mnemex_io::{Error, Result};

fn assert_format<T>(result: Result<T>, about: &str) {
    match result {
        Err(Error::Format(message)) => assert!(message.contains(about), "{message}"),
        Err(error) => panic!("not a format error: {error:?}"),
        Ok(_) => panic!("opened in spite of {about}"),
    }
}

/// A save of little more than its frame, so that every byte of it can be tried.
fn small(scratch: &Scratch) -> std::path::PathBuf {
    let bank = everything(Config { heads: 1, key_dim: 2, ..config() });
    bank.reorder(&[1]).unwrap();
    bank.truncate(8, None).unwrap();
    save(&scratch.at("save"), &[bank.snapshot()]).unwrap();
    scratch.at("save")
}

#[test]
fn every_flipped_bit_is_noticed() {
    let scratch = Scratch::new();
    let save = small(&scratch);
    for name in names(&save) {
        let whole = fs::read(save.join(&name)).unwrap();
        for bit in 0..8 * whole.len() {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            put(&save.join(&name), &bytes);
            assert_format(open(&save), &name);
        }
        put(&save.join(&name), &whole);
    }
    open(&save).unwrap();
}

#[test]
fn every_other_length_is_noticed() {
    let scratch = Scratch::new();
    let save = small(&scratch);
    for name in names(&save) {
        let whole = fs::read(save.join(&name)).unwrap();
        for len in 0..whole.len() {
            put(&save.join(&name), &whole[..len]);
            assert_format(open(&save), &name);
        }
        put(&save.join(&name), &[whole.as_slice(), b"\n"].concat());
        assert_format(open(&save), &name);
        fs::remove_file(save.join(&name)).unwrap();
        assert_format(open(&save), "is missing");
        put(&save.join(&name), &whole);
    }
}

#[test]
fn two_saves_do_not_mix() {
    let scratch = Scratch::new();
    let (a, b) = (everything(config()), everything(config()));
    b.delete(&[30], Some(&[0])).unwrap();
    save(&scratch.at("a"), &[a.snapshot()]).unwrap();
    save(&scratch.at("b"), &[b.snapshot()]).unwrap();
    save(&scratch.at("two"), &[a.snapshot(), b.snapshot()]).unwrap();
    let swap = |a: &Path, b: &Path| {
        let (x, y) = (fs::read(a).unwrap(), fs::read(b).unwrap());
        fs::write(a, y).unwrap();
        fs::write(b, x).unwrap();
    };
    for (a, b) in [("a/bank-0.arrow", "b/bank-0.arrow"), ("a/manifest.json", "b/manifest.json")] {
        swap(&scratch.at(a), &scratch.at(b));
        assert_format(open(&scratch.at("a")), "bank-0.arrow");
        assert_format(open(&scratch.at("b")), "bank-0.arrow");
        swap(&scratch.at(a), &scratch.at(b));
    }
    swap(&scratch.at("two/bank-0.arrow"), &scratch.at("two/bank-1.arrow"));
    assert_format(open(&scratch.at("two")), "bank-0.arrow");
    open(&scratch.at("a")).unwrap();
}

#[test]
fn foreign_files_and_folders_are_refused() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.at("empty")).unwrap();
    for (name, bytes) in [
        ("empty_file", b"".as_slice()),
        ("pickle", b"\x80\x04cos\nsystem\n."),
        ("json/manifest.json", b"{\"format\": \"other\", \"version\": 1000000000}"),
        ("noise/manifest.json", &[0xA5; 300]),
    ] {
        fs::create_dir_all(scratch.at(name).parent().unwrap()).unwrap();
        fs::write(scratch.at(name), bytes).unwrap();
    }
    fs::create_dir_all(scratch.at("folder/manifest.json")).unwrap();
    for name in scratch.names() {
        assert_format(open(&scratch.at(&name)), &name);
    }
}

#[test]
fn a_missing_path_is_told_apart() {
    let scratch = Scratch::new();
    let result = open(&scratch.at("nowhere"));
    assert!(matches!(&result, Err(Error::NotFound(message)) if message.contains("nowhere")));
}

#[test]
fn files_that_do_not_belong_to_the_save_are_passed_over() {
    let scratch = Scratch::new();
    let path = small(&scratch);
    let before = open(&path).unwrap().banks.remove(0);
    fs::write(path.join("notes.txt"), "mine").unwrap();
    fs::write(path.join("bank-1.arrow"), "mine").unwrap();
    let [bank] = <[Bank; 1]>::try_from(open(&path).unwrap().banks).ok().unwrap();
    fixture::assert_same(&before.snapshot(), &bank.snapshot());
}

#[test]
#[cfg(unix)]
fn links_are_not_followed_out_of_the_folder() {
    let scratch = Scratch::new();
    let path = small(&scratch);
    for name in names(&path) {
        fs::rename(path.join(&name), scratch.at(&name)).unwrap();
        std::os::unix::fs::symlink(scratch.at(&name), path.join(&name)).unwrap();
        assert_format(open(&path), "symbolic link");
        fs::remove_file(path.join(&name)).unwrap();
        fs::rename(scratch.at(&name), path.join(&name)).unwrap();
    }
    std::os::unix::fs::symlink(&path, scratch.at("link")).unwrap();
    open(&scratch.at("link")).unwrap();
}

#[test]
fn a_bank_that_was_opened_does_not_need_its_files() {
    let scratch = Scratch::new();
    let bank = everything(config());
    save(&scratch.at("a"), &[bank.snapshot()]).unwrap();
    let opened: Bank = open(&scratch.at("a")).unwrap().banks.remove(0);
    fs::remove_dir_all(scratch.at("a")).unwrap();
    fixture::assert_same(&bank.snapshot(), &opened.snapshot());
}
