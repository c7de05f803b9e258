//! Token sequences with labels.

/// The label of a token that is ignored by the loss.
pub const IGNORE_INDEX: i64 = -100;

/// A token sequence and what is to be learnt from it, by the convention of transformers: `labels[i]` is predicted
/// from what comes before token `i`, and [`IGNORE_INDEX`] is ignored. Usually `labels[i] = ids[i]` where there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrainSequence {
    /// Below the vocabulary's size.
    pub ids: Vec<u32>,
    /// One label for each of them.
    pub labels: Vec<i64>,
    /// What an objective towards a teacher makes it like; none without one.
    pub teacher: Option<SequenceTeacher>,
}

/// The teacher of a sequence: where its states and distributions before each label token come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SequenceTeacher {
    /// The base model on other tokens, in the same pass: demonstrations before the sequence's own.
    Context {
        /// Below the vocabulary's size.
        ids: Vec<u32>,
        /// The row that predicts each label token, in their order.
        rows: Vec<u32>,
    },
    /// Rows of a table ([`TeacherTable`](super::objective::TeacherTable)), one for each label token.
    Table(Vec<u32>),
}

impl SequenceTeacher {
    /// The row of each label token.
    pub fn rows(&self) -> &[u32] {
        match self {
            Self::Context { rows, .. } | Self::Table(rows) => rows,
        }
    }
}

impl TrainSequence {
    /// Every token is a label. (The first is predicted from nothing, and ignored without a soft prompt.)
    pub fn all(ids: Vec<u32>) -> Self {
        let labels = ids.iter().map(|&id| i64::from(id)).collect();
        Self { ids, labels, teacher: None }
    }

    /// The tokens for which `learnt` is true are labels.
    pub fn marked(ids: Vec<u32>, learnt: impl Fn(usize) -> bool) -> Self {
        let mut sequence = Self::all(ids);
        sequence
            .labels
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| !learnt(*i))
            .for_each(|(_, label)| *label = IGNORE_INDEX);
        sequence
    }

    /// The label rows behind `prompt` soft-prompt rows, ascending: the row that predicts, and the token it should.
    pub fn targets(&self, prompt: usize) -> impl Iterator<Item = (usize, u32)> + Clone + '_ {
        self.taught(prompt).map(|(row, target, _)| (row, target))
    }

    /// The same with the row of each one's teacher; 0 without a teacher.
    pub fn taught(&self, prompt: usize) -> impl Iterator<Item = (usize, u32, u32)> + Clone + '_ {
        let teacher = self.teacher.as_ref().map(SequenceTeacher::rows);
        let labelled = self.labels.iter().enumerate().filter(|(_, label)| **label >= 0).enumerate();
        labelled.filter_map(move |(ordinal, (i, &label))| {
            Some(((prompt + i).checked_sub(1)?, label as u32, teacher.map_or(0, |rows| rows[ordinal])))
        })
    }

    /// Truncates the sequence to `length` tokens; says whether it was longer.
    pub fn truncate(&mut self, length: usize) -> bool {
        let longer = self.ids.len() > length;
        self.ids.truncate(length);
        self.labels.truncate(length);
        longer
    }
}

/// Everything that data say, in words.
pub(super) fn words(data: &[TrainSequence]) -> impl Iterator<Item = u64> + '_ {
    data.iter().flat_map(|sequence| {
        let ids = sequence.ids.iter().map(|&id| u64::from(id));
        let own = std::iter::once(sequence.ids.len() as u64).chain(ids);
        let labels = sequence.labels.iter().map(|&label| label as u64);
        own.chain(labels).chain(sequence.teacher.iter().flat_map(teacher_words))
    })
}

fn teacher_words(teacher: &SequenceTeacher) -> impl Iterator<Item = u64> + '_ {
    let ids = match teacher {
        SequenceTeacher::Context { ids, .. } => ids.as_slice(),
        SequenceTeacher::Table(_) => &[],
    };
    let words = |list: &[u32]| list.iter().map(|&word| u64::from(word)).collect::<Vec<u64>>();
    let lens = [ids.len() as u64, teacher.rows().len() as u64];
    lens.into_iter().chain(words(ids)).chain(words(teacher.rows()))
}
