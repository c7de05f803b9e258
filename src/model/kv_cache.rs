//! Keys and values that outlive their pass, and what a pass adds to them.

use crate::Result;
use crate::backend::Backend;
use crate::backend::ops::KvAppend;
use crate::pack::{CachedSegment, Pack, Parent};

/// A cache of keys and values by layer, and the forest of the segments in it.
pub struct KvCache<B: Backend> {
    /// Keys (after the rotation) and values of each layer, `[capacity, K, D]`.
    pub layers: Vec<(B::Compute, B::Compute)>,
    /// The segments in it, parents before children.
    pub segments: Vec<CachedSegment>,
    /// Rows in use.
    pub used: usize,
    /// Rows that there is room for.
    pub capacity: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache of `capacity` rows for `layers` layers of `width = K * D`.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(backend: &mut B, layers: usize, capacity: usize, width: usize) -> Result<Self> {
        let layers = (0..layers)
            .map(|_| Ok((backend.compute(capacity * width)?, backend.compute(capacity * width)?)))
            .collect::<Result<_>>()?;
        Ok(Self { layers, segments: Vec::new(), used: 0, capacity })
    }
}

/// Keys and values of earlier passes, and the segments of this pass that are added to them.
pub struct Cache<'a, B: Backend> {
    /// What the pack's cached parents lie in.
    pub cache: &'a mut KvCache<B>,
    /// Segments of the pack to append, ascending; a segment's parent must be appended as well, or cached already.
    pub append: &'a [usize],
}

impl<B: Backend> Cache<'_, B> {
    /// Asserts that there is room for what is to be appended by a pass from layer `start` on.
    pub(super) fn check_room(&self, pack: &Pack, start: usize) {
        assert!(
            start == 0 || self.append.is_empty(),
            "forward: segments of a pass from layer {start} on have no keys below"
        );
        let rows: usize = self.append.iter().map(|&g| pack.segments()[g].rows.len()).sum();
        let KvCache { used, capacity, .. } = *self.cache;
        assert!(used + rows <= capacity, "forward: {used} + {rows} rows in a cache of {capacity}");
    }

    /// Appends a layer's keys and values `[N, width]` of the segments, `width = K * D`.
    pub(super) fn append_rows(
        &mut self,
        backend: &mut B,
        layer: usize,
        [k, v]: [&B::Compute; 2],
        pack: &Pack,
        width: usize,
    ) {
        let (keys, values) = &mut self.cache.layers[layer];
        let mut to = self.cache.used;
        for &g in self.append {
            let from = pack.segments()[g].rows.clone();
            backend.kv_append(KvAppend { cache: keys, to, x: k, from: from.clone(), width });
            backend.kv_append(KvAppend { cache: values, to, x: v, from: from.clone(), width });
            to += from.len();
        }
    }

    /// Enters the segments into the cache's forest, once all layers have been appended.
    pub(super) fn append_segments(self, pack: &Pack) {
        let Self { cache, append } = self;
        let first = cache.segments.len();
        for &g in append {
            let segment = &pack.segments()[g];
            let parent = match segment.parent {
                Parent::None => None,
                Parent::Cached(k) => Some(k),
                Parent::Pack(p) => {
                    let i = append.iter().position(|&appended| appended == p);
                    Some(first + i.unwrap_or_else(|| panic!("forward: segment {g} is cached, its parent {p} is not")))
                }
            };
            let rows = cache.used..cache.used + segment.rows.len();
            cache.used = rows.end;
            let end = segment.position + segment.rows.len();
            cache.segments.push(CachedSegment { rows, parent, run: segment.run, end });
        }
    }
}
