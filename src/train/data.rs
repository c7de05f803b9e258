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
}

impl TrainSequence {
    /// Every token is a label. (The first is predicted from nothing, and ignored without a soft prompt.)
    pub fn all(ids: Vec<u32>) -> Self {
        let labels = ids.iter().map(|&id| i64::from(id)).collect();
        Self { ids, labels }
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
        let labelled = self.labels.iter().enumerate().filter(|(_, label)| **label >= 0);
        labelled.filter_map(move |(i, &label)| Some(((prompt + i).checked_sub(1)?, label as u32)))
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
        std::iter::once(sequence.ids.len() as u64).chain(ids).chain(sequence.labels.iter().map(|&label| label as u64))
    })
}
