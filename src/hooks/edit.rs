//! Edits: taps that write. What is done to which rows of which sites, and which tokens of a sequence those are.
//!
//! | operation | a row x becomes | gradient of x |
//! |---|---|---|
//! | [`EditOp::Add`] | `x + v` | as it is |
//! | [`EditOp::Replace`] | `v` | 0 |
//! | [`EditOp::Scale`] | `s x` | times s |
//! | [`EditOp::Zero`] | 0 | 0 |
//! | [`EditOp::ProjectOut`] | `x - (x . v) v / (v . v)` | projected likewise |
//!
//! Mean ablation is the replacement by a mean ([`EditOp::mean`]). A site is edited as soon as its tensor is there and before
//! any tap sees it: taps are handed what flows on. Several edits of a site come one after another, in their order.
//!
//! The sites are those of [`Site::is_editable`]: tensors that every forward makes and that feed what follows. What a fused
//! operation never stores (scores and patterns of attention, factors of norms, adapters' parts) or what is computed only when
//! it is asked for cannot be edited. `blocks.{i}.hook_resid_post` and `blocks.{i+1}.hook_resid_pre` are one tensor, edited in
//! this order, and both what the sublayer reads and what it is added to. An edit of `attn.hook_q` or `attn.hook_k` comes
//! before the rotation, one of `attn.hook_z` before the output projection.
//!
//! Positions count from the first row of a sequence, a soft prompt's rows included, as the column `pos` of a capture does.
//!
//! # Examples
//!
//! A steering vector, added to what block 0 leaves at the last token:
//!
//! ```
//! use llamaprobe::backend::{Buffers, cpu::Cpu};
//! use llamaprobe::hooks::edit::{Edit, EditOp, EditPlan, Positions, Values};
//! use llamaprobe::hooks::{Record, Selection, Site};
//! use llamaprobe::model::{Activations, EditSet, Input, PassEdits, Save};
//! use llamaprobe::pack::{Label, Sequence, forest};
//! # use llamaprobe::arch::{Dtype, ModelConfig};
//! # use llamaprobe::model::FullTuning;
//! # let config = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
//! #     "num_attention_heads": 2, "vocab_size": 11}"#;
//! # let backend = &mut Cpu::new(Dtype::F32);
//! # let config = ModelConfig::parse("config.json", config)?;
//! # let (model, _) = FullTuning::random(backend, config, 0.2, 0)?;
//!
//! let vector = EditOp::Add(Values::one(vec![0.5; 8]));
//! let edits = [Edit::new(Selection::new(&[Site::ResidPost], &[0]), Positions::Last, vector)];
//! let mut sequences = [Sequence::ids(&[1, 5, 7], None, Label::Text), Sequence::ids(&[1, 5], None, Label::Text)];
//! let plan = EditPlan::new(&edits, &mut sequences)?;
//! let packed = forest(&sequences, 1);
//! // The second sequence begins the first, but its last token is edited: that row is its own.
//! assert_eq!(packed.pack.len(), 4);
//!
//! let set = EditSet::new(backend, &model.config, &edits)?;
//! let rows = plan.rows(0..2, |sequence, token| packed.row(sequence, token));
//! let edited = PassEdits::new(backend, &set, &rows, None)?;
//! let device = backend.pack(&packed.pack)?;
//! let mut acts = Activations::new(backend, &model.config, None, packed.pack.len(), Save::Layer)?;
//! let input = Input::new(&packed.pack, &device).edited(Some(&edited));
//! let mut record = Record::new(Selection::new(&[Site::ResidPost], &[1]), vec![packed.last_row(0)]);
//! model.forward(backend, &mut acts, &input, None, &mut record)?;
//! # Ok::<(), llamaprobe::Error>(())
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Naming, NormPart, Selection, Site, site};
use crate::formats::edits::{Action, EditEntry};
pub use crate::formats::edits::{EditOp, Positions, Values};
use crate::hash::fnv1a;
use crate::pack::{Label, Sequence};
use crate::{Error, Result};

/// A change of rows of the tensors at some hooks.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// The hooks whose tensors are edited.
    pub hooks: Selection,
    /// The tokens whose rows are edited.
    pub positions: Positions,
    /// The runs whose sequences are edited; none means all sequences, those of the base model included.
    pub runs: Option<Vec<usize>>,
    /// What is done to each of those rows.
    pub op: EditOp,
    /// Where errors say that it stands: a file, and a field of it.
    pub source: (String, String),
}

impl Edit {
    /// An edit of every sequence.
    pub fn new(hooks: Selection, positions: Positions, op: EditOp) -> Self {
        Self { hooks, positions, runs: None, op, source: ("edits".to_owned(), "edit".to_owned()) }
    }

    /// The edits of the entries of a file ([`formats::edits::read`](crate::formats::edits::read)), whose sites are named so.
    ///
    /// # Errors
    /// `site`: no hook site, or several; `layers`: what a model of this depth has not, or a control vector has no direction
    /// for.
    pub fn of_file(entries: Vec<EditEntry>, naming: &Naming<'_>) -> Result<Vec<Self>> {
        let depth = naming.config.num_hidden_layers;
        let mut edits = Vec::new();
        for entry in entries {
            let EditEntry { path, at, site, layers, positions, action } = entry;
            let named = |field: &str, error: Error| match error {
                Error::Argument { expected, found, .. } => {
                    Error::field(&path, format!("{at}.{field}"), expected, found)
                }
                other => other,
            };
            let all = layers == "all";
            let layers = site::layers(&layers, depth).map_err(|error| named("layers", error))?;
            let hooks = Selection::parse_outputs(&site, &layers, naming).map_err(|error| named("site", error))?;
            let source = (path.clone(), at.clone());
            let edit = |hooks: Selection, op: EditOp| Edit {
                hooks,
                positions: positions.clone(),
                runs: None,
                op,
                source: source.clone(),
            };
            let directions = match action {
                Action::Op(op) => {
                    edits.push(edit(hooks, op));
                    continue;
                }
                Action::Control(directions) => directions,
            };
            let of_model = edit(hooks, EditOp::Zero);
            for &(site, layer) in &of_model.hooks.hooks {
                match directions.get(&layer) {
                    _ if site != Site::ResidPost => {
                        return Err(of_model.error("site", "resid_post, of a control vector", site.name(layer)));
                    }
                    Some(vector) => {
                        let op = EditOp::Add(Values::one(vector.clone()));
                        edits.push(edit(Selection::new(&[Site::ResidPost], &[layer]), op));
                    }
                    None if all => {}
                    None => return Err(of_model.error("layers", "layers that the control vector has", layer)),
                }
            }
            if let Some(layer) = directions.keys().find(|layer| **layer >= depth) {
                let expected = format!("a control vector for layers below {depth}");
                return Err(of_model.error("value", expected, format!("a direction of layer {layer}")));
            }
        }
        Ok(edits)
    }

    /// The same for sequences of these runs only.
    pub fn of_runs(self, runs: Vec<usize>) -> Self {
        Self { runs: Some(runs), ..self }
    }

    /// What tells these edits from others: a digest of everything that they do.
    pub fn fingerprint(edits: &[Self]) -> String {
        let what = |edit: &Self| format!("{:?}", (&edit.hooks.hooks, &edit.positions, &edit.runs, &edit.op));
        format!("{:016x}", fnv1a(edits.iter().map(what).collect::<String>().into_bytes()))
    }

    /// The error that a field of it holds the wrong thing.
    pub fn error(&self, field: &str, expected: impl Into<String>, found: impl ToString) -> Error {
        let (file, at) = &self.source;
        Error::field(file, format!("{at}.{field}"), expected, found.to_string())
    }

    /// Refuses as many rows of values as there are no positions for.
    ///
    /// # Errors
    /// `value`: more than one row, without a list of as many positions.
    pub fn check_rows(&self, rows: usize) -> Result<()> {
        let positions = if let Positions::At(list) = &self.positions { list.len() } else { 1 };
        match rows {
            1 => Ok(()),
            found if found == positions => Ok(()),
            found if positions > 1 => Err(self.error("value", format!("1 or {positions} rows"), found)),
            found => Err(self.error("value", "1 row, or a list of as many positions as there are rows", found)),
        }
    }

    /// Whether sequences of a run are edited.
    pub fn applies_to(&self, run: Option<usize>) -> bool {
        self.runs.as_ref().is_none_or(|runs| run.is_some_and(|run| runs.contains(&run)))
    }

    /// The edited tokens of a sequence, each with its row of the values.
    fn tokens(&self, sequence: &Sequence) -> Result<Vec<(usize, usize)>> {
        let len = sequence.tokens.len();
        let labelled = |label| (0..len).filter(|&i| sequence.label_at(i) == label).map(|i| (i, 0)).collect();
        Ok(match &self.positions {
            _ if !self.applies_to(sequence.run) => Vec::new(),
            Positions::Last => vec![(len - 1, 0)],
            Positions::All => (0..len).map(|i| (i, 0)).collect(),
            Positions::Query => labelled(Label::Query),
            Positions::Demonstrations => labelled(Label::Demonstration),
            Positions::At(positions) => {
                let per_position = matches!(&self.op, EditOp::Add(v) | EditOp::Replace(v) if v.count() > 1);
                let mut tokens: Vec<(usize, usize)> = Vec::with_capacity(positions.len());
                for (i, &position) in positions.iter().enumerate() {
                    let from = if position < 0 { len as i64 } else { 0 };
                    let token = usize::try_from(from + position).ok().filter(|&token| token < len);
                    let expected = || format!("positions of a sequence of {len} tokens");
                    let token = token.ok_or_else(|| self.error("positions", expected(), position))?;
                    if tokens.iter().any(|&(other, _)| other == token) {
                        let expected = format!("each position once, in a sequence of {len} tokens too");
                        return Err(self.error("positions", expected, format!("{position} again")));
                    }
                    tokens.push((token, if per_position { i } else { 0 }));
                }
                tokens
            }
        })
    }
}

/// An edited token of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EditedToken {
    token: usize,
    edit: usize,
    value_row: usize,
}

/// Which tokens of some sequences are edited.
#[derive(Clone, Debug, Default)]
pub struct EditPlan {
    /// How many edits it was made for: their indices are below it.
    edits: usize,
    /// The edited tokens of each sequence, edit by edit.
    tokens: Vec<Vec<EditedToken>>,
}

impl EditPlan {
    /// The tokens of `sequences`, which are marked so that no packing lets an edited row stand for another sequence's that is
    /// edited otherwise or not at all.
    ///
    /// # Errors
    /// A position that a sequence has not, or has twice.
    pub fn new(edits: &[Edit], sequences: &mut [Sequence]) -> Result<Self> {
        let mut tokens = Vec::with_capacity(sequences.len());
        let mut known: BTreeMap<Vec<(usize, usize)>, u32> = BTreeMap::new();
        for sequence in sequences {
            let mut own = Vec::new();
            let mut by_token: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
            for (edit, e) in edits.iter().enumerate() {
                for (token, value_row) in e.tokens(sequence)? {
                    own.push(EditedToken { token, edit, value_row });
                    by_token.entry(token).or_default().push((edit, value_row));
                }
            }
            sequence.marks.clear();
            for (token, what) in by_token {
                let next = known.len() as u32 + 1;
                sequence.marks.push((token, *known.entry(what).or_insert(next)));
            }
            tokens.push(own);
        }
        Ok(Self { edits: edits.len(), tokens })
    }

    /// The rows of a pack of the sequences `sequences`, where `row` says in which row of it lies a token of a sequence, counted
    /// from the first of these.
    pub fn rows(&self, sequences: Range<usize>, row: impl Fn(usize, usize) -> usize) -> EditRows {
        let mut by_edit = vec![BTreeMap::new(); self.edits];
        for (s, tokens) in self.tokens[sequences].iter().enumerate() {
            for &EditedToken { token, edit, value_row } in tokens {
                by_edit[edit].insert(row(s, token), value_row);
            }
        }
        EditRows(by_edit.into_iter().map(|rows| rows.into_iter().collect()).collect())
    }
}

/// The edited rows of a pack by edit, ascending, each with its row of the edit's values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EditRows(pub Vec<Vec<(usize, usize)>>);

impl EditRows {
    /// Those of a pack whose rows are the newest tokens of a generation, of these runs.
    pub fn newest(edits: &[Edit], runs: &[Option<usize>]) -> Self {
        let rows = |edit: &Edit| {
            let edited = |&(_, &run): &(usize, &Option<usize>)| edit.positions.include_new() && edit.applies_to(run);
            runs.iter().enumerate().filter(edited).map(|(row, _)| (row, 0)).collect()
        };
        Self(edits.iter().map(rows).collect())
    }

    /// Whether no row is edited.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }
}

impl Site {
    /// Whether the site's tensor can be edited; see [`hooks::edit`](super::edit).
    pub fn is_editable(self) -> bool {
        matches!(
            self,
            Site::Embed
                | Site::ResidPre
                | Site::Norm(_, NormPart::Out)
                | Site::Q
                | Site::K
                | Site::V
                | Site::RotQ
                | Site::RotK
                | Site::Z
                | Site::AttnRaw
                | Site::AttnOut
                | Site::ResidMid
                | Site::MlpPre
                | Site::MlpPreLinear
                | Site::MlpPost
                | Site::MlpRaw
                | Site::MlpOut
                | Site::ResidPost
        )
    }
}
