//! Tokens that were given but not yet published: validated, encoded in private memory, invisible to every read.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use mnemex_kernels::Kernels;

use crate::bank::Shared;
use crate::block::{Encoded, Schema};
use crate::capacity::Freed;
use crate::cells::{Numbers, StagedColumns, check_given};
use crate::codec::Codec;
use crate::config::{NonFinite, Values, Write};
use crate::error::{Error, Kind, Result, ensure};
use crate::input::{Input, VectorReader, check_shape, non_finite};
use crate::labels::{LabelIndex, NO_LABEL, OnDuplicate, Replaced};
use crate::usage::Touches;
use crate::version::Version;
use crate::work::{Ticker, Work};

/// One call of `stage`.
pub struct Tokens<'a> {
    /// `[rows, heads, T, key_dim]`
    pub keys: Input<'a>,
    /// `[rows, heads, T, value_dim]`, where the bank has values of their own.
    pub values: Option<Input<'a>>,
    /// Bank rows, one per row of the arrays; None: all.
    pub rows: Option<&'a [usize]>,
    /// `[rows * T]`: false tokens are not written.
    pub mask: Option<&'a [bool]>,
    /// `[rows * T]`
    pub labels: Option<&'a [i64]>,
    /// None: labels may repeat.
    pub on_duplicate: Option<OnDuplicate>,
    /// `[rows * T]`
    pub positions: Option<&'a [i64]>,
    /// `[rows * T]` for each named column; the tokens have 0, or false, in the others.
    pub columns: &'a [(&'a str, Numbers<'a>)],
    /// None: the bank's.
    pub nonfinite: Option<NonFinite>,
    /// Whether the caller gave one lane without its row and head; nothing but the answers' shape depends on it.
    pub one_lane: bool,
}

impl<'a> Tokens<'a> {
    /// Keys, and values if there are any, for every row; nothing else about them.
    pub fn of(keys: Input<'a>, values: Option<Input<'a>>) -> Tokens<'a> {
        Tokens {
            keys,
            values,
            rows: None,
            mask: None,
            labels: None,
            on_duplicate: None,
            positions: None,
            columns: &[],
            nonfinite: None,
            one_lane: false,
        }
    }
}

/// Ids of one stage call, `[rows, T]`; -1 for a token that was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedIds {
    /// Bank row of each row of the call.
    pub rows: Vec<usize>,
    /// Row-major.
    pub ids: Vec<i64>,
    /// T, of a call without rows too.
    pub tokens: usize,
    /// As in [`Tokens`].
    pub one_lane: bool,
}

/// Staged tokens of one row: consecutive ids.
pub(crate) struct StagedRow {
    pub(crate) id_lo: i64,
    /// By head; shared with what a policy outside this crate sees of a commit.
    pub(crate) lanes: Arc<Vec<Encoded>>,
    pub(crate) labels: Vec<i64>,
    pub(crate) positions: Vec<i64>,
    pub(crate) columns: StagedColumns,
    pub(crate) has_labels: bool,
    pub(crate) has_positions: bool,
    /// Entries, live or staged, whose place a staged token takes; by id, with the id of the token.
    pub(crate) replaced: Replaced,
    /// Known where nothing may be evicted.
    pub(crate) freed: Option<Freed>,
}

impl StagedRow {
    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// The label of a staged id.
    pub(crate) fn label(&self, id: i64) -> i64 {
        self.labels[(id - self.id_lo) as usize]
    }
}

/// Bytes that a touched entry takes while it is staged, about: a node of a tree, two thirds full.
const TOUCH_BYTES: usize = 36;

/// All that is staged.
#[derive(Default)]
pub(crate) struct Staging {
    pub(crate) rows: BTreeMap<usize, StagedRow>,
    pub(crate) calls: Vec<StagedIds>,
    pub(crate) schema: Option<Schema>,
    /// By row and head.
    pub(crate) touches: BTreeMap<(usize, usize), Touches>,
    /// By row; of committed entries too, so it outlives what is staged.
    pub(crate) label_index: BTreeMap<usize, LabelIndex>,
}

impl Staging {
    /// Whether a commit would publish nothing and list nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.calls.is_empty() && self.touches.is_empty()
    }

    pub(crate) fn nbytes(&self) -> usize {
        let row = |row: &StagedRow| row.lanes.iter().map(Encoded::nbytes).sum::<usize>() + row.columns.nbytes();
        let tokens: usize = self.rows.values().map(row).sum();
        let touches: usize = self.touches.values().map(|touches| touches.len() * TOUCH_BYTES).sum();
        tokens + touches + self.label_index.values().map(LabelIndex::nbytes).sum::<usize>()
    }

    /// Adds one call's tokens; on an error nothing was added.
    pub(crate) fn add(
        &mut self,
        shared: &Shared,
        version: &Version,
        tokens: &Tokens,
        work: &Work,
    ) -> Result<StagedIds> {
        let config = &shared.config;
        shared.check_planner()?;
        let [n_rows, _, n_tokens, _] = tokens.keys.shape();
        let rows = self.check_shapes(shared, version, tokens)?;
        let schema = self.schema_for(shared, version, tokens)?;
        let nonfinite = tokens.nonfinite.unwrap_or(config.nonfinite);
        ensure(nonfinite != NonFinite::Keep || !config.write.merges(), Kind::Argument, || {
            format!("nonfinite=\"keep\": {}; this bank merges, so \"raise\" or \"skip\"", config.write.no_nan())
        })?;
        let work = &work.for_size(n_rows * n_tokens * config.heads * config.key_dim);
        let mut written = written_tokens(tokens, &schema, nonfinite, work)?;
        let replaced = self.settle_duplicates(version, &rows, tokens, &mut written, work)?;
        let mut freed = Vec::with_capacity(n_rows);
        for ((row, written), replaced) in rows.iter().zip(&written).zip(&replaced) {
            freed.push(self.check_capacity(shared, version, *row, written.len(), replaced)?);
        }
        let heads = config.heads;
        let encoded = work.map(n_rows * heads, |at, ticker| {
            let written = &written[at / heads];
            encode(shared.kernels, tokens, &schema, [at / heads, at % heads], written, ticker)
        })?;

        let mut ids = vec![-1; n_rows * n_tokens];
        let mut encoded = encoded.into_iter();
        let mut arriving = Vec::with_capacity(n_rows);
        for &row in &rows {
            let lanes: Vec<Encoded> = encoded.by_ref().take(heads).collect();
            if let Some(staged) = self.rows.get_mut(&row) {
                for (lane, more) in Arc::make_mut(&mut staged.lanes).iter_mut().zip(&lanes) {
                    lane.reserve(more)?;
                }
            }
            arriving.push(lanes);
        }
        let writes = rows.iter().zip(&written).zip(arriving).zip(replaced.into_iter().zip(freed));
        for (at, (((&row, written), lanes), (replaced, freed))) in writes.enumerate() {
            let id_lo = self.next_id(version, row);
            for (id, &t) in (id_lo..).zip(written) {
                ids[at * n_tokens + t] = id;
            }
            let staged = self.extend_row(row, id_lo, lanes, tokens, at * n_tokens, written);
            staged.freed = freed;
            if staged.replaced.is_empty() {
                staged.replaced = replaced;
            } else {
                staged.replaced.extend(replaced);
            }
            let (n, chosen) = (staged.len() - written.len(), written.iter().map(|&t| at * n_tokens + t));
            staged.columns.extend(&config.columns, n, tokens.columns, chosen);
        }
        let call = StagedIds { rows, ids, tokens: n_tokens, one_lane: tokens.one_lane };
        self.calls.push(call.clone());
        // A call that writes nothing decides nothing.
        if written.iter().any(|written| !written.is_empty()) {
            self.schema = Some(schema);
        }
        Ok(call)
    }

    /// The id that the row's next token gets.
    pub(crate) fn next_id(&self, version: &Version, row: usize) -> i64 {
        self.rows.get(&row).map_or(version.rows[row].next_id, StagedRow::end)
    }

    /// Adds the tokens that one row of a call writes; `first` is the row's first token in the call's side arrays.
    fn extend_row(
        &mut self,
        row: usize,
        id_lo: i64,
        lanes: Vec<Encoded>,
        tokens: &Tokens,
        first: usize,
        written: &[usize],
    ) -> &mut StagedRow {
        let n_heads = lanes.len();
        let staged = self.rows.entry(row).or_insert_with(|| StagedRow {
            id_lo,
            lanes: Arc::new(vec![Encoded::default(); n_heads]),
            labels: Vec::new(),
            positions: Vec::new(),
            columns: StagedColumns::default(),
            has_labels: false,
            has_positions: false,
            replaced: Replaced::new(),
            freed: None,
        });
        for (lane, more) in Arc::make_mut(&mut staged.lanes).iter_mut().zip(lanes) {
            lane.append(more);
        }
        for (id, &t) in (id_lo..).zip(written) {
            staged.labels.push(tokens.labels.map_or(NO_LABEL, |labels| labels[first + t]));
            staged.positions.push(tokens.positions.map_or(id, |positions| positions[first + t]));
        }
        staged.has_labels |= tokens.labels.is_some();
        staged.has_positions |= tokens.positions.is_some();
        staged
    }

    /// Shapes, rows and side arrays; returns the bank row of each row of the call.
    fn check_shapes(&self, shared: &Shared, version: &Version, tokens: &Tokens) -> Result<Vec<usize>> {
        let config = &shared.config;
        let rows = match tokens.rows {
            Some(rows) => rows.to_vec(),
            None => (0..version.rows.len()).collect(),
        };
        let shape = tokens.keys.shape();
        let want = [Some(rows.len()), Some(config.heads), None, Some(config.key_dim)];
        check_shape("keys", shape, want)?;
        let mut seen = HashSet::new();
        for row in &rows {
            ensure(*row < version.rows.len(), Kind::Row, || {
                format!("rows name row {row}; the bank has {} rows", version.rows.len())
            })?;
            ensure(seen.insert(row), Kind::Argument, || {
                format!("rows name row {row} twice: write to each row once per call")
            })?;
        }
        let n = shape[0] * shape[2];
        let sides = [("mask", tokens.mask.map(<[_]>::len)), ("labels", tokens.labels.map(<[_]>::len))];
        for (name, len) in sides.into_iter().chain([("positions", tokens.positions.map(<[_]>::len))]) {
            ensure(len.is_none_or(|len| len == n), Kind::Shape, || {
                format!("{name} have {} numbers; expected [rows, T] = [{}, {}]", len.unwrap_or(0), shape[0], shape[2])
            })?;
        }
        check_given(&config.columns, tokens.columns, [shape[0], shape[2]])?;
        if let Write::Pages(how) = &config.write {
            how.check_given(tokens.columns, n)?;
        }
        match (config.values, &tokens.values) {
            (Values::Dim(dim), Some(values)) => {
                check_shape("values", values.shape(), [Some(shape[0]), Some(shape[1]), Some(shape[2]), Some(dim)])
            }
            (Values::Dim(dim), None) => Err(Error::new(
                Kind::Argument,
                format!("values are missing: this bank stores a value of {dim} numbers with each key"),
            )),
            (Values::None, Some(_)) => {
                Err(Error::new(Kind::Argument, "values were given to a bank that stores none: make it with value_dim="))
            }
            (Values::Key, Some(_)) => Err(Error::new(
                Kind::Argument,
                "values were given to a bank whose keys are its values (value_dim=\"key\")",
            )),
            (_, None) => Ok(()),
        }?;
        Ok(rows)
    }

    /// The bank's schema, or the one that this first write decides.
    fn schema_for(&self, shared: &Shared, version: &Version, tokens: &Tokens) -> Result<Schema> {
        let config = &shared.config;
        let key = tokens.keys.codec();
        let value = tokens.values.map_or(Codec::F32, |values| values.codec());
        let schema = version.schema.or(self.schema).unwrap_or_else(|| {
            let codec =
                |asked: Option<Codec>, given| asked.unwrap_or(if config.write.averages() { Codec::F32 } else { given });
            Schema::of(config, codec(config.key_codec, key), codec(config.value_codec, value))
        });
        let fits = |argument: &str, asked: Option<Codec>, stored: Codec, input: &Input| {
            ensure(asked.is_some() || stored.holds(input.codec()), Kind::Dtype, || {
                format!(
                    "{argument} are {}, and this bank took {} from its first write: cast them, or make the bank with \
                     {}_codec={:?} to round what comes",
                    input.dtype(),
                    stored.name(),
                    argument.trim_end_matches('s'),
                    stored.name()
                )
            })
        };
        fits("keys", config.key_codec, schema.key.codec, &tokens.keys)?;
        if let (Some(values), Some(layout)) = (&tokens.values, schema.value) {
            fits("values", config.value_codec, layout.codec, values)?;
        }
        Ok(schema)
    }
}

/// The tokens of each row that are to be written: not masked and, unless non-finite ones are kept, finite as given and
/// as stored.
fn written_tokens(tokens: &Tokens, schema: &Schema, nonfinite: NonFinite, work: &Work) -> Result<Vec<Vec<usize>>> {
    let [n_rows, heads, n_tokens, _] = tokens.keys.shape();
    work.map(n_rows, |row, ticker| {
        let mut sides = vec![("keys", VectorReader::new(tokens.keys), schema.key.codec)];
        if let (Some(values), Some(layout)) = (tokens.values, schema.value) {
            sides.push(("values", VectorReader::new(values), layout.codec));
        }
        let mut written = Vec::with_capacity(n_tokens);
        for t in (0..n_tokens).filter(|t| tokens.mask.is_none_or(|mask| mask[row * n_tokens + t])) {
            ticker.tick()?;
            let bank_row = tokens.rows.map_or(row, |rows| rows[row]);
            let mut refuse = |head: usize| {
                sides.iter_mut().find_map(|(name, reader, codec)| {
                    if !reader.is_finite([row, head, t]) {
                        Some(non_finite(name, bank_row, head, t))
                    } else if !reader.fits([row, head, t], *codec) {
                        Some(beyond_codec(name, *codec, bank_row, head, t))
                    } else {
                        None
                    }
                })
            };
            let refused = if nonfinite == NonFinite::Keep { None } else { (0..heads).find_map(&mut refuse) };
            match (refused, nonfinite) {
                (None, _) => written.push(t),
                (Some(error), NonFinite::Raise) => return Err(error),
                (Some(_), _) => {}
            }
        }
        Ok(written)
    })
}

fn beyond_codec(argument: &str, codec: Codec, row: usize, head: usize, token: usize) -> Error {
    let message = format!(
        "{argument} at row {row}, head {head}, token {token} are beyond what {} holds (float16: 65504): use the f32 codec, \
         or scale them",
        codec.name()
    );
    Error::new(Kind::NonFinite, message)
}

/// Tokens encoded between two looks at the clock.
const TICK_TOKENS: usize = 64;

/// The written tokens of one row and head, encoded.
fn encode(
    kernels: &Kernels,
    tokens: &Tokens,
    schema: &Schema,
    [row, head]: [usize; 2],
    written: &[usize],
    ticker: &Ticker,
) -> Result<Encoded> {
    let mut encoded = Encoded::zeroed(schema, written.len())?;
    let mut keys = VectorReader::new(tokens.keys);
    let mut stored = vec![0.0; schema.key.dim];
    for (at, &t) in written.iter().enumerate() {
        if at.is_multiple_of(TICK_TOKENS) {
            ticker.tick()?;
        }
        keys.encode([row, head, t], schema.key, encoded.key_row(schema, at));
        encoded.key(schema, at).decode(&mut stored);
        encoded.note_key(schema, kernels, at, &stored);
    }
    if let (Some(values), Some(layout)) = (tokens.values, schema.value) {
        let mut reader = VectorReader::new(values);
        for (at, &t) in written.iter().enumerate() {
            if at.is_multiple_of(TICK_TOKENS) {
                ticker.tick()?;
            }
            reader.encode([row, head, t], layout, encoded.value_row(schema, at));
        }
    }
    Ok(encoded)
}
