//! Rules about who may know whom: crates, `unsafe`, Python imports, and the folders that ARCHITECTURE.md names.

use super::{Findings, Tree, lines};

/// Which crates of the workspace a crate may build on; the oracle is for tests alone and stands in no list.
const LAYERS: [(&str, &[&str]); 5] = [
    ("rust/kernels/", &[]),
    ("rust/oracle/", &[]),
    ("rust/core/", &["mnemex-kernels"]),
    ("rust/io/", &["mnemex-kernels", "mnemex-core"]),
    ("rust/python/", &["mnemex-kernels", "mnemex-core", "mnemex-io"]),
];

/// Where `unsafe` may stand, and what for.
const UNSAFE: [(&str, &str); 4] = [
    ("rust/core/src/arena.rs", "slots of a shared chunk"),
    ("rust/kernels/src/", "vector instructions"),
    ("rust/kernels/tests/against_oracle/short.rs", "a thread's rounding mode"),
    ("benches/calibrate/src/", "vector instructions"),
];

/// Python files between the native module and the user.
const FACADES: [&str; 13] = [
    "_entries",
    "_product",
    "arrow",
    "bank",
    "build",
    "facts",
    "files",
    "ingest",
    "memory",
    "policy",
    "product_keys",
    "reads",
    "writes",
];

/// Python modules that only some installations have, or that cost an import; and the folders that are built on them.
const OPTIONAL: [&str; 13] = [
    "torch",
    "transformers",
    "pyarrow",
    "polars",
    "duckdb",
    "rich",
    "typer",
    "matplotlib",
    "safetensors",
    "mnemex.torch",
    "mnemex.hf",
    "mnemex.demo",
    "mnemex.commands",
];
const BUILT_ON_OPTIONAL: [&str; 4] = ["torch/", "hf/", "demo/", "commands.py"];

pub(super) fn crates(path: &str, text: &str) -> Findings {
    let Some((_, allowed)) = LAYERS.iter().find(|(folder, _)| path == format!("{folder}Cargo.toml")) else {
        return vec![];
    };
    let mut found = Findings::new();
    let mut section = "";
    for (n, line) in lines(text) {
        if line.starts_with('[') {
            section = line;
        }
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        let library = section == "[dependencies]" && name.starts_with("mnemex-") && !allowed.contains(&name);
        if library {
            found.push((n, format!("{name} lies above or beside this crate: see the layers in ARCHITECTURE.md")));
        }
    }
    if !text.contains("[lints]\nworkspace = true") {
        found.push((1, "take the lints of the workspace: [lints] workspace = true".into()));
    }
    found
}

pub(super) fn unsafe_places(path: &str, text: &str) -> Findings {
    let allowed = UNSAFE.iter().any(|(place, _)| path.starts_with(place));
    lines(if path.ends_with(".rs") && !allowed { text } else { "" })
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .filter(|(_, line)| {
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|form| line.contains(form))
        })
        .map(|(n, _)| {
            (n, "unsafe code outside its places: move it, or add the file and the reason to this rule".into())
        })
        .collect()
}

pub(super) fn python_imports(path: &str, text: &str) -> Findings {
    let Some(inside) = path.strip_prefix("python/mnemex/").filter(|inside| inside.ends_with(".py")) else {
        return vec![];
    };
    let facade = FACADES.contains(&inside.trim_end_matches(".py"));
    let on_optional = BUILT_ON_OPTIONAL.iter().any(|place| inside.starts_with(place));
    let mut found = Findings::new();
    for (n, line) in lines(text) {
        let statement = line.trim_start();
        let module = statement.strip_prefix("from ").or(statement.strip_prefix("import ")).unwrap_or_default();
        let module = module.split([' ', ',']).next().unwrap_or_default();
        let named = |name: &str| module == name || module.starts_with(&format!("{name}."));
        if !facade && (named("mnemex._native") || statement.starts_with("from mnemex import _native")) {
            found.push((n, "only the facades import the native module: use the public class".into()));
        }
        if statement == line && !on_optional && OPTIONAL.iter().any(|name| named(name)) {
            found.push((n, format!("`{module}` is optional: import it where it is used")));
        }
        if inside.starts_with("torch/") && named("mnemex.hf") {
            found.push((n, "the torch adapter knows nothing of transformers".into()));
        }
    }
    found
}

/// Names in backticks on one line of a page.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Folders that ARCHITECTURE.md names exist (`` `rust/io` `` from the root, `` `index/` `` somewhere), and every top-level
/// folder is named there.
pub(super) fn architecture(page: &str, tree: &Tree) -> Findings {
    let folders: Vec<_> = tree.iter().filter(|(_, text)| text.is_none()).map(|(path, _)| path.as_str()).collect();
    let exists = |name: &str| folders.iter().any(|folder| *folder == name || folder.ends_with(&format!("/{name}")));
    let top = |name: &str| folders.contains(&name.split('/').next().unwrap_or_default());
    let mut found = Findings::new();
    for (n, line) in lines(page) {
        let named = quoted(line).filter(|name| name.ends_with('/') || (top(name) && !name.contains(['.', '<'])));
        let missing = named.map(|name| name.trim_end_matches('/')).filter(|name| !exists(name));
        found.extend(missing.map(|name| (n, format!("there is no folder {name}: correct the page"))));
    }
    let unnamed = folders.iter().filter(|folder| !folder.contains('/') && !folder.starts_with('.'));
    let unnamed =
        unnamed.filter(|folder| !page.contains(&format!("`{folder}`")) && !page.contains(&format!("`{folder}/")));
    found.extend(unnamed.map(|folder| (1, format!("say what `{folder}` is for"))));
    found
}

/// Files and folders that CONTRIBUTING.md points at exist; `<name>` stands for what a reader will add.
pub(super) fn pointers(page: &str, tree: &Tree) -> Findings {
    let mut found = Findings::new();
    for (n, line) in lines(page) {
        let paths =
            quoted(line).filter(|name| name.contains('/') && !name.contains(['<', ' ']) && !name.starts_with('.'));
        let missing = paths.filter(|path| !tree.contains_key(path.trim_end_matches('/')));
        found.extend(missing.map(|path| (n, format!("there is no {path}: correct the page"))));
    }
    found
}
