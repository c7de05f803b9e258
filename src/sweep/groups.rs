//! Cells that go together: those that share passes of the model or at least the loaded model, and models one after another.

use std::collections::HashMap;

use super::plan::Cell;

/// Most cells of a group: what a killed process may lose of cells that share passes, and what is held in memory before the first
/// is written.
const MOST: usize = 16;
/// Groups that every process should find, so that one with slow cells does not end long after the others.
const GROUPS_OF_PROCESS: usize = 2;

/// The cells in groups, for so many processes; those of one model stand one after another. A group's cells share passes
/// or the loaded model ([`Cell::shares`]); any other cell is a group of its own. Which cells go together changes no result.
pub fn groups<'a>(cells: impl IntoIterator<Item = &'a Cell>, processes: usize) -> Vec<Vec<&'a Cell>> {
    let mut classes: Vec<Vec<&Cell>> = Vec::new();
    let (mut models, mut shared) = (HashMap::<&str, usize>::new(), HashMap::<&str, usize>::new());
    for cell in cells {
        let count = models.len();
        models.entry(&cell.model).or_insert(count);
        let at = cell.shares.as_ref().map_or(classes.len(), |shares| *shared.entry(shares).or_insert(classes.len()));
        match classes.get_mut(at) {
            Some(class) => class.push(cell),
            None => classes.push(vec![cell]),
        }
    }
    // Stable: within a model in the order of their first cells.
    classes.sort_by_key(|class| models[class[0].model.as_str()]);
    let all: usize = classes.iter().map(Vec::len).sum();
    let size = all.div_ceil(GROUPS_OF_PROCESS.saturating_mul(processes.max(1))).clamp(1, MOST);
    let parts = |class: Vec<&'a Cell>| {
        let count = class.len().div_ceil(size);
        let bound = |i: usize| i * class.len() / count;
        (0..count).map(|i| class[bound(i)..bound(i + 1)].to_vec()).collect::<Vec<_>>()
    };
    classes.into_iter().flat_map(parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(i: usize, shares: Option<&str>, model: &str) -> Cell {
        let (levels, flags) = Default::default();
        Cell { key: i.to_string(), levels, flags, shares: shares.map(str::to_owned), model: model.to_owned() }
    }

    fn sizes(cells: &[Cell], processes: usize) -> Vec<usize> {
        let groups = groups(cells, processes);
        let mut keys: Vec<&str> = groups.iter().flatten().map(|cell| cell.key.as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), cells.len(), "every cell once");
        groups.iter().map(Vec::len).collect()
    }

    #[test]
    fn groups_are_even_and_enough_for_all_processes() {
        let cells: Vec<Cell> = (0..24).map(|i| cell(i, Some("a"), "m")).collect();
        assert_eq!(sizes(&cells, 1), [12, 12]);
        assert_eq!(sizes(&cells, 2), [6, 6, 6, 6]);
        assert_eq!(sizes(&cells, 100), [1; 24]);
        assert_eq!(sizes(&cells, usize::MAX), [1; 24]);
        let many: Vec<Cell> = (0..100).map(|i| cell(i, Some("a"), "m")).collect();
        assert!(sizes(&many, 1).iter().all(|&size| (14..=16).contains(&size)));
        let alone: Vec<Cell> = (0..5).map(|i| cell(i, None, "m")).collect();
        assert_eq!(sizes(&alone, 1), [1; 5]);
    }

    #[test]
    fn models_come_one_after_another() {
        let cells: Vec<Cell> = (0..12).map(|i| cell(i, Some(["a", "b"][i % 2]), ["m", "n"][i % 2])).collect();
        let of = groups(&cells, 1);
        let models: Vec<&str> = of.iter().map(|group| group[0].model.as_str()).collect();
        assert_eq!(models, ["m", "n"]);
        assert!(of.iter().all(|group| group.iter().all(|cell| cell.shares == group[0].shares)));
    }
}
