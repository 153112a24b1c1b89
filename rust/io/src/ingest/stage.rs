//! A piece's tokens to the rows of the bank that they are for, in the memory in which they came where that is possible.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow_buffer::{Buffer, MutableBuffer};
use bytemuck::cast_slice;
use mnemex_core::cells;
use mnemex_core::config::NonFinite;
use mnemex_core::input::Input;
use mnemex_core::labels::OnDuplicate;
use mnemex_core::stage::Tokens;
use mnemex_core::work::Work;
use mnemex_core::{Bank, Codec, Kind};
use ndarray::{ArrayView4, ShapeBuilder};

use super::columns::{Columns, Numbers};
use super::piece::Piece;
use super::place::Place;
use super::vectors::VectorColumn;
use crate::error::{Error, Result};

/// What staging a piece needs to know.
pub(super) struct Stage<'a> {
    pub(super) bank: &'a Bank,
    pub(super) columns: &'a Columns,
    pub(super) on_duplicate: Option<OnDuplicate>,
    pub(super) place: &'a Place,
    pub(super) work: &'a Work<'a>,
}

/// Tokens that a bank left unwritten.
#[derive(Clone, Copy, Default)]
pub(super) struct Unwritten {
    pub(super) nonfinite: usize,
    pub(super) duplicate: usize,
}

impl Unwritten {
    pub(super) fn len(self) -> usize {
        self.nonfinite + self.duplicate
    }
}

impl Stage<'_> {
    /// Stages a piece; which of its tokens the bank left unwritten.
    pub(super) fn piece(&self, piece: &Piece) -> Result<Unwritten> {
        let mut unwritten = Unwritten::default();
        for (&row, tokens) in &self.by_row(piece)? {
            let Unwritten { nonfinite, duplicate } = self.row(row, tokens, piece)?;
            unwritten.nonfinite += nonfinite;
            unwritten.duplicate += duplicate;
        }
        Ok(unwritten)
    }

    /// The tokens of each bank row, in the order in which they came.
    fn by_row(&self, piece: &Piece) -> Result<BTreeMap<usize, Vec<usize>>> {
        let mut tokens: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let (Some(rows), Some(named)) = (&piece.bank_rows, &self.columns.row) else {
            if piece.len() > 0 {
                tokens.insert(0, (0..piece.len()).collect());
            }
            return Ok(tokens);
        };
        let n_rows = self.bank.snapshot().version().rows.len();
        for (token, &row) in rows.iter().enumerate() {
            let known = usize::try_from(row).ok().filter(|&row| row < n_rows).ok_or_else(|| {
                let what = format!("row number {row}; the bank has {n_rows} rows, numbered from 0");
                self.place.refuse(Kind::Row, named.name(), Some(piece.number(token)), what)
            })?;
            tokens.entry(known).or_default().push(token);
        }
        Ok(tokens)
    }

    /// Stages one bank row's tokens, of which there is one at least.
    fn row(&self, row: usize, tokens: &[usize], piece: &Piece) -> Result<Unwritten> {
        let (bank, columns) = (self.bank, self.columns);
        let [heads, key_dim, value_dim] = [bank.config().heads, bank.config().key_dim, bank.config().value_dim()];
        let keys = gathered(&piece.keys, tokens, piece.len());
        let values = piece.values.as_ref().zip(columns.value.as_ref());
        let values = values.map(|(bytes, column)| (gathered(bytes, tokens, piece.len()), column));
        let side = |numbers: &Option<Vec<i64>>| {
            numbers.as_ref().map(|numbers| tokens.iter().map(|&at| numbers[at]).collect::<Vec<i64>>())
        };
        let (labels, positions) = (side(&piece.labels), side(&piece.positions));
        let own: Vec<(&str, Numbers)> =
            piece.columns.iter().map(|(bank, numbers)| (bank.as_str(), numbers.at(tokens))).collect();
        let views: Vec<_> = own.iter().map(|(name, numbers)| (*name, numbers.view())).collect();
        let given = Given {
            row: &[row],
            keys: input(&keys, columns.key.codec, [heads, tokens.len(), key_dim]),
            values: values.as_ref().map(|(bytes, column)| input(bytes, column.codec, [heads, tokens.len(), value_dim])),
            labels: labels.as_deref(),
            positions: positions.as_deref(),
            columns: &views,
        };
        let key = (&columns.key, &keys, bank.config().key_codec);
        let value = values.as_ref().map(|(bytes, column)| (*column, bytes, bank.config().value_codec));
        let sides = [Some(key), value];
        let ids = self.hand_over(&given).map_err(|error| match error.kind {
            Kind::NonFinite => self.non_finite(sides, tokens, piece).unwrap_or(Error::Core(error)),
            Kind::Interrupted => Error::Core(error),
            kind => {
                let named = columns.label.as_ref().zip(labels.as_deref()).zip(error.token);
                if let Some(((named, labels), token)) = named {
                    let what = match labels[..token].iter().position(|&label| label == labels[token]) {
                        Some(earlier) => format!("that of row {}", piece.number(tokens[earlier])),
                        None => format!("that of an entry in row {row} of the bank"),
                    };
                    let what = format!(
                        "label {} is {what} too: take it out, or ask for on_duplicate=\"skip\" or \"replace\"",
                        labels[token]
                    );
                    return self.place.refuse(kind, named.name(), Some(piece.number(tokens[token])), what);
                }
                let (first, last) = (piece.number(tokens[0]), piece.number(tokens[tokens.len() - 1]));
                self.place.refuse_all(kind, &format!("rows {first} to {last}: {}", error.message))
            }
        })?;
        let unwritten = || (0..tokens.len()).filter(|&token| ids[token] < 0);
        let nonfinite = unwritten().filter(|&token| self.first_bad(sides, tokens.len(), token..token + 1).is_some());
        let nonfinite = if bank.config().nonfinite == NonFinite::Skip { nonfinite.count() } else { 0 };
        Ok(Unwritten { nonfinite, duplicate: unwritten().count() - nonfinite })
    }

    /// Hands tokens to the core: the one place that knows what [`Bank::stage`] takes. Returns their ids.
    fn hand_over(&self, given: &Given) -> mnemex_core::Result<Vec<i64>> {
        let tokens = Tokens {
            keys: given.keys,
            values: given.values,
            rows: Some(given.row),
            mask: None,
            labels: given.labels,
            on_duplicate: self.on_duplicate,
            positions: given.positions,
            columns: given.columns,
            nonfinite: None,
            one_lane: false,
        };
        Ok(self.bank.stage(&tokens, self.work)?.ids)
    }

    /// The refusal of the first vector that the core refused because it is not finite, as given or as stored.
    fn non_finite(&self, sides: [Option<Side>; 2], tokens: &[usize], piece: &Piece) -> Option<Error> {
        let (token, column, stored) = self.first_bad(sides, tokens.len(), 0..tokens.len())?;
        let what = format!(
            "NaN or infinity, or beyond what {} holds: leave the row out, scale it, or make the bank with \
             nonfinite=\"skip\" or \"keep\"",
            stored.name()
        );
        Some(self.place.refuse(Kind::NonFinite, &column.name, Some(piece.number(tokens[token])), what))
    }

    /// The first token of a range that is not finite, as given or as stored, out of `n`; with its column and codec.
    fn first_bad<'s>(
        &self,
        sides: [Option<Side<'s>>; 2],
        n: usize,
        range: Range<usize>,
    ) -> Option<(usize, &'s VectorColumn, Codec)> {
        let schema = self.bank.snapshot().version().schema;
        let stored = [schema.map(|schema| schema.key), schema.and_then(|schema| schema.value)];
        let found = sides.into_iter().zip(stored).filter_map(|(side, stored)| {
            let (column, bytes, asked) = side?;
            let stored = stored.map(|layout| layout.codec).or(asked).unwrap_or(column.codec);
            let each = bytes.len() / n;
            let bad = |token: &usize| !finite(column.codec, stored, &bytes[token * each..][..each]);
            range.clone().find(bad).map(|token| (token, column, stored))
        });
        found.min_by_key(|(token, ..)| *token)
    }
}

/// One row's tokens as they go to the core.
struct Given<'a> {
    row: &'a [usize; 1],
    keys: Input<'a>,
    values: Option<Input<'a>>,
    labels: Option<&'a [i64]>,
    positions: Option<&'a [i64]>,
    /// By the bank's name, one number per token.
    columns: &'a [(&'a str, cells::Numbers<'a>)],
}

/// The vectors of some of `n` tokens: a part of the column's memory where they lie together.
fn gathered(bytes: &Buffer, tokens: &[usize], n: usize) -> Buffer {
    let each = bytes.len() / n.max(1);
    let (first, last) = (tokens[0], tokens[tokens.len() - 1]);
    if last - first + 1 == tokens.len() {
        return bytes.slice_with_length(first * each, tokens.len() * each);
    }
    let mut gathered = MutableBuffer::with_capacity(tokens.len() * each);
    for token in tokens {
        gathered.extend_from_slice(&bytes[token * each..][..each]);
    }
    gathered.into()
}

/// `[tokens, heads, dim]` as the core wants to see it, `[1, heads, tokens, dim]`.
fn input(bytes: &Buffer, codec: Codec, [heads, tokens, dim]: [usize; 3]) -> Input<'_> {
    fn view<T: bytemuck::Pod>(bytes: &[u8], [heads, tokens, dim]: [usize; 3]) -> ArrayView4<'_, T> {
        let strides = (heads * tokens * dim, dim, heads * dim, 1);
        let view = ArrayView4::from_shape((1, heads, tokens, dim).strides(strides), cast_slice(bytes));
        view.unwrap_or_else(|error| unreachable!("the bytes were counted: {error}"))
    }
    let shape = [heads, tokens, dim];
    match codec {
        Codec::F32 => Input::F32(view(bytes, shape)),
        Codec::F16 => Input::F16(view(bytes, shape)),
        Codec::Bf16 => Input::Bf16(view(bytes, shape)),
    }
}

/// A column, its bytes, and the codec that was asked for.
type Side<'a> = (&'a VectorColumn, &'a Buffer, Option<Codec>);

/// Whether a vector is finite, as given and as stored.
fn finite(given: Codec, stored: Codec, bytes: &[u8]) -> bool {
    let holds = |x: f32| match stored {
        Codec::F32 => x.is_finite(),
        Codec::F16 => half::f16::from_f32(x).is_finite(),
        Codec::Bf16 => half::bf16::from_f32(x).is_finite(),
    };
    match given {
        Codec::F32 => cast_slice::<u8, f32>(bytes).iter().all(|&x| holds(x)),
        Codec::F16 => cast_slice(bytes).iter().all(|&bits| holds(half::f16::from_bits(bits).to_f32())),
        Codec::Bf16 => cast_slice(bytes).iter().all(|&bits| holds(half::bf16::from_bits(bits).to_f32())),
    }
}
