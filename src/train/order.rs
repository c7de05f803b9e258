//! The order in which a run sees its data: a seeded shuffle per epoch, and how far the run is in it.

use serde::{Deserialize, Serialize};

use crate::random::Rng;

/// How far a run is in its data. With the seed, it determines all that follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataCursor {
    /// Number of the epoch, from 0.
    pub epoch: u64,
    /// Sequences of the epoch that have been taken.
    pub position: usize,
}

/// Order of `len` sequences over the epochs, and a cursor in it.
///
/// Epoch `e` is shuffled by stream `e + 1` of the seed, whatever came before, so that a [`DataCursor`] is
/// the whole state. (Stream 0 is left to what else is drawn under the same seed.)
#[derive(Clone, Debug)]
pub struct Order {
    seed: Option<u64>,
    cursor: DataCursor,
    indices: Vec<usize>,
}

impl Order {
    /// The order of `len > 0` sequences; without a seed that of the file, in every epoch.
    pub fn new(len: usize, seed: Option<u64>) -> Self {
        assert!(len > 0, "order: no data");
        let mut order = Self { seed, cursor: DataCursor::default(), indices: (0..len).collect() };
        order.arrange();
        order
    }

    /// The next `count` sequences, fewer at the end of an epoch, never none.
    pub fn take(&mut self, count: usize) -> &[usize] {
        assert!(count > 0, "order: a batch of 0");
        if self.cursor.position == self.indices.len() {
            self.cursor = DataCursor { epoch: self.cursor.epoch + 1, position: 0 };
            self.arrange();
        }
        let from = self.cursor.position;
        self.cursor.position = (from + count).min(self.indices.len());
        &self.indices[from..self.cursor.position]
    }

    /// How far the run is.
    pub fn cursor(&self) -> DataCursor {
        self.cursor
    }

    /// Epochs completed, with the fraction of the current one.
    pub fn epochs(&self) -> f64 {
        self.cursor.epoch as f64 + self.cursor.position as f64 / self.indices.len() as f64
    }

    /// Goes to where a run was; `false`, and nothing happens, if it is outside the data.
    pub fn seek(&mut self, cursor: DataCursor) -> bool {
        let inside = cursor.position <= self.indices.len();
        if inside {
            self.cursor = cursor;
            self.arrange();
        }
        inside
    }

    fn arrange(&mut self) {
        self.indices.iter_mut().enumerate().for_each(|(i, index)| *index = i);
        if let Some(seed) = self.seed {
            Rng::with_stream(seed, self.cursor.epoch + 1).shuffle(&mut self.indices);
        }
    }
}
