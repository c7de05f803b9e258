//! How many cells a task has, and how many tasks may be submitted.

use std::time::Duration;

use super::submission::Submission;
use crate::sweep::plan::Cell;

/// Most tasks of an array: Slurm's default of `MaxArraySize` is 1001, beyond the last index.
pub const LARGEST_ARRAY: usize = 1000;
/// Share of the time limit that cells are to fill, by the slowest that was seen.
const FILL: f64 = 0.8;

/// Cells of a task, at most: so many that all tasks have work, and that all of them end within the time limit, if every one
/// takes as long as the slowest so far; with a limit, and none measured yet, one.
pub fn size(left: usize, tasks: usize, time: Option<Duration>, slowest: Option<f64>) -> usize {
    let even = left.div_ceil(tasks.max(1));
    match (time, slowest) {
        (None, _) => even,
        (Some(_), None) => 1,
        (Some(time), Some(slowest)) => even.min((FILL * time.as_secs_f64() / slowest.max(1e-3)) as usize).max(1),
    }
}

/// The cells of groups in chunks of at most `size` cells, at most `count` chunks; cells of a group stay beside each other.
pub fn chunks<'a>(groups: &[Vec<&'a Cell>], size: usize, count: usize) -> Vec<Vec<&'a Cell>> {
    let cells: Vec<&Cell> = groups.iter().flatten().copied().collect();
    cells.chunks(size.max(1)).take(count).map(<[_]>::to_vec).collect()
}

/// Tasks that may be submitted at `now`, of so many a minute.
pub fn allowed(submissions: &[Submission], per_minute: usize, now: u64) -> usize {
    let recent = submissions.iter().filter(|submission| submission.at + 60 > now);
    per_minute.saturating_sub(recent.map(|submission| submission.chunks.len()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_even_and_end_in_time() {
        let minutes = |n: u64| Some(Duration::from_secs(60 * n));
        assert_eq!(size(100, 8, None, None), 13);
        assert_eq!(size(100, 8, None, Some(1e6)), 13);
        assert_eq!(size(100, 8, minutes(10), None), 1);
        assert_eq!(size(100, 8, minutes(10), Some(60.0)), 8);
        assert_eq!(size(100, 8, minutes(10), Some(1.0)), 13);
        assert_eq!(size(100, 8, minutes(10), Some(3600.0)), 1);
    }

    #[test]
    fn rate_is_that_of_the_last_minute() {
        let of = |at, n| Submission { number: 1, job: None, at, chunks: vec![Vec::new(); n] };
        let all = [of(1000, 5), of(1030, 7)];
        assert_eq!(allowed(&all, 20, 1031), 8);
        assert_eq!(allowed(&all, 20, 1059), 8);
        assert_eq!(allowed(&all, 20, 1060), 13);
        assert_eq!(allowed(&all, 10, 1031), 0);
    }

    #[test]
    fn chunks_have_every_cell_in_its_group() {
        let cells: Vec<Cell> = (0..10)
            .map(|i| {
                let (levels, flags) = Default::default();
                Cell { key: i.to_string(), levels, flags, shares: None, model: "m".into() }
            })
            .collect();
        let groups: Vec<Vec<&Cell>> = vec![cells[..4].iter().collect(), cells[4..].iter().collect()];
        let of = |size, count| -> Vec<usize> { chunks(&groups, size, count).iter().map(Vec::len).collect() };
        assert_eq!(of(4, 9), [4, 4, 2]);
        assert_eq!(of(4, 2), [4, 4]);
        assert_eq!(of(1, 3), [1, 1, 1]);
    }
}
