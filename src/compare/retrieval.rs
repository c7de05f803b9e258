//! The retrieval index of a task: the pool, and a vector for each example and query where it is by vectors.

use std::path::Path;

use rayon::prelude::*;

use super::inputs::{Comparison, Source};
use super::settings::Retrieval;
use crate::backend::Backend;
use crate::model::Model;
use crate::task::Example;
use crate::task::embedding::mean_states;
use crate::task::retrieval::{Query, Retrieved, Retriever, read_vectors};
use crate::{Error, Result};

/// Examples of a data set, and their indices in it.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    /// In the order in which they were chosen.
    pub examples: Vec<Example>,
    /// One for each example.
    pub indices: Vec<usize>,
}

/// What demonstrations are retrieved from.
pub struct Index {
    retriever: Retriever,
    /// `[pool, width]`; empty for retrieval by words.
    pool_vectors: Vec<f32>,
    /// `[queries, width]`; empty for retrieval by words.
    query_vectors: Vec<f32>,
    pool: usize,
    queries: usize,
}

impl Index {
    /// The index that the settings of a comparison ask for.
    ///
    /// # Errors
    /// Vectors that do not fit; a failure of tokenizer or device.
    pub fn new<B: Backend>(
        backend: &mut B,
        model: &Model<B>,
        comparison: &Comparison,
        source: &Source,
        pool: &Chosen,
        queries: &Chosen,
    ) -> Result<Self> {
        let (pool_vectors, query_vectors) = match (comparison.settings.retrieval, comparison.vectors) {
            (Retrieval::Bm25, _) => (Vec::new(), Vec::new()),
            (Retrieval::Vectors, Some(path)) => vectors(path, source, pool, queries)?,
            (Retrieval::Vectors, None) => {
                return Err(Error::argument("vectors", "a file, for retrieval by vectors", "none"));
            }
            (Retrieval::States, _) => {
                let mut embed = |chosen: &Chosen| {
                    let ids = |e: &Example| Ok(comparison.tokenizer.encode(&e.input, true)?.ids);
                    let ids: Vec<Vec<u32>> = chosen.examples.par_iter().map(ids).collect::<Result<_>>()?;
                    mean_states(backend, model, &ids, comparison.settings.rows)
                };
                (embed(pool)?, embed(queries)?)
            }
        };
        let retriever = match comparison.settings.retrieval {
            Retrieval::Bm25 => Retriever::bm25(&pool.examples),
            Retrieval::States | Retrieval::Vectors => Retriever::dense(&pool.examples, pool_vectors.clone()),
        };
        let (pool, queries) = (pool.examples.len(), queries.examples.len());
        Ok(Self { retriever, pool_vectors, query_vectors, pool, queries })
    }

    /// How like query number `i` each example of the pool is.
    pub fn similarities(&self, i: usize, input: &str) -> Vec<f64> {
        self.retriever.similarities(&self.query(i, input))
    }

    /// The `count` examples most like query number `i`, see [`Retriever::nearest`].
    ///
    /// # Errors
    /// Too few examples.
    pub fn nearest_to_query(&self, i: usize, input: &str, count: usize) -> Result<Vec<Retrieved>> {
        self.retriever.nearest(&self.query(i, input), count)
    }

    /// The `count` others of the pool most like its example number `i`, see [`Retriever::nearest`].
    ///
    /// # Errors
    /// Too few examples.
    pub fn nearest_to_example(&self, i: usize, input: &str, count: usize) -> Result<Vec<Retrieved>> {
        let width = self.pool_vectors.len() / self.pool;
        let vector = &self.pool_vectors[i * width..][..width];
        self.retriever.nearest(&Query { input, vector, pool_index: Some(i) }, count)
    }

    fn query<'a>(&'a self, i: usize, input: &'a str) -> Query<'a> {
        let width = self.query_vectors.len() / self.queries;
        Query { input, vector: &self.query_vectors[i * width..][..width], pool_index: None }
    }
}

/// The vectors of pool and queries from a file.
fn vectors(path: &Path, source: &Source, pool: &Chosen, queries: &Chosen) -> Result<(Vec<f32>, Vec<f32>)> {
    let read = |side: &str, all: &[Example], indices: &[usize]| -> Result<Vec<f32>> {
        let rows = read_vectors(path, &format!("{}.{side}", source.task), all.len())?;
        let width = rows.len() / all.len();
        Ok(indices.iter().flat_map(|&i| rows[i * width..][..width].to_vec()).collect())
    };
    let of_pool = read("train", &source.train.examples, &pool.indices)?;
    let of_queries = read("test", &source.test.examples, &queries.indices)?;
    if of_pool.len() * queries.indices.len() != of_queries.len() * pool.indices.len() {
        let expected = format!("the width of {}.train", source.task);
        return Err(Error::field(path, format!("{}.test", source.task), expected, "another"));
    }
    Ok((of_pool, of_queries))
}
