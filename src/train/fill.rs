//! Passes filled up to few sizes, for devices on which a pass costs less when one of its sizes came before.
//!
//! Rows that nobody asks for come behind those of the batch, the beginning of its own tokens again, and label rows of weight 0. They
//! are of the last row's run, so that a pass of adapted rows alone is one still. No other row, loss or gradient changes a bit, if
//! the device multiplies each row the same whatever their number: what is added to gradients is 0.

use super::passes::Pass;
use crate::backend::Backend;
use crate::pack::{Label, PackBuilder, Parent, Token};

/// The size to which `n` rows are filled up: a multiple of 16 up to 64, then of 64, or of an eighth of the power of two below.
pub fn filled(n: usize) -> usize {
    let step = if n <= 64 { 16 } else { (n.next_power_of_two() / 16).max(64) };
    n.next_multiple_of(step)
}

/// Whether passes are filled: as `asked`, or where it pays.
pub fn fills<B: Backend>(asked: Option<bool>) -> bool {
    asked.unwrap_or(B::REPEATS)
}

/// Rows that buffers need for passes of at most `n`.
pub fn room<B: Backend>(asked: Option<bool>, n: usize) -> usize {
    if fills::<B>(asked) { filled(n) } else { n }
}

impl Pass {
    /// Fills the pass, which has no teachers, if it then has no more than `most` rows.
    pub(super) fn fill(&mut self, most: usize) {
        let (n, labels) = (self.pack.len(), filled(self.rows.len()));
        let mut outputs = self.rows.clone();
        outputs.sort_unstable();
        outputs.dedup();
        // Label rows of weight 0 are a row of the filling.
        let (m, row) = (outputs.len(), usize::from(labels > self.rows.len()));
        let of_outputs = if m == n { row } else { filled(m + row) - m };
        let total = filled(n + of_outputs);
        if total > most || total == n {
            return;
        }
        let mut builder = PackBuilder::default().bidirectional(self.pack.is_bidirectional());
        builder.append(&self.pack);
        let ids: Vec<Token> =
            self.pack.tokens().iter().copied().filter(|token| matches!(token, Token::Id(_))).collect();
        // No longer than the sequences, for which there is room in every table of positions.
        let longest = self.pack.longest().min(ids.len());
        let run = self.pack.runs().iter().find(|(_, rows)| rows.end == n).map(|(run, _)| *run);
        for first in (n..total).step_by(longest) {
            builder.push(&ids[..longest.min(total - first)], Parent::None, run, Label::Text);
        }
        self.pack = builder.build();
        self.filled_from = Some(n);
        self.lengths.resize(total, 0);
        self.filling = if m == n { n..total } else { n..n + of_outputs };
        let target = self.targets[0];
        self.rows.resize(labels, n as u32);
        self.targets.resize(labels, target);
    }
}

#[cfg(test)]
mod tests {
    use super::filled;

    #[test]
    fn fillings_are_few_small_and_of_what_is_filled() {
        for n in 0..5000 {
            let room = filled(n);
            assert!(room >= n && filled(room) == room && room <= filled(n + 1), "{n}: {room}");
            assert!(room - n < 64 || 8 * (room - n) < n, "{n}: {room}");
        }
        let sizes: std::collections::BTreeSet<usize> = (1..=2048).map(filled).collect();
        assert_eq!(sizes.len(), 4 + 7 + 8 + 8);
    }
}
