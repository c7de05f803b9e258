//! How the batches of all runs become packs: as few passes as fit the row budget, in such a way that a run's own
//! sums do not depend on which other runs there are.

use std::collections::BTreeMap;
use std::ops::Range;

use super::data::{SequenceTeacher, TrainSequence};
use crate::arch::ModelConfig;
use crate::backend::PassSize;
use crate::formats::adapter::Table;
use crate::model::Layout;
use crate::pack::{Forest, Label, Pack, PackBuilder, Sequence, bidirectional, forest};

/// Common beginnings shorter than this are computed once per sequence: each shared stretch is one more span in the
/// attention of every sequence below it, which a few rows are not worth.
pub const MIN_SHARED: usize = 4;

/// Default of the row budget: large matrix products, while the activations of a 7B model in half precision stay below
/// 7 GB (some 93 KB a row and layer).
pub const ROW_BUDGET: usize = 2048;

/// A part of one run's batch that goes through the model as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Whose data it is of.
    pub run: usize,
    /// Its sequences, by index in the run's data.
    pub sequences: Vec<usize>,
    /// Rows at most that it takes, shared or not.
    pub rows: usize,
    /// Label rows at most that it has.
    pub labels: usize,
}

/// One forward and backward: a pack and its labels.
pub struct Pass {
    /// The sequences of all runs, common beginnings once; behind them those of their teachers.
    pub pack: Pack,
    /// The former alone, which the backward goes through, where there are teachers in the pack.
    pub students: Option<Pack>,
    /// The label rows, ascending within a run; those that fill the pass up come last.
    pub rows: Vec<u32>,
    /// The token after each label row.
    pub targets: Vec<u32>,
    /// For each label row of the batch the number of labels that it stands for (equal labels after shared rows are one).
    pub counts: Vec<u32>,
    /// The run of each label row of the batch.
    pub runs: Vec<usize>,
    /// For each row of the pack the tokens of its sequence, if it is of one alone; 0 for a soft prompt's.
    pub lengths: Vec<usize>,
    /// The row of each one's teacher, of the pack or of a table; zeros without one.
    pub teachers: Vec<u32>,
    /// Run, index in the run's data and rows, in the pack, of every sequence, without those of soft prompts.
    pub sequences: Vec<(usize, usize, Vec<u32>)>,
    /// The first row that fills the pack up.
    pub filled_from: Option<usize>,
    /// Rows that fill the pack up, of those that come out.
    pub filling: Range<usize>,
}

impl Pass {
    /// Rows of the pack that are not there to fill it up.
    pub fn own_rows(&self) -> usize {
        self.filled_from.unwrap_or(self.pack.len())
    }

    /// The rows that come out: the label rows, those of teachers in the pack, and those that fill it up.
    pub fn outputs(&self) -> impl Iterator<Item = usize> + '_ {
        let teachers = if self.students.is_some() { self.teachers.as_slice() } else { &[] };
        self.rows.iter().chain(teachers).map(|&row| row as usize).chain(self.filling.clone())
    }
}

/// The soft prompt before every sequence of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptOffset {
    /// Rows of the prompt; 0 where there is none.
    pub rows: usize,
    /// Whether the last of them predicts nothing.
    pub ignore_first: bool,
}

impl PromptOffset {
    /// The label rows of a sequence behind it, ascending: the row that predicts, and the token it should.
    pub fn targets(self, sequence: &TrainSequence) -> impl Iterator<Item = (usize, u32)> + Clone + '_ {
        self.taught(sequence).map(|(row, target, _)| (row, target))
    }

    /// The same with the row of each one's teacher.
    pub fn taught(self, sequence: &TrainSequence) -> impl Iterator<Item = (usize, u32, u32)> + Clone + '_ {
        let first = if self.ignore_first { self.rows } else { 0 };
        sequence.taught(self.rows).filter(move |(row, ..)| *row >= first)
    }

    /// The tokens before a sequence's last label token that its teacher reads in the same pass; none without one.
    pub fn context(self, sequence: &TrainSequence) -> &[u32] {
        match &sequence.teacher {
            Some(SequenceTeacher::Context { ids, .. }) => {
                let last = self.taught(sequence).map(|(.., row)| row as usize).max();
                &ids[..last.map_or(0, |row| row + 1)]
            }
            _ => &[],
        }
    }
}

/// How sequences become rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Rows, and labels, of a pass at most, unless a single sequence has more.
    pub budget: usize,
    /// Shortest common beginning that is computed once.
    pub min_shared: usize,
    /// Soft-prompt rows before every sequence of each run; a pass has a run's only once. Runs beyond the end have none.
    pub prompts: Vec<usize>,
    /// Whether they are prefixes, whose rows are keys and values only.
    pub ignore_first: bool,
    /// Whether rows belong to a run's adapter, rather than to the base model.
    pub adapted: bool,
    /// Whether attention is causal; if not, every sequence is whole: it has its own soft prompt, and all its rows.
    pub is_causal: bool,
}

/// The largest rank of a layout's matrices, and the longest of their rows.
pub fn adapter_size(layout: &Layout) -> (usize, usize) {
    let tables =
        Table::ALL.into_iter().filter_map(|at| layout.table(at)).map(|site| (site.rank, site.input.max(site.output)));
    let sites =
        layout.modules().map(|module| (module.lora.rank, module.lora.input.max(module.lora.output))).chain(tables);
    sites.fold((0, 0), |(rank, width), site| (rank.max(site.0), width.max(site.1)))
}

/// The size of a training's passes of at most these many rows and label rows.
pub fn pass_size(
    config: &ModelConfig,
    layout: Option<&Layout>,
    runs: usize,
    (rows, labels): (usize, usize),
) -> PassSize {
    let (rank, adapted) = layout.map_or((0, 0), adapter_size);
    PassSize {
        rows,
        backward_rows: rows,
        labels,
        heads: [config.num_attention_heads, config.head_dim],
        vocab: config.vocab_size,
        rank,
        adapted,
        terms: if rank > 0 { config.gradient_terms() * rows * config.hidden_size } else { 0 },
        runs,
        // The losses and the norms of a step and of the one that is begun ahead.
        readbacks: [labels, runs, labels, runs].map(|len| len * size_of::<f32>()).to_vec(),
        captures: Vec::new(),
    }
}

impl Packing {
    /// What stands before every sequence of a run.
    pub fn prompt(&self, run: usize) -> PromptOffset {
        PromptOffset { rows: self.prompts.get(run).copied().unwrap_or(0), ignore_first: self.ignore_first }
    }

    /// Positions of the longest sequence of a run.
    pub fn longest(&self, run: usize, data: &[TrainSequence]) -> usize {
        let prompt = self.prompt(run);
        let len = |sequence: &TrainSequence| (prompt.rows + sequence.ids.len()).max(prompt.context(sequence).len());
        data.iter().map(len).max().unwrap_or(prompt.rows)
    }

    /// Rows (beside a shared soft prompt's) and labels of a run's sequence, with those of its teacher. Rows after the last
    /// label row have no part in any loss that causal attention leaves to them, and are dropped.
    fn size(&self, run: usize, sequence: &TrainSequence) -> (usize, usize) {
        let (rows, labels) = self.own_size(run, sequence);
        (rows + self.prompt(run).context(sequence).len(), labels)
    }

    /// The same without its teacher.
    fn own_size(&self, run: usize, sequence: &TrainSequence) -> (usize, usize) {
        let prompt = self.prompt(run);
        let labels = prompt.targets(sequence);
        let rows = match self.is_causal {
            true => labels.clone().last().map_or(0, |(row, _)| row + 1 - prompt.rows),
            false => prompt.rows + sequence.ids.len(),
        };
        (rows, labels.count())
    }

    /// The tokens of a run's sequence that become rows.
    pub fn ids<'a>(&self, run: usize, sequence: &'a TrainSequence) -> &'a [u32] {
        let prompt = if self.is_causal { 0 } else { self.prompt(run).rows };
        &sequence.ids[..self.own_size(run, sequence).0 - prompt]
    }

    /// Rows of a run's soft prompt that all its sequences in a pass share.
    fn shared_prompt(&self, run: usize) -> usize {
        if self.is_causal { self.prompt(run).rows } else { 0 }
    }

    /// Largest numbers of rows and of labels that a pass can have. `runs` are each run's data and batch size.
    pub fn capacity<'a>(&self, runs: impl Iterator<Item = (&'a [TrainSequence], usize)>) -> (usize, usize) {
        let (mut sum, mut longest) = ((0, 0), (0, 0));
        for (run, (data, batch)) in runs.enumerate() {
            let sizes: Vec<(usize, usize)> = data.iter().map(|s| self.size(run, s)).collect();
            let largest = |mut lens: Vec<usize>| {
                lens.sort_unstable_by(|a, b| b.cmp(a));
                (lens[0], lens.iter().take(batch).sum::<usize>())
            };
            let rows = largest(sizes.iter().map(|s| s.0).collect());
            let labels = largest(sizes.iter().map(|s| s.1).collect());
            let prompt = self.shared_prompt(run);
            longest = (longest.0.max(prompt + rows.0), longest.1.max(labels.0));
            sum = (sum.0 + prompt + rows.1, sum.1 + labels.1);
        }
        let cap = |sum: usize, longest: usize| sum.min(self.budget).max(longest);
        (cap(sum.0, longest.0), cap(sum.1, longest.1))
    }

    /// Divides a batch into pieces that fit the budget, by halving, which looks at nothing but the batch.
    pub fn pieces(&self, run: usize, data: &[TrainSequence], batch: &[usize]) -> Vec<Piece> {
        let sizes = batch.iter().map(|&s| self.size(run, &data[s]));
        let (mut rows, labels) = sizes.fold((self.shared_prompt(run), 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
        // What teachers read is mostly shared: the same demonstrations.
        let shares = rows > self.budget || batch.iter().any(|&s| data[s].teacher.is_some());
        if shares && batch.len() > 1 && labels <= self.budget {
            let parts = [(run, data, batch)];
            rows = self.forest(&parts).pack.len() + self.teachers(&parts).map_or(0, |forest| forest.pack.len());
        }
        if batch.len() > 1 && rows.max(labels) > self.budget {
            let (left, right) = batch.split_at(batch.len() / 2);
            let mut pieces = self.pieces(run, data, left);
            pieces.extend(self.pieces(run, data, right));
            return pieces;
        }
        vec![Piece { run, sequences: batch.to_vec(), rows, labels }]
    }

    /// Groups the pieces of all runs into passes. A pass has at most one piece of a run, the first pieces come first:
    /// so a run's sums are over its own pieces in its own order.
    pub fn group(&self, mut runs: Vec<Vec<Piece>>) -> Vec<Vec<Piece>> {
        let mut passes = Vec::new();
        while runs.iter().any(|pieces| !pieces.is_empty()) {
            let (mut pass, mut rows, mut labels) = (Vec::new(), 0, 0);
            for pieces in runs.iter_mut().filter(|pieces| !pieces.is_empty()) {
                let piece = pieces.remove(0);
                if !pass.is_empty() && (rows + piece.rows > self.budget || labels + piece.labels > self.budget) {
                    passes.push(std::mem::take(&mut pass));
                    (rows, labels) = (0, 0);
                }
                rows += piece.rows;
                labels += piece.labels;
                pass.push(piece);
            }
            passes.push(pass);
        }
        passes
    }

    /// Builds a pass; `data` gives each run's sequences.
    pub fn pass<'a>(&self, pieces: &[Piece], data: impl Fn(usize) -> &'a [TrainSequence]) -> Pass {
        let parts: Vec<_> = pieces.iter().map(|p| (p.run, data(p.run), p.sequences.as_slice())).collect();
        let (forest, teachers) = (self.forest(&parts), self.teachers(&parts));
        let students = forest.pack.len();
        let teacher = |s: usize, row: u32| match &teachers {
            Some(teachers) => (students + teachers.row(s, row as usize)) as u32,
            None => row,
        };
        let mut pass = Pass {
            pack: Pack::default(),
            students: None,
            rows: vec![],
            targets: vec![],
            counts: vec![],
            runs: vec![],
            lengths: vec![],
            teachers: vec![],
            sequences: vec![],
            filled_from: None,
            filling: 0..0,
        };
        pass.lengths.resize(students, 0);
        let mut s = 0;
        for (run, data, sequences) in parts {
            let mut counts: BTreeMap<(u32, u32, u32), u32> = BTreeMap::new();
            for &sequence in sequences {
                let (prompt, rows) = (self.prompt(run).rows, self.own_size(run, &data[sequence]).0);
                for row in prompt..self.shared_prompt(run) + rows {
                    pass.lengths[forest.row(s, row)] = data[sequence].ids.len();
                }
                for (row, target, of_teacher) in self.prompt(run).taught(&data[sequence]) {
                    *counts.entry((forest.row(s, row) as u32, target, teacher(s, of_teacher))).or_default() += 1;
                }
                let own = (prompt..self.shared_prompt(run) + rows).map(|row| forest.row(s, row) as u32);
                pass.sequences.push((run, sequence, own.collect()));
                s += 1;
            }
            for ((row, target, teacher), count) in counts {
                pass.rows.push(row);
                pass.targets.push(target);
                pass.counts.push(count);
                pass.runs.push(run);
                pass.teachers.push(teacher);
            }
        }
        (pass.pack, pass.students) = match teachers {
            None => (forest.pack, None),
            Some(teachers) => {
                let mut both = PackBuilder::default();
                both.append(&forest.pack);
                both.append(&teachers.pack);
                (both.build(), Some(forest.pack))
            }
        };
        // What teachers read is as it is.
        pass.lengths.resize(pass.pack.len(), 0);
        pass
    }

    /// What the teachers of sequences read in the same pass, through no adapter; none where they read nothing.
    fn teachers(&self, parts: &[(usize, &[TrainSequence], &[usize])]) -> Option<Forest> {
        let mut sequences = Vec::new();
        for &(run, data, indices) in parts {
            let context = |&index: &usize| self.prompt(run).context(&data[index]);
            let tokens = indices.iter().map(context).filter(|ids| !ids.is_empty());
            sequences.extend(tokens.map(|ids| Sequence::ids(ids, None, Label::Demonstration)));
        }
        (!sequences.is_empty()).then(|| forest(&sequences, MIN_SHARED))
    }

    fn forest(&self, parts: &[(usize, &[TrainSequence], &[usize])]) -> Forest {
        let mut sequences = Vec::new();
        for &(run, data, indices) in parts {
            let prompt = self.prompt(run).rows;
            for &index in indices {
                let rows = self.shared_prompt(run) + self.own_size(run, &data[index]).0;
                let mut sequence = Sequence::prompted(prompt, &data[index].ids, self.adapted.then_some(run));
                sequence.tokens.truncate(rows);
                sequences.push(sequence);
            }
        }
        if self.is_causal { forest(&sequences, self.min_shared) } else { bidirectional(&sequences) }
    }
}
