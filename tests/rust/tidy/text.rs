//! Rules about the text of one file: its length, opening, name, words and blanks.

use super::{Findings, lines};

const MOST_LINES: usize = 400;

const BANNED_NAMES: [&str; 7] = ["utils", "util", "helpers", "helper", "common", "misc", "manager"];

/// Words that have no place in code, and the better habit. `TODO` may stand where it names its event: `TODO(event)`.
const BANNED_WORDS: [(&str, &str); 9] = [
    ("TODO:", "do it, or name the event that lets it be done: TODO(event)"),
    ("TODO ", "do it, or name the event that lets it be done: TODO(event)"),
    ("FIXME", "mend it"),
    ("previously", "say what holds, not what changed"),
    ("now uses", "say what holds, not what changed"),
    ("as requested", "say what holds, not who asked"),
    ("dbg!", "remove it"),
    ("todo!", "write it"),
    ("unimplemented!", "write it, or return an error that says what to do"),
];
const MACHINE_PATHS: [&str; 4] = ["/home/", "/root/", "/Users/", "/work/"];

fn is_code(path: &str) -> bool {
    path.ends_with(".rs") || path.ends_with(".py")
}

pub(super) fn length(path: &str, text: &str) -> Findings {
    let n_lines = text.lines().count();
    if is_code(path) && n_lines > MOST_LINES {
        return vec![(n_lines, format!("{n_lines} lines, at most {MOST_LINES}: split it by meaning"))];
    }
    vec![]
}

pub(super) fn opening(path: &str, text: &str) -> Findings {
    let openings: &[&str] = if path.ends_with(".rs") { &["//!"] } else { &["\"\"\"", "r\"\"\""] };
    if is_code(path) && !openings.iter().any(|opening| text.starts_with(opening)) {
        return vec![(1, format!("open the file with {}, and say why it exists", openings[0]))];
    }
    vec![]
}

pub(super) fn name(path: &str, _: &str) -> Findings {
    let banned = path.split(['/', '.']).find(|part| BANNED_NAMES.contains(part));
    banned.map(|part| (1, format!("`{part}` names nothing: name the concept"))).into_iter().collect()
}

pub(super) fn words(path: &str, text: &str) -> Findings {
    let code: &[(&str, &str)] = if is_code(path) { &BANNED_WORDS } else { &[] };
    let machine = MACHINE_PATHS.map(|path| (path, "a path of one machine: remove it"));
    let banned: Vec<_> = code.iter().chain(&machine).collect();
    let mut found = Findings::new();
    for (n, line) in lines(text) {
        found.extend(
            banned.iter().filter(|(word, _)| line.contains(word)).map(|(word, fix)| (n, format!("`{word}`: {fix}"))),
        );
    }
    found
}

pub(super) fn blanks(path: &str, text: &str) -> Findings {
    let tabs = !path.ends_with("Makefile");
    let mut found: Findings = lines(text)
        .filter(|(_, line)| line.ends_with([' ', '\t']) || (tabs && line.contains('\t')))
        .map(|(n, _)| (n, "a tab, or blanks at the end of the line: remove them".into()))
        .collect();
    if !text.ends_with('\n') {
        found.push((lines(text).count(), "end the file with a newline".into()));
    }
    found
}
