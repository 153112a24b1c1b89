//! A save appears whole or not at all, and harms nothing that is there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should say where")]

mod fixture;

use std::fs;

use fixture::{Scratch, assert_same, config, everything, names, open, save};
use mnemex_core::work::Work;
use mnemex_core::{Bank, Config};
use mnemex_io::{Contents, Error, Kind, Result};

fn overwrite(path: &std::path::Path, bank: &Bank) -> Result<()> {
    let contents = Contents { kind: Kind::Bank, banks: &[bank.snapshot()], metadata: "{}" };
    mnemex_io::save(path, &contents, true, &Work::ALONE)
}

#[test]
fn nothing_is_replaced_unless_asked_for() {
    let scratch = Scratch::new();
    let bank = everything(config());
    fs::write(scratch.at("file"), "mine").unwrap();
    fs::create_dir(scratch.at("folder")).unwrap();
    save(&scratch.at("save"), &[bank.snapshot()]).unwrap();
    for name in ["file", "folder", "save"] {
        let error = save(&scratch.at(name), &[bank.snapshot()]).unwrap_err();
        assert!(matches!(&error, Error::Exists(message) if message.contains(name)), "{error}");
    }
    assert_eq!(scratch.names(), ["file", "folder", "save"]);
    assert_eq!(names(&scratch.at("folder")), [""; 0]);
    assert_same(&bank.snapshot(), &open(&scratch.at("save")).unwrap().banks[0].snapshot());
}

#[test]
fn overwriting_replaces_a_save_an_empty_folder_or_nothing() {
    let scratch = Scratch::new();
    let (old, new) = (everything(config()), Bank::new(config(), 7).unwrap());
    let many = [old.snapshot(), old.snapshot()];
    save(&scratch.at("save"), &many).unwrap();
    fs::create_dir(scratch.at("empty")).unwrap();
    for name in ["save", "empty", "new", "new"] {
        overwrite(&scratch.at(name), &new).unwrap();
        assert_same(&new.snapshot(), &open(&scratch.at(name)).unwrap().banks[0].snapshot());
        assert_eq!(names(&scratch.at(name)), ["bank-0.arrow", "manifest.json"]);
    }
    assert_eq!(scratch.names(), ["empty", "new", "save"]);
}

#[test]
fn overwriting_leaves_alone_what_is_not_a_save() {
    let scratch = Scratch::new();
    let bank = everything(config());
    fs::write(scratch.at("file"), "mine").unwrap();
    for (folder, file) in [("notes", "notes.txt"), ("foreign", "manifest.json"), ("arrow", "bank-0.arrow")] {
        fs::create_dir(scratch.at(folder)).unwrap();
        fs::write(scratch.at(folder).join(file), "mine").unwrap();
    }
    save(&scratch.at("mixed"), &[bank.snapshot()]).unwrap();
    fs::write(scratch.at("mixed").join("notes.txt"), "mine").unwrap();
    for name in ["file", "notes", "foreign", "arrow", "mixed"] {
        let error = overwrite(&scratch.at(name), &bank).unwrap_err();
        assert!(matches!(error, Error::Exists(_)), "{error}");
    }
    assert_eq!(scratch.names(), ["arrow", "file", "foreign", "mixed", "notes"]);
    assert_eq!(names(&scratch.at("mixed")), ["bank-0.arrow", "manifest.json", "notes.txt"]);
    open(&scratch.at("mixed")).unwrap();
}

#[test]
#[cfg(unix)]
fn overwriting_through_a_link_replaces_what_it_stands_for() {
    let scratch = Scratch::new();
    save(&scratch.at("save"), &[everything(config()).snapshot()]).unwrap();
    std::os::unix::fs::symlink(scratch.at("save"), scratch.at("link")).unwrap();
    let new = Bank::new(config(), 1).unwrap();
    overwrite(&scratch.at("link"), &new).unwrap();
    assert_same(&new.snapshot(), &open(&scratch.at("save")).unwrap().banks[0].snapshot());
    assert!(fs::symlink_metadata(scratch.at("link")).unwrap().is_symlink());
}

#[test]
fn a_save_that_fails_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let bank = everything(config());
    fs::write(scratch.at("file"), "mine").unwrap();
    for path in ["file/below", "no/such/parent", "nul\0"] {
        let error = save(&scratch.at(path), &[bank.snapshot()]).unwrap_err();
        assert!(matches!(error, Error::Os { .. }), "{error}");
    }
    for (path, kind, n_banks, metadata) in
        [("..", Kind::Bank, 1, "{}"), ("a", Kind::Bank, 1, "{"), ("a", Kind::Bank, 0, "{}"), ("a", Kind::Bank, 2, "{}")]
    {
        let contents = Contents { kind, banks: &vec![bank.snapshot(); n_banks], metadata };
        let error = mnemex_io::save(&scratch.at(path), &contents, false, &Work::ALONE).unwrap_err();
        assert!(matches!(error, Error::Core(_)), "{error}");
    }
    assert_eq!(scratch.names(), ["file"]);
    assert_eq!(fs::read(scratch.at("file")).unwrap(), b"mine");
}

#[test]
fn an_interrupted_save_leaves_nothing_behind_and_what_was_there_whole() {
    let scratch = Scratch::new();
    let bank = everything(Config { heads: 1, ..config() });
    save(&scratch.at("save"), &[bank.snapshot()]).unwrap();
    let stop = Work { interrupted: &|| true, ..Work::ALONE };
    for (name, replace) in [("save", true), ("new", false)] {
        let contents = Contents { kind: Kind::Bank, banks: &[bank.snapshot()], metadata: "{}" };
        let error = mnemex_io::save(&scratch.at(name), &contents, replace, &stop).unwrap_err();
        assert!(matches!(error, Error::Core(error) if error.kind == mnemex_core::Kind::Interrupted));
    }
    assert!(mnemex_io::open(&scratch.at("save"), &stop).is_err());
    assert_eq!(scratch.names(), ["save"]);
    assert_same(&bank.snapshot(), &open(&scratch.at("save")).unwrap().banks[0].snapshot());
}
