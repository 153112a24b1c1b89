//! A policy that lies outside this crate: asked once per commit for a bank, it answers for all lanes in which tokens arrive.
//!
//! Nothing of its answer is believed. What a plan must be for edits to be performed (an id named once, in its own lane,
//! finite numbers) is checked here, before anything is built.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::LanePlan;
use super::scene::{Scene, Side};
use crate::error::{Kind, Result, ensure};
use crate::lane::Edit;
use crate::work::{Ticker, Work};

/// Decides for a bank what becomes of what a commit brings.
pub trait Planner: Send + Sync {
    /// The name in files and messages.
    fn name(&self) -> &str;

    /// Whether it makes something of the use of entries, which somebody has to tell the bank.
    fn wants_use(&self) -> bool {
        false
    }

    /// What is to be done. The writers' locks are held: the bank must not be called.
    ///
    /// # Errors
    /// Whatever it likes; nothing is changed then, and everything stays staged.
    fn plan(&self, scene: &Arc<Scene>) -> Result<Planned>;
}

/// What a planner wants done. Entries and tokens go by their places in the scene; where either may stand, tokens are
/// counted on from the entries: place `n_entries + t` is token `t`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Planned {
    /// Whether each token becomes an entry.
    pub append: Vec<bool>,
    /// Entries to be ended.
    pub kill: Vec<i64>,
    /// What each of `merge_token` becomes part of: an entry, or a token that becomes one.
    pub merge_into: Vec<i64>,
    /// Tokens, each once.
    pub merge_token: Vec<i64>,
    /// Entries, or tokens that become one, that get numbers of the planner's. Others that something is merged into become
    /// the mean of all that they stand for.
    pub rewrite: Vec<i64>,
    /// `[n, key_dim]`
    pub keys: Vec<f32>,
    /// `[n, value_dim]`; empty without values of their own.
    pub values: Vec<f32>,
}

/// What becomes of one entry.
#[derive(Default)]
struct Change {
    tokens: Vec<usize>,
    /// Which of the rows that were given, if one was.
    row: Option<usize>,
}

/// Place of an entry or a token.
#[derive(Clone, Copy)]
enum Target {
    Entry(usize),
    Token(usize),
}

impl Scene {
    fn target(&self, what: &str, place: i64) -> Result<Target> {
        let (n, m) = (self.n_entries(), self.n_tokens());
        let at = usize::try_from(place).unwrap_or(usize::MAX);
        ensure(at < n + m, Kind::Argument, || {
            format!(
                "plan: {what} names place {place}: there are {n} entries, and {m} staged tokens counted on from them"
            )
        })?;
        Ok(if at < n { Target::Entry(at) } else { Target::Token(at - n) })
    }

    fn lane_of(&self, target: Target) -> usize {
        match target {
            Target::Entry(place) => self.lane_of_entry(place),
            Target::Token(place) => self.lane_of_token(place),
        }
    }

    fn id_of(&self, target: Target) -> i64 {
        match target {
            Target::Entry(place) => self.ids[place],
            Target::Token(place) => {
                let row = &self.rows[self.lane_of_token(place) / self.heads];
                row.id_lo + self.token(place) as i64
            }
        }
    }

    /// "id 7 of row 1, head 0"
    fn say(&self, target: Target) -> String {
        let lane = self.lane_of(target);
        format!("id {} of row {}, head {}", self.id_of(target), self.rows[lane / self.heads].at, lane % self.heads)
    }

    /// The plan lane by lane, in the order of the scene, or what is wrong with it.
    pub(crate) fn by_lane(&self, planned: &Planned, ticker: &Ticker) -> Result<Vec<LanePlan>> {
        let ensure = |holds: bool, say: &dyn Fn() -> String| ensure(holds, Kind::Argument, say);
        let m = self.n_tokens();
        let Planned { append, kill, merge_into, merge_token, rewrite, .. } = planned;
        ensure(append.len() == m && merge_into.len() == merge_token.len(), &|| {
            format!(
                "plan: append has {} places for {m} tokens, and {} targets go with {} merged tokens",
                append.len(),
                merge_into.len(),
                merge_token.len()
            )
        })?;
        let mut lanes: Vec<LanePlan> = vec![LanePlan::default(); self.n_lanes()];
        let killed = self.kills(kill, &mut lanes, ticker)?;
        let mut changes: BTreeMap<i64, Change> = BTreeMap::new();
        let mut merged = vec![false; m];
        for (&into, &token) in merge_into.iter().zip(merge_token) {
            ticker.tick()?;
            let at = usize::try_from(token).ok().filter(|&at| at < m);
            ensure(at.is_some(), &|| format!("plan: a merge names token {token}: {m} are staged"))?;
            let at = at.unwrap_or_default();
            let (target, own) = (self.target("a merge", into)?, Target::Token(at));
            ensure(!merged[at], &|| format!("plan: the token of {} is merged twice", self.say(own)))?;
            ensure(!append[at], &|| {
                format!("plan: the token of {} is merged and appended: one of the two", self.say(own))
            })?;
            ensure(self.lane_of(target) == self.lane_of(own), &|| {
                format!(
                    "plan: the token of {} is merged into {}: nothing crosses lanes",
                    self.say(own),
                    self.say(target)
                )
            })?;
            merged[at] = true;
            changes.entry(into).or_default().tokens.push(at);
        }
        for (row, &place) in rewrite.iter().enumerate() {
            let target = self.target("a new key", place)?;
            let before = changes.entry(place).or_default().row.replace(row);
            ensure(before.is_none(), &|| format!("plan: {} gets two new keys", self.say(target)))?;
        }
        self.check_rows(planned)?;
        for (place, change) in changes {
            ticker.tick()?;
            let target = self.target("a merge", place)?;
            match target {
                Target::Entry(at) => ensure(!killed[at], &|| {
                    format!("plan: {} is ended and changed: a plan names an entry once", self.say(target))
                })?,
                Target::Token(at) => ensure(append[at], &|| {
                    format!("plan: the token of {} is changed and is not appended", self.say(target))
                })?,
            }
            lanes[self.lane_of(target)].0.push(self.change(target, change, planned, ticker)?);
        }
        for (lane, (_, runs)) in lanes.iter_mut().enumerate() {
            let tokens = &self.rows[lane / self.heads].tokens;
            for (&token, _) in tokens.iter().zip(&append[self.tokens_of(lane)]).filter(|&(_, &append)| append) {
                match runs.last_mut() {
                    Some(run) if run.end == token => run.end += 1,
                    _ => runs.push(token..token + 1),
                }
            }
        }
        Ok(lanes)
    }

    /// Ends entries; says which.
    fn kills(&self, kill: &[i64], lanes: &mut [LanePlan], ticker: &Ticker) -> Result<Vec<bool>> {
        let n = self.n_entries();
        let mut killed = vec![false; n];
        for &place in kill {
            ticker.tick()?;
            let at = usize::try_from(place).ok().filter(|&at| at < n);
            ensure(at.is_some(), Kind::Argument, || format!("plan: kill names place {place}: there are {n} entries"))?;
            let at = at.unwrap_or_default();
            ensure(!killed[at], Kind::Argument, || format!("plan: kill names {} twice", self.say(Target::Entry(at))))?;
            killed[at] = true;
            lanes[self.lane_of_entry(at)].0.push(Edit::Kill { id: self.ids[at] });
        }
        Ok(killed)
    }

    /// Refuses new keys and values of which there are too few or too many, or that are not finite.
    fn check_rows(&self, planned: &Planned) -> Result<()> {
        let n = planned.rewrite.len();
        let value_dim = self.value_dim().unwrap_or(0);
        for (name, numbers, dim) in [("keys", &planned.keys, self.key_dim()), ("values", &planned.values, value_dim)] {
            ensure(numbers.len() == n * dim, Kind::Shape, || {
                format!("plan: {name} have {} numbers; expected {n} rows of {dim}", numbers.len())
            })?;
            if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
                let target = self.target("a new key", planned.rewrite[at / dim])?;
                return ensure(false, Kind::NonFinite, || {
                    format!("plan: {name} hold {} for {}: expected finite numbers", numbers[at], self.say(target))
                });
            }
        }
        Ok(())
    }

    fn change(&self, target: Target, change: Change, planned: &Planned, ticker: &Ticker) -> Result<Edit> {
        let (dim, value_dim) = (self.key_dim(), self.value_dim().unwrap_or(0));
        let side = |side: Side, dim: usize, given: &[f32]| match (change.row, dim) {
            (_, 0) => Ok(Vec::new()),
            (Some(row), _) => Ok(given[row * dim..][..dim].to_vec()),
            (None, _) => self.mean(target, &change.tokens, side, ticker),
        };
        Ok(Edit::Merge {
            id: self.id_of(target),
            key: side(Side::Key, dim, &planned.keys)?,
            value: side(Side::Value, value_dim, &planned.values)?,
            tokens: change.tokens.iter().map(|&token| self.token(token)).collect(),
            taken: 0,
        })
    }

    /// The mean of what an entry stands for and of tokens, in float64, in the order in which they are named; rounded once.
    fn mean(&self, target: Target, tokens: &[usize], side: Side, ticker: &Ticker) -> Result<Vec<f32>> {
        let (old, count) = match target {
            Target::Entry(at) => {
                let count = self.lane(self.lane_of_entry(at)).used(self.ids[at]).count.max(1);
                (self.entry_vectors(side, Some(&[at]), ticker)?, count as f64)
            }
            Target::Token(at) => (self.token_vectors(side, Some(&[at]), ticker)?, 1.0),
        };
        let mut sums: Vec<f64> = old.iter().map(|&x| count * f64::from(x)).collect();
        for new in self.token_vectors(side, Some(tokens), ticker)?.chunks_exact(old.len()) {
            sums.iter_mut().zip(new).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        Ok(sums.into_iter().map(|sum| (sum / (count + tokens.len() as f64)) as f32).collect())
    }

    /// Keys or values of entries (of tokens, if `staged`), as numbers: `[n, dim]`. `places` None: of all.
    ///
    /// # Errors
    /// When a place is not there, memory is short, or the caller interrupts.
    pub fn vectors(&self, staged: bool, side: Side, places: Option<&[i64]>, work: &Work) -> Result<Vec<f32>> {
        let (what, n) = if staged { ("tokens", self.n_tokens()) } else { ("entries", self.n_entries()) };
        let place = |&place: &i64| {
            let at = usize::try_from(place).ok().filter(|&at| at < n);
            ensure(at.is_some(), Kind::Argument, || format!("place {place} is not one of {n} {what}"))?;
            Ok(at.unwrap_or_default())
        };
        let places = places.map(|places| places.iter().map(place).collect::<Result<Vec<usize>>>()).transpose()?;
        work.once(|ticker| match staged {
            true => self.token_vectors(side, places.as_deref(), ticker),
            false => self.entry_vectors(side, places.as_deref(), ticker),
        })
    }
}
