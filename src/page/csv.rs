//! Every series of a page, a value a line.

use super::model::Page;

/// The columns of [`series`].
const HEADER: &str = "figure,series,x,mean,sd";

/// The values of all figures in tidy form: figure, series, x (the name of its place, or a number), mean, SD. Numbers read
/// back as the same f64; what is not there is empty.
pub fn series(page: &Page) -> String {
    let mut out = format!("{HEADER}\n");
    for figure in page.figures() {
        for series in &figure.series {
            for point in &series.points {
                let value = |v: Option<f64>| v.map_or_else(String::new, |v| v.to_string());
                let cells =
                    [figure.id.clone(), series.name.clone(), figure.x(point), value(point.y.mean), value(point.y.sd)];
                out += &cells.map(|cell| quoted(&cell)).join(",");
                out.push('\n');
            }
        }
    }
    out
}

/// A table of texts, a row a line.
pub fn table<'a>(rows: impl IntoIterator<Item = &'a Vec<String>>) -> String {
    let line = |row: &Vec<String>| row.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(",") + "\n";
    rows.into_iter().map(line).collect()
}

/// A cell as RFC 4180 has it.
fn quoted(cell: &str) -> String {
    let plain = !cell.contains([',', '"', '\n', '\r']);
    if plain { cell.to_owned() } else { format!("\"{}\"", cell.replace('"', "\"\"")) }
}
