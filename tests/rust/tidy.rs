//! House rules that a reader would otherwise have to repeat in review. Each finding says file, line and what to do.
//!
//! A rule is a function from a path and its text to findings, so that it can be tried on samples (last test).

mod layers;
mod text;

use std::{collections::BTreeMap, fs, io, path::Path};

/// Line numbers and what to do there.
type Findings = Vec<(usize, String)>;
/// Text by path; None for a folder.
type Tree = BTreeMap<String, Option<String>>;
type Rule = fn(&str, &str) -> Findings;
type PageRule = fn(&str, &Tree) -> Findings;

const RULES: [Rule; 8] = [
    text::length,
    text::opening,
    text::name,
    text::words,
    text::blanks,
    layers::crates,
    layers::unsafe_places,
    layers::python_imports,
];

/// Folders that a build or a run makes.
const MADE: [&str; 4] = ["target", "dist", "__pycache__", "demo-memory"];
const EXTENSIONS: [&str; 8] = ["rs", "py", "pyi", "toml", "md", "lock", "yml", "html"];
/// The rules themselves quote what they forbid.
const EXEMPT: &str = "tests/rust/tidy";

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// Every text file below `folder` by its path from `root`, and every folder with the value None.
fn collect(root: &Path, folder: &Path, tree: &mut Tree) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        let from_root = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        if path.is_dir() && !MADE.contains(&name.as_str()) && (!name.starts_with('.') || name == ".ci") {
            collect(root, &path, tree)?;
            tree.insert(from_root, None);
        } else if path.is_file() && (EXTENSIONS.contains(&extension.as_ref()) || name == "Makefile" || name == "run") {
            tree.insert(from_root, Some(fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

fn findings(path: &str, text: &str) -> Vec<String> {
    let found = RULES.iter().flat_map(|rule| rule(path, text));
    found.map(|(line, what)| format!("{path}:{line}: {what}")).collect()
}

#[test]
fn the_house_rules_hold() -> io::Result<()> {
    let root = Path::new(".."); // cargo runs tests in the folder of their package
    let mut tree = Tree::new();
    collect(root, root, &mut tree)?;
    let judged = tree.iter().filter(|(path, _)| !path.starts_with(EXEMPT));
    let mut found: Vec<_> = judged.flat_map(|(path, text)| text.iter().flat_map(|text| findings(path, text))).collect();
    let pages: [(&str, PageRule); 2] =
        [("ARCHITECTURE.md", layers::architecture), ("CONTRIBUTING.md", layers::pointers)];
    for (name, rule) in pages {
        let page = tree.get(name).cloned().flatten().unwrap_or_default();
        found.extend(rule(&page, &tree).iter().map(|(line, what)| format!("{name}:{line}: {what}")));
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
    Ok(())
}

/// Samples: a path, a text, and the finding that it must lead to.
const FORBIDDEN: [(&str, &str, &str); 14] = [
    ("rust/core/src/lane.rs", "fn f() {}\n", "lane.rs:1: open the file"),
    ("python/mnemex/bank.py", "import numpy\n", "bank.py:1: open the file"),
    ("python/mnemex/utils.py", "\"\"\"Why.\"\"\"\n", "utils.py:1: `utils` names nothing"),
    ("rust/core/src/lane.rs", "//! Why.\n// FIXME\n", "lane.rs:2: `FIXME`"),
    ("README.md", "see /home/me/notes\n", "README.md:1: `/home/`"),
    ("README.md", "a line \n", "README.md:1: a tab, or blanks"),
    ("README.md", "a line", "README.md:1: end the file"),
    ("rust/kernels/Cargo.toml", "[dependencies]\nmnemex-core.workspace = true\n", "Cargo.toml:2: mnemex-core lies"),
    ("rust/io/Cargo.toml", "[dependencies]\nmnemex-oracle = {}\n", "Cargo.toml:2: mnemex-oracle lies"),
    ("rust/core/Cargo.toml", "[package]\n", "Cargo.toml:1: take the lints"),
    ("rust/core/src/lane.rs", "//! Why.\nunsafe { f() }\n", "lane.rs:2: unsafe code"),
    (
        "python/mnemex/hf/cache.py",
        "\"\"\"Why.\"\"\"\nfrom mnemex._native import Bank\n",
        "cache.py:2: only the facades",
    ),
    ("python/mnemex/bank.py", "\"\"\"Why.\"\"\"\nimport torch.nn\n", "bank.py:2: `torch.nn` is optional"),
    ("python/mnemex/torch/x.py", "\"\"\"Why.\"\"\"\nimport mnemex.hf\n", "x.py:2: the torch adapter"),
];

/// Each rule finds what it forbids, on the right line, and nothing in what it allows.
#[test]
fn each_rule_finds_what_it_forbids() {
    let long = format!("//! Why.\n{}", "\n".repeat(400));
    for (path, text, expected) in
        FORBIDDEN.into_iter().chain([("rust/core/src/lane.rs", long.as_str(), "lane.rs:401: 401 lines")])
    {
        let found = findings(path, text);
        assert!(found.iter().any(|finding| finding.contains(expected)), "{path}: {expected:?} is not in {found:?}");
    }
    let allowed = [
        ("rust/kernels/src/avx2.rs", "//! Why.\nunsafe { f() }\n"),
        ("rust/core/Cargo.toml", "[dev-dependencies]\nmnemex-oracle.workspace = true\n[lints]\nworkspace = true\n"),
        ("python/mnemex/bank.py", "\"\"\"Why.\"\"\"\ndef f():\n    import torch\n"),
        ("python/mnemex/torch/attention.py", "\"\"\"Why.\"\"\"\nimport torch\n"),
    ];
    for (path, text) in allowed {
        assert_eq!(findings(path, text), Vec::<String>::new(), "{path}");
    }
    let tree = Tree::from(["rust", "rust/core/index", "tests"].map(|folder| (folder.to_owned(), None)));
    let page = layers::architecture("`rust` and `rust/io`\n`gone/` and `index/`\n", &tree);
    let expected = ["there is no folder rust/io: correct the page", "there is no folder gone: correct the page"];
    assert_eq!(page, [(1, expected[0].into()), (2, expected[1].into()), (1, "say what `tests` is for".into())]);
    let page = layers::pointers("`rust/`, `python/<name>/`\n`rust/gone.rs`\n", &tree);
    assert_eq!(page, [(2, "there is no rust/gone.rs: correct the page".into())]);
}
