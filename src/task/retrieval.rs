//! Demonstrations that are like the query: by words (BM25) or by vectors (dense).

use std::collections::{HashMap, HashSet};
use std::path::Path;

use bm25::{Embedder, EmbedderBuilder, Scorer, Tokenizer as Words};

use super::example::Example;
use crate::formats::safetensors::Checkpoint;
use crate::{Error, Result};

/// A demonstration retrieved for a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retrieved {
    /// Its index in the pool.
    pub index: usize,
    /// How like the query it is: see [`Retriever::similarities`].
    pub similarity: f64,
}

/// What demonstrations are looked for.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The input, whose words BM25 looks for.
    pub input: &'a str,
    /// Its vector `[width]`, for dense retrieval.
    pub vector: &'a [f32],
    /// Its index in the pool, if it is of the pool.
    pub pool_index: Option<usize>,
}

/// Finds demonstrations in a pool of examples.
pub struct Retriever {
    inputs: Vec<String>,
    index: Index,
}

enum Index {
    Words {
        embedder: Embedder<u64, Split>,
        scorer: Scorer<usize, u64>,
        documents: HashMap<u64, usize>,
    },
    /// Unit vectors `[pool, width]`.
    Vectors {
        width: usize,
        rows: Vec<f32>,
    },
}

/// Runs of letters and digits in lower case.
struct Split;

impl Words for Split {
    fn tokenize(&self, text: &str) -> Vec<String> {
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect()
    }
}

impl Retriever {
    /// By BM25 (Robertson and Zaragoza 2009; k1 1.2, b 0.75) over the inputs' words in lower case.
    pub fn bm25(pool: &[Example]) -> Self {
        let inputs: Vec<String> = pool.iter().map(|e| e.input.clone()).collect();
        let texts: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let embedder = EmbedderBuilder::with_tokenizer_and_fit_to_corpus(Split, &texts).build();
        let (mut scorer, mut documents) = (Scorer::new(), HashMap::new());
        for (i, text) in texts.iter().enumerate() {
            let embedding = embedder.embed(text);
            let distinct: HashSet<u64> = embedding.indices().copied().collect();
            distinct.into_iter().for_each(|word| *documents.entry(word).or_default() += 1);
            scorer.upsert(&i, embedding);
        }
        Self { inputs, index: Index::Words { embedder, scorer, documents } }
    }

    /// By the cosine of vectors, `[pool, width]`.
    ///
    /// # Panics
    /// If there is not one vector for each example.
    pub fn dense(pool: &[Example], mut vectors: Vec<f32>) -> Self {
        assert!(!pool.is_empty() && vectors.len().is_multiple_of(pool.len()), "dense: {} values", vectors.len());
        let width = vectors.len() / pool.len();
        vectors.chunks_exact_mut(width).for_each(unit);
        Self { inputs: pool.iter().map(|e| e.input.clone()).collect(), index: Index::Vectors { width, rows: vectors } }
    }

    /// How like the query each example of the pool is: by words, the BM25 score as a share of what the query would score
    /// itself as an example (so that long and short queries compare); by vectors, the cosine.
    ///
    /// # Panics
    /// If the query's vector is of another width.
    pub fn similarities(&self, query: &Query) -> Vec<f64> {
        match &self.index {
            Index::Words { embedder, scorer, documents } => {
                let words = embedder.embed(query.input);
                let n = self.inputs.len() as f64;
                let rarity = |word: &u64| {
                    let with = documents.get(word).copied().unwrap_or(0) as f64;
                    (1.0 + (n - with + 0.5) / (with + 0.5)).ln()
                };
                let self_score: f64 = words.iter().map(|word| rarity(&word.index) * f64::from(word.value)).sum();
                let mut out = vec![0.0; self.inputs.len()];
                for found in scorer.matches(&words) {
                    out[found.id] = f64::from(found.score) / self_score;
                }
                out
            }
            Index::Vectors { width, rows } => {
                assert!(query.vector.len() == *width, "dense: a query of {} in {width}", query.vector.len());
                let mut vector = query.vector.to_vec();
                unit(&mut vector);
                let cosine = |row: &[f32]| row.iter().zip(&vector).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                rows.chunks_exact(*width).map(cosine).collect()
            }
        }
    }

    /// The `count` examples most like the query, the most like last, next to the query; of equals the earlier is the
    /// more like. Never the query itself, nor an example with the same input.
    ///
    /// # Errors
    /// The pool has fewer than `count` others.
    pub fn nearest(&self, query: &Query, count: usize) -> Result<Vec<Retrieved>> {
        let similarities = self.similarities(query);
        let mut all: Vec<Retrieved> =
            self.allowed(query).map(|index| Retrieved { index, similarity: similarities[index] }).collect();
        if all.len() < count {
            return Err(Error::argument("demonstrations", format!("at most {}", all.len()), count));
        }
        all.sort_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.index.cmp(&b.index)));
        all.truncate(count);
        all.reverse();
        Ok(all)
    }

    /// The indices of the examples that may be shown to a query.
    fn allowed<'a>(&'a self, query: &'a Query) -> impl Iterator<Item = usize> + 'a {
        (0..self.inputs.len()).filter(|&i| Some(i) != query.pool_index && self.inputs[i] != query.input)
    }
}

/// Divides by the length; the zero vector stays.
fn unit(row: &mut [f32]) {
    let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length > 0.0 {
        row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}

/// Reads a sentence-encoder's vectors: a safetensors file with a tensor `name` `[count, width]` of floats, a row for
/// each example of a data set in its order.
///
/// # Errors
/// No such tensor, or one of another shape; a value that is not finite.
pub fn read_vectors(path: &Path, name: &str, count: usize) -> Result<Vec<f32>> {
    let file = Checkpoint::open(path)?;
    let view = file.get(name).ok_or_else(|| Error::field(path, name, "a tensor", "none"))?;
    match view.shape[..] {
        [rows, width] if rows == count && width > 0 => {
            view.check_finite().and_then(|()| view.to_f32()).map_err(|e| file.error(e))
        }
        _ => Err(Error::field(path, name, format!("the shape [{count}, width]"), format!("{:?}", view.shape))),
    }
}
