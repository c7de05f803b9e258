//! Tables of counts that no change may worsen: `tests/counts/*.csv`.
//!
//! A file is what the last accepted change counted. A count that differs fails, and the message says whether it is worse or
//! better; either way the file is written anew by the command that the message gives, and the difference shows in the commit.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Which way a count gets worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
}

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub better: Better,
}

/// A column whose counts get worse by growing.
pub const fn low(name: &'static str) -> Column {
    Column { name, better: Better::Lower }
}

/// A column whose counts get worse by shrinking.
pub const fn high(name: &'static str) -> Column {
    Column { name, better: Better::Higher }
}

/// Counts by what they are of.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    columns: &'static [Column],
    rows: BTreeMap<String, Vec<f64>>,
}

/// Counts are kept to two digits behind the point.
fn rounded(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}

impl Table {
    pub fn new(columns: &'static [Column]) -> Self {
        Self { columns, rows: BTreeMap::new() }
    }

    /// Adds the counts of something, one for each column.
    pub fn add(&mut self, of: String, counts: &[f64]) {
        assert_eq!(counts.len(), self.columns.len(), "{of}: counts");
        let before = self.rows.insert(of.clone(), counts.iter().copied().map(rounded).collect());
        assert!(before.is_none(), "{of}: counted twice");
    }

    /// A count, by row and column.
    pub fn count(&self, of: &str, column: &str) -> f64 {
        let at = self.columns.iter().position(|c| c.name == column).unwrap_or_else(|| panic!("no column {column}"));
        self.rows.get(of).unwrap_or_else(|| panic!("nothing is counted of {of}"))[at]
    }

    fn text(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|c| c.name).collect();
        let mut text = format!("of,{}\n", names.join(","));
        for (of, counts) in &self.rows {
            let counts: Vec<String> = counts.iter().map(f64::to_string).collect();
            writeln!(text, "{of},{}", counts.join(",")).unwrap();
        }
        text
    }

    fn parse(columns: &'static [Column], text: &str) -> Self {
        let mut table = Self::new(columns);
        for line in text.lines().skip(1) {
            let mut fields = line.split(',');
            let of = fields.next().unwrap().to_string();
            let counts: Vec<f64> = fields.map(|x| x.parse().unwrap_or_else(|_| panic!("{line}: {x}"))).collect();
            table.add(of, &counts);
        }
        table
    }

    /// What is worse and what is better here than in an earlier table, a line each. What one of them lacks is worse.
    pub fn changes(&self, earlier: &Self) -> [Vec<String>; 2] {
        let (mut worse, mut better) = (Vec::new(), Vec::new());
        worse.extend(earlier.rows.keys().filter(|of| !self.rows.contains_key(*of)).map(|of| format!("{of}: gone")));
        for (of, counts) in &self.rows {
            let Some(before) = earlier.rows.get(of) else {
                worse.push(format!("{of}: not in the table"));
                continue;
            };
            for ((column, &now), &before) in self.columns.iter().zip(counts).zip(before) {
                let grew = column.better == Better::Higher;
                let line = format!("{of}: {} {now}, was {before}", column.name);
                match now == before {
                    true => {}
                    false if (now > before) == grew => better.push(line),
                    false => worse.push(line),
                }
            }
        }
        [worse, better]
    }

    /// Holds the table against the file `tests/counts/<name>.csv`, or writes it where `LLAMAPROBE_RENEW_COUNTS=1`.
    ///
    /// # Panics
    /// If anything differs, with what is worse, what is better, and the command that writes the file; `test` is what selects
    /// this test in that command.
    pub fn hold(&self, name: &str, test: &str) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/counts").join(format!("{name}.csv"));
        if std::env::var("LLAMAPROBE_RENEW_COUNTS").is_ok_and(|value| value == "1") {
            std::fs::write(&path, self.text()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            return;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let [worse, better] = self.changes(&Self::parse(self.columns, &text));
        assert!(
            worse.is_empty() && better.is_empty(),
            "tests/counts/{name}.csv\nworse:\n{}\nbetter:\n{}\nWhat is meant to stay: LLAMAPROBE_RENEW_COUNTS=1 cargo \
             test --locked {test}",
            worse.join("\n"),
            better.join("\n")
        );
    }
}

#[test]
fn counts_that_worsen_and_improve_are_told_apart() {
    static COLUMNS: [Column; 2] = [low("registers"), high("blocks")];
    let table = |rows: &[(&str, [f64; 2])]| {
        let mut table = Table::new(&COLUMNS);
        rows.iter().for_each(|(of, counts)| table.add(of.to_string(), counts));
        table
    };
    let before = table(&[("a", [30.0, 2.0]), ("b", [6.251, 1.0])]);
    assert_eq!(Table::parse(&COLUMNS, &before.text()), before);
    assert_eq!(before.changes(&before), [vec![], vec![]] as [Vec<String>; 2]);
    let changes = |rows: &[(&str, [f64; 2])]| table(rows).changes(&before);
    assert_eq!(changes(&[("a", [31.0, 2.0]), ("b", [6.25, 1.0])]), [vec!["a: registers 31, was 30"], vec![]]);
    assert_eq!(changes(&[("a", [30.0, 1.0]), ("b", [6.25, 1.0])]), [vec!["a: blocks 1, was 2"], vec![]]);
    let [worse, better] = changes(&[("a", [29.0, 3.0]), ("c", [1.0, 1.0])]);
    assert_eq!(worse, ["b: gone", "c: not in the table"]);
    assert_eq!(better, ["a: registers 29, was 30", "a: blocks 3, was 2"]);
}
