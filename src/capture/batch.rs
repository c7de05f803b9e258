//! Documents that go through the model together.

use super::Tokens;
use crate::arch::ModelConfig;
use crate::formats::activations::ActivationWriter;
use crate::hooks::{EditPlan, EditRows};
use crate::pack::{Label, Pack, PackBuilder, Parent, Sequence, Token};
use crate::{Error, Result};

/// The file's columns of labels.
pub const LABELS: [&str; 3] = ["doc_id", "pos", "token_id"];

/// Consecutive documents that are computed together. They share no rows, not even a soft prompt's: a document's states
/// must not depend on where its neighbours happen to begin alike, and a document's rows stand together in the file.
pub struct Batch {
    pub pack: Pack,
    /// Number of the first document.
    pub first: usize,
}

impl Batch {
    /// The pack rows to capture.
    pub fn selected(&self, tokens: Tokens) -> Vec<usize> {
        match tokens {
            Tokens::All => (0..self.pack.len()).collect(),
            Tokens::Last => self.pack.segments().iter().map(|s| s.rows.end - 1).collect(),
        }
    }

    /// The pack rows that are edited.
    pub fn edited(&self, plan: &EditPlan) -> EditRows {
        let segments = self.pack.segments();
        plan.rows(self.first..self.first + segments.len(), |document, token| segments[document].rows.start + token)
    }

    /// Writes where these rows come from; `earlier` documents count before those of the capture.
    pub fn write_labels(&self, writer: &mut ActivationWriter, rows: &[usize], earlier: usize) -> Result<()> {
        let segments = self.pack.segments();
        let doc = |row: usize| (earlier + self.first + segments.partition_point(|s| s.rows.end <= row)) as i64;
        let position = |row: usize| i64::from(self.pack.positions()[row]);
        let token = |row: usize| match self.pack.tokens()[row] {
            Token::Id(id) => i64::from(id),
            Token::Virtual(_) => -1,
        };
        let labels: [&dyn Fn(usize) -> i64; 3] = [&doc, &position, &token];
        LABELS.into_iter().zip(labels).try_for_each(|(name, label)| {
            writer.push_labels(name, &rows.iter().map(|&row| label(row)).collect::<Vec<_>>())
        })
    }
}

/// Batches of at most `most` rows. Documents that the model rotates by their own length are only with others as long.
pub fn batches(documents: &[Sequence], most: usize, config: &ModelConfig) -> Result<Vec<Batch>> {
    if most == 0 {
        return Err(Error::argument("batch_tokens", "at least 1", most));
    }
    let mut batches = Vec::new();
    let new = || PackBuilder::default().bidirectional(!config.is_causal);
    let mut builder = new();
    let (mut rows, mut first) = (0, 0);
    let rope_len = |document: &Sequence| config.scaled_len(document.tokens.len());
    for (i, document) in documents.iter().enumerate() {
        let full = rows + document.tokens.len() > most;
        if rows > 0 && (full || rope_len(document) != rope_len(&documents[first])) {
            batches.push(Batch { pack: std::mem::replace(&mut builder, new()).build(), first });
            (rows, first) = (0, i);
        }
        builder.push(&document.tokens, Parent::None, document.run, Label::Text);
        rows += document.tokens.len();
    }
    batches.push(Batch { pack: builder.build(), first });
    Ok(batches)
}
