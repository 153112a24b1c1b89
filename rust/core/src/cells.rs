//! What columns are made of: numbers of one of three types, borrowed from a caller or owned, and the names they go by.

use crate::error::{Error, Kind, Result, ensure};

/// Columns that every bank has.
pub const ALWAYS: [&str; 3] = ["id", "label", "position"];

/// Names that a caller's column may not have: those of the columns that every bank has, and those beside them in tables.
pub const RESERVED: [&str; 7] = ["id", "label", "position", "row", "head", "key", "value"];

/// Most columns of a bank: a row has a place for each, whether or not anything is in it.
pub const MAX_COLUMNS: usize = 64;

/// Type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// float32
    F32,
    /// int64
    I64,
    /// Booleans, a byte each.
    Bool,
}

impl ColumnType {
    /// Every type: the list that names and files go by.
    pub const ALL: [ColumnType; 3] = [ColumnType::F32, ColumnType::I64, ColumnType::Bool];

    /// Its name in Python and in files.
    pub fn name(self) -> &'static str {
        match self {
            ColumnType::F32 => "float32",
            ColumnType::I64 => "int64",
            ColumnType::Bool => "bool",
        }
    }

    /// The type of that name.
    pub fn named(name: &str) -> Option<ColumnType> {
        ColumnType::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

/// A column of the caller's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// What it is called in calls and files.
    pub name: String,
    /// What its numbers are.
    pub dtype: ColumnType,
}

/// Refuses columns that cannot be.
pub(crate) fn check_declared(columns: &[Declared]) -> Result<()> {
    ensure(columns.len() <= MAX_COLUMNS, Kind::Argument, || {
        format!("columns name {} columns; a bank has at most {MAX_COLUMNS}", columns.len())
    })?;
    for (at, Declared { name, .. }) in columns.iter().enumerate() {
        let refuse = |why: &str| Err(Error::new(Kind::Argument, format!("columns={name:?}: {why}")));
        if name.is_empty() {
            return refuse("a column needs a name");
        }
        if name.contains('\0') {
            return refuse("Arrow ends a name at a NUL: leave it out");
        }
        if RESERVED.contains(&name.as_str()) {
            return refuse(&format!("{} are there already: use another name", RESERVED.join(", ")));
        }
        if columns[..at].iter().any(|other| other.name == *name) {
            return refuse("a column is declared once");
        }
    }
    Ok(())
}

/// Numbers of the caller's, of one type.
#[derive(Clone, Copy, Debug)]
pub enum Numbers<'a> {
    /// float32
    F32(&'a [f32]),
    /// int64
    I64(&'a [i64]),
    /// Booleans.
    Bool(&'a [bool]),
}

impl Numbers<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Numbers::F32(x) => x.len(),
            Numbers::I64(x) => x.len(),
            Numbers::Bool(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their type.
    pub fn dtype(&self) -> ColumnType {
        match self {
            Numbers::F32(_) => ColumnType::F32,
            Numbers::I64(_) => ColumnType::I64,
            Numbers::Bool(_) => ColumnType::Bool,
        }
    }
}

/// Numbers of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Cells {
    /// float32
    F32(Vec<f32>),
    /// int64
    I64(Vec<i64>),
    /// Booleans.
    Bool(Vec<bool>),
}

impl Cells {
    /// `n` times what an entry has that was given nothing: 0, or false.
    pub(crate) fn absent(dtype: ColumnType, n: usize) -> Cells {
        match dtype {
            ColumnType::F32 => Cells::F32(vec![0.0; n]),
            ColumnType::I64 => Cells::I64(vec![0; n]),
            ColumnType::Bool => Cells::Bool(vec![false; n]),
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.view().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same numbers, borrowed.
    pub fn view(&self) -> Numbers<'_> {
        match self {
            Cells::F32(x) => Numbers::F32(x),
            Cells::I64(x) => Numbers::I64(x),
            Cells::Bool(x) => Numbers::Bool(x),
        }
    }

    /// Makes it `n` long, with what is absent behind what is there.
    fn resize(&mut self, n: usize) {
        match self {
            Cells::F32(x) => x.resize(n, 0.0),
            Cells::I64(x) => x.resize(n, 0),
            Cells::Bool(x) => x.resize(n, false),
        }
    }

    /// Adds the chosen ones of numbers of the same type.
    fn extend(&mut self, numbers: Numbers, chosen: impl Iterator<Item = usize>) {
        match (self, numbers) {
            (Cells::F32(x), Numbers::F32(from)) => x.extend(chosen.map(|at| from[at])),
            (Cells::I64(x), Numbers::I64(from)) => x.extend(chosen.map(|at| from[at])),
            (Cells::Bool(x), Numbers::Bool(from)) => x.extend(chosen.map(|at| from[at])),
            _ => unreachable!("types were checked when the call came in"),
        }
    }

    /// Adds others of the same type.
    pub(crate) fn append(&mut self, more: Cells) {
        match (self, more) {
            (Cells::F32(x), Cells::F32(mut more)) => x.append(&mut more),
            (Cells::I64(x), Cells::I64(mut more)) => x.append(&mut more),
            (Cells::Bool(x), Cells::Bool(mut more)) => x.append(&mut more),
            _ => unreachable!("numbers of one column have one type"),
        }
    }

    fn nbytes(&self) -> usize {
        match self {
            Cells::F32(x) => x.capacity() * size_of::<f32>(),
            Cells::I64(x) => x.capacity() * size_of::<i64>(),
            Cells::Bool(x) => x.capacity(),
        }
    }
}

/// The columns of one row's staged tokens; a column that no call gave is not there.
#[derive(Clone, Default)]
pub(crate) struct StagedColumns(Vec<Option<Cells>>);

impl StagedColumns {
    /// Adds the chosen tokens of a call to the `n` that are staged; what the call does not give is absent.
    pub(crate) fn extend(
        &mut self,
        declared: &[Declared],
        n: usize,
        given: &[(&str, Numbers)],
        chosen: impl ExactSizeIterator<Item = usize> + Clone,
    ) {
        self.0.resize(declared.len(), None);
        for (declared, cells) in declared.iter().zip(&mut self.0) {
            if let Some((_, numbers)) = given.iter().find(|(name, _)| *name == declared.name) {
                let cells = cells.get_or_insert_with(|| Cells::absent(declared.dtype, n));
                cells.extend(*numbers, chosen.clone());
            } else if let Some(cells) = cells {
                cells.resize(n + chosen.len());
            }
        }
    }

    /// Keeps the first `n` tokens.
    pub(crate) fn truncate(&mut self, n: usize) {
        self.0.iter_mut().flatten().for_each(|cells| cells.resize(n));
    }

    /// Place and numbers of each column that was given.
    pub(crate) fn given(&self) -> impl Iterator<Item = (usize, Numbers<'_>)> {
        self.0.iter().enumerate().filter_map(|(at, cells)| Some((at, cells.as_ref()?.view())))
    }

    /// The numbers of the `at`-th column, if it was given.
    pub(crate) fn numbers(&self, at: usize) -> Option<Numbers<'_>> {
        Some(self.0.get(at)?.as_ref()?.view())
    }

    /// The numbers of chosen tokens in the `at`-th column; None where no call gave it.
    pub(crate) fn chosen(&self, at: usize, tokens: &[usize]) -> Option<Cells> {
        let cells = self.0.get(at)?.as_ref()?.view();
        let mut chosen = Cells::absent(cells.dtype(), 0);
        chosen.extend(cells, tokens.iter().copied());
        Some(chosen)
    }

    /// The number of a token in the `at`-th column; 0 where it was given none, or where the column holds no float32.
    pub(crate) fn float(&self, at: usize, token: usize) -> f32 {
        match self.0.get(at).and_then(Option::as_ref) {
            Some(Cells::F32(x)) => x.get(token).copied().unwrap_or(0.0),
            _ => 0.0,
        }
    }

    pub(crate) fn nbytes(&self) -> usize {
        self.0.iter().flatten().map(Cells::nbytes).sum()
    }
}

/// Refuses columns of a call that were not declared, or are of another type or length.
pub(crate) fn check_given(declared: &[Declared], given: &[(&str, Numbers)], [rows, tokens]: [usize; 2]) -> Result<()> {
    for (at, (name, numbers)) in given.iter().enumerate() {
        let known = declared.iter().find(|declared| declared.name == *name).ok_or_else(|| {
            let names: Vec<&str> = declared.iter().map(|declared| declared.name.as_str()).collect();
            let what = if names.is_empty() { "none".into() } else { names.join(", ") };
            Error::new(
                Kind::Argument,
                format!("columns name {name:?}; this bank declares {what}: make it with columns={{{name:?}: ...}}"),
            )
        })?;
        ensure(!given[..at].iter().any(|(other, _)| other == name), Kind::Argument, || {
            format!("columns name {name:?} twice")
        })?;
        ensure(numbers.dtype() == known.dtype, Kind::Dtype, || {
            format!("columns[{name:?}] is {}; expected {}", numbers.dtype().name(), known.dtype.name())
        })?;
        ensure(numbers.len() == rows * tokens, Kind::Shape, || {
            format!("columns[{name:?}] has {} numbers; expected [rows, T] = [{rows}, {tokens}]", numbers.len())
        })?;
    }
    Ok(())
}
